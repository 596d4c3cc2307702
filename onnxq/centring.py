"""Where a constant that is added to a tensor can go: into a bias before it, into the biases of those that read it.

A symmetric grid on x - c is a grid with a zero point on x: for one-sided tensors it has twice the codes. What c costs
depends on the neighbours:

    before:  W z + b - c                     the bias of who makes x
    before:  max(y, 0) - 128 s  ->  y - 128 s   on a grid of step s: its lowest code, -128, is where the Relu ends
    behind:  W x + b = W (x - c) + (b + W 1 c)  the bias of who reads x; zeros around x become -c

Everywhere else it is one more addition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxq.linear import BIASED, linear_at

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value

AVERAGES = frozenset({"GlobalAveragePool", "AveragePool"})

COMMUTING = AVERAGES | {
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "MaxPool",
    "GlobalMaxPool",
}
"""f(x + c) = f(x) + c: what only moves values, takes the largest, or averages; see `commutes`."""


def commutes(graph: Graph, node: Node) -> bool:
    """Whether the node gives f(x) + c for x + c."""
    if node.domain or node.op_type not in COMMUTING or len(node.outputs) > 1 or graph.in_body(node):
        return False
    padded = any(graph.attribute(node, "pads", ())) or graph.attribute(node, "auto_pad", "NOTSET") != "NOTSET"
    return node.op_type != "AveragePool" or not padded or not graph.attribute(node, "count_include_pad", 0)


def takes_bias(graph: Graph, node: Node | None) -> bool:
    """Whether the node has a bias that a constant can be added to, or can be given one."""
    if node is None or node.domain or node.op_type not in BIASED or graph.in_body(node):
        return False
    return len(node.inputs) < 3 or node.inputs[2] is None or graph.is_const(node.inputs[2])


@dataclass(frozen=True)
class Way:
    """How a constant in front of a reader gets into a bias.

    Attributes:
        linear: the node with the bias.
        between: the nodes behind it, up to the tensor, whose outputs move with it.
        bounds: those of them that saturate; they must vanish.
    """

    linear: Node
    between: tuple[Node, ...]
    bounds: tuple[Node, ...]


def way_back(graph: Graph, value: Value, reader: Node | None) -> Way | None:
    """The way from what `reader` alone reads (None: nothing but what is known) back to a bias, None without one."""
    between: list[Node] = []
    bounds: list[Node] = []
    while reader is None or graph.only_user(value) is reader:
        node = graph.producer(value)
        if node is None or graph.in_body(node):
            return None
        if takes_bias(graph, node):
            return Way(node, tuple(between), tuple(bounds))
        if node.op_type == "Add" and not node.domain:
            linear = addend(graph, node)
            return None if linear is None else Way(linear, (*between, node), tuple(bounds))
        averaged = any(other.op_type in AVERAGES for other in between)
        if saturates(graph, node) is not None and not averaged:  # the mean of what is clipped is no clipped mean
            bounds.append(node)
        elif not commutes(graph, node):
            return None
        between.append(node)
        if node.inputs[0] is None:
            return None
        value, reader = node.inputs[0], node
    return None


def saturates(graph: Graph, node: Node) -> float | None:
    """The upper limit of a node that gives nothing below 0 and what is above unchanged, inf for a Relu; else None."""
    if node.domain or node.op_type not in ("Relu", "Clip"):
        return None
    if node.op_type == "Relu":
        return float("inf")
    low, high = (graph.scalar(node.inputs[i]) if i < len(node.inputs) else None for i in (1, 2))
    given = len(node.inputs) > 2 and node.inputs[2] is not None
    if low != 0.0 or (given and high is None):
        return None
    return float("inf") if high is None else high


def addend(graph: Graph, add: Node, besides: Value | None = None) -> Node | None:
    """A node with a bias of which the Add alone reads the output, other than what makes `besides`; else None."""
    for value in add.inputs[:2]:
        if value is None or value is besides or graph.only_user(value) is not add or value.is_graph_output():
            continue
        node = graph.producer(value)
        if takes_bias(graph, node):
            return node
    return None


def absorbs(graph: Graph, node: Node) -> bool:
    """Whether a constant taken from the node's input 0 can go into its bias, borders aside; its weight is constant."""
    linear = linear_at(graph, node)
    if linear is None or node.op_type == "ConvTranspose":
        return False  # a transposed convolution's border pixels are sums of fewer terms
    if node.op_type == "Conv" and graph.attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    turned = node.op_type == "Gemm" and graph.attribute(node, "transA", 0)
    return not turned and (node.op_type == "MatMul" or takes_bias(graph, node))


def borders(graph: Graph, node: Node) -> tuple[int, ...]:
    """The zeros that a convolution or an average takes in around its input, as `pads` has them; empty without any."""
    counts = node.op_type == "AveragePool" and averages_zeros(graph, node)
    explicit = graph.attribute(node, "auto_pad", "NOTSET") == "NOTSET"
    pads = tuple(int(p) for p in graph.attribute(node, "pads", ())) if explicit else ()
    return pads if any(pads) and (counts or node.op_type == "Conv") else ()


def averages_zeros(graph: Graph, node: Node) -> bool:
    """Whether the node is an average over windows that reach into zeros, all of one size."""
    plain = node.op_type == "AveragePool" and not node.domain and not graph.in_body(node)
    plain = plain and not graph.attribute(node, "ceil_mode", 0)
    explicit = any(graph.attribute(node, "pads", ())) and graph.attribute(node, "auto_pad", "NOTSET") == "NOTSET"
    return plain and explicit and bool(graph.attribute(node, "count_include_pad", 0))
