"""Where calibration feeds come from: files, folders, scripts, random numbers and Python objects.

`SOURCES` is the table of the text forms; `open_source` reads any of them, or a Python object, as one stream
of checked feeds. Files are only read, one sample at a time, and nothing in them is ever unpickled.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import itertools
import json
import math
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from onnxq.errors import DataError, RecipeError

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
"""One run of the model: input name -> array, batch axis included."""

Shape = tuple[int, ...]
Sample = tuple[str, object]
"""A feed that is not checked yet, after the words that say where it came from."""


@dataclass(frozen=True)
class InputSpec:
    """What the model declares about one input.

    Attributes:
        name: the input's name in the graph.
        dtype: its element type.
        shape: one entry per axis, None or a symbol for a dynamic one; None where even the rank is unknown.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Source:
    """A stream of checked feeds; each iteration is a new pass over the data, where the data allows one.

    Attributes:
        name: what messages and the plan call it.
        inputs: the model's inputs, which every feed must fit.
        read: begins a pass.
        length: the number of feeds, None where only reading tells.
        limit: read at most this many feeds.
    """

    name: str
    inputs: tuple[InputSpec, ...]
    read: Callable[[], Iterable[Sample]]
    length: int | None = None
    limit: int | None = None

    def __iter__(self) -> Iterator[Feed]:
        return (feed for _, feed in self.samples())

    def samples(self) -> Iterator[tuple[str, Feed]]:
        """Every feed behind the words that say where it came from.

        Raises:
            DataError: a feed cannot be read or does not fit the model, or there is none.
        """
        empty = True
        for where, feed in itertools.islice(self.read(), self.limit):
            empty = False
            yield where, check_feed(feed, self.inputs, where)
        if empty:
            raise DataError(f"{self.name}: holds no samples", "Give at least one feed of the model's inputs.")


@dataclass(frozen=True)
class Form:
    """One text form of a source: what it is called, which texts it takes, and how it is opened."""

    name: str
    matches: Callable[[str], bool]
    open: Callable[[str, tuple[InputSpec, ...]], Source]


def open_source(
    source: object,
    inputs: Sequence[InputSpec],
    *,
    max_samples: int | None = None,
    shapes: Mapping[str, Shape] | None = None,
) -> Source:
    """Open calibration data as a stream of feeds that fit the model.

    Args:
        source: a text form of `SOURCES` or a path; or an iterable of feeds, a callable that returns one, or
            an object with ONNX Runtime's `get_next()` (and `rewind()`).
        inputs: the model's inputs, in its order.
        max_samples: stop after so many feeds.
        shapes: input name -> shape, for dynamic axes; each feed must have it, stacked files are cut to it.

    Raises:
        DataError: the source is missing, empty or of no known form. Iterating raises it too, for a feed that
            cannot be read or does not fit.
        RecipeError: max_samples is below 1, or shapes does not fit the inputs.
    """
    if max_samples is not None and max_samples < 1:
        raise RecipeError(f"max_samples is {max_samples}", "Give 1 or more, or leave it out to read everything.")
    specs = _settle(inputs, shapes or {})
    if isinstance(source, Source):
        opened = replace(source, inputs=specs)
    elif isinstance(source, str | Path):
        opened = _open_text(str(source), specs)
    else:
        opened = _open_object(source, specs)
    if max_samples is None:
        return opened
    limit = min(max_samples, opened.limit or max_samples)
    return replace(opened, limit=limit, length=None if opened.length is None else min(limit, opened.length))


def find_beside(model_path: Path) -> Path | None:
    """Calibration data beside a model, None if there is none.

    The first of `<stem>.npz`, `<stem>_calib/`, and the model's own folder if it holds test_data_set_*.
    """
    file = model_path.with_name(f"{model_path.stem}.npz")
    folder = model_path.with_name(f"{model_path.stem}_calib")
    if file.is_file():
        return file
    if folder.is_dir():
        return folder
    return model_path.parent if any(model_path.parent.glob("test_data_set_*")) else None


