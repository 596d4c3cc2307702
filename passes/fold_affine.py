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

from dataclasses import dataclass
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
from onnxq.sharers import rejoin, sharers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value

    Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class _Fold:
    """A step that can go into a linear node: the tensor it reads, and what it does to that."""

    step: Node
    linear: Linear
    x: Value
    factor: Array
    shift: Array


@dataclass(frozen=True)
class _Side:
    """Steps behind linear nodes, or before them: how one is found, where that of a linear node lies, how it folds."""

    find: Callable[[Graph, Node], _Fold | None]
    near: Callable[[Graph, Linear], Iterable[Node]]
    fold: Callable[[Graph, _Fold], bool]


def fold_affine(graph: Graph) -> int:
    """Fold constants behind linear nodes, then those before; return how many nodes went."""
    # Backwards, so that of two steps before a convolution the nearer goes first and uncovers the other.
    return _fold(graph, graph.nodes, _BEHIND) + _fold(graph, graph.nodes[::-1], _BEFORE)


def _fold(graph: Graph, nodes: Iterable[Node], side: _Side) -> int:
    gone = set[int]()
    for node in nodes:
        found = None if id(node) in gone else side.find(graph, node)
        done = [one for one in _together(graph, found, side) if side.fold(graph, one)]
        rejoin(graph, [one.linear for one in done])
        gone |= {id(one.step) for one in done}
    return len(gone)


def _together(graph: Graph, found: _Fold | None, side: _Side) -> list[_Fold]:
    """What is to be folded at once: where the weight changes, the same factor at all nodes that read it, or nothing."""
    if found is None or np.all(found.factor == 1) or len(graph.users(found.linear.weight)) == 1:
        return [] if found is None else [found]
    folds = [
        next((fold for node in side.near(graph, other) if (fold := side.find(graph, node)) is not None), None)
        for other in sharers(graph, found.linear.weight)
    ]
    alike = [fold for fold in folds if fold is not None and np.array_equal(fold.factor, found.factor)]
    return alike if len(alike) == len(folds) else []


def _find_behind(graph: Graph, node: Node) -> _Fold | None:
    x, constant, first = _operands(graph, node) or (None, None, False)
    linear = linear_before(graph, node, x)
    if x is None or linear is None:
        return None
    affine = _affine(node.op_type, per_output_channel(graph, linear, constant), constant_first=first)
    return None if affine is None else _Fold(node, linear, x, *affine)


def _near_behind(graph: Graph, linear: Linear) -> Iterable[Node]:
    """What reads the node's output, or first that of the Add of its bias."""
    user = graph.only_user(linear.node.outputs[0])
    after = None if user is None or user.op_type != "Add" else graph.only_user(user.outputs[0])
    return [node for node in (after, user) if node is not None]


def _fold_behind(graph: Graph, found: _Fold) -> bool:
    linear = found.linear
    if not scale_outputs(graph, linear, found.factor, found.shift):
        return False
    graph.absorb(found.step, found.x)
    if linear.bias_add is not None and linear.node.inputs[1] is not linear.weight:
        # The product alone now holds values that no tensor of the model had.
        graph.rename(linear.node.outputs[0], f"{linear.node.outputs[0].name}/scaled")
    return True


def _find_before(graph: Graph, node: Node) -> _Fold | None:
    x, constant, first = _operands(graph, node) or (None, None, False)
    user = graph.only_user(node.outputs[0]) if x is not None else None
    linear = linear_at(graph, user)
    if x is None or linear is None or graph.users(node.outputs[0]) != ((user, 0),) or _is_product(graph, x):
        return None
    affine = _affine(node.op_type, per_input_channel(graph, linear, constant, x), constant_first=first)
    return None if affine is None else _Fold(node, linear, x, *affine)


def _near_before(graph: Graph, linear: Linear) -> Iterable[Node]:
    made = graph.producer(linear.node.inputs[0])
    return [] if made is None else [made]


def _fold_before(graph: Graph, found: _Fold) -> bool:
    if not scale_inputs(graph, found.linear, found.factor, found.shift):
        return False
    graph.replace_uses(found.step.outputs[0], found.x)
    graph.remove(found.step)
    return True


_BEHIND = _Side(_find_behind, _near_behind, _fold_behind)
_BEFORE = _Side(_find_before, _near_before, _fold_before)


def _operands(graph: Graph, node: Node) -> tuple[Value, Value, bool] | None:
    """(activation, constant, whether the constant is the first operand) of such a step; else None."""
    if node.op_type not in ("Mul", "Div", "Add", "Sub") or node.domain not in ("", "ai.onnx"):
        return None
    a, b = node.inputs
    if a is None or b is None or graph.is_const(a) == graph.is_const(b):
        return None
    return (b, a, True) if graph.is_const(a) else (a, b, False)


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
