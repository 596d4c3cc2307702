"""What the placement of a residual addition asks: does a branch end in a convolution, and which branch is longer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxq.graph import Graph, Node, Value
    from onnxq.patterns import Pattern

CONVOLUTIONS = ("Conv", "ConvTranspose")


def convolution_behind(graph: Graph, value: Value, patterns: Mapping[str, Pattern]) -> Node | None:
    """The convolution whose result the tensor is, with at most a constant Add or Mul, BatchNorm or SiLU on the way.

    None as well when something else reads what lies on that way, or it is a model output: then the convolution
    cannot be fused with the reader of the tensor. `patterns` are those of the graph by output tensor.
    """
    found: Value | None = value
    while found is not None and graph.only_user(found) is not None:
        node = graph.producer(found)
        if node is None or node.op_type in CONVOLUTIONS:
            return node
        pattern = patterns.get(str(found.name))
        if pattern is not None and pattern.kind == "SiLU":
            return _activated(graph, found, pattern)
        if node.op_type in ("Add", "Mul") and sum(map(graph.is_const, node.inputs)) == 1:
            found = next(v for v in node.inputs if not graph.is_const(v))
        else:
            found = node.inputs[0] if node.op_type == "BatchNormalization" else None
    return None


def _activated(graph: Graph, value: Value, pattern: Pattern) -> Node | None:
    """The convolution, with a BatchNorm behind it at most, that the pattern alone reads."""
    maker = value.producer()
    source = next((v for v in maker.inputs if v is not None and v.name == pattern.input), None) if maker else None
    if source is None or source.is_graph_output() or any(u.name not in pattern.nodes for u, _ in graph.users(source)):
        return None
    norm = graph.producer(source, "BatchNormalization")
    return graph.producer(source if norm is None else norm.inputs[0], *CONVOLUTIONS)


def depths(graph: Graph) -> dict[str, int]:
    """Tensor -> number of nodes on the longest path to it from the model's inputs and weights."""
    depth = {str(v.name): 0 for v in graph.inputs}
    for node in graph.nodes:
        deepest = max((depth.get(str(v.name), 0) for v in node.inputs if v is not None), default=0)
        depth |= {str(v.name): deepest + 1 for v in node.outputs}
    return depth


def broadcasts(graph: Graph, a: Value, b: Value) -> bool:
    """Whether an elementwise operator is known to repeat values of one of the two."""
    one, other = graph.shape(a), graph.shape(b)
    if one is None or other is None:
        return False
    known = [(x, y) for x, y in zip(one, other, strict=False) if isinstance(x, int) and isinstance(y, int)]
    return len(one) != len(other) or any(x != y for x, y in known)
