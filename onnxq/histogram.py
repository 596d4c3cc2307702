"""Histograms that add exactly.

The range of a side is [0, 2**exponent) and only doubles, so bins are nested dyadic intervals: a histogram is a pure
function of the multiset of values it saw, bit for bit, whatever the order, the batches or the tree of merges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BINS = 4096
"""Bins a side. The largest value lies in the upper half, so at least 2048 bins resolve [0, amax]."""

_LOG2_BINS = 12
_NO_EXPONENT = -1074
"""Of a histogram without nonzero values: below the exponent of every float64."""

_BLOCK = 131072
"""Values counted at a time: the temporaries stay in cache (measured best of 2**14 .. 2**18)."""

_SMALL = -100
"""Below this exponent the factor 2**(12 - exponent) nears float32's limit, and float64 is used."""

_LANES = 4
"""Copies of the bins that neighbouring values are counted in by turns, where many of them are the same zero."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Histogram:
    """What a tensor's values were; `a + b` has seen the values of both.

    Attributes:
        exponent: a side covers [0, 2**exponent); the smallest integer with max|x| < 2**exponent.
        positive: int64[BINS], read-only; bin k counts x > 0 with k = floor(x * BINS * 2**-exponent).
        negative: the same of -x, for x < 0.
        zeros: exact zeros, which are in no bin.
        nan, pos_inf, neg_inf: values that are not finite, which are in no bin.
        min, max: exact bounds of the finite values; inf and -inf when there are none.
    """

    exponent: int
    positive: Counts
    negative: Counts
    zeros: int
    nan: int
    pos_inf: int
    neg_inf: int
    min: float
    max: float

    def __post_init__(self) -> None:
        for side in (self.positive, self.negative):
            side.flags.writeable = False

    @staticmethod
    def empty() -> Histogram:
        """The histogram of no values: the neutral element of +."""
        nothing = np.zeros(BINS, np.int64)
        return Histogram(_NO_EXPONENT, nothing, nothing, 0, 0, 0, 0, math.inf, -math.inf)

    @staticmethod
    def of(array: npt.NDArray[Any]) -> Histogram:
        """Count a float16, bfloat16, float32 or float64 array of any shape and layout, in bounded memory.

        Raises:
            TypeError: the array is of another type.
        """
        tally = Tally()
        tally.add(array)
        return tally.histogram()

    def __add__(self, other: object) -> Histogram:
        if not isinstance(other, Histogram):
            return NotImplemented
        exponent = max(self.exponent, other.exponent)
        return Histogram(
            exponent,
            _widen(self.positive, exponent - self.exponent) + _widen(other.positive, exponent - other.exponent),
            _widen(self.negative, exponent - self.exponent) + _widen(other.negative, exponent - other.exponent),
            self.zeros + other.zeros,
            self.nan + other.nan,
            self.pos_inf + other.pos_inf,
            self.neg_inf + other.neg_inf,
            min(self.min, other.min),
            max(self.max, other.max),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return (
            self._scalars() == other._scalars()
            and np.array_equal(self.positive, other.positive)
            and np.array_equal(self.negative, other.negative)
        )

    def __hash__(self) -> int:
        return hash(self._scalars())

    def _scalars(self) -> tuple[float, ...]:
        counts = (self.exponent, self.zeros, self.nan, self.pos_inf, self.neg_inf)
        return (*counts, self.min, self.max)

    @property
    def count(self) -> int:
        """Finite values seen, zeros among them."""
        return int(self.folded().sum()) + self.zeros

    @property
    def nonfinite(self) -> int:
        """NaN and infinities seen."""
        return self.nan + self.pos_inf + self.neg_inf

    @property
    def amax(self) -> float:
        """Exact max|x| of the finite values; 0 when there are none."""
        return max(-self.min, self.max, 0.0)

    @property
    def bin_width(self) -> float:
        """2**exponent / BINS, exact."""
        return math.ldexp(1.0, self.exponent - _LOG2_BINS)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """Edges of a side's bins as |x|: float64[BINS + 1], ascending from 0, exact."""
        return np.arange(BINS + 1, dtype=np.float64) * self.bin_width

    def centers(self) -> npt.NDArray[np.float64]:
        """Centers of a side's bins as |x|: float64[BINS], ascending."""
        return np.arange(0.5, BINS) * self.bin_width

    def folded(self) -> Counts:
        """Counts of |x|: int64[BINS], zeros left out."""
        return self.positive + self.negative

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Flat arrays that `from_arrays` takes back; an empty side is left out."""
        counts = (self.exponent, self.zeros, self.nan, self.pos_inf, self.neg_inf)
        sides = {"positive": self.positive, "negative": self.negative}
        return {
            "counts": np.array(counts, np.int64),
            "bounds": np.array((self.min, self.max), np.float64),
            **{name: side for name, side in sides.items() if side.any()},
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Histogram:
        """The histogram that `to_arrays` wrote.

        Raises:
            ValueError: an array is missing or has a wrong shape.
        """
        counts, bounds = arrays.get("counts", np.empty(0)), arrays.get("bounds", np.empty(0))
        sides = [np.array(arrays.get(name, np.zeros(BINS)), np.int64) for name in ("positive", "negative")]
        if counts.shape != (5,) or bounds.shape != (2,) or any(side.shape != (BINS,) for side in sides):
            raise ValueError(f"not a histogram of {BINS} bins a side")
        exponent, *others = (int(count) for count in counts)
        return Histogram(exponent, sides[0], sides[1], *others, *(float(bound) for bound in bounds))


class Extent:
    """The bounds of a tensor while its arrays come in: what a `Tally` knows of them, without its bins."""

    def __init__(self) -> None:
        self._nan = self._pos_inf = self._neg_inf = 0
        self._min, self._max = math.inf, -math.inf

    @property
    def nonfinite(self) -> tuple[int, int, int]:
        """NaN, +inf and -inf counted so far."""
        return self._nan, self._pos_inf, self._neg_inf

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest finite value; (inf, -inf) when there was none."""
        return self._min, self._max

    def add(self, array: npt.NDArray[Any]) -> None:
        """Look at a floating-point array of any shape and layout."""
        if not array.size:
            return
        with np.errstate(invalid="ignore"):
            low, high = float(array.min()), float(array.max())
        if not math.isfinite(low - high) and not np.isfinite(array).all():
            self._nan += int(np.count_nonzero(np.isnan(array)))
            self._pos_inf += int(np.count_nonzero(array == np.inf))
            self._neg_inf += int(np.count_nonzero(array == -np.inf))
            finite = array[np.isfinite(array)]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (math.inf, -math.inf)
        self._min, self._max = min(self._min, low + 0.0), max(self._max, high + 0.0)


