"""What each backend wants, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.errors import RecipeError, known_names
from onnxq.targets.ort_cpu import ORT_CPU
from onnxq.targets.ort_cuda import ORT_CUDA
from onnxq.targets.tensorrt import (
    TENSORRT_8,
    TENSORRT_8_DLA,
    TENSORRT_10,
    TENSORRT_10_DLA,
    TENSORRT_11,
    TENSORRT_11_DLA,
)

if TYPE_CHECKING:
    from onnxq.targets.target import Target

TARGETS: dict[str, Target] = {
    "tensorrt": TENSORRT_11,  # the newest
    **{t.name: t for t in (TENSORRT_11, TENSORRT_10, TENSORRT_8)},
    **{t.name: t for t in (TENSORRT_11_DLA, TENSORRT_10_DLA, TENSORRT_8_DLA)},
    ORT_CUDA.name: ORT_CUDA,
    ORT_CPU.name: ORT_CPU,
}
"""Name on the command line -> target."""


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        RecipeError: there is none.
    """
    if name in TARGETS:
        return TARGETS[name]
    raise RecipeError(f"unknown target {name!r}", known_names(name, TARGETS))
