"""Mode weight-only: the weight of a MatMul or Gemm as codes [K, N] and a DequantizeLinear in front of the product.

One scale per column (axis 1), or one per block of rows (axis 0, block_size): the forms that ONNX Runtime's providers
fuse to MatMulNBits, and of which TensorRT takes the 4-bit blocks. A Gemm's transposed weight is stored upright. A
weight of other operators gets a scale per output channel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from onnxq.blocks import quantize_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from onnxq.blocks import Blocks
    from onnxq.graph import Graph, Node, Value
    from onnxq.plan import Plan, WeightPoint

TYPES = {8: np.dtype(np.int8), 4: np.dtype(ml_dtypes.int4), 3: np.dtype(ml_dtypes.int4)}
"""Bits -> what holds a code: ONNX has no type of 3 bits, so that codes of 3 bits take 4 in the file."""


@dataclass(frozen=True)
class NarrowWeights:
    """Quantize the matrices of the plan.

    Attributes:
        plan: which weights, in how many bits, in which blocks.
        method: "absmax" or "mse", as `blocks.quantize_blocks` knows it.
        chosen: weight -> codes and scales [K, N] that were found from data (`onnxq.weights`); they win.
    """

    plan: Plan
    method: Any = "absmax"
    chosen: Mapping[str, Blocks] = field(default_factory=dict)

    def __call__(self, graph: Graph) -> int:
        """Return how many weights were stored narrow."""
        nodes = {n.name or "": n for n in graph.nodes}
        count = 0
        for point in self.plan.weights:
            users = [nodes[n] for n, _ in point.uses if nodes[n].op_type in ("MatMul", "Gemm")]
            for transposed in (False, True):
                same = [n for n in users if bool(graph.attribute(n, "transB", 0)) is transposed]
                if same:
                    self._store(graph, point, same, transposed=transposed)
                    count += 1
        return count

    def _store(self, graph: Graph, point: WeightPoint, users: list[Node], *, transposed: bool) -> None:
        value = users[0].inputs[1]
        array = graph.const(value)
        assert value is not None  # noqa: S101  the plan holds only constants
        assert array is not None  # noqa: S101  likewise
        matrix = array.T if transposed else array
        real = self._dequantized(graph, str(value.name), matrix, point)
        for node in users:
            graph.set_input(node, 1, real)
            graph.set_attribute(node, "transB", None)

    def _dequantized(self, graph: Graph, name: str, matrix: npt.NDArray[Any], point: WeightPoint) -> Value:
        blocks = self.chosen.get(point.tensor)
        if blocks is None:
            blocks = quantize_blocks(matrix, 0, point.block_size, point.bits, self.method)
        per_column = point.block_size is None
        scale = blocks.scale[0] if per_column else blocks.scale
        kind = TYPES[point.bits]
        inputs = [
            graph.constant(f"{name}_quantized", blocks.codes.astype(kind)),
            graph.constant(f"{name}_scale", scale),
            graph.constant(f"{name}_zero_point", np.zeros(scale.shape, kind)),
        ]
        attributes = {"axis": 1} if per_column else {"axis": 0, "block_size": int(point.block_size or 0)}
        real = graph.add("DequantizeLinear", inputs, name=f"{name}_dequantized", attributes=attributes)
        graph.retype(real, str(matrix.dtype))
        return real
