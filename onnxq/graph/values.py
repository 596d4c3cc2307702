"""What is known of a value: its shape, size and element type."""

from __future__ import annotations

import math
from functools import cache

import onnx_ir as ir  # noqa: TID251  this is the wall

Dim = int | str | None


def shape_of(value: ir.Value) -> tuple[Dim, ...] | None:
    """Dimensions: int where known, name or None where not; None when even the rank is unknown."""
    if value.const_value is not None:
        return tuple(value.const_value.shape.numpy())
    if value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def size_of(value: ir.Value) -> int | None:
    """Number of elements when every dimension is known."""
    shape = shape_of(value)
    known = [d for d in shape or () if isinstance(d, int)]
    return None if shape is None or len(known) < len(shape) else math.prod(known)


def dtype_of(value: ir.Value) -> str | None:
    """Numpy's name of the element type ("float32"), or None where unknown or not a tensor."""
    kind = value.dtype if value.const_value is None else value.const_value.dtype
    return None if kind is None or not isinstance(value.type, ir.TensorType | None) else _numpy_name(kind)


@cache
def _numpy_name(kind: ir.DataType) -> str | None:
    """Numpy works its names out anew each time, and passes ask for those of every value many times."""
    try:
        return kind.numpy().name
    except TypeError:
        return None
