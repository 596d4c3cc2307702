"""Write int8 pairs with a zero point z as pairs without one, around the middle of their range.

    Q(x, s, z) = Q(x + z s, s, 0)        DQ(q, s, z) = DQ(q, s, 0) - z s

The codes are the same; what the zero point did, constants do now. They go into biases where `onnxq.centring` finds a
way: in front of the pair through a Relu, which vanishes when its 0 is the lowest code; behind it into what reads it.
A convolution that pads with zeros gets a Pad with z s in front, in a pair of its own with the same scale, so that the
convolution still reads int8. What finds no bias is an Add.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.centring import addend, averages_zeros, borders, commutes, saturates, takes_bias, way_back
from onnxq.linear import Linear, add_bias, quantized_linear_at, weight_array

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

    Array = npt.NDArray[Any]

_LOWEST, _HIGHEST = -128, 127


def centre_codes(graph: Graph) -> int:
    """Return how many pairs lost their zero point."""
    found = [node for node in graph.nodes if _off_centre(graph, node)]
    made: list[Node] = []
    for node in found:
        zero, step = _numbers(graph, node)
        for dequantize, _ in graph.users(node.outputs[0]):
            made += _behind(graph, dequantize, zero)
        made += _before(graph, node, zero, step)
    _settle(graph, made)
    if found:
        graph.sort()
    return len(found)


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


def _before(graph: Graph, quantize: Node, zero: int, step: float) -> list[Node]:
    """Add z s to what the QuantizeLinear reads; return the Add where one is needed."""
    value = quantize.inputs[0]
    assert value is not None  # noqa: S101  of the operator
    way = way_back(graph, value, quantize)
    _centred(graph, quantize)
    if way is None or not all(_vanishes(graph, node, zero, step) for node in way.bounds):
        made = _add(graph, value, zero * step, f"{value.name}/centred")
        graph.set_input(quantize, 0, made)
        return [node for node in (graph.producer(made),) if node is not None]
    linear = _biased(graph, way.linear)
    add_bias(graph, linear, np.full(linear.channels, zero * step), "centred")
    for node in (way.linear, *way.between):
        graph.rename(node.outputs[0], f"{node.outputs[0].name}/centred")
    for node in way.bounds:
        graph.bypass(node)
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


def _behind(graph: Graph, dequantize: Node, zero: int) -> list[Node]:
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
            made += _put_behind(graph, user, amount)
        elif index != 0 or not _absorbed(graph, user, amount):
            rest.append((user, index))
            continue
        if pads := borders(graph, user):
            if pads not in padded:
                padded[pads] = _padded(graph, dequantize, pads, -amount)
            graph.set_input(user, 0, padded[pads])
            graph.set_attribute(user, "pads", None)
    rest = [use for use in rest if not _goes_beside(graph, *use, amount)]
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


def _goes_beside(graph: Graph, user: Node, index: int, amount: float) -> bool:
    """Put c into the bias of the convolution whose result an Add joins with the tensor."""
    if user.op_type != "Add" or user.domain or graph.in_body(user) or user.inputs[0] is user.inputs[1]:
        return False
    node = addend(graph, user, besides=user.inputs[index])
    linear = None if node is None else quantized_linear_at(graph, node)
    if node is None or linear is None:
        return False
    add_bias(graph, linear, np.full(linear.channels, amount), "centred")
    graph.rename(node.outputs[0], f"{node.outputs[0].name}/centred")
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


def _settle(graph: Graph, made: list[Node]) -> None:
    """Move the Adds behind what they commute with and join them, until nothing changes; equal and opposite ones go."""
    left = list(made)
    while left:
        node = left.pop(0)
        if node.graph is None:
            continue
        moved = _moved(graph, node) or _hoisted(graph, node, made)
        if moved:
            made += moved
            left += moved
        elif (joined := _joined(graph, node, made)) is not None:
            left.append(joined)


def _amount(graph: Graph, node: Node) -> float:
    return float(graph.scalar(node.inputs[1]) or 0.0)


def _moved(graph: Graph, node: Node) -> list[Node]:
    """f(x + c) -> f(x) + c; return what stands behind, nothing where nothing changed."""
    output = node.outputs[0]
    user = graph.only_user(output)
    if user is None or not commutes(graph, user) or user.inputs[0] is not output:
        return []
    amount = _amount(graph, node)
    graph.bypass(node)
    return _put_behind(graph, user, amount)


def _hoisted(graph: Graph, node: Node, made: list[Node]) -> list[Node]:
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
    return _put_behind(graph, user, amount)


def _put_behind(graph: Graph, user: Node, amount: float) -> list[Node]:
    """Let all that reads the node's output read it with c added; return the Add."""
    output = user.outputs[0]
    name, users, outer = str(output.name), graph.users(output), output.is_graph_output()
    whole = _add(graph, output, amount, f"{name}/offset")
    if outer:
        graph.replace_output(output, whole)
    else:
        graph.rename(output, f"{name}/centred")
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
