"""Whether a change of the model brings its outputs nearer to what they are in float, on samples that judge."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from onnxq.collect import session_for
from onnxq.customs import behind_customs
from onnxq.improvement.picking import run
from onnxq.linear import linear_at
from onnxq.numerics import along
from onnxq.patterns.pairs import origin
from onnxq.rescaling import find_sites

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy.typing as npt

    from onnxq.data import Feed
    from onnxq.graph import Graph
    from onnxq.improvement.picking import Inspected
    from onnxq.monitor import Monitor
    from onnxq.rescaling import Site
    from onnxq.statistics import Factor, Judged

    Floats = npt.NDArray[np.float64]

_T = TypeVar("_T")

GAIN_DB = 0.1
"""The least gain at the model's outputs that is kept."""

FEATURES = 8
"""Inputs of layers, the last ones, that are looked at beside the outputs."""

_MANY = 100
"""With so many values a sample the outputs weigh as much as the features, with fewer less; and with so many that are
neither 0 nor 1 probabilities as much as what they are made of, with fewer less and with more more."""

_BYTES = 2**28
"""Bytes of features that are kept; the last ones, where they are large."""

_NEAR = 1e-9
"""Noise over signal below which a tensor counts as exact: 90 dB."""


class Noise:
    """Noise over signal of a quantized model, one number for each sample that judges, made as they are asked for.

    Attributes:
        samples: how many judge.
        at_outputs: of the samples that were run so far, (outputs,) each: what of it is at each output of floats.
    """

    def __init__(self, samples: int, of: Callable[[int, int], Floats], at_outputs: list[Floats] | None = None) -> None:
        """`of` makes those from one sample up to another, in their order; it is let go of when all are made.

        What it finds at outputs it adds to `at_outputs`.
        """
        self.samples, self._known, self.at_outputs = samples, np.empty(0), [] if at_outputs is None else at_outputs
        self._of: Callable[[int, int], Floats] | None = of

    def first(self, count: int) -> Floats:
        """Those of the first so many samples."""
        if self._of is not None and count > self._known.size:
            self._known = np.append(self._known, self._of(self._known.size, count))
            self._of = None if count >= self.samples else self._of  # and with it of a session, which holds the weights
        return self._known[:count]


