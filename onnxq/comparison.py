"""Float against quantized: the error of every output, or of every layer, worst first."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.customs import behind_customs, custom_nodes, listed
from onnxq.errors import ModelError
from onnxq.files import SPILL_BYTES, weight_bytes, write_for_runtime
from onnxq.monitor import QUIET, Monitor
from onnxq.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from onnxq.data import Source
    from onnxq.graph import Graph


_FLOATS = ("float16", "float32", "float64")
_WHOLE = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@dataclass(frozen=True)
class TensorError:
    """How far one tensor of the quantized model is from the float model's, over all samples.

    Attributes:
        tensor: its name.
        sqnr_db: 10·log10(Σ float² / Σ (float - quantized)²); inf when equal.
        cosine: Σ float·quantized / (|float|·|quantized|); 1 when both are zero.
        max_abs: largest |float - quantized|.
        amax: largest |float|.
    """

    tensor: str
    sqnr_db: float
    cosine: float
    max_abs: float
    amax: float


@dataclass(frozen=True)
class Comparison:
    """Errors of the compared tensors, in the model's order."""

    errors: tuple[TensorError, ...]
    samples: int

    @property
    def worst(self) -> tuple[TensorError, ...]:
        """The same, lowest SQNR first."""
        return tuple(sorted(self.errors, key=lambda e: (e.sqnr_db, e.tensor)))


@dataclass
class _Sums:
    signal: float = 0.0
    noise: float = 0.0
    dot: float = 0.0
    other: float = 0.0
    max_abs: float = 0.0
    amax: float = 0.0

    def add(self, reference: npt.NDArray[Any], actual: npt.NDArray[Any]) -> None:
        a, b = reference.astype(np.float64).reshape(-1), actual.astype(np.float64).reshape(-1)
        finite = np.isfinite(a) & np.isfinite(b)  # an -inf mask is equal on both sides or shows in max_abs
        if not finite.all():
            if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
                self.noise = self.max_abs = math.inf
            a, b = a[finite], b[finite]
        self.signal += float(a @ a)
        self.noise += float((a - b) @ (a - b))
        self.dot += float(a @ b)
        self.other += float(b @ b)
        self.max_abs = max(self.max_abs, float(np.abs(a - b).max(initial=0.0)))
        self.amax = max(self.amax, float(np.abs(a).max(initial=0.0)))

    def error(self, name: str) -> TensorError:
        ratio = math.inf if self.noise == 0 else self.signal / self.noise
        sqnr = math.inf if ratio == math.inf else (10 * math.log10(ratio) if ratio > 0 else -math.inf)
        norms = math.sqrt(self.signal * self.other)
        cosine = self.dot / norms if norms else float(self.noise == 0)
        return TensorError(name, sqnr, cosine, self.max_abs, self.amax)


def compare_graphs(
    reference: Graph,
    quantized: Graph,
    source: Source,
    *,
    layers: bool = False,
    providers: Sequence[str] = ("cpu",),
    custom_ops: Sequence[str] = (),
    monitor: Monitor = QUIET,
) -> Comparison:
    """Run both models over the data. With `layers`, compare every float tensor that both have by name.

    Without `custom_ops`, what depends on custom operators is left out.

    Raises:
        ModelError: the models have no output of the same name, or cannot be run.
        DataError: the data does not fit.
    """
    names = _common(reference, quantized, layers=layers)
    if not custom_ops:
        names = _without_customs(names, reference, quantized, monitor)
    sums = {name: _Sums() for name in names}
    samples = 0
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        sessions = [
            _session(g, names, (providers, custom_ops), Path(folder) / str(i))
            for i, g in enumerate((reference, quantized))
        ]
        if extra := {*sessions[1].inputs} - {*sessions[0].inputs}:
            raise ModelError(f"the quantized model has an input of its own, {min(extra)!r}", "Is it the same model?")
        for _, feed in source.samples():
            left, right = (s.run({k: feed[k] for k in s.inputs}, names) for s in sessions)
            for name, a, b in zip(names, left, right, strict=True):
                if a.shape != b.shape:
                    raise ModelError(
                        f"{name!r} is of shape {list(a.shape)} in the float model, {list(b.shape)} in the other",
                        "Is it the same model? Outputs whose size depends on the data cannot be compared.",
                    )
                sums[name].add(a, b)
            samples += 1
            monitor.advance()
    return Comparison(tuple(s.error(name) for name, s in sums.items()), samples)


def _common(reference: Graph, quantized: Graph, *, layers: bool) -> list[str]:
    def names(graph: Graph) -> list[str]:
        if layers:  # a file need not say the types of what lies between input and output
            graph = graph.copy()
            graph.infer_shapes()
        values = (v for n in graph.nodes for v in n.outputs) if layers else graph.outputs
        kinds = _FLOATS if layers else (*_FLOATS, *_WHOLE)
        return [str(v.name) for v in values if v.name and graph.dtype(v) in kinds]

    others = set(names(quantized))
    common = [name for name in dict.fromkeys(names(reference)) if name in others]
    if not common:
        raise ModelError(
            "the two models have no numeric tensor of the same name to compare",
            f"The outputs are {_listed(reference)} in the float model and {_listed(quantized)} in the other.",
        )
    return common


def _without_customs(names: list[str], reference: Graph, quantized: Graph, monitor: Monitor) -> list[str]:
    """The names that both models compute without custom operators."""
    behind = behind_customs(reference) | behind_customs(quantized)
    left = [name for name in names if name not in behind]
    missing = listed(custom_nodes(reference) or custom_nodes(quantized))
    if names and not left:
        raise ModelError(
            f"ONNX Runtime lacks custom operators, on which all that is to be compared depends: {missing}",
            "Give their library with --custom-ops lib.so, or compare what lies before them with --layers.",
        )
    if len(left) < len(names):
        monitor.warn(f"{len(names) - len(left)} tensors are not compared: they depend on custom operators, {missing}")
    return left


def _listed(graph: Graph) -> str:
    return ", ".join(repr(v.name) for v in graph.outputs)


def _session(graph: Graph, names: Sequence[str], runtime: tuple[Sequence[str], Sequence[str]], folder: Path) -> Session:
    """`runtime`: the providers, and the custom-operator libraries."""
    providers, custom_ops = runtime
    copy = graph.copy()
    values = {str(v.name): v for v in copy.values()}
    copy.set_outputs([values[name] for name in names])
    if not custom_ops:
        copy.remove_unused()  # custom nodes among them
    if weight_bytes(copy) <= SPILL_BYTES:
        return Session(copy.to_proto().SerializeToString(), providers, custom_ops=custom_ops)
    folder.mkdir()
    return Session(write_for_runtime(copy, folder), providers, custom_ops=custom_ops)
