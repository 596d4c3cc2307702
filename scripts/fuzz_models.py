"""Changes with regard to the form of a file, for scripts/fuzz.py: fields of models, tokens of texts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped,unused-ignore]  # it has no types

if TYPE_CHECKING:
    import random

_OPS = (
    "Conv", "MatMul", "Gemm", "Add", "Relu", "Clip", "Concat", "Reshape", "Transpose", "QuantizeLinear",
    "DequantizeLinear", "Softmax", "BatchNormalization", "Identity", "If", "Loop", "Scan", "LSTM", "Gather", "Constant",
    "ConvTranspose", "Resize", "ReduceMean", "Cast", "Mul", "Split", "Unsqueeze", "Nonsense", "MaxPool", "Einsum",
)  # fmt: skip
_DIMS = (0, 1, -1, 2, 3, 7, 1 << 20, 1 << 40, -(1 << 62))


def changed_model(data: bytes, rng: random.Random) -> bytes:
    """A model with a few fields of another value; the bytes themselves where they are no model."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return data
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(_CHANGES)(model, rng)
    return bytes(model.SerializeToString())


def _node(model: Any, rng: random.Random) -> Any:  # noqa: ANN401  protobuf
    return rng.choice(model.graph.node) if model.graph.node else onnx.NodeProto()


def _names(model: Any) -> list[str]:  # noqa: ANN401  protobuf
    return ["", "nowhere", *(n for node in model.graph.node for n in (*node.input, *node.output))]


def _op(model: Any, rng: random.Random) -> None:  # noqa: ANN401  protobuf
    _node(model, rng).op_type = rng.choice(_OPS)


def _domain(model: Any, rng: random.Random) -> None:  # noqa: ANN401  protobuf
    _node(model, rng).domain = rng.choice(("", "ai.onnx", "com.microsoft", "local", "x"))


def _wire(model: Any, rng: random.Random) -> None:  # noqa: ANN401  protobuf
    node = _node(model, rng)
    wires = rng.choice((node.input, node.output))
    if wires and rng.random() < 0.7:
        wires[rng.randrange(len(wires))] = rng.choice(_names(model))
    elif wires and rng.random() < 0.5:
        del wires[rng.randrange(len(wires))]
    else:
        wires.append(rng.choice(_names(model)))


def _attribute(model: Any, rng: random.Random) -> None:  # noqa: ANN401  protobuf
    node = _node(model, rng)
    if not node.attribute:
        return
    attribute = rng.choice(node.attribute)
    kind = rng.randrange(5)
    if kind == 0:
        attribute.type = rng.randrange(15)
    elif kind == 1:
        attribute.i = rng.choice(_DIMS)
    elif kind == 2 and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_DIMS)
    elif kind == 3:
        attribute.name = rng.choice(("axis", "pads", "value", "group", "to", "perm", "nonsense"))
    else:
        node.attribute.remove(attribute)


def _weight(model: Any, rng: random.Random) -> None:  # noqa: ANN401  protobuf
    if not model.graph.initializer:
        return
    tensor = rng.choice(model.graph.initializer)
    kind = rng.randrange(5)
    if kind == 0:
        tensor.data_type = rng.randrange(25)
    elif kind == 1 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_DIMS)
    elif kind == 2:
        tensor.dims.append(rng.choice(_DIMS))
    elif kind == 3:
        tensor.raw_data = rng.randbytes(rng.choice((0, 4, 64)))
    else:
        tensor.name = rng.choice(_names(model))


def _value(model: Any, rng: random.Random) -> None:  # noqa: ANN401  protobuf
    lists = [x for x in (model.graph.input, model.graph.output, model.graph.value_info) if x]
    if not lists:
        return
    value = rng.choice(rng.choice(lists))
    kind = rng.randrange(5)
    if kind == 0:
        value.type.tensor_type.elem_type = rng.randrange(25)
    elif kind == 1:
        value.type.tensor_type.shape.dim.add().dim_value = rng.choice(_DIMS)
    elif kind == 2 and value.type.tensor_type.shape.dim:
        rng.choice(value.type.tensor_type.shape.dim).dim_value = rng.choice(_DIMS)
    elif kind == 3:
        value.name = rng.choice(_names(model))
    else:
        value.ClearField("type")


def _versions(model: Any, rng: random.Random) -> None:  # noqa: ANN401  protobuf
    if rng.random() < 0.3 or not model.opset_import:
        model.ir_version = rng.choice((0, 1, 3, 8, 99, -1))
    else:
        opset = rng.choice(model.opset_import)
        opset.version = rng.choice((0, 1, 7, 13, 21, 99, -5))
        opset.domain = rng.choice(("", "ai.onnx", "com.microsoft", "x"))


def _nodes(model: Any, rng: random.Random) -> None:  # noqa: ANN401  protobuf
    if model.graph.node:
        node = rng.choice(model.graph.node)
        if rng.random() < 0.5:
            model.graph.node.add().CopyFrom(node)
        else:
            model.graph.node.remove(node)


_CHANGES = (_op, _domain, _wire, _wire, _attribute, _attribute, _weight, _weight, _value, _value, _versions, _nodes)


def changed_text(data: bytes, rng: random.Random) -> bytes:
    """A text with some of its tokens exchanged for others of it, or for odd ones."""
    tokens = re.findall(rb"[A-Za-z_]+|[0-9.]+|\s+|.", data, re.DOTALL)
    odd = (b"", b"-1", b"0", b"nan", b"inf", b"99999999999999999999", b'"', b"[", b"]", b"{", b"}", b"true", b"'", b"=")
    for _ in range(rng.choice((1, 2, 4))):
        if tokens:
            at = rng.randrange(len(tokens))
            tokens[at] = rng.choice(tokens) if rng.random() < 0.5 else rng.choice(odd)
    return b"".join(tokens)