class Judge:
    """The float model's outputs on the judging samples, and how far a quantized model is from them.

    In place of probabilities what they are made of is looked at: where they are near 0 or 1 nothing shows, and the few
    that are not would decide alone. Where many are not, as in the map of a detector, both are looked at: most of the
    error of its logits may lie where the probability is 0 in any case. What the last layers read is looked at beside
    it: the errors of two logits on 16 samples are as good as drawn by lot, those of the features that they are made of
    are not.
    """

    def __init__(self, model: Inspected, feeds: Sequence[Feed]) -> None:
        self._model, self._feeds = model, feeds

    @cached_property
    def _found(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], list[dict[str, Any]]]:
        """What is looked at in place of outputs, these, the features, and all of each sample. Run when first asked."""
        model = self._model
        unseen = set() if model.custom_ops else behind_customs(model.graph)
        known = {output: inner for output, inner in scores(model.graph).items() if not {output, inner} & unseen}
        looked_at = tuple(dict.fromkeys(known.values())) or tuple(model.session(()).outputs)
        inner = tuple(name for name in features(model.graph) if name not in {*looked_at, *known, *unseen})
        ends = tuple(dict.fromkeys((*known, *looked_at)))
        first = run(model.session((*ends, *inner)), self._feeds[0])
        sizes = np.cumsum([first[name].nbytes * len(self._feeds) for name in reversed(inner)])
        inner = inner[len(inner) - int(np.count_nonzero(sizes <= _BYTES)) :]
        session = model.session((*ends, *inner))
        return looked_at, tuple(known), inner, [run(session, feed) for feed in self._feeds]

    @cached_property
    def _between(self) -> float:
        """How many of a sample's probabilities are neither 0 nor 1, each counted as 4 p (1 - p), on average."""
        graph, (_, outputs, _, exact) = self._model.graph, self._found
        made = {str(v.name): graph.producer(origin(graph, v), "Softmax", "Sigmoid") for v in graph.outputs}
        shown = [name for name in outputs if made.get(name) is not None]
        return float(sum(np.sum(4.0 * x[name] * (1.0 - x[name])) for x in exact for name in shown)) / len(exact)

    @cached_property
    def _folded(self) -> tuple[Site, ...]:
        """The sites whose tensors have other values and names when they are smoothed."""
        return tuple(site for site in find_sites(self._model.graph) if not site.explicit)

    @cached_property
    def _power(self) -> dict[str, float]:
        """Mean power over the samples of what is looked at."""
        looked_at, shown, inner, exact = self._found
        names = dict.fromkeys((*looked_at, *inner, *shown))
        return {name: float(np.mean([_power(arrays[name]) for arrays in exact])) for name in names}

    def noise(self, quantized: Graph, factors: Mapping[str, Factor] | None = None) -> Noise:
        """Noise over signal, of each sample: the weighted geometric mean of that of the outputs and of the features.

        Args:
            quantized: the model with pairs in it, every tensor under its own name.
            factors: site -> those that the model was smoothed with; what they put in place of a tensor is moved back.
        """
        exact = self._found[3]
        sites = [s for s in self._folded if s.name in factors] if factors else []
        away = {tensor: (s.axis, factors[s.name]) for s in sites for tensor in s.tensors} if factors else {}
        now = {name: f"{name}/smoothed" if name in away else name for name in self._power}  # as `passes.smooth` has it
        session = session_for(quantized, tuple(now.values()), self._model.providers, self._model.custom_ops)

        outputs = [name for name in self._found[1] if self._power[name] > 0]
        at_outputs: list[Floats] = []

        def of(first: int, end: int) -> Floats:
            runs = (run(session, feed) for feed in self._feeds[first:end])
            found = ({name: _moved_back(arrays[now[name]], away.get(name)) for name in now} for arrays in runs)
            each = tensor_noise(zip(exact[first:end], found, strict=True), self._power)
            apart = dict(zip(now, each.T, strict=True))
            at_outputs.extend(np.stack([apart[name] for name in outputs], axis=1) if outputs else ())
            return self._weighed(apart)

        return Noise(len(self._feeds), of, at_outputs)

    def at_ends(self) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """The exact outputs of all samples that judge, and the mean power of each output that has any."""
        power = {name: self._power[name] for name in self._found[1] if self._power[name] > 0}
        return [{name: arrays[name] for name in power} for arrays in self._found[3]], power

    def _weighed(self, noise: Mapping[str, Floats]) -> Floats:
        """What the noise of each tensor that is looked at comes to."""
        looked_at, shown, inner, exact = self._found
        outputs: Floats = np.sum([noise[name] for name in looked_at], axis=0)
        if self._between:
            probable: Floats = np.sum([noise[name] for name in shown], axis=0)
            outputs = _blended(outputs, probable, self._between / (self._between + _MANY))
        if not inner:
            return outputs
        values = min(sum(np.size(exact[0][name]) for name in looked_at), _MANY)
        mean: Floats = np.exp(np.log(np.stack([noise[name] for name in inner]) + _NEAR).mean(axis=0))
        return _blended(mean, outputs, values / (values + _MANY))


def told_db(noise: float) -> float | None:
    """Noise over signal as an SQNR that can be told; None for what is no number."""
    return -10 * math.log10(max(noise, _NEAR)) if math.isfinite(noise) else None


def _blended(one: Floats, other: Floats, weight: float) -> Floats:
    """The geometric mean of both, the other of this weight."""
    blend: Floats = np.exp((1 - weight) * np.log(one + _NEAR) + weight * np.log(other + _NEAR))
    return blend


def _moved_back(x: Floats, factor: tuple[int, Factor] | None) -> Floats:
    """What x' = (x - shift) / scale stands for."""
    if factor is None:
        return x
    axis, by = factor
    back: Floats = x * along(by.scale, x.ndim, axis) + along(by.shift, x.ndim, axis)
    return back


def features(graph: Graph) -> tuple[str, ...]:
    """What the last `FEATURES` layers read, in the graph's order; the model's inputs do not count."""
    given = {str(v.name) for v in graph.inputs}
    read = [linear.node.inputs[0] for node in graph.nodes if (linear := linear_at(graph, node)) is not None]
    names = [str(v.name) for v in read if v is not None and not graph.is_const(v)]
    return tuple(name for name in dict.fromkeys(names) if name not in given)[-FEATURES:]


STRETCHES = 8
"""What is tried one part after the other is parted into so many stretches, at first or at all."""


