"""The errors a caller of onnxq can meet. One place prints them: `onnxq.cli`."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class OnnxqError(Exception):
    """Something the user can mend: `message` says what is wrong and where, `hint` what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class ModelError(OnnxqError):
    """The model cannot be read, is not valid, or holds nothing to quantize."""


class DataError(OnnxqError):
    """Calibration data is missing, unreadable or does not fit the model's inputs."""


class RecipeError(OnnxqError):
    """An option, a rule or a recipe file is wrong."""


class ProviderError(RecipeError):
    """A provider of ONNX Runtime is not in this build, or does not start on this machine."""


class StatisticsError(OnnxqError):
    """A statistics file is unreadable, of another model, or lacks a tensor."""


class AccuracyError(OnnxqError):
    """The quantized model is further from the float one than was allowed."""


class OutputError(OnnxqError):
    """An output cannot be written."""


class PassError(OnnxqError):
    """A pass broke the graph: a fault in onnxq or in a user's own pass, never in the model."""


_FORMATS = {
    b"ORTM": (
        "one in ONNX Runtime's own format (.ort)",
        "Name the .onnx file that it was made from: it has no way back.",
    ),
    b"TFL3": ("a TensorFlow Lite model", "Convert it first, for instance with tf2onnx."),
}
"""Bytes 4 to 8 of a file, a FlatBuffers identifier -> what it holds instead, and what to do."""


def refuse_no_file(path: Path) -> None:
    """Refuse to read a model from where none can be.

    Raises:
        ModelError: it is a folder, or an empty file.
        OSError: it cannot be looked at.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a folder", "Name the .onnx file inside it.")
    if path.is_file() and path.stat().st_size == 0:
        raise ModelError(f"{path} is empty", "Copy or export the file again.")


def refuse_no_place(path: Path) -> None:
    """Refuse an output whose place holds what is no file: one that is moved there would take away a device.

    Raises:
        OutputError: it is a folder, a device such as /dev/null, or a pipe.
        OSError: it cannot be looked at.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder", "Name a file in it.")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is a device or a pipe, and no file", "Name a file: outputs are moved into place.")


def no_onnx(path: object, data: bytes, details: str, hint: str) -> ModelError:
    """The error for a file of these bytes that is no ONNX model; of one in a known format, what to do with it."""
    if data.startswith(b"version https://git-lfs"):
        return ModelError(f"{path} is a Git LFS pointer, not the model", "Fetch the file itself with `git lfs pull`.")
    found = _FORMATS.get(data[4:8])
    if found is None:
        return ModelError(f"{path} is not an ONNX model{details}", hint)
    return ModelError(f"{path} is not an ONNX model but {found[0]}", found[1])


def what_failed(error: OSError) -> str:
    """What went wrong with a file, in the system's words; numpy has none for a write that stopped half way."""
    return error.strerror or f"the disk is full ({error})"


def known_names(word: str, words: Iterable[str]) -> str:
    """The hint for an unknown name: the nearest known one, if any is near, and all of them."""
    words = list(words)
    near = difflib.get_close_matches(word, words, 1)
    return (f"Did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(words)}."
