"""What a sample shows of a smoothed tensor that had no part in its factors, against leaving out each by itself."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of, run
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq import Recipe, api
from onnxq.calibrators import make_calibrator
from onnxq.histogram import Histogram
from onnxq.improvement import smoothing
from onnxq.improvement.picking import ChannelReach
from onnxq.improvement.smoothing import Allowed, Reading, beyond, choose, cut_off
from onnxq.numerics import INT8, sqnr_db
from onnxq.statistics import Factor, Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from onnxq.graph import Graph

BALANCED = Recipe(high_precision="fp32")


def reached(samples: list[Array]) -> ChannelReach:
    return reduce(add, (ChannelReach.of(x, 1) for x in samples))


def left_out(samples: list[Array], *, centred: bool) -> Array:
    """Each sample in units of what every channel reaches in the others, where it is more than 1; for a scale s = m."""
    found = []
    for i, x in enumerate(samples):
        rest = np.concatenate(samples[:i] + samples[i + 1 :]).astype(np.float64)
        shift = (rest.min(axis=0) + rest.max(axis=0)) / 2 if centred else np.zeros(x.shape[1])
        moved = (x - shift) / np.abs(rest - shift).max(axis=0)
        farthest = moved[np.abs(moved).argmax(axis=0), np.arange(x.shape[1])]
        found.append(farthest[np.abs(farthest) > 1])
    return np.sort(np.concatenate(found))


@given(st.integers(0, 10_000), st.integers(3, 6), st.sampled_from(["positive", "centred", "negative"]))
@settings(max_examples=60, deadline=None)
def test_as_by_leaving_out_every_sample(seed: int, count: int, kind: str) -> None:
    """One side of each channel is known to all samples: one that held both ends would be left out for both at once."""
    rng = np.random.default_rng(seed)
    sign = -1.0 if kind == "negative" else 1.0
    samples = [sign * rng.gamma(3, size=(8, 5)).astype(np.float32) for _ in range(count)]
    for x in samples:
        x[0] = 0.0
    reach = reached(samples)
    shift = np.asarray((reach.low + reach.high) / 2 if kind == "centred" else np.zeros(5), np.float32)
    scale = np.maximum(reach.high - shift, shift - reach.low)
    found = beyond(reach, Factor(scale, shift))
    wanted = np.clip(left_out(samples, centred=kind == "centred"), -2, 2)
    assert np.sort(found) == pytest.approx(wanted, rel=1e-5)


@given(st.integers(0, 10_000), st.integers(3, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_is_cut_off_as_by_leaving_out_every_sample(seed: int, count: int, negative: bool) -> None:
    rng = np.random.default_rng(seed)
    sign = -1.0 if negative else 1.0
    samples = [(sign * rng.gamma(0.5, size=(8, 5)) ** 2).astype(np.float32) for _ in range(count)]
    for x in samples:
        x[0] = 0.0
    reach = reached(samples)
    scale = np.maximum(reach.high, -reach.low) / np.asarray([1, 1, 1, 0.3, 0.1], np.float32)
    size, lost = np.abs(np.stack(samples)).max(axis=1) / scale, 0.0  # (samples, channels)
    ends = np.asarray([1, 1, 1, 0.3, 0.1])
    others = np.stack([np.delete(size, i, axis=0).max(axis=0) for i in range(count)])
    far = np.where(size > others, size / others, 0.0)
    end = max(1.0, float((np.minimum(far, 2) * ends).max()))
    losses = np.square(np.maximum(np.minimum(far, 8) * ends - end, 0)).max(axis=0)
    lost = float(np.sort(losses)[:-1].sum()) / (8 * count)
    rounded = 5 * (end / 127) ** 2 / 12
    assert cut_off(reach, Factor(scale.astype(np.float32), np.zeros(5, np.float32))) == pytest.approx(
        lost / rounded, rel=1e-4
    )


def test_neither_order_nor_grouping_matters() -> None:
    rng = np.random.default_rng(1)
    samples = [rng.normal(size=(4, 6)).astype(np.float32) for _ in range(7)]
    parts = [reached(samples[:3]), reached(samples[3:4]), reached(samples[4:])]
    whole, other = reached(samples), parts[2] + (parts[0] + parts[1])
    highs = np.sort([x.max(axis=0) for x in samples], axis=0)
    lows = np.sort([x.min(axis=0) for x in samples], axis=0)
    for found in (whole, other):
        assert np.array_equal([found.low, found.next_low], lows[:2])
        assert np.array_equal([found.next_high, found.high], highs[-2:])
        assert found.rows == 28


def test_a_channel_that_one_sample_alone_holds_counts_twice_at_most() -> None:
    samples = [np.zeros((2, 1), np.float32), np.full((2, 1), 50, np.float32)]
    factor = Factor(np.full(1, 50, np.float32), np.zeros(1, np.float32))
    assert beyond(reached(samples), factor) == pytest.approx([2.0])
    assert cut_off(reached(samples), factor) == 0  # one channel of one sample is no rule
    both = [np.repeat(x, 2, axis=1) for x in samples]
    factors = Factor(np.full(2, 50, np.float32), np.zeros(2, np.float32))
    rounded = 2 * (2 / 127) ** 2 / 12
    assert cut_off(reached(both), factors) == pytest.approx((8 - 2) ** 2 / 4 / rounded)  # of four rows
    assert beyond(reached(samples[:1]), factor).size == 0  # nothing to leave out
    assert cut_off(reached(samples[:1]), factor) == 0


# -- whole models ----------------------------------------------------------------------------------------------


def outliers() -> Graph:
    """Channels of unlike size, which smoothing brings to one reach."""
    rng = np.random.default_rng(0)
    gain = np.exp(rng.normal(size=128) * 1.5)
    arrays = {"g": gain, "b": np.zeros(128), "w": rng.normal(size=(128, 64)) / gain[:, None]}
    text = "(float[N,8,128] x) => (float[N,8,64] y) { n = LayerNormalization(x, g, b) y = MatMul(n, w) }"
    return graph_of(text, 17, **{k: v.astype(np.float32) for k, v in arrays.items()})


def feeds(count: int, seed: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_t(6, size=(1, 8, 128)).astype(np.float32)} for _ in range(count)]


def quality(quantized: Graph) -> float:
    pairs = [(run(outliers(), f)[0], run(quantized, f)[0]) for f in feeds(64, seed=9)]
    return sqnr_db(*(np.stack(side) for side in zip(*pairs, strict=True)))


@pytest.fixture(scope="module")
def found() -> Statistics:
    return api.calibrate(outliers(), feeds(24, seed=1), BALANCED)


def test_ranges_of_smoothed_tensors_hold_what_comes(found: Statistics, tmp_path: Path) -> None:
    assert found.smoothing
    (name,) = found.unseen
    assert found.unseen[name].amax > found.tensors[name].amax
    found.save(tmp_path / "s.npz")
    assert Statistics.load(tmp_path / "s.npz") == found
    better, plan = api.quantize(outliers(), found, BALANCED)
    without, before = api.quantize(outliers(), replace(found, unseen={}), BALANCED)
    wide, narrow = (next(p for p in made.points.values() if p.observe == name) for made in (plan, before))
    assert wide.range is not None
    assert narrow.range is not None
    assert wide.range[1] > narrow.range[1]
    assert quality(better) > quality(without) + 0.5


@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "entropy"])
def test_other_calibrators_see_what_was_observed(found: Statistics, calibrator: str) -> None:
    recipe = replace(BALANCED, calibrator=calibrator)
    made, other = (api.quantize(outliers(), s, recipe)[1] for s in (found, replace(found, unseen={})))
    assert {n: p.range for n, p in made.points.items()} == {n: p.range for n, p in other.points.items()}


@pytest.mark.parametrize("calibrator", ["auto", "entropy", "mse", "percentile", "minmax"])
def test_a_range_of_what_is_left_when_the_largest_values_are_taken_out(calibrator: str) -> None:
    """Their bins are as wide as before: fewer than codes may be left, and no calibrator may fail of it."""
    rng = np.random.default_rng(2)
    small, large = rng.normal(size=4096), np.array([900.0, -900.0])
    both = Histogram.of(np.concatenate([small, large]))
    rest = both.without(Histogram.of(large))
    low, high = make_calibrator(calibrator)(rest, INT8)
    assert -900 < low < 0 < high < 900
    assert max(-low, high) >= 0.5 * float(np.abs(small).max())


@pytest.mark.parametrize("seed", [0, 1])
def test_of_factors_the_one_that_new_rows_lose_least_by(seed: int) -> None:
    """Every fourth channel goes farther in one sample than in all others: little bears it, far more than that none."""
    rng = np.random.default_rng(seed)
    x = np.abs(rng.normal(size=(400, 32)) * np.geomspace(1, 30, 32)).astype(np.float32)
    w = rng.normal(size=(32, 24)).astype(np.float32)
    low, high = x.min(axis=0), x.max(axis=0)
    allowed, reading = Allowed(shift=False, weights=True, margin=0.3), Reading(x[:, None], w[None], low, high)

    def reach(times: float) -> ChannelReach:
        others = np.where(np.arange(32) % 4 == 0, high / times, high)
        return ChannelReach(low, high, low, others, len(x))

    rash, wary = choose([reading], allowed)[0], choose([reading], allowed, [reach(2.5)])[0]
    assert cut_off(reach(2.5), rash) > 0.15
    assert cut_off(reach(2.5), wary) < 0.05
    assert choose([reading], allowed, [reach(3.0)]) == ()


def test_heavy_tails_of_few_rows_are_not_smoothed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probabilities: each channel is near 0 in most rows, and near 1 in a few."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(64, 64)) * 0.2, "v": rng.normal(size=(64, 64)) * 0.2}
    text = "(float[8,64] x) => (float[8,64] y) { a = MatMul(x, w) s = Softmax(a) y = MatMul(s, v) }"
    recipe = replace(BALANCED, target="ort-cuda")
    graph = graph_of(text, 17, **{k: v.astype(np.float32) for k, v in arrays.items()})

    def drawn(count: int, seed: int) -> list[dict[str, Array]]:
        inputs = np.random.default_rng(seed).normal(size=(count, 8, 64)).astype(np.float32)
        return [{"x": x} for x in inputs]

    def calibrated() -> tuple[bool, float]:
        statistics = api.calibrate(graph, drawn(24, 1), recipe)
        quantized, _ = api.quantize(graph, statistics, recipe)
        pairs = [(run(graph, f)[0], run(quantized, f)[0]) for f in drawn(400, 2)]
        return bool(statistics.smoothing), sqnr_db(*(np.stack(side) for side in zip(*pairs, strict=True)))

    smoothed, near = calibrated()
    assert not smoothed
    monkeypatch.setattr(smoothing, "cut_off", lambda *_: 0.0)
    smoothed, far = calibrated()
    assert smoothed
    assert near > far + 3
