"""Remove nodes whose outputs nothing needs, and weights that nothing reads.

What a body of If, Loop or Scan reads is needed. The model's inputs and outputs stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.graph import Graph


def remove_unused(graph: Graph) -> int:
    """Remove dead nodes and dead weights; return how many of both."""
    return graph.remove_unused()
