from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
import tracemalloc
import zipfile
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import pytest
from polygraphy.json import save_json  # noqa: TID251 - the oracle: Polygraphy's own writer

from onnxq.data import (
    SOURCES,
    InputSpec,
    Source,
    _in_range,
    check_feed,
    find_beside,
    open_source,
    parse_shapes,
    split_batch,
)
from onnxq.errors import DataError, OnnxqError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

F32, F64, I32, I64, U8 = (np.dtype(name) for name in ("float32", "float64", "int32", "int64", "uint8"))
X = InputSpec("x", F32, ("N", 3))
IDS = InputSpec("ids", I64, ("N", 2))
FIXED = InputSpec("x", F32, (2, 3))
ROWS = np.arange(15, dtype=np.float32).reshape(5, 3)


def values(source: Source, name: str = "x") -> list[Any]:
    return [feed[name].tolist() for feed in source]


def fails(kind: type[OnnxqError], *says: str) -> Any:  # noqa: ANN401 - pytest's own type is private
    """The error's message and hint hold all the words."""
    return pytest.raises(kind, check=lambda err: all(word in str(err) and err.hint for word in says))


# --- stacked .npy and .npz ---------------------------------------------------------------------------


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


def test_a_foreign_key_is_refused_with_the_likely_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", ROWS)
    with fails(DataError, "d.npz", "unknown input 'arr_0'", "Did you mean 'x'?"):
        open_source(tmp_path / "d.npz", [X])


def test_a_npy_for_two_inputs_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS)
    with fails(DataError, "d.npy", "'x', 'ids'", ".npz"):
        open_source(tmp_path / "d.npy", [X, IDS])


def test_an_empty_stack_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS[:0])
    with fails(DataError, "d.npy: holds no samples"):
        list(open_source(tmp_path / "d.npy", [X]))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_pickled_arrays_are_refused_and_not_run(tmp_path: Path, suffix: str) -> None:
    class Trap:
        def __reduce__(self) -> Any:  # noqa: ANN401
            return os.mkdir, (str(tmp_path / "sprung"),)

    path, array = tmp_path / f"d.{suffix}", np.array([Trap()], dtype=object)
    if suffix == "npy":
        np.save(path, array)
    else:
        np.savez(path, x=array)
    with fails(DataError, path.name, "pickle", "np.save"):
        open_source(path, [X])
    assert not (tmp_path / "sprung").exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with fails(DataError, "d.npz: cannot be read", "not a zip file"):
        open_source(path, [X])
    path.write_bytes(whole.replace(ROWS[2].tobytes(), ROWS[1].tobytes()))
    with fails(DataError, "d.npz: cannot be read", "CRC"):
        list(open_source(path, [X]))
    np.save(tmp_path / "d.npy", ROWS)
    whole = (tmp_path / "d.npy").read_bytes()
    (tmp_path / "d.npy").write_bytes(whole[:-1])
    with fails(DataError, "d.npy: cannot be read", "ends before its data"):
        list(open_source(tmp_path / "d.npy", [X]))
    (tmp_path / "d.npy").write_bytes(b"not numpy at all")
    with fails(DataError, "d.npy: cannot be read", "magic"):
        open_source(tmp_path / "d.npy", [X])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "text")
    with fails(DataError, "d.npz: cannot be read", "magic"):
        open_source(path, [X])


# --- folders -----------------------------------------------------------------------------------------


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
    with fails(DataError, str(tmp_path), "*.npz, *.npy and test_data_set_*", "it is empty"):
        open_source(tmp_path, [X])
    (tmp_path / "cat.jpg").write_bytes(b"")
    with fails(DataError, str(tmp_path), "*.npz, *.npy and test_data_set_*", "'cat.jpg'"):
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


def test_missing_and_unknown_paths_are_refused(tmp_path: Path) -> None:
    for name in ("gone", "gone.npz", "gone.npy", "gone.json", "gone.py", "gone.py:load"):
        with fails(DataError, name.split(":")[0], "no such file or folder"):
            open_source(tmp_path / name, [X])
    (tmp_path / "d.csv").write_text("1,2,3")
    with fails(DataError, "d.csv: is no known form", "random:N", "Polygraphy .json"):
        open_source(tmp_path / "d.csv", [X])


