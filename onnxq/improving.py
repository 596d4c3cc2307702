"""What an effort above `fast` does before a model is calibrated and lowered: the steps of `onnxq.api`, tried out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from onnxq import api
from onnxq.added import Added
from onnxq.blas import one_thread
from onnxq.choose import WIDENED, judged_behind
from onnxq.customs import behind_customs
from onnxq.data import Source, rereadable
from onnxq.errors import DataError, ModelError
from onnxq.histogram import Histogram
from onnxq.improvement import (
    LEVELS,
    Grids,
    Inspected,
    Judge,
    Wanted,
    channel_grids,
    gaining,
    how_near,
    left_out,
    pick,
    rounded_again,
    rounded_weights,
    smoothing_axes,
    smoothing_factors,
    summed,
    weighed_alone,
    widening,
    zero_points,
)
from onnxq.improvement.shifting import names_of
from onnxq.improvement.written import Kept, folds
from onnxq.intake import open_data
from onnxq.leaving import Leaving
from onnxq.monitor import QUIET, SILENT, Monitor
from onnxq.numerics import INT8_ASYMMETRIC
from onnxq.parts import HERE, Running
from onnxq.passes import weight_grid
from onnxq.planning import SPARED, parted, without_nodes
from onnxq.schemes import backend
from onnxq.targets import get_target
from onnxq.tried import NEAREST, Ranges, shifts_zero_points
from onnxq.weights import from_data, needs_data

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from onnxq.choose import Known
    from onnxq.data import Feed
    from onnxq.graph import Graph
    from onnxq.improvement import Picked
    from onnxq.improvement.judging import Floats, Noise
    from onnxq.improvement.picking import Quantized
    from onnxq.plan import Plan
    from onnxq.statistics import Factor, Rounded, Statistics


@one_thread()
def improved(
    ready: api.Prepared,
    data: object,
    monitor: Monitor = QUIET,
    *,
    all_tensors: bool = False,
    running: Running = HERE,
) -> tuple[Statistics, Kept | None]:
    """Statistics of the model after what the recipe's effort improves in it, which they carry; and what judged it.

    Raises:
        DataError: the data cannot be read or does not fit.
    """
    recipe, source = ready.recipe, open_data(data, ready.graph, ready.recipe, monitor)
    factors: dict[str, Factor] = {}
    unseen: Mapping[str, Floats] = {}
    examined = None
    if needs_data(recipe, ready.plan.mode):
        source = rereadable(source)
        better, chosen = from_data(ready, source, api.smoothed, monitor)
        names = _names(better, all_tensors=all_tensors)
        return replace(api.observe(better, source, monitor, names, running), **chosen), None
    # Factors and codes are chosen for the steps of 8-bit integers.
    fits = not get_target(recipe.target).every_tensor and backend(recipe).activation.dtype in ("int8", "uint8")
    if recipe.effort != "fast" and ready.plan.mode == "static" and fits:
        source = rereadable(source)
        examined, factors, unseen = _factors(ready, source, monitor)
    better = api.smoothed(ready, factors)
    names = _names(better, all_tensors=all_tensors)
    found = api.observe(better, source, monitor, names, running)
    found = replace(found, smoothing=factors, unseen=_counted(better.plan, unseen))
    if examined is None:
        return found, None
    learned, grids = None, Grids({}, {})
    try:
        found, learned, grids = _refined(parted(better, found), found, *examined, monitor)
    except (ModelError, DataError) as error:  # what is looked at cannot be had, or only judging samples reach a tensor
        monitor.warn(f"codes and zero points cannot be chosen by the data: {error.message}")
    if found.judged is None:
        return found, None
    picked, judge = examined
    parts = folds(picked.judging, found.samples)
    seen = [api.observe(better, Source.of(part), SILENT).tensors for part in parts]
    apart = folds(picked.judging, 0) if grids.widths else ()
    channels = [grids.ranges(without=picked.places(part)) for part in apart]
    return found, Kept(picked.judging, *judge.at_ends(), _inspected(ready), seen, learned, channels)


def _names(ready: api.Prepared, *, all_tensors: bool) -> tuple[str, ...]:
    """What is observed: what the plan asks for, and every float activation if `all_tensors`."""
    if not all_tensors:
        return ready.plan.observe
    unseen = set() if ready.recipe.custom_ops else behind_customs(ready.graph)
    others = (name for name in api.activations(ready.graph) if name not in unseen)
    return tuple(dict.fromkeys([*ready.plan.observe, *others]))


def _factors(
    ready: api.Prepared, source: Source, monitor: Monitor
) -> tuple[tuple[Picked, Judge] | None, dict[str, Factor], Mapping[str, Floats]]:
    """The samples with what judges on them, the factors, and what each sample left out shows (see `left_out`).

    None of them where ONNX Runtime cannot run the model with more outputs than it has.
    """
    try:
        model = _inspected(ready)
        picked = pick(model, smoothing_axes(model), source, monitor)
        if picked is None:
            return None, {}, {}
        judge = Judge(model, picked.judging)
        factors = smoothing_factors(model, picked, judge, monitor)
        return (picked, judge), factors, left_out(model, picked, factors)
    except ModelError as error:
        monitor.warn(f"the model cannot be improved, effort is fast: {error.message}")
        return None, {}, {}


def _counted(plan: Plan, values: Mapping[str, Floats]) -> dict[str, Histogram]:
    """Observed tensor -> histogram of the values that are told for the nodes that read it."""
    points = [(p.observe, node) for p in plan.points.values() for node, index in p.uses if index == 0]
    return {observed: Histogram.of(values[node]) for observed, node in points if node in values and values[node].size}


def _in_float32(ready: api.Prepared) -> api.Prepared:
    """The same without half precision, in which a CPU is slow."""
    recipe = replace(ready.recipe, high_precision="fp32", io_types="float32")
    return ready.under(recipe)


def _inspected(ready: api.Prepared) -> Inspected:
    plain = _in_float32(ready)
    recipe = plain.recipe
    quick = replace(
        plain, recipe=replace(recipe, calibrator="mse" if recipe.calibrator == "auto" else recipe.calibrator)
    )

    def quantizer(feeds: Sequence[Feed]) -> Quantized:
        seen: Statistics | None = None
        known: Known = {}

        def quantized(factors: Mapping[str, Factor], readers: Collection[str] | None = None) -> Graph:
            nonlocal seen
            trial = api.smoothed(quick, factors)
            seen = _observed(trial, feeds, seen)
            trial = parted(trial, seen)
            ranges = Ranges.of(trial, seen, shifts=shifts_zero_points(ready.recipe), known=known)
            return ranges.paired(names_of(ranges.promising()), NEAREST, readers)

        return quantized

    target, level = get_target(recipe.target), LEVELS[recipe.effort]
    shifted = shifts_zero_points(ready.recipe)  # most of what gains by a zero point can have one
    grid = INT8_ASYMMETRIC if shifted else target.activation
    return Inspected(
        plain.graph,
        plain.plan,
        quantizer,
        recipe.provider_list,
        recipe.custom_op_list,
        grid,
        level,
        target.pointwise_db,
        target.convolved_db,
        ready.recipe.float_type == "float16",
    )


def _observed(ready: api.Prepared, feeds: Sequence[Feed], seen: Statistics | None) -> Statistics:
    """What the plan observes, of which `seen` has the tensors that other factors of the same choice leave as they are.

    What is smoothed has another name, so that a name stands for the same values but for roundings. Not so the product
    in front of a bias, which has one name with the factors of either site: no target with efforts observes it.
    """
    known = set() if seen is None else seen.reach.keys()
    lacking = tuple(name for name in ready.plan.observe if name not in known)
    if seen is not None and not lacking:
        return seen
    found = api.observe(ready, Source.of(feeds), SILENT, lacking)
    if seen is None:
        return found
    return replace(
        found,
        tensors={**seen.tensors, **found.tensors},
        bounds={**seen.bounds, **found.bounds},
        nonfinite={**seen.nonfinite, **found.nonfinite},
    )


def _refined(
    better: api.Prepared, statistics: Statistics, picked: Picked, judge: Judge, monitor: Monitor
) -> tuple[Statistics, Mapping[str, Rounded] | None, Grids]:
    """The statistics with all that is chosen behind calibration: ranges, zero points, codes, and layers in float.

    And the codes before some of them were rounded again by all samples: of these no sample is left to judge. And what
    tells the ranges of channels without some samples.
    """
    plain, model = _in_float32(better), _inspected(better)
    ranges = Ranges.of(plain, statistics, shifts=shifts_zero_points(better.recipe))

    alone, sums = _behind(ranges, statistics, model, judge, monitor)
    statistics = replace(statistics, alone=alone, summed=sums)
    ranges = ranges.of_plan(plain, statistics)
    by = _widening(ranges, better, statistics, picked, judge, monitor)
    statistics, ranges = replace(statistics, widening=by), ranges.widened(by)

    def noise(tensors: Collection[str], codes: Mapping[str, Rounded] | None = NEAREST) -> Noise:
        return judge.noise(ranges.paired(tensors, codes), statistics.smoothing)

    points, least = zero_points(ranges.promising(), noise, model.effort.trials, monitor)
    grid = (weight_grid(get_target(plain.recipe.target), plain.recipe), plain.recipe.weight_range)
    plan = ranges.plan(points)
    coded = partial(noise, points)
    rounding, lacking, least = rounded_weights(model, plan, picked, grid, least, coded, monitor)
    leaving = Leaving(ranges, replace(statistics, zero_points=points, rounding=rounding), model, picked, judge)
    wanted = leaving.by_themselves(monitor)
    groups = tuple(group for unit in wanted for group in unit)
    joint: dict[str, Rounded] = {}
    if groups and not rounding:  # errors that cancel out hide what codes gain as well: both together, then
        with_them = partial(leaving.judged, groups)
        joint, lacked, after = rounded_weights(model, plan, picked, grid, with_them(NEAREST), with_them, monitor)
    if joint and leaving.pays(least, after):
        rounding, lacking, least = joint, lacked, after
        leaving = replace(leaving, statistics=replace(leaving.statistics, rounding=rounding))
    else:
        groups, least = leaving.confirmed(wanted, least)
    floats, least = leaving.beyond(groups, least, monitor)
    found = replace(leaving.statistics, spared=floats)
    ranges = ranges.of_plan(without_nodes(plain, floats, SPARED) if floats else plain, found)
    grids, least = _grids(ranges, found, model, picked, judge, least, monitor)
    found = replace(found, channels=grids.by_all().ranges(), judged=how_near(least, monitor))
    again = rounded_again(model, plan, picked, grid, lacking, monitor)
    return replace(found, rounding=rounding | again), rounding if again else None, grids


def _behind(
    ranges: Ranges, statistics: Statistics, model: Inspected, judge: Judge, monitor: Monitor
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tensors whose ranges are for themselves though an activation reads them, those that are for an addition."""
    points = [p for p in ranges.symmetric.points.values() if p.behind is not None and p.chosen in WIDENED]
    added = [p.tensor for p in points if isinstance(p.behind, Added)]
    weighed = [p.tensor for p in points if not isinstance(p.behind, Added)]

    def noise(alone: Sequence[str], sums: Sequence[str]) -> Noise:
        tried = replace(statistics, alone=tuple(alone), summed=tuple(sums))
        return judge.noise(ranges.of_plan(ranges.plain, tried).paired(()), statistics.smoothing)

    sums = summed(added, lambda names: noise(weighed, names), monitor)
    return weighed_alone(weighed, lambda names: noise(names, sums), model.effort.trials, monitor), sums


