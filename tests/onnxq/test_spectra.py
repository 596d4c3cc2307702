"""Layers around a spectrum: what is none first, then the spellings of one, and what becomes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from placing import net

import onnxq
from onnxq import Recipe, Rule
from onnxq.patterns.spectra import COMPUTES, LOGARITHM, READS, logarithms, spectra

SIGNAL = "float[1,1,512] x"
BASIS: dict[str, Any] = {"w": (64, 1, 128), "v": (64, 1, 128)}
HALVES: dict[str, Any] = {"a": np.array([0]), "b": np.array([32]), "e": np.array([64]), "axis": np.array([1])}
SPLIT = "c = Conv<strides=[64]>(x, w) r = Slice(c, a, b, axis) i = Slice(c, b, e, axis)"
TWO = np.array(2.0, np.float32)
NEXT = "y = Conv(m, k)"

PAIR: dict[str, Any] = {"last": np.array([3]), "axis": np.array([1]), "two": (2, 1, 128)}
STACKED = (
    "c = Conv<strides=[64]>(x, w) d = Conv<strides=[64]>(x, v) o = Neg(d) s = Unsqueeze(c, last) "
    "t = Unsqueeze(o, last) n = Concat<axis={}>(s, t)"
)

NONE: dict[str, tuple[str, dict[str, Any]]] = {
    "a norm of one layer's output": ("c = Conv<strides=[64]>(x, w) p = Mul(c, c) m = ReduceMean(p) y = Sqrt(m)", {}),
    "squares of two signals": (
        (
            "q = Relu(x) c = Conv<strides=[64]>(x, w) d = Conv<strides=[64]>(q, v) "
            "p = Mul(c, c) s = Mul(d, d) y = Add(p, s)"
        ),
        {},
    ),
    "products, not squares": (f"{SPLIT} p = Mul(r, i) s = Mul(i, r) y = Add(p, s)", HALVES),
    "a cube": (
        f"{SPLIT} p = Pow(r, three) s = Pow(i, three) y = Add(p, s)",
        HALVES | {"three": np.array(3, np.float32)},
    ),
    "squares of what no layer makes": ("p = Mul(x, x) n = Neg(x) s = Mul(n, n) y = Add(p, s)", {}),
    "one square twice": ("c = Conv<strides=[64]>(x, w) p = Mul(c, c) y = Add(p, p)", {}),
    "the length of vectors of one layer": ("c = Conv<strides=[64]>(x, two) p = Mul(c, c) y = ReduceSum(p, axis)", PAIR),
    "a sum over all channels": (f"{STACKED.format('0')} p = Mul(n, n) y = ReduceSum(p, axis)", PAIR),
    "two layers of two signals, stacked": (
        (
            "q = Relu(x) c = Conv<strides=[64]>(x, w) d = Conv<strides=[64]>(q, v) s = Unsqueeze(c, last) "
            "t = Unsqueeze(d, last) n = Concat<axis=3>(s, t) p = Mul(n, n) y = ReduceSum(p, last)"
        ),
        PAIR,
    ),
    "products of what is stacked": (f"{STACKED.format('3')} z = Relu(n) p = Mul(n, z) y = ReduceSum(p, last)", PAIR),
}


@pytest.mark.parametrize("case", NONE)
def test_no_spectrum(case: str) -> None:
    body, more = NONE[case]
    assert spectra(net(SIGNAL, body, **BASIS, **more)) == {}


FOUND: dict[str, tuple[str, dict[str, Any]]] = {
    "two halves of one convolution": (f"{SPLIT} p = Pow(r, two) s = Pow(i, two)", {**HALVES, "two": TWO}),
    "a Split": ("c = Conv<strides=[64]>(x, w) r, i = Split<axis=1, num_outputs=2>(c) p = Mul(r, r) s = Mul(i, i)", {}),
    "two convolutions": (
        "c = Conv<strides=[64]>(x, w) d = Conv<strides=[64]>(x, v) p = Mul(c, c) s = Mul(d, d)",
        {},
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_layers_around_a_spectrum(case: str) -> None:
    body, more = FOUND[case]
    channels = 64 if "two conv" in case else 32
    tail = f"t = Add(p, s) m = Sqrt(t) {NEXT}"
    graph = net(SIGNAL, f"{body} {tail}", "y", 18, **BASIS, k=(32, channels, 1), **more)
    found = spectra(graph)
    assert {n for n, why in found.items() if why == COMPUTES} == {"Conv:c"} | ({"Conv:d"} if channels == 64 else set())
    assert [n for n, why in found.items() if why == READS] == ["Conv:y"]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("opset", [11, 17])
def test_parts_that_are_stacked_and_summed(scaled: bool, opset: int) -> None:
    """As TensorFlow's models have them: [1, 64, 7, 2], squared and summed over the last axis."""
    square = "u = Mul(n, h) p = Mul(u, u)" if scaled else "p = Mul(n, n)"
    stack = STACKED.format("3")
    total = "g = ReduceSum<keepdims=0>(p, last)"
    if opset < 13:
        stack = stack.replace("Unsqueeze(c, last)", "Unsqueeze<axes=[3]>(c)").replace(
            "Unsqueeze(o, last)", "Unsqueeze<axes=[3]>(o)"
        )
        total = "g = ReduceSum<axes=[3], keepdims=0>(p)"
    graph = net(
        SIGNAL,
        f"{stack} {square} {total} m = Sqrt(g) {NEXT}",
        "y",
        opset,
        **BASIS,
        **PAIR,
        h=np.array(0.5, np.float32),
        k=(32, 64, 1),
    )
    assert spectra(graph) == {"Conv:c": COMPUTES, "Conv:d": COMPUTES, "Conv:y": READS}


