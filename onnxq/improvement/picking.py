"""The samples that a model is improved on: picked by the hash of their content, some to choose by, some to judge by.

Neither the order of the samples nor their batches matter, and no sample that a choice was made on judges it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from onnxq.collect import named, sample_hash, samples, session_for
from onnxq.monitor import QUIET, Monitor
from onnxq.numerics import INT8
from onnxq.smallest import Smallest, copied

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import numpy.typing as npt

    from onnxq.data import Feed, Source
    from onnxq.graph import Graph
    from onnxq.numerics import QType
    from onnxq.plan import Plan
    from onnxq.runtime import Session
    from onnxq.statistics import Factor

    Array = npt.NDArray[Any]
    Factors = dict[str, Factor]
    Quantizer = Callable[[Sequence[Feed]], "Quantized"]
    """Feeds to calibrate on -> what makes models of factors, each site's always the same."""

_BYTES = 2**28
"""Bytes of samples that are kept, where they are large."""

_SMALL = 50_000_000
"""Multiply-accumulates of a run that costs next to nothing."""

LEAST = 16
"""With fewer samples nothing is chosen: what few samples gain by is as often chance."""


FEW = 8
"""So many of the samples that choose, or a quarter of them, are a few."""


class Quantized(Protocol):
    """What makes the smoothed, quantized model of factors, in float32 what is not int8."""

    def __call__(self, factors: Mapping[str, Factor], readers: Collection[str] | None = None, /) -> Graph:
        """With `readers`, names of nodes, only what these read is quantized."""
        ...


@dataclass(frozen=True)
class Effort:
    """How much is looked at and tried.

    Attributes:
        picked: samples that are kept.
        judges: how many of them judge at most.
        rows: rows of a layer's input that factors are chosen on, over all samples.
        trials: times that the quantized model is made and run at most to confirm factors.
        work: multiply-accumulates that may be spent on the rounding of weights.
        spares: times that the quantized model is run at most with some of its layers in float, to find the costly ones.
    """

    picked: int
    judges: int
    rows: int
    trials: int
    work: float
    spares: int


LEVELS = {
    "balanced": Effort(picked=96, judges=16, rows=384, trials=7, work=2e11, spares=32),
    "best": Effort(picked=512, judges=48, rows=1024, trials=25, work=1e13, spares=120),
}
"""Name of an effort above `fast` -> what it spends."""


@dataclass(frozen=True)
class Inspected:
    """A prepared model and how it is run.

    Attributes:
        graph: the prepared graph.
        plan: its plan.
        quantizer: feeds to calibrate on -> (factors -> the smoothed and quantized graph, in float32 what is not int8);
            all factors that one is asked for are some of the same.
        providers: where ONNX Runtime runs it.
        custom_ops: libraries with its custom operators.
        grid: of its activations.
        effort: how much is looked at.
        pointwise_db: what a node of its own in front of a Q must gain, as the target says.
        convolved_db: likewise what one that multiplies must where convolutions read it.
        half: whether what is not int8 is written in float16.
    """

    graph: Graph
    plan: Plan
    quantizer: Quantizer
    providers: tuple[str, ...] = ("cpu",)
    custom_ops: tuple[str, ...] = ()
    grid: QType = INT8
    effort: Effort = LEVELS["balanced"]
    pointwise_db: float = 1.5
    convolved_db: float | None = None
    half: bool = False

    @property
    def judges(self) -> int:
        """How many samples judge at most: thrice as many where a run costs next to nothing."""
        sizes = [d for value in self.graph.inputs for d in (self.graph.shape(value) or (None,))[1:]]
        known = all(isinstance(d, int) for d in sizes)
        small = known and self.plan.macs <= _SMALL
        return 3 * self.effort.judges if small else self.effort.judges

    def session(self, tensors: Sequence[str]) -> Session:
        """The float model with these tensors as outputs, its own where none is named."""
        return session_for(self.graph, tensors, self.providers, self.custom_ops)