class Tally:
    """A histogram while it is being filled: many arrays are added in place, at less than the price of a sum each."""

    def __init__(self) -> None:
        self._exponent = _NO_EXPONENT
        self._sides = np.zeros((2, BINS), np.int64)  # positive and negative
        self._zeros = self._nan = self._pos_inf = self._neg_inf = 0
        self._min, self._max = math.inf, -math.inf

    @property
    def nonfinite(self) -> tuple[int, int, int]:
        """NaN, +inf and -inf counted so far."""
        return self._nan, self._pos_inf, self._neg_inf

    def histogram(self) -> Histogram:
        """The histogram of all values counted so far."""
        positive, negative = self._sides.copy()
        scalars = (self._zeros, self._nan, self._pos_inf, self._neg_inf, self._min, self._max)
        return Histogram(self._exponent, positive, negative, *scalars)

    def add(self, array: npt.NDArray[Any]) -> None:
        """Count a float16, bfloat16, float32 or float64 array of any shape and layout, in bounded memory.

        Raises:
            TypeError: the array is of another type.
        """
        scratch = np.empty((2, min(_BLOCK, array.size)), np.float64)  # fresh ones would cost more than counting
        for block in _blocks(array):
            self._add_block(block, scratch)

    def _add_block(self, block: npt.NDArray[Any], scratch: npt.NDArray[np.float64]) -> None:
        with np.errstate(invalid="ignore"):
            low, high = float(block.min()), float(block.max())
        if not math.isfinite(low - high) and not np.isfinite(block).all():  # low - high may itself overflow
            self._nan += int(np.count_nonzero(np.isnan(block)))
            self._pos_inf += int(np.count_nonzero(block == np.inf))
            self._neg_inf += int(np.count_nonzero(block == -np.inf))
            block = block[np.isfinite(block)]
            if not block.size:
                return
            low, high = float(block.min()), float(block.max())
        if largest := max(-low, high):
            self._reach(math.frexp(largest)[1])
        zeros = int(np.count_nonzero(block == 0)) if low <= 0 <= high else 0
        bins, scaled = _bins(block, self._exponent, scratch)
        if low < 0:
            _count_sides(block, bins, scaled, self._sides)
        else:
            self._sides[0] += _count_lanes(bins) if 8 * zeros > block.size else np.bincount(bins, minlength=BINS)
        if zeros:  # the sign bit of a -0.0 says which side it was counted on
            minus = int(np.count_nonzero(np.signbit(block[block == 0]))) if low < 0 else 0
            self._sides[:, 0] -= zeros - minus, minus
        self._zeros += zeros
        # Adding 0.0 makes a bound of -0.0 positive, whichever zero came first.
        self._min, self._max = min(self._min, low + 0.0), max(self._max, high + 0.0)

    def _reach(self, exponent: int) -> None:
        """Widen the range to [0, 2**exponent) where it is smaller."""
        if exponent > self._exponent:
            self._sides = np.stack([_widen(side, exponent - self._exponent) for side in self._sides])
            self._exponent = exponent


