"""P1 to P13 and P15: what the parser and the builder ask of each Q and DQ, and of the operators around them."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from onnxq.checks.finding import Breach, error, label, warning
from onnxq.checks.index import (
    DQ,
    INTEGER_COPIES,
    WEIGHTED,
    Q,
    differ,
    integer,
    integers,
    is_integer_operator,
    is_qdq,
)
from onnxq.checks.scales import blocks, in_two_levels, is_grid, is_vector, qtype, zero_point
from onnxq.checks.versions import FIRST_RELEASE
from onnxq.dtypes import (
    FLOAT4E2M1,
    FLOAT8E4M3FN,
    FLOATS,
    FOUR_BITS,
    HALVES,
    INT4,
    QTYPES,
    SMALLEST_NORMAL,
    UINT8,
    type_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import NodeProto

    from onnxq.checks.index import Model


def two_inputs(model: Model) -> Iterator[Breach]:
    """Q and DQ have data and a scale."""
    for node in model.nodes:
        if is_qdq(node) and len(node.input) < 2:
            yield error(node, f"{node.op_type} has {len(node.input)} input, needs data and scale")


def scale_constant(model: Model) -> Iterator[Breach]:
    """A scale is an initializer or Constant, not empty, float32, float16 or bfloat16; for float4 scaled float8."""
    for node in model.pairs:
        tensor = model.constants.get(node.input[1])
        if tensor is None and in_two_levels(model, node):
            continue
        if tensor is None:
            yield error(node, f"scale {node.input[1]} is not a constant")
        elif not prod(tensor.dims):
            yield error(node, f"scale {node.input[1]} is empty")
        elif tensor.data_type not in FLOATS:
            yield error(node, f"scale {node.input[1]} is {type_name(tensor.data_type)}")


def scale_positive(model: Model) -> Iterator[Breach]:
    """Every scale is positive and finite (E), and not below the smallest normal number of its type (W)."""
    for node in model.pairs:
        tensor = model.constants.get(node.input[1])
        if tensor is None or tensor.data_type not in FLOATS:
            continue
        values = model.array(node.input[1])
        if values is None:
            continue
        scale = values.astype(np.float64)
        smallest = SMALLEST_NORMAL[tensor.data_type]
        if not (np.isfinite(scale) & (scale > 0)).all():
            yield error(node, f"scale {node.input[1]} is not positive and finite everywhere")
        elif (scale < smallest).any():
            yield warning(node, f"scale {node.input[1]} goes below {smallest:.3g}, the least normal")


def zero_point_zero(model: Model) -> Iterator[Breach]:
    """A zero point is a constant (Cast and Identity may follow it) of zeros."""
    for node in model.pairs:
        if name := zero_point(node):
            stored = model.origin(name, frozenset({"Cast", "Identity"}))
            values = model.array(stored)
            if stored not in model.constants:
                yield error(node, f"zero point {name} is not a constant")
            elif values is not None and values.astype(np.float64).any():
                yield error(node, f"zero point {name} is not zero: TensorRT is symmetric only")


def known_type(model: Model) -> Iterator[Breach]:
    """The quantized type is one that this version takes: int8, float8e4m3fn, int4 or float4e2m1.

    On 11 a uint8 zero point is read as int8 (W); uint8 data that is stored or fed to a DQ stays an error.
    """
    version = model.version
    for node in model.pairs:
        dtype = qtype(model, node)
        if dtype == UINT8 and version.uint8 == "W" and _made_by_q(model, node):
            yield warning(node, f"{node.op_type} of UINT8, which {version.name} takes for INT8: other values")
        elif dtype is not None and dtype not in QTYPES:
            yield error(node, f"{node.op_type} of {type_name(dtype)}; TensorRT takes INT8")
        elif dtype in FIRST_RELEASE and FIRST_RELEASE[dtype] > (version.major, 0):
            first = FIRST_RELEASE[dtype]
            said = f"{type_name(dtype)} needs TensorRT {first[0]}.{first[1]}"
            yield warning(node, said) if first[0] == version.major else error(node, said)


def _made_by_q(model: Model, node: NodeProto) -> bool:
    if node.op_type == Q:
        return True
    maker = model.producers.get(model.origin(node.input[0], INTEGER_COPIES))
    return maker is not None and maker.op_type == Q


def type_written(model: Model) -> Iterator[Breach]:
    """A Q says its type: without zero point and output_dtype ONNX means uint8 and TensorRT int8."""
    for node in model.pairs:
        if node.op_type == Q and not zero_point(node) and not integer(node, "output_dtype", 0):
            yield warning(node, "no zero point: UINT8 for ONNX, INT8 for TensorRT")


def parameters_agree(model: Model) -> Iterator[Breach]:
    """Zero point and scale have equally many elements; the types of Q, zero point and DQ are one."""
    for node in model.pairs:
        if not (name := zero_point(node)):
            continue
        scale, zero = model.constants.get(node.input[1]), model.constants.get(name)
        if scale is not None and zero is not None and prod(scale.dims) != prod(zero.dims):
            sizes = f"{prod(scale.dims)} scales, {prod(zero.dims)} zero points"
            yield error(node, sizes)
        said = integer(node, "output_dtype", 0) if node.op_type == Q else model.types.get(node.input[0], 0)
        if said and said != model.types.get(name, said):
            types = f"zero point {name} is {type_name(model.types[name])}, quantized data {type_name(said)}"
            yield error(node, types)


def axis_exists(model: Model) -> Iterator[Breach]:
    """A scale of several elements is a vector along a written, existing axis, or has the data's rank."""
    for node in model.pairs:
        data, scale = model.shapes.get(node.input[0]), model.shapes.get(node.input[1], ())
        if is_vector(model, node):
            # TensorRT before 10.2 reads an absent axis as 0, ONNX as 1.
            if not any(a.name == "axis" for a in node.attribute):
                yield error(node, "per-channel scale without a written axis")
            axis = integer(node, "axis", 1)
            if data is not None and not -len(data) <= axis < len(data):
                yield error(node, f"axis {axis} does not exist in rank {len(data)}")
            elif data is not None and differ(data[axis], scale[0]):
                yield error(node, f"{scale[0]} scales for {data[axis]} channels on axis {axis}")
        elif data is not None and is_grid(scale) and len(data) != len(scale):
            yield error(node, f"scale of rank {len(scale)} for data of rank {len(data)}")


