"""Ranges and parameters for a plan, from statistics or a calibration cache. Pure: the model is not touched."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from onnxq.added import Added
from onnxq.calibrators import make_calibrator
from onnxq.errors import DataError, StatisticsError
from onnxq.histogram import Histogram
from onnxq.numerics import INT8, NEAR, params_from_range
from onnxq.patterns.products import SOFTMAX
from onnxq.plan import FEW_STEPS, Narrow

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from onnxq.added import Weight
    from onnxq.caches import Cache
    from onnxq.channels import ChannelRange
    from onnxq.numerics import QType, Range
    from onnxq.plan import Decision, Plan, Point, WeightPoint
    from onnxq.pointwise import Pointwise
    from onnxq.recipe import Recipe
    from onnxq.statistics import Rounded, Statistics
    from onnxq.targets.target import Target

    Behind = Pointwise | Added | None
    Known = dict[tuple[str, QType, frozenset[str], Behind], Range]
    """(calibrator, grid, tensors observed, what is behind them) -> the range that statistics gave."""

_CLIPPING_BY_CHOICE = ("auto", "entropy")  # they would clip a protected tensor without being told to


CACHED = "calibration cache"
"""What stands as calibrator where a range came from one."""


def resolve(
    plan: Plan,
    statistics: Statistics | None,
    recipe: Recipe,
    target: Target,
    cache: Cache | None = None,
    known: Known | None = None,
) -> Plan:
    """The plan with a range and parameters at every point. Points of one group get the same, from all their values.

    A range that the plan knows already stands. What the cache holds is taken from it, ±127 scale; the rest comes
    from the statistics. `known` is of these statistics: what they gave to other plans of the model, with no note made
    of it again; to it is added what is found now.

    Raises:
        StatisticsError: a tensor of the plan was not observed and has no scale in the cache.
        DataError: a tensor held no finite value.
    """
    notes, narrow = list(plan.notes), list(plan.narrow)
    if cache is not None:
        notes += _cache_notes(plan, cache, target, measured=statistics is not None)
        if recipe.effort != "fast":
            notes.append(f"effort is fast, not {recipe.effort}: a calibration cache is of the model as it is")
    points: dict[str, Point] = {}
    counted = {} if statistics is None else statistics.tensors
    seen = {} if statistics is None else statistics.ranges
    for members in _groups(plan):
        grid = members[0].qtype or target.activation
        found, name = _known_range(members, cache)
        if found is None:
            name = _calibrator_name(members, recipe, grid)
            measured = [p for p in members if p.range is None]
            behind = None if statistics is None else _behind(members, statistics)
            key = name, grid, frozenset(_observed(measured)), behind
            if known is not None and key in known:
                found = known[key]
            else:
                histogram = merged(members, seen if name == "minmax" else counted, seen)
                if statistics is not None and name in WIDENED:
                    unseen = _observed(members) & statistics.unseen.keys()
                    histogram = sum((statistics.unseen[o] for o in sorted(unseen)), histogram)
                if histogram.amax == 0.0:
                    text = "only zeros were seen; its scale is a guess. Does the data reach it?"
                    notes.append(f"{members[0].tensor}: {text}")
                function = _function(plan, behind, counted)
                found = make_calibrator(name, recipe.percentile, function)(histogram, grid)
                narrow += _small_members(measured, seen, found)
            if known is not None:
                known[key] = found
        found = _inside(_covering(found, members), members)
        params = params_from_range(*found, grid)
        points |= {p.tensor: replace(p, range=found, chosen=name, params=params) for p in members}
    ordered = {name: points[name] for name in plan.points}
    resolved = replace(plan, points=ordered, notes=tuple(notes), narrow=tuple(narrow))
    return resolved if statistics is None else by_channel(widened(resolved, statistics.widening), statistics.channels)


WIDENED = ("auto", "mse")
"""Calibrators whose ranges an effort may widen: those of least squared error. Others say what they want."""


def widened(plan: Plan, by: float) -> Plan:
    """The resolved plan with ranges of least squared error multiplied by this, as far as the tensors can go."""
    points = dict(plan.points)
    for members in _groups(plan) if by != 1.0 else ():
        for point in members:
            if point.range is not None and point.params is not None and point.chosen in WIDENED:
                low, high = point.range
                found = _inside((low * by, high * by), members)
                params = params_from_range(*found, point.params.qtype)
                points[point.tensor] = replace(point, range=found, params=params)
    return replace(plan, points=points)


def by_channel(plan: Plan, channels: Mapping[str, ChannelRange]) -> Plan:
    """The resolved plan with a grid for every channel of these tensors, where that costs nothing and none was told."""
    points = dict(plan.points)
    for name in channels.keys() & points.keys():
        point = points[name]
        if point.axis is not None and point.params is not None and point.chosen in WIDENED:
            ends = channels[name].inside(point.bounds)
            points[name] = replace(point, range=ends.whole, params=ends.params(point.params.qtype, point.axis))
    return replace(plan, points=points)


def with_codes(plan: Plan, rounding: Mapping[str, Rounded], weight: QType, near: float = NEAR) -> Plan:
    """The resolved plan with the codes that were chosen for its weights, where they still fit.

    They were chosen for one scale of each input that the weight meets, within `near` of it, and one grid of the weight:
    with another calibrator, or where a layer stays in float, weights are rounded to the nearest.
    """
    scales = {use: p.params.scale for p in plan.points.values() if p.params is not None for use in p.uses}

    def fits(point: WeightPoint, found: Rounded) -> bool:
        seen = [scale for name, _ in point.uses if (scale := scales.get((name, 0))) is not None]
        plain = point.bits == 8 and point.block_size is None and point.qtype is None
        per_channel = (point.axis is not None) == (found.scale.ndim == 1)
        same = len(seen) == len(point.uses) == found.input_scale.size
        close = same and bool((np.abs(seen - found.input_scale) <= near * found.input_scale).all())
        return plain and per_channel and close and found.limit == weight.qmax

    weights = (
        replace(w, rounded=rounding[w.tensor]) if w.tensor in rounding and fits(w, rounding[w.tensor]) else w
        for w in plan.weights
    )
    return replace(plan, weights=tuple(weights))


def uncached(plan: Plan, cache: Cache) -> tuple[Point, ...]:
    """The points whose range the cache does not tell, not even through what they are copies of or grouped with."""
    return tuple(p for members in _groups(plan) if _known_range(members, cache)[0] is None for p in members)


def symmetric_scales(
    resolved: Plan, tensors: Mapping[str, Histogram], recipe: Recipe, protected: Collection[str] = ()
) -> dict[str, np.float32]:
    """Tensor -> scale for symmetric int8, sorted: the plan's points as they were resolved, the others by themselves.

    Left out are other tensors of which nothing but zeros was seen: any scale would be invented. `protected` names
    tensors that auto and entropy must not clip. The plan must be resolved for a symmetric int8 target.
    """
    scales = {}
    for name, histogram in tensors.items():
        if histogram.amax > 0.0:
            calibrator = make_calibrator(_unclipped(recipe, protected=name in protected), recipe.percentile)
            scales[name] = np.float32(params_from_range(*calibrator(histogram, INT8), INT8).scale)
    scales |= {p.tensor: np.float32(p.params.scale) for p in resolved.points.values() if p.params is not None}
    return dict(sorted(scales.items()))


def light(recipe: Recipe) -> bool:
    """Whether bounds are enough, but for what a rule says."""
    return recipe.calibrator == "minmax" and recipe.effort == "fast"


def bounds_only(plan: Plan, recipe: Recipe) -> frozenset[str]:
    """The observed tensors of which nothing but their bounds is asked: all where the calibrator is minmax, effort fast.

    Those are left out that a rule has another calibrator for, and those that share a scale with such. Above `fast`
    zero points are chosen by the error that histograms tell.
    """
    if not light(recipe):
        return frozenset()
    others = {p.group for p in plan.points.values() if p.calibrator not in (None, "minmax")}
    whole = {name for p in plan.points.values() if p.group in others for name in p.observed}
    return frozenset(plan.observe) - whole


def weights_only(plan: Plan) -> Plan:
    """The plan with its activations left in float."""
    kept = tuple(
        replace(d, reason="int8 weight, float input (no calibration data)") if _has_weight(plan, d.node) else d
        for d in (_float_activation(plan, d) for d in plan.decisions)
    )
    return replace(plan, points={}, joins=(), decisions=kept)


def merged(members: Sequence[Point], tensors: Mapping[str, Histogram], bounds: Collection[str] = ()) -> Histogram:
    """One histogram over all tensors that a group observes; `bounds` names those of which no histogram was made.

    Raises:
        StatisticsError: one is missing.
        DataError: there is no finite value in it.
    """
    total = Histogram.empty()
    for name in sorted(_observed(members)):
        if name not in tensors:
            if bounds and name in bounds:
                raise StatisticsError(
                    f"of tensor {name!r} the statistics hold the smallest and the largest value only",
                    "They were collected with --calibrator minmax, or with rules that leave in float what reads it. "
                    "Run `onnxq calibrate` with this recipe.",
                )
            raise StatisticsError(
                f"the statistics hold nothing about tensor {name!r}",
                "They were collected for another target or with other rules. Run `onnxq calibrate` again.",
            )
        total = total + tensors[name]
    if total.amax == 0.0 and total.zeros == 0:
        raise DataError(
            f"tensor {members[0].observe!r} held no finite value in the calibration data",
            "Exclude the nodes that read it with a rule (quantize = false), or use other data.",
        )
    return total


def _behind(members: Sequence[Point], statistics: Statistics) -> Behind:
    """What is behind all of them, if there is one and their ranges are chosen for it."""

    def chosen(point: Point) -> bool:
        added = isinstance(point.behind, Added)
        return point.tensor in statistics.summed if added else point.tensor not in statistics.alone

    found = {p.behind if chosen(p) else None for p in members}
    return found.pop() if len(found) == 1 else None


def judged_behind(plan: Plan, point: Point, statistics: Statistics) -> Pointwise | Weight | None:
    """What is made of the point's values, by whose error its range is chosen; None for themselves."""
    return _function(plan, _behind([point], statistics), statistics.tensors)


