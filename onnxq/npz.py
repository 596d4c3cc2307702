"""Named arrays in an .npz without pickle, whose bytes are a function of the arrays alone."""

from __future__ import annotations

import io
import zipfile
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import numpy.typing as npt


def write(path: str | os.PathLike[str] | IO[bytes], arrays: Mapping[str, npt.ArrayLike]) -> None:
    """Write arrays in the order given."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in arrays.items():
            entry = zipfile.ZipInfo(f"{key}.npy")  # its fixed date keeps the bytes the same
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as f:
                np.lib.format.write_array(f, np.asarray(value), allow_pickle=False)


def read(path: str | os.PathLike[str] | IO[bytes]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz, every checksum looked at: np.load stops before the end of a member, where it would be.

    Raises:
        Exception: of many types, where the file is damaged; numpy, zipfile and zlib have their own.
    """
    with zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): io.BytesIO(archive.read(name)) for name in archive.namelist()}
    return {name: np.lib.format.read_array(member, allow_pickle=False) for name, member in members.items()}


def first_name(path: str | os.PathLike[str]) -> str:
    """Name of the first array; empty where there is none, or the file is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()[0].removesuffix(".npy") if archive.namelist() else ""
    except (OSError, zipfile.BadZipFile):
        return ""
