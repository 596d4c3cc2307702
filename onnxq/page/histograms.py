"""A tensor's histogram as the page draws it: few columns, and where each calibrator would clip."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxq.calibrators import CALIBRATORS
from onnxq.calibrators._error import Points
from onnxq.counting import BINS
from onnxq.numerics import affine

if TYPE_CHECKING:
    from onnxq.histogram import Histogram
    from onnxq.numerics import QType, Range

COLUMNS = 120
"""Columns that a histogram is drawn with at most: the page stays small, and a phone shows no more."""

_TWINS = ("legacy",)  # another name of mse


@dataclass(frozen=True)
class Threshold:
    """What a range does to the values that were seen.

    Attributes:
        name: the calibrator that chose it, or "in the model".
        low: its lower end.
        high: its upper end.
        clipped: share of the values outside it.
        sqnr_db: expected signal to noise of the tensor quantized with it, in dB; inf when there is no error.
    """

    name: str
    low: float
    high: float
    clipped: float
    sqnr_db: float


@dataclass(frozen=True)
class Drawn:
    """A histogram, drawn.

    Attributes:
        start: left edge of the first column, in the tensor's unit.
        width: of a column, a whole number of the histogram's bins.
        counts: values in each column, zeros left out.
        zeros: share of exact zeros.
        count: values seen.
        low: smallest value.
        high: largest value.
        thresholds: the range in the model, when there is one, then what each calibrator chooses.
    """

    start: float
    width: float
    counts: tuple[int, ...]
    zeros: float
    count: int
    low: float
    high: float
    thresholds: tuple[Threshold, ...]


def drawn(histogram: Histogram, qtype: QType | None, used: Range | None = None) -> Drawn | None:
    """The histogram in at most `COLUMNS` columns; None where nothing but zeros, or nothing, was seen.

    Without a type no calibrator is asked.
    `used` is the range in the model. Ends of ranges are those of the grid that is made of them: of a symmetric
    one -128 and 127 steps, whatever the calibrator's lower end was.
    """
    if histogram.amax == 0.0:
        return None
    _, counts = histogram.signed()
    filled = np.flatnonzero(counts)
    first, last = min(int(filled[0]), BINS), max(int(filled[-1]) + 1, BINS)  # zero is always in sight
    merged = -(-(last - first) // COLUMNS)
    columns = -(-(last - first) // merged)
    kept = np.zeros(columns * merged, np.int64)
    kept[: last - first] = counts[first:last]
    total = histogram.count
    return Drawn(
        (first - BINS) * histogram.bin_width,
        merged * histogram.bin_width,
        tuple(int(c) for c in kept.reshape(columns, merged).sum(axis=1)),
        histogram.zeros / total,
        total,
        histogram.min,
        histogram.max,
        () if qtype is None else _thresholds(histogram, qtype, used),
    )


def _thresholds(histogram: Histogram, qtype: QType, used: Range | None) -> tuple[Threshold, ...]:
    ranges = {} if used is None else {"in the model": used}
    ranges |= {name: choose(histogram, qtype) for name, choose in CALIBRATORS.items() if name not in _TWINS}
    lows, highs = [low for low, _ in ranges.values()], [high for _, high in ranges.values()]
    points = Points.of(histogram)
    errors = points.errors(lows, highs, qtype)
    scales, zeros = affine(lows, highs, qtype)
    made = []
    for name, scale, zero, error in zip(ranges, scales, zeros, errors, strict=True):
        low, high = float((qtype.qmin - zero) * scale), float((qtype.qmax - zero) * scale)
        outside = points.mass[-1] - (
            points.mass[np.searchsorted(points.x, high, "right")] - points.mass[np.searchsorted(points.x, low)]
        )
        sqnr = math.inf if error <= 0 else 10 * math.log10(points.power / float(error))
        made.append(Threshold(name, low, high, float(outside) / histogram.count, sqnr))
    return tuple(made)
