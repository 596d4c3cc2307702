"""The ranges of a model for all that an effort tries with them, found once, and the quantized models they make."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onnxq import pipeline
from onnxq.choose import resolve, widened, with_codes
from onnxq.improvement.shifting import names_of, promising
from onnxq.passes import InsertQDQ, QuantizeWeights, remove_redundant_qdq, weight_grid
from onnxq.placement import settled
from onnxq.placement.bodies import divided
from onnxq.placement.zero_points import candidates, with_zero_points
from onnxq.plan import INT8
from onnxq.targets import get_target

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from onnxq.choose import Known
    from onnxq.graph import Graph
    from onnxq.histogram import Histogram
    from onnxq.placement.zero_points import Candidate
    from onnxq.plan import Plan, Point, WeightPoint
    from onnxq.planning import Prepared
    from onnxq.recipe import Recipe
    from onnxq.statistics import Rounded, Statistics

NEAREST: Mapping[str, Rounded] = {}
"""No codes that were chosen: every weight is rounded to the nearest."""


def shifts_zero_points(recipe: Recipe) -> bool:
    """Whether zero points are written as shifts: the target's grid has none, and inputs are no codes of it."""
    target = get_target(recipe.target)
    return target.activation.symmetric and target.placement == "tensorrt" and recipe.io_types != "int8"


def _chosen(statistics: Statistics) -> tuple[object, ...]:
    """What of the statistics ranges depend on beside what was seen."""
    return statistics.alone, statistics.summed, dict(statistics.channels)


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
        chosen: the tensors whose ranges disregard the activation behind them, those that regard the addition, and the
            ranges of channels.
    """

    plain: Prepared
    seen: Mapping[str, Histogram]
    possible: tuple[Candidate, ...]
    symmetric: Plan
    shifted: Plan
    known: Known = field(default_factory=dict)
    chosen: tuple[object, ...] = ((), (), {})

    @classmethod
    def of(cls, plain: Prepared, statistics: Statistics, *, shifts: bool, known: Known | None = None) -> Ranges:
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
        return cls(plain, statistics.tensors, possible, symmetric, shifted, known, _chosen(statistics))

    def of_plan(self, plain: Prepared, statistics: Statistics) -> Ranges:
        """Those of the model placed again, from the same observations."""
        if plain is self.plain and _chosen(statistics) == self.chosen:
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

    def paired(
        self,
        tensors: Collection[str],
        rounding: Mapping[str, Rounded] | None = NEAREST,
        readers: Collection[str] | None = None,
    ) -> Graph:
        """The model with pairs of such zero points and with these codes; None: with weights in float.

        With `readers`, names of nodes, there are pairs for these alone: the others read floats.

        What lowering would then do for a backend is left out: it changes no value but for roundings in float, and
        here every tensor keeps its name. Tables, formats that no effort changes, bodies of other modes: in float.
        """
        recipe, graph = self.plain.recipe, self.plain.graph.copy()
        grid = weight_grid(get_target(recipe.target), recipe)
        plan = with_codes(self.plan(tensors), rounding or {}, grid)
        plan = plan if readers is None else _read_by(plan, readers)
        weights = tuple(w for w in plan.weights if w.format == INT8 and rounding is not None)
        parts = tuple(graph.parts())
        shares = zip(parts, divided(replace(plan, weights=weights), parts), strict=True)
        for part, share in reversed([both for both in shares if both[1].mode == "static"]):  # inner ones first
            steps = (InsertQDQ(share), remove_redundant_qdq, QuantizeWeights(share, grid, recipe.weight_range))
            pipeline.run(part, steps)
        return graph


def _read_by(plan: Plan, nodes: Collection[str]) -> Plan:
    """The plan with what these nodes read quantized for them, and nothing else."""

    def uses(point: Point | WeightPoint) -> tuple[tuple[str, int], ...]:
        return tuple(use for use in point.uses if use[0] in nodes)

    points = {name: replace(p, uses=uses(p), output=False) for name, p in plan.points.items() if uses(p)}
    return replace(plan, points=points, weights=tuple(replace(w, uses=uses(w)) for w in plan.weights if uses(w)))
