"""P16 to P18: what the parser asks of convolutions, their biases and weights, and of MaxPool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.checks.finding import error, warning
from onnxq.checks.index import CONVS, differ, integer, integers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import NodeProto

    from onnxq.checks.finding import Breach
    from onnxq.checks.index import Model


def bias_float(model: Model) -> Iterator[Breach]:
    """A bias is float, and that of a convolution a vector of one value per output channel."""
    for node in model.op(*CONVS, "Gemm"):
        if len(node.input) < 3 or not node.input[2]:
            continue
        name = node.input[2]
        if model.dequantizer(name) is not None:
            yield error(node, f"bias {name} is quantized, TensorRT wants it float")
        bias, weight = model.shapes.get(name), model.shapes.get(node.input[1])
        if node.op_type not in CONVS or bias is None or not weight:
            continue
        channels = _output_channels(node, weight)
        if len(bias) != 1 or differ(bias[0], channels):
            yield error(node, f"bias {name} has shape {bias}, not ({channels},)")


def _output_channels(node: NodeProto, weight: tuple[int | None, ...]) -> int | None:
    """O of a Conv weight [O, I/g, ...] or a ConvTranspose weight [I, O/g, ...]."""
    if node.op_type == "Conv" or len(weight) < 2 or weight[1] is None:
        return weight[0] if node.op_type == "Conv" else None
    return weight[1] * integer(node, "group", 1)


def conv_weight(model: Model) -> Iterator[Breach]:
    """A convolution's weight is constant (W), of rank 3 to 5, and as its kernel_shape says."""
    for node in model.op(*CONVS):
        name = node.input[1]
        if not model.constant(name):
            yield warning(node, f"weight {name} is not a constant: not an int8 convolution")
        dims, kernel = model.shapes.get(name), integers(node, "kernel_shape")
        if dims is not None and not 3 <= len(dims) <= 5:
            yield error(node, f"weight {name} has rank {len(dims)}, not 3 to 5")
        elif dims is not None and kernel and None not in dims and kernel != dims[2:]:
            yield error(node, f"kernel_shape {kernel}, but weight {name} is {dims}")


def no_pool_indices(model: Model) -> Iterator[Breach]:
    """The indices that MaxPool can return are not read."""
    for node in model.op("MaxPool"):
        name = (*node.output, "", "")[1]
        if name and (name in model.outputs or model.users.get(name)):
            yield error(node, f"MaxPool indices {name} are used")
