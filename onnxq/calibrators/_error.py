"""The squared error that a range costs, expected from a histogram."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onnxq.numerics import affine

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxq.histogram import Histogram
    from onnxq.numerics import QType

    Function = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]

Floats = npt.NDArray[np.float64]

RESOLUTION = 1e-12
"""Errors are equal within this share of the signal's power: the rounding of the sums stays below it."""


@dataclass(frozen=True)
class Points:
    """A histogram as weighted points: each bin at its center, the outermost two at the exact min and max.

    Attributes:
        x: values, ascending.
        mass: running count of the points before each x; one longer than x.
        moment: running sum of count * y, likewise; y is x, or what the function behind it makes of it.
        power: sum of count * y², the signal's power times the number of values.
        behind: the function.
    """

    x: Floats
    mass: Floats
    moment: Floats
    power: float
    behind: Function | None = None

    @staticmethod
    def of(hist: Histogram, behind: Function | None = None) -> Points:
        """Zeros are left out: every grid holds 0, so they cost nothing."""
        x, counts = hist.signed()
        # Most of a wide side's bins may be empty, and the centers of the outermost lie outside the values.
        x, weights = np.clip(x[counts > 0], hist.min, hist.max), counts[counts > 0].astype(np.float64)
        if hist.min < 0:
            x[0] = hist.min
        if hist.max > 0:
            x[-1] = hist.max
        y = x if behind is None else behind(x)
        mass, moment = (np.concatenate([[0.0], np.cumsum(part)]) for part in (weights, weights * y))
        return Points(x, mass, moment, float((weights * y * y).sum()), behind)

    def errors(self, lo: npt.ArrayLike, hi: npt.ArrayLike, qtype: QType) -> Floats:
        """Sum of (y - y^)² for each of the ranges [lo, hi], on the grid that is emitted for it.

        The values between two midpoints of the grid all become its level, and y^ what this stands for, v. So their
        error is sum y² - 2 v sum y + v² sum 1, and running sums give it for every level at once.
        """
        scale, zero_point = affine(np.atleast_1d(lo), np.atleast_1d(hi), qtype)
        levels = (np.arange(qtype.qmin, qtype.qmax + 1) - zero_point[:, None]) * scale[:, None]
        inner = np.searchsorted(self.x, (levels[:, 1:] + levels[:, :-1]) / 2)
        ends = np.zeros((len(levels), 1), np.intp)
        bounds = np.concatenate([ends, inner, ends + self.x.size], axis=1)
        mass, moment = np.diff(self.mass[bounds]), np.diff(self.moment[bounds])
        v = levels if self.behind is None else self.behind(levels)
        gained = (v * (v * mass - 2 * moment)).sum(axis=1)
        errors: Floats = np.maximum(self.power + gained, 0.0)
        return errors


def expected_error(hist: Histogram, lo: float, hi: float, qtype: QType) -> float:
    """Sum of (x - dequantize(quantize(x)))² over the finite values, for the range [lo, hi].

    In the square of the tensor's unit: rounding inside the range, clipping outside, each bin at its center.
    """
    return float(Points.of(hist).errors(lo, hi, qtype)[0])
