"""Shapes that the user gives for the model's inputs, on the command line and in Python."""

from __future__ import annotations

import re
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

from onnxq.data.feeds import check_shape
from onnxq.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxq.data.feeds import InputSpec, Shape


_SHAPE = r"[0-9]+(?:x[0-9]+)*|\[\s*(?:[0-9]+(?:\s*,\s*[0-9]+)*)?\s*\]"
_ENTRY = re.compile(rf"(.+?):({_SHAPE})(\s*,\s*|\s+|$)", re.DOTALL)
_BETWEEN = re.compile(r"(?:\s*,\s*|\s+)(?![^\[]*\])")  # no comma inside brackets
_BROKEN = re.compile(r"(.*:[-+?*\[0-9][^:/]*)?", re.DOTALL)  # no part of a name, but an entry whose shape is malformed


def parse_shapes(text: str) -> dict[str, Shape]:
    """Read `x:1x3x224x224` or `x:[1,3,224,224]`, several parted by commas or spaces.

    An entry ends at its shape, so names may hold blanks, commas and colons: `my input:1x3, b, c:[2]` are two.

    Raises:
        RecipeError: an entry is malformed, has an axis below 1 or comes twice.
    """
    shapes: dict[str, Shape] = {}
    rest, more = text.strip(), True
    while more:
        entry = _ENTRY.match(rest)
        parts = _BETWEEN.split(rest) if entry is None else _BETWEEN.split(entry[1])[:-1]
        broken = next((part for part in parts if _BROKEN.fullmatch(part)), None)
        if entry is None or broken is not None:
            says = f"shape {rest if broken is None else broken!r} is not NAME:SHAPE"
            raise RecipeError(says, "Write x:1x3x224x224 or x:[1,3,224,224].")
        name, shape = entry[1], tuple(int(dim) for dim in re.findall(r"[0-9]+", entry[2]))
        if name in shapes:
            raise RecipeError(f"shape of {name!r} is given twice", "Keep one of them.")
        if 0 in shape:
            raise RecipeError(f"shape '{name}:{entry[2]}' has an axis of length 0", "Every axis must be 1 or more.")
        shapes[name] = shape
        rest, more = rest[entry.end() :], bool(entry[3])
    return shapes


def apply_shapes(inputs: Sequence[InputSpec], shapes: Mapping[str, Shape]) -> tuple[InputSpec, ...]:
    """The inputs with the shapes the user gave in place of the declared ones.

    Raises:
        RecipeError: a shape is for no input of the model, or does not fit what the model declares.
    """
    names = [spec.name for spec in inputs]
    for name in shapes:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The model's inputs are {', '.join(map(repr, names))}."
            if _BETWEEN.search(name) or ":" in name:
                hint += " If these are several entries, one of them is malformed: x:1x3,y:2x4."
            raise RecipeError(f"shape given for {name!r}, which is no input of the model", hint)
    given = [spec for spec in inputs if spec.name in shapes]
    for spec in given:
        try:
            check_shape(shapes[spec.name], spec, "shapes")
        except DataError as err:
            raise RecipeError(err.message, "Give a shape that the model's input allows.") from err
    return tuple(replace(spec, shape=shapes.get(spec.name, spec.shape)) for spec in inputs)
