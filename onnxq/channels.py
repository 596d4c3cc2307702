"""Grids per channel: the range that every channel of a tensor has for itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onnxq.numerics import QuantParams, affine

if TYPE_CHECKING:
    from onnxq.numerics import QType, Range


@dataclass(frozen=True, eq=False)
class ChannelRange:
    """[low, high] of every channel, both float32 of shape (channels,).

    Raises:
        ValueError: the shapes differ, an end is not finite, or a range does not hold 0.
    """

    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.low.ndim != 1 or self.low.shape != self.high.shape:
            raise ValueError(f"lowest values of shape {self.low.shape}, highest of shape {self.high.shape}")
        if not (np.isfinite(self.low) & np.isfinite(self.high) & (self.low <= 0) & (self.high >= 0)).all():
            raise ValueError("a range is not finite, or does not hold 0")

    def __eq__(self, other: object) -> bool:
        """Bit for bit."""
        if not isinstance(other, ChannelRange):
            return NotImplemented
        return np.array_equal(self.low, other.low) and np.array_equal(self.high, other.high)

    def __hash__(self) -> int:
        return hash((self.low.tobytes(), self.high.tobytes()))

    @property
    def whole(self) -> Range:
        """From the lowest to the highest value of all channels."""
        return float(self.low.min(initial=0.0)), float(self.high.max(initial=0.0))

    def inside(self, bounds: Range) -> ChannelRange:
        """Without what the tensor cannot hold."""
        low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
        return ChannelRange(np.maximum(self.low, np.float32(low)), np.minimum(self.high, np.float32(high)))

    def params(self, grid: QType, axis: int) -> QuantParams:
        """The parameters of every channel, by the formulae of `numerics.affine`."""
        scale, zero_point = affine(self.low, self.high, grid)
        return QuantParams(scale.astype(np.float32), zero_point.astype(grid.stored), grid, axis)
