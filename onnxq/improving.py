"""What an effort above `fast` does before a model is calibrated and lowered: the steps of `onnxq.api`, tried out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from onnxq import api, pipeline
from onnxq.blas import one_thread
from onnxq.choose import WIDENED, resolve, widened, with_codes
from onnxq.collect import session_for
from onnxq.customs import behind_customs
from onnxq.data import rereadable
from onnxq.errors import DataError, ModelError
from onnxq.histogram import Histogram
from onnxq.improvement import (
    LEVELS,
    Inspected,
    Judge,
    how_near,
    left_out,
    pick,
    rounded_again,
    rounded_weights,
    smoothing_axes,
    smoothing_factors,
    spared,
    weighed_alone,
    widening,
    zero_points,
)
from onnxq.improvement.picking import run
from onnxq.improvement.shifting import names_of, promising
from onnxq.intake import open_data
from onnxq.monitor import QUIET, SILENT, Monitor
from onnxq.numerics import INT8_ASYMMETRIC
from onnxq.parts import HERE, Running
from onnxq.passes import InsertQDQ, QuantizeWeights, remove_redundant_qdq, weight_grid
from onnxq.placement import settled
from onnxq.placement.bodies import divided
from onnxq.placement.float_costs import cost, sized, work
from onnxq.placement.groups import groups, nodes_of
from onnxq.placement.zero_points import candidates, with_zero_points
from onnxq.plan import INT8
from onnxq.planning import SPARED, without_nodes
from onnxq.schemes import backend
from onnxq.targets import get_target
from onnxq.weights import from_data, needs_data

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from onnxq.choose import Known
    from onnxq.data import Feed, Source
    from onnxq.graph import Graph
    from onnxq.improvement import Picked
    from onnxq.improvement.judging import Floats, Kept, Noise
    from onnxq.placement.groups import Group
    from onnxq.placement.zero_points import Candidate
    from onnxq.plan import Plan
    from onnxq.recipe import Recipe
    from onnxq.statistics import Factor, Rounded, Statistics

CHOOSERS = 8
"""So many samples, or a quarter of those there are, tell which layers are costly."""

NEAREST: Mapping[str, Rounded] = {}
"""No codes that were chosen: every weight is rounded to the nearest."""


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
    try:
        found = _refined(better, found, *examined, monitor)
    except (ModelError, DataError) as error:  # what is looked at cannot be had, or only judging samples reach a tensor
        monitor.warn(f"codes and zero points cannot be chosen by the data: {error.message}")
    return found, None if found.judged is None else examined[1].kept()


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

    def quantizer(feeds: Sequence[Feed]) -> Callable[[Mapping[str, Factor]], Graph]:
        seen: Statistics | None = None
        known: Known = {}

        def quantized(factors: Mapping[str, Factor]) -> Graph:
            nonlocal seen
            trial = api.smoothed(quick, factors)
            seen = _observed(trial, feeds, seen)
            ranges = Ranges.of(trial, seen, shifts=_shifts(ready.recipe), known=known)
            return ranges.paired(names_of(ranges.promising()))

        return quantized

    target, level = get_target(recipe.target), LEVELS[recipe.effort]
    grid = INT8_ASYMMETRIC if _shifts(ready.recipe) else target.activation  # most of what gains by one can have one
    return Inspected(
        plain.graph,
        plain.plan,
        quantizer,
        recipe.provider_list,
        recipe.custom_op_list,
        grid,
        level,
        target.pointwise_db,
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
    found = api.observe(ready, list(feeds), SILENT, lacking)
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
) -> Statistics:
    """The statistics with wider ranges, zero points where the target's grid has none, codes, and layers in float."""
    plain, model = _in_float32(better), _inspected(better)
    ranges = Ranges.of(plain, statistics, shifts=_shifts(better.recipe))

    statistics = replace(statistics, alone=_alone(ranges, statistics, model, judge, monitor))
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
    found = replace(statistics, zero_points=points, rounding=rounding)
    floats, least = _spared(ranges, found, model, picked, judge, least, monitor)
    found = replace(found, spared=floats, judged=how_near(least, monitor))
    return replace(found, rounding=rounding | rounded_again(model, plan, picked, grid, lacking, monitor))


