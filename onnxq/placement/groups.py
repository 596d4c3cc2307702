"""Groups: layers that change precision together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxq.targets import get_target

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnxq.plan import Plan


@dataclass(frozen=True)
class Group:
    """Layers that change precision together.

    Attributes:
        nodes: their names, in the model's order; the first names the group.
        macs: multiply-accumulates of all.
        weights: the format that their weights have beside float activations when the group is reverted; empty where
            they go to float too.
    """

    nodes: tuple[str, ...]
    macs: int
    weights: str = ""

    @property
    def name(self) -> str:
        """The first layer's name."""
        return self.nodes[0]


def groups(plan: Plan) -> tuple[Group, ...]:
    """The plan's groups, in the model's order: quantized layers that share a weight or read one quantized tensor.

    One QuantizeLinear serves all readers of a tensor, so that reverting only some of them would keep its cost.
    Layers that the model had in int8 already belong to none.
    """
    weighted = set(get_target(plan.target).weighted)
    macs = {d.node: d.macs for d in plan.decisions if d.quantized and d.op_type in weighted}
    leader = {name: name for name in macs}

    def root(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    order = {name: i for i, name in enumerate(macs)}
    placed: set[str] = set()
    shared: dict[str, list[str]] = {}
    for weight in plan.weights:
        shared.setdefault(f"weight {weight.tensor}", []).extend(n for n, _ in weight.uses)
    for point in plan.points.values():
        shared[f"tensor {point.tensor}"] = [n for n, _ in point.uses]
    for members in shared.values():
        found = [name for name in members if name in macs]
        placed.update(found)
        for name in found[1:]:
            first, second = sorted((root(found[0]), root(name)), key=order.__getitem__)
            leader[second] = first
    made: dict[str, list[str]] = {}
    for name in macs:
        if name in placed:
            made.setdefault(root(name), []).append(name)
    return tuple(Group(tuple(nodes), sum(macs[n] for n in nodes)) for nodes in made.values())


def nodes_of(found: Iterable[Group]) -> tuple[str, ...]:
    """Names of the layers of all these groups."""
    return tuple(name for group in found for name in group.nodes)