def _blocks(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The values as 1-d float32 or float64 blocks, in memory order, without a copy where they allow it."""
    if array.dtype.name not in ("float16", "bfloat16", "float32", "float64"):
        raise TypeError(f"a histogram of {array.dtype} values is not defined")
    dtype = np.float64 if array.dtype.name == "float64" else np.float32
    blocks = np.nditer(
        array,
        flags=["external_loop", "buffered", "zerosize_ok"],
        op_dtypes=[dtype],
        order="K",
        casting="safe",
        buffersize=_BLOCK,
    )
    with blocks:
        yield from blocks


def _bins(
    block: npt.NDArray[Any], exponent: int, scratch: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
    """floor(|x| * BINS * 2**-exponent) with the sign of x, and the other half of the scratch, of block's type and size.

    scratch is two rows of at least block.size numbers to overwrite.
    """
    fast = block.dtype == np.float32 and exponent >= _SMALL
    values = block if fast else block.astype(np.float64, copy=False)
    scaled = scratch[0].view(values.dtype)[: values.size]
    if fast:  # exact: a product by a power of two rounds only when it is subnormal, deep inside bin 0
        np.multiply(values, np.float32(math.ldexp(1.0, _LOG2_BINS - exponent)), out=scaled)
    else:
        np.ldexp(values, _LOG2_BINS - exponent, out=scaled)
    bins = scratch[1].view(np.int32)[: values.size]
    np.copyto(bins, scaled, casting="unsafe")  # truncates towards 0
    return bins, scratch[0].view(block.dtype)[: block.size]


def _count_sides(
    block: npt.NDArray[Any], bins: npt.NDArray[np.int32], spare: npt.NDArray[Any], sides: npt.NDArray[np.int64]
) -> None:
    """Add the counts of both sides to `sides`; zeros go into bin 0 of their sign's side. spare is overwritten."""
    signs = spare.view(f"i{block.itemsize}")
    np.right_shift(block.view(signs.dtype), 8 * block.itemsize - 1, out=signs)  # the sign bit: -1 or 0
    bins += signs  # so bin k of -x is -1 - k, apart from bin 0 of x
    bins += BINS
    counts = np.bincount(bins, minlength=2 * BINS)
    sides[0] += counts[BINS:]
    sides[1] += counts[BINS - 1 :: -1]


def _count_lanes(bins: npt.NDArray[np.int32]) -> Counts:
    """np.bincount of bins, which are overwritten. A counter that is hit twice in a row waits for itself."""
    bins += _lanes(_BLOCK)[: bins.size]
    counts: Counts = np.bincount(bins, minlength=_LANES * BINS).reshape(_LANES, BINS).sum(axis=0)
    return counts


@lru_cache(maxsize=1)
def _lanes(size: int) -> npt.NDArray[np.int32]:
    lanes = np.arange(size, dtype=np.int32) % _LANES * BINS
    lanes.flags.writeable = False
    return lanes


def _widen(counts: Counts, doublings: int) -> Counts:
    """The counts after the range has doubled so many times: bins merge in pairs, then in pairs again."""
    if doublings == 0:
        return counts
    merged = counts.reshape(-1, 1 << min(doublings, _LOG2_BINS)).sum(axis=1)
    return np.concatenate([merged, np.zeros(BINS - merged.size, np.int64)])
