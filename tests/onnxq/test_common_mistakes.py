"""What widely read notes on quantization get wrong, each with the right value in plain integers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxq.numerics import INT8, INT8_ASYMMETRIC, INT8_WEIGHT, QType, dequantize, params_from_range, quantize


def test_the_worked_example_in_integers() -> None:
    """y = 0.1 x + 0.2 for x in [0, 100], at x = 50: a bias is int32 in steps of s_w s_x, and zero points count."""
    x = params_from_range(0.0, 100.0, INT8_ASYMMETRIC)
    y = params_from_range(0.2, 10.2, INT8_ASYMMETRIC)  # 0 is added to the range, or z would be -133
    w = params_from_range(-0.1, 0.1, INT8_WEIGHT)
    assert (round(float(x.scale), 6), int(x.zero_point)) == (0.392157, -128)
    assert (round(float(y.scale), 6), int(y.zero_point)) == (0.04, -128)
    q_x, q_w = quantize(np.array([50], np.float32), x), quantize(np.array([0.1], np.float32), w)
    assert (q_x.tolist(), q_w.tolist()) == ([0], [127])  # 127.5 is rounded to even, 128
    assert round(float(dequantize(q_x, x)[0]), 3) == 50.196
    step = float(x.scale) * float(w.scale)
    bias = round(0.2 / step)
    total = 127 * (0 - -128) + bias
    assert (bias, total) == (648, 16904)
    real = total * step
    assert round(real, 4) == 5.2197
    q_y = quantize(np.array([real], np.float32), y)
    assert q_y.tolist() == [2]
    assert abs(float(dequantize(q_y, y)[0]) - 5.2) < 1e-6
    assert abs(5.2 - real) <= float(x.scale) / 2 * 0.1 + step  # half a step of x, times w


def test_a_zero_point_is_rounded_from_the_range_and_no_middle_code() -> None:
    for low, high, expected in ((-1.0, 3.0, -64), (0.0, 6.0, -128), (-6.0, 0.0, 127), (-1.0, 1.0, 0)):
        params = params_from_range(low, high, INT8_ASYMMETRIC)
        assert (
            int(params.zero_point) == expected == round(max(-128, min(127, np.rint(-128 - low * 255 / (high - low)))))
        )
        ends = quantize(np.array([low, high], np.float32), params).tolist()
        assert ends == [-128, 127] or low == -high  # 256 codes are 255 steps
    symmetric = params_from_range(-1.0, 1.0, INT8)
    assert float(symmetric.scale) == np.array(1 / 127, np.float32)  # 127 steps to a side, not 255 over all
    assert int(symmetric.zero_point) == 0


@given(arrays(np.int8, (3, 5)), arrays(np.int8, (5, 4)), st.integers(-128, 127), st.integers(-128, 127))
def test_a_matrix_product_of_integers_takes_row_and_column_sums(
    a: npt.NDArray[np.int8], b: npt.NDArray[np.int8], z_a: int, z_b: int
) -> None:
    """(A - za)(B - zb) = AB - zb rowsum(A) - za colsum(B) + K za zb, in 32 bits: a term reaches 255 * 255."""
    left, right = a.astype(np.int32), b.astype(np.int32)
    expected = (left - z_a) @ (right - z_b)
    rows, columns = left.sum(axis=1, keepdims=True), right.sum(axis=0, keepdims=True)
    np.testing.assert_array_equal(left @ right - z_b * rows - z_a * columns + 5 * z_a * z_b, expected)
    assert np.iinfo(np.int16).max < 255 * 255


def test_dequantization_subtracts_the_zero_point() -> None:
    params = params_from_range(-1.0, 3.0, INT8_ASYMMETRIC)
    x = np.linspace(-1, 3, 50, dtype=np.float32)
    q = quantize(x, params)
    assert np.abs(dequantize(q, params) - x).max() <= float(params.scale) / 2 * (1 + 1e-5)
    assert np.abs(q * params.scale - x).max() > 0.9  # what forgetting it costs


def test_the_range_of_exponents_of_float8() -> None:
    """E4M3FN has no infinity and uses its all-ones exponent: 448, not 240; E5M2 reserves it: 57344."""
    for name, largest, smallest in (("float8_e4m3fn", 448, 2.0**-9), ("float8_e5m2", 57344, 2.0**-16)):
        qtype = QType(name)
        info = ml_dtypes.finfo(qtype.stored)  # type: ignore[no-untyped-call]  # it ships no types
        assert (qtype.qmax, float(info.max), float(info.smallest_subnormal)) == (largest, largest, smallest)
