"""What every calibrator promises of its range, on ordinary and on odd tensors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.calibrators import CALIBRATORS, make_calibrator
from onnxq.calibrators.minmax import minmax
from onnxq.calibrators.mse import mse
from onnxq.calibrators.percentile import percentile
from onnxq.errors import RecipeError
from onnxq.histogram import Histogram
from onnxq.numerics import INT8, INT8_ASYMMETRIC, UINT8, QType, dequantize, params_from_range, quantize

QTYPES = (INT8, INT8_ASYMMETRIC, UINT8, QType("uint8"))
EVERY = list(itertools.product(CALIBRATORS, QTYPES))


def _back(x: np.ndarray, limits: tuple[float, float], qtype: QType) -> np.ndarray:
    params = params_from_range(*limits, qtype)
    return dequantize(quantize(x, params), params)


@settings(max_examples=80, deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(0, 50), elements=st.one_of(st.floats(width=32), st.floats(-4, 4, width=32))),
    st.sampled_from(EVERY),
)
def test_the_range_holds_0_and_stays_within_the_data(x: np.ndarray, case: tuple[str, QType]) -> None:
    name, qtype = case
    hist = Histogram.of(x)
    lo, hi = CALIBRATORS[name](hist, qtype)
    assert type(lo) is type(hi) is float
    assert lo <= 0 <= hi
    if hist.amax == 0:
        assert (lo, hi) == (0, 0)
        assert math.copysign(1, lo) == 1
    elif qtype.symmetric:
        assert 0 < hi == -lo <= hist.amax
    else:
        assert min(hist.min, 0) <= lo < hi <= max(hist.max, 0)
    params_from_range(lo, hi, qtype)


@pytest.mark.parametrize(("name", "qtype"), EVERY, ids=str)
@pytest.mark.parametrize("value", [3.7, -3.7, 1e-30, 1e30, -1.0])
def test_a_constant_comes_back(name: str, qtype: QType, value: float) -> None:
    x = np.full(1000, value, np.float32)
    for tensor in (x, x[:1], np.concatenate([x, np.zeros(5000, np.float32)])):
        limits = CALIBRATORS[name](Histogram.of(tensor), qtype)
        # Exactly, but for a percentile, which may lie anywhere in the value's bin.
        near = 1 / 2048 if name == "percentile" else 1e-6
        np.testing.assert_allclose(_back(tensor, limits, qtype), tensor, rtol=near)


@pytest.mark.parametrize(("name", "qtype"), EVERY, ids=str)
@pytest.mark.parametrize("pair", [(-1, 1), (0, 5), (-2, 0), (-3, 1), (100, 200)])
def test_two_values_come_back_within_half_a_step(name: str, qtype: QType, pair: tuple[float, float]) -> None:
    x = np.repeat(np.array(pair, np.float32), 500)
    limits = CALIBRATORS[name](Histogram.of(x), qtype)
    step = max(abs(pair[0]), abs(pair[1])) / 127
    assert np.abs(_back(x, limits, qtype) - x).max() <= 0.51 * step


@pytest.mark.parametrize(("name", "qtype"), EVERY, ids=str)
def test_what_is_not_finite_does_not_count(name: str, qtype: QType) -> None:
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    odd = np.array([np.nan, np.inf, -np.inf], np.float32)
    assert CALIBRATORS[name](Histogram.of(np.concatenate([x, odd])), qtype) == CALIBRATORS[name](Histogram.of(x), qtype)
    assert CALIBRATORS[name](Histogram.of(odd), qtype) == (0, 0)


@pytest.mark.parametrize(("name", "qtype"), EVERY, ids=str)
def test_the_unit_does_not_matter_when_it_changes_by_a_power_of_two(name: str, qtype: QType) -> None:
    x = np.random.default_rng(1).standard_t(4, 20_000).astype(np.float32)
    lo, hi = CALIBRATORS[name](Histogram.of(x), qtype)
    assert CALIBRATORS[name](Histogram.of(x * np.float32(2**-40)), qtype) == pytest.approx(
        (lo * 2**-40, hi * 2**-40), rel=1e-9
    )


@pytest.mark.parametrize("name", CALIBRATORS)
def test_a_mirrored_tensor_has_the_mirrored_range(name: str) -> None:
    x = np.abs(np.random.default_rng(2).standard_normal(20_000)).astype(np.float32)
    lo, hi = CALIBRATORS[name](Histogram.of(x), INT8_ASYMMETRIC)
    assert lo == 0
    # The code of 0 is at the other end, and ties round the other way.
    assert CALIBRATORS[name](Histogram.of(-x), INT8_ASYMMETRIC) == pytest.approx((-hi, 0), rel=0.02)


def test_minmax_is_exact() -> None:
    hist = Histogram.of(np.array([-1.5, 0.25, 7.0], np.float32))
    assert [minmax(hist, qtype) for qtype in (INT8, UINT8)] == [(-7.0, 7.0), (-1.5, 7.0)]
    assert minmax(Histogram.of(np.array([2.0, 3.0])), UINT8) == (0.0, 3.0)
    assert minmax(Histogram.of(np.array([-2.0, -3.0])), UINT8) == (-3.0, 0.0)


@pytest.mark.parametrize("percent", [50.0, 90.0, 99.9, 99.99])
def test_percentiles_are_those_of_the_sorted_values(percent: float) -> None:
    x = np.random.default_rng(3).standard_normal(100_000).astype(np.float32)
    x[::3] = np.abs(x[::3]) * 2
    hist = Histogram.of(x)
    tail = (100 - percent) / 2
    # Between order statistics that far out, a percentile is defined up to their distance.
    near = max(2 * hist.bin_width, 0.02 if percent > 99.95 else 0.0)
    assert percentile(hist, INT8, percent)[1] == pytest.approx(np.percentile(np.abs(x), percent), abs=near)
    expected = np.percentile(x, [tail, 100 - tail])
    assert percentile(hist, UINT8, percent) == pytest.approx(tuple(expected), abs=near)


def test_a_percentile_lies_inside_its_bin() -> None:
    # 4096 values, one in each bin of [0, 1): ranks are edges.
    hist = Histogram.of(((np.arange(4096) + 0.5) / 4096).astype(np.float32))
    assert percentile(hist, INT8, 75.0)[1] == 0.75
    assert percentile(hist, INT8, 100 * 0.25 / 4096)[1] == pytest.approx(0.25 / 4096)
    assert percentile(hist, UINT8, 50.0) == (0.0, 0.75)


def test_zeros_count_as_values_of_a_percentile() -> None:
    x = np.concatenate([np.zeros(3000), np.linspace(0.001, 1, 1000)]).astype(np.float32)
    assert percentile(Histogram.of(x), INT8, 90.0)[1] == pytest.approx(0.6, abs=2e-3)
    # nothing but zeros would be left
    assert percentile(Histogram.of(x), INT8, 70.0) == (-1.0, 1.0)
    assert percentile(Histogram.of(x), UINT8, 40.0) == (0.0, 1.0)


def test_asymmetric_mse_finds_the_better_of_both_ends() -> None:
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.uniform(-1, 4, 100_000), [-12.0, 9.0]]).astype(np.float32)
    hist = Histogram.of(x)
    lo, hi = mse(hist, UINT8)
    errors = {
        (a, b): np.square(_back(x, (a, b), UINT8) - x.astype(np.float64)).sum()
        for a in np.linspace(-12, -0.8, 57)
        for b in np.linspace(3.8, 9, 53)
    }
    assert np.square(_back(x, (lo, hi), UINT8) - x.astype(np.float64)).sum() <= min(errors.values()) * 1.01


def test_auto_prefers_the_full_range_when_nothing_is_gained() -> None:
    hist = Histogram.of(np.tile(np.arange(-127, 128, dtype=np.float32), 3))
    assert CALIBRATORS["auto"](hist, INT8) == (-127.0, 127.0)


def test_make_calibrator() -> None:
    hist = Histogram.of(np.linspace(-1, 1, 10_000, dtype=np.float32))
    assert make_calibrator("percentile", 90.0)(hist, INT8)[1] == pytest.approx(0.9, abs=1e-3)
    assert make_calibrator("percentile")(hist, INT8) == percentile(hist, INT8, 99.99)
    assert make_calibrator("minmax") is CALIBRATORS["minmax"]
    with pytest.raises(RecipeError, match="entorpy") as caught:
        make_calibrator("entorpy")
    assert "Did you mean 'entropy'?" in caught.value.hint
    with pytest.raises(RecipeError) as caught:
        make_calibrator("zzz")
    assert "minmax" in caught.value.hint
    assert "Did you mean" not in caught.value.hint


@pytest.mark.parametrize("percent", [0.0, -1.0, 100.5, math.nan])
def test_a_percentile_must_be_one(percent: float) -> None:
    with pytest.raises(RecipeError, match="percentile"):
        make_calibrator("percentile", percent)
    with pytest.raises(ValueError, match="percent"):
        percentile(Histogram.empty(), INT8, percent)
