"""Feeds from Parquet and Arrow files, one for each row, read by pyarrow: extra `onnxq[parquet]`.

A column is the input of its name; only those columns are read, a few rows at a time. Images are columns of bytes, or
of records with bytes, as Hugging Face's datasets have them.
"""

from __future__ import annotations

import io
import math
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxq.data import images
from onnxq.data.feeds import with_batch
from onnxq.data.paths import existing, with_suffix
from onnxq.data.source import Sample, Source
from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from onnxq.data.feeds import Array, InputSpec

SUFFIXES = frozenset((".parquet", ".arrow", ".feather"))
_ROWS = 16  # that are decoded at a time

Arrow = Any
"""Something of pyarrow's, which need not be there."""


def is_columns(text: str) -> bool:
    """Whether the text is that of a Parquet or Arrow file, or a folder of them."""
    path = Path(text)
    return path.suffix.lower() in SUFFIXES or (path.is_dir() and bool(with_suffix(text, SUFFIXES)))


def open_columns(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    """The rows of a file, or of all files of a folder in natural order.

    A value may lack the batch axis, and may be a flat list where the input has only one dynamic axis, the batch.

    Raises:
        DataError: there is no such file, or pyarrow is missing; while reading, for a damaged file, or a column that
            an input lacks.
    """
    path = existing(text)
    paths = with_suffix(text, SUFFIXES) if path.is_dir() else [path]
    _pyarrow(text)
    if any(spec.preprocess for spec in inputs):
        images.image_input(inputs, text)

    def read() -> Iterator[Sample]:
        for file in paths:
            row = 0
            for batch in _batches(file, inputs):
                if isinstance(batch, DataError):
                    yield str(file), batch
                    continue
                columns = _columns(batch.schema, inputs, file)
                for i in range(batch.num_rows):
                    yield _sample(batch, i, columns, f"{file}, row {row}")
                    row += 1

    return Source(text, inputs, read)


def _batches(path: Path, inputs: tuple[InputSpec, ...]) -> Iterator[Arrow]:
    """A file's record batches; an error in place of what is damaged, where that can be read past."""
    try:
        if path.suffix.lower() == ".parquet":
            yield from _parquet(path, inputs)
        else:
            yield from _arrow(path)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001  pyarrow raises OSError, ValueError, TypeError, NotImplementedError and its own
        yield _damaged(str(path), error)


def _parquet(path: Path, inputs: tuple[InputSpec, ...]) -> Iterator[Arrow]:
    from pyarrow import parquet  # noqa: TID251  this is the wall

    with parquet.ParquetFile(path) as file:
        names = sorted({name for name, _ in _columns(file.schema_arrow, inputs, path).values()})
        for group in range(file.num_row_groups):
            try:
                yield from file.iter_batches(_ROWS, row_groups=[group], columns=names, use_threads=False)
            except Exception as error:  # noqa: BLE001  as above; the next group may be whole
                yield _damaged(f"{path}, row group {group}", error)


def _arrow(path: Path) -> Iterator[Arrow]:
    pa = _pyarrow(str(path))
    with closing(pa.OSFile(str(path))) as file:
        if file.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            file.seek(0)
            batches = iter(pa.ipc.open_stream(file))
        for batch in batches:
            batch.validate(full=True)  # Arrow ends the process when it follows an offset that is out of bounds
            yield batch


def _columns(schema: Arrow, inputs: tuple[InputSpec, ...], path: Path) -> dict[InputSpec, tuple[str, bool]]:
    """Input -> the name of its column, and whether images are in it.

    Raises:
        DataError: an input has none.
    """
    try:
        names = list(schema.names)
    except UnicodeDecodeError as error:
        raise _damaged(f"{path}, the names of its columns", error) from error
    pictures = [field.name for field in schema if _holds_bytes(field.type)]
    found: dict[InputSpec, tuple[str, bool]] = {}
    for spec in inputs:
        name = spec.name
        if spec.preprocess and name not in names and len(pictures) == 1:
            name = pictures[0]
        if names.count(name) != 1:
            says = f"{path}: has no column for input {name!r}; it has {', '.join(map(repr, names)) or 'none'}"
            raise DataError(says, "Name the columns after the model's inputs.")
        if name in pictures and not spec.label:
            images.image_input([spec], f"{path}, column {name!r}")
        found[spec] = name, name in pictures
    return found


def _holds_bytes(kind: Arrow) -> bool:
    types = _pyarrow("").types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _sample(batch: Arrow, i: int, columns: Mapping[InputSpec, tuple[str, bool]], where: str) -> Sample:
    feed: dict[str, Array] = {}
    for spec, (name, picture) in columns.items():
        says = f"{where}, column {name!r}"
        try:
            value = batch.column(name)[i]
            if not value.is_valid:
                return where, DataError(f"{says}: is null", "Fill it, or leave this row out with --skip-bad.")
            if picture and not spec.label:
                feed[spec.name] = images.decoded(_bytes(value), spec, says)
            else:
                feed[spec.name] = _shaped(_array(value), spec)
        except DataError as error:
            return where, error
        except Exception as error:  # noqa: BLE001  whatever pyarrow and numpy find in damaged or ragged values
            return where, DataError(f"{says}: is no array: {error}", "Store lists of numbers, of equal lengths.")
    return where, feed


def _bytes(value: Arrow) -> io.BytesIO:
    found = value.as_py()
    return io.BytesIO((found.get("bytes") if isinstance(found, dict) else found) or b"")


def _array(value: Arrow) -> Array:
    """A number or (nested) list of numbers as an array, without Python objects between."""
    if isinstance(value, _pyarrow("").FixedShapeTensorScalar):
        return np.asarray(value.to_numpy())
    if hasattr(value, "values") and not hasattr(value, "keys"):
        return _stacked(value.values)
    return np.asarray(value.as_py(), None if (kind := _dtype(value.type)) is None else kind)


def _stacked(values: Arrow) -> Array:
    """The array that an Arrow array of lists holds; ValueError where they differ in length, or hold null."""
    if values.null_count:
        raise ValueError("a value is null")
    types = _pyarrow("").types
    kind = values.type
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        if _dtype(kind) is None:
            raise ValueError(f"its type is {kind}")
        return np.asarray(values.to_numpy(zero_copy_only=False))
    lengths = set(values.value_lengths().to_pylist())
    if len(lengths) > 1:
        raise ValueError(f"its lists are of lengths {min(lengths)} to {max(lengths)}")
    inner = _stacked(values.flatten())
    return inner.reshape(len(values), *lengths or (0,), *inner.shape[1:])


def _dtype(kind: Arrow) -> np.dtype[Any] | None:
    """Numpy's type of a plain number, None for any other type."""
    types = _pyarrow("").types
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        dtype: np.dtype[Any] = np.dtype(kind.to_pandas_dtype())
        return dtype
    return None


def _shaped(array: Array, spec: InputSpec) -> Array:
    """The array in the input's shape where it is a flat list, and with the batch axis that it may lack."""
    rest = spec.shape[1:] if spec.shape else ()
    sizes = [d for d in rest if isinstance(d, int)]
    if array.ndim == 1 and len(rest) > 1 and len(sizes) == len(rest) and array.size == math.prod(sizes):
        return array.reshape(1, *sizes)
    return with_batch(array, spec)


def _damaged(where: str, error: Exception) -> DataError:
    said = str(error).strip().split("\n")[0]
    return DataError(f"{where}: cannot be read: {said}", "Write the file anew, or copy it again.")


def _pyarrow(where: str) -> Arrow:
    try:
        import pyarrow as pa  # noqa: TID251  this is the wall
    except ImportError as error:
        says = f"{where}: Parquet and Arrow need pyarrow, which is not installed"
        raise DataError(says, "pip install 'onnxq[parquet]'") from error
    return pa
