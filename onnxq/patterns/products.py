"""The two products of an attention, Q K^T and P V: what speaks against int8 operands, and the range of P."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.patterns.attention import Attention, attention_at, is_scale
from onnxq.patterns.match import MOVERS
from onnxq.patterns.reading import number, standard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.graph import Dim, Graph

SOFTMAX = "softmax"
"""What stands as calibrator where a range is [0, 1] because a softmax makes the tensor."""

MAX_LENGTH = 512
"""Longest sequence for int8 operands: ModelOpt 0.47, `find_nodes_from_mha_to_exclude`."""


def attentions(graph: Graph) -> Iterator[Attention]:
    """The main graph's attentions whose two products are MatMul nodes, in the order of their softmax."""
    for node in graph.nodes:
        found = attention_at(graph, node) if standard(node, "Softmax", "Exp") else None
        if found is not None and found.scores[0].op_type == found.mixed[-1].op_type == "MatMul":
            yield found


def why_float_products(graph: Graph, found: Attention, least: int) -> str | None:
    """What NVIDIA's rules have against int8 operands of the products; None when they have nothing.

    Args:
        graph: it holds the attention.
        found: the attention.
        least: fewest rows and columns of an int8 matrix product's second operand.
    """
    scores, mixed = (graph.shape(n.outputs[0]) for n in (found.scores[0], found.mixed[-1]))
    queries, keys = _last(scores, 2), _last(scores, 1)
    if _has_mask(graph, found):
        return "attention with a mask that is computed at run time, which ModelOpt keeps in float"
    if keys is None:
        return f"attention over a sequence of unknown length; int8 pays up to {MAX_LENGTH}"
    if keys > MAX_LENGTH:
        return f"attention over {keys} tokens; int8 pays up to {MAX_LENGTH}"
    if queries == 1:
        return "attention of one query: matrix times vector"
    sizes = [size for size in (_last(graph.shape(found.scores[0].inputs[0]), 1), _last(mixed, 1), keys) if size]
    if min(sizes) < least:
        return f"attention with a head or a sequence of {min(sizes)}, smaller than {least}"
    return None


def is_probability(graph: Graph, found: Attention) -> bool:
    """Whether the first operand of P V holds softmax values unchanged but for moves and zeros in place of NaN."""
    for node in found.mixed[:-1]:
        if node.op_type == "Where":
            known = [x for v in node.inputs[1:3] if (x := number(graph, v)) is not None]
            if len(known) != 1 or not 0 <= known[0] <= 1:
                return False
        elif node.op_type not in (*MOVERS, "IsNaN"):
            return False
    return True


def _has_mask(graph: Graph, found: Attention) -> bool:
    """Whether anything but weights and scale factors joins the scores; a weight may, as relative positions do."""
    path = {id(v) for node in found.scores for v in node.outputs}
    joining = (node for node in found.scores[1:] if node.op_type not in MOVERS)
    others = (v for node in joining for v in node.inputs if v is not None and id(v) not in path)
    return not all(graph.is_const(v) or is_scale(graph, v) for v in others)


def _last(shape: tuple[Dim, ...] | None, position: int) -> int | None:
    """The size at this position from the end, where known."""
    size = None if shape is None or len(shape) < position else shape[-position]
    return size if isinstance(size, int) else None


def turns_halves(graph: Graph) -> bool:
    """Whether a product of float16, or with a weight stored for it, reads a Transpose; see `onnxq.comparison`."""
    products = [n for part in graph.parts() for n in part.nodes if n.op_type == "MatMul" and not n.domain]
    for node in products:
        turned = [graph.producer(value, "Transpose") for value in node.inputs]
        stored = [graph.producer(value, "DequantizeLinear") for value in node.inputs]
        read = [*node.inputs, *(t.inputs[0] for t in turned if t), *(s.inputs[1] for s in stored if s)]
        if any(turned) and any(graph.dtype(value) == "float16" for value in read):
            return True
    return False
