from __future__ import annotations

import io
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from data_samples import F32, IDS, ROWS, X, fails, values
from PIL import Image  # noqa: TID251  makes the files

from onnxq.data import InputSpec, label_specs, open_source, with_preprocess
from onnxq.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from onnxq.data import Source


def npy(array: Any) -> bytes:  # noqa: ANN401  whatever numpy takes
    file = io.BytesIO()
    np.save(file, np.asarray(array), allow_pickle=True)
    return file.getvalue()


def npz(**arrays: Any) -> bytes:  # noqa: ANN401  as above
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # the mode is no literal here
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def skipping(source: Source, told: list[DataError]) -> Source:
    return type(source)(source.name, source.inputs, source.read, bad=told.append)


ROWS_AS_NPY = [(f"s{i}.npy", npy(row)) for i, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("name", "mode"), [("d.tar", "w"), ("d.tar.gz", "w:gz"), ("d.tgz", "w:gz"), ("d.tar.xz", "w:xz")]
)
def test_each_key_is_a_sample_in_the_order_of_the_tar(tmp_path: Path, name: str, mode: str) -> None:
    path = tar(tmp_path / name, ROWS_AS_NPY, mode)
    source = open_source(path, [X])
    assert values(source) == values(source) == [[row.tolist()] for row in ROWS]


def test_members_are_inputs_by_name_and_the_rest_is_left_alone(tmp_path: Path) -> None:
    members = [
        ("train/0.x.npy", npy(ROWS[0])),
        ("train/0.ids.npy", npy([[1, 2]])),
        ("train/0.json", b"{}"),
        ("train/0.cls", b"7"),
        ("README", b"no dot"),
        (".hidden", b"x"),
        ("train/1.npz", npz(x=ROWS[1], ids=np.array([3, 4]), more=np.zeros(2))),
        ("train/1.cls", b"8\n"),
    ]
    feeds = list(open_source(tar(tmp_path / "a.tar", members), [X, IDS, *label_specs(["cls"])]))
    assert [{k: v.tolist() for k, v in feed.items()} for feed in feeds] == [
        {"x": [ROWS[0].tolist()], "ids": [[1, 2]], "cls": [7]},
        {"x": [ROWS[1].tolist()], "ids": [[3, 4]], "cls": [8]},
    ]


def test_images_become_the_input_with_the_preprocessing(tmp_path: Path) -> None:
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    path = tar(tmp_path / "a.tar", [("0.png", file.getvalue()), ("0.x.npy", npy(ROWS[0])), ("1.png", b"broken")])
    image = InputSpec("image", F32, ("N", 3, 4, 4))
    source = open_source(path, with_preprocess([image, X], "layout=NCHW"))
    told: list[DataError] = []
    (feed,) = skipping(source, told)
    np.testing.assert_array_equal(feed["image"][0], array.transpose(2, 0, 1))
    assert "a.tar, member '1.png': cannot be read as an image" in told[0].message
    with fails(DataError, "sample '0'", "preprocessing is not stated"):
        list(open_source(path, [image, X]))


def test_a_folder_of_tars_is_read_in_natural_order(tmp_path: Path) -> None:
    for name, rows in (("p2.tar", ROWS_AS_NPY[:2]), ("p10.tar", ROWS_AS_NPY[2:])):
        tar(tmp_path / name, rows)
    assert values(open_source(tmp_path, [X])) == [[row.tolist()] for row in ROWS]


@pytest.mark.parametrize("suffix", ["pyd", "pkl", "pickle", "pth", "x.pkl"])
def test_pickles_are_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = tar(tmp_path / "a.tar", [("0.npy", npy(ROWS[0])), (f"0.{suffix}", b"\x80\x04N.")])
    with fails(DataError, f"a.tar, member '0.{suffix}'", "never loaded"):
        list(open_source(path, [X]))


@pytest.mark.parametrize(
    ("member", "data", "says"),
    [
        ("1.npy", npy(ROWS[0])[:-2], "the file ends before its data does"),
        ("1.npy", npy(np.array([{}])), "never loaded"),
        ("1.npy", b"junk", "cannot be read"),
        ("1.npz", b"PK\x03\x04junk", "cannot be read"),
        ("1.txt", b"words", "has no array for input 'x'; it holds txt"),
        ("1.npy", npy(np.zeros(4, np.float32)), "axis 1 is 4, not 3"),
    ],
)
def test_a_bad_sample_is_named_and_others_are_read(tmp_path: Path, member: str, data: bytes, says: str) -> None:
    path = tar(tmp_path / "a.tar", [ROWS_AS_NPY[0], (member, data), ROWS_AS_NPY[2]])
    told: list[DataError] = []
    source = open_source(path, [X])
    with fails(DataError, "a.tar", says):
        list(source)
    assert values(skipping(source, told)) == [[ROWS[0].tolist()], [ROWS[2].tolist()]]
    assert len(told) == 1


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_cut_short_is_said_with_its_last_member(tmp_path: Path, mode: str) -> None:
    path = tar(tmp_path / "a.tar", [(f"{i}.npy", npy(RNG.normal(size=(1, 3)).astype("f4"))) for i in range(40)], mode)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with fails(DataError, "a.tar: is damaged after member '", "copy it again"):
        list(open_source(path, [X]))


RNG = np.random.default_rng(2)


def test_a_compressed_tar_cut_in_its_header(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar.gz", ROWS_AS_NPY, "w:gz")
    whole = path.read_bytes()
    for length in (1, 3, 5, 11):
        path.write_bytes(whole[:length])
        with fails(DataError, "a.tar.gz: is damaged after its beginning"):
            list(open_source(path, [X]))


def test_what_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"junk" * 300)
    with fails(DataError, "a.tar: is damaged after its beginning"):
        list(open_source(tmp_path / "a.tar", [X]))
    tar(tmp_path / "empty.tar", [])
    with fails(DataError, "empty.tar: holds no samples"):
        list(open_source(tmp_path / "empty.tar", [X]))


def test_without_pillow_the_extra_is_named_only_where_images_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar(tmp_path / "a.tar", ROWS_AS_NPY)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert len(values(open_source(path, [X]))) == 5
    with fails(DataError, "onnxq[images]"):
        open_source(path, with_preprocess([InputSpec("i", F32, (1, 3, 4, 4))], "layout=NCHW"))
