"""Replace operators between DequantizeLinear and QuantizeLinear by ONNX Runtime's integer operators.

What the provider's optimizer would do, done here: the file then says what runs. A product of matrices that writes
float becomes MatMulIntegerToFloat, which adds its bias too; the others are QLinearConv, QLinearMatMul, QGemm,
QLinearAdd, QLinearMul, QLinearConcat, QLinearSigmoid, QLinearSoftmax, QLinearLeakyRelu, QLinearAveragePool and
QLinearGlobalAveragePool (docs/ContribOperators.md of ONNX Runtime has their inputs). What only moves data reads and
writes the integers themselves.

Pairs that a model came with may be of other types than ours, and scales may change at what only moves data. There is
no kernel from int8 to uint8 or back, nor of int8 by uint8: a product of the first sort writes float, all else stays
between its pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.operators import CONTRIB

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value

DOMAINS = {"Conv": "", "MatMul": ""}
"""The two integer operators that ONNX itself has; the others are ONNX Runtime's."""
SIMPLE = {
    "Add": "QLinearAdd",
    "Mul": "QLinearMul",
    "Sigmoid": "QLinearSigmoid",
    "LeakyRelu": "QLinearLeakyRelu",
    "Softmax": "QLinearSoftmax",
    "AveragePool": "QLinearAveragePool",
    "GlobalAveragePool": "QLinearGlobalAveragePool",
}
"""Operator -> the integer operator with inputs (x, scale, zero point) for each operand, then the output's two."""


_PRODUCTS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class ToOperators:
    """Rewrite a lowered graph.

    Attributes:
        movers: op types that only move data.
    """

    movers: frozenset[str]

    def __call__(self, graph: Graph) -> int:
        """Return how many nodes were replaced."""
        return sum(self._replace(graph, node) for node in graph.nodes)

    def _replace(self, graph: Graph, node: Node) -> bool:
        read = _operands(graph, node)
        if not read:
            return False
        quantizers = [_quantizer(graph, v, mover=node.op_type in self.movers) for v in node.outputs]
        written = [q for q in quantizers if q is not None]
        whole = len(written) == len(quantizers)
        if node.op_type in self.movers:
            kept = whole and all(_numbers(graph, q) == _numbers(graph, read[0]) for q in written)
            return kept and _move(graph, node, read[0], written)
        kinds = {_kind(graph, n) for n in read[: 1 if node.op_type in _PRODUCTS else None]}
        if not whole or {_kind(graph, written[0])} != kinds:
            return _to_float(graph, node, read)
        made = _integer(graph, node, read, written[0])
        if made is None:
            return False
        graph.replace_uses(written[0].outputs[0], made)
        return True


def _operands(graph: Graph, node: Node) -> list[Node]:
    """The DequantizeLinears of what it computes with; none where that is not all, or no kernel multiplies them."""
    if node.domain not in ("", "ai.onnx"):
        return []
    count = 2 if node.op_type in (*_PRODUCTS, "Add", "Mul") else 1
    count = len(node.inputs) if node.op_type == "Concat" else count
    found = [s for v in node.inputs[:count] if (s := graph.producer(v, "DequantizeLinear")) is not None]
    if len(found) < count or (node.op_type in _PRODUCTS and [_kind(graph, n) for n in found] == ["int8", "uint8"]):
        return []
    return found


def _quantizer(graph: Graph, value: Value, *, mover: bool) -> Node | None:
    """The QuantizeLinear that alone reads the tensor, a Relu or Clip between the two aside."""
    user = graph.only_user(value)
    if not mover and user is not None and user.op_type in ("Relu", "Clip") and not user.domain:
        user = graph.only_user(user.outputs[0])
    return user if user is not None and user.op_type == "QuantizeLinear" else None


def _kind(graph: Graph, node: Node) -> str:
    """The type of the codes of a pair's node."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    codes = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    return graph.dtype(codes if zero is None else zero) or "uint8"


def _numbers(graph: Graph, node: Node) -> tuple[str, float | None, float | None]:
    """(type, scale, zero point) of a pair's node with one scale."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return _kind(graph, node), graph.scalar(node.inputs[1]), 0.0 if zero is None else graph.scalar(zero)


def _triple(graph: Graph, node: Node) -> list[Value | None]:
    """(integers, scale, zero point) that a DequantizeLinear reads."""
    return [node.inputs[0], *_grid(graph, node, node.inputs[0])]


def _grid(graph: Graph, node: Node, codes: Value | None) -> list[Value | None]:
    """(scale, zero point) of a pair's node; the integer operators want the zero point that pairs may leave out."""
    scale, zero = (*node.inputs[1:3], None)[:2]
    if zero is None and scale is not None:
        shape = [d for d in graph.shape(scale) or () if isinstance(d, int)]
        zero = graph.constant(f"{scale.name}/zero", np.zeros(shape, graph.dtype(codes) or "uint8"))
    return [scale, zero]


