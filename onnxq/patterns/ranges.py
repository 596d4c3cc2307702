"""What float16 cannot hold: values that reach too far, constants beyond it, and constants that it loses.

float16 ends at 65504, is exact for integers up to 2048, and loses digits below 6.1e-5 (IEEE 754 binary16).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.patterns.chains import MOVING, POOLING, divisors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from onnxq.graph import Graph, Node, Value
    from onnxq.statistics import Reach

MAX = 65504.0
LIMIT = MAX / 2
"""Largest |x| seen in calibration that is trusted to float16: other data may reach twice as far."""

SMALLEST_SCALE = float(np.finfo(np.float16).tiny)
"""Smallest scale that float16 holds with all its digits: its least normal number, 2^-14 (IEEE 754-2019, binary16)."""

_SEEN = 100.0
"""Output channels of a weight that are so many times smaller than the largest may lose digits: nobody sees them."""

COUNTABLE = 2048.0
"""The integers that float16 holds exactly end here."""

COUNTED = frozenset({"Cast", "Range"})
"""Operators that may make such integers."""

ASSUMED = 256.0
"""How far a tensor that will be seen is thought to go, before any is: what then stays within LIMIT is not seen itself.

Where it went further, so may what it bounds, which then stays in float32."""

FILL = -1e4
"""A constant below this, masked in, stands for -inf: exp of it is 0 in every type."""

GROWING = frozenset(
    {"Add", "Sub", "Mul", "Div", "Sum", "MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "BatchNormalization"}
    | {"Relu", "LeakyRelu", "PRelu", "Reciprocal", "Cast", "Range"}
)
_SATURATING = frozenset({"Clip", "Sigmoid", "Tanh", "HardSigmoid"})
_PASSING = frozenset({"Relu", "Add"})  # what grows in front of them is as large behind them
_KEEPING = POOLING | {"Pad", "Resize", "Neg", "Abs", "Max", "Min", "Floor", "Ceil", "Round", *MOVING} - {"Cast"}
_BOUNDS = frozenset({"Clip", "Min", "Max"})
_BIASED = frozenset({"Conv", "ConvTranspose", "Gemm", "LayerNormalization", "InstanceNormalization"})


def lost_scales(weight: npt.NDArray[Any], axis: int | None) -> npt.NDArray[np.float64]:
    """Largest absolute values of the output channels whose int8 scales, a 127th of them, float16 would round; or none.

    Args:
        weight: of any float type, finite.
        axis: of output channels; None for one scale.
    """
    axes = tuple(i for i in range(weight.ndim) if i != axis)
    amax = np.maximum(weight.max(axis=axes), -weight.min(axis=axes)).astype(np.float64).reshape(-1)
    lost: npt.NDArray[np.float64] = amax[rounded_away(amax, 127 * SMALLEST_SCALE)]
    return lost


def rounded_away(sizes: npt.NDArray[Any], least: float = SMALLEST_SCALE) -> npt.NDArray[np.bool_]:
    """Which of the sizes, of one tensor's channels, are below the least and yet so large that somebody sees it."""
    found: npt.NDArray[np.bool_] = (sizes > 0) & (sizes < least) & (sizes > sizes.max() / _SEEN)
    return found


def covered(graph: Graph, value: Value) -> bool:
    """Whether the tensor need not be seen: all that reads it saturates, or is seen itself and as large."""
    users = [user for user, _ in graph.users(value)]
    inner = bool(users) and not value.is_graph_output() and not value.is_graph_input()
    return inner and all(u.op_type in _SATURATING | _PASSING and not graph.in_body(u) for u in users)


def out_of_range(known: Known, node: Node) -> Iterator[tuple[str, str]]:
    """(Name, reason) of the node and of what must stay in float32 with it; nothing when float16 holds it all."""
    reason = _why_range(known, node) or _why_overflow(known, node)
    if reason is not None:
        yield str(node.name), reason
    elif (reason := _why_underflow(known.graph, node)) is not None:
        yield str(node.name), reason
        for name in divisors(known.graph, node):
            yield name, f"divides by what {node.name} keeps from 0"


