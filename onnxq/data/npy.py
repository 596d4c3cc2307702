"""Arrays in .npy and .npz files, read as streams, so that a stack larger than the memory works.

Nothing is unpickled: an array of Python objects is refused when its header is read.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from onnxq.data.feeds import check_names
from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from onnxq.data.feeds import Array, InputSpec, Shape


@dataclass(frozen=True)
class Stored:
    """An array in a file, of which only the header is read; its data come next in the stream."""

    stream: IO[bytes]
    shape: Shape
    dtype: np.dtype[Any]
    fortran: bool

    def all(self) -> Array:
        """The whole array, read-only.

        Raises:
            EOFError: the file is cut short.
        """
        return self._take(self.shape, "F" if self.fortran else "C")

    def slices(self, step: int, count: int) -> Iterator[Array]:
        """Feed after feed: `step` rows each, or one row without its axis where step is 0.

        Raises:
            EOFError: the file is cut short.
        """
        whole = self.all() if self.fortran else None  # its rows are scattered through the file
        for i in range(count):
            rows = max(step, 1)
            shape = (rows, *self.shape[1:])
            part = self._take(shape, "C") if whole is None else whole[i * rows : (i + 1) * rows]
            yield part if step else part[0]

    def _take(self, shape: Shape, order: Any) -> Array:  # noqa: ANN401  numpy's own Literal is private
        size = math.prod(shape) * self.dtype.itemsize
        data = self.stream.read(size)
        if len(data) < size:
            raise EOFError("the file ends before its data does")
        return np.ndarray(shape, self.dtype, buffer=data, order=order)


@contextmanager
def open_arrays(path: Path, inputs: Sequence[InputSpec]) -> Iterator[dict[str, Stored]]:
    """The arrays of a .npz, or the one of a .npy, by input name.

    Raises:
        DataError: the names are not the inputs', or the file is damaged, also where only the body of the `with`
            statement finds that.
    """
    # RuntimeError and NotImplementedError: zip members with a password or an unknown compression.
    faults = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)
    try:
        with ExitStack() as stack:
            if path.suffix.lower() == ".npy":
                yield {only_input(inputs, path).name: _read_header(stack.enter_context(path.open("rb")))}
                return
            archive = stack.enter_context(zipfile.ZipFile(path))
            names = archive.namelist()
            streams = {name.removesuffix(".npy"): stack.enter_context(archive.open(name)) for name in names}
            check_names(list(streams), inputs, str(path))
            yield {name: _read_header(stream) for name, stream in streams.items()}
    except faults as err:
        hint = "Write it anew with np.save or np.savez, from arrays of numbers."
        raise DataError(f"{path}: cannot be read: {err}", hint) from err


def only_input(inputs: Sequence[InputSpec], path: Path) -> InputSpec:
    """The input that the array of a .npy is for.

    Raises:
        DataError: the model has several.
    """
    if len(inputs) == 1:
        return inputs[0]
    listed = ", ".join(repr(spec.name) for spec in inputs)
    hint = "Use .npz files with one key for each input."
    raise DataError(f"{path}: a .npy holds one array, but the model's inputs are {listed}", hint)


def _read_header(stream: IO[bytes]) -> Stored:
    """Read a .npy header, versions 1 and 2 of numpy.lib.format; ValueError if it is of no plain array."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f".npy format version {version} is for structured arrays")
    if dtype.hasobject:
        raise ValueError("it holds Python objects (pickle), which are never loaded")
    return Stored(stream, shape, dtype, fortran)
