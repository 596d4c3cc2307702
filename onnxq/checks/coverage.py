"""P35 and the summary: how much of the work is predicted to run in which precision, and why the rest is float."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from onnxq.checks.finding import note
from onnxq.checks.index import CONVS, WEIGHTED, integer, is_integer_operator, is_onnx
from onnxq.checks.islands import Transition, low_precision, precision, transitions
from onnxq.checks.scales import qtype
from onnxq.dtypes import FLOATS, type_name
from onnxq.operators import RECURRENT, RECURRENT_AS_RUN
from onnxq.work import convolution, product, recurrent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from onnx import NodeProto

    from onnxq.checks.finding import Breach
    from onnxq.checks.index import Model

# operator of integers -> (the float operator it stands for, where its weight is)
_INTEGER_PRODUCTS = {
    "QLinearConv": ("Conv", 3),
    "ConvInteger": ("Conv", 1),
    "QLinearMatMul": ("MatMul", 3),
    "MatMulInteger": ("MatMul", 1),
    "QGemm": ("Gemm", 3),
}


@dataclass(frozen=True)
class Summary:
    """What is predicted of the whole model.

    Attributes:
        macs: precision -> multiply-accumulates of one run in it, most first; unknown dimensions count as 1, and a
            subgraph body as run once. Of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN; others count nothing.
        nodes: precision -> how many of these operators run in it.
        reformats: every change of precision along an edge that costs a pass of its own.
    """

    macs: Mapping[str, int]
    nodes: Mapping[str, int]
    reformats: tuple[Transition, ...]

    def share(self, kind: str) -> float:
        """Share of the multiply-accumulates in a precision; 0 when there are none."""
        total = sum(self.macs.values())
        return self.macs.get(kind, 0) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain values."""
        return {
            "macs": dict(self.macs),
            "nodes": dict(self.nodes),
            "reformats": [asdict(transition) for transition in self.reformats],
        }


def summarize(models: Iterable[Model]) -> Summary:
    """The summary over the graphs of one model."""
    work: Counter[str] = Counter()
    nodes: Counter[str] = Counter()
    reformats: list[Transition] = []
    for model in models:
        for node in _products(model):
            kind = precision(model, node)
            work[kind] += macs(model, node)
            nodes[kind] += 1
        reformats.extend(transitions(model))
    return Summary(dict(work.most_common()), dict(nodes.most_common()), tuple(reformats))


def coverage(model: Model) -> Iterator[Breach]:
    """Every layer with weights and matrix product that does not run in int8 or fp8 is named with the reason."""
    for node in _products(model):
        if not low_precision(model, node):
            share = macs(model, node)
            yield note(node, f"{precision(model, node)}, {share:,} MACs: {_reason(model, node)}")


def macs(model: Model, node: NodeProto) -> int:
    """Multiply-accumulates of one run, see `onnxq.work`; unknown dimensions and ranks count as 1."""
    if node.op_type in RECURRENT_AS_RUN:
        return recurrent(model.shapes.get(node.input[0]), (model.shapes.get(name, ()) for name in node.input[1:3]))
    kind, slot = _INTEGER_PRODUCTS.get(node.op_type, (node.op_type, 1))
    weight = model.shapes.get(node.input[slot]) if slot < len(node.input) else None
    out = model.shapes.get(node.input[0] if kind == "ConvTranspose" else node.output[0]) or None
    if not weight:
        return 0
    if packed := integer(node, "K", 0):  # MatMulNBits and MatMulBnb4 say it; their weights are packed
        return product((packed, integer(node, "N", 1)), out)
    if kind in CONVS:
        return convolution(weight, out)
    return product(weight, out, transposed=bool(integer(node, "transB", 0)))


def _products(model: Model) -> Iterator[NodeProto]:
    for node in model.nodes:
        if is_product(node) and node.output:
            yield node


def is_product(node: NodeProto) -> bool:
    """Whether a node multiplies by weights, or matrices by one another."""
    if is_integer_operator(node):
        return node.op_type in {*_INTEGER_PRODUCTS, *RECURRENT_AS_RUN}
    return is_onnx(node) and node.op_type in WEIGHTED | RECURRENT


def _reason(model: Model, node: NodeProto) -> str:
    if is_integer_operator(node):
        return f"TensorRT has no {node.op_type}"
    if node.op_type in RECURRENT:
        return "recurrent, runs in float"
    makers = [model.dequantizer(name) for name in node.input[:2]]
    kinds = [None if maker is None else qtype(model, maker) for maker in makers]
    if None not in makers:
        return f"its operands are {' and '.join(map(type_name, kinds))}"
    if any(makers):
        return f"only {node.input[0] if makers[0] else node.input[1]} is quantized"
    if any(dtype in FLOATS and model.constant(name) for name in node.input[:2] if (dtype := model.types.get(name))):
        return "neither its input nor its weight is quantized"
    return "product of two activations, neither quantized"
