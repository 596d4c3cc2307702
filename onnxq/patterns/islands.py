"""Where int8 passes through operators that only move data, between a DequantizeLinear and a QuantizeLinear."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.graph import Graph

_INT8_CAPABLE = frozenset(
    {"Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "Reshape", "Transpose", "Flatten", "Squeeze"}
    | {"Unsqueeze", "Identity", "Slice", "Split", "Gather", "Expand", "Tile", "Pad"}
)


def islands(graph: Graph) -> set[int]:
    """Ids of the data-moving nodes between DequantizeLinear and QuantizeLinear: they run on int8.

    Their float type matters to nobody, and ONNX Runtime fuses them (Concat, say) in float32 only.
    """
    nodes = [n for n in graph.nodes if n.op_type in _INT8_CAPABLE and not n.domain]
    above: set[int] = set()
    for node in nodes:
        makers = [
            v.producer() for v in node.inputs if v is not None and graph.dtype(v) == "float32" and not graph.is_const(v)
        ]
        if makers and all(m is not None and (m.op_type == "DequantizeLinear" or id(m) in above) for m in makers):
            above.add(id(node))
    below: set[int] = set()
    for node in reversed(nodes):
        users = [user for v in node.outputs for user, _ in graph.users(v)]
        inner = not any(v.is_graph_output() for v in node.outputs)
        if users and inner and all(u.op_type == "QuantizeLinear" or id(u) in below for u in users):
            below.add(id(node))
    return above & below
