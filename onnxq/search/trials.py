"""Quantized forms of one model, made and run to be measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onnxq.api import Prepared, lowered
from onnxq.collect import session_for
from onnxq.customs import behind_customs
from onnxq.interface import with_float_ends
from onnxq.monitor import QUIET, SILENT, Monitor
from onnxq.search.groups import only, share_whole, without
from onnxq.search.noise import Exact, exact, run

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from onnxq.caches import Cache
    from onnxq.data import Feed
    from onnxq.graph import Graph
    from onnxq.placement.groups import Group
    from onnxq.plan import Plan
    from onnxq.runtime import Session
    from onnxq.search.noise import Outputs
    from onnxq.statistics import Statistics


@dataclass(frozen=True)
class Trials:
    """A smoothed, prepared model and what was observed of it.

    Attributes:
        ready: the model; `plain` is the same with float32 in what is not int8, which a CPU is faster in.
        statistics: of just this graph, without factors: they are in it. None in modes without ranges.
        cache: scales that win over the statistics.
    """

    ready: Prepared
    statistics: Statistics | None
    cache: Cache | None = None
    plain: Prepared = field(init=False)

    def __post_init__(self) -> None:
        recipe = replace(self.ready.recipe, high_precision="fp32", io_types="float32", format="qdq")
        object.__setattr__(self, "plain", self.ready.under(recipe))

    def graph(self, reverted: Collection[Group]) -> tuple[Graph, float]:
        """The quantized model with these groups in float, in float32 what is not int8; its share of MACs in int8."""
        graph, plan = self._lowered(without(self.plain, reverted))
        return graph, share_whole(plan, reverted)

    def graph_only(self, every: Collection[Group], kept: Sequence[Group]) -> Graph:
        """The model with these groups alone in int8."""
        return self._lowered(only(self.plain, every, kept))[0]

    def final(self, reverted: Collection[Group]) -> tuple[Graph, Plan]:
        """The model to ship with these groups in float, and its plan."""
        return self._lowered(without(self.ready, reverted))

    def session(self, graph: Graph, tensors: Sequence[str] = ()) -> Session:
        """A form of the model, with these tensors as outputs in place of its own where some are named.

        Of its own those are left out that hang on custom operators without a library, unless all do.

        Raises:
            ModelError: all do.
        """
        recipe = self.ready.recipe
        form = with_float_ends(graph)
        named = tensors or _outputs(form, customs=bool(recipe.custom_op_list))
        return session_for(form, named, recipe.provider_list, recipe.custom_op_list)

    def exact(self, feeds: Sequence[Feed], monitor: Monitor = QUIET) -> Exact:
        """What the float model gives."""
        return exact(self.session(self.ready.graph), feeds, monitor)

    def outputs(self, graph: Graph, feeds: Sequence[Feed]) -> list[Outputs]:
        """What a form of the model gives."""
        session = self.session(graph)
        return [run(session, feed) for feed in feeds]

    def _lowered(self, ready: Prepared) -> tuple[Graph, Plan]:
        return lowered(ready, self.statistics, SILENT, self.cache)


def _outputs(graph: Graph, *, customs: bool) -> list[str]:
    every = [str(v.name) for v in graph.outputs]
    behind = set() if customs else behind_customs(graph)
    return list(dict.fromkeys([name for name in every if name not in behind] or every))
