"""Where calibration feeds come from: files, folders, scripts, random numbers and Python objects.

`SOURCES` is the table of the text forms; `open_source` reads any of them, or a Python object, as one stream
of checked feeds. Files are only read, one sample at a time, and nothing in them is ever unpickled. A new form is one
file of this package and one line of the table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.data.arrays import is_arrays, open_folder, open_stack
from onnxq.data.columns import is_columns, open_columns
from onnxq.data.feeds import Feed, InputSpec, check_feed, input_specs, label_specs, split_batch
from onnxq.data.images import is_images, open_images
from onnxq.data.invented import open_random
from onnxq.data.objects import open_object
from onnxq.data.paths import existing
from onnxq.data.polygraphy_json import open_json
from onnxq.data.preprocess import with_preprocess
from onnxq.data.scripts import is_script, open_script
from onnxq.data.shapes import apply_shapes, parse_shapes
from onnxq.data.source import Source
from onnxq.data.spool import rereadable
from onnxq.data.tars import is_tars, open_tars
from onnxq.data.zoo import find_sets, open_zoo
from onnxq.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnxq.data.feeds import Shape

__all__ = [
    "SOURCES",
    "Feed",
    "Form",
    "InputSpec",
    "Source",
    "apply_shapes",
    "check_feed",
    "find_beside",
    "input_specs",
    "label_specs",
    "open_source",
    "parse_shapes",
    "rereadable",
    "split_batch",
    "with_preprocess",
]


@dataclass(frozen=True)
class Form:
    """One text form of a source: what it is called, which texts it takes, how it is opened; can images be in it."""

    name: str
    matches: Callable[[str], bool]
    open: Callable[[str, tuple[InputSpec, ...]], Source]
    images: bool = False


def _unless_arrays(matches: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda text: matches(text) and not is_arrays(text)


SOURCES: tuple[Form, ...] = (  # the first that matches; a folder is of arrays if there are any directly in it
    Form("random:N", lambda text: text.startswith("random:"), open_random),
    Form("script.py[:load_data]", is_script, open_script),
    Form("folder of test_data_set_*", lambda text: bool(find_sets(text)), open_zoo),
    Form("Parquet or Arrow, or a folder of them", _unless_arrays(is_columns), open_columns, images=True),
    Form("WebDataset .tar, or a folder of them", _unless_arrays(is_tars), open_tars, images=True),
    Form("folder of images, with --preprocess", _unless_arrays(is_images), open_images, images=True),
    Form("folder of .npz or .npy, one sample each", lambda text: Path(text).is_dir(), open_folder),
    Form(".npz with stacked samples", lambda text: text.lower().endswith(".npz"), open_stack),
    Form(".npy with stacked samples", lambda text: text.lower().endswith(".npy"), open_stack),
    Form("Polygraphy .json", lambda text: text.lower().endswith(".json"), open_json),
)


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
    specs = apply_shapes(inputs, shapes or {})
    if isinstance(source, Source):
        opened = replace(source, inputs=specs)
    elif isinstance(source, str | Path):
        opened = _open_text(str(source), specs)
    else:
        _refuse_preprocess(specs, getattr(source, "__name__", type(source).__name__))
        opened = open_object(source, specs)
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


def _open_text(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    if not text:
        raise DataError("the name of the calibration data is empty", "Give the path of a file or folder.")
    for form in SOURCES:
        if form.matches(text):
            if not form.images:
                _refuse_preprocess(inputs, text)
            return form.open(text, inputs)
    known = "Known are: " + "; ".join(form.name for form in SOURCES) + "."
    raise DataError(f"{existing(text)}: is no known form of calibration data", known)


def _refuse_preprocess(inputs: tuple[InputSpec, ...], name: str) -> None:
    """Raise DataError where a preprocessing is stated for what holds arrays."""
    if any(spec.preprocess for spec in inputs):
        hint = "Leave it out: arrays are taken as they are. Or give the images themselves."
        raise DataError(f"{name}: holds arrays, and --preprocess is for images", hint)
