"""Quantized types and affine quantization, in pure numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

Range = tuple[float, float]
"""(lo, hi) in the tensor's own unit."""

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Smallest normal float32: a smaller scale is flushed to zero by backends, and TensorRT refuses zero."""


_BLOCK = 65536
"""Values per temporary where an error is summed: small enough to stay in cache."""

_COARSE = tuple(-step / 100 for step in range(4, 81, 4))
_FINE = (0.03, 0.02, 0.01, -0.01, -0.02, -0.03)
"""Moves of a weight's clipping value that are tried, as fractions of max|w|: first all, then around the best."""


FLOAT8 = {"float8_e4m3fn": 448, "float8_e5m2": 57344}
"""Name of a float8 type -> its largest finite number."""


@dataclass(frozen=True)
class QType:
    """An integer or float8 type and the grid used on it.

    Attributes:
        dtype: numpy name of the stored type, as "int8", "uint8", "int16", "float8_e4m3fn".
        symmetric: the zero point is fixed (0 for signed, the middle for unsigned).
        narrow: a signed type leaves its lowest code unused (int8: -127..127), as weights do.
        limit: codes go from -limit to limit only (signed types); None for all codes.
    """

    dtype: str
    symmetric: bool = True
    narrow: bool = False
    limit: int | None = None

    @property
    def floating(self) -> bool:
        """Whether codes are float8 numbers; their zero point is 0."""
        return self.dtype in FLOAT8

    @property
    def stored(self) -> np.dtype[Any]:
        """The stored type."""
        return numpy_type(self.dtype)

    @property
    def signed(self) -> bool:
        """Whether codes below zero exist."""
        return self.floating or bool(np.iinfo(self.dtype).min < 0)

    @property
    def qmin(self) -> int:
        """Lowest code that is used."""
        if self.limit is not None or self.floating:
            return -self.qmax
        return int(np.iinfo(self.dtype).min) + (1 if self.narrow and self.signed else 0)

    @property
    def qmax(self) -> int:
        """Highest code."""
        if self.floating:
            return FLOAT8[self.dtype]
        return self.limit if self.limit is not None else int(np.iinfo(self.dtype).max)


INT8 = QType("int8")
INT8_WEIGHT = QType("int8", narrow=True)
UINT8 = QType("uint8", symmetric=False)
INT8_ASYMMETRIC = QType("int8", symmetric=False)


@dataclass(frozen=True)
class QuantParams:
    """Affine parameters of one tensor: x ≈ (q - zero_point) * scale, broadcast along axis.

    scale is float32, positive and finite; zero_point has qtype.dtype and scale's shape; both are 0-d when
    axis is None and 1-d of length x.shape[axis] otherwise.
    """

    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.integer]
    qtype: QType
    axis: int | None = None


