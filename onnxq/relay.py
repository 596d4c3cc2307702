"""Collecting within a given amount of memory: the model is run segment by segment, some samples at a time.

Of the samples of a block the first segment is run, what it made and later ones read is kept, then the second, and so
on: only one segment's weights are loaded at a time. A block is as large as what is kept of it may be; so the weights
are loaded once for many samples.
"""

from __future__ import annotations

import gc
from functools import partial
from typing import TYPE_CHECKING, Any

from onnxq.checkpoint import Total
from onnxq.collect import count_all, fresh, nothing_seen, observed, samples, session_for, warn_of_customs
from onnxq.errors import DataError
from onnxq.memory import for_tensors
from onnxq.monitor import QUIET, Monitor
from onnxq.seen import Seen, asked_for
from onnxq.segments import Segment, cut, sample_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from threading import Event

    import numpy.typing as npt

    from onnxq.checkpoint import Keeper
    from onnxq.data import Feed, Source
    from onnxq.graph import Graph
    from onnxq.runtime import Session
    from onnxq.seen import Sample
    from onnxq.statistics import Statistics

    Arrays = dict[str, npt.NDArray[Any]]
    Block = list[tuple[Sample, Feed]]

KEPT = 0.25
"""Share of the memory for what is kept between segments; the others hold the segment's weights and tensors."""

MOST = 256
"""Samples of a block at most: what a stop may cost, as checkpoints are made between blocks."""


def collect_within(  # noqa: PLR0913  as `collect`, and within how much memory
    memory: int,
    graph: Graph,
    tensors: Sequence[str],
    source: Source,
    *,
    bounds: Sequence[str] = (),
    providers: Sequence[str] = ("cpu",),
    custom_ops: Sequence[str] = (),
    monitor: Monitor = QUIET,
    keeper: Keeper | None = None,
) -> Statistics:
    """What `collect` returns, by a process that takes some `memory` bytes; the first sample's shapes tell how.

    A sample that cannot be run stops the run, or is left out, as there: its block is run again without it.

    Raises:
        DataError: as `collect`.
        ModelError: as `collect`.
        StatisticsError: as `collect`.
    """
    gc.collect()  # what is left of the graphs before this one are cycles, and they hold weights
    warn_of_customs(graph, custom_ops, monitor)
    names = asked_for(tensors, bounds)
    empty = nothing_seen(graph, tensors, bounds)
    total = Total(empty, keeper)
    odd: dict[str, str] = {}  # what was said of NaN and infinity
    relay = Relay(graph, names, for_tensors(memory), (providers, custom_ops), monitor)
    try:
        for block in relay.blocks(fresh(samples(relay, source, monitor), total.left)):
            seen = _counted(relay, block, lambda: Seen.of(empty.model, tensors, bounds, odd), monitor, source.bad)
            odd.update(seen.nonfinite)
            total.add(seen.checkpoint())
            total.keep()
    except KeyboardInterrupt:
        total.keep(now=True)
        raise
    return total.whole()


def _counted(
    relay: Relay,
    block: Block,
    fresh_seen: Callable[[], Seen],
    monitor: Monitor,
    bad: Callable[[DataError], None] | None,
) -> Seen:
    """What was seen of a block; samples that cannot be run are taken out of it where `bad` is there to be told."""
    while True:
        seen = fresh_seen()
        try:
            relay.run(block, seen)
        except _BadSampleError as error:
            reason = DataError(f"{block[error.index][0].label}: {error.reason.message}", error.reason.hint)
            if bad is None:
                raise reason from error
            bad(reason)
            del block[error.index]
            continue
        for sample, _ in block:
            seen.note(sample)
        seen.tell(monitor)
        return seen


class _BadSampleError(Exception):
    """A sample of a block cannot be run."""

    def __init__(self, index: int, reason: DataError) -> None:
        super().__init__(reason.message)
        self.index, self.reason = index, reason


