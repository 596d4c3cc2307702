"""Arrays in .npy and .npz files, read as streams, so that a stack larger than the memory works.

Nothing is unpickled: an array of Python objects is refused when its header is read.
"""

from __future__ import annotations

import io
import math
import sys
import zipfile
import zlib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from tokenize import TokenError
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from onnxq.data.feeds import check_names
from onnxq.data.paths import refuse_pointer
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
        if not 0 <= size <= sys.maxsize:
            raise ValueError(f"its header gives the shape {shape}")
        try:
            data = self.stream.read(size)
        except MemoryError as error:
            raise ValueError(f"its header tells of {size:,} bytes, more than there is memory for") from error
        if len(data) < size:
            raise EOFError("the file ends before its data does")
        return np.ndarray(shape, self.dtype, buffer=data, order=order)


FAULTS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)
"""What reading raises. RuntimeError and NotImplementedError: zip members with a password or an unknown compression."""


@contextmanager
def open_arrays(path: Path, inputs: Sequence[InputSpec]) -> Iterator[dict[str, Stored]]:
    """The arrays of a .npz, or the one of a .npy, by input name.

    Raises:
        DataError: the names are not the inputs', or the file is damaged, also where only the body of the `with`
            statement finds that.
    """
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
    except FAULTS as err:
        refuse_pointer(path)
        hint = "Write it anew with np.save or np.savez, from arrays of numbers, or of text with dtype str."
        raise DataError(f"{path}: cannot be read: {err}", hint) from err


def array_of(data: bytes) -> Array:
    """The array in the bytes of a .npy.

    Raises:
        OSError, ValueError, EOFError, RuntimeError: it is none, or damaged; see `FAULTS`.
    """
    return _read_header(io.BytesIO(data)).all()


def arrays_of(data: bytes) -> dict[str, Array]:
    """The arrays in the bytes of a .npz; raises as `array_of`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name.removesuffix(".npy"): array_of(archive.read(name)) for name in archive.namelist()}


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
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f".npy format version {version} is for structured arrays")
    try:
        shape, fortran, dtype = readers[version](stream)
    except (TokenError, SyntaxError, TypeError, MemoryError) as error:  # of Python's parser, which reads old headers
        raise ValueError(f"its header is damaged: {error}") from error
    if min(shape, default=0) < 0:
        raise ValueError(f"its header gives the shape {shape}")
    if dtype.hasobject:
        raise ValueError("it holds Python objects (pickle), which are never loaded")
    return Stored(stream, shape, dtype, fortran)
