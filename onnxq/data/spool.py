"""A second pass over what can be read only once: its samples are kept in a temporary folder during the first."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from onnxq.data.source import Sample, Source

Layout = tuple[str, list[tuple[str, "np.dtype[Any]", tuple[int, ...]]]]
"""Of one sample: where it came from; name, type and shape of each array."""


def rereadable(source: Source) -> Source:
    """The source itself where it can be read again; else one whose first whole pass feeds the later ones."""
    if not source.once:
        return source
    scratch = Scratch()  # goes when nothing can read it any more
    layouts: list[Layout] = []

    def read() -> Iterator[Sample]:
        if layouts:
            yield from (_load(scratch.path / str(i), layout) for i, layout in enumerate(layouts))
            return
        for where, feed in source.samples():
            with (scratch.path / str(len(layouts))).open("wb") as file:
                for array in feed.values():
                    file.write(np.ascontiguousarray(array).tobytes())
            layouts.append((where, [(name, a.dtype, a.shape) for name, a in feed.items()]))
            yield where, feed

    return replace(source, read=read, once=False)


def _load(path: Path, layout: Layout) -> Sample:
    where, arrays = layout
    feed: dict[str, npt.NDArray[Any]] = {}
    raw, start = path.read_bytes(), 0
    for name, dtype, shape in arrays:
        count = int(np.prod(shape, dtype=np.int64))
        feed[name] = np.frombuffer(raw, dtype, count, start).reshape(shape) if count else np.empty(shape, dtype)
        start += count * dtype.itemsize
    return where, feed