def _function(plan: Plan, behind: Behind, counted: Mapping[str, Histogram]) -> Pointwise | Weight | None:
    return _added_to(plan, behind, counted) if isinstance(behind, Added) else behind


def _added_to(plan: Plan, behind: Added, counted: Mapping[str, Histogram]) -> Weight | None:
    """How errors weigh in front of the addition; None where no histogram tells of what is added."""
    point = plan.points.get(behind.tensor)
    names = set() if point is None else _observed([point])
    if not names or not names <= counted.keys():
        return None
    histogram = sum((counted[name] for name in sorted(names)), Histogram.empty())
    before, after = (counted.get(name) for name in behind.pool or ("", ""))
    pool = None if before is None or after is None or not before.count or not after.count else (before, after)
    return behind.to(histogram, pool) if histogram.count else None


def _observed(members: Sequence[Point]) -> set[str]:
    return {name for p in members if p.range is None for name in p.observed}


def _known_range(members: Sequence[Point], cache: Cache | None) -> tuple[Range | None, str]:
    """(the range that needs no statistics, where it comes from): the plan's, when it knows that of every member."""
    known = [p.range for p in members if p.range is not None]
    if len(known) == len(members):
        return (min(lo for lo, _ in known), max(hi for _, hi in known)), members[0].chosen or SOFTMAX
    return _cached_range(members, cache), CACHED


