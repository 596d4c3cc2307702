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
        count += _cancel(graph, node, found, sunk)
        moved = _step(graph, node, found, sunk)
        if moved is not None:
            count += 1
            front.insert(0, moved)
    return count


def _axes(graph: Graph, node: Node, rank: int | None) -> tuple[int, ...] | None:
    """The axes that a Squeeze or Unsqueeze names, counted from the front of the larger shape; None if not known."""
    axes = graph.const(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if axes is None or rank is None else tuple(sorted(int(axis) % rank for axis in axes.reshape(-1)))


def _cancel(graph: Graph, squeeze: Node, axes: tuple[int, ...], sunk: set[int]) -> int:
    """Let what reads Unsqueeze(Squeeze(x)) read x; return how many there were.

    An x that was made here takes the name of the first: rules and calibration caches may know it.
    """
    x, count = squeeze.inputs[0], 0
    for user, _ in graph.users(squeeze.outputs[0]):
        again = user.op_type == "Unsqueeze" and not user.domain and not graph.in_body(user)
        same = x is not None and again and _axes(graph, user, graph.rank(x)) == axes
        if x is None or not same or user.outputs[0].is_graph_output():
            continue
        if id(x) in sunk:
            graph.absorb(user, x)
            sunk.discard(id(x))
        else:
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
    out, squeezes = user.outputs[0], [graph.producer(value, "Squeeze") for value in user.inputs]
    inputs = [_before(graph, user, index, axes, sunk) for index in range(len(user.inputs))]
    fronts = [
        (value, front) for value, front in zip(user.inputs, inputs, strict=True) if graph.producer(value, "Squeeze")
    ]
    wide = next((x for value, x in fronts if graph.shape(value) == graph.shape(out) is not None), None)
    if wide is None or None in inputs or any(graph.rank(x) != graph.rank(wide) for _, x in fronts):
        return None
    said = {name: graph.attribute(user, name) for name in user.attributes}
    made = graph.add(user.op_type, inputs, name=f"{out.name}/wide", attributes=said, before=user, like=wide)
    axis = graph.constant(f"{out.name}/axes", np.array(axes, np.int64))
    again = graph.add("Squeeze", [made, axis], name=f"{out.name}/squeezed", before=user, like=out)
    moved = again.producer()
    graph.absorb(user, again)
    for node in {id(node): node for node in squeezes if node is not None}.values():
        _drop_unread(graph, node)
    _take_names(made.producer(), moved, user, squeeze)
    sunk.add(id(made))
    return moved


def _take_names(made: Node | None, moved: Node | None, user: Node, squeeze: Node) -> None:
    """Rules know nodes by their names."""
    if made is not None and moved is not None:
        made.name = user.name
        moved.name = squeeze.name if squeeze.graph is None else moved.name


def _before(graph: Graph, user: Node, index: int, axes: tuple[int, ...], sunk: set[int]) -> Value | None:
    """What an elementwise node reads in front of the Squeeze in place of an input; None where it cannot be moved."""
    value = user.inputs[index]
    squeeze = graph.producer(value, "Squeeze")
    if squeeze is not None:
        x, inputs = squeeze.inputs[0], 2 if user.op_type in _BINARY else 1 if user.op_type in _UNARY else 0
        fits = index < inputs and _axes(graph, squeeze, graph.rank(x)) == axes
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
