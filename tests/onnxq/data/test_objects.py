from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from data_samples import FEEDS, ROWS, X, fails, values

from onnxq.data import open_source
from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Reader:
    """As ONNX Runtime's CalibrationDataReader."""

    def __init__(self) -> None:
        self.at = self.rewinds = 0

    def get_next(self) -> Mapping[str, Any] | None:
        self.at += 1
        return FEEDS[self.at - 1] if self.at <= len(FEEDS) else None

    def rewind(self) -> None:
        self.at, self.rewinds = 0, self.rewinds + 1

    def __len__(self) -> int:
        raise NotImplementedError


def test_a_list_and_a_tuple_give_their_length() -> None:
    for feeds in (FEEDS, tuple(FEEDS)):
        source = open_source(feeds, [X])
        assert source.length == 5
        assert len(list(source)) == len(list(source)) == 5


def test_a_callable_is_called_for_each_pass() -> None:
    def load() -> Iterator[Any]:
        yield from FEEDS

    source = open_source(load, [X])
    assert (source.name, source.length) == ("load", None)
    assert values(source) == values(source) == [[row.tolist()] for row in ROWS]


def test_a_generator_is_read_as_it_goes_and_only_once() -> None:
    drawn = []

    def endless() -> Iterator[Any]:
        for i in itertools.count():
            drawn.append(i)
            yield {"x": np.full((1, 3), i, np.float32)}

    source = open_source(endless(), [X])
    assert drawn == []
    passing = iter(source)
    for i in range(3):
        assert next(passing)["x"][0, 0] == i
        assert len(drawn) <= i + 2
    with fails(DataError, "endless: can be read only once", "a function that makes a new generator"):
        next(iter(source))


def test_a_calibration_data_reader_is_rewound_for_a_second_pass() -> None:
    reader = Reader()
    source = open_source(reader, [X])
    assert (source.name, source.length) == ("Reader", None)
    assert values(source) == [[row.tolist()] for row in ROWS]
    assert reader.rewinds == 0
    next(iter(source))
    assert values(source) == [[row.tolist()] for row in ROWS]
    assert reader.rewinds == 2


def test_a_reader_that_cannot_rewind_is_read_once() -> None:
    class Once:
        def __init__(self) -> None:
            self.get_next = iter([*FEEDS, None]).__next__

    source = open_source(Once(), [X])
    assert len(values(source)) == 5
    with fails(DataError, "Once: can be read only once"):
        list(source)


def test_objects_that_are_no_source_are_refused() -> None:
    for thing, says in [
        (FEEDS[0], "dict: is one value"),
        (ROWS, "ndarray: is one value"),
        (3, "int: is not an"),
    ]:
        with fails(DataError, says, "list"):
            open_source(thing, [X])
    with fails(DataError, "list: holds no samples"):
        list(open_source([], [X]))
    with fails(DataError, "list, sample 1: is of type ndarray, not a mapping"):
        list(open_source([FEEDS[0], ROWS], [X]))
    with fails(DataError, "<lambda>: gave a value of type dict"):
        list(open_source(lambda: FEEDS[0], [X]))
