"""The best of the other calibrators, tensor by tensor."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from onnxq.calibrators._error import RESOLUTION, Points
from onnxq.calibrators.entropy import entropy
from onnxq.calibrators.minmax import minmax
from onnxq.calibrators.mse import mse
from onnxq.calibrators.percentile import percentile

if TYPE_CHECKING:
    from onnxq.calibrators._error import Function
    from onnxq.histogram import Histogram
    from onnxq.numerics import QType, Range

CANDIDATES = (
    minmax,  # first: of equals, the one that clips nothing
    partial(percentile, percent=99.9),
    partial(percentile, percent=99.99),
    partial(percentile, percent=99.999),
    entropy,
)


def auto(hist: Histogram, qtype: QType, behind: Function | None = None) -> Range:
    """The range of the candidate with the least expected squared error; ties keep the earlier candidate.

    The error of the values, or of what the function `behind` them makes of them.
    """
    ranges = [*(candidate(hist, qtype) for candidate in CANDIDATES), mse(hist, qtype, behind)]
    points = Points.of(hist, behind)
    errors = points.errors([lo for lo, _ in ranges], [hi for _, hi in ranges], qtype)
    tied = errors <= errors.min() + RESOLUTION * points.power
    return ranges[int(tied.argmax())]
