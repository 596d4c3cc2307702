"""Which points of a TensorRT plan can have a zero point, and what it costs there.

TensorRT takes none, but a grid on x - c is one (`passes/centre_codes.py` writes it). A group of points that share a
scale has one zero point together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxq.centring import absorbs, addend, averages_zeros, borders, commutes, way_back
from onnxq.numerics import INT8_ASYMMETRIC
from onnxq.plan import INT8

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from onnxq.graph import Graph, Node, Value
    from onnxq.plan import Decision, Plan, Point

COSTS = ("free", "pointwise", "pad")
"""What a zero point adds to the graph: constants in biases; an addition; a copy of a tensor with a border, in int8."""


@dataclass(frozen=True)
class Candidate:
    """A group of points that can have a zero point.

    Attributes:
        tensors: of its points.
        cost: the highest of `COSTS` among its neighbours.
    """

    tensors: tuple[str, ...]
    cost: str


def candidates(graph: Graph, plan: Plan) -> tuple[Candidate, ...]:
    """The groups of the main graph that can have one, in the plan's order."""
    around = _Around(
        graph,
        plan,
        {str(n.name): n for n in graph.nodes},
        {str(v.name): v for v in graph.values()},
        {use for w in plan.weights if w.format == INT8 for use in w.uses},
    )
    groups: dict[str, list[Point]] = {}
    for point in plan.points.values():
        groups.setdefault(point.group, []).append(point)
    found = []
    for points in groups.values():
        costs = [around.cost(point) for point in points]
        if None not in costs:
            worst = max((c for c in costs if c is not None), key=COSTS.index)
            found.append(Candidate(tuple(p.tensor for p in points), worst))
    return tuple(found)


def with_zero_points(graph: Graph, plan: Plan, tensors: Collection[str]) -> Plan:
    """The unresolved plan with zero points at those of the tensors' groups that can have one."""
    if not tensors:
        return plan
    chosen = [c for c in candidates(graph, plan) if set(c.tensors) <= set(tensors)]
    moved = {name for c in chosen for name in c.tensors}
    points = {n: replace(p, qtype=INT8_ASYMMETRIC) if n in moved else p for n, p in plan.points.items()}
    nodes = {str(n.name): n for n in graph.nodes}
    padded = {
        name
        for p in points.values()
        if p.tensor in moved
        for name, _ in p.uses
        if name in nodes and borders(graph, nodes[name])
    }
    decisions = tuple(_said(d) if d.node in padded else d for d in plan.decisions)
    counts = {cost: sum(c.cost == cost for c in chosen) for cost in COSTS}
    extra = "; ".join(f"{counts[cost]} {_EXTRA[cost]}" for cost in COSTS if counts[cost])
    said = "1 tensor is quantized" if len(moved) == 1 else f"{len(moved)} tensors are quantized"
    note = f"{said} around the middle of the range, as x - c: {extra}"
    remarks = (*plan.remarks, note) if moved else plan.remarks
    return replace(plan, points=points, decisions=decisions, remarks=remarks)


_EXTRA = {
    "free": "at no cost, all in biases",
    "pointwise": "with an addition of a constant",
    "pad": "with an int8 Pad in front of what pads with zeros",
}


def _said(decision: Decision) -> Decision:
    return replace(decision, reason=f"{decision.reason}; a Pad writes its border, one int8 copy of its input")


@dataclass(frozen=True)
class _Around:
    """What is looked up of a point's neighbours."""

    graph: Graph
    plan: Plan
    nodes: Mapping[str, Node]
    values: Mapping[str, Value]
    weights: Collection[tuple[str, int]]

    def cost(self, point: Point) -> str | None:
        """What a zero point costs at this point; None where it cannot have one."""
        value = self.values.get(point.tensor)
        plain = point.range is None and point.qtype is None and not point.output
        if value is None or not plain or any(name not in self.nodes for name, _ in point.uses):
            return None
        joined = {(node, index) for node, index, _ in self.plan.joins}
        if joined & set(point.uses) or point.tensor in self.plan.kept:
            return None
        costs = [self._maker(value, point), *(self._reader(*use) for use in point.uses)]
        return None if None in costs else max((c for c in costs if c is not None), key=COSTS.index)

    def _maker(self, value: Value, point: Point) -> str:
        others = {(str(n.name), i) for n, i in self.graph.users(value)} - set(point.uses)
        alone = not others and not value.is_graph_output()
        return "free" if alone and way_back(self.graph, value, None) is not None else "pointwise"

    def _reader(self, name: str, index: int) -> str | None:
        node = self.nodes[name]
        if index == 0 and (name, 1) in self.weights and absorbs(self.graph, node):
            return "pad" if borders(self.graph, node) else "free"
        if (name, 1) in self.weights or node.domain or self.graph.in_body(node):
            return None
        if node.op_type == "Add":
            return "free" if addend(self.graph, node, besides=node.inputs[index]) is not None else "pointwise"
        if node.op_type == "Concat":
            return "free"
        if averages_zeros(self.graph, node):
            return "pad"
        return "pointwise" if commutes(self.graph, node) or node.op_type == "Mul" else None
