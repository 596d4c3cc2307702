"""Which factors to smooth a site with: those that bring the layers behind it nearest to what they compute in float.

Candidates are SmoothQuant's family (Xiao et al., 2023, arXiv 2211.10438, eq. 4) with the exponents set apart,

    s_j = max|x_j - c_j|^a / max|W_j|^b,

each with and without a shift c_j. A candidate's score is the noise in the outputs W x of sampled rows when x' and W'
are rounded on the very grids that will be emitted: int8, one scale of least squared error for x', one scale per
output channel of W'. Pure numpy; the rows come in an order that does not depend on that of the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onnxq.calibrators.mse import mse
from onnxq.histogram import Histogram
from onnxq.numerics import INT8, INT8_WEIGHT, affine
from onnxq.statistics import Factor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from onnxq.improvement.picking import ChannelReach
    from onnxq.numerics import QType

    Measure = Callable[[Factor], float]

Floats = npt.NDArray[np.float32]

MARGIN_DB = 0.3
"""A folded site changes only for at least so much less noise: it costs nothing, but the prediction is no proof."""

_WHOLE = (1.0, 0.0)
_PROBES = ((0.0, 0.0), (0.5, 0.5), _WHOLE)
_EXPONENTS = (*_PROBES, (0.25, 0.75), (0.75, 0.25), (0.85, 0.15), (0.5, 0.0), (0.75, 0.0))
"""(a, b) that are tried; the first few with every shift, the others with the best of the shifts."""

_RIVAL_DB = 3.0
"""By how much more predicted noise the factor that cuts off nothing is a rival of the best."""

_SPAN = 2.0**12
"""Ratio of the largest to the smallest factor of a site: float16, in which x' may be computed, holds so much."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What linear nodes read of a site, sampled.

    Attributes:
        rows: (R, k, C): R input patches of k positions (1 for a matrix product) and C channels.
        weight: (G, k * C / G, N / G): G groups, the patch in the order of `rows`; None for a tensor that is only
            quantized, not multiplied.
        low, high: the smallest and the largest value seen of each channel, shape (C,), of the whole samples.
        weighs: what errors of the outputs are multiplied by, (R, 1) or (R, N); None for ones.
    """

    rows: Floats
    weight: Floats | None
    low: Floats
    high: Floats
    weighs: Floats | None = None


@dataclass(frozen=True)
class Allowed:
    """What a site can take: a shift; weights in the factors; and the margin that a change must gain, in dB.

    `grid` is that of its tensors: a zero point makes a shift of the whole tensor needless, one per channel still helps.
    """

    shift: bool
    weights: bool
    margin: float
    grid: QType = INT8


def choose(readings: Sequence[Reading], allowed: Allowed, reaches: Sequence[ChannelReach] = ()) -> tuple[Factor, ...]:
    """The factor of least noise, with what is expected to be cut off new rows; none where none gains the margin.

    Behind it, where that is another, the best of those that bring every channel to the same reach, so that next to
    nothing is cut off: what is cut off may cost a model more than the layer (see `onnxq.improvement.factors`).

    Args:
        readings: of one site; all have the same channels.
        allowed: what the site can take.
        reaches: of the tensors, which tell what is cut off new rows of them; where the factor of least noise on these
            rows would lose by that, the site stays as it is.
    """
    low = np.min([r.low for r in readings], axis=0).astype(np.float64)
    high = np.max([r.high for r in readings], axis=0).astype(np.float64)
    if not (np.isfinite(low) & np.isfinite(high)).all():
        return ()
    columns = _columns(readings, low.size)
    exact = [_outputs(r.rows, r.weight) for r in readings]
    powers = [_power(y - y.mean(axis=1, keepdims=True), r) for r, y in zip(readings, exact, strict=True)]

    @cache
    def noise(factor: Factor) -> float:
        total = 0.0
        for reading, y, power in zip(readings, exact, powers, strict=True):
            if power > 0:
                total += _noise(reading, y, factor.scale, factor.shift, allowed.grid) / power
        return total

    @cache
    def expected(factor: Factor) -> float:
        return noise(factor) * (1 + max((cut_off(r, factor) for r in reaches), default=0.0))

    still = np.zeros(low.size, np.float32)
    middle = ((low + high) / 2).astype(np.float32)
    shifts = (still, middle, _means(readings)) if allowed.shift else (still,)

    @cache
    def factor(which: int, a: float, b: float) -> Factor:
        shift = shifts[which]
        return Factor(_scale(np.maximum(high - shift, shift - low), columns, a, b), shift)

    def best(by: Measure, shifts: Sequence[int], exponents: Sequence[tuple[float, float]]) -> tuple[int, Factor]:
        tried = [(w, factor(w, a, b)) for w, (a, b) in product(shifts, exponents) if not b or allowed.weights]
        return min(tried, key=lambda one: by(one[1]))  # the first of equals

    def searched(by: Measure) -> Factor:
        shifted, _ = best(by, every, _PROBES)
        return best(by, [shifted], _EXPONENTS)[1]

    every = range(len(shifts))
    before = noise(factor(0, 0.0, 0.0))
    found, (_, whole) = searched(expected), best(expected, every, [_WHOLE])
    heavy = expected(searched(noise)) >= before  # tails so heavy that what looks best here would lose on new rows
    if heavy or expected(found) >= before * 10 ** (-allowed.margin / 10):
        return ()
    rival = whole is not found and expected(whole) < expected(found) * 10 ** (_RIVAL_DB / 10)
    return (found, whole) if rival else (found,)


def beyond(reach: ChannelReach, factor: Factor) -> Floats:
    """Values of x' = (x - c) / s beyond the range that a channel has without the sample that holds them, (values,).

    Leave-one-out over samples, of which those matter that hold the farthest value v of a channel: without one the
    channel would reach m' in place of m, and m' / s' in place of m / s is where its range would end. So v, which is
    v / m' times as far, at most `_BEYOND`, would be (v / m') (m / s). A shift to the middle would be to another one.
    """
    found, limit = [], _limit(reach, factor)
    for sign, ratio in _farther(reach, factor.shift):
        farther = ratio > 1
        found.append(sign * np.minimum(ratio[farther], _BEYOND) * limit[farther])
    values: Floats = np.concatenate(found).astype(np.float32)
    return values


def cut_off(reach: ChannelReach, factor: Factor) -> float:
    """Noise of what is cut off x' in new rows, expected likewise, over that of rounding; `beyond` is in the range.

        sum_j max(r_j m_j / s_j - e, 0)^2 / rows    over    C (e / 127)^2 / 12

    with r = v / m', at most `_FARTHEST`, of either side of the C channels, and e where the range ends. Judging samples
    do not tell: they are among those whose reach makes the factors. The largest of these losses is left out: that of
    one channel in one sample is no rule.
    """
    limit = _limit(reach, factor)
    ratios = [ratio for _, ratio in _farther(reach, factor.shift)]
    end = max(float((np.clip(ratio, 1.0, _BEYOND) * limit).max(initial=0.0)) for ratio in ratios)
    lost = np.square([np.maximum(np.minimum(r, _FARTHEST) * limit - end, 0.0) for r in ratios])
    rounded = limit.size * (end / INT8.qmax) ** 2 / 12
    return float((lost.sum() - lost.max(initial=0.0)) / max(reach.rows, 1) / rounded) if rounded > 0 else 0.0


def _limit(reach: ChannelReach, factor: Factor) -> npt.NDArray[np.float64]:
    """How far each channel of x' goes, m / s."""
    shift = factor.shift.astype(np.float64)
    limit: npt.NDArray[np.float64] = np.maximum(reach.high - shift, shift - reach.low) / factor.scale
    return limit


