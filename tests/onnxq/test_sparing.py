"""Layers that an effort leaves in float: which are found, that judges have their say, that the model keeps them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of, run
from hypothesis import given, settings
from hypothesis import strategies as st
from noises import noise_of

from onnxq import Recipe, RecipeError, Rule, StatisticsError, api, improving
from onnxq.errors import ModelError
from onnxq.improvement import judging
from onnxq.improvement.sparing import LEAST, TIMES, by_themselves, costly, spared
from onnxq.monitor import Monitor
from onnxq.placement.groups import Group
from onnxq.planning import SPARED, without_nodes
from onnxq.statistics import Statistics
from onnxq.tried import Ranges

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onnxq.graph import Graph
    from onnxq.improvement.judging import Noise
    from onnxq.improvement.sparing import Tried
    from onnxq.plan import Plan

RECIPE = Recipe(high_precision="fp32")


def layers(*macs: int) -> list[Group]:
    return [Group((f"g{i}",), n) for i, n in enumerate(macs)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=40).filter(lambda x: sum(x) > 1.0))
def test_what_makes_noise_is_found(noise: list[float]) -> None:
    """Where noise adds up, each layer's share is what the sums say, and none above the least share is missed."""
    groups = layers(*[1] * len(noise))
    by_group = dict(zip(groups, noise, strict=True))
    total = sum(noise)

    def left(chosen: Sequence[Group]) -> Noise:
        return noise_of([1e-9 + total - sum(by_group[g] for g in chosen)] * 3)

    found = costly(groups, left, trials=200)
    shares: dict[tuple[Group, ...], float] = {(g,): by_group[g] / total for g in groups}
    assert (
        {unit for unit, share in shares.items() if share > LEAST * 1.001}
        <= set(found)
        <= {unit for unit, share in shares.items() if share > LEAST * 0.999}
    )
    for unit, share in found.items():
        assert share == pytest.approx(shares[unit], abs=1e-6)


def test_layers_that_gain_only_together_are_one_unit() -> None:
    groups = layers(*[1] * 16)
    pair = (groups[2], groups[3])

    def noise(chosen: Sequence[Group]) -> Noise:
        return noise_of([1.0 - 0.6 * (set(pair) <= set(chosen)) - 0.3 * (groups[9] in chosen)] * 3)

    assert costly(groups, noise, trials=60) == pytest.approx({pair: 0.6, (groups[9],): 0.3})
    assert spared(groups, 16, 0.2, (noise, noise), (60, 4))[0] == (*pair, groups[9])
    assert spared(groups, 16, 0.1, (noise, noise), (60, 4))[0] == (groups[9],)  # no room for the pair


def test_no_more_models_are_run_than_allowed() -> None:
    ran: list[int] = []

    def noise(chosen: Sequence[Group]) -> Noise:
        ran.append(len(chosen))
        return noise_of([1.0 - 0.02 * len(chosen)] * 3)

    costly(layers(*[1] * 40), noise, trials=12)
    assert len(ran) == 12


def choose(
    groups: Sequence[Group], noise: Sequence[float], limit: float, judged: Sequence[float] | None = None
) -> list[str]:
    """Names of what stays in float, where noise adds up; `judged` where the judges see other noise."""

    def left(of: Sequence[float]) -> Tried:
        by_group = dict(zip(groups, of, strict=True))
        return lambda chosen: noise_of([1e-9 + sum(of) - sum(by_group[g] for g in chosen)] * 4)

    total = sum(g.macs for g in groups)
    judges = left(noise if judged is None else judged)
    kept, least = spared(groups, total, limit, (left(noise), judges), (100, 7))
    assert np.array_equal(least.first(4), judges(kept).first(4))
    return [g.name for g in kept]


def test_layers_that_err_by_their_share_are_left_alone() -> None:
    groups = layers(*[10] * 30)
    assert choose(groups, [1.0] * 30, limit=0.05) == []
    assert choose(groups, [1.0] * 29 + [TIMES * 0.9], limit=0.05) == []


