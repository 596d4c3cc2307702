"""GPTQ: a weight is rounded row by row, and the rows still to come make up for the error of those before.

Frantar et al. 2022 (arXiv 2210.17323). For y = x W, W of [K, N], and H = sum x^T x over the calibration data, the codes
are to minimise

    sum |x W - x Q|^2 = tr((W - Q)^T H (W - Q)).

The paper eliminates row after row from H^-1. That is the same (Chee et al. 2023, arXiv 2307.13304, theorem 6) as

    H = U D U^T, U upper triangular with ones on its diagonal,
    Q_k = round(W_k + sum_{j<k} U_jk (W_j - Q_j)),

which needs no inverse. Pure numpy, in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.blocks import LARGEST, Blocks, quantize_blocks, spread
from onnxq.weights.clip import clipped_blocks

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

DAMP = 0.01
"""Share of H's mean diagonal that is added to the diagonal, as in the paper."""

_ROWS = 32
"""Rows after which the errors are carried over to all rows to come, in one product."""


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
    found = Blocks(compensated(real, gram, clipped, damp), clipped.scale, 0, clipped.size, bits)
    return best_columns(real, gram, (found, clipped, nearest))


def compensated(w: Floats, gram: Floats, grid: Blocks, damp: float = DAMP) -> npt.NDArray[np.int8]:
    """The codes of w on the grid's scales, each row's error carried over to the rows behind it."""
    order = np.argsort(-np.diag(gram), kind="stable")
    scale = spread(grid.scale.astype(np.float64), 0, grid.size, len(w))[order]
    rows, factor = w[order], _unit_upper(gram[np.ix_(order, order)], damp)
    errors, codes = np.zeros_like(rows), np.empty(rows.shape, np.int8)
    limit = LARGEST[grid.bits]
    for start in range(0, len(rows), _ROWS):
        stop = min(start + _ROWS, len(rows))
        wanted = rows[start:stop] + factor[:start, start:stop].T @ errors[:start]
        for k in range(start, stop):
            codes[k] = np.clip(np.rint(wanted[k - start] / scale[k]), -limit, limit)
            errors[k] = rows[k] - codes[k] * scale[k]
            wanted[k - start + 1 :] += factor[k, k + 1 : stop, None] * errors[k]
    found = np.empty_like(codes)
    found[order] = codes
    return found


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


def _unit_upper(gram: Floats, damp: float) -> Floats:
    """U of H + damp mean(diag H) I = U D U^T, by a Cholesky factorization from the last row up."""
    h = gram.copy()
    diagonal = np.diag(h).copy()
    unseen = diagonal == 0
    level = float(diagonal.mean()) or 1.0
    h[np.diag_indices_from(h)] += damp * level
    h[unseen, unseen] = level  # nothing is known of them, and nothing is carried over to them
    lower = np.linalg.cholesky(h[::-1, ::-1])
    upper = lower[::-1, ::-1]
    unit: Floats = upper / np.diag(upper)
    return unit
