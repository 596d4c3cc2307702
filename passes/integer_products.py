"""Q/DQ pairs around a matrix product or a 1x1 convolution become integers: MatMulInteger, its scales behind it.

    DQ(a, s_a) x DQ(B, s_B)  =  Cast(MatMulInteger(a, B)) * (s_a s_B),    s_B one number or one per column

exactly, for zero points 0: the sum of products of codes is an int32. Alpha of a Gemm goes into the scale, beta into
its constant C, transB into the stored weight; transA becomes a Transpose of codes. Columns are padded with zeros to a
multiple of 32 and cut off behind the product, because ONNX Runtime's CUDA kernel would copy the weight into padded
scratch on every call (integer_gemm.cc). A 1x1 convolution of stride 1 is such a product over pixels: its codes go
from NCHW to NHWC, its result back.

The int32 goes through float32: float16 ends at 65504, one product of 384 codes may reach 6 million.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.dtypes import FLOAT, NUMBERS

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

ALIGNED = 32
FLOATS = ("float32", "float16")
NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def integer_products(graph: Graph) -> int:
    """Rewrite every product whose operands come from int8 with zero point 0; return how many."""
    work = _Work(graph)
    return sum(work.rewrite(node) for node in graph.nodes if node.op_type in ("MatMul", "Gemm", "Conv"))


@dataclass(frozen=True, eq=False)
class _Codes:
    """What a DequantizeLinear dequantizes: the codes, and its scale in float64, of shape () or (channels,)."""

    value: Value
    scale: npt.NDArray[np.float64]
    axis: int | None


@dataclass
class _Work:
    graph: Graph
    stored: dict[tuple[int, bool], Value] = field(default_factory=dict)  # weights shared by several products
    turned: dict[int, Value] = field(default_factory=dict)  # codes of a tensor in NHWC, or transposed

    def rewrite(self, node: Node) -> bool:
        """Replace the node if its operands and form allow it."""
        if node.domain or self.graph.dtype(node.outputs[0]) not in FLOATS:
            return False
        a, b = self.codes(node.inputs[0]), self.codes(node.inputs[1])
        array = None if b is None else self.graph.const(b.value)
        if a is None or a.axis is not None or b is None or array is None or not self._fits(node, b, array):
            return False
        flipped = node.op_type == "Conv" or bool(self.graph.attribute(node, "transB", 0))
        columns = array.shape[0] if flipped else array.shape[1]
        scale = a.scale * b.scale * float(self.graph.attribute(node, "alpha", 1.0))
        product = self._product(node, self._activation(node, a.value), self._weight(b.value, array, flipped=flipped))
        result = self._real(node, product, np.broadcast_to(scale, columns), columns)
        self._finish(node, result)
        return True

    def codes(self, value: Value | None) -> _Codes | None:
        """The int8 codes behind a value, when its scale is a constant and its zero point 0."""
        graph = self.graph
        node = graph.producer(value, "DequantizeLinear")
        if node is None or node.inputs[0] is None or len(node.inputs) < 3:
            return None  # without a zero point the codes of a QuantizeLinear are uint8
        scale, zero = graph.const(node.inputs[1]), graph.const(node.inputs[2])
        if scale is None or zero is None or zero.dtype != np.int8 or zero.any():
            return None
        if graph.attribute(node, "block_size", 0):
            return None
        axis = None if scale.size == 1 else int(graph.attribute(node, "axis", 1))
        flat = scale.astype(np.float64).reshape(-1)
        return _Codes(node.inputs[0], flat[0] if axis is None else flat, axis)

    def _fits(self, node: Node, b: _Codes, array: npt.NDArray[Any]) -> bool:
        """Whether the weight is a matrix (a 1x1 kernel) whose scales go with the columns of the product."""
        attribute = self.graph.attribute
        if node.op_type == "Conv":
            plain = array.ndim == 4 and array.shape[2:] == (1, 1) and attribute(node, "group", 1) == 1
            plain = plain and not any(attribute(node, "pads", None) or ())
            plain = plain and all(s == 1 for s in attribute(node, "strides", None) or ())
            return plain and b.axis in (None, 0, -4)
        column = 0 if attribute(node, "transB", 0) else 1
        return array.ndim == 2 and b.axis in (None, column, column - 2)

    def _activation(self, node: Node, codes: Value) -> Value:
        """The codes with the summed axis last."""
        conv = node.op_type == "Conv"
        if not conv and not self.graph.attribute(node, "transA", 0):
            return codes
        if id(codes) not in self.turned:
            perm = NHWC if conv else (1, 0)
            turned = self.graph.add("Transpose", [codes], name=f"{codes.name}_turned", attributes={"perm": perm})
            self.graph.retype(turned, "int8")
            self.turned[id(codes)] = turned
        return self.turned[id(codes)]

    def _weight(self, codes: Value, array: npt.NDArray[Any], *, flipped: bool) -> Value:
        """[K, N] codes, N padded to a multiple of 32."""
        key = (id(codes), flipped)
        if key not in self.stored:
            matrix: npt.NDArray[Any] = array.reshape(array.shape[0], -1)
            matrix = matrix.T if flipped else matrix
            padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % ALIGNED)))
            same = not flipped and padded.shape == matrix.shape
            self.stored[key] = codes if same else self.graph.constant(f"{codes.name}_columns", padded)
        return self.stored[key]

    def _product(self, node: Node, a: Value, b: Value) -> Value:
        name = f"{node.outputs[0].name}_int32"
        product = self.graph.add("MatMulInteger", [a, b], name=name, before=node)
        self.graph.retype(product, "int32")
        return product

    def _real(self, node: Node, product: Value, scale: npt.NDArray[np.float64], columns: int) -> Value:
        """Int32 to the type of the node's output: Cast, Mul in float32, Cast, and the padding cut off."""
        graph, name = self.graph, str(node.outputs[0].name)
        factors = np.pad(scale, (0, -columns % ALIGNED)).astype(np.float32)
        real = self._step(node, "Cast", [product], f"{name}_real", "float32", to=FLOAT)
        factor = graph.constant(f"{name}_scales", factors)
        real = self._step(node, "Mul", [real, factor], f"{name}_scaled", "float32")
        kind = str(graph.dtype(node.outputs[0]))
        if kind != "float32":
            real = self._step(node, "Cast", [real], f"{name}_{kind}", kind, to=NUMBERS[kind])
        if columns % ALIGNED:
            bounds = [graph.constant(f"{name}_{what}", np.array([at])) for what, at in (("from", 0), ("to", columns))]
            axis = graph.constant(f"{name}_axis", np.array([-1]))
            real = self._step(node, "Slice", [real, *bounds, axis], f"{name}_columns", kind)
        return real

    def _finish(self, node: Node, result: Value) -> None:
        """Add the bias, bring a convolution back to NCHW, and let the result take the node's place."""
        graph, name = self.graph, str(node.outputs[0].name)
        kind = str(graph.dtype(node.outputs[0]))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            result = self._step(node, "Add", [result, self._bias(node, bias, kind)], f"{name}_biased", kind)
        if node.op_type == "Conv":
            result = self._step(node, "Transpose", [result], f"{name}_nchw", kind, perm=NCHW)
        result.shape = node.outputs[0].shape
        graph.absorb(node, result)

    def _bias(self, node: Node, bias: Value, kind: str) -> Value:
        beta = float(self.graph.attribute(node, "beta", 1.0))
        if beta == 1.0:
            return bias
        array = self.graph.const(bias)
        name = f"{bias.name}_scaled"
        if array is not None:
            return self.graph.constant(name, (array.astype(np.float64) * beta).astype(array.dtype))
        return self._step(node, "Mul", [bias, self.graph.constant(f"{name}_beta", np.array(beta, kind))], name, kind)

    def _step(self, node: Node, op: str, inputs: list[Value], name: str, kind: str, **attributes: Any) -> Value:  # noqa: ANN401  ONNX attributes
        made = self.graph.add(op, inputs, name=name, before=node, attributes=attributes)
        self.graph.retype(made, kind)
        return made
