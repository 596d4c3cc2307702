from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa  # noqa: TID251  makes the files
import pytest
from data_samples import F32, IDS, ROWS, X, fails, values
from PIL import Image  # noqa: TID251  likewise
from pyarrow import parquet  # noqa: TID251  likewise

from onnxq.data import InputSpec, label_specs, open_source, with_preprocess
from onnxq.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

CUBE = InputSpec("x", F32, ("N", 2, 3))
CUBES = np.arange(30, dtype=np.float32).reshape(5, 2, 3)


def write(path: Path, rows_in_group: Any = None, **columns: Any) -> Path:  # noqa: ANN401  whatever pyarrow takes
    table = pa.table(columns)
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=rows_in_group)
    else:
        with path.open("wb") as file:
            make = pa.ipc.new_file if path.suffix == ".feather" else pa.ipc.new_stream
            with make(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_each_row_is_a_sample(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, 2, text=list("abcde"), x=ROWS.tolist(), ids=[[i, i + 1] for i in range(5)])
    source = open_source(path, [IDS, X])
    assert [{k: v.tolist() for k, v in feed.items()} for feed in source] == [
        {"ids": [[i, i + 1]], "x": [row.tolist()]} for i, row in enumerate(ROWS)
    ]
    assert len(values(source)) == 5


@pytest.mark.parametrize(
    "column",
    [
        CUBES.tolist(),
        pa.array([cube.ravel() for cube in CUBES]),
        pa.FixedSizeListArray.from_arrays(pa.array(CUBES.ravel()), 6),
        pa.array(CUBES.astype(np.float64).tolist(), pa.large_list(pa.list_(pa.float64()))),
        pa.FixedShapeTensorArray.from_numpy_ndarray(CUBES),
    ],
    ids=["nested", "flat", "fixed", "large", "tensor"],
)
def test_arrays_in_every_form_of_column(tmp_path: Path, column: Any) -> None:  # noqa: ANN401  whatever pyarrow takes
    path = write(tmp_path / "a.parquet", x=column)
    np.testing.assert_array_equal(np.concatenate(values(open_source(path, [CUBE]))), CUBES)


def test_numbers_and_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", x=[1.5, 2.5], label=["cat", "dog"])
    feeds = list(open_source(path, [InputSpec("x", F32, ("N",)), *label_specs(["label"])]))
    assert [(feed["x"].tolist(), str(feed["label"])) for feed in feeds] == [([1.5], "cat"), ([2.5], "dog")]


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("name", ["image", "picture"])
def test_images_in_bytes_and_in_records(tmp_path: Path, record: bool, name: str) -> None:
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    data: list[Any] = [file.getvalue(), b"broken", None]
    if record:
        data = [None if d is None else {"bytes": d, "path": "a.png"} for d in data]
    spec = InputSpec("image", F32, ("N", 3, 4, 4))
    path = write(tmp_path / "a.parquet", **{name: data})
    source = open_source(path, with_preprocess([spec], "layout=NCHW"))
    told: list[DataError] = []
    (feed,) = type(source)(source.name, source.inputs, source.read, bad=told.append)
    np.testing.assert_array_equal(feed["image"][0], array.transpose(2, 0, 1))
    assert [f"row {i}, column '{name}'" in error.message for i, error in enumerate(told, 1)] == [True, True]
    if name == "image":
        with fails(DataError, "column 'image'", "preprocessing is not stated"):
            list(open_source(path, [spec]))


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for name, rows in (("p2.parquet", ROWS[:2]), ("p10.parquet", ROWS[2:])):
        write(tmp_path / name, x=rows.tolist())
    assert values(open_source(tmp_path, [X])) == [[row.tolist()] for row in ROWS]


def test_a_column_that_is_missing_stops_the_run(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", y=ROWS.tolist(), z=[1] * 5)
    source = open_source(path, [X])
    with fails(DataError, "no column for input 'x'; it has 'y', 'z'", "Name the columns"):
        list(type(source)(source.name, source.inputs, source.read, bad=lambda _: None))


@pytest.mark.parametrize(
    ("row", "says"),
    [(None, "is null"), ([1.0, None, 2.0], "a value is null"), ([1.0], "axis 1 is 1, not 3")],
)
def test_a_bad_row_is_named_and_others_are_read(tmp_path: Path, row: Any, says: str) -> None:  # noqa: ANN401
    path = write(tmp_path / "a.parquet", x=[ROWS[0].tolist(), row, ROWS[2].tolist()])
    source = open_source(path, [X])
    with fails(DataError, "a.parquet, row 1", says):
        list(source)
    told: list[DataError] = []
    assert values(type(source)(source.name, source.inputs, source.read, bad=told.append)) == [
        [ROWS[0].tolist()],
        [ROWS[2].tolist()],
    ]
    assert len(told) == 1


def test_ragged_lists_and_words_are_no_arrays(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", x=[[[1.0, 2.0], [3.0]]])
    with fails(DataError, "row 0, column 'x': is no array", "lengths 1 to 2"):
        list(open_source(path, [CUBE]))
    path = write(tmp_path / "b.parquet", x=[["a", "b", "c"]])
    with fails(DataError, "row 0, column 'x'", "string"):
        list(open_source(path, [X]))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, x=np.random.default_rng(0).normal(size=(50, 3)).astype("f4").tolist())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with fails(DataError, name):
        list(open_source(path, [X]))
    path.write_bytes(b"")
    with fails(DataError, name):
        list(open_source(path, [X]))


def test_names_of_columns_that_are_no_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", x=ROWS.tolist(), other=[1] * 5)
    path.write_bytes(path.read_bytes().replace(b"other", b"oth\xffr"))
    with fails(DataError, "a.arrow", "cannot be read"):
        list(open_source(path, [X]))


@pytest.mark.parametrize("name", ["a.arrow", "a.feather"])
def test_offsets_that_are_out_of_bounds_do_not_end_the_process(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, x=[[1.0, 2.0, 3.0]] * 2)
    offsets = np.array([0, 3, 6], np.int32).tobytes()
    assert path.read_bytes().count(offsets) == 1
    path.write_bytes(path.read_bytes().replace(offsets, np.array([0, 3 << 20, 6 << 20], np.int32).tobytes()))
    with fails(DataError, name):
        list(open_source(path, [X]))


def test_a_damaged_row_group_is_named_and_the_next_is_read(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 3)).astype("f4")
    path = write(tmp_path / "a.parquet", 20, x=rows.tolist())
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36  # the pages of the first group
    path.write_bytes(data)
    told: list[DataError] = []
    source = open_source(path, [X])
    found = values(type(source)(source.name, source.inputs, source.read, bad=told.append))
    assert found == [[row.tolist()] for row in rows[20:]]
    assert "a.parquet, row group 0" in told[0].message


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", x=ROWS.tolist())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with fails(DataError, "need pyarrow, which is not installed", "onnxq[parquet]"):
        open_source(path, [X])
