"""Squeeze-and-excitation: a tensor weighted, channel by channel, by what its own average says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.patterns.activations import hard_sigmoid
from onnxq.patterns.match import MOVERS, Match, axes
from onnxq.patterns.reading import number, standard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxq.graph import Graph, Node, Value
    from onnxq.patterns import Pattern

_WEIGHTED = ("Conv", "Gemm", "MatMul")
_GATES = ("Sigmoid", "HardSigmoid", "Clip", "Min")
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Erf", "Tanh", "Softplus")
_NORMALIZED = ("BatchNormalization", "LayerNormalization")
_ACTIVATIONS = ("Relu", "LeakyRelu", "PRelu", "Elu", "Gelu", "HardSwish", "Swish", "Mish")
_POOLS = ("GlobalAveragePool", "GlobalMaxPool", "AveragePool", "ReduceMean", "ReduceMax")
_LAYERS = (*_WEIGHTED, *_ARITHMETIC, *_NORMALIZED, *_ACTIVATIONS, *_GATES, *MOVERS)
_REACH = 40  # two layers with a written-out activation and their reshapes take about 20 nodes


def squeeze_excite(graph: Graph, node: Node) -> Match | None:
    """Squeeze-excite (Hu et al., 2018, arXiv 1709.01507): x * gate(layers(pool x)), gate a (hard) sigmoid.

    The pool averages the spatial dimensions. A second pool of x, the maximum, may join it.
    """
    x = node.inputs[0]
    if x is None or not _is_average(graph, node):
        return None
    for user, index in graph.users(x):
        if not standard(user, "Mul"):
            continue
        nodes = _between(graph, user.inputs[1 - index], x) if _is_gate(graph, user.inputs[1 - index]) else None
        if nodes is not None and node in nodes and any(n.op_type in _WEIGHTED for n in nodes):
            return Match((*nodes, user), x, user.outputs[0])
    return None


def gated(patterns: Mapping[str, Pattern], node: Node) -> str | None:
    """The wide tensor that the node multiplies by its gate when it ends a squeeze-excite, else None.

    `patterns` are those of the graph by output tensor.
    """
    pattern = patterns.get(str(node.outputs[0].name))
    return None if pattern is None or pattern.kind != "squeeze-excite" else pattern.input


def _is_average(graph: Graph, node: Node) -> bool:
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type == "AveragePool":  # over a window as large as the map
        shape = graph.shape(node.outputs[0])
        return shape is not None and all(d == 1 for d in shape[2:])
    over = axes(graph, node)
    spatial = 1 if graph.rank(node.inputs[0]) == 3 else 2
    return over is not None and len(over) >= spatial and 0 not in over


def _is_gate(graph: Graph, value: Value | None) -> bool:
    """Whether a (hard) sigmoid makes the value, but for moves and a division by a number."""
    while (node := graph.producer(value, *MOVERS, "Mul", "Div")) is not None:
        if node.op_type in ("Mul", "Div") and number(graph, node.inputs[1]) is None:
            value = node.inputs[1] if number(graph, node.inputs[0]) is not None and node.op_type == "Mul" else None
        else:
            value = node.inputs[0]
    gate = graph.producer(value, *_GATES)
    return gate is not None and (gate.op_type in ("Sigmoid", "HardSigmoid") or hard_sigmoid(graph, gate) is not None)


def _between(graph: Graph, value: Value | None, x: Value) -> tuple[Node, ...] | None:
    """All nodes from pools of x down to the value, None when anything else but weights goes into it."""
    nodes: dict[int, Node] = {}
    stack = [value]
    while stack:
        current = stack.pop()
        if current is None or graph.is_const(current):
            continue
        node = graph.producer(current, *_LAYERS, *_POOLS)
        if node is None or len(nodes) > _REACH:
            return None
        if id(node) in nodes:
            continue
        nodes[id(node)] = node
        if node.op_type not in _POOLS:
            stack.extend(node.inputs[:1] if node.op_type in MOVERS else node.inputs)
        elif node.inputs[0] is not x:
            return None
    return tuple(nodes.values())
