"""Which layers stay in float: those that make far more of the error than of the work.

In many models a few cheap layers, often the first or the last ones, make much of the error. What each makes is
measured in two ways, by stretches of layers that are halved where it matters, and judged on other samples:

- By itself, everything else in float (`by_themselves`). Where much of what a model reads is the same everywhere, such
  as the background of a line of text, errors are the same everywhere too, and those of several layers happen to cancel
  out: then each of these layers in float makes the model worse, though all of them together make it much better.
- By what the noise of the quantized model falls when it is in float (`spared`). That also counts what goes along, such
  as the pair of a residual addition, and errors that all point one way.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING

import numpy as np

from onnxq.improvement.judging import LOOKS, confirmed, decibels, gains, standard_error, stretches
from onnxq.monitor import QUIET, Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnxq.improvement.judging import Noise
    from onnxq.placement.groups import Group

    Tried = Callable[[Sequence[Group]], Noise]
    """Groups in float -> noise over signal of the quantized model, of each sample."""
    Unit = tuple[Group, ...]
    """Groups that are left in float together."""
    Cost = Callable[[Sequence[Group]], float]
    """Groups in float -> what that costs."""

TIMES = 4.0
"""How many times its share of the multiply-accumulates a layer must make of the noise."""

LEAST = 0.01
"""The least share of the noise that is looked for, 0.04 dB."""

PAYS_DB, COSTLY_PAYS_DB = 0.5, 0.9
"""What all that stays in float must gain at the model's outputs: each is a change of types, and of speed. The second
where float costs more than its own multiply-accumulates, as on CPUs (3.6 % of MobileNetV2 take 4 % more time, for 0.8
dB)."""


def spared(
    groups: Sequence[Group],
    total: int,
    limit: float,
    noise: tuple[Tried, Tried],
    trials: tuple[int, int],
    monitor: Monitor = QUIET,
    cost: Cost | None = None,
) -> tuple[tuple[Group, ...], Noise]:
    """The groups that stay in float, in the model's order, often none, and what judges see of the model with them.

    Args:
        groups: of quantized layers, in the model's order.
        total: multiply-accumulates of the model.
        limit: share of them that may stay in float, 0 to 1.
        noise: on samples that choose, and on those that judge; that with none in float is known of the latter.
        trials: models that are run at most on the former, and on the latter.
        monitor: progress.
        cost: what groups cost in float, in multiply-accumulates, at least their own; None: no more than these.
    """
    judged, room = noise[1], limit * total
    price = cost or _macs
    possible = [g for g in groups if g.macs <= room]
    if not possible:
        return (), judged(())
    monitor.stage("Looking for layers to leave in float", None)
    wanted: list[Unit] = []
    left = room
    shares = costly(possible, noise[0], trials[0])
    prices = {unit: price(unit) for unit in shares}
    for unit in sorted(prices, key=lambda u: -shares[u] / max(prices[u], 1)):
        apart = set(unit).isdisjoint(_all(wanted))
        if apart and shares[unit] * total >= TIMES * prices[unit] and prices[unit] <= left:
            wanted.append(unit)
            left -= prices[unit]
    return kept(groups, wanted, judged, trials[1], cost)


def by_themselves(
    groups: Sequence[Group], total: int, limit: float, alone: Tried, trials: int, cost: Cost | None = None
) -> tuple[Unit, ...]:
    """The units that err far more than their share of the work when everything else is float, the worst for it first.

    Each is held against the noise of those that stay in int8.

    Args:
        groups: of quantized layers, in the model's order.
        total: multiply-accumulates of the model.
        limit: share of them that may stay in float, 0 to 1.
        alone: groups in int8, all others in float -> noise over signal, of each sample that chooses.
        trials: models that are run at most.
        cost: as for `spared`.
    """
    left, price = limit * total, cost or _macs
    possible, large = [g for g in groups if g.macs <= left], [g for g in groups if g.macs > left]
    found = _units(possible, alone, trials - bool(large)) if possible else {}
    rest = _mean(alone(large)) if found and large else 0.0
    prices, stays = {unit: price(unit) for unit in found}, dict(found)
    wanted: list[Unit] = []
    for unit in sorted(prices, key=lambda u: -found[u] / max(prices[u], 1)):
        share = found[unit] / (math.fsum(stays.values()) + rest)  # summed anew: what is left may be tiny, not 0
        if share >= LEAST and share * total >= TIMES * prices[unit] and prices[unit] <= left:
            wanted.append(unit)
            left -= prices[unit]
            del stays[unit]
    return tuple(wanted)


def kept(
    groups: Sequence[Group], wanted: Sequence[Unit], judged: Tried, trials: int, cost: Cost | None = None
) -> tuple[tuple[Group, ...], Noise]:
    """What of these units the judges confirm, in the order of the groups, and what they see of the model then."""
    if not wanted:
        return (), judged(())
    found, least = confirmed(
        [list(wanted)],
        lambda units: judged(_all(units)),
        lambda _, before, after: pays(before, after, cost),
        trials,
    )
    chosen = set(_all(found))
    return tuple(g for g in groups if g in chosen), least


def pays(before: Noise, after: Noise, cost: Cost | None = None) -> bool:
    """Whether layers in float gain enough."""
    return gains(before, after, PAYS_DB if cost is None else COSTLY_PAYS_DB)


def _units(groups: Sequence[Group], alone: Tried, trials: int) -> dict[Unit, float]:
    """Stretches of the groups, those that err most halved most often -> noise over signal of each by itself."""
    waiting = [(-_mean(alone(stretch)), start, stretch) for start, stretch in stretches(groups)]
    heapq.heapify(waiting)
    single: dict[Unit, float] = {}
    for _ in range((trials - len(waiting)) // 2):
        while waiting and len(waiting[0][2]) == 1:
            noise, _, unit = heapq.heappop(waiting)
            single[unit] = -noise
        if not waiting:
            break
        _, start, stretch = heapq.heappop(waiting)
        for half, begin in zip(_halves(stretch), (start, start + len(stretch) // 2), strict=True):
            heapq.heappush(waiting, (-_mean(alone(half)), begin, half))
    return single | {unit: -noise for noise, _, unit in waiting}


def _mean(noise: Noise) -> float:
    """The geometric mean over the samples; of few of them where it is known to half of `TIMES`."""
    for count, t in (*(look for look in LOOKS if look[0] < noise.samples), (noise.samples, 0.0)):
        logs = np.log(np.maximum(noise.first(count), np.finfo(np.float64).tiny))
        if t * standard_error(logs) <= math.log(TIMES / 2):
            break
    return float(np.exp(logs.mean()))


def costly(groups: Sequence[Group], noise: Tried, trials: int) -> dict[Unit, float]:
    """Unit -> the share of the noise that goes with it, of those found to make at least `LEAST` of it.

    A unit is a group, or a stretch of them whose halves make less than half of its noise: some layers gain only
    together.

    Args:
        groups: in the model's order.
        noise: on the samples that choose.
        trials: models that are run at most, one with everything in int8 among them.
    """
    before = noise(())
    waiting = [(-1.0, start, stretch) for start, stretch in stretches(groups)]
    shares: dict[Unit, float] = {}
    for _ in range(trials - 1):
        if not waiting:
            break
        _, start, stretch = heapq.heappop(waiting)
        share = shares[stretch] = _share(before, noise(stretch))
        if share >= LEAST and len(stretch) > 1:
            for offset, half in enumerate(_halves(stretch)):
                heapq.heappush(waiting, (-share, start + offset * (len(stretch) // 2), half))
    return {unit: share for unit, share in shares.items() if share >= LEAST and _is_unit(unit, shares)}


def _halves(stretch: Unit) -> tuple[Unit, Unit]:
    middle = len(stretch) // 2
    return stretch[:middle], stretch[middle:]


def _is_unit(stretch: Unit, shares: Mapping[Unit, float]) -> bool:
    if len(stretch) == 1:
        return True
    halves = [shares.get(half) for half in _halves(stretch)]
    return None not in halves and 2 * sum(max(half or 0.0, 0.0) for half in halves) < shares[stretch]


def _all(units: Sequence[Unit]) -> list[Group]:
    return [group for unit in units for group in unit]


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
