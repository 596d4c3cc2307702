"""Let what follows a convolution follow it directly, and not behind a Squeeze.

TensorFlow computes a convolution over one axis as one over two, of which the other has length 1. Exporters write

    Unsqueeze, Conv, Squeeze, Add of the bias, Relu, Unsqueeze, Conv, Squeeze, ...

and neither does the bias fold into the convolution nor does the Relu fuse with it. Elementwise operators do the same on
either side of a Squeeze:

    f(Squeeze(x))               =  Squeeze(f(x))
    Squeeze(x) + c              =  Squeeze(x + Unsqueeze(c)), where c is constant and broadcasts to the shape of x
    Squeeze(x) + Squeeze(y)     =  Squeeze(x + y)
    Unsqueeze(Squeeze(x))       =  x

The first two hold for chains that begin at a convolution, and the third for two of those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value

_CONVS = ("Conv", "ConvTranspose")
_UNARY = frozenset(
    {"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "Elu", "Selu", "HardSwish", "HardSigmoid", "Softplus"}
)
_BINARY = frozenset({"Add", "Sub", "Mul", "Div"})


def sink_squeezes(graph: Graph) -> int:
    """Move Squeezes down and drop those that an Unsqueeze takes back; return how many steps that took."""
    sunk: set[int] = set()  # ids of what elementwise operators give in front of a Squeeze
    count, front = 0, [node for node in graph.nodes if node.op_type == "Squeeze"]
    while front:
        node = front.pop(0)
        found = _axes(graph, node, graph.rank(node.inputs[0]))
        if found is None or node.domain:
            continue
        count += _cancel(graph, node, found)
        moved = _step(graph, node, found, sunk)
        if moved is not None:
            count += 1
            front.insert(0, moved)
    return count


def _axes(graph: Graph, node: Node, rank: int | None) -> tuple[int, ...] | None:
    """The axes that a Squeeze or Unsqueeze names, counted from the front of the larger shape; None if not known."""
    axes = graph.const(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if axes is None or rank is None else tuple(sorted(int(axis) % rank for axis in axes.reshape(-1)))


def _cancel(graph: Graph, squeeze: Node, axes: tuple[int, ...]) -> int:
    """Let what reads Unsqueeze(Squeeze(x)) read x; return how many there were."""
    x, count = squeeze.inputs[0], 0
    for user, _ in graph.users(squeeze.outputs[0]):
        again = user.op_type == "Unsqueeze" and not graph.in_body(user) and not user.outputs[0].is_graph_output()
        if x is not None and again and _axes(graph, user, graph.rank(x)) == axes:
            graph.replace_uses(user.outputs[0], x)
            graph.remove(user)
            count += 1
    _drop_unread(graph, squeeze)
    return count


def _step(graph: Graph, squeeze: Node, axes: tuple[int, ...], sunk: set[int]) -> Node | None:
    """Move a Squeeze behind the one node that reads it; the new Squeeze, or None when it stays."""
    user = graph.only_user(squeeze.outputs[0])
    if user is None or user.domain or graph.in_body(user) or len(user.outputs) != 1:
        return None
    inputs = [_before(graph, user, value, axes, sunk) for value in user.inputs]
    wide = next((value for value in inputs if value is not None and not graph.is_const(value)), None)
    if wide is None or None in inputs:
        return None
    squeezes = [graph.producer(value, "Squeeze") for value in user.inputs]
    said = {name: graph.attribute(user, name) for name in user.attributes}
    out = user.outputs[0]
    made = graph.add(user.op_type, inputs, name=f"{out.name}/wide", attributes=said, before=user, like=wide)
    axis = graph.constant(f"{out.name}/axes", np.array(axes, np.int64))
    again = graph.add("Squeeze", [made, axis], name=f"{out.name}/squeezed", before=user, like=out)
    moved = again.producer()
    graph.absorb(user, again)
    for node in {id(node): node for node in squeezes if node is not None}.values():
        _drop_unread(graph, node)
    sunk.add(id(made))
    return moved


def _before(graph: Graph, user: Node, value: Value | None, axes: tuple[int, ...], sunk: set[int]) -> Value | None:
    """What an elementwise node reads in front of the Squeeze in place of a value; None where it cannot be moved."""
    squeeze = graph.producer(value, "Squeeze")
    if squeeze is not None:
        x = squeeze.inputs[0]
        fits = user.op_type in _UNARY | _BINARY and _axes(graph, squeeze, graph.rank(x)) == axes
        return x if fits and x is not None and (id(x) in sunk or graph.producer(x, *_CONVS)) else None
    array = graph.const(value)
    if value is None or array is None:
        return None
    if user.op_type in _UNARY:  # the bounds of a Clip
        return value if array.size == 1 and array.ndim == 0 else None
    other = next((v for v in user.inputs if v is not value), None)
    shape = graph.shape(other)
    if shape is None or array.ndim > len(shape):
        return None
    full = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if any(c not in (1, d) for c, d in zip(full.shape, shape, strict=True)):
        return None
    return graph.constant(f"{value.name}/wide", np.expand_dims(full, axes)) if user.op_type in _BINARY else None


def _drop_unread(graph: Graph, node: Node) -> None:
    if node.graph is not None and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
        graph.remove(node)