def test_a_filter_in_front_computes_it_too_and_an_encoder_does_not() -> None:
    body = "c = Conv<strides=[64]>(z, w) d = Conv<strides=[64]>(z, v) p = Mul(c, c) s = Mul(d, d) y = Add(p, s)"
    pads = np.array([0, 0, 64, 0, 0, 64])
    filtered = f'a = Conv<strides=[2]>(x, f) b = Conv<strides=[2]>(a, f) z = Pad<mode="reflect">(b, pads) {body}'
    computes = dict.fromkeys(("Conv:c", "Conv:d", "Conv:b", "Conv:a"), COMPUTES)
    assert spectra(net(SIGNAL, filtered, **BASIS, f=(1, 1, 16), pads=pads)) == computes
    encoded = f"a = Conv<strides=[2]>(x, f) z = Relu(a) {body}"
    assert set(spectra(net(SIGNAL, encoded, **BASIS, f=(1, 1, 16)))) == {"Conv:c", "Conv:d"}


FOURIER: dict[str, Any] = {
    "basis": (16, 16),  # of the first step, in front of what it is multiplied with
    "a": (16, 16),
    "b": (16, 16),
    "turn": (16, 16),
    "k": (16, 8),
    **{name: np.array([value]) for name, value in {"zero": 0, "nine": 9, "axis": 1}.items()},
}
STEPS = (
    "f = MatMul(basis, x) g = MatMul(basis, x) h = Mul(f, turn) i = Mul(g, turn) p = Sub(h, i) q = Add(h, i) "
    "c = MatMul(p, a) d = MatMul(q, b) e = MatMul(p, b) l = MatMul({}, a) "
    "r = Sub(c, d) o = Add(e, l) s = Mul(r, r) t = Mul(o, o) m = Add(s, t)"
)


def test_the_parts_of_a_transform_of_two_layers_each_are_of_one_signal() -> None:
    """A fast Fourier transform of 256 values is two products by bases of 16 and factors between; else it is none."""
    tail = "n = Slice(m, zero, nine, axis) u = Sqrt(n) y = MatMul(u, k)"
    other = net("float[16,16] x", f"z = Relu(x) {STEPS.format('z')} {tail}", **FOURIER | {"k": (9, 8)})
    assert spectra(other) == {}
    graph = net("float[16,16] x", f"{STEPS.format('q')} {tail}", **FOURIER | {"k": (9, 8)})
    computes = dict.fromkeys((f"MatMul:{name}" for name in "cdelfg"), COMPUTES)
    assert spectra(graph) == computes | {"MatMul:y": READS}


