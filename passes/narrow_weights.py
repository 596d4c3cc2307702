"""Mode weight-only: the weight of a MatMul or Gemm as codes, and in front of the product what gives it back.

Integers [K, N] have a DequantizeLinear, one scale per column (axis 1), or one per block of rows (axis 0, block_size):
the forms that ONNX Runtime's providers fuse to MatMulNBits, and of which TensorRT takes the 4-bit blocks. Other formats
have the nodes of `onnxq.forms`. A Gemm's transposed weight is stored upright. A weight of other operators gets a scale
per output channel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxq.formats.affine import of_blocks
from onnxq.formats.families import encode
from onnxq.forms import has_operator, write, write_operator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxq.blocks import Blocks
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
    chosen: Mapping[str, Blocks] = field(default_factory=dict)
    operators: bool = False
    float4: bool = False

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
        found = self.chosen.get(point.tensor)
        stored = encode(matrix, point.format, self.method) if found is None else of_blocks(found, point.format)
        if self.operators and has_operator(stored):
            write_operator(graph, str(value.name), stored, users)
            return
        real = write(graph, str(value.name), stored, str(matrix.dtype), float4=self.float4)
        for node in users:
            graph.set_input(node, 1, real)
            graph.set_attribute(node, "transB", None)