def _covering(found: Range, members: Sequence[Point]) -> Range:
    """The range, widened to what the plan knows of a member that shares its scale with others."""
    known = [p.range for p in members if p.range is not None]
    return min([found[0], *(lo for lo, _ in known)]), max([found[1], *(hi for _, hi in known)])


def _inside(found: Range, members: Sequence[Point]) -> Range:
    """The range without what no member can hold: a cache says -amax to amax of the output of a Relu too."""
    low, high = min(p.bounds[0] for p in members), max(p.bounds[1] for p in members)
    return max(found[0], min(low, 0.0)), min(found[1], max(high, 0.0))


def _calibrator_name(members: Sequence[Point], recipe: Recipe, grid: QType) -> str:
    """A rule's, else the recipe's; `auto` weighs clipping against steps, which matter on grids of 8-bit integers."""
    said = [p.calibrator for p in members if p.calibrator is not None]
    if said:
        return said[0]
    if recipe.calibrator == "auto" and grid.dtype not in ("int8", "uint8"):
        return "minmax"
    return _unclipped(recipe, protected=any(p.protected for p in members))


def _unclipped(recipe: Recipe, *, protected: bool) -> str:
    return "minmax" if protected and recipe.calibrator in _CLIPPING_BY_CHOICE else recipe.calibrator


