"""The oldest ONNX Runtime that reads a model.

Seen with the CPU provider of 1.17.3, 1.18.1, 1.19.2, 1.20.1, 1.21.1, 1.22.0, 1.23.2, 1.24.1 and 1.25.0, which were
given models of one node of each opset, and a language model and MiniLM as onnxq writes them in every form below
(2026-11-30). 1.17 is the oldest that was tried.
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
OPERATORS: dict[str, Version] = {
    "tables": (1, 23),  # GatherBlockQuantized of codes in bytes
    "masks": (1, 20),  # MultiHeadAttention with a mask that is the same for all heads
    "blocks": (1, 19),  # DequantizeLinear of 4-bit codes, or in blocks
    "nibbles": (1, 23),  # Cast of 4-bit codes, which index the levels of a format
    "bytes": (1, 23),  # MatMulNBits of 8-bit codes
}
"""What a node is -> the first that runs it."""

_FOUR_BITS = ("int4", "uint4")
_MASK = 5  # input of MultiHeadAttention


def oldest_runtime(graph: Graph) -> Version:
    """(major, minor) of the first ONNX Runtime that reads the model; what is newer than the tables: their last."""
    kinds = {_kind(graph, node) for part in graph.parts() for node in part.nodes}
    found = [OPERATORS[kind] for kind in kinds & OPERATORS.keys()]
    return max([_at(OPSETS, graph.opset), _at(IR_VERSIONS, graph.model.ir_version), *found])


def _kind(graph: Graph, node: Node) -> str:
    """The entry of `OPERATORS` that a node is; empty for none."""
    if node.op_type not in ("GatherBlockQuantized", "MultiHeadAttention", "MatMulNBits", "DequantizeLinear", "Cast"):
        return ""
    dtype = graph.dtype(node.inputs[0])
    if node.op_type == "MatMulNBits":
        return "bytes" if graph.attribute(node, "bits", 4) == 8 else ""
    if node.op_type == "GatherBlockQuantized":
        return "tables" if dtype == "uint8" else ""
    if node.op_type == "MultiHeadAttention":
        mask = graph.shape(node.inputs[_MASK]) if len(node.inputs) > _MASK else None
        return "masks" if mask is not None and mask[1] == 1 != graph.attribute(node, "num_heads", 0) else ""
    if node.op_type == "DequantizeLinear":
        return "blocks" if dtype in _FOUR_BITS or graph.attribute(node, "block_size", 0) else ""
    return "nibbles" if dtype in _FOUR_BITS else ""


def _at(table: dict[int, Version], number: int) -> Version:
    return table.get(min(number, max(table)), OLDEST)
