"""Feeds from Python objects: iterables, callables, and readers as ONNX Runtime's calibration takes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, cast

import numpy as np

from onnxq.data.source import Sample, Source
from onnxq.errors import DataError

if TYPE_CHECKING:
    from onnxq.data.feeds import InputSpec


def open_object(source: object, inputs: tuple[InputSpec, ...], name: str = "") -> Source:
    """An iterable of feeds, a callable that returns one, or an object with `get_next()` (and `rewind()`).

    `name` is what messages call it; it may know a name of its own.

    Raises:
        DataError: the object is none of these. Reading raises it for a second pass over what gives only one.
    """
    name = name or getattr(source, "__name__", type(source).__name__)
    get_next, rewind = getattr(source, "get_next", None), getattr(source, "rewind", None)
    start: Callable[[], Iterable[object]]
    if isinstance(source, Mapping | np.ndarray | bytes | type):
        raise DataError(f"{name}: is one value, not an iterable of feeds", "Give a list of dicts: [{'x': array}, ...].")
    if callable(get_next):
        start = _once(lambda: iter(get_next, None), rewind if callable(rewind) else None, name)
    elif isinstance(source, Iterator):
        start = _once(lambda: source, None, name)
    elif hasattr(source, "__iter__") or hasattr(source, "__getitem__"):
        start = lambda: iter(cast("Iterable[object]", source))  # noqa: E731  one of four ways to begin a pass
    elif callable(source):
        start = source
    else:
        raise DataError(f"{name}: is not an iterable of feeds", "Give a list, a generator, a callable or a path.")

    def read() -> Iterator[Sample]:
        feeds = start()
        if isinstance(feeds, Mapping) or not hasattr(feeds, "__iter__"):
            says = f"{name}: gave a value of type {type(feeds).__name__}, not an iterable of feeds"
            raise DataError(says, "Yield the feeds, or return a list of dicts.")
        for i, feed in enumerate(feeds):
            yield f"{name}, sample {i}", feed

    once = isinstance(source, Iterator) or (callable(get_next) and not callable(rewind))
    return Source(name, inputs, read, None if callable(get_next) else _length(source), once=once)


def _once(
    start: Callable[[], Iterable[object]], rewind: Callable[[], object] | None, name: str
) -> Callable[[], Iterable[object]]:
    """Begin the only pass, or rewind before each further one: none may go on where the last one left."""
    passes = itertools.count()

    def begin() -> Iterable[object]:
        if next(passes):
            if rewind is None:
                hint = "Give a list, or a function that makes a new generator on each call."
                raise DataError(f"{name}: can be read only once and already was", hint)
            rewind()
        return start()

    return begin


def _length(source: object) -> int | None:
    try:
        return len(source) if isinstance(source, Sized) else None
    except (TypeError, NotImplementedError):  # loaders of streams have a __len__ that only raises
        return None
