"""The nodes of an optimized model: which compute on integers, which in float, and which were meant for integers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from onnxq.operators import RECURRENT_AS_RUN
from onnxq.work import convolution, product, recurrent

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from onnx import GraphProto, ModelProto, NodeProto

    Seen = tuple[str, tuple[int, ...]]

BYTES = ("uint8", "int8")
FLOATS = ("float", "float16", "bfloat16", "double")
"""ONNX Runtime's names of types, as its profile has them."""

PRODUCTS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("Conv", "FusedConv", "ConvTranspose", "ConvInteger", "NhwcFusedConv"), (0, 1)),
    **dict.fromkeys(("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "TransposeMatMul"), (0, 1)),
    **dict.fromkeys(("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), (0, 1)),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4"), (0, 1)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), (0, 3)),
    **dict.fromkeys(("MultiHeadAttention", "QAttention"), (0, 1)),
}
"""Operator -> indices of its two operands."""

_ELEMENTWISE = frozenset(
    {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax", "Where", "MaxPool"}
    | {
        "Reshape",
        "Transpose",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Split",
        "Gather",
        "Expand",
        "Tile",
        "Resize",
    }
)
_INTEGER = frozenset(
    {"QGemm", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
    | {"QAttention", "QEmbedLayerNormalization", "QMoE"}
)
_NARROW_WEIGHT = frozenset({"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"})
_CONVERT = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


@dataclass(frozen=True)
class Executed:
    """One node of an optimized model.

    Attributes:
        name: unique in the model.
        op_type: its operator.
        runs: "integer", "moves int8", "int8 weight" (multiplies in float), "conversion", "float behind DQ", "float",
            "other" (shapes, indices), or "not run": in a branch that was not taken, and in float or other.
        macs: multiply-accumulates of the run that was profiled.
        lost: whether all that it reads says int8, and for an operator without weights all that reads it too.
    """

    name: str
    op_type: str
    runs: str
    macs: int
    lost: bool


@dataclass(frozen=True)
class _Tensors:
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, str]
    makers: Mapping[str, NodeProto]
    users: Mapping[str, list[NodeProto]]
    constants: frozenset[str]


def executed(model: ModelProto, seen: Mapping[str, Seen], inserted: Collection[str] = ()) -> tuple[Executed, ...]:
    """The nodes of an optimized model in order, those of bodies behind the node that holds them.

    `seen` gives (element type, shape) of the activations as they were when it ran, under ONNX Runtime's type names.
    `inserted` names nodes that only the optimizer knows: a Transpose of its own between pairs was not meant for int8.
    """
    tensors = _tensors(model, seen)
    return tuple(e for node in every_node(model.graph) for e in _nodes(node, tensors, own=node.name not in inserted))


def every_node(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph and of the bodies inside it, those of a body behind the node that holds it."""
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from every_node(body)


def bodies(node: NodeProto) -> list[GraphProto]:
    """The graphs that a node holds."""
    return [body for a in node.attribute for body in ([a.g] if a.HasField("g") else a.graphs)]


def _tensors(model: ModelProto, seen: Mapping[str, Seen]) -> _Tensors:
    nodes = list(every_node(model.graph))
    weights = [t for graph in (model.graph, *(b for n in nodes for b in bodies(n))) for t in graph.initializer]
    shapes = {name: shape for name, (_, shape) in seen.items()} | {t.name: tuple(t.dims) for t in weights}
    types = {name: kind for name, (kind, _) in seen.items()}
    makers = {output: node for node in nodes for output in node.output}
    users: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return _Tensors(shapes, types, makers, users, frozenset(t.name for t in weights))


def _nodes(node: NodeProto, tensors: _Tensors, *, own: bool) -> list[Executed]:
    """The node; of a QAttention the products that make Q, K and V, and what it does in float."""
    lost = _is_lost(node, tensors, own=own)
    found = [Executed(node.name, node.op_type, _runs(node, tensors, lost=lost), _macs(node, tensors), lost)]
    if node.op_type == "QAttention" and (out := tensors.shapes.get(node.output[0])):
        products = 2 * prod(out) * out[-2]  # [B, S, N H]: Q K^T, and as much again with V
        found.append(Executed(f"{node.name}: attention", node.op_type, "float", products, lost=False))
    return found


def _runs(node: NodeProto, tensors: _Tensors, *, lost: bool) -> str:
    kinds = [tensors.types[name] for name in node.output if name in tensors.types]
    if node.op_type in _INTEGER or node.op_type.startswith("QLinear"):
        return "integer"
    if node.op_type in _NARROW_WEIGHT:
        return "int8 weight"
    if node.op_type in _CONVERT:
        return "conversion"
    if kinds and all(kind in BYTES for kind in kinds):
        return "moves int8"
    return _runs_in_float(node, tensors, kinds, lost=lost)


def _runs_in_float(node: NodeProto, tensors: _Tensors, kinds: list[str], *, lost: bool) -> str:
    if not kinds and node.output:
        return "not run"
    if not any(kind in FLOATS for kind in kinds):
        return "other"
    return "float behind DQ" if lost or any(_dequantized(name, tensors) for name in node.input) else "float"


def _is_lost(node: NodeProto, tensors: _Tensors, *, own: bool) -> bool:
    """Whether the node lies between Q/DQ pairs like an integer one, and is none."""
    op = node.op_type
    if op in PRODUCTS and op not in _INTEGER and not op.startswith("QLinear") and op not in _NARROW_WEIGHT:
        operands = [_dequantizer(node.input[i], tensors) for i in PRODUCTS[op]]
        weighted = any(pair is not None and _stored(pair.input[0], tensors) for pair in operands)
        return None not in operands and (weighted or _requantized(node, tensors))
    if op not in _ELEMENTWISE or not own:
        return False
    read = [n for n in node.input if n and n not in tensors.constants and tensors.types.get(n) in FLOATS]
    return bool(read) and all(_dequantized(n, tensors) for n in read) and _requantized(node, tensors)


def _stored(name: str, tensors: _Tensors) -> bool:
    """Whether the codes are a constant, or made of one."""
    maker = tensors.makers.get(name)
    return name in tensors.constants or (maker is not None and maker.input[0] in tensors.constants)


def _requantized(node: NodeProto, tensors: _Tensors) -> bool:
    """Whether its results are read, and only to be quantized."""
    readers = [user.op_type for name in node.output for user in tensors.users.get(name, ())]
    return bool(readers) and all(reader == "QuantizeLinear" for reader in readers)


def _dequantized(name: str, tensors: _Tensors) -> bool:
    return _dequantizer(name, tensors) is not None


def _dequantizer(name: str, tensors: _Tensors) -> NodeProto | None:
    """The DequantizeLinear that makes the tensor, or what it is a rearranged copy of."""
    node = tensors.makers.get(name)
    while node is not None and node.op_type in ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "ReorderInput"):
        node = tensors.makers.get(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _macs(node: NodeProto, tensors: _Tensors) -> int:
    if node.op_type in RECURRENT_AS_RUN:  # all of W and R at each step
        steps, *weights = (tensors.shapes.get(name, (0,)) for name in node.input[:3])
        return recurrent(steps, weights)
    return _product_macs(node, tensors) if node.op_type in PRODUCTS else 0


def _product_macs(node: NodeProto, tensors: _Tensors) -> int:
    first, second = (node.input[i] for i in PRODUCTS[node.op_type])
    source, weight = tensors.shapes.get(first), tensors.shapes.get(second)
    out = tensors.shapes.get(node.output[0])
    if not source or not weight or not out:
        return 0
    attributes = {a.name: a.i for a in node.attribute}
    if node.op_type == "MultiHeadAttention":  # [B, S, N H] and [B, L, N H]: Q K^T, and as much again with V
        return 2 * prod(source) * weight[-2]
    if node.op_type == "QAttention":  # [B, S, C] and [C, 3 N H]
        return prod(source) * weight[-1]
    if "Conv" in node.op_type:
        image = source if node.op_type == "ConvTranspose" else out
        return convolution(weight, (image[0], image[-1], *image[1:-1]) if attributes.get("channels_last", 0) else image)
    rows = source[-2] if attributes.get("transA", 0) and len(source) > 1 else source[-1]  # weights may be packed
    return product((rows,), out)
