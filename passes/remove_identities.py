"""Remove nodes that hand on their input unchanged.

Identity; Dropout in inference; Cast to the type it gets; Transpose that keeps the order; Reshape, Expand, Flatten and
Slice proven by shapes to keep everything; Pad by nothing; Concat, Sum, Mean, Max and Min of one input; x * 1, x / 1,
x + 0 and x - 0 where broadcasting keeps the shape of x. Each test below errs on the side of keeping the node.

The names of the model's inputs and outputs never change: where an input or a weight is an output too, an Identity
stays between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

    Array = npt.NDArray[Any]

EVERYTHING = 2**31 - 1
"""Exporters write this, or the same for 64 bits, for "to the end"; no axis of a model is as long."""


def remove_identities(graph: Graph) -> int:
    """Remove every node that changes nothing; return how many."""
    return sum(_remove(graph, node) for node in graph.nodes)


def _remove(graph: Graph, node: Node) -> bool:
    find = NO_OPS.get(node.op_type)
    source = None if find is None or node.domain not in ("", "ai.onnx") else find(graph, node)
    if source is None or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return False
    output = node.outputs[0]
    maker = source.producer()
    named = maker is None or graph.in_body(maker) or source.is_graph_output()
    needs_name = output.is_graph_output() and named
    if needs_name and node.op_type == "Identity":
        return False  # it carries the output's name, and something must
    graph.replace_uses(output, source)
    graph.remove(node)
    return True


# Each of these returns the value that the node hands on, or None when the node may change something.


def _always(_graph: Graph, node: Node) -> Value | None:
    return node.inputs[0]


def _dropout(graph: Graph, node: Node) -> Value | None:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    return node.inputs[0] if training is None or graph.scalar(training) == 0 else None


def _cast(graph: Graph, node: Node) -> Value | None:
    from onnx.helper import tensor_dtype_to_np_dtype

    target = tensor_dtype_to_np_dtype(int(graph.attribute(node, "to"))).name
    return node.inputs[0] if graph.dtype(node.inputs[0]) == target else None


def _transpose(graph: Graph, node: Node) -> Value | None:
    x, perm = node.inputs[0], graph.attribute(node, "perm")
    kept = list(perm) == sorted(perm) if perm is not None else graph.rank(x) in (0, 1)
    return x if kept else None


def _reshape(graph: Graph, node: Node) -> Value | None:
    x = node.inputs[0]
    shape, target = graph.shape(x), graph.const(node.inputs[1])
    if _static(graph, x) is not None and _static(graph, x) == _static(graph, node.outputs[0]):
        return x
    if shape is None or target is None or len(shape) != target.size or graph.attribute(node, "allowzero", 0):
        return None
    # Every axis but one is copied (0) or equal; -1 is then what that axis was.
    open_axes = [t for t, d in zip(target.tolist(), shape, strict=True) if t not in (0, d)]
    return x if open_axes in ([], [-1]) else None


def _expand(graph: Graph, node: Node) -> Value | None:
    x = node.inputs[0]
    shape, target = graph.shape(x), graph.const(node.inputs[1])
    if _static(graph, x) is not None and _static(graph, x) == _static(graph, node.outputs[0]):
        return x
    if shape is None or target is None or target.size > len(shape):
        return None
    pairs = zip(target.tolist()[::-1], shape[::-1], strict=False)
    return x if all(t in (1, d) for t, d in pairs) else None


def _flatten(graph: Graph, node: Node) -> Value | None:
    x = node.inputs[0]
    return x if graph.rank(x) == 2 and graph.attribute(node, "axis", 1) in (1, -1) else None


def _slice(graph: Graph, node: Node) -> Value | None:
    x, shape = node.inputs[0], graph.shape(node.inputs[0])
    starts, ends, axes, steps = (_numbers(graph, node, i) for i in range(1, 5))
    if shape is None or starts is None or ends is None or any(starts) or (steps and set(steps) != {1}):
        return None
    if len(node.inputs) > 3 and axes is None:
        return None
    if len(node.inputs) > 4 and steps is None:
        return None
    axes = list(range(len(starts))) if axes is None else axes
    if not len(starts) == len(ends) == len(axes) or any(not -len(shape) <= axis < len(shape) for axis in axes):
        return None  # no such axis: ONNX Runtime will say so
    sizes = [shape[axis] for axis in axes]
    kept = (end >= (d if isinstance(d, int) else EVERYTHING) for end, d in zip(ends, sizes, strict=True))
    return x if all(kept) else None


def _pad(graph: Graph, node: Node) -> Value | None:
    pads = _numbers(graph, node, 1)
    return node.inputs[0] if pads is not None and not any(pads) else None


def _single(_graph: Graph, node: Node) -> Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _times_one(graph: Graph, node: Node) -> Value | None:
    return _neutral(graph, node, 1.0, either=node.op_type == "Mul")


def _plus_zero(graph: Graph, node: Node) -> Value | None:
    return _neutral(graph, node, 0.0, either=node.op_type == "Add")


def _neutral(graph: Graph, node: Node, number: float, *, either: bool) -> Value | None:
    """The operand beside a one-element constant of that number, if it alone decides the shape."""
    a, b = node.inputs
    for x, constant in ((a, b), (b, a)) if either else ((a, b),):
        if graph.scalar(constant) == number and (graph.rank(constant) or 0) <= (graph.rank(x) or 0):
            return x
    return None


def _numbers(graph: Graph, node: Node, index: int) -> list[int] | None:
    """The integers of a constant input; None when it is absent or computed."""
    array = graph.const(node.inputs[index]) if index < len(node.inputs) else None
    return None if array is None else [int(i) for i in array.reshape(-1)]


def _static(graph: Graph, value: Value | None) -> tuple[object, ...] | None:
    """The shape when every dimension is a number."""
    return graph.shape(value) if graph.size(value) is not None else None


NO_OPS: dict[str, Callable[[Graph, Node], Value | None]] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Slice": _slice,
    "Pad": _pad,
    "Concat": _single,
    "Sum": _single,
    "Mean": _single,
    "Max": _single,
    "Min": _single,
    "Mul": _times_one,
    "Div": _times_one,
    "Add": _plus_zero,
    "Sub": _plus_zero,
}
"""Operator -> the function that finds what it hands on."""
