"""Weights that several linear nodes read: ALBERT's one block, a head for all levels of a pyramid, an unrolled loop.

    y_i = W x_i + b    for all i

Where W is exchanged, it is for all of them: what is folded into its columns is of every x_i, into its rows of every
y_i. So these tensors are tied like those on both sides of an addition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxq.linear import linear_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeVar

    from onnxq.graph import Graph, Value
    from onnxq.linear import Linear

    _T = TypeVar("_T")


def kind(graph: Graph, linear: Linear) -> tuple[object, ...]:
    """What nodes must have in common that share a weight: how its numbers meet those of the input."""
    return linear.node.op_type, linear.groups, bool(graph.attribute(linear.node, "transB", 0))


def sharers(graph: Graph, weight: Value) -> tuple[Linear, ...]:
    """All linear nodes that read the weight, one mostly; none where something reads it in another way."""
    read = [linear_at(graph, node) if index == 1 else None for node, index in graph.users(weight)]
    found = tuple(linear for linear in read if linear is not None)
    return found if len(found) == len(read) and len({kind(graph, linear) for linear in found}) == 1 else ()


def shared(graph: Graph) -> tuple[tuple[Linear, ...], ...]:
    """The nodes of every weight that several share, in the graph's order."""
    weights = (linear.weight for node in graph.nodes if (linear := linear_at(graph, node)) is not None)
    several = (w for w in dict.fromkeys(weights) if len(graph.users(w)) > 1)
    return tuple(found for w in several if (found := sharers(graph, w)))


def complete(graph: Graph, linears: Iterable[Linear]) -> set[Value]:
    """The weights of these nodes that no other node reads."""
    read: dict[Value, set[str]] = {}
    for linear in linears:
        read.setdefault(linear.weight, set()).add(str(linear.node.name))
    return {w for w, names in read.items() if {str(x.node.name) for x in sharers(graph, w)} == names}


def rejoin(graph: Graph, before: Iterable[Linear]) -> None:
    """Let nodes that read one weight, and each a new one since, read one again where the new ones are equal.

    `before` describes the nodes as they were.
    """
    made: dict[Value, list[Value]] = {}
    for linear in before:
        new = linear.node.inputs[1]
        if new is None or new is linear.weight:
            continue
        forms = made.setdefault(linear.weight, [])
        first = next((v for v in forms if _equal(graph, v, new)), None)
        if first is None:
            forms.append(new)
        else:
            graph.set_input(linear.node, 1, first)


def _equal(graph: Graph, one: Value, other: Value) -> bool:
    return one is other or np.array_equal(np.asarray(graph.const(one)), np.asarray(graph.const(other)))


def joined(items: Sequence[_T], ties: Iterable[Sequence[_T]]) -> list[list[_T]]:
    """The items in classes, those of a tie together, in the order of the items."""
    parents: dict[_T, _T] = {}

    def root(item: _T) -> _T:
        while (above := parents.get(item)) is not None:
            item = above
        return item

    for tied in ties:
        for other in tied[1:]:
            if root(other) is not root(tied[0]):
                parents[root(other)] = root(tied[0])
    classes: dict[_T, list[_T]] = {}
    for item in items:
        classes.setdefault(root(item), []).append(item)
    return list(classes.values())
