"""The error expected from a histogram against the error that quantizing the values makes."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.calibrators._error import expected_error
from onnxq.histogram import Histogram
from onnxq.numerics import INT8, INT8_ASYMMETRIC, INT8_WEIGHT, UINT8, QType, dequantize, params_from_range, quantize

QTYPES = (INT8, INT8_WEIGHT, INT8_ASYMMETRIC, UINT8, QType("uint8"))


def _made(x: np.ndarray, lo: float, hi: float, qtype: QType) -> float:
    params = params_from_range(lo, hi, qtype)
    return float(np.square(dequantize(quantize(x, params), params) - x.astype(np.float64)).sum())


@pytest.mark.parametrize("qtype", QTYPES, ids=str)
@pytest.mark.parametrize("share", [1.0, 0.7, 0.3, 0.05])
@pytest.mark.parametrize("kind", ["two-sided", "positive", "negative", "skewed"])
def test_as_made_on_smooth_data(kind: str, share: float, qtype: QType) -> None:
    x = np.random.default_rng(5).standard_normal(100_000).astype(np.float32)
    x = {"two-sided": x, "positive": np.abs(x), "negative": -np.abs(x), "skewed": np.where(x < 0, x / 9, x)}[kind]
    x[::7] = 0
    lo, hi = min(float(x.min()), 0) * share, max(float(x.max()), 0) * share
    assert expected_error(Histogram.of(x), lo, hi, qtype) == pytest.approx(_made(x, lo, hi, qtype), rel=0.03)


@pytest.mark.parametrize("qtype", QTYPES, ids=str)
def test_the_extremes_stand_where_they_are(qtype: QType) -> None:
    x = np.array([-4.0, 0.0, 0.0, 3.0], np.float32)
    # 1e-3: quantize has the scale in float32, and rounding errors that small differ by it
    for lo, hi in ((-4, 3), (-1, 1), (-2, 3)):
        assert expected_error(Histogram.of(x), lo, hi, qtype) == pytest.approx(
            _made(x, lo, hi, qtype), rel=1e-3, abs=1e-12
        )


def test_nothing_but_zeros_and_nonfinite_values_costs_nothing() -> None:
    hist = Histogram.of(np.array([0, 0, np.nan, np.inf, -np.inf], np.float32))
    assert expected_error(hist, -1, 1, INT8) == 0
    assert expected_error(Histogram.empty(), 0, 0, UINT8) == 0


def test_clipping_costs_the_square_of_the_distance() -> None:
    hist = Histogram.of(np.array([10.0] * 3 + [-10.0], np.float32))
    assert expected_error(hist, -127, 4, INT8_ASYMMETRIC) > 4 * 1.0
    assert expected_error(hist, -1, 1, INT8_WEIGHT) == pytest.approx(4 * 81)
