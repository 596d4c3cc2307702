"""GPTQ: codes by `onnxq.feedback` on scales that were chosen before, in no column worse than plain rounding.

H = sum x^T x over the calibration data; the error of a layer's outputs over it is tr((W - Q)^T H (W - Q)).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.feedback import DAMP, feedback
from onnxq.formats.families import grid_of
from onnxq.weights.clip import shrunk

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.formats import Format
    from onnxq.formats.stored import Stored

    Floats = npt.NDArray[np.float64]
    Candidate = tuple[Floats, Floats]
    """(what ranges are multiplied by, numbers of the grid that has them)"""


def quantize_gptq(w: npt.NDArray[Any], gram: Floats, format_: Format, *, damp: float = DAMP) -> Stored:
    """Codes of w [K, N] in any format of weights, for inputs of this Gram matrix.

    Rows are rounded in the order of falling H_kk ("act-order" of the authors' code), so the scales are chosen before:
    in the ranges of `clip.shrunk`. A column whose error on H would be above that of these scales with plain rounding,
    or of plain absmax rounding, keeps the better one; where scales are not each column's own (one for the tensor,
    double quantization, NVFP4's factor of the matrix) the matrix does. Rows that no input reaches (H_kk = 0) are
    rounded to nearest.

    A zero point moves the weights: of w + z s the recursion rounds to codes from 0 on, with the same errors.

    Args:
        w: float, [K, N].
        gram: H, [K, K], symmetric and positive semidefinite.
        format_: how they are stored.
        damp: see `DAMP`.

    Raises:
        ValueError: w is not finite, or gram does not fit.
    """
    shrink = shrunk(w, gram, format_)
    plain, grid = grid_of(w, format_), grid_of(w, format_, shrink)
    moved = w.astype(np.float64) + grid.zero * grid.scale
    numbers = feedback(moved[None], gram[None], grid.scale[None], grid.nearest, damp)[0]
    one = np.ones(shrink.shape)
    return best(w, gram, format_, ((shrink, numbers), (shrink, grid.numbers(w)), (one, plain.numbers(w))))


def column_errors(w: Floats, gram: Floats, real: Floats) -> Floats:
    """(W - Q)^T H (W - Q) of every column, shape (N,): the squared error of the layer's outputs over the data."""
    error = w - real
    found: Floats = np.einsum("kn,kn->n", error, gram @ error)
    return found


def best(w: npt.NDArray[Any], gram: Floats, format_: Format, candidates: tuple[Candidate, ...]) -> Stored:
    """Of every column the candidate with the least error on H, the first of equals; or of the whole matrix."""
    wide = w.astype(np.float64)
    errors = np.stack([column_errors(wide, gram, grid_of(w, format_, s).real(n)) for s, n in candidates])
    if not _apart(format_):
        errors = np.broadcast_to(errors.sum(axis=1, keepdims=True), errors.shape)
    chosen = errors.argmin(axis=0)
    numbers = np.choose(chosen[None], [n for _, n in candidates])
    shrink = np.choose(chosen[: len(candidates[0][0]), None, None], [s for s, _ in candidates])
    return grid_of(w, format_, shrink).stored(numbers)


def _apart(format_: Format) -> bool:
    """Whether each column has scales of its own."""
    return format_.granularity != "tensor" and "double" not in format_.modifiers and format_.type != "nvfp4"
