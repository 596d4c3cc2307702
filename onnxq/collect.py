"""One pass over the data: ONNX Runtime runs the float model, and every observed tensor is counted and dropped."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.data import split_batch
from onnxq.errors import DataError, ModelError
from onnxq.files import SPILL_BYTES, spill_folder, weight_bytes, write_for_runtime
from onnxq.histogram import Histogram
from onnxq.monitor import QUIET, Monitor
from onnxq.runtime import Session
from onnxq.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from onnxq.data import Feed, Source
    from onnxq.graph import Graph


def collect(
    graph: Graph,
    tensors: Sequence[str],
    source: Source,
    *,
    providers: Sequence[str] = ("cpu",),
    monitor: Monitor = QUIET,
) -> Statistics:
    """Run the prepared graph over the data and return what was seen of the named tensors.

    Samples of a batch are run one at a time where the model allows it, so that the result does not depend on how
    they were batched. Memory does not grow with the number of samples.

    Raises:
        DataError: no sample, NaN in an input, or a feed that the model refuses.
        ModelError: ONNX Runtime cannot load the model.
    """
    session = _session(graph, tensors, providers)
    given = [name for name in tensors if name not in session.outputs]
    seen = _Seen({name: Histogram.empty() for name in tensors})
    for label, feed in _samples(session, source, monitor):
        _check_inputs(feed, label)
        computed = dict(zip(session.outputs, session.run(_only(session, feed), session.outputs), strict=True))
        for name in tensors:
            seen.count(name, feed[name] if name in given else computed.pop(name), label, monitor)
        seen.note(feed)
    if not seen.samples:
        raise DataError("the calibration data holds no sample", "Give at least one; 100 to 500 are usual.")
    return Statistics(graph.digest(), seen.tensors, seen.samples, seen.hash, seen.shapes, seen.nonfinite)


@dataclass
class _Seen:
    """Running totals of one collection."""

    tensors: dict[str, Histogram]
    samples: int = 0
    hash: int = 0

    def __post_init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.nonfinite: dict[str, str] = {}

    def count(self, name: str, array: npt.NDArray[Any], label: str, monitor: Monitor) -> None:
        """Add one tensor's values; say once per tensor that it held NaN or infinity."""
        found = Histogram.of(array)
        odd = found.nan + found.pos_inf + found.neg_inf
        if odd and name not in self.nonfinite:
            monitor.warn(
                f"tensor {name!r} holds {found.nan} NaN, {found.pos_inf} +inf and {found.neg_inf} -inf in {label}: "
                "they are left out of its range" + (" and saturate when quantized" if not found.nan else "")
            )
        if odd:
            self.nonfinite[name] = min(label, self.nonfinite.get(name, label))
        self.tensors[name] = self.tensors[name] + found

    def note(self, feed: Feed) -> None:
        """Remember that a sample was seen, and its shapes, whatever the order."""
        self.samples += 1
        self.hash = (self.hash + _sample_hash(feed)) % 2**64
        for name, array in feed.items():
            low, high = self.shapes.get(name, (array.shape, array.shape))
            self.shapes[name] = (tuple(map(min, low, array.shape)), tuple(map(max, high, array.shape)))


def _session(graph: Graph, tensors: Sequence[str], providers: Sequence[str]) -> Session:
    """The graph with exactly the observed tensors as outputs (inputs among them are read from the feed)."""
    copy = graph.copy()
    wanted = set(tensors) - {str(v.name) for v in copy.inputs}
    values = {str(v.name): v for v in copy.values()}
    if lost := wanted - values.keys():
        raise ModelError(f"tensor {min(lost)!r} is not in the model", "Was the graph changed after planning?")
    outputs = [values[name] for name in tensors if name in wanted] or list(copy.outputs)
    copy.set_outputs(outputs)
    copy.remove_unused()
    if weight_bytes(copy) <= SPILL_BYTES:
        return Session(copy.to_proto().SerializeToString(), providers)
    if (folder := spill_folder(graph)) is not None:
        return Session(write_for_runtime(copy, folder), providers)
    with tempfile.TemporaryDirectory(prefix="onnxq-") as own:
        return Session(write_for_runtime(copy, Path(own)), providers)


def _samples(session: Session, source: Source, monitor: Monitor) -> Iterator[tuple[str, Feed]]:
    """(label, feed) of every sample. Batches are split when the first one shows that this changes nothing."""
    splits: bool | None = None
    for label, feed in source.samples():
        parts = split_batch(feed, source.inputs)
        if len(parts) > 1 and splits is None:
            splits = _independent(session, feed, parts)
        if len(parts) > 1 and splits:
            yield from ((f"{label}, row {row}", part) for row, part in enumerate(parts))
        else:
            yield label, feed
        monitor.advance()


def _independent(session: Session, feed: Feed, parts: Sequence[Feed]) -> bool:
    """Whether the rows of a batch do not influence one another: then axis 0 is a batch axis."""
    whole = session.run(_only(session, feed), session.outputs)
    first = session.run(_only(session, parts[0]), session.outputs)
    return all(
        a.ndim == b.ndim
        and a.ndim > 0
        and a.shape[0] == b.shape[0] * len(parts)
        and a.shape[1:] == b.shape[1:]
        and bool(np.allclose(a[: b.shape[0]], b, rtol=1e-3, atol=1e-4 * (1 + float(np.abs(b).max(initial=0)))))
        for a, b in zip(whole, first, strict=True)
        if isinstance(a, np.ndarray) and a.dtype.kind == "f"
    )


def _only(session: Session, feed: Feed) -> dict[str, npt.NDArray[Any]]:
    return {name: feed[name] for name in session.inputs}


def _check_inputs(feed: Feed, label: str) -> None:
    for name, array in feed.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            where = np.argwhere(np.isnan(array))[0].tolist()
            raise DataError(f"{label}: input {name!r} holds NaN, first at {where}", "Repair or leave out this sample.")


def _sample_hash(feed: Feed) -> int:
    h = hashlib.sha256()
    for name in sorted(feed):
        array = np.ascontiguousarray(feed[name])
        h.update(f"{name}|{array.dtype}|{array.shape}\n".encode())
        h.update(array.tobytes())
    return int.from_bytes(h.digest()[:8], "little")