@dataclass(frozen=True, eq=False)
class ChannelReach:
    """How far each channel of a tensor goes in all samples, arrays of shape (channels,).

    Attributes:
        low, high: the smallest and the largest value.
        next_low, next_high: the same without the one sample that goes there; infinite where no other was seen.
        rows: how many values each channel had.
    """

    low: Array
    high: Array
    next_low: Array
    next_high: Array
    rows: int

    @classmethod
    def of(cls, x: Array, axis: int) -> ChannelReach:
        """That of one sample."""
        others = tuple(i for i in range(x.ndim) if i != axis)
        low, high = x.min(axis=others, initial=np.inf), x.max(axis=others, initial=-np.inf)
        return cls(low, high, np.full_like(low, np.inf), np.full_like(high, -np.inf), x.size // max(low.size, 1))

    def __add__(self, other: ChannelReach) -> ChannelReach:
        """Of the samples of both, in any order."""
        return ChannelReach(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            np.minimum(np.minimum(self.next_low, other.next_low), np.maximum(self.low, other.low)),
            np.maximum(np.maximum(self.next_high, other.next_high), np.minimum(self.high, other.high)),
            self.rows + other.rows,
        )


@dataclass(frozen=True)
class Picked:
    """Samples, and what all samples of the data show.

    Attributes:
        feeds: those of the smallest hashes, in the order of their hashes, equal ones once.
        judges: how many judge at most.
        reach: how far each channel of the tensors asked for goes in all samples: a channel that is quiet in most may
            hold a rare, large value that matters.
    """

    feeds: Sequence[Feed]
    reach: Mapping[str, ChannelReach]
    judges: int

    @property
    def judging(self) -> Sequence[Feed]:
        """Every second one, as many as judge: no choice is made on them."""
        return self.feeds[1::2][: self.judges]

    @property
    def choosing(self) -> Sequence[Feed]:
        """As many of the others."""
        return self.feeds[::2][: self.judges]

    @property
    def both(self) -> Sequence[Feed]:
        """Those that choose and those that judge, in the order of their hashes."""
        return self.feeds[: 2 * self.judges]

    def places(self, feeds: Sequence[Feed]) -> frozenset[int]:
        """Where some of them are among `both`."""
        wanted = {id(feed) for feed in feeds}
        return frozenset(place for place, feed in enumerate(self.both) if id(feed) in wanted)

    @property
    def few(self) -> Sequence[Feed]:
        """A few of those, where many models are tried on each."""
        return self.choosing[: max(FEW, len(self.choosing) // 4)]

    @property
    def learning(self) -> Sequence[Feed]:
        """All the others."""
        return [*self.choosing, *self.feeds[2 * self.judges :]]


def pick(model: Inspected, axes: Mapping[str, int], source: Source, monitor: Monitor = QUIET) -> Picked | None:
    """The samples, None where there are too few; reads the source once.

    Args:
        model: run in float.
        axes: tensor -> channel axis, of the tensors whose reach is asked for.
        source: the samples.
        monitor: progress, and a warning when there are too few.

    Raises:
        DataError: the data cannot be read or does not fit.
    """
    what = f"Looking at {len(axes)} layer inputs on" if axes else "Picking samples from"
    monitor.stage(f"{what} {source.name}", source.length)
    session = model.session(tuple(axes))
    largest = 1
    kept: Smallest[Feed] = Smallest(max(2 * model.judges, model.effort.picked))
    reach: dict[str, ChannelReach] = {}
    for where, feed in samples(session, source, monitor, tried=True):
        with named(where):
            arrays = run(session, feed) if axes else {}
        for name, axis in axes.items():
            found = ChannelReach.of(arrays[name], axis)
            reach[name] = reach[name] + found if name in reach else found
        key, largest = sample_hash(feed), max(largest, sum(array.nbytes for array in feed.values()))
        kept.shrink(max(2 * model.judges, min(model.effort.picked, _BYTES // largest)))
        kept.offer(key, partial(copied, feed))
    if len(kept) < LEAST:
        said = "one sample is" if len(kept) == 1 else f"{len(kept)} different samples are"
        monitor.warn(f"{said} too few to improve the model on: effort is fast")
        return None
    return Picked(kept.values(), reach, model.judges)


def run(session: Session, feed: Feed) -> dict[str, Array]:
    """Every tensor that the session computes, and the inputs."""
    given = {name: feed[name] for name in session.inputs}
    return {**feed, **dict(zip(session.outputs, session.run(given, session.outputs), strict=True))}
