"""Compute in float32 what a model has in half precision, for a backend that does so in any case.

ONNX Runtime's CPU provider has few kernels for float16: it casts in front of and behind every node. Its integer kernels
take float32 scales alone, and nothing in half precision would be quantized. Inputs and outputs of the model keep their
types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxq.dtypes import FLOAT, NUMBERS
from onnxq.operators import CONTRIB

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from onnxq.graph import Graph, Node, Value

HALVES = {name: number for name, number in NUMBERS.items() if name != "float32"}

_NUMBERS = ("to", "dtype", "output_dtype", "output_datatype")
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", CONTRIB)


def widen_halves(graph: Graph, kinds: Collection[str] = tuple(HALVES)) -> int:
    """Return how many nodes now compute in float32 in place of one of the `kinds`.

    None where an operator is not the standard's or ONNX Runtime's, which may want halves, or holds sequences.
    """
    parts, halves = tuple(graph.parts()), {kind: HALVES[kind] for kind in kinds}
    if not has_halves(graph, kinds) or any(_unknown(node) for part in parts for node in part.nodes):
        return 0
    ends = [graph.dtype(value) for value in graph.outputs]
    for part in parts:
        _widen_values(part, halves)
    count = sum(_widen_node(part, node, halves) for part in parts for node in part.nodes)
    for index, dtype in enumerate(ends):
        value = graph.outputs[index]
        if dtype in halves and graph.dtype(value) == "float32":
            said = {"to": halves[dtype]}
            made = graph.add("Cast", [value], name=f"{value.name}_{dtype}", attributes=said, like=value)
            graph.retype(made, dtype)
            graph.replace_output(value, made)
    return count


def has_halves(graph: Graph, kinds: Collection[str] = tuple(HALVES)) -> bool:
    """Whether anything, in bodies too, is said to be of one of the `kinds`: most models have nothing."""
    halves = {kind: HALVES[kind] for kind in kinds}
    return any(_has(part, halves) for part in graph.parts())


def _has(graph: Graph, halves: Mapping[str, int]) -> bool:
    """Whether a node, or an input, says so; weights that no node reads do not count, and bodies see all around them."""
    values = (v for node in graph.nodes for v in (*node.inputs, *node.outputs))
    known = any(graph.dtype(v) in halves for v in (*graph.inputs, *values))
    return known or any(graph.attribute(n, name) in halves.values() for n in graph.nodes for name in _NUMBERS)


def _unknown(node: Node) -> bool:
    return node.domain not in _DOMAINS or "Sequence" in node.op_type or "Optional" in node.op_type


def _widen_values(graph: Graph, halves: Mapping[str, int]) -> None:
    """Weights, and the inputs: behind a Cast, or in a body as they are."""
    for value in graph.inputs:
        if graph.dtype(value) in halves and graph.body is not None:
            graph.retype(value, "float32")
        elif graph.dtype(value) in halves and graph.users(value):
            _cast(graph, value)
    for value in tuple(graph.weights.values()):  # of a body also those around it, whose users read others by now
        ends = graph.body is not None and any(value is end for end in graph.outputs)  # the model's stay what they are
        array = graph.const(value) if graph.dtype(value) in halves and (ends or graph.users(value)) else None
        if array is not None:
            name = str(value.name)
            if graph.body is None and not value.is_graph_output():  # so that it is known by its name
                graph.rename(value, f"{name}_{graph.dtype(value)}")
            held = graph.constant(name, array.astype(np.float32))
            graph.replace_uses(value, held, None if ends else graph.users(value))


def _widen_node(graph: Graph, node: Node, halves: Mapping[str, int]) -> bool:
    """Let the node give float32; whether it gave halves."""
    for name in _NUMBERS:
        if graph.attribute(node, name) in halves.values():
            graph.set_attribute(node, name, FLOAT)
    made = [value for value in node.outputs if graph.dtype(value) in halves]
    if node.op_type == "ConstantOfShape" and _widen_fill(graph, node, halves):
        made = list(node.outputs)
    for value in made:
        graph.retype(value, "float32")
    return bool(made)


def _widen_fill(graph: Graph, node: Node, halves: Mapping[str, int]) -> bool:
    """Let a ConstantOfShape fill with a float32, whether types are known or not; whether it did so with a half."""
    fill = graph.attribute(node, "value")
    array = None if fill is None else fill.numpy()
    if array is None or array.dtype.name not in halves:
        return False
    graph.set_attribute(node, "value", array.astype(np.float32))
    return True


def _cast(graph: Graph, value: Value) -> None:
    """Let the users of an input read it in float32."""
    users, first, said = graph.users(value), graph.nodes[0], {"to": FLOAT}
    made = graph.add("Cast", [value], name=f"{value.name}_float32", attributes=said, like=value, before=first)
    graph.retype(made, "float32")
    graph.replace_uses(value, made, users)
