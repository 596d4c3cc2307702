"""Integers and float8 with one scale a tensor, a channel or a block: what DequantizeLinear reads.

w ≈ (code - zero_point) * scale
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxq.blocks import LARGEST, quantize_blocks
from onnxq.formats.grid import Grid
from onnxq.formats.stored import Stored, from_blocks, in_blocks, narrowed
from onnxq.numerics import numpy_type

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.blocks import Blocks
    from onnxq.formats.grammar import Format

INTEGERS = ("int8", "int4", "int3")
"""The symmetric ones, whose largest codes are in `blocks.LARGEST`."""

LIMITS = {
    "uint8": (0.0, 255.0),
    "uint4": (0.0, 15.0),
    "int2": (-2.0, 1.0),
    "fp8e4m3": (-448.0, 448.0),
    "fp8e5m2": (-57344.0, 57344.0),
}
"""Type -> its lowest and highest code."""


def encode_affine(w: npt.NDArray[Any], format_: Format, method: Literal["absmax", "mse"] = "absmax") -> Stored:
    """Quantize a matrix [K, N].

    Symmetric integers and float8: s = max|w| / largest code. With `pow2` the scale is 2^ceil(log2 s), which clips
    nothing. Zero points: s = (hi - lo) / (qmax - qmin) over a range that holds 0, z = clip(round(qmin - lo / s))
    (Jacob et al. 2018, eq. 1). int2: s = w_m / -2 for the w_m of the largest magnitude, of either sign, so that all
    four codes are used. Ternary: codes are the signs of what lies beyond 0.7 mean|w|, s is the mean magnitude of
    those (Li and Liu 2016, Ternary Weight Networks, eq. 5 and 6).

    Raises:
        ValueError: w is not finite.
    """
    kind = format_.kind
    if kind.name in INTEGERS and format_.granularity != "tensor" and not format_.modifiers:
        return of_blocks(quantize_blocks(w, 0, format_.block_size, kind.width or kind.bits, method), format_)
    if method != "absmax":
        raise ValueError(f"{format_} has no choice of ranges")
    matrix = w.reshape(-1, 1) if format_.granularity == "tensor" else w
    blocks = in_blocks(matrix, format_.block_size or max(1, len(matrix)))
    scale, zero_point, codes = _quantized(blocks, format_, w.dtype)
    scale, zero_point = (_shared(a, format_) for a in (scale, zero_point))
    whole = from_blocks(codes, len(matrix)).reshape(w.shape)
    return _stored(format_, whole, scale, zero_point)


def of_blocks(found: Blocks, format_: Format) -> Stored:
    """Codes and scales of a matrix [K, N], whoever found them, as they are stored."""
    return _stored(format_, found.codes, found.scale if format_.block_size else found.scale[0], None)


def decode_affine(stored: Stored) -> npt.NDArray[np.float64]:
    """The matrix as it reads back, in float64."""
    codes, scale, zero = (stored.arrays[n].astype(np.float64) for n in ("codes", "scale", "zero_point"))
    if stored.format.block_size is not None:
        size = min(stored.format.block_size, max(1, len(codes)))
        scale, zero = (np.repeat(a, size, axis=0)[: len(codes)] for a in (scale, zero))
    real: npt.NDArray[np.float64] = (codes - zero) * scale
    return real


def affine_grid(w: npt.NDArray[Any], format_: Format, shrink: npt.NDArray[np.float64] | float = 1.0) -> Grid:
    """The numbers that `encode_affine` rounds to; `shrink` [N, blocks, 1] multiplies the range of each block.

    With one scale for all it is a number, or [1, 1, 1].

    Raises:
        ValueError: w is not finite.
    """
    matrix = w.reshape(-1, 1) if format_.granularity == "tensor" else w
    blocks = in_blocks(matrix, format_.block_size or max(1, len(matrix)))
    scale, zero = _scales(blocks * shrink, format_, w.dtype)
    wide = [
        from_blocks(np.broadcast_to(a.astype(np.float64), blocks.shape), len(matrix)).reshape(w.shape)
        for a in (scale, zero)
    ]
    none = _stored(format_, np.zeros((0, 0)), *(_shared(a, format_) for a in (scale, zero)))
    beside = {name: array for name, array in none.arrays.items() if name != "codes"}
    kind = none.arrays["codes"].dtype
    return Grid(
        format_, wide[0], wide[1], beside, partial(_nearest, format_), lambda x: np.ascontiguousarray(x).astype(kind)
    )


def _nearest(format_: Format, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    low, high = _limits(format_)
    clipped = np.clip(x, low, high)
    if format_.type.startswith("fp8"):
        return clipped.astype(numpy_type(format_.kind.stored)).astype(np.float64)
    return np.rint(clipped)


def _limits(format_: Format) -> tuple[float, float]:
    largest = float(LARGEST[format_.kind.width or format_.kind.bits])
    return LIMITS.get(format_.type) or (-largest, largest)


def _quantized(
    blocks: npt.NDArray[np.float64], format_: Format, dtype: np.dtype[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(scales [N, blocks, 1], zero points of that shape, codes as numbers [N, blocks, size])."""
    scale, zero = _scales(blocks, format_, dtype)
    if format_.type == "ternary":
        return scale, zero, np.sign(blocks) * _beyond(blocks)
    low, high = _limits(format_)
    steps = blocks / scale.astype(np.float64)
    if format_.type.startswith("fp8"):  # rounded by the type
        return scale, zero, np.clip(steps, low, high)
    return scale, zero, np.clip(np.rint(steps) + zero, low, high)


