"""Whether a change of the model brings its outputs nearer to what they are in float, on samples that judge."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from onnxq.collect import session_for
from onnxq.customs import behind_customs
from onnxq.patterns.pairs import origin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from onnxq.data import Feed
    from onnxq.graph import Graph
    from onnxq.improvement.picking import Inspected
    from onnxq.runtime import Session

    Floats = npt.NDArray[np.float64]

_T = TypeVar("_T")

GAIN_DB = 0.1
"""The least gain at the model's outputs that is kept."""


class Judge:
    """The float model's outputs on the judging samples, and how far a quantized model is from them.

    In place of probabilities what they are made of is looked at: where they are near 0 or 1 nothing shows, and the few
    that are not would decide alone.
    """

    def __init__(self, model: Inspected, feeds: Sequence[Feed]) -> None:
        self._model, self._feeds = model, feeds

    @cached_property
    def _found(self) -> tuple[dict[str, str], list[dict[str, Any]]]:
        """Output -> what is looked at in its place; and of each sample all that is looked at. Run when first asked."""
        model = self._model
        unseen = set() if model.custom_ops else behind_customs(model.graph)
        found = {name: inner for name, inner in scores(model.graph).items() if inner not in unseen}
        # The outputs too: what a Softmax reads may not be there any more where it became an integer operator.
        session = model.session(tuple(dict.fromkeys((*found.values(), *found))))
        runs = [session.run({n: f[n] for n in session.inputs}, session.outputs) for f in self._feeds]
        exact = [dict(zip(session.outputs, run, strict=True)) for run in runs]
        return found or {name: name for name in session.outputs}, exact

    def noise(self, quantized: Graph) -> Floats:
        """Noise over signal of the outputs, of each sample."""
        there = {str(v.name) for v in quantized.values()}
        looked_at, exact_runs = self._found
        names = [inner if inner in there else name for name, inner in looked_at.items()]
        if not there.issuperset(names):
            return np.full(len(self._feeds), np.inf)  # nothing to compare is no gain
        session = session_for(quantized, tuple(names), self._model.providers, self._model.custom_ops)
        exact = [[found[name] for name in names] for found in exact_runs]
        return output_noise(session, self._feeds, names, exact)


def halves(group: list[_T]) -> list[list[_T]]:
    """Both halves of a group; nothing of a single one."""
    return [group[: len(group) // 2], group[len(group) // 2 :]] if len(group) > 1 else []


def scores(graph: Graph) -> dict[str, str]:
    """Output -> what the Softmax or Sigmoid that makes it reads; itself where nothing such makes it."""
    found = {}
    for value in graph.outputs:
        node = graph.producer(origin(graph, value), "Softmax", "Sigmoid", "LogSoftmax")
        inner = None if node is None or graph.is_const(node.inputs[0]) else node.inputs[0]
        found[str(value.name)] = str((value if inner is None else origin(graph, inner)).name)
    return found


def gains(before: Floats, after: Floats, least: float = GAIN_DB, *, expected: bool = False) -> bool:
    """Whether noise over signal, one number a sample, fell by `least` dB on average, and by more than by chance.

    By chance: the standard error of the mean of the samples' gains in dB. Their sum must fall too: a few samples that
    get much worse weigh little in decibels.

    With `expected` the change is one for the better by what was measured of its tensors, and it is enough that the
    outputs do not contradict: that `least` lies within the standard error. A few numbers an output say little.
    """
    if not (np.isfinite(before) & np.isfinite(after)).all():
        return False
    if after.sum() >= before.sum() and not expected:
        return False
    floor = np.finfo(np.float64).tiny
    gained = 10 * (np.log10(np.maximum(before, floor)) - np.log10(np.maximum(after, floor)))
    error = float(gained.std(ddof=1)) / math.sqrt(gained.size) if gained.size > 1 else 0.0
    return float(gained.mean()) > (least - error if expected else max(least, error))


def confirmed(
    groups: Sequence[list[_T]],
    noise: Callable[[Sequence[_T]], Floats],
    accepts: Callable[[list[_T], Floats, Floats], bool],
    trials: int,
    parts: Callable[[list[_T]], list[list[_T]]] = halves,
) -> list[_T]:
    """What is kept of the groups, each tried beside what is kept already; of a group that is not, its parts are tried.

    Args:
        groups: what is tried first, in this order.
        noise: the changes that are made -> noise over signal of each judging sample.
        accepts: (group, noise without it, noise with it) -> whether it is kept.
        trials: groups that are tried at most.
        parts: what a group is divided into.
    """
    kept: list[_T] = []
    least = noise(kept)
    queue = list(groups)
    for _ in range(trials):
        if not queue:
            break
        group = queue.pop(0)
        error = noise([*kept, *group])
        if accepts(group, least, error):
            kept, least = [*kept, *group], error
        else:
            queue += parts(group)
    return kept


def output_noise(session: Session, feeds: Sequence[Feed], names: Sequence[str], exact: Sequence[list[Any]]) -> Floats:
    """Noise of the model's float outputs over their mean power in the feeds, summed over the outputs, of each feed."""
    noise, power = np.zeros((len(feeds), len(names))), np.zeros(len(names))
    for i, (feed, wanted) in enumerate(zip(feeds, exact, strict=True)):
        found = session.run({n: feed[n] for n in session.inputs}, names)
        for k, (a, b) in enumerate(zip(wanted, found, strict=True)):
            if not isinstance(a, np.ndarray) or a.dtype.kind != "f" or a.shape != b.shape:
                continue
            signal = a.astype(np.float64)
            finite = np.isfinite(signal)
            power[k] += float(np.square(signal[finite]).sum()) / len(feeds)
            noise[i, k] = float(np.square(signal[finite] - b[finite]).sum())
    total: Floats = np.divide(noise, power, out=np.zeros_like(noise), where=power > 0).sum(axis=1)
    return total
