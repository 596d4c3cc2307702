"""What a quantized model holds, whichever tool made it: precision of nodes, scales of tensors, bytes by type.

Read from the file alone, by the index that the checks use: weights stay where they are, scales are read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.checks import build, coverage
from onnxq.checks.dtypes import FLOATS
from onnxq.checks.finding import label
from onnxq.checks.index import DQ, INTEGER_COPIES, WEIGHTED, Q, integer, is_integer_operator, is_qdq
from onnxq.checks.scales import qtype
from onnxq.checks.validity import unsorted
from onnxq.checks.versions import get_version
from onnxq.errors import ModelError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping

    from onnx import ModelProto, NodeProto

    from onnxq.checks.index import Model

NAMES = {1: "float32", 10: "float16", 16: "bfloat16", 11: "float64", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16"}
NAMES |= {6: "int32", 7: "int64", 9: "bool", 12: "uint32", 13: "uint64", 8: "string", 21: "uint4", 22: "int4"}
NAMES |= {17: "fp8 (e4m3)", 18: "fp8 (e4m3fnuz)", 19: "fp8 (e5m2)", 20: "fp8 (e5m2fnuz)", 23: "fp4 (e2m1)"}
NAMES |= {24: "e8m0", 25: "uint2", 26: "int2"}
"""Number of an ONNX element type -> how people call it; a test compares them with onnx."""

BITS = {"uint4": 4, "int4": 4, "fp4 (e2m1)": 4, "uint2": 2, "int2": 2}
"""Bits of an element; of others eight times the size in bytes that `_bytes` knows."""

_BYTES = {"float64": 8, "int64": 8, "uint64": 8, "float32": 4, "int32": 4, "uint32": 4}
_BYTES |= {"float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2}

NO_SHAPES: Mapping[str, tuple[int, ...]] = {}
"""Nothing is known but what the file says."""

_NARROW = ("MatMulNBits", "GatherBlockQuantized")
_DYNAMIC = ("DynamicQuantizeMatMul", "DynamicQuantizeLSTM")


@dataclass(frozen=True)
class Holding:
    """One quantized tensor.

    Attributes:
        tensor: its name; of a pair, that of what goes into the QuantizeLinear.
        kind: the type of its codes.
        weight: whether it is a constant.
        granularity: "per tensor", "per channel, axis 0" or "blocks of 32, axis 0".
        scales: how many scales it has; 0 where they are computed at run time.
        low: the smallest scale; None when there is none to read.
        high: the largest.
        zero_point: the zero point where all are the same, else None.
        size: stored bytes; 0 for activations, and for weights that are stored in float.
        readers: labels of the nodes that read it quantized.
    """

    tensor: str
    kind: str
    weight: bool
    granularity: str
    scales: int
    low: float | None
    high: float | None
    zero_point: int | None
    size: int = 0
    readers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """One node that computes; Q, DQ and conversions between float types are left out.

    Attributes:
        name: its name, or that of its output.
        op_type: its operator.
        precision: "int8", "fp8 (e4m3)", ... when it computes in it; "int8 weight" when it computes in float; else the
            float type, "unknown" when nothing tells it.
        macs: multiply-accumulates of one run, dimensions that are not known counted as 1.
        outputs: names of the tensors it makes, and behind them those that are the same in another float type.
    """

    name: str
    op_type: str
    precision: str
    macs: int
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Inventory:
    """All of it; nodes and tensors in graph order, bodies of If, Loop and Scan behind the graph that holds them."""

    producer: str
    opset: int
    layers: tuple[Layer, ...]
    tensors: tuple[Holding, ...]
    sizes: tuple[tuple[str, int, int], ...]
    """(type, tensors, bytes) of the constants, the most bytes first."""

    @property
    def quantized(self) -> bool:
        """Whether anything in it is."""
        return bool(self.tensors) or any(is_low(layer.precision) for layer in self.layers)

    def macs(self) -> dict[str, int]:
        """Precision -> multiply-accumulates, most first."""
        counts: Counter[str] = Counter()
        for layer in self.layers:
            counts[layer.precision] += layer.macs
        return {kind: count for kind, count in counts.most_common() if count}

    def low_share(self) -> float:
        """Share of the multiply-accumulates that compute on quantized operands; 0 when there are none."""
        counts = self.macs()
        total = sum(counts.values())
        return sum(count for kind, count in counts.items() if is_low(kind)) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The inventory as plain values."""
        return {
            "producer": self.producer,
            "opset": self.opset,
            "macs": self.macs(),
            "sizes": [{"type": kind, "tensors": count, "bytes": size} for kind, count, size in self.sizes],
            "nodes": [asdict(layer) for layer in self.layers],
            "tensors": [asdict(tensor) for tensor in self.tensors],
        }


