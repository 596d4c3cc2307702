"""Fold constant Mul, Div, Add and Sub into the Conv, ConvTranspose, Gemm or MatMul beside them.

Behind:  c * y, y / c, y + c, y - c and c - y are y * f + s with f and s per output channel.
Before:  x * c and x / c scale the weight's input channels; x + c, x - c and c - x also add W s to the bias, which
         holds only for a Conv without padding (zeros padded after the shift would have to be c).

A weight that several nodes share stays one: where the step differs between them, or one has none, it stays as well.

Preconditions: the weight is constant, nobody else reads what lies between the two nodes, and broadcasting the
constant leaves the activation's shape as it is. A MatMul has no bias, so an Add behind it stays an Add; further
constants behind fold into that Add. A factor on a product of two activations stays: it ends a GELU, a HardSwish or a
normalization, which backends fuse only as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.linear import (
    Linear,
    linear_at,
    linear_before,
    per_input_channel,
    per_output_channel,
    scale_inputs,
    scale_outputs,
)
from onnxq.sharers import sharers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

    Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Made:
    """What weights became: a weight that was shared -> the new one of the first node, and those made in this round."""

    instead: dict[Value, Value] = field(default_factory=dict)
    now: set[Value] = field(default_factory=set)


def fold_affine(graph: Graph) -> int:
    """Fold constants behind linear nodes, then those before; return how many nodes went."""
    steps = [n for n in graph.nodes if n.op_type in ("Mul", "Div", "Add", "Sub") and n.domain in ("", "ai.onnx")]
    behind = _in_rounds(graph, steps, _fold_behind)
    # Backwards, so that of two steps before a convolution the nearer goes first and uncovers the other.
    return len(behind) + len(_in_rounds(graph, [n for n in reversed(steps) if id(n) not in behind], _fold_before))


def _in_rounds(graph: Graph, steps: Sequence[Node], fold: Callable[[Graph, Node, _Made], bool]) -> set[int]:
    """Fold what can be, into each weight once a round: nodes that share one then read the same all the time."""
    made, gone = _Made(), set[int]()
    while found := {id(node) for node in steps if id(node) not in gone and fold(graph, node, made)}:
        gone |= found
        made.now.clear()
    return gone


def _fold_behind(graph: Graph, node: Node, made: _Made) -> bool:
    for x, constant, first in _operands(graph, node):
        linear = linear_before(graph, node, x)
        if linear is None:
            continue
        affine = _affine(node.op_type, per_output_channel(graph, linear, constant), constant_first=first)
        if affine is None or (np.any(affine[0] != 1) and not _alike(graph, linear, node, made, _step_behind)):
            continue
        if scale_outputs(graph, linear, *affine):
            _share(graph, linear, made)
            graph.absorb(node, x)
            if linear.bias_add is not None and linear.node.inputs[1] is not linear.weight:
                # The product alone now holds values that no tensor of the model had.
                graph.rename(linear.node.outputs[0], f"{linear.node.outputs[0].name}/scaled")
            return True
    return False


def _fold_before(graph: Graph, node: Node, made: _Made) -> bool:
    output = node.outputs[0]
    user = graph.only_user(output)
    linear = linear_at(graph, user)
    if user is None or linear is None or graph.users(output) != ((user, 0),):
        return False
    for x, constant, first in _operands(graph, node):
        affine = _affine(node.op_type, per_input_channel(graph, linear, constant, x), constant_first=first)
        if affine is None or (np.any(affine[0] != 1) and not _alike(graph, linear, node, made, _step_before)):
            continue
        if not _is_product(graph, x) and scale_inputs(graph, linear, *affine):
            _share(graph, linear, made)
            graph.replace_uses(output, x)
            graph.remove(node)
            return True
    return False


def _alike(
    graph: Graph, linear: Linear, step: Node, made: _Made, found: Callable[[Graph, Linear], Node | None]
) -> bool:
    """Whether all nodes that read the weight have such a step, with the same numbers, and it is not of this round."""
    if linear.weight in made.now:
        return False
    if len(graph.users(linear.weight)) == 1:
        return True
    steps = [found(graph, other) for other in sharers(graph, linear.weight)]
    return bool(steps) and all(other is not None and _same(graph, step, other) for other in steps)


def _step_behind(graph: Graph, linear: Linear) -> Node | None:
    """What reads the node's output, or that of the Add of its bias."""
    user = graph.only_user(linear.node.outputs[0])
    after = None if user is None or user.op_type != "Add" else graph.only_user(user.outputs[0])
    found = [node for node in (after, user) if node is not None]
    return next((node for node in found if linear_before(graph, node, _read(graph, node)) is not None), None)


def _step_before(graph: Graph, linear: Linear) -> Node | None:
    made = linear.node.inputs[0]
    return made.producer() if made is not None and graph.users(made) == ((linear.node, 0),) else None


def _read(graph: Graph, node: Node) -> Value | None:
    found = [v for v in node.inputs[:2] if not graph.is_const(v)]
    return found[0] if len(found) == 1 else None


def _same(graph: Graph, one: Node, other: Node) -> bool:
    """Whether both do the same with equal constants."""
    if one.op_type != other.op_type or len(one.inputs) != len(other.inputs):
        return False
    pairs = [(graph.const(a), graph.const(b)) for a, b in zip(one.inputs, other.inputs, strict=True)]
    return all(np.array_equal(a, b) if a is not None and b is not None else a is b for a, b in pairs)


def _share(graph: Graph, linear: Linear, made: _Made) -> None:
    """Let the node read the new weight of another that shared its old one, where that is the same."""
    new = linear.node.inputs[1]
    if new is None or new is linear.weight:
        return
    first = made.instead.setdefault(linear.weight, new)
    if first is not new and np.array_equal(np.asarray(graph.const(first)), np.asarray(graph.const(new))):
        graph.set_input(linear.node, 1, first)
        new = first
    made.now.add(new)


def _operands(graph: Graph, node: Node) -> tuple[tuple[Value, Value, bool], ...]:
    """(activation, constant, whether the constant is the first operand), for the one order that fits, if any."""
    a, b = node.inputs
    if a is None or b is None or graph.is_const(a) == graph.is_const(b):
        return ()
    return ((b, a, True),) if graph.is_const(a) else ((a, b, False),)


def _affine(op_type: str, c: Array | None, *, constant_first: bool) -> tuple[Array, Array] | None:
    """Factor and shift of one arithmetic node with constant c; None for c / x, x / 0 and c not finite."""
    if c is None or not np.isfinite(c).all() or (op_type == "Div" and (constant_first or np.any(c == 0))):
        return None
    one, zero = np.ones_like(c), np.zeros_like(c)
    if op_type in ("Mul", "Div"):
        return (c if op_type == "Mul" else 1 / c), zero
    if op_type == "Add":
        return one, c
    return (-one, c) if constant_first else (one, -c)


def _is_product(graph: Graph, x: Value) -> bool:
    product = graph.producer(x, "Mul", "Div")
    return product is not None and not any(graph.is_const(v) for v in product.inputs)
