"""Which functions make the codes of a type: the table FAMILIES."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxq.formats.affine import affine_grid, decode_affine, encode_affine
from onnxq.formats.binary import binary_grid, decode_binary, encode_binary
from onnxq.formats.codebooks import CODEBOOKS, codebook_grid, decode_codebook, encode_codebook

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from onnxq.formats.grammar import Format
    from onnxq.formats.grid import Grid
    from onnxq.formats.stored import Stored

_AFFINE = ("int8", "uint8", "int4", "uint4", "int3", "int2", "ternary", "fp8e4m3", "fp8e5m2")

FAMILIES: dict[str, tuple[Callable[..., Stored], Callable[[Stored], npt.NDArray[np.float64]], Callable[..., Grid]]] = {
    **dict.fromkeys(_AFFINE, (encode_affine, decode_affine, affine_grid)),
    **dict.fromkeys(CODEBOOKS, (encode_codebook, decode_codebook, codebook_grid)),
    "binary": (encode_binary, decode_binary, binary_grid),
}
"""Type -> (encode, decode, grid)."""


def encode(w: npt.NDArray[Any], format_: Format, method: str = "absmax") -> Stored:
    """A matrix [K, N] in a format; `method` "mse" searches clipping values for symmetric integers in blocks.

    Raises:
        ValueError: w is not finite, or the format knows no such method.
    """
    return FAMILIES[format_.type][0](w, format_, method)


def decode(stored: Stored) -> npt.NDArray[np.float64]:
    """The matrix [K, N] as it reads back, in float64."""
    return FAMILIES[stored.format.type][1](stored)


def grid_of(w: npt.NDArray[Any], format_: Format, shrink: npt.NDArray[np.float64] | float = 1.0) -> Grid:
    """What a matrix [K, N] can hold in a format, with its ranges times `shrink`: a number, or one for each block.

    Args:
        w: the matrix.
        format_: the format.
        shrink: a number, or [N, blocks, 1]; with one scale for all [1, 1, 1].

    Raises:
        ValueError: w is not finite.
    """
    return FAMILIES[format_.type][2](w, format_, shrink)