def is_low(precision: str) -> bool:
    """Whether a node of this precision computes on quantized operands."""
    return precision not in {NAMES[kind] for kind in FLOATS} | {"float64", "unknown"} and "weight" not in precision


def look_at(path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]] = NO_SHAPES) -> Inventory:
    """The inventory of a file; `shapes` as for `take_stock`.

    Raises:
        ModelError: it cannot be read, is no ONNX model, or its nodes are not in order.
    """
    return take_stock(build.read(path), str(Path(path).parent), shapes)


def take_stock(proto: ModelProto, base_dir: str = "", shapes: Mapping[str, tuple[int, ...]] = NO_SHAPES) -> Inventory:
    """Look through a model; it is not changed.

    Args:
        proto: the model.
        base_dir: folder of its external data.
        shapes: of tensors, as they were when it ran, where the file leaves them open: work is counted with them.

    Raises:
        ModelError: its nodes are not in order.
    """
    if disorder := next(unsorted(proto.graph), None):
        raise ModelError(f"the nodes are not in order: {disorder.message}", "Sort the graph and save it again.")
    models = [_sized(model, shapes) for model in build.graphs(proto, base_dir, get_version("tensorrt"))]
    layers = [found for model in models for found in _layers(model)]
    tensors = [found for model in models for found in _holdings(model)]
    producer = " ".join(filter(None, [proto.producer_name, proto.producer_version]))
    return Inventory(producer, models[0].opset, tuple(layers), tuple(_joined(tensors)), _sizes(models))


def _sized(model: Model, shapes: Mapping[str, tuple[int, ...]]) -> Model:
    """The model with these shapes, which its Q and DQ nodes hand on."""
    if not shapes or not model.main:
        return model
    known = dict(shapes)
    for node in model.nodes:
        if is_qdq(node) and node.input[0] in known:
            known.setdefault(node.output[0], known[node.input[0]])
    return replace(model, shapes={**model.shapes, **known})


# -- nodes ---------------------------------------------------------------------------------------------------


def _layers(model: Model) -> Iterator[Layer]:
    for node in model.nodes:
        outputs = tuple(filter(None, node.output))
        if is_qdq(node) or node.op_type in ("Constant", "DynamicQuantizeLinear") or not outputs:
            continue
        if _is_conversion(model, node):
            continue
        readers = [reader for name in outputs for reader in model.users.get(name, ())]
        outputs += tuple(reader.output[0] for reader in readers if _is_conversion(model, reader))
        precision = _precision(model, node)
        if precision is not None:
            product = node.op_type in WEIGHTED or is_integer_operator(node)
            yield Layer(label(node), node.op_type, precision, coverage.macs(model, node) if product else 0, outputs)


def _is_conversion(model: Model, node: NodeProto) -> bool:
    """Whether a node only converts what another one makes from a float type to another."""
    ends = (*node.input, *node.output)
    return node.op_type == "Cast" and node.input[0] in model.producers and {model.types.get(x) for x in ends} <= FLOATS


