"""The command line's Monitor: progress bars on stderr with rich, plain lines when stderr is no terminal."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onnxq.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def shown(*, quiet: bool) -> Iterator[Monitor]:
    """A monitor that shows stages and warnings on stderr while the block runs; warnings alone when quiet."""
    if quiet or not sys.stderr.isatty():
        yield Monitor(stage=(lambda *_: None) if quiet else _say_stage, warn=_say_warning)
        return
    from rich.console import Console  # noqa: TID251  behind this wall, and only for terminals
    from rich.markup import escape  # noqa: TID251  likewise
    from rich.progress import BarColumn, Progress, SpinnerColumn, TimeElapsedColumn, TimeRemainingColumn  # noqa: TID251

    console = Console(stderr=True)
    text, _, percentage, *_ = Progress.get_default_columns()
    with Progress(
        SpinnerColumn(),
        text,
        BarColumn(_BAR),
        percentage,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as bars:
        yield _bar_monitor(bars, console, escape)


def _bar_monitor(bars: Progress, console: Console, escape: Callable[[str], str]) -> Monitor:  # type: ignore[name-defined]  # noqa: F821  rich stays behind the if
    tasks: list[int] = []

    def stage(text: str, total: int | None) -> None:
        if tasks:
            bars.update(tasks[-1], total=1, completed=1)
        shown = _cut(_plain(text), console.width - _BESIDE)
        tasks.append(bars.add_task(escape(shown), total=total))  # names of files and tensors may hold [brackets]

    def advance() -> None:
        bars.advance(tasks[-1])

    return Monitor(
        stage, advance, lambda text: console.print(f"[yellow]warning:[/] {escape(_plain(text))}", highlight=False)
    )


_BAR = 16
_BESIDE = _BAR + 24
"""Columns of a bar, and of all that stands in its line but the text: spinner, percentage, times and blanks."""


def _cut(text: str, room: int) -> str:
    """The text in so many characters; where it is longer, its beginning and end, as those of a path tell most."""
    if len(text) <= room:
        return text
    room = max(room, 16)
    return f"{text[: room * 2 // 3]}…{text[-(room - room * 2 // 3 - 1) :]}"


def _plain(text: str) -> str:
    """Without control characters, which a model's names may hold: a terminal would heed them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _say_stage(text: str, _: int | None) -> None:
    print(f"{_plain(text)} ...", file=sys.stderr)  # noqa: T201  this is the command line


def _say_warning(text: str) -> None:
    print(f"warning: {_plain(text)}", file=sys.stderr)  # noqa: T201  this is the command line
