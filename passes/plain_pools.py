"""Leave out of an AveragePool that it is not dilated, as is without saying.

ONNX Runtime's CPU provider makes QLinearAveragePool of one between pairs, attributes and all, and that knows none of
this name: it refuses the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.graph import Graph


def plain_pools(graph: Graph) -> int:
    """Return of how many."""
    pools = [node for node in graph.nodes if node.op_type == "AveragePool" and "dilations" in node.attributes]
    found = [node for node in pools if not node.domain and set(graph.attribute(node, "dilations", ())) == {1}]
    for node in found:
        graph.set_attribute(node, "dilations", None)
    return len(found)
