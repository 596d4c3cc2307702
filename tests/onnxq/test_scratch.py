"""Temporary folders go with their maker, or with the next run where it was killed."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING

from onnxq import scratch
from onnxq.scratch import Scratch, alone

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

KILLED = """
import os, pathlib, signal, sys
from onnxq.scratch import Scratch
held = [Scratch(pathlib.Path(sys.argv[1])), Scratch()]
(held[0].path / "half written").write_text("x")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_goes_with_what_it_was_made_for(tmp_path: Path) -> None:
    with Scratch(tmp_path) as folder:
        (folder / "x").write_text("x")
        assert folder.parent == tmp_path
        assert folder.name.startswith(".onnxq-scratch-")
    assert not list(tmp_path.iterdir())
    held = Scratch(tmp_path)
    assert list(tmp_path.iterdir()) == [held.path]
    del held
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_folders_of_killed_runs_go_and_those_of_living_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, output = tmp_path / "tmp", tmp_path / "out"
    temporary.mkdir()
    output.mkdir()
    mine = [
        output / name for name in (".onnxq-mine.txt", "onnxq-results", "onnxq-scratch-mine", ".onnxq-scratch-4.1.1")
    ]
    for path in mine:
        path.mkdir()
    env = os.environ | {"TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(output)], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(temporary.iterdir())) == 1
    assert len(list(output.iterdir())) == 1 + len(mine)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with Scratch() as one, Scratch(output) as other, Scratch(output) as third:
        assert list(temporary.iterdir()) == [one]
        assert sorted(output.iterdir()) == sorted([other, third, *mine])


def test_only_one_at_a_time_is_alone(tmp_path: Path) -> None:
    inside: list[str] = []

    def other() -> None:
        with alone(tmp_path):
            inside.append("other")

    thread = threading.Thread(target=other)
    with alone(tmp_path):
        thread.start()
        time.sleep(0.05)
        inside.append("first")
    thread.join()
    assert inside == ["first", "other"]


def test_where_there_are_no_locks_nothing_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "_locked", lambda _: -2)
    stale = tmp_path / ".onnxq-scratch-abcdefgh"
    stale.mkdir()
    with alone(tmp_path), Scratch(tmp_path) as folder:
        assert sorted(tmp_path.iterdir()) == sorted([stale, folder])
    assert list(tmp_path.iterdir()) == [stale]


def test_outputs_can_be_written_into_one_at_once() -> None:
    begun = time.monotonic()
    with Scratch() as folder, Scratch(folder) as inner:
        assert inner.parent == folder
        with alone(folder):
            assert time.monotonic() - begun < scratch.WAIT  # the folder's own lock is not waited for
