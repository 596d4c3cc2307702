"""One bit a weight: w ≈ a sign(w), a = mean|w| of the output channel (Rastegari et al. 2016, XNOR-Net, eq. 6).

That scale a has the least squared error, sum w² - K a². Zero counts as positive. Bit i of byte j is row 8 j + i.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.formats.grid import Grid
from onnxq.formats.stored import Stored, narrowed

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.formats.grammar import Format


def encode_binary(w: npt.NDArray[Any], format_: Format, method: str = "absmax") -> Stored:
    """Signs and mean magnitudes of a matrix [K, N]: codes uint8 [ceil(K / 8), N], scale [N].

    Raises:
        ValueError: w is not finite.
    """
    if method != "absmax":
        raise ValueError(f"{format_.type} has no choice of ranges")
    if not np.isfinite(w).all():
        raise ValueError("the weight holds NaN or infinity")
    mean: npt.NDArray[np.float64] = np.abs(w.astype(np.float64)).mean(axis=0)
    scale = narrowed(mean, w.dtype)
    codes = np.packbits(w >= 0, axis=0, bitorder="little")
    return Stored(format_, (w.shape[0], w.shape[1]), {"codes": codes, "scale": scale})


def binary_grid(w: npt.NDArray[Any], format_: Format, shrink: npt.NDArray[np.float64] | float = 1.0) -> Grid:
    """The two numbers of every column; `shrink` [N, 1, 1] multiplies its scale.

    Raises:
        ValueError: w is not finite.
    """
    mean = encode_binary(w, format_).arrays["scale"].astype(np.float64)
    scale = narrowed(mean * np.reshape(shrink, -1), w.dtype)
    return Grid(
        format_,
        np.broadcast_to(scale.astype(np.float64), w.shape),
        np.zeros(()),
        {"scale": scale},
        lambda x: np.where(x >= 0, 1.0, -1.0),
        lambda numbers: np.packbits(numbers > 0, axis=0, bitorder="little"),
    )


def decode_binary(stored: Stored) -> npt.NDArray[np.float64]:
    """The matrix as it reads back, in float64."""
    bits = np.unpackbits(stored.arrays["codes"], axis=0, count=stored.shape[0], bitorder="little")
    signs = 2.0 * bits.astype(np.float64) - 1.0
    real: npt.NDArray[np.float64] = signs * stored.arrays["scale"].astype(np.float64)
    return real
