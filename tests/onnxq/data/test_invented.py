from __future__ import annotations

import numpy as np
import pytest
from data_samples import F32, I32, X, fails

from onnxq.data import InputSpec, open_source
from onnxq.errors import DataError


def test_random_feeds_are_the_same_each_time_and_normal() -> None:
    mask, k = InputSpec("mask", np.dtype(bool), (None, 64)), InputSpec("k", I32, ())
    specs = [InputSpec("x", F32, ("N", "h", 64)), mask, k]
    source = open_source("random:3", specs, shapes={"x": (2, 64, 64)})
    first, second = list(source), list(source)
    assert source.length == 3
    assert [feed["x"].shape for feed in first] == [(2, 64, 64)] * 3
    assert first[0]["mask"].shape == (1, 64)
    assert {feed["k"].dtype for feed in first} == {I32}
    assert not np.array_equal(first[0]["x"], first[1]["x"])
    for one, two in zip(first, second, strict=True):
        assert all(np.array_equal(one[name], two[name]) for name in one)
    sample = np.concatenate([feed["x"].ravel() for feed in first])  # 24576 values: 5 sigma below
    assert abs(sample.mean()) < 5 / np.sqrt(sample.size)
    assert abs(sample.var() - 1) < 5 * np.sqrt(2 / sample.size)
    assert set(np.unique(first[0]["mask"])) == {False, True}
    assert set(np.unique([feed["k"] for feed in source])) <= {0, 1}


def test_random_needs_the_dynamic_axes() -> None:
    with fails(DataError, "'x' has dynamic axes beyond the batch: [N, 3, h, ?]", "--shapes x:1x3xNxN"):
        open_source("random:2", [InputSpec("x", F32, ("N", 3, "h", None))])
    with fails(DataError, "'x' has no known rank", "--shapes x:"):
        open_source("random:2", [InputSpec("x", F32, None)])
    with fails(DataError, "'x' is text, not numeric"):
        list(open_source("random:2", [InputSpec("x", np.dtype(object), (1,))]))


@pytest.mark.parametrize("text", ["random:", "random:0", "random:-1", "random:ten"])
def test_random_needs_a_count(text: str) -> None:
    with fails(DataError, text, "is not a number of samples", "random:N"):
        open_source(text, [X])
