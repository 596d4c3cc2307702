"""Which layers stay in float: those that make far more of the error than of the work.

In many models a few cheap layers, often the first or the last ones, make much of the error. What each makes is
measured: the model is run with a stretch of layers in float, and where that helps with each half of it. The noise of
single layers nearly adds up, so that what it falls by is theirs.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from onnxq.improvement.judging import LOOKS, confirmed, decibels, gains, standard_error
from onnxq.monitor import QUIET, Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnxq.improvement.judging import Noise
    from onnxq.placement.groups import Group

    Tried = Callable[[Sequence[Group]], Noise]
    """Groups in float -> noise over signal of the quantized model, of each sample."""
    Cost = Callable[[Sequence[Group]], float]
    """Groups in float -> what that costs."""

TIMES = 4.0
"""How many times its share of the multiply-accumulates a layer must make of the noise."""

LEAST = 0.01
"""The least share of the noise that is looked for, 0.04 dB."""

PAYS_DB = 0.5
"""What all that stays in float must gain at the model's outputs: each is a change of types, and of speed."""

STRETCHES = 8
"""Layers are parted into so many stretches at first."""


def spared(
    groups: Sequence[Group],
    total: int,
    limit: float,
    noise: tuple[Tried, Tried],
    trials: tuple[int, int],
    monitor: Monitor = QUIET,
    cost: Cost | None = None,
) -> tuple[Group, ...]:
    """The groups that stay in float, in the model's order; often none.

    Args:
        groups: of quantized layers, in the model's order.
        total: multiply-accumulates of the model.
        limit: share of them that may stay in float, 0 to 1.
        noise: on samples that choose, and on those that judge.
        trials: models that are run at most on the former, and on the latter.
        monitor: progress.
        cost: what groups cost in float, in multiply-accumulates, at least their own; None: no more than these.
    """
    room = limit * total
    price = cost or _macs
    possible = [g for g in groups if g.macs <= room]
    if not possible:
        return ()
    monitor.stage("Looking for layers to leave in float", None)
    wanted, left = [], room
    shares = costly(possible, noise[0], trials[0])
    prices = {g: price((g,)) for g in possible if g in shares}
    for group in sorted(prices, key=lambda g: -shares[g] / max(prices[g], 1)):
        if shares[group] * total >= TIMES * prices[group] and prices[group] <= left:
            wanted.append(group)
            left -= prices[group]
    if not wanted:
        return ()
    kept, _ = confirmed([wanted], noise[1], lambda _, before, after: gains(before, after, PAYS_DB), trials[1])
    return tuple(g for g in groups if g in kept)


def costly(groups: Sequence[Group], noise: Tried, trials: int) -> dict[Group, float]:
    """Group -> the share of the noise that goes with it, of those found to make at least `LEAST` of it.

    Args:
        groups: in the model's order.
        noise: on the samples that choose.
        trials: models that are run at most, one with everything in int8 among them.
    """
    before = noise(())
    size = -(-len(groups) // STRETCHES)
    waiting = [(-1.0, start, tuple(groups[start : start + size])) for start in range(0, len(groups), size)]
    found: dict[Group, float] = {}
    for _ in range(trials - 1):
        if not waiting:
            break
        _, start, stretch = heapq.heappop(waiting)
        share = _share(before, noise(stretch))
        if not share >= LEAST:
            continue
        if len(stretch) == 1:
            found[stretch[0]] = share
            continue
        middle = len(stretch) // 2
        for offset, half in ((0, stretch[:middle]), (middle, stretch[middle:])):
            heapq.heappush(waiting, (-share, start + offset, half))
    return found


def _macs(groups: Sequence[Group]) -> float:
    return sum(g.macs for g in groups)


def _share(before: Noise, after: Noise) -> float:
    """By what share the noise fell, geometric mean over the samples; known well enough after few of them, no more run.

    That is when it is less than `LEAST` by so many standard errors as `onnxq.improvement.judging.LOOKS` has it, or
    known to a quarter of itself: it is held against four times the share of the work.
    """
    for count, t in (*(look for look in LOOKS if look[0] < before.samples), (before.samples, 0.0)):
        fell = decibels(after.first(count), before.first(count)) * np.log(10) / 10
        share, error = 1.0 - float(np.exp(-fell.mean())), standard_error(fell)
        if fell.mean() + t * error < LEAST or error < share / TIMES:
            break
    return share
