"""Fold constant Mul, Div, Add and Sub into the Conv, ConvTranspose, Gemm or MatMul beside them.

Behind:  c * y, y / c, y + c, y - c and c - y are y * f + s with f and s per output channel.
Before:  x * c and x / c scale the weight's input channels; x + c, x - c and c - x also add W s to the bias, which
         holds only for a Conv without padding (zeros padded after the shift would have to be c).

Preconditions: the weight is constant, nobody else reads what lies between the two nodes, and broadcasting the
constant leaves the activation's shape as it is. A MatMul has no bias, so an Add behind it stays an Add; further
constants behind fold into that Add. A factor on a product of two activations stays: it ends a GELU, a HardSwish or a
normalization, which backends fuse only as a whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.linear import linear_at, linear_before, per_input_channel, per_output_channel, scale_inputs, scale_outputs

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

    Array = npt.NDArray[Any]


def fold_affine(graph: Graph) -> int:
    """Fold constants behind linear nodes, then those before; return how many nodes went."""
    steps = [n for n in graph.nodes if n.op_type in ("Mul", "Div", "Add", "Sub") and n.domain in ("", "ai.onnx")]
    behind = {id(node) for node in steps if _fold_behind(graph, node)}
    # Backwards, so that of two steps before a convolution the nearer goes first and uncovers the other.
    return len(behind) + sum(_fold_before(graph, n) for n in reversed(steps) if id(n) not in behind)


def _fold_behind(graph: Graph, node: Node) -> bool:
    for x, constant, first in _operands(graph, node):
        linear = linear_before(graph, node, x)
        if linear is None:
            continue
        affine = _affine(node.op_type, per_output_channel(graph, linear, constant), constant_first=first)
        if affine is not None and scale_outputs(graph, linear, *affine):
            graph.absorb(node, x)
            if linear.bias_add is not None and linear.node.inputs[1] is not linear.weight:
                # The product alone now holds values that no tensor of the model had.
                graph.rename(linear.node.outputs[0], f"{linear.node.outputs[0].name}/scaled")
            return True
    return False


def _fold_before(graph: Graph, node: Node) -> bool:
    output = node.outputs[0]
    user = graph.only_user(output)
    linear = linear_at(graph, user)
    if user is None or linear is None or graph.users(output) != ((user, 0),):
        return False
    for x, constant, first in _operands(graph, node):
        affine = _affine(node.op_type, per_input_channel(graph, linear, constant, x), constant_first=first)
        if affine is not None and not _is_product(graph, x) and scale_inputs(graph, linear, *affine):
            graph.replace_uses(output, x)
            graph.remove(node)
            return True
    return False


def _operands(graph: Graph, node: Node) -> tuple[tuple[Value, Value, bool], ...]:
    """(activation, constant, whether the constant is the first operand), for the one order that fits, if any."""
    a, b = node.inputs
    if a is None or b is None or graph.is_const(a) == graph.is_const(b):
        return ()
    return ((b, a, True),) if graph.is_const(a) else ((a, b, False),)


def _affine(op_type: str, c: Array | None, *, constant_first: bool) -> tuple[Array, Array] | None:
    """Factor and shift of one arithmetic node with constant c; None for c / x, x / 0 and c not finite."""
    if c is None or not np.isfinite(c).all() or (op_type == "Div" and (constant_first or np.any(c == 0))):
        return None
    one, zero = np.ones_like(c), np.zeros_like(c)
    if op_type in ("Mul", "Div"):
        return (c if op_type == "Mul" else 1 / c), zero
    if op_type == "Add":
        return one, c
    return (-one, c) if constant_first else (one, -c)


def _is_product(graph: Graph, x: Value) -> bool:
    product = graph.producer(x, "Mul", "Div")
    return product is not None and not any(graph.is_const(v) for v in product.inputs)
