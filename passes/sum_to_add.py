"""Write a Sum of two inputs as the Add it is: placement and backends know residual additions by that name."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.graph import Graph


def sum_to_add(graph: Graph) -> int:
    """Rewrite every two-input Sum; return how many."""
    count = 0
    for node in graph.nodes:
        if node.op_type == "Sum" and not node.domain and len(node.inputs) == 2:
            made = graph.add(
                "Add", node.inputs, name=f"{node.outputs[0].name}/added", before=node, like=node.outputs[0]
            )
            graph.absorb(node, made)
            count += 1
    return count
