"""What a matrix can hold once its scales are fixed, for those who choose codes otherwise than each the nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.formats.stored import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from onnxq.formats.grammar import Format

    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grid:
    """The numbers that the values of a matrix [K, N] can be stored as: w ≈ (number - zero) * scale.

    Attributes:
        format: how they are stored.
        scale: of every value, as it reads back; [K, N].
        zero: of every value; broadcast to [K, N].
        arrays: what is stored beside the codes.
        nearest: x -> the number nearest to each of its values, whatever its shape.
        coded: numbers [K, N] -> codes as `Stored.arrays` has them.
    """

    format: Format
    scale: Floats
    zero: Floats
    arrays: Mapping[str, npt.NDArray[Any]]
    nearest: Callable[[Floats], Floats]
    coded: Callable[[Floats], npt.NDArray[Any]]

    def numbers(self, w: npt.NDArray[Any]) -> Floats:
        """The nearest number of each value of w [K, N]."""
        return self.nearest(w.astype(np.float64) / self.scale + self.zero)

    def real(self, numbers: Floats) -> Floats:
        """The matrix as it reads back."""
        return (numbers - self.zero) * self.scale

    def stored(self, numbers: Floats) -> Stored:
        """The numbers as the model file holds them."""
        k, n = numbers.shape
        return Stored(self.format, (k, n), {"codes": self.coded(numbers), **self.arrays})
