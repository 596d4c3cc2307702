"""What is measured together where there are more groups than passes: stretches of groups next to each other.

The noisiest stretch is halved, again and again, as long as there are passes for both halves, so that the groups that
make most of the noise end up alone. `onnxq.improvement.sparing` halves too, but stops where a stretch in float gains
nothing, and looks at more samples the nearer that is; here every pass is used, over all samples.
"""

from __future__ import annotations

import heapq
import math
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FIRST = 30
"""Stretches at first, a quarter of the passes: with fewer the halving of quiet ones takes passes, with more none are
left to find a group in a stretch of many."""


def parted(count: int, passes: int, noise: Callable[[range], float]) -> tuple[range, ...]:
    """The stretches, in order, that `count` groups end up in.

    Args:
        count: of groups, more than `FIRST`.
        passes: how often `noise` may be asked, `FIRST` times at least.
        noise: measures a stretch, by the places of its groups; it is asked once for each.
    """
    waiting: list[tuple[float, int, range]] = []
    found: list[range] = []
    ends = [count * i // FIRST for i in range(FIRST + 1)]
    fresh = [range(*pair) for pair in pairwise(ends)]
    while True:
        for stretch in fresh:
            heapq.heappush(waiting, (-noise(stretch), stretch.start, stretch))
        passes -= len(fresh)
        while waiting and (len(waiting[0][2]) == 1 or waiting[0][0] == 0.0):  # alone, or without any noise to find
            found.append(heapq.heappop(waiting)[2])
        if not waiting or passes < 2:
            return tuple(sorted([*found, *(s for *_, s in waiting)], key=lambda s: s.start))
        stretch = heapq.heappop(waiting)[2]
        middle = len(stretch) // 2
        fresh = [stretch[:middle], stretch[middle:]]


def shares(errors: Sequence[float | None]) -> list[float]:
    """What part of their noise each of some groups makes, 0 to 1, together 1: as their own errors are to one another.

    Args:
        errors: noise over signal that each makes at its own outputs; None where it is not known: as the mean of others.
    """
    known = [error for error in errors if error is not None]
    mean = math.fsum(known) / len(known) if known else 1.0
    filled = [mean if error is None else error for error in errors]
    if math.inf in filled:
        filled = [float(error == math.inf) for error in filled]
    total = math.fsum(filled)
    return [error / total for error in filled] if total else [1 / len(filled)] * len(filled)
