"""Activation functions written out in elementary operators.

Each takes the operator that is rare (Erf, Tanh, Sigmoid, Clip), asks of what x its argument is the right
polynomial, and looks below for the right polynomial in x and the operator's output t.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnxq.patterns.match import Match
from onnxq.patterns.polynomial import Polynomial
from onnxq.patterns.reading import follow, number, read, sources

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node, Value

X, T = Polynomial.of("x"), Polynomial.of("t")

_SIXTH = 1 / 6
_TANH_ARGUMENT = math.sqrt(2 / math.pi) * (X + 0.044715 * X**3)


def gelu(graph: Graph, node: Node) -> Match | None:
    """GELU (Hendrycks & Gimpel, 2016, arXiv 1606.08415): exact, tanh approximation or sigmoid approximation.

    x/2 * (1 + erf(x / sqrt 2));  x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)));  x * sigmoid(1.702 x).
    """
    match node.op_type:
        case "Erf":
            return _composite(graph, node, (math.sqrt(0.5) * X, 0.5 * X * (1 + T)))
        case "Tanh":
            return _composite(graph, node, (_TANH_ARGUMENT, 0.5 * X * (1 + T)))
        case _:
            return _composite(graph, node, (1.702 * X, X * T))


def silu(graph: Graph, node: Node) -> Match | None:
    """SiLU, or Swish with beta = 1 (Ramachandran et al., 2017, arXiv 1710.05941): x * sigmoid(x)."""
    return _composite(graph, node, (X, X * T))


def mish(graph: Graph, node: Node) -> Match | None:
    """Mish (Misra, 2019, arXiv 1908.08681): x * tanh(softplus(x)), softplus(x) = log(1 + exp(x))."""
    inside = graph.producer(node.inputs[0], "Softplus", "Log")
    if inside is None:
        return None
    if inside.op_type == "Softplus":
        return _composite(graph, node, (X, X * T), (inside,))
    total = inside.inputs[0]
    for term in () if total is None else sources(graph, total):
        exponential = graph.producer(term, "Exp")
        inner = None if exponential is None or total is None else read(graph, total, {term: T})
        if exponential is not None and inner is not None and inner.formula.close_to(1 + T):
            return _composite(graph, node, (X, X * T), (exponential, *inner.nodes, inside))
    return None


def hard_swish(graph: Graph, node: Node) -> Match | None:
    """HardSwish (Howard et al., 2019, arXiv 1905.02244): x * relu6(x + 3) / 6 = x * hard_sigmoid(x)."""
    if node.op_type == "HardSigmoid":
        slope, offset = graph.attribute(node, "alpha", 0.2), graph.attribute(node, "beta", 0.5)
        standard_form = Polynomial.of(slope).close_to(Polynomial.of(_SIXTH)) and offset == 0.5
        return _composite(graph, node, (X, X * T)) if standard_form else None
    return _clipped(graph, node, 6, (X + 3, _SIXTH * X * T)) or _clipped(graph, node, 1, (_SIXTH * X + 0.5, X * T))


def hard_sigmoid(graph: Graph, node: Node) -> Match | None:
    """HardSigmoid: relu6(x + 3) / 6 = clip(x/6 + 1/2, 0, 1), and clip(x/5 + 1/2, 0, 1) as Keras 2 has it."""
    return (
        _clipped(graph, node, 6, (X + 3, _SIXTH * T))
        or _clipped(graph, node, 1, (_SIXTH * X + 0.5, T))
        or _clipped(graph, node, 1, (0.2 * X + 0.5, T))
    )


def _composite(
    graph: Graph,
    node: Node,
    form: tuple[Polynomial, Polynomial],
    before: tuple[Node, ...] = (),
    entry: Value | None = None,
) -> Match | None:
    """The formulas (argument in x, result in x and t) with t = node(argument), `before` lying in between.

    The argument is `entry`, by default the first input of the first of all these nodes.
    """
    argument = entry or (*before, node)[0].inputs[0]
    output = node.outputs[0]
    for x in () if argument is None else sources(graph, argument):
        above = None if argument is None else read(graph, argument, {x: X})
        if above is None or not above.formula.close_to(form[0]):
            continue
        if below := follow(graph, output, {x: X, output: T}, (form[1],)):
            return Match((*above.nodes, *before, node, *below.nodes), x, below.value)
    return None


def _clipped(graph: Graph, node: Node, top: float, form: tuple[Polynomial, Polynomial]) -> Match | None:
    """As _composite, when the node clips to [0, top]."""
    if node.op_type == "Clip":
        bounds = [number(graph, v) for v in node.inputs[1:]] + [None, None]
        low, high = (graph.attribute(node, name, bounds[i]) for i, name in enumerate(("min", "max")))
        return _composite(graph, node, form) if (low, high) == (0, top) else None
    lower = graph.producer(_activation(graph, node), "Max", "Relu")  # Min(Max(x, 0), top)
    if lower is None or _bound(graph, node) != top or (lower.op_type == "Max" and _bound(graph, lower) != 0):
        return None
    return _composite(graph, node, form, (lower,), _activation(graph, lower))


def _activation(graph: Graph, node: Node) -> Value | None:
    return next((v for v in node.inputs if v is not None and number(graph, v) is None), None)


def _bound(graph: Graph, node: Node) -> float | None:
    found = [b for v in node.inputs if (b := number(graph, v)) is not None]
    return found[0] if len(found) == len(node.inputs) - 1 == 1 else None
