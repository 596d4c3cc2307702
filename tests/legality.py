"""The static rules of TensorRT's explicit quantization, P1 to P28, over an ONNX model that nothing has built.

Severity E: the parser or the builder refuses the model; W: it takes it, but int8 or a fusion is lost; I: good
to know. Weights are never read, only scales and zero points. Where shape inference does not know a shape,
no rule speaks about it. The rules assume a valid ONNX graph: sorted, and without cycles.

Source: NVIDIA's explicit-quantization guide, NvInfer.h and the open-source ONNX parser.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import onnx.checker
import onnx.inliner
import onnx.shape_inference
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Q, DQ = "QuantizeLinear", "DequantizeLinear"
# They move values and compute none, so a scale holds on both sides; Pad too, as zero stays zero.
COPIES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split"})
COPIES |= {"Gather", "Expand", "Tile", "MaxPool", "Cast", "Pad"}
INTEGER_COPIES = COPIES - {"Cast"}  # a Cast of an integer to float is no DequantizeLinear
CONVS = frozenset({"Conv", "ConvTranspose"})
WEIGHTED = CONVS | {"Gemm", "MatMul"}
# What TensorRT fuses behind a convolution; the gates only together with the Mul of SiLU and HardSwish.
ACTIVATIONS = frozenset({"BatchNormalization", "Relu", "Clip", "LeakyRelu", "HardSwish"})
GATES = frozenset({"Sigmoid", "HardSigmoid"})
ONE_TYPE = WEIGHTED | {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Concat", "PRelu"}
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16})
FOUR_BITS = frozenset({TensorProto.INT4, TensorProto.FLOAT4E2M1})
QTYPES = FOUR_BITS | {TensorProto.INT8, TensorProto.FLOAT8E4M3FN}
SMALLEST_NORMAL: Mapping[int, float] = {
    TensorProto.FLOAT: 2.0**-126,
    TensorProto.FLOAT16: 2.0**-14,
    TensorProto.BFLOAT16: 2.0**-126,
}
SMALL = 1024  # elements; shape inference reads the values of small constants only (axes, target shapes)


@dataclass(frozen=True)
class Finding:
    """One breach: the rule's id, its severity, the node or tensor it is about, and what is wrong there."""

    rule: str
    severity: Literal["E", "W", "I"]
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule} {self.severity} {self.where}: {self.message}"


@dataclass(frozen=True, eq=False)
class Model:
    """One graph (the main one or a subgraph body) indexed by tensor name; a body also sees what surrounds it.

    `users` counts readers in nested bodies too; `shapes` holds None for a dimension that is not a number.
    """

    nodes: tuple[NodeProto, ...]
    opset: int
    base_dir: str
    constants: Mapping[str, TensorProto]
    producers: Mapping[str, NodeProto]
    users: Mapping[str, tuple[NodeProto, ...]]
    inputs: frozenset[str]
    outputs: frozenset[str]
    shapes: Mapping[str, tuple[int | None, ...]]
    types: Mapping[str, int]

    @property
    def pairs(self) -> Iterator[NodeProto]:
        """The Q and DQ nodes that have at least the two inputs that every rule after P1 needs."""
        return (n for n in self.nodes if is_qdq(n) and len(n.input) > 1)

    def op(self, *ops: str) -> Iterator[NodeProto]:
        """The ONNX-domain nodes of these types with an input, in graph order."""
        return (n for n in self.nodes if n.op_type in ops and is_onnx(n) and n.input)

    def array(self, name: str) -> np.ndarray | None:
        """The value of a constant, None when the tensor is not one; ValueError when its file is not there."""
        tensor = self.constants.get(name)
        if tensor is None:
            return None
        try:
            return numpy_helper.to_array(tensor, self.base_dir)
        except (OSError, onnx.checker.ValidationError) as error:
            raise ValueError(f"data of {name!r} not found; pass its folder as base_dir") from error

    def origin(self, name: str, through: frozenset[str] = COPIES) -> str:
        """The tensor that `name` is made from, walking up the first inputs of the `through` ops."""
        while (node := self.producers.get(name)) and node.op_type in through:
            name = node.input[0]
        return name

    def constant(self, name: str) -> bool:
        """Whether a tensor is a constant, possibly moved, cast, quantized or dequantized."""
        return self.origin(name, COPIES | {Q, DQ}) in self.constants

    def dequantizer(self, name: str) -> NodeProto | None:
        """The DQ whose values a tensor carries; for a Concat of dequantized tensors, that of the first."""
        node = self.producers.get(self.origin(name))
        if node is None or node.op_type == DQ:
            return node
        if node.op_type == "Concat":
            parts = [self.dequantizer(part) for part in node.input]
            return None if None in parts else parts[0]
        return None

    def spread(self, name: str, through: frozenset[str] = COPIES) -> Iterator[str]:
        """The tensor and all copies of it downstream."""
        yield name
        for user in self.users.get(name, ()):
            if user.op_type in through and user.input[0] == name:
                for copy in user.output:
                    yield from self.spread(copy, through)

    def readers(self, name: str, through: frozenset[str] = COPIES) -> list[NodeProto]:
        """The nodes that read the tensor or a copy of it, the copying nodes themselves left out."""
        found = (user for tensor in self.spread(name, through) for user in self.users.get(tensor, ()))
        return [user for user in found if user.op_type not in through]

    def read_only_by(self, name: str, *ops: str) -> bool:
        """Whether a tensor has readers, all of these types, and is no graph output."""
        users = self.users.get(name, ())
        return bool(users) and name not in self.outputs and all(user.op_type in ops for user in users)

    def before_pair(self, name: str) -> str:
        """What a Q/DQ pair quantizes when `name` is its output, else `name`."""
        node = self.producers.get(name)
        if node is None or node.op_type != DQ:
            return name
        quantizer = self.producers.get(node.input[0])
        return quantizer.input[0] if quantizer is not None and quantizer.op_type == Q else name

    def linear(self, name: str, ops: frozenset[str]) -> NodeProto | None:
        """The node among `ops` that makes a tensor, directly or through its batch norm and bias Add."""
        node = self.producers.get(name)
        while node is not None and node.op_type not in ops:
            node = self.producers.get(self._normed(node))
        return node

    def _normed(self, node: NodeProto) -> str:
        if node.op_type == "BatchNormalization":
            return str(node.input[0])
        if node.op_type == "Add" and any(map(self.constant, node.input)):
            return next((name for name in node.input if not self.constant(name)), "")
        return ""


