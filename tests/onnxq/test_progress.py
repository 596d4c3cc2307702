"""What a terminal shows of a run while it goes on."""

from __future__ import annotations

import io
import sys

import pytest

from onnxq import progress


class Terminal(io.StringIO):
    """Takes what is written, and says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def terminal_of(columns: int, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Stands for stderr from now on; pytest puts its own there between fixtures and test."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in {"COLUMNS": str(columns), "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    return terminal


def test_a_long_name_leaves_the_bar_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(80, monkeypatch)
    with progress.shown(quiet=False) as monitor:
        monitor.stage("Observing 18 tensors on /srv/data/" + "very/long/" * 20 + "calib.npz", 2)
        monitor.advance()
        monitor.warn("a warning")
    text = terminal.getvalue()
    *_, last = (line for line in text.splitlines() if "50%" in line)
    assert "Observing 18 tensors" in last
    assert "calib.npz" in last
    assert last.count("\N{BOX DRAWINGS HEAVY HORIZONTAL}") > 6
    assert "0:00:00" in last
    assert "warning: a warning" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_of_names_are_written_out(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    said = terminal_of(100, monkeypatch) if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    with progress.shown(quiet=False) as monitor:
        monitor.warn("tensor x\x1b[31m\n is odd, \N{GREEK SMALL LETTER ALPHA} is not")
    assert "warning: tensor x\\x1b[31m\\n is odd, \N{GREEK SMALL LETTER ALPHA} is not" in said.getvalue()