def _farther(reach: ChannelReach, shift: Floats) -> Iterator[tuple[float, npt.NDArray[np.float64]]]:
    """Of the upper and of the lower side: (sign, channel -> v / m'), 0 where there is no other sample."""
    low, high, next_low, next_high = (
        a.astype(np.float64) for a in (reach.low, reach.high, reach.next_low, reach.next_high)
    )
    centred = np.array_equal(shift, ((low + high) / 2).astype(np.float32))
    for sign, farthest, others, side in ((1.0, high, next_high, low), (-1.0, -low, -next_low, -high)):
        with np.errstate(divide="ignore", invalid="ignore"):  # others are infinite where there is no other sample
            middle = (others + side) / 2 if centred else sign * shift.astype(np.float64)
            ratio = (farthest - middle) / np.maximum(others - middle, middle - side)
        yield sign, np.where(np.isfinite(others) & ~np.isnan(ratio), ratio, 0.0)


_BEYOND = 2.0
"""How far beyond the others one sample counts at most: of a channel that is quiet elsewhere it tells little."""

_FARTHEST = 8.0
"""The same for what it would lose: a channel that is 0 elsewhere would be lost without end."""


def _scale(reach: npt.NDArray[np.float64], columns: npt.NDArray[np.float64], a: float, b: float) -> Floats:
    """reach^a / columns^b with a geometric mean of 1, its span limited; what has no reach or no weight stays at 1."""
    live = (reach > 0) & (columns > 0)
    logs = np.zeros(reach.size)
    logs[live] = a * np.log2(reach[live]) - b * np.log2(columns[live])
    if live.any():
        top = logs[live].max()
        logs[live] = np.maximum(logs[live], top - np.log2(_SPAN))
        logs[~live] = logs[live].min() if a else 0.0
        logs -= logs[live].mean()
    return np.exp2(logs).astype(np.float32)


