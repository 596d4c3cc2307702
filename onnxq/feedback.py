"""GPTQ's recursion: weights are rounded input by input, and those still to come make up for the error of those before.

Frantar et al., 2022 (arXiv 2210.17323). For y = x W and H = E[x x^T] the codes are to make tr((W - Q)^T H (W - Q))
small. The paper eliminates input after input from H^-1. That is the same (Chee et al., 2023, arXiv 2307.13304,
theorem 6) as

    H = U D U^T, U upper triangular with ones on its diagonal,
    Q_k = round(W_k + sum_{j<k} U_jk (W_j - Q_j)),

which needs no inverse. Pure numpy, in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Rounding = Callable[[Floats], Floats]

DAMP = 0.01
"""Share of H's mean diagonal that is added to the diagonal, as in the paper: what few rows say of rare directions is
not trusted."""

_BLOCK = 32
"""Inputs after which errors are carried over to all that come behind, in one product."""


def whole(limit: int) -> Rounding:
    """Rounding to whole numbers from -limit to limit."""
    return lambda x: np.clip(np.rint(x), -limit, limit)


def feedback(weight: Floats, hessian: Floats, scale: Floats, nearest: Rounding, damp: float = DAMP) -> Floats:
    """The numbers that stand for the weight, number * scale, in float64 of shape (G, K, N).

    Inputs are rounded in the order of falling H_kk ("act-order" of the authors' code): what is large first, while all
    others can make up for it. An input that was never seen, H_kk = 0, is rounded to nearest.

    Args:
        weight: (G, K, N), K inputs and N outputs in each of G groups.
        hessian: (G, K, K), symmetric and positive semidefinite; its size does not matter.
        scale: of the codes, broadcast to the weight's shape.
        nearest: x / scale -> the nearest numbers there are: `whole` ones, or the levels of a table.
        damp: see `DAMP`.
    """
    groups, size, _ = weight.shape
    diagonal = np.diagonal(hessian, axis1=1, axis2=2)
    order = np.argsort(-diagonal, axis=1, kind="stable")
    which = np.arange(groups)[:, None]
    upper = _unit_upper(hessian[which[:, :, None], order[:, :, None], order[:, None, :]], damp)
    wanted, steps = weight[which, order], np.broadcast_to(scale, weight.shape)[which, order]
    codes, errors = np.empty_like(wanted), np.empty_like(wanted)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        moved = wanted[:, start:stop] + upper[:, :start, start:stop].transpose(0, 2, 1) @ errors[:, :start]
        for k in range(start, stop):
            codes[:, k] = nearest(moved[:, k - start] / steps[:, k])
            errors[:, k] = wanted[:, k] - codes[:, k] * steps[:, k]
            moved[:, k - start + 1 :] += upper[:, k, k + 1 : stop, None] * errors[:, None, k]
    unordered = np.empty_like(codes)
    unordered[which, order] = codes
    return unordered


def _unit_upper(hessian: Floats, damp: float) -> Floats:
    """U of H + damp mean(diag H) I = U D U^T: the Cholesky factor of H with its rows and columns turned round."""
    every = np.arange(hessian.shape[1])
    mean = np.diagonal(hessian, axis1=1, axis2=2).mean(axis=1)
    hessian = hessian.copy()
    hessian[:, every, every] += np.maximum(damp * mean, np.finfo(np.float32).tiny)[:, None]
    upper = np.linalg.cholesky(hessian[:, ::-1, ::-1])[:, ::-1, ::-1]
    unit: Floats = upper / np.diagonal(upper, axis1=1, axis2=2)[:, None, :]
    return unit
