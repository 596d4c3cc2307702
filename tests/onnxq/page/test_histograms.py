"""Histograms as the page draws them, against numpy over the values themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.calibrators import CALIBRATORS
from onnxq.histogram import Histogram
from onnxq.numerics import INT8, UINT8, dequantize, params_from_range, quantize, sqnr_db
from onnxq.page.histograms import COLUMNS, drawn

VALUES = (np.random.default_rng(0).normal(size=20_000) ** 3).astype(np.float32)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200))
def test_every_value_but_zeros_is_in_its_column(values: list[float]) -> None:
    array = np.array(values, np.float32)
    found = drawn(Histogram.of(array), None)
    if not array.any():
        assert found is None
        return
    assert found is not None
    assert len(found.counts) <= COLUMNS
    assert found.start <= min(array.min(), 0)
    edges = found.start + found.width * np.arange(len(found.counts) + 1)
    assert edges[-1] >= max(array.max(), 0)
    nonzero = array[array != 0].astype(np.float64)  # the columns of subnormal values are narrower than float32 can tell
    assert sum(found.counts) == nonzero.size
    assert found.zeros == pytest.approx(1 - nonzero.size / array.size)
    # A value on an edge lies in the column further from zero.
    place = (nonzero - found.start) / found.width
    column = np.where(nonzero < 0, np.ceil(place) - 1, np.floor(place))
    assert found.counts == tuple(np.bincount(column.astype(int), minlength=len(found.counts)))


def test_ranges_are_those_of_the_calibrators() -> None:
    histogram = Histogram.of(VALUES)
    found = drawn(histogram, INT8, (-2.0, 2.0))
    assert found is not None
    assert [t.name for t in found.thresholds] == ["in the model", "entropy", "minmax", "mse", "percentile", "auto"]
    for threshold in found.thresholds:
        low, high = (-2.0, 2.0) if threshold.name == "in the model" else CALIBRATORS[threshold.name](histogram, INT8)
        assert threshold.high == pytest.approx(max(-low, high))
        assert threshold.low == pytest.approx(-128 / 127 * max(-low, high))


@pytest.mark.parametrize("qtype", [INT8, UINT8])
def test_what_a_range_costs(qtype: object) -> None:
    histogram = Histogram.of(VALUES)
    assert isinstance(qtype, type(INT8))
    found = drawn(histogram, qtype, (-3.0, 3.0))
    assert found is not None
    for threshold in found.thresholds:
        params = params_from_range(threshold.low, threshold.high, qtype)
        if qtype.symmetric:
            params = params_from_range(-threshold.high, threshold.high, qtype)
        measured = sqnr_db(VALUES, dequantize(quantize(VALUES, params), params))
        assert threshold.sqnr_db == pytest.approx(measured, abs=0.2), threshold.name
        outside = ((threshold.low > VALUES) | (threshold.high < VALUES)).mean()
        assert threshold.clipped == pytest.approx(outside, abs=2e-3), threshold.name


def test_values_on_the_grid_cost_nothing() -> None:
    found = drawn(Histogram.of(np.array([127.0], np.float32)), INT8, (-127.0, 127.0))
    assert found is not None
    assert found.thresholds[0].sqnr_db == math.inf or found.thresholds[0].sqnr_db > 100
