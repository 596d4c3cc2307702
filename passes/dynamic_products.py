"""Mode dynamic: products and convolutions on integers, their input quantized with the range it turns out to have.

    a, s_a, z_a = DynamicQuantizeLinear(x)
    x B  ≈  Cast(MatMulInteger(a, B, z_a)) * (s_a s_B)

and the same with ConvInteger. In this order of nodes ONNX Runtime's CPU provider fuses the product, its scales and
a bias behind it to DynamicQuantizeMatMul. One DynamicQuantizeLinear serves all readers of a tensor.

With a scale per token each row of x has its own, symmetric: s = max|row| / 127, codes = Cast(Round(x / s) + 128), zero
point 128: ONNX Runtime fuses a product of two int8 tensors to an operator that it has no kernel for. The product is
multiplied by one scale after the other, (x B s) s_B: behind a product of both scales ONNX Runtime 1.31 fuses a bias in
too (MatMulIntegerToFloat), and with scales of rows its results are then wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.numerics import SMALLEST_SCALE, quantize, weight_params

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from onnxq.formats.stored import Stored
    from onnxq.graph import Graph, Node, Value
    from onnxq.numerics import QType
    from onnxq.plan import Plan

FLOAT32, UINT8 = 1, 2
CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


@dataclass(frozen=True)
class DynamicProducts:
    """Rewrite the MatMul, Gemm and Conv nodes of the plan.

    Attributes:
        plan: which nodes, and along which axis of their weight.
        qtype: the weights' grid, symmetric.
        method: how the range of a channel is chosen, as `numerics.weight_params` knows it.
        per_token: a symmetric scale for each row of the input of a product, in place of one for all of it.
        chosen: weight -> codes and scales [K, N] that were found from data (`onnxq.weights`); they win.
    """

    plan: Plan
    qtype: QType
    method: Any = "absmax"
    per_token: bool = False
    chosen: Mapping[str, Stored] = field(default_factory=dict)

    def __call__(self, graph: Graph) -> int:
        """Return how many nodes were rewritten."""
        nodes = {n.name or "": n for n in graph.nodes}
        work = _Work(graph, self.qtype, self.method, self.per_token)
        found = [(nodes[n], w) for w in self.plan.weights for n, _ in w.uses]
        products = [(node, point) for node, point in found if node.op_type in ("MatMul", "Gemm", "Conv")]
        for node, point in products:
            work.rewrite(node, point.axis, self.chosen.get(point.tensor))
        graph.sort()  # the quantized form of a tensor stands before its first rewritten reader, not the first of all
        return len(products)


@dataclass
class _Work:
    graph: Graph
    qtype: QType
    method: Any
    per_token: bool
    inputs: dict[int, tuple[Value, Value, Value]] = field(default_factory=dict)
    weights: dict[tuple[object, ...], tuple[Value, Value, Value]] = field(default_factory=dict)

    def rewrite(self, node: Node, axis: int | None, chosen: Stored | None) -> None:
        graph, name = self.graph, str(node.outputs[0].name)
        value, weight = node.inputs[0], node.inputs[1]
        assert value is not None  # noqa: S101  a product has two operands
        assert weight is not None  # noqa: S101  likewise
        stored, none, factors = self._stored(node, weight, axis, chosen)
        quantized, step, zero = self._quantized(node, value)
        product = self._product(node, [quantized, stored, zero, none], f"{name}_int32")
        real = self._step(node, "Cast", [product], f"{name}_real", to=FLOAT32)
        if self.per_token:
            rows = self._step(node, "Mul", [real, step], f"{name}_rows")
            result = self._step(node, "Mul", [rows, factors], f"{name}_scaled")
        else:
            both = self._step(node, "Mul", [step, factors], f"{name}_scales")
            result = self._step(node, "Mul", [real, both], f"{name}_scaled")
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            result = self._step(node, "Add", [result, self._bias(node, node.inputs[2])], f"{name}_biased")
        result.shape = node.outputs[0].shape
        graph.absorb(node, result)

    def _stored(self, node: Node, weight: Value, axis: int | None, chosen: Stored | None) -> tuple[Value, Value, Value]:
        """Codes, zero point and scales, once for all nodes that read the weight alike: layers may share theirs."""
        graph = self.graph
        form = [graph.attribute(node, name) for name in ("alpha", "transB")]
        key = (id(weight), axis, node.op_type, *form)
        if key not in self.weights:
            array = graph.const(weight)
            assert array is not None  # noqa: S101  the plan holds only constants
            codes, scale = self._weight(node, array, axis) if chosen is None else self._chosen(node, chosen)
            self.weights[key] = (
                graph.constant(f"{weight.name}_quantized", codes),
                graph.constant(f"{weight.name}_zero_point", np.array(0, codes.dtype)),
                graph.constant(f"{weight.name}_scale", scale),
            )
        return self.weights[key]

    def _weight(
        self, node: Node, array: npt.NDArray[Any], axis: int | None
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        """Codes as the integer operator reads them, and scales that broadcast over its output."""
        params = weight_params(array, axis, self.method, self.qtype)
        codes: npt.NDArray[Any] = quantize(array, params)
        if node.op_type == "Conv":
            return codes, params.scale.reshape(-1, *(1,) * (array.ndim - 2)) if params.scale.ndim else params.scale
        alpha = float(self.graph.attribute(node, "alpha", 1.0))
        scale = (params.scale.astype(np.float64) * alpha).astype(np.float32)
        return np.ascontiguousarray(codes.T) if self.graph.attribute(node, "transB", 0) else codes, scale

    def _chosen(self, node: Node, found: Stored) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        alpha = float(self.graph.attribute(node, "alpha", 1.0))
        return found.arrays["codes"], (found.arrays["scale"].astype(np.float64) * alpha).astype(np.float32)

    def _quantized(self, node: Node, value: Value) -> tuple[Value, Value, Value]:
        if id(value) not in self.inputs and self.per_token:
            self.inputs[id(value)] = self._tokens(node, value)
        if id(value) not in self.inputs:
            codes = self.graph.add("DynamicQuantizeLinear", [value], name=f"{value.name}_quantized", before=node)
            maker = codes.producer()
            assert maker is not None  # noqa: S101  it was just made
            self.graph.retype(codes, "uint8")
            scale = self.graph.extend(maker, f"{value.name}_scale", "float32")
            self.inputs[id(value)] = codes, scale, self.graph.extend(maker, f"{value.name}_zero_point", "uint8")
        return self.inputs[id(value)]

    def _tokens(self, node: Node, value: Value) -> tuple[Value, Value, Value]:
        """Codes, scales [..., 1] and zero point of the rows of x; a row of zeros has the smallest scale."""
        graph, name = self.graph, str(value.name)
        last = graph.constant(f"{name}_last", np.array([-1], np.int64))
        amax = self._step(node, "ReduceMax", [self._step(node, "Abs", [value], f"{name}_abs"), last], f"{name}_amax")
        largest = graph.constant(f"{name}_largest", np.array(127, np.float32))
        least = graph.constant(f"{name}_least", np.array(SMALLEST_SCALE, np.float32))
        found = self._step(node, "Div", [amax, largest], f"{name}_steps")
        scale = self._step(node, "Max", [found, least], f"{name}_scale")
        steps = self._step(node, "Div", [value, scale], f"{name}_steps")
        middle = graph.constant(f"{name}_middle", np.array(128, np.float32))
        moved = self._step(node, "Add", [self._step(node, "Round", [steps], f"{name}_round"), middle], f"{name}_moved")
        codes = self._step(node, "Cast", [moved], f"{name}_codes", to=UINT8)
        graph.retype(codes, "uint8")
        return codes, scale, graph.constant(f"{name}_zero_point", np.array(128, np.uint8))

    def _product(self, node: Node, inputs: list[Value], name: str) -> Value:
        conv = node.op_type == "Conv"
        said = {a: self.graph.attribute(node, a) for a in CONV} if conv else {}
        made = self.graph.add(
            "ConvInteger" if conv else "MatMulInteger",
            inputs,
            name=name,
            before=node,
            attributes={a: list(v) if isinstance(v, tuple) else v for a, v in said.items() if v is not None},
        )
        self.graph.retype(made, "int32")
        return made

    def _bias(self, node: Node, bias: Value) -> Value:
        graph = self.graph
        beta = float(graph.attribute(node, "beta", 1.0))
        array = graph.const(bias)
        if node.op_type == "Conv":
            channels = (-1, *(1,) * ((graph.rank(node.inputs[1]) or 3) - 2))
            if array is not None:
                return graph.constant(f"{bias.name}_channels", array.reshape(channels))
            target = graph.constant(f"{bias.name}_shape", np.array(channels))
            return self._step(node, "Reshape", [bias, target], f"{bias.name}_channels")
        if beta == 1.0:
            return bias
        if array is not None:
            return graph.constant(f"{bias.name}_scaled", (array.astype(np.float64) * beta).astype(array.dtype))
        factor = graph.constant(f"{bias.name}_beta", np.array(beta, np.float32))
        return self._step(node, "Mul", [bias, factor], f"{bias.name}_scaled")

    def _step(self, node: Node, op: str, inputs: list[Value], name: str, **attributes: Any) -> Value:  # noqa: ANN401  ONNX attributes
        made = self.graph.add(op, inputs, name=name, before=node, attributes=attributes)
        self.graph.retype(made, "float32")
        return made
