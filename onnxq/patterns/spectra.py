"""Spectra: the layers that compute one from a signal, and those that read its magnitudes.

    c = Conv(signal, Fourier basis);   m = sqrt(re(c)^2 + im(c)^2)

A quiet band lies 40 dB and more below a loud one, and a quiet frame below a loud one, and both tell as much. One scale
for all of them leaves the quiet ones a few steps of 127: Silero VAD's probabilities have 14 to 26 dB with these layers
in int8 and 35 to 44 dB without; with ranges found in every run also 36 to 50 dB (docs/onnxruntime.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.graph import Graph, Node, Value

COMPUTES = "computes a spectrum: quiet bands would be rounded away in int8"
READS = "reads the magnitudes of a spectrum: quiet bands would be rounded away in int8"

_LINEAR = ("Conv", "MatMul", "Gemm")
_PARTS = ("Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Cast", "Reshape", "Transpose")
_PASSING = ("Sqrt", "Add", "Max", "Clip", "Squeeze", "Unsqueeze", "Cast", "Reshape", "Transpose", "Pow", "Identity")


def spectra(graph: Graph) -> dict[str, str]:
    """Node name -> what it has to do with a spectrum."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        terms = [_squared(graph, v) for v in node.inputs] if node.op_type == "Add" and not node.domain else []
        makers = [_linear(graph, term) for term in terms]
        if len(makers) != 2 or terms[0] is terms[1] or any(maker is None for maker in makers):
            continue
        one, other = (maker for maker in makers if maker is not None)
        if one is other or one.inputs[0] is other.inputs[0]:
            found |= dict.fromkeys((one.name or "", other.name or ""), COMPUTES)
            found |= {n.name or "": READS for n in _readers(graph, node.outputs[0])}
    return found


def _squared(graph: Graph, value: Value | None) -> Value | None:
    """What the tensor is the square of."""
    node = graph.producer(value, "Pow", "Mul")
    if node is None:
        return None
    a, b = node.inputs
    square = a is b if node.op_type == "Mul" else graph.scalar(b) == 2.0
    return a if square else None


def _linear(graph: Graph, value: Value | None) -> Node | None:
    """The layer whose result, or a part of it, the tensor is."""
    while (node := graph.producer(value, *_PARTS)) is not None:
        value = node.inputs[0]
    return graph.producer(value, *_LINEAR)


def _readers(graph: Graph, value: Value) -> Iterator[Node]:
    """The layers that read the magnitudes before something else, a logarithm say, has changed their range."""
    for user, index in graph.users(value):
        if graph.in_body(user) or user.domain:
            continue
        if user.op_type in _LINEAR and index == 0:
            yield user
        elif user.op_type in _PASSING and index == 0:
            yield from _readers(graph, user.outputs[0])
