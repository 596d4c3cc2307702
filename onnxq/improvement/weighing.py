"""Which tensors have a range for themselves though all that reads them is an activation.

A range of least error behind the activation wastes no codes on what that makes nearly 0, and is the better one as a
rule. But where much of a tensor is one background, how that is rounded decides, by chance: the judging samples tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.improvement.judging import confirmed, gains
from onnxq.monitor import QUIET, Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnxq.improvement.judging import Noise

ERRORS = 2.0
"""By how many standard errors outputs must gain. With one, digits for `ort-cpu` took one range for 0.15 dB (standard
error 0.13) on its judging samples, none without layers in float on the test images, and -0.9 with them."""


def summed(
    tensors: Sequence[str], noise: Callable[[Sequence[str]], Noise], monitor: Monitor = QUIET
) -> tuple[str, ...]:
    """All of the tensors or none: those in front of additions, unless the judging samples contradict.

    That what is added is independent of them is an assumption: of a branch that is far below 0 just where the shortcut
    is far above, it would cut off what matters. So where nothing judges, ranges are for the tensors themselves.

    Args:
        tensors: that additions read whose result is cut off.
        noise: those with a range by the error behind the addition -> noise over signal, as below.
        monitor: progress.
    """
    if not tensors:
        return ()
    monitor.stage("Judging ranges in front of additions", None)
    return tuple(tensors) if gains(noise(()), noise(tensors), expected=True) else ()


def weighed_alone(
    tensors: Sequence[str], noise: Callable[[Sequence[str]], Noise], trials: int, monitor: Monitor = QUIET
) -> tuple[str, ...]:
    """Those of the tensors whose range is chosen for themselves, in the order given: where the other gains nothing.

    Args:
        tensors: that activations read.
        noise: those with such a range -> noise over signal of the quantized model, of each judging sample.
        trials: models that are run at most.
        monitor: progress.
    """
    if not tensors:
        return ()
    monitor.stage("Judging ranges in front of activations", None)

    def others(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in tensors if name not in names)

    def accepts(_: list[str], before: Noise, after: Noise) -> bool:
        return gains(before, after, errors=ERRORS)

    kept, _ = confirmed([list(tensors)], lambda weighed: noise(others(weighed)), accepts, trials)
    return others(kept)
