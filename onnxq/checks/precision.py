"""P14 and P30 to P33: float types, and what runs in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.checks.finding import Breach, error, warning
from onnxq.checks.index import ACTIVATIONS, CONVS, COPIES, DQ, GATES, WEIGHTED, Q, is_addition, is_onnx
from onnxq.checks.islands import fused, low_precision, precision
from onnxq.checks.scales import in_two_levels, qtype
from onnxq.dtypes import FLOAT, FLOAT8E4M3FN, FLOATS, HALVES, INT8, type_name
from onnxq.operators import FROM_DATA, SHAPES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import NodeProto

    from onnxq.checks.index import Model

ONE_TYPE = WEIGHTED | {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Concat", "PRelu"}
FREE = COPIES | FROM_DATA | {Q, DQ, "Constant", "ConstantOfShape", "Concat"}
"""Operators that compute nothing in float themselves."""


def float_types(model: Model) -> Iterator[Breach]:
    """Types are strong: a half scale quantizes its own type only, and one node reads one float type.

    An error on every version: the strict reading for those that are not strongly typed, whose parsers refuse mixed
    operands of elementwise operators too.
    """
    for node in model.op(Q):
        data, scale = model.types.get(node.input[0]), model.types.get((*node.input, "")[1])
        if scale in HALVES and data in FLOATS - {scale}:
            yield error(node, f"{type_name(data)} data, {type_name(scale)} scale")
    for node in model.op(*ONE_TYPE):
        values = node.input[:1] if node.op_type == "Pow" else node.input  # an exponent may have another type
        found = {dtype for name in values if (dtype := model.types.get(name)) in FLOATS}
        if len(found) > 1:
            mix = " and ".join(sorted(map(type_name, found)))
            yield error(node, f"{node.op_type} reads {mix}: a Cast is missing")


def convolutions_write_int8(model: Model) -> Iterator[Breach]:
    """A convolution in 8 bits is followed by something in 8 bits; else it writes four times the bytes.

    Convolutions whose result is a graph output are left out: it is float by contract.
    """
    for node in model.op(*CONVS):
        if not (kind := low_precision(model, node)):
            continue
        end = _epilogue(model, node.output[0])
        ways = COPIES | {"Concat"}  # a Q behind a Concat moves in front of it
        readers = [reader for reader in model.readers(end, ways) if reader.op_type not in ("Shape", "Size")]
        written = any(name in model.outputs for name in model.spread(end, ways))
        if written or not readers or any(reader.op_type == Q for reader in readers):
            continue
        ops = ", ".join(sorted({reader.op_type for reader in readers}))
        yield warning(node, f"runs in {kind} and writes float, for {ops}")


def _epilogue(model: Model, name: str) -> str:
    """The tensor at the end of the activation or residual Add that fuses behind a convolution."""
    while name not in model.outputs:
        users = model.users.get(name, ())
        muls = [user for user in users if user.op_type == "Mul"]
        gates = [user for user in users if user.op_type in GATES]
        if len(users) == 1 and (users[0].op_type in ACTIVATIONS or is_addition(users[0])):
            name = users[0].output[0]
        elif len(users) == 2 and muls and gates and gates[0].output[0] in muls[0].input:
            name = muls[0].output[0]
        else:
            break
    return name


def one_low_type(model: Model) -> Iterator[Breach]:
    """Int8 and float8 are not mixed in one model."""
    kinds: dict[int | None, NodeProto] = {}
    scales = {node.input[1] for node in model.pairs if in_two_levels(model, node)}  # no layer computes in their type
    for node in (n for n in model.pairs if n.output[0] not in scales):
        kinds.setdefault(qtype(model, node), node)
    if INT8 in kinds and FLOAT8E4M3FN in kinds:
        yield warning(kinds[FLOAT8E4M3FN], "FLOAT8E4M3FN beside INT8 in one model")


def no_float32(model: Model) -> Iterator[Breach]:
    """With strong typing what is float32 in the model runs in float32: nothing turns it into fp16.

    One finding for each product, one for the rest together; what fuses behind an int8 operator is not counted.
    """
    if not model.version.strongly_typed:
        return
    rest = []
    for node in model.nodes:
        plain = is_onnx(node) and node.op_type not in FREE
        if not plain or model.float_type(node) != FLOAT or all(map(model.constant, filter(None, node.input))):
            continue
        if node.op_type in WEIGHTED and precision(model, node) == "fp32":
            yield warning(node, f"{node.op_type} runs in float32 on {model.version.name}")
        elif node.op_type not in WEIGHTED and not low_precision(model, node) and not fused(model, node):
            rest.append(node)
    if rest:
        ops = ", ".join(sorted({node.op_type for node in rest})[:6])
        more = f"it and {len(rest) - 1} more without weights run" if len(rest) > 1 else "without weights, it runs"
        yield warning(rest[0], f"{more} in float32: {ops}")


def no_shapes_quantized(model: Model) -> Iterator[Breach]:
    """Only float activations and weights are quantized: no integers, and nothing that a shape is computed from."""
    for node in model.op(Q):
        dtype = model.types.get(node.input[0])
        if dtype is not None and dtype not in FLOATS:
            yield error(node, f"quantizes {node.input[0]}, which is {type_name(dtype)}")
    told = set()
    for node in model.op(*SHAPES):
        for slot in SHAPES[node.op_type]:
            name = node.input[slot] if slot < len(node.input) else ""
            for pair in _pairs_above(model, name):
                if id(pair) not in told:
                    told.add(id(pair))
                    yield error(pair, f"stands in the computation of a shape, for {node.op_type}")


def _pairs_above(model: Model, name: str) -> Iterator[NodeProto]:
    """The Q and DQ nodes above a tensor, up to where a Shape or Size node takes it from the data.

    Control flow ends the way too: how often a loop ran, say, is a result of its data and no computation of a shape.
    """
    stack, seen = [name], set()
    while stack:
        node = model.producers.get(stack.pop())
        if node is None or id(node) in seen or node.op_type in FROM_DATA:
            continue
        seen.add(id(node))
        if node.op_type in (Q, DQ):
            yield node
        stack.extend(filter(None, node.input))