def _move(graph: Graph, node: Node, source: Node, written: list[Node]) -> bool:
    graph.set_input(node, 0, source.inputs[0])
    for quantizer, output in zip(written, node.outputs, strict=True):
        graph.retype(output, graph.dtype(source.inputs[0]) or "uint8")
        graph.replace_uses(quantizer.outputs[0], output)
    return True


def _integer(graph: Graph, node: Node, read: list[Node], quantizer: Node) -> Value | None:
    target = _grid(graph, quantizer, quantizer.outputs[0])
    if node.op_type in ("Conv", "Gemm"):
        bias = _bias(graph, node, read)
        triples = [*_triple(graph, read[0]), *_triple(graph, read[1])]
        inputs = [*triples, *target, bias] if node.op_type == "Conv" else [*triples, bias, *target]
        while inputs[-1] is None:
            inputs.pop()
        return _add(graph, node, "QLinearConv" if node.op_type == "Conv" else "QGemm", inputs, quantizer)
    if node.op_type == "MatMul":
        return _add(
            graph, node, "QLinearMatMul", [*_triple(graph, read[0]), *_triple(graph, read[1]), *target], quantizer
        )
    if node.op_type == "Concat":
        inputs = [*target, *(value for each in read for value in _triple(graph, each))]
        return _add(graph, node, "QLinearConcat", inputs, quantizer)
    if node.op_type in SIMPLE:
        inputs = [*(value for each in read for value in _triple(graph, each)), *target]
        return _add(graph, node, SIMPLE[node.op_type], inputs, quantizer)
    return None


def _to_float(graph: Graph, node: Node, read: list[Node]) -> bool:
    """A product that writes float."""
    if node.op_type == "Gemm":
        made = _add(
            graph, node, "QGemm", [*_triple(graph, read[0]), *_triple(graph, read[1]), _bias(graph, node, read)], None
        )
        graph.absorb(node, made)
        return True
    if node.op_type != "MatMul":
        return False
    codes, scales, zeros = (list(each) for each in zip(*(_triple(graph, n) for n in read), strict=True))
    inputs = [*codes, *scales, *zeros]
    last, bias = _biased(graph, node)
    if bias is not None:
        inputs.append(bias)
    made = _add(graph, node, "MatMulIntegerToFloat", inputs, None)
    graph.absorb(last, made)
    return True


def _biased(graph: Graph, node: Node) -> tuple[Node, Value | None]:
    """The node whose result the fused operator gives, and the bias that it takes along: one value for each column."""
    user = graph.only_user(node.outputs[0])
    if user is None or user.op_type not in ("Add", "Sum") or user.domain:
        return node, None
    index = next((i for i, v in enumerate(user.inputs) if graph.is_const(v)), None)
    array = None if index is None else graph.const(user.inputs[index])
    shape = graph.shape(node.outputs[0])
    if index is None or array is None or not shape or array.size != shape[-1] or array.shape[-1] != shape[-1]:
        return node, None
    bias = graph.constant(f"{node.name}/bias", array.reshape(-1))
    if len(user.inputs) == 2:
        return user, bias
    kept = [v for i, v in enumerate(user.inputs) if i != index]
    output = user.outputs[0]
    graph.absorb(user, graph.add("Sum", kept, name=f"{output.name}/rest", before=user, like=output))
    return node, bias


def _bias(graph: Graph, node: Node, read: list[Node]) -> Value | None:
    """The bias in int32, in steps of scale_x * scale_w."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return None
    stored = graph.producer(bias, "DequantizeLinear")
    if stored is not None:
        return stored.inputs[0]
    array = np.asarray(graph.const(bias), np.float64).reshape(-1)
    step = np.asarray(graph.const(read[0].inputs[1]), np.float64) * np.asarray(
        graph.const(read[1].inputs[1]), np.float64
    )
    bounds = np.iinfo(np.int32)
    codes = np.clip(np.rint(array / np.broadcast_to(step.reshape(-1), array.shape)), bounds.min, bounds.max)
    return graph.constant(f"{bias.name}_quantized", codes.astype(np.int32))


def _add(graph: Graph, node: Node, op_type: str, inputs: list[Value | None], quantizer: Node | None) -> Value:
    attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    if op_type == "QGemm":
        attributes.pop("beta", None)
    if op_type == "QLinearSoftmax":
        attributes = {"axis": graph.attribute(node, "axis", -1 if graph.opset >= 13 else 1), "opset": graph.opset}
    if op_type in ("QLinearAveragePool", "QLinearGlobalAveragePool"):
        attributes = {k: v for k, v in attributes.items() if k != "dilations"} | {"channels_last": 0}
    like = node.outputs[0] if quantizer is None else quantizer.outputs[0]
    domain = DOMAINS.get(node.op_type, CONTRIB) if quantizer is not None or node.op_type == "Gemm" else CONTRIB
    name = f"{like.name}/integer"
    return graph.add(op_type, inputs, name=name, before=node, attributes=attributes, like=like, domain=domain)
