"""Fill in the types and shapes of activations with onnx's shape inference.

Tolerant: what onnx cannot infer stays unknown, and no later pass may rely on more than it finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.graph import Graph


def infer_shapes(graph: Graph) -> int:
    """Infer types and shapes; return the number of activations about which something new is known."""
    before = [(graph.dtype(v), graph.shape(v)) for v in graph.values()]
    graph.infer_shapes()
    after = [(graph.dtype(v), graph.shape(v)) for v in graph.values()]
    return sum(old != new for old, new in zip(before, after, strict=True))