def _groups(plan: Plan) -> list[list[Point]]:
    groups: dict[str, list[Point]] = {}
    for point in plan.points.values():
        groups.setdefault(point.group, []).append(point)
    return list(groups.values())


def _small_members(members: Sequence[Point], tensors: Mapping[str, Histogram], found: Range) -> list[Narrow]:
    """The member of a group that suffers most from its scale, when that leaves it fewer than 8 steps."""
    widest = max(-found[0], found[1])
    members = [p for p in members if p.range is None]
    reach = {p.tensor: max(tensors[name].amax for name in p.observed) for p in members}
    least = min(members, key=lambda p: reach[p.tensor] or widest)
    amax = reach[least.tensor]
    return [Narrow(least.tensor, widest / amax)] if 0.0 < amax * FEW_STEPS < widest else []


# -- from a cache ----------------------------------------------------------------------------------------------


def _cached_range(members: Sequence[Point], cache: Cache | None) -> Range | None:
    """The widest range that the cache has for one of the group; exact, so that the scale comes back bit for bit."""
    if cache is None or not (known := _cached(members, cache)):
        return None
    amax = max(known.values())
    return -amax, amax


def _cached(members: Sequence[Point], cache: Cache) -> dict[str, float]:
    """Name in the cache -> amax, for the group's tensors, or what they are moved copies of."""
    names = (next((n for n in (p.tensor, p.observe) if n in cache.scales), None) for p in members)
    return {name: cache.amax(name) for name in names if name is not None}


def _cache_notes(plan: Plan, cache: Cache, target: Target, *, measured: bool) -> list[str]:
    notes = []
    if missing := uncached(plan, cache):
        names = ", ".join(_said(p, cache) for p in sorted(missing, key=lambda p: p.tensor))
        text = f"the calibration cache has no scale for {len(missing)} of {len(plan.points)} quantized tensors: {names}"
        if not measured:
            raise StatisticsError(
                text,
                "Calibrate them from data (--data or --statistics), or keep their readers in float with --exclude.",
            )
        notes.append(f"{text}; theirs were calibrated from data")
    for members in _groups(plan):
        known = _cached(members, cache)
        if len(set(known.values())) > 1:
            values = ", ".join(f"{name} {amax:.6g}" for name, amax in sorted(known.items()))
            notes.append(f"one scale for tensors of different ranges in the cache, the largest: {values}")
    lent = {p.tensor for p in plan.points.values() if p.tensor not in cache.scales} - {p.tensor for p in missing}
    if lent:
        names = ", ".join(sorted(lent))
        notes.append(f"not in the cache, so the scale of what they are copied from or joined with: {names}")
    if not target.activation.symmetric or not target.activation.signed:
        notes.append(f"a cache holds symmetric ranges; for {target.name} ranges from data may be tighter")
    return notes


def _said(point: Point, cache: Cache) -> str:
    odd = {point.tensor, point.observe} & set(cache.unusable)
    return f"{point.tensor} (zero or not finite there)" if odd else point.tensor


def _has_weight(plan: Plan, node: str) -> bool:
    return any(node == user for w in plan.weights for user, _ in w.uses)


def _float_activation(plan: Plan, decision: Decision) -> Decision:
    if decision.quantized and not _has_weight(plan, decision.node) and "already" not in decision.reason:
        return replace(decision, quantized=False, reason="runs in float (no calibration data)")
    return decision
