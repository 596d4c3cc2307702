"""Which tensors get a zero point, which symmetric targets write as a shift: those that lose much without one.

A one-sided tensor uses half the codes of a symmetric grid. What a zero point would gain is expected from the tensor's
histogram; whether the model's outputs come nearer to what they are in float, the judging samples tell. What costs
nothing is tried first, what adds a node after that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxq.calibrators._error import expected_error
from onnxq.histogram import Histogram
from onnxq.improvement.judging import GAIN_DB, confirmed, gains
from onnxq.monitor import QUIET, Monitor
from onnxq.placement.zero_points import COSTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnxq.improvement.judging import Noise
    from onnxq.placement.zero_points import Candidate
    from onnxq.plan import Plan, Point

LEAST_DB = {"free": 1.0, "pointwise": 1.5, "pad": 2.0}
"""What a zero point must gain at its tensor, by cost. A ReLU's tensor can gain 6 dB, one that is centred nothing."""

PAYS_DB = {"free": GAIN_DB, "pointwise": GAIN_DB, "pad": 0.5}
"""What all of one cost must gain together at the model's outputs."""


def promising(
    possible: Sequence[Candidate], plans: tuple[Plan, Plan], tensors: Mapping[str, Histogram]
) -> tuple[Candidate, ...]:
    """Those of which the histograms promise a gain that is worth the cost.

    Args:
        possible: the groups that can have a zero point.
        plans: resolved without any zero point, and with one wherever there can be one.
        tensors: what was observed.
    """
    return tuple(c for c in possible if _gain(c, plans, tensors) > LEAST_DB[c.cost])


def zero_points(
    wanted: Sequence[Candidate],
    noise: Callable[[Sequence[str]], Noise],
    trials: int,
    monitor: Monitor = QUIET,
) -> tuple[tuple[str, ...], Noise]:
    """Names of the tensors, in the plan's order, often none; and the noise with them.

    Args:
        wanted: the groups that promise to gain by one.
        noise: tensors with a zero point -> noise over signal of the quantized model, of each judging sample.
        trials: models that are judged at most.
        monitor: progress.
    """
    if not wanted:
        return (), noise(())
    monitor.stage("Judging zero points", None)
    groups = [[c for c in wanted if c.cost == cost] for cost in COSTS]
    kept, least = confirmed(
        [group for group in groups if group],
        lambda chosen: noise(names_of(chosen)),
        lambda group, before, after: gains(before, after, PAYS_DB[group[0].cost], expected=True),
        trials,
    )
    return names_of([c for c in wanted if c in kept]), least


def names_of(chosen: Sequence[Candidate]) -> tuple[str, ...]:
    """The tensors of all these groups."""
    return tuple(name for c in chosen for name in c.tensors)


def _gain(candidate: Candidate, plans: tuple[Plan, Plan], tensors: Mapping[str, Histogram]) -> float:
    """How much less the group's tensors err, all their values together, in dB."""
    before, after = ([plan.points[name] for name in candidate.tensors] for plan in plans)
    seen = sorted({name for point in before for name in point.observed})
    histogram = sum((tensors[name] for name in seen), Histogram.empty())
    errors = [_error(points[0], histogram) for points in (before, after)]
    floor = float(np.finfo(np.float64).tiny)
    return float(10 * np.log10(max(errors[0], floor) / max(errors[1], floor)))


def _error(point: Point, histogram: Histogram) -> float:
    if point.params is None or point.range is None:
        return 0.0
    return expected_error(histogram, *point.range, point.params.qtype)
