"""Casts of feeds to the types of the model's inputs, where nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


_ROUNDED = (("float64", "float32"), *((wide, "bfloat16") for wide in ("float16", "float32", "float64")))


def cast(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    """The array as dtype, or None where the cast would lose values.

    A cast keeps the values when it survives the round trip within the range of both types. Two may also round:
    float64 -> float32, since images are often stored so and the model would see no more, and other floats -> bfloat16,
    of which numpy holds no files.
    """
    if array.dtype.kind not in "biuf" or dtype.kind not in "biufV":  # V: bfloat16 and other extension floats
        return None
    with np.errstate(all="ignore"):  # what overflows is found below
        result = array.astype(dtype)
        if (array.dtype.name, dtype.name) in _ROUNDED:
            return result if np.array_equal(np.isinf(array), np.isinf(result)) else None
        if not (in_range(array, dtype) and in_range(result, array.dtype)):
            return None
        back = result.astype(array.dtype)
    return result if np.array_equal(back, array, equal_nan=array.dtype.kind == "f") else None


def in_range(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Whether an integer dtype spans the values; True for any other dtype.

    Casts out of range wrap, or saturate on some processors; either can survive a round trip.
    """
    if dtype.kind not in "iu" or not values.size:
        return True
    info = np.iinfo(dtype)  # item() makes Python numbers, which compare exactly
    return bool(values.min().item() >= info.min and values.max().item() <= info.max)
