"""How near a model is as it is written, by the samples that judged what was chosen for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.comparison import quantized_session
from onnxq.errors import OnnxqError
from onnxq.improvement.judging import tensor_noise, told_db
from onnxq.improvement.picking import run
from onnxq.interface import with_float_ends

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnxq.channels import ChannelRange
    from onnxq.data import Feed
    from onnxq.graph import Graph
    from onnxq.histogram import Histogram
    from onnxq.improvement.judging import Floats
    from onnxq.improvement.picking import Inspected
    from onnxq.statistics import Rounded, Statistics


@dataclass(frozen=True, eq=False)
class Kept:
    """The float model's outputs on samples that judge, to hold the model against as it is written.

    Attributes:
        feeds: all those samples.
        exact: output -> its values, of each of them.
        power: output -> its mean power over them, of those that have any.
        model: the float model and how it is run.
        seen: tensor -> its values in every so manieth of the samples, from the first, the second and so on; empty where
            their part in ranges is small.
        rounding: codes of weights that these samples had no part in, where they had in those that are written.
        channels: tensor -> the ranges of its channels without such a part; also where many samples calibrate, since
            they are of those alone that choose and judge. Empty where no tensor has them.
    """

    feeds: Sequence[Feed]
    exact: Sequence[Mapping[str, Any]]
    power: Mapping[str, float]
    model: Inspected
    seen: Sequence[Mapping[str, Histogram]] = ()
    rounding: Mapping[str, Rounded] | None = None
    channels: Sequence[Mapping[str, ChannelRange]] = ()

    def sqnr_db(self, lowered: Callable[[Statistics], Graph], statistics: Statistics) -> float | None:
        """SQNR at the worst output; None where ONNX Runtime does not run the model, or a number is not finite.

        Each sample judges ranges that it had no part in: what new ones hold beyond those of the samples that calibrate
        is cut off, which no sample shows that does. `lowered` writes the model by such statistics.
        """
        noise: list[Floats] = []
        parts = max(len(self.seen), len(self.channels), 1)
        try:
            for first in range(parts):
                ends = with_float_ends(lowered(self._apart(statistics, first)))
                computed = {str(value.name) for value in ends.values()}  # a weight may be an output
                power = {name: power for name, power in self.power.items() if name in computed}
                session = quantized_session(ends, tuple(power), self.model.providers, self.model.custom_ops)
                part = slice(first, None, parts)
                runs = [run(session, feed) for feed in self.feeds[part]]
                noise.append(tensor_noise(zip(self.exact[part], runs, strict=True), power))
        except OnnxqError:
            return None  # bfloat16 beside operators of other domains, for one
        return told_db(float(np.concatenate(noise).mean(axis=0).max(initial=0.0)))

    def _apart(self, statistics: Statistics, part: int) -> Statistics:
        """The statistics without what this part showed, and without codes that the samples had a part in."""
        if self.seen:
            left = {name: _left(h, self.seen[part].get(name)) for name, h in statistics.tensors.items()}
            statistics = replace(statistics, tensors=left)
        if self.channels:
            statistics = replace(statistics, channels=self.channels[part])
        return statistics if self.rounding is None else replace(statistics, rounding=self.rounding)


def folds(judging: Sequence[Feed], samples: int) -> tuple[Sequence[Feed], ...]:
    """The parts in which samples that judge are taken out of the ranges, of so many samples that calibrate.

    None where these are more than twice as many: what one of those that judge alone holds counts too much then.
    """
    return tuple(judging[first::_FOLDS] for first in range(_FOLDS)) if samples <= 2 * len(judging) else ()


_FOLDS = 4


def _left(all_of_it: Histogram, part: Histogram | None) -> Histogram:
    """What is left without the part; all of it where that is nothing."""
    left = all_of_it if part is None else all_of_it.without(part)
    return left if left.amax > 0.0 else all_of_it
