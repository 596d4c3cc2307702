"""The flow, readable top to bottom: load, prepare, place, collect, resolve, lower."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq import files, pipeline
from onnxq.caches import Cache
from onnxq.choose import bounds_only, light, resolve, uncached, weights_only, with_codes
from onnxq.coarse import with_held_scales
from onnxq.comparison import Comparison, compare_graphs
from onnxq.errors import RecipeError
from onnxq.intake import Model, checked, given_shapes, load, open_data, unknown_shapes
from onnxq.interface import ports
from onnxq.monitor import QUIET, SILENT, Monitor
from onnxq.numerics import NEAR
from onnxq.parts import HERE, Running
from onnxq.passes import finish, lower, weight_grid
from onnxq.placement import settled
from onnxq.placement.bodies import divided
from onnxq.placement.zero_points import with_zero_points
from onnxq.planning import (
    SPARED,
    Prepared,
    activations,
    drafted,
    lacking,
    parted,
    planned,
    prepared,
    smoothed,
    without_nodes,
)
from onnxq.precision import with_float_types
from onnxq.recipe import Recipe
from onnxq.relay import collect_within
from onnxq.schemes import backend, held_in
from onnxq.seen import observing
from onnxq.statistics import Statistics, is_statistics
from onnxq.weights import chosen_weights, needs_data

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from onnxq import checks
    from onnxq.graph import Graph
    from onnxq.improvement.written import Kept
    from onnxq.plan import Plan
    from onnxq.search import Evaluation

__all__ = [
    "DEFAULT",
    "FEW",
    "Prepared",
    "activations",
    "calibrate",
    "carried_out",
    "check",
    "compare",
    "default_output",
    "export",
    "lowered",
    "make_plan",
    "measured",
    "observe",
    "planned",
    "prepared",
    "quantize",
    "smoothed",
]

DEFAULT = Recipe()

FEW = 8
"""With so many samples or fewer a warning is given."""


def quantize(
    model: Model,
    data: object = None,
    recipe: Recipe = DEFAULT,
    monitor: Monitor = QUIET,
    *,
    cache: Cache | None = None,
    evaluation: Evaluation | None = None,
) -> tuple[Graph, Plan]:
    """Quantize a model; return it with the plan that was carried out.

    Args:
        model: path, Graph, ModelProto or graphsurgeon graph; it is not changed.
        data: Statistics or a file of them, a Cache, or anything `onnxq.data` reads (a path or text form, an iterable
            of feeds, an ORT data reader). None without a cache quantizes the weights only and leaves activations in
            float.
        recipe: every choice.
        monitor: progress and warnings.
        cache: scales that win over the data; only what it lacks is measured.
        evaluation: what a budget in the recipe is judged by, see `onnxq.search`; the plan's `budget` says how it went.

    Raises:
        AccuracyError: the recipe's budget cannot be kept.
        OnnxqError: see its children; the message says what to do.
    """
    ready = prepared(model, recipe, monitor)
    if isinstance(data, Cache):
        data, cache = None, data
    return carried_out(ready, data, monitor, cache, evaluation)[:2]


def calibrate(
    model: Model,
    data: object,
    recipe: Recipe = DEFAULT,
    monitor: Monitor = QUIET,
    *,
    all_tensors: bool = False,
    running: Running = HERE,
) -> Statistics:
    """Collect statistics alone, of every float activation with `all_tensors`; arguments else as for `quantize`.

    Of all activations those are left out that depend on custom operators, unless the recipe has their libraries.

    Args:
        model: as for `quantize`.
        data: as for `quantize`.
        recipe: every choice.
        monitor: progress and warnings.
        all_tensors: observe every float activation.
        running: in whose workers, and with checkpoints or without; the result is the same.

    Raises:
        OnnxqError: see its children.
    """
    ready = prepared(model, recipe, monitor)
    from onnxq.improving import improved  # it is made of the steps below

    return improved(ready, data, monitor, all_tensors=all_tensors, running=running)[0]


def make_plan(model: Model, recipe: Recipe = DEFAULT, monitor: Monitor = QUIET) -> Plan:
    """What would be quantized, and why not the rest; needs no data. Work is counted by the recipe's `shapes`.

    Raises:
        OnnxqError: the model cannot be read or prepared, a rule matches nothing, or the shapes do not fit.
    """
    monitor.stage("Preparing", None)
    with checked(model):
        ready = drafted(model, recipe, monitor)
    made = _as_given(ready).plan
    unknown = unknown_shapes(ready.graph, given_shapes(ready.graph, recipe.shapes))
    found = [
        f"work is counted with 1 for every size that the model leaves open; --shapes {shlex.quote(unknown)} tells them"
    ]
    refused = [f"`quantize` refuses this model: TensorRT lacks {nodes}"] if (nodes := lacking(ready)) else []
    return replace(made, notes=(*made.notes, *refused, *(found if unknown else ())))


def compare(
    model: Model,
    quantized: Model,
    data: object,
    recipe: Recipe = DEFAULT,
    *,
    layers: bool = False,
    histograms: Collection[str] = (),
    monitor: Monitor = QUIET,
) -> Comparison:
    """Errors of the quantized model against the float one, per output or (`layers`) per tensor both have.

    `histograms` names tensors, among those compared, of whose values in the float model histograms are made.

    Raises:
        OnnxqError: a model cannot be run, or the data does not fit.
    """
    reference, other = load(model), load(quantized)
    source = open_data(data, reference, recipe, monitor)
    monitor.stage("Comparing", source.length)
    return compare_graphs(
        reference,
        other,
        source,
        layers=layers,
        histograms=histograms,
        providers=recipe.provider_list,
        custom_ops=recipe.custom_op_list,
        monitor=monitor,
    )


def check(model: Model, target: str = "tensorrt", shapes: str = "") -> checks.Report:
    """Will the target take this model, and run it in int8? From rules, without the target; see `onnxq.checks`.

    Args:
        model: quantized, by whatever tool; a file is checked as it stands, its external weights are not read.
        target: tensorrt@8, tensorrt@10 or tensorrt@11, for a DLA with `+dla` behind it; `tensorrt` is the newest.
        shapes: sizes of inputs that the model leaves open, as a recipe has them: work is counted with them.

    Raises:
        ModelError: the model cannot be read.
        RecipeError: there are no checks for this target, or the shapes do not fit.
    """
    from onnxq import checks  # rules that no other function of these needs

    given = given_shapes(load(model), shapes) if shapes else {}
    with checked(model):
        if isinstance(model, str | os.PathLike) or hasattr(model, "SerializeToString"):
            return checks.check(model, target, shapes=given)
        return checks.check(load(model).to_proto(), target, shapes=given)


# -- the steps -----------------------------------------------------------------------------------------------


def observe(
    ready: Prepared,
    data: object,
    monitor: Monitor = QUIET,
    tensors: Sequence[str] | None = None,
    running: Running = HERE,
) -> Statistics:
    """Run the prepared model over the data; `tensors` names what to observe when it is not what the plan asks for.

    Raises:
        DataError: the data cannot be read or does not fit.
        RecipeError: memory is limited, and an executor is there.
    """
    names = ready.plan.observe if tensors is None else tensors
    few = bounds_only(ready.plan, ready.recipe)
    if light(ready.recipe):
        few |= set(names) - set(ready.plan.observe)
    source = open_data(data, ready.graph, ready.recipe, monitor)
    bounds = tuple(dict.fromkeys([*(name for name in names if name in few), *ready.plan.probes]))
    monitor.stage(observing(len(names), len(set(bounds) - set(names)), source.name), source.length)
    memory = ready.recipe.memory_bytes
    if memory is not None and running.executor is not None:
        raise RecipeError("memory is limited for one process, and workers load whole models", "Leave out --memory.")
    return (running.collect if memory is None else partial(collect_within, memory, keeper=running.keeper))(
        ready.graph,
        tuple(name for name in names if name not in few),
        source,
        bounds=bounds,
        providers=ready.recipe.provider_list,
        custom_ops=ready.recipe.custom_op_list,
        monitor=monitor,
    )


def measured(
    ready: Prepared,
    data: object,
    monitor: Monitor = QUIET,
    cache: Cache | None = None,
    running: Running = HERE,
) -> Statistics | None:
    """Statistics of what the plan asks for and the cache lacks; None without data, or when the cache lacks nothing.

    Raises:
        DataError: the data cannot be read or does not fit.
    """
    return _measured(ready, data, monitor, cache, running)[0]


def _measured(
    ready: Prepared, data: object, monitor: Monitor, cache: Cache | None, running: Running
) -> tuple[Statistics | None, Kept | None]:
    """`measured`, and what judged an effort, where one did."""
    if isinstance(data, str | os.PathLike) and is_statistics(data):
        data = Statistics.load(data)
    if data is None or isinstance(data, Statistics):
        return data, None
    needed = needs_data(ready.recipe, ready.plan.mode)
    if cache is None and not needed and ready.recipe.effort == "fast":
        return observe(ready, data, monitor, running=running), None
    if cache is None or needed:
        from onnxq.improving import improved  # it is made of the steps below

        return improved(ready, data, monitor, running=running)
    lacking = uncached(ready.plan, cache)
    if not lacking:
        monitor.warn("the calibration cache has every scale; the data is not read")
        return None, None
    return observe(ready, data, monitor, tuple(dict.fromkeys(p.observe for p in lacking)), running), None


def carried_out(
    ready: Prepared,
    data: object,
    monitor: Monitor,
    cache: Cache | None = None,
    evaluation: Evaluation | None = None,
    running: Running = HERE,
) -> tuple[Graph, Plan, Statistics | None]:
    """The quantized graph, its plan and what was observed, within the recipe's budget if it has one.

    Raises:
        OnnxqError: as for `quantize`.
    """
    if ready.recipe.budgeted:
        from onnxq import search  # it needs this module

        return search.within_budget(ready, data, monitor, evaluation or search.Evaluation(), cache, running)
    statistics, kept = _measured(ready, data, monitor, cache, running)
    if statistics is not None and statistics.ranges and statistics.samples <= FEW:
        said = "one sample" if statistics.samples == 1 else f"{statistics.samples} samples"
        monitor.warn(f"calibrated on only {said}: other data may lie outside these ranges; 100 to 500 are usual")
    graph, plan = lowered(ready, statistics, monitor, cache)
    if statistics is None or statistics.judged is None or kept is None:  # or it was given, and is of another recipe
        return graph, plan, statistics
    monitor.stage("Judging what is written", None)
    written = kept.sqnr_db(lambda s: graph if s is statistics else lowered(ready, s, SILENT, near=inf)[0], statistics)
    judged = statistics.judged if written is None else (written, len(kept.feeds))
    return graph, replace(plan, judged=judged, as_written=written is not None), statistics


def lowered(
    ready: Prepared,
    statistics: Statistics | None,
    monitor: Monitor = QUIET,
    cache: Cache | None = None,
    near: float = NEAR,
) -> tuple[Graph, Plan]:
    """Choose parameters and write them into a copy of the graph; with neither statistics nor a cache, the weights only.

    Codes of weights that were chosen are taken where scales are as `near` those they were chosen for, relatively.

    Raises:
        StatisticsError: they belong to another model, or a tensor is in neither.
    """
    target = backend(ready.recipe)
    integer = ready.recipe.io_types == "int8"
    if integer and statistics is None and cache is None:
        raise RecipeError("io_types int8 needs calibration data: an input's scale comes from it", "Give --data.")
    monitor.stage("Choosing ranges", None)
    if statistics is not None:
        ready = smoothed(ready, statistics.smoothing, statistics.outliers)
        statistics.check_model(ready.graph.digest())
        ready = parted(ready.sized(statistics.shapes), statistics)
        if statistics.spared and ready.recipe.float_share != 0:
            ready = without_nodes(ready, statistics.spared, SPARED)
        plan = settled(ready.graph, ready.plan, statistics.met, target, ready.recipe)
        ready = replace(ready, plan=with_zero_points(ready.graph, plan, statistics.zero_points))
    else:
        ready = _as_given(ready)
    if statistics is None and cache is None and ready.plan.mode == "static":
        plan = weights_only(ready.plan)
    else:
        plan = resolve(ready.plan, statistics, ready.recipe, target, cache)
    if plan.float_type != "float32":
        plan = with_float_types(ready.graph, plan, {} if statistics is None else statistics.reach, ready.source)
    if statistics is not None:
        plan = with_codes(plan, statistics.rounding, weight_grid(target, ready.recipe), near)
    plan = with_held_scales(plan)
    for note in plan.warnings:
        monitor.warn(note)
    monitor.stage("Quantizing", None)
    graph = ready.graph.copy()
    chosen = chosen_weights(plan, ready.recipe, statistics)
    parts = tuple(graph.parts())
    shares = zip(parts, divided(plan, parts), strict=True)
    for part, share in reversed(tuple(shares)):  # inner ones first: they know what they read by its name of now
        inside = ready.recipe if part.body is None else replace(ready.recipe, io_types="float32")
        pipeline.run(part, lower(share, target, inside, chosen))
    pipeline.run(graph, finish(target, interface=integer))
    return graph, replace(plan, interface=ports(graph))


def _as_given(ready: Prepared) -> Prepared:
    """The same with its work counted by the recipe's shapes, where it has any."""
    shapes = given_shapes(ready.graph, ready.recipe.shapes)
    return ready.sized({name: (shape, shape) for name, shape in shapes.items()}) if shapes else ready


def export(graph: Graph, path: str | os.PathLike[str], texts: Mapping[Path, str] | None = None) -> list[Path]:
    """Check the quantized model with onnx.checker and write it, whole or not at all; return its files.

    `texts`, as its plan, are written with it into the same folder.

    Raises:
        ModelError: the checker refuses it.
        OutputError: it cannot be written.
    """
    return files.save(graph, path, check=True, texts=texts)


def default_output(model: Path, recipe: Recipe = DEFAULT) -> Path:
    """`<name>.int8.onnx`, or what else it holds, in the current folder: the model's own folder is left as it is.

    Raises:
        OnnxqError: mode auto, which the model decides, and the model cannot be read or prepared.
    """
    mode = recipe.mode
    if mode == "auto":
        with checked(model):
            mode = drafted(model, recipe, SILENT).plan.mode
    return Path(f"{model.stem}.{held_in(recipe, mode)}.onnx")
