"""Drop pairs that change nothing: DQ -> Q with the same scale, zero point, type and axis.

    Q(DQ(q, s, z), s, z) = q    for q of the type that Q makes

The user of that Q reads q itself. Two pairs in a row on one tensor become one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node


UNSAID = {0: "uint8", 2: "uint8", 3: "int8"}
"""Type that a Q without zero point makes, by its output_dtype (TensorProto.DataType; 0 is absent)."""


def remove_redundant_qdq(graph: Graph) -> int:
    """Drop every Q that undoes the DQ before it; return how many."""
    return sum(_drop(graph, node) for node in graph.nodes if node.op_type == "QuantizeLinear")


def _drop(graph: Graph, node: Node) -> int:
    before = graph.producer(node.inputs[0], "DequantizeLinear")
    if (
        before is None
        or before.inputs[0] is None
        or node.outputs[0].is_graph_output()
        or not _same(graph, before, node)
    ):
        return 0
    graph.replace_uses(node.outputs[0], before.inputs[0])
    graph.remove(node)
    return 1


def _same(graph: Graph, a: Node, b: Node) -> bool:
    """Whether Q `b` undoes DQ `a`."""
    if graph.attribute(a, "axis", 1) != graph.attribute(b, "axis", 1) or len(a.inputs) != len(b.inputs):
        return False
    if graph.attribute(a, "block_size", 0) != graph.attribute(b, "block_size", 0):
        return False
    made = graph.dtype(b.inputs[2]) if len(b.inputs) > 2 else UNSAID.get(graph.attribute(b, "output_dtype", 0))
    if made is None or made != graph.dtype(a.inputs[0]):
        return False
    pairs = [(graph.const(x), graph.const(y)) for x, y in zip(a.inputs[1:], b.inputs[1:], strict=True)]
    return all(x is not None and y is not None and np.array_equal(x, y) for x, y in pairs)
