"""AWQ's scale search: input channels that matter get finer steps, and what makes the input is divided by the same.

Lin et al. 2023 (arXiv 2306.00978), section 3.2: s_j = mean|x_j|^r, r = 0, 1/20 ... 19/20, normalized by
sqrt(max s min s); of all r the one with the least error of the outputs of Q(s W) (x / s) against W x. The paper
measures it behind the whole attention or feed-forward block; here it is the error of every layer that reads x, each in
parts of its own output. With the Gram matrix H of x it is tr(E^T H E) / tr(W^T H W), E = Q(s W) / s - W.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.formats.families import decode, encode
from onnxq.statistics import Factor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from onnxq.formats import Format
    from onnxq.weights.moments import Moments

RATIOS = tuple(i / 20 for i in range(20))
LEAST = 1e-4


def awq_factor(
    weights: Sequence[npt.NDArray[Any]], seen: Moments, format_: Format, margin_db: float = 0.0
) -> Factor | None:
    """The factor of the least error, None where none beats leaving x as it is by the margin.

    Args:
        weights: [K, N_i] of every layer that reads x.
        seen: moments of x.
        format_: how they are stored.
        margin_db: least fall of the error.
    """
    gram = seen.gram.astype(np.float32)
    real = [w.astype(np.float32) for w in weights]
    powers = [float(np.vdot(w, gram @ w)) for w in real]
    best, found = np.inf, np.ones(len(gram), np.float32)
    plain = np.inf
    for ratio in RATIOS:
        scale = awq_scale(seen.mean, ratio)
        loss = 0.0
        for w, power in zip(real, powers, strict=True):
            column = scale[:, None]
            error = decode(encode(w * column, format_)).astype(np.float32) / column - w
            loss += float(np.vdot(error, gram @ error)) / power if power > 0 else 0.0
        plain = loss if ratio == 0 else plain
        if loss < best:
            best, found = loss, scale
    if not best < plain * 10 ** (-margin_db / 10):
        return None
    return Factor(found, np.zeros_like(found))


def awq_scale(mean: npt.NDArray[np.float64], ratio: float) -> npt.NDArray[np.float32]:
    """Factors of one exponent: mean|x|^r over the geometric mean of their extremes; never below `LEAST`."""
    scale = np.maximum(mean**ratio, LEAST)
    scale /= np.sqrt(scale.max() * scale.min())
    return scale.astype(np.float32)
