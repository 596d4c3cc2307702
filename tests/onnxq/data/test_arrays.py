from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from data_samples import F32, FIXED, I64, IDS, ROWS, X, fails, values

from onnxq.data import InputSpec, open_source
from onnxq.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["npy", "npz", "compressed"])
def test_a_stack_gives_one_row_each_with_its_batch_axis_and_again(
    tmp_path: Path, kind: str, order: Literal["C", "F"]
) -> None:
    path = tmp_path / ("rows.npy" if kind == "npy" else "rows.npz")
    rows = np.asarray(ROWS, order=order)
    if kind == "npy":
        np.save(path, rows)
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(path, x=rows)
    source = open_source(str(path), [X])
    assert source.name == str(path)
    assert source.length == 5
    for _ in range(2):
        assert values(source) == [[row.tolist()] for row in ROWS]


def test_a_stack_of_two_inputs_keeps_them_together(tmp_path: Path) -> None:
    ids = np.arange(10, dtype=np.int32).reshape(5, 2)
    np.savez(tmp_path / "d.npz", ids=ids, x=ROWS)
    feeds = list(open_source(tmp_path / "d.npz", [X, IDS]))
    assert [list(feed) for feed in feeds] == [["x", "ids"]] * 5
    assert feeds[3]["ids"].tolist() == [[6, 7]]
    assert feeds[3]["ids"].dtype == I64
    assert feeds[3]["x"].tolist() == [[9.0, 10.0, 11.0]]


def test_a_static_batch_is_cut_to_its_size(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS[:4])
    source = open_source(tmp_path / "d.npy", [FIXED])
    assert source.length == 2
    assert values(source) == [ROWS[:2].tolist(), ROWS[2:4].tolist()]


def test_an_array_of_the_static_shape_is_one_feed(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS[:2])
    assert values(open_source(tmp_path / "d.npy", [FIXED])) == [ROWS[:2].tolist()]


def test_a_stack_that_the_static_batch_does_not_divide_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS)
    with fails(DataError, "d.npy", "'x' has 5 samples, no multiple of the batch of 2"):
        open_source(tmp_path / "d.npy", [FIXED])


def test_feeds_stacked_along_an_axis_of_their_own(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ROWS[:4].reshape(2, 2, 3), t=np.array([7, 8], np.int64))
    feeds = list(open_source(tmp_path / "d.npz", [FIXED, InputSpec("t", I64, ())]))
    assert [feed["t"].tolist() for feed in feeds] == [7, 8]
    assert [feed["t"].shape for feed in feeds] == [(), ()]
    assert feeds[1]["x"].tolist() == ROWS[2:4].tolist()


def test_a_stack_for_an_input_of_unknown_rank(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS)
    assert values(open_source(tmp_path / "d.npy", [InputSpec("x", F32, None)])) == [[r.tolist()] for r in ROWS]


def test_given_shapes_set_the_batch_of_a_stack(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS[:4])
    source = open_source(tmp_path / "d.npy", [X], shapes={"x": (4, 3)})
    assert values(source) == [ROWS[:4].tolist()]


def test_a_sample_without_batch_axis_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS[0])
    with fails(DataError, "d.npy", "'x' has shape [3]; the model takes [N, 3]", "array[np.newaxis]"):
        open_source(tmp_path / "d.npy", [X])


def test_stacks_of_different_lengths_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ROWS, ids=np.zeros((4, 2), np.int64))
    with fails(DataError, "d.npz", "'x' 5, 'ids' 4"):
        open_source(tmp_path / "d.npz", [X, IDS])


def test_an_empty_stack_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS[:0])
    with fails(DataError, "d.npy: holds no samples"):
        list(open_source(tmp_path / "d.npy", [X]))


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_a_folder_is_read_in_natural_order(tmp_path: Path, suffix: str) -> None:
    for i in (10, 9, 1):
        path, row = tmp_path / f"s{i}.{suffix}", np.full((1, 3), i, np.float32)
        if suffix == "npy":
            np.save(path, row)
        else:
            np.savez(path, x=row)
    (tmp_path / "labels.txt").write_text("1 2 3")
    (tmp_path / f"._s1.{suffix}").write_text("left by a file manager")
    source = open_source(tmp_path, [X])
    assert source.length == 3
    assert values(source) == [[[i] * 3] for i in (1.0, 9.0, 10.0)]
    assert len(list(source)) == 3


def test_a_file_of_a_folder_is_one_feed_whatever_its_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ROWS)
    assert values(open_source(tmp_path, [X])) == [ROWS.tolist()]


def test_a_bad_file_of_a_folder_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ROWS)
    np.savez(tmp_path / "b.npz", x=ROWS[:, :2])
    feeds = iter(open_source(tmp_path, [X]))
    assert next(feeds)["x"].shape == (5, 3)
    with fails(DataError, "b.npz: input 'x' has shape [5, 2]; the model takes [N, 3]", "axis 1 is 2, not 3"):
        next(feeds)
    (tmp_path / "b.npz").unlink()
    (tmp_path / "b.npz").symlink_to(tmp_path / "gone")
    with fails(DataError, "b.npz: cannot be read", "No such file"):
        list(open_source(tmp_path, [X]))


def test_folders_without_data_are_refused(tmp_path: Path) -> None:
    with fails(DataError, str(tmp_path), "*.npz, *.npy", "test_data_set_*", "it is empty"):
        open_source(tmp_path, [X])
    (tmp_path / "cat.gif").write_bytes(b"")
    with fails(DataError, str(tmp_path), "*.npz, *.npy", "test_data_set_*", "'cat.gif'"):
        open_source(tmp_path, [X])


def test_a_folder_of_both_kinds_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    np.savez(tmp_path / "a.npz", x=ROWS)
    with fails(DataError, str(tmp_path), "both .npz and .npy"):
        open_source(tmp_path, [X])


def test_a_folder_of_npy_for_two_inputs_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    with fails(DataError, "a.npy", "'x', 'ids'"):
        open_source(tmp_path, [X, IDS])
