"""What a collection has seen so far: the running totals of every observed tensor."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxq.checkpoint import Checkpoint
from onnxq.histogram import Extent, Histogram, Tally
from onnxq.statistics import Statistics, merge_shapes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from threading import Event

    from onnxq.monitor import Monitor
    from onnxq.statistics import Bounds

_AHEAD_BYTES = 48_000_000
"""Bytes of one sample's tensors that may wait to be counted while the next sample runs."""


def asked_for(tensors: Sequence[str], bounds: Sequence[str]) -> tuple[str, ...]:
    """All that is observed: of `tensors` histograms are made, of `bounds` that are not among them bounds alone."""
    return tuple(dict.fromkeys((*tensors, *bounds)))


_Counts = tuple[int, ...]
"""How many values were NaN, +inf and -inf."""

_KINDS = ("NaN", "+inf", "-inf")
_NAMED = 3
"""Tensors that a warning names."""


@dataclass(frozen=True)
class Sample:
    """What is remembered of a sample: the words that say where it came from, its hash and the shapes of its inputs."""

    label: str
    hash: int
    shapes: dict[str, Bounds]


@dataclass
class Seen:
    """Running totals of one collection."""

    model: str
    tensors: dict[str, Tally | Extent]
    samples: int = 0
    hash: int = 0

    @classmethod
    def of(
        cls, model: str, tensors: Sequence[str], bounds: Sequence[str], nonfinite: Mapping[str, str] | None = None
    ) -> Seen:
        """Nothing yet, of these tensors of the model with that digest; of `nonfinite` ones that was said already."""
        seen = cls(model, {name: Extent() for name in bounds} | {name: Tally() for name in tensors})
        seen.nonfinite |= nonfinite or {}
        return seen

    def __post_init__(self) -> None:
        self.shapes: dict[str, Bounds] = {}
        self.nonfinite: dict[str, str] = {}
        self.untold: dict[str, tuple[str, _Counts]] = {}
        self.counted: Counter[int] = Counter()

    def count(self, arrays: dict[str, Any], label: str, room: Event) -> None:
        """Add a sample's tensors, or what was counted of them, which are used up.

        `room` is set when so few of them are left that the next sample may run.
        """
        left = sum(array.nbytes for array in arrays.values())
        for name in tuple(arrays):
            if left <= _AHEAD_BYTES:
                room.set()
            left -= arrays[name].nbytes
            tally = self.tensors[name]
            before = tally.nonfinite
            found = arrays.pop(name)
            if isinstance(found, Histogram):  # counted where the model ran
                tally.take(found)
            else:
                tally.add(found)
            odd = tuple(after - earlier for after, earlier in zip(tally.nonfinite, before, strict=True))
            if not any(odd):
                continue
            if name not in self.nonfinite:
                self.untold[name] = (label, odd)
            self.nonfinite[name] = min(label, self.nonfinite.get(name, label))

    def tell(self, monitor: Monitor) -> None:
        """Say of tensors that they held NaN or infinity, once of each, of all those together that held it alike.

        A mask's -inf is in every layer.
        """
        for text in _told(self.untold):
            monitor.warn(text)
        self.untold.clear()

    def note(self, sample: Sample) -> None:
        """Remember that a sample was counted, and its shapes, whatever the order."""
        self.samples += 1
        self.hash = (self.hash + sample.hash) % 2**64
        self.counted[sample.hash] += 1
        self.shapes = merge_shapes(self.shapes, sample.shapes)

    def statistics(self) -> Statistics:
        """What was seen so far."""
        return Statistics(
            self.model,
            {name: tally.histogram() for name, tally in self.tensors.items() if isinstance(tally, Tally)},
            self.samples,
            self.hash,
            self.shapes,
            dict(self.nonfinite),
            bounds={name: extent.bounds for name, extent in self.tensors.items() if isinstance(extent, Extent)},
        )

    def checkpoint(self) -> Checkpoint:
        """The same, with the samples that it is of."""
        return Checkpoint(self.statistics(), Counter(self.counted))


def _told(found: Mapping[str, tuple[str, _Counts]]) -> Iterator[str]:
    """What is said of tensors that held NaN or infinity: of one alone how many, of several what kinds."""
    alike: dict[tuple[str, tuple[bool, ...]], list[str]] = {}
    for name, (label, counts) in found.items():
        alike.setdefault((label, tuple(map(bool, counts))), []).append(name)
    for (label, kinds), names in alike.items():
        several, counts = len(names) > 1, found[names[0]][1]
        held = ", ".join(kind if several else f"{n} {kind}" for n, kind in zip(counts, _KINDS, strict=True) if n)
        others = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
        *most, last = [*map(repr, names[:_NAMED]), *others]
        if several:
            text = f"tensors {', '.join(most)} and {last} hold {held} in {label}: they are left out of the ranges"
        else:
            text = f"tensor {last} holds {held} in {label}: they are left out of its range"
        yield text if kinds[0] else f"{text} and saturate where {'these are' if several else 'it is'} quantized"


def observing(tensors: int, bounds: int, where: str) -> str:
    """What a run over the data is for: ranges, bounds that decide about types alone, or shapes of inputs alone."""
    what = [f"{tensors} tensors"] if tensors else []
    what += [f"the bounds of {bounds}{'' if tensors else ' tensors'}"] if bounds else []
    return f"Observing {' and '.join(what)} on {where}" if what else f"Reading the shapes of inputs from {where}"
