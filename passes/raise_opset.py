"""Bring the model to an operator set in which Q/DQ nodes can say what quantization needs.

QuantizeLinear and DequantizeLinear have an axis (per-channel scales) from opset 13 on, and take float16 and
bfloat16 from opset 19 on: see their version history in the ONNX operator reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxq.errors import ModelError

if TYPE_CHECKING:
    from onnxq.graph import Graph

NEWEST = 25
"""The newest opset that onnxq writes: ONNX Runtime reads no newer one yet."""

BATCHED_SCAN = 8
"""The only opset in which Scan has a batch axis; onnx's converter keeps such nodes, and with them a wrong model."""

HALF_OPSET = 19
"""The first opset whose Q/DQ nodes take half-precision tensors."""


@dataclass(frozen=True)
class RaiseOpset:
    """Convert a model older than `minimum` (19 where tensors of half precision will be quantized) or newer than 25.

    Attributes:
        minimum: opset.
        every_tensor: whether activations without a layer around them are quantized too.
    """

    minimum: int = 13
    every_tensor: bool = False

    def __call__(self, graph: Graph) -> int:
        """Convert the default operator set if need be; return 1 if so, else 0.

        Raises:
            ModelError: an operator has no conversion, or is a Scan of opset 8.
        """
        if "" not in graph.domains:  # nodes of other domains only: nothing here has an opset to raise
            return 0
        if graph.opset > NEWEST:
            graph.convert_opset(NEWEST)
            return 1
        needed = max(self.minimum, HALF_OPSET) if self._has_halves(graph) else self.minimum
        if graph.opset >= needed:
            return 0
        if graph.opset == BATCHED_SCAN and any(node.op_type == "Scan" for node in graph.nodes):
            raise ModelError(
                f"the model has a Scan node of opset {BATCHED_SCAN}, which later opsets cannot express",
                f"Export the model again with opset {max(self.minimum, 17)}.",
            )
        graph.convert_opset(needed)
        return 1

    def _has_halves(self, graph: Graph) -> bool:
        """Whether a tensor that may be quantized is of half precision; vectors (biases, scales) are not quantized."""
        weights = (value for value in graph.weights.values() if (graph.rank(value) or 0) > 1)
        activations = graph.values() if self.every_tensor else ()
        return any(graph.dtype(value) in ("float16", "bfloat16") for value in (*weights, *activations))
