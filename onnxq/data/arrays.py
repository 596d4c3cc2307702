"""Feeds from .npy and .npz: one file with the samples stacked on axis 0, or a folder with a file for each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.data.feeds import show
from onnxq.data.npy import only_input, open_arrays
from onnxq.data.paths import existing, natural, with_suffix
from onnxq.data.source import Sample, Source
from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.data.feeds import Array, InputSpec, Shape

_SUFFIXES = frozenset((".npz", ".npy"))


def open_stack(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    """A .npy or .npz whose samples are stacked on axis 0, as feeds of the model's batch.

    A dynamic batch gives one row each, a static one of B gives B rows each; an array with one axis more than the
    input gives its entries along that axis.

    Raises:
        DataError: the file cannot be read, or its arrays do not stack feeds of the inputs.
    """
    path = existing(text)
    with open_arrays(path, inputs) as arrays:
        specs = {spec.name: spec for spec in inputs}
        steps = {name: _step(stored.shape, specs[name], path) for name, stored in arrays.items()}
        counts = {name: arrays[name].shape[0] // (step or 1) for name, step in steps.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise DataError(f"{path}: the inputs differ in the number of samples: {listed}", "Stack equally many of each.")
    count = next(iter(counts.values()), 0)

    def read() -> Iterator[Sample]:
        with open_arrays(path, inputs) as arrays:
            parts = {name: stored.slices(steps[name], count) for name, stored in arrays.items()}
            for i in range(count):
                yield f"{path}, sample {i}", {name: next(part) for name, part in parts.items()}

    return Source(text, inputs, read, count)


def is_arrays(text: str) -> bool:
    """Whether the text is a folder with .npz or .npy directly in it."""
    return Path(text).is_dir() and bool(with_suffix(text, _SUFFIXES))


def open_folder(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    """A folder of .npz or of .npy files, each one feed, in natural order of their names.

    Raises:
        DataError: the folder holds neither or both, or .npy files for a model of several inputs.
    """
    entries = sorted((path for path in Path(text).iterdir() if not path.name.startswith(".")), key=natural)
    files = [path for path in entries if path.suffix.lower() in _SUFFIXES]
    if not files:
        seen = f"only such as {entries[0].name!r}" if entries else "it is empty"
        looked = "looked for *.npz, *.npy, *.parquet, *.arrow, *.tar, test_data_set_*/input_*.pb and images"
        raise DataError(f"{text}: holds no calibration data: {looked}, {seen}", "Save one .npz for each sample.")
    if len({path.suffix.lower() for path in files}) > 1:
        raise DataError(f"{text}: holds both .npz and .npy files", "Keep one kind in the folder.")
    if files[0].suffix.lower() == ".npy":
        only_input(inputs, files[0])

    def read() -> Iterator[Sample]:
        yield from ((str(path), _one_feed(path, inputs)) for path in files)

    return Source(text, inputs, read, len(files))


def _one_feed(path: Path, inputs: tuple[InputSpec, ...]) -> dict[str, Array] | DataError:
    """The arrays of a file, or what is wrong with it."""
    try:
        with open_arrays(path, inputs) as arrays:
            return {name: stored.all() for name, stored in arrays.items()}
    except DataError as error:
        return error


def _step(shape: Shape, spec: InputSpec, path: Path) -> int:
    """Rows of a stack for each feed; 0 where the feeds lie along an axis of their own."""
    declared = spec.shape
    if shape and (declared is None or len(shape) == len(declared)):
        batch = declared[0] if declared else 1
        step = max(batch, 1) if isinstance(batch, int) else 1
        if shape[0] % step:
            says = f"{path}: input {spec.name!r} has {shape[0]} samples, no multiple of the batch of {step}"
            raise DataError(says, f"Give a multiple of {step} samples.")
        return step
    if declared is not None and len(shape) == len(declared) + 1:
        return 0
    takes = "samples on axis 0" if declared is None else f"{show(declared)} with the samples on axis 0"
    hint = "A single sample needs its batch axis: array[np.newaxis]. Several are stacked along it."
    raise DataError(f"{path}: input {spec.name!r} has shape {show(shape)}; the model takes {takes}", hint)
