"""Running passes: order, timing, and a check after each that the graph still hangs together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxq.errors import OnnxqError, PassError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnxq.graph import Graph

Pass = Callable[["Graph"], int]
"""A rewrite of the graph in place; returns the number of rewrites made."""


@dataclass(frozen=True)
class Everywhere:
    """A pass that is run on the main graph and on every body inside it."""

    step: Pass

    def __call__(self, graph: Graph) -> int:
        """Return how many rewrites were made in all of them."""
        return sum(self.step(part) for part in tuple(graph.parts()))


@dataclass(frozen=True)
class Step:
    """What one pass did: its name, the rewrites it made, and its wall time in seconds."""

    name: str
    rewrites: int
    seconds: float


def run(graph: Graph, passes: Iterable[Pass]) -> tuple[Step, ...]:
    """Run the passes in order on the graph.

    Raises:
        PassError: a pass failed or left the graph inconsistent; it names the pass and those before it.
        OnnxqError: a pass refused the model.
    """
    done: list[Step] = []
    for step in passes:
        name = pass_name(step)
        begun = time.perf_counter()
        try:
            rewrites = step(graph)
        except OnnxqError:
            raise
        except Exception as error:
            raise PassError(
                f"pass {name} failed: {type(error).__name__}: {error} (before it: {_names(done)})",
                "This is a fault in the pass. Please report it with the model's structure.",
            ) from error
        if rewrites:
            _verify(graph, name, done)
        done.append(Step(name, rewrites, time.perf_counter() - begun))
    return tuple(done)


def pass_name(step: Pass) -> str:
    """A pass's name: the function's, or the class's."""
    if isinstance(step, Everywhere):
        return pass_name(step.step)
    return str(getattr(step, "__name__", type(step).__name__))


def _verify(graph: Graph, name: str, done: list[Step]) -> None:
    problem = graph.problem()
    if problem is not None:
        raise PassError(
            f"after pass {name}: {problem} (before it: {_names(done)})",
            "This is a fault in the pass. Please report it with the model's structure.",
        )


def _names(done: list[Step]) -> str:
    return ", ".join(step.name for step in done) or "none"