def parse_shapes(text: str) -> dict[str, Shape]:
    """Read `x:1x3x224x224` or `x:[1,3,224,224]`, several parted by commas or spaces.

    Names may hold colons: the last one parts name and shape.

    Raises:
        RecipeError: an entry is malformed, has an axis below 1 or comes twice.
    """
    shapes: dict[str, Shape] = {}
    for entry in re.split(r"(?:\s*,\s*|\s+)(?![^\[]*\])", text.strip()):  # no split at commas inside brackets
        name, _, dims = entry.rpartition(":")
        if not name or not re.fullmatch(r"[0-9]+(x[0-9]+)*|\[\s*([0-9]+(\s*,\s*[0-9]+)*)?\s*\]", dims):
            raise RecipeError(f"shape {entry!r} is not NAME:SHAPE", "Write x:1x3x224x224 or x:[1,3,224,224].")
        if name in shapes:
            raise RecipeError(f"shape of {name!r} is given twice", "Keep one of them.")
        shapes[name] = tuple(int(dim) for dim in re.findall(r"[0-9]+", dims))
        if 0 in shapes[name]:
            raise RecipeError(f"shape {entry!r} has an axis of length 0", "Every axis must be 1 or more.")
    return shapes


def split_batch(feed: Feed, inputs: Sequence[InputSpec]) -> list[Feed]:
    """Split a feed of N > 1 samples along axis 0 into N feeds of one sample each, as views.

    Only where all arrays agree on N and every input's axis 0 is dynamic; otherwise the list is `[feed]`.
    """
    free = all(spec.shape and not isinstance(spec.shape[0], int) for spec in inputs)
    lengths = {feed[spec.name].shape[:1] for spec in inputs}
    if not free or len(lengths) != 1:
        return [feed]
    (count,) = lengths.pop()
    if count < 2:  # one sample is whole already
        return [feed]
    return [{name: array[i : i + 1] for name, array in feed.items()} for i in range(count)]


# --- checking a feed against the model ------------------------------------------------------------


def check_feed(feed: object, inputs: Sequence[InputSpec], where: str) -> dict[str, Array]:
    """Fit one feed to the model's inputs: names, ranks, static axes and types. NaN and infinity pass.

    Types are cast where nothing is lost; float64 may also be rounded to float32, within its range.

    Args:
        feed: input name -> array.
        inputs: the model's inputs.
        where: the file or sample, for the messages.

    Returns:
        A new dict in the order of `inputs`, with C-contiguous arrays.

    Raises:
        DataError: the feed does not fit.
    """
    if not isinstance(feed, Mapping):
        hint = "Each sample is a dict: input name -> array, such as {'x': array}."
        raise DataError(f"{where}: is of type {type(feed).__name__}, not a mapping", hint)
    _check_names(list(feed), inputs, where)
    return {spec.name: _fit(feed[spec.name], spec, where) for spec in inputs}


def _check_names(names: Sequence[object], inputs: Sequence[InputSpec], where: str) -> None:
    wanted = [spec.name for spec in inputs]
    missing = [name for name in wanted if name not in names]
    unknown = [name for name in names if name not in wanted]
    listed = ", ".join(map(repr, wanted))
    if unknown:
        # A lone array for a lone gap is surely meant for it, but only the user can know.
        near = get_close_matches(str(unknown[0]), wanted, n=1) or (missing if len(missing) == 1 else [])
        meant = f"Did you mean {near[0]!r}? " if near else ""
        hint = f"{meant}Name each array after the model's input: {{{(near or wanted or ['x'])[0]!r}: array}}."
        raise DataError(f"{where}: unknown input {unknown[0]!r}; the model's inputs are {listed}", hint)
    if missing:
        lost = ", ".join(map(repr, missing))
        raise DataError(f"{where}: no array for input {lost}", f"The model's inputs are {listed}; give them all.")


def _fit(value: object, spec: InputSpec, where: str) -> Array:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as err:  # ragged lists, tensors on another device
        raise DataError(f"{where}: input {spec.name!r} is not an array: {err}", "Give a numpy array.") from err
    _check_shape(array.shape, spec, where)
    fitted = array if array.dtype == spec.dtype else _cast(array, spec.dtype)
    if fitted is None:
        says = f"{where}: input {spec.name!r} is {array.dtype}; the model takes {spec.dtype}"
        hint = f"If the loss is meant, store it as array.astype({spec.dtype.name!r})."
        raise DataError(f"{says}, and the cast would lose values", hint)
    return np.asarray(fitted, order="C")  # not ascontiguousarray: that adds an axis to scalars