def whole_blocks(model: Model) -> Iterator[Breach]:
    """A block scale divides exactly one dimension, the last or the one before, into whole blocks."""
    for node in model.pairs:
        found = blocks(model, node)
        if found is not None and not model.version.block_scales:
            yield error(node, f"scale {node.input[1]} is of blocks, which {model.version.name} does not know")
        if found is None or None in found[0] + found[1]:
            continue
        data, scale = ([dim or 0 for dim in dims] for dims in found)
        axes = [axis for axis, (dim, count) in enumerate(zip(data, scale, strict=True)) if dim != count]
        if len(axes) != 1:
            yield error(node, f"{len(axes)} blocked dimensions, one is allowed")
        elif axes[0] < len(data) - 2:
            yield error(node, f"blocked on axis {axes[0]}, not one of the last two")
        elif not scale[axes[0]] or data[axes[0]] % scale[axes[0]]:
            yield error(node, f"{data[axes[0]]} values in {scale[axes[0]]} blocks")


def vector_on_constant(model: Model) -> Iterator[Breach]:
    """Only constants are quantized per channel."""
    for node in model.pairs:
        several = is_vector(model, node) or blocks(model, node) is not None
        if several and not model.constant(node.input[0]):
            yield error(node, f"{node.input[0]} is an activation, its scale must be per tensor")


def output_channel_axis(model: Model) -> Iterator[Breach]:
    """A per-channel weight is scaled along its consumer's output channels.

    ConvTranspose before TensorRT 10: axis 0 and 1 both failed there in some release, so any per-channel scale
    is a warning.
    """
    for node in model.pairs:
        rank = len(model.shapes.get(node.input[0], ()))
        if rank and is_vector(model, node) and model.constant(node.input[0]):
            for user, slot, axis in _landings(model, node.output[0], integer(node, "axis", 1) % rank):
                wanted = _channel_axis(model, user, slot, rank)
                if user.op_type == "ConvTranspose" and not model.version.transposed_per_channel:
                    yield warning(node, f"per-channel ConvTranspose {label(user)}: unreliable on {model.version.name}")
                elif wanted is not None and wanted != axis:
                    should = f"axis {wanted}" if wanted >= 0 else "a per-tensor scale"
                    yield error(node, f"axis {axis}; {user.op_type} {label(user)} needs {should}")


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


def even_count(model: Model) -> Iterator[Breach]:
    """Four-bit tensors have an even number of elements (E); older parsers want an even last dimension (W)."""
    for node in model.pairs:
        dims = model.shapes.get(node.input[0], (None,))
        known = [dim for dim in dims if dim is not None]
        if qtype(model, node) not in FOUR_BITS or len(known) < len(dims):
            continue
        if prod(known) % 2:
            yield error(node, f"{prod(known)} four-bit values, an even number is needed")
        elif model.version.even_rows and known and known[-1] % 2:
            yield warning(node, f"last dimension {known[-1]} is odd: TensorRT 10.1 refuses it")


def opset_known(model: Model) -> Iterator[Breach]:
    """The opset knows what the Q/DQ nodes use (E), and the version's parser knows the opset (W)."""
    newest = model.version.max_opset
    if newest is not None and model.main and model.opset > newest:
        yield Breach("W", "opset", f"the model has {model.opset}, {model.version.name} knows up to {newest}")
    for node in model.pairs:
        dtype, scale = qtype(model, node), model.types.get(node.input[1])
        needs = [
            (13, "a per-channel scale", is_vector(model, node)),
            (19, f"a {type_name(scale)} scale", scale in HALVES),
            (19, "float8", dtype == FLOAT8E4M3FN),
            (21, "a block scale", blocks(model, node) is not None),
            (21, "int4", dtype == INT4),
            (23, "float4", dtype == FLOAT4E2M1),
        ]
        for opset, what, used in needs:
            if used and model.opset < opset:
                yield error(node, f"{what} needs opset {opset}, the model has {model.opset}")


def no_integer_operators(model: Model) -> Iterator[Breach]:
    """Quantization is written as ONNX's Q/DQ, not with integer operators or those of ONNX Runtime's domain.

    DynamicQuantizeLinear is refused by all versions: the parser's table for 11 still says so.
    """
    for node in model.nodes:
        if is_integer_operator(node):
            domain = f"{node.domain}." if node.domain else ""
            yield error(node, f"TensorRT has no {domain}{node.op_type}")
