"""What the fields of a recipe and its rules may hold, by their annotations."""

from __future__ import annotations

from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from onnxq.errors import RecipeError

_KINDS: dict[str, tuple[str, type]] = {
    "str": ("text in quotes", str),
    "float": ("a number", Real),
    "int": ("a whole number", Integral),
    "bool": ("true or false", bool),
    "tuple[str, ...]": ("a list of texts", str),
    "tuple[Rule, ...]": ("a tuple of rules, as (onnxq.Rule(nodes='/head/*', quantize=False),)", object),
}
"""Annotation of a field -> what it takes, in words, and the type of it or of its items."""


def check_kinds(holder: Any) -> None:  # noqa: ANN401  any dataclass with such fields
    """Raise RecipeError for the first field that holds another type than its annotation says."""
    for field in fields(holder):
        value, annotation = getattr(holder, field.name), str(field.type)
        if value is None and annotation.endswith("None"):
            continue
        words, kind = _KINDS[annotation.removesuffix(" | None")]
        several = annotation.startswith("tuple")
        items = value if several and isinstance(value, list | tuple) else (value,)
        if several == (items is value) and all(_is(item, kind) for item in items):
            continue
        raise RecipeError(f"{field.name} = {value!r} has the wrong type", f"Give {words}.")


def _is(value: object, kind: type) -> bool:
    return isinstance(value, kind) and (kind in (bool, object) or not isinstance(value, bool))
