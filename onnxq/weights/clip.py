"""AWQ's clip search: the clipping value of every block that changes the layer's outputs least.

Lin et al. 2023 (arXiv 2306.00978), section 3 and the authors' auto_clip: of max|w| (1 - i / 20), i = 0 ... 9, of each
output channel and block, the one with the least squared error of that block's part of the outputs. With the Gram
matrix H of the inputs that error is e^T H_gg e, e the rounding error of the block's weights, exactly and for all
of the data, where the paper samples 512 tokens. The range of any format can be shrunk so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.formats.codebooks import LARGEST_EXPONENT
from onnxq.formats.families import grid_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.formats import Format
    from onnxq.formats.stored import Stored

    Floats = npt.NDArray[np.float64]

STEPS = tuple(1 - i / 20 for i in range(10))

TWICE = 2.0
"""Tried too where a scale is a power of two below: its block saturates, and does not with the next one."""


def clipped(w: npt.NDArray[Any], gram: Floats, format_: Format) -> Stored:
    """W [K, N] rounded to nearest in the ranges that `shrunk` finds.

    Raises:
        ValueError: w is not finite, or gram is not [K, K].
    """
    grid = grid_of(w, format_, shrunk(w, gram, format_))
    return grid.stored(grid.numbers(w))


def shrunk(w: npt.NDArray[Any], gram: Floats, format_: Format) -> Floats:
    """What to multiply the range of each block by, as `families.grid_of` takes it.

    Raises:
        ValueError: w is not finite, or gram is not [K, K].
    """
    if gram.shape != (len(w), len(w)):
        raise ValueError(f"a Gram matrix of shape {gram.shape} for a weight of shape {w.shape}")
    size = min(format_.block_size or len(w), len(w))
    least, best = np.inf, STEPS[0]
    found: Floats = np.full((w.shape[1], -(-len(w) // size), 1), best)
    losses = np.full(found.shape, least)
    for step in (*STEPS, TWICE) if format_.type in LARGEST_EXPONENT else STEPS:
        grid = grid_of(w, format_, step)
        error = w.astype(np.float64) - grid.real(grid.numbers(w))
        loss = _losses(error, gram, size)
        if format_.granularity == "tensor":
            loss = np.full(loss.shape, loss.sum())
        better = loss < losses
        losses, found = np.where(better, loss, losses), np.where(better, step, found)
    return found[:1] if format_.granularity == "tensor" else found


def _losses(error: Floats, gram: Floats, size: int) -> Floats:
    """e^T H_gg e of every column and block, [N, blocks, 1]."""
    starts = range(0, len(error), size)
    parts = [
        np.einsum("kn,kn->n", error[s : s + size], gram[s : s + size, s : s + size] @ error[s : s + size])
        for s in starts
    ]
    return np.stack(parts, axis=1)[:, :, None]
