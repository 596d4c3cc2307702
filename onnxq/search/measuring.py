"""Sensitivity: what each group of layers costs in int8, by itself and at the model's outputs.

One forward pass of the float model, one with everything in int8, and one for each group alone in int8, which shows
both errors: what comes into the group is exact then, so the error at its layers is its own, and the error at the
model's outputs is what that becomes. The noise of single groups nearly adds up to that of all.

Where that would be more than `PASSES`, groups next to each other are measured together (`onnxq.search.stretches`), and
what they make is shared out among them by their own errors (`onnxq.search.own`).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.outcome import GroupError, Sensitivity
from onnxq.search.noise import Exact, Noise, decibels, ratio, run, squares
from onnxq.search.own import apart
from onnxq.search.stretches import parted, shares

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from onnxq.data import Feed
    from onnxq.graph import Graph
    from onnxq.monitor import Monitor
    from onnxq.placement.groups import Group
    from onnxq.runtime import Session
    from onnxq.search.aside import Aside
    from onnxq.search.own import Apart
    from onnxq.search.trials import Trials

    Array = npt.NDArray[Any]
    _Names = Mapping[Group, Sequence[str]]
    """Group -> what its layers make."""
    _Alone = tuple[float | None, tuple[float, ...]]
    """SQNR at the outputs of a group's layers, None of a stretch; noise over signal of each output of the model."""

PASSES = 120
"""Forward passes over the evaluation set at most."""

_OTHERS = 5
"""Passes that measure no stretch: the float model, all in int8, two for own errors, and one when samples were read."""

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
    together = len(every) > PASSES - 2
    count = PASSES - _OTHERS + 2 if together else len(every) + 2
    monitor.stage(f"Measuring {len(every)} groups on {len(feeds)} samples", count)
    layers = _layers(trials.ready.graph, every)
    names = [n for found in layers.values() for n in found]
    passes = _Passes(trials, list(feeds), set(names))
    monitor.advance()
    graph, _ = trials.graph(())
    whole = passes.run(graph, names)
    monitor.advance()

    def ask(stretch: Sequence[Group]) -> _Alone:
        monitor.advance()
        return _alone(passes, every, stretch, layers, aside)

    if together:
        errors = _together(every, layers, passes.own(apart(graph, trials.ready.graph, names)), ask)
    else:
        errors = [(own, ratios, 1) for own, ratios in (ask((group,)) for group in every)]
    total = trials.ready.plan.macs
    found = tuple(
        GroupError(
            group.name,
            group.nodes,
            group.macs,
            group.macs / total if total else 0.0,
            own,
            decibels(max(ratios, default=0.0)),
            _worst(whole.layers, layers[group]),
            ratios,
            size,
        )
        for group, (own, ratios, size) in zip(every, errors, strict=True)
    )
    return Sensitivity(found, len(feeds), whole.noise.db, passes.count)


def _alone(passes: _Passes, every: Sequence[Group], stretch: Sequence[Group], layers: _Names, aside: Aside) -> _Alone:
    """What a stretch does alone in int8: SQNR at its layers' outputs if it is one group; noise at the model's."""
    names = layers[stretch[0]] if len(stretch) == 1 else []
    key = "\n".join(group.name for group in (stretch[0], *stretch[1:][-1:]))
    if key not in aside.known:
        alone = passes.run(passes.trials.graph_only(every, stretch), names)
        aside.add(key, [_worst(alone.layers, names), [_number(r) for r in alone.noise.ratios]])
    own, texts = aside.known[key]
    return own, tuple(float.fromhex(text) for text in texts)


def _together(
    every: Sequence[Group], layers: _Names, own: Mapping[str, float], ask: Callable[[Sequence[Group]], _Alone]
) -> list[tuple[float | None, tuple[float, ...], int]]:
    """Of each group the SQNR at its layers' outputs, its share of the noise, and with how many it was measured.

    Args:
        every: the groups.
        layers: what their layers make.
        own: noise over signal of these, with exact inputs.
        ask: measures a stretch of groups.
    """
    asked: dict[range, _Alone] = {}

    def noise(stretch: range) -> float:
        asked[stretch] = ask([every[i] for i in stretch])
        return max(asked[stretch][1], default=0.0)

    found: list[tuple[float | None, tuple[float, ...], int]] = []
    for stretch in parted(len(every), PASSES - _OTHERS, noise):
        alone, ratios = asked[stretch]
        if len(stretch) == 1:
            found.append((alone, ratios, 1))
            continue
        members = [layers[every[i]] for i in stretch]
        errors = [sum(known) if (known := [own[n] for n in names if n in own]) else None for names in members]
        for names, share in zip(members, shares(errors), strict=True):
            found.append((_worst(own, names), tuple(_part(r, share) for r in ratios), len(stretch)))
    return found


def _part(noise: float, share: float) -> float:
    """A share of noise over signal: of infinite noise every share but nothing is infinite."""
    return noise * share if share else 0.0


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

    def own(self, layers: Apart) -> dict[str, float]:
        """Noise over signal of each layer's output with exact inputs: one pass of the float model, and one of them."""
        if not layers.makes:  # all are in bodies
            return {}
        graph = self.trials.ready.graph
        given = {str(v.name) for v in graph.inputs}
        wanted = dict.fromkeys(t for t, _ in layers.reads.values() if t not in given)
        floats = self.trials.session(graph, tuple(wanted) or self.outputs)
        session = self.trials.session(layers.graph, tuple(layers.makes))
        sums = {name: [0.0, 0.0] for name in layers.makes.values()}
        self.count += 1
        for i, exact in enumerate(self._pass(floats)):
            found = run(session, layers.feed(exact))
            for output, name in layers.makes.items():
                signal, noise = squares(self.picked[i][name], _picked(found[output]))
                sums[name] = [sums[name][0] + signal, sums[name][1] + noise]
        return {name: ratio(noise, signal) for name, (signal, noise) in sums.items()}

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
