"""Ranges and parameters for a plan, from statistics. Pure: the model is not touched."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnxq.calibrators import make_calibrator
from onnxq.errors import DataError, StatisticsError
from onnxq.histogram import Histogram
from onnxq.numerics import params_from_range

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxq.plan import Decision, Plan, Point
    from onnxq.recipe import Recipe
    from onnxq.statistics import Statistics
    from onnxq.targets.target import Target

_CLIPPING_BY_CHOICE = ("auto", "entropy")  # they would clip a protected tensor without being told to


def resolve(plan: Plan, statistics: Statistics, recipe: Recipe, target: Target) -> Plan:
    """The plan with a range and parameters at every point. Points of one group get the same, from all their values.

    Raises:
        StatisticsError: a tensor of the plan was not observed.
        DataError: a tensor held no finite value.
    """
    groups: dict[str, list[Point]] = {}
    for point in plan.points.values():
        groups.setdefault(point.group, []).append(point)
    points: dict[str, Point] = {}
    notes = list(plan.notes)
    for members in groups.values():
        histogram = merged(members, statistics.tensors)
        if histogram.amax == 0.0:
            notes.append(f"{members[0].tensor}: only zeros were seen; its scale is a guess. Does the data reach it?")
        name = _calibrator_name(members, recipe)
        found = make_calibrator(name, recipe.percentile)(histogram, target.activation)
        params = params_from_range(*found, target.activation)
        points |= {p.tensor: replace(p, range=found, chosen=name, params=params) for p in members}
    ordered = {name: points[name] for name in plan.points}
    return replace(plan, points=ordered, notes=tuple(notes))


def weights_only(plan: Plan) -> Plan:
    """The plan with its activations left in float."""
    kept = tuple(
        replace(d, reason="int8 weight, float input (no calibration data)") if _has_weight(plan, d.node) else d
        for d in (_float_activation(plan, d) for d in plan.decisions)
    )
    return replace(plan, points={}, joins=(), decisions=kept)


def merged(members: Sequence[Point], tensors: Mapping[str, Histogram]) -> Histogram:
    """One histogram over all tensors that a group observes.

    Raises:
        StatisticsError: one is missing.
        DataError: there is no finite value in it.
    """
    total = Histogram.empty()
    for name in sorted({p.observe for p in members}):
        if name not in tensors:
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


def _calibrator_name(members: Sequence[Point], recipe: Recipe) -> str:
    said = [p.calibrator for p in members if p.calibrator is not None]
    if said:
        return said[0]
    protected = any(p.protected for p in members) and recipe.calibrator in _CLIPPING_BY_CHOICE
    return "minmax" if protected else recipe.calibrator


def _has_weight(plan: Plan, node: str) -> bool:
    return any(node == user for w in plan.weights for user, _ in w.uses)


def _float_activation(plan: Plan, decision: Decision) -> Decision:
    if decision.quantized and not _has_weight(plan, decision.node) and "already" not in decision.reason:
        return replace(decision, quantized=False, reason="runs in float (no calibration data)")
    return decision
