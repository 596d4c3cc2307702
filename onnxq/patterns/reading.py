"""Reads graph arithmetic as Laurent polynomials: two graphs are alike when they compute the same formula.

An exporter may write x * 0.5 * (1 + t) in a dozen orders, with Div for Mul or with Pow for a chain of Mul. Read as
polynomials in x and t they are all equal, hence a pattern needs one formula and no list of orders.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxq.patterns.polynomial import Polynomial

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from onnxq.graph import Graph, Node, Value

_DEPTH = 12  # nodes between a formula's result and its symbols; tanh GELU with casts needs 10
_REACH = 24  # values looked at above and below an anchor, which keeps the search linear in the graph
_MAX_DEGREE = 6  # no formula here goes beyond x^3; squares of squares stop early

WEIGHT = Polynomial.of("w")
"""Stands for any weight of more than one element."""


@dataclass(frozen=True)
class Reading:
    """What a value computes: its polynomial, and the nodes between it and the symbols."""

    value: Value
    formula: Polynomial
    nodes: tuple[Node, ...]


def number(graph: Graph, value: Value | None) -> float | None:
    """The number in a one-element weight, also behind casts and reshapes; else None."""
    return graph.scalar(_weight(graph, value))


def read(graph: Graph, value: Value, symbols: Mapping[Value, Polynomial]) -> Reading | None:
    """What the value computes from the symbols and the weights, None when other things go into it."""
    known, nodes = dict(symbols), dict[int, "Node"]()
    formula = _evaluate(graph, value, known, nodes, _DEPTH)
    return None if formula is None else Reading(value, formula, tuple(nodes.values()))


def sources(graph: Graph, value: Value) -> Iterator[Value]:
    """The value and the activations it is computed from by arithmetic alone, nearest first."""
    yield from _spread([value], lambda v: () if (n := graph.producer(v, *_ARITHMETIC)) is None else _data(graph, n))


def follow(
    graph: Graph, start: Value, symbols: Mapping[Value, Polynomial], formulas: Collection[Polynomial]
) -> Reading | None:
    """The farthest value below `start` that computes one of the formulas from the symbols, None when none does.

    Beyond a first match the search goes on only where nothing else uses the match.
    """
    best: Reading | None = None

    def below(value: Value) -> list[Value]:
        nonlocal best
        if (reading := read(graph, value, symbols)) is None:
            return []
        if any(reading.formula.close_to(f) for f in formulas):
            best = reading
            if graph.only_user(value) is None:
                return []
        users = (node for node, _ in graph.users(value))
        return [n.outputs[0] for n in users if standard(n, *_ARITHMETIC)]

    for _ in _spread([start], below):
        pass
    return best


def standard(node: Node, *op_types: str) -> bool:
    """Whether the node is one of these operators of the default domain."""
    return node.domain in ("", "ai.onnx") and node.op_type in op_types


def uncast(graph: Graph, value: Value | None) -> Value | None:
    """The value before any Cast, Identity or Dropout."""
    while (node := graph.producer(value, *_SAME)) is not None:
        value = node.inputs[0]
    return value


def _weight(graph: Graph, value: Value | None) -> Value | None:
    """The weight that the value is, or is a cast or reshaped copy of."""
    for _ in range(4):
        if graph.is_const(value):
            return value
        node = graph.producer(value, *_SAME, "Unsqueeze", "Squeeze", "Reshape")
        if node is None:
            return None
        value = node.inputs[0]
    return None


def _data(graph: Graph, node: Node) -> list[Value]:
    inputs = node.inputs[:1] if node.op_type in _SAME else node.inputs
    return [v for v in inputs if v is not None and _weight(graph, v) is None]


def _spread(first: list[Value], grow: Callable[[Value], Collection[Value]]) -> Iterator[Value]:
    """Breadth first, each value once, at most _REACH of them."""
    queue, seen = deque(first), {id(v) for v in first}
    for _ in range(_REACH):
        if not queue:
            return
        yield (value := queue.popleft())
        fresh = [v for v in grow(value) if id(v) not in seen]
        seen |= {id(v) for v in fresh}
        queue.extend(fresh)


def _evaluate(
    graph: Graph, value: Value | None, known: dict[Value, Polynomial], nodes: dict[int, Node], depth: int
) -> Polynomial | None:
    if value is None or value in known:
        return None if value is None else known[value]
    if (weight := _weight(graph, value)) is not None:
        scalar = graph.scalar(weight)
        return WEIGHT if scalar is None else Polynomial.of(scalar)
    node = graph.producer(value, *_ARITHMETIC)
    if node is None or depth == 0:
        return None
    parts: list[Polynomial] = []
    for source in node.inputs[:1] if node.op_type in _SAME else node.inputs:
        part = _evaluate(graph, source, known, nodes, depth - 1)
        if part is None:
            return None
        parts.append(part)
    result = _ARITHMETIC[node.op_type](parts)
    if result is None or result.degree > _MAX_DEGREE:
        return None
    known[value] = result
    nodes[id(node)] = node
    return result


def _sum(parts: list[Polynomial]) -> Polynomial:
    return sum(parts[1:], start=parts[0])


def _quotient(parts: list[Polynomial]) -> Polynomial | None:
    below = parts[1].inverse()
    return None if below is None else parts[0] * below


def _power(parts: list[Polynomial]) -> Polynomial | None:
    base, exponent = parts[0], parts[1].constant
    if exponent is None or not exponent.is_integer() or not 1 <= abs(exponent) <= _MAX_DEGREE:
        return None
    positive: Polynomial | None = base ** int(abs(exponent))
    return positive.inverse() if exponent < 0 and positive is not None else positive


def _root(parts: list[Polynomial]) -> Polynomial | None:
    inside = parts[0].constant  # of a constant an exporter did not fold; any other root is a symbol
    return None if inside is None or inside < 0 else Polynomial.of(inside**0.5)


_SAME = ("Cast", "Identity", "Dropout")

_ARITHMETIC: Mapping[str, Callable[[list[Polynomial]], Polynomial | None]] = {
    "Add": _sum,
    "Sum": _sum,
    "Sub": lambda p: p[0] - p[1],
    "Mul": lambda p: p[0] * p[1],
    "Div": _quotient,
    "Neg": lambda p: p[0] * -1.0,
    "Reciprocal": lambda p: p[0].inverse(),
    "Pow": _power,
    "Sqrt": _root,
    **dict.fromkeys(_SAME, lambda p: p[0]),
}
