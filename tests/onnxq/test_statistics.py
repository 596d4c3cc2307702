"""Statistics add up exactly, come back from a file as they were, and belong to one model."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import StatisticsError
from onnxq.histogram import Histogram
from onnxq.statistics import Statistics, merge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from onnxq.statistics import Part

SIZES = st.lists(st.integers(1, 5), min_size=2, max_size=3).map(tuple)


@st.composite
def parts(draw: st.DrawFn) -> Statistics:
    """What a shard of 0 or more samples may have given."""
    if draw(st.integers(0, 5)) == 0:
        return Statistics("m")
    values = st.lists(st.floats(width=32), max_size=6)
    size = draw(SIZES)
    return Statistics(
        "m",
        {name: Histogram.of(np.array(draw(values), np.float32)) for name in ("a", "b")},
        draw(st.integers(1, 9)),
        draw(st.integers(0, 2**64 - 1)),
        {"x": (size, tuple(d + draw(st.integers(0, 2)) for d in size))},
        draw(st.dictionaries(st.sampled_from("ab"), st.sampled_from(["one", "two"]))),
    )


@given(parts(), parts(), parts())
def test_addition_is_exact(a: Statistics, b: Statistics, c: Statistics) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Statistics("m") == a == Statistics("m") + a


def test_what_a_sum_holds() -> None:
    ones, twos = Histogram.of(np.ones(3, np.float32)), Histogram.of(np.full(2, -2, np.float32))
    a = Statistics("m", {"t": ones}, 3, 2**64 - 1, {"x": ((1, 8), (4, 8))}, {"t": "s2"})
    b = Statistics("m", {"t": twos}, 2, 5, {"x": ((2, 3), (2, 3)), "y": ((7,), (7,))}, {"t": "s1"})
    total = a + b
    assert total.tensors["t"] == Histogram.of(np.array([1, 1, 1, -2, -2], np.float32))
    assert (total.samples, total.seen) == (5, 4)
    assert total.shapes == {"x": ((1, 3), (4, 8)), "y": ((7,), (7,))}
    assert total.nonfinite == {"t": "s1"}


def test_sums_that_mean_nothing_are_refused() -> None:
    a = Statistics("m", {"a": Histogram.empty()}, 1)
    with pytest.raises(StatisticsError, match="different models"):
        _ = a + replace(a, model="n")
    with pytest.raises(StatisticsError, match="'b' was observed in only one"):
        _ = a + Statistics("m", {"a": Histogram.empty(), "b": Histogram.empty()}, 1)


def test_they_belong_to_one_model() -> None:
    Statistics("digest").check_model("digest")
    with pytest.raises(StatisticsError, match="another model") as error:
        Statistics("digest").check_model("other")
    assert "onnxq calibrate" in error.value.hint


@given(st.lists(parts(), min_size=1, max_size=4))
def test_files(tmp_path_factory: pytest.TempPathFactory, shards: list[Statistics]) -> None:
    folder = tmp_path_factory.getbasetemp()
    total = reduce(add, shards)
    total.save(folder / "s.npz")
    assert Statistics.load(folder / "s.npz") == total
    reduce(add, shards[::-1]).save(folder / "t.npz")
    assert (folder / "t.npz").read_bytes() == (folder / "s.npz").read_bytes()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "s.npz"
    histogram = Histogram.of(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    Statistics("m", {"a/b:0 c": histogram}, 4, 9, {"x": ((1,), (2,))}).save(path)
    return path


def refused(path: Path, *says: str) -> None:
    with pytest.raises(StatisticsError) as error:
        Statistics.load(path)
    assert all(word in str(error.value) for word in (str(path), "onnxq calibrate", *says)), str(error.value)


def test_the_file_holds_plain_arrays(saved: Path) -> None:
    with np.load(saved, allow_pickle=False) as file:
        assert {file[name].dtype.kind for name in file.files} <= {"u", "i", "f"}


def test_files_that_are_none(saved: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none.npz", "not a file")
    refused(tmp_path, "not a file")
    for content in (b"", b"text", b"\x93NUMPY", bytes(1000)):
        saved.write_bytes(content)
        refused(saved)
    np.save(tmp_path / "x.npy", np.ones(3))
    refused(tmp_path / "x.npy")
    np.savez(saved, image=np.ones(3), other=np.ones(2))
    refused(saved, "'image', 'other'", "--data")


def test_a_file_cut_anywhere_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        saved.write_bytes(whole[:length])
        refused(saved)


def test_a_damaged_file_is_refused_or_the_same(saved: Path) -> None:
    whole, refusals = saved.read_bytes(), 0
    before = Statistics.load(saved)
    places = range(0, len(whole), 3)
    for at in places:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        saved.write_bytes(damaged)
        try:
            assert Statistics.load(saved) == before
        except StatisticsError:
            refusals += 1
    assert refusals > len(places) * 0.8  # the rest are dates and the like


def rewritten(path: Path, **arrays: npt.NDArray[Any]) -> None:
    with np.load(path) as file:
        known = {name: file[name] for name in file.files}
    np.savez(path, **(known | arrays))


def test_nothing_is_unpickled(saved: Path) -> None:
    rewritten(saved, **{"0.counts": np.array([print], object)})
    refused(saved, "allow_pickle=False")


def test_another_format_and_missing_parts(saved: Path) -> None:
    good = saved.read_bytes()
    with np.load(saved) as file:
        meta = file["meta"].tobytes()
    rewritten(saved, meta=np.frombuffer(meta.replace(b'"format": 1', b'"format": 9'), np.uint8))
    refused(saved, "format 9")
    saved.write_bytes(good)
    rewritten(saved, **{"0.bounds": np.ones(3)})
    refused(saved)
    saved.write_bytes(good)
    rewritten(saved, meta=np.frombuffer(b"[]", np.uint8))
    refused(saved)


@pytest.mark.parametrize("form", [str, lambda path: path, Statistics.load], ids=["str", "Path", "Statistics"])
def test_one_file_is_no_sequence_of_letters(form: Callable[[Path], Part], tmp_path: Path) -> None:
    one = Statistics("m", {"t": Histogram.of(np.ones(3, np.float32))}, 1, 7)
    one.save(tmp_path / "s.npz")
    assert merge(form(tmp_path / "s.npz")) == merge([form(tmp_path / "s.npz")]) == one
    with pytest.raises(StatisticsError, match=r"^none\.npz is not a file"):
        merge("none.npz")
