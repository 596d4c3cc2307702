"""Move data as int8 codes: quantize in front of what only moves values, not behind it.

    Quantize(Transpose(x))  =  Transpose(Quantize(x))

for one scale, and the same for every operator that moves, repeats or joins values: exactly. A copy of codes reads and
writes half the bytes of float16. What throws values away (Slice, a Gather of few rows) stays in front of the
QuantizeLinear, where less is quantized. Operators that copy nothing are passed only on the way to one that does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value

FREE = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
"""Operators that give the same bytes another shape."""
COPYING = frozenset({"Transpose", "Expand", "Gather", "Concat"})
"""Operators that copy, and have a CUDA kernel for int8 in all versions (onnxq.checks.ort_cuda_kernels)."""


def move_codes(graph: Graph) -> int:
    """Pull every QuantizeLinear with one scale in front of what moves its values; return how many moved."""
    count, moved = 0, 1
    while moved:  # in front of a Concat several stand, and each may move on
        moved = sum(_pull(graph, n) for n in graph.nodes if n.op_type == "QuantizeLinear" and not n.domain)
        count += moved
    return count


def _pull(graph: Graph, quantize: Node) -> bool:
    if graph.size(quantize.inputs[1]) != 1 or quantize.outputs[0].is_graph_output():
        return False
    moves = _moves(graph, quantize)
    while moves and moves[-1].op_type in FREE:
        moves.pop()  # nothing is gained in front of these
    if not moves:
        return False
    sources = _operands(moves[-1])
    codes = [_quantized(graph, moves[-1], source, quantize) for source in sources]
    for index, value in enumerate(codes):
        graph.set_input(moves[-1], index, value)
    for node in moves:
        graph.retype(node.outputs[0], graph.dtype(quantize.outputs[0]) or "int8")
    last = moves[0].outputs[0]
    graph.set_input(quantize, 0, sources[0])
    graph.replace_uses(quantize.outputs[0], last)
    graph.remove(quantize)
    graph.rename(last, f"{last.name}/codes")
    return True


def _moves(graph: Graph, quantize: Node) -> list[Node]:
    """The nodes between the QuantizeLinear and what it may stand behind, the nearest first."""
    found: list[Node] = []
    reader, value = quantize, quantize.inputs[0]
    while value is not None and graph.only_user(value) is reader:
        node = graph.producer(value, *FREE, *COPYING)
        if node is None or not _keeps(graph, node):
            break
        found.append(node)
        if node.op_type == "Concat":
            break
        reader, value = node, node.inputs[0]
    return found


def _keeps(graph: Graph, node: Node) -> bool:
    """Whether every value that the node reads is among those it makes."""
    operands = _operands(node)
    if any(graph.is_const(v) or graph.dtype(v) != graph.dtype(node.outputs[0]) for v in operands):
        return False
    if node.op_type in ("Gather", "Expand"):
        before, after = graph.size(operands[0]), graph.size(node.outputs[0])
        return before is not None and after is not None and before <= after
    return True


def _operands(node: Node) -> list[Value]:
    """The inputs whose values the node moves."""
    return [v for v in (node.inputs if node.op_type == "Concat" else node.inputs[:1]) if v is not None]


def _quantized(graph: Graph, node: Node, source: Value, quantize: Node) -> Value:
    """The source in codes, with the scale of the QuantizeLinear that stood behind."""
    inputs = [source, *quantize.inputs[1:]]
    codes = graph.add("QuantizeLinear", inputs, name=f"{source.name}/moved", before=node, like=source)
    graph.retype(codes, graph.dtype(quantize.outputs[0]) or "int8")
    return codes
