"""Which layers of a model an effort leaves in float: `onnxq.improvement.sparing` on a model as it is placed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from onnxq import api
from onnxq.collect import session_for
from onnxq.customs import behind_customs
from onnxq.improvement import Judge, by_themselves, kept, pays, spared
from onnxq.improvement.picking import run
from onnxq.placement.float_costs import cost, sized, work
from onnxq.placement.groups import groups, nodes_of
from onnxq.planning import SPARED, without_nodes
from onnxq.targets import get_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnxq.data import Feed
    from onnxq.graph import Graph
    from onnxq.improvement import Inspected, Picked
    from onnxq.improvement.judging import Noise
    from onnxq.improvement.sparing import Unit
    from onnxq.monitor import Monitor
    from onnxq.placement.groups import Group
    from onnxq.planning import Prepared
    from onnxq.statistics import Rounded, Statistics
    from onnxq.tried import Ranges


@dataclass(frozen=True)
class Leaving:
    """A quantized model whose layers may stay in float, as many as the recipe's `float_share` allows.

    Attributes:
        ranges: of the model.
        statistics: with the zero points and codes that are chosen.
        model: how it is run.
        picked: the samples.
        judge: the judging ones.
    """

    ranges: Ranges
    statistics: Statistics
    model: Inspected
    picked: Picked
    judge: Judge

    def by_themselves(self, monitor: Monitor) -> tuple[Unit, ...]:
        """What errs by itself, as choosing samples tell."""
        if not self._limit:
            return ()
        monitor.stage("Looking for layers that err by themselves", None)
        found, total = self._groups
        return by_themselves(
            found,
            total,
            self._limit,
            lambda chosen: self._chooser.noise(self._alone(chosen), self.statistics.smoothing),
            self.model.effort.spares,
            self._price,
        )

    def confirmed(self, wanted: Sequence[Unit], before: Noise) -> tuple[tuple[Group, ...], Noise]:
        """What of this the judges confirm, and the noise with it; `before`: with nothing in float."""
        codes = self.statistics.rounding
        judged = lambda chosen: self.judged(chosen, codes) if chosen else before  # noqa: E731  one expression
        return kept(self._groups[0], wanted, judged, self.model.effort.trials, self._price)

    def pays(self, before: Noise, after: Noise) -> bool:
        """Whether that is enough for layers in float."""
        return pays(before, after, self._price)

    def beyond(self, left: tuple[Group, ...], before: Noise, monitor: Monitor) -> tuple[tuple[str, ...], Noise]:
        """Names of all layers that stay in float, these and others, and the noise then; `before`: with these."""
        if not self._limit:
            return (), before
        (found, total), codes = self._groups, self.statistics.rounding
        if not total:  # all layers are in bodies that are left out
            return nodes_of(left), before
        spent = self._cost(left) if left else 0.0
        noise = (
            lambda chosen: self._chooser.noise(self._made((*left, *chosen), codes), self.statistics.smoothing),
            lambda chosen: self.judged((*left, *chosen), codes) if chosen else before,
        )
        others = [g for g in found if g not in left]
        price = (lambda chosen: self._cost((*left, *chosen)) - spent) if self._price else None
        trials = self.model.effort.spares, self.model.effort.trials
        more, least = spared(others, total, self._limit - spent / total, noise, trials, monitor, price)
        return nodes_of(g for g in found if g in {*left, *more}), least

    def judged(self, chosen: Sequence[Group], rounding: Mapping[str, Rounded] | None) -> Noise:
        """The noise on the samples that judge with these layers in float and these codes; None: weights in float."""
        return self.judge.noise(self._made(chosen, rounding), self.statistics.smoothing)

    # What stands behind a float layer may be float too, and what its pairs were shared with: only placing tells.
    def _placed(self, chosen: Sequence[Group]) -> Prepared:
        plain = self.ranges.plain
        return without_nodes(plain, nodes_of(chosen), SPARED) if chosen else plain

    def _made(self, chosen: Sequence[Group], codes: Mapping[str, Rounded] | None) -> Graph:
        ranges = self.ranges.of_plan(self._placed(chosen), self.statistics)
        return ranges.paired(self.statistics.zero_points, codes)

    def _alone(self, chosen: Sequence[Group]) -> Graph:
        """The model with pairs for these layers only, as they are beside all others: what they err by themselves."""
        return self.ranges.paired(self.statistics.zero_points, self.statistics.rounding, nodes_of(chosen))

    @cached_property
    def _chooser(self) -> Judge:
        return Judge(self.model, self.picked.few)

    @cached_property
    def _limit(self) -> float:
        """The share of the work that may be left in float beside what rules leave, where these leave less than that."""
        recipe = self.ranges.plain.recipe
        share = get_target(recipe.target).float_share if recipe.float_share is None else recipe.float_share
        if not share:
            return 0.0
        found, total = self._groups
        ruled = 1.0 - sum(g.macs for g in found) / max(total, 1)
        return share - ruled if ruled < share else share

    @property
    def _wide(self) -> bool:
        """Whether float costs more than the work of a layer."""
        return get_target(self.ranges.plain.recipe.target).placement == "ort-cpu"

    @property
    def _price(self) -> Callable[[Sequence[Group]], float] | None:
        return self._cost if self._wide else None

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return _shapes(self.ranges.plain, self.picked.choosing[0])

    @cached_property
    def _groups(self) -> tuple[tuple[Group, ...], int]:
        found = groups(self.ranges.symmetric)
        return _sized(self.ranges.plain, found, self._shapes, bodies=not self._wide)

    def _cost(self, chosen: Sequence[Group]) -> float:
        plain = self.ranges.plain
        if not self._wide:
            return sum(g.macs for g in chosen)
        return cost(plain.graph, self._placed(chosen).plan, plain.plan, self._shapes)


def _shapes(plain: Prepared, feed: Feed) -> dict[str, tuple[int, ...]]:
    """The shapes in a sample of what layers read and write: those that are unknown to the graph say nothing of work."""
    graph, recipe = plain.graph, plain.recipe
    wanted = sized(graph, plain.plan) - (set() if recipe.custom_ops else behind_customs(graph))
    names = tuple(name for name in api.activations(graph) if name in wanted)
    session = session_for(graph, names, recipe.provider_list, recipe.custom_op_list)
    return {name: array.shape for name, array in run(session, feed).items()}


def _sized(
    plain: Prepared, found: Sequence[Group], shapes: Mapping[str, tuple[int, ...]], *, bodies: bool
) -> tuple[tuple[Group, ...], int]:
    """The groups with their multiply-accumulates by these shapes, and those of the model.

    Layers inside `bodies` count as the plan has them, or are left out: how often they run no shape tells.
    """
    done = work(plain.graph, plain.plan, shapes)
    outer = {g for g in found if done.keys() >= set(g.nodes)}
    kept = [g for g in found if bodies or g in outer]
    total = sum(done.values()) + sum(g.macs for g in kept if g not in outer)
    return tuple(replace(g, macs=sum(done[n] for n in g.nodes)) if g in outer else g for g in kept), total
