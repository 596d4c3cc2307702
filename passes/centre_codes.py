"""Write int8 pairs with a zero point z as pairs without one, around the middle of their range.

    Q(x, s, z) = Q(x + z s, s, 0)        DQ(q, s, z) = DQ(q, s, 0) - z s

The codes are the same; what the zero point did, constants do now. They go into biases where `onnxq.centring` finds a
way: in front of the pair through a Relu, which vanishes when its 0 is the lowest code; behind it into what reads it.
A convolution that pads with zeros gets a Pad with z s in front, in a pair of its own with the same scale, so that the
convolution still reads int8. What finds no bias is an Add. What tensors of other values stand for, the model's
metadata tells (`onnxq.shifted`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.centring import addend, averages_zeros, borders, commutes, saturates, takes_bias, way_back
from onnxq.linear import Linear, add_bias, quantized_linear_at, weight_array
from onnxq.shifted import Shifted, record

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

    Array = npt.NDArray[Any]

_LOWEST, _HIGHEST = -128, 127


def centre_codes(graph: Graph) -> int:
    """Return how many pairs lost their zero point."""
    found = [node for node in graph.nodes if _off_centre(graph, node)]
    names = _Names(graph)
    made: list[Node] = []
    for node in found:
        zero, step = _numbers(graph, node)
        for dequantize, _ in graph.users(node.outputs[0]):
            made += _behind(graph, dequantize, zero, names)
        made += _before(graph, node, (zero, step), names)
    _settle(graph, made, names)
    if found:
        graph.sort()
        names.write()
    return len(found)


class _Names:
    """What stands for tensors that have other values now, and so other names."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[str, Shifted] = {}  # by the tensor of now

    def move(self, value: Value, shift: float, high: float | None = None) -> None:
        """Rename a value that now has so much more than before, and is no longer clipped at 0 and `high`."""
        before = self._of(value)
        self._known.pop(str(value.name), None)
        self._graph.rename(value, f"{value.name}/centred")
        self.note(value, replace(before, shift=before.shift + shift, high=high))

    def note(self, value: Value, shifted: Shifted) -> None:
        self._known[str(value.name)] = replace(shifted, tensor=str(value.name))

    def add(self, value: Value, made: Value, shift: float) -> None:
        """`made` is the value with so much more."""
        before = self._of(value)
        self.note(made, replace(before, shift=before.shift + shift))

    def bypass(self, node: Node) -> None:
        """Drop a node; what goes into it stands for what came out."""
        source = node.inputs[0]
        assert source is not None  # noqa: S101  of the operator
        self.note(source, self._of(node.outputs[0]))
        self._known.pop(str(node.outputs[0].name), None)
        self._graph.bypass(node)

    def write(self) -> None:
        """Tell of those that are still there, of several for one tensor of that which is quantized."""
        there = {str(v.name): v for v in self._graph.values()}
        quantized = {t for t, v in there.items() for n, _ in self._graph.users(v) if n.op_type == "QuantizeLinear"}
        left = [one for tensor, one in self._known.items() if tensor in there]
        left = [one for one in left if one.tensor in quantized or one.name not in there]
        record(self._graph, sorted(left, key=lambda one: one.tensor in quantized))

    def _of(self, value: Value) -> Shifted:
        name = str(value.name)
        return self._known.get(name, Shifted(name, name, 0.0))


def _off_centre(graph: Graph, node: Node) -> bool:
    """Whether the node and its DequantizeLinears have one int8 zero point, and it is not 0."""
    if node.op_type != "QuantizeLinear" or node.domain or not _is_plain(graph, node):
        return False
    behind = [user for user, _ in graph.users(node.outputs[0])]
    zeros = {_zero(graph, user) for user in behind if user.op_type == "DequantizeLinear" and _is_plain(graph, user)}
    known = all(user.op_type == "DequantizeLinear" and not graph.in_body(user) for user in behind)
    known = known and not node.outputs[0].is_graph_output()
    return known and _zero(graph, node) != 0 and zeros == {_zero(graph, node)}


def _is_plain(graph: Graph, node: Node) -> bool:
    scalars = len(node.inputs) > 2 and all(graph.scalar(v) is not None for v in node.inputs[1:])
    return scalars and graph.dtype(node.inputs[2]) == "int8"


def _zero(graph: Graph, node: Node) -> int:
    return round(graph.scalar(node.inputs[2]) or 0)


def _numbers(graph: Graph, node: Node) -> tuple[int, float]:
    """Zero point and scale."""
    return _zero(graph, node), float(graph.scalar(node.inputs[1]) or 0.0)


def _centred(graph: Graph, node: Node) -> None:
    shape = graph.shape(node.inputs[2]) or ()
    name = f"{node.outputs[0].name}/zero_point"
    graph.set_input(node, 2, graph.constant(name, np.zeros([d for d in shape if isinstance(d, int)], np.int8)))


