"""LayerNorm and RMSNorm written out in elementary operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.patterns.match import Match, reduction, same_axes
from onnxq.patterns.polynomial import Polynomial
from onnxq.patterns.reading import WEIGHT, Reading, follow, number, read, sources, uncast

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from onnxq.graph import Graph, Node, Value

X, MEAN, SQUARE, ROOT = (Polynomial.of(name) for name in ("x", "mean", "square", "root"))

_PER_ROOT = Polynomial({(("root", -1),): 1.0})
_CENTRED = (X - MEAN) * _PER_ROOT
_LAYER_NORM = (_CENTRED, _CENTRED * WEIGHT, _CENTRED + WEIGHT, _CENTRED * WEIGHT + WEIGHT)
_RMS_NORM = (X * _PER_ROOT, X * _PER_ROOT * WEIGHT, X * _PER_ROOT * (1 + WEIGHT))

MAX_EPSILON = 1e-2
"""Anything larger is no guard against division by zero; Keras' 1e-3 is the largest in common use."""


def layer_norm(graph: Graph, node: Node) -> Match | None:
    """LayerNorm (Ba et al., 2016, arXiv 1607.06450): (x - mean x) / sqrt(mean (x - mean x)^2 + eps) [* w] [+ b].

    The variance may also be mean x^2 - (mean x)^2. Frameworks that write it as a batch normalization compute
    x * k + (b - mean x * k) with k = w / sqrt(...): the same polynomial.
    """
    for square in _inside(graph, node):
        average = reduction(graph, square, "ReduceMean")
        squared = None if average is None else average.inputs[0]
        if average is None or squared is None:
            continue
        entry = node.inputs[0]
        for mean in (*sources(graph, squared), *(() if entry is None else sources(graph, entry))):
            centre = reduction(graph, mean, "ReduceMean")
            if centre is None or not same_axes(graph, centre, average):
                continue
            x = uncast(graph, centre.inputs[0])
            above = None if x is None else _variance(graph, node, (x, mean, square))
            if x is None or above is None:
                continue
            if found := _normalized(graph, node, {x: X, mean: MEAN}, _LAYER_NORM):
                return Match((centre, average, *above, node, *found.nodes), x, found.value)
    return None


def rms_norm(graph: Graph, node: Node) -> Match | None:
    """RMSNorm (Zhang & Sennrich, 2019, arXiv 1910.07467): x / sqrt(mean x^2 + eps) [* w or * (1 + w)]."""
    for square in _inside(graph, node):
        average = reduction(graph, square, "ReduceMean")
        squared = None if average is None else average.inputs[0]
        if average is None or squared is None or (above := _shifted(graph, node, {square: SQUARE}, SQUARE)) is None:
            continue
        for source in sources(graph, squared):
            x = uncast(graph, source)
            inner = None if x is None else read(graph, squared, {x: X})
            if x is None or inner is None or not inner.formula.close_to(X**2):
                continue
            if found := _normalized(graph, node, {x: X}, _RMS_NORM):
                return Match((*inner.nodes, average, *above, node, *found.nodes), x, found.value)
    return None


def _inside(graph: Graph, node: Node) -> Iterator[Value]:
    """Values under the root of a Sqrt or a Pow with exponent 1/2 or -1/2."""
    argument = node.inputs[0]
    if argument is not None and (node.op_type == "Sqrt" or number(graph, node.inputs[1]) in (0.5, -0.5)):
        yield from sources(graph, argument)


def _variance(graph: Graph, node: Node, values: tuple[Value, Value, Value]) -> tuple[Node, ...] | None:
    """The nodes that make variance + eps from (x, mean, square), None when they compute something else."""
    x, mean, square = values
    squared = square.producer()
    inside = None if squared is None else squared.inputs[0]
    inner = None if inside is None else read(graph, inside, {x: X, mean: MEAN})
    if inner is None:
        return None
    if inner.formula.close_to((X - MEAN) ** 2):
        outer = _shifted(graph, node, {square: SQUARE}, SQUARE)
    elif inner.formula.close_to(X**2):
        outer = _shifted(graph, node, {square: SQUARE, mean: MEAN}, SQUARE - MEAN**2)
    else:
        outer = None
    return None if outer is None else (*inner.nodes, *outer)


def _shifted(
    graph: Graph, node: Node, symbols: dict[Value, Polynomial], formula: Polynomial
) -> tuple[Node, ...] | None:
    """The nodes under the root when they compute formula + eps, eps small and positive; else None."""
    argument = node.inputs[0]
    reading = None if argument is None else read(graph, argument, symbols)
    epsilon = None if reading is None else (reading.formula - formula).constant
    return reading.nodes if reading is not None and epsilon and 0 < epsilon <= MAX_EPSILON else None


def _normalized(
    graph: Graph, node: Node, symbols: dict[Value, Polynomial], formulas: Collection[Polynomial]
) -> Reading | None:
    output = node.outputs[0]
    reciprocal = node.op_type == "Pow" and number(graph, node.inputs[1]) == -0.5
    return follow(graph, output, symbols | {output: _PER_ROOT if reciprocal else ROOT}, formulas)