def affine(
    lo: npt.ArrayLike, hi: npt.ArrayLike, qtype: QType
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scale and zero point of the ranges [lo, hi], elementwise, in float64.

    Each range is widened to hold 0. Symmetric: s = max(|lo|, |hi|) / qmax_side, z fixed, where qmax_side is the
    number of codes above z. Asymmetric: s = (hi - lo) / (qmax - qmin), z = clip(round(qmin - lo / s), qmin, qmax)
    (ONNX DynamicQuantizeLinear; Jacob et al. 2018, eq. 1). An all-zero range has s = 1; s is never below
    SMALLEST_SCALE.
    """
    low = np.minimum(np.asarray(lo, np.float64), 0.0)
    high = np.maximum(np.asarray(hi, np.float64), 0.0)
    middle = 0 if qtype.signed else (qtype.qmax + 1) // 2
    if qtype.symmetric:
        scale = np.maximum(-low, high) / (qtype.qmax - middle)
    else:
        # Divided before the subtraction: hi - lo of two huge numbers would overflow.
        scale = high / (qtype.qmax - qtype.qmin) - low / (qtype.qmax - qtype.qmin)
    scale = np.where(low == high, 1.0, np.maximum(scale, SMALLEST_SCALE))
    if qtype.symmetric:
        return scale, np.full(scale.shape, float(middle))
    return scale, np.clip(np.rint(qtype.qmin - low / scale), qtype.qmin, qtype.qmax)


def numpy_type(name: str) -> np.dtype[Any]:
    """The type of this name: numpy itself does not know bfloat16, float8 and those of few bits."""
    return np.dtype(getattr(ml_dtypes, name, name))


def held_by(scale: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """Scales, of any shape, as float16 or bfloat16 holds them; those too small or too large for it stay.

    Codes, and the biases that make up for a zero point (W 1 c), are then of the numbers as they are read: a scale
    rounded behind them would be off by up to 2^-12, in bfloat16 2^-9, which a large c turns into an error of the bias.
    """
    with np.errstate(over="ignore"):  # beyond the type it becomes infinite
        narrow = scale.astype(numpy_type(dtype)).astype(np.float32)
    smallest = np.finfo(np.float16).tiny if dtype == "float16" else SMALLEST_SCALE  # bfloat16 has float32's exponents
    return np.where(np.isfinite(narrow) & (scale >= smallest), narrow, scale)


NEAR = 2.0**-5
"""Scales whose ratio is nearer to 1 than this stand for one another: `with_exact_shift` moves them no further."""

_TOGETHER = 32.0
"""What an error that all values have weighs against the same in errors that average out: layers sum over hundreds."""


def with_exact_shift(params: QuantParams, dtype: str) -> QuantParams:
    """The parameters of a tensor with a slightly wider grid of which float16 or bfloat16 holds the shift z s.

    What is written in place of a zero point adds z s to a tensor (`passes/centre_codes.py`). float16 rounds that by up
    to 0.06 s, the same at every value: zeros, which a Relu or HardSwish makes many of, are then all off by it. Of zero
    points up to 3 around and scales up to 2^-7 above the least that covers the range, those are taken of which
    (s / s0)^2 / 12 + 32 (error of z s / s)^2 is least. The scale is a number of the type.
    """
    zero, scale, found = int(params.zero_point), float(params.scale), []
    low, high = params.qtype.qmin, params.qtype.qmax
    for z in range(max(zero - 3, low), min(zero + 3, high) + 1):
        below, above = (zero - low) / max(z - low, 1e-9), (high - zero) / max(high - z, 1e-9)
        moved = scale * max(below, above) * (1 + np.linspace(0, 2.0**-7, 65))
        near = held_by(moved, dtype).astype(np.float64)
        off = np.abs(held_by(np.abs(z * near), dtype) - np.abs(z * near)) / near
        cost = np.square(near / scale) / 12 + _TOGETHER * np.square(off)
        cost[near > scale * (1 + NEAR)] = np.inf
        best = int(np.argmin(cost))
        found.append((cost[best], abs(z - zero), z, near[best]))
    _, _, z, near = min(found)
    return replace(params, scale=np.asarray(near, np.float32), zero_point=np.asarray(z, params.zero_point.dtype))


def params_from_range(lo: float, hi: float, qtype: QType) -> QuantParams:
    """Per-tensor parameters whose grid covers [lo, hi] and 0; the formulae are `affine`'s.

    Raises:
        ValueError: lo or hi is not finite, lo > hi, or the scale does not fit float32.
    """
    if not (np.isfinite(lo) and np.isfinite(hi)) or lo > hi:
        raise ValueError(f"({lo}, {hi}) is not a finite range")
    scale, zero_point = affine(lo, hi, qtype)
    if scale > np.finfo(np.float32).max:
        raise ValueError(f"the scale of ({lo}, {hi}) does not fit float32")
    return QuantParams(np.asarray(scale, np.float32), np.asarray(zero_point, qtype.stored), qtype)


def quantize(x: npt.NDArray[Any], params: QuantParams) -> npt.NDArray[np.integer]:
    """Codes of x, of x's shape: saturate(round_half_even(x / scale) + zero_point).

    ONNX QuantizeLinear, with x / scale in float32 as ONNX Runtime computes it; float8 codes are rounded by their type,
    and saturate. A narrow type saturates at its
    own qmin, which ONNX cannot express.

    Raises:
        ValueError: x holds a NaN, which has no code.
    """
    qtype = params.qtype
    with np.errstate(over="ignore"):  # an overflow to infinity saturates, as it should
        codes = np.asarray(x, np.float32) / along(params.scale, x.ndim, params.axis)
    if np.isnan(codes).any():
        raise ValueError("NaN cannot be quantized")
    if qtype.floating:
        rounded: npt.NDArray[Any] = np.clip(codes, qtype.qmin, qtype.qmax).astype(qtype.stored)
        return rounded
    codes = np.rint(codes) + along(params.zero_point, x.ndim, params.axis).astype(np.float32)
    saturated: npt.NDArray[np.integer] = np.clip(codes, qtype.qmin, qtype.qmax).astype(qtype.dtype)
    return saturated


def dequantize(q: npt.NDArray[np.integer], params: QuantParams) -> npt.NDArray[np.float32]:
    """(q - zero_point) * scale in float32, of q's shape: ONNX DequantizeLinear."""
    if params.qtype.floating:
        real: npt.NDArray[np.float32] = q.astype(np.float32) * along(params.scale, q.ndim, params.axis)
        return real
    steps = q.astype(np.int32) - along(params.zero_point, q.ndim, params.axis).astype(np.int32)
    scaled: npt.NDArray[np.float32] = steps.astype(np.float32) * along(params.scale, q.ndim, params.axis)
    return scaled


def weight_params(
    w: npt.NDArray[Any],
    axis: int | None,
    method: Literal["absmax", "mse"] = "absmax",
    qtype: QType = INT8_WEIGHT,
) -> QuantParams:
    """Symmetric parameters of a weight, one per index of axis (None: one for all of w).

    "absmax": s = max|w| / 127. "mse": s = f max|w| / 127 with the f in [0.2, 1], in steps of 0.01, that minimises
    sum (w - dequantize(quantize(w)))²; searched coarsely (steps of 0.04), then around the best. All zero: s = 1.

    Raises:
        ValueError: w is not finite, or qtype is not symmetric.
    """
    if not qtype.symmetric:
        raise ValueError("weights are quantized symmetrically")
    axis = None if axis is None else axis % w.ndim
    rows = np.reshape(w, (1, -1)) if axis is None else np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
    amax = np.maximum(rows.max(axis=1, initial=0.0), -rows.min(axis=1, initial=0.0)).astype(np.float64)
    if not np.isfinite(amax).all():
        raise ValueError("the weight holds NaN or infinity")
    if method == "mse":
        step = max(1, _BLOCK // max(1, rows.shape[1]))
        blocks = [slice(start, start + step) for start in range(0, amax.size, step)]
        amax = np.concatenate([_least_squares_amax(rows[b], amax[b], qtype) for b in blocks] or [amax])
    scale, zero_point = affine(-amax, amax, qtype)
    shape = () if axis is None else amax.shape
    return QuantParams(
        scale.astype(np.float32).reshape(shape), zero_point.astype(qtype.stored).reshape(shape), qtype, axis
    )


def _least_squares_amax(rows: npt.NDArray[Any], amax: npt.NDArray[np.float64], qtype: QType) -> npt.NDArray[np.float64]:
    """The best clipping value of each row, as `weight_params` says; ties keep the larger."""
    rows = np.ascontiguousarray(rows, np.float32)  # a transposed view would be read across its grain 27 times
    scratch = np.empty((2, rows.shape[0], min(_BLOCK, rows.shape[1])), np.float32)
    best, least = amax, _squared_error(rows, amax, qtype, scratch)
    for offsets in (_COARSE, _FINE):
        start = best  # amax at first, then each row's own coarse best
        for offset in offsets:
            moved = np.clip(start + offset * amax, 0.2 * amax, amax)
            error = _squared_error(rows, moved, qtype, scratch)
            best, least = np.where(error < least, moved, best), np.minimum(error, least)
    return best


def _squared_error(
    rows: npt.NDArray[Any], amax: npt.NDArray[np.float64], qtype: QType, scratch: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Sum over each row of (w - w^)² when it is quantized with its amax; scratch is two blocks to overwrite.

    Errors are squared in steps of the grid: weights of 1e30 would overflow float32 otherwise.
    """
    scale = affine(-amax, amax, qtype)[0].astype(np.float32)[:, None]
    middle = 0 if qtype.signed else (qtype.qmax + 1) // 2
    total = np.zeros(amax.size)
    for start in range(0, rows.shape[1], _BLOCK):
        w = rows[:, start : start + _BLOCK]
        steps, codes = scratch[:, :, : w.shape[1]]
        np.divide(w, scale, out=steps)
        np.rint(steps, out=codes)
        np.clip(codes, qtype.qmin - middle, qtype.qmax - middle, out=codes)
        codes -= steps
        codes *= codes
        total += codes.sum(axis=1)
    return total * scale[:, 0].astype(np.float64) ** 2


def sqnr_db(reference: npt.NDArray[Any], actual: npt.NDArray[Any]) -> float:
    """Signal to quantization noise, 10 log10(sum reference² / sum (reference - actual)²), in dB.

    inf when they are equal; -inf when only the reference is all zero.
    """
    signal = np.asarray(reference, np.float64)
    noise = float(np.square(signal - actual).sum())
    power = float(np.square(signal).sum())
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(power / noise) if power > 0.0 else -math.inf


def along(values: npt.NDArray[Any], ndim: int, axis: int | None) -> npt.NDArray[Any]:
    """Reshape 1-d values so that they broadcast along axis of an ndim-d tensor."""
    if axis is None:
        return values
    return values.reshape([-1 if dimension == axis % ndim else 1 for dimension in range(ndim)])