@dataclass(frozen=True)
class Known:
    """What was seen in the data.

    Attributes:
        graph: the prepared graph.
        tensors: name -> how far it went, as far as observed.
        masks: names of the tensors that are only added to a Softmax's input.
        limits: name -> how far a tensor that was not seen can go, by what was.
        reaches: answers found so far.
    """

    graph: Graph
    tensors: Mapping[str, Reach]
    masks: frozenset[str]
    limits: Mapping[str, float] = field(default_factory=dict)
    reaches: dict[str, tuple[float, str] | None] = field(default_factory=dict)

    def reach(self, value: Value) -> tuple[float, str] | None:
        """The largest |x| and where: in the tensor, behind what covers it, before what does not make it grow.

        Else as far as it can go by what was seen.
        """
        name = str(value.name)
        if name not in self.reaches:
            self.reaches[name] = None  # until known
            self.reaches[name] = self._found(value, name)
        return self.reaches[name]

    def _found(self, value: Value, name: str) -> tuple[float, str] | None:
        found = self.tensors.get(name)
        if found is not None:
            return (found.max if name in self.masks else found.amax), name
        if covered(self.graph, value):
            near, limit = [u.outputs[0] for u, _ in self.graph.users(value) if u.op_type in _PASSING], None
        else:
            maker = self.graph.producer(value, *_KEEPING)
            near = [] if maker is None else [v for v in maker.inputs if v is not None and not self.graph.is_const(v)]
            limit = (self.limits[name], name) if name in self.limits else None
        return max((reach for v in near if (reach := self.reach(v)) is not None), default=limit)

    def limit(self, node: Node) -> float:
        """Up to where the values of the node's output may go."""
        integer = node.op_type == "Cast" and str(self.graph.dtype(node.inputs[0])).lstrip("u").startswith("int")
        return COUNTABLE if integer or node.op_type == "Range" else LIMIT


def _why_range(known: Known, node: Node) -> str | None:
    for value in (*node.inputs, *node.outputs):
        if value is None or known.graph.is_const(value):
            continue
        maker, reach = value.producer(), known.reach(value)
        limit = LIMIT if maker is None else known.limit(maker)
        if reach is not None and reach[0] > limit:
            ends = "ends at 65504" if limit == LIMIT else "counts to 2048"
            verb = "reaches" if reach[1] in known.tensors else "may reach"
            return f"{reach[1]} {verb} {reach[0]:.4g} in the data; float16 {ends}"
    return None


def _why_overflow(known: Known, node: Node) -> str | None:
    """A constant beyond float16. What only bounds, and what masks, is cut to its range instead."""
    graph = known.graph
    for value in node.inputs:
        array = graph.const(value) if graph.is_const(value) and graph.dtype(value) == "float32" else None
        if value is None or array is None or array.size == 0 or node.op_type in _BOUNDS:
            continue
        beyond = array[(np.abs(array) > MAX) & np.isfinite(array)]
        fills = node.op_type == "Where" or any(str(v.name) in known.masks for v in node.outputs)
        if beyond.size and not (fills and float(beyond.max()) < FILL):
            return f"constant {value.name} holds {beyond[np.abs(beyond).argmax()]:.4g}; float16 ends at 65504"
    return None


def _why_underflow(graph: Graph, node: Node) -> str | None:
    """A constant that float16 loses; not a bias, which is added to what is larger or lost with it."""
    for value in node.inputs[:2] if node.op_type in _BIASED else node.inputs:
        array = graph.const(value) if graph.is_const(value) and graph.dtype(value) == "float32" else None
        if value is None or array is None:
            continue
        largest = float(np.abs(array).max(initial=0.0))
        if 0 < largest < SMALLEST_SCALE:
            return f"constant {value.name} is at most {largest:.2g}; float16 loses it"
    return None
