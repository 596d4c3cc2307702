"""Composite operations that a quantized graph must keep whole, found in the forms exporters write them.

A Q/DQ pair inside a GELU or a LayerNorm splits the one kernel a backend would run for it. Every matcher starts at a
rare operator and looks a bounded way up and down, so the time is linear in the size of the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxq.operators import CONTRIB
from onnxq.patterns.activations import gelu, hard_sigmoid, hard_swish, mish, silu
from onnxq.patterns.attention import attention, softmax
from onnxq.patterns.gates import squeeze_excite
from onnxq.patterns.match import Match
from onnxq.patterns.normalizations import layer_norm, rms_norm
from onnxq.patterns.reading import standard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from onnxq.graph import Graph, Node

    Matcher = Callable[[Graph, Node], Match | None]

PATTERNS: tuple[tuple[str, tuple[str, ...], Matcher], ...] = (
    ("GELU", ("Erf", "Tanh", "Sigmoid"), gelu),
    ("SiLU", ("Sigmoid",), silu),
    ("HardSwish", ("HardSigmoid", "Clip", "Min"), hard_swish),
    ("HardSigmoid", ("Clip", "Min"), hard_sigmoid),
    ("Mish", ("Tanh",), mish),
    ("LayerNorm", ("Sqrt", "Pow"), layer_norm),
    ("RMSNorm", ("Sqrt", "Pow"), rms_norm),
    ("Softmax", ("Exp",), softmax),
    ("Softmax attention", ("Softmax", "Exp"), attention),
    ("squeeze-excite", ("GlobalAveragePool", "AveragePool", "ReduceMean"), squeeze_excite),
)
"""(kind, operators to start at, matcher). Of two matches over the same nodes the upper row wins."""

OPERATORS: Mapping[tuple[str, str], str] = {
    ("", "Gelu"): "GELU",
    (CONTRIB, "Gelu"): "GELU",
    (CONTRIB, "FastGelu"): "GELU",
    (CONTRIB, "BiasGelu"): "GELU",
    (CONTRIB, "QuickGelu"): "GELU",
    ("", "LayerNormalization"): "LayerNorm",
    (CONTRIB, "SkipLayerNormalization"): "LayerNorm",
    ("", "RMSNormalization"): "RMSNorm",
    ("", "SimplifiedLayerNormalization"): "RMSNorm",
    (CONTRIB, "SimplifiedLayerNormalization"): "RMSNorm",
    (CONTRIB, "SkipSimplifiedLayerNormalization"): "RMSNorm",
    ("", "Swish"): "SiLU",
    ("", "HardSwish"): "HardSwish",
    ("", "HardSigmoid"): "HardSigmoid",
    ("", "Mish"): "Mish",
    ("", "Attention"): "Softmax attention",
    (CONTRIB, "Attention"): "Softmax attention",
    (CONTRIB, "MultiHeadAttention"): "Softmax attention",
    (CONTRIB, "GroupQueryAttention"): "Softmax attention",
}
"""(domain, operator) of those that are one such composite by themselves."""


@dataclass(frozen=True)
class Pattern:
    """One composite operation.

    Attributes:
        kind: "GELU", "LayerNorm" ...: the kinds of PATTERNS and OPERATORS.
        nodes: names of its nodes, in the graph's order.
        input: name of the activation it reads: x, or Q of an attention.
        output: name of the activation it makes.
    """

    kind: str
    nodes: tuple[str, ...]
    input: str
    output: str


def find_patterns(graph: Graph) -> tuple[Pattern, ...]:
    """The composite operations of the main graph, in the order of their outputs.

    One that lies wholly inside another (the SiLU in a squeeze-excite) is left out. Two that overlap in part are
    both there: attentions can share a scaled Q. Bodies of If, Loop and Scan are not searched.
    """
    order = {id(node): position for position, node in enumerate(graph.nodes)}
    found = [
        Pattern(kind, tuple(str(n.name) for n in nodes), str(match.input.name), str(match.output.name))
        for kind, match in _matches(graph)
        if (nodes := _ordered(match, order))
    ]
    position = {str(node.name): order[id(node)] for node in graph.nodes}
    return tuple(sorted(_outermost(found), key=lambda p: position[p.nodes[-1]]))


def labels(patterns: Iterable[Pattern]) -> dict[str, str]:
    """Node name -> kind of the largest pattern it belongs to, the first of those of the same size."""
    kinds: dict[str, str] = {}
    for pattern in sorted(patterns, key=_size):
        for node in pattern.nodes:
            kinds.setdefault(node, pattern.kind)
    return kinds


def _matches(graph: Graph) -> Iterator[tuple[str, Match]]:
    for node in graph.nodes:
        for kind, anchors, matcher in PATTERNS:
            if standard(node, *anchors) and (match := matcher(graph, node)) is not None:
                yield kind, match
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (single := OPERATORS.get((domain, node.op_type))) and node.inputs and node.inputs[0] is not None:
            yield single, Match((node,), node.inputs[0], node.outputs[0])


def _ordered(match: Match, order: Mapping[int, int]) -> tuple[Node, ...]:
    """The match's nodes once each in the graph's order; none when one of them lies in a body."""
    nodes = {id(node): node for node in match.nodes}
    return tuple(sorted(nodes.values(), key=lambda n: order[id(n)])) if nodes.keys() <= order.keys() else ()


def _outermost(patterns: list[Pattern]) -> list[Pattern]:
    claims: dict[str, list[frozenset[str]]] = {}
    kept: list[Pattern] = []
    for pattern in sorted(patterns, key=_size):
        nodes = frozenset(pattern.nodes)
        if any(nodes <= claim for claim in claims.get(pattern.nodes[0], ())):
            continue
        kept.append(pattern)
        for name in nodes:
            claims.setdefault(name, []).append(nodes)
    return kept


def _size(pattern: Pattern) -> int:
    return -len(pattern.nodes)
