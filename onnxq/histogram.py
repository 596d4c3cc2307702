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

from onnxq.counting import BINS, BLOCK, LOG2_BINS, blocks, bounds, count, scratch_for

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOG2_BINS = LOG2_BINS
NO_EXPONENT = -1074
"""Of a histogram without nonzero values: below the exponent of every float64."""

_BLOCK = BLOCK

Counts = npt.NDArray[np.int64]

_NOTHING: Counts = np.zeros(BINS, np.int64)
_NOTHING.setflags(write=False)  # all empty histograms share it


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
        return bounds_alone(math.inf, -math.inf, 0, 0, 0)

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

    def without(self, part: Histogram) -> Histogram:
        """What is left when the values of `part`, all of which this one has seen, are taken out.

        Counts are exact, on this one's bins; where the smallest or largest value was of `part`, the bound is the outer
        edge of the outermost bin that is left.
        """
        positive, negative = (
            ours - _widen(theirs, self.exponent - part.exponent)
            for ours, theirs in ((self.positive, part.positive), (self.negative, part.negative))
        )
        edges = [float(np.flatnonzero(side).max(initial=-1) + 1) * self.bin_width for side in (negative, positive)]
        low, high = max(self.min, -edges[0]), min(self.max, edges[1])
        if low > high:  # nothing is left
            low, high = math.inf, -math.inf
        counts = (self.nan - part.nan, self.pos_inf - part.pos_inf, self.neg_inf - part.neg_inf)
        return Histogram(self.exponent, positive, negative, self.zeros - part.zeros, *counts, low, high)

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
    def nbytes(self) -> int:
        """Bytes of the counts."""
        return self.positive.nbytes + self.negative.nbytes

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

    def signed(self) -> tuple[npt.NDArray[np.float64], Counts]:
        """Centers of the bins of both sides, ascending, and their counts, each [2 BINS]; zeros left out."""
        centers = self.centers()
        return np.concatenate([-centers[::-1], centers]), np.concatenate([self.negative[::-1], self.positive])

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


def bounds_alone(low: float, high: float, nan: int, pos_inf: int, neg_inf: int) -> Histogram:
    """What an `Extent` takes: a histogram of which no bin was counted."""
    return Histogram(NO_EXPONENT, _NOTHING, _NOTHING, 0, nan, pos_inf, neg_inf, low, high)


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
        """Look at a float16, bfloat16, float32 or float64 array of any shape and layout.

        Raises:
            TypeError: the array is of another type.
        """
        for block in blocks(array, _BLOCK):
            self.look(block)

    def take(self, found: Histogram) -> None:
        """Add what another looked at."""
        self._nan, self._pos_inf, self._neg_inf = (
            self._nan + found.nan,
            self._pos_inf + found.pos_inf,
            self._neg_inf + found.neg_inf,
        )
        self._min, self._max = min(self._min, found.min), max(self._max, found.max)

    def look(self, block: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], float]:
        """Look at what `blocks` gives; return its finite values and the largest |x| of them, 0 where there are none."""
        found = bounds(block)
        if found is None:
            self._nan += int(np.count_nonzero(np.isnan(block)))
            self._pos_inf += int(np.count_nonzero(block == np.inf))
            self._neg_inf += int(np.count_nonzero(block == -np.inf))
            block = block[np.isfinite(block)]
            if not block.size:
                return block, 0.0
            found = float(block.min()), float(block.max())
        low, high = found
        # Adding 0.0 makes a bound of -0.0 positive, whichever zero came first.
        self._min, self._max = min(self._min, low + 0.0), max(self._max, high + 0.0)
        return block, max(-low, high)


class Tally:
    """A histogram while it is being filled: many arrays are added in place, at less than the price of a sum each."""

    def __init__(self) -> None:
        self._exponent = NO_EXPONENT
        self._sides = np.zeros((2, BINS), np.int64)  # positive and negative
        self._zeros = 0
        self._extent = Extent()

    @property
    def nonfinite(self) -> tuple[int, int, int]:
        """NaN, +inf and -inf counted so far."""
        return self._extent.nonfinite

    def histogram(self) -> Histogram:
        """The histogram of all values counted so far."""
        positive, negative = self._sides.copy()
        return Histogram(self._exponent, positive, negative, self._zeros, *self._extent.nonfinite, *self._extent.bounds)

    def add(self, array: npt.NDArray[Any]) -> None:
        """Count a float16, bfloat16, float32 or float64 array of any shape and layout, in bounded memory.

        Raises:
            TypeError: the array is of another type.
        """
        scratch = scratch_for(array)
        for block in blocks(array, _BLOCK):
            finite, largest = self._extent.look(block)
            if largest:
                self._reach(math.frexp(largest)[1])
            if finite.size:
                self._zeros += count(finite, self._exponent, self._sides, scratch)

    def take(self, found: Histogram) -> None:
        """Add what another counted."""
        self._reach(found.exponent)
        for side, counts in enumerate((found.positive, found.negative)):
            self._sides[side] += _widen(counts, self._exponent - found.exponent)
        self._zeros += found.zeros
        self._extent.take(found)

    def _reach(self, exponent: int) -> None:
        """Widen the range to [0, 2**exponent) where it is smaller."""
        if exponent > self._exponent:
            self._sides = np.stack([_widen(side, exponent - self._exponent) for side in self._sides])
            self._exponent = exponent


def _widen(counts: Counts, doublings: int) -> Counts:
    """The counts after the range has doubled so many times: bins merge in pairs, then in pairs again."""
    if doublings == 0:
        return counts
    merged = counts.reshape(-1, 1 << min(doublings, _LOG2_BINS)).sum(axis=1)
    return np.concatenate([merged, np.zeros(BINS - merged.size, np.int64)])


def arrays_of(tensors: Mapping[str, Histogram], prefix: str) -> dict[str, npt.NDArray[Any]]:
    """Arrays of several histograms under names to save them by: prefix, place among the sorted tensors, part."""
    parts = ((index, tensors[name].to_arrays()) for index, name in enumerate(sorted(tensors)))
    return {f"{prefix}{index}.{key}": array for index, arrays in parts for key, array in arrays.items()}
