"""The range that holds a given share of the values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxq.calibrators.minmax import minmax

if TYPE_CHECKING:
    from onnxq.histogram import Counts, Histogram
    from onnxq.numerics import QType, Range


def percentile(hist: Histogram, qtype: QType, percent: float = 99.99) -> Range:
    """Symmetric: [-T, T] with T the percentile of |x|. Asymmetric: (100 - percent) / 2 is cut from each side.

    Zeros count as values. Inside a bin values are taken as evenly spread; the result stays within the observed
    min and max. Where nothing but 0 would be left of a tensor that is almost all zeros, the full range is kept.

    Raises:
        ValueError: percent is not in (0, 100].
    """
    if not 0 < percent <= 100:
        raise ValueError(f"percent is {percent}, not in (0, 100]")
    full_lo, full_hi = minmax(hist, qtype)
    count = hist.count
    if qtype.symmetric:
        limit = min(_quantile(hist.folded(), count, percent / 100 * count, hist.bin_width), hist.amax)
        lo, hi = -limit, limit
    else:
        rank = (100 + percent) / 200 * count
        lo = max(-_quantile(hist.negative, count, rank, hist.bin_width), full_lo)
        hi = min(_quantile(hist.positive, count, rank, hist.bin_width), full_hi)
    return (lo, hi) if lo < hi else (full_lo, full_hi)


def _quantile(side: Counts, count: int, rank: float, width: float) -> float:
    """The distance from 0 on a side of the value with that rank among all; 0 if it is not on the side."""
    cumulative = count - int(side.sum()) + np.concatenate([[0], np.cumsum(side)])
    if rank <= cumulative[0]:
        return 0.0
    k = int(np.searchsorted(cumulative[1:], min(rank, count)))
    return float((k + (rank - cumulative[k]) / side[k]) * width)
