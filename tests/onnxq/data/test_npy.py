from __future__ import annotations

import os
import tracemalloc
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from data_samples import F32, IDS, ROWS, X, fails

from onnxq.data import InputSpec, open_source
from onnxq.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_foreign_key_is_refused_with_the_likely_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", ROWS)
    with fails(DataError, "d.npz", "unknown input 'arr_0'", "Did you mean 'x'?"):
        open_source(tmp_path / "d.npz", [X])


def test_a_npy_for_two_inputs_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS)
    with fails(DataError, "d.npy", "'x', 'ids'", ".npz"):
        open_source(tmp_path / "d.npy", [X, IDS])


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


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (",  # Python's tokenizer is asked what old headers meant
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 3), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (3000000000000, 3), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-5, 3), }",
    ],
)
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_headers_that_tell_nonsense(tmp_path: Path, header: bytes, name: str) -> None:
    text = header.ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(60)
    if name == "x.npy":
        (tmp_path / name).write_bytes(data)
    else:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("x.npy", data)
    with fails(DataError, f"{name}: cannot be read"):
        list(open_source(tmp_path / name, [X]))
