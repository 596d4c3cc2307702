"""What the methods need to know of the inputs of layers: the Gram matrix, and each channel's mean and largest |x|.

The samples are those of the smallest hashes, in the order of their hashes, so that neither order nor batching of the
data changes a bit. Gram matrices are [K, K]; the model is run once for as many of them as fit `BYTES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.collect import named, sample_hash, samples, session_for
from onnxq.errors import DataError
from onnxq.monitor import QUIET, Monitor
from onnxq.smallest import Smallest, copied

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from onnxq.data import Feed, Source
    from onnxq.graph import Graph

    Floats = npt.NDArray[np.float64]
    Named = tuple[str, Feed]
    """A sample behind the words that say where it came from."""

SAMPLES = 128
"""Samples that are looked at; as many as in the GPTQ paper, whose samples are of 2048 tokens."""

BYTES = 512_000_000
"""Memory for Gram matrices at a time: 6 of K = 3072."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the rows x [K] that reached a tensor's last axis.

    Attributes:
        gram: sum x^T x, float64 [K, K].
        mean: mean |x_j|, float64 [K].
        amax: max |x_j|, float64 [K].
        rows: how many.
    """

    gram: Floats
    mean: Floats
    amax: Floats
    rows: int

    def __add__(self, other: Moments) -> Moments:
        """Of the rows of both."""
        rows = self.rows + other.rows
        mean = (self.mean * self.rows + other.mean * other.rows) / max(rows, 1)
        return Moments(self.gram + other.gram, mean, np.maximum(self.amax, other.amax), rows)

    def quantized(self) -> Floats:
        """The Gram matrix to be expected of x + n, n what 8 bits add: each value s^2 / 12, s = 2 max|x| / 255."""
        step = 2 * float(self.amax.max(initial=0.0)) / 255
        return self.gram + np.eye(len(self.gram)) * (self.rows * step**2 / 12)


def _named(where: str, feed: Feed) -> Named:
    return where, copied(feed)


def picked(graph: Graph, source: Source, providers: Sequence[str], custom_ops: Sequence[str] = ()) -> list[Named]:
    """The samples of the smallest hashes, in their order, equal ones once, each behind where it came from.

    Raises:
        DataError: there is no sample, or it does not fit the model.
    """
    session = session_for(graph, (), providers, custom_ops)
    kept: Smallest[Named] = Smallest(SAMPLES)
    for where, feed in samples(session, source, QUIET, tried=True):
        kept.offer(sample_hash(feed), partial(_named, where, feed))
    if not kept:
        raise DataError("the calibration data holds no sample", "Give at least one; 128 are usual.")
    return kept.values()


def moments(
    graph: Graph,
    channels: Mapping[str, int],
    feeds: Sequence[Named],
    providers: Sequence[str] = ("cpu",),
    custom_ops: Sequence[str] = (),
    monitor: Monitor = QUIET,
) -> Iterator[tuple[str, Moments]]:
    """(tensor, its moments) for every tensor, in their order.

    Args:
        graph: the float model.
        channels: tensor -> length of its last axis.
        feeds: the samples, each behind the words that say where it came from.
        providers: where ONNX Runtime runs it.
        custom_ops: libraries of custom operators.
        monitor: advances once a tensor.

    Raises:
        DataError: a feed does not fit the model, or a tensor held NaN or infinity.
    """
    for group in _groups(channels):
        session = session_for(graph, group, providers, custom_ops)
        totals = {name: _Total(channels[name]) for name in group}
        for where, feed in feeds:
            with named(where):
                given = {name: feed[name] for name in session.inputs}
                arrays = {**feed, **dict(zip(session.outputs, session.run(given, session.outputs), strict=True))}
                for name, total in totals.items():
                    total.add(name, arrays[name])
        for name in group:
            yield name, totals.pop(name).moments()
            monitor.advance()


class _Total:
    """Running sums of one tensor."""

    def __init__(self, channels: int) -> None:
        self.gram = np.zeros((channels, channels))
        self.sum, self.amax, self.rows = np.zeros(channels), np.zeros(channels), 0

    def add(self, name: str, x: npt.NDArray[Any]) -> None:
        rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
        if not np.isfinite(rows).all():
            raise DataError(f"tensor {name!r} holds NaN or infinity", "Repair the data, or exclude what reads it.")
        size = np.abs(rows)
        self.gram += rows.T @ rows
        self.sum += size.sum(axis=0)
        self.amax = np.maximum(self.amax, size.max(axis=0, initial=0.0))
        self.rows += len(rows)

    def moments(self) -> Moments:
        return Moments(self.gram, self.sum / max(self.rows, 1), self.amax, self.rows)


def _groups(channels: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    group: list[str] = []
    held = 0
    for name, count in channels.items():
        need = 8 * count * count
        if group and held + need > BYTES:
            yield tuple(group)
            group, held = [], 0
        group.append(name)
        held += need
    if group:
        yield tuple(group)
