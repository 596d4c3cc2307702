"""What an error weighs in front of a residual addition whose result is cut off, as by a Relu."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onnxq.histogram import Histogram

Floats = npt.NDArray[np.float64]

_KNOTS = 1025

_RANGES = 32
"""Into so many parts of as many values what a MaxPool leaves is cut."""


@dataclass(frozen=True)
class Added:
    """min(max(x + k, lowest), highest): all that is made of a tensor x.

    Attributes:
        tensor: name of k.
        lowest, highest: what the sum is cut to; one of them is finite.
        pool: names of what is so made and of its largest values in windows, where a MaxPool is all that reads it.
    """

    tensor: str
    lowest: float = 0.0
    highest: float = inf
    pool: tuple[str, str] | None = None

    def to(self, k: Histogram, pool: tuple[Histogram, Histogram] | None = None) -> Weight:
        """How an error of x weighs, where k is independent of x and has these values.

        A small error d of x is one of the result where the sum is not cut off, so that its square is expected to be
        P(lowest < x + k < highest) d². So errors are those of f(x), of which f'(x)² is that probability. For
        large ones, what is cut off, it is an upper bound: E (int 1)² = int int P(both) <= (int sqrt P)².

        Behind a MaxPool each sum counts as often as it is the largest of a window. How often those of a size are, the
        values before and behind the pool tell: r of them are left of one. Then f'(x)² = E r(x + k).

        Args:
            k: values of what is added.
            pool: values of both tensors of that name.
        """
        open_below, open_above = self.lowest == -inf, self.highest == inf
        first, last = self.highest if open_below else self.lowest, self.lowest if open_above else self.highest
        x = np.linspace(first - k.max, last - k.min, _KNOTS)
        ends, left = (np.array([self.lowest, self.highest]), np.ones(1)) if pool is None else self._left(*pool)
        slope = np.sqrt(left @ np.diff(_below(k, ends[:, None] - x), axis=0))
        steps = (slope[1:] + slope[:-1]) / 2 * np.diff(x)
        beside = float(open_below and left[0] ** 0.5), float(open_above and left[-1] ** 0.5)
        return Weight(x, np.concatenate([[0.0], np.cumsum(steps)]), *beside)

    def _left(self, sums: Histogram, largest: Histogram) -> tuple[Floats, Floats]:
        """Ends [n + 1] of ranges with as many of the largest values each, and how many those are for one sum [n].

        What is cut off, and so lies in the bins of both ends, does not count.
        """
        width = max(sums.bin_width, largest.bin_width)
        low = self.lowest + width if self.lowest else np.nextafter(0.0, 1.0)
        high = self.highest - width if self.highest else 0.0
        centers, counts = largest.signed()
        within = (centers > low) & (centers < high) & (counts > 0)
        running = np.cumsum(counts[within])
        parts = np.arange(1, _RANGES) / _RANGES * (running[-1] if running.size else 0)
        cuts = np.unique(centers[within][np.searchsorted(running, parts)]) if running.size else np.zeros(0)
        before, behind = (h.count * np.diff(_below(h, np.array([low, *cuts, high]))) for h in (sums, largest))
        return np.array([self.lowest, *cuts, self.highest]), behind / np.maximum(before, 1.0)


@dataclass(frozen=True, eq=False)
class Weight:
    """A function of one value, linear between its knots x, and of the slopes `below` and `above` beside them."""

    x: Floats
    y: Floats
    below: float
    above: float

    def __call__(self, x: Floats) -> Floats:
        """f(x), of any shape."""
        beside = self.below * np.minimum(x - self.x[0], 0.0) + self.above * np.maximum(x - self.x[-1], 0.0)
        found: Floats = np.interp(x, self.x, self.y) + beside
        return found


def _below(k: Histogram, x: Floats) -> Floats:
    """Share of the values that are below each x, those of a bin at its center."""
    values, counts = k.signed()
    running = np.concatenate([[0], np.cumsum(counts)])
    share: Floats = (running[np.searchsorted(values, x)] + k.zeros * (x > 0)) / k.count
    return share
