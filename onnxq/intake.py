"""What a caller gives, as ours: a model in any form as a Graph, calibration data in any form as a Source."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import onnx

from onnxq import files
from onnxq.data import (
    InputSpec,
    Source,
    apply_shapes,
    input_specs,
    label_specs,
    open_source,
    parse_shapes,
    with_preprocess,
)
from onnxq.errors import DataError, ModelError, OnnxqError, PassError
from onnxq.graph import Graph
from onnxq.monitor import QUIET, Monitor
from onnxq.parts import chosen
from onnxq.statistics import is_statistics

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from onnxq.graph import Dim
    from onnxq.recipe import Recipe

Model = Any
"""A path, a Graph, an onnx.ModelProto, or an onnx-graphsurgeon graph."""


def load(model: Model) -> Graph:
    """A Graph of our own of whatever the caller has.

    Raises:
        ModelError: it cannot be read.
    """
    if isinstance(model, Graph):
        return model.copy()
    if isinstance(model, str | os.PathLike):
        return files.load(model)
    if hasattr(model, "SerializeToString") and hasattr(model, "graph"):
        return Graph.from_proto(model)
    if type(model).__module__.startswith("onnx_graphsurgeon"):
        return Graph.from_graphsurgeon(model)
    raise ModelError(f"{type(model).__name__} is no model", "Give a path, an onnxq.Graph or an onnx.ModelProto.")


@contextmanager
def checked(model: Model) -> Iterator[None]:
    """What fails within on a model that onnx.checker refuses is the model's fault, not ours.

    Models are not shown to it before: it also refuses some that run everywhere.

    Raises:
        ModelError: something failed, and onnx.checker says why.
    """
    try:
        yield
    except OnnxqError as error:
        if not isinstance(error, PassError):
            raise
        _blame(model, error)
        raise
    except Exception as error:
        _blame(model, error)
        raise


def _blame(model: Model, error: Exception) -> None:
    try:
        path = isinstance(model, str | os.PathLike)  # the file itself: loading mends some of what is wrong
        onnx.checker.check_model(str(model) if path else load(model).to_proto(), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as refusal:
        name = str(model) if isinstance(model, str | os.PathLike) else "the model"
        said = " ".join(str(refusal).split())[:300]
        hint = "onnx.checker says so. Export it again, or mend it."
        raise ModelError(f"{name} is not a valid ONNX model: {said}", hint) from error
    except Exception:  # noqa: BLE001  a model that is too large for one message, say: then nothing is known
        return


def given_shapes(graph: Graph, text: str) -> dict[str, tuple[int, ...]]:
    """Input -> its shape, of the inputs that a recipe's `shapes` name.

    Raises:
        RecipeError: a shape is malformed, for no input of the model, or does not fit what the model declares.
    """
    shapes = parse_shapes(text) if text else {}
    if shapes:
        apply_shapes(input_specs(graph), shapes)
    return shapes


def open_inputs(graph: Graph) -> dict[str, tuple[Dim, ...] | None]:
    """The inputs of open sizes, batches aside, or of open rank, and what is known of their shapes."""
    shapes = {str(v.name): graph.shape(v) for v in graph.inputs if graph.dtype(v) is not None}
    return {k: dims for k, dims in shapes.items() if dims is None or not all(isinstance(d, int) for d in dims[1:])}


def unknown_shapes(graph: Graph, known: Collection[str]) -> str:
    """The inputs of open sizes, batches aside, as the option for shapes takes them, with N for what to fill in.

    Of those whose rank is open, all of it is to be filled in: `[...]`.
    """

    def size(place: int, dim: Dim) -> str:
        return str(dim) if isinstance(dim, int) else "N" if place else "1"

    return ",".join(
        f"{name}:{'[...]' if dims is None else 'x'.join(size(*each) for each in enumerate(dims))}"
        for name, dims in open_inputs(graph).items()
        if name not in known
    )


def sized(graph: Graph, text: str) -> bool:
    """Whether the graph, or a recipe's `shapes`, tells every size of its inputs, batches aside.

    Raises:
        RecipeError: as for `given_shapes`.
    """
    return not unknown_shapes(graph, given_shapes(graph, text))


def open_data(data: object, graph: Graph, recipe: Recipe, monitor: Monitor = QUIET) -> Source:
    """The data as feeds of the graph's inputs, with the recipe's labels; of its shard, and skipping as it says.

    Raises:
        DataError: it cannot be read or does not fit.
    """
    if isinstance(data, str | os.PathLike) and is_statistics(data):
        raise DataError(f"{data} holds statistics, not calibration data", "It goes with `quantize --statistics`.")
    shapes = parse_shapes(recipe.shapes) if recipe.shapes else None
    specs: tuple[InputSpec, ...] = (*input_specs(graph), *label_specs(recipe.label_list))
    if recipe.preprocess:
        specs = with_preprocess(specs, recipe.preprocess)
    source = open_source(data, specs, max_samples=recipe.max_samples, shapes=shapes)
    return chosen(source, recipe.part, monitor if recipe.skip_bad else None)
