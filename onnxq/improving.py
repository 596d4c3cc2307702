"""What an effort above `fast` does before a model is calibrated and lowered: the steps of `onnxq.api`, tried out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnxq import api
from onnxq.choose import resolve
from onnxq.customs import behind_customs
from onnxq.data import rereadable
from onnxq.errors import ModelError
from onnxq.improvement import (
    LEVELS,
    Inspected,
    pick,
    rounded_weights,
    smoothing_axes,
    smoothing_factors,
    zero_points,
)
from onnxq.intake import open_data
from onnxq.monitor import QUIET, SILENT, Monitor
from onnxq.parts import HERE, Running
from onnxq.passes import weight_grid
from onnxq.placement import settled
from onnxq.placement.zero_points import candidates, with_zero_points
from onnxq.schemes import backend
from onnxq.targets import get_target
from onnxq.weights import from_data, needs_data

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxq.data import Feed, Source
    from onnxq.graph import Graph
    from onnxq.improvement import Picked
    from onnxq.statistics import Factor, Rounded, Statistics


def improved(
    ready: api.Prepared,
    data: object,
    monitor: Monitor = QUIET,
    *,
    all_tensors: bool = False,
    running: Running = HERE,
) -> Statistics:
    """Statistics of the model after what the recipe's effort improves in it; they carry that.

    Raises:
        DataError: the data cannot be read or does not fit.
    """
    recipe, source = ready.recipe, open_data(data, ready.graph, ready.recipe, monitor)
    factors: dict[str, Factor] = {}
    picked = None
    if needs_data(recipe, ready.plan.mode):
        source = rereadable(source)
        better, chosen = from_data(ready, source, api.smoothed, monitor)
        return replace(api.observe(better, source, monitor, running=running), **chosen)
    # Factors and codes are chosen for the steps of 8-bit integers.
    fits = not get_target(recipe.target).every_tensor and backend(recipe).activation.dtype in ("int8", "uint8")
    if recipe.effort != "fast" and ready.plan.mode == "static" and fits:
        source = rereadable(source)
        picked, factors = _factors(ready, source, monitor)
    better = api.smoothed(ready, factors)
    unseen = set() if recipe.custom_ops else behind_customs(better.graph)
    others = [name for name in api.activations(better.graph) if name not in unseen] if all_tensors else []
    names = tuple(dict.fromkeys([*better.plan.observe, *others]))
    found = replace(api.observe(better, source, monitor, names, running), smoothing=factors)
    if picked is None:
        return found
    found = replace(found, zero_points=_zero_points(better, found, picked, monitor))
    return replace(found, rounding=_rounding(better, found, picked, monitor))


def _factors(ready: api.Prepared, source: Source, monitor: Monitor) -> tuple[Picked | None, dict[str, Factor]]:
    """The samples and the factors; neither where ONNX Runtime cannot run the model with more outputs than it has."""
    try:
        model = _inspected(ready)
        picked = pick(model, smoothing_axes(model), source, monitor)
        return picked, {} if picked is None else smoothing_factors(model, picked, monitor)
    except ModelError as error:
        monitor.warn(f"the model cannot be improved, effort is fast: {error.message}")
        return None, {}


def _in_float32(ready: api.Prepared) -> api.Prepared:
    """The same without half precision, in which a CPU is slow."""
    recipe = replace(ready.recipe, high_precision="fp32", io_types="float32")
    return api.Prepared(ready.graph, api.planned(ready.graph, recipe), recipe)


def _inspected(ready: api.Prepared) -> Inspected:
    plain = _in_float32(ready)
    recipe = plain.recipe

    def quantized(factors: Mapping[str, Factor], feeds: Sequence[Feed]) -> Graph:
        trial = api.smoothed(plain, factors)
        return api.lowered(trial, api.observe(trial, list(feeds), SILENT), SILENT)[0]

    grid, level = get_target(recipe.target).activation, LEVELS[recipe.effort]
    return Inspected(plain.graph, plain.plan, quantized, recipe.provider_list, recipe.custom_op_list, grid, level)


def _zero_points(better: api.Prepared, statistics: Statistics, picked: Picked, monitor: Monitor) -> tuple[str, ...]:
    """Tensors that get a zero point where the target's grid has none."""
    plain = _in_float32(better)
    recipe, target = better.recipe, get_target(better.recipe.target)
    if not target.activation.symmetric or target.placement != "tensorrt" or recipe.io_types == "int8":
        return ()
    plan = settled(plain.graph, plain.plan, statistics.met, target, plain.recipe)
    possible = candidates(plain.graph, plan)
    plans = (plan, with_zero_points(plain.graph, plan, tuple(plan.points)))
    before, after = (resolve(p, statistics, plain.recipe, target) for p in plans)

    def trial(tensors: Sequence[str]) -> Graph:
        return api.lowered(plain, replace(statistics, smoothing={}, zero_points=tuple(tensors)), SILENT)[0]

    return zero_points(_inspected(better), possible, (before, after), statistics.tensors, picked, trial, monitor)


def _rounding(better: api.Prepared, statistics: Statistics, picked: Picked, monitor: Monitor) -> dict[str, Rounded]:
    """Codes for the weights of the smoothed model."""
    plain = _in_float32(better)
    recipe, target = plain.recipe, get_target(plain.recipe.target)
    plan = settled(plain.graph, plain.plan, statistics.met, target, recipe)
    plan = with_zero_points(plain.graph, plan, statistics.zero_points)
    plan = resolve(plan, statistics, recipe, target)

    def trial(codes: Mapping[str, Rounded]) -> Graph:
        return api.lowered(plain, replace(statistics, smoothing={}, rounding=codes), SILENT)[0]

    grid = (weight_grid(target, recipe), recipe.weight_range)
    return rounded_weights(_inspected(better), plan, picked, grid, trial, monitor)
