"""The activation that alone reads a tensor, as a function of one value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.pointwise import FUNCTIONS, Pointwise

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnxq.graph import Graph, Node
    from onnxq.patterns import Pattern


def activations_behind(graph: Graph, patterns: Iterable[Pattern]) -> dict[str, Pointwise]:
    """Tensor -> the activation that is all that reads it.

    Gates that end at 1, such as a Sigmoid, are none of these: what they are multiplied with says how much their error
    weighs.

    Args:
        graph: its main graph is looked at.
        patterns: those that were found in it.
    """
    composites = {p.input: p for p in patterns if p.kind in FUNCTIONS}
    found = {}
    for value in (v for node in graph.nodes for v in node.outputs):
        users = [user for user, _ in graph.users(value)]
        if not users or value.is_graph_output() or any(graph.in_body(user) for user in users):
            continue
        pattern = composites.get(str(value.name))
        if pattern is not None and all(user.name in pattern.nodes for user in users):
            found[str(value.name)] = Pointwise(pattern.kind)
        elif (single := _leaky_relu(graph, users)) is not None:
            found[str(value.name)] = single
    return found


def _leaky_relu(graph: Graph, users: list[Node]) -> Pointwise | None:
    node = users[0]
    if len(users) != 1 or node.domain not in ("", "ai.onnx") or node.op_type != "LeakyRelu":
        return None
    return Pointwise("LeakyRelu", (float(graph.attribute(node, "alpha", 0.01)),))
