"""Write the model in the oldest version of the file format that has what it holds.

Passes bring element types with them (int4, float4), and `lower_opset` an older opset; runtimes refuse a file whose
version is newer than they are, whatever is in it (`onnxq.targets.oldest`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.graph import Graph


def lower_ir_version(graph: Graph) -> int:
    """Change the model's `ir_version`; return whether that changes it."""
    from onnxq.graph import lowest_ir_version  # it loads onnx, which importing passes does not

    before = graph.model.ir_version
    graph.model.ir_version = lowest_ir_version(graph.model)
    return int(graph.model.ir_version != before)
