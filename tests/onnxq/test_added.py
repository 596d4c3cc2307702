"""Ranges in front of additions that are cut off: chosen by the error behind these."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of
from hypothesis import given, settings
from hypothesis import strategies as st
from noises import noise_of

from onnxq import Recipe, Rule, api
from onnxq.added import Added
from onnxq.calibrators import make_calibrator
from onnxq.histogram import Histogram
from onnxq.improvement.weighing import summed
from onnxq.numerics import UINT8, dequantize, params_from_range, quantize
from onnxq.patterns.behind import sums_behind
from onnxq.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onnxq.improvement.judging import Noise

RNG = np.random.default_rng(3)
SKIP = np.maximum(RNG.normal(-0.5, 1.0, 4000), 0).astype(np.float32)  # a Relu made it: many zeros
BRANCH = np.concatenate([RNG.normal(-0.5, 1.0, 20_000), np.linspace(-9, 5, 500)]).astype(np.float32)
CUTS = [Added("k"), Added("k", 0.0, 3.0), Added("k", -0.5, 2.0), Added("k", -inf, 1.0)]


def squares(added: Added, x: Array, found: Array) -> float:
    """Expected squared error of the cut sum for a value of k drawn for each x, the mean over many."""
    k = SKIP[:, None].astype(np.float64)
    one, other = (np.clip(v + k, added.lowest, added.highest) for v in (x.astype(np.float64), found.astype(np.float64)))
    return float(np.square(one - other).mean(axis=0).sum())


@pytest.mark.parametrize("added", CUTS)
def test_small_errors_weigh_what_is_left_of_them_on_average(added: Added) -> None:
    weight = added.to(Histogram.of(SKIP))
    for x in np.linspace(-2.9, 4.1, 15):  # k is 0 often: there the share that is cut off jumps
        near = np.array([x + 0.02])
        expected = squares(added, np.array([x]), near)
        assert np.square(weight(near) - weight(np.array([x])))[0] == pytest.approx(expected, rel=0.05, abs=4e-6)


@pytest.mark.parametrize("added", CUTS)
@settings(max_examples=50)
@given(ends=st.tuples(st.floats(-12, 12), st.floats(-12, 12)))
def test_large_errors_never_weigh_less_than_they_are(added: Added, ends: tuple[float, float]) -> None:
    x, found = (np.array([end]) for end in ends)
    weight = added.to(Histogram.of(SKIP))
    knot = weight.x[1] - weight.x[0]  # in which the share that is cut off may jump
    assert abs(weight(x) - weight(found))[0] >= 0.99 * squares(added, x, found) ** 0.5 - knot


def test_beyond_its_knots_a_sum_is_cut_off_or_all_there() -> None:
    weight = Added("k").to(Histogram.of(SKIP))
    far = np.array([-50.0, -20.0, 30.0, 70.0])
    np.testing.assert_allclose(np.diff(weight(far))[[0, 2]], [0.0, 40.0])
    np.testing.assert_allclose(np.diff(Added("k", -inf, 1.0).to(Histogram.of(SKIP))(far))[[0, 2]], [30.0, 0.0])
    assert np.diff(Added("k", 0.0, 6.0).to(Histogram.of(SKIP))(far))[2] == 0.0


@pytest.mark.parametrize("added", CUTS)
def test_the_range_errs_less_behind_the_sum(added: Added) -> None:
    hist, weight = Histogram.of(BRANCH), added.to(Histogram.of(SKIP))

    def error(low: float, high: float) -> float:
        params = params_from_range(low, high, UINT8)
        return squares(added, BRANCH[::7], dequantize(quantize(BRANCH[::7], params), params))

    for name in ("mse", "auto"):
        before, after = (make_calibrator(name, behind=behind)(hist, UINT8) for behind in (None, weight))
        assert error(*after) < 0.9 * error(*before)


def pooled(values: Array) -> Array:
    """The largest of every four neighbours along the last axis."""
    largest: Array = values.reshape(*values.shape[:-1], -1, 4).max(axis=-1)
    return largest


@pytest.mark.parametrize("cuts", [(0.0, inf), (0.0, 3.0), (-0.5, 2.0), (-inf, 1.0), (-1.0, 0.0)])
def test_in_front_of_a_pool_errors_weigh_as_often_as_a_sum_is_the_largest(cuts: tuple[float, float]) -> None:
    """Oracle: the mean square by which pooled sums change that hold x once, over many windows drawn at random."""
    rng = np.random.default_rng(11)
    x, k = (rng.normal(m, 1.0, (200_000, 4)).astype(np.float32) for m in (0.0, -0.3))
    sums = np.clip(x + k, *cuts)
    largest = Histogram.of(pooled(sums))
    weight = Added("k", *cuts, ("s", "m")).to(Histogram.of(k), (Histogram.of(sums), largest))
    for value in np.linspace(-2, 2.5, 10, dtype=np.float32):
        near = x.copy()
        x[:, 0], near[:, 0] = value, value + 0.02
        exact, moved = (pooled(np.clip(v + k, *cuts)) for v in (x, near))
        expected = float(np.square(moved - exact).mean())
        found = np.square(np.diff(weight(np.array([value, value + 0.02]))))[0]
        assert found == pytest.approx(expected, rel=0.2, abs=1e-5)


def test_in_front_of_a_pool_less_is_cut_off_above_and_more_below() -> None:
    rng = np.random.default_rng(11)
    x, k = (rng.laplace(m, 1.0, (200_000, 4)).astype(np.float32) for m in (0.0, -0.3))
    sums = np.maximum(x + k, 0)
    pool = Histogram.of(sums), Histogram.of(pooled(sums))
    one, two = (Added("k").to(Histogram.of(k), both) for both in (None, pool))
    before, after = (make_calibrator("mse", behind=weight)(Histogram.of(x), UINT8) for weight in (one, two))
    assert after[0] > before[0]
    assert after[1] > 1.05 * before[1]


@pytest.mark.parametrize(
    ("sums", "largest"),
    [
        pytest.param(np.zeros(8), np.zeros(2), id="all is cut off"),
        pytest.param(np.full(8, 6.0), np.full(2, 6.0), id="all is cut off above"),
        pytest.param(np.array([0.0, 3.0, 3.0, 0.0]), np.full(1, 3.0), id="one value"),
    ],
)
def test_few_values_in_front_of_a_pool(sums: Array, largest: Array) -> None:
    added = Added("k", 0.0, 6.0, ("s", "m"))
    weight = added.to(Histogram.of(SKIP), (Histogram.of(sums), Histogram.of(largest)))
    assert np.isfinite(weight(np.linspace(-9, 9, 50))).all()
    assert (np.diff(weight(np.linspace(-9, 9, 50))) >= 0).all()


NET = "(float[1,4,8,8] x) => (float y) {{ a = Conv(x, w) k = Conv(x, v) {} }}"
W = {"w": RNG.normal(size=(4, 4, 1, 1)).astype(np.float32), "v": RNG.normal(size=(4, 4, 1, 1)).astype(np.float32)}


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param("s = Add(a, k) y = Tanh(s)", id="not cut off"),
        pytest.param("y = Add(a, k)", id="the sum is the output"),
        pytest.param("s = Add(a, k) y = Clip(s)", id="a Clip without limits"),
        pytest.param("s = Add(a, k) r = Relu(s) y = Mul(s, r)", id="read by others too"),
        pytest.param("s = Add(a, a) y = Relu(s)", id="twice the same"),
        pytest.param("s = Add(a, w) y = Relu(s)", id="a constant"),
        pytest.param("s = Sub(a, k) y = Relu(s)", id="a difference"),
        pytest.param("t = Tanh(a) u = Tanh(k) s = Add(a, k) r = Relu(s) z = Add(r, t) y = Mul(z, u)", id="others"),
    ],
)  # fmt: skip
def test_what_is_left_alone(rest: str) -> None:
    assert sums_behind(graph_of(NET.format(rest), **W)) == {}


@pytest.mark.parametrize(
    ("rest", "bounds"),
    [
        ("s = Add(a, k) y = Relu(s)", (0.0, inf)),
        ("s = Add(k, a) y = Clip(s, low, high)", (-1.0, 6.0)),
        ("s = Add(a, k) y = Max(s, low)", (-1.0, inf)),
        ("s = Add(a, k) y = Min(high, s)", (-inf, 6.0)),
    ],
)
def test_both_operands_of_a_sum_that_is_cut_off(rest: str, bounds: tuple[float, float]) -> None:
    numbers = {"low": np.array(-1, np.float32), "high": np.array(6, np.float32)}
    found = sums_behind(graph_of(NET.format(rest), **W, **numbers))
    assert found == {"a": Added("k", *bounds), "k": Added("a", *bounds)}


POOL = "MaxPool<kernel_shape=[2,2]>"


@pytest.mark.parametrize(
    ("rest", "pool"),
    [
        (f"s = Add(a, k) r = Relu(s) y = {POOL}(r)", ("r", "y")),
        (f"s = Add(a, k) r = Relu(s) m = {POOL}(r) y = Add(m, r)", None),
        (f"s = Add(a, k) r = Relu(s) y = Average{POOL[3:]}(r)", None),
    ],
)
def test_the_pool_that_alone_reads_what_is_left(rest: str, pool: tuple[str, str] | None) -> None:
    found = sums_behind(graph_of(NET.format(rest), **W))
    assert found == {"a": Added("k", pool=pool), "k": Added("a", pool=pool)}


ENDS = "(float[N,8,16,16] x) => (float[N,8,16,16] y)"
RULES = (Rule(quantize=True),)
BLOCK = "i = Conv(x, u) j = Relu(i) a = Conv(j, w, b) s = Add(a, j) r = Relu(s) y = Conv(r, v)"


@pytest.mark.parametrize("calibrator", ["auto", "mse", "minmax", "entropy"])
def test_a_residual_block_for_the_cpu(calibrator: str) -> None:
    arrays = {n: RNG.normal(size=(8, 8, 1, 1)).astype(np.float32) for n in "uwv"}
    arrays["b"] = np.full(8, -3, np.float32)  # so that the branch is negative more often than not
    data = [{"x": RNG.normal(size=(1, 8, 16, 16)).astype(np.float32)} for _ in range(4)]
    recipe = Recipe(target="ort-cpu", effort="fast", calibrator=calibrator, rules=RULES)
    graph = graph_of(f"{ENDS} {{ {BLOCK} }}", **arrays)
    statistics = api.calibrate(graph, data, recipe)
    (cut, whole) = (
        api.quantize(graph.copy(), replace(statistics, summed=names), recipe)[1].points["a"] for names in (("a",), ())
    )
    assert cut.behind == whole.behind == Added("j")
    assert cut.range is not None
    assert whole.range is not None
    weighs = calibrator in ("auto", "mse")
    assert cut.range[0] > 0.9 * whole.range[0] if weighs else cut.range == whole.range  # less of what is cut off


def test_what_a_pool_leaves_is_looked_at() -> None:
    arrays = {n: RNG.normal(size=(8, 8, 1, 1)).astype(np.float32) for n in "uwv"}
    arrays["b"] = np.full(8, -3, np.float32)
    data = [{"x": RNG.normal(size=(1, 8, 16, 16)).astype(np.float32)} for _ in range(4)]
    rest = f"m = {POOL}(r) y = Conv(m, v)"
    graph = graph_of(
        f"(float[N,8,16,16] x) => (float[N,8,p,q] y) {{ {BLOCK.replace('y = Conv(r, v)', rest)} }}", **arrays
    )
    recipe = Recipe(target="ort-cpu", effort="fast", rules=RULES)
    statistics = api.calibrate(graph, data, recipe)
    point = api.quantize(graph, replace(statistics, summed=("a",)), recipe)[1].points["a"]
    assert point.behind == Added("j", pool=("r", "m"))
    seen = statistics.tensors
    weight = Added("j").to(seen["j"], (seen["r"], seen["m"]))
    assert point.range == make_calibrator("auto", behind=weight)(seen["a"], UINT8)
    assert point.range != make_calibrator("auto", behind=Added("j").to(seen["j"]))(seen["a"], UINT8)
    assert "m" in api.calibrate(graph, data, replace(recipe, calibrator="minmax")).bounds


@pytest.mark.parametrize(("gained", "kept"), [(0.5, True), (0.0, True), (-0.5, False)])
def test_the_judging_samples_have_a_veto(gained: float, *, kept: bool) -> None:
    chance = np.random.default_rng(8).normal(0, 0.5, 16)

    def noise(names: Sequence[str]) -> Noise:
        assert tuple(names) in ((), ("a", "b"))
        return noise_of(10 ** ((-30 + (chance - chance.mean() - gained if names else np.zeros(16))) / 10))

    assert summed(["a", "b"], noise) == (("a", "b") if kept else ())
    assert summed([], lambda _: pytest.fail("nothing to judge")) == ()


@pytest.mark.parametrize("follows", [True, False])
def test_a_branch_that_follows_its_shortcut_keeps_its_range(follows: bool, tmp_path: Path) -> None:
    unit = np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1)
    arrays = {n: unit if follows else RNG.normal(size=(8, 8, 1, 1)).astype(np.float32) for n in "uwv"}
    arrays["b"] = np.full(8, 0 if follows else -3, np.float32)
    arrays["w"] = -0.5 * unit if follows else arrays["w"]  # -0.5 k beside k: nothing is cut off
    data = [{"x": RNG.normal(size=(4, 8, 16, 16)).astype(np.float32) ** 3} for _ in range(32)]
    graph, recipe = graph_of(f"{ENDS} {{ {BLOCK} }}", **arrays), Recipe(target="ort-cpu", rules=RULES)
    statistics = api.calibrate(graph.copy(), data, recipe)
    assert [name.removesuffix("/smoothed") for name in statistics.summed] == ([] if follows else ["a"])
    statistics.save(tmp_path / "s.npz")
    assert Statistics.load(tmp_path / "s.npz").summed == statistics.summed
    assert not api.calibrate(graph.copy(), data, replace(recipe, effort="fast")).summed
