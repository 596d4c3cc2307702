"""Where the time of a run goes: its stages one after the other, and what parts of them took."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from onnxq.monitor import Monitor

_T = TypeVar("_T")


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: what the monitor was told.
        seconds: wall time until the next stage began, or the run ended.
        parts: (name, seconds) of what it was spent on; parts that ran beside one another add up to more.
    """

    name: str
    seconds: float
    parts: tuple[tuple[str, float], ...] = ()


@dataclass
class Watch:
    """Times the stages that a monitor is told of.

    `watch = Watch(); onnxq.quantize(..., monitor=watch.on(monitor)); watch.stages()`.
    """

    _begun: list[tuple[str, float]] = field(default_factory=list)
    _parts: list[dict[str, float]] = field(default_factory=list)

    def on(self, monitor: Monitor) -> Monitor:
        """The same monitor, timed."""

        def stage(text: str, total: int | None) -> None:
            self._begun.append((text, time.perf_counter()))
            self._parts.append({})
            monitor.stage(text, total)

        def spent(part: str, seconds: float) -> None:
            if self._parts:
                self._parts[-1][part] = self._parts[-1].get(part, 0.0) + seconds
            monitor.spent(part, seconds)

        return replace(monitor, stage=stage, spent=spent)

    def stages(self) -> tuple[Stage, ...]:
        """The stages so far; the last ends now."""
        ends = [begun for _, begun in self._begun[1:]] + [time.perf_counter()]
        found = zip(self._begun, ends, self._parts, strict=True)
        return tuple(Stage(name, end - begun, tuple(parts.items())) for (name, begun), end, parts in found)


@contextmanager
def timed(monitor: Monitor, part: str) -> Iterator[None]:
    """Tell the monitor how long the block took."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        monitor.spent(part, time.perf_counter() - begun)


def paced(items: Iterable[_T], monitor: Monitor, part: str) -> Iterator[_T]:
    """The items; the monitor is told how long it took to get each."""
    source = iter(items)
    while True:
        with timed(monitor, part):
            try:
                item = next(source)
            except StopIteration:
                return
        yield item