def is_onnx(node: NodeProto) -> bool:
    """Whether a node is an ONNX operator and not one of a custom domain."""
    return node.domain in ("", "ai.onnx")


def is_qdq(node: NodeProto) -> bool:
    """Whether a node is ONNX's QuantizeLinear or DequantizeLinear."""
    return node.op_type in (Q, DQ) and is_onnx(node)


def label(node: NodeProto) -> str:
    """What a message calls a node: its name, or its first output when it has none."""
    return node.name or next(iter(node.output), node.op_type)


def integer(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node, or its default."""
    return next((a.i for a in node.attribute if a.name == name), default)


def integers(node: NodeProto, name: str) -> tuple[int, ...]:
    """A list attribute of a node, empty when absent."""
    return next((tuple(a.ints) for a in node.attribute if a.name == name), ())


def type_name(dtype: int | None) -> str:
    """The ONNX name of an element type."""
    return "an unknown type" if dtype is None else TensorProto.DataType.Name(dtype)


def zero_point(node: NodeProto) -> str:
    """The name of a Q's or DQ's zero point, empty when absent."""
    return node.input[2] if len(node.input) > 2 else ""


def qtype(model: Model, node: NodeProto) -> int | None:
    """The type on the integer side of a Q or DQ; None when nothing in the node says it."""
    if name := zero_point(node):
        return model.types.get(name)
    return integer(node, "output_dtype", 0) or None if node.op_type == Q else model.types.get(node.input[0])


def differ(one: int | None, other: int | None) -> bool:
    """Whether two dimensions are both known and not equal."""
    return one is not None and other is not None and one != other


def is_vector(model: Model, node: NodeProto) -> bool:
    """Whether a Q or DQ is per channel: a scale of rank 1 with more than one element."""
    dims = model.shapes.get(node.input[1], ())
    return len(dims) == 1 and dims != (1,)


def blocks(model: Model, node: NodeProto) -> tuple[tuple[int | None, ...], tuple[int | None, ...]] | None:
    """Shapes of data and scale when the scale is one of blocks: several elements and the data's rank."""
    data, scale = model.shapes.get(node.input[0], ()), model.shapes.get(node.input[1], ())
    return (data, scale) if is_grid(scale) and len(data) == len(scale) else None


def is_grid(dims: tuple[int | None, ...]) -> bool:
    """Whether a scale's shape has more than one axis and more than one element."""
    return len(dims) > 1 and any(dim != 1 for dim in dims)


def error(rule: str, node: NodeProto, message: str) -> Finding:
    """The parser or the builder refuses it."""
    return Finding(rule, "E", label(node), message)


def warning(rule: str, node: NodeProto, message: str) -> Finding:
    """It builds, but int8 or a fusion is lost."""
    return Finding(rule, "W", label(node), message)


def note(rule: str, node: NodeProto, message: str) -> Finding:
    """Worth knowing."""
    return Finding(rule, "I", label(node), message)


def p1_two_inputs(model: Model) -> Iterator[Finding]:
    """Q and DQ have data and a scale."""
    for node in model.nodes:
        if is_qdq(node) and len(node.input) < 2:
            yield error("P1", node, f"{node.op_type} has {len(node.input)} input, needs data and scale")


def p2_scale_constant(model: Model) -> Iterator[Finding]:
    """A scale is an initializer or Constant, not empty, float32, float16 or bfloat16."""
    for node in model.pairs:
        tensor = model.constants.get(node.input[1])
        if tensor is None:
            yield error("P2", node, f"scale {node.input[1]} is not a constant")
        elif not prod(tensor.dims):
            yield error("P2", node, f"scale {tensor.name} is empty")
        elif tensor.data_type not in FLOATS:
            yield error("P2", node, f"scale {tensor.name} is {type_name(tensor.data_type)}")


def p3_scale_positive(model: Model) -> Iterator[Finding]:
    """Every scale is positive and finite (E), and not below the smallest normal number of its type (W)."""
    for node in model.pairs:
        tensor = model.constants.get(node.input[1])
        if tensor is None or tensor.data_type not in FLOATS:
            continue
        scale = np.asarray(model.array(node.input[1])).astype(np.float64)
        smallest = SMALLEST_NORMAL[tensor.data_type]
        if not (np.isfinite(scale) & (scale > 0)).all():
            yield error("P3", node, f"scale {tensor.name} is not positive and finite everywhere")
        elif (scale < smallest).any():
            yield warning("P3", node, f"scale {tensor.name} goes below {smallest:.3g}, the least normal")


def p4_zero_point_zero(model: Model) -> Iterator[Finding]:
    """A zero point is a constant (Cast and Identity may follow it) of zeros."""
    for node in model.pairs:
        if name := zero_point(node):
            values = model.array(model.origin(name, frozenset({"Cast", "Identity"})))
            if values is None:
                yield error("P4", node, f"zero point {name} is not a constant")
            elif values.astype(np.float64).any():
                yield error("P4", node, f"zero point {name} is not zero: TensorRT is symmetric only")


def p5_type(model: Model) -> Iterator[Finding]:
    """The quantized type is int8, float8e4m3fn, int4 or float4e2m1."""
    for node in model.pairs:
        dtype = qtype(model, node)
        if dtype is not None and dtype not in QTYPES:
            yield error("P5", node, f"{node.op_type} of {type_name(dtype)}; TensorRT takes INT8")


def p6_type_written(model: Model) -> Iterator[Finding]:
    """A Q says its type: without zero point and output_dtype ONNX means uint8 and TensorRT int8."""
    for node in model.pairs:
        if node.op_type == Q and not zero_point(node) and not integer(node, "output_dtype", 0):
            yield warning("P6", node, "no zero point: UINT8 for ONNX, INT8 for TensorRT")


def p7_parameters_agree(model: Model) -> Iterator[Finding]:
    """Zero point and scale have equally many elements; the types of Q, zero point and DQ are one."""
    for node in model.pairs:
        if not (name := zero_point(node)):
            continue
        scale, zero = model.constants.get(node.input[1]), model.constants.get(name)
        if scale is not None and zero is not None and prod(scale.dims) != prod(zero.dims):
            sizes = f"{prod(scale.dims)} scales, {prod(zero.dims)} zero points"
            yield error("P7", node, sizes)
        said = integer(node, "output_dtype", 0) if node.op_type == Q else model.types.get(node.input[0], 0)
        if said and said != model.types.get(name, said):
            types = f"zero point {name} is {type_name(model.types[name])}, quantized data {type_name(said)}"
            yield error("P7", node, types)


def p8_axis(model: Model) -> Iterator[Finding]:
    """A scale of several elements is a vector along a written, existing axis, or has the data's rank."""
    for node in model.pairs:
        data, scale = model.shapes.get(node.input[0]), model.shapes.get(node.input[1], ())
        if is_vector(model, node):
            # TensorRT before 10.2 reads an absent axis as 0, ONNX as 1.
            if not any(a.name == "axis" for a in node.attribute):
                yield error("P8", node, "per-channel scale without a written axis")
            axis = integer(node, "axis", 1)
            if data is not None and not -len(data) <= axis < len(data):
                yield error("P8", node, f"axis {axis} does not exist in rank {len(data)}")
            elif data is not None and differ(data[axis], scale[0]):
                yield error("P8", node, f"{scale[0]} scales for {data[axis]} channels on axis {axis}")
        elif data is not None and is_grid(scale) and len(data) != len(scale):
            yield error("P8", node, f"scale of rank {len(scale)} for data of rank {len(data)}")


def p9_blocks(model: Model) -> Iterator[Finding]:
    """A block scale divides exactly one dimension, the last or the one before, into whole blocks."""
    for node in model.pairs:
        found = blocks(model, node)
        if found is None or None in found[0] + found[1]:
            continue
        data, scale = ([dim or 0 for dim in dims] for dims in found)
        axes = [axis for axis, (dim, count) in enumerate(zip(data, scale, strict=True)) if dim != count]
        if len(axes) != 1:
            yield error("P9", node, f"{len(axes)} blocked dimensions, one is allowed")
        elif axes[0] < len(data) - 2:
            yield error("P9", node, f"blocked on axis {axes[0]}, not one of the last two")
        elif not scale[axes[0]] or data[axes[0]] % scale[axes[0]]:
            yield error("P9", node, f"{data[axes[0]]} values in {scale[axes[0]]} blocks")


def p10_vector_on_constant(model: Model) -> Iterator[Finding]:
    """Only constants are quantized per channel."""
    for node in model.pairs:
        several = is_vector(model, node) or blocks(model, node) is not None
        if several and not model.constant(node.input[0]):
            yield error("P10", node, f"{node.input[0]} is an activation, its scale must be per tensor")


def p11_output_channel_axis(model: Model) -> Iterator[Finding]:
    """A per-channel weight is scaled along its consumer's output channels."""
    for node in model.pairs:
        rank = len(model.shapes.get(node.input[0], ()))
        if rank and is_vector(model, node) and model.constant(node.input[0]):
            for user, slot, axis in _landings(model, node.output[0], integer(node, "axis", 1) % rank):
                wanted = _channel_axis(model, user, slot, rank)
                if wanted is not None and wanted != axis:
                    should = f"axis {wanted}" if wanted >= 0 else "a per-tensor scale"
                    yield error("P11", node, f"axis {axis}; {user.op_type} {label(user)} needs {should}")


def _landings(model: Model, name: str, axis: int) -> Iterator[tuple[NodeProto, int, int]]:
    """Weighted readers of a tensor, the input slot, and where its axis has gone through Transposes."""
    for user in model.users.get(name, ()):
        if user.op_type in WEIGHTED:
            yield user, list(user.input).index(name), axis
        elif user.op_type == "Transpose":
            order = integers(user, "perm") or tuple(reversed(range(len(model.shapes.get(name, ())))))
            if axis in order:
                yield from _landings(model, user.output[0], order.index(axis))
        elif user.op_type in (Q, DQ, "Identity", "Cast") and user.input[0] == name:
            yield from _landings(model, user.output[0], axis)


def _channel_axis(model: Model, node: NodeProto, slot: int, rank: int) -> int | None:
    """Output-channel axis of a weight; -1 when no axis holds all channels, None when it is no weight."""
    if node.op_type == "MatMul":
        other = node.input[1 - slot]
        return None if model.constant(other) else rank - 1 if slot else rank - 2
    if slot != 1:
        return None
    if node.op_type == "ConvTranspose":  # weight [I, O/g, ...]: O scales fit no axis of it when g > 1
        return 1 if integer(node, "group", 1) == 1 else -1
    return 0 if node.op_type == "Conv" or integer(node, "transB", 0) else 1


def p12_even_count(model: Model) -> Iterator[Finding]:
    """Four-bit tensors have an even number of elements (E); older parsers want an even last dimension (W)."""
    for node in model.pairs:
        dims = model.shapes.get(node.input[0], (None,))
        known = [dim for dim in dims if dim is not None]
        if qtype(model, node) not in FOUR_BITS or len(known) < len(dims):
            continue
        if prod(known) % 2:
            yield error("P12", node, f"{prod(known)} four-bit values, an even number is needed")
        elif known and known[-1] % 2:
            yield warning("P12", node, f"last dimension {known[-1]} is odd: TensorRT 10.1 refuses it")


def p13_opset(model: Model) -> Iterator[Finding]:
    """The opset knows what the Q/DQ nodes use."""
    for node in model.pairs:
        dtype, scale = qtype(model, node), model.types.get(node.input[1])
        needs = [
            (13, "a per-channel scale", is_vector(model, node)),
            (19, f"a {type_name(scale)} scale", scale in FLOATS - {TensorProto.FLOAT}),
            (19, "float8", dtype == TensorProto.FLOAT8E4M3FN),
            (21, "a block scale", blocks(model, node) is not None),
            (21, "int4", dtype == TensorProto.INT4),
            (23, "float4", dtype == TensorProto.FLOAT4E2M1),
        ]
        for opset, what, used in needs:
            if used and model.opset < opset:
                yield error("P13", node, f"{what} needs opset {opset}, the model has {model.opset}")


def p14_float_types(model: Model) -> Iterator[Finding]:
    """Types are strong: a half scale quantizes its own type only, and one node reads one float type."""
    for node in model.op(Q):
        data, scale = model.types.get(node.input[0]), model.types.get((*node.input, "")[1])
        if scale in FLOATS - {TensorProto.FLOAT} and data in FLOATS - {scale}:
            yield error("P14", node, f"{type_name(data)} data, {type_name(scale)} scale")
    for node in model.op(*ONE_TYPE):
        found = {dtype for name in node.input if (dtype := model.types.get(name)) in FLOATS}
        if len(found) > 1:
            mix = " and ".join(sorted(map(type_name, found)))
            yield error("P14", node, f"{node.op_type} reads {mix}: a Cast is missing")


def p15_no_integer_operators(model: Model) -> Iterator[Finding]:
    """Quantization is written as Q/DQ, not with integer operators."""
    refused = ("QLinear", "ConvInteger", "MatMulInteger", "DynamicQuantize")
    contrib = (*refused, Q, DQ, "QAttention", "QGemm", "QEmbed", "QOrdered", "QMoE", "MatMulNBits")
    for node in model.nodes:
        contributed = node.domain == "com.microsoft" and node.op_type.startswith(contrib)
        if contributed or (is_onnx(node) and node.op_type.startswith(refused)):
            yield error("P15", node, f"TensorRT has no {node.op_type}")


def p16_bias_float(model: Model) -> Iterator[Finding]:
    """A bias is float, and that of a convolution a vector of one value per output channel."""
    for node in model.op(*CONVS, "Gemm"):
        if len(node.input) < 3 or not node.input[2]:
            continue
        name = node.input[2]
        if model.dequantizer(name) is not None:
            yield error("P16", node, f"bias {name} is quantized, TensorRT wants it float")
        bias, weight = model.shapes.get(name), model.shapes.get(node.input[1])
        if node.op_type not in CONVS or bias is None or not weight:
            continue
        channels = _output_channels(node, weight)
        if len(bias) != 1 or differ(bias[0], channels):
            yield error("P16", node, f"bias {name} has shape {bias}, not ({channels},)")


def _output_channels(node: NodeProto, weight: tuple[int | None, ...]) -> int | None:
    """O of a Conv weight [O, I/g, ...] or a ConvTranspose weight [I, O/g, ...]."""
    if node.op_type == "Conv" or len(weight) < 2 or weight[1] is None:
        return weight[0] if node.op_type == "Conv" else None
    return weight[1] * integer(node, "group", 1)


def p17_conv_weight(model: Model) -> Iterator[Finding]:
    """A convolution's weight is constant (W), of rank 3 to 5, and as its kernel_shape says."""
    for node in model.op(*CONVS):
        name = node.input[1]
        if not model.constant(name):
            yield warning("P17", node, f"weight {name} is not a constant: not an int8 convolution")
        dims, kernel = model.shapes.get(name), integers(node, "kernel_shape")
        if dims is not None and not 3 <= len(dims) <= 5:
            yield error("P17", node, f"weight {name} has rank {len(dims)}, not 3 to 5")
        elif dims is not None and kernel and None not in dims and kernel != dims[2:]:
            yield error("P17", node, f"kernel_shape {kernel}, but weight {name} is {dims}")


def p18_no_pool_indices(model: Model) -> Iterator[Finding]:
    """The indices that MaxPool can return are not read."""
    for node in model.op("MaxPool"):
        name = (*node.output, "", "")[1]
        if name and (name in model.outputs or model.users.get(name)):
            yield error("P18", node, f"MaxPool indices {name} are used")


def p19_pairs_whole(model: Model) -> Iterator[Finding]:
    """A Q goes to DQs, a DQ comes from a Q or a constant (W); int8 graph inputs and outputs are known (I)."""
    for node in model.pairs:
        yield from _dangling_q(model, node) if node.op_type == Q else _dangling_dq(model, node)


def _dangling_q(model: Model, node: NodeProto) -> Iterator[Finding]:
    readers = model.readers(node.output[0], INTEGER_COPIES)
    is_output = any(name in model.outputs for name in model.spread(node.output[0], INTEGER_COPIES))
    if is_output:
        yield note("P19", node, "quantized graph output")
    if not all(reader.op_type == DQ for reader in readers) or not (readers or is_output):
        yield warning("P19", node, "QuantizeLinear without a DequantizeLinear after it")


def _dangling_dq(model: Model, node: NodeProto) -> Iterator[Finding]:
    origin = model.origin(node.input[0], INTEGER_COPIES)
    maker = model.producers.get(origin)
    if origin in model.inputs and not model.constant(origin):
        yield note("P19", node, f"quantized graph input {origin}")
    elif not model.constant(origin) and (maker is None or maker.op_type != Q):
        yield warning("P19", node, "DequantizeLinear without a QuantizeLinear before it")


def p20_both_operands(model: Model) -> Iterator[Finding]:
    """A weighted op has both operands quantized or none; four-bit weights may stand alone."""
    for node in model.op(*WEIGHTED):
        makers = [model.dequantizer(name) for name in node.input[:2]]
        found = [maker for maker in makers if maker is not None]
        if len(found) == 1 and qtype(model, found[0]) not in FOUR_BITS:
            lone = node.input[0] if makers[0] is None else node.input[1]
            yield warning("P20", node, f"{lone} is not quantized, so {node.op_type} runs in float")


def p21_fusion_whole(model: Model) -> Iterator[Finding]:
    """No Q/DQ between a convolution or Gemm and the batch norm or activation that would fuse with it."""
    for node in model.op(Q):
        behind = [user for dq in model.users.get(node.output[0], ()) for user in _users_of_output(model, dq)]
        for user in behind:
            if _splits(model, node.input[0], user, behind):
                yield warning("P21", node, f"stands before {user.op_type} {label(user)}: fusion is lost")


def _users_of_output(model: Model, node: NodeProto) -> tuple[NodeProto, ...]:
    return model.users.get(node.output[0], ()) if node.op_type == DQ else ()


def _splits(model: Model, name: str, user: NodeProto, behind: list[NodeProto]) -> bool:
    """Whether the pair on tensor `name`, read behind it by `user` among others, cuts a fusion."""
    gate = model.producers.get(name)
    if gate is not None and gate.op_type in GATES:  # x -> Sigmoid -> Q/DQ -> Mul(x)
        start = model.before_pair(gate.input[0])
        gated = user.op_type == "Mul" and start in map(model.before_pair, user.input)
        return gated and model.linear(start, CONVS | {"Gemm"}) is not None
    if not model.read_only_by(name, Q) or model.linear(name, CONVS | {"Gemm"}) is None:
        return False
    if user.op_type in GATES:
        return any(mul.op_type == "Mul" and user.output[0] in mul.input for mul in behind)
    return user.op_type in ACTIVATIONS


def p22_residual(model: Model) -> Iterator[Finding]:
    """A residual Add fuses into the convolution before it when that operand is float and the other one int8.

    Neither operand quantized is fine too. When both are convolutions (a projection shortcut), at most one is.
    """
    for node in model.op("Add"):
        if any(map(model.constant, node.input)):
            continue
        branches = [name for name in node.input if _is_branch(model, name)]
        quantized = [name for name in branches if model.dequantizer(name) is not None]
        if branches and len(quantized) == len(branches):
            yield warning("P22", node, f"{quantized[0]}, the convolution's side of the Add, is quantized")


def _is_branch(model: Model, name: str) -> bool:
    """Whether an Add's operand comes from a convolution that nothing else reads."""
    start = model.before_pair(name)
    path = [start] if start == name else [start, model.producers[name].input[0], name]
    private = all(len(model.users[step]) == 1 and step not in model.outputs for step in path)
    return private and model.linear(start, CONVS) is not None


def p23_int8_in_and_out(model: Model) -> Iterator[Finding]:
    """An op without weights that reads int8 reads nothing else and writes int8."""
    for node in model.op("Add", "AveragePool", "GlobalAveragePool"):
        reads = [model.dequantizer(name) is not None for name in node.input if not model.constant(name)]
        if not any(reads) or (node.op_type == "Add" and any(_is_branch(model, name) for name in node.input)):
            continue
        readers = model.readers(node.output[0])
        if not all(reads):
            yield warning("P23", node, f"only some inputs of {node.op_type} are quantized")
        elif not readers or not all(reader.op_type == Q for reader in readers):
            yield warning("P23", node, f"{node.op_type} reads int8 and writes float")


def _scale(model: Model, node: NodeProto | None) -> bytes:
    """A Q's or DQ's scale as comparable bytes: TensorRT compares scales exactly."""
    values = None if node is None else model.array(node.input[1])
    return b"" if values is None else values.astype(np.float64).tobytes()


def p24_concat_scales(model: Model) -> Iterator[Finding]:
    """A Concat in int8 has one scale on all inputs and on its output."""
    for node in model.op("Concat"):
        makers = [model.dequantizer(name) for name in node.input]
        after = [reader for reader in model.readers(node.output[0]) if reader.op_type == Q]
        if any(makers) and len({_scale(model, pair) for pair in [*makers, *after]}) > 1:
            yield warning("P24", node, "scales around Concat differ: one requantization per input")


def p25_one_pair_per_tensor(model: Model) -> Iterator[Finding]:
    """A tensor has one pair, and no pair follows a pair."""
    quantizers: dict[str, list[NodeProto]] = {}
    for node in model.op(Q):
        quantizers.setdefault(node.input[0], []).append(node)
    for name, nodes in quantizers.items():
        if len(nodes) > 1:
            kind = "different" if len({_scale(model, node) for node in nodes}) > 1 else "equal"
            yield Finding("P25", "W", name, f"{len(nodes)} Q nodes with {kind} scales on one tensor")
    for node in model.op(Q):
        before = model.producers.get(node.input[0])
        if before is not None and before.op_type == DQ:
            kind = "redundant" if _scale(model, before) == _scale(model, node) else "requantizes"
            yield warning("P25", node, f"Q straight after DQ {label(before)}: {kind}")


def p26_placement(model: Model) -> Iterator[Finding]:
    """No pair around a copy op, inside GELU, on an attention mask, or between Pad and convolution."""
    for node in model.op(Q):
        maker = model.producers.get(node.input[0])
        users = [user for dq in model.users.get(node.output[0], ()) for user in _users_of_output(model, dq)]
        ops = {user.op_type for user in users}
        source = "" if maker is None else maker.op_type
        if source in COPIES - {"Pad"} and model.dequantizer(node.input[0]) is not None:
            yield warning("P26", node, f"{source} is a copy between two pairs")
        if source == "Pad" and ops & CONVS:
            yield warning("P26", node, "stands between Pad and convolution: Pad no longer folds into it")
        if source == "Erf" or "Erf" in ops:
            yield warning("P26", node, "stands inside GELU")
        for user in users:
            heads = {reader.op_type for reader in model.users.get(user.output[0], ())}
            if user.op_type == "Add" and "Softmax" in heads:
                yield warning("P26", node, "stands on the scores or the mask before a Softmax")


def p27_conv_channels(model: Model) -> Iterator[Finding]:
    """Int8 convolutions have enough channels, aligned ones, and groups of multiples of four."""
    for node in model.op("Conv"):
        dims, group = model.shapes.get(node.input[1], ()), integer(node, "group", 1)
        if not 3 <= len(dims) <= 5 or None in dims or model.dequantizer(node.input[1]) is None:
            continue
        outputs, inputs, *kernel = (dim or 0 for dim in dims)
        depthwise = inputs == 1 and group > 1
        if (outputs < 16 or inputs < 16) and not _worth_int8(model, node, (outputs, inputs, group), kernel):
            yield warning("P27", node, f"{outputs}x{inputs} channels, kernel {kernel}: too small for int8")
        elif group > 1 and not depthwise and (inputs % 4 or outputs // group % 4):
            yield warning("P27", node, f"groups of {inputs} and {outputs // group}, not multiples of 4")
        elif outputs % 16 or (group == 1 and inputs % 16):
            yield note("P27", node, f"{outputs}x{inputs} channels are not multiples of 16")
        ops = {user.op_type for user in model.users.get(node.output[0], ())}
        if depthwise and {"Sigmoid", "Mul"} <= ops:
            yield note("P27", node, "a depthwise int8 convolution does not fuse with SiLU")


def _worth_int8(model: Model, node: NodeProto, channels: tuple[int, int, int], kernel: list[int]) -> bool:
    """NVIDIA's exception for convolutions (outputs, inputs per group, group) with fewer than 16 channels."""
    outputs, inputs, group = channels
    if group > 1:
        return outputs % 8 == 0 and min(kernel) >= 3
    first = model.before_pair(node.input[0]) in model.inputs
    aligned = outputs % 8 == 0 or inputs % 8 == 0
    return aligned and (first or max(outputs, inputs) >= 16) and len(set(kernel)) == 1


def p28_matrix_size(model: Model) -> Iterator[Finding]:
    """An int8 product is no matrix-vector one and has K and N of at least 16."""
    for node in model.op("Gemm", "MatMul"):
        left, right = (model.shapes.get(name, ()) for name in (*node.input, "")[:2])
        if min(len(left), len(right)) < 2 or model.dequantizer(node.input[0]) is None:
            continue
        m = left[-1] if integer(node, "transA", 0) else left[-2]
        k, n = (right[-1], right[-2]) if integer(node, "transB", 0) else (right[-2], right[-1])
        if m == 1 or n == 1:
            yield warning("P28", node, "matrix-vector product in int8")
        elif (k is not None and k < 16) or (n is not None and n < 16):
            yield warning("P28", node, f"K {k}, N {n}: below 16 int8 does not pay")


RULES: Mapping[str, Callable[[Model], Iterator[Finding]]] = {
    "P1": p1_two_inputs,
    "P2": p2_scale_constant,
    "P3": p3_scale_positive,
    "P4": p4_zero_point_zero,
    "P5": p5_type,
    "P6": p6_type_written,
    "P7": p7_parameters_agree,
    "P8": p8_axis,
    "P9": p9_blocks,
    "P10": p10_vector_on_constant,
    "P11": p11_output_channel_axis,
    "P12": p12_even_count,
    "P13": p13_opset,
    "P14": p14_float_types,
    "P15": p15_no_integer_operators,
    "P16": p16_bias_float,
    "P17": p17_conv_weight,
    "P18": p18_no_pool_indices,
    "P19": p19_pairs_whole,
    "P20": p20_both_operands,
    "P21": p21_fusion_whole,
    "P22": p22_residual,
    "P23": p23_int8_in_and_out,
    "P24": p24_concat_scales,
    "P25": p25_one_pair_per_tensor,
    "P26": p26_placement,
    "P27": p27_conv_channels,
    "P28": p28_matrix_size,
}
# Advice about speed, not law: a recipe may choose otherwise, and `assert_legal` leaves it out.
ADVICE = frozenset({"P23", "P24", "P25", "P26", "P27", "P28"})


def findings(model: ModelProto, base_dir: str | None = None) -> list[Finding]:
    """All breaches in a model and its subgraph bodies, in the order of RULES; the model is not changed.

    `base_dir` is the folder of external data; ValueError when a scale or zero point is not found there.
    """
    stub = _stub(model)
    if model.functions:
        stub = onnx.inliner.inline_local_functions(stub)
    # When inference fails, the rules know only the shapes that the model itself declares.
    with suppress(onnx.shape_inference.InferenceError):
        stub = onnx.shape_inference.infer_shapes(stub, data_prop=True)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    scopes = list(_scopes(stub.graph, _outside(model, weights, base_dir or "")))
    return [finding for rule in RULES.values() for scope in scopes for finding in rule(scope)]


def _outside(model: ModelProto, weights: Mapping[str, TensorProto], base_dir: str) -> Model:
    """What surrounds the main graph: no nodes, the weights."""
    return Model(
        nodes=(),
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1),
        base_dir=base_dir,
        constants=weights,
        producers={},
        users={},
        inputs=frozenset(),
        outputs=frozenset(),
        shapes={name: tuple(tensor.dims) for name, tensor in weights.items()},
        types={name: tensor.data_type for name, tensor in weights.items()},
    )


def assert_legal(model: ModelProto, allow: frozenset[str] = frozenset(), base_dir: str | None = None) -> None:
    """Raises AssertionError with every E and W of P1 to P22, but those of the rules in `allow`."""
    left_out = ADVICE | allow
    wrong = [f for f in findings(model, base_dir) if f.severity != "I" and f.rule not in left_out]
    if wrong:
        raise AssertionError("\n".join(["TensorRT's rules are broken:", *map(str, wrong)]))


def _stub(model: ModelProto) -> ModelProto:
    """The model with big weights turned into graph inputs, so that inference copies no weights."""
    whole = model.graph
    stub = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    stub.graph.node.extend(whole.node)
    stub.graph.input.extend(whole.input)
    stub.graph.output.extend(whole.output)
    stub.graph.value_info.extend(whole.value_info)
    declared = {value.name for value in whole.input}
    for tensor in whole.initializer:
        if prod(tensor.dims) <= SMALL and tensor.data_location != TensorProto.EXTERNAL:
            stub.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            stub.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return stub


def _scopes(graph: GraphProto, outer: Model) -> Iterator[Model]:
    """The index of a graph inside `outer`, then those of the bodies inside it."""
    constants = {tensor.name: tensor for tensor in graph.initializer} | _constants(graph)
    shapes, types = _declared(graph)
    # A name from outside keeps all its readers; a body's own names may recur in a sibling body.
    seen = {name: users for name, users in outer.users.items() if name in outer.types or name in outer.producers}
    scope = Model(
        nodes=tuple(graph.node),
        opset=outer.opset,
        base_dir=outer.base_dir,
        constants={**outer.constants, **constants},
        producers={**outer.producers, **{name: node for node in graph.node for name in node.output if name}},
        users={**_users(graph), **seen},
        inputs=frozenset(value.name for value in graph.input),
        outputs=frozenset(value.name for value in graph.output),
        shapes={**outer.shapes, **shapes, **{name: tuple(tensor.dims) for name, tensor in constants.items()}},
        types={**outer.types, **types, **{name: tensor.data_type for name, tensor in constants.items()}},
    )
    yield scope
    for node in graph.node:
        for body in _bodies(node):
            yield from _scopes(body, scope)


def _declared(graph: GraphProto) -> tuple[dict[str, tuple[int | None, ...]], dict[str, int]]:
    """Shapes and element types by tensor name, of those that are known."""
    shapes: dict[str, tuple[int | None, ...]] = {}
    types: dict[str, int] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type:
            types[value.name] = kind.elem_type
        if kind.HasField("shape"):
            dims = kind.shape.dim
            shapes[value.name] = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    return shapes, types


def _constants(graph: GraphProto) -> dict[str, TensorProto]:
    """The values of Constant nodes by the tensor they make; text constants have no place in these rules."""
    found: dict[str, TensorProto] = {}
    for node in graph.node:
        if node.op_type == "Constant" and is_onnx(node):
            for attribute in node.attribute:
                value = helper.get_attribute_value(attribute)
                if attribute.type == AttributeProto.TENSOR:
                    found[node.output[0]] = value
                elif attribute.type in (AttributeProto.FLOAT, AttributeProto.FLOATS):
                    found[node.output[0]] = numpy_helper.from_array(np.array(value, np.float32))
                elif attribute.type in (AttributeProto.INT, AttributeProto.INTS):
                    found[node.output[0]] = numpy_helper.from_array(np.array(value, np.int64))
    return found


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _users(graph: GraphProto) -> dict[str, tuple[NodeProto, ...]]:
    """The nodes that read each tensor, those of nested bodies included, each once."""
    found: dict[str, list[NodeProto]] = {}
    stack = [graph]
    while stack:
        for node in stack.pop().node:
            stack.extend(_bodies(node))
            for name in dict.fromkeys(filter(None, node.input)):
                found.setdefault(name, []).append(node)
    return {name: tuple(nodes) for name, nodes in found.items()}