def _means(readings: Sequence[Reading]) -> Floats:
    """Mean of each channel over the sampled rows; they come in one order, so the sum is always the same."""
    rows = np.concatenate([r.rows.reshape(-1, r.rows.shape[2]) for r in readings])
    mean: Floats = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def _columns(readings: Sequence[Reading], channels: int) -> npt.NDArray[np.float64]:
    """max|W_j| over all weights that read channel j."""
    largest = np.zeros(channels)
    for reading in readings:
        if reading.weight is not None:
            groups, _, _ = reading.weight.shape
            by_channel = np.abs(reading.weight).max(axis=2).reshape(groups, reading.rows.shape[1], -1).max(axis=1)
            largest = np.maximum(largest, by_channel.reshape(-1))
    return largest if largest.any() else np.ones(channels)


# -- the layer in int8 -----------------------------------------------------------------------------------------


def _noise(reading: Reading, exact: Floats, scale: Floats, shift: Floats, grid: QType) -> float:
    """Sum of squared differences between the outputs in float and in int8."""
    rows = (reading.rows - shift) / scale
    rounded = on_grid(rows, grid)
    weight = reading.weight
    if weight is None:
        found, exact = _outputs(rounded * scale, None), exact - shift
    else:
        groups = weight.shape[0]
        columns = np.tile(scale.reshape(groups, 1, -1), (1, rows.shape[1], 1)).reshape(groups, -1, 1)
        moved = np.tile(shift.reshape(groups, 1, -1), (1, rows.shape[1], 1)).reshape(groups, 1, -1)
        whole = weight * columns
        steps = np.maximum(np.abs(whole).max(axis=1, keepdims=True), 1e-30) / INT8_WEIGHT.qmax
        found = _outputs(rounded, np.rint(whole / steps) * steps) + (moved @ weight if np.any(shift) else 0)
    return _power(found - exact, reading)


def _power(outputs: Floats, reading: Reading) -> float:
    """Sum of squares, as much as each weighs."""
    weighed = outputs if reading.weighs is None else outputs * reading.weighs
    return float(np.square(weighed).sum(dtype=np.float64))


def _outputs(rows: Floats, weight: Floats | None) -> Floats:
    """(G, R, N / G): the outputs of the sampled rows; (1, R, C), the rows themselves, without a weight."""
    if weight is None:
        return rows.reshape(1, -1, rows.shape[2])
    count, size, _ = rows.shape
    groups = weight.shape[0]
    grouped = rows.reshape(count, size, groups, -1).transpose(2, 0, 1, 3).reshape(groups, count, -1)
    outputs: Floats = grouped @ weight
    return outputs


def on_grid(rows: Floats, grid: QType) -> Floats:
    """The rows rounded to the grid, over the range of least squared error."""
    low, high = mse(Histogram.of(rows), grid)
    if low == high:
        return rows.copy()
    scale, zero = affine(low, high, grid)
    return _rounded(rows, np.float32(scale), np.float32(zero), grid)


def _rounded(rows: Floats, step: np.float32, zero: np.float32, grid: QType) -> Floats:
    codes: Floats = np.rint(rows * np.float32(1 / step))
    np.clip(codes, grid.qmin - zero, grid.qmax - zero, out=codes)
    codes *= step
    return codes
