"""Samples that run at once, and are counted in turn.

A sample whose tensors are small is run by one thread, and the next one beside it by another: threads that share a
sample wait for one another at every node, which in small models takes longer than the node.
"""

from __future__ import annotations

import os
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from onnxq.operators import RANDOM
from onnxq.segments import nbytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Executor

    from onnxq.graph import Graph

MOST_BYTES = 100_000_000
"""Of the observed tensors of the samples that run at once."""
LEAST_BYTES = 1_000_000
"""Of a sample: below, the interpreter takes most of the time, and runs one thread at a time."""
_HELD = 4
"""Tensors of a sample, the largest among them, that a run is taken to hold at a time."""

_S = TypeVar("_S")
_F = TypeVar("_F")
_T = TypeVar("_T")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_once(graph: Graph, tensors: Sequence[str], most: int, *, passing: bool = False) -> int:
    """How many samples to run at once: up to `most` within MOST_BYTES, 1 where it does not pay or sizes are not known.

    1 also where an operator gives something else each time: what a sample gets must not depend on which one is faster.
    Of tensors that are counted in `passing` only a few are held at a time.
    """
    if any(node.op_type in RANDOM for part in graph.parts() for node in part.nodes):
        return 1
    sizes = _sizes(graph, tensors)
    held = _HELD * max(sizes, default=0) if passing else sum(sizes)
    return max(1, min(most, MOST_BYTES // held)) if sum(sizes) >= LEAST_BYTES else 1


def sample_bytes(graph: Graph, tensors: Sequence[str]) -> int:
    """Bytes of these tensors of one sample; 0 where the size of one is not known."""
    return sum(_sizes(graph, tensors))


def _sizes(graph: Graph, tensors: Sequence[str]) -> list[int]:
    """Bytes of each; none where the size of one is not known.

    A dimension of the same name as an input's first counts as 1, as batches are run in rows.
    """
    batch = {shape[0] for v in graph.inputs if (shape := graph.shape(v)) and isinstance(shape[0], str)}
    values = {str(v.name): v for v in graph.values()}
    sizes = [nbytes(graph, values[name], batch) if name in values else 0 for name in tensors]
    return sizes if all(sizes) else []


def in_turn(
    run: Callable[[_F], _T], found: Iterable[tuple[_S, _F]], runners: Executor, most: int
) -> Iterator[tuple[_S, Callable[[], _T]]]:
    """Every sample with what gives its result, in order, while as many as `most` run; reading goes on beside them.

    One at a time is run by who asks for the result. When reading fails, samples read before come first.
    """
    if most == 1:
        yield from ((sample, partial(run, feed)) for sample, feed in found)
        return
    waiting: deque[tuple[_S, Callable[[], _T]]] = deque()
    source = iter(found)
    while True:
        try:
            sample, feed = next(source)
        except StopIteration:
            break
        except BaseException:  # an interrupt too
            yield from waiting
            raise
        if len(waiting) == most:
            yield waiting.popleft()
        waiting.append((sample, runners.submit(run, feed).result))
    while waiting:
        yield waiting.popleft()
