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


@dataclass(frozen=True)
class Added:
    """min(max(x + k, lowest), highest): all that is made of a tensor x.

    Attributes:
        tensor: name of k.
        lowest, highest: what the sum is cut to; one of them is finite.
    """

    tensor: str
    lowest: float = 0.0
    highest: float = inf

    def to(self, k: Histogram) -> Weight:
        """How an error of x weighs, where k is independent of x and has these values.

        A small error d of x is one of the result where the sum is not cut off, so that its square is expected to be
        P(lowest < x + k < highest) d². So errors are those of f(x), of which f'(x)² is that probability. For
        large ones, what is cut off, it is an upper bound: E (int 1)² = int int P(both) <= (int sqrt P)².
        """
        open_below, open_above = self.lowest == -inf, self.highest == inf
        first, last = self.highest if open_below else self.lowest, self.lowest if open_above else self.highest
        x = np.linspace(first - k.max, last - k.min, _KNOTS)
        slope = np.sqrt(_below(k, self.highest - x) - _below(k, self.lowest - x))
        steps = (slope[1:] + slope[:-1]) / 2 * np.diff(x)
        return Weight(x, np.concatenate([[0.0], np.cumsum(steps)]), float(open_below), float(open_above))


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
