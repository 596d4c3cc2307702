"""Feeds from WebDataset tars: members of one key, `0001.jpg` and `0001.cls`, are one sample.

Tars are read as streams, compressed or not, one sample in memory at a time; nothing is extracted or unpickled. Only
Python's own tarfile is needed, and Pillow where members are images.
"""

from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from onnxq.data import images
from onnxq.data.feeds import with_batch
from onnxq.data.npy import FAULTS, array_of, arrays_of
from onnxq.data.paths import existing, with_suffix
from onnxq.data.source import Sample, Source
from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from onnxq.data.feeds import Array, InputSpec

SUFFIXES = frozenset((".tar", ".tgz"))
_ARRAYS = (".npy", ".npz")
_PICKLES = frozenset((".pyd", ".pkl", ".pickle", ".pth", ".pt"))
_HINT = "Write the tar anew, or copy it again."


def is_tars(text: str) -> bool:
    """Whether the text is that of a tar, or a folder of tars."""
    return text.lower().endswith((".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")) or (
        Path(text).is_dir() and bool(with_suffix(text, SUFFIXES))
    )


def open_tars(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    """The samples of a tar, or of all tars of a folder.

    The array of `KEY.NAME.npy`, or of `NAME` in `KEY.npz`, is that of the input NAME; `KEY.npy` is for a model of one
    input, and images are for the one with the preprocessing. A label may also be the whole number in `KEY.NAME`, as
    `KEY.cls`. Other members are left alone. Arrays of one sample may lack the batch axis.

    Raises:
        DataError: there is no such file, or, while reading, a tar is damaged or a sample lacks an input.
    """
    path = existing(text)
    paths = with_suffix(text, SUFFIXES) if path.is_dir() else [path]
    if any(spec.preprocess for spec in inputs):
        images.image_input(inputs, text)  # so that a missing Pillow is told now, and not of each sample

    labels = {spec.name for spec in inputs if spec.label}

    def read() -> Iterator[Sample]:
        for tar in paths:
            for key, members in itertools.groupby(_members(tar, labels), lambda member: member[0]):
                yield _sample(tar, key, [(name, data) for _, name, data in members], inputs)

    return Source(text, inputs, read)


def _members(path: Path, labels: Collection[str]) -> Iterator[tuple[str, str, bytes | DataError]]:
    """(key, rest of the name, content) of every file in a tar; the last has an error where the tar is damaged.

    What is no array, image or label, a video for one, is not read.
    """
    last = "its beginning"
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                stem, dot, rest = name.name.partition(".")
                if not (member.isfile() and stem and dot):
                    continue
                file = tar.extractfile(member)
                wanted = rest in labels or f".{rest.lower()}".endswith(_ARRAYS) or _is_image(rest)
                yield str(name.with_name(stem)), rest, file.read() if wanted and file is not None else b""
                last = f"member {member.name!r}"
    except Exception as error:  # noqa: BLE001  those of tarfile, zlib, bz2 and lzma, and TypeError for a cut header
        yield "", "", DataError(f"{path}: is damaged after {last}: {error}", _HINT)


def _sample(
    path: Path, key: str, members: list[tuple[str, bytes | DataError]], inputs: tuple[InputSpec, ...]
) -> Sample:
    where = f"{path}, sample {key!r}"
    specs = {spec.name: spec for spec in inputs}
    feed: dict[str, Array] = {}
    for rest, data in members:
        if isinstance(data, DataError):
            return where, data
        try:
            found = _arrays(rest, data, specs, f"{path}, member '{key}.{rest}'")
        except DataError as error:
            return where, error
        feed |= {name: with_batch(array, specs[name]) for name, array in found.items() if name in specs}
    if lost := [name for name in specs if name not in feed]:
        if any(_is_image(rest) for rest, _ in members):
            images.image_input(inputs, where)  # raises where no preprocessing is stated: that holds for all samples
        held = ", ".join(rest for rest, _ in members)
        name = "npy" if len(inputs) == 1 else f"{lost[0]}.npy"
        hint = f"Write its array as {key}.{name}."
        return where, DataError(f"{where}: has no array for input {lost[0]!r}; it holds {held}", hint)
    return where, feed


def _arrays(rest: str, data: bytes, specs: Mapping[str, InputSpec], where: str) -> dict[str, Array]:
    """The arrays of one member, by name; none where it is no data for the model.

    Raises:
        DataError: it is damaged, or a pickle.
    """
    name, _, last = rest.rpartition(".")
    suffix = f".{last.lower()}"
    if suffix in _PICKLES:
        raise DataError(f"{where}: is a pickle, which is never loaded", "Write arrays as .npy.")
    if _is_image(rest):
        spec = next((spec for spec in specs.values() if spec.preprocess), None)
        return {} if spec is None else {spec.name: images.decoded(io.BytesIO(data), spec, where)}
    try:
        if suffix == ".npy":
            read = [n for n, spec in specs.items() if not spec.label]
            return {name or (read[0] if len(read) == 1 else ""): array_of(data)}
        if suffix == ".npz":
            return arrays_of(data)
        if rest in specs and specs[rest].label:
            return {rest: np.array([int(data)])}
    except FAULTS as error:
        raise DataError(f"{where}: cannot be read: {error}", "Write it anew with np.save or np.savez.") from error
    return {}


def _is_image(rest: str) -> bool:
    return f".{rest.lower()}" in images.SUFFIXES
