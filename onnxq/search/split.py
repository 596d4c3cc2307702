"""Which samples calibrate, which are searched on, and which are held back to judge: by the hash of their content.

Neither the order of the samples nor their batches matter, and a sample that occurs twice is never on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxq.collect import named, sample_hash, samples
from onnxq.errors import DataError
from onnxq.monitor import QUIET, SILENT, Monitor
from onnxq.search.noise import run
from onnxq.smallest import copied

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from onnxq.data import Feed, Source
    from onnxq.runtime import Session

FEW = 8
"""With so many samples or fewer to judge on, a figure says little."""

LEAST = 4
"""Two to calibrate on, two to judge on."""

JUDGES = 256
"""Samples of the calibration data that are held back at most, and of evaluation data that are searched on."""

SEARCHED = 32
"""Samples that calibrate and that the search goes by, at most."""


@dataclass(frozen=True)
class Split:
    """The samples by their part.

    Attributes:
        calibration: all that are not held back; ranges and factors are chosen on them.
        searching: those by which groups are ranked and tried: some that calibrate too, or a part of the user's
            evaluation data.
        judging: held back; no choice was made on them.
        key: a digest of all samples and of which are held back.
    """

    calibration: Source
    searching: tuple[Feed, ...]
    judging: tuple[Feed, ...]
    key: int


def split(session: Session, source: Source, held_back: Source | None = None, monitor: Monitor = QUIET) -> Split:
    """Split the data: a quarter is held back. Or `held_back` is, a quarter of which is searched on.

    Args:
        session: of the float model: tells whether the rows of a batch are samples by themselves.
        source: can be read again.
        held_back: samples to judge on; those that are in the source too do not calibrate.
        monitor: progress and warnings.

    Raises:
        DataError: too few samples, or they cannot be read.
    """
    of_source = _hashes(session, source, monitor)
    found = [*of_source]
    if held_back is None:
        apart = found[3::4] if len(found) > 2 * LEAST else found[1::2]
        apart = apart[:JUDGES]
        rest = sorted({*found} - {*apart})
        searched, judged = rest[-SEARCHED:], apart  # smoothing looks at the smallest hashes
        origin = source
    else:
        of_held_back = _hashes(session, held_back, monitor)
        apart, alike = [*of_held_back], {*of_held_back.values()}
        rest = [key for key, read in of_source.items() if read not in alike]
        searched = apart[3::4][:JUDGES] if len(apart) > 2 * LEAST else apart[1::2]
        judged = sorted({*apart} - {*searched})
        origin = held_back
        if both := len(found) - len(rest):
            monitor.warn(f"{both} samples of {held_back.name} are in {source.name} too: they do not calibrate")
    if found and not rest:
        raise DataError(
            f"every sample of {source.name} is in the evaluation data too: none is left to calibrate on",
            "What calibrates cannot judge. Give other data, or leave --eval-data out: then a part is held back.",
        )
    if min(len(rest), len(searched), len(judged)) < LEAST // 2:
        if held_back is None:
            raise _too_few(source, len(found), "hold some back", ", or judge on other data: --eval-data")
        where = (source, len(rest), "calibrate on") if len(rest) < LEAST // 2 else (held_back, len(apart), "judge on")
        raise _too_few(*where)
    if len(judged) <= FEW:
        monitor.warn(f"only {len(judged)} different samples to judge on: the figures may be off by chance")
    searching, judging = (_taken(session, origin, part) for part in (searched, judged))
    return Split(_filtered(session, source, rest), searching, judging, _key(rest, apart))


def _too_few(source: Source, count: int, use: str, otherwise: str = "") -> DataError:
    return DataError(
        f"{source.name}: {count} different samples are too few to {use}",
        f"Give {LEAST} or more, better 100 or more{otherwise}.",
    )


def _hashes(session: Session, source: Source, monitor: Monitor) -> dict[int, int]:
    """Of the different samples, in order -> of what the model reads of them: evaluation data alone may have labels."""
    monitor.stage(f"Splitting {source.name}", source.length)
    found = {}
    for _, feed in samples(session, source, monitor, tried=True):
        found[sample_hash(feed)] = sample_hash({name: feed[name] for name in session.inputs})
    return dict(sorted(found.items()))


def _taken(session: Session, source: Source, keys: Collection[int]) -> tuple[Feed, ...]:
    """The samples of these hashes, each once, in the order of the hash."""
    kept: dict[int, Feed] = {}
    for where, feed in samples(session, source, SILENT):
        key = sample_hash(feed)
        if key in keys and key not in kept:
            with named(where):  # later runs on it know no more where it came from
                run(session, feed)
            kept[key] = copied(feed)
            for array in kept[key].values():  # a metric reads them, and they are run again
                array.flags.writeable = False
    return tuple(kept[key] for key in sorted(kept))


def _filtered(session: Session, source: Source, keys: Collection[int]) -> Source:
    """The source with only the samples of these hashes, one feed each."""
    wanted = frozenset(keys)

    def read() -> Iterator[tuple[str, object]]:
        return ((where, f) for where, f in samples(session, source, SILENT) if sample_hash(f) in wanted)

    return replace(source, read=read, length=None, limit=None, once=False)


def _key(*parts: Collection[int]) -> int:
    """The same for the same hashes, whatever their order."""
    mixed = 0
    for salt, part in enumerate(parts):
        for key in part:
            mixed = (mixed + key * (2 * salt + 1)) % 2**64
    return mixed
