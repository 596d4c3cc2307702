"""Write MultiHeadAttention and the three int8 products that it alone reads as com.microsoft QAttention.

    softmax(scale Q K^T + mask) V    with Q, K, V = s_x s_W (x - z_x) W + b

One kernel of ONNX Runtime's CPU provider multiplies head by head, leaves every head where the attention reads it, and
hands work to threads three times in place of some ten; the bits of the result are the same. Q, K and V have to be
products of one tensor of codes, and the mask one that adds 0 or a constant: QAttention takes it as integers [B, S, L],
which say where 0 is added.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isclose, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.operators import CONTRIB

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

    Array = npt.NDArray[Any]

INT32 = 6
"""ONNX's number of the type."""


@dataclass(frozen=True)
class _Product:
    """s_x s_W (x - z_x) W + b.

    Attributes:
        codes: x, [B, S, C], uint8 or int8.
        scale: s_x, a number.
        zero_point: z_x, a number.
        weight: W, int8 [C, N H].
        weight_scale: s_W, float32 [N H].
        bias: b, float32 [N H].
    """

    codes: Value
    scale: Value
    zero_point: Value
    weight: Array
    weight_scale: Array
    bias: Array


@dataclass(frozen=True)
class _Mask:
    """What an attention adds to its scores.

    Attributes:
        kept: bool, or integers of 0 and 1, [B or 1, 1, S or 1, L or 1]: where 0 is added.
        added: elsewhere.
    """

    kept: Value
    added: float


@dataclass
class _Flags:
    """Masks that were made: (mask, symbols of its size) -> int32 [B, S, S]."""

    graph: Graph
    made: dict[tuple[str, object], Value] = field(default_factory=dict)

    def of(self, kept: Value, codes: Value, query: Value | None) -> Value:
        size = (self.graph.shape(query) or (None,))[:2]
        wanted = str(kept.name), codes.name if None in size else size
        if wanted not in self.made:
            self.made[wanted] = self._expanded(kept, codes)
        return self.made[wanted]

    def _expanded(self, kept: Value, codes: Value) -> Value:
        graph, name = self.graph, str(kept.name)
        flat = graph.add("Squeeze", [kept, graph.constant(f"{name}/heads", np.array([1]))], name=f"{name}/flat")
        flags = graph.add("Cast", [flat], name=f"{name}/flags", attributes={"to": INT32})
        whole = graph.add("Shape", [codes], name=f"{codes.name}/shape")
        size = graph.add("Gather", [whole, graph.constant(f"{name}/axes", np.array([0, 1, 1]))], name=f"{name}/size")
        made = graph.add("Expand", [flags, size], name=f"{name}/flags/expanded")
        graph.retype(made, "int32")
        return made


def quantize_attention(graph: Graph) -> int:
    """Rewrite them; return how many."""
    flags = _Flags(graph)
    return sum(_rewrite(graph, node, flags) for node in graph.nodes if node.op_type == "MultiHeadAttention")


def _rewrite(graph: Graph, node: Node, flags: _Flags) -> bool:
    bias, keys, added, *past = [*node.inputs[3:], None, None, None]
    known = set(node.attributes) <= {"num_heads", "scale"} and len(node.outputs) == 1 and node.domain == CONTRIB
    mask = None if added is None else _mask(graph, added)
    if not known or keys is not None or any(past) or (mask is None and added is not None):
        return False
    found = _products(graph, node, bias)
    if found is None:
        return False
    query, size = found[0], found[0].bias.size // graph.attribute(node, "num_heads")
    factor = (graph.attribute(node, "scale", 0.0) or 1 / sqrt(size)) * sqrt(size)  # QAttention's is 1 / sqrt(H)
    if not isclose(factor, 1, rel_tol=1e-6):
        scales, biases = (array * np.float32(factor) for array in (query.weight_scale, query.bias))
        found = (replace(query, weight_scale=scales, bias=biases), *found[1:])
    kept = None if mask is None else flags.of(mask.kept, query.codes, node.inputs[0])
    _put(graph, node, found, kept, {} if mask is None else {"mask_filter_value": mask.added})
    return True


def _put(graph: Graph, node: Node, found: tuple[_Product, ...], kept: Value | None, attributes: dict[str, Any]) -> None:
    last, query = node.outputs[0], found[0]
    weight = graph.constant(f"{last.name}/weight", np.concatenate([each.weight for each in found], axis=1))
    scale = graph.constant(f"{last.name}/weight_scale", np.concatenate([each.weight_scale for each in found]))
    zeros = graph.constant(f"{last.name}/weight_zero_point", np.zeros(3 * query.bias.size, np.int8))
    bias = graph.constant(f"{last.name}/bias", np.concatenate([each.bias for each in found]))
    made = graph.add(
        "QAttention",
        [query.codes, weight, bias, query.scale, scale, kept, query.zero_point, zeros],
        name=f"{last.name}/integer",
        attributes={"num_heads": graph.attribute(node, "num_heads"), **attributes},
        like=last,
        domain=CONTRIB,
    )
    graph.absorb(node, made)


