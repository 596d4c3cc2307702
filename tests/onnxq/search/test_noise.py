"""Noise and its bounds against float64 sums, published quantiles, and drawn samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.search.noise import Exact, Noise, decibels, measured, squares, t99

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("freedom", "published"),  # NIST/SEMATECH e-Handbook, 1.3.6.7.2
    [
        (1, 31.821),
        (3, 4.541),
        (10, 2.764),
        (11, 2.718),
        (15, 2.602),
        (20, 2.528),
        (30, 2.457),
        (60, 2.390),
        (100, 2.364),
    ],
)
def test_quantiles(freedom: int, published: float) -> None:
    assert t99(freedom) == pytest.approx(published, abs=0.003)


def test_sums_are_those_of_all_samples() -> None:
    wanted = [RNG.normal(size=(3, 5)) for _ in range(4)]
    found = [a + 0.01 * RNG.normal(size=a.shape) for a in wanted]
    exact = Exact(tuple({} for _ in wanted), ("y",), tuple({"y": a} for a in wanted))
    noise = measured(exact, [{"y": b} for b in found])
    a, b = np.stack(wanted), np.stack(found)
    assert noise.db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), abs=1e-9)


def test_the_worst_output_counts() -> None:
    noise = Noise(np.full((5, 2), 100.0), np.array([[1.0, 0.01]] * 5))
    assert noise.db == pytest.approx(20)
    assert noise.bound_db == pytest.approx(20 - 10 * np.log10((5 + 30) / 6))  # nothing varies


def test_the_bound_is_the_formula_in_float64() -> None:
    s, n = RNG.uniform(1, 2, 7), RNG.uniform(0.001, 0.003, 7)
    n[3], s[3] = 0.1, 1.0  # it spreads
    r = n.sum() / s.sum()
    error = np.sqrt(((n - r * s) ** 2).sum() / (7 * 6)) / s.mean()
    assert Noise(s[:, None], n[:, None]).bound_db == pytest.approx(-10 * np.log10(r * np.exp(3.143 * error / r)))


@pytest.mark.parametrize("count", [4, 16])
def test_the_bound_holds_on_as_many_new_samples(count: int) -> None:
    """At 95 %, on skewed noise too."""
    held = 0
    for _ in range(1000):
        noise = RNG.lognormal(0, 0.5, (2, count, 1))
        judged, fresh = (Noise(np.full((count, 1), 100.0), part) for part in noise)
        held += fresh.db >= judged.bound_db
    assert held >= 950 - 3 * math.sqrt(1000 * 0.95 * 0.05)


@pytest.mark.parametrize("count", [4, 8, 16])
def test_the_bound_holds_where_a_sample_in_twenty_lies_outside_the_ranges(count: int) -> None:
    """At 99 %, of what all samples together have, though so few mostly hold none of these."""
    true, held = decibels(math.exp(0.02) * (0.95 + 0.05 * 25.0) / 100.0), 0
    for _ in range(1000):
        noise = RNG.lognormal(0, 0.2, (count, 1)) * np.where(RNG.random((count, 1)) < 0.05, 25.0, 1.0)
        held += true >= Noise(np.full((count, 1), 100.0), noise).bound_db
    assert held >= 990 - 3 * math.sqrt(1000 * 0.99 * 0.01)


def test_what_is_not_finite() -> None:
    a, inf = np.array([1.0, np.inf, 2.0]), np.array([1.0, np.inf, 2.5])
    assert squares(a, inf) == (5.0, 0.25)
    assert squares(a, np.array([1.0, 3.0, 2.0]))[1] == math.inf
    assert squares(a, np.zeros(2))[1] == math.inf
    assert (decibels(0.0), decibels(math.inf)) == (math.inf, -math.inf)


def test_one_sample_proves_nothing() -> None:
    assert Noise(np.ones((1, 1)), np.full((1, 1), 1e-9)).bound_db == -math.inf
    assert Noise(np.ones((1, 1)), np.zeros((1, 1))).bound_db == math.inf