def test_behind_a_logarithm_the_range_is_another() -> None:
    body, more = FOUND["two convolutions"]
    graph = net(SIGNAL, f"{body} t = Add(p, s) m = Log(t) {NEXT}", **BASIS, k=(32, 64, 1), **more)
    assert READS not in spectra(graph).values()


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_they_stay_in_float_unless_a_rule_asks(target: str) -> None:
    body, more = FOUND["two convolutions"]
    graph = net(SIGNAL, f"{body} t = Add(p, s) m = Sqrt(t) {NEXT}", **BASIS, k=(32, 64, 1), **more)
    plan = onnxq.make_plan(graph, Recipe(target=target))
    assert plan.skipped["Conv:c"] == COMPUTES
    assert plan.skipped["Conv:y"] == READS
    asked = onnxq.make_plan(graph, Recipe(target=target, rules=(Rule("Conv:y", quantize=True),)))
    assert "Conv:y" not in asked.skipped
    assert asked.skipped["Conv:c"] == COMPUTES
    told = onnxq.make_plan(graph, Recipe(target=target, rules=(Rule("Conv:c", quantize=False),)))
    assert told.skipped["Conv:c"] == "excluded by a rule"


def test_with_ranges_found_at_run_time_they_are_quantized() -> None:
    body, more = FOUND["two convolutions"]
    graph = net(SIGNAL, f"{body} t = Add(p, s) m = Sqrt(t) {NEXT}", **BASIS, k=(32, 64, 1), **more)
    plan = onnxq.make_plan(graph, Recipe(target="ort-cpu", mode="dynamic"))
    assert {d.node for d in plan.decisions if d.quantized} == {"Conv:c", "Conv:d", "Conv:y"}


MEL = {"w": np.abs(np.random.default_rng(5).normal(size=(32, 16))).astype(np.float32)}


BEHIND_MEL = {
    "s = Softmax(m) y = Log(s)": False,
    "s = Sigmoid(m) y = Log(s)": False,
    "y = Exp(m)": False,
    "s = Mul(m, m) v = ReduceMean(s) e = Add(v, low) d = Sqrt(e) y = Div(m, d)": False,
    "a = Clip(m, low) y = Log(a)": True,
    "a = Add(m, low) b = Transpose(a) y = Log(b)": True,
    "a = Mul(m, low) y = Sqrt(a)": True,
    "a = Relu(m) b = Max(a, low) y = Log(b)": True,
}


@pytest.mark.parametrize(("body", "stays"), BEHIND_MEL.items())
def test_the_layer_that_a_logarithm_is_taken_of(body: str, stays: bool) -> None:
    """Nothing but what moves, scales, adds or bounds may lie between."""
    graph = net("float[8,32] x", f"m = MatMul(x, w) {body}", **MEL, low=np.array(1e-8, np.float32))
    assert logarithms(graph) == ({"MatMul:m": LOGARITHM} if stays else {})


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_no_logarithm_of_what_fell_below_zero(target: str) -> None:
    """A filter bank's sums of powers: where x - c is quantized, or a weight rounded below 0, they may be negative."""
    body = "m = MatMul(x, w) a = Add(m, low) l = Log(a) y = MatMul(l, v)"
    v = np.random.default_rng(6).normal(size=(16, 32)).astype(np.float32)
    graph = net("float[8,32] x", body, **MEL, v=v, low=np.array(1e-8, np.float32))
    powers = [{"x": (np.random.default_rng(i).normal(size=(8, 32)) ** 4).astype(np.float32)} for i in range(24)]
    _, plan = onnxq.quantize(graph, powers, Recipe(target=target))
    assert {d.node: d.quantized for d in plan.decisions if d.op_type == "MatMul"} == {
        "MatMul:m": False,
        "MatMul:y": True,
    }
    assert next(d.reason for d in plan.decisions if d.node == "MatMul:m").startswith(LOGARITHM)
