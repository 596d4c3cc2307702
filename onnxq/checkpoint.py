"""Checkpoints: what a stopped collection leaves, so that it can go on where it was.

Histograms add exactly, so the statistics of the samples counted before the stop and of the others afterwards are those
of one run, bit for bit. Which samples were counted is known by their hashes: their order does not matter, nor does
the place in a file or a stream at which the run was stopped.
"""

from __future__ import annotations

import io
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnxq.errors import DataError, StatisticsError
from onnxq.files import write_aside
from onnxq.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EVERY = 30.0
"""Seconds between checkpoints: writing one takes a fraction of a second."""

_MEMBERS = ("statistics.npz", "counted.npy")


@dataclass(frozen=True)
class Checkpoint:
    """The statistics of some samples, and how often each of these was counted.

    Attributes:
        statistics: what was seen so far.
        counted: hash of a sample -> how often it was counted.
    """

    statistics: Statistics
    counted: Counter[int] = field(default_factory=Counter)

    def __add__(self, other: Checkpoint) -> Checkpoint:
        """What both saw together; neither has a sample that the other counted."""
        return Checkpoint(self.statistics + other.statistics, self.counted + other.counted)

    def save(self, path: Path) -> None:
        """Write a zip of two members, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        inner, hashes = io.BytesIO(), io.BytesIO()
        self.statistics.save(inner)
        np.save(hashes, np.array(sorted(self.counted.elements()), np.uint64), allow_pickle=False)

        def write(target: Path) -> None:
            with zipfile.ZipFile(target, "w") as archive:
                for name, content in zip(_MEMBERS, (inner, hashes), strict=True):
                    archive.writestr(name, content.getvalue())

        write_aside(path, write)

    @staticmethod
    def load(path: Path) -> Checkpoint:
        """Read what `save` wrote.

        Raises:
            StatisticsError: it is not whole, or no such file.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                inner, hashes = (io.BytesIO(archive.read(name)) for name in _MEMBERS)
            counted = np.lib.format.read_array(hashes, allow_pickle=False)
            found = Statistics.load(inner)
        except Exception as error:  # numpy, zipfile and zlib raise many types for damaged files
            raise StatisticsError(
                f"the checkpoint {path} cannot be read: {error}", "Remove it, and run again without --resume."
            ) from error
        if counted.dtype != np.uint64 or counted.shape != (found.samples,):
            raise StatisticsError(f"the checkpoint {path} is damaged", "Remove it, and run again without --resume.")
        return Checkpoint(found, Counter(counted.tolist()))


@dataclass
class Keeper:
    """Keeps a checkpoint while a collection runs, and takes it up again.

    Attributes:
        path: where the checkpoint goes.
        resume: whether to go on from the one that lies there.
        every: seconds between two of them.
    """

    path: Path
    resume: bool = False
    every: float = EVERY

    def __post_init__(self) -> None:
        self._last = time.monotonic()

    def begin(self, fresh: Statistics) -> Checkpoint:
        """Where to start: the checkpoint, if one is to be taken up and there is one, or nothing counted yet.

        Args:
            fresh: statistics without samples, of the model and the tensors that are to be observed.

        Raises:
            StatisticsError: the checkpoint cannot be read, or is of another model or other tensors.
        """
        if not (self.resume and self.path.exists()):
            return Checkpoint(fresh)
        found = Checkpoint.load(self.path)
        same = found.statistics.model == fresh.model and set(found.statistics.tensors) == set(fresh.tensors)
        if not same or set(found.statistics.bounds) != set(fresh.bounds):
            raise StatisticsError(
                f"the checkpoint {self.path} is of another model, recipe or data than this run",
                "Repeat the command that was stopped, or remove the file and run without --resume.",
            )
        return found

    def keep(self, current: Callable[[], Checkpoint], *, now: bool = False) -> None:
        """Write a checkpoint if it is time for one, or `now`.

        Raises:
            OutputError: it cannot be written.
        """
        if now or time.monotonic() - self._last >= self.every:
            current().save(self.path)
            self._last = time.monotonic()

    def done(self) -> None:
        """The work is finished: the checkpoint goes."""
        self.path.unlink(missing_ok=True)


def checkpoint_of(output: Path) -> Path:
    """The checkpoint that belongs to an output: beside it, `<name>.partial`."""
    return output.with_name(f"{output.name}.partial")


class Total:
    """What a collection saw, in one run or over several: it starts with the checkpoint that is taken up, if any.

    Attributes:
        left: samples of that checkpoint that were not met again yet: they are not to be run.
    """

    def __init__(self, empty: Statistics, keeper: Keeper | None) -> None:
        begun = Checkpoint(empty) if keeper is None else keeper.begin(empty)
        self._statistics, self._counted, self._keeper = begun.statistics, begun.counted, keeper
        self.left = Counter(begun.counted)

    def add(self, found: Checkpoint) -> None:
        """Add what was seen of some samples."""
        self._statistics += found.statistics
        self._counted.update(found.counted)  # in place: `+` takes as long as there are samples

    def keep(self, more: Callable[[], Checkpoint] | None = None, *, now: bool = False) -> None:
        """Write a checkpoint, if there is a keeper and it is time for one or `now`, and any sample was counted.

        Args:
            more: gives what was seen beside what was added.
            now: do not wait until it is time.

        Raises:
            OutputError: it cannot be written.
        """

        def current() -> Checkpoint:
            own = Checkpoint(self._statistics, self._counted)
            return own if more is None else own + more()

        if self._keeper is not None and not (now and not current().counted):
            self._keeper.keep(current, now=now)

    def whole(self) -> Statistics:
        """The statistics of all samples.

        Raises:
            DataError: there was none.
            StatisticsError: samples of the checkpoint are no longer there.
        """
        if self._keeper is not None and (count := self.left.total()):
            raise StatisticsError(
                f"{count} samples that the checkpoint {self._keeper.path} counted are no longer in the data",
                "Give the same data again, or remove the checkpoint and run without --resume.",
            )
        if not self._statistics.samples:
            raise DataError("the calibration data holds no sample", "Give at least one; 100 to 500 are usual.")
        return self._statistics
