"""What calibration does to every value: bounds, and counts in the bins of a histogram's two sides.

Compiled (csrc/counting.c) where a C compiler was there when onnxq was installed, else by numpy at 4 to 6 times the
cost: the same bits, as tests hold. The compiled functions leave the interpreter's lock while they work.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import onnxq._counting as _built
except ImportError:  # no compiler was there, and none is needed
    _built = None

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Values = npt.NDArray[Any]
    Sides = npt.NDArray[np.int64]

COMPILED: Any = _built
"""The compiled module; None where it was not built."""

NODES: str | None = _built.__file__ if hasattr(_built, "NODES") else None
"""The library of nodes that do the same inside a model (csrc/nodes.c); None where it was not built."""

BINS = 4096
"""Bins a side. The largest value lies in the upper half, so at least 2048 bins resolve [0, amax]."""

LOG2_BINS = 12

BLOCK = 131072
"""Values that are looked at, then counted: they stay in cache (measured best of 2**14 .. 2**18)."""

_SMALL = -100
"""Below this exponent the factor 2**(12 - exponent) nears float32's limit, and float64 is used."""

_LEAST = -148
"""The exponent of float32's smallest value: below it there are only zeros."""

_LANES = 4
"""Copies of the bins that neighbouring values are counted in by turns, where many of them are the same zero."""


def kernel() -> str:
    """How values are counted here: "compiled" or "numpy"."""
    return "numpy" if COMPILED is None else "compiled"


def blocks(array: Values, size: int = BLOCK) -> Iterator[Values]:
    """The values as contiguous 1-d float32 or float64 blocks, in memory order, without a copy where they allow it.

    Raises:
        TypeError: the array is not of a floating-point type.
    """
    if array.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        raise TypeError(f"a histogram of {array.dtype} values is not defined")
    if array.dtype == np.float32 and array.dtype.isnative and array.flags.aligned and array.flags.c_contiguous:
        flat = array.reshape(-1)
        yield from (flat[start : start + size] for start in range(0, flat.size, size))
        return
    found = np.nditer(  # type: ignore[call-overload]  # numpy's stub lacks the flag contig
        array,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_flags=[["readonly", "contig", "aligned"]],
        op_dtypes=[np.float64 if array.dtype.name == "float64" else np.float32],
        order="K",
        casting="safe",
        buffersize=size,
    )
    with found:
        yield from found


def bounds(block: Values) -> tuple[float, float] | None:
    """The smallest and the largest value; None where one is not finite.

    Args:
        block: float32 or float64, contiguous, not empty.
    """
    if COMPILED is not None and block.dtype == np.float32:
        found: tuple[float, float] | None = COMPILED.bounds(block)
        return found
    with np.errstate(invalid="ignore"):
        low, high = float(block.min()), float(block.max())
    # low - high may itself overflow
    return (low, high) if math.isfinite(low - high) or bool(np.isfinite(block).all()) else None


def count(block: Values, exponent: int, sides: Sides, scratch: npt.NDArray[np.float64] | None = None) -> int:
    """Add one to the bin floor(|x| * BINS * 2**-exponent) of its side for every x but zeros; return how many these are.

    Args:
        block: finite float32 or float64 values below 2**exponent in size, contiguous, not empty.
        exponent: of the range; whatever, where all are zeros.
        sides: int64[2, BINS], positive and negative, added to.
        scratch: two rows of at least block.size numbers to overwrite; made where it is None.
    """
    if COMPILED is not None and block.dtype == np.float32:
        factor = math.ldexp(1.0, LOG2_BINS - max(exponent, _LEAST))
        zeros: int = COMPILED.count(block, factor, sides)
        return zeros
    return _count(block, exponent, sides, np.empty((2, block.size)) if scratch is None else scratch)


def scratch_for(array: Values) -> npt.NDArray[np.float64] | None:
    """Room to count the blocks of an array in: fresh room for each would cost more than counting."""
    if COMPILED is not None and array.dtype.name != "float64":
        return None
    return np.empty((2, min(BLOCK, array.size)), np.float64)


# -- numpy ---------------------------------------------------------------------------------------------------------


def _count(block: Values, exponent: int, sides: Sides, scratch: npt.NDArray[np.float64]) -> int:
    zeros = int(np.count_nonzero(block == 0))
    negative = bool(block.min() < 0)
    bins, spare = _bins(block, exponent, scratch)
    if negative:
        _count_sides(block, bins, spare, sides)
    else:
        sides[0] += _count_lanes(bins) if 8 * zeros > block.size else np.bincount(bins, minlength=BINS)
    if zeros:  # the sign bit of a -0.0 says which side it was counted on
        minus = int(np.count_nonzero(np.signbit(block[block == 0]))) if negative else 0
        sides[:, 0] -= zeros - minus, minus
    return zeros


def _bins(block: Values, exponent: int, scratch: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int32], Values]:
    """floor(|x| * BINS * 2**-exponent) with the sign of x, and the other half of the scratch, of block's type and size.

    scratch is two rows of at least block.size numbers to overwrite.
    """
    fast = block.dtype == np.float32 and exponent >= _SMALL
    values = block if fast else block.astype(np.float64, copy=False)
    scaled = scratch[0].view(values.dtype)[: values.size]
    if fast:  # exact: a product by a power of two rounds only when it is subnormal, deep inside bin 0
        np.multiply(values, np.float32(math.ldexp(1.0, LOG2_BINS - exponent)), out=scaled)
    else:
        np.ldexp(values, LOG2_BINS - exponent, out=scaled)
    bins = scratch[1].view(np.int32)[: values.size]
    np.copyto(bins, scaled, casting="unsafe")  # truncates towards 0
    return bins, scratch[0].view(block.dtype)[: block.size]


def _count_sides(block: Values, bins: npt.NDArray[np.int32], spare: Values, sides: Sides) -> None:
    """Add the counts of both sides to `sides`; zeros go into bin 0 of their sign's side. spare is overwritten."""
    signs = spare.view(f"i{block.itemsize}")
    np.right_shift(block.view(signs.dtype), 8 * block.itemsize - 1, out=signs)  # the sign bit: -1 or 0
    bins += signs  # so bin k of -x is -1 - k, apart from bin 0 of x
    bins += BINS
    counts = np.bincount(bins, minlength=2 * BINS)
    sides[0] += counts[BINS:]
    sides[1] += counts[BINS - 1 :: -1]


def _count_lanes(bins: npt.NDArray[np.int32]) -> Sides:
    """np.bincount of bins, which are overwritten. A counter that is hit twice in a row waits for itself."""
    bins += _lanes(BLOCK)[: bins.size]
    counts: Sides = np.bincount(bins, minlength=_LANES * BINS).reshape(_LANES, BINS).sum(axis=0)
    return counts


@lru_cache(maxsize=1)
def _lanes(size: int) -> npt.NDArray[np.int32]:
    lanes = np.arange(size, dtype=np.int32) % _LANES * BINS
    lanes.flags.writeable = False
    return lanes
