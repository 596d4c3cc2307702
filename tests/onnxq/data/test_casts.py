from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from data_samples import I64, fails

from onnxq.data import InputSpec, check_feed
from onnxq.data.casts import in_range
from onnxq.errors import DataError


def cast(array: object, dtype: Any) -> Any:  # noqa: ANN401
    array = np.asarray(array)
    return check_feed({"x": array}, [InputSpec("x", np.dtype(dtype), None)], "here")["x"]


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([1, -2], np.int32), "int64"),
        (np.array([1, -2], np.int64), "int32"),
        (np.array([0.1, 3e38, 1e-50, np.nan, np.inf]), "float32"),
        (np.array([0, 255], np.uint8), "float32"),
        (np.array([0, 255], np.uint8), "float16"),
        (np.array([2**24, -(2**24)], np.int64), "float32"),
        (np.array([2.0, -3.0], np.float32), "int8"),
        (np.array([0.5, 65504.0, np.nan], np.float32), "float16"),
        (np.array([0.1], np.float16), "float64"),
        (np.array([True, False]), "float32"),
        (np.array([0, 1]), "bool"),
        (np.array([2**63 - 1], np.uint64), "int64"),
        (np.array([1.5], ">f4"), "<f4"),
        (np.zeros((0, 3)), "int8"),
    ],
)
def test_casts_that_keep_the_values(array: np.ndarray[Any, Any], dtype: str) -> None:
    result = cast(array, dtype)
    assert result.dtype == np.dtype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        expected = [np.dtype(dtype).type(value) for value in array.ravel().tolist()]
    np.testing.assert_array_equal(result.ravel(), np.array(expected, dtype))


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([1e39]), "float32"),
        (np.array([0.5]), "int64"),
        (np.array([np.nan]), "int64"),
        (np.array([np.inf]), "int64"),
        (np.array([2.0**63]), "int64"),
        (np.array([2**24 + 1]), "float32"),
        (np.array([2**63 - 1]), "float64"),
        (np.array([2**32 + 1]), "int32"),
        (np.array([-1]), "uint64"),
        (np.array([2**63], np.uint64), "int64"),
        (np.array([256]), "uint8"),
        (np.array([2]), "bool"),
        (np.array([0.1], np.float32), "float16"),
        (np.array([0.1]), "float16"),
        (np.array([1j]), "float32"),
        (np.array([1.0], object), "float32"),
    ],
)
def test_casts_that_lose_values_are_refused(array: np.ndarray[Any, Any], dtype: str) -> None:
    with fails(DataError, f"here: input 'x' is {array.dtype}; the model takes {dtype}", f"astype('{dtype}')"):
        cast(array, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bfloat16_may_round(dtype: str) -> None:
    """Numpy's files hold none of it."""
    array = np.array([0.1, -1e-40, 3e38, np.nan, np.inf], dtype)
    result = cast(array, "bfloat16")
    assert result.dtype == ml_dtypes.bfloat16
    held = array.astype(np.float32).view(np.uint32)  # rounded to nearest, ties to even (IEEE 754)
    nearest = ((held + 0x7FFF + ((held >> 16) & 1)) >> 16).astype(np.uint16)
    finite = np.isfinite(array)
    np.testing.assert_array_equal(result.view(np.uint16)[finite], nearest[finite])
    np.testing.assert_array_equal(result[~finite].astype(np.float64), array[~finite])
    with fails(DataError, "the cast would lose values"):
        cast(np.array([3.4e38], dtype), "bfloat16")


def test_so_may_float16() -> None:
    array = np.array([1 + 2**-7 + 2**-9, 65504, -(2.0**-24), np.nan, -np.inf], np.float16)
    expected = np.array([1 + 2**-7, 65536, -(2.0**-24), np.nan, -np.inf])  # 8 digits, and the exponents of float32
    np.testing.assert_array_equal(cast(array, "bfloat16").astype(np.float64), expected)


def test_ranges_are_compared_exactly() -> None:
    # On its own, because which of the casts above it alone catches depends on the processor.
    assert in_range(np.array([2**63 - 1], np.uint64), I64)
    assert not in_range(np.array([2**63], np.uint64), I64)
    assert not in_range(np.array([2.0**63]), I64)
    assert in_range(np.array([-(2.0**63)]), I64)
    assert not in_range(np.array([np.nan]), I64)
