"""LLM.int8() and SmoothQuant on a language model with planted outlier channels, by perplexity and SQNR."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import Array, graph_of

from onnxq import Recipe, api
from onnxq.errors import DataError, RecipeError
from onnxq.intake import load
from onnxq.numerics import sqnr_db
from onnxq.runtime import Session
from onnxq.statistics import Statistics

if TYPE_CHECKING:
    from onnxq.graph import Graph

CAUSAL = Path(__file__).parents[3] / "models" / "causal"
TOKENS: Array = np.load(CAUSAL / "held_out.npz")["tokens"][::16]
DATA = [{"tokens": row[None]} for row in np.load(CAUSAL / "calib.npz")["tokens"][::6]]
INT8 = Recipe(high_precision="fp32", effort="fast")
SPLIT = replace(INT8, outlier_threshold=6.0)
OUTLIERS = (5, 77)


def planted() -> Graph:
    """The language model with two channels of every normalization 60 times as large: it computes the same."""
    graph = load(CAUSAL / "causal.onnx")
    gain = np.ones(128)
    gain[list(OUTLIERS)] = 60
    for node in [n for n in graph.nodes if n.op_type == "LayerNormalization"]:
        for index in (1, 2):
            graph.set_input(node, index, scaled(graph, node.inputs[index], gain))
        for user, _ in graph.users(node.outputs[0]):
            if user.op_type == "MatMul":
                graph.set_input(user, 1, scaled(graph, user.inputs[1], 1 / gain[:, None]))
    return graph


def scaled(graph: Graph, value: Any, factor: Array) -> Any:  # noqa: ANN401  a Value
    array = graph.const(value)
    assert array is not None
    return graph.constant("planted", (array * factor).astype(np.float32))


def logits(graph: Graph) -> Array:
    found: Array = Session(graph.to_proto().SerializeToString()).run({"tokens": TOKENS})[0]
    return found.astype(np.float64)


def perplexity(found: Array) -> float:
    cut = found[:, :-1] - np.log(np.exp(found[:, :-1]).sum(axis=-1, keepdims=True))
    return float(np.exp(-np.take_along_axis(cut, TOKENS[:, 1:, None], -1).mean()))


def test_planted_outliers_are_overcome() -> None:
    exact = logits(load(CAUSAL / "causal.onnx"))
    model = planted()
    np.testing.assert_allclose(logits(model), exact, atol=1e-3)
    whole, unsplit = api.quantize(CAUSAL / "causal.onnx", DATA, INT8)
    plain = logits(whole)
    spoilt = logits(api.quantize(model, DATA, INT8)[0])
    graph, plan = api.quantize(model, DATA, SPLIT)
    split = logits(graph)
    smooth = logits(api.quantize(model, DATA, replace(INT8, effort="balanced"))[0])
    db = {
        name: 10 * np.log10(perplexity(y) / perplexity(exact))
        for name, y in (("split", split), ("smooth", smooth), ("spoilt", spoilt))
    }
    assert db["spoilt"] > 1
    assert db["split"] < 0.1
    assert db["smooth"] < 1
    assert sqnr_db(exact, spoilt) < sqnr_db(exact, plain) - 15
    assert sqnr_db(exact, split) > sqnr_db(exact, plain) - 0.5  # as if there were no outliers
    assert plan.int8_share() > unsplit.int8_share() - 0.02  # what is split off is little
    assert "outlier columns, multiplied in float beside the int8 product" in plan.skipped.values()


def net() -> tuple[Graph, list[dict[str, Array]]]:
    rng = np.random.default_rng(0)
    graph = graph_of(
        "(float[N,64] x) => (float[N,32] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }",
        17,
        w=rng.normal(size=(64, 64)).astype(np.float32) / 200,
        v=rng.normal(size=(64, 32)).astype(np.float32),
    )
    big = np.where(np.arange(64) % 20 == 7, 50, 1)
    return graph, [{"x": (rng.normal(size=(3, 64)) * big).astype(np.float32)} for _ in range(8)]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(target="ort-cpu", outlier_threshold=12.0),
        Recipe(target="ort-cpu", mode="dynamic", outlier_threshold=12.0),
        Recipe(target="ort-cuda", high_precision="fp32", outlier_threshold=12.0),
        Recipe(target="tensorrt", outlier_threshold=12.0),
    ],
    ids=["ort-cpu", "dynamic", "ort-cuda", "tensorrt"],
)
def test_every_target(recipe: Recipe) -> None:
    graph, data = net()
    found = api.calibrate(graph, data, recipe)
    assert dict(found.outliers) == {"x": (7, 27, 47)}
    quantized, plan = api.quantize(graph, found, recipe)
    assert any("outlier" in reason for reason in plan.skipped.values())
    exact, other = (Session(g.to_proto().SerializeToString()).run(data[0])[0] for g in (graph, quantized))
    plain = api.quantize(graph, data, replace(recipe, outlier_threshold=None, effort="fast"))[0]
    without = Session(plain.to_proto().SerializeToString()).run(data[0])[0]
    assert sqnr_db(exact, other) > sqnr_db(exact, without) + 3


def test_statistics_carry_the_columns(tmp_path: Path) -> None:
    graph, data = net()
    recipe = replace(SPLIT, outlier_threshold=12.0)
    found = api.calibrate(graph, data, recipe)
    assert found.outliers == api.calibrate(graph, data[::-1], recipe).outliers
    found.save(tmp_path / "s.npz")
    again = Statistics.load(tmp_path / "s.npz")
    assert dict(again.outliers) == dict(found.outliers)
    one, other = (api.quantize(graph, s, recipe)[0].to_proto() for s in (again, data))
    assert one == other


def test_large_as_a_whole_is_no_outlier() -> None:
    graph, data = net()
    assert not api.calibrate(graph, data, replace(SPLIT, outlier_threshold=0.5)).outliers


def test_refusals() -> None:
    graph, _ = net()
    with pytest.raises(DataError, match="outlier_threshold needs data"):
        api.quantize(graph, None, SPLIT)
    for choices, why in (
        ({"outlier_threshold": 0.0}, "outlier_threshold is 0"),
        ({"outlier_threshold": 6.0, "effort": "best"}, "two ways"),
        ({"outlier_threshold": 6.0, "mode": "weight-only"}, "has none"),
    ):
        with pytest.raises(RecipeError, match=why):
            Recipe(**choices)
