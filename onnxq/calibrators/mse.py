"""The range of least squared error."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from onnxq.calibrators._error import Points
from onnxq.calibrators.minmax import minmax

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxq.calibrators._error import Floats, Function
    from onnxq.histogram import Histogram
    from onnxq.numerics import QType, Range

_SHRINK = np.geomspace(1.0, 2.0**-5, 129)
"""Shares of the full range that are tried, 2.7 % apart; below 1/32 fewer than 64 bins might be left."""

_ROUNDS = 2
"""Rounds of coordinate search; a third moved nothing on any of the test data."""


def mse(hist: Histogram, qtype: QType, behind: Function | None = None) -> Range:
    """Minimise sum (x - x^)² over the range, on the grid that is emitted; sum (f(x) - f(x^))² with f `behind` it.

    Symmetric, or with values on one side of 0 only: over T, on a geometric grid, then finer between the best's
    neighbours. Asymmetric: both ends are shrunk together in the same way, and then in turn, each with the other
    held. Ties keep the larger range.
    """
    lo, hi = minmax(hist, qtype)
    if lo == hi:
        return lo, hi
    errors = partial(Points.of(hist, behind).errors, qtype=qtype)
    joint = _least(lambda share: errors(lo * share, hi * share))
    low, high = lo * joint, hi * joint
    if qtype.symmetric or lo == 0.0 or hi == 0.0:
        return low, high
    for _ in range(_ROUNDS):
        high = hi * _least(partial(_one_end, errors, low, hi))
        low = lo * _least(partial(_one_end, errors, high, lo))
    return low, high


def _one_end(errors: Callable[[Floats, Floats], Floats], held: float, moved: float, share: Floats) -> Floats:
    """Errors of the ranges between one end that is held and shares of the other, whichever is the lower."""
    ends = np.full_like(share, held), moved * share
    return errors(np.minimum(*ends), np.maximum(*ends))


def _least(errors: Callable[[Floats], Floats]) -> float:
    """The share in [1/32, 1] of least error; argmin takes the first, and so the largest, of equals."""
    shares = _SHRINK
    for points in (17, 17):
        best = int(np.argmin(errors(shares)))
        shares = np.linspace(shares[max(best - 1, 0)], shares[min(best + 1, shares.size - 1)], points)
    return float(shares[np.argmin(errors(shares))])


def legacy(hist: Histogram, qtype: QType, behind: Function | None = None) -> Range:
    """`mse` under the name that some users know it by.

    TensorRT's IInt8LegacyCalibrator was something else: a quantile of |x|, or a regression cut off at a share of the
    maximum, over a histogram that it could keep. What people ran in its place, quantile 0.9999 and cutoff 1.0, is
    the calibrator "percentile" at 99.99; the histogram that is kept is onnxq's statistics file.
    """
    return mse(hist, qtype, behind)
