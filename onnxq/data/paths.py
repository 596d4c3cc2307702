"""Paths to data: the one that must exist, and the order of a folder's files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


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


def plain_files(folder: Path) -> Iterator[Path]:
    """Every file in the folder and the folders in it; what is hidden is left out, and links to folders."""
    for inside, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(inside, name) for name in names if not name.startswith("."))


def with_suffix(text: str, suffixes: Collection[str]) -> list[Path]:
    """The file itself if it has one of the suffixes; of a folder all files that have, in natural order."""
    path = Path(text)
    found = path.iterdir() if path.is_dir() else [path]
    return sorted((p for p in found if p.suffix.lower() in suffixes and not p.name.startswith(".")), key=natural)
