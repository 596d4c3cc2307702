"""Layers that a shape is computed from: what predicts how long speech is, say, before it is made.

    d = ceil(exp(Conv(h)));   n = ReduceSum(d);   frames = Range(0, n, 1)

Quantized, a length comes out another one, and nothing behind it can be compared with the float model. TensorRT takes
neither Q nor DQ in the computation of a shape (rule P33). It may be needed in a body, of what is computed around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.operators import FROM_DATA, RECURRENT, SHAPES

if TYPE_CHECKING:
    from onnxq.graph import Graph

SHAPE = "a shape is computed from it: quantized it would be another one"

_LAYERS = RECURRENT | {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_FLOATS = frozenset({"float16", "float32", "bfloat16"})


def shaping(graph: Graph) -> dict[str, str]:
    """Node name -> why it stays in float, of what computes floats above a shape; empty where no layer does.

    Shapes are those of the graph and of the bodies inside it. The search goes up through all graphs, the nodes named
    are those of this one.
    """
    users = (node for part in graph.parts() for node in part.nodes if not node.domain)
    used = ((node, slot) for node in users for slot in SHAPES.get(node.op_type, ()) if slot < len(node.inputs))
    front, seen, found, layers = [n.inputs[slot] for n, slot in used], set[int](), dict[str, str](), False
    while front:
        value = front.pop()
        node = None if value is None else value.producer()
        if node is None or id(node) in seen or node.op_type in FROM_DATA:
            continue
        seen.add(id(node))
        front.extend(node.inputs)
        layers |= node.op_type in _LAYERS
        if not graph.in_body(node) and any(graph.dtype(made) in _FLOATS for made in node.outputs):
            found[node.name or ""] = SHAPE
    return found if layers else {}
