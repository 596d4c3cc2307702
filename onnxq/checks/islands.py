"""Predictions: in which precision TensorRT runs a node, and where values change precision between nodes.

Q moves backward and DQ forward through operators that only move data; DQ, operator, Q becomes an int8 operator.
A Q behind an int8 operator (or what fuses with it) costs nothing: its kernel writes int8. Any other Q, any DQ in
front of a float operator, and any Cast between float types is a reformat, a pass over the tensor of its own.
Source: NVIDIA's guide on explicit quantization, its model of the optimizer; TREx, which lints built engines for
the same. Nothing here was built with TensorRT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxq.checks.finding import label
from onnxq.checks.index import ACTIVATIONS, COPIES, DQ, GATES, WEIGHTED, Q, is_addition, is_integer_operator
from onnxq.checks.residual import branch, gated_input
from onnxq.checks.scales import qtype, same_scale
from onnxq.dtypes import FLOAT8E4M3FN, FLOATS, FOUR_BITS, INT8, PRECISION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import NodeProto

    from onnxq.checks.index import Model

BOTH_ENDS = ACTIVATIONS | {
    "Add",
    "Sum",
    "Sub",
    "Mul",
    "Sigmoid",
    "AveragePool",
    "GlobalAveragePool",
    "Concat",
    "Resize",
}
"""Operators without weights that run in int8 when all they read and all they write is quantized."""
_ACROSS = COPIES - {"Cast", "Pad"}
_LOW = {INT8: "int8", FLOAT8E4M3FN: "fp8"}


@dataclass(frozen=True)
class Transition:
    """A change of precision: at which node (its name and operator), on which tensor, from what to what."""

    where: str
    op: str
    tensor: str
    before: str
    after: str


def precision(model: Model, node: NodeProto) -> str:
    """int8, fp8, fp32, fp16 or bf16; `refused` for integer operators; `unknown` when no type is known."""
    if is_integer_operator(node):
        return "refused"
    low = low_precision(model, node)
    return low or PRECISION.get(model.float_type(node) or 0, "unknown")


def low_precision(model: Model, node: NodeProto) -> str:
    """int8 or fp8 when a node runs in it, else empty."""
    if node.op_type in WEIGHTED:
        makers = [model.dequantizer(name) for name in node.input[:2]]
    elif node.op_type in BOTH_ENDS:
        readers = model.readers(node.output[0], _ACROSS) if node.output else []
        if not readers or any(reader.op_type != Q for reader in readers):
            return ""
        makers = [model.dequantizer(name) for name in node.input if name and not model.constant(name)]
    else:
        return ""
    kinds = {None if maker is None else qtype(model, maker) for maker in makers}
    return _LOW.get(kinds.pop() or 0, "") if len(kinds) == 1 else ""


def low_maker(model: Model, name: str) -> NodeProto | None:
    """The node in low precision whose kernel writes a tensor: it, or it with what fuses behind it."""
    while (node := model.producers.get(name)) is not None and not low_precision(model, node):
        if node.op_type == "Concat":  # a Q behind it moves to all its inputs
            makers = [low_maker(model, part) for part in dict.fromkeys(node.input)]
            return makers[0] if makers and None not in makers else None
        if is_addition(node) and (sides := _residual(model, node)):
            name = sides[0]
        elif node.op_type in ACTIVATIONS | _ACROSS:
            name = node.input[0]
        else:
            name = gated_input(model, node) or model.without_constant(node, "Add", "Mul")
    return node


def fused(model: Model, node: NodeProto) -> bool:
    """Whether a node's work is done by the kernel of an operator in low precision before it."""
    readers = model.users.get(node.output[0], ()) if node.output else ()
    if node.op_type in GATES and readers:
        return all(gated_input(model, reader) == node.input[0] and fused(model, reader) for reader in readers)
    return bool(node.output) and low_maker(model, node.output[0]) is not None


def transitions(model: Model) -> Iterator[Transition]:
    """Every reformat of an activation that is to be expected, in graph order."""
    for node in model.nodes:
        if not node.input or model.constant(node.input[0]) or not node.output:
            continue
        before, after = _float(model, node.input[0]), _float(model, node.output[0])
        found = None
        if node.op_type == Q:
            found = _at_quantizer(model, node, before)
        elif node.op_type == DQ:
            found = (_kind(model, node), after) if _read_in_float(model, node.output[0]) else None
        elif node.op_type == "Cast" and before != after and "unknown" not in (before, after):
            found = (before, after)
        if found is not None:
            yield Transition(label(node), node.op_type, node.input[0], *found)


def _at_quantizer(model: Model, node: NodeProto, before: str) -> tuple[str, str] | None:
    source = model.dequantizer(node.input[0])
    if source is not None:
        return None if same_scale(model, source, node) else (_kind(model, source), _kind(model, node))
    return None if low_maker(model, node.input[0]) is not None else (before, _kind(model, node))


def _read_in_float(model: Model, name: str) -> bool:
    """Whether a reader of a dequantized tensor computes in float, or it is a graph output."""
    if any(copy in model.outputs for copy in model.spread(name, _ACROSS)):
        return True
    return any(not _takes_low(model, reader) for reader in model.readers(name, _ACROSS))


def _takes_low(model: Model, node: NodeProto) -> bool:
    return node.op_type == Q or bool(low_precision(model, node) or _residual(model, node)) or _pads_codes(model, node)


def _pads_codes(model: Model, node: NodeProto) -> bool:
    """Whether it is a Pad between a DQ and Qs of the same scale: DQ, operator, Q, and so on codes."""
    if node.op_type != "Pad" or not node.output or node.output[0] in model.outputs:
        return False
    source, readers = model.dequantizer(node.input[0]), model.users.get(node.output[0], ())
    quantized = bool(readers) and all(reader.op_type == Q for reader in readers)
    return source is not None and quantized and same_scale(model, source, *readers)


def _residual(model: Model, node: NodeProto) -> list[str]:
    """The operands of an Add that come straight from a convolution in int8, with which the Add fuses."""
    if not is_addition(node) or any(map(model.constant, node.input)):
        return []
    convs = {name: branch(model, name) for name in node.input if model.dequantizer(name) is None}
    return [name for name, conv in convs.items() if conv is not None and low_precision(model, conv)]


def _kind(model: Model, node: NodeProto) -> str:
    dtype = qtype(model, node) or INT8
    return "int4" if dtype in FOUR_BITS else _LOW.get(dtype, "uint8")


def _float(model: Model, name: str) -> str:
    dtype = model.types.get(name)
    return PRECISION[dtype] if dtype in FLOATS else "unknown"
