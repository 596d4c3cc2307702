"""Multiply-accumulates of one run of a layer, by the sizes of what it reads and writes.

A size that is no number, as of a dimension that is open, counts as 1; so do those of a shape that is not known, None.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Sizes = Sequence[object]


def convolution(weight: Sizes, image: Sizes | None) -> int:
    """All of the weight, [O, I/g, ...], at each pixel.

    Args:
        weight: its shape.
        image: [N, C, ...] of what it makes; of a transposed one of what it reads.
    """
    return count(weight) * count(() if image is None else (image[0], *image[2:]))


def product(weight: Sizes, made: Sizes | None, *, transposed: bool = False) -> int:
    """For each number made a sum as long as the weight, [..., K, N], has rows, [N, K] where `transposed`.

    Args:
        weight: the shape of the second operand; [K] has no columns.
        made: the shape of the result; None: one row.
        transposed: whether the weight is stored so.
    """
    rows = weight[-1] if transposed else weight[-2:][0]
    columns = weight[:1] if transposed else weight[-1:] if len(weight) > 1 else ()
    return count(columns if made is None else made) * count((rows,))


def recurrent(source: Sizes | None, weights: Iterable[Sizes]) -> int:
    """All of W [directions, gates, inputs] and R [directions, gates, hidden] at each step of each sequence."""
    return count((source or ())[:2]) * sum(map(count, weights))


def count(shape: Sizes) -> int:
    """Numbers in a tensor of this shape."""
    return prod(size if isinstance(size, int) else 1 for size in shape)
