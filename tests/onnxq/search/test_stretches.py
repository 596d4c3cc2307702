"""Stretches of groups: every group is in one, the noisiest end alone, and no more is asked than there are passes."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.search.stretches import FIRST, parted, shares


class Noise:
    """What each of many groups makes, which adds up; and what was asked."""

    def __init__(self, of_each: list[float]) -> None:
        self.of_each = of_each
        self.asked: list[range] = []

    def __call__(self, stretch: range) -> float:
        self.asked.append(stretch)
        return math.fsum(self.of_each[i] for i in stretch)


def test_silence_is_not_looked_into() -> None:
    noise = Noise([0.0] * 500)
    assert parted(500, 116, noise) == tuple(noise.asked)
    assert len(noise.asked) == FIRST
    assert {len(stretch) for stretch in noise.asked} == {16, 17}


@given(st.lists(st.floats(0, 1e6), min_size=FIRST, max_size=400), st.integers(FIRST, 150))
def test_each_group_is_in_one_stretch_that_was_asked_for_once(of_each: list[float], passes: int) -> None:
    noise = Noise(of_each)
    found = parted(len(of_each), passes, noise)
    assert [i for stretch in found for i in stretch] == list(range(len(of_each)))
    assert len(set(noise.asked)) == len(noise.asked) <= passes
    assert set(found) <= set(noise.asked)
    left = [s for s in found if len(s) > 1 and math.fsum(of_each[i] for i in s) > 0]
    assert not left or passes - len(noise.asked) < 2


@pytest.mark.parametrize(("count", "loud"), [(119, 16), (300, 8), (1000, 6), (20000, 4)])
def test_the_loudest_end_alone(count: int, loud: int) -> None:
    """Halving finds one of n groups of a stretch in log2 n steps, two passes each."""
    rng = np.random.default_rng(count)
    places = rng.choice(count, loud, replace=False)
    of_each = rng.uniform(0, 1, count)
    of_each[places] = rng.uniform(1, 5, loud) * count
    found = parted(count, 116, Noise(of_each.tolist()))
    assert {stretch[0] for stretch in found if len(stretch) == 1} >= set(places.tolist())


@pytest.mark.parametrize(
    ("errors", "wanted"),
    [
        ([1.0, 3.0], [0.25, 0.75]),
        ([0.0, 2.0, 2.0], [0, 0.5, 0.5]),
        ([1.0, None, 3.0], [1 / 6, 2 / 6, 3 / 6]),
        ([None, None], [0.5, 0.5]),
        ([0.0, 0.0], [0.5, 0.5]),
        ([0.0, None], [0.5, 0.5]),
        ([1.0, math.inf, None, 2.0], [0, 0.5, 0.5, 0]),
    ],
)
def test_shares(errors: list[float | None], wanted: list[float]) -> None:
    assert shares(errors) == pytest.approx(wanted)


@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=60))
def test_shares_are_as_the_errors_and_add_up(errors: list[float]) -> None:
    total = sum(map(Fraction, errors))
    found = shares(errors)
    assert math.fsum(found) == pytest.approx(1, rel=1e-12)
    assert found == pytest.approx([float(Fraction(e) / total) for e in errors], rel=1e-12)
