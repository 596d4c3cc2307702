"""Float against quantized: the error of every output, or of every layer, worst first."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.collect import holds_numbers, named
from onnxq.compared import FLOATS, WHOLE, common, missing, warn_if_swapped, without_customs
from onnxq.data import rereadable
from onnxq.emulation import emulate_bfloat16
from onnxq.errors import DataError, ModelError
from onnxq.files import runnable
from onnxq.histogram import Tally
from onnxq.interface import with_float_ends
from onnxq.monitor import QUIET, Monitor
from onnxq.patterns.products import turns_halves
from onnxq.runtime import Session
from onnxq.smoothed import with_float_tensors, with_smoothed_tensors

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import numpy.typing as npt

    from onnxq.data import Feed, Source
    from onnxq.graph import Graph
    from onnxq.histogram import Histogram

_BLOCK = 2**16
"""Values that are looked at at a time: their float64 copies stay in cache however large a tensor is."""

_MOST = sys.float_info.max
"""What sums of huge float64 values stop at."""

_GROUP_BYTES = 256_000_000
"""Tensors of one sample and model that are held at a time; more are compared in groups, one pass over the data each."""


@dataclass(frozen=True)
class TensorError:
    """How far one tensor of the quantized model is from the float model's, over all samples.

    Attributes:
        tensor: its name.
        sqnr_db: 10·log10(Σ float² / Σ (float - quantized)²); inf when equal.
        cosine: Σ float·quantized / (|float|·|quantized|); 1 when both are zero.
        max_abs: largest |float - quantized|.
        amax: largest |float|.
        top1: of a model output, the share of its rows whose largest value is at the same place in both models. Rows
            lie along the last axis, or along axis 1 (channels) from four dimensions on. Of whole numbers the share
            that is equal. None for other tensors, and for rows of one value.
        output: whether it is a model output.
    """

    tensor: str
    sqnr_db: float
    cosine: float
    max_abs: float
    amax: float
    top1: float | None = None
    output: bool = False


@dataclass(frozen=True)
class Comparison:
    """Errors of the compared tensors, in the model's order, and the histograms that were asked for.

    `shapes` gives the largest size seen of every dimension of a tensor, those of the inputs too; `lost` are the
    outputs that the quantized model has not, `gained` those that it alone has.
    """

    errors: tuple[TensorError, ...]
    samples: int
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    gained: tuple[str, ...] = ()

    @property
    def worst(self) -> tuple[TensorError, ...]:
        """The same, lowest SQNR first."""
        return tuple(sorted(self.errors, key=lambda e: (e.sqnr_db, e.tensor)))

    @property
    def outputs(self) -> tuple[TensorError, ...]:
        """The model outputs among them, lowest SQNR first."""
        return tuple(e for e in self.worst if e.output)

    def below(self, least_db: float) -> tuple[TensorError, ...]:
        """The model outputs whose SQNR is lower than that, lowest first."""
        return tuple(e for e in self.outputs if e.sqnr_db < least_db)


@dataclass
class _Sums:
    """Running sums over the samples. They are exact between samples, so that the order of these does not matter."""

    signal: Fraction = Fraction(0)
    noise: Fraction = Fraction(0)
    dot: Fraction = Fraction(0)
    other: Fraction = Fraction(0)
    odd: bool = False
    max_abs: float = 0.0
    amax: float = 0.0
    hits: int = 0
    rows: int = 0

    def add(self, reference: npt.NDArray[Any], actual: npt.NDArray[Any]) -> None:
        left, right = reference.reshape(-1), actual.reshape(-1)
        for start in range(0, left.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            self._add(left[block].astype(np.float64), right[block].astype(np.float64))

    def _add(self, a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> None:
        finite = np.isfinite(a) & np.isfinite(b)  # an -inf mask is equal on both sides or shows in max_abs
        if not finite.all():
            self.odd = self.odd or not np.array_equal(a[~finite], b[~finite], equal_nan=True)
            a, b = a[finite], b[finite]
        difference = a - b
        self.signal += _dot(a, a)
        self.noise += _dot(difference, difference)
        self.dot += _dot(a, b)
        self.other += _dot(b, b)
        self.max_abs = max(self.max_abs, float(np.abs(difference).max(initial=0.0)))
        self.amax = max(self.amax, float(np.abs(a).max(initial=0.0)))

    def vote(self, reference: npt.NDArray[Any], actual: npt.NDArray[Any]) -> None:
        """Count the rows that agree on their largest value."""
        if reference.dtype.name in WHOLE:
            self.rows += reference.size
            self.hits += int((reference == actual).sum())
            return
        axis = 1 if reference.ndim > 3 else -1
        if reference.ndim and reference.size and reference.shape[axis] > 1:
            same = reference.argmax(axis) == actual.argmax(axis)
            self.rows += same.size
            self.hits += int(same.sum())

    def error(self, name: str, *, output: bool) -> TensorError:
        norms = math.sqrt(_number(self.signal)) * math.sqrt(_number(self.other))
        cosine = _number(self.dot) / norms if norms else float(self.noise == 0)
        return TensorError(
            name,
            -math.inf if self.odd else _decibels(self.signal, self.noise),
            cosine,
            math.inf if self.odd else self.max_abs,
            self.amax,
            self.hits / self.rows if self.rows else None,
            output,
        )


def _dot(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> Fraction:
    """Not by BLAS, whose threads would wait for each other where another process wants the cores."""
    with np.errstate(over="ignore"):
        total = float(np.einsum("i,i->", a, b))
    return Fraction(min(max(total, -_MOST), _MOST))


def _number(total: Fraction) -> float:
    return float(min(max(total, Fraction(-_MOST)), Fraction(_MOST)))


def _decibels(signal: Fraction, noise: Fraction) -> float:
    if not noise:
        return math.inf
    return 10 * (math.log10(_number(signal)) - math.log10(_number(noise))) if signal else -math.inf


def compare_graphs(  # noqa: PLR0913  what is compared, on what, and how it is run
    reference: Graph,
    quantized: Graph,
    source: Source,
    *,
    layers: bool = False,
    histograms: Collection[str] = (),
    providers: Sequence[str] = ("cpu",),
    custom_ops: Sequence[str] = (),
    monitor: Monitor = QUIET,
) -> Comparison:
    """Run both models over the data. With `layers`, compare every float tensor that both have by name.

    Nothing is kept of a sample but sums, and no more than `_GROUP_BYTES` of its tensors are held at a time: where
    they are more, the data is read once for each group of them. `histograms` names tensors, among those compared or
    the inputs, of whose values in the float model a histogram is made. Without `custom_ops`, what depends on custom
    operators is left out. A layer whose shape differs between the models is left out too. Where the quantized model
    holds a tensor shifted or smoothed, and says so (`onnxq.shifted`, `onnxq.smoothed`), the tensor is compared; a
    histogram of what it holds, asked for under that name, is of the same made of the float model's tensor.

    Raises:
        ModelError: the models have no output of the same name, or cannot be run.
        DataError: the data does not fit.
    """
    warn_if_swapped(reference, quantized, monitor)
    quantized, compared = with_float_ends(quantized), reference
    if layers:
        quantized = with_float_tensors(quantized)
        reference = with_smoothed_tensors(reference, quantized, histograms)
    names = common(reference, quantized, monitor, layers=layers)
    if not custom_ops:
        names = without_customs(names, reference, quantized, monitor)
    seen = _Seen(compared, names, histograms, monitor)
    source, samples = rereadable(source) if layers else source, 0
    while names:
        group: list[str] = []
        for where, feed in source.samples():
            if not group:  # the first sample tells how many tensors fit
                group = _fitting(reference, names, feed, _GROUP_BYTES) if layers else names
                pair = _pair((reference, quantized), group, providers, custom_ops)
            found = _run(pair, feed, group, where, source)
            if found is None:
                continue
            for name, a, b in zip(group, *found, strict=True):
                seen.add(name, a, b)
            if len(group) == len(names):  # the last pass
                samples += 1
                seen.add_inputs(feed)
            monitor.advance()
        names = names[len(group) :]
        if names:
            monitor.stage(f"Comparing {len(names)} tensors more", source.length)
    lost, gained = missing(compared, quantized), missing(quantized, compared)
    return replace(seen.comparison(samples), lost=lost, gained=gained)


class _Seen:
    """What is known so far of all tensors."""

    def __init__(self, model: Graph, names: Sequence[str], histograms: Collection[str], monitor: Monitor) -> None:
        inputs = [str(v.name) for v in model.inputs if model.dtype(v) in FLOATS]
        self._outputs, own = {str(v.name) for v in model.outputs}, {str(v.name) for v in model.values()}
        self._sums = {name: _Sums() for name in names if name in own}
        self._tallies = {name: Tally() for name in (*inputs, *names) if name in histograms}
        self._inputs = tuple(name for name in inputs if name in self._tallies)
        self._monitor = monitor
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add(self, name: str, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> None:
        """One tensor of one sample, in the float and in the quantized model."""
        self._see(name, a)
        if name in self._tallies and a.dtype.name in FLOATS:
            self._tallies[name].add(a)
        if name not in self._sums:
            return
        if a.shape != b.shape:
            self._drop(name, f"{name!r} is of shape {list(a.shape)} in the float model, {list(b.shape)} in the other")
            return
        self._sums[name].add(a, b)
        if name in self._outputs:
            self._sums[name].vote(a, b)

    def add_inputs(self, feed: Feed) -> None:
        """The inputs of one sample."""
        for name, array in feed.items():
            self._see(name, array)
        for name in self._inputs:
            self._tallies[name].add(feed[name])

    def comparison(self, samples: int) -> Comparison:
        if not samples:
            raise DataError("no sample is left to compare on", "See the warnings; give data that fits the model.")
        errors = (s.error(name, output=name in self._outputs) for name, s in self._sums.items())
        histograms = {name: tally.histogram() for name, tally in self._tallies.items()}
        return Comparison(tuple(errors), samples, histograms, self._shapes)

    def _see(self, name: str, array: npt.NDArray[Any]) -> None:
        before = self._shapes.get(name, array.shape)
        if len(before) == array.ndim:
            self._shapes[name] = tuple(map(max, before, array.shape))

    def _drop(self, name: str, why: str) -> None:
        if name in self._outputs:
            hint = "Is it the same model? Outputs whose size depends on the data cannot be compared."
            raise ModelError(why, hint)
        self._monitor.warn(f"{why}; it is not compared")
        del self._sums[name]


def _fitting(model: Graph, names: Sequence[str], feed: Feed, most: int) -> list[str]:
    """The first of the names, as many as fit into so many bytes, one at least.

    A tensor of which the sample does not tell the size counts as the largest of those of which it does.
    """
    graph = model.copy()
    graph.infer_shapes()
    known: dict[str, int] = {}
    for value in graph.inputs:
        array = feed.get(str(value.name))
        if array is not None:
            pairs = zip(graph.shape(value) or (), array.shape, strict=False)
            known |= {dim: size for dim, size in pairs if isinstance(dim, str)}
    sizes: dict[str, int] = {str(name): array.size for name, array in feed.items()}
    for value in graph.values():
        dims = graph.shape(value)
        found = [None] if dims is None else [d if isinstance(d, int) else known.get(d or "") for d in dims]
        if None not in found:
            sizes[str(value.name)] = math.prod(d for d in found if d is not None)
    largest, total = max(sizes.values(), default=1), 0
    for count, name in enumerate(names):
        total += 4 * sizes.get(name, largest)
        if count and total > most:
            return list(names[:count])
    return list(names)


def _run(pair: Sequence[Session], feed: Feed, names: Sequence[str], where: str, source: Source) -> list[Any] | None:
    """The tensors of one sample in both models; None where it is bad and such samples are skipped.

    A sample that holds NaN is bad: whatever the models make of it, it says nothing of how near they are.
    """
    if not holds_numbers(feed, where, source):
        return None
    try:
        with named(where):
            return [s.run({k: feed[k] for k in s.inputs}, names) for s in pair]
    except DataError as error:
        if source.bad is None:
            raise
        source.bad(error)
        return None


def _pair(
    graphs: tuple[Graph, Graph], names: Sequence[str], providers: Sequence[str], custom_ops: Sequence[str]
) -> list[Session]:
    """Both models with these tensors as outputs."""
    sessions = [quantized_session(graph, names, providers, custom_ops) for graph in graphs]
    if extra := {*sessions[1].inputs} - {*sessions[0].inputs}:
        raise ModelError(f"the quantized model has an input of its own, {min(extra)!r}", "Is it the same model?")
    return sessions


def _quantized_to(graph: Graph) -> set[str]:
    """What QuantizeLinear nodes make, those of bodies too; a file need not say the type of their outputs."""
    nodes = [n for part in graph.parts() for n in part.nodes if n.op_type == "QuantizeLinear" and not n.domain]
    return {str(graph.dtype(n.inputs[2] if len(n.inputs) > 2 else n.outputs[0])) for n in nodes}


def quantized_session(
    graph: Graph, names: Sequence[str], providers: Sequence[str], custom_ops: Sequence[str]
) -> Session:
    """A quantized model with these tensors as outputs, run as errors are told of it."""
    kinds = _quantized_to(graph)
    as_written = "uint8" not in kinds  # int8 pairs are for TensorRT: this CPU's kernels are not what it is asked about
    # ONNX Runtime 1.31's optimizer makes nonsense of float8, and ends the process where it turns a float16 product.
    optimize = not any(kind.startswith("float8") for kind in kinds) and not turns_halves(graph)
    copy = graph.copy()
    emulate_bfloat16(copy)
    values = {str(v.name): v for v in copy.values()}
    copy.set_outputs([values[name] for name in names])
    if not custom_ops:
        copy.remove_unused()  # custom nodes among them
    return Session(runnable(copy), providers, optimize=optimize, as_written=as_written, custom_ops=custom_ops)
