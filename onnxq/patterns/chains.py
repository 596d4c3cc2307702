"""Chains of nodes that lose their meaning when one of them computes in half precision and the rest do not help."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from onnxq.graph import Graph, Node, Value

MOVING = frozenset({"Reshape", "Transpose", "Flatten", "Unsqueeze", "Squeeze", "Slice", "Concat", "Expand", "Gather"})
MOVING |= {"Split", "Tile", "Identity", "Cast"}
"""Operators that move or convert values and compute none."""

POOLING = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
POOLING |= {"ReduceMean", "ReduceMax", "ReduceMin"}
"""Operators that take the mean or an end of several values: they go no further than these."""

MASKING = MOVING | {"Add", "Sub", "Mul", "Where"}
_EXACT = MOVING | {"Add", "Sub", "Mul", "Div", "Neg", "Floor", "Ceil", "Round", "Mod", "Min", "Max", "Clip", "Sqrt"}
_EXACT |= {"Where", "MatMul", "Einsum", "Reciprocal"}
_GUARDED = MOVING | {"Sqrt", "Clip", "Max", "Add"}
_DIVIDING = frozenset({"Div", "Reciprocal", "Log", "Pow"})
_FUSED = frozenset({"Relu", "Clip", "LeakyRelu", "HardSwish", "BatchNormalization", "Sigmoid", "HardSigmoid"})
_INTEGERS = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"})


def masks(graph: Graph) -> set[str]:
    """Tensors that are only added to a Softmax's input, as attention masks are: -inf is as good as -3e38 there."""
    found: set[str] = set()
    front = [node.inputs[0] for node in graph.nodes if node.op_type == "Softmax" and not node.domain]
    while front:
        value = front.pop()
        if value is None or str(value.name) in found or graph.is_const(value):
            continue
        found.add(str(value.name))
        node = graph.producer(value, *MASKING)
        front.extend(() if node is None else node.inputs)
    return found


def exact_nodes(graph: Graph, layers: Collection[str]) -> Iterator[tuple[str, str]]:
    """(Name, reason) of nodes before a Sin, a Cos or a Cast to integer: half precision counts to 2048 only.

    A position of 3001 has another sine than 3000, and an index or a size must be right. `layers` are the names of
    nodes where the way up ends: quantized ones, whose results are not exact anyway.
    """
    for node in graph.nodes:
        if node.op_type in ("Sin", "Cos", "Tan") and not node.domain:
            yield from _above(graph, node, layers, f"the phase of a {node.op_type} needs its digits")
        elif node.op_type == "Cast" and not node.domain and graph.dtype(node.outputs[0]) in _INTEGERS:
            yield from _above(graph, node, layers, "an integer is computed from it")


def _above(graph: Graph, node: Node, layers: Collection[str], reason: str) -> Iterator[tuple[str, str]]:
    front, seen = [node], {id(node)}
    while front:
        found = front.pop()
        yield str(found.name), reason
        for value in found.inputs:
            maker = graph.producer(value, *_EXACT)
            if maker is not None and id(maker) not in seen and maker.name not in layers:
                seen.add(id(maker))
                front.append(maker)


def divisors(graph: Graph, node: Node) -> Iterator[str]:
    """Names of the nodes from a guard against zero, as in Add(x, 1e-12), to the division or logarithm it is for."""
    for output in node.outputs:
        for user, _ in graph.users(output):
            if user.op_type in _GUARDED | _DIVIDING and not user.domain and not graph.in_body(user):
                below = [] if user.op_type in _DIVIDING else list(divisors(graph, user))
                if below or user.op_type in _DIVIDING:
                    yield from (str(user.name), *below)


def epilogue(graph: Graph, node: Node, layers: Collection[str], apart: Collection[tuple[str, int]]) -> Iterator[str]:
    """Names of the nodes that a backend fuses behind an int8 layer: activation, residual addition, constant factor.

    `layers` are the names of the nodes in int8; of the additions only those fuse. `apart` are the uses, (node name,
    input index), with a Q/DQ pair in front: an addition does not fuse with the shortcut that it reads behind one.
    """
    value = node.outputs[0]
    uses = graph.users(value)
    users = {id(user): user for user, _ in uses}.values()
    split = value.is_graph_output() or any((str(user.name), index) in apart for user, index in uses)
    if split or not all(_fuses(graph, value, user, layers) for user in users):
        return
    for user in users:
        yield str(user.name)
        if user.op_type not in ("Sigmoid", "HardSigmoid"):  # a gate's Mul is the value's own user
            yield from epilogue(graph, user, layers, apart)


def _fuses(graph: Graph, value: Value, user: Node, layers: Collection[str]) -> bool:
    if user.domain or graph.in_body(user):
        return False
    if user.op_type in ("Add", "Mul") and any(graph.is_const(v) for v in user.inputs):
        return True
    if user.op_type == "Mul":  # SiLU and its kind: value * gate(value)
        gates = [graph.producer(v, "Sigmoid", "HardSigmoid") for v in user.inputs if v is not value]
        return any(g is not None and g.inputs[0] is value for g in gates)
    return user.op_type in _FUSED or (user.op_type == "Add" and user.name in layers)