def _check_shape(shape: Shape, spec: InputSpec, where: str) -> None:
    if spec.shape is None:
        return
    says = f"{where}: input {spec.name!r} has shape {_show(shape)}; the model takes {_show(spec.shape)}"
    if len(shape) != len(spec.shape):
        lacks_batch = len(shape) == len(spec.shape) - 1
        hint = "Add the batch axis: array[np.newaxis]." if lacks_batch else "Reshape the array to that rank."
        raise DataError(f"{says} (rank {len(shape)}, not {len(spec.shape)})", hint)
    for axis, (length, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
        if isinstance(wanted, int) and length != wanted:
            hint = "Give data as the model was trained on, its axes in the model's order."
            raise DataError(f"{says} (axis {axis} is {length}, not {wanted})", hint)


def _show(shape: tuple[int | str | None, ...]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def _cast(array: Array, dtype: np.dtype[Any]) -> Array | None:
    """The array as dtype, or None where the cast would lose values."""
    if array.dtype.kind not in "biuf" or dtype.kind not in "biufV":  # V: bfloat16 and other extension floats
        return None
    with np.errstate(all="ignore"):  # what overflows is found below
        result = array.astype(dtype)
        if array.dtype == np.float64 and dtype == np.float32:  # images are often float64
            return result if np.array_equal(np.isinf(array), np.isinf(result)) else None
        if not (_in_range(array, dtype) and _in_range(result, array.dtype)):
            return None
        back = result.astype(array.dtype)
    return result if np.array_equal(back, array, equal_nan=array.dtype.kind == "f") else None


def _in_range(values: Array, dtype: np.dtype[Any]) -> bool:
    """Whether an integer dtype spans the values.

    Casts out of range wrap, or saturate on some processors; either can survive a round trip.
    """
    if dtype.kind not in "iu" or not values.size:
        return True
    info = np.iinfo(dtype)  # item() makes Python numbers, which compare exactly
    return bool(values.min().item() >= info.min and values.max().item() <= info.max)


def _settle(inputs: Sequence[InputSpec], shapes: Mapping[str, Shape]) -> tuple[InputSpec, ...]:
    """The inputs with the shapes the user gave."""
    names = [spec.name for spec in inputs]
    for name in shapes:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The model's inputs are {', '.join(map(repr, names))}."
            raise RecipeError(f"shape given for {name!r}, which is no input of the model", hint)
    given = [spec for spec in inputs if spec.name in shapes]
    for spec in given:
        try:
            _check_shape(shapes[spec.name], spec, "shapes")
        except DataError as err:
            raise RecipeError(err.message, "Give a shape that the model's input allows.") from err
    return tuple(replace(spec, shape=shapes.get(spec.name, spec.shape)) for spec in inputs)


# --- .npy and .npz: read as streams, so that a stack larger than the memory works -----------------


@dataclass(frozen=True)
class _Stored:
    """An array in a file, of which only the header is read; its data come next in the stream."""

    stream: IO[bytes]
    shape: Shape
    dtype: np.dtype[Any]
    fortran: bool

    def all(self) -> Array:
        """The whole array, read-only."""
        return self._take(self.shape, "F" if self.fortran else "C")

    def slices(self, step: int, count: int) -> Iterator[Array]:
        """Feed after feed: `step` rows each, or one row without its axis where step is 0."""
        whole = self.all() if self.fortran else None  # its rows are scattered through the file
        for i in range(count):
            rows = max(step, 1)
            shape = (rows, *self.shape[1:])
            part = self._take(shape, "C") if whole is None else whole[i * rows : (i + 1) * rows]
            yield part if step else part[0]

    def _take(self, shape: Shape, order: Any) -> Array:  # noqa: ANN401 - numpy's own Literal is private
        size = math.prod(shape) * self.dtype.itemsize
        data = self.stream.read(size)
        if len(data) < size:
            raise EOFError("the file ends before its data does")
        return np.ndarray(shape, self.dtype, buffer=data, order=order)


def _header(stream: IO[bytes]) -> _Stored:
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
    return _Stored(stream, shape, dtype, fortran)


@contextmanager
def _arrays(path: Path, inputs: Sequence[InputSpec]) -> Iterator[dict[str, _Stored]]:
    """The arrays of a .npz, or the one of a .npy, by input name; what is wrong inside becomes a DataError."""
    # RuntimeError and NotImplementedError: zip members with a password or an unknown compression.
    faults = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)
    try:
        with ExitStack() as stack:
            if path.suffix.lower() == ".npy":
                yield {_only(inputs, path).name: _header(stack.enter_context(path.open("rb")))}
                return
            archive = stack.enter_context(zipfile.ZipFile(path))
            names = archive.namelist()
            streams = {name.removesuffix(".npy"): stack.enter_context(archive.open(name)) for name in names}
            _check_names(list(streams), inputs, str(path))
            yield {name: _header(stream) for name, stream in streams.items()}
    except faults as err:
        hint = "Write it anew with np.save or np.savez, from arrays of numbers."
        raise DataError(f"{path}: cannot be read: {err}", hint) from err


def _only(inputs: Sequence[InputSpec], path: Path) -> InputSpec:
    if len(inputs) == 1:
        return inputs[0]
    listed = ", ".join(repr(spec.name) for spec in inputs)
    hint = "Use .npz files with one key for each input."
    raise DataError(f"{path}: a .npy holds one array, but the model's inputs are {listed}", hint)


def _open_stack(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    path = _existing(text)
    with _arrays(path, inputs) as arrays:
        specs = {spec.name: spec for spec in inputs}
        steps = {name: _step(stored.shape, specs[name], path) for name, stored in arrays.items()}
        counts = {name: arrays[name].shape[0] // (step or 1) for name, step in steps.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise DataError(f"{path}: the inputs differ in the number of samples: {listed}", "Stack equally many of each.")
    count = next(iter(counts.values()), 0)

    def read() -> Iterator[Sample]:
        with _arrays(path, inputs) as arrays:
            parts = {name: stored.slices(steps[name], count) for name, stored in arrays.items()}
            for i in range(count):
                yield f"{path}, sample {i}", {name: next(part) for name, part in parts.items()}

    return Source(text, inputs, read, count)


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
    takes = "samples on axis 0" if declared is None else f"{_show(declared)} with the samples on axis 0"
    hint = "A single sample needs its batch axis: array[np.newaxis]. Several are stacked along it."
    raise DataError(f"{path}: input {spec.name!r} has shape {_show(shape)}; the model takes {takes}", hint)


def _open_folder(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    entries = sorted((path for path in Path(text).iterdir() if not path.name.startswith(".")), key=_natural)
    files = [path for path in entries if path.suffix.lower() in {".npz", ".npy"}]
    if not files:
        seen = f"only such as {entries[0].name!r}" if entries else "it is empty"
        looked = "looked for *.npz, *.npy and test_data_set_*/input_*.pb directly inside"
        raise DataError(f"{text}: holds no calibration data: {looked}, {seen}", "Save one .npz for each sample.")
    if len({path.suffix.lower() for path in files}) > 1:
        raise DataError(f"{text}: holds both .npz and .npy files", "Keep one kind in the folder.")
    if files[0].suffix.lower() == ".npy":
        _only(inputs, files[0])

    def read() -> Iterator[Sample]:
        for path in files:
            with _arrays(path, inputs) as arrays:
                feed = {name: stored.all() for name, stored in arrays.items()}
            yield str(path), feed

    return Source(text, inputs, read, len(files))


def _natural(path: Path) -> tuple[list[str | int], str]:
    """Order by name with numbers as numbers: a2 before a10."""
    parts = re.split(r"([0-9]+)", path.name)  # the odd ones are the numbers
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def _existing(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        raise DataError(f"{text}: no such file or folder", "Check the path.")
    return path


# --- the other text forms -------------------------------------------------------------------------


def _open_json(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    path = _existing(text)

    def read() -> Iterator[Sample]:
        try:
            feeds = json.loads(path.read_bytes())
        except (OSError, ValueError) as err:
            hint = "Write it with polygraphy.json.save_json(list_of_feeds, path)."
            raise DataError(f"{path}: cannot be read as JSON: {err}", hint) from err
        if not isinstance(feeds, list):
            raise DataError(f"{path}: is not a list of feeds", "Save a list of dicts: input name -> array.")
        # Only the text is held: arrays are decoded one feed at a time.
        for i, feed in enumerate(feeds):
            where = f"{path}, sample {i}"
            yield (
                where,
                {k: _decode(v, k, where) for k, v in feed.items()} if isinstance(feed, dict) else feed,
            )

    return Source(text, inputs, read)


def _decode(value: object, name: str, where: str) -> Array:
    """An array as Polygraphy's JSON has it: a .npy file in base64.

    Decoded here because Polygraphy also decodes torch tensors, which are pickles.
    """
    says = f"{where}: input {name!r}"
    if not isinstance(value, dict) or not isinstance(value.get("array"), str):
        raise DataError(f"{says} is not a numpy array", "Save numpy arrays, not torch tensors or lists.")
    try:
        return _header(io.BytesIO(base64.b64decode(value["array"], validate=True))).all()
    except (ValueError, EOFError) as err:
        raise DataError(f"{says} cannot be decoded: {err}", "Write it anew with polygraphy.json.save_json.") from err


def _open_script(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    file, _, function = text.rpartition(":") if not text.endswith(".py") else (text, "", "")
    path, wanted = _existing(file), function or "load_data"
    names = _run_script(path)
    if wanted not in names:
        near = get_close_matches(wanted, names, n=1)
        hint = f"Did you mean {path}:{near[0]}?" if near else f"Define {wanted}() there, or name another: {path}:NAME."
        raise DataError(f"{path}: defines no {wanted!r}", hint)
    return replace(_open_object(names[wanted], inputs), name=text)


def _run_script(path: Path) -> dict[str, object]:
    """Run a user's script as a module, its own folder importable meanwhile, and return what it defines."""
    spec = importlib.util.spec_from_file_location(f"onnxq data script {path.stem}", path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path}: is not a Python script", "Give a .py file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as err:  # whatever the user's code raises
        raise DataError(f"{path}: {type(err).__name__}: {err}", "Run the script by itself to see where.") from err
    finally:
        sys.path.remove(str(path.resolve().parent))
        del sys.modules[spec.name]
    return vars(module)


def _zoo_folders(text: str) -> list[Path]:
    path = Path(text)
    folders = sorted(path.glob("test_data_set_*"), key=_natural)
    return folders or ([path] if any(path.glob("input_*.pb")) else [])


def _open_zoo(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    folders = _zoo_folders(text)

    def read() -> Iterator[Sample]:
        for folder in folders:
            files = sorted(folder.glob("input_*.pb"), key=_natural)
            if len(files) != len(inputs):
                says = f"{folder}: has {len(files)} input_*.pb files for the model's {len(inputs)} inputs"
                raise DataError(says, "Give input_0.pb, input_1.pb ... in the order of the model's inputs.")
            yield str(folder), {s.name: _read_tensor(f) for s, f in zip(inputs, files, strict=True)}

    return Source(text, inputs, read, len(folders))


def _read_tensor(path: Path) -> Array:
    import onnx  # noqa: PLC0415 - heavy, and only this form needs it

    try:
        tensor = onnx.TensorProto.FromString(path.read_bytes())
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except Exception as err:  # protobuf's and onnx's errors have no common base
        hint = "Each input_*.pb holds one TensorProto; sequence and optional inputs are not supported."
        raise DataError(f"{path}: cannot be read as a tensor: {err}", hint) from err


def _open_random(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    digits = text.removeprefix("random:")
    if not re.fullmatch(r"0*[1-9][0-9]*", digits):
        raise DataError(f"{text}: {digits!r} is not a number of samples", "Write random:N with N of 1 or more.")
    count = int(digits)
    shapes = {spec.name: _random_shape(spec) for spec in inputs}

    def read() -> Iterator[Sample]:
        rng = np.random.default_rng(0)  # every pass and every run gives the same feeds
        for i in range(count):
            yield f"{text}, sample {i}", {spec.name: _draw(rng, spec, shapes[spec.name]) for spec in inputs}

    return Source(text, inputs, read, count)


def _random_shape(spec: InputSpec) -> Shape:
    how = f"Give its shape: --shapes {spec.name}:"
    if spec.shape is None:
        raise DataError(f"random data: input {spec.name!r} has no known rank", f"{how}1x3x224x224 for example.")
    shape = tuple(1 if axis == 0 and not isinstance(d, int) else d for axis, d in enumerate(spec.shape))
    if all(isinstance(dim, int) for dim in shape):
        return cast("Shape", shape)
    filled = "x".join(str(dim) if isinstance(dim, int) else "N" for dim in shape)
    says = f"random data: input {spec.name!r} has dynamic axes beyond the batch: {_show(spec.shape)}"
    raise DataError(says, f"{how}{filled} with a number for each N.")


def _draw(rng: np.random.Generator, spec: InputSpec, shape: Shape) -> Array:
    if spec.dtype.kind in "biu":
        return rng.integers(0, 2, shape).astype(spec.dtype)
    if spec.dtype.kind in "fV":
        return rng.standard_normal(shape).astype(spec.dtype)
    raise DataError(f"random data: input {spec.name!r} is {spec.dtype}, not numeric", "Give real data.")


_SCRIPT = re.compile(r".+\.py(:\w+)?")

SOURCES: tuple[Form, ...] = (  # the first that matches; folders of test data before plain folders
    Form("random:N", lambda text: text.startswith("random:"), _open_random),
    Form("script.py[:load_data]", lambda text: bool(_SCRIPT.fullmatch(text)), _open_script),
    Form("folder of test_data_set_*", lambda text: bool(_zoo_folders(text)), _open_zoo),
    Form("folder of .npz or .npy, one sample each", lambda text: Path(text).is_dir(), _open_folder),
    Form(".npz with stacked samples", lambda text: text.lower().endswith(".npz"), _open_stack),
    Form(".npy with stacked samples", lambda text: text.lower().endswith(".npy"), _open_stack),
    Form("Polygraphy .json", lambda text: text.lower().endswith(".json"), _open_json),
)


def _open_text(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    for form in SOURCES:
        if form.matches(text):
            return form.open(text, inputs)
    known = "Known are: " + "; ".join(form.name for form in SOURCES) + "."
    raise DataError(f"{_existing(text)}: is no known form of calibration data", known)


# --- Python objects -------------------------------------------------------------------------------


def _open_object(source: object, inputs: tuple[InputSpec, ...]) -> Source:
    name = getattr(source, "__name__", type(source).__name__)
    get_next, rewind = getattr(source, "get_next", None), getattr(source, "rewind", None)
    start: Callable[[], Iterable[object]]
    if isinstance(source, Mapping | np.ndarray | bytes | type):
        raise DataError(f"{name}: is one value, not an iterable of feeds", "Give a list of dicts: [{'x': array}, ...].")
    if callable(get_next):
        start = _once(lambda: iter(get_next, None), rewind if callable(rewind) else None, name)
    elif isinstance(source, Iterator):
        start = _once(lambda: source, None, name)
    elif hasattr(source, "__iter__") or hasattr(source, "__getitem__"):
        start = lambda: iter(cast("Iterable[object]", source))  # noqa: E731 - one of four ways to begin a pass
    elif callable(source):
        start = source
    else:
        raise DataError(f"{name}: is not an iterable of feeds", "Give a list, a generator, a callable or a path.")

    def read() -> Iterator[Sample]:
        feeds = start()
        if isinstance(feeds, Mapping) or not hasattr(feeds, "__iter__"):
            says = f"{name}: gave a value of type {type(feeds).__name__}, not an iterable of feeds"
            raise DataError(says, "Yield the feeds, or return a list of dicts.")
        for i, feed in enumerate(feeds):
            yield f"{name}, sample {i}", feed

    return Source(name, inputs, read, None if callable(get_next) else _length(source))


def _once(
    start: Callable[[], Iterable[object]], rewind: Callable[[], object] | None, name: str
) -> Callable[[], Iterable[object]]:
    """Begin the only pass, or rewind before each further one: none may go on where the last one left."""
    passes = itertools.count()

    def begin() -> Iterable[object]:
        if next(passes):
            if rewind is None:
                hint = "Give a list, or a function that makes a new generator on each call."
                raise DataError(f"{name}: can be read only once and already was", hint)
            rewind()
        return start()

    return begin


def _length(source: object) -> int | None:
    try:
        return len(source) if isinstance(source, Sized) else None
    except (TypeError, NotImplementedError):  # loaders of streams have a __len__ that only raises
        return None
