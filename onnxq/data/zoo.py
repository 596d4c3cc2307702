"""Feeds from folders as the ONNX model zoo has them: test_data_set_*/input_*.pb, one TensorProto each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onnxq.data.paths import natural
from onnxq.data.source import Sample, Source
from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.data.feeds import Array, InputSpec


def find_sets(text: str) -> list[Path]:
    """The test_data_set_* of a folder in natural order, or the folder itself if it is one; else none."""
    path = Path(text)
    folders = sorted(path.glob("test_data_set_*"), key=natural)
    return folders or ([path] if any(path.glob("input_*.pb")) else [])


def open_zoo(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    """The test data sets of a folder, each one feed; input_0.pb is for the model's first input, and so on.

    Raises:
        DataError: while reading, for a set with another number of inputs, or a file that holds no tensor.
    """
    folders = find_sets(text)

    def read() -> Iterator[Sample]:
        yield from ((str(folder), _one_feed(folder, inputs)) for folder in folders)

    return Source(text, inputs, read, len(folders))


def _one_feed(folder: Path, inputs: tuple[InputSpec, ...]) -> dict[str, Array] | DataError:
    """The tensors of a data set, or what is wrong with it."""
    files = sorted(folder.glob("input_*.pb"), key=natural)
    if len(files) != len(inputs):
        says = f"{folder}: has {len(files)} input_*.pb files for the model's {len(inputs)} inputs"
        return DataError(says, "Give input_0.pb, input_1.pb ... in the order of the model's inputs.")
    try:
        return {s.name: _read_tensor(f) for s, f in zip(inputs, files, strict=True)}
    except DataError as error:
        return error


def _read_tensor(path: Path) -> Array:
    import onnx  # heavy, and only this form needs it

    try:
        tensor = onnx.TensorProto.FromString(path.read_bytes())
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except Exception as err:  # protobuf's and onnx's errors have no common base
        hint = "Each input_*.pb holds one TensorProto; sequence and optional inputs are not supported."
        raise DataError(f"{path}: cannot be read as a tensor: {err}", hint) from err
