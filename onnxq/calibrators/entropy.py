"""The range of least Kullback-Leibler divergence between the values and their quantized form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxq.calibrators._error import Points
from onnxq.calibrators.minmax import minmax
from onnxq.calibrators.mse import mse

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.calibrators._error import Floats
    from onnxq.histogram import Histogram
    from onnxq.numerics import QType, Range

GUARD_DB = 6.0
"""SQNR below minmax's at which the result counts as collapsed: twice its noise amplitude. Divergence does not
see how far away the clipped values lie: heavy tails (Student t3) cost it some 3 dB, spikes that are the signal 15."""

_TIE = 1e-12
"""Nats within which divergences are equal."""

_BLOCK = 256
"""Candidates at a time: their tables stay in cache, at a quarter of the time of all at once."""


def entropy(hist: Histogram, qtype: QType) -> Range:
    """[-T, T], cut to [min, max] when asymmetric, with the T of `threshold`; T is applied to |x|.

    Where that costs more than GUARD_DB of the SQNR that minmax has, the range of `mse` is returned instead.
    """
    lo, hi = minmax(hist, qtype)
    if lo == hi:
        return lo, hi
    # Codes for the longer side: all 256 when the values lie on one side of 0, half of them when lo = -hi.
    levels = 128 if qtype.symmetric else max(128, round(256 * hist.amax / (hi - lo)))
    limit = threshold(hist, levels)
    low, high = max(lo, -limit), min(hi, limit)
    collapsed, full = Points.of(hist).errors([low, lo], [high, hi], qtype)
    return mse(hist, qtype) if collapsed > full * 10 ** (GUARD_DB / 10) else (low, high)


def threshold(hist: Histogram, levels: int) -> float:
    """The T that minimises KL(P || Q): a bin's upper edge, never above max|x|; ties keep the larger.

    Migacz, "8-bit inference with TensorRT" (2017), over |x|. For each number i of kept bins, from `levels` to
    all: P is the first i bins with the clipped tail added to the last; Q is the first i bins without it, their
    mass averaged over the non-empty bins of each of `levels` equal groups. Exact zeros are no part of it, and the
    first bin's count is replaced by its neighbour's, or a spike at 0 (ReLU) would pull T down to 0.4 max|x|.

    Bins are merged in pairs first, to 1025-2048 below max|x|: near the original's 2048, and as good on synthetic
    data as twice as many at a quarter of the time.
    """
    counts = hist.folded().reshape(-1, 2).sum(axis=1).astype(np.float64)
    counts[0] = counts[1]
    kept = np.arange(int(np.flatnonzero(counts)[-1]) + 1, levels - 1, -1)  # max|x| is in the upper half,
    if not kept.size:  # but where `Histogram.without` took larger values out: so few bins lose nothing to codes
        return hist.amax
    blocks = [kept[start : start + _BLOCK] for start in range(0, kept.size, _BLOCK)]
    divergence = np.concatenate([divergences(counts, block, levels) for block in blocks])
    best = kept[np.argmax(divergence <= divergence.min() + _TIE)]
    return min(float(best) * 2 * hist.bin_width, hist.amax)


def divergences(counts: Floats, kept: npt.NDArray[np.int64], levels: int) -> Floats:
    """KL(P || Q) in nats for each number of bins kept (>= levels); inf where P > 0 and Q = 0.

    Q is constant over the non-empty bins of a level, so running sums at the levels' bounds are enough: with N
    the whole mass, S the mass kept, t = N - S and q_l level l's mass over its number of non-empty bins,
    N KL = sum P log P - sum_l mass_l log q_l - t log q_last - N log N + N log S.
    """
    mass, occupied, own = (_running(part) for part in (counts, counts > 0, _xlogx(counts)))
    bounds = kept[:, None] * np.arange(levels + 1) // levels
    level_mass = np.diff(mass[bounds])
    log_density = np.log(np.maximum(level_mass, 1.0) / np.maximum(np.diff(occupied[bounds]), 1.0))
    last, tail = counts[kept - 1], mass[-1] - mass[kept]
    own_sum = own[kept - 1] + _xlogx(last + tail)
    cross = (level_mass * log_density).sum(axis=1) + tail * log_density[:, -1]
    divergence = (own_sum - cross) / mass[-1] - np.log(mass[-1]) + np.log(np.maximum(mass[kept], 1.0))
    return np.where((last == 0) & (tail > 0), np.inf, divergence)


def _running(values: npt.NDArray[np.float64] | npt.NDArray[np.bool_]) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _xlogx(x: Floats) -> Floats:
    return x * np.log(np.where(x > 0, x, 1.0))
