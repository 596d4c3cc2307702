"""Random feeds, `random:N`: only when written, as their ranges say nothing about real data."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

import numpy as np

from onnxq.data.feeds import show
from onnxq.data.source import Sample, Source
from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.data.feeds import Array, InputSpec, Shape


def open_random(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    """N feeds, the same on every pass and run: floats are standard normal, integers and booleans 0 or 1.

    A dynamic batch axis has length 1.

    Raises:
        DataError: N is no number from 1 up, or an input has other dynamic axes or an unknown rank. Reading raises
            it for an input that is not numeric.
    """
    digits = text.removeprefix("random:")
    if not re.fullmatch(r"0*[1-9][0-9]*", digits):
        raise DataError(f"{text}: {digits!r} is not a number of samples", "Write random:N with N of 1 or more.")
    count = int(digits)
    shapes = {spec.name: _shape(spec) for spec in inputs}

    def read() -> Iterator[Sample]:
        rng = np.random.default_rng(0)  # every pass and every run gives the same feeds
        for i in range(count):
            yield f"{text}, sample {i}", {spec.name: _draw(rng, spec, shapes[spec.name]) for spec in inputs}

    return Source(text, inputs, read, count)


def _shape(spec: InputSpec) -> Shape:
    how = f"Give its shape: --shapes {spec.name}:"
    if spec.shape is None:
        raise DataError(f"random data: input {spec.name!r} has no known rank", f"{how}1x3x224x224 for example.")
    shape = tuple(1 if axis == 0 and not isinstance(d, int) else d for axis, d in enumerate(spec.shape))
    if all(isinstance(dim, int) for dim in shape):
        return cast("Shape", shape)
    filled = "x".join(str(dim) if isinstance(dim, int) else "N" for dim in shape)
    says = f"random data: input {spec.name!r} has dynamic axes beyond the batch: {show(spec.shape)}"
    raise DataError(says, f"{how}{filled} with a number for each N.")


def _draw(rng: np.random.Generator, spec: InputSpec, shape: Shape) -> Array:
    if spec.dtype.kind in "biu":
        return rng.integers(0, 2, shape).astype(spec.dtype)
    if spec.dtype.kind in "fV":
        return rng.standard_normal(shape).astype(spec.dtype)
    kind = "text" if spec.dtype.kind == "O" else spec.dtype
    raise DataError(f"random data: input {spec.name!r} is {kind}, not numeric", "Give real data.")