# -- the three products ------------------------------------------------------------------------------------------


def _products(graph: Graph, node: Node, bias: Value | None) -> tuple[_Product, ...] | None:
    """Those of Q, K and V, where they read the same codes and have the same size; `bias` is added to all three."""
    parts = [_product(graph, value) for value in node.inputs[:3]]
    found = tuple(each for each in parts if each is not None)
    if len(found) < len(parts) or graph.rank(node.inputs[0]) != 3:
        return None
    first, more = found[0], None if bias is None else graph.const(bias)
    alike = all(
        each.codes is first.codes
        and each.weight.shape == first.weight.shape
        and graph.scalar(each.scale) == graph.scalar(first.scale)
        and graph.scalar(each.zero_point) == graph.scalar(first.zero_point)
        for each in found
    )
    if not alike or (bias is not None and (more is None or more.shape != (3 * first.bias.size,))):
        return None
    if more is None:
        return found
    return tuple(replace(p, bias=p.bias + b) for p, b in zip(found, np.split(more, 3), strict=True))


def _product(graph: Graph, value: Value | None) -> _Product | None:
    """The MatMulIntegerToFloat that makes the value for a single reader, where it has a scale per tensor and column.

    A Shape may read it too: that is where the first attention's expanded mask has its size from.
    """
    node = None if value is None else value.producer()
    if node is None or value is None or node.op_type != "MatMulIntegerToFloat" or graph.in_body(node):
        return None
    codes, stored, scale, weight_scale, zero, weight_zero, bias = [*node.inputs, None, None][:7]
    readers = [user for user, _ in graph.users(value) if user.op_type != "Shape"]
    weight = graph.const(stored)
    if len(readers) > 1 or value.is_graph_output() or stored is None or graph.only_user(stored) is not node:
        return None
    if codes is None or scale is None or zero is None or weight is None or weight.dtype != np.int8 or weight.ndim != 2:
        return None
    scales, zeros, biases = (_row(graph, v, weight.shape[1]) for v in (weight_scale, weight_zero, bias))
    numbers = graph.scalar(scale) is not None and graph.scalar(zero) is not None
    if not numbers or scales is None or zeros is None or biases is None or np.any(zeros):
        return None
    return _Product(codes, scale, zero, weight, scales, biases)


def _row(graph: Graph, value: Value | None, columns: int) -> Array | None:
    """A constant as float32 [columns]: a number counts for all, and what is left out is 0."""
    array = np.zeros(1) if value is None else graph.const(value)
    if array is None or array.size not in (1, columns) or array.ndim > 1:
        return None
    return np.broadcast_to(array.reshape(-1), columns).astype(np.float32)


# -- the mask ----------------------------------------------------------------------------------------------------


def _mask(graph: Graph, value: Value) -> _Mask | None:
    """Where(kept, 0, c), or (1 - m) c of integers m, which are taken to be 0 and 1 as attention masks are."""
    node = _made(graph, value)
    if node is None:
        return None
    kept, added = None, None
    if node.op_type == "Where" and graph.scalar(node.inputs[1]) == 0:
        kept, added = node.inputs[0], graph.scalar(node.inputs[2])
    elif node.op_type == "Mul":
        kept, added = _inverted(graph, node)
    while (expand := graph.producer(kept, "Expand")) is not None:
        kept = expand.inputs[0]
    shape = graph.shape(kept) or ()
    return _Mask(kept, added) if kept is not None and added is not None and len(shape) == 4 and shape[1] == 1 else None


def _made(graph: Graph, value: Value | None) -> Node | None:
    """What makes the value, before it is expanded."""
    node = graph.producer(value)
    while node is not None and node.op_type == "Expand":
        node = graph.producer(node.inputs[0])
    return node


def _inverted(graph: Graph, mul: Node) -> tuple[Value | None, float | None]:
    """(m, c) of (1 - m) c."""
    for index in (0, 1):
        sub, factor = graph.producer(mul.inputs[index], "Sub"), graph.scalar(mul.inputs[1 - index])
        if sub is None or factor is None or graph.scalar(sub.inputs[0]) != 1:
            continue
        cast = _made(graph, sub.inputs[1])
        if cast is not None and cast.op_type == "Cast" and graph.dtype(cast.inputs[0]) in ("bool", "int32", "int64"):
            return cast.inputs[0], factor
    return None, None
