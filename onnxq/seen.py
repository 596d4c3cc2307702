"""What a collection has seen so far: the running totals of every observed tensor."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxq.checkpoint import Checkpoint
from onnxq.histogram import Extent, Histogram, Tally
from onnxq.statistics import Statistics, merge_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from threading import Event

    from onnxq.monitor import Monitor
    from onnxq.statistics import Bounds

_AHEAD_BYTES = 48_000_000
"""Bytes of one sample's tensors that may wait to be counted while the next sample runs."""


def asked_for(tensors: Sequence[str], bounds: Sequence[str]) -> tuple[str, ...]:
    """All that is observed: of `tensors` histograms are made, of `bounds` that are not among them bounds alone."""
    return tuple(dict.fromkeys((*tensors, *bounds)))


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
        self.counted: Counter[int] = Counter()

    def count(self, arrays: dict[str, Any], label: str, monitor: Monitor, room: Event) -> None:
        """Add a sample's tensors, or what was counted of them, which are used up.

        Say once per tensor that it held NaN or infinity.

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
                held = ", ".join(f"{n} {kind}" for n, kind in zip(odd, ("NaN", "+inf", "-inf"), strict=True) if n)
                monitor.warn(
                    f"tensor {name!r} holds {held} in {label}: they are left out of its range"
                    + (" and saturate where it is quantized" if not odd[0] else "")
                )
            self.nonfinite[name] = min(label, self.nonfinite.get(name, label))

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
