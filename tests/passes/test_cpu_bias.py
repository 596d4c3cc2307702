"""Biases for ONNX Runtime's CPU provider: what is left alone first, then shapes, codes and overflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import graph_of, lines, random_feeds, same_function

from onnxq.passes.cpu_bias import LARGEST, fit_weight_scales, keep_biases_apart, round_biases

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph

RNG = np.random.default_rng(3)
F32 = np.float32
PAIR = "q = QuantizeLinear(x, s, z) xd = DequantizeLinear(q, s, z) wd = DequantizeLinear<axis=1>(w, ws, wz) "


def quantized(inputs: str, body: str, **more: npt.ArrayLike) -> Graph:
    """A layer behind its pairs: xd with the scale 0.02, wd with 8 columns of their own scales."""
    weights: dict[str, npt.ArrayLike] = {
        "s": F32(0.02),
        "z": np.uint8(128),
        "w": RNG.integers(-127, 128, (4, 8)).astype(np.int8),
        "ws": np.linspace(0.01, 0.05, 8).astype(F32),
        "wz": np.zeros(8, np.int8),
    }
    graph = graph_of(f"({inputs}) => (float[Q] y) {{ {PAIR} {body} }}", 17, **weights, **more)
    graph.infer_shapes()
    return graph


def test_biases_of_float_products_are_left_alone() -> None:
    graph = graph_of(
        "(float[2,3,4] x, float[4,8] w) => (float[2,3,8] y) { h = MatMul(x, w) y = Add(h, b) }", b=np.ones(8, F32)
    )
    assert keep_biases_apart(graph) == round_biases(graph) == fit_weight_scales(graph) == 0


@pytest.mark.parametrize(("scale", "kind"), [(1e-44, np.float32), (0.05, np.float16)])
def test_a_bias_whose_step_is_no_float32_or_of_half_precision_is_left_alone(scale: float, kind: Any) -> None:  # noqa: ANN401  a type
    graph = quantized("float[3,4] x", "y = Gemm(xd, wd, b)", b=np.zeros(8, kind))
    low = graph.constant("low", np.full(8, scale, np.float32))
    graph.replace_uses(graph.weights["ws"], low)
    assert round_biases(graph) == 0


def test_a_bias_of_plain_matrices_or_of_more_axes_is_left_alone() -> None:
    plain = quantized("float[3,4] x", "h = MatMul(xd, wd) y = Add(h, b)", b=np.ones(8, F32))
    full = quantized("float[2,3,4] x", "h = MatMul(xd, wd) y = Add(h, b)", b=np.ones((3, 8), F32))
    assert keep_biases_apart(plain) == keep_biases_apart(full) == 0


def test_a_bias_behind_a_quantized_product_gets_the_products_rank() -> None:
    graph = quantized("float[2,3,4] x", "h = MatMul(xd, wd) y = Add(b, h)", b=RNG.normal(size=8).astype(F32))
    before = graph.copy()
    assert keep_biases_apart(graph) == 1
    assert lines(graph)[-1] == "y = Add(b_apart, h)"
    assert graph.shape(graph.weights["b_apart"]) == (1, 1, 8)
    same_function(before, graph, random_feeds(graph), 0)


def test_a_gemm_that_writes_integers_gets_an_int32_bias_too() -> None:
    body = "h = Gemm(xd, wd, b) r = Relu(h) o = QuantizeLinear(r, s, z) y = DequantizeLinear(o, s, z)"
    graph = quantized("float[3,4] x", body, b=RNG.normal(size=8).astype(F32))
    before = graph.copy()
    assert round_biases(graph) == 1
    same_function(before, graph, random_feeds(graph), 0.0201)  # one step of the output


def test_a_convolution_gets_codes_in_steps_of_both_scales() -> None:
    text = """(float[1,2,4,4] x) => (float[1,3,4,4] y) { q = QuantizeLinear(x, s, z) xd = DequantizeLinear(q, s, z)
              wd = DequantizeLinear<axis=0>(w, ws, wz) h = Conv(xd, wd, b) r = Relu(h) o = QuantizeLinear(r, s, z)
              y = DequantizeLinear(o, s, z) }"""
    scales, bias = np.array([0.1, 0.2, 0.4], F32), RNG.normal(size=3).astype(F32)
    weights: dict[str, npt.ArrayLike] = {
        "s": F32(0.02),
        "z": np.uint8(128),
        "w": RNG.integers(-127, 128, (3, 2, 1, 1)).astype(np.int8),
        "ws": scales,
        "wz": np.zeros(3, np.int8),
    }
    graph = graph_of(text, 17, **weights, b=bias)
    assert round_biases(graph) == 1
    codes = graph.const(graph.weights["b_quantized"])
    assert codes is not None
    assert codes.dtype == np.int32
    step = np.float64(F32(0.02)) * scales.astype(np.float64)
    assert np.all(np.abs(codes * step - bias) <= 0.5001 * step)


def test_a_gemm_that_writes_float_gets_codes_in_steps_of_both_scales() -> None:
    bias = RNG.normal(size=8).astype(F32)
    graph = quantized("float[3,4] x", "y = Gemm(xd, wd, b)", b=bias)
    assert round_biases(graph) == 1
    step = np.float64(F32(0.02)) * graph.const(graph.weights["ws"]).astype(np.float64)  # type: ignore[union-attr]  # a weight
    codes = graph.const(graph.weights["b_quantized"])
    assert codes is not None
    assert codes.dtype == np.int32
    np.testing.assert_allclose(codes * step, bias, atol=0.5001 * step.max())
    assert np.all(np.abs(codes * step - bias) <= 0.5001 * step)


def test_a_bias_that_would_overflow_raises_its_channels_scale_alone() -> None:
    bias = np.array([1, 1, 1, 1, 1, 1, 1e9, 1], F32)
    graph = quantized("float[3,4] x", "y = Gemm(xd, wd, b)", b=bias)
    before = graph.copy()
    old = graph.const(graph.weights["ws"])
    assert fit_weight_scales(graph) == 1
    new = graph.const(graph.weights["ws_fitted"])
    assert old is not None
    assert new is not None
    assert np.array_equal(np.delete(new, 6), np.delete(old, 6))
    assert np.isclose(new[6], 1e9 / (LARGEST * 0.02))
    assert round_biases(graph) == 1
    codes = graph.const(graph.weights["b_quantized"])
    assert codes is not None
    assert np.isclose(codes[6], LARGEST, rtol=1e-5)
    same_function(before, graph, random_feeds(graph), 1e-6)


def test_scales_that_fit_are_left_alone() -> None:
    assert fit_weight_scales(quantized("float[3,4] x", "y = Gemm(xd, wd, b)", b=np.full(8, 1e4, F32))) == 0


def test_convolutions_are_fitted_along_their_own_axis() -> None:
    text = """(float[1,2,4,4] x) => (float[1,3,4,4] y) { q = QuantizeLinear(x, s, z) xd = DequantizeLinear(q, s, z)
              wd = DequantizeLinear<axis=0>(w, ws, wz) y = Conv(xd, wd, b) }"""
    codes = RNG.integers(-127, 128, (3, 2, 1, 1)).astype(np.int8)
    scales = np.array([0.1, 1e-12, 0.1], F32)
    weights: dict[str, npt.ArrayLike] = {
        "s": F32(0.02),
        "z": np.uint8(128),
        "w": codes,
        "ws": scales,
        "wz": np.zeros(3, np.int8),
    }
    graph = graph_of(text, 17, **weights, b=np.array([1, 2, 3], F32))
    before = graph.copy()
    assert fit_weight_scales(graph) == 1
    fitted = graph.const(graph.weights["w_fitted"])
    assert fitted is not None
    assert np.array_equal(fitted[[0, 2]], codes[[0, 2]])
    assert np.abs(fitted[1]).max() <= 1
    same_function(before, graph, random_feeds(graph), 1e-6)


KEPT = "q = QuantizeLinear(x, s, z) xd = DequantizeLinear(q, s, z) "


def kept(scale: npt.ArrayLike, zero: npt.ArrayLike | None, axis: int = 0) -> Graph:
    """A Conv of 3 filters on 2 channels whose weight pair came with the model, and a bias of 1e9."""
    text = f"""(float[1,2,4,4] x) => (float[1,3,4,4] y) {{ {KEPT}
               wd = DequantizeLinear<axis={axis}>(w, ws{"" if zero is None else ", wz"}) y = Conv(xd, wd, b) }}"""
    weights: dict[str, npt.ArrayLike] = {"s": F32(0.02), "z": np.uint8(128), "ws": scale}
    if zero is not None:
        weights["wz"] = zero
    kind = np.int8 if zero is None else np.asarray(zero).dtype
    limits = np.iinfo(kind)
    weights["w"] = RNG.integers(limits.min, limits.max, (3, 2, 1, 1), endpoint=True).astype(kind)
    return graph_of(text, 17, **weights, b=np.full(3, 1e9, F32))


@pytest.mark.parametrize("axis", [1, -3])
def test_kept_weights_with_scales_along_another_axis_are_left_alone(axis: int) -> None:
    graph = kept(np.full(2, 0.1, F32), None, axis)
    assert fit_weight_scales(graph) == round_biases(graph) == 0


def test_a_kept_gemm_weight_with_scales_along_its_inputs_is_left_alone() -> None:
    text = f"(float[3,4] x) => (float[3,4] y) {{ {KEPT} wd = DequantizeLinear<axis=0>(w, ws) y = Gemm(xd, wd, b) }}"
    weights: dict[str, npt.ArrayLike] = {"s": F32(0.02), "z": np.uint8(128), "ws": np.full(4, 0.1, F32)}
    weights["w"] = np.ones((4, 4), np.int8)
    graph = graph_of(text, 17, **weights, b=np.full(4, 1e9, F32))
    assert fit_weight_scales(graph) == round_biases(graph) == 0


@pytest.mark.parametrize("scale", [F32(0.1), np.full(1, 0.1, F32), np.full(3, 0.1, F32)], ids=["0-d", "[1]", "[3]"])
@pytest.mark.parametrize("zero", [None, np.int8, np.uint8])
def test_kept_weights_are_fitted_around_their_zero_point_or_without_one(scale: npt.NDArray[Any], zero: Any) -> None:  # noqa: ANN401  a type
    given = None if zero is None else np.full(np.shape(scale), 0 if zero is np.int8 else 128, zero)
    graph = kept(scale, given)
    before = graph.copy()
    assert fit_weight_scales(graph) == 1
    fitted = graph.const(graph.weights["ws_fitted"])
    assert fitted is not None
    assert fitted.shape == np.shape(scale)
    same_function(before, graph, random_feeds(graph), 1e-6)
    assert round_biases(graph) == 1
