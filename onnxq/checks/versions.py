"""What differs between TensorRT's versions, as data.

A name stands for the whole line of releases: what some release of the line refuses without a way around is an
error for the line; a type that a later release of the line brings is a warning that names the release.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from onnxq.dtypes import FLOAT4E2M1, FLOAT8E4M3FN, INT4
from onnxq.errors import RecipeError, known_names


@dataclass(frozen=True)
class Version:
    """One line of TensorRT releases.

    Attributes:
        name: as on the command line.
        major: of its releases.
        stored_weights: whether weights stored in int8 (a DequantizeLinear alone) are documented; before 10 the
            guide asks for float weights with Q and DQ, and the parser took int8 constants in part.
        transposed_per_channel: whether per-channel ConvTranspose weights can be relied on (TensorRT#1694, #1934).
        uint8: E where the parser refuses uint8 (up to 10.10), W where it takes it for int8.
        block_scales: whether scales of blocks exist.
        even_rows: whether some release wants four-bit tensors with an even last dimension (10.1 does).
        strongly_typed: whether every layer runs in the type that the model says, without asking.
        max_opset: the newest that the parser's table of operators names (of 8.6); None when that is no limit here.
        every_tensor: whether it is for a DLA, which runs in int8 where every tensor has a scale.
    """

    name: str
    major: int
    stored_weights: bool
    transposed_per_channel: bool
    uint8: Literal["E", "W"]
    block_scales: bool
    even_rows: bool
    strongly_typed: bool
    max_opset: int | None
    every_tensor: bool = False


TENSORRT_8 = Version(
    name="tensorrt@8",
    major=8,
    stored_weights=False,
    transposed_per_channel=False,
    uint8="E",
    block_scales=False,
    even_rows=False,
    strongly_typed=False,
    max_opset=17,
)
TENSORRT_10 = Version(
    name="tensorrt@10",
    major=10,
    stored_weights=True,
    transposed_per_channel=True,
    uint8="E",  # 10.11 and later only warn
    block_scales=True,
    even_rows=True,
    strongly_typed=False,  # opt-in, with --stronglyTyped
    max_opset=None,
)
TENSORRT_11 = Version(
    name="tensorrt@11",
    major=11,
    stored_weights=True,
    transposed_per_channel=True,
    uint8="W",
    block_scales=True,
    even_rows=False,
    strongly_typed=True,  # 11.0 removed the precision flags
    max_opset=None,
)

_LINES = (TENSORRT_8, TENSORRT_10, TENSORRT_11)

VERSIONS = {
    "tensorrt": TENSORRT_11,
    **{line.name: line for line in _LINES},
    **{f"{line.name}+dla": replace(line, name=f"{line.name}+dla", every_tensor=True) for line in _LINES},
}
"""Name on the command line -> version; without a number, the newest."""

FIRST_RELEASE = {FLOAT8E4M3FN: (9, 0), INT4: (10, 0), FLOAT4E2M1: (10, 8)}
"""Quantized type -> the first release that takes it. Float8 is in the 8.6 header but in the parser's list of types
only from 9 on: the strict reading."""


def get_version(name: str) -> Version:
    """The version of that name.

    Raises:
        RecipeError: there is none.
    """
    if name in VERSIONS:
        return VERSIONS[name]
    raise RecipeError(f"cannot check for target {name!r}", known_names(name, VERSIONS))
