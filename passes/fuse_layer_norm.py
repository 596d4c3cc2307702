"""Write a LayerNorm in elementary operators as one LayerNormalization node (opset 17).

    m = mean(x);  y = (x - m) / sqrt(mean((x - m)^2) + eps) * scale + bias

One node accumulates in float32 even in a half-precision graph, backends have one kernel for it, and factors that
smooth go into its scale. Rewritten is what goes over the last axes, in whatever order it is computed: Keras writes
x k + (bias - m k) with k = scale / sqrt(...).
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.patterns import find_patterns

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

    Floats = npt.NDArray[np.float32]
    Sum = dict[tuple[int, int, int], npt.NDArray[Any]]  # exponents of x, of its mean and of the root -> coefficient

OPSET = 17
_ONE = np.ones((), np.float32)
_NUMBER = (0, 0, 0)
"""The exponents of a constant."""


def fuse_layer_norm(graph: Graph) -> int:
    """Rewrite what can be; return how many."""
    if graph.opset < OPSET:
        return 0
    found = [p for p in find_patterns(graph) if p.kind == "LayerNorm" and len(p.nodes) > 1]
    by_name = {node.name: node for node in graph.nodes}
    values = {str(v.name): v for v in graph.values()}
    return sum(
        _fuse(graph, values[p.input], values[p.output], [by_name[n] for n in p.nodes])
        for p in found
        if p.input in values and p.output in values
    )


def _fuse(graph: Graph, x: Value, y: Value, nodes: list[Node]) -> bool:
    x, y, nodes = _in_float32(graph, x, y, nodes)
    shape, axis, epsilon = graph.shape(x), _axis(graph, x, nodes), _epsilon(graph, nodes)
    last = y.producer()
    if shape is None or axis is None or epsilon is None or last is None or graph.dtype(x) != "float32":
        return False
    normalized = tuple(d for d in shape[axis:] if isinstance(d, int))
    tail = _tail(graph, x, y, nodes)
    if tail is None or len(normalized) != -axis or any(n.op_type == "Cast" for n in nodes):
        return False
    scale, bias = (_as_shape(array, normalized, len(shape)) for array in tail)
    if scale is None or bias is None:
        return False
    weights = [graph.constant(f"{y.name}/scale", scale), graph.constant(f"{y.name}/bias", bias)]
    made = graph.add(
        "LayerNormalization",
        [x, *weights],
        name=f"{y.name}/normalized",
        before=last,
        attributes={"axis": axis, "epsilon": epsilon},
        like=y,
    )
    graph.absorb(last, made)
    return True


def _in_float32(graph: Graph, x: Value, y: Value, nodes: list[Node]) -> tuple[Value, Value, list[Node]]:
    """What a Cast to float32 in front gives, what a Cast at the end reads, and the nodes between; else as they are.

    ONNX Runtime 1.31 takes such a Cast into its own LayerNormalization, whose types then differ, and loads nothing.
    """
    casts = [n for n in nodes if n.op_type == "Cast" and n.inputs[0] is x and graph.dtype(n.outputs[0]) == "float32"]
    if len(casts) == 1:
        x, nodes = casts[0].outputs[0], [n for n in nodes if n is not casts[0]]
    last = y.producer()
    if last is not None and last.op_type == "Cast" and last in nodes and last.inputs[0] is not None:
        y, nodes = last.inputs[0], [n for n in nodes if n is not last]
    return x, y, nodes


def _axis(graph: Graph, x: Value, nodes: list[Node]) -> int | None:
    """First of the trailing axes that all means go over, counted from the end; None for other axes."""
    rank = graph.rank(x)
    means = [n for n in nodes if n.op_type == "ReduceMean"]
    found = {tuple(sorted(a - rank if a >= 0 else a for a in _axes(graph, n))) for n in means} if rank else set()
    axes = found.pop() if len(found) == 1 else ()
    trailing = bool(axes) and axes == tuple(range(-len(axes), 0)) and len(axes) < (rank or 0)
    return axes[0] if trailing and all(graph.attribute(n, "keepdims", 1) for n in means) else None


def _axes(graph: Graph, node: Node) -> list[int]:
    listed = graph.attribute(node, "axes")
    if listed is None and len(node.inputs) > 1:
        array = graph.const(node.inputs[1])
        listed = [] if array is None else array.reshape(-1).tolist()
    return [int(a) for a in listed or []]


def _epsilon(graph: Graph, nodes: list[Node]) -> float | None:
    """The constant under the root, where an Add of it is the root's only argument."""
    for node in nodes:
        if _power(graph, node) is not None:
            added = graph.producer(node.inputs[0], "Add")
            constants = [] if added is None else [graph.scalar(v) for v in added.inputs]
            return next((c for c in constants if c is not None), None)
    return None


