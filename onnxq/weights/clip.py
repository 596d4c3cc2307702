"""AWQ's clip search: the clipping value of every block that changes the layer's outputs least.

Lin et al. 2023 (arXiv 2306.00978), section 3 and the authors' auto_clip: of max|w| (1 - i / 20), i = 0 ... 9, of each
output channel and block, the one with the least squared error of that block's part of the outputs. With the Gram
matrix H of the inputs that error is e^T H_gg e, e the rounding error of the block's weights, exactly and for all
of the data, where the paper samples 512 tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.blocks import LARGEST, Blocks, quantize_blocks, stored_scale

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

STEPS = tuple(1 - i / 20 for i in range(10))


def clipped_blocks(w: npt.NDArray[Any], gram: Floats, size: int | None, bits: int) -> Blocks:
    """Codes and scales of w [K, N] in blocks of `size` rows (None: all of them), rounded to nearest.

    Raises:
        ValueError: w is not finite, or gram is not [K, K].
    """
    if gram.shape != (len(w), len(w)):
        raise ValueError(f"a Gram matrix of shape {gram.shape} for a weight of shape {w.shape}")
    plain = quantize_blocks(w, 0, size, bits)
    starts = range(0, len(w), plain.size)
    found = [_clipped(w[s : s + plain.size], gram[s : s + plain.size, s : s + plain.size], bits) for s in starts]
    codes, scale = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Blocks(codes, scale, 0, plain.size, bits)


def _clipped(w: npt.NDArray[Any], gram: Floats, bits: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[Any]]:
    real = w.astype(np.float64)
    amax, limit = np.abs(real).max(axis=0, keepdims=True), LARGEST[bits]
    least = np.full(amax.shape, np.inf)
    codes, scale = np.zeros(w.shape, np.int8), stored_scale(amax, bits, w.dtype)
    for step in STEPS:
        tried = stored_scale(amax * step, bits, w.dtype)
        rounded = np.clip(np.rint(real / tried.astype(np.float64)), -limit, limit)
        error = real - rounded * tried.astype(np.float64)
        loss = np.einsum("kn,kn->n", error, gram @ error)[None]
        better = loss < least
        least, scale = np.where(better, loss, least), np.where(better, tried, scale)
        codes = np.where(better, rounded, codes).astype(np.int8)
    return codes, scale
