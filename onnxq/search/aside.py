"""Results written aside as they come, so that a run that was stopped goes on where it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxq.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path

    from onnxq.monitor import Monitor


@dataclass(frozen=True)
class Aside:
    """A file of JSON lines: the key first, then one [name, result] a line, each written through at once.

    Attributes:
        path: the file; None keeps nothing.
        key: a digest of all that the results depend on. Results under another key are dropped.
        known: name -> result, of an earlier run too.
    """

    path: Path | None
    key: str
    known: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None, key: str, monitor: Monitor) -> Aside:
        """Read what an earlier run left, and begin a new file when it left nothing of use.

        Raises:
            OutputError: the file cannot be read or written.
        """
        if path is None:
            return cls(None, key)
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
            known = _parsed(lines, key)
            if known is None and lines:
                monitor.warn(f"{path} is of another model, recipe or data: beginning anew")
            whole = "".join(json.dumps(item) + "\n" for item in (key, *(known or {}).items()))
            path.write_text(whole, encoding="utf-8")  # without a line that was cut short
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written: {error.strerror}", "It holds results as they come."
            ) from error
        return cls(path, key, known or {})

    def add(self, name: str, result: Any) -> None:  # noqa: ANN401  whatever JSON holds
        """Keep a result."""
        self.known[name] = result
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, result]) + "\n")

    def done(self) -> None:
        """Drop the file: what it was kept for is finished."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _parsed(lines: list[str], key: str) -> dict[str, Any] | None:
    """The results under this key; None where the lines are not of it. A last line cut short is left out."""
    found: dict[str, Any] = {}
    for index, line in enumerate(lines):
        try:
            item = json.loads(line)
        except (ValueError, RecursionError):
            break
        if index == 0 and item != key:
            return None
        if index == 0:
            continue
        if not (isinstance(item, list) and len(item) == 2):
            break
        found[str(item[0])] = item[1]
    return found if lines else None