def _tail(graph: Graph, x: Value, y: Value, nodes: list[Node]) -> tuple[Floats, Floats] | None:
    """(scale, bias) of y = scale (x - m) / root + bias, however that is written; None when y is something else."""
    known: dict[Value, Sum] = {x: {(1, 0, 0): _ONE}}
    for node in nodes:
        if node.op_type == "ReduceMean" and node.inputs[0] is x:
            known[node.outputs[0]] = {(0, 1, 0): _ONE}
        elif (power := _power(graph, node)) is not None:
            known[node.outputs[0]] = {(0, 0, 1 if power > 0 else -1): _ONE}
    found = _sum(graph, y, known, nodes) or {}
    scale, centre, bias = (found.pop(key, None) for key in ((1, 0, -1), (0, 1, -1), _NUMBER))
    if found or scale is None or centre is None or np.any(scale + centre):
        return None
    return scale, np.zeros((), np.float32) if bias is None else bias


def _power(graph: Graph, node: Node) -> float | None:
    """1/2 for a root, -1/2 for one over a root, None for other nodes."""
    exponent = graph.scalar(node.inputs[1]) if node.op_type == "Pow" else 0.5 if node.op_type == "Sqrt" else None
    return exponent if exponent in (0.5, -0.5) else None


def _sum(graph: Graph, value: Value | None, known: dict[Value, Sum], nodes: list[Node]) -> Sum | None:
    """The value as a sum over products of powers, None where it is none."""
    if value is not None and value not in known:
        array, node = graph.const(value), value.producer()
        if array is not None:
            return {_NUMBER: array}
        if node in nodes and node is not None and node.op_type in _ARITHMETIC:
            parts = [_sum(graph, v, known, nodes) for v in node.inputs]
            return None if None in parts else _ARITHMETIC[node.op_type](*parts)
    return None if value is None else known.get(value)


def _plus(one: Sum, other: Sum) -> Sum:
    return {**one, **other, **{key: one[key] + other[key] for key in one.keys() & other.keys()}}


def _minus(value: Sum) -> Sum:
    return {key: -array for key, array in value.items()}


def _times(one: Sum, other: Sum) -> Sum:
    made: Sum = {}
    for (a, left), (b, right) in product(one.items(), other.items()):
        made = _plus(made, {(a[0] + b[0], a[1] + b[1], a[2] + b[2]): left * right})
    return made


def _inverse(value: Sum) -> Sum | None:
    """Of one product; None of a sum of several."""
    return {(-a, -b, -c): 1 / array for (a, b, c), array in value.items()} if len(value) == 1 else None


def _divided(one: Sum, other: Sum) -> Sum | None:
    inverse = _inverse(other)
    return None if inverse is None else _times(one, inverse)


_ARITHMETIC: dict[str, Callable[..., Sum | None]] = {
    "Add": _plus,
    "Sub": lambda one, other: _plus(one, _minus(other)),
    "Neg": _minus,
    "Mul": _times,
    "Div": _divided,
    "Reciprocal": _inverse,
}


def _as_shape(array: npt.NDArray[np.float32], shape: tuple[int, ...], rank: int) -> npt.NDArray[np.float32] | None:
    """The array broadcast to the normalized shape, None when it varies along other axes or gives y more than x has."""
    leading = array.shape[: max(0, array.ndim - len(shape))]
    if array.ndim > rank or any(d != 1 for d in leading):
        return None
    try:
        return np.ascontiguousarray(np.broadcast_to(array.reshape(array.shape[len(leading) :]), shape), np.float32)
    except ValueError:
        return None