def test_a_cheap_bad_layer_stays_in_float_and_a_dear_one_does_not() -> None:
    groups = layers(10, 400, *[10] * 59)  # 1 %, 40 %
    noise = [1.0, 60.0, 30.0, *[0.5] * 58]
    assert choose(groups, noise, limit=0.05) == ["g2"]
    assert choose(groups, noise, limit=0.005) == []


def test_the_limit_holds_and_the_best_for_their_work_come_first() -> None:
    groups = layers(*[10] * 100)
    noise = [0.1] * 100
    noise[3], noise[40], noise[70], noise[71] = 20.0, 40.0, 30.0, 10.0
    assert choose(groups, noise, limit=0.03) == ["g3", "g40", "g70"]
    assert choose(groups, noise, limit=0.02) == ["g40", "g70"]


def test_the_judges_have_the_last_word() -> None:
    groups = layers(*[10] * 100)
    noise = [0.1] * 100
    noise[3] = noise[40] = 20.0
    judged = [0.1] * 100
    judged[40] = 20.0
    assert choose(groups, noise, 0.05, judged=[1.0] * 100) == []
    assert set(choose(groups, noise, 0.05, judged=judged)) >= {"g40"}


def test_what_a_layer_costs_beside_its_work_counts() -> None:
    groups = layers(*[10] * 100)
    noise = [0.1] * 100
    noise[3], noise[40] = 20.0, 40.0
    by_group = dict(zip(groups, noise, strict=True))

    def left(chosen: Sequence[Group]) -> Noise:
        return noise_of([1e-9 + sum(noise) - sum(by_group[g] for g in chosen)] * 4)

    def kept(dear: str, price: float) -> list[str]:
        def cost(chosen: Sequence[Group]) -> float:
            return sum(price if g.name == dear else g.macs for g in chosen)

        return [g.name for g in spared(groups, 1000, 0.05, (left, left), (100, 7), cost=cost)[0]]

    assert kept("g40", 10) == ["g3", "g40"]
    assert kept("g40", 45) == ["g3"]  # 3 goes first, being cheaper for its noise, and no room is left
    assert kept("g40", 51) == ["g3"]
    assert kept("g3", 45) == ["g40"]


# -- what errs by itself -----------------------------------------------------------------------------------------


def alone(groups: Sequence[Group], error: Sequence[float]) -> Tried:
    """Groups in int8 -> noise, where all errors point along one line and add up with their signs."""
    by_group = dict(zip(groups, error, strict=True))
    return lambda chosen: noise_of([1e-12 + sum(by_group[g] for g in chosen) ** 2] * 4)


def errs(groups: Sequence[Group], error: Sequence[float], limit: float, trials: int = 200) -> list[str]:
    units = by_themselves(groups, sum(g.macs for g in groups), limit, alone(groups, error), trials)
    return [g.name for unit in units for g in unit]


def test_layers_that_err_by_their_share_stay_in_int8() -> None:
    groups = layers(*[10] * 30)
    assert errs(groups, [1.0] * 30, limit=0.2) == []
    assert by_themselves([], 0, 0.2, alone([], []), 10) == ()
    assert by_themselves(groups, 300, 0.0, alone(groups, [1.0] * 30), 10) == ()


def test_errors_that_cancel_out_are_found_though_each_layer_in_float_makes_the_model_worse() -> None:
    groups = layers(*[10] * 40)
    error = [0.1] * 40
    error[4], error[21] = 10.0, -10.0
    left = alone(groups, error)

    def noise(chosen: Sequence[Group]) -> Noise:
        return left([g for g in groups if g not in chosen])

    assert errs(groups, error, limit=0.05) == ["g4", "g21"]
    assert spared(groups, 400, 0.05, (noise, noise), (100, 7))[0] == ()  # in float alone each makes the noise grow


def test_what_is_left_of_the_noise_is_what_others_are_held_against() -> None:
    groups = layers(*[10] * 100)
    error = [0.01] * 100
    error[4], error[50] = 100.0, 1.0
    assert errs(groups, error, limit=0.05) == ["g4", "g50"]  # of all noise the second makes a ten thousandth
    assert errs(groups, error, limit=0.01) == ["g4"]


