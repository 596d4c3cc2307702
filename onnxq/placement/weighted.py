"""The operators with weights: where their weight is, along which axis it is quantized, and why one stays in float."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from onnxq.operators import RECURRENT
from onnxq.patterns.pairs import arrives_quantized
from onnxq.work import convolution, product, recurrent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxq.graph import Dim, Graph, Node, Value
    from onnxq.targets.target import Target

FLOAT_TYPES = ("float32", "float16")


def unquantizable(graph: Graph, node: Node) -> str:
    """Why no type that the node writes can be quantized; empty where one can, or is unknown."""
    kinds = [graph.dtype(value) for value in node.outputs]
    if any(kind is None or kind in FLOAT_TYPES for kind in kinds):
        return ""
    wide = next((kind for kind in kinds if kind in ("float64", "bfloat16")), None)
    return "not floating point" if wide is None else f"{wide}; only float32 and float16 are quantized"


@dataclass(frozen=True)
class Weight:
    """The constant operand of a weighted node: its value, input index and output-channel axis."""

    value: Value
    index: int
    axis: int | None


def weight_of(graph: Graph, node: Node, target: Target) -> Weight | None:
    """The node's weight when it is a plain constant, else None.

    Axis of the output channels in the stored layout: Conv [O, I/g, ...] 0; ConvTranspose [I, O/g, ...] 1, but none
    with groups, where O scales cannot lie along an axis of O/g; Gemm [K, N] 1 or, with transB, [N, K] 0;
    MatMul [..., K, N] the last, but none of a vector [K], which has no output channels.
    """
    index = target.weighted[node.op_type]
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or not graph.is_const(value):
        return None
    rank = graph.rank(value) or 0
    axes = {
        "Conv": 0,
        "ConvTranspose": 1 if group_of(graph, node) == 1 and target.deconv_per_channel else None,
        "Gemm": 0 if graph.attribute(node, "transB", 0) else 1,
        "MatMul": rank - 1 if rank > 1 else None,
    }
    return Weight(value, index, axes.get(node.op_type))


def group_of(graph: Graph, node: Node) -> int:
    """Number of groups of a convolution."""
    return int(graph.attribute(node, "group", 1))


def is_quantized_already(graph: Graph, node: Node, target: Target) -> bool:
    """Whether both the input and the weight arrive through DequantizeLinear."""
    index = target.weighted[node.op_type]
    return all(i < len(node.inputs) and arrives_quantized(graph, node.inputs[i]) for i in (0, index))


def keeps_weight(graph: Graph, node: Node, target: Target) -> bool:
    """Whether the model stores the node's weight in int8 already, with scales that are constant and no blocks."""
    index = target.weighted[node.op_type]
    dequantize = graph.producer(node.inputs[index], "DequantizeLinear") if index < len(node.inputs) else None
    if dequantize is None or graph.dtype(dequantize.inputs[0]) != "int8":
        return False
    constant = all(graph.is_const(v) for v in dequantize.inputs)
    return constant and not graph.attribute(dequantize, "block_size", 0)


def input_site(graph: Graph, node: Node) -> tuple[Node, int]:
    """(node, input index) where a weighted node's activation is quantized.

    That is its first input; behind a zero Pad it is the Pad's, so that the Pad can fold into the convolution.
    """
    pad = graph.producer(node.inputs[0], "Pad")
    if pad is None or node.op_type != "Conv" or graph.only_user(pad.outputs[0]) is not node:
        return node, 0
    zero = len(pad.inputs) < 3 or pad.inputs[2] is None or graph.scalar(pad.inputs[2]) == 0.0
    constant = graph.attribute(pad, "mode", "constant") == "constant"
    return (pad, 0) if zero and constant else (node, 0)


def why_float(graph: Graph, node: Node, target: Target) -> str | None:
    """Why the target would not run this weighted node in int8; None when it would."""
    weight = weight_of(graph, node, target)
    if weight is None:
        return _why_no_weight(graph, node, target)
    if (reason := _why_input(graph, node)) is not None:
        return reason
    kind = graph.dtype(weight.value)
    if kind not in FLOAT_TYPES:
        return f"its weight is {kind}, only float32 and float16 are quantized"
    array = graph.const(weight.value)
    if array is None or array.size == 0:
        return "its weight is empty"
    if not np.isfinite(array.min()) or not np.isfinite(array.max()):
        return "its weight holds NaN or infinity"
    return None


def _why_input(graph: Graph, node: Node) -> str | None:
    if graph.is_const(node.inputs[0]):
        return "its input is a constant"
    if gathers_columns(graph, node.inputs[0]):
        return "outlier columns, multiplied in float beside the int8 product"
    return None


def gathers_columns(graph: Graph, value: Value | None) -> bool:
    """Whether the value holds a few columns of another tensor, as LLM.int8() takes outliers apart."""
    node = graph.producer(value, "Gather")
    if node is None or node.inputs[0] is None or not graph.is_const(node.inputs[1]) or graph.is_const(node.inputs[0]):
        return False
    rank = graph.rank(node.inputs[0])
    last = graph.attribute(node, "axis", 0) in (-1, None if rank is None else rank - 1)
    whole = (graph.shape(node.inputs[0]) or (None,))[-1]
    few = graph.size(node.inputs[1]) or 0
    return last and graph.rank(node.inputs[1]) == 1 and isinstance(whole, int) and few * 8 <= whole


