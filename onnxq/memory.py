"""An amount of memory, as --memory gives it, and what of it is left for tensors."""

from __future__ import annotations

import re

from onnxq.errors import RecipeError

UNITS = {
    "": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate(("", "K", "M", "G", "T"))},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate(("K", "M", "G", "T"), 1)},
}
"""Unit -> bytes, in capitals but for the i."""

RESERVED = 400_000_000
"""Bytes that Python, the libraries and the graph take, whatever the model's weights."""


def parse_bytes(text: str) -> int:
    """The bytes of a text as 4GB, 512 MiB or 1000000; units count in thousands, with an i in 1024s.

    Raises:
        RecipeError: it is no such text, or no more than nothing.
    """
    units = {unit.upper(): size for unit, size in UNITS.items()}
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in units or not float(found[1]):
        raise RecipeError(f"the amount of memory {text!r} cannot be read", "Give it as 4GB, 512MiB or in bytes.")
    return int(float(found[1]) * units[found[2].upper()])


def for_tensors(memory: int) -> int:
    """What is left of so many bytes for weights and tensors; of little memory a quarter, though it is more then."""
    return max(memory - RESERVED, memory // 4)
