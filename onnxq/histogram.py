"""Histograms that add exactly.

The range of a side is [0, 2**exponent) and only doubles, so bins are nested dyadic intervals: a histogram is a pure
function of the multiset of values it saw, bit for bit, whatever the order, the batches or the tree of merges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
        total, scratch = Histogram.empty(), np.empty((2, min(_BLOCK, array.size)), np.float64)
        for block in _blocks(array):
            total += _count(block, total.exponent, scratch)
        return total

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


def _count(block: npt.NDArray[Any], at_least: int, scratch: npt.NDArray[np.float64]) -> Histogram:
    """Histogram of a block, at an exponent of at_least or the larger one that its values need.

    scratch is two rows of at least block.size numbers to overwrite: fresh temporaries would cost more than counting.
    """
    with np.errstate(invalid="ignore"):
        low, high = float(block.min()), float(block.max())
    if not math.isfinite(low - high) and not np.isfinite(block).all():  # low - high may itself overflow
        nan = int(np.count_nonzero(np.isnan(block)))
        pos_inf, neg_inf = int(np.count_nonzero(block == np.inf)), int(np.count_nonzero(block == -np.inf))
        nothing = np.zeros(BINS, np.int64)
        others = Histogram(at_least, nothing, nothing, 0, nan, pos_inf, neg_inf, math.inf, -math.inf)
        finite = block[np.isfinite(block)]
        return others + _count(finite, at_least, scratch) if finite.size else others
    largest = max(-low, high)
    exponent = max(at_least, math.frexp(largest)[1]) if largest else at_least
    zeros = int(np.count_nonzero(block == 0)) if low <= 0 <= high else 0
    positive, negative = _bin(block, exponent, scratch, two_sided=low < 0)
    if zeros:  # the sign bit of a -0.0 says which side it was binned on
        minus = int(np.count_nonzero(np.signbit(block[block == 0]))) if low < 0 else 0
        positive[0] -= zeros - minus
        negative[0] -= minus
    # Adding 0.0 makes a bound of -0.0 positive, whichever zero came first.
    return Histogram(exponent, positive, negative, zeros, 0, 0, 0, low + 0.0, high + 0.0)


def _bin(
    block: npt.NDArray[Any], exponent: int, scratch: npt.NDArray[np.float64], *, two_sided: bool
) -> tuple[Counts, Counts]:
    """Counts of both sides; zeros go into bin 0 of their sign's side (all positive if not two_sided)."""
    fast = block.dtype == np.float32 and exponent >= _SMALL
    values = block if fast else block.astype(np.float64, copy=False)
    scaled = scratch[0].view(values.dtype)[: values.size]
    if fast:  # exact: a product by a power of two rounds only when it is subnormal, deep inside bin 0
        np.multiply(values, np.float32(math.ldexp(1.0, _LOG2_BINS - exponent)), out=scaled)
    else:
        np.ldexp(values, _LOG2_BINS - exponent, out=scaled)
    bins = scratch[1].view(np.int32)[: values.size]
    np.copyto(bins, scaled, casting="unsafe")  # truncates towards 0
    if not two_sided:
        return np.bincount(bins, minlength=BINS), np.zeros(BINS, np.int64)
    signs = scaled.view(f"i{values.itemsize}")
    np.right_shift(values.view(signs.dtype), 8 * values.itemsize - 1, out=signs)  # the sign bit: -1 or 0
    bins += signs  # so bin k of -x is -1 - k, apart from bin 0 of x
    bins += BINS
    counts = np.bincount(bins, minlength=2 * BINS)
    return counts[BINS:].copy(), counts[BINS - 1 :: -1].copy()


def _widen(counts: Counts, doublings: int) -> Counts:
    """The counts after the range has doubled so many times: bins merge in pairs, then in pairs again."""
    if doublings == 0:
        return counts
    merged = counts.reshape(-1, 1 << min(doublings, _LOG2_BINS)).sum(axis=1)
    return np.concatenate([merged, np.zeros(BINS - merged.size, np.int64)])
