"""Histogram: bins against exact fractions, and the same value for every way of adding up."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import onnxq.histogram
from onnxq.counting import BINS
from onnxq.histogram import Histogram

if TYPE_CHECKING:
    from random import Random

any_float = st.one_of(
    st.floats(width=32),
    st.floats(-8, 8, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, math.inf, -math.inf, math.nan, 1.0, -1.0]),
)
arrays = hnp.arrays(np.float32, st.integers(0, 60), elements=any_float)


def _exact(array: np.ndarray) -> dict[str, object]:
    """The definition, one value at a time in rational numbers."""
    values = [float(x) for x in array.ravel()]
    finite = [Fraction(x) for x in values if math.isfinite(x)]
    amax = max((abs(x) for x in finite), default=Fraction(0))
    exponent = 0
    if amax:
        while amax >= Fraction(2) ** exponent:
            exponent += 1
        while amax < Fraction(2) ** (exponent - 1):
            exponent -= 1
    sides = {1: [0] * BINS, -1: [0] * BINS}
    for x in finite:
        if x:
            sides[1 if x > 0 else -1][math.floor(abs(x) * BINS / Fraction(2) ** exponent)] += 1
    return {
        "exponent": exponent if amax else None,
        "positive": sides[1],
        "negative": sides[-1],
        "zeros": sum(x == 0 for x in finite),
        "nan": sum(math.isnan(x) for x in values),
        "pos_inf": values.count(math.inf),
        "neg_inf": values.count(-math.inf),
        "min": float(min(finite, default=math.inf)),
        "max": float(max(finite, default=-math.inf)),
    }


def _seen(hist: Histogram) -> dict[str, object]:
    return {
        "exponent": hist.exponent if hist.amax else None,
        "positive": hist.positive.tolist(),
        "negative": hist.negative.tolist(),
        **{name: getattr(hist, name) for name in ("zeros", "nan", "pos_inf", "neg_inf", "min", "max")},
    }


@settings(max_examples=150, deadline=None)
@given(arrays)
def test_counts_are_those_of_the_definition(array: np.ndarray) -> None:
    assert _seen(Histogram.of(array)) == _exact(array)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float64, st.integers(0, 40), elements=st.floats(-1e307, 1e307)))
def test_float64_is_counted_in_float64(array: np.ndarray) -> None:
    assert _seen(Histogram.of(array)) == _exact(array)


@pytest.mark.parametrize("exponent", [-148, -130, -116, -101, -100, -99, -1, 0, 12, 127, 128])
def test_exact_edges_at_every_magnitude(exponent: int) -> None:
    edges = np.ldexp(np.array([1, 2, 3, 4094, 4095], np.float64), exponent - 12).astype(np.float32)
    neighbours = np.concatenate(
        [edges, np.nextafter(edges, np.float32(0)), -edges, -np.nextafter(edges, np.float32(0))]
    )
    assert _seen(Histogram.of(neighbours)) == _exact(neighbours)


def test_a_large_array_agrees_with_a_histogram_on_exact_edges() -> None:
    x = np.random.default_rng(0).standard_t(3, 400_000).astype(np.float32)
    hist = Histogram.of(x)
    counts, _ = np.histogram(x, np.concatenate([-hist.edges[:0:-1], hist.edges]))
    counts[BINS - 1] -= np.count_nonzero(x == 0)  # no side holds zeros
    # np.histogram closes bins at their lower end, which mirrors the negative side only off the edges.
    assert not np.isin(x, -hist.edges).any()
    np.testing.assert_array_equal(counts[BINS:], hist.positive)
    np.testing.assert_array_equal(counts[BINS - 1 :: -1], hist.negative)
    assert (hist.count, hist.amax) == (x.size, float(np.abs(x).max()))


@settings(max_examples=100, deadline=None)
@given(st.lists(arrays, max_size=6), st.randoms())
def test_order_chunks_and_tree_do_not_matter(parts: list[np.ndarray], random: Random) -> None:
    whole = Histogram.of(np.concatenate([np.zeros(0, np.float32), *parts]))
    hists = [Histogram.of(part) for part in parts]
    assert reduce(add, hists, Histogram.empty()) == whole
    while len(hists) > 1:  # a random tree
        random.shuffle(hists)
        hists = [hists[0] + hists[1], *hists[2:]]
    assert (hists[0] if hists else Histogram.empty()) == whole
    shuffled = np.concatenate([np.zeros(0, np.float32), *parts[::-1]])[::-1]
    assert Histogram.of(shuffled) == whole


@settings(max_examples=60, deadline=None)
@given(arrays, arrays, arrays)
def test_sums_commute_and_associate(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    x, y, z = Histogram.of(a), Histogram.of(b), Histogram.of(c)
    assert x + y == y + x
    assert (x + y) + z == x + (y + z)
    assert x + Histogram.empty() == x
    assert hash(x + y) == hash(y + x)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_the_block_size_does_not_matter(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(3).standard_t(2, 3000).astype(np.float32)
    x[::50] = np.array([0, np.nan, np.inf, -np.inf, -0.0, 1e-40], np.float32)[np.arange(60) % 6]
    whole = Histogram.of(x)
    monkeypatch.setattr(onnxq.histogram, "_BLOCK", block)
    assert Histogram.of(x) == whole
    assert _seen(whole) == _exact(x)


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16, "float32", "float64", ">f4"])
def test_every_float_type_counts_its_own_values(dtype: str) -> None:
    x = (np.random.default_rng(1).standard_normal(5000) * 3).astype(np.dtype(dtype))
    x[:4] = [np.inf, -np.inf, np.nan, 0]
    assert Histogram.of(x) == Histogram.of(x.astype(np.float64))
    assert Histogram.of(x).nonfinite == 3


def test_every_layout_counts_the_same() -> None:
    x = np.random.default_rng(2).standard_normal((30, 40, 50)).astype(np.float32)
    whole = Histogram.of(x)
    assert Histogram.of(np.asfortranarray(x)) == Histogram.of(x.transpose(2, 0, 1)[::-1]) == whole
    assert Histogram.of(x[::2]) + Histogram.of(x[1::2]) == whole
    assert Histogram.of(np.broadcast_to(np.float32(2), (10, 3))).count == 30
    assert Histogram.of(np.array(1.5, np.float32)).count == 1
    for shape in ((0,), (3, 0, 2)):
        assert Histogram.of(np.zeros(shape, np.float32)) == Histogram.empty()


def test_the_input_is_left_alone() -> None:
    x = np.array([1.0, -2.0, np.nan], np.float32)
    x.flags.writeable = False
    assert Histogram.of(x).count == 2
    with pytest.raises(ValueError, match="read-only"):
        Histogram.of(x).positive[0] = 1


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.bool_, np.complex64, object])
def test_other_types_are_refused(dtype: type) -> None:
    with pytest.raises(TypeError, match="histogram of"):
        Histogram.of(np.zeros(3, dtype))


def test_histograms_differ_when_anything_differs() -> None:
    base = Histogram.of(np.array([1.0, -1.0, 0.0, 3.0], np.float32))
    for extra in (0.0, math.nan, math.inf, -math.inf, 2.0, -2.0, 5.0, -5.0):
        assert base + Histogram.of(np.array([extra], np.float32)) != base
    assert base != 3
    with pytest.raises(TypeError):
        base + 3


def test_only_nonfinite_values() -> None:
    hist = Histogram.of(np.array([np.nan, np.inf, np.inf, -np.inf], np.float32))
    assert (hist.nan, hist.pos_inf, hist.neg_inf, hist.count, hist.amax) == (1, 2, 1, 0, 0.0)
    assert (hist.min, hist.max) == (math.inf, -math.inf)


def test_bins_have_exact_edges_and_centers() -> None:
    hist = Histogram.of(np.array([-5.0, 1.0], np.float32))
    assert (hist.exponent, hist.bin_width) == (3, 8 / 4096)
    assert (hist.edges[0], hist.edges[1], hist.edges[-1], len(hist.edges)) == (0, 8 / 4096, 8, BINS + 1)
    np.testing.assert_array_equal(hist.centers(), (hist.edges[1:] + hist.edges[:-1]) / 2)
    assert np.flatnonzero(hist.folded()).tolist() == [512, 2560]


@settings(max_examples=60, deadline=None)
@given(arrays)
def test_saved_and_read_back(array: np.ndarray) -> None:
    hist = Histogram.of(array)
    saved = hist.to_arrays()
    assert Histogram.from_arrays(saved) == hist
    assert ("negative" in saved) == bool(hist.negative.any())
    assert all(part.dtype.kind in "if" for part in saved.values())


def test_the_sign_of_a_zero_leaves_no_trace() -> None:
    plus, minus = (Histogram.of(np.array([zero, 1.0], np.float32)).to_arrays() for zero in (0.0, -0.0))
    assert {name: part.tobytes() for name, part in plus.items()} == {
        name: part.tobytes() for name, part in minus.items()
    }


@pytest.mark.parametrize("name", ["counts", "bounds", "positive"])
def test_damaged_arrays_are_refused(name: str) -> None:
    saved = Histogram.of(np.array([1.0], np.float32)).to_arrays()
    with pytest.raises(ValueError, match="not a histogram"):
        Histogram.from_arrays({**saved, name: saved[name][:-1]})
    with pytest.raises(ValueError, match="not a histogram"):
        Histogram.from_arrays({})