def _add(graph: Graph, value: Value, amount: float, name: str) -> Value:
    constant = graph.constant(f"{name}/offset", np.asarray(amount, graph.dtype(value)))
    return graph.add("Add", [value, constant], name=name, like=value)


# -- in front of a pair ------------------------------------------------------------------------------------------


def _before(graph: Graph, quantize: Node, numbers: tuple[int, float], names: _Names) -> list[Node]:
    """Add z s to what the QuantizeLinear reads; return the Add where one is needed."""
    (zero, step), value = numbers, quantize.inputs[0]
    assert value is not None  # noqa: S101  of the operator
    way = way_back(graph, value, quantize)
    _centred(graph, quantize)
    if way is None or not all(_vanishes(graph, node, zero, step) for node in way.bounds):
        made = _add(graph, value, zero * step, f"{value.name}/centred")
        names.add(value, made, zero * step)
        graph.set_input(quantize, 0, made)
        return [node for node in (graph.producer(made),) if node is not None]
    linear = _biased(graph, way.linear)
    add_bias(graph, linear, np.full(linear.channels, zero * step), "centred")
    high = None
    for node in (way.linear, *reversed(way.between)):
        limit = saturates(graph, node) if node in way.bounds else None
        high = high if limit is None else min(limit, np.inf if high is None else high)
        names.move(node.outputs[0], zero * step, high)
    for node in way.bounds:
        names.bypass(node)
    return []


def _vanishes(graph: Graph, node: Node, zero: int, step: float) -> bool:
    """Whether the grid ends where the Relu or Clip does: below at code -128, above at 127 or before."""
    limit = saturates(graph, node)
    return limit is not None and zero == _LOWEST and bool(np.rint(limit / step) >= _HIGHEST - _LOWEST)


def _biased(graph: Graph, node: Node) -> Linear:
    """The node as one whose bias is added to."""
    linear = quantized_linear_at(graph, node)
    assert linear is not None  # noqa: S101  `way_back` saw to it
    return linear


# -- behind a pair -----------------------------------------------------------------------------------------------


def _behind(graph: Graph, dequantize: Node, zero: int, names: _Names) -> list[Node]:
    """Let all that read the pair make up for z s; return the Adds that were needed."""
    amount = -zero * float(graph.scalar(dequantize.inputs[1]) or 0.0)
    value = dequantize.outputs[0]
    _centred(graph, dequantize)
    name = str(value.name)
    graph.rename(value, f"{name}/centred")
    padded: dict[tuple[int, ...], Value] = {}
    rest: list[tuple[Node, int]] = []
    made: list[Node] = []
    for user, index in graph.users(value):
        if index == 0 and (commutes(graph, user) or averages_zeros(graph, user)):
            made += _put_behind(graph, user, amount, names)
        elif index != 0 or not _absorbed(graph, user, amount):
            rest.append((user, index))
            continue
        if pads := borders(graph, user):
            if pads not in padded:
                padded[pads] = _padded(graph, dequantize, pads, -amount)
            graph.set_input(user, 0, padded[pads])
            graph.set_attribute(user, "pads", None)
    rest = [use for use in rest if not _goes_beside(graph, use, amount, names)]
    if not rest and not value.is_graph_output():
        return made
    whole = _add(graph, value, amount, name)
    graph.replace_uses(value, whole, rest)
    if value.is_graph_output():
        graph.replace_output(value, whole)
    return [*made, *(node for node in (graph.producer(whole),) if node is not None)]


