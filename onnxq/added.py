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
        lowest, highest: what the sum is cut to.
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
        x = np.linspace(self.lowest - k.max, (self.lowest if self.highest == inf else self.highest) - k.min, _KNOTS)
        slope = np.sqrt(_below(k, self.highest - x) - _below(k, self.lowest - x))
        steps = (slope[1:] + slope[:-1]) / 2 * np.diff(x)
        return Weight(x, np.concatenate([[0.0], np.cumsum(steps)]), 1.0 if self.highest == inf else 0.0)


@dataclass(frozen=True, eq=False)
class Weight:
    """A function of one value, linear between its knots x, constant below them and of the slope `beyond` above."""

    x: Floats
    y: Floats
    beyond: float

    def __call__(self, x: Floats) -> Floats:
        """f(x), of any shape."""
        found: Floats = np.interp(x, self.x, self.y) + self.beyond * np.maximum(x - self.x[-1], 0.0)
        return found


def _below(k: Histogram, x: Floats) -> Floats:
    """Share of the values that are below each x, those of a bin at its center."""
    values, counts = k.signed()
    running = np.concatenate([[0], np.cumsum(counts)])
    share: Floats = (running[np.searchsorted(values, x)] + k.zeros * (x > 0)) / k.count
    return share
