"""Write a LayerNorm in elementary operators as one LayerNormalization node (opset 17).

    m = mean(x);  y = (x - m) / sqrt(mean((x - m)^2) + eps) * scale + bias

One node accumulates in float32 even in a half-precision graph, and backends have one kernel for it. Only the common
form is rewritten: the last axes, one root, then at most one factor and one summand of the normalized shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxq.patterns import find_patterns

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

OPSET = 17


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
    shape, axis, epsilon = graph.shape(x), _axis(graph, x, nodes), _epsilon(graph, nodes)
    last = y.producer()
    if shape is None or axis is None or epsilon is None or last is None or graph.dtype(x) != "float32":
        return False
    normalized = tuple(d for d in shape[axis:] if isinstance(d, int))
    tail = _tail(graph, y, nodes)
    if tail is None or len(normalized) != -axis or any(n.op_type == "Cast" for n in nodes):
        return False
    scale, bias = (_as_shape(array, normalized) for array in tail)
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
        if node.op_type == "Sqrt" or (node.op_type == "Pow" and graph.scalar(node.inputs[1]) == 0.5):
            added = graph.producer(node.inputs[0], "Add")
            constants = [] if added is None else [graph.scalar(v) for v in added.inputs]
            return next((c for c in constants if c is not None), None)
    return None


def _tail(graph: Graph, y: Value, nodes: list[Node]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
    """(scale, bias) between the division by the root and y, None when other things stand there."""
    scale, bias = np.ones((), np.float32), np.zeros((), np.float32)
    value: Value | None = y
    for op_type in ("Add", "Mul"):
        node = graph.producer(value, op_type)
        constants = [] if node is None else [v for v in node.inputs if graph.is_const(v)]
        array = graph.const(constants[0]) if len(constants) == 1 else None
        if node is None or node not in nodes or array is None:
            continue
        scale, bias = (scale, array) if op_type == "Add" else (array, bias)
        value = next(v for v in node.inputs if not graph.is_const(v))
    divided = graph.producer(value, "Div")
    root = None if divided is None else graph.producer(divided.inputs[1], "Sqrt", "Pow")
    centred = None if divided is None else graph.producer(divided.inputs[0], "Sub")
    return (scale, bias) if root in nodes and root is not None and centred in nodes and centred is not None else None


def _as_shape(array: npt.NDArray[np.float32], shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
    """The array broadcast to the normalized shape, None when it varies along other axes."""
    leading = array.shape[: max(0, array.ndim - len(shape))]
    if any(d != 1 for d in leading):
        return None
    try:
        return np.ascontiguousarray(np.broadcast_to(array.reshape(array.shape[len(leading) :]), shape), np.float32)
    except ValueError:
        return None