def _alone(ranges: Ranges, statistics: Statistics, model: Inspected, judge: Judge, monitor: Monitor) -> tuple[str, ...]:
    """The tensors whose ranges are chosen for themselves though an activation reads them."""
    weighed = [p.tensor for p in ranges.symmetric.points.values() if p.behind is not None and p.chosen in WIDENED]

    def noise(names: Sequence[str]) -> Noise:
        tried = replace(statistics, alone=tuple(names))
        return judge.noise(ranges.of_plan(ranges.plain, tried).paired(()), statistics.smoothing)

    return weighed_alone(weighed, noise, model.effort.trials, monitor)


def _widening(
    ranges: Ranges, better: api.Prepared, statistics: Statistics, picked: Picked, judge: Judge, monitor: Monitor
) -> float:
    """What ranges are multiplied by.

    What new values cost only ranges can tell that the judging samples have no part in.
    """
    if all(point.chosen not in WIDENED for point in ranges.symmetric.points.values()):
        return 1.0
    judging = api.observe(better, list(picked.judging), SILENT).tensors
    others = {name: seen.without(judging[name]) for name, seen in statistics.tensors.items() if name in judging}
    apart = Ranges.of(ranges.plain, replace(statistics, tensors=others), shifts=False)
    return widening(lambda by: judge.noise(apart.widened(by).paired(()), statistics.smoothing), monitor)


