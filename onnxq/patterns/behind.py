"""The activation, or the addition, that alone reads a tensor, as a function of one value."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from onnxq.added import Added
from onnxq.pointwise import FUNCTIONS, Pointwise

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnxq.graph import Graph, Node, Value
    from onnxq.patterns import Pattern


def activations_behind(graph: Graph, patterns: Iterable[Pattern]) -> dict[str, Pointwise]:
    """Tensor -> the activation that is all that reads it, with what a Clip, Relu, Max or Min behind it cuts off.

    Gates that end at 1, such as a Sigmoid, are none of these: what they are multiplied with says how much their error
    weighs.

    Args:
        graph: its main graph is looked at.
        patterns: those that were found in it.
    """
    composites = {p.input: p for p in patterns if p.kind in FUNCTIONS}
    found = {}
    made = {str(v.name): v for node in graph.nodes for v in node.outputs}
    for value in made.values():
        users = [user for user, _ in graph.users(value)]
        if not users or value.is_graph_output() or any(graph.in_body(user) for user in users):
            continue
        pattern = composites.get(str(value.name))
        if pattern is not None and all(user.name in pattern.nodes for user in users):
            found[str(value.name)] = _cut(graph, Pointwise(pattern.kind), made.get(pattern.output))
        elif (single := _leaky_relu(graph, users)) is not None:
            found[str(value.name)] = _cut(graph, single, users[0].outputs[0])
    return found


def sums_behind(graph: Graph) -> dict[str, Added]:
    """Tensor -> the addition that is all that reads it, where a Relu or Clip is all that reads the sum.

    And the MaxPool that is all that reads on, if there is one.
    """
    found = {}
    for node in graph.nodes:
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            continue
        user = None if node.outputs[0].is_graph_output() else graph.only_user(node.outputs[0])
        bounds = None if user is None or user.domain or graph.in_body(user) else _bounds(graph, user)
        if user is None or bounds is None or bounds == (-inf, inf):
            continue
        pool = _pool(graph, user.outputs[0])
        for value, other in (node.inputs, node.inputs[::-1]):
            if value is None or other is None or value is other or graph.is_const(value) or graph.is_const(other):
                continue
            if graph.only_user(value) is node:
                found[str(value.name)] = Added(str(other.name), *bounds, pool)
    return found


def _pool(graph: Graph, value: Value) -> tuple[str, str] | None:
    """The tensor's name and that of what a MaxPool makes of it, where that is all that reads it."""
    node = None if value.is_graph_output() else graph.only_user(value)
    if node is None or node.domain not in ("", "ai.onnx") or node.op_type != "MaxPool" or graph.in_body(node):
        return None
    return str(value.name), str(node.outputs[0].name)


def _leaky_relu(graph: Graph, users: list[Node]) -> Pointwise | None:
    node = users[0]
    if len(users) != 1 or node.domain not in ("", "ai.onnx") or node.op_type != "LeakyRelu":
        return None
    return Pointwise("LeakyRelu", (float(graph.attribute(node, "alpha", 0.01)),))


def _cut(graph: Graph, function: Pointwise, value: Value | None) -> Pointwise:
    """The function with the bounds that the nodes behind its result set, as long as each is all that reads on."""
    while value is not None and not value.is_graph_output():
        node = graph.only_user(value)
        bounds = None if node is None or node.domain or graph.in_body(node) else _bounds(graph, node)
        if node is None or bounds is None:
            break
        low, high = (min(max(end, bounds[0]), bounds[1]) for end in (function.lowest, function.highest))
        function, value = replace(function, lowest=low, highest=high), node.outputs[0]
    return function


def _bounds(graph: Graph, node: Node) -> tuple[float, float] | None:
    """The lowest and the highest number that the node leaves; None where it does more, or they are not known."""
    if node.op_type == "Relu":
        return 0.0, inf
    if node.op_type == "Clip":
        given = [node.inputs[i] if i < len(node.inputs) else None for i in (1, 2)]
        low, high = (d if v is None else graph.scalar(v) for v, d in zip(given, (-inf, inf), strict=True))
        return None if low is None or high is None or low > high else (low, high)
    if node.op_type in ("Max", "Min") and len(node.inputs) == 2:
        bound = next((b for v in node.inputs if (b := graph.scalar(v)) is not None), None)
        return None if bound is None else (bound, inf) if node.op_type == "Max" else (-inf, bound)
    return None
