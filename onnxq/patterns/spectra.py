"""Spectra: the layers that compute one from a signal, those that read its magnitudes, and those before a logarithm.

    c = Conv(signal, Fourier basis);   m = sqrt(re(c)^2 + im(c)^2)

The squares are added, or lie side by side along an axis of two that is summed over. In the last step of a fast Fourier
transform the signal is complex, and each part a sum over two layers, re = xA - yB and im = xB + yA. A layer whose
result the signal is, moved, padded, scaled and added up at most, is a step before or a filter, and one of those that
compute it.

A quiet band lies 40 dB and more below a loud one, and a quiet frame below a loud one, and both tell as much. One scale
for all of them leaves the quiet ones a few steps of 127: Silero VAD's probabilities have 14 to 26 dB with these layers
in int8 and 35 to 44 dB without; with ranges found in every run also 36 to 50 dB (docs/onnxruntime.md).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.graph import Graph, Node, Value

COMPUTES = "computes a spectrum: quiet bands would be rounded away in int8"
READS = "reads the magnitudes of a spectrum: quiet bands would be rounded away in int8"

LOGARITHM = "a logarithm or a root is taken of it: in int8 small values would be rounded away, or fall below 0"

_LINEAR = ("Conv", "MatMul", "Gemm")
_PARTS = ("Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Cast", "Reshape", "Transpose", "Neg")
_SUMS = ("Add", "Sub")
_TOGETHER = (*_SUMS, "Concat", "Mul")
_MOVED = (*_PARTS, "Pad", "Identity")
_BEFORE_LOGARITHMS = (*_MOVED, *_SUMS, "Relu", "Abs", "Clip", "Max")
_PASSING = (
    "Sqrt",
    "Add",
    "Max",
    "Clip",
    "Pow",
    "Slice",
    "Gather",
    "Squeeze",
    "Unsqueeze",
    "Cast",
    "Reshape",
    "Transpose",
    "Identity",
)


def spectra(graph: Graph) -> dict[str, str]:
    """Node name -> what it has to do with a spectrum."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        makers = _makers(graph, node)
        if makers:
            found |= dict.fromkeys((maker.name or "" for maker in makers), COMPUTES)
            found |= {n.name or "": COMPUTES for maker in makers for n in _filters(graph, maker)}
            found |= {n.name or "": READS for n in _readers(graph, node.outputs[0])}
    return found


def logarithms(graph: Graph) -> dict[str, str]:
    """Node name -> why a layer stays in float whose sums a Log or a root is taken of, as of a mel filter bank's.

    Moved, scaled, bounded or with something added at most. What is not negative may fall below 0 as x - c is quantized,
    or by a weight's rounding, and a logarithm of that is no number; on a small value it makes much of a small error.
    """
    found: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type in ("Log", "Sqrt") and not node.domain:
            found |= {n.name or "": LOGARITHM for n in _behind(graph, node.inputs[0], _BEFORE_LOGARITHMS)}
    return found


def _makers(graph: Graph, node: Node) -> list[Node]:
    """The layers whose results the node adds up as real and imaginary parts, none where it does not."""
    if node.domain:
        return []
    if node.op_type == "ReduceSum" and _over_two(graph, node):
        squared = _squared(graph, node.inputs[0])
        makers = [] if squared is None else list(_behind(graph, squared, (*_PARTS, "Concat")))
        sources = Counter(_signal(graph, maker) for maker in makers)
        return makers if makers and min(sources.values()) > 1 else []
    terms = [_squared(graph, v) for v in node.inputs] if node.op_type == "Add" else []
    if len(terms) != 2 or terms[0] is terms[1]:
        return []
    real, imaginary = (_part(graph, term) for term in terms)
    signals = {_signal(graph, maker) for maker in real}
    return [*real, *imaginary] if real and signals == {_signal(graph, maker) for maker in imaginary} else []


def _over_two(graph: Graph, node: Node) -> bool:
    """Whether the node sums over one axis of two."""
    axes = graph.attribute(node, "axes", None)
    if axes is None and len(node.inputs) > 1:
        constant = graph.const(node.inputs[1])
        axes = None if constant is None else constant.reshape(-1).tolist()
    shape = graph.shape(node.inputs[0]) if node.inputs[0] is not None else None
    return axes is not None and len(axes) == 1 and shape is not None and shape[int(axes[0])] == 2


def _behind(graph: Graph, value: Value | None, through: tuple[str, ...]) -> Iterator[Node]:
    """The layers of which the tensor is put together by these operators, parts of it perhaps times a constant."""
    waiting = [value]
    seen: set[Value | None] = {None}
    while waiting:
        value = waiting.pop()
        node = None if value in seen else graph.producer(value)
        seen.add(value)
        if node is None or node.domain:
            continue
        if node.op_type in _LINEAR:
            yield node
        elif node.op_type in through or _scales(graph, node):
            waiting += reversed(node.inputs if node.op_type in _TOGETHER else node.inputs[:1])


def _scales(graph: Graph, node: Node) -> bool:
    return node.op_type in ("Mul", "Div") and sum(map(graph.is_const, node.inputs)) == 1


def _signal(graph: Graph, layer: Node) -> Value | None:
    """What the layer reads that is no constant: of a product by a basis on the left the second."""
    return layer.inputs[1] if graph.is_const(layer.inputs[0]) else layer.inputs[0]


def _filters(graph: Graph, layer: Node) -> Iterator[Node]:
    """The layers before this one with nothing between them but what moves, pads, scales and adds up."""
    waiting = [layer]
    found: set[Node] = set()
    while waiting:
        for node in _behind(graph, _signal(graph, waiting.pop()), (*_MOVED, *_SUMS)):
            if node not in found:
                found.add(node)
                waiting.append(node)
                yield node


def _squared(graph: Graph, value: Value | None) -> Value | None:
    """What the tensor is the square of."""
    node = graph.producer(value, "Pow", "Mul")
    if node is None:
        return None
    a, b = node.inputs
    square = a is b if node.op_type == "Mul" else graph.scalar(b) == 2.0
    return a if square else None


def _part(graph: Graph, value: Value | None) -> list[Node]:
    """The layer whose result, or a part of it, the tensor is, or the two whose results it is the sum of; else none."""
    while (node := graph.producer(value, *_PARTS)) is not None:
        value = node.inputs[0]
    total = graph.producer(value, *_SUMS)
    found = [graph.producer(v, *_LINEAR) for v in ([value] if total is None else total.inputs)]
    layers = [node for node in found if node is not None]
    return layers if len(layers) == len(found) else []


def _readers(graph: Graph, value: Value) -> Iterator[Node]:
    """The layers that read the magnitudes before something else, a logarithm say, has changed their range."""
    for user, index in graph.users(value):
        if graph.in_body(user) or user.domain:
            continue
        if user.op_type in _LINEAR and index == 0:
            yield user
        elif user.op_type in _PASSING and index == 0:
            yield from _readers(graph, user.outputs[0])
