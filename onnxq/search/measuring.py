"""Sensitivity: what each group of layers costs in int8, by itself and at the model's outputs.

One forward pass of the float model, one with everything in int8, and one for each group alone in int8, which shows
both errors: what comes into the group is exact then, so the error at its layers is its own, and the error at the
model's outputs is what that becomes. The noise of single groups nearly adds up to that of all.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.outcome import GroupError, Sensitivity
from onnxq.search.noise import Exact, Noise, decibels, ratio, run, squares

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from onnxq.data import Feed
    from onnxq.graph import Graph
    from onnxq.monitor import Monitor
    from onnxq.placement.groups import Group
    from onnxq.runtime import Session
    from onnxq.search.aside import Aside
    from onnxq.search.trials import Trials

    Array = npt.NDArray[Any]

FORMAT = "1"
"""Changes when results of earlier code are not to be mixed with those of this."""

ELEMENTS = 4096
"""Elements of a layer's output that are compared of each sample: few enough to keep those of all layers."""


def measure(
    trials: Trials, every: Sequence[Group], feeds: Sequence[Feed], aside: Aside, monitor: Monitor
) -> Sensitivity:
    """Measure all groups on samples that did not calibrate.

    Args:
        trials: makes the quantized forms.
        every: the groups.
        feeds: the evaluation set.
        aside: what an earlier run found already; gets every result.
        monitor: progress and warnings.

    Raises:
        DataError: the model refuses the data.
    """
    monitor.stage(f"Measuring {len(every)} groups on {len(feeds)} samples", len(every) + 2)
    layers = _layers(trials.ready.graph, every)
    passes = _Passes(trials, list(feeds), {n for names in layers.values() for n in names})
    monitor.advance()
    whole = passes.run(trials.graph(())[0], [n for names in layers.values() for n in names])
    monitor.advance()
    found = []
    total = trials.ready.plan.macs
    for group in every:
        names = layers[group]
        if group.name not in aside.known:
            alone = passes.run(trials.graph_only(every, group), names)
            aside.add(group.name, [_worst(alone.layers, names), [_number(r) for r in alone.noise.ratios]])
        own, texts = aside.known[group.name]
        ratios = tuple(float.fromhex(text) for text in texts)
        found.append(
            GroupError(
                group.name,
                group.nodes,
                group.macs,
                group.macs / total if total else 0.0,
                own,
                decibels(max(ratios, default=0.0)),
                _worst(whole.layers, names),
                ratios,
            )
        )
        monitor.advance()
    return Sensitivity(tuple(found), len(feeds), whole.noise.db, passes.count)


def key_of(trials: Trials, data: int) -> str:
    """A digest of all that the results depend on: the model with its factors, what was observed, recipe, samples."""
    statistics = trials.statistics
    seen = "" if statistics is None else f"{statistics.model} {statistics.seen} {statistics.samples}"
    parts = (FORMAT, trials.ready.graph.digest(), seen, trials.ready.recipe.to_toml(), f"{data:016x}")
    names = ",".join(str(node.name) for node in trials.ready.graph.nodes)  # the digest does not count them
    return hashlib.sha256("\n".join((*parts, names)).encode()).hexdigest()


class _Found:
    """One pass: the noise of the model's outputs, and noise over signal of each layer's."""

    def __init__(self, noise: Noise, layers: Mapping[str, float]) -> None:
        self.noise = noise
        self.layers = layers


class _Passes:
    """Forward passes over the evaluation set, compared with the float model's and counted."""

    def __init__(self, trials: Trials, feeds: list[Feed], layers: set[str]) -> None:
        self.trials, self.feeds, self.count = trials, feeds, 0
        graph = trials.ready.graph
        self.outputs = [str(v.name) for v in graph.outputs]
        self.exact: list[dict[str, Array]] = []
        self.picked: list[dict[str, Array]] = []
        names = [str(v.name) for v in graph.values() if str(v.name) in layers]
        session = trials.session(graph, tuple(dict.fromkeys((*self.outputs, *names))))
        for found in self._pass(session):
            self.exact.append({n: found[n] for n in self.outputs if n in found})
            self.picked.append({n: _picked(found[n]) for n in names if n in found})
        floats = tuple(n for n, a in self.exact[0].items() if a.dtype.kind in "fV") if self.exact else ()
        self.reference = Exact(tuple(feeds), floats, tuple(self.exact))

    def run(self, graph: Graph, layers: Sequence[str]) -> _Found:
        made = {str(v.name) for v in graph.values()}
        names = [n for n in layers if n in made]
        session = self.trials.session(graph, tuple(dict.fromkeys((*self.outputs, *names))))
        sums = np.zeros((2, len(self.feeds), len(self.reference.names)))
        parts: dict[str, list[float]] = {name: [0.0, 0.0] for name in names}
        for i, found in enumerate(self._pass(session)):
            for j, name in enumerate(self.reference.names):
                sums[:, i, j] = squares(self.exact[i][name], found[name])
            for name in names:
                signal, noise = squares(self.picked[i][name], _picked(found[name]))
                parts[name] = [parts[name][0] + signal, parts[name][1] + noise]
        return _Found(Noise(sums[0], sums[1]), {n: ratio(noise, signal) for n, (signal, noise) in parts.items()})

    def _pass(self, session: Session) -> Any:  # noqa: ANN401  an iterator of feeds and results
        self.count += 1
        for feed in self.feeds:
            yield {**feed, **run(session, feed)}


def _layers(graph: Graph, every: Sequence[Group]) -> dict[Group, list[str]]:
    """Group -> what its layers make; nothing of those in bodies, whose tensors do not leave them."""
    nodes = {str(n.name): n for n in graph.nodes}
    return {group: [str(nodes[n].outputs[0].name) for n in group.nodes if n in nodes] for group in every}


def _picked(array: Array) -> Array:
    """Some elements, the same ones of every array of a size."""
    flat = array.reshape(-1)
    if flat.size <= ELEMENTS:
        return flat.copy()
    picked: Array = flat[np.random.default_rng(flat.size).integers(0, flat.size, ELEMENTS)]
    return picked


def _worst(layers: Mapping[str, float], names: Sequence[str]) -> float | None:
    """SQNR of the worst of these tensors, None where there is none or nothing differs."""
    found = [layers[n] for n in names if n in layers]
    worst = max(found, default=0.0)
    return decibels(worst) if 0.0 < worst < float("inf") else None


def _number(value: float) -> str:
    """As text that reads back bit for bit, infinities too."""
    return float(value).hex()
