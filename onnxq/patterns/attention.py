"""Softmax written out, and the attention around a softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxq.patterns.match import MOVERS, Match, reduction, same_axes
from onnxq.patterns.polynomial import Polynomial
from onnxq.patterns.reading import follow, number, standard

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value

_PRODUCTS = ("MatMul", "Einsum", "Gemm")
_BEFORE = (*MOVERS, "Div", "Mul", "Add", "Sub", "Where", "Tanh")  # scale, mask; Tanh caps the scores
_AFTER = (*MOVERS, "Where", "Mul")
_SHAPE_MATH = ("Cast", "Sqrt", "Div", "Mul", "Reciprocal", "Pow", "Slice", "Gather", "Squeeze", "Unsqueeze", "Reshape")
_DEPTH = 8


@dataclass(frozen=True)
class Attention:
    """The parts of softmax(mask(scale * Q K^T)) V.

    Attributes:
        scores: from the product Q K^T down to the softmax, which is not among them.
        softmax: the operator, or its parts where it is written out.
        mixed: from there down to the product with V.
    """

    scores: tuple[Node, ...]
    softmax: Match
    mixed: tuple[Node, ...]


EXP, TOTAL = Polynomial.of("exp"), Polynomial.of("total")


def softmax(graph: Graph, node: Node) -> Match | None:
    """Softmax: exp(z) / sum exp(z) with z = x or, against overflow, z = x - max x, all over the same axes."""
    exponential = node.outputs[0]
    for user, _ in graph.users(exponential):
        total = reduction(graph, user.outputs[0], "ReduceSum")
        if total is None or total.inputs[0] is not exponential:
            continue
        symbols = {exponential: EXP, total.outputs[0]: TOTAL}
        inverse = TOTAL.inverse()
        found = None if inverse is None else follow(graph, exponential, symbols, (EXP * inverse,))
        if found is not None:
            shift, x = _shift(graph, node, total)
            return None if x is None else Match((*shift, node, total, *found.nodes), x, found.value)
    return None


def _shift(graph: Graph, node: Node, total: Node) -> tuple[tuple[Node, ...], Value | None]:
    """(ReduceMax and Sub of a stable softmax, x), or (nothing, the argument of the Exp)."""
    argument = node.inputs[0]
    minus = graph.producer(argument, "Sub")
    top = None if minus is None else reduction(graph, minus.inputs[1], "ReduceMax")
    if minus is None or top is None or top.inputs[0] is not minus.inputs[0]:
        return (), argument
    if not same_axes(graph, top, total):
        return (), argument
    return (top, minus), minus.inputs[0]


def attention(graph: Graph, node: Node) -> Match | None:
    """Attention (Vaswani et al., 2017, arXiv 1706.03762): softmax(mask(scale * Q K^T)) V, Q, K and V activations.

    The nodes are both products, what lies between them, and a scaling of Q or K by a number before the first.
    """
    found = attention_at(graph, node)
    if found is None:
        return None
    first, last = found.scores[0], found.mixed[-1]
    query, key = (_prescaled(graph, v) for v in first.inputs[:2])
    nodes = (*query[0], *key[0], *found.scores, *found.softmax.nodes, *found.mixed)
    return Match(nodes, query[1] or found.softmax.input, last.outputs[0])


def attention_at(graph: Graph, node: Node) -> Attention | None:
    """The attention around a Softmax, or around the Exp of one that is written out; None when there is none."""
    inner = softmax(graph, node) if node.op_type == "Exp" else _one(node)
    if inner is None or (scores := _scores(graph, inner.input, _DEPTH)) is None:
        return None
    mixed = _mixed(graph, inner.output, _DEPTH)
    return None if mixed is None else Attention(scores, inner, mixed)


def _one(node: Node) -> Match | None:
    return None if node.inputs[0] is None else Match((node,), node.inputs[0], node.outputs[0])


def _is_product(graph: Graph, node: Node) -> bool:
    return standard(node, *_PRODUCTS) and not any(_from_weight(graph, v) for v in node.inputs[:2])


def _from_weight(graph: Graph, value: Value | None) -> bool:
    while (node := graph.producer(value, *MOVERS, "QuantizeLinear", "DequantizeLinear")) is not None:
        value = node.inputs[0]
    return graph.is_const(value)


def _scores(graph: Graph, value: Value | None, depth: int) -> tuple[Node, ...] | None:
    """The nodes from Q K^T down to the value, None when no product of activations lies above it."""
    node = graph.producer(value, *_PRODUCTS, *_BEFORE)
    if node is None or depth == 0:
        return None
    if node.op_type in _PRODUCTS:
        return (node,) if _is_product(graph, node) else None
    inputs = node.inputs[:1] if node.op_type in MOVERS else node.inputs[1 if node.op_type == "Where" else 0 :]
    for source in inputs:
        if (path := _scores(graph, source, depth - 1)) is not None:
            return (*path, node)
    return None


def _mixed(graph: Graph, value: Value, depth: int) -> tuple[Node, ...] | None:
    """The nodes from the value down to the product with V, None when there is none."""
    users = [node for node, _ in graph.users(value)]
    for node in users:
        if _is_product(graph, node):
            return (node,)
    for node in users if depth else ():
        if standard(node, *_AFTER) and (path := _mixed(graph, node.outputs[0], depth - 1)) is not None:
            return (*_nan_test(graph, node, value), node, *path)
    return None


def _nan_test(graph: Graph, node: Node, value: Value) -> tuple[Node, ...]:
    """The IsNaN of Where(IsNaN(p), 0, p): a row that is masked completely."""
    test = graph.producer(node.inputs[0], "IsNaN") if node.op_type == "Where" else None
    return () if test is None or test.inputs[0] is not value else (test,)


def _prescaled(graph: Graph, value: Value | None) -> tuple[tuple[Node, ...], Value | None]:
    """(nodes from a scaling by a number down to the value, what is scaled), or (nothing, the value)."""
    path: list[Node] = []
    source = value
    while (node := graph.producer(source, "Mul", "Div", *MOVERS)) is not None and len(path) < _DEPTH:
        path.append(node)
        if node.op_type in MOVERS:
            source = node.inputs[0]
            continue
        for index in (1,) if node.op_type == "Div" else (1, 0):
            if is_scale(graph, node.inputs[index]):
                return tuple(path), node.inputs[1 - index]
        break
    return (), value


def is_scale(graph: Graph, value: Value | None, depth: int = _DEPTH) -> bool:
    """Whether the value is a number: given, or computed from the model's shapes as 1 / sqrt(head size) is."""
    if number(graph, value) is not None or graph.producer(value, "Shape", "Size") is not None:
        return True
    node = graph.producer(value, *_SHAPE_MATH)
    if node is None or depth == 0:
        return False
    inputs = node.inputs if node.op_type in ("Div", "Mul") else node.inputs[:1]
    return all(is_scale(graph, v, depth - 1) for v in inputs)
