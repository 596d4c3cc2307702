"""By how much ranges get wider than those of least squared error.

What is cut off a tensor errs in one direction, in the same channels and in few rows, and so adds up in the layers
behind it, where the errors of rounding average out; and the largest values of few samples are not the largest there
are. By how much wider ranges should be no histogram tells: the judging samples do, for all tensors together. For parts
of them 16 samples judge by chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.improvement.judging import gains
from onnxq.monitor import QUIET, Monitor

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxq.improvement.judging import Noise

FACTORS = (1.5, 1.25)
"""What ranges are multiplied by, tried in this order: 3.5 and 1.9 dB more noise of rounding."""

PAYS_DB = 0.2
"""What wider ranges must gain at the model's outputs."""

ERRORS = 2.0
"""And by how many standard errors. All errors of the model change together, and few samples agree by chance: with one,
topics for `ort-cpu` widened by 1.25 for 0.45 dB (standard error 0.33) and lost 2 dB on its test texts."""


def widening(noise: Callable[[float], Noise], monitor: Monitor = QUIET) -> float:
    """What all ranges are multiplied by; 1 where that does not pay.

    Args:
        noise: such a factor -> noise over signal of the quantized model, of each judging sample.
        monitor: progress.
    """
    monitor.stage("Judging wider ranges", None)
    before = noise(1.0)
    return next((factor for factor in FACTORS if gains(before, noise(factor), PAYS_DB, errors=ERRORS)), 1.0)
