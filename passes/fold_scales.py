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


FLOAT_TYPES = ("float32", "float16", "bfloat16")


def fold_scales(graph: Graph) -> int:
    """Fold scalar Mul and Div around Q and DQ; return how many vanished."""
    steps = [node for node in graph.nodes if node.op_type in ("Mul", "Div") and not node.domain]
    behind = {id(node) for node in steps if _fold_behind(graph, node)}
    # Backwards, so that of two factors before a Q the nearer goes first and uncovers the other.
    return len(behind) + sum(_fold_before(graph, node) for node in reversed(steps) if id(node) not in behind)


def _fold_behind(graph: Graph, node: Node) -> bool:
    found = _factor(graph, node)
    if found is None:
        return False
    value, factor = found
    dequantize = graph.producer(value, "DequantizeLinear")
    if dequantize is None or graph.only_user(value) is not node or not _rescale(graph, dequantize, factor):
        return False
    graph.replace_uses(node.outputs[0], value)
    graph.remove(node)
    return True


def _fold_before(graph: Graph, node: Node) -> bool:
    found = _factor(graph, node)
    user = graph.only_user(node.outputs[0])
    if found is None or user is None or user.op_type != "QuantizeLinear" or user.inputs[0] is not node.outputs[0]:
        return False
    value, factor = found
    if not _rescale(graph, user, 1.0 / factor):
        return False
    graph.replace_uses(node.outputs[0], value)
    graph.remove(node)
    return True


def _factor(graph: Graph, node: Node) -> tuple[Value, float] | None:
    """(the other operand, c) for x·c, c·x and x/d; None for anything else, and for model outputs."""
    a, b = node.inputs[0], node.inputs[1]
    if graph.dtype(node.outputs[0]) not in FLOAT_TYPES or node.outputs[0].is_graph_output():
        return None  # a division of integers truncates; an output keeps its node
    if a is not None and (c := graph.scalar(b)) is not None and _keeps_rank(graph, a, b):
        factor = c if node.op_type == "Mul" else (1.0 / c if c else 0.0)
        return (a, factor) if factor > 0 and np.isfinite(factor) else None
    if node.op_type == "Mul" and b is not None and (c := graph.scalar(a)) is not None and _keeps_rank(graph, b, a):
        return (b, c) if c > 0 and np.isfinite(c) else None
    return None


def _keeps_rank(graph: Graph, value: Value, constant: Value | None) -> bool:
    rank, other = graph.rank(value), graph.rank(constant)
    return other == 0 or (rank is not None and other is not None and other <= rank)


def _rescale(graph: Graph, quantizer: Node, factor: float) -> bool:
    stored = quantizer.inputs[1]
    scale = graph.const(stored)
    if stored is None or scale is None or scale.size != 1:
        return False
    with np.errstate(over="ignore"):  # what overflows is refused below
        new = (scale.astype(np.float64) * factor).astype(scale.dtype)
    if not np.isfinite(new).all() or (new < np.finfo(scale.dtype).tiny).any():
        return False
    graph.set_input(quantizer, 1, graph.constant(f"{stored.name}_folded", new))
    return True