def test_the_noise_of_layers_too_large_for_float_counts() -> None:
    groups = layers(1000, *[10] * 50)
    assert errs(groups, [0.0, 1.0, *[0.001] * 49], limit=0.05) == ["g1"]
    assert errs(groups, [10.0, 1.0, *[0.001] * 49], limit=0.05) == []


def test_layers_without_any_error_are_left_alone() -> None:
    groups = layers(*[10] * 40)

    def noise(chosen: Sequence[Group]) -> Noise:
        return noise_of([1e-3 if groups[3] in chosen else 0.0] * 4)

    assert [g.name for unit in by_themselves(groups, 400, 0.5, noise, 200) for g in unit] == ["g3"]
    assert by_themselves(groups, 400, 0.5, lambda _: noise_of([0.0] * 4), 200) == ()


def test_a_stretch_stays_whole_where_no_trials_are_left() -> None:
    groups = layers(*[10] * 64)
    ran: list[int] = []
    noise = alone(groups, [9.0, *[0.001] * 63])

    def counted(chosen: Sequence[Group]) -> Noise:
        ran.append(len(chosen))
        return noise(chosen)

    assert [len(unit) for unit in by_themselves(groups, 640, 0.2, counted, 8)] == [8]
    assert ran == [8] * 8
    ran.clear()
    assert [len(unit) for unit in by_themselves(groups, 640, 0.2, counted, 13)] == [2]
    assert ran == [8] * 8 + [4, 4, 2, 2]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(0.0, 10.0)), min_size=1, max_size=40),
    st.floats(0.0, 0.5),
    st.integers(9, 90),
)
def test_the_limit_holds_and_no_more_is_run_than_allowed(
    found: list[tuple[int, float]], limit: float, trials: int
) -> None:
    groups = layers(*[macs for macs, _ in found])
    total = sum(g.macs for g in groups)
    ran: list[int] = []

    def counted(chosen: Sequence[Group]) -> Noise:
        ran.append(len(chosen))
        return alone(groups, [error for _, error in found])(chosen)

    units = by_themselves(groups, total, limit, counted, trials)
    chosen = [g for unit in units for g in unit]
    assert len(set(chosen)) == len(chosen)
    assert sum(g.macs for g in chosen) <= limit * total
    assert len(ran) <= trials


def test_only_what_is_named_reads_codes() -> None:
    """The pairs of one layer: the error is its own, and everything else computes what it does in float."""
    graph, data = heavy_tailed(), samples(16, 0)
    ready = api.prepared(graph, RECIPE)
    ranges = Ranges.of(ready, api.observe(ready, data), shifts=False)
    first, second, *_ = [str(n.name) for n in ready.graph.nodes if n.op_type == "MatMul"]
    one = ranges.paired((), {}, [second])
    read = {str(n.name): [graph_op(one, v) for v in n.inputs] for n in one.nodes if n.op_type == "MatMul"}
    assert read[second] == ["DequantizeLinear"] * 2
    assert read[first] == [None, None]
    none = ranges.paired((), {}, [])
    assert [n.op_type for n in none.nodes] == [n.op_type for n in ready.graph.nodes]
    every = ranges.paired((), {}, [str(n.name) for n in ready.graph.nodes])
    assert [n.op_type for n in every.nodes] == [n.op_type for n in ranges.paired(()).nodes]


def graph_op(graph: Graph, value: object) -> str | None:
    """The operator that makes a tensor."""
    made = {str(v.name): n.op_type for n in graph.nodes for v in n.outputs}
    return made.get(str(getattr(value, "name", "")))


# -- whole models ----------------------------------------------------------------------------------------------


def heavy_tailed() -> Graph:
    """A cheap first layer whose input has rare large values that Tanh then forgets, and dear, harmless ones."""
    rng = np.random.default_rng(3)
    w = {"a": (32, 32), "b": (32, 256), "c": (256, 256), "d": (256, 32)}
    arrays = {n: (rng.normal(size=s) * 1.5 / np.sqrt(s[0])).astype(np.float32) for n, s in w.items()}
    text = """(float[N,32] x) => (float[N,32] y) {
              x1 = MatMul(x, a) x2 = Tanh(x1) x3 = MatMul(x2, b) x4 = Tanh(x3) x5 = MatMul(x4, c) x6 = Tanh(x5)
              y = MatMul(x6, d) }"""
    return graph_of(text, 17, **arrays)


