"""Block-wise quantization of weights in 8 and 4 bits, in pure numpy.

A block is `size` consecutive values along one axis; the last one of a row may be shorter, as ONNX allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

LARGEST = {8: 127, 4: 7, 3: 3, 2: 1}
"""Bits -> the largest code that is used; codes are symmetric, so that a scale is positive and the zero point 0."""

_PART = 1 << 20
"""Values that are worked on at once."""

_FACTORS = tuple(step / 20 for step in range(19, 9, -1))
"""Clipping values tried by "mse", as parts of max|w| of the block."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """A weight in blocks: w ≈ codes * scale, the scale repeated `size` times along `axis`.

    codes is int8, of w's shape, within ±LARGEST[bits]; scale has w's type and shape but for axis, where it has
    ceil(w.shape[axis] / size) positive entries.
    """

    codes: npt.NDArray[np.int8]
    scale: npt.NDArray[Any]
    axis: int
    size: int
    bits: int

    def __eq__(self, other: object) -> bool:
        """Bit for bit."""
        if not isinstance(other, Blocks):
            return NotImplemented
        same = (self.axis, self.size, self.bits) == (other.axis, other.size, other.bits)
        return same and np.array_equal(self.codes, other.codes) and np.array_equal(self.scale, other.scale)

    def __hash__(self) -> int:
        return hash((self.codes.tobytes(), self.scale.tobytes(), self.axis, self.size, self.bits))

    def dequantized(self) -> npt.NDArray[np.float64]:
        """The weight as it reads back, before any rounding to a narrower type."""
        real: npt.NDArray[np.float64] = self.codes * spread(
            self.scale.astype(np.float64), self.axis, self.size, self.codes.shape[self.axis]
        )
        return real


def quantize_blocks(
    w: npt.NDArray[Any], axis: int, size: int | None, bits: int = 8, method: Literal["absmax", "mse"] = "absmax"
) -> Blocks:
    """Quantize a weight with one scale per block along an axis; size None makes one block of the whole axis.

    "absmax": s = max|w| / q over the block, q = 127 or 7 (Dettmers et al. 2022, block-wise k-bit absmax), rounded to
    w's type before the codes are computed; an all-zero block has s = 1. "mse": of the clipping values f max|w|,
    f = 1, 0.95 ... 0.5, the one with the least sum of squared errors. codes = clip(round_half_even(w / s), -q, q).

    Raises:
        ValueError: w is not finite.
    """
    axis %= w.ndim
    length = w.shape[axis]
    size = length if size is None else min(size, length)
    if not np.isfinite(w).all():
        raise ValueError("the weight holds NaN or infinity")
    found = [_quantized(part, axis, size, bits, method) for part in _parts(w, axis)]
    codes, scale = (np.concatenate(arrays, axis=_across(w, axis)) for arrays in zip(*found, strict=True))
    return Blocks(codes, scale, axis, size, bits)


def spread(scale: npt.NDArray[Any], axis: int, size: int, length: int) -> npt.NDArray[Any]:
    """The scales repeated, so that each of `length` values along the axis has its own."""
    return np.repeat(scale, size, axis=axis).take(range(length), axis=axis)


def stored_bytes(k: int, n: int, bits: int, size: int | None, scale_bytes: int) -> int:
    """Bytes of a [K, N] weight with its scales and zero points: K N bits / 8, and one of each per block."""
    blocks = n if size is None else n * math.ceil(k / size)
    return math.ceil(k * n * bits / 8) + blocks * scale_bytes + math.ceil(blocks * bits / 8)


def _quantized(
    w: npt.NDArray[Any], axis: int, size: int, bits: int, method: str
) -> tuple[npt.NDArray[np.int8], npt.NDArray[Any]]:
    amax = _per_block(np.abs(w.astype(np.float64)), axis, size, np.maximum)
    scale = stored_scale(amax, bits, w.dtype)
    if method == "mse":
        best = _error(w, scale, axis, size, bits)
        for factor in _FACTORS:
            tried = stored_scale(amax * factor, bits, w.dtype)
            error = _error(w, tried, axis, size, bits)
            scale, best = np.where(error < best, tried, scale), np.minimum(error, best)
    return _codes(w, scale, axis, size, bits), scale


def _parts(w: npt.NDArray[Any], axis: int) -> list[npt.NDArray[Any]]:
    """The weight cut across the blocks, so that an embedding table is not copied to float64 as a whole."""
    count = 1 if w.ndim == 1 else min(max(1, w.size // _PART), w.shape[_across(w, axis)] or 1)
    return [w] if count == 1 else np.array_split(w, count, axis=_across(w, axis))


def _across(w: npt.NDArray[Any], axis: int) -> int:
    """An axis other than that of the blocks, where there is one."""
    return 0 if w.ndim == 1 or axis != 0 else 1


def stored_scale(amax: npt.NDArray[np.float64], bits: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The scale in its type: no smaller than that type's smallest normal number, which backends flush to zero."""
    scale = np.where(amax == 0, 1.0, np.maximum(amax / LARGEST[bits], float(np.finfo(dtype).tiny)))
    stored: npt.NDArray[Any] = scale.astype(dtype)
    return stored


def _codes(w: npt.NDArray[Any], scale: npt.NDArray[Any], axis: int, size: int, bits: int) -> npt.NDArray[np.int8]:
    steps = w.astype(np.float64) / spread(scale.astype(np.float64), axis, size, w.shape[axis])
    codes: npt.NDArray[np.int8] = np.clip(np.rint(steps), -LARGEST[bits], LARGEST[bits]).astype(np.int8)
    return codes


def _error(w: npt.NDArray[Any], scale: npt.NDArray[Any], axis: int, size: int, bits: int) -> npt.NDArray[np.float64]:
    wide = spread(scale.astype(np.float64), axis, size, w.shape[axis])
    return _per_block((w - _codes(w, scale, axis, size, bits) * wide) ** 2, axis, size, np.add)


def _per_block(x: npt.NDArray[np.float64], axis: int, size: int, reduce: np.ufunc) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = reduce.reduceat(x, range(0, x.shape[axis], size), axis=axis)
    return found
