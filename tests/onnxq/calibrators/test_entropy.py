"""Divergences against the definition as a loop, and the choice among them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.calibrators.entropy import GUARD_DB, divergences, entropy, threshold
from onnxq.calibrators.minmax import minmax
from onnxq.calibrators.mse import mse
from onnxq.histogram import Histogram
from onnxq.numerics import INT8, INT8_ASYMMETRIC, UINT8


def _loop(h: np.ndarray, kept: int, levels: int) -> float:
    p = h[:kept].copy()
    p[-1] += h[kept:].sum()
    q = np.zeros(kept)
    bounds = [level * kept // levels for level in range(levels + 1)]
    for start, stop in pairwise(bounds):
        filled = [k for k in range(start, stop) if h[k] > 0]
        for k in filled:
            q[k] = h[start:stop].sum() / len(filled)
    total = 0.0
    for a, b in zip(p / p.sum(), q / max(q.sum(), 1e-300), strict=True):
        if a > 0:
            total += float(a * np.log(a / b)) if b > 0 else np.inf
    return total


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(6, 40), elements=st.sampled_from([0, 0, 1, 2, 5, 100, 12345])),
    st.integers(2, 6),
)
def test_divergences_are_those_of_the_definition(h: np.ndarray, levels: int) -> None:
    if not h.any():
        h[-1] = 1
    kept = np.arange(h.size, levels - 1, -1)
    expected = [_loop(h, int(i), levels) for i in kept]
    np.testing.assert_allclose(divergences(h, kept, levels), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("levels", [128, 256])
@pytest.mark.parametrize("seed", range(3))
def test_the_threshold_is_the_loops(levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(3000) * rng.gamma(1, 1, 3000)).astype(np.float32)
    hist = Histogram.of(x)
    h = hist.folded()[0::2] + hist.folded()[1::2].astype(np.float64)
    h[0] = h[1]
    last = int(np.flatnonzero(h)[-1]) + 1
    candidates = [(round(_loop(h, i, levels), 12), -i) for i in range(levels, last + 1, 1)]
    expected = min(-min(candidates)[1] * 2 * hist.bin_width, hist.amax)
    assert threshold(hist, levels) == expected


def test_a_spike_at_zero_changes_nothing() -> None:
    x = np.abs(np.random.default_rng(0).standard_normal(20_000)).astype(np.float32)
    spiked = np.concatenate([x, np.zeros(1_000_000, np.float32)])
    assert entropy(Histogram.of(spiked), INT8) == entropy(Histogram.of(x), INT8)


def test_ties_keep_the_larger() -> None:
    # One filled bin keeps all of the information; so does every range that reaches it.
    hist = Histogram.of(np.array([1.0, 1.0, 1.9], np.float32))
    assert threshold(hist, 128) == np.float32(1.9)


def test_one_sided_values_get_all_codes() -> None:
    x = np.random.default_rng(1).exponential(size=200_000).astype(np.float32)
    hist = Histogram.of(x)
    assert entropy(hist, UINT8) == (0.0, threshold(hist, 256))
    assert entropy(hist, INT8) == (-threshold(hist, 128), threshold(hist, 128))
    assert entropy(Histogram.of(-x), INT8_ASYMMETRIC) == (-threshold(hist, 256), 0.0)


def test_an_asymmetric_range_is_cut_to_the_values() -> None:
    x = np.random.default_rng(2).standard_normal(200_000).astype(np.float32)
    x = np.where(x < 0, x / 2, x)
    hist = Histogram.of(x)
    lo, hi = entropy(hist, UINT8)
    assert lo == hist.min
    assert hi == threshold(hist, round(256 * hist.max / (hist.max - hist.min))) < hist.max


def test_the_guard_takes_over_when_far_spikes_are_the_signal() -> None:
    x = np.random.default_rng(3).standard_normal(100_000).astype(np.float32)
    assert entropy(Histogram.of(x), INT8)[1] == threshold(Histogram.of(x), 128)
    x[:40] = 60
    hist = Histogram.of(x)
    assert threshold(hist, 128) < 10
    assert entropy(hist, INT8) == mse(hist, INT8)
    assert entropy(hist, INT8)[1] > 0.9 * minmax(hist, INT8)[1]
    assert GUARD_DB < 10
