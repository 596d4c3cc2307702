from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from graphs import Array, graph_of, lines, run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnxq.numerics import INT8_WEIGHT
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.remove_unused import remove_unused
from onnxq.plan import Plan, WeightPoint
from onnxq.statistics import Rounded

RNG = np.random.default_rng(11)
Uses = tuple[tuple[str, int], ...]


def floats(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def lower(*points: tuple[str, Uses, int | None], form: str = "dq", method: str = "absmax") -> QuantizeWeights:
    weights = tuple(WeightPoint(*p) for p in points)
    return QuantizeWeights(Plan("tensorrt", {}, weights, ()), INT8_WEIGHT, method, form)


def fake_quantized(w: Array, axis: int | None) -> Array:
    """The oracle, in float64: s = max|w| / 127 over all but the axis, codes in -127..127."""
    over = tuple(d for d in range(w.ndim) if d != axis) if axis is not None else None
    amax = np.abs(w.astype(np.float64)).max(axis=over, keepdims=True)
    step = np.where(amax == 0, 1.0, amax / 127)
    return np.clip(np.rint(w / step), -127, 127) * step


def test_an_empty_plan_leaves_the_graph_alone() -> None:
    graph = graph_of("(float[2,4] x) => (float[2,4] y) { y = MatMul(x, w) }", w=floats(4, 4))
    before = graph.digest()
    assert lower()(graph) == 0
    assert graph.digest() == before


def test_biases_and_other_weights_stay() -> None:
    bias = floats(4)
    graph = graph_of("(float[2,3,5] x) => (float[2,4,3] y) { y = Conv(x, w, b) }", w=floats(4, 3, 3), b=bias)
    assert lower(("w", (("Conv:y", 1),), 0))(graph) == 1
    assert lines(graph)[-1] == "y = Conv(x, w_dequantized, b)"
    np.testing.assert_array_equal(graph.const(graph.weights["b"]), bias)


@pytest.mark.parametrize("form", ["dq", "qdq"])
def test_a_use_in_float_keeps_the_float_weight(form: str) -> None:
    weight = floats(4, 4)
    graph = graph_of("(float[4,4] x) => (float[4,4] y) { p = MatMul(x, w) y = Add(p, w) }", w=weight)
    lower(("w", (("MatMul:p", 1),), 1), form=form)(graph)
    remove_unused(graph)
    assert lines(graph)[-2:] == ["p = MatMul(x, w_dequantized)", "y = Add(p, w)"]
    np.testing.assert_array_equal(graph.const(graph.weights["w"]), weight)


def test_dq_form() -> None:
    graph = graph_of("(float[2,3,5] x) => (float[2,4,3] y) { y = Conv(x, w) }", w=floats(4, 3, 3))
    lower(("w", (("Conv:y", 1),), 0))(graph)
    remove_unused(graph)
    assert lines(graph) == [
        "w_dequantized = DequantizeLinear(w_quantized, w_scale, w_zero_point)",
        "y = Conv(x, w_dequantized)",
    ]
    codes, scale, zero = (graph.const(v) for v in graph.nodes[0].inputs)
    assert codes is not None
    assert scale is not None
    assert zero is not None
    assert (codes.dtype, scale.dtype, zero.dtype) == (np.dtype("int8"), np.dtype("float32"), np.dtype("int8"))
    assert codes.min() >= -127
    np.testing.assert_array_equal(np.abs(codes).reshape(4, -1).max(1), 127)
    assert scale.shape == zero.shape == (4,)
    assert graph.attribute(graph.nodes[0], "axis") == 0


def test_qdq_form() -> None:
    graph = graph_of("(float[2,3,5] x) => (float[2,4,3] y) { y = Conv(x, w) }", w=floats(4, 3, 3))
    lower(("w", (("Conv:y", 1),), 0), form="qdq")(graph)
    assert lines(graph) == [
        "w_quantized = QuantizeLinear(w, w_scale, w_zero_point)",
        "w_dequantized = DequantizeLinear(w_quantized, w_scale, w_zero_point)",
        "y = Conv(x, w_dequantized)",
    ]
    assert [graph.attribute(n, "axis") for n in graph.nodes[:2]] == [0, 0]


def test_one_scale() -> None:
    weight = floats(4, 4)
    graph = graph_of("(float[4,4] x) => (float[4,4] y) { y = MatMul(x, w) }", w=weight)
    lower(("w", (("MatMul:y", 1),), None))(graph)
    scale = graph.const(graph.nodes[0].inputs[1])
    assert scale is not None
    assert scale.shape == ()
    np.testing.assert_allclose(
        run(graph, {"x": np.eye(4, dtype=np.float32)})[0], fake_quantized(weight, None), rtol=1e-6
    )


def test_one_weight_for_two_layers_and_along_two_axes() -> None:
    text = "(float[4,4] x) => (float[4,4] y) { a = MatMul(x, w) b = MatMul(a, w) y = Gemm<transB=1>(b, w) }"
    graph = graph_of(text, w=floats(4, 4))
    assert lower(("w", (("MatMul:a", 1), ("MatMul:b", 1)), 1), ("w", (("Gemm:y", 1),), 0))(graph) == 2
    remove_unused(graph)
    made = [line for line in lines(graph) if "Dequantize" in line]
    assert len(made) == 2
    assert lines(graph)[-3:] == [
        "a = MatMul(x, w_dequantized)",
        "b = MatMul(a, w_dequantized)",
        "y = Gemm(b, w_dequantized_1)",
    ]
    assert "w" not in graph.weights


CASES = {
    "Conv": ("(float[1,3,7] x) => (float[1,4,5] y) { y = Conv(x, w) }", (4, 3, 3), 0),
    "Conv 2-D": ("(float[1,2,5,5] x) => (float[1,4,4,4] y) { y = Conv(x, w) }", (4, 2, 2, 2), 0),
    "ConvTranspose": ("(float[1,4,5] x) => (float[1,3,7] y) { y = ConvTranspose(x, w) }", (4, 3, 3), 1),
    "Gemm": ("(float[3,4] x) => (float[3,6] y) { y = Gemm(x, w) }", (4, 6), 1),
    "Gemm transB": ("(float[3,4] x) => (float[3,6] y) { y = Gemm<transB=1>(x, w) }", (6, 4), 0),
    "MatMul": ("(float[3,4] x) => (float[3,6] y) { y = MatMul(x, w) }", (4, 6), 1),
    "MatMul rank 3": ("(float[2,3,4] x) => (float[2,3,6] y) { y = MatMul(x, w) }", (2, 4, 6), 2),
}


@pytest.mark.parametrize("form", ["dq", "qdq"])
@pytest.mark.parametrize(("text", "shape", "axis"), CASES.values(), ids=CASES.keys())
def test_numbers(text: str, shape: tuple[int, ...], axis: int, form: str) -> None:
    weight = floats(*shape) * np.float32(3)
    weight.reshape(-1)[:2] = 0
    graph, oracle = graph_of(text, w=weight), graph_of(text, w=fake_quantized(weight, axis).astype(np.float32))
    lower(("w", ((str(graph.nodes[0].name), 1),), axis), form=form)(graph)
    x = floats(*[int(d) for d in graph.shape(graph.inputs[0]) or () if isinstance(d, int)])
    np.testing.assert_allclose(run(graph, {"x": x})[0], run(oracle, {"x": x})[0], rtol=1e-4, atol=1e-5)


def test_a_channel_of_zeros() -> None:
    weight = floats(4, 4)
    weight[:, 2] = 0
    graph = graph_of("(float[4,4] x) => (float[4,4] y) { y = MatMul(x, w) }", w=weight)
    lower(("w", (("MatMul:y", 1),), 1))(graph)
    scale = graph.const(graph.nodes[0].inputs[1])
    assert scale is not None
    assert scale[2] == 1.0
    np.testing.assert_array_equal(run(graph, {"x": np.eye(4, dtype=np.float32)})[0][:, 2], 0)


@pytest.mark.parametrize("form", ["dq", "qdq"])
def test_half_precision(form: str) -> None:
    weight = floats(4, 4).astype(np.float16)
    weight[:, 1] = 1e-7  # its scale would be below the smallest normal half
    text = "(float16[4,4] x) => (float16[4,4] y) { y = MatMul(x, w) }"
    graph = graph_of(text, 19, w=weight)
    lower(("w", (("MatMul:y", 1),), 1), form=form)(graph)
    scale = graph.const(graph.nodes[-2].inputs[1])
    assert scale is not None
    assert scale.dtype == np.float16
    assert scale.min() >= np.finfo(np.float16).tiny
    got = run(graph, {"x": np.eye(4, dtype=np.float16)})[0].astype(np.float64)
    # half a step, and what rounding code and product to half precision adds
    assert (np.abs(got - weight.astype(np.float64)) <= 0.5 * scale * (1 + 127 * 2.0**-10)).all()


def in_half(weight: Array, dtype: str, rounded: Rounded | None = None, **float32: str) -> tuple[Array, Array]:
    """Codes and scales of a weight whose layer is to be in half precision behind the pass, or by `float32` is not."""
    graph = graph_of("(float[N,K] x) => (float[N,M] y) { y = MatMul(x, w) }", w=weight)
    point = WeightPoint("w", (("MatMul:y", 1),), 1, rounded=rounded)
    kept = {name.replace("_", ":"): why for name, why in float32.items()}
    QuantizeWeights(Plan("tensorrt", {}, (point,), (), float_type=dtype, float32=kept), INT8_WEIGHT)(graph)
    codes, scale = (graph.const(v) for v in graph.nodes[0].inputs[:2])
    assert codes is not None
    assert scale is not None
    return codes, scale


def test_a_layer_that_stays_in_float32_keeps_its_scales() -> None:
    weight = floats(8, 5)
    _, scale = in_half(weight, "float16", MatMul_y="overflows")
    np.testing.assert_array_equal(scale, in_half(weight, "float32")[1])


def test_scales_beyond_float16_stay() -> None:
    weight = floats(8, 2)
    weight *= np.float32(127e6) / np.abs(weight).max(axis=0)
    _, scale = in_half(weight, "float16")
    np.testing.assert_array_equal(scale, in_half(weight, "float32")[1])


def test_codes_are_of_the_least_normal_scale_where_float16_would_make_it_subnormal() -> None:
    least, weight = 2.0**-14, floats(8, 4)
    weight *= np.asarray([1, 0.3 * least, 1e-3 * least, 0.3 * 2.0**-126], np.float32) * 127 / np.abs(weight).max(axis=0)
    codes, scale = in_half(weight, "float16")
    np.testing.assert_array_equal(scale[1:], np.float32(least))
    assert np.abs(codes[:, 1]).max() == round(127 * 0.3)
    assert not codes[:, 2:].any()
    assert (np.abs(codes * scale.astype(np.float64) - weight) <= 0.5 * scale * (1 + 1e-6)).all()
    assert (in_half(weight, "bfloat16")[1][1:3] < least).all()  # which has the exponents of float32


def test_chosen_codes_stay_where_their_scale_does() -> None:
    least, weight = 2.0**-14, floats(8, 2)
    weight *= np.asarray([1, 0.3 * least], np.float32) * 127 / np.abs(weight).max(axis=0)
    nearest, scale = in_half(weight, "float32")
    chosen = np.clip(nearest + 1, -127, 127).astype(np.int8)
    rounded = Rounded(chosen, scale, np.asarray(1, np.float32))
    codes, _ = in_half(weight, "float16", rounded)
    np.testing.assert_array_equal(codes[:, 0], chosen[:, 0])
    np.testing.assert_array_equal(codes[:, 1], in_half(weight, "float16")[0][:, 1])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["float16", "bfloat16"]))
