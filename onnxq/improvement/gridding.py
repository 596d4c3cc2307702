"""Grids per channel, where they cost nothing: how wide each channel's is, chosen by leaving samples out.

Of a channel that kept its own range alone, new samples would be cut off; of one that had the tensor's, steps would be
wasted. With L and H the ends of the tensor, l_j and h_j those of channel j, and w_j = (h_j - l_j) / (H - L), that is

    m [l_j + t_j (L - l_j), h_j + t_j (H - h_j)]     where t_j = (w_j^a - w_j) / (1 - w_j)

so that it is w_j^a times as wide as the tensor's: its own with a = 1, the tensor's with a = 0. The exponent a and
margin m are those of least squared error, behind what reads the tensor, in a quarter of the samples at a time that had
no part in the ends. So may be that nothing is beyond the range that the tensor would have by itself: behind a
HardSwish nothing below -3 matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxq.channels import ChannelRange
from onnxq.improvement.factors import margin_db
from onnxq.improvement.judging import confirmed, gains
from onnxq.improvement.picking import run
from onnxq.improvement.sampling import positions
from onnxq.monitor import QUIET, Monitor
from onnxq.numerics import dequantize, quantize

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from onnxq.data import Feed
    from onnxq.improvement.judging import Noise
    from onnxq.numerics import QuantParams, Range
    from onnxq.runtime import Session

    Array = npt.NDArray[Any]
    Function = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]

_FOLDS = 4
_EXPONENTS = (1.0, 0.75, 0.5, 0.25)
_MARGINS = (0.8, 0.9, 1.15, 1.3, 1.6)
LEAST_ROWS = 1024
"""A tensor of which each channel had fewer values, over all samples, keeps one grid: how far channels go is not known.
The gate of a squeeze-and-excitation has one value a channel and sample; with 96 of them glyphs' test images lost 4.6 dB
in front of one gate where left-out samples promised 6.6."""

_VALUES = 2**17
"""Values of a tensor that are looked at, over all samples, beside the ends of every channel in every sample."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """A tensor of which each channel may have a grid of its own.

    Attributes:
        tensor: its name.
        axis: its channel axis.
        alone: the parameters that it has with one scale.
        range: their range.
        behind: what is made of its values, by whose error ranges are chosen; None for themselves.
        bounds: what it can hold.
    """

    tensor: str
    axis: int
    alone: QuantParams
    range: Range
    behind: Function | None
    bounds: Range


@dataclass(frozen=True, eq=False)
class Seen:
    """What samples showed of a tensor of C channels.

    Attributes:
        low, high: the ends of every channel in each sample, (samples, C).
        values: of each sample, (values, C).
        weights: for how many of the sample's each of these stands, (values, 1).
        rows: values a channel of all samples.
    """

    low: Array
    high: Array
    values: Sequence[Array]
    weights: Sequence[Array]
    rows: int


@dataclass(frozen=True)
class Width:
    """How wide grids are.

    Attributes:
        exponent: a.
        margin: m.
        within: that no channel goes beyond this range.
    """

    exponent: float
    margin: float = 1.0
    within: Range | None = None

    def range(self, seen: Seen, samples: Sequence[int], bounds: Range) -> ChannelRange:
        """The range of every channel by what these samples showed."""
        low = np.minimum(seen.low[samples].min(axis=0), 0.0).astype(np.float64)
        high = np.maximum(seen.high[samples].max(axis=0), 0.0).astype(np.float64)
        least, most = low.min(), high.max()
        wide = (high - low) / max(most - least, np.finfo(np.float64).tiny)
        wanted = np.maximum(wide, _NARROWEST) ** self.exponent
        towards = np.divide(wanted - wide, 1.0 - wide, out=np.zeros(wide.size), where=wide < 1.0)
        ends = ((a + towards * (b - a)) * self.margin for a, b in ((low, least), (high, most)))
        found = ChannelRange(*(end.astype(np.float32) for end in ends)).inside(bounds)
        return found if self.within is None else found.inside(self.within)


_NARROWEST = 2.0**-8
"""Least width of a channel, as part of the tensor's: a step of the one grid. Less would gain nothing that counts, and
of a channel that is quiet in all samples lose what another one holds."""


@dataclass(frozen=True)
class Grids:
    """Tensors with a width for the grids of their channels, and what samples showed of them."""

    widths: Mapping[Wanted, Width]
    seen: Mapping[str, Seen]

    def ranges(self, without: Collection[int] = ()) -> dict[str, ChannelRange]:
        """Tensor -> the ranges of its channels, by all samples but those at these places."""
        found = {}
        for want, width in self.widths.items():
            seen = self.seen[want.tensor]
            kept = [place for place in range(len(seen.values)) if place not in without]
            found[want.tensor] = width.range(seen, kept, want.bounds)
        return found

    def only(self, tensors: Collection[str]) -> Grids:
        """Of these tensors alone."""
        return Grids({want: width for want, width in self.widths.items() if want.tensor in tensors}, self.seen)

    def by_all(self) -> Grids:
        """With widths chosen by all samples: of these none is left to judge."""
        widths = {}
        for want, width in self.widths.items():
            seen = self.seen[want.tensor]
            widths[want] = _chosen(want, seen, range(len(seen.values))) or width
        return Grids(widths, self.seen)


def channel_grids(
    wanted: Sequence[Wanted],
    session: Callable[[Sequence[str]], Session],
    feeds: Sequence[Feed],
    judges: Collection[int],
    monitor: Monitor = QUIET,
) -> Grids:
    """The tensors that gain by a grid per channel, as samples show that are left out of it.

    Args:
        wanted: the tensors.
        session: names of tensors -> the float model with these as outputs.
        feeds: the samples, in an order that does not depend on that of the data.
        judges: which of them judge later: no width is chosen on these.
        monitor: progress.
    """
    if not wanted:
        return Grids({}, {})
    monitor.stage(f"Looking at the channels of {len(wanted)} tensors", len(feeds))
    seen = _look(wanted, session(tuple(w.tensor for w in wanted)), feeds, monitor)
    learning = [place for place in range(len(feeds)) if place not in judges]
    found = ((w, _chosen(w, seen[w.tensor], learning)) for w in wanted)
    return Grids({w: width for w, width in found if width is not None}, seen)


def gaining(
    grids: Grids, noise: Callable[[Sequence[str]], Noise], trials: int, monitor: Monitor = QUIET
) -> tuple[tuple[str, ...], Noise]:
    """Those of the tensors whose grids the judging samples do not contradict, and the noise with them.

    Args:
        grids: by samples that do not judge.
        noise: tensors with such grids -> noise over signal, of each judging sample.
        trials: models that are run at most.
        monitor: progress.
    """
    tensors = [want.tensor for want in grids.widths]
    if not tensors:
        return (), noise(())
    monitor.stage("Judging grids per channel", None)
    kept, least = confirmed([tensors], noise, lambda _, before, after: gains(before, after, expected=True), trials)
    return tuple(kept), least


def _look(wanted: Sequence[Wanted], session: Session, feeds: Sequence[Feed], monitor: Monitor) -> dict[str, Seen]:
    ends: dict[str, list[tuple[Array, Array]]] = {w.tensor: [] for w in wanted}
    values: dict[str, list[tuple[Array, Array]]] = {w.tensor: [] for w in wanted}
    rows = dict.fromkeys(ends, 0)
    for seed, feed in enumerate(feeds):
        arrays = run(session, feed)
        for w in wanted:
            x = np.moveaxis(arrays[w.tensor], w.axis, -1)
            x = x.reshape(-1, x.shape[-1])
            low, high = x.min(axis=0, initial=np.inf), x.max(axis=0, initial=-np.inf)
            ends[w.tensor].append((low, high))
            values[w.tensor].append(_sampled(x, low, high, -(-_VALUES // (len(feeds) * x.shape[1])), seed))
            rows[w.tensor] += len(x)
        monitor.advance()
    return {name: _seen(ends[name], values[name], rows[name]) for name in ends}


def _seen(ends: Sequence[tuple[Array, Array]], values: Sequence[tuple[Array, Array]], rows: int) -> Seen:
    low, high = (np.stack(side) for side in zip(*ends, strict=True))
    each, weights = zip(*values, strict=True)
    return Seen(low, high, each, weights, rows)


def _sampled(x: Array, low: Array, high: Array, count: int, seed: int) -> tuple[Array, Array]:
    """Some rows of (rows, C), each for as many as there are of it, and the ends of every channel for themselves."""
    chosen = positions(len(x), count, seed)
    each = np.full((chosen.size, 1), len(x) / max(chosen.size, 1))
    if chosen.size == len(x):
        return x.copy(), each
    return np.concatenate([x[chosen], low[None], high[None]]), np.concatenate([each, np.ones((2, 1))])


def _chosen(want: Wanted, seen: Seen, samples: Sequence[int]) -> Width | None:
    """The width of least error in samples left out, None where it does not gain as much as a factor must."""
    grid = want.alone.qtype
    exact = {i: _behind(want, seen.values[i].astype(np.float64)) for i in samples}

    def error(params: QuantParams, held: Sequence[int]) -> float:
        return sum(_error(want, seen.values[i], exact[i], seen.weights[i], params) for i in held)

    folds = [samples[first::_FOLDS] for first in range(_FOLDS)]
    parts = [(fold, [i for i in samples if i not in fold]) for fold in folds]

    def left_out(width: Width) -> float:
        return sum(error(width.range(seen, others, want.bounds).params(grid, 1), fold) for fold, others in parts)

    if seen.rows < LEAST_ROWS or not np.isfinite([seen.low, seen.high]).all():  # of every sample: all make the ends
        return None
    first = [Width(a, within=within) for a in _EXPONENTS for within in (None, want.range)]
    best = min((left_out(width), place, width) for place, width in enumerate(first))
    # The first of equals, so that the same data gives the same widths.
    wider = [Width(best[2].exponent, m, best[2].within) for m in _MARGINS]
    least, _, width = min(best, *((left_out(w), len(first) + place, w) for place, w in enumerate(wider)))
    return width if least < error(want.alone, samples) * 10 ** (-margin_db(seen.rows) / 10) else None


def _behind(want: Wanted, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return x if want.behind is None else want.behind(x)


def _error(want: Wanted, x: Array, exact: Array, weights: Array, params: QuantParams) -> float:
    """Weighted sum of squared errors of values (rows, C) behind what reads them."""
    found = _behind(want, dequantize(quantize(x, params), params).astype(np.float64))
    return float((np.square(found - exact) * weights).sum())
