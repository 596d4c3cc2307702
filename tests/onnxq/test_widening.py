"""Ranges that get wider than the one of least squared error: which, by how much, and what must stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of
from hypothesis import given, settings
from hypothesis import strategies as st
from noises import noise_of

from onnxq import Recipe, api
from onnxq.choose import WIDENED, resolve, widened
from onnxq.histogram import Histogram
from onnxq.improvement.widening import FACTORS, widening
from onnxq.recipe import Rule
from onnxq.statistics import Statistics
from onnxq.targets import get_target

if TYPE_CHECKING:
    from onnxq.plan import Plan

FAST = Recipe(effort="fast", high_precision="fp32")
DIGITS = Path(__file__).parents[2] / "models" / "digits"

values = st.lists(st.floats(-1e3, 1e3, width=32), min_size=0, max_size=50)


@settings(max_examples=100, deadline=None)
@given(values, values)
def test_taking_out_undoes_adding(ours: list[float], part: list[float]) -> None:
    """Counts are those of what is left, on the bins of the whole; bounds hold it, within a bin."""
    a, b = (Histogram.of(np.array(x, np.float32)) for x in (ours, part))
    left = (a + b).without(b)
    whole = a + Histogram.of(np.array([(a + b).amax], np.float32))  # the same bins
    if (a + b).amax == 0.0:
        whole = a
    extra = 0 if (a + b).amax == 0.0 else 1
    assert left.count == a.count
    assert left.zeros == a.zeros
    assert int(np.abs(whole.positive - left.positive).sum()) == extra
    np.testing.assert_array_equal(left.negative, whole.negative)
    if a.count:
        assert min(a.min, 0.0) - left.bin_width <= left.min <= a.min
        assert a.max <= left.max <= max(a.max, 0.0) + left.bin_width


@pytest.mark.parametrize("best", [1.0, 1.25, 1.5])
def test_the_factor_that_the_judges_like_is_found(best: float) -> None:
    assert widening(lambda by: noise_of(np.full(4, 1.0 + abs(by - best)))) == best


def test_what_gains_little_or_by_chance_is_left_alone() -> None:
    assert widening(lambda by: noise_of(np.full(4, 1.0 - 0.01 * by))) == 1.0
    noise = np.array([1.0, 1.0, 1.0, 10.0])  # one sample in four gains 10 dB, the others lose 2
    assert widening(lambda by: noise_of(noise if by == 1.0 else [1.6, 1.6, 1.6, 1.0])) == 1.0
    gained = np.array([0.9, -0.2, 0.9, -0.2, 0.9, -0.2, 0.9, -0.2])  # dB: 0.35 on average, standard error 0.21
    assert widening(lambda by: noise_of(np.ones(8) if by == 1.0 else 10 ** (-gained / 10))) == 1.0
    assert widening(lambda by: noise_of(np.ones(8) if by == 1.0 else 10 ** (-(gained + 0.2) / 10))) == 1.5


# -- plans -----------------------------------------------------------------------------------------------------


def resolved(recipe: Recipe = FAST) -> tuple[Plan, Statistics]:
    ready = api.prepared(DIGITS / "digits.onnx", recipe)
    seen = api.observe(ready, [{"image": a} for a in np.load(DIGITS / "calib.npz")["image"][:16, None]])
    return resolve(ready.plan, seen, recipe, get_target("tensorrt")), seen


def test_nothing_asked_nothing_changed() -> None:
    plan, _ = resolved()
    assert widened(plan, 1.0) == plan


def test_ranges_grow_by_the_factor_but_not_beyond_what_a_tensor_can_hold() -> None:
    plan, _ = resolved()
    wide = widened(plan, 1.5)
    grew = 0
    for name, point in plan.points.items():
        assert point.range is not None
        if point.chosen not in WIDENED:  # the model's logits: nothing is cut off them
            assert wide.points[name] == point
            continue
        low, high = wide.points[name].range or (0.0, 0.0)
        assert max(point.bounds[0], 1.5 * point.range[0]) == pytest.approx(low)
        assert min(point.bounds[1], 1.5 * point.range[1]) == pytest.approx(high)
        assert wide.points[name].params is not None
        grew += wide.points[name].params != point.params
    assert grew > len(plan.points) // 2


def test_a_group_keeps_one_scale() -> None:
    plan, _ = resolved()
    groups = {p.group: [q.tensor for q in plan.points.values() if q.group == p.group] for p in plan.points.values()}
    shared = next(names for names in groups.values() if len(names) > 1)
    wide = widened(plan, 1.5)
    assert len({str(wide.points[n].params) for n in shared}) == 1


@pytest.mark.parametrize("calibrator", ["minmax", "entropy", "percentile"])
def test_calibrators_that_say_what_they_want_are_obeyed(calibrator: str) -> None:
    plan, _ = resolved(replace(FAST, calibrator=calibrator))
    assert widened(plan, 1.5) == plan
    ruled, _ = resolved(replace(FAST, rules=(Rule(nodes="*", calibrator=calibrator),)))
    assert widened(ruled, 1.5) == ruled


# -- whole models ----------------------------------------------------------------------------------------------


def cut_off_adds_up() -> tuple[list[dict[str, Array]], dict[str, Array]]:
    """Samples whose channels hold, all in a few rows, the values that the answer is made of."""
    rng = np.random.default_rng(5)
    feeds = []
    for _ in range(96):
        x = rng.normal(size=(256, 32)).astype(np.float32)
        rows = rng.integers(0, 256, 2)
        x[rows] = rng.uniform(9, 11, (2, 32))
        feeds.append({"x": x})
    w = rng.normal(size=(32, 32)).astype(np.float32) * 0.02
    w[:8] = np.abs(rng.normal(size=(8, 32))) * 0.5
    return feeds, {"w": w}


def test_what_is_cut_off_and_adds_up_is_kept(tmp_path: Path) -> None:
    """The answer is the largest of all rows, as a pooled feature is: the few large values alone decide it."""
    feeds, arrays = cut_off_adds_up()
    text = "(float[256,32] x) => (float[1,32] y) { a = MatMul(x, w) y = ReduceMax<axes=[0], keepdims=1>(a) }"
    recipe = Recipe(high_precision="fp32", float_share=0.0)
    found = api.calibrate(graph_of(text, 17, **arrays), feeds, recipe)
    assert found.widening in FACTORS
    found.save(tmp_path / "s.npz")
    assert Statistics.load(tmp_path / "s.npz").widening == found.widening
    again = api.calibrate(graph_of(text, 17, **arrays), feeds[::-1], recipe)
    assert again.widening == found.widening
    _, plan = api.quantize(graph_of(text, 17, **arrays), found, recipe)
    _, narrow = api.quantize(graph_of(text, 17, **arrays), replace(found, widening=1.0), recipe)
    ((wide,), (before,)) = ([p.range for p in made.points.values()] for made in (plan, narrow))
    assert wide is not None
    assert before is not None
    assert wide[1] == pytest.approx(found.widening * before[1])
