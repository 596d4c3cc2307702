"""Weights that lie in files: read one at a time and let go, so that memory never holds many of them.

A shelf is a temporary folder for those that lie in no file of the user's: what passes make, for example.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir  # noqa: TID251  this is the wall

from onnxq.scratch import Scratch

if TYPE_CHECKING:
    import numpy.typing as npt

ALIGNED = 64
"""Offsets are multiples of so many bytes, for whoever maps the file."""

SHELVED_BYTES = 1 << 16
"""A new weight from this size on goes on the shelf, where its graph has one."""


class FileTensor(ir.ExternalTensor):
    """An external tensor that maps its own bytes alone, and forgets them: they live as long as the reader holds them.

    onnx_ir's own maps the whole file, and keeps each mapping that was ever read: that counts as the process's memory.
    """

    __slots__ = ()

    def numpy(self) -> npt.NDArray[Any]:
        """The values; whole bytes are mapped, narrower ones unpacked."""
        if self.dtype.bitwidth % 8 == 0:
            dtype = np.dtype(self.dtype.numpy()).newbyteorder("<")
            return self._bytes().view(dtype).reshape(self.shape.numpy())
        array: npt.NDArray[Any] = super().numpy()
        self._array = self.raw = None
        return array

    def __array__(self, dtype: Any = None) -> npt.NDArray[Any]:  # noqa: ANN401  as onnx_ir's own
        return self.numpy().__array__(dtype)

    def tobytes(self) -> bytes:
        """The bytes as they lie in the file."""
        return self._bytes().tobytes()

    def _bytes(self) -> npt.NDArray[np.uint8]:
        if not self.nbytes:
            return np.empty(0, np.uint8)
        mapped = np.memmap(self.path, np.uint8, "r", self.offset or 0, (self.nbytes,))
        return mapped.view(np.ndarray)  # not a memmap: what is computed of it is none either


def from_file(tensor: ir.ExternalTensor) -> FileTensor:
    """The same as a FileTensor."""
    return FileTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=str(tensor.name),
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
        base_dir=tensor.base_dir,
    )


class Shelf:
    """A file for weights, made with the first of them, in a folder that goes when no shelf in it is left.

    A graph's copy has a shelf of its own, so that what was made for it goes with it; what it shares with the first
    stays as long as the copy does.
    """

    def __init__(self, behind: Shelf | None = None) -> None:
        self._folder: Scratch = Scratch() if behind is None else behind._folder  # noqa: SLF001  one of us
        self._behind = behind
        self._file: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder."""
        return self._folder.path

    def take(self, value: ir.Value) -> None:
        """Put a new weight there if it is large."""
        tensor = value.const_value
        if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= SHELVED_BYTES:
            value.const_value = self.put(tensor, str(value.name))

    def put(self, tensor: ir.TensorProtocol, name: str) -> FileTensor:
        """Write a tensor, of any type but strings; return it as it lies there."""
        if self._file is None:
            handle, path = tempfile.mkstemp(prefix="weights-", dir=self.folder)
            os.close(handle)
            self._file = Path(path)
            weakref.finalize(self, _remove, self._file)
        with self._file.open("ab") as file:
            file.write(bytes(-file.tell() % ALIGNED))
            offset = file.tell()
            _write(tensor, file)
        return FileTensor(
            self._file.name,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            doc_string=tensor.doc_string,
            base_dir=self.folder,
        )


def _write(tensor: ir.TensorProtocol, file: IO[bytes]) -> None:
    if isinstance(tensor, ir.Tensor | ir.ExternalTensor):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
