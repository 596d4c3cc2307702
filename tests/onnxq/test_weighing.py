"""Ranges of what activations alone read: chosen by the error behind these, where that is better."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from graphs import Array, graph_of
from hypothesis import given, settings
from hypothesis import strategies as st
from noises import noise_of
from onnx.reference import ReferenceEvaluator

from onnxq import Recipe, api
from onnxq.calibrators import CALIBRATORS, LEAST_ERROR, make_calibrator
from onnxq.calibrators._error import Points
from onnxq.histogram import Histogram
from onnxq.improvement.weighing import weighed_alone
from onnxq.numerics import UINT8, dequantize, params_from_range, quantize
from onnxq.patterns import find_patterns
from onnxq.patterns.behind import activations_behind
from onnxq.pointwise import Pointwise
from onnxq.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OPERATORS = {  # function -> how the standard writes it, at opset 22
    Pointwise("LeakyRelu", (0.02,)): "y = LeakyRelu<alpha=0.02>(x)",
    Pointwise("SiLU"): "s = Sigmoid(x) y = Mul(x, s)",
    Pointwise("HardSwish"): "y = HardSwish(x)",
    Pointwise("GELU"): 'y = Gelu<approximate="tanh">(x)',
    Pointwise("Mish"): "y = Mish(x)",
    Pointwise("LeakyRelu", (0.2,), -0.4, 2.0): "l = LeakyRelu<alpha=0.2>(x) m = Max(l, low) y = Min(m, high)",
}
TAIL = np.concatenate([np.random.default_rng(2).normal(size=20_000), np.linspace(-40, 4, 2_000)]).astype(np.float32)


@pytest.mark.parametrize("function", OPERATORS, ids=lambda f: f.kind)
def test_functions_are_those_of_the_standard(function: Pointwise) -> None:
    text = f"""<ir_version: 10, opset_import: ["": 22]> g (float[9] x) => (float[9] y) {{
        low = Constant<value_float = -0.4>() high = Constant<value_float = 2.0>() {OPERATORS[function]} }}"""
    x = np.array([-80, -8, -3, -1.28, -1e-3, 0, 0.5, 3, 80], np.float32)
    (expected,) = ReferenceEvaluator(onnx.parser.parse_model(text)).run(None, {"x": x})
    np.testing.assert_allclose(function(x.astype(np.float64)), np.asarray(expected, np.float64), atol=2e-6)


def _made(x: Array, lo: float, hi: float, function: Pointwise) -> float:
    params = params_from_range(lo, hi, UINT8)
    wide = dequantize(quantize(x, params), params).astype(np.float64)
    return float(np.square(function(wide) - function(x.astype(np.float64))).sum())


@pytest.mark.parametrize("function", OPERATORS, ids=lambda f: f.kind)
def test_the_error_is_that_behind_the_function(function: Pointwise) -> None:
    points = Points.of(Histogram.of(TAIL), function)
    for lo, hi in ((-40, 4), (-5, 4), (-3, 2)):
        assert points.errors(lo, hi, UINT8)[0] == pytest.approx(_made(TAIL, lo, hi, function), rel=0.03)


@pytest.mark.parametrize("name", ["auto", "mse"])
@pytest.mark.parametrize("function", OPERATORS, ids=lambda f: f.kind)
def test_no_range_of_a_fine_grid_is_better(function: Pointwise, name: str) -> None:
    found = make_calibrator(name, behind=function)(Histogram.of(TAIL), UINT8)
    least = min(_made(TAIL, lo, hi, function) for lo in np.linspace(-40, -0.5, 80) for hi in np.linspace(1, 5, 9))
    assert _made(TAIL, *found, function) <= 1.25 * least  # ends move in turn, and may stop short of it
    plain = CALIBRATORS[name](Histogram.of(TAIL), UINT8)
    assert _made(TAIL, *found, function) < 0.8 * _made(TAIL, *plain, function)
    assert plain[0] < found[0] < 0.0  # the tail is given up


def test_calibrators_that_weigh_no_error_are_as_they_were() -> None:
    for name in CALIBRATORS.keys() - LEAST_ERROR:
        found = make_calibrator(name, behind=Pointwise("SiLU"))(Histogram.of(TAIL), UINT8)
        assert found == make_calibrator(name)(Histogram.of(TAIL), UINT8)


# -- where ---------------------------------------------------------------------------------------------------


def behind(body: str, outputs: str = "float[2,3] y") -> dict[str, Pointwise]:
    constants = {"three": np.float32(3), "six": np.float32(6), "zero": np.float32(0)}
    graph = graph_of(f"(float[2,3] x, float[2,3] z) => ({outputs}) {{ v = Abs(x) {body} }}", 17, **constants)
    return activations_behind(graph, find_patterns(graph))


@pytest.mark.parametrize(
    "body",
    {
        "gate alone": "y = Sigmoid(v)",
        "gate of another": "s = Sigmoid(v) y = Mul(z, s)",
        "read beside": "s = Sigmoid(v) m = Mul(v, s) y = Add(m, v)",
        "added first": "a = Add(v, z) s = Sigmoid(a) y = Mul(v, s)",
        "moved first": "t = Identity(v) y = LeakyRelu(t)",
        "relu": "y = Relu(v)",
        "a leaky relu and another": "l = LeakyRelu(v) y = Add(l, v)",
    }.items(),
    ids=lambda item: item[0],
)
def test_what_must_be_left_alone(body: tuple[str, str]) -> None:
    assert "v" not in behind(body[1])


def test_an_output_of_the_model_is_left_alone() -> None:
    assert behind("y = LeakyRelu(v)").keys() == {"v"}
    assert not behind("y = LeakyRelu(v)", "float[2,3] y, float[2,3] v")


def test_activations_are_found_in_every_spelling() -> None:
    assert behind("s = Sigmoid(v) y = Mul(v, s)") == {"v": Pointwise("SiLU")}
    assert behind("y = HardSwish(v)") == {"v": Pointwise("HardSwish")}
    written_out = "a = Add(v, three) c = Clip(a, zero, six) m = Mul(v, c) y = Div(m, six)"
    assert behind(written_out) == {"v": Pointwise("HardSwish")}
    assert behind("y = LeakyRelu<alpha=0.5>(v)") == {"v": Pointwise("LeakyRelu", (0.5,))}
    assert behind("y = LeakyRelu(v)")["v"].parameters == pytest.approx((0.01,))


@pytest.mark.parametrize(
    ("body", "limits"),
    [
        ("y = Relu(l)", (0.0, inf)),
        ("m = Max(three, l) y = Min(m, six)", (3.0, 6.0)),
        ("c = Clip(l, zero, six) y = Min(c, three)", (0.0, 3.0)),
        ("c = Clip(l, three) y = Min(c, zero)", (0.0, 0.0)),  # all is three, and then zero
        ("y = Add(l, z)", (-inf, inf)),
        ("y = Max(l, z)", (-inf, inf)),
        ("y = Clip(l, bound, six)", (-inf, inf)),
        ("y = Max(l, three, six)", (-inf, inf)),
        ("m = Max(l, three) y = Mul(m, m) t = Min(l, six)", (-inf, inf)),
        ("m = Max(l, three) n = Min(m, six) y = Add(m, n)", (3.0, inf)),
    ],
)
def test_what_is_cut_off_behind_an_activation_costs_nothing(body: str, limits: tuple[float, float]) -> None:
    for activation in ("l = LeakyRelu<alpha=0.5>(v)", "s = Sigmoid(v) l = Mul(v, s)"):
        function = behind(f"bound = ReduceMin<keepdims = 0>(z) {activation} {body}")["v"]
        assert (function.lowest, function.highest) == limits


# -- judged --------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.sets(st.sampled_from("abcdefgh")))
def test_nothing_is_taken_that_loses_in_all(worse: set[str]) -> None:
    """Each tensor by itself: 3 dB gained or lost of its part of the noise."""

    def level(alone: Sequence[str]) -> float:
        return sum(2.0 if (name in alone) != (name in worse) else 1.0 for name in "abcdefgh")

    found = weighed_alone("abcdefgh", lambda alone: noise_of(np.full(8, level(alone))), 100)
    assert level(found) <= level("abcdefgh")
    if len(worse) < 4:
        assert found == ()  # together they gain
    if len(worse) == 8:
        assert found == tuple("abcdefgh")


def test_where_the_other_range_gains_nothing_ranges_are_as_they_were() -> None:
    assert weighed_alone((), lambda _: noise_of(np.ones(8)), 7) == ()
    assert weighed_alone("ab", lambda _: noise_of(np.ones(8)), 7) == ("a", "b")
    gained = np.array([0.9, -0.6] * 4)  # dB: 0.15 on average, standard error 0.28
    assert weighed_alone("ab", lambda alone: noise_of(10 ** (-gained * (2 - len(alone)) / 10)), 7) == ("a", "b")


TEXT = """(float[1,4,12,12] x) => (float[1,4,12,12] y)
    { c = Conv<pads=[1,1,1,1]>(x, w, b) s = Sigmoid(c) m = Mul(c, s) y = Conv<pads=[1,1,1,1]>(m, u) }"""


def wide_below() -> tuple[dict[str, Array], list[dict[str, Array]]]:
    """Sums of 36 values, 6 times as large, from -80 to 30: below -8 SiLU makes nothing of them."""
    rng = np.random.default_rng(4)
    u = rng.normal(size=(4, 4, 3, 3)).astype(np.float32)
    arrays = {"w": np.full((4, 4, 3, 3), 6, np.float32), "b": np.full(4, -118, np.float32), "u": u}
    return arrays, [{"x": x.astype(np.float32)} for x in rng.uniform(0, 1, (40, 1, 4, 12, 12))]


@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_a_silu_in_integers_keeps_its_codes_for_what_it_passes_on(effort: str, tmp_path: Path) -> None:
    arrays, feeds = wide_below()
    recipe = Recipe(target="ort-cpu", effort=effort, float_share=0.0)
    found = api.calibrate(graph_of(TEXT, 17, **arrays), feeds, recipe)
    assert not found.alone
    made, plan = api.quantize(graph_of(TEXT, 17, **arrays), found, recipe)
    other = replace(found, alone=("c",), rounding={})
    other.save(tmp_path / "s.npz")
    assert Statistics.load(tmp_path / "s.npz").alone == ("c",)
    before, plain = api.quantize(graph_of(TEXT, 17, **arrays), other, recipe)
    ranges = [p.points["c"].range for p in (plan, plain)]
    assert ranges[0] is not None
    assert ranges[1] is not None
    assert ranges[1][0] < 3 * ranges[0][0] < 0.0
    errors = [
        api.compare(graph_of(TEXT, 17, **arrays), g, feeds[:8], recipe).outputs[0].sqnr_db for g in (made, before)
    ]
    assert errors[0] > errors[1] + 1.5
    again = api.calibrate(graph_of(TEXT, 17, **arrays), feeds[::-1], recipe)
    assert again.alone == found.alone


def test_targets_that_quantize_nothing_before_an_activation_know_of_none() -> None:
    arrays, _ = wide_below()
    plan = api.make_plan(graph_of(TEXT, 17, **arrays), Recipe(target="tensorrt"))
    assert all(point.behind is None for point in plan.points.values())
    cpu = api.make_plan(graph_of(TEXT, 17, **arrays), Recipe(target="ort-cpu"))
    assert {n: p.behind for n, p in cpu.points.items() if p.behind} == {"c": Pointwise("SiLU")}