def test_codes_are_of_the_scale_that_half_precision_holds(seed: int, dtype: str) -> None:
    weight = np.random.default_rng(seed).normal(size=(6, 4)).astype(np.float32)
    codes, scale = in_half(weight, dtype)
    bits = 13 if dtype == "float16" else 16  # of float32's mantissa that are 0 in the type
    assert not (scale.view(np.uint32) & ((1 << bits) - 1)).any()
    wide = scale.astype(np.float64)
    np.testing.assert_allclose(wide, np.abs(weight).max(axis=0) / 127, rtol=2.0 ** (bits - 24))
    np.testing.assert_array_equal(codes, np.clip(np.rint(weight.astype(np.float64) / wide), -127, 127))


def weights_in_both_forms(weight: Array, axis: int | None, method: Literal["absmax", "mse"]) -> tuple[Array, Array]:
    text = "(float[N,K] x) => (float[N,M] y, float[K,M] u) { y = MatMul(x, w) u = Identity(w) }"
    found = []
    for form in ("dq", "qdq"):
        graph = graph_of(text, w=weight)
        lower(("w", (("MatMul:y", 1), ("Identity:u", 0)), axis), form=form, method=method)(graph)
        found.append(run(graph, {"x": np.zeros((1, weight.shape[0]), np.float32)})[1])
    return found[0], found[1]


