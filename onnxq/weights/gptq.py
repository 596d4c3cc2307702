"""GPTQ: codes by `onnxq.feedback` on scales that were chosen before, in no column worse than plain rounding.

H = sum x^T x over the calibration data; the error of a layer's outputs over it is tr((W - Q)^T H (W - Q)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.blocks import LARGEST, Blocks, quantize_blocks, spread
from onnxq.feedback import DAMP, feedback
from onnxq.weights.clip import clipped_blocks

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


def quantize_gptq(w: npt.NDArray[Any], gram: Floats, size: int | None, bits: int, *, damp: float = DAMP) -> Blocks:
    """Codes and scales of w [K, N], blocks of `size` rows (None: one scale a column), for inputs of this Gram matrix.

    Rows are rounded in the order of falling H_kk ("act-order" of the authors' code), so the scales are chosen before:
    those of `clip.clipped_blocks`. A column whose error on H would be above that of these scales with plain rounding,
    or of plain absmax rounding, keeps the better one. Rows that no input reaches (H_kk = 0) are rounded to nearest.

    Args:
        w: float, [K, N].
        gram: H, [K, K], symmetric and positive semidefinite.
        size: rows that share a scale.
        bits: width of a code.
        damp: see `DAMP`.

    Raises:
        ValueError: w is not finite, or gram does not fit.
    """
    clipped = clipped_blocks(w, gram, size, bits)
    nearest = quantize_blocks(w, 0, size, bits)
    real = w.astype(np.float64)
    scale = spread(clipped.scale.astype(np.float64), 0, clipped.size, len(w))
    codes = feedback(real[None], gram[None], scale[None], LARGEST[bits], damp)[0].astype(np.int8)
    found = Blocks(codes, clipped.scale, 0, clipped.size, bits)
    return best_columns(real, gram, (found, clipped, nearest))


def column_errors(w: Floats, gram: Floats, blocks: Blocks) -> Floats:
    """(W - Q)^T H (W - Q) of every column, shape (N,): the squared error of the layer's outputs over the data."""
    error = w - blocks.dequantized()
    found: Floats = np.einsum("kn,kn->n", error, gram @ error)
    return found


def best_columns(w: Floats, gram: Floats, candidates: tuple[Blocks, ...]) -> Blocks:
    """Of every column the candidate with the least error on H; the first of equals."""
    errors = np.stack([column_errors(w, gram, c) for c in candidates])
    chosen = errors.argmin(axis=0)[None]
    codes, scales = (np.stack([getattr(c, part) for c in candidates]) for part in ("codes", "scale"))
    first = candidates[0]
    take = [np.take_along_axis(a, chosen[:, None], 0)[0] for a in (codes, scales)]
    return Blocks(take[0], take[1], 0, first.size, first.bits)