def samples(count: int, seed: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_t(1.3, size=(4, 32)).astype(np.float32)} for _ in range(count)]


def floats(plan: Plan) -> list[str]:
    return [d.node for d in plan.decisions if d.reason == SPARED]


def sqnr(graph: Graph, quantized: Graph, feeds: list[dict[str, Array]]) -> float:
    pairs = [(run(graph, feed)[0], run(quantized, feed)[0]) for feed in feeds]
    noise = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return float(10 * np.log10(sum(float((a.astype(np.float64) ** 2).sum()) for a, _ in pairs) / noise))


def test_what_costs_most_for_its_work_stays_in_float() -> None:
    graph, data, unseen = heavy_tailed(), samples(64, 0), samples(32, 1)
    all_int8, plan = api.quantize(graph, data, replace(RECIPE, float_share=0.0))
    assert floats(plan) == []
    assert plan.int8_share() == 1.0
    better, plan = api.quantize(graph, data, RECIPE)
    first = next(str(n.name) for n in graph.nodes)
    assert floats(plan) == [first]
    assert 0.95 <= plan.int8_share() < 1.0
    assert sqnr(graph, better, unseen) > sqnr(graph, all_int8, unseen) + 3


def test_what_rules_leave_in_float_counts_unless_it_is_more_than_the_limit_alone() -> None:
    """Of 82,944 multiply-accumulates the first layer has 1.2 %, the second, which a rule leaves in float, 9.9 %."""
    graph, data = heavy_tailed(), samples(64, 0)
    first, _, second, *_ = [str(n.name) for n in graph.nodes]
    ruled = replace(RECIPE, rules=(Rule(nodes=second, quantize=False),))
    assert floats(api.quantize(graph, data, replace(ruled, float_share=0.105))[1]) == []
    for share in (0.115, 0.05):
        assert floats(api.quantize(graph, data, replace(ruled, float_share=share))[1]) == [first]


def test_how_far_a_model_is_is_told_with_its_layers_in_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "FAR_DB", 100.0)  # of every model it is said

    def told(recipe: Recipe) -> float:
        said: list[str] = []
        api.quantize(heavy_tailed(), samples(64, 0), recipe, Monitor(warn=said.append))
        (found,) = re.findall(r"far from the float model: (\S+) dB", " ".join(said))
        return float(found)

    assert told(RECIPE) > told(replace(RECIPE, float_share=0.0)) + 3


def test_a_model_whose_layers_are_all_in_bodies_is_improved() -> None:
    """How often those run no shape tells: none of them is left in float for its cost on a CPU."""
    rng = np.random.default_rng(5)
    w = {n: (rng.normal(size=(64, 64)) / 8).astype(np.float32) for n in "abcd"}
    text = """(float[16,64] x) => (float[16,64] y) { m = ReduceMean<keepdims=0>(x) k = Greater(m, zero) y = If (k)
        <then_branch = t () => (float[16,64] p) { p1 = MatMul(x, a) p2 = Relu(p1) p = MatMul(p2, b) },
         else_branch = e () => (float[16,64] q) { q1 = MatMul(x, c) q2 = Relu(q1) q = MatMul(q2, d) }> }"""
    graph = graph_of(text, 17, zero=np.float32(0), **w)
    data = [{"x": rng.normal(size=(16, 64)).astype(np.float32)} for _ in range(48)]
    quantized, plan = api.quantize(graph, data, Recipe(target="ort-cpu"))
    assert sum(d.quantized for d in plan.decisions if d.op_type == "MatMul") == 4
    assert floats(plan) == []
    assert plan.judged is not None
    assert sqnr(graph, quantized, data[:8]) > 25


