"""Mode weight-only: the weight of a MatMul or Gemm as codes, and in front of the product what gives it back.

Integers [K, N] have a DequantizeLinear, one scale per column (axis 1), or one per block of rows (axis 0, block_size):
the forms that ONNX Runtime's providers fuse to MatMulNBits, and of which TensorRT takes the 4-bit blocks. Other formats
have the nodes of `onnxq.forms`. A Gemm's transposed weight is stored upright, a convolution's as a matrix of one column
for each output channel. An int8 weight of other operators gets a scale per output channel (`QuantizeWeights`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.formats.families import encode
from onnxq.forms import has_operator, write, write_operator
from onnxq.plan import INT8

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxq.formats.stored import Stored
    from onnxq.graph import Graph, Node
    from onnxq.plan import Plan, WeightPoint


@dataclass(frozen=True)
class NarrowWeights:
    """Quantize the matrices of the plan.

    Attributes:
        plan: which weights, in how many bits, in which blocks.
        method: "absmax" or "mse", as `blocks.quantize_blocks` knows it.
        chosen: weight -> codes and scales [K, N] that were found from data (`onnxq.weights`); they win.
        operators: whether ONNX Runtime's operators take the place of products where there are such.
        float4: whether the runtime reads float4 codes.
    """

    plan: Plan
    method: Any = "absmax"
    chosen: Mapping[str, Stored] = field(default_factory=dict)
    operators: bool = False
    float4: bool = False

    def __call__(self, graph: Graph) -> int:
        """Return how many weights were stored narrow."""
        nodes = {n.name or "": n for n in graph.nodes}
        count = 0
        for point in self.plan.weights:
            users = [nodes[n] for n, _ in point.uses if nodes[n].op_type in ("MatMul", "Gemm")]
            convolutions = [nodes[n] for n, _ in point.uses if nodes[n].op_type == "Conv" and point.format != INT8]
            if convolutions:
                self._store_kernel(graph, point, convolutions)
                count += 1
            for transposed in (False, True):
                same = [n for n in users if bool(graph.attribute(n, "transB", 0)) is transposed]
                if same:
                    self._store(graph, point, same, transposed=transposed)
                    count += 1
        return count

    def _store_kernel(self, graph: Graph, point: WeightPoint, users: list[Node]) -> None:
        """The weight of convolutions [O, I, ...] as a matrix [I ..., O], and turned back behind it."""
        value = users[0].inputs[1]
        array = graph.const(value)
        assert value is not None  # noqa: S101  the plan holds only constants
        assert array is not None  # noqa: S101  likewise
        name, dtype = str(value.name), str(array.dtype)
        matrix = write(graph, name, encode(array.reshape(len(array), -1).T, point.format, self.method), dtype)
        turned = graph.add("Transpose", [matrix], name=f"{name}_turned", attributes={"perm": [1, 0]})
        graph.retype(turned, dtype)
        shape = graph.constant(f"{name}_kernel", np.array(array.shape, np.int64))
        real = graph.add("Reshape", [turned, shape], name=f"{name}_real", like=value)
        for node in users:
            graph.set_input(node, 1, real)

    def _store(self, graph: Graph, point: WeightPoint, users: list[Node], *, transposed: bool) -> None:
        value = users[0].inputs[1]
        array = graph.const(value)
        assert value is not None  # noqa: S101  the plan holds only constants
        assert array is not None  # noqa: S101  likewise
        matrix = array.T if transposed else array
        found = self.chosen.get(point.tensor)
        fits = found is not None and found.format == point.format
        stored = found if fits and found else encode(matrix, point.format, self.method)
        if self.operators and has_operator(stored):
            write_operator(graph, str(value.name), stored, users)
            return
        real = write(graph, str(value.name), stored, str(matrix.dtype), float4=self.float4)
        for node in users:
            graph.set_input(node, 1, real)
            graph.set_attribute(node, "transB", None)
