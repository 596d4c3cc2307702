"""Functions that activations compute of each value, by which an error in front of them is weighed."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, pi, sqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Floats = npt.NDArray[np.float64]


def _leaky_relu(x: Floats, alpha: float) -> Floats:
    found: Floats = np.where(x < 0, alpha * x, x)
    return found


def _silu(x: Floats) -> Floats:
    found: Floats = 0.5 * x * (1.0 + np.tanh(0.5 * x))  # the sigmoid that overflows on neither side
    return found


def _hard_swish(x: Floats) -> Floats:
    found: Floats = x * np.clip(x / 6 + 0.5, 0.0, 1.0)
    return found


def _gelu(x: Floats) -> Floats:
    """Its tanh form, which differs from the exact one by less than 0.001."""
    found: Floats = 0.5 * x * (1.0 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
    return found


def _mish(x: Floats) -> Floats:
    found: Floats = x * np.tanh(np.logaddexp(0.0, x))
    return found


FUNCTIONS: Mapping[str, Callable[..., Floats]] = {
    "LeakyRelu": _leaky_relu,
    "SiLU": _silu,  # arXiv 1710.05941
    "HardSwish": _hard_swish,  # arXiv 1905.02244
    "GELU": _gelu,  # arXiv 1606.08415
    "Mish": _mish,  # arXiv 1908.08681
}
"""Operator or kind of pattern -> what it computes of values, and of the parameters that it may have."""


@dataclass(frozen=True)
class Pointwise:
    """One of these functions, and what is cut off behind it.

    Attributes:
        kind: its key in `FUNCTIONS`.
        parameters: those that it has: alpha.
        lowest: all that is below becomes this number.
        highest: all that is above becomes this number.
    """

    kind: str
    parameters: tuple[float, ...] = ()
    lowest: float = -inf
    highest: float = inf

    def __call__(self, x: Floats) -> Floats:
        """f(x), of any shape, in float64."""
        return np.clip(FUNCTIONS[self.kind](x, *self.parameters), self.lowest, self.highest)
