"""Peaks: a map that is compared with its own maximum over neighbourhoods, in place of a non-maximum suppression.

    keep = Equal(x, MaxPool(x))        CenterNet (Zhou et al., 2019, arXiv 1904.07850) and networks of key points
    keep = Not(Less(x, MaxPool(x)))    the same, and
    keep = 1 - Ceil(MaxPool(x) - x)    where a backend has no comparison

Neighbours that a narrow type makes equal are all kept: a network that finds minutiae in fingerprints found 724 in place
of 360 with the layer that makes its map in int8, and 392 with the map in float16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.linear import LINEAR
from onnxq.patterns.chains import MOVING

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value

COMPARED = "peaks are found by comparing it with its maximum: neighbours would become equal"

_COMPARISONS = ("Equal", "GreaterOrEqual", "LessOrEqual", "Less", "Greater")
_ROUNDING = ("Ceil", "Sign")
"""Of a difference they tell whether there is one."""
_PASSING = (MOVING - {"Concat"}) | {"MaxPool", "Sigmoid", "HardSigmoid", "Clip", "Relu", "Exp", "Pad", "Resize"}
_SCALING = ("Add", "Sub", "Mul", "Div")
_FLOATS = ("float32", "float16", "bfloat16", "float64")


def peaks(graph: Graph) -> dict[str, str]:
    """Node name -> why it stays wide: all from the layer that makes such a map, this included, to the comparison."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        if _compares(graph, node) and graph.dtype(node.inputs[0]) in _FLOATS:
            one, other = (_above(graph, value) for value in node.inputs)
            pooled = any(n.op_type == "MaxPool" for n in {*one} ^ {*other})
            if pooled and _origin(graph, one, node.inputs[0]) is _origin(graph, other, node.inputs[1]):
                ours = (*one, *other, *((node,) if node.op_type == "Sub" else ()))
                found |= dict.fromkeys((str(n.name) for n in ours), COMPARED)
    return found


def _compares(graph: Graph, node: Node) -> bool:
    user = graph.only_user(node.outputs[0]) if node.op_type == "Sub" else None
    return not node.domain and (node.op_type in _COMPARISONS or (user is not None and user.op_type in _ROUNDING))


def _above(graph: Graph, value: Value | None) -> list[Node]:
    """The nodes that make the value of the result of one layer, value by value or by its maxima, from the value up."""
    found: list[Node] = []
    while value is not None and (node := graph.producer(value)) is not None and not node.domain:
        constants = [graph.is_const(v) for v in node.inputs]
        if node.op_type in LINEAR:
            return [*found, node]
        if node.op_type in _PASSING:
            value = node.inputs[0]
        elif node.op_type in _SCALING and sum(constants) == 1:
            value = node.inputs[constants.index(False)]
        else:
            break
        found.append(node)
    return found


def _origin(graph: Graph, above: list[Node], value: Value | None) -> Node | Value | None:
    """The layer that makes it all, or the tensor that it is made of."""
    last = above[-1] if above else None
    if last is None or last.op_type in LINEAR:
        return value if last is None else last
    return next((v for v in last.inputs if not graph.is_const(v)), None)