def _precision(model: Model, node: NodeProto) -> str | None:
    """What a node computes in; None for one that computes shapes and indices."""
    if is_integer_operator(node):
        return f"int{integer(node, 'bits', 4)} weight" if node.op_type in _NARROW else "int8"
    kinds = [_arrives_as(model, name) for name in node.input if name and _is_number(model, name)]
    if node.op_type in WEIGHTED:
        first, second = (*kinds, None, None)[:2]
        if first and second:
            return "int8" if {first, second} <= {"int8", "uint8"} else first
        if second or first:
            of_weight = second or first
            return f"{of_weight} weight" if any(map(model.constant, node.input[:2])) else _float_type(model, node)
        return _float_type(model, node)
    moving = [kind for kind, name in zip(kinds, _numbers(model, node), strict=True) if not model.constant(name)]
    readers = [reader for output in node.output for reader in model.readers(output, INTEGER_COPIES)]
    if moving and None not in moving and readers and all(reader.op_type == Q for reader in readers):
        return "int8" if set(moving) <= {"int8", "uint8"} else moving[0]
    return _float_type(model, node)


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


# -- tensors -------------------------------------------------------------------------------------------------


def _holdings(model: Model) -> Iterator[Holding]:
    for node in model.nodes:
        if is_qdq(node) and len(node.input) > 1:
            yield from _of_pair(model, node)
        elif node.op_type in _NARROW and len(node.input) > 2:
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
    size = _bytes(kind, model.shapes.get(source, ())) if stored and node.op_type == DQ else 0
    made = Holding(source, kind, model.constant(source), *_scale(model, node), size)
    behind = [r for r in model.readers(node.output[0], INTEGER_COPIES | {DQ}) if r.op_type != Q]
    yield replace(made, readers=tuple(dict.fromkeys(label(r) for r in behind)))


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
    names = [*node.input, ""]
    index = 0
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
    size = _bytes(kind, model.shapes.get(codes, ())) if weight else 0
    form = "per channel" if count > 1 else "per tensor"
    return Holding(tensor, kind, weight, form, count, low, high, _zero_point(model, zero), size, (label(node),))


def _of_blocks(model: Model, node: NodeProto) -> Holding:
    """The weight of an operator of ONNX Runtime that reads it in blocks of few bits, packed into bytes."""
    first = node.op_type == "GatherBlockQuantized"
    weight, scale = node.input[0 if first else 1], node.input[2]
    kind, block = f"int{integer(node, 'bits', 4)}", integer(node, "block_size", 0)
    size = _bytes("uint8", model.shapes.get(weight, ()))
    values = _values(model, scale)
    return Holding(weight, kind, True, f"blocks of {block}", *values, None, size, (label(node),))


def _joined(found: Iterable[Holding]) -> Iterator[Holding]:
    """Each tensor once for each way in which it is quantized, with all readers."""
    merged: dict[Holding, tuple[str, ...]] = {}
    for holding in found:
        key = replace(holding, readers=())
        merged[key] = tuple(dict.fromkeys((*merged.get(key, ()), *holding.readers)))
    for key, readers in merged.items():
        yield replace(key, readers=readers)


# -- bytes ---------------------------------------------------------------------------------------------------


def _sizes(models: Iterable[Model]) -> tuple[tuple[str, int, int], ...]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    seen = {id(tensor): tensor for model in models for tensor in model.constants.values()}
    for tensor in seen.values():
        kind = NAMES.get(tensor.data_type, "other")
        counts[kind] += 1
        sizes[kind] += _bytes(kind, tuple(tensor.dims))
    return tuple((kind, counts[kind], size) for kind, size in sorted(sizes.items(), key=lambda item: (-item[1], item)))


def _bytes(kind: str, dims: tuple[int | None, ...]) -> int:
    count = prod(d or 0 for d in dims)
    return -(-count * BITS.get(kind, 8 * _BYTES.get(kind, 1)) // 8)
