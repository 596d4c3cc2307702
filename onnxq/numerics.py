"""Quantized types and affine quantization, in pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Range = tuple[float, float]
"""(lo, hi) in the tensor's own unit."""

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Smallest normal float32: a smaller scale is flushed to zero by backends, and TensorRT refuses zero."""


@dataclass(frozen=True)
class QType:
    """An integer type and the grid used on it.

    Attributes:
        dtype: numpy name of the stored type, "int8" or "uint8".
        symmetric: the zero point is fixed (0 for signed, the middle for unsigned).
        narrow: a signed type leaves its lowest code unused (int8: -127..127), as weights do.
    """

    dtype: str
    symmetric: bool = True
    narrow: bool = False

    @property
    def signed(self) -> bool:
        """Whether codes below zero exist."""
        return bool(np.iinfo(self.dtype).min < 0)

    @property
    def qmin(self) -> int:
        """Lowest code that is used."""
        return int(np.iinfo(self.dtype).min) + (1 if self.narrow and self.signed else 0)

    @property
    def qmax(self) -> int:
        """Highest code."""
        return int(np.iinfo(self.dtype).max)


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
