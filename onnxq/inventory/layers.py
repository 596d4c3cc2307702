"""Nodes that compute, and in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.checks import coverage
from onnxq.checks.finding import label
from onnxq.checks.index import INTEGER_COPIES, WEIGHTED, Q, integer, is_integer_operator, is_qdq
from onnxq.checks.scales import qtype
from onnxq.dtypes import FLOATS
from onnxq.inventory.decoding import codes_of
from onnxq.inventory.types import NAMES
from onnxq.inventory.values import Layer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from onnx import NodeProto

    from onnxq.checks.index import Model

NARROW = ("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")
"""Operators of ONNX Runtime that read packed weights."""


def packed_type(node: NodeProto) -> str:
    """What the packed weight of such an operator is made of."""
    if node.op_type == "MatMulBnb4":
        return "nf4" if integer(node, "quant_type", 1) else "fp4"
    return f"int{integer(node, 'bits', 4)}"


def layers(model: Model, decoded: Mapping[str, str]) -> Iterator[Layer]:
    """The layers of one graph, in order; `decoded` as `decoded_from` gives it."""
    for node in model.nodes:
        outputs = tuple(filter(None, node.output))
        if is_qdq(node) or node.op_type in ("Constant", "DynamicQuantizeLinear") or not outputs:
            continue
        if _is_conversion(model, node) or outputs[0] in decoded:
            continue
        readers = [reader for name in outputs for reader in model.users.get(name, ())]
        outputs += tuple(reader.output[0] for reader in readers if _is_conversion(model, reader))
        precision = _precision(model, node, decoded)
        if precision is not None:
            product = coverage.is_product(node) or is_integer_operator(node)
            yield Layer(label(node), node.op_type, precision, coverage.macs(model, node) if product else 0, outputs)


def _is_conversion(model: Model, node: NodeProto) -> bool:
    """Whether a node only converts what another one makes from a float type to another."""
    ends = (*node.input, *node.output)
    return node.op_type == "Cast" and node.input[0] in model.producers and {model.types.get(x) for x in ends} <= FLOATS


def _precision(model: Model, node: NodeProto, decoded: Mapping[str, str]) -> str | None:
    """What a node computes in; None for one that computes shapes and indices."""
    if is_integer_operator(node):
        return f"{packed_type(node)} weight" if node.op_type in NARROW else "int8"
    kinds = [_arrives_as(model, name) for name in node.input if name and _is_number(model, name)]
    if node.op_type in WEIGHTED:
        return _of_product(model, node, kinds, codes_of(model, node, decoded))
    moving = [kind for kind, name in zip(kinds, _numbers(model, node), strict=True) if not model.constant(name)]
    readers = [reader for output in node.output for reader in model.readers(output, INTEGER_COPIES)]
    if moving and None not in moving and readers and all(reader.op_type == Q for reader in readers):
        return "int8" if set(moving) <= {"int8", "uint8"} else moving[0]
    return _float_type(model, node)


def _of_product(model: Model, node: NodeProto, kinds: list[str | None], codes: str) -> str | None:
    """What a product computes in, whose operands arrive as codes of these kinds, or whose weight is made of `codes`."""
    first, second = (*kinds, None, None)[:2]
    if first and second:
        return "int8" if {first, second} <= {"int8", "uint8"} else first
    if (first or second) and any(map(model.constant, node.input[:2])):
        return f"{second or first} weight"
    return f"{NAMES[model.types[codes]]} weight" if codes else _float_type(model, node)


def _numbers(model: Model, node: NodeProto) -> list[str]:
    return [name for name in node.input if name and _is_number(model, name)]


def _is_number(model: Model, name: str) -> bool:
    """Whether a tensor is one of the values computed with, not of the axes, indices and shapes."""
    return model.types.get(name, 1) in FLOATS or model.dequantizer(name) is not None


def _arrives_as(model: Model, name: str) -> str | None:
    """The type of the codes behind a tensor, None for one in float."""
    maker = model.dequantizer(name)
    return None if maker is None else NAMES.get(qtype(model, maker) or 3, "int8")


def _float_type(model: Model, node: NodeProto) -> str | None:
    known = [model.types[name] for name in node.output if name in model.types]
    if known and not any(kind in FLOATS or kind == 11 for kind in known):
        return None
    found = model.float_type(node)
    return NAMES[found] if found else NAMES.get(known[0], "unknown") if known else "unknown"
