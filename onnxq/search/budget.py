"""The fewest multiply-accumulates back in float so that a budget holds on samples that had no part in the choice.

1. Rank the groups by what each costs the model's outputs, alone quantized, for its multiply-accumulates.
2. Search: revert the first k of the list, the smallest k that reaches the goals; by bisection, as each further group
   in float brings the model nearer.
3. Rank again: of the groups reverted, the largest that should not be needed any more is quantized again if it is not.
4. Judge on the held-back samples, in the form that is shipped. What fails there raises the bar of step 2.
5. With `fallback`: what is in float then keeps narrow weights, of the first format that the goals allow, if that
   passes the judgement too.

The ranking is a greedy solution of the knapsack problem, the noise of single groups being nearly additive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onnxq.emulation import emulate_bfloat16
from onnxq.errors import AccuracyError
from onnxq.outcome import Budget, Reverted, Tried
from onnxq.search.goals import MinSqnr, Trial
from onnxq.search.groups import narrows, share_whole
from onnxq.search.noise import decibels
from onnxq.shares import percent

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from onnxq.graph import Graph
    from onnxq.monitor import Monitor
    from onnxq.outcome import Sensitivity, Verdict
    from onnxq.placement.groups import Group
    from onnxq.plan import Plan
    from onnxq.search.goals import Goal
    from onnxq.search.noise import Exact
    from onnxq.search.trials import Trials

ROUNDS = 6
"""Choices that are judged at most."""

RESTORED = 8
"""Groups that are tried for being quantized again, at most, before each judgement."""

LEAST_DB, MOST_DB = 0.05, 20.0
"""By how much an SQNR that failed there raises the bar, at least and at most."""

STEP_DB = 3.0
"""How much nearer the next choice must come when a metric failed on the held-back samples: half the noise."""


@dataclass
class Search:
    """A search and what it has measured so far.

    Attributes:
        trials: makes the quantized forms.
        groups: what can be reverted, in the model's order.
        goals: all must hold.
        searching: the samples that the search goes by.
        judging: the held-back samples.
        monitor: progress and warnings.
        of_calibration: whether the held-back samples are a part of the calibration data.
        fallback: formats of weights, to be tried in turn for what would go to float.
        tried: reverted groups -> what was measured with them.
        resized: outputs that were of another size than the float model's, and so of no SQNR.
    """

    trials: Trials
    groups: Sequence[Group]
    goals: Sequence[Goal]
    searching: Exact
    judging: Exact
    monitor: Monitor
    of_calibration: bool = True
    fallback: Sequence[str] = ()
    tried: dict[_Choice, Tried] = field(default_factory=dict)
    enough: dict[_Choice, bool] = field(default_factory=dict)
    best: tuple[tuple[Verdict, ...], float] | None = None
    resized: set[str] = field(default_factory=set)

    def measure(self, reverted: Collection[Group]) -> Tried:
        """Measure a choice on the samples that the search goes by, once."""
        key = _choice(reverted)
        if key not in self.tried:
            graph, share = self.trials.graph(reverted)
            trial = Trial.of(self.searching, self.trials.outputs(graph, self.searching.feeds))
            drops = [drop for goal in self.goals if (drop := goal.drop(trial)) is not None]
            names = tuple(f"{g.name} ({g.weights} weights)" if g.weights else g.name for g in reverted)
            self.tried[key] = Tried(names, share, trial.noise.db, drops[0] if drops else None)
            self.enough[key] = all(goal.reached(trial) for goal in self.goals)
            self.monitor.advance()
        return self.tried[key]

    def reaches(self, reverted: Collection[Group], floor: float) -> bool:
        """Whether a choice reaches the goals where the search goes by, and the SQNR that judgements ask for."""
        return self.measure(reverted).sqnr_db >= floor and self.enough[_choice(reverted)]

    def judge(self, reverted: Collection[Group]) -> tuple[Graph, Plan, tuple[Verdict, ...]]:
        """The choice in the form that is shipped, and what the held-back samples say of it."""
        graph, plan = self.trials.final(reverted)
        runs = graph
        if plan.float_type == "bfloat16":  # of which ONNX Runtime has few kernels
            runs = graph.copy()
            runs = runs if emulate_bfloat16(runs) else self.trials.graph(reverted)[0]
        trial = Trial.of(self.judging, self.trials.outputs(runs, self.judging.feeds))
        verdicts = tuple(goal.verdict(trial) for goal in self.goals)
        self.resized |= trial.resized()
        key = _choice(reverted)
        self.tried[key] = replace(self.measure(reverted), verdicts=verdicts)
        if self.best is None or _shortfall(verdicts, self.goals) < _shortfall(self.best[0], self.goals):
            self.best = verdicts, share_whole(plan, reverted)
        return graph, plan, verdicts

    def shipped(self, chosen: Collection[Tried]) -> Iterator[tuple[Tried, Graph]]:
        """These choices, each with the model in the form that is shipped."""
        for key, tried in self.tried.items():
            if tried in chosen:
                reverted = [replace(g, weights=w) for g in self.groups for name, w in key if name == g.name]
                yield tried, self.trials.final(reverted)[0]

    def raised(self, reverted: Collection[Group], verdicts: Sequence[Verdict]) -> float:
        """The SQNR that the next choice must have after the held-back samples refused this one.

        Higher by what the bound of an SQNR lacks; for a metric, which does not tell that, by a step.
        """
        lacking = [
            goal.least - v.bound if isinstance(goal, MinSqnr) else STEP_DB
            for v, goal in zip(verdicts, self.goals, strict=True)
            if not v.met
        ]
        return self.measure(reverted).sqnr_db + min(max(LEAST_DB, *lacking), MOST_DB)

    def slack(self, reverted: Collection[Group], verdicts: Sequence[Verdict]) -> float:
        """The SQNR down to which a choice near to this one, which the held-back samples took, may be taken too."""
        spare = [v.bound - g.least for v, g in zip(verdicts, self.goals, strict=True) if isinstance(g, MinSqnr)]
        return self.measure(reverted).sqnr_db - min(spare) if spare else -math.inf

    def budget(
        self, reverted: Sequence[Group], plan: Plan, verdicts: tuple[Verdict, ...], costs_of: Sensitivity | None
    ) -> Budget:
        """What was found, as values."""
        costs = {} if costs_of is None else {g.name: g for g in costs_of.groups}
        known = ((g, costs[g.name]) for g in reverted)
        sent = tuple(Reverted(g.name, g.nodes, c.share, c.output_db, g.weights, c.together) for g, c in known)
        tried = tuple(sorted(self.tried.values(), key=lambda t: (-t.mac_share, t.reverted)))
        count = len(self.judging.feeds)
        share = share_whole(plan, reverted)
        return Budget(verdicts, count, sent, share, tried, costs_of, self.of_calibration)


_Choice = frozenset[tuple[str, str]]
"""Names of groups that are reverted, and the formats of their weights."""


def _choice(reverted: Collection[Group]) -> _Choice:
    return frozenset((g.name, g.weights) for g in reverted)


def within(search: Search, sensitivity: Sensitivity, floor: float = -math.inf) -> tuple[Graph, Plan]:
    """Search, and judge what is found until it holds; `floor` is an SQNR that the choice must have anyway.

    Raises:
        AccuracyError: it does not, or only with nothing quantized.
    """
    order = ranked(search.groups, sensitivity)
    for _ in range(ROUNDS):
        search.monitor.stage("Searching", None)
        count = _smallest(search, order, floor)
        everything = count == len(order)
        chosen = _narrowed(search, order, floor) if everything else _restored(search, order[:count], sensitivity, floor)
        nothing_left = everything and not any(g.weights for g in chosen)
        if nothing_left:  # the best that is a choice; it may hold, where chance raised the floor
            chosen = order[:-1]
        found = search.judge(chosen)
        if all(v.met for v in found[2]):
            narrow = chosen if everything else _narrowed(search, chosen, search.slack(chosen, found[2]))
            other = found if narrow == chosen else search.judge(narrow)
            if all(v.met for v in other[2]):
                chosen, found = narrow, other
            graph, plan, verdicts = found
            return graph, replace(plan, budget=search.budget(chosen, plan, verdicts, sensitivity))
        if nothing_left:
            break
        floor = search.raised(chosen, found[2])
    raise unmet(search)


def ranked(groups: Sequence[Group], sensitivity: Sensitivity) -> list[Group]:
    """The groups, the one with the most noise for its multiply-accumulates first."""
    noise = {g.name: max(g.ratios, default=0.0) for g in sensitivity.groups}
    return sorted(groups, key=lambda g: (-noise[g.name] / max(g.macs, 1), g.name))


def unmet(search: Search) -> AccuracyError:
    """The error that says what the best was."""
    goals = " and ".join(map(str, search.goals))
    best = ""
    if search.best is not None:
        verdicts, share = search.best
        said = "; ".join(map(str, verdicts))
        count = len(search.judging.feeds)
        best = f": the best on {count} held-back samples is {said} with {percent(share)} of the MACs quantized"
    hint = "Ask for less, give more data (the margin for chance shrinks), or try a higher --effort."
    if search.resized and any(isinstance(goal, MinSqnr) for goal in search.goals):
        names = ", ".join(sorted(search.resized))
        hint = f"The size of outputs depends on the data: {names}. They have no SQNR; give a metric, with max_drop."
    return AccuracyError(f"{goals} could not be met{best}", hint)


def _smallest(search: Search, order: Sequence[Group], floor: float) -> int:
    """How many of the first groups must be in float at least; all of them where fewer do not reach it."""
    low, high = -1, len(order)  # low does not reach it, high does
    while high - low > 1:
        middle = (low + high) // 2
        if search.reaches(order[:middle], floor):
            high = middle
        else:
            low = middle
    return high


def _restored(search: Search, chosen: Sequence[Group], sensitivity: Sensitivity, floor: float) -> list[Group]:
    """The choice without groups that it holds without, the largest first."""
    noise = {g.name: max(g.ratios, default=0.0) for g in sensitivity.groups}
    kept = list(chosen)
    tries = 0
    goal = max([floor, *(g.least for g in search.goals if isinstance(g, MinSqnr))])
    for group in sorted(chosen, key=lambda g: (-g.macs, g.name)):
        rest = [g for g in kept if g is not group]
        predicted = decibels(10 ** (-search.measure(kept).sqnr_db / 10) + noise[group.name])
        if predicted < goal - 1.0 or not group.macs:  # the sum of noise is a guess, by a decibel or less
            continue
        if tries == RESTORED:
            break
        tries += 1
        if search.reaches(rest, floor):
            kept = rest
    return kept


def _narrowed(search: Search, chosen: Sequence[Group], floor: float) -> list[Group]:
    """The choice with narrow weights where it holds with them: all groups of one format at once, else the largest."""
    found = list(chosen)
    for weights in search.fallback:
        left = sorted((g for g in found if not g.weights), key=lambda g: (-g.macs, g.name))
        trying = [g for g in left if narrows(search.trials.plain, replace(g, weights=weights))]
        everything = [replace(g, weights=weights) if g in trying else g for g in found]
        if trying and search.reaches(everything, floor):
            found = everything
            continue
        for group in trying[:RESTORED] if len(trying) > 1 else ():
            other = [replace(g, weights=weights) if g is group else g for g in found]
            if search.reaches(other, floor):
                found = other
    return found


def _shortfall(verdicts: Sequence[Verdict], goals: Sequence[Goal]) -> float:
    """How far the worst goal is missed, in its own unit; below 0 when all are met."""
    return max(
        goal.least - v.bound if isinstance(goal, MinSqnr) else v.bound - goal.most
        for v, goal in zip(verdicts, goals, strict=True)
    )
