"""What a model's metadata tells of tensors that it holds with a constant added, and who goes by it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import graph_of, run

from onnxq import Recipe, api
from onnxq.errors import ModelError
from onnxq.graph import Graph
from onnxq.inventory import take_stock
from onnxq.shifted import Shifted, record, shifted_tensors, with_float_tensors

if TYPE_CHECKING:
    from graphs import Array

DIGITS = Path(__file__).parents[2] / "models" / "digits"
TEXT = "(float[4] x) => (float[4] y) { t = Add(x, c) y = Tanh(t) }"
X = np.array([-3, 0.25, 1, 9], np.float32)


def model(*found: Shifted) -> Graph:
    graph = graph_of(TEXT, c=np.float32(2))
    record(graph, found)
    return Graph.from_proto(graph.to_proto())  # the metadata is a part of the file


def test_models_without_are_left_alone() -> None:
    graph = model()
    assert with_float_tensors(graph) is graph
    assert shifted_tensors(graph.model.metadata_props) == ()


@pytest.mark.parametrize("one", [Shifted("gone", "neither", 1.0), Shifted("y", "t", 1.0)])
def test_tensors_that_are_not_there_and_names_that_are_taken(one: Shifted) -> None:
    made = with_float_tensors(model(one))
    assert len(made.nodes) == 2


@pytest.mark.parametrize(
    ("high", "expected"),
    [(None, X), (np.inf, np.maximum(X, 0)), (6.0, np.clip(X, 0, 6))],
)
def test_the_tensor_comes_back(high: float | None, expected: Array) -> None:
    one = Shifted("s", "t", 2.0, high)
    graph = model(one)
    assert shifted_tensors(graph.model.metadata_props) == (one,)
    made = with_float_tensors(graph)
    made.set_outputs([v for v in made.values() if v.name == "s"])
    np.testing.assert_array_equal(run(made, {"x": X})[0], expected)


def test_half_precision_and_a_node_of_that_name() -> None:
    graph = graph_of("(float16[4] x) => (float16[4] y) { [s] y = Tanh(x) }")
    record(graph, [Shifted("s", "x", 0.125)])
    made = with_float_tensors(graph)
    made.set_outputs([v for v in made.values() if v.name == "s"])
    np.testing.assert_array_equal(run(made, {"x": X.astype(np.float16)})[0], X - 0.125)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{}", '{"tensor": "t"}', '{"tensor": "t", "shift": "much"}', "[" * 9999]
)
def test_nonsense_is_the_models_fault(text: str) -> None:
    with pytest.raises(ModelError, match="makes no sense"):
        shifted_tensors({"onnxq.shifted.s": text})


def test_every_quantized_tensor_of_a_model_has_its_histogram_and_its_error() -> None:
    path, data = DIGITS / "digits.onnx", DIGITS / "calib.npz"
    graph, plan = api.quantize(path, data, Recipe(max_samples=64))
    shifted = [t for t in take_stock(graph.to_proto()).tensors if t.shift]
    assert shifted
    assert {t.stands_for for t in take_stock(graph.to_proto()).tensors if not t.weight} >= set(plan.points)
    found = api.compare(path, graph, data, Recipe(max_samples=8), layers=True)
    errors = {e.tensor: e.sqnr_db for e in found.errors}
    assert set(plan.points) - {"image"} <= set(errors)
    assert min(errors[t.stands_for] for t in shifted if t.stands_for in errors) > 20