def why_small(graph: Graph, node: Node, target: Target) -> str | None:
    """Why int8 does not pay for this node (a rule may say otherwise); None when it does.

    The limits are those of NVIDIA's ModelOpt (`find_nodes_from_convs_to_exclude`,
    `find_nodes_from_matmul_to_exclude`) and of NvInfer.h for groups; they are limits of GPUs, not of a DLA.
    """
    weight = weight_of(graph, node, target)
    shape = graph.shape(weight.value) if weight is not None else None
    if shape is None or target.every_tensor:
        return None
    dims = [int(d) for d in shape if isinstance(d, int)]
    if node.op_type == "Conv":
        groups = group_of(graph, node)
        reason = _why_small_groups(groups, dims[1], dims[0] // groups, target)
        return reason or _why_small_conv(graph, node, dims, target)
    if node.op_type == "ConvTranspose":
        groups = group_of(graph, node)
        fewest = min(dims[0], dims[1] * groups)
        if fewest < target.min_channels:
            return f"{fewest} channels, fewer than {target.min_channels}"
        return _why_small_groups(groups, dims[0] // groups, dims[1], target)
    return _why_small_matmul(graph, node, dims, target)


def macs(graph: Graph, node: Node, target: Target, shapes: Mapping[str, Sequence[int]] = MappingProxyType({})) -> int:
    """Multiply-accumulates of one run; unknown dimensions and ranks count as 1. `shapes` wins over the graph."""
    if node.op_type in RECURRENT and not node.domain:
        return _recurrent_macs(graph, node, shapes)
    index = target.weighted.get(node.op_type)
    if index is None or index >= len(node.inputs):
        return 0
    second = node.inputs[index]
    while (dequantize := graph.producer(second, "DequantizeLinear", "QuantizeLinear")) is not None:
        second = dequantize.inputs[0]
    sized = node.inputs[0] if node.op_type == "ConvTranspose" else node.outputs[0]
    weight, out = graph.shape(second), None if sized is None else shapes.get(str(sized.name), graph.shape(sized))
    if weight is None or len(weight) < 1:
        return 0
    if node.op_type in ("Conv", "ConvTranspose"):
        return convolution(weight, out)
    return product(weight, out, transposed=node.op_type == "Gemm" and bool(graph.attribute(node, "transB", 0)))


def _recurrent_macs(graph: Graph, node: Node, shapes: Mapping[str, Sequence[int]]) -> int:
    source, *weights = node.inputs[:3]
    read = None if source is None else shapes.get(str(source.name), graph.shape(source))
    return recurrent(read, [(graph.size(w) or 0,) for w in weights if w is not None])


def _why_no_weight(graph: Graph, node: Node, target: Target) -> str:
    index = target.weighted[node.op_type]
    second = node.inputs[index] if index < len(node.inputs) else None
    if arrives_quantized(graph, second):
        return "its weight is quantized in the model already, its input is not"
    if node.op_type in ("MatMul", "Gemm"):
        if graph.is_const(node.inputs[0]):
            return "its constant comes first; int8 kernels want the weight as second operand"
        return "product of two activations"
    return "its weight is computed at run time"


def _why_small_conv(graph: Graph, node: Node, dims: list[int], target: Target) -> str | None:
    out_channels, in_channels, kernel = dims[0], dims[1], dims[2:]
    groups = group_of(graph, node)
    least = target.min_channels
    if out_channels >= least and in_channels >= least:
        return None
    if groups > 1:
        if out_channels % 8:
            return f"grouped, with {out_channels} output channels: no multiple of 8"
        return None if all(k >= 3 for k in kernel) else f"grouped, with a kernel of {'x'.join(map(str, kernel))}"
    aligned = out_channels % 8 == 0 or in_channels % 8 == 0
    first = any(node.inputs[0] is v for v in graph.inputs)
    wide = first or out_channels >= least or in_channels >= least
    if aligned and wide and len(set(kernel)) <= 1:
        return None
    return f"{in_channels} to {out_channels} channels with a kernel of {'x'.join(map(str, kernel))}: too small for int8"


def _why_small_groups(groups: int, reads: int, makes: int, target: Target) -> str | None:
    """reads, makes: input and output channels of one group. Depthwise convolutions have kernels of their own."""
    if groups == 1 or reads == 1 or not (reads % target.group_multiple or makes % target.group_multiple):
        return None
    return f"grouped, with {reads} and {makes} channels a group: no multiple of {target.group_multiple}"


def _why_small_matmul(graph: Graph, node: Node, dims: list[int], target: Target) -> str | None:
    if len(dims) < 2:
        return "matrix times vector"
    transposed = node.op_type == "Gemm" and graph.attribute(node, "transB", 0)
    k, n = (dims[1], dims[0]) if transposed else (dims[-2], dims[-1])
    if min(k, n) < target.min_channels:
        return f"a {k}x{n} weight, smaller than {target.min_channels}"
    out = graph.shape(node.outputs[0]) or ()
    alone = out[-2:] if any(d != 1 for d in dims[:-2]) else out  # else the rows of the batch read one weight
    return "matrix times vector: one row" if _rows(alone) == 1 else None


def _rows(shape: tuple[Dim, ...] | None) -> int | None:
    """Rows of a matrix product's output, batch dimensions included, where known."""
    if not shape or any(not isinstance(d, int) for d in shape[:-1]):
        return None
    return prod(int(d) for d in shape[:-1] if isinstance(d, int))