class Relay:
    """Runs a model in segments, which are cut when the first sample is there: its shapes tell what they hold.

    Args:
        graph: the prepared model.
        names: what is observed.
        budget: bytes for weights and tensors.
        runtime: providers, and libraries of custom operators.
        monitor: is told where a segment is larger than the budget.
    """

    def __init__(
        self,
        graph: Graph,
        names: Sequence[str],
        budget: int,
        runtime: tuple[Sequence[str], Sequence[str]],
        monitor: Monitor,
    ) -> None:
        self.inputs = tuple(str(v.name) for v in graph.inputs)
        self._graph, self._names, self._budget = graph, names, budget
        self._runtime, self._monitor = runtime, monitor
        self._segments: tuple[Segment, ...] = ()
        self._sizes: dict[str, int] = {}
        self._last: dict[str, int] = {}  # tensor -> the last segment that begins with it

    def each(self, feeds: Sequence[Feed]) -> Iterator[list[list[Any]]]:
        """The outputs of every segment for each feed."""
        live = [dict(feed) for feed in feeds]
        for index, segment in enumerate(self.segments(feeds[-1])):
            session = self._session(segment)
            made = [session.run({n: arrays[n] for n in session.inputs}, session.outputs) for arrays in live]
            found = [dict(zip(session.outputs, outputs, strict=True)) for outputs in made]
            del session  # the next one is not to be loaded beside it
            yield made
            live = [self._kept({**old, **new}, index) for old, new in zip(live, found, strict=True)]

    def segments(self, feed: Feed) -> tuple[Segment, ...]:
        """The segments, cut for such a sample when there are none yet."""
        if not self._segments:
            self._sizes = sample_sizes(self._graph, {name: feed[name].shape for name in self.inputs})
            room = int(self._budget * (1 - KEPT))
            self._segments = cut(self._graph, self._names, self._sizes, room)
            self._last = {name: i for i, segment in enumerate(self._segments) for name in segment.reads}
            largest = max(segment.bytes for segment in self._segments)
            if largest > room:
                takes = f"takes some {largest / 1e6:,.0f} MB, more than --memory leaves"
                self._monitor.warn(f"a part of the model that cannot be cut {takes}")
        return self._segments

    def blocks(self, found: Iterable[tuple[Sample, Feed]]) -> Iterator[Block]:
        """The samples, so many at a time as may be kept."""
        block: Block = []
        for sample, feed in found:
            block.append((sample, feed))
            if len(block) >= self._room(feed):
                yield block
                block = []
        if block:
            yield block

    def run(self, block: Block, seen: Seen) -> None:
        """Run all segments for the samples of a block, and count.

        Raises:
            _BadSampleError: one cannot be run.
        """

        def count(arrays: Arrays, sample: Sample, room: Event) -> None:
            try:
                seen.count(arrays, sample.label, room)
            finally:
                room.set()  # a failure is told by the future

        live = [dict(feed) for _, feed in block]
        for index, segment in enumerate(self.segments(block[0][1])):
            passing = _Passing(self._session(segment), segment, partial(self._kept, index=index))
            found = ((sample, arrays) for (sample, _), arrays in zip(block, live, strict=True))
            count_all(passing, found, count, None, self._monitor)
            live = passing.kept
            del passing  # its session: the next one is not to be loaded beside it

    def _session(self, segment: Segment) -> Session:
        return session_for(self._graph, segment.tensors, *self._runtime, reads=segment.reads)

    def _kept(self, arrays: Arrays, index: int) -> Arrays:
        """What a segment after that index reads, and the model's inputs."""
        return {k: array for k, array in arrays.items() if self._last.get(k, -1) > index or k in self.inputs}

    def _room(self, feed: Feed) -> int:
        """How many samples a block has, one at least."""
        inputs = sum(array.nbytes for array in feed.values())
        kept = max(sum(self._sizes.get(name, 0) for name in s.reads) for s in self.segments(feed))
        return min(MOST, max(1, int(self._budget * KEPT) // max(1, inputs + kept)))


class _Passing:
    """Runs one segment for sample after sample, and keeps what later ones want."""

    def __init__(self, session: Session, segment: Segment, keep: Callable[[Arrays], Arrays]) -> None:
        self.kept: list[Arrays] = []
        self._session, self._segment, self._keep = session, segment, keep

    def __call__(self, arrays: Feed) -> Arrays:
        try:
            made = observed(self._session, self._segment.tensors, arrays)
        except DataError as error:
            raise _BadSampleError(len(self.kept), error) from error
        self.kept.append(self._keep({**arrays, **made}))
        return made
