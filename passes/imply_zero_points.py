"""Leave the zero point of an activation's DequantizeLinear out where it is int8 and 0, which it then is by definition.

From opset 21 on ONNX Runtime (1.31.1, at its default optimization) refuses to load int8 -> DequantizeLinear -> Reshape
when that zero point is written: behind the Reshape it puts a pair that says its type twice, then changes one of the
two to uint8. Before opset 21 the pair without a zero point would be uint8, so there it stays written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.graph import Graph

OPSET = 21


def imply_zero_points(graph: Graph) -> int:
    """Leave out every such zero point; return how many."""
    if graph.opset < OPSET:
        return 0
    count = 0
    for node in graph.nodes:
        if node.op_type != "DequantizeLinear" or node.domain or len(node.inputs) < 3:
            continue
        zero_point, maker = graph.const(node.inputs[2]), graph.producer(node.inputs[0], "QuantizeLinear")
        if maker is None or graph.is_const(maker.inputs[0]) or zero_point is None:
            continue
        if zero_point.dtype == "int8" and not zero_point.any():
            graph.cut_inputs(node, 2)
            count += 1
    return count
