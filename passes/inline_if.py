"""Put the branch that is always taken in the place of an If whose condition is a constant.

Exporters write such an If where a shape decides, and a folded shape is a constant. In the main graph the branch is
shaped, folded and quantized like everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node


def inline_if(graph: Graph) -> int:
    """Inline every branch that is always taken, at any depth; return how many."""
    return sum(_inline(graph, node) for node in graph.nodes)


def _inline(graph: Graph, node: Node) -> int:
    taken = graph.scalar(node.inputs[0]) if node.op_type == "If" and node.domain in ("", "ai.onnx") else None
    if taken is None:
        return sum(inline_if(part) for part in graph.bodies_of(node))
    branch = "then_branch" if taken else "else_branch"
    return 1 + sum(_inline(graph, moved) for moved in graph.inline(node, branch))
