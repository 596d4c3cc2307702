"""Keep one copy of a weight that several graphs hold: two branches of an If, made from what both read outside.

The copy lies in the main graph, which every body can read. Small ones stay where they are. ONNX Runtime repacks the
codes of an integer operator only where they lie in its own graph, so that only large ones are worth sharing, and its
fusion to MatMulNBits fails on others: codes that are multiplied with a float activation stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.graph import Graph, Value

LARGE = 2**20
"""Codes from which on the size of the file counts more than the time for unpacked ones."""


def share_weights(graph: Graph) -> int:
    """Let all users of equal weights in different graphs read one; return how many copies that saves."""
    from onnxq.graph import share  # here, because importing the passes loads no library

    return share(graph, lambda value: _is_worth_it(graph, value) and not _is_narrow(value))


def _is_worth_it(graph: Graph, value: Value) -> bool:
    return graph.dtype(value) not in ("int8", "uint8") or (graph.size(value) or 0) >= LARGE


def _is_narrow(value: Value) -> bool:
    """Whether codes are dequantized for a product whose other operand is float."""
    dequantized = (use.node.outputs[0] for use in value.uses() if use.node.op_type == "DequantizeLinear")
    firsts = (use.node.inputs[0] for real in dequantized for use in real.uses())
    makers = (None if first is None else first.producer() for first in firsts)
    return any(maker is None or maker.op_type != "DequantizeLinear" for maker in makers)
