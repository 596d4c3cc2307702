from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from onnxq.data import InputSpec, open_source, rereadable
from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

SPECS = (InputSpec("x", np.dtype(np.float32), (None, 3)), InputSpec("ids", np.dtype(np.int64), (None,)))


def feeds() -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    for i in range(4):
        yield {"x": np.full((i, 3), i + 0.5, np.float32), "ids": np.arange(i)}


def test_what_can_be_read_again_is_left_alone() -> None:
    source = open_source(list(feeds()), SPECS)
    assert rereadable(source) is source


def test_a_generator_is_read_once_and_kept() -> None:
    source = rereadable(open_source(feeds(), SPECS))
    passes = [list(source.samples()) for _ in range(3)]
    for again in passes[1:]:
        assert [where for where, _ in again] == [where for where, _ in passes[0]]
        for (_, first), (_, second), wanted in zip(passes[0], again, feeds(), strict=True):
            for name, array in wanted.items():
                assert first[name].dtype == second[name].dtype == array.dtype
                np.testing.assert_array_equal(first[name], array)
                np.testing.assert_array_equal(second[name], array)


def test_without_it_there_is_no_second_pass() -> None:
    source = open_source(feeds(), SPECS)
    list(source)
    with pytest.raises(DataError, match="only once"):
        list(source)
