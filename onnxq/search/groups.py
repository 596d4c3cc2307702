"""The model without some groups of layers, or with a few alone.

A group is never cut out of the quantized graph. The layers are excluded and the float graph is placed again, because
placement alone knows what else must change on each target: the addition that fused into a convolution, the Concat
whose reader is float, the rest of an island that no longer pays. Original weights come back by themselves.
"""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING

from onnxq.placement.groups import nodes_of
from onnxq.planning import without_nodes
from onnxq.recipe import Rule

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from onnxq.placement.groups import Group
    from onnxq.plan import Plan
    from onnxq.planning import Prepared

REVERTED = "reverted to float to hold the budget"


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
    return without_nodes(ready, names, REVERTED, narrow) if formats else ready


def narrows(ready: Prepared, group: Group) -> bool:
    """Whether the target stores weights of the group's format for any of its layers."""
    found = without(ready, [group]).plan
    return any(d.quantized for d in found.decisions if d.node in group.nodes)


def share_whole(plan: Plan, reverted: Collection[Group]) -> float:
    """Share of the multiply-accumulates that the plan quantizes, without layers whose weights alone stay narrow."""
    narrow = set(nodes_of(group for group in reverted if group.weights))
    whole = sum(d.macs for d in plan.decisions if d.quantized and d.node not in narrow)
    return whole / plan.macs if plan.macs else 0.0


def only(ready: Prepared, every: Collection[Group], kept: Sequence[Group]) -> Prepared:
    """The prepared model with these groups alone in int8, even where the target would not find that worth while."""
    names = nodes_of(kept)
    others = set(nodes_of(every)) - set(names)
    rules = tuple(Rule(nodes=glob.escape(name), quantize=True) for name in names)
    return without_nodes(ready, others, REVERTED, rules)
