"""Compute what a model computes in bfloat16 in float32, rounded to bfloat16 behind every node.

ONNX Runtime's CPU provider has no kernels for bfloat16 but Cast, and CUDA's has few. Kernels for it accumulate in
float32 and round what they give, so this is what such a model gives, but for the order of sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.dtypes import BFLOAT16, FLOAT
from onnxq.passes.widen_halves import has_halves, widen_halves
from onnxq.patterns.match import MOVERS

if TYPE_CHECKING:
    from onnxq.graph import Graph, Value

_KINDS = ("bfloat16",)

_EXACT = frozenset({*MOVERS, "Relu", "MaxPool", "Slice", "Split", "Gather", "Concat", "Pad", "Tile", "Neg"}) - {"Cast"}
"""What gives numbers of bfloat16 where it reads such."""


def emulate_bfloat16(graph: Graph) -> int:
    """Return how many tensors are rounded; none where the model has none in bfloat16 or cannot be brought to float32.

    Inputs and outputs of the model keep their types, and every tensor its name.
    """
    if not has_halves(graph, _KINDS):
        return 0
    graph.infer_shapes()
    parts = tuple(graph.parts())
    found = [
        (part, value)
        for part in parts
        for node in part.nodes
        for value in node.outputs
        if node.op_type not in _EXACT and part.dtype(value) == "bfloat16" and (value.uses() or value.is_graph_output())
    ]
    if not widen_halves(graph, _KINDS):
        return 0
    for part, value in found:
        _round(part, value)
    return len(found)


def _round(graph: Graph, value: Value) -> None:
    """Let what reads the value read it rounded, under its name."""
    users, name = graph.users(value), str(value.name)
    narrow = graph.add("Cast", [value], name=f"{name}_narrow", attributes={"to": BFLOAT16}, like=value)
    graph.retype(narrow, "bfloat16")
    rounded = graph.add("Cast", [narrow], name=f"{name}_rounded", attributes={"to": FLOAT}, like=value)
    if graph.body is not None and value.is_graph_output():
        graph.replace_output(value, rounded)
    graph.replace_uses(value, rounded, users)
    if not value.is_graph_output() and not rounded.is_graph_output():
        graph.rename(value, f"{name}_exact")
        graph.rename(rounded, name)
