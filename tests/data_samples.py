"""Inputs, rows and helpers that the tests of onnxq.data share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from onnxq.data import InputSpec

if TYPE_CHECKING:
    from pathlib import Path

    from onnxq.data import Source
    from onnxq.errors import OnnxqError

F32, F64, I32, I64 = (np.dtype(name) for name in ("float32", "float64", "int32", "int64"))
X = InputSpec("x", F32, ("N", 3))
IDS = InputSpec("ids", I64, ("N", 2))
FIXED = InputSpec("x", F32, (2, 3))
ROWS = np.arange(15, dtype=np.float32).reshape(5, 3)
FEEDS = [{"x": row[None]} for row in ROWS]


def values(source: Source, name: str = "x") -> list[Any]:
    """What the feeds of a whole pass hold for one input."""
    return [feed[name].tolist() for feed in source]


def fails(kind: type[OnnxqError], *says: str) -> Any:  # noqa: ANN401  pytest's own type is private
    """The error's message and hint hold all the words."""
    return pytest.raises(kind, check=lambda err: all(word in str(err) and err.hint for word in says))


def zoo(folder: Path, *arrays: np.ndarray[Any, Any]) -> None:
    """Write one test data set as the ONNX model zoo has it."""
    folder.mkdir()
    for i, array in enumerate(arrays):
        (folder / f"input_{i}.pb").write_bytes(onnx.numpy_helper.from_array(array).SerializeToString())
