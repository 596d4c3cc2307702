"""Groups: layers that turn to float together, and the plan without them.

A group is never cut out of the quantized graph. The layers are excluded and the float graph is placed again, because
placement alone knows what else must change on each target: the addition that fused into a convolution, the Concat
whose reader is float, the rest of an island that no longer pays. Original weights come back by themselves.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxq.api import Prepared, planned
from onnxq.recipe import Rule
from onnxq.targets import get_target

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from onnxq.plan import Plan


@dataclass(frozen=True)
class Group:
    """Layers that change precision together.

    Attributes:
        nodes: their names, in the model's order; the first names the group.
        macs: multiply-accumulates of all, unknown dimensions counted as 1.
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


def without(ready: Prepared, reverted: Iterable[Group]) -> Prepared:
    """The prepared model with these groups in float, or their weights alone narrow, and all that must go with them.

    Nothing is quantized that was not before, so that statistics of `ready` serve. Its recipe has a rule for every
    such node.

    Raises:
        RecipeError: the target has no such weights.
    """
    formats = {node: group.weights for group in reverted for node in group.nodes}
    narrow = tuple(
        Rule(nodes=glob.escape(d.node), weights=formats[d.node], activations="float")
        for d in ready.plan.decisions
        if formats.get(d.node)
    )
    names = {node for node, weights in formats.items() if not weights}
    return _placed(ready, names, narrow) if formats else ready


def narrows(ready: Prepared, group: Group) -> bool:
    """Whether the target stores weights of the group's format for any of its layers."""
    found = without(ready, [group]).plan
    return any(d.quantized for d in found.decisions if d.node in group.nodes)


def share_whole(plan: Plan, reverted: Collection[Group]) -> float:
    """Share of the multiply-accumulates that the plan quantizes, without layers whose weights alone stay narrow."""
    narrow = {node for group in reverted if group.weights for node in group.nodes}
    total = sum(d.macs for d in plan.decisions)
    return sum(d.macs for d in plan.decisions if d.quantized and d.node not in narrow) / total if total else 0.0


def only(ready: Prepared, every: Collection[Group], kept: Group) -> Prepared:
    """The prepared model with a single group in int8, even where the target would not find that worth while."""
    others = {node for group in every if group is not kept for node in group.nodes}
    return _placed(ready, others, tuple(_rule(name, True) for name in kept.nodes))


def _placed(ready: Prepared, names: set[str], others: tuple[Rule, ...]) -> Prepared:
    """The model placed again without these nodes and by these rules, without what would be quantized in their stead."""
    before, target = _uses(ready.plan), get_target(ready.recipe.target)
    while True:
        recipe = replace(ready.recipe, rules=(*ready.recipe.rules, *float_rules(ready, names), *others))
        plan = planned(ready.graph, recipe)
        added = {node for node, _ in _uses(plan) - before} - names
        if not added or target.every_tensor:
            return Prepared(ready.graph, _observed(_explained(plan, names), ready.plan), recipe)
        names = names | added  # an addition, say, that would fuse into its other branch now: it stays in float


def float_rules(ready: Prepared, names: Collection[str]) -> tuple[Rule, ...]:
    """What takes nodes out of int8, in the model's order: to float, as no target computes with 16-bit activations."""
    return tuple(_rule(d.node, False) for d in ready.plan.decisions if d.node in names)


REVERTED = "reverted to float to hold the budget"


def _rule(name: str, quantize: bool) -> Rule:
    return Rule(nodes=glob.escape(name), quantize=quantize)


def _uses(plan: Plan) -> set[tuple[str, int]]:
    pairs = {use for point in plan.points.values() for use in point.uses}
    return pairs | {use for weight in plan.weights for use in weight.uses}


def _observed(plan: Plan, before: Plan) -> Plan:
    """The plan that asks for nothing but what was observed: what a float node moves now has the range it had."""
    seen = set(before.observe)
    points = {
        name: replace(point, observe=before.points[name].observe)
        if point.observe not in seen and name in before.points
        else point
        for name, point in plan.points.items()
    }
    return replace(plan, points=points)


def _explained(plan: Plan, names: Collection[str]) -> Plan:
    """The plan that says of these nodes why a rule excludes them."""
    decisions = tuple(
        replace(d, reason=REVERTED) if d.node in names and not d.quantized and d.reason == "excluded by a rule" else d
        for d in plan.decisions
    )
    return replace(plan, decisions=decisions)