def _grids(
    ranges: Ranges,
    statistics: Statistics,
    model: Inspected,
    picked: Picked,
    judge: Judge,
    before: Noise,
    monitor: Monitor,
) -> tuple[Grids, Noise]:
    """The tensors that have a grid for every channel, and the noise with them; `before`: without.

    Last of all that is chosen: what changes for nothing in the model is not to change what else is chosen.
    """
    known = {str(v.name) for v in model.graph.values()}
    wanted = [
        Wanted(p.tensor, p.axis, p.params, p.range, judged_behind(ranges.symmetric, p, statistics), p.bounds)
        for p in ranges.symmetric.points.values()
        if p.axis is not None and p.chosen in WIDENED and p.params is not None and p.range is not None
        if p.tensor in known
    ]
    judging = picked.places(picked.judging)
    grids = channel_grids(wanted, model.session, picked.both, judging, monitor)
    apart = grids.ranges(without=judging)

    def noise(tensors: Sequence[str]) -> Noise:
        if not tensors:
            return before
        tried = replace(statistics, channels={name: apart[name] for name in tensors})
        paired = ranges.of_plan(ranges.plain, tried).paired(statistics.zero_points, statistics.rounding)
        return judge.noise(paired, statistics.smoothing)

    kept, least = gaining(grids, noise, model.effort.trials, monitor)
    return grids.only(kept), least


def _widening(
    ranges: Ranges, better: api.Prepared, statistics: Statistics, picked: Picked, judge: Judge, monitor: Monitor
) -> float:
    """What ranges are multiplied by.

    What new values cost only ranges can tell that the judging samples have no part in.
    """
    if all(point.chosen not in WIDENED for point in ranges.symmetric.points.values()):
        return 1.0
    judging = api.observe(better, Source.of(picked.judging), SILENT).tensors
    others = {name: seen.without(judging[name]) for name, seen in statistics.tensors.items() if name in judging}
    apart = Ranges.of(ranges.plain, replace(statistics, tensors=others), shifts=False)
    return widening(lambda by: judge.noise(apart.widened(by).paired(()), statistics.smoothing), monitor)
