"""The oldest ONNX Runtime that reads a model.

Seen with the CPU provider of 1.17.3, 1.18.1, 1.19.2, 1.20.1, 1.21.1, 1.22.0, 1.23.2, 1.24.1 and 1.25.0, each of which
was given a model of one node for every row (2026-11-30); 1.17 is the oldest that was tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node

    Version = tuple[int, int]

OLDEST: Version = (1, 17)
OPSETS: dict[int, Version] = {21: (1, 18), 22: (1, 21), 23: (1, 23), 24: (1, 24), 25: (1, 24), 26: (1, 25)}
"""Version of the default operator set -> the first ONNX Runtime that reads it; 20 and less: `OLDEST`."""
IR_VERSIONS: dict[int, Version] = {10: (1, 18), 11: (1, 23), 12: (1, 24), 13: (1, 24)}
"""Version of the file format -> the same; 9 and less: `OLDEST`."""
BYTES: Version = (1, 23)
"""The first whose GatherBlockQuantized reads codes in bytes, as onnxq writes them."""
MASKS: Version = (1, 20)
"""The first whose MultiHeadAttention takes a mask that is the same for all heads."""


def oldest_runtime(graph: Graph) -> Version:
    """(major, minor) of the first ONNX Runtime that reads the model; what is newer than the tables: their last."""
    nodes = (node for part in graph.parts() for node in part.nodes if node.domain == "com.microsoft")
    found = [_of(graph, node) for node in nodes]
    return max([_at(OPSETS, graph.opset), _at(IR_VERSIONS, graph.model.ir_version), *found])


def _of(graph: Graph, node: Node) -> Version:
    if node.op_type == "GatherBlockQuantized" and graph.dtype(node.inputs[0]) == "uint8":
        return BYTES
    masked = node.op_type == "MultiHeadAttention" and len(node.inputs) > _MASK and node.inputs[_MASK] is not None
    return MASKS if masked else OLDEST


_MASK = 5
"""Input of MultiHeadAttention."""


def _at(table: dict[int, Version], number: int) -> Version:
    return table.get(min(number, max(table)), OLDEST)
