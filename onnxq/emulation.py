"""Compute what a model computes in bfloat16 in float32, rounded to bfloat16 behind every node.

ONNX Runtime's CPU provider has no kernels for bfloat16 but Cast, and CUDA's has few. Kernels for it accumulate in
float32 and round what they give, so this is what such a model gives, but for the order of sums.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.dtypes import BFLOAT16, FLOAT
from onnxq.passes import widen_halves
from onnxq.patterns.match import MOVERS

if TYPE_CHECKING:
    from onnxq.graph import Graph, Value

_EXACT = frozenset({*MOVERS, "Relu", "MaxPool", "Slice", "Split", "Gather", "Concat", "Pad", "Tile", "Neg"}) - {"Cast"}
"""What gives numbers of bfloat16 where it reads such."""


def emulate_bfloat16(graph: Graph) -> int:
    """Return how many tensors are rounded; none where the model has none in bfloat16 or cannot be brought to float32.

    Inputs and outputs of the model keep their types, and every tensor its name.
    """
    if not _says_so(graph):
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
    if not widen_halves(graph, ("bfloat16",)):
        return 0
    for part, value in found:
        _round(part, value)
    return len(found)


def _says_so(graph: Graph) -> bool:
    """Whether anything is known to be bfloat16: most models have nothing."""
    parts = tuple(graph.parts())
    values = (v for part in parts for node in part.nodes for v in (*node.inputs, *node.outputs))
    casts = (graph.attribute(n, "to") == BFLOAT16 for part in parts for n in part.nodes if n.op_type == "Cast")
    return any(graph.dtype(v) == "bfloat16" for v in (*graph.inputs, *values)) or any(casts)


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