def _absorbed(graph: Graph, user: Node, amount: float) -> bool:
    """Put W 1 c into the bias of a linear node."""
    linear = None if user.op_type == "ConvTranspose" else quantized_linear_at(graph, user)
    turned = user.op_type == "Gemm" and graph.attribute(user, "transA", 0)
    if linear is None or turned or not (user.op_type == "MatMul" or takes_bias(graph, user)):
        return False
    if user.op_type == "Conv" and graph.attribute(user, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    weight = weight_array(graph, linear.weight)
    if weight is None:
        return False
    columns_first = user.op_type == "MatMul" or (user.op_type == "Gemm" and not graph.attribute(user, "transB", 0))
    sums = (weight.T if columns_first else weight).reshape(linear.channels, -1).sum(axis=1)
    gain = graph.attribute(user, "alpha", 1.0) if user.op_type == "Gemm" else 1.0
    add_bias(graph, linear, gain * amount * sums, "centred")
    return True


def _goes_beside(graph: Graph, use: tuple[Node, int], amount: float, names: _Names) -> bool:
    """Put c into the bias of the convolution whose result an Add joins with the tensor."""
    user, index = use
    if user.op_type != "Add" or user.domain or graph.in_body(user) or user.inputs[0] is user.inputs[1]:
        return False
    node = addend(graph, user, besides=user.inputs[index])
    linear = None if node is None else quantized_linear_at(graph, node)
    if node is None or linear is None:
        return False
    add_bias(graph, linear, np.full(linear.channels, amount), "centred")
    names.move(node.outputs[0], amount)
    return True


def _padded(graph: Graph, dequantize: Node, pads: tuple[int, ...], fill: float) -> Value:
    """The tensor with a border that holds z s, behind a pair with the scale of its own."""
    value, half = dequantize.outputs[0], len(pads) // 2
    dtype = str(graph.dtype(value))
    whole = np.asarray([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
    inputs = [value, graph.constant(f"{value.name}/pads", whole)]
    inputs.append(graph.constant(f"{value.name}/fill", np.asarray(fill, dtype)))
    made = graph.add("Pad", inputs, name=f"{value.name}/padded")
    graph.retype(made, dtype)
    codes = graph.add("QuantizeLinear", [made, *dequantize.inputs[1:]], name=f"{value.name}/padded_quantized")
    real = graph.add("DequantizeLinear", [codes, *dequantize.inputs[1:]], name=f"{value.name}/padded_dequantized")
    graph.retype(real, dtype)
    return real


# -- what is left ------------------------------------------------------------------------------------------------


def _settle(graph: Graph, made: list[Node], names: _Names) -> None:
    """Move the Adds behind what they commute with and join them, until nothing changes; equal and opposite ones go."""
    left = list(made)
    while left:
        node = left.pop(0)
        if node.graph is None:
            continue
        moved = _moved(graph, node, names) or _hoisted(graph, node, made, names)
        if moved:
            made += moved
            left += moved
        elif (joined := _joined(graph, node, made)) is not None:
            left.append(joined)


def _amount(graph: Graph, node: Node) -> float:
    return float(graph.scalar(node.inputs[1]) or 0.0)


def _moved(graph: Graph, node: Node, names: _Names) -> list[Node]:
    """f(x + c) -> f(x) + c; return what stands behind, nothing where nothing changed."""
    output = node.outputs[0]
    user = graph.only_user(output)
    if user is None or not commutes(graph, user) or user.inputs[0] is not output:
        return []
    amount = _amount(graph, node)
    graph.bypass(node)
    return _put_behind(graph, user, amount, names)


def _hoisted(graph: Graph, node: Node, made: list[Node], names: _Names) -> list[Node]:
    """Concat(x + c, y + c) -> Concat(x, y) + c; likewise."""
    user = graph.only_user(node.outputs[0])
    if user is None or user.op_type != "Concat" or user.domain or graph.in_body(user):
        return []
    adds = [graph.producer(v, "Add") for v in user.inputs]
    ours = [a for a in adds if a is not None and any(a is m for m in made) and graph.only_user(a.outputs[0]) is user]
    if len(ours) != len(adds) or len({_amount(graph, a) for a in ours}) > 1 or len({id(a) for a in ours}) < len(ours):
        return []
    amount = _amount(graph, node)
    for add in ours:
        graph.bypass(add)
    return _put_behind(graph, user, amount, names)


def _put_behind(graph: Graph, user: Node, amount: float, names: _Names) -> list[Node]:
    """Let all that reads the node's output read it with c added; return the Add."""
    output = user.outputs[0]
    name, users, outer = str(output.name), graph.users(output), output.is_graph_output()
    whole = _add(graph, output, amount, f"{name}/offset")
    if outer:
        graph.replace_output(output, whole)
    else:
        names.move(output, -amount)
        graph.rename(whole, name)
    graph.replace_uses(output, whole, users)
    return [made for made in (graph.producer(whole),) if made is not None]


def _joined(graph: Graph, node: Node, made: list[Node]) -> Node | None:
    """(x + a) + b -> x + (a + b); return the second, or nothing where it went too."""
    users = [user for user, _ in graph.users(node.outputs[0])]
    ours = [user for user in users if any(user is m for m in made)]
    if not users or len(ours) < len(users) or node.outputs[0].is_graph_output():
        return None
    last = None
    for user in ours:
        total = _amount(graph, node) + _amount(graph, user)
        source = node.inputs[0]
        if total == 0.0 and source is not None and not user.outputs[0].is_graph_output():
            graph.replace_uses(user.outputs[0], source)
            graph.remove(user)
        else:
            dtype = graph.dtype(user.outputs[0])
            graph.set_input(user, 0, source)
            graph.set_input(user, 1, graph.constant(f"{user.outputs[0].name}/offset", np.asarray(total, dtype)))
            last = user
    graph.remove(node)
    return last
