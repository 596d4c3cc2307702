"""A matrix as the model file holds it: `encode` to the arrays of a format, `decode` back. Pure numpy.

Blocks lie along axis 0 of a matrix [K, N], the reduction axis of x W; the last block of a column may be short.
`FAMILIES` says which pair of functions a type has. A pass that finds better codes than rounding does (GPTQ, AWQ)
makes the same `Stored`, and `onnxq.forms` writes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from onnxq.formats.grammar import Format

    Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Stored:
    """What is stored of a matrix [K, N].

    Attributes:
        format: how.
        shape: (K, N).
        arrays: by what they are; `codes`, `scale` and `zero_point` as DequantizeLinear takes them for the integers and
            float8; for codebooks `codes` is uint4 [N, blocks, block size], filled up with zeros, and `scale` or what
            stands for it has a row for each output channel.
    """

    format: Format
    shape: tuple[int, int]
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Bit for bit."""
        if not isinstance(other, Stored):
            return NotImplemented
        return self._bits() == other._bits()

    def __hash__(self) -> int:
        return hash(self._bits())

    def _bits(self) -> tuple[Any, ...]:
        arrays = sorted((name, a.dtype.name, a.shape, a.tobytes()) for name, a in self.arrays.items())
        return str(self.format), self.shape, tuple(arrays)

    def bits_per_weight(self) -> float:
        """Bits of all arrays for each value of the matrix, as the file packs them."""
        return 8 * sum(map(packed_bytes, self.arrays.values())) / max(1, self.shape[0] * self.shape[1])


def packed_bytes(array: Array) -> int:
    """Bytes of an array in the file: ONNX packs two 4-bit or four 2-bit numbers in a byte."""
    name = array.dtype.name
    width = 4 if name.endswith("int4") else 2 if name.endswith("int2") else 8 * array.dtype.itemsize
    return -(-array.size * width // 8)


def block_count(length: int, size: int) -> int:
    """How many blocks a column has, a short last one counted."""
    return -(-length // size)


def in_blocks(w: Array, size: int) -> npt.NDArray[np.float64]:
    """A matrix [K, N] as [N, blocks, size] in float64, the last block filled up with zeros.

    A block is never longer than a column: what would fill it up would be stored.

    Raises:
        ValueError: w is not finite.
    """
    if not np.isfinite(w).all():
        raise ValueError("the weight holds NaN or infinity")
    rows = np.asarray(w, np.float64).T
    size = min(size, max(1, rows.shape[1]))
    count = block_count(rows.shape[1], size)
    filled = np.pad(rows, ((0, 0), (0, count * size - rows.shape[1])))
    return filled.reshape(len(rows), count, size)


def from_blocks(blocks: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.float64]:
    """The matrix [K, N] of [N, blocks, size], without what filled the last block."""
    matrix: npt.NDArray[np.float64] = blocks.reshape(len(blocks), -1)[:, :length].T
    return matrix


def narrowed(scale: npt.NDArray[np.float64], dtype: Any) -> Array:  # noqa: ANN401  what numpy takes as a type
    """Positive scales in the weight's type, not below its smallest normal number; 1 where a block is all zero."""
    stored: Array = np.where(scale == 0, 1.0, np.maximum(scale, float(np.finfo(dtype).tiny))).astype(dtype)
    return stored
