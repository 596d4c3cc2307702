"""Peaks: a map that is compared with its own maximum over neighbourhoods, in place of a non-maximum suppression.

    keep = Equal(x, MaxPool(x))        CenterNet (Zhou et al., 2019, arXiv 1904.07850) and networks of key points

Neighbours that a narrow type makes equal are all kept: a network that finds minutiae in fingerprints found 724 in place
of 360 with the layer that makes its map in int8, and 392 with the map in float16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.patterns.chains import MOVING

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value

COMPARED = "peaks are found by comparing it with its maximum: neighbours would become equal"

_COMPARISONS = ("Equal", "GreaterOrEqual", "LessOrEqual")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_PASSING = (MOVING - {"Concat"}) | {"MaxPool", "Sigmoid", "HardSigmoid", "Clip", "Relu", "Exp", "Pad", "Resize"}
_SCALING = ("Add", "Sub", "Mul", "Div")
_FLOATS = ("float32", "float16", "bfloat16", "float64")


def peaks(graph: Graph) -> dict[str, str]:
    """Node name -> why it stays wide: all from the layer that makes such a map, this included, to the comparison."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type in _COMPARISONS and not node.domain and graph.dtype(node.inputs[0]) in _FLOATS:
            one, other = (_above(graph, value) for value in node.inputs)
            pooled = any(n.op_type == "MaxPool" for n in {*one} ^ {*other})
            if pooled and _origin(graph, one, node.inputs[0]) is _origin(graph, other, node.inputs[1]):
                found |= dict.fromkeys((str(n.name) for n in (*one, *other)), COMPARED)
    return found


def _above(graph: Graph, value: Value | None) -> list[Node]:
    """The nodes that make the value of the result of one layer, value by value or by its maxima, from the value up."""
    found: list[Node] = []
    while value is not None and (node := graph.producer(value)) is not None and not node.domain:
        constants = [graph.is_const(v) for v in node.inputs]
        if node.op_type in _LAYERS:
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
    if last is None or last.op_type in _LAYERS:
        return value if last is None else last
    return next((v for v in last.inputs if not graph.is_const(v)), None)