def stretches(items: Sequence[_T]) -> list[tuple[int, tuple[_T, ...]]]:
    """(where it starts, the stretch): neighbours together, in their order."""
    size = -(-len(items) // STRETCHES)
    return [(start, tuple(items[start : start + size])) for start in range(0, len(items), max(size, 1))]


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


LOOKS = ((4, 5.84), (8, 3.50), (16, 2.95))
"""(samples, t): where the mean of so many is t standard errors off what is asked, no more are run.

t is that of Student's distribution with one degree of freedom less than samples, 99 % on both sides (Student, "The
probable error of a mean", Biometrika 6, 1908; NIST/SEMATECH e-Handbook of Statistical Methods, table 1.3.6.7.2).
"""


_ENOUGH = 8
"""With fewer samples nothing is kept, however clear: what makes one in some ten much worse may not be among them."""


def gains(before: Noise, after: Noise, least: float = GAIN_DB, *, errors: float = 1.0, expected: bool = False) -> bool:
    """Whether noise over signal, one number a sample, fell by `least` dB on average, and by more than by chance.

    By chance: so many standard `errors` of the mean of the samples' gains in dB. Their sum must fall too: a few samples
    that get much worse weigh little in decibels. No more samples are run than it takes to be clear, see `LOOKS`.

    With `expected` the change is one for the better by what was measured of its tensors, and it is enough that the
    outputs do not contradict: that `least` lies within the standard error. A few numbers an output say little.
    """
    for count, t in (*(look for look in LOOKS if look[0] < before.samples), (before.samples, 0.0)):
        one, other = before.first(count), after.first(count)
        if not (np.isfinite(one) & np.isfinite(other)).all():
            return False
        gained = -decibels(one, other)
        mean, error = float(gained.mean()), standard_error(gained)
        fell = expected or float(other.sum()) < float(one.sum())
        if t and mean + t * error < least:
            return False
        if t and count >= _ENOUGH and fell and mean - t * error > least:
            return True
    return fell and mean > (least - error if expected else max(least, errors * error))


FAR_DB = 10.0
"""With an SQNR below, noise is more than a tenth of the signal, and somebody should look."""


def how_near(noise: Noise, monitor: Monitor) -> Judged | None:
    """SQNR at the worst output on the samples that were run, with a warning where what judges finds the model far.

    Runs no sample that gains would not. None where no output is a tensor of floats or a number of it is not finite.
    """
    mean = float(noise.first(min(_ENOUGH, noise.samples)).mean())
    if mean > 10 ** (-FAR_DB / 10):
        monitor.warn(
            f"the quantized model is far from the float model: {-10 * math.log10(mean):.1f} dB SQNR at its outputs and "
            "last layers, on samples that judge. `onnxq sensitivity` names the layers that cost most, --min-sqnr "
            "leaves as many in float as it takes"
        )
    sqnr_db = told_db(float(np.mean(noise.at_outputs, axis=0).max())) if noise.at_outputs else None
    return None if sqnr_db is None else (sqnr_db, len(noise.at_outputs))


def decibels(before: Floats, after: Floats) -> Floats:
    """By how many dB each number grew."""
    floor = np.finfo(np.float64).tiny
    grew: Floats = 10 * (np.log10(np.maximum(after, floor)) - np.log10(np.maximum(before, floor)))
    return grew


def standard_error(values: Floats) -> float:
    """Of their mean; 0 of a single one."""
    return float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else 0.0


def confirmed(
    groups: Sequence[list[_T]],
    noise: Callable[[Sequence[_T]], Noise],
    accepts: Callable[[list[_T], Noise, Noise], bool],
    trials: int,
    parts: Callable[[list[_T]], list[list[_T]]] = halves,
) -> tuple[list[_T], Noise]:
    """What is kept of the groups, each tried beside what is kept already; of a group that is not, its parts are tried.

    Args:
        groups: what is tried first, in this order.
        noise: the changes that are made -> noise over signal of each judging sample.
        accepts: (group, noise without it, noise with it) -> whether it is kept.
        trials: groups that are tried at most.
        parts: what a group is divided into.

    Returns:
        What is kept, and the noise with it.
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
    return kept, least


def tensor_noise(pairs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]], power: Mapping[str, float]) -> Floats:
    """Noise of float tensors over their power, (samples, tensors); 0 for others.

    Args:
        pairs: (tensor -> values in float, tensor -> values quantized) of each sample.
        power: tensor -> its power, the mean over all samples.
    """
    noise = [[_noise(exact[name], found[name]) for name in power] for exact, found in pairs]
    mean = np.broadcast_to(list(power.values()), np.shape(noise))
    relative: Floats = np.divide(noise, mean, out=np.zeros(np.shape(noise)), where=mean > 0)
    return relative


def _noise(a: object, b: object) -> float:
    """Sum of squares of the difference over what is finite in `a`."""
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray) or a.dtype.kind != "f" or a.shape != b.shape:
        return 0.0
    finite = np.isfinite(a)
    exact, found = (a.reshape(-1), b.reshape(-1)) if finite.all() else (a[finite], b[finite])
    noise = np.subtract(exact, found, dtype=np.float64)  # few passes over memory: it is done a lot
    return float(np.square(noise, out=noise).sum())


def _power(a: object) -> float:
    """Sum of squares over what is finite in a float tensor."""
    if not isinstance(a, np.ndarray) or a.dtype.kind != "f":
        return 0.0
    return float(np.square(a[np.isfinite(a)], dtype=np.float64).sum())
