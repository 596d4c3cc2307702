"""Quantized tensors, and with which scales."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from onnxq.checks.finding import label
from onnxq.checks.index import DQ, INTEGER_COPIES, Q, integer, is_integer_operator, is_qdq
from onnxq.checks.scales import qtype
from onnxq.dtypes import FLOATS
from onnxq.inventory.decoding import codes_of
from onnxq.inventory.layers import NARROW, packed_type
from onnxq.inventory.types import NAMES, stored_bytes
from onnxq.inventory.values import Holding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from onnx import NodeProto

    from onnxq.checks.index import Model

_DYNAMIC = ("DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
_APART = {
    "MatMulIntegerToFloat": ((0, 2, 4), (1, 3, 5)),
    "QAttention": ((0, 3, 6), (1, 4, 7)),
}
"""Operator whose inputs are in another order -> where the codes, scale and zero point of each operand are."""


def holdings(model: Model, decoded: Mapping[str, str]) -> Iterator[Holding]:
    """Those of one graph, a tensor once for each place that quantizes it; `decoded` as `decoded_from` gives it."""
    for node in model.nodes:
        if codes := codes_of(model, node, decoded):
            kind = NAMES[model.types[codes]]
            size = stored_bytes(kind, model.shapes.get(codes, ()))
            yield Holding(codes, kind, True, "codes", 0, None, None, None, size, (label(node),))
        if is_qdq(node) and len(node.input) > 1:
            yield from _of_pair(model, node)
        elif node.op_type in NARROW and len(node.input) > 2:
            yield _of_blocks(model, node)
        elif is_integer_operator(node) and node.op_type not in _DYNAMIC:
            yield from _of_operator(model, node)


def _of_pair(model: Model, node: NodeProto) -> Iterator[Holding]:
    """A QuantizeLinear, or a DequantizeLinear of a constant; the other ones repeat what their Q says."""
    source = node.input[0]
    stored = source in model.constants
    if node.op_type == DQ and not stored:
        return
    kind = NAMES.get(qtype(model, node) or 2, "uint8")
    size = stored_bytes(kind, model.shapes.get(source, ())) if stored and node.op_type == DQ else 0
    made = Holding(source, kind, model.constant(source), *_scale(model, _with_channels(model, node)), size)
    behind = [r for r in model.readers(node.output[0], INTEGER_COPIES | {DQ}) if r.op_type != Q]
    yield replace(made, readers=tuple(dict.fromkeys(label(r) for r in behind)))


def _with_channels(model: Model, node: NodeProto) -> NodeProto:
    """What tells the scales: the DequantizeLinear, where those of channels are in the rows of the layer in front."""
    if node.op_type == DQ or _values(model, node.input[1])[0] != 1:
        return node
    users = (user for user in model.users.get(node.output[0], ()) if user.op_type == DQ)
    return next((user for user in users if _values(model, user.input[1])[0] > 1), node)


def _scale(model: Model, node: NodeProto) -> tuple[str, int, float | None, float | None, int | None]:
    name = node.input[1]
    dims = tuple(d or 0 for d in model.shapes.get(name, ()))
    zero = node.input[2] if len(node.input) > 2 else ""
    axis = integer(node, "axis", 1)
    if len(dims) == 1 and dims[0] > 1:
        form = f"per channel, axis {axis}"
    elif prod(dims) > 1:
        block = integer(node, "block_size", 0)
        form = f"blocks of {block}, axis {axis}" if block else "blocks"
    else:
        form = "per tensor"
    return (form, *_values(model, name), _zero_point(model, zero))


def _values(model: Model, name: str) -> tuple[int, float | None, float | None]:
    array = model.array(model.origin(name, frozenset({"Cast", "Identity"})))
    if array is None or not array.size:
        return 0, None, None
    numbers = array.astype(np.float64)
    return array.size, float(numbers.min()), float(numbers.max())


def _zero_point(model: Model, name: str) -> int | None:
    if not name:
        return 0
    array = model.array(name)
    if array is None or not array.size:
        return None
    numbers = np.unique(array.astype(np.float64))
    return int(numbers[0]) if numbers.size == 1 else None


def _of_operator(model: Model, node: NodeProto) -> Iterator[Holding]:
    """The operands of an integer operator that have a scale: codes, scale and zero point follow one another.

    The scale and zero point of its output stand alone among them: the tensor is described where it is read.
    """
    for places in _APART.get(node.op_type, ()):
        yield _operand(model, node, [node.input[i] for i in places if i < len(node.input)])
    names = [*node.input, ""]
    index = len(names) if node.op_type in _APART else 0
    while index < len(node.input):
        if _is_scale(model, names[index]):
            index += 2
        elif model.types.get(names[index]) in (2, 3) and _is_scale(model, names[index + 1]):
            yield _operand(model, node, names[index : index + 3])
            index += 3
        else:
            index += 1


def _is_scale(model: Model, name: str) -> bool:
    return name in model.constants and model.types.get(name) in FLOATS


def _operand(model: Model, node: NodeProto, names: list[str]) -> Holding:
    codes, scale, zero = (*names, "")[:3]
    count, low, high = _values(model, scale)
    kind, weight = NAMES[model.types[codes]], model.constant(codes)
    maker = model.producers.get(codes)
    tensor = maker.input[0] if maker is not None and maker.op_type == Q else codes
    size = stored_bytes(kind, model.shapes.get(codes, ())) if weight else 0
    form = "per channel" if count > 1 else "per tensor"
    return Holding(tensor, kind, weight, form, count, low, high, _zero_point(model, zero), size, (label(node),))


def _of_blocks(model: Model, node: NodeProto) -> Holding:
    """The weight of an operator of ONNX Runtime that reads it in blocks of few bits, packed into bytes."""
    first = node.op_type == "GatherBlockQuantized"
    weight, scale = node.input[0 if first else 1], node.input[2]
    kind, block = packed_type(node), integer(node, "block_size", 0)
    size = stored_bytes("uint8", model.shapes.get(weight, ()))
    values = _values(model, scale)
    return Holding(weight, kind, True, f"blocks of {block}", *values, None, size, (label(node),))


def joined(found: Iterable[Holding]) -> Iterator[Holding]:
    """Each tensor once for each way in which it is quantized, with all readers."""
    merged: dict[Holding, tuple[str, ...]] = {}
    for holding in found:
        key = replace(holding, readers=())
        merged[key] = tuple(dict.fromkeys((*merged.get(key, ()), *holding.readers)))
    for key, readers in merged.items():
        yield replace(key, readers=readers)
