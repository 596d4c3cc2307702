"""Write softmax(scale * Q K^T + mask) V between float tensors as com.microsoft MultiHeadAttention.

The products of an attention stay in float on ONNX Runtime's CPU provider, and with them some sixteen kernels a layer:
reshapes and their shapes, four transposes, scaling, mask. MultiHeadAttention is one kernel that reads [B, S, N H] as
the layers before write it, and takes their biases along. Its mask has the shape [B or 1, N or 1, S, L]; one that
broadcasts otherwise, or whose shape is not known, is expanded, once for all layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnxq.linear import biased_product
from onnxq.operators import CONTRIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxq.graph import Graph, Node, Value

ROWS, COLUMNS = (0, 2, 1, 3), (0, 2, 3, 1)
"""Of [B, S, N, H]: as [B, N, S, H], and as [B, N, H, S] for the second operand of Q K^T."""


@dataclass(frozen=True)
class _Heads:
    """One of Q, K and V.

    Attributes:
        value: [B, S, N H], float.
        count: N.
        scale: of a multiplication on the way to the product.
    """

    value: Value
    count: int
    scale: float


@dataclass(frozen=True)
class _Scores:
    """The argument of the softmax: scale * Q K^T + mask."""

    product: Node
    scale: float
    mask: Value | None


@dataclass
class _Masks:
    """Masks that were expanded: (mask, symbols of its size) -> the expanded one."""

    graph: Graph
    made: dict[tuple[str, object, object], Value] = field(default_factory=dict)

    def fitting(self, mask: Value, sides: Sequence[Value | None], heads: int) -> Value:
        """[B or 1, N or 1, S, L] of a mask of rank 4, for Q and K as `sides` begins."""
        (batch, rows, _), (_, columns, _) = (self.graph.shape(v) or (None,) * 3 for v in sides[:2])
        shape = self.graph.shape(mask) or (None,) * 4
        if shape[0] in (1, batch) and shape[1] in (1, heads) and shape[2:] == (rows, columns):
            return mask
        wanted = str(mask.name), rows, columns
        if wanted not in self.made:
            self.made[wanted] = self._expanded(mask, [v for v in sides[:2] if v is not None])
        return self.made[wanted]

    def _expanded(self, mask: Value, sides: Sequence[Value]) -> Value:
        graph = self.graph
        sizes = [graph.constant(f"{mask.name}/ones", np.ones(2, np.int64))]
        for value in sides:
            whole = graph.add("Shape", [value], name=f"{value.name}/shape")
            bounds = [graph.constant(f"{value.name}/bound", np.array([n], np.int64)) for n in (1, 2)]
            sizes.append(graph.add("Slice", [whole, *bounds], name=f"{value.name}/length"))
        size = graph.add("Concat", sizes, name=f"{mask.name}/size", attributes={"axis": 0})
        made = graph.add("Expand", [mask, size], name=f"{mask.name}/expanded")
        graph.retype(made, "float32")
        return made


def join_attention(graph: Graph) -> int:
    """Rewrite them; return how many."""
    masks = _Masks(graph)
    return sum(_join(graph, node, masks) for node in graph.nodes if node.op_type == "Softmax" and not node.domain)


def _join(graph: Graph, softmax: Node, masks: _Masks) -> bool:
    scores, end = _scores(graph, softmax), _end(graph, softmax)
    if scores is None or end is None:
        return False
    mixed, last = end
    query, key = _heads(graph, scores.product.inputs[0], ROWS), _heads(graph, scores.product.inputs[1], COLUMNS)
    value = _heads(graph, mixed.inputs[1], ROWS)
    if query is None or key is None or value is None or not _fits(graph, query, key, value, last):
        return False
    if scores.mask is not None and (graph.rank(scores.mask) != 4 or graph.dtype(scores.mask) != "float32"):
        return False
    inputs = _unbiased(graph, (query, key, value))
    if scores.mask is not None:
        inputs += [None, masks.fitting(scores.mask, inputs, query.count)]
    while inputs[-1] is None:
        inputs.pop()
    made = graph.add(
        "MultiHeadAttention",
        inputs,
        name=f"{last.outputs[0].name}/attention",
        attributes={"num_heads": query.count, "scale": scores.scale * query.scale * key.scale},
        like=last.outputs[0],
        domain=CONTRIB,
    )
    graph.absorb(last, made)
    return True


def _scores(graph: Graph, softmax: Node) -> _Scores | None:
    """What the softmax over the last axis reads, when nothing else reads any of it."""
    value = softmax.inputs[0]
    if graph.rank(value) != 4 or graph.attribute(softmax, "axis", -1) not in (-1, 3) or graph.dtype(value) != "float32":
        return None
    add = _made_for_one(graph, value, "Add")
    terms = () if add is None else tuple(add.inputs)
    for term, mask in zip(terms, terms[::-1], strict=True):
        product, scale = _scaled(graph, term)
        if product is not None:
            return _Scores(product, scale, mask)
    product, scale = _scaled(graph, value)
    return None if product is None else _Scores(product, scale, None)


def _made_for_one(graph: Graph, value: Value | None, *op_types: str) -> Node | None:
    """The node that makes the value for a single reader."""
    node = graph.producer(value, *op_types)
    return node if node is not None and value is not None and graph.only_user(value) is not None else None


def _scaled(graph: Graph, value: Value | None) -> tuple[Node | None, float]:
    """(the product of two activations, the number that it is multiplied by) from there down to the value."""
    scale = 1.0
    while (node := _made_for_one(graph, value, "Mul", "Div")) is not None:
        factor = _factor(graph, node)
        if factor is None:
            break
        value, scale = factor[0], scale * factor[1]
    product = _made_for_one(graph, value, "MatMul")
    return (None, 1.0) if product is None or any(map(graph.is_const, product.inputs)) else (product, scale)


def _factor(graph: Graph, node: Node) -> tuple[Value | None, float] | None:
    """(what a Mul or Div by a number reads, the factor)."""
    for index in (1,) if node.op_type == "Div" else (1, 0):
        number = graph.scalar(node.inputs[index])
        if number:
            return node.inputs[1 - index], number if node.op_type == "Mul" else 1 / number
    return None


def _end(graph: Graph, softmax: Node) -> tuple[Node, Node] | None:
    """(the product with V, the Reshape to [B, S, N H] behind it)."""
    mixed = graph.only_user(softmax.outputs[0])
    if mixed is None or mixed.op_type != "MatMul" or mixed.inputs[0] is not softmax.outputs[0]:
        return None
    turned = graph.only_user(mixed.outputs[0])
    if turned is None or turned.op_type != "Transpose" or tuple(graph.attribute(turned, "perm", ())) != ROWS:
        return None
    last = graph.only_user(turned.outputs[0])
    return (mixed, last) if last is not None and last.op_type == "Reshape" else None


def _heads(graph: Graph, value: Value | None, wanted: tuple[int, ...]) -> _Heads | None:
    """[B, S, N H] that was reshaped to [B, S, N, H] and transposed as wanted on the way to the value."""
    order, scale = (0, 1, 2, 3), 1.0
    while (node := graph.producer(value, "Transpose", "Mul", "Div")) is not None:
        factor = None if node.op_type == "Transpose" else _factor(graph, node)
        if node.op_type == "Transpose":
            perm = graph.attribute(node, "perm", ())
            if len(perm) != len(order):
                return None
            value, order = node.inputs[0], tuple(perm[i] for i in order)
        elif factor is None:
            return None
        else:
            value, scale = factor[0], scale * factor[1]
    reshape = graph.producer(value, "Reshape")
    source = None if reshape is None else reshape.inputs[0]
    flat, split = graph.shape(source) or (), graph.shape(value) or ()
    if source is None or order != wanted or len(flat) != 3 or len(split) != 4 or flat[:2] != split[:2]:
        return None
    width, size = flat[2], split[3]
    if not isinstance(width, int) or not isinstance(size, int) or None in flat or width % size:
        return None
    return _Heads(source, width // size, scale)


def _fits(graph: Graph, query: _Heads, key: _Heads, value: _Heads, last: Node) -> bool:
    q, k, v = (graph.shape(each.value) or () for each in (query, key, value))
    same = q[0] == k[0] == v[0] and k[1] == v[1] and q[2] == k[2] and query.count == key.count == value.count
    floats = all(graph.dtype(each.value) == "float32" for each in (query, key, value))
    return same and floats and value.scale == 1.0 and (graph.shape(last.outputs[0]) or ())[:2] == q[:2]


def _unbiased(graph: Graph, heads: tuple[_Heads, _Heads, _Heads]) -> list[Value | None]:
    """[Q, K, V, their biases], as MultiHeadAttention takes them: biases of all three or none."""
    found = [biased_product(graph, each.value) for each in heads if graph.only_user(each.value) is not None]
    parts = [each for each in found if each is not None]
    if len(parts) < len(heads):
        return [*(each.value for each in heads), None]
    bias = graph.constant(f"{heads[0].value.name}/biases", np.concatenate([bias for _, bias in parts]))
    return [*(value for value, _ in parts), bias]
