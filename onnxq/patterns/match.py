"""Match: what a matcher hands back, and helpers that several matchers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value

MOVERS = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Cast", "Identity", "Dropout")
"""Operators whose output is their first input, moved, repeated or in another float type."""


@dataclass(frozen=True)
class Match:
    """The nodes of one occurrence, in any order and perhaps repeated, the value it reads and the one it makes."""

    nodes: tuple[Node, ...]
    input: Value
    output: Value


def axes(graph: Graph, node: Node, rank: int | None = None) -> tuple[int, ...] | None:
    """The axes a Reduce node reduces: an attribute, or an input in newer opsets; None when all or not constant.

    Negative ones are counted from the front where the rank is known, or given.
    """
    given = graph.attribute(node, "axes")
    if given is None and len(node.inputs) > 1:
        array = graph.const(node.inputs[1])
        given = None if array is None else array.reshape(-1).tolist()
    rank = graph.rank(node.inputs[0]) or rank
    return tuple(sorted(int(a) + rank if a < 0 and rank else int(a) for a in given)) if given else None


def same_axes(graph: Graph, one: Node, other: Node) -> bool:
    """Whether two Reduce nodes whose inputs have the same rank, known at one of them, reduce the same axes."""
    rank = graph.rank(one.inputs[0]) or graph.rank(other.inputs[0])
    return axes(graph, one, rank) == axes(graph, other, rank)


def reduction(graph: Graph, value: Value | None, op_type: str) -> Node | None:
    """The Reduce node that makes the value, when it keeps the reduced dimensions and leaves the batch alone."""
    node = graph.producer(value, op_type)
    if node is None or not graph.attribute(node, "keepdims", 1):
        return None
    over = axes(graph, node)
    rank = graph.rank(node.inputs[0])
    return node if over and (0 not in over or rank == 1) else None
