"""Whether a change of the model brings its outputs nearer to what they are in float, on samples that judge."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.collect import session_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from onnxq.data import Feed
    from onnxq.graph import Graph
    from onnxq.improvement.picking import Inspected
    from onnxq.runtime import Session

    Floats = npt.NDArray[np.float64]

GAIN_DB = 0.1
"""The least gain at the model's outputs that is kept."""


class Judge:
    """The float model's outputs on the judging samples, and how far a quantized model is from them."""

    def __init__(self, model: Inspected, feeds: Sequence[Feed]) -> None:
        session = model.session(())
        self._model, self._feeds, self._names = model, feeds, tuple(session.outputs)
        self._exact = [session.run({n: f[n] for n in session.inputs}, self._names) for f in feeds]

    def noise(self, quantized: Graph) -> Floats:
        """Noise over signal of the outputs, of each sample."""
        session = session_for(quantized, (), self._model.providers, self._model.custom_ops)
        return output_noise(session, self._feeds, self._names, self._exact)


def gains(before: Floats, after: Floats, least: float = GAIN_DB, *, expected: bool = False) -> bool:
    """Whether noise over signal, one number a sample, fell by `least` dB on average, and by more than by chance.

    By chance: the standard error of the mean of the samples' gains in dB. Their sum must fall too: a few samples that
    get much worse weigh little in decibels. With `expected`, where theory says that the change is one for the better,
    `least` alone is asked for.
    """
    if not (np.isfinite(before) & np.isfinite(after)).all():
        return False
    if after.sum() >= before.sum():
        return False
    floor = np.finfo(np.float64).tiny
    gained = 10 * (np.log10(np.maximum(before, floor)) - np.log10(np.maximum(after, floor)))
    error = float(gained.std(ddof=1)) / math.sqrt(gained.size) if gained.size > 1 else 0.0
    return float(gained.mean()) > (least if expected else max(least, error))


def output_noise(session: Session, feeds: Sequence[Feed], names: Sequence[str], exact: Sequence[list[Any]]) -> Floats:
    """Noise over signal of the model's float outputs, summed over the outputs, of each feed."""
    total = np.zeros(len(feeds))
    for i, (feed, wanted) in enumerate(zip(feeds, exact, strict=True)):
        found = session.run({n: feed[n] for n in session.inputs}, names)
        for a, b in zip(wanted, found, strict=True):
            if not isinstance(a, np.ndarray) or a.dtype.kind != "f" or a.shape != b.shape:
                continue
            signal = a.astype(np.float64)
            finite = np.isfinite(signal)
            power = float(np.square(signal[finite]).sum())
            if power > 0:
                total[i] += float(np.square(signal[finite] - b[finite]).sum()) / power
    return total
