"""Which tensors get a wider range than the one of least squared error.

What is cut off a tensor errs in one direction, in the same channels and in few rows, and so adds up in the layers
behind it, where the errors of rounding average out; and the largest values of few samples are not the largest there
are. By how much wider a range should be no histogram tells: the judging samples do.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from onnxq.improvement.judging import confirmed, gains
from onnxq.monitor import QUIET, Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnxq.improvement.judging import Floats

FACTORS = (1.5, 1.25)
"""What ranges are multiplied by, tried in this order: 3.5 and 1.9 dB more noise of rounding."""

PAYS_DB = 0.2
"""What wider ranges must gain together at the model's outputs."""


def wider_ranges(
    groups: Sequence[tuple[str, ...]],
    noise: Callable[[Mapping[str, float]], Floats],
    trials: int,
    monitor: Monitor = QUIET,
) -> dict[str, float]:
    """Tensor -> what its range is multiplied by, of those whose range gets wider; often none.

    Args:
        groups: tensors that share a scale, in the plan's order.
        noise: such factors -> noise over signal of the quantized model, of each judging sample.
        trials: models that are judged at most for each factor.
        monitor: progress.
    """
    found: dict[str, float] = {}
    if groups:
        monitor.stage("Judging wider ranges", None)
    for factor in FACTORS:
        left = [group for group in groups if group[0] not in found]
        if left:
            judged = partial(_judged, noise, found, factor)
            found = found | _with(factor, confirmed([left], judged, _pays, trials))
    return found


def _judged(
    noise: Callable[[Mapping[str, float]], Floats],
    known: dict[str, float],
    factor: float,
    groups: Sequence[tuple[str, ...]],
) -> Floats:
    return noise(known | _with(factor, groups))


def _pays(_: object, before: Floats, after: Floats) -> bool:
    return gains(before, after, PAYS_DB)


def _with(factor: float, groups: Sequence[tuple[str, ...]]) -> dict[str, float]:
    return {name: factor for group in groups for name in group}
