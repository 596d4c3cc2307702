"""Picking samples by the hash of their content, so that neither their order nor their batches matter."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

_T = TypeVar("_T")


@dataclass
class Smallest(Generic[_T]):
    """What was offered under the smallest keys, at most `most` of them; of equal keys the first."""

    most: int
    _kept: dict[int, _T] = field(default_factory=dict)
    _heap: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._kept)

    def offer(self, key: int, make: Callable[[], _T]) -> None:
        """Keep what `make` gives, where the key is among the smallest."""
        if key not in self._kept and (len(self._heap) < self.most or key < -self._heap[0]):
            self._kept[key] = make()
            heapq.heappush(self._heap, -key)
        self.shrink(self.most)

    def shrink(self, most: int) -> None:
        """Keep no more than so many from now on."""
        self.most = min(self.most, most)
        while len(self._heap) > self.most:
            del self._kept[-heapq.heappop(self._heap)]

    def values(self) -> list[_T]:
        """What is kept, by ascending key."""
        return [self._kept[key] for key in sorted(self._kept)]


def copied(feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The feed in arrays of its own: whoever made it may use its again."""
    return {name: array.copy() for name, array in feed.items()}
