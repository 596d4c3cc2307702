"""The oldest ONNX Runtime that reads a model.

Seen with the CPU provider of 1.17.3, 1.18.1, 1.19.2, 1.20.1, 1.21.1, 1.22.0, 1.23.2, 1.24.1 and 1.25.0, which were
given models of one node of each opset, and a language model and MiniLM as onnxq writes them in every form below
(2026-11-30). 1.17 is the oldest that was tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxq.graph import Graph, Node

    Version = tuple[int, int]

OLDEST: Version = (1, 17)
OPSETS: dict[int, Version] = {21: (1, 18), 22: (1, 21), 23: (1, 23), 24: (1, 24), 25: (1, 24), 26: (1, 25)}
"""Version of the default operator set -> the first ONNX Runtime that reads it; 20 and less: `OLDEST`."""
IR_VERSIONS: dict[int, Version] = {10: (1, 18), 11: (1, 23), 12: (1, 24), 13: (1, 24)}
"""Version of the file format -> the same; 9 and less: `OLDEST`."""


def oldest_runtime(graph: Graph) -> Version:
    """(major, minor) of the first ONNX Runtime that reads the model; what is newer than the tables: their last."""
    nodes = ((part, node) for part in graph.parts() for node in part.nodes if node.op_type in FORMS and node.inputs)
    found = [FORMS[node.op_type][0] for part, node in nodes if FORMS[node.op_type][1](part, node)]
    return max([_at(OPSETS, graph.opset), _at(IR_VERSIONS, graph.model.ir_version), *found])


def _in_four_bits(graph: Graph, node: Node) -> bool:
    return graph.dtype(node.inputs[0]) in ("int4", "uint4")


def _in_blocks(graph: Graph, node: Node) -> bool:
    return _in_four_bits(graph, node) or bool(graph.attribute(node, "block_size", 0))


def _shares_mask(graph: Graph, node: Node) -> bool:
    """Whether the mask of an attention is, or may be, the same for all heads: [batch, 1, rows, columns]."""
    if len(node.inputs) <= _MASK or node.inputs[_MASK] is None:
        return False
    shape = graph.shape(node.inputs[_MASK])
    return shape is None or graph.attribute(node, "num_heads", 0) not in shape[1:2]


_MASK = 5  # input of MultiHeadAttention

FORMS: dict[str, tuple[Version, Callable[[Graph, Node], bool]]] = {
    "GatherBlockQuantized": ((1, 23), lambda graph, node: graph.dtype(node.inputs[0]) == "uint8"),  # codes in bytes
    "MultiHeadAttention": ((1, 20), _shares_mask),
    "DequantizeLinear": ((1, 19), _in_blocks),
    "Cast": ((1, 23), _in_four_bits),  # codes that index the levels of a format
    "MatMulNBits": ((1, 23), lambda graph, node: graph.attribute(node, "bits", 4) == 8),
}
"""Operator -> the first that runs it in the form that the function tells."""


def _at(table: dict[int, Version], number: int) -> Version:
    return table.get(min(number, max(table)), OLDEST)
