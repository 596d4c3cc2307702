"""Paths to data: the one that must exist, and the order of a folder's files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator


_POINTER = b"version https://git-lfs"


def existing(text: str) -> Path:
    """The path of a file or folder.

    Raises:
        DataError: there is none.
    """
    path = Path(text)
    try:
        there = path.exists()
    except OSError as error:  # a name that is too long for one
        raise DataError(f"{text}: {error.strerror}", "Check the path.") from error
    if not there:
        hint = "random:N, as random:16, is N random samples." if text == "random" else "Check the path."
        raise DataError(f"{text}: no such file or folder", hint)
    if path.is_file():
        refuse_pointer(path)
    return path


def refuse_pointer(path: Path) -> None:
    """Raise DataError where a file that can be read is only Git LFS's pointer to one."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(_POINTER))
    except OSError:
        return  # who reads it will tell
    if begin == _POINTER:
        raise DataError(f"{path}: is a Git LFS pointer, not the data", "Fetch the file itself with `git lfs pull`.")


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