FINITE = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
MATRICES = arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=FINITE)


@settings(max_examples=60, deadline=None)
@given(weight=MATRICES, axis=st.sampled_from([None, 0, 1]), method=st.sampled_from(["absmax", "mse"]))
def test_both_forms_hold_the_same_values(weight: Array, axis: int | None, method: Literal["absmax", "mse"]) -> None:
    stored, computed = weights_in_both_forms(weight, axis, method)
    np.testing.assert_array_equal(stored, computed)


@settings(max_examples=60, deadline=None)
@given(weight=MATRICES, axis=st.sampled_from([None, 0, 1]))
def test_no_value_moves_by_more_than_half_a_step(weight: Array, axis: int | None) -> None:
    stored, _ = weights_in_both_forms(weight, axis, "absmax")
    over = None if axis is None else 1 - axis
    step = np.abs(weight.astype(np.float64)).max(axis=over, keepdims=True) / 127
    assert (np.abs(stored - weight.astype(np.float64)) <= 0.5 * step * (1 + 1e-4) + 1e-36).all()


def test_a_clipping_range_uses_no_code_below_the_grid() -> None:
    weight = np.clip(floats(100_000, 1), -4, 4)
    weight[:2, 0] = -4.6, 4.6  # ONNX would round the negative one to -128
    stored, computed = weights_in_both_forms(weight, 1, "mse")
    np.testing.assert_array_equal(stored, computed)
    np.testing.assert_allclose(stored.min(0), -stored.max(0), rtol=1e-6)
    assert stored[1, 0] < 4.5
