"""Paths to data: the one that must exist, and the order of a folder's files."""

from __future__ import annotations

import re
from pathlib import Path

from onnxq.errors import DataError


def existing(text: str) -> Path:
    """The path of a file or folder.

    Raises:
        DataError: there is none.
    """
    path = Path(text)
    if not path.exists():
        raise DataError(f"{text}: no such file or folder", "Check the path.")
    return path


def natural(path: Path) -> tuple[list[str | int], str]:
    """The key that orders by name with numbers as numbers: a2 before a10."""
    parts = re.split(r"([0-9]+)", path.name)  # the odd ones are the numbers
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name
