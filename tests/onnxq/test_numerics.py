"""numerics against ONNX Runtime, the ONNX reference evaluator and values worked out by hand."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime  # noqa: TID251 - the oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx.reference import ReferenceEvaluator

from onnxq.numerics import (
    INT8,
    INT8_ASYMMETRIC,
    INT8_WEIGHT,
    NEAR,
    SMALLEST_SCALE,
    UINT8,
    QType,
    QuantParams,
    dequantize,
    held_by,
    numpy_type,
    params_from_range,
    quantize,
    sqnr_db,
    weight_params,
    with_exact_shift,
)
from onnxq.schemes import GRIDS

UINT8_SYMMETRIC = QType("uint8")
FULL_TYPES = (INT8, UINT8, INT8_ASYMMETRIC, UINT8_SYMMETRIC)


@cache
def _qdq_model(dtype: str, axis: int, rank: int) -> bytes:
    code = oh.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = oh.make_graph(
        [
            oh.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=axis),
            oh.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis),
        ],
        "qdq",
        [
            oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None] * rank),
            oh.make_tensor_value_info("s", onnx.TensorProto.FLOAT, None),
            oh.make_tensor_value_info("z", code, None),
        ],
        [
            oh.make_tensor_value_info("q", code, [None] * rank),
            oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * rank),
        ],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


@cache
def _engine(kind: Literal["runtime", "reference"], dtype: str, axis: int, rank: int) -> Any:  # noqa: ANN401 - either of two
    model = _qdq_model(dtype, axis, rank)
    if kind == "reference":
        return ReferenceEvaluator(onnx.load_from_string(model))
    options = onnxruntime.SessionOptions()
    # Otherwise the pair is fused, and q is not what QuantizeLinear gave.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _assert_as_onnx(x: np.ndarray, params: QuantParams) -> None:
    feeds = {"x": x, "s": params.scale, "z": params.zero_point}
    codes = quantize(x, params)
    kinds: list[Literal["runtime", "reference"]] = ["runtime"]
    if np.abs(x).max() < 1e9 * params.scale.min():  # the reference evaluator casts to int32 before it saturates
        kinds.append("reference")
    for kind in kinds:
        q, y = _engine(kind, params.qtype.dtype, params.axis or 0, x.ndim).run(None, feeds)
        np.testing.assert_array_equal(codes, q, err_msg=kind)
        np.testing.assert_array_equal(dequantize(codes, params), y, err_msg=kind)
        assert codes.dtype == q.dtype


finite = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=finite), finite, finite, st.sampled_from(FULL_TYPES))
def test_quantize_is_that_of_onnx(x: np.ndarray, a: float, b: float, qtype: QType) -> None:
    _assert_as_onnx(x, params_from_range(min(a, b), max(a, b), qtype))


@pytest.mark.parametrize("qtype", FULL_TYPES, ids=str)
def test_rounding_of_ties_is_that_of_onnx(qtype: QType) -> None:
    params = QuantParams(np.array(0.25, np.float32), np.array(3, qtype.dtype), qtype)
    _assert_as_onnx(np.arange(-400, 400, dtype=np.float32) / 8, params)


@pytest.mark.parametrize("qtype", GRIDS.values(), ids=list(GRIDS))
def test_every_type_of_activations_is_that_of_onnx(qtype: QType) -> None:
    x = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    params = params_from_range(float(x.min()), float(x.max()), qtype)
    if not qtype.floating:
        _assert_as_onnx(x, params)
        return
    model = onnx.load_from_string(_qdq_model(qtype.dtype, 0, 2))  # Python cannot hand float8 to ONNX Runtime: constants
    held = {"s": params.scale, "z": params.zero_point}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in held.items())
    del model.graph.input[1:]
    del model.graph.output[0]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    real = dequantize(quantize(x, params), params)
    np.testing.assert_array_equal(real, session.run(None, {"x": x})[0])
    np.testing.assert_array_equal(real, ReferenceEvaluator(model).run(None, {"x": x})[0])  # type: ignore[index]  # arrays


@pytest.mark.parametrize("qtype", FULL_TYPES, ids=str)
def test_infinities_and_overflow_saturate_as_in_onnx(qtype: QType) -> None:
    params = QuantParams(np.array(1e-3, np.float32), np.array(7, qtype.dtype), qtype)
    _assert_as_onnx(np.array([np.inf, -np.inf, 3e38, -3e38], np.float32), params)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_per_channel_broadcasts_as_in_onnx(axis: int) -> None:
    w = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    params = weight_params(w, axis)
    assert params.scale.shape == params.zero_point.shape == (w.shape[axis],)
    _assert_as_onnx(w, params)


def test_a_narrow_type_leaves_its_lowest_code_unused() -> None:
    params = QuantParams(np.array(1, np.float32), np.array(0, np.int8), INT8_WEIGHT)
    np.testing.assert_array_equal(quantize(np.array([-500.0, -128.0, 500.0]), params), [-127, -127, 127])


def test_nan_has_no_code() -> None:
    with pytest.raises(ValueError, match="NaN"):
        quantize(np.array([np.nan]), params_from_range(0, 1, INT8))


@pytest.mark.parametrize(
    ("lo", "hi", "qtype", "scale", "zero_point"),
    [
        # round(-128 - lo/s) of the range 0..100: a scale of 100/255, not its inverse, and -128, not 0
        (0, 100, INT8_ASYMMETRIC, 0.392157, -128),
        # a range that excludes 0 is widened; otherwise the zero point would be -133, outside int8
        (0.2, 10.2, INT8_ASYMMETRIC, 0.04, -128),
        (-10.2, -0.2, INT8_ASYMMETRIC, 0.04, 127),
        # -128 + 63.75 = -64.25; with the paper's round(x * min) the codes of [-1, 3] would leave int8
        (-1, 3, INT8_ASYMMETRIC, 4 / 255, -64),
        (-1, 3, UINT8, 4 / 255, 64),
        (-1, 3, INT8, 3 / 127, 0),
        (-3, 1, INT8, 3 / 127, 0),
        (-1, 3, UINT8_SYMMETRIC, 3 / 127, 128),
        (-1, 1, UINT8, 2 / 255, 128),  # 127.5 to even
        (0, 0, UINT8, 1, 0),
        (0, 0, INT8, 1, 0),
        (0, 0, INT8_ASYMMETRIC, 1, -128),
        (0, 1e-44, UINT8, SMALLEST_SCALE, 0),
        (-3e38, 3e38, UINT8, 6e38 / 255, 128),
    ],
)
def test_params_worked_out_by_hand(lo: float, hi: float, qtype: QType, scale: float, zero_point: int) -> None:
    params = params_from_range(lo, hi, qtype)
    assert params.scale == pytest.approx(scale, rel=1e-5)
    assert params.zero_point == zero_point
    assert params.scale.dtype == np.float32
    assert params.zero_point.dtype == np.dtype(qtype.dtype)
    assert (params.scale.shape, params.zero_point.shape, params.axis) == ((), (), None)
    assert isinstance(params.scale, np.ndarray)  # 0-d, not a scalar
    assert isinstance(params.zero_point, np.ndarray)


def test_the_worked_examples_of_affine_quantization() -> None:
    fifty = params_from_range(0, 100, INT8_ASYMMETRIC)
    code = quantize(np.array([50.0], np.float32), fifty)
    assert code[0] == 0  # 127.5 rounds to 128, then -128
    assert dequantize(code, fifty)[0] == pytest.approx(50.196, abs=1e-3)
    output = params_from_range(0.2, 10.2, INT8_ASYMMETRIC)
    code = quantize(np.array([5.2], np.float32), output)
    assert code[0] == 2
    assert dequantize(code, output)[0] == pytest.approx(5.2, abs=1e-5)


def test_the_worked_integer_multiplication() -> None:
    x, w = params_from_range(0, 100, INT8_ASYMMETRIC), weight_params(np.array([0.1]), None)
    q_x, q_w = int(quantize(np.array([50.0]), x)[0]), int(quantize(np.array([0.1]), w)[0])
    step = float(x.scale) * float(w.scale)
    accumulator = q_w * (q_x - int(x.zero_point)) + round(0.2 / step)
    assert (q_w, round(0.2 / step), accumulator) == (127, 648, 16904)
    assert accumulator * step == pytest.approx(5.2197, abs=1e-4)


@pytest.mark.parametrize(("lo", "hi"), [(math.nan, 1), (0, math.inf), (-math.inf, 0), (2, 1), (0, 1e300)])
def test_a_range_without_a_grid_is_refused(lo: float, hi: float) -> None:
    with pytest.raises(ValueError, match=r"finite|float32"):
        params_from_range(lo, hi, INT8)


@settings(max_examples=200, deadline=None)
@given(finite, finite, st.sampled_from(FULL_TYPES), st.floats(0, 1))
def test_zero_is_exact_and_a_value_in_range_is_off_by_half_a_step(a: float, b: float, qtype: QType, at: float) -> None:
    lo, hi = min(a, b, 0.0), max(a, b, 0.0)
    params = params_from_range(lo, hi, qtype)
    x = np.array([0.0, lo + (hi - lo) * at], np.float32)
    error = np.abs(dequantize(quantize(x, params), params) - x)
    assert error[0] == 0
    # An asymmetric zero point is rounded, which moves the grid by up to half a step against the range.
    assert error[1] <= float(params.scale) * (0.501 if qtype.symmetric else 1.001)


def test_absmax_weights_use_the_outermost_codes() -> None:
    w = np.array([[1.0, -2.54, 0.5], [0, 0, 0], [1e-42, 0, 0], [127, 3, -5]], np.float32)
    params = weight_params(w, 0)
    np.testing.assert_allclose(params.scale, [0.02, 1.0, SMALLEST_SCALE, 1.0], rtol=1e-6)
    assert quantize(w, params)[[0, 3], [1, 0]].tolist() == [-127, 127]
    assert float(weight_params(w, None).scale) == pytest.approx(1.0)
    assert weight_params(w.T, -1).axis == 1
    np.testing.assert_array_equal(weight_params(w.T, -1).scale, params.scale)


def _weights(name: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    if name == "outliers":
        w = rng.standard_normal((6, 500))
        w[:, 0] = 12
        return w.astype(np.float32)
    return {"t3": rng.standard_t(3, (6, 300)), "normal": rng.standard_normal((6, 300))}[name].astype(np.float32)


@pytest.mark.parametrize("name", ["outliers", "t3", "normal"])
@pytest.mark.parametrize("axis", [0, None])
def test_mse_weights_are_as_good_as_an_exhaustive_search(name: str, axis: int | None) -> None:
    w = _weights(name)
    rows = w.reshape(1, -1) if axis is None else w
    params = weight_params(w, axis, "mse")
    found = np.square(dequantize(quantize(w, params), params) - w.astype(np.float64)).reshape(rows.shape).sum(axis=1)
    for row, error in zip(rows.astype(np.float64), found, strict=True):
        amax = np.abs(row).max()
        errors = []
        for factor in np.arange(0.2, 1.0001, 0.01):
            scale = factor * amax / 127
            errors.append(np.square(np.clip(np.rint(row / scale), -127, 127) * scale - row).sum())
        assert error <= errors[-1] * (1 + 1e-5)  # never worse than absmax
        assert error <= min(errors) * 1.03  # the coarse grid may step over a narrow dip


def test_mse_weights_gain_on_long_tails_and_keep_special_rows() -> None:
    w = np.random.default_rng(4).standard_t(3, (4, 20_000)).astype(np.float32)
    absmax, mse = (weight_params(w, 0, method) for method in ("absmax", "mse"))
    gain = sqnr_db(w, dequantize(quantize(w, mse), mse)) - sqnr_db(w, dequantize(quantize(w, absmax), absmax))
    assert gain > 0.3
    special = np.array([[0, 0, 0], [3e38, -3e38, 1e38], [1e-40, 0, 0], [5, 5, -5]], np.float32)
    np.testing.assert_allclose(
        weight_params(special, 0, "mse").scale[[0, 2, 3]], [1.0, SMALLEST_SCALE, 5 / 127], rtol=1e-6
    )
    assert np.isfinite(weight_params(special, 0, "mse").scale).all()


def test_mse_weights_do_not_depend_on_the_blocks() -> None:
    w = np.random.default_rng(2).standard_t(4, (3, 150_000)).astype(np.float32)
    each = [weight_params(row, None, "mse").scale for row in w]
    np.testing.assert_array_equal(weight_params(w, 0, "mse").scale, each)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_must_be_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        weight_params(np.array([[1.0, bad]]), 0)


def test_weights_are_symmetric() -> None:
    with pytest.raises(ValueError, match="symmetric"):
        weight_params(np.ones((2, 2)), 0, qtype=UINT8)


@pytest.mark.parametrize("zero_point", [-128, 64, -64, 2])
def test_a_scale_whose_shift_is_exact_is_only_rounded(zero_point: int) -> None:
    params = QuantParams(np.asarray(0.017, np.float32), np.asarray(zero_point, np.int8), INT8_ASYMMETRIC)
    found = with_exact_shift(params, "float16")
    assert (float(found.scale), int(found.zero_point)) == (float(held_by(params.scale, "float16")), zero_point)
    assert found.scale.dtype == np.float32
    assert found.zero_point.dtype == np.int8


@settings(max_examples=200, deadline=None)
@given(
    scale=st.floats(2.0**-10, 8.0, width=32),
    zero_point=st.integers(-128, 127),
    dtype=st.sampled_from(["float16", "bfloat16"]),
)
def test_a_shift_that_a_type_holds(scale: float, zero_point: int, dtype: str) -> None:
    """The best of all grids around, found by trying every number of the type, covers the same range."""
    params = QuantParams(np.asarray(scale, np.float32), np.asarray(zero_point, np.int8), INT8_ASYMMETRIC)
    made = with_exact_shift(params, dtype)
    step, zero = float(made.scale), int(made.zero_point)
    kind = numpy_type(dtype)
    every = np.arange(0x80, 0x7C00 if dtype == "float16" else 0x7F80, dtype=np.uint16).view(kind).astype(np.float64)
    half = float(np.spacing(np.ones(1, np.float16))[0]) / 2 if dtype == "float16" else 2.0**-8

    def cost(s: float, z: int) -> float:
        off = float(np.float64(z * s).astype(kind)) - z * s
        return (s / scale) ** 2 / 12 + 32 * (off / s) ** 2

    others, most = [math.inf], scale * (1 + NEAR)
    for z in range(max(zero_point - 3, -128), min(zero_point + 3, 127) + 1):
        ends = [(zero_point + 128) / (z + 128) if z > -128 else 0.0, (127 - zero_point) / (127 - z) if z < 127 else 0.0]
        if (z > -128 or zero_point == -128) and (z < 127 or zero_point == 127):
            least = scale * max(ends)
            others += [cost(float(s), z) for s in every[(every >= least) & (every <= min(least * (1 + 2.0**-7), most))]]
    assert step in every
    assert cost(step, zero) <= min(others) * (1 + 1e-9)
    assert (-128 - zero) * step <= (-128 - zero_point) * scale * (1 - half)
    assert (127 - zero) * step >= (127 - zero_point) * scale * (1 - half)
    assert step <= most


def test_sqnr() -> None:
    reference = np.array([3.0, 4.0])
    assert sqnr_db(reference, reference * 1.1) == pytest.approx(20.0)
    assert sqnr_db(reference, reference) == math.inf
    assert sqnr_db(np.zeros(2), np.zeros(2)) == math.inf
    assert sqnr_db(np.zeros(2), np.ones(2)) == -math.inf
    uniform = np.random.default_rng(0).uniform(-1, 1, 100_000)
    params = params_from_range(-1, 1, INT8)
    # power 1/3, noise step²/12
    assert sqnr_db(uniform, dequantize(quantize(uniform, params), params)) == pytest.approx(
        10 * math.log10((1 / 3) / ((1 / 127) ** 2 / 12)), abs=0.1
    )
