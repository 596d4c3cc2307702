"""How far a quantized model's outputs are from the float model's, and how sure a few samples make that.

For every output, over samples i with noise n_i and signal s_i, the sums of squares that `onnxq compare` adds up too:

    R = sum n_i / sum s_i,    SQNR = -10 log10 R

R is a ratio estimator. Its standard error (Cochran, Sampling Techniques, 1977, 6.4) is

    se = sqrt( sum (n_i - R s_i)^2 / (N (N - 1)) ) / mean s

and R exp(t se / R), t Student's 99 % quantile of N - 1 degrees of freedom, is what R will hardly be above. The interval
is that of log R, by the delta method: noise is skewed. With the error of another N samples added, which is sqrt 2
times as large, the level is 95 %: 1.645 sqrt 2 = 2.326.

That goes by how much the samples differ, and a few that are alike say nothing of one that lies outside the ranges and
errs many times as much. So R is also taken with one more sample, of mean signal and c = 30 times the mean noise, which
is R (N + c) / (N + 1), and the higher bound counts. No formula gives c: it is what held on new samples
(docs/budget.md). It asks for 6.3 dB of 8 samples, 4.3 of 16 and 1.6 of 64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.monitor import SILENT, Monitor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from onnxq.data import Feed
    from onnxq.runtime import Session

    Array = npt.NDArray[Any]
    Floats = npt.NDArray[np.float64]
    Outputs = Mapping[str, Array]

MEMORY = 2**30
"""Bytes of the float model's outputs that are kept at most."""

_UNSEEN = 30.0
"""How many times the mean noise a sample that was not seen is taken to have."""

_T99 = (31.821, 6.965, 4.541, 3.747, 3.365, 3.143, 2.998, 2.896, 2.821, 2.764)
"""One-sided 99 % quantiles of Student's t for 1 to 10 degrees of freedom."""


def t99(freedom: int) -> float:
    """One-sided 99 % quantile of Student's t: tabled, from 11 degrees of freedom on by Cornish and Fisher's series."""
    if freedom <= len(_T99):
        return _T99[freedom - 1]
    z = NormalDist().inv_cdf(0.99)
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return float(z + sum(term / freedom ** (i + 1) for i, term in enumerate(terms)))


@dataclass(frozen=True)
class Exact:
    """Samples with what the float model gives for them.

    Attributes:
        feeds: the samples.
        names: the float outputs, which are compared.
        outputs: of each sample, every output by name.
    """

    feeds: tuple[Feed, ...]
    names: tuple[str, ...]
    outputs: tuple[Outputs, ...]


@dataclass(frozen=True, eq=False)
class Noise:
    """Sums of squares of each sample and output, float64 of shape (samples, outputs)."""

    signal: Floats
    noise: Floats

    @property
    def ratios(self) -> tuple[float, ...]:
        """Noise over signal of each output: 0 when nothing differs, inf where no signal is but noise."""
        noise, signal = self.noise.sum(axis=0), self.signal.sum(axis=0)
        return tuple(ratio(float(n), float(s)) for n, s in zip(noise, signal, strict=True))

    @property
    def db(self) -> float:
        """SQNR of the worst output; inf when nothing differs."""
        return decibels(max(self.ratios, default=0.0))

    @property
    def bound_db(self) -> float:
        """What the SQNR of the worst output is at least, with 99 % confidence; -inf for a single sample."""
        return decibels(max(map(self._bound, range(self.signal.shape[1])), default=0.0))

    def _bound(self, output: int) -> float:
        signal, noise = self.signal[:, output], self.noise[:, output]
        count, total = signal.size, float(signal.sum())
        found = ratio(float(noise.sum()), total)
        if found in (0.0, math.inf):
            return found
        if count < 2:
            return math.inf
        spread = float(np.square(noise - found * signal).sum())
        error = math.sqrt(spread / (count * (count - 1))) / (total / count)
        unseen = (count + _UNSEEN) / (count + 1)
        return found * max(math.exp(min(t99(count - 1) * error / found, 100.0)), unseen)


def ratio(noise: float, signal: float) -> float:
    """Noise over signal; 0 when there is no noise, inf when only the signal is 0."""
    if noise == 0.0:
        return 0.0
    return noise / signal if signal > 0.0 else math.inf


def decibels(noise_ratio: float) -> float:
    """-10 log10 of noise over signal."""
    if noise_ratio == 0.0:
        return math.inf
    return -10 * math.log10(noise_ratio) if noise_ratio < math.inf else -math.inf


def exact(session: Session, feeds: Sequence[Feed], monitor: Monitor = SILENT) -> Exact:
    """Run the float model on the samples, or on as many as there is memory for their outputs.

    Raises:
        DataError: the model refuses a sample.
    """
    found: list[Outputs] = []
    size = 0
    for feed in feeds:
        outputs = run(session, feed)
        for array in outputs.values():
            array.flags.writeable = False  # a metric reads them, and may not change what others read
            size += array.nbytes
        if size > MEMORY and len(found) > 1:
            text = f"{len(found)} samples of {len(feeds)} are judged on: the model's outputs for more take over"
            monitor.warn(f"{text} {MEMORY >> 30} GiB of memory")
            break
        found.append(outputs)
        monitor.advance()
    names = tuple(n for n, a in found[0].items() if a.dtype.kind in "fV") if found else ()
    return Exact(tuple(feeds[: len(found)]), names, tuple(found))


def run(session: Session, feed: Feed) -> dict[str, Array]:
    """Every output of the session that is a tensor."""
    results = session.run({name: feed[name] for name in session.inputs}, session.outputs)
    return {n: a for n, a in zip(session.outputs, results, strict=True) if isinstance(a, np.ndarray)}


def squares(wanted: Array, found: Array) -> tuple[float, float]:
    """(signal, noise) of one tensor; noise is inf where only one of the two is finite, or shapes differ."""
    if wanted.shape != found.shape:
        return float(np.square(wanted.astype(np.float64)).sum()), math.inf
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        odd = not np.array_equal(a[~finite], b[~finite], equal_nan=True)
        a, b = a[finite], b[finite]
        if odd:
            return float(np.square(a).sum()), math.inf
    return float(np.square(a).sum()), float(np.square(a - b).sum())


def measured(wanted: Exact, found: Sequence[Outputs]) -> Noise:
    """The noise of a quantized model's outputs."""
    sums = np.zeros((2, len(wanted.outputs), len(wanted.names)))
    for i, (a, b) in enumerate(zip(wanted.outputs, found, strict=True)):
        for j, name in enumerate(wanted.names):
            sums[:, i, j] = squares(a[name], b[name])
    return Noise(sums[0], sums[1])
