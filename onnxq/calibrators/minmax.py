"""The full observed range."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxq.histogram import Histogram
    from onnxq.numerics import QType, Range


def minmax(hist: Histogram, qtype: QType) -> Range:
    """[-max|x|, max|x|] on a symmetric grid, else [min, max] widened to hold 0; infinities do not count."""
    if hist.amax == 0.0:
        return 0.0, 0.0
    if qtype.symmetric:
        return -hist.amax, hist.amax
    return min(hist.min, 0.0), max(hist.max, 0.0)
