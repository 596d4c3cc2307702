"""Fold constant factors into neighbouring scales.

    Q(x·c, s) = Q(x, s/c)            for a constant c > 0 that only Q sees
    DQ(q, s)·c = DQ(q, s·c)          for a constant c > 0, when DQ has no other user

with division as c = 1/d. Only per-tensor pairs; a zero or negative factor is left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value


def fold_scales(graph: Graph) -> int:
    """Fold scalar Mul and Div around Q and DQ; return how many vanished."""
    return sum(_fold(graph, node) for node in graph.nodes if node.op_type in ("Mul", "Div") and not node.domain)


def _fold(graph: Graph, node: Node) -> int:
    found = _factor(graph, node)
    if found is None or node.outputs[0].is_graph_output():
        return 0
    value, factor = found
    user = graph.only_user(node.outputs[0])
    if user is not None and user.op_type == "QuantizeLinear" and user.inputs[0] is node.outputs[0]:
        return _rescale(graph, user, 1.0 / factor, node, value)
    producer = graph.producer(value, "DequantizeLinear")
    if producer is not None and graph.only_user(value) is node:
        return _rescale(graph, producer, factor, node, value)
    return 0


def _factor(graph: Graph, node: Node) -> tuple[Value, float] | None:
    """(the other operand, c) for x·c, c·x and x/d; None for anything else."""
    a, b = node.inputs[0], node.inputs[1]
    if a is not None and (c := graph.scalar(b)) is not None and _keeps_rank(graph, a, b):
        factor = c if node.op_type == "Mul" else (1.0 / c if c else 0.0)
        return (a, factor) if factor > 0 and np.isfinite(factor) else None
    if node.op_type == "Mul" and b is not None and (c := graph.scalar(a)) is not None and _keeps_rank(graph, b, a):
        return (b, c) if c > 0 and np.isfinite(c) else None
    return None


def _keeps_rank(graph: Graph, value: Value, constant: Value | None) -> bool:
    rank, other = graph.rank(value), graph.rank(constant)
    return other == 0 or (rank is not None and other is not None and other <= rank)


def _rescale(graph: Graph, quantizer: Node, factor: float, node: Node, value: Value) -> int:
    scale = graph.const(quantizer.inputs[1])
    if scale is None or scale.size != 1:
        return 0
    new = (scale.astype(np.float64) * factor).astype(scale.dtype)
    if not np.isfinite(new).all() or (new < np.finfo(scale.dtype).tiny).any():
        return 0
    graph.set_input(quantizer, 1, graph.constant(f"{quantizer.inputs[1].name}_folded", new))  # type: ignore[union-attr]  scale is not None
    graph.replace_uses(node.outputs[0], value)
    graph.remove(node)
    return 1
