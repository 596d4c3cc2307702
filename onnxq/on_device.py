"""Counting as part of the model, so that on a GPU only counts cross the bus: the same bits as `onnxq.histogram.Tally`.

Of every observed tensor the graph itself makes a histogram for a range [0, 2**e) that it is given, and the bounds. A
sample that reaches further than all before it is run once more, with the range that it needs; that is rare behind the
first. Counts are added up in float64: ONNX Runtime's CUDA kernel of ScatterElements adds whatever has 4 bytes as
float32 and whatever has 8 as float64, so integers would come out wrong, and float32 ends at 2**24.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.collect import session_for
from onnxq.counting import BINS, LOG2_BINS
from onnxq.histogram import NO_EXPONENT, Histogram, bounds_alone
from onnxq.seen import asked_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from onnxq.data import Feed
    from onnxq.graph import Graph, Value
    from onnxq.runtime import Session

LOWEST_OPSET = 16
"""The first whose ScatterElements can add."""

_ZERO, _NAN, _POS, _NEG, _SLOTS = 2 * BINS, 2 * BINS + 1, 2 * BINS + 2, 2 * BINS + 3, 2 * BINS + 4
"""Slots behind the bins of both sides."""

_FACTORS = ("onnxq/factor", "onnxq/factor_again")
_KINDS = ("float16", "bfloat16", "float32")
_LEAST, _MOST = -148, 128
"""Exponents of float32."""


class OnDevice:
    """Runs the prepared model and returns counts; what it cannot count comes as the tensor.

    Args:
        graph: prepared, of opset 16 or later.
        tensors: of which histograms are made.
        bounds: of which bounds are.
        runtime: providers, and libraries of custom operators.
    """

    def __init__(
        self,
        graph: Graph,
        tensors: Sequence[str],
        bounds: Sequence[str],
        runtime: tuple[Sequence[str], Sequence[str]],
    ) -> None:
        self._graph, self._runtime = graph, runtime
        self._names = asked_for(tensors, bounds)
        counted, inputs = set(tensors), {str(v.name) for v in graph.inputs}
        kinds = {str(v.name): graph.dtype(v) for v in graph.values()}
        self._counted = tuple(n for n in tensors if n not in inputs and kinds.get(n) in _KINDS)
        self._bounded = tuple(n for n in bounds if n not in counted and n not in inputs and kinds.get(n) in _KINDS)
        self._exponents = dict.fromkeys(self._counted, NO_EXPONENT)
        plain = [n for n in self._names if n not in {*self._counted, *self._bounded}]
        copy = graph.copy()
        values = {str(v.name): v for v in copy.values()}
        factors = [copy.add_input(name, "float32") for name in _FACTORS]
        made = [v for i, n in enumerate(self._counted) for v in _count(copy, values[n], factors, i)]
        made += [v for n in self._bounded for v in _bound(copy, values[n])]
        self._session: Session = session_for(copy, [*(str(v.name) for v in made), *plain], *runtime)
        self.inputs = tuple(n for n in self._session.inputs if n not in _FACTORS)

    def each(self, feeds: Sequence[Feed]) -> Iterator[list[list[Any]]]:
        """The observed tensors themselves for each feed: to tell whether samples of a batch are independent."""
        yield from session_for(self._graph, self._names, *self._runtime).each(feeds)

    def observed(self, feed: Feed) -> dict[str, npt.NDArray[Any] | Histogram]:
        """What was found of the tensors of one sample; the sample must be counted, as later ones build on its range.

        Raises:
            DataError: as `Session.run`.
        """
        used = {n: e if e != NO_EXPONENT else 0 for n, e in self._exponents.items()}
        outputs = self._run(feed, used)
        needed = {n: max(self._exponents[n], _exponent(outputs, n)) for n in self._counted}
        if any(needed[n] not in (used[n], NO_EXPONENT) for n in self._counted):
            used = {n: e if e != NO_EXPONENT else 0 for n, e in needed.items()}
            outputs = self._run(feed, used)
        self._exponents = needed
        found: dict[str, npt.NDArray[Any] | Histogram] = {}
        for name in self._names:
            if name in needed:
                found[name] = _histogram(outputs, name, needed[name])
            elif name in self._bounded:
                found[name] = _extent(outputs, name)
            else:
                found[name] = outputs[name] if name in outputs else feed[name].copy()
        return found

    def _run(self, feed: Feed, exponents: dict[str, int]) -> dict[str, npt.NDArray[Any]]:
        given = {name: feed[name] for name in self.inputs}
        shifts = [LOG2_BINS - min(max(e, _LEAST), _MOST) for e in exponents.values()]
        halves = ([s // 2 for s in shifts], [s - s // 2 for s in shifts])  # one factor could leave float32's range
        given |= {
            name: np.ldexp(np.float32(1), np.array(half, np.int32)) for name, half in zip(_FACTORS, halves, strict=True)
        }
        given = {name: array for name, array in given.items() if name in self._session.inputs}
        return dict(zip(self._session.outputs, self._session.run(given, self._session.outputs), strict=True))


def _exponent(outputs: dict[str, npt.NDArray[Any]], name: str) -> int:
    """The exponent that a sample needs."""
    low, high = float(outputs[f"{name}/low"]), float(outputs[f"{name}/high"])
    largest = max(-low, high, 0.0) if low <= high else 0.0
    return math.frexp(largest)[1] if largest else NO_EXPONENT


def _histogram(outputs: dict[str, npt.NDArray[Any]], name: str, exponent: int) -> Histogram:
    counts = outputs[f"{name}/counts"].astype(np.int64)
    zeros, nan, pos, neg = (int(counts[slot]) for slot in (_ZERO, _NAN, _POS, _NEG))
    sides = counts[:BINS].copy(), counts[BINS : 2 * BINS].copy()
    return Histogram(exponent, *sides, zeros, nan, pos, neg, *_bounds(outputs, name))


def _extent(outputs: dict[str, npt.NDArray[Any]], name: str) -> Histogram:
    nan, pos, neg = (int(count) for count in outputs[f"{name}/odd"])
    return bounds_alone(*_bounds(outputs, name), nan, pos, neg)


def _bounds(outputs: dict[str, npt.NDArray[Any]], name: str) -> tuple[float, float]:
    """Adding 0.0 makes a bound of -0.0 positive."""
    return float(outputs[f"{name}/low"]) + 0.0, float(outputs[f"{name}/high"]) + 0.0


# -- the nodes -----------------------------------------------------------------------------------------------------


class _Nodes:
    """Adds nodes and constants for one tensor."""

    def __init__(self, graph: Graph, name: str) -> None:
        self._graph, self._name = graph, f"{name}/on_device"

    def add(self, op: str, *inputs: Value, dtype: str, name: str = "", **attributes: int | str) -> Value:
        made = self._graph.add(op, inputs, name=name or f"{self._name}/{op}", attributes=attributes)
        self._graph.retype(made, dtype)
        return made

    def const(self, value: npt.ArrayLike, dtype: str) -> Value:
        return self._graph.constant(f"{self._name}/const", np.array(value, dtype))


def _flat(nodes: _Nodes, graph: Graph, value: Value) -> Value:
    kind = graph.dtype(value) or "float32"
    flat = nodes.add("Reshape", value, nodes.const([-1], "int64"), dtype=kind)
    return flat if kind == "float32" else nodes.add("Cast", flat, dtype="float32", to=1)


def _odd(nodes: _Nodes, flat: Value) -> tuple[Value, Value, Value]:
    """Where it is NaN, inf and -inf."""
    nan = nodes.add("IsNaN", flat, dtype="bool")
    infinite = (nodes.add("Equal", flat, nodes.const(v, "float32"), dtype="bool") for v in (np.inf, -np.inf))
    return (nan, *infinite)  # type: ignore[return-value]  # three


def _low_high(nodes: _Nodes, name: str, flat: Value, odd: Sequence[Value]) -> tuple[Value, Value]:
    """The bounds of the finite values, inf and -inf where there are none, as of an empty tensor."""
    out = nodes.add("Or", nodes.add("Or", odd[0], odd[1], dtype="bool"), odd[2], dtype="bool")
    found = []
    for what, op, none in (("low", "ReduceMin", np.inf), ("high", "ReduceMax", -np.inf)):
        kept = nodes.add("Where", out, nodes.const(none, "float32"), flat, dtype="float32")
        kept = nodes.add("Concat", kept, nodes.const([none], "float32"), dtype="float32", axis=0)
        found.append(nodes.add(op, kept, dtype="float32", name=f"{name}/{what}", keepdims=0))
    return found[0], found[1]


def _bound(graph: Graph, value: Value) -> Iterator[Value]:
    name, nodes = str(value.name), _Nodes(graph, str(value.name))
    flat = _flat(nodes, graph, value)
    odd = _odd(nodes, flat)
    yield from _low_high(nodes, name, flat, odd)
    one = nodes.const([1], "int64")
    sums = []
    for where in odd:
        ones = nodes.add("Cast", where, dtype="float64", to=11)
        total = nodes.add("ReduceSum", ones, dtype="float64", keepdims=0)
        sums.append(nodes.add("Reshape", total, one, dtype="float64"))
    yield nodes.add("Concat", *sums, dtype="float64", name=f"{name}/odd", axis=0)


def _count(graph: Graph, value: Value, factors: Sequence[Value], index: int) -> Iterator[Value]:
    name, nodes = str(value.name), _Nodes(graph, str(value.name))
    flat = _flat(nodes, graph, value)
    odd = _odd(nodes, flat)
    scaled = nodes.add("Abs", flat, dtype="float32")
    for factor in factors:
        own = nodes.add("Gather", factor, nodes.const(index, "int64"), dtype="float32", axis=0)
        scaled = nodes.add("Mul", scaled, own, dtype="float32")
    known = nodes.add("Where", odd[0], nodes.const(0, "float32"), scaled, dtype="float32")
    inside = nodes.add("Min", known, nodes.const(BINS - 1, "float32"), dtype="float32")
    slot = nodes.add("Cast", inside, dtype="int32", to=6)  # towards zero
    negative = nodes.add("Less", flat, nodes.const(0, "float32"), dtype="bool")
    side = nodes.add("Where", negative, nodes.const(BINS, "int32"), nodes.const(0, "int32"), dtype="int32")
    slot = nodes.add("Add", slot, side, dtype="int32")
    zero = nodes.add("Equal", flat, nodes.const(0, "float32"), dtype="bool")
    for where, parked in zip((zero, *odd), (_ZERO, _NAN, _POS, _NEG), strict=True):
        slot = nodes.add("Where", where, nodes.const(parked, "int32"), slot, dtype="int32")
    ones = nodes.add("Expand", nodes.const(1, "float64"), nodes.add("Shape", slot, dtype="int64"), dtype="float64")
    none = nodes.const(np.zeros(_SLOTS), "float64")
    counts = nodes.add("ScatterElements", none, slot, ones, dtype="float64", axis=0, reduction="add")
    yield nodes.add("Cast", counts, dtype="int32", name=f"{name}/counts", to=6)
    yield from _low_high(nodes, name, flat, odd)
