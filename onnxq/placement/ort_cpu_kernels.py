"""Which nodes ONNX Runtime's CPU provider replaces by an integer kernel, and why not the others.

The forms are those of its QDQ selectors (onnxruntime/core/optimizer/qdq_transformer/selectors_actions). What is
refused here would run in float behind its DequantizeLinear: slower than if it had never been quantized.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxq.patterns.pairs import arrives_quantized
from onnxq.placement.weighted import weight_of, why_float

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value
    from onnxq.targets.target import Target

FLOAT = "float32"
"""The type of all scales that the integer kernels take."""


def why_no_kernel(graph: Graph, node: Node, target: Target) -> str | None:
    """Why the provider would not run this node in integers; None when it would, with all that it touches quantized."""
    op = node.op_type
    if node.domain not in ("", "ai.onnx"):
        return NO_KERNEL
    if op not in {*target.weighted, *target.both_ends, *target.movers}:
        return AT_RUN_TIME if op == "LSTM" else NO_KERNEL
    reason = _why_surroundings(graph, node)
    if reason is not None:
        return reason
    return _why_weighted(graph, node, target) if op in target.weighted else _why_other(graph, node)


NO_KERNEL = "no integer kernel on the CPU provider"
AT_RUN_TIME = f"{NO_KERNEL} but DynamicQuantizeLSTM, which --mode dynamic takes"


def _why_surroundings(graph: Graph, node: Node) -> str | None:
    """What speaks against the node's inputs and readers, whatever it computes."""
    reads = [v for v in node.inputs[: _operands(node)] if v is not None and not graph.is_const(v)]
    if any(graph.dtype(v) != FLOAT for v in (*reads, node.outputs[0])):
        return NOT_FLOAT32
    if any(arrives_quantized(graph, v) for v in node.inputs):
        return "quantized in the model already"
    if any(v.is_graph_output() or graph.users(v) for v in node.outputs[1:]) and node.op_type != "Split":
        return "more than one output"
    if any(graph.in_body(user) for v in node.outputs for user, _ in graph.users(v)):
        return "read inside the body of a control flow node"
    return None


NOT_FLOAT32 = "not float32: integer kernels take float32 scales"


def is_product(graph: Graph, node: Node) -> bool:
    """Whether the node multiplies two activations."""
    return node.op_type == "MatMul" and not any(graph.is_const(v) for v in node.inputs)


def _operands(node: Node) -> int:
    """How many of the inputs are tensors that are computed with; the rest are shapes and the like."""
    if node.op_type == "Concat":
        return len(node.inputs)
    return 2 if node.op_type in ("Add", "Mul", "MatMul") else 1


def _why_weighted(graph: Graph, node: Node, target: Target) -> str | None:
    if node.op_type == "ConvTranspose":
        return NO_KERNEL
    if is_product(graph, node):
        return None
    reason = why_float(graph, node, target)
    weight = weight_of(graph, node, target)
    if reason is not None or weight is None:
        return reason
    if graph.dtype(weight.value) != FLOAT:
        return NOT_FLOAT32
    if node.op_type == "MatMul":
        return _why_no_matrices(graph.rank(node.inputs[0]), graph.rank(weight.value))
    return _why_bias(graph, node)


def _why_no_matrices(first: int | None, second: int | None) -> str | None:
    if first is None:
        return "the rank of its input is not known"
    return None if first >= 2 and second == 2 else "its operands are no matrices"


def _why_bias(graph: Graph, node: Node) -> str | None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not graph.is_const(bias):
        return "its bias is computed at run time"
    return _why_gemm(graph, node, bias) if node.op_type == "Gemm" else None


def _why_gemm(graph: Graph, node: Node, bias: Value | None) -> str | None:
    transposed = graph.attribute(node, "transB", 0)
    columns = (graph.shape(node.inputs[1]) or (None, None))[0 if transposed else 1]
    if bias is not None and (graph.size(bias) != columns or (graph.shape(bias) or (0,))[-1] != columns):
        return "its bias is not one value per column"
    if graph.attribute(node, "alpha", 1.0) != 1.0 or (bias is not None and graph.attribute(node, "beta", 1.0) != 1.0):
        return "its product is scaled (alpha, beta)"
    return None


def _why_other(graph: Graph, node: Node) -> str | None:
    op = node.op_type
    constants = [v for v in node.inputs[: _operands(node)] if graph.is_const(v)]
    if op in ("Add", "Mul") and any(_exact_scalar(graph, v) is None for v in constants):
        return "its constant operand would be rounded to 8 bits"
    if op not in ("Add", "Mul") and constants:
        return "reads a constant"
    if op == "Resize" and graph.attribute(node, "mode", "nearest") != "nearest":
        return f"a Resize of mode {graph.attribute(node, 'mode', 'nearest')} runs in float behind its pairs"
    if op == "AveragePool" and any(d != 1 for d in graph.attribute(node, "dilations", None) or ()):
        return "no integer kernel for dilated average pooling"
    return None


def _exact_scalar(graph: Graph, value: Value | None) -> float | None:
    """A scalar: on a grid made for it alone, 0 to 255 times its 255th part, it loses nothing."""
    found = graph.scalar(value)
    return found if found is not None and np.isfinite(found) and found != 0.0 else None