def test_only_efforts_above_fast_and_targets_that_say_so() -> None:
    data = samples(64, 0)
    fast = replace(RECIPE, effort="fast")
    for recipe in (fast, Recipe(target="ort-cpu", effort="fast"), Recipe(target="ort-cpu", float_share=0.0)):
        assert floats(api.quantize(heavy_tailed(), data, recipe)[1]) == []


def cheap_first(sizes: str) -> Graph:
    """A convolution of one channel and rare large values, then wide ones on an image that is pooled to a 64th."""
    rng = np.random.default_rng(4)
    shapes = {"a": (4, 1, 1, 1), "b": (16, 4, 3, 3), "c": (64, 16, 3, 3), "d": (8, 64, 3, 3)}
    arrays = {n: (rng.normal(size=s) * 1.5 / np.sqrt(np.prod(s[1:]))).astype(np.float32) for n, s in shapes.items()}
    text = f"""(float[N,1,{sizes}] x) => (float[N,8,P,Q] y) {{
              x1 = Conv(x, a) x2 = Tanh(x1) x3 = Conv<pads=[1,1,1,1]>(x2, b)
              x4 = Relu(x3) x5 = Conv<pads=[1,1,1,1]>(x4, c) x6 = Relu(x5) y = Conv<pads=[1,1,1,1]>(x6, d) }}"""
    return graph_of(text, 17, **arrays)


@pytest.mark.parametrize("sizes", ["8,8", "H,W"])
def test_on_the_cpu_too_by_the_shapes_of_a_sample(sizes: str) -> None:
    graph, rng = cheap_first(sizes), np.random.default_rng(5)
    feeds = [{"x": rng.standard_t(1.3, size=(1, 1, 8, 8)).astype(np.float32)} for _ in range(96)]
    recipe = Recipe(target="ort-cpu")
    first = next(str(n.name) for n in graph.nodes)
    better, plan = api.quantize(graph, feeds[:64], replace(recipe, float_share=0.2))
    assert first not in {d.node for d in plan.decisions if d.quantized}
    all_int8, _ = api.quantize(graph, feeds[:64], replace(recipe, float_share=0.0))
    assert sqnr(graph, better, feeds[64:]) >= sqnr(graph, all_int8, feeds[64:])


def test_the_order_of_samples_does_not_matter_and_statistics_keep_it(tmp_path: Path) -> None:
    data = samples(64, 0)
    found = api.calibrate(heavy_tailed(), data, RECIPE)
    assert found.spared
    found.save(tmp_path / "a.npz")
    api.calibrate(heavy_tailed(), data[::-1], RECIPE).save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    again = Statistics.load(tmp_path / "a.npz")
    assert again.spared == found.spared
    direct, from_file = (api.quantize(heavy_tailed(), d, RECIPE)[0] for d in (data, again))
    assert direct.to_proto().SerializeToString() == from_file.to_proto().SerializeToString()
    assert floats(api.quantize(heavy_tailed(), again, replace(RECIPE, float_share=0.0))[1]) == []
    with pytest.raises(StatisticsError, match="improved in different ways"):
        found + replace(found, spared=())


def test_a_budget_says_itself_what_goes_to_float() -> None:
    _, plan = api.quantize(heavy_tailed(), samples(96, 0), replace(RECIPE, min_sqnr=10.0))
    assert floats(plan) == []


def test_names_that_the_model_lacks_are_passed_over() -> None:
    ready = api.prepared(heavy_tailed(), RECIPE)
    assert without_nodes(ready, ["no such node"], SPARED).plan == ready.plan


def test_a_share_is_a_share() -> None:
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(RecipeError, match="float_share"):
            Recipe(float_share=wrong)


def test_where_nothing_can_be_judged_calibration_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Statistics:
        raise ModelError("ONNX Runtime does not give this tensor")

    monkeypatch.setattr(improving, "_refined", broken)
    warned: list[str] = []
    _, plan = api.quantize(heavy_tailed(), samples(64, 0), RECIPE, Monitor(warn=warned.append))
    assert plan.resolved
    assert any("does not give this tensor" in text for text in warned)
