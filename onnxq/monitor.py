"""Monitor: how a long run tells what it is doing. The command line shows it; the Python API logs warnings."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("onnxq")


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Monitor:
    """Callbacks of a run.

    Attributes:
        stage: (what begins now, how many advances it will make or None).
        advance: one unit of the stage is done.
        warn: something the user should know.
        spent: (part of the stage, seconds that went into it); told from any thread, see `onnxq.timing`.
    """

    stage: Callable[[str, int | None], None] = _nothing
    advance: Callable[[], None] = _nothing
    warn: Callable[[str], None] = _log.warning
    spent: Callable[[str, float], None] = _nothing


QUIET = Monitor()
"""Says nothing but warnings, through the logger "onnxq"."""

SILENT = Monitor(warn=_nothing)
"""Says nothing: for trials, whose warnings the real run repeats."""
