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


def parse_shapes(text: str) -> dict[str, Shape]:
    """Read `x:1x3x224x224` or `x:[1,3,224,224]`, several parted by commas or spaces.

    Names may hold colons: the last one parts name and shape.

    Raises:
        RecipeError: an entry is malformed, has an axis below 1 or comes twice.
    """
    shapes: dict[str, Shape] = {}
    for entry in re.split(r"(?:\s*,\s*|\s+)(?![^\[]*\])", text.strip()):  # no split at commas inside brackets
        name, _, dims = entry.rpartition(":")
        if not name or not re.fullmatch(r"[0-9]+(x[0-9]+)*|\[\s*([0-9]+(\s*,\s*[0-9]+)*)?\s*\]", dims):
            raise RecipeError(f"shape {entry!r} is not NAME:SHAPE", "Write x:1x3x224x224 or x:[1,3,224,224].")
        if name in shapes:
            raise RecipeError(f"shape of {name!r} is given twice", "Keep one of them.")
        shapes[name] = tuple(int(dim) for dim in re.findall(r"[0-9]+", dims))
        if 0 in shapes[name]:
            raise RecipeError(f"shape {entry!r} has an axis of length 0", "Every axis must be 1 or more.")
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
            raise RecipeError(f"shape given for {name!r}, which is no input of the model", hint)
    given = [spec for spec in inputs if spec.name in shapes]
    for spec in given:
        try:
            check_shape(shapes[spec.name], spec, "shapes")
        except DataError as err:
            raise RecipeError(err.message, "Give a shape that the model's input allows.") from err
    return tuple(replace(spec, shape=shapes.get(spec.name, spec.shape)) for spec in inputs)
