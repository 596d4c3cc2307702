"""Codes that name a level of a table: NF4, bitsandbytes' FP4, powers of two, and E2M1 with the scales of MX and NV.

    w ≈ levels[code] * scale of the block

NF4 (Dettmers et al. 2023, QLoRA, appendix E) has the quantiles of a normal distribution, none lost at its ends: with
o = (1 - 1/32 + 1 - 1/30) / 2 the 7 values -Φ⁻¹(linspace(o, 1/2, 8)), 0, and the 8 values Φ⁻¹(linspace(o, 1/2, 9)),
over the largest. What is read back is levels[code] * scale: the code itself is no number.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from onnxq.formats.grid import Grid
from onnxq.formats.stored import Stored, from_blocks, in_blocks, narrowed

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.formats.grammar import Format

SCALE_BLOCK = 256
"""Scales that share a scale of their own under double quantization (QLoRA, section 3)."""

E8M0_BIAS = 127
LARGEST_E2M1, LARGEST_E4M3, SMALLEST_E4M3 = 6.0, 448.0, 2.0**-9


def _nf4() -> tuple[float, ...]:
    offset, inverse = (1 - 1 / 32 + 1 - 1 / 30) / 2, NormalDist().inv_cdf
    below = [-inverse(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    above = [inverse(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    return tuple(level / max(above) for level in sorted([*below, 0.0, *above]))


_FP4 = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 0.5, 1 / 6, 0.25)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_LOG4 = (0.0, *(2.0**exponent for exponent in range(-6, 1)))

LEVELS: dict[str, tuple[float, ...]] = {
    "nf4": _nf4(),
    "fp4": (*_FP4, *(-level for level in _FP4)),
    "fp4e2m1": tuple(level / 6 for level in (*_E2M1, *(-level for level in _E2M1))),
    "log4": (*_LOG4, *(-level for level in _LOG4)),
    "mxfp4": (*_E2M1, *(-level for level in _E2M1)),
    "nvfp4": (*_E2M1, *(-level for level in _E2M1)),
}
"""Type -> the level of each code, in the order of bitsandbytes (fp4) and of the bits of E2M1."""

CODEBOOKS = (*LEVELS, "mxfp8")
"""Types with these scales: the codes of mxfp8 are float8 E4M3 numbers themselves."""

LARGEST_EXPONENT = {"mxfp4": 2, "mxfp8": 8}
"""Of the numbers of a type: 6 = 1.5 * 2^2, 448 = 1.75 * 2^8."""


def encode_codebook(w: npt.NDArray[Any], format_: Format, method: str = "absmax") -> Stored:
    """Quantize a matrix [K, N] to the nearest level of each block's table; of two equally near the first code.

    The scale of a block is m = max|w|, but for mxfp4 and mxfp8 2^(floor(log2 m) - e), e = 2 and 8 the exponents of
    their largest numbers, beyond which values saturate (OCP Microscaling 1.0, section 6.3), and for nvfp4 the float8
    E4M3 number nearest m / 6 / g, g = max|w| of the matrix / (448 * 6).

    Raises:
        ValueError: w is not finite.
    """
    if method != "absmax":
        raise ValueError(f"{format_.type} has no choice of ranges")
    size = format_.block_size or max(1, len(w))
    blocks = in_blocks(w, size)
    amax = np.abs(blocks).max(axis=2, keepdims=True, initial=0.0)
    arrays, scale = SCALES[format_.type](amax, format_, w.dtype)
    return Stored(format_, (w.shape[0], w.shape[1]), {"codes": _coded(blocks / scale, format_.type), **arrays})


def codebook_grid(w: npt.NDArray[Any], format_: Format, shrink: npt.NDArray[np.float64] | float = 1.0) -> Grid:
    """The levels that `encode_codebook` rounds to; `shrink` [N, blocks, 1] multiplies max|w| of each block.

    Raises:
        ValueError: w is not finite.
    """
    size, name = format_.block_size or max(1, len(w)), format_.type
    blocks = in_blocks(w, size)
    arrays, scale = SCALES[format_.type](
        np.abs(blocks).max(axis=2, keepdims=True, initial=0.0) * shrink, format_, w.dtype
    )
    wide = from_blocks(np.broadcast_to(scale, blocks.shape), len(w))
    return Grid(
        format_,
        wide,
        np.zeros(()),
        arrays,
        lambda x: _numbers(_coded(x, name), name),
        lambda numbers: _coded(in_blocks(numbers, size), name),
    )


def decode_codebook(stored: Stored) -> npt.NDArray[np.float64]:
    """The matrix as it reads back, in float64."""
    real = _numbers(stored.arrays["codes"], stored.format.type) * scales_of(stored)
    return from_blocks(real, stored.shape[0])


def _coded(x: npt.NDArray[np.float64], name: str) -> npt.NDArray[Any]:
    if name in LEVELS:
        return nearest(x, LEVELS[name]).astype(ml_dtypes.uint4)
    return np.clip(x, -LARGEST_E4M3, LARGEST_E4M3).astype(ml_dtypes.float8_e4m3fn)


def _numbers(codes: npt.NDArray[Any], name: str) -> npt.NDArray[np.float64]:
    if name in LEVELS:
        return np.array(LEVELS[name])[codes.astype(np.int64)]
    return codes.astype(np.float64)


def scales_of(stored: Stored) -> npt.NDArray[np.float64]:
    """Scales [N, blocks, 1] as they read back."""
    arrays = {name: array.astype(np.float64) for name, array in stored.arrays.items()}
    rows, count, _ = arrays["codes"].shape
    if "exponent" in arrays:
        scale = np.exp2(arrays["exponent"] - E8M0_BIAS)
    elif "scale_scale" in arrays:
        steps = np.repeat(arrays["scale_scale"], SCALE_BLOCK)[: arrays["scale_codes"].size]
        scale = arrays["scale_codes"] * steps + arrays["mean"]
    else:
        scale = arrays["scale"] * arrays.get("global", np.float64(1.0))
    return np.asarray(scale.reshape(rows, count, 1))


def nearest(x: npt.NDArray[np.float64], levels: tuple[float, ...]) -> npt.NDArray[np.int64]:
    """Code of the level nearest to each value; of two equally near, that whose code is even, as E2M1 rounds."""
    order = np.argsort(levels, kind="stable")
    ordered = np.array(levels)[order]
    upper = np.clip(np.searchsorted(ordered, x), 1, len(ordered) - 1)
    below, above = x - ordered[upper - 1], ordered[upper] - x
    even = order[upper] % 2 == 0
    chosen: npt.NDArray[np.int64] = order[np.where((above < below) | ((above == below) & even), upper, upper - 1)]
    return chosen


def _absmax(
    amax: npt.NDArray[np.float64], format_: Format, dtype: np.dtype[Any]
) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.float64]]:
    """One scale a block; with `double` in 8 bits around their mean, in blocks of 256 along the rows of [N, blocks]."""
    if "double" not in format_.modifiers:
        scale = narrowed(amax, dtype)
        return {"scale": scale}, scale.astype(np.float64)
    flat = amax.ravel()
    mean = np.asarray(flat.mean(), np.float32)
    apart = flat - float(mean)
    starts = range(0, flat.size, SCALE_BLOCK)
    step = narrowed(np.maximum.reduceat(np.abs(apart), starts) / 127, np.float32)
    wide = np.repeat(step.astype(np.float64), SCALE_BLOCK)[: flat.size]
    codes = np.clip(np.rint(apart / wide), -127, 127).astype(np.int8)
    codes += (codes * wide + float(mean) <= 0).astype(np.int8)  # at most half a step below: a scale is positive
    back = codes * wide + float(mean)
    return {"scale_codes": codes, "scale_scale": step, "mean": mean}, back.reshape(amax.shape)


def _e8m0(
    amax: npt.NDArray[np.float64], format_: Format, dtype: np.dtype[Any]
) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.float64]]:
    del dtype
    exponent = np.floor(np.log2(amax, where=amax > 0, out=np.zeros(amax.shape))) - LARGEST_EXPONENT[format_.type]
    exponent = np.clip(exponent, -E8M0_BIAS + 1, E8M0_BIAS)  # 2^-127 is no normal float32, and would be read as zero
    return {"exponent": (exponent + E8M0_BIAS).astype(np.uint8)}, np.exp2(exponent)


def _e4m3(
    amax: npt.NDArray[np.float64], format_: Format, dtype: np.dtype[Any]
) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.float64]]:
    del format_, dtype
    whole = narrowed(np.asarray(amax.max(initial=0.0) / (LARGEST_E4M3 * LARGEST_E2M1)), np.float32)
    wanted = np.clip(amax / LARGEST_E2M1 / float(whole), SMALLEST_E4M3, LARGEST_E4M3)
    scale = wanted.astype(ml_dtypes.float8_e4m3fn)
    return {"scale": scale, "global": whole}, scale.astype(np.float64) * float(whole)


SCALES = {
    **dict.fromkeys(("nf4", "fp4", "fp4e2m1", "log4"), _absmax),
    **dict.fromkeys(("mxfp4", "mxfp8"), _e8m0),
    "nvfp4": _e4m3,
}
"""Type -> what makes (the arrays that are stored, the scales as they read back) of the blocks' max|w|."""