def _spared(
    ranges: Ranges,
    statistics: Statistics,
    model: Inspected,
    picked: Picked,
    judge: Judge,
    before: Noise,
    monitor: Monitor,
) -> tuple[tuple[str, ...], Noise]:
    """Names of the layers that stay in float, and the noise with these; `before`: the noise with none."""
    plain = ranges.plain
    target, recipe = get_target(plain.recipe.target), plain.recipe
    limit = target.float_share if recipe.float_share is None else recipe.float_share
    if not limit:
        return (), before
    points, codes = statistics.zero_points, statistics.rounding
    chooser = Judge(model, picked.choosing[: max(CHOOSERS, len(picked.choosing) // 4)])

    # What stands behind a float layer may be float too, and what its pairs were shared with: only placing tells.
    def placed(chosen: Sequence[Group]) -> api.Prepared:
        return without_nodes(plain, nodes_of(chosen), SPARED) if chosen else plain

    def made(chosen: Sequence[Group]) -> Graph:
        return ranges.of_plan(placed(chosen), statistics).paired(points, codes)

    wide = target.placement == "ort-cpu"
    shapes = _shapes(plain, picked.choosing[0])
    found, total = _sized(plain, groups(ranges.symmetric), shapes, bodies=not wide)
    price = (lambda chosen: cost(plain.graph, placed(chosen).plan, plain.plan, shapes)) if wide else None
    noise = (
        lambda chosen: chooser.noise(made(chosen), statistics.smoothing),
        lambda chosen: judge.noise(made(chosen), statistics.smoothing) if chosen else before,
    )
    trials = model.effort.spares, model.effort.trials
    kept, least = spared(found, total, limit, noise, trials, monitor, price)
    return nodes_of(kept), least


def _shapes(plain: api.Prepared, feed: Feed) -> dict[str, tuple[int, ...]]:
    """The shapes in a sample of what layers read and write: those that are unknown to the graph say nothing of work."""
    graph, recipe = plain.graph, plain.recipe
    wanted = sized(graph, plain.plan) - (set() if recipe.custom_ops else behind_customs(graph))
    names = tuple(name for name in api.activations(graph) if name in wanted)
    session = session_for(graph, names, recipe.provider_list, recipe.custom_op_list)
    return {name: array.shape for name, array in run(session, feed).items()}


def _sized(
    plain: api.Prepared, found: Sequence[Group], shapes: Mapping[str, tuple[int, ...]], *, bodies: bool
) -> tuple[tuple[Group, ...], int]:
    """The groups with their multiply-accumulates by these shapes, and those of the model.

    Layers inside `bodies` count as the plan has them, or are left out: how often they run no shape tells.
    """
    done = work(plain.graph, plain.plan, shapes)
    outer = {g for g in found if done.keys() >= set(g.nodes)}
    kept = [g for g in found if bodies or g in outer]
    total = sum(done.values()) + sum(g.macs for g in kept if g not in outer)
    return tuple(replace(g, macs=sum(done[n] for n in g.nodes)) if g in outer else g for g in kept), total


def _shifts(recipe: Recipe) -> bool:
    """Whether zero points are written as shifts: the target's grid has none, and inputs are no codes of it."""
    target = get_target(recipe.target)
    return target.activation.symmetric and target.placement == "tensorrt" and recipe.io_types != "int8"


@dataclass(frozen=True)
class Ranges:
    """The ranges of one model, with zero points and without: found once, for all that is tried with them.

    Attributes:
        plain: the model.
        seen: what was observed of it.
        possible: the groups of tensors that can have a zero point by a shift.
        symmetric: its resolved plan.
        shifted: the same with a zero point wherever there can be one.
        known: what calibrators have found, which takes longest.
        alone: the tensors whose ranges disregard the activation behind them.
    """

    plain: api.Prepared
    seen: Mapping[str, Histogram]
    possible: tuple[Candidate, ...]
    symmetric: Plan
    shifted: Plan
    known: Known = field(default_factory=dict)
    alone: tuple[str, ...] = ()

    @classmethod
    def of(cls, plain: api.Prepared, statistics: Statistics, *, shifts: bool, known: Known | None = None) -> Ranges:
        """Those of the statistics; without `shifts` no tensor can have a zero point by one."""
        known = {} if known is None else known
        recipe, target = plain.recipe, get_target(plain.recipe.target)
        plan = settled(plain.graph, plain.plan, statistics.met, target, recipe)
        possible = candidates(plain.graph, plan) if shifts else ()
        symmetric = shifted = resolve(plan, statistics, recipe, target, known=known)
        if possible:
            moved = with_zero_points(plain.graph, plan, names_of(possible))
            points = {n: symmetric.points[n] if p.qtype is None else p for n, p in moved.points.items()}
            shifted = resolve(replace(moved, points=points), statistics, recipe, target, known=known)
        return cls(plain, statistics.tensors, possible, symmetric, shifted, known, statistics.alone)

    def of_plan(self, plain: api.Prepared, statistics: Statistics) -> Ranges:
        """Those of the model placed again, from the same observations."""
        if plain is self.plain and statistics.alone == self.alone:
            return self
        return Ranges.of(plain, statistics, shifts=bool(self.possible), known=self.known)

    def widened(self, by: float) -> Ranges:
        """With ranges of least squared error multiplied by this."""
        return replace(self, symmetric=widened(self.symmetric, by), shifted=widened(self.shifted, by))

    def promising(self) -> tuple[Candidate, ...]:
        """The groups that promise to gain by a zero point."""
        return promising(self.possible, (self.symmetric, self.shifted), self.seen)

    def plan(self, tensors: Collection[str]) -> Plan:
        """The resolved plan with zero points at these tensors."""
        found = {n: (self.shifted if n in tensors else self.symmetric).points[n] for n in self.symmetric.points}
        return replace(self.symmetric, points=found)

    def paired(self, tensors: Collection[str], rounding: Mapping[str, Rounded] | None = NEAREST) -> Graph:
        """The model with pairs of such zero points and with these codes; None: with weights in float.

        What lowering would then do for a backend is left out: it changes no value but for roundings in float, and
        here every tensor keeps its name. Tables, formats that no effort changes, bodies of other modes: in float.
        """
        recipe, graph = self.plain.recipe, self.plain.graph.copy()
        grid = weight_grid(get_target(recipe.target), recipe)
        plan = with_codes(self.plan(tensors), rounding or {}, grid)
        weights = tuple(w for w in plan.weights if w.format == INT8 and rounding is not None)
        parts = tuple(graph.parts())
        shares = zip(parts, divided(replace(plan, weights=weights), parts), strict=True)
        for part, share in reversed([both for both in shares if both[1].mode == "static"]):  # inner ones first
            steps = (InsertQDQ(share), remove_redundant_qdq, QuantizeWeights(share, grid, recipe.weight_range))
            pipeline.run(part, steps)
        return graph
