"""Write a Relu or Clip behind an integer product that writes float as Max and Min.

Where a Relu or Clip alone reads a MatMul or Gemm, ONNX Runtime's CPU provider (seen with 1.31) looks for the
QuantizeLinear behind that one. If there is none, since what reads on is float, it leaves the whole product in float
behind its DequantizeLinear nodes. Behind a Max it does not look.

    Relu(x) = Max(x, 0)        Clip(x, low, high) = Min(Max(x, low), high)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value


def clamps_apart(graph: Graph) -> int:
    """Rewrite them; return how many."""
    return sum(_write(graph, node) for node in graph.nodes if node.op_type in ("Relu", "Clip") and not node.domain)


def _write(graph: Graph, clamp: Node) -> bool:
    product = graph.producer(clamp.inputs[0], "MatMul", "Gemm")
    if product is None or graph.only_user(product.outputs[0]) is not clamp:
        return False
    if any(graph.producer(v, "DequantizeLinear") is None for v in product.inputs[:2]):
        return False
    if any(user.op_type == "QuantizeLinear" for user, _ in graph.users(clamp.outputs[0])):
        return False
    steps = [(op, bound) for op, bound in zip(("Max", "Min"), _bounds(graph, clamp), strict=True) if bound is not None]
    value, end = product.outputs[0], clamp.outputs[0]
    for op, bound in steps:
        value = graph.add(op, [value, bound], name=f"{end.name}/{op.lower()}", before=clamp, like=end)
    if not steps:
        return False
    graph.absorb(clamp, value)
    return True


def _bounds(graph: Graph, clamp: Node) -> tuple[Value | None, Value | None]:
    """(lowest, highest) value that it leaves, as tensors; None where there is no bound."""
    if clamp.op_type == "Relu":
        return graph.constant(f"{clamp.outputs[0].name}/zero", np.zeros((), np.float32)), None
    low, high = (clamp.inputs[i] if i < len(clamp.inputs) else None for i in (1, 2))
    return low, high
