"""Grids per channel of what convolutions write for operators in float: where there can be none first, then how wide."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noises import noise_of
from optimized import SATURATES, operators
from placing import Array, net

from onnxq import Recipe, api, improving
from onnxq.channels import ChannelRange
from onnxq.errors import StatisticsError
from onnxq.handout import scales
from onnxq.improvement.gridding import LEAST_ROWS, Grids, Seen, Wanted, Width, channel_grids, gaining
from onnxq.inventory import take_stock
from onnxq.monitor import SILENT
from onnxq.numerics import UINT8, dequantize, params_from_range, quantize
from onnxq.recipe import Rule
from onnxq.runtime import Session
from onnxq.statistics import Statistics, merge

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onnxq.graph import Graph
    from onnxq.plan import Plan
    from onnxq.pointwise import Pointwise

CPU = Recipe(target="ort-cpu")
PADS = "<pads=[1,1,1,1]>"
SWISH = "a = Add(c, three) k = Clip(a, zero, six) p = Mul(c, k) m = Div(p, six)"
W = (16, 16, 3, 3)
CHOSEN = "k = Greater(c, zero) m = Where(k, c, zero)"
PAIR = "q = QuantizeLinear(t, s, z) v = DequantizeLinear(q, s, z)"
OWN = f"t = Tanh(x) {PAIR} p = Mul(c, v) pq = QuantizeLinear(p, s, z) m = DequantizeLinear(pq, s, z)"


def model(between: str = SWISH, **more: Array) -> Graph:
    """A convolution to c, what makes m of it, and another between two HardSwish, a channel at a time, in float.

    Channels of c differ 100 times in size, and the weights of the last convolution by that.
    """
    numbers = {"zero": 0.0, "three": 3.0, "six": 6.0}
    held: dict[str, Array | tuple[int, ...]] = {n: np.array(v, np.float32) for n, v in numbers.items() if n in between}
    rng = np.random.default_rng(7)
    sizes = np.geomspace(0.05, 5, 16).reshape(-1, 1, 1)
    w, u = rng.normal(size=W) / 12 * sizes[..., None], rng.normal(size=W) / 12 / sizes
    held |= {"w": w.astype(np.float32), "b": np.zeros(16, np.float32), "u": u.astype(np.float32)}
    held |= {"each": np.full((16, 1, 3, 3), 0.2, np.float32), **more}
    alone = f"d = Conv<group=16, pads=[1,1,1,1]>(m, each) h = HardSwish(d) y = Conv{PADS}(h, u)"
    return net("float[1,16,12,12] x", f"c = Conv{PADS}(x, w, b) {between} {alone}", "y", 17, **held)


def feeds(count: int = 40) -> list[dict[str, Array]]:
    rng = np.random.default_rng(5)
    return [{"x": x.astype(np.float32)} for x in rng.normal(size=(count, 1, 16, 12, 12))]


def axis(plan: Plan, tensor: str = "c") -> int | None:
    return plan.points[tensor].axis


# -- where -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "between",
    {
        "read by a convolution": "e = Conv<pads=[1,1,1,1]>(c, w) g = HardSwish(c) m = Add(g, e)",
        "added in integers": "e = Conv<pads=[1,1,1,1]>(x, w) m = Add(c, e)",
        "added to a float": "t = Tanh(x) s = Add(c, t) m = HardSwish(s)",
        "a gate in integers": "s = Sigmoid(c) m = Mul(c, s)",
        "cut off, and read beside": "r = Relu(c) g = HardSwish(c) m = Add(g, r)",
        "integers behind an activation": "g = HardSwish(c) m = Conv<pads=[1,1,1,1]>(g, w)",
        "integers behind one and a sum": "g = HardSwish(c) t = Tanh(x) a = Add(g, t) m = Conv<pads=[1,1,1,1]>(a, w)",
        "moved": "t = Transpose<perm=[0,1,3,2]>(c) m = HardSwish(t)",
        "chosen": CHOSEN,
        "the largest": "t = ReduceMax<axes=[1]>(c) g = HardSwish(x) m = Mul(g, t)",
        "pooled": "t = MaxPool<kernel_shape=[1,1]>(c) m = HardSwish(t)",
    }.items(),
    ids=lambda item: item[0],
)
def test_where_one_scale_is_wanted_there_is_no_axis(between: tuple[str, str]) -> None:
    plan = api.make_plan(model(between[1]), CPU)
    assert {p.tensor for p in plan.points.values() if p.axis is not None} <= {"y"}


def test_other_makers_targets_and_a_rule_leave_one_scale() -> None:
    assert axis(api.make_plan(model(), CPU)) == 1
    whole = Recipe(target="ort-cpu", rules=(Rule(ops=("Conv",), per_channel=False),))
    assert axis(api.make_plan(model(), whole)) is None
    for target in ("tensorrt", "ort-cuda"):
        assert all(p.axis is None for p in api.make_plan(model(), Recipe(target=target)).points.values())
    product = net("float[8,64] x", "g = Gemm(x, w) h = HardSwish(g) y = Gemm(h, u)", "y", 17, w=(64, 64), u=(64, 64))
    assert all(p.axis is None for p in api.make_plan(product, CPU).points.values())


def test_the_provider_loads_what_it_fuses_though_the_plan_does_not() -> None:
    graph = model(OWN, s=np.array(0.05, np.float32), z=np.array(128, np.uint8))
    recipe = replace(CPU, effort="fast")
    found = api.calibrate(graph, feeds(4), recipe)
    wide = ChannelRange(np.full(16, -2, np.float32), np.geomspace(1, 9, 16).astype(np.float32))
    made, plan = api.quantize(graph, replace(found, channels={"c": wide}), recipe)
    assert axis(plan) is None
    assert {"QLinearConv", "QLinearMul"} <= set(operators(made))


@pytest.mark.parametrize("between", [SWISH, "m = HardSwish(c)", "r = Relu(c) t = Tanh(r) m = Mul(r, t)"])
def test_what_float_operators_read_has_an_axis(between: str) -> None:
    plan = api.make_plan(model(between), CPU)
    assert {p.tensor for p in plan.points.values() if p.axis == 1} == {"r" if "Relu" in between else "c", "y"}
    codes = api.make_plan(model(between), replace(CPU, io_types="int8"))
    assert axis(codes, "y") is None  # what is told of an output's codes is one scale


# -- how wide --------------------------------------------------------------------------------------------------


def seen_of(samples: Sequence[Array]) -> Seen:
    """Of samples (rows, C), every value."""
    low, high = (np.stack([f(x, axis=0) for x in samples]) for f in (np.min, np.max))
    return Seen(low, high, samples, [np.ones((len(x), 1)) for x in samples], sum(map(len, samples)))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0.5, 2.0))
def test_widths_are_powers_of_the_channels_own(seed: int, exponent: float, margin: float) -> None:
    rng = np.random.default_rng(seed)
    samples = [rng.normal(size=(5, 6)) * np.geomspace(0.02, 3, 6) + rng.normal(size=6) for _ in range(4)]
    found = Width(exponent, margin).range(seen_of(samples), [0, 2, 3], (-np.inf, np.inf))
    x = np.concatenate([samples[i] for i in (0, 2, 3)])
    low, high = np.minimum(x.min(axis=0), 0), np.maximum(x.max(axis=0), 0)
    whole = high.max() - low.min()
    wide = whole * np.maximum((high - low) / whole, 1 / 256) ** exponent
    np.testing.assert_allclose((found.high.astype(float) - found.low) / margin, wide, rtol=1e-5)
    assert (found.low <= low * margin + 1e-6).all()
    assert (found.high >= high * margin - 1e-6).all()
    inside = Width(exponent, margin, (-0.5, 0.25)).range(seen_of(samples), range(4), (0.0, np.inf))
    assert (inside.low == 0).all()
    assert (inside.high <= 0.25).all()


def test_a_channel_that_is_always_0_gets_a_step_of_the_whole() -> None:
    quiet = Width(1.0).range(seen_of([np.array([[0.0, -1.0], [0.0, 3.0]])]), [0], (-np.inf, np.inf))
    assert (quiet.low[1], quiet.high[1]) == (-1.0, 3.0)
    assert quiet.high[0] - quiet.low[0] == pytest.approx(4 / 256)


class Fed:
    """A session all of whose tensors are fed."""

    inputs = ("t",)
    outputs = ()

    def run(self, given: dict[str, Array], outputs: Sequence[str]) -> list[Array]:
        del given, outputs
        return []


def found_of(samples: Sequence[Array], behind: Pointwise | None = None) -> Grids:
    """The grids of a tensor t (1, C, rows) with these values in samples of which every second one judges."""

    finite = np.concatenate([x[np.isfinite(x)] for x in samples])
    low, high = finite.min(), finite.max()
    alone = params_from_range(float(low), float(high), UINT8)
    wanted = Wanted("t", 1, alone, (float(low), float(high)), behind, (-np.inf, np.inf))
    given = [{"t": x.T[None].astype(np.float32)} for x in samples]
    return channel_grids([wanted], lambda _: Fed(), given, range(1, len(samples), 2))  # type: ignore[arg-type, return-value]  # all that is asked of a session


def test_channels_that_are_alike_or_seen_too_little_keep_one_grid() -> None:
    rng = np.random.default_rng(1)
    alike = [rng.uniform(-1, 1, (400, 8)) for _ in range(16)]
    assert not found_of(alike).widths
    sizes = np.geomspace(0.01, 1, 8)
    few = [x[: LEAST_ROWS // 16 - 1] * sizes for x in alike]
    assert not found_of(few).widths
    apart = [x * sizes for x in alike]
    assert found_of(apart).widths
    for number in (np.nan, np.inf):  # in a sample that judges
        grids = found_of([x if i != 3 else np.where(x == x[0, 0], number, x) for i, x in enumerate(apart)])
        assert not grids.widths
        assert grids.by_all().ranges() == {}


def test_channels_whose_size_is_that_of_a_sample_do_not_keep_their_own() -> None:
    """Each sample has other loud channels: what the others did there tells nothing of the next."""
    rng = np.random.default_rng(2)
    samples = [rng.uniform(-1, 1, (200, 32)) * np.where(rng.permutation(32) < 1, 1.0, 0.01) for _ in range(16)]
    assert not found_of(samples).widths


def test_the_error_is_less_in_samples_that_had_no_part() -> None:
    rng = np.random.default_rng(3)
    sizes = np.geomspace(0.01, 1, 16)

    def draw(count: int) -> list[Array]:
        return [rng.normal(size=(300, 16)) * sizes for _ in range(count)]

    samples = draw(32)
    grids = found_of(samples)
    ends = grids.by_all().ranges()["t"]
    new = np.concatenate(draw(20)).astype(np.float32)
    low, high = min(x.min() for x in samples), max(x.max() for x in samples)
    one, each = params_from_range(float(low), float(high), UINT8), ends.params(UINT8, 1)
    before, after = (float(np.square(dequantize(quantize(new, p), p) - new).mean()) for p in (one, each))
    assert after < before / 4
    without = grids.ranges(without=[0, 1])["t"]
    assert (without.high <= grids.ranges()["t"].high).all()


def test_judging_samples_may_contradict() -> None:
    grids = found_of([np.random.default_rng(i).normal(size=(300, 4)) * np.geomspace(0.01, 1, 4) for i in range(16)])
    assert grids.widths
    better, _ = gaining(grids, lambda names: noise_of(np.full(8, 1.0 - 0.5 * len(names))), 7)
    worse, least = gaining(grids, lambda names: noise_of(np.full(8, 1.0 + len(names))), 7)
    assert (better, worse) == (("t",), ())
    assert least.first(1)[0] == 1.0
    assert grids.only(()).ranges() == {}


# -- a model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_a_model_gains_and_runs_in_integers(form: str, tmp_path: Path) -> None:
    recipe = Recipe(target="ort-cpu", format=form, float_share=0.0)
    found = api.calibrate(model(), feeds(), recipe)
    assert "c" in found.channels
    made, plan = api.quantize(model(), found, recipe)
    plain, _ = api.quantize(model(), replace(found, channels={}), recipe)
    new = [{"x": x} for x in np.random.default_rng(9).normal(size=(16, 1, 16, 12, 12)).astype(np.float32)]
    better, before = (api.compare(model(), g, new, recipe).outputs[0].sqnr_db for g in (made, plain))
    assert better > before + 1.0
    assert operators(made).count("QLinearConv") == operators(plain).count("QLinearConv") == 2
    exact, fast = (Session(made.to_proto().SerializeToString(), as_deployed=d).run(new[0])[0] for d in (False, True))
    assert SATURATES or float(np.abs(exact - fast).max()) < 0.05 * float(np.abs(exact).max())

    found.save(tmp_path / "s.npz")
    again = Statistics.load(tmp_path / "s.npz")
    assert again == replace(found, judged=None)
    written = api.quantize(model(), again, recipe)[0]
    assert written.to_proto().SerializeToString() == made.to_proto().SerializeToString()
    said = plan.to_dict()["tensors"]["c"]
    assert said["axis"] == 1
    assert len(said["scale"]) == len(said["zero_point"]) == 16


@pytest.mark.parametrize("count", [40, 100], ids=["few", "more than judge"])
def test_samples_that_judge_what_is_written_have_no_part_in_the_ends(count: int) -> None:
    ready = api.prepared(model(), CPU)
    statistics, kept = improving.improved(ready, feeds(count))
    assert kept is not None
    assert len(kept.channels) == 4
    told: list[dict[str, ChannelRange]] = []

    def lowered(apart: Statistics) -> Graph:
        told.append(dict(apart.channels))
        return api.lowered(ready, apart, SILENT)[0]

    kept.sqnr_db(lowered, statistics)
    assert told == list(kept.channels)
    assert all(set(part) == set(statistics.channels) for part in told)
    assert len({part["c"] for part in told} | {statistics.channels["c"]}) == 5  # each lacks others' ends


def test_the_order_of_the_samples_does_not_matter() -> None:
    one, other = (api.calibrate(model(), data, CPU).channels for data in (feeds(), feeds()[::-1]))
    assert one == other
    assert one


def test_layers_are_compared_by_the_float_models_values() -> None:
    made, _ = api.quantize(model(), feeds(), CPU)
    told = {e.tensor: e.sqnr_db for e in api.compare(model(), made, feeds(4), CPU, layers=True).errors}
    assert told["c"] > 25


def test_another_calibrator_has_one_scale() -> None:
    found = api.calibrate(model(), feeds(), CPU)
    assert found.channels
    plan = api.quantize(model(), found, replace(CPU, calibrator="minmax"))[1]
    assert all(p.params is not None and p.params.axis is None for p in plan.points.values())


def test_statistics_with_other_grids_do_not_merge() -> None:
    found = api.calibrate(model(), feeds(), CPU)
    with pytest.raises(StatisticsError, match="improved in different ways"):
        merge([found, replace(found, channels={}, seen=1)])


def test_ranges_of_channels_hold_0_and_are_finite() -> None:
    for low, high in (([0.5], [1.0]), ([-1.0], [-0.5]), ([-np.inf], [1.0]), ([0.0, 0.0], [1.0])):
        with pytest.raises(ValueError, match=r"range|shape"):
            ChannelRange(np.array(low, np.float32), np.array(high, np.float32))


def test_scales_are_told_by_the_float_models_names() -> None:
    made, plan = api.quantize(model(), feeds(), CPU)
    params = plan.points["c"].params
    assert params is not None
    given = scales(made)["tensors"]["c"]
    assert given["axis"] == 1
    np.testing.assert_allclose(given["scale"], params.scale, rtol=1e-6)
    assert given["zero_point"] == params.zero_point.tolist()
    (held,) = [t for t in take_stock(made.to_proto()).tensors if t.tensor == "c/channels"]
    assert (held.granularity, held.scales) == ("per channel, axis 1", 16)


# -- what convolutions read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_factors_in_front_of_a_convolution_are_of_the_quantize_linear(form: str) -> None:
    recipe = Recipe(target="ort-cpu", format=form, float_share=0.0)
    made, _ = api.quantize(model("m = Tanh(c)"), feeds(), recipe)
    (maker,) = [n for n in made.nodes if n.op_type == "HardSwish"]
    (reader,) = [user for user, _ in made.users(maker.outputs[0])]
    assert reader.op_type == "QuantizeLinear"
    assert made.size(reader.inputs[1]) == 16
    found = operators(made)
    assert found.count("QLinearConv") == 2
    assert found.count("Mul") <= 1  # of a HardSwish that the provider takes apart
    if form == "qdq":  # operators have no pairs to tell of
        told = scales(made)["tensors"]["h"]
        assert len(told["scale"]) == len(told["zero_point"]) == len(told["amax"]) == 16
    proto = made.to_proto().SerializeToString()
    exact, fast = (Session(proto, as_deployed=d).run(feeds(1)[0])[0] for d in (False, True))
    assert SATURATES or float(np.abs(exact - fast).max()) < 0.05 * float(np.abs(exact).max())
