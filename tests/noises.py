"""Noise over signal that a test makes up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxq.improvement.judging import Noise

if TYPE_CHECKING:
    import numpy.typing as npt


def noise_of(values: npt.ArrayLike) -> Noise:
    """One number for each sample that judges."""
    known = np.asarray(values, np.float64)
    return Noise(known.size, lambda first, end: known[first:end])
