"""A model in segments that fit a given amount of memory, for calibration: each begins where tensors are observed.

What ONNX Runtime computes depends on what it fuses. An observed tensor is an output of every run, so nothing is fused
across it, and a model that is cut at observed tensors computes the same bits. What else crosses a cut must be light: a
mask or a shape that a few cheap operators make of inputs and observed tensors, and that the later segment makes again.
Convolutions that follow one another are not cut apart, see `BLOCKED`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onnxq.graph import fix_shapes
from onnxq.operators import RANDOM

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from onnxq.graph import Graph, Node, Value

HEAVY = RANDOM | frozenset(
    (
        *("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "MatMulInteger", "ConvInteger", "QLinearMatMul"),
        *("QLinearConv", "LSTM", "GRU", "RNN", "TopK", "NonMaxSuppression", "Resize", "GridSample"),
    )
)
"""Operators that are not run twice: they cost something, or give something else each time."""

BLOCKED = frozenset(
    (
        *("Add", "Sum", "Sub", "Mul", "Div", "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "Tanh"),
        *("HardSwish", "BatchNormalization", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "Concat"),
        *("Resize", "Upsample", "Pad", "Identity", "Cast", "QuantizeLinear", "DequantizeLinear"),
    )
)
"""Operators behind a convolution that keep its layout: on CPUs ONNX Runtime computes both in blocks of channels, and
adds in another order where a tensor does not come in them. So there is no cut among them."""

LIGHT_BYTES = 1 << 16
"""A node that reads more weights than this is not run twice."""


@dataclass(frozen=True)
class Segment:
    """A part of a model.

    Attributes:
        reads: observed tensors of earlier segments that it begins with; it may read inputs of the model too.
        tensors: the observed tensors it makes; the first segment's have those of the model's inputs among them.
        bytes: what it is reckoned to hold: weights, observed tensors, and the largest node's inputs and outputs twice.
    """

    reads: tuple[str, ...]
    tensors: tuple[str, ...]
    bytes: int


def cut(graph: Graph, names: Sequence[str], sizes: Mapping[str, int], budget: int) -> tuple[Segment, ...]:
    """Cut the model into the fewest segments, from its beginning on, that hold `budget` bytes each where possible.

    Args:
        graph: prepared.
        names: what is observed.
        sizes: tensor -> bytes for one sample; what is missing counts nothing.
        budget: bytes.
    """
    model = _Model(graph, frozenset(names), sizes)
    parts = [_Part(0)]
    for begin, end in pairwise([0, *model.cuts(), len(model.nodes)]):
        pieces = [model.piece(i) for i in range(begin, end)]
        if parts[-1].tensors and parts[-1].bytes_with(pieces) > budget:
            parts.append(_Part(begin))
        parts[-1].add(pieces)
    if not parts[-1].tensors and len(parts) > 1:  # nothing is observed behind the last cut
        parts.pop()
    inputs = {str(v.name) for v in graph.inputs}
    rank = {name: i for i, name in enumerate(names)}
    parts[0].tensors.extend(name for name in names if name in inputs)
    reads = model.crossing([part.begin for part in parts])
    return tuple(
        Segment(tuple(read), tuple(sorted(part.tensors, key=rank.__getitem__)), part.bytes_with(()))
        for part, read in zip(parts, reads, strict=True)
    )


def sample_sizes(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Bytes of every activation for a sample of these input shapes, as far as onnx's inference gets."""
    copy = graph.copy()
    fix_shapes(copy, shapes)
    copy.infer_shapes()
    return {str(v.name): nbytes(copy, v) for v in copy.values() if v.name}


def nbytes(graph: Graph, value: Value, ones: Collection[str] = ()) -> int:
    """Bytes of a tensor of known size and a type that numpy knows; else 0. Dimensions named in `ones` count as 1."""
    dtype, shape = graph.dtype(value), graph.shape(value)
    known = [d if isinstance(d, int) else 1 for d in shape or () if isinstance(d, int) or d in ones]
    if shape is None or dtype is None or len(known) < len(shape):
        return 0
    return math.prod(known) * (2 if dtype == "bfloat16" else np.dtype(dtype).itemsize if dtype in _NUMPY else 1)


_NUMPY = frozenset(
    ["float16", "float32", "float64", "bool", *(f"{s}int{b}" for s in ("", "u") for b in (8, 16, 32, 64))]
)


class _Piece(NamedTuple):
    """What one node holds.

    Attributes:
        weights: id of a weight -> its bytes.
        tensors: what is observed of the node and its bodies.
        observed: bytes of that.
        largest: bytes of its inputs and outputs.
    """

    weights: dict[int, int]
    tensors: tuple[str, ...]
    observed: int
    largest: int


