"""What a budget asks for, judged on samples: an SQNR that is reached, or a metric that hardly falls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxq.errors import DataError
from onnxq.outcome import Verdict
from onnxq.search.noise import Exact, Noise, measured, t99
from onnxq.shares import percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxq.search.metrics import Metric
    from onnxq.search.noise import Outputs

FOLDS = 10
"""Parts of the samples that are left out in turn to see how much a metric hangs on them."""


@dataclass(frozen=True)
class Trial:
    """A quantized model's outputs beside the float model's.

    Attributes:
        exact: the samples, and what the float model gives.
        outputs: what the quantized model gives.
        noise: how far they are apart.
    """

    exact: Exact
    outputs: tuple[Outputs, ...]
    noise: Noise

    @classmethod
    def of(cls, exact: Exact, outputs: Sequence[Outputs]) -> Trial:
        """Compare them."""
        return cls(exact, tuple(outputs), measured(exact, outputs))

    def resized(self) -> set[str]:
        """Names of the float outputs that are of another size for a sample than the float model's."""
        pairs = tuple(zip(self.exact.outputs, self.outputs, strict=True))
        return {name for name in self.exact.names if any(a[name].shape != b[name].shape for a, b in pairs)}


@dataclass(frozen=True)
class MinSqnr:
    """Every float output keeps an SQNR of `least` dB over the samples together."""

    least: float

    def __str__(self) -> str:
        return f"SQNR >= {self.least:g} dB"

    def verdict(self, trial: Trial) -> Verdict:
        """The SQNR of the worst output; its bound as in `onnxq.search.noise`."""
        bound = trial.noise.bound_db
        return Verdict(str(self), trial.noise.db, bound, bound >= self.least)

    def reached(self, trial: Trial) -> bool:
        """Whether the measured value alone is enough: what the search goes by."""
        return trial.noise.db >= self.least

    def drop(self, trial: Trial) -> float | None:
        """Nothing: it is no metric."""
        del trial
        return None

    def doubt(self, verdict: Verdict, count: int) -> str | None:
        """Nothing: its bound goes by the number of samples too."""
        del verdict, count
        return None


@dataclass(frozen=True)
class MaxDrop:
    """A metric gets worse by no more than `most`.

    Attributes:
        metric: the user's.
        most: the largest drop; of the float model's value when `relative`.
        relative: whether the drop is divided by the float model's value.
        higher: whether higher values are better.
    """

    metric: Metric
    most: float
    relative: bool
    higher: bool

    def __str__(self) -> str:
        unit = " of its float value" if self.relative else ""
        return f"drop of {self.metric.name} <= {self.most:g}{unit}"

    def verdict(self, trial: Trial) -> Verdict:
        """The drop, and what it may truly be.

        The bound adds t times the standard error of the delete-a-group jackknife over 10 parts of the samples
        (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, 11.5): se^2 = (g - 1) / g sum (d_k - mean d)^2,
        d_k the drop without part k. A metric that fails on a part has no bound but its value.
        """
        value = self._drop(trial, range(len(trial.outputs)))
        bound = value + self._margin(trial)
        return Verdict(str(self), value, bound, bound <= self.most, "")

    def reached(self, trial: Trial) -> bool:
        """Whether the measured value alone is enough: what the search goes by."""
        return self._drop(trial, range(len(trial.outputs))) <= self.most

    def drop(self, trial: Trial) -> float | None:
        """How much the metric got worse; below 0 when it got better."""
        return self._drop(trial, range(len(trial.outputs)))

    def doubt(self, verdict: Verdict, count: int) -> str | None:
        """What a metric that is the same on all `count` samples does not tell, where it is a share of them.

        None changed: with 99 % confidence fewer than p of all do, (1 - p)^count = 0.01 (Clopper and Pearson, 1934).
        """
        share = 1 - 0.01 ** (1 / count)
        if (verdict.value, verdict.bound) != (0.0, 0.0) or share <= self.most:
            return None
        held = f"{self.metric.name} is the same on all {count} samples that judge"
        return f"{held}: of others up to {percent(share)} may change (99 % sure), and the limit is {self.most:g}"

    def _drop(self, trial: Trial, which: Sequence[int]) -> float:
        feeds = [trial.exact.feeds[i] for i in which]
        before, after = (self.metric(feeds, [o[i] for i in which]) for o in (trial.exact.outputs, trial.outputs))
        lost = before - after if self.higher else after - before
        if not self.relative:
            return lost
        if before == 0.0:
            raise DataError(
                f"{self.metric.name} is 0 for the float model: a relative drop has no meaning",
                "Give an absolute --max-drop, without --max-drop-relative.",
            )
        return lost / abs(before)

    def _margin(self, trial: Trial) -> float:
        count = len(trial.outputs)
        parts = min(FOLDS, count)
        if parts < 2:
            return math.inf
        try:
            drops = [self._drop(trial, [i for i in range(count) if i % parts != k]) for k in range(parts)]
        except DataError:  # a metric of classes, say, where a part holds only one
            return 0.0
        error = math.sqrt((parts - 1) / parts * float(np.square(np.asarray(drops) - np.mean(drops)).sum()))
        return t99(parts - 1) * error


Goal = MinSqnr | MaxDrop
