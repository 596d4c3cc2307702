"""Which functions make the codes of a type: the table FAMILIES."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnxq.formats.affine import decode_affine, encode_affine
from onnxq.formats.binary import decode_binary, encode_binary
from onnxq.formats.codebooks import LEVELS, decode_codebook, encode_codebook

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from onnxq.formats.grammar import Format
    from onnxq.formats.stored import Stored

_AFFINE = ("int8", "uint8", "int4", "uint4", "int3", "int2", "ternary", "fp8e4m3", "fp8e5m2")

FAMILIES: dict[str, tuple[Callable[..., Stored], Callable[[Stored], npt.NDArray[np.float64]]]] = {
    **dict.fromkeys(_AFFINE, (encode_affine, decode_affine)),
    **dict.fromkeys(LEVELS, (encode_codebook, decode_codebook)),
    "binary": (encode_binary, decode_binary),
}
"""Type -> (encode, decode)."""


def encode(w: npt.NDArray[Any], format_: Format, method: str = "absmax") -> Stored:
    """A matrix [K, N] in a format; `method` "mse" searches clipping values for symmetric integers in blocks.

    Raises:
        ValueError: w is not finite, or the format knows no such method.
    """
    return FAMILIES[format_.type][0](w, format_, method)


def decode(stored: Stored) -> npt.NDArray[np.float64]:
    """The matrix [K, N] as it reads back, in float64."""
    return FAMILIES[stored.format.type][1](stored)