@dataclass
class _Part:
    """A segment while nodes are added to it."""

    begin: int
    weights: dict[int, int] = field(default_factory=dict)
    tensors: list[str] = field(default_factory=list)
    stored: int = 0
    observed: int = 0
    largest: int = 0

    def bytes_with(self, pieces: Sequence[_Piece]) -> int:
        """What it would hold with these nodes."""
        new = {k: v for piece in pieces for k, v in piece.weights.items() if k not in self.weights}
        observed = self.observed + sum(piece.observed for piece in pieces)
        return self.stored + sum(new.values()) + observed + 2 * max([self.largest, *(p.largest for p in pieces)])

    def add(self, pieces: Sequence[_Piece]) -> None:
        """Add the next nodes."""
        for piece in pieces:
            self.stored += sum(v for k, v in piece.weights.items() if k not in self.weights)
            self.weights |= piece.weights
            self.tensors += piece.tensors
            self.observed += piece.observed
            self.largest = max(self.largest, piece.largest)


class _Model:
    """Where each activation is made, and up to where it is needed."""

    def __init__(self, graph: Graph, names: frozenset[str], sizes: Mapping[str, int]) -> None:
        self.graph, self.names, self.sizes = graph, names, sizes
        self.nodes = graph.nodes
        self._reads = [tuple(self._read(node)) for node in self.nodes]
        self._made = {id(v): -1 for v in graph.inputs}
        self._light: set[int] = set()
        for i, node in enumerate(self.nodes):
            self._made |= {id(v): i for v in node.outputs}
            if self._is_light(i):
                self._light |= {id(v) for v in node.outputs if v.name not in names}
        self._until = self._needed()
        self._blocked: set[int] = set()
        for i, node in enumerate(self.nodes):
            if node.op_type == "Conv" or (
                node.op_type in BLOCKED and any(id(v) in self._blocked for v in self._reads[i])
            ):
                self._blocked |= {id(v) for v in node.outputs}

    def piece(self, i: int) -> _Piece:
        """What one node holds."""
        weights = {id(v): nbytes(self.graph, v) for v in self._reads[i] if self.graph.is_const(v)}
        tensors = tuple(name for name in self._names_of(self.nodes[i]) if name in self.names)
        outputs = [str(v.name) for v in self.nodes[i].outputs if v.name]
        inputs = [str(v.name) for v in self._reads[i] if id(v) in self._made]
        largest = sum(self.sizes.get(name, 0) for name in (*inputs, *outputs))
        return _Piece(weights, tensors, sum(self.sizes.get(name, 0) for name in tensors), largest)

    def cuts(self) -> list[int]:
        """The nodes, but the first, before which the model can be cut."""
        blocked = np.zeros(len(self.nodes) + 2, np.int64)  # the sum up to i: how many tensors forbid a cut before i
        for i, node in enumerate(self.nodes):
            for value in node.outputs:
                until = self._until.get(id(value), i)
                if until > i and not self._may_cross(value):
                    blocked[i + 1] += 1
                    blocked[until + 1] -= 1
        return [int(i) for i in np.flatnonzero(np.cumsum(blocked)[: len(self.nodes)] == 0) if i]

    def _may_cross(self, value: Value) -> bool:
        if id(value) in self._light:
            return True
        given = value.name in self.names and self.graph.dtype(value) in _NUMPY
        return given and id(value) not in self._blocked

    def crossing(self, begins: Sequence[int]) -> list[list[str]]:
        """For each of these nodes the observed tensors, made before it, that it or a later one needs."""
        found: list[list[str]] = [[] for _ in begins]
        for i, node in enumerate(self.nodes):
            for value in node.outputs:
                if value.name in self.names:
                    until = self._until.get(id(value), i)
                    for part in range(bisect_right(begins, i), bisect_right(begins, until)):
                        found[part].append(str(value.name))
        return found

    def _needed(self) -> dict[int, int]:
        """Activation -> the last node that needs it, at once or to make something light again."""
        until: dict[int, int] = {}
        for i in reversed(range(len(self.nodes))):
            again = [until[id(v)] for v in self.nodes[i].outputs if id(v) in self._light and id(v) in until]
            last = max([i, *again])
            for value in self._reads[i]:
                until[id(value)] = max(until.get(id(value), -1), last)
        return until

    def _is_light(self, i: int) -> bool:
        node, graph = self.nodes[i], self.graph
        if node.domain not in ("", "ai.onnx") or node.op_type in HEAVY or any(True for _ in graph.bodies_of(node)):
            return False
        consts = [v for v in self._reads[i] if graph.is_const(v)]
        return sum(nbytes(graph, v) for v in consts) <= LIGHT_BYTES and all(
            graph.is_const(v) or self._made.get(id(v)) == -1 or v.name in self.names or id(v) in self._light
            for v in self._reads[i]
        )

    def _read(self, node: Node) -> Iterator[Value]:
        """What a node and its bodies read, weights too."""
        yield from (v for v in node.inputs if v is not None)
        for body in self.graph.bodies_of(node):
            for part in body.parts():
                yield from part.values()
                yield from (v for inner in part.nodes for v in inner.inputs if v is not None and part.is_const(v))

    def _names_of(self, node: Node) -> Collection[str]:
        inside = (v for body in self.graph.bodies_of(node) for part in body.parts() for v in part.values())
        own = {str(v.name) for v in node.outputs}
        return own | {str(v.name) for v in inside if id(v) not in self._made}
