"""Feeds, and how they are checked against the inputs of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxq.data.casts import cast
from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxq.data.preprocess import Preprocess
    from onnxq.graph import Graph

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
"""One run of the model: input name -> array, batch axis included."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class InputSpec:
    """What the model declares about one input.

    Attributes:
        name: the input's name in the graph.
        dtype: its element type.
        shape: one entry per axis, None or a symbol for a dynamic one; None where even the rank is unknown.
        label: no input at all, but an array that goes with each sample for the user's metric, of any type.
        preprocess: how images become this input; None where none was stated.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None
    label: bool = False
    preprocess: Preprocess | None = None


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
    check_names(list(feed), inputs, where)
    return {spec.name: _fit(feed[spec.name], spec, where) for spec in inputs}


def check_names(names: Sequence[object], inputs: Sequence[InputSpec], where: str) -> None:
    """Refuse a feed whose keys are not just the names of the inputs.

    Raises:
        DataError: a name is unknown or missing; `where` begins the message.
    """
    wanted = [spec.name for spec in inputs]
    read = [spec.name for spec in inputs if not spec.label]
    missing = [name for name in wanted if name not in names]
    unknown = [name for name in names if name not in wanted]
    listed = ", ".join(map(repr, read)) or "none"
    if unknown:
        # A lone array for a lone gap is surely meant for it, but only the user can know.
        near = get_close_matches(str(unknown[0]), wanted, n=1) or (missing if len(missing) == 1 else [])
        meant = f"Did you mean {near[0]!r}? " if near else ""
        hint = f"{meant}Name each array after the model's input: {{{(near or wanted or ['x'])[0]!r}: array}}."
        if not missing:
            label = f"--labels {unknown[0]}, beside --eval-data for that data alone"
            hint = f"{meant}Leave it out of the data; if it is a label that a metric reads: {label}."
        raise DataError(f"{where}: unknown input {unknown[0]!r}; the model's inputs are {listed}", hint)
    if missing:
        if missing[0] not in read:
            held = ", ".join(map(repr, names)) or "nothing"
            raise DataError(f"{where}: no array for the label {missing[0]!r}", f"It holds {held}.")
        lost = ", ".join(map(repr, missing))
        raise DataError(f"{where}: no array for input {lost}", f"The model's inputs are {listed}; give them all.")


def check_shape(shape: Shape, spec: InputSpec, where: str) -> None:
    """Refuse a shape of another rank than the input's, or of another length on a static axis.

    Raises:
        DataError: the shape does not fit; `where` begins the message.
    """
    if spec.shape is None:
        return
    says = f"{where}: input {spec.name!r} has shape {show(shape)}; the model takes {show(spec.shape)}"
    if len(shape) != len(spec.shape):
        lacks_batch = len(shape) == len(spec.shape) - 1
        hint = "Add the batch axis: array[np.newaxis]." if lacks_batch else "Reshape the array to that rank."
        raise DataError(f"{says} (rank {len(shape)}, not {len(spec.shape)})", hint)
    for axis, (length, wanted) in enumerate(zip(shape, spec.shape, strict=True)):
        if isinstance(wanted, int) and length != wanted:
            hint = (
                "Give data as the model was trained on, its axes in the model's order. --shapes cannot change a size "
                f"that the file declares: where the model takes others too, let the file leave axis {axis} open, by an "
                "export with dynamic axes or with onnx.tools.update_model_dims."
            )
            raise DataError(f"{says} (axis {axis} is {length}, not {wanted})", hint)


def with_batch(array: Array, spec: InputSpec) -> Array:
    """The array of one sample with the batch axis that it lacks, where it lacks just that."""
    lacks = spec.shape is not None and array.ndim == len(spec.shape) - 1
    return array[np.newaxis] if lacks else array


def show(shape: tuple[int | str | None, ...]) -> str:
    """A shape as messages write it: [N, 3, ?]."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


def split_batch(feed: Feed, inputs: Sequence[InputSpec]) -> list[Feed]:
    """Split a feed of N > 1 samples along axis 0 into N feeds of one sample each, as views.

    Only where all arrays agree on N and every input's axis 0 is dynamic; otherwise the list is `[feed]`.
    """
    free = all(spec.label or (spec.shape and not isinstance(spec.shape[0], int)) for spec in inputs)
    lengths = {feed[spec.name].shape[:1] for spec in inputs}
    if not free or len(lengths) != 1:
        return [feed]
    (count,) = lengths.pop()
    if count < 2:  # one sample is whole already
        return [feed]
    return [{name: array[i : i + 1] for name, array in feed.items()} for i in range(count)]


def _fit(value: object, spec: InputSpec, where: str) -> Array:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as err:  # ragged lists, tensors on another device
        raise DataError(f"{where}: input {spec.name!r} is not an array: {err}", "Give a numpy array.") from err
    check_shape(array.shape, spec, where)
    fitted = array if spec.label or array.dtype == spec.dtype else cast(array, spec.dtype)
    if not spec.label and (array.dtype.kind == "U" or spec.dtype.kind == "O"):
        return _text(array, spec, where)
    if fitted is None:
        says = f"{where}: input {spec.name!r} is {array.dtype}; the model takes {spec.dtype}"
        hint = f"If the loss is meant, store it as array.astype({spec.dtype.name!r})."
        raise DataError(f"{says}, and the cast would lose values", hint)
    return np.asarray(fitted, order="C")  # not ascontiguousarray: that adds an axis to scalars


def _text(array: Array, spec: InputSpec, where: str) -> Array:
    """Text for an input of text, for which numpy's objects stand; these have no bytes to be known by."""
    if spec.dtype.kind == "O" and (array.dtype.kind == "U" or all(isinstance(one, str) for one in array.flat)):
        return np.asarray(array, np.str_, order="C")
    held, wants = ("text" if dtype.kind in "UO" else dtype for dtype in (array.dtype, spec.dtype))
    says = f"{where}: input {spec.name!r} holds {held}; the model takes {wants}"
    raise DataError(says, f"Give arrays of {wants}.")


def input_specs(graph: Graph) -> tuple[InputSpec, ...]:
    """The model's inputs as the data readers want them.

    Raises:
        DataError: an input is not a plain tensor of numbers.
    """
    specs = []
    for value in graph.inputs:
        dtype = graph.dtype(value)
        if dtype is None:
            raise DataError(f"input {value.name!r} is not a tensor of numbers", "onnxq cannot feed such an input.")
        specs.append(InputSpec(str(value.name), np.dtype(dtype), graph.shape(value)))
    return tuple(specs)


def label_specs(names: Sequence[str]) -> tuple[InputSpec, ...]:
    """Specs of arrays that go with each sample but not into the model."""
    return tuple(InputSpec(name, np.dtype(np.float32), None, label=True) for name in names)