def test_reading_changes_nothing_in_the_folder(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ROWS)
    np.savez(tmp_path / "b.npz", x=ROWS)
    (tmp_path / "load.py").write_text("def load_data():\n    yield {'x': [[1.0, 2.0, 3.0]]}\n")

    def state() -> dict[str, Any]:
        return {p.name: (hashlib.sha256(p.read_bytes()).digest(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}

    before = state()
    for source in (tmp_path, tmp_path / "a.npz", tmp_path / "load.py"):
        assert list(open_source(source, [X]))
    assert state() == before


# --- Polygraphy JSON, scripts, test data sets, random ------------------------------------------------


def test_polygraphy_json(tmp_path: Path) -> None:
    save_json([{"x": row[None], "ids": np.array([[i, -i]])} for i, row in enumerate(ROWS)], str(tmp_path / "d.json"))
    source = open_source(tmp_path / "d.json", [X, IDS])
    assert values(source) == [[row.tolist()] for row in ROWS]
    assert values(source, "ids") == [[[i, -i]] for i in range(5)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[{", "cannot be read as JSON"),
        ('{"x": 1}', "is not a list of feeds"),
        ("[[1]]", "sample 0: is of type list, not a mapping"),
        (
            '[{"x": {"tensor": "gAJ9", "polygraphy_class": "Tensor"}}]',
            "sample 0: input 'x' is not a numpy array",
        ),
        (
            '[{"x": {"array": "????", "polygraphy_class": "ndarray"}}]',
            "sample 0: input 'x' cannot be decoded",
        ),
        (
            '[{"x": {"array": "AAAA", "polygraphy_class": "ndarray"}}]',
            "sample 0: input 'x' cannot be decoded",
        ),
        ("[]", "holds no samples"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "d.json").write_text(text)
    with fails(DataError, "d.json", says):
        list(open_source(tmp_path / "d.json", [X]))


def test_a_script_yields_feeds_from_a_generator_or_a_list(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 4.0\n")
    script = tmp_path / "json.py"  # a standard module's name must not get in its way
    script.write_text(
        "import numpy as np\nfrom beside import VALUE\n"
        "def load_data():\n    for i in range(2):\n        yield {'x': np.full((1, 3), VALUE + i)}\n"
        "def other():\n    return [{'x': np.zeros((1, 3))}]\n"
    )
    modules, path = set(sys.modules), list(sys.path)
    source = open_source(str(script), [X])
    assert (source.name, source.length) == (str(script), None)
    for _ in range(2):
        assert values(source) == [[[4.0] * 3], [[5.0] * 3]]
    assert values(open_source(f"{script}:other", [X])) == [[[0.0] * 3]]
    assert set(sys.modules) - modules <= {"beside"}
    assert sys.path == path
    sys.modules.pop("beside", None)


def test_faulty_scripts_are_refused(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text("def load_date():\n    return 1\n")
    with fails(DataError, "s.py: defines no 'load_data'", "s.py:load_date?"):
        open_source(script, [X])
    with fails(DataError, "load_date: gave a value of type int"):
        list(open_source(f"{script}:load_date", [X]))
    script.write_text("import numpy\n1 / 0\n")
    with fails(DataError, "s.py: ZeroDivisionError: division by zero"):
        open_source(script, [X])


def zoo(folder: Path, *arrays: np.ndarray[Any, Any]) -> None:
    folder.mkdir()
    for i, array in enumerate(arrays):
        (folder / f"input_{i}.pb").write_bytes(onnx.numpy_helper.from_array(array).SerializeToString())


def test_model_zoo_folders_follow_the_order_of_the_inputs(tmp_path: Path) -> None:
    for i in (10, 2):
        zoo(tmp_path / f"test_data_set_{i}", np.full((1, 3), i, np.float32), np.array([[i, 0]]))
    (tmp_path / "test_data_set_2" / "output_0.pb").write_bytes(b"\xff")
    source = open_source(tmp_path, [X, IDS])
    assert source.length == 2
    assert values(source) == [[[2.0] * 3], [[10.0] * 3]]
    assert values(source, "ids") == [[[2, 0]], [[10, 0]]]
    assert values(open_source(tmp_path / "test_data_set_10", [X, IDS])) == [[[10.0] * 3]]
    with fails(DataError, "test_data_set_2: has 2 input_*.pb files for the model's 1 inputs"):
        list(open_source(tmp_path, [X]))


def test_eleven_model_zoo_inputs_are_not_sorted_as_text(tmp_path: Path) -> None:
    zoo(tmp_path / "test_data_set_0", *(np.array([i]) for i in range(11)))
    specs = [InputSpec(f"i{i}", I64, (1,)) for i in range(11)]
    (feed,) = open_source(tmp_path, specs)
    assert [feed[f"i{i}"].item() for i in range(11)] == list(range(11))


@pytest.mark.parametrize("name", ["", "ids"])
def test_sequences_optionals_and_damage_in_a_zoo_folder_are_refused(tmp_path: Path, name: str) -> None:
    zoo(tmp_path / "test_data_set_0", ROWS)
    path = tmp_path / "test_data_set_0" / "input_0.pb"
    whole = path.read_bytes()
    tensors = [np.ones((1, 3), np.float32)]
    sequence = onnx.numpy_helper.from_list(tensors, name or None)
    optional = onnx.numpy_helper.from_optional(tensors[0], name or None)
    empty = onnx.SequenceProto(name=name, elem_type=onnx.SequenceProto.TENSOR)
    for message in (
        sequence.SerializeToString(),
        optional.SerializeToString(),
        empty.SerializeToString(),
        whole[:-9],
    ):
        path.write_bytes(message)
        with fails(DataError, str(path), "tensor", "sequence and optional inputs are not supported"):
            list(open_source(tmp_path, [X]))


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
    with fails(DataError, "'x' is object, not numeric"):
        list(open_source("random:2", [InputSpec("x", np.dtype(object), (1,))]))


@pytest.mark.parametrize("text", ["random:", "random:0", "random:-1", "random:ten"])
def test_random_needs_a_count(text: str) -> None:
    with fails(DataError, text, "is not a number of samples", "random:N"):
        open_source(text, [X])


def test_shapes_that_do_not_fit_the_inputs_are_refused() -> None:
    with fails(RecipeError, "'imag'", "Did you mean 'image'?"):
        open_source("random:1", [InputSpec("image", F32, (1,))], shapes={"imag": (1,)})
    with fails(RecipeError, "'x' has shape [1, 4]; the model takes [N, 3]"):
        open_source("random:1", [X], shapes={"x": (1, 4)})


def test_each_text_form_is_in_the_table_once(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS)
    zoo(tmp_path / "test_data_set_0", ROWS)
    texts = ["random:1", "a.py", "a.py:f", str(tmp_path), "/", "a.npz", "A.NPY", "a.json"]
    found = [next(form.name for form in SOURCES if form.matches(text)) for text in texts]
    assert [name.split()[-1] if "folder" in name else name.split()[0] for name in found] == [
        "random:N", "script.py[:load_data]", "script.py[:load_data]", "test_data_set_*", "each", ".npz", ".npy",
        "Polygraphy",
    ]  # fmt: skip


# --- Python objects ----------------------------------------------------------------------------------


FEEDS = [{"x": row[None]} for row in ROWS]


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


def test_max_samples_draws_no_more_than_it_gives() -> None:
    drawn = []

    def feeds() -> Iterator[Any]:
        for i in range(5):
            drawn.append(i)
            yield FEEDS[i]

    assert len(list(open_source(feeds, [X], max_samples=2))) == 2
    assert drawn == [0, 1]
    assert open_source(FEEDS, [X], max_samples=2).length == 2
    assert open_source(FEEDS, [X], max_samples=9).length == 5
    nested = open_source(open_source(FEEDS, [X], max_samples=2), [X], max_samples=4)
    assert nested.length == len(list(nested)) == 2
    with fails(RecipeError, "max_samples is 0"):
        open_source(FEEDS, [X], max_samples=0)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_stack_is_streamed(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"d.{suffix}", np.zeros((64, 65536), np.float32)  # 16 MiB, a row is 256 KiB
    if suffix == "npy":
        np.save(path, rows)
    else:
        np.savez_compressed(path, x=rows)
    source = open_source(path, [InputSpec("x", F32, ("N", 65536))])
    tracemalloc.start()
    assert sum(feed["x"].shape[0] for feed in source) == 64
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < rows.nbytes / 8


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


# --- checking ----------------------------------------------------------------------------------------


def cast(array: object, dtype: Any) -> Any:  # noqa: ANN401
    array = np.asarray(array)
    return check_feed({"x": array}, [InputSpec("x", np.dtype(dtype), None)], "here")["x"]


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([1, -2], np.int32), "int64"),
        (np.array([1, -2], np.int64), "int32"),
        (np.array([0.1, 3e38, 1e-50, np.nan, np.inf]), "float32"),
        (np.array([0, 255], np.uint8), "float32"),
        (np.array([0, 255], np.uint8), "float16"),
        (np.array([2**24, -(2**24)], np.int64), "float32"),
        (np.array([2.0, -3.0], np.float32), "int8"),
        (np.array([0.5, 65504.0, np.nan], np.float32), "float16"),
        (np.array([0.1], np.float16), "float64"),
        (np.array([True, False]), "float32"),
        (np.array([0, 1]), "bool"),
        (np.array([2**63 - 1], np.uint64), "int64"),
        (np.array([1.5], ">f4"), "<f4"),
        (np.zeros((0, 3)), "int8"),
    ],
)
def test_casts_that_keep_the_values(array: np.ndarray[Any, Any], dtype: str) -> None:
    result = cast(array, dtype)
    assert result.dtype == np.dtype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        expected = [np.dtype(dtype).type(value) for value in array.ravel().tolist()]
    np.testing.assert_array_equal(result.ravel(), np.array(expected, dtype))


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([1e39]), "float32"),
        (np.array([0.5]), "int64"),
        (np.array([np.nan]), "int64"),
        (np.array([np.inf]), "int64"),
        (np.array([2.0**63]), "int64"),
        (np.array([2**24 + 1]), "float32"),
        (np.array([2**63 - 1]), "float64"),
        (np.array([2**32 + 1]), "int32"),
        (np.array([-1]), "uint64"),
        (np.array([2**63], np.uint64), "int64"),
        (np.array([256]), "uint8"),
        (np.array([2]), "bool"),
        (np.array([0.1], np.float32), "float16"),
        (np.array([0.1]), "float16"),
        (np.array([1j]), "float32"),
        (np.array(["1"]), "float32"),
        (np.array([1.0], object), "float32"),
    ],
)
def test_casts_that_lose_values_are_refused(array: np.ndarray[Any, Any], dtype: str) -> None:
    with fails(DataError, f"here: input 'x' is {array.dtype}; the model takes {dtype}", f"astype('{dtype}')"):
        cast(array, dtype)


def test_ranges_are_compared_exactly() -> None:
    # On its own, because which of the casts above it alone catches depends on the processor.
    assert _in_range(np.array([2**63 - 1], np.uint64), I64)
    assert not _in_range(np.array([2**63], np.uint64), I64)
    assert not _in_range(np.array([2.0**63]), I64)
    assert _in_range(np.array([-(2.0**63)]), I64)
    assert not _in_range(np.array([np.nan]), I64)


def test_feeds_are_checked_for_names() -> None:
    spec = InputSpec("images", F32, (1,))
    with fails(DataError, "here: unknown input 'image'", "Did you mean 'images'?"):
        check_feed({"image": [1.0]}, [spec], "here")
    with fails(DataError, "here: unknown input 'y'; the model's inputs are 'images', 'ids'"):
        check_feed({"images": [1.0], "ids": [1], "y": 1}, [spec, IDS], "here")
    with fails(DataError, "here: no array for input 'ids'", "'images', 'ids'"):
        check_feed({"images": [1.0]}, [spec, IDS], "here")
    with fails(DataError, "here: unknown input 3"):
        check_feed({3: [1.0]}, [spec], "here")


def test_feeds_are_checked_for_shapes() -> None:
    with fails(DataError, "here: input 'x' has shape [3]; the model takes [N, 3]", "rank 1, not 2", "np.newaxis"):
        check_feed({"x": ROWS[0]}, [X], "here")
    with fails(DataError, "rank 3, not 2", "Reshape"):
        check_feed({"x": ROWS[None]}, [X], "here")
    with fails(DataError, "axis 0 is 5, not 2"):
        check_feed({"x": ROWS}, [FIXED], "here")
    with fails(DataError, "here: input 'x' is not an array"):
        check_feed({"x": [[1.0], [1.0, 2.0]]}, [X], "here")


def test_a_checked_feed_is_contiguous_and_keeps_scalars() -> None:
    specs = [InputSpec("s", F32, ()), InputSpec("x", F32, (3, "N"))]
    feed = check_feed({"x": ROWS.T, "s": np.float32(2)}, specs, "here")
    assert list(feed) == ["s", "x"]
    assert feed["s"].shape == ()
    assert feed["x"].flags.c_contiguous
    np.testing.assert_array_equal(feed["x"], ROWS.T)


# --- the helpers -------------------------------------------------------------------------------------


def test_data_beside_a_model_is_found_in_order(tmp_path: Path) -> None:
    model = tmp_path / "net.v2.onnx"
    assert find_beside(model) is None
    zoo(tmp_path / "test_data_set_0", ROWS)
    assert find_beside(model) == tmp_path
    (tmp_path / "net.v2_calib").mkdir()
    assert find_beside(model) == tmp_path / "net.v2_calib"
    (tmp_path / "net.v2.npz").write_bytes(b"")
    assert find_beside(model) == tmp_path / "net.v2.npz"


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("x:1x3x224x224", {"x": (1, 3, 224, 224)}),
        ("x:[1,3,224,224]", {"x": (1, 3, 224, 224)}),
        ("a:1x3,b:[2,4]", {"a": (1, 3), "b": (2, 4)}),
        (" a:[1, 3] b:2x4,  c:5 ", {"a": (1, 3), "b": (2, 4), "c": (5,)}),
        ("scope/x:0:[2],y[0]:3x1", {"scope/x:0": (2,), "y[0]": (3, 1)}),
        ("s:[]", {"s": ()}),
    ],
)
def test_shapes_are_parsed(text: str, shapes: dict[str, Any]) -> None:
    assert parse_shapes(text) == shapes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "''"),
        ("x", "'x' is not NAME:SHAPE"),
        (":1x3", "':1x3' is not"),
        ("x:", "'x:' is not"),
        ("x:1x", "'x:1x' is not"),
        ("x:-1x3", "'x:-1x3' is not"),
        ("x:1x?", "'x:1x?' is not"),
        ("x:[1,3", "'x:[1' is not"),
        ("x:[1,3]]", "'x:[1,3]]' is not"),
        ("x:1,,y:2", "'' is not"),
        ("x:1x0", "axis of length 0"),
        ("x:1,x:2", "'x' is given twice"),
    ],
)
def test_malformed_shapes_are_refused(text: str, says: str) -> None:
    with fails(RecipeError, says):
        parse_shapes(text)


def test_a_batch_is_split_only_where_every_input_allows_it() -> None:
    feed: dict[str, Any] = {"x": ROWS, "ids": np.arange(10).reshape(5, 2)}
    parts = split_batch(feed, [X, IDS])
    assert [part["x"].tolist() for part in parts] == [[row.tolist()] for row in ROWS]
    assert [part["ids"].tolist() for part in parts] == [[[i, i + 1]] for i in range(0, 10, 2)]
    uneven = {**feed, "x": ROWS[:4]}
    single = {name: array[:1] for name, array in feed.items()}
    scalar = {"x": ROWS, "s": np.array(1.0)}
    for other, specs in [
        (feed, [InputSpec("x", F32, (5, 3)), IDS]),
        (feed, [InputSpec("x", F32, None), IDS]),
        (uneven, [X, IDS]),
        (single, [X, IDS]),
        (scalar, [X, InputSpec("s", F64, ())]),
    ]:
        (whole,) = split_batch(other, specs)
        assert whole is other
    assert split_batch({}, []) == [{}]


def test_importing_is_light() -> None:
    heavy = "{'onnx', 'polygraphy', 'onnxruntime', 'torch'} & set(sys.modules)"
    code = f"import sys, onnxq.data; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
