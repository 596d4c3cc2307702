"""Temporary folders that the next run clears away, where the one that made them was killed before it could.

A file in each is locked (flock) as long as its maker lives: the system lets go of a lock when a process dies, however
it dies. The folder itself is what `alone` locks, so that outputs can be written into such a folder too.
Where locks do not work, on Windows and some network file systems, nothing is cleared away and nobody is waited for.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "onnxq-scratch-"
"""Of folders in the system's folder for such; those beside an output begin with a dot."""

_NAME = re.compile(rf"\.?{PREFIX}[a-z0-9_]{{8}}")
"""What `mkdtemp` makes of it: a user's own folder of a similar name is never cleared away."""

ALIVE = ".alive"
"""The file in each whose lock says that its maker lives."""

WAIT = 10.0
"""Seconds that another run's moving of its outputs into place is waited for."""


class Scratch:
    """A temporary folder that goes with `close`, or when nothing refers to it any more.

    Args:
        parent: where it lies, hidden; None for the system's folder for such.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, parent: Path | None = None) -> None:
        above, prefix = (Path(tempfile.gettempdir()), PREFIX) if parent is None else (parent, f".{PREFIX}")
        with alone(above):
            _sweep(above)
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=above))
            (self.path / ALIVE).touch()
            lock = _locked(self.path / ALIVE)
        self.close = weakref.finalize(self, _remove, self.path, lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else who asks for the same runs meanwhile, in this process or another; waited for some seconds at most."""
    end = time.monotonic() + WAIT
    while (lock := _locked(folder)) is _TAKEN and time.monotonic() < end:
        time.sleep(0.01)
    try:
        yield
    finally:
        _let_go(lock)


_TAKEN = -1
_NONE = -2


def _locked(path: Path) -> int:
    """What holds the lock of a file or folder: a descriptor; or that it is taken, or that there is no such lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _NONE
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return _NONE
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return _TAKEN
    except OSError:  # a file system without
        os.close(handle)
        return _NONE
    return handle


def _let_go(lock: int) -> None:
    if lock >= 0:
        os.close(lock)


def _sweep(above: Path) -> None:
    """Remove the folders of runs that are no more."""
    try:
        with os.scandir(above) as entries:
            found = [Path(e) for e in entries if _NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    except OSError:
        return  # making the folder will say what is wrong
    for path in found:
        if (lock := _locked(path / ALIVE)) >= 0:
            _remove(path, lock)


def _remove(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    _let_go(lock)
    shutil.rmtree(path, ignore_errors=True)  # on network file systems an open file goes when it is closed
