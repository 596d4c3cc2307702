"""Calibrators: pure functions from what was observed of a tensor to the range that its codes cover."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING

from onnxq.calibrators.auto import auto
from onnxq.calibrators.entropy import entropy
from onnxq.calibrators.minmax import minmax
from onnxq.calibrators.mse import legacy, mse
from onnxq.calibrators.percentile import percentile as clip_tails
from onnxq.errors import RecipeError
from onnxq.histogram import Histogram
from onnxq.numerics import QType, Range

if TYPE_CHECKING:
    from onnxq.calibrators._error import Function

Calibrator = Callable[[Histogram, QType], Range]
"""A histogram without nonzero values gives (0, 0); a symmetric QType gives lo = -hi; the range holds 0."""

CALIBRATORS: dict[str, Calibrator] = {
    "entropy": entropy,  # least information lost: convolutional networks
    "minmax": minmax,  # nothing clipped: transformers, and tensors whose largest values are the answer
    "mse": mse,  # least squared error
    "legacy": legacy,  # mse under another name; see its docstring
    "percentile": clip_tails,  # 99.99 % of the values
    "auto": auto,  # per tensor, the best of the others by squared error
}


LEAST_ERROR = {"auto": auto, "mse": mse, "legacy": legacy}
"""Those that weigh errors, and so can weigh them behind an activation."""


def make_calibrator(name: str, percentile: float = 99.99, behind: Function | None = None) -> Calibrator:
    """The calibrator of that name.

    Args:
        name: a key of `CALIBRATORS`.
        percentile: in per cent, for "percentile"; ignored by the others.
        behind: what alone reads the tensor, for those of `LEAST_ERROR`; ignored by the others.

    Raises:
        RecipeError: there is none of that name, or percentile is not in (0, 100].
    """
    if name not in CALIBRATORS:
        close = get_close_matches(name, CALIBRATORS, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise RecipeError(f"there is no calibrator {name!r}", f"{hint}Calibrators: {', '.join(CALIBRATORS)}.")
    if not 0 < percentile <= 100:
        raise RecipeError(f"the percentile is {percentile}", "Give a percentile above 0 and up to 100, such as 99.99.")
    if name in LEAST_ERROR and behind is not None:
        return partial(LEAST_ERROR[name], behind=behind)
    return partial(clip_tails, percent=percentile) if name == "percentile" else CALIBRATORS[name]