def _scales(
    blocks: npt.NDArray[np.float64], format_: Format, dtype: np.dtype[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Scales and zero points, [N, blocks, 1]."""
    amax = np.abs(blocks).max(axis=2, keepdims=True, initial=0.0)
    none, (bottom, top) = np.zeros(amax.shape), _limits(format_)
    if format_.type == "ternary":
        beyond = _beyond(blocks)
        mean = (np.abs(blocks) * beyond).sum(axis=2, keepdims=True) / np.maximum(1, beyond.sum(axis=2, keepdims=True))
        return narrowed(mean, dtype), none
    if not format_.kind.symmetric:
        low, high = (np.minimum(blocks.min(axis=2, keepdims=True), 0), np.maximum(blocks.max(axis=2, keepdims=True), 0))
        scale = narrowed((high - low) / top, dtype)
        return scale, np.clip(np.rint(-low / scale.astype(np.float64)), bottom, top)
    if format_.type == "int2":
        furthest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)
        return narrowed(np.abs(furthest) / 2, dtype) * np.where(furthest > 0, -1, 1).astype(dtype), none
    wanted = amax / top
    if "pow2" in format_.modifiers:
        wanted = np.exp2(np.ceil(np.log2(wanted, where=wanted > 0, out=none.copy()))) * (wanted > 0)
    return narrowed(wanted, dtype), none


def _beyond(blocks: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which values of ternary blocks are not zero."""
    size = np.maximum(1, (blocks != 0).sum(axis=2, keepdims=True))  # zeros that fill a block up do not count
    magnitude = np.abs(blocks)
    beyond: npt.NDArray[np.bool_] = magnitude > 0.7 * magnitude.sum(axis=2, keepdims=True) / size
    return beyond


def _shared(values: npt.NDArray[Any], format_: Format) -> npt.NDArray[Any]:
    """[N, blocks, 1] as DequantizeLinear takes it: a scalar, [N] or [blocks, N]."""
    rows: npt.NDArray[Any] = values[:, :, 0].T
    return rows if format_.granularity == "block" else rows[0] if format_.granularity == "channel" else rows[0, 0]


def _stored(
    format_: Format, codes: npt.NDArray[Any], scale: npt.NDArray[Any], zero_point: npt.NDArray[Any] | None
) -> Stored:
    kind = numpy_type(format_.kind.stored)
    zeros = np.zeros(np.shape(scale)) if zero_point is None else np.asarray(zero_point)
    # Two roundings, to float32 and to float8, would not be one: the codes come in float64.
    stored = np.ascontiguousarray(codes).astype(kind)
    arrays = {"codes": stored, "scale": np.asarray(scale), "zero_point": zeros.astype(kind)}
    return Stored(format_, (int(codes.shape[0]), int(codes.shape[1])), arrays)
