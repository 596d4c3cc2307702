"""When a change is said to bring a model's outputs nearer to what they are in float, and on how many samples."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noises import noise_of

from onnxq.improvement.judging import LOOKS, Noise, gains

if TYPE_CHECKING:
    import numpy.typing as npt


def changed(*decibels: float) -> tuple[Noise, Noise]:
    """Noise before, of 20 dB, and after such gains."""
    return noise_of(np.full(len(decibels), 1e-2)), noise_of(1e-2 * 10 ** (-np.array(decibels) / 10))


def test_gains_beyond_chance() -> None:
    assert gains(*changed(*[3.0] * 8))
    assert not gains(*changed(*[0.0] * 8))
    assert not gains(*changed(*[-3.0] * 8))
    assert not gains(*changed(*[3.0, -2.9] * 4))  # 0.05 dB on average, by chance
    assert not gains(*changed(*[-np.inf] * 8))
    for half in (3, 7):
        assert not gains(*changed(*[0.2] * half, -4.0, *[0.2] * half))  # one sample pays for all the others


def test_what_is_clear_needs_few_samples() -> None:
    def seen(decibels: npt.ArrayLike, least: float = 0.1) -> tuple[bool, int]:
        gained, ends = np.asarray(decibels), [0]

        def of(first: int, end: int) -> npt.NDArray[np.float64]:
            assert first == ends[-1]  # none is run twice
            ends.append(end)
            return np.array(10 ** (-gained[first:end] / 10))

        return gains(noise_of(np.ones(gained.size)), Noise(gained.size, of), least), ends[-1]

    near = np.tile([0.9, 1.1], 8)
    assert seen(near) == (True, 8)
    assert seen(-near) == (False, 4)
    assert seen(near, least=1.2) == (False, 8)  # 0.2 dB off, standard error 0.06 dB of four samples, 0.04 of eight
    assert seen([*[1.0] * 8, *[-9.0] * 8]) == (True, 8)
    assert seen([2.0, -1.0, 2.0, -1.0, *[-9.0] * 12]) == (False, 16)
    assert seen([1.0, 1.0, 1.0]) == (True, 3)


def test_what_runs_the_model_is_let_go_of_when_all_samples_are_run() -> None:
    def of(first: int, end: int) -> npt.NDArray[np.float64]:
        return np.ones(end - first)

    held, noise = weakref.ref(of), Noise(8, of)
    del of
    noise.first(4)
    assert held() is not None
    np.testing.assert_array_equal(noise.first(8), np.ones(8))
    assert held() is None
    np.testing.assert_array_equal(noise.first(4), np.ones(4))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.floats(-2, 2), st.floats(0.01, 2), st.sampled_from([3, 5, 16, 48]))
def test_what_few_samples_say_the_others_seldom_deny(seed: int, mean: float, spread: float, count: int) -> None:
    """Said early, it is what all samples say by their mean, up to a standard error of those seen."""
    gained = np.random.default_rng(seed).normal(mean, spread, count)
    asked: list[int] = []

    def of(first: int, end: int) -> npt.NDArray[np.float64]:
        asked.append(end)
        return np.array(10 ** (-gained[first:end] / 10))

    kept = gains(noise_of(np.ones(count)), Noise(count, of))
    if asked[-1] == count:
        fell = bool((10 ** (-gained / 10)).sum() < count)
        error = gained.std(ddof=1) / np.sqrt(count)
        assert kept == (fell and gained.mean() > max(0.1, error))
    else:
        part = gained[: asked[-1]]
        assert asked[-1] in [samples for samples, _ in LOOKS]
        assert abs(part.mean() - 0.1) > 2.9 * part.std(ddof=1) / np.sqrt(part.size)
        assert kept == (part.mean() > 0.1)


@pytest.mark.parametrize(("samples", "t"), LOOKS)
def test_the_mean_is_seldom_so_many_standard_errors_off(samples: int, t: float) -> None:
    """99 % of 40,000 draws of a normal distribution have their mean within t standard errors of the true one."""
    x = np.random.default_rng(0).normal(size=(40_000, samples))
    within = np.abs(x.mean(axis=1)) < t * x.std(axis=1, ddof=1) / np.sqrt(samples)
    assert within.mean() == pytest.approx(0.99, abs=0.0015)
