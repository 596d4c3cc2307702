"""What a model's metadata tells of tensors that it holds smoothed, and who goes by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoders import samples, transformer
from graphs import graph_of, run

from onnxq import Recipe, api, page, reporting
from onnxq.errors import ModelError
from onnxq.graph import Graph
from onnxq.inventory import take_stock
from onnxq.passes import Smooth
from onnxq.rescaling import find_sites
from onnxq.shifted import Shifted
from onnxq.shifted import record as record_shifted
from onnxq.smoothed import MOST, Smoothed, record, smoothed_tensors, with_float_tensors, with_smoothed_tensors
from onnxq.statistics import Factor

DIGITS = Path(__file__).parents[2] / "models" / "digits"
TEXT = "(float[1,2,3] x) => (float[1,2,3] y) { t = Mul(x, c) y = Tanh(t) }"
X = np.arange(6, dtype=np.float32).reshape(1, 2, 3) - 2
TWO = Factor(np.array([2, 0.5], np.float32), np.array([1, -3], np.float32))
SCALE, SHIFT = TWO.scale[:, None], TWO.shift[:, None]


def model(*found: Smoothed, factor: Factor = TWO) -> Graph:
    graph = graph_of(TEXT, c=np.float32(1))
    record(graph, found, "s", factor)
    return Graph.from_proto(graph.to_proto())


def test_models_without_are_left_alone() -> None:
    graph = graph_of(TEXT, c=np.float32(1))
    assert with_float_tensors(graph) is graph
    assert smoothed_tensors(graph.model.metadata_props) == {}
    assert with_smoothed_tensors(graph, graph, {"t"}) is graph
    smoothed = model(Smoothed("s", "t", -2))
    assert with_smoothed_tensors(graph, smoothed, {"x"}) is graph


@pytest.mark.parametrize("one", [Smoothed("gone", "neither", -1), Smoothed("y", "t", -2)])
def test_tensors_that_are_not_there_and_names_that_are_taken(one: Smoothed) -> None:
    assert len(with_float_tensors(model(one)).nodes) == 2
    assert len(with_smoothed_tensors(graph_of(TEXT, c=np.float32(1)), model(one), {one.tensor}).nodes) == 2


def test_too_many_factors_are_not_told() -> None:
    """At most 16 KB: 1536 channels with a shift, twice as many without."""
    for channels, shifts, told in ((1536, True, 1), (1537, True, 0), (3072, False, 1), (3073, False, 0)):
        graph = graph_of(TEXT, c=np.float32(1))
        scale = np.linspace(1, 2, channels, dtype=np.float32)
        record(graph, [Smoothed("s", "t", -1)], "s", Factor(scale, scale * shifts))
        assert len(smoothed_tensors(graph.model.metadata_props)) == told
        assert sum(map(len, graph.model.metadata_props.values())) <= MOST + 200


@pytest.mark.parametrize("scaled", [False, True])
def test_the_tensor_comes_back(scaled: bool) -> None:
    one = Smoothed("s", "t", -2, scaled)
    graph = model(one)
    assert smoothed_tensors(graph.model.metadata_props) == {one: TWO}
    made = with_float_tensors(graph)
    made.set_outputs([v for v in made.values() if v.name == "s"])
    np.testing.assert_array_equal(run(made, {"x": X})[0], X * SCALE + SHIFT * (not scaled))


def test_with_a_constant_added_on_top_in_half_precision() -> None:
    graph = graph_of("(float16[1,2,3] x) => (float16[1,2,3] y) { y = Tanh(x) }")
    record(graph, [Smoothed("s", "t", -2)], "s", TWO)
    record_shifted(graph, [Shifted("t", "x", 0.25)])
    made = with_float_tensors(graph)
    made.set_outputs([v for v in made.values() if v.name == "s"])
    np.testing.assert_array_equal(run(made, {"x": X.astype(np.float16)})[0], (X - 0.25) * SCALE + SHIFT)


def test_the_float_model_shows_what_is_held() -> None:
    reference = graph_of("(float[1,2,3] x) => (float[1,2,3] y) { s = Mul(x, c) y = Tanh(s) }", c=np.float32(1))
    made = with_smoothed_tensors(reference, model(Smoothed("s", "t", -2)), {"t"})
    made.set_outputs([v for v in made.values() if v.name == "t"])
    np.testing.assert_array_equal(run(made, {"x": X})[0], (X - SHIFT) / SCALE)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "3", "{}", "[" * 9999, '{"tensor": "t", "factors": "other", "axis": -1}'),
        *('{"tensor": "t", "factors": "s"}', '{"tensor": "t", "factors": "s", "axis": 0}'),
    ],
)
def test_nonsense_is_the_models_fault(text: str) -> None:
    metadata = model(Smoothed("s", "t", -2)).model.metadata_props
    with pytest.raises(ModelError, match="makes no sense"):
        smoothed_tensors({**metadata, "onnxq.smoothed.s": text})


@pytest.mark.parametrize("factors", ["[]", "{}", '{"scale": "?"}', '{"scale": "AAA="}', '{"scale": "AAAAAA=="}'])
def test_nonsensical_factors_too(factors: str) -> None:
    metadata = model(Smoothed("s", "t", -2)).model.metadata_props
    with pytest.raises(ModelError, match="makes no sense"):
        smoothed_tensors({**metadata, "onnxq.factors.s": factors})


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_a_smoothed_transformer_has_a_row_for_every_tensor_that_it_renamed(target: str, tmp_path: Path) -> None:
    graph, data, held = transformer(1), samples(24, 1), samples(4, 2)
    graph.save(tmp_path / "m.onnx")
    quantized, plan = api.quantize(tmp_path / "m.onnx", [{"x0": x[None]} for x in data], Recipe(target=target))
    quantized.save(tmp_path / "m.int8.onnx")
    told = smoothed_tensors(quantized.model.metadata_props)
    assert len(told) >= 2
    found = reporting.compared(tmp_path / "m.onnx", tmp_path / "m.int8.onnx", [{"x0": x[None]} for x in held], Recipe())
    errors = {e.tensor: e.sqnr_db for e in found.errors}
    stays = {str(v.name) for v in quantized.values()}
    assert {one.name for one in told if one.tensor in stays} <= set(errors)
    assert {one.name for one in told if one.tensor in stays} & {"n0", "m0"}
    assert not any("smoothed" in name for name in errors)
    assert min(errors.values()) > 15
    stock = take_stock(quantized.to_proto())
    pictured = page.gather(page.Files("a", "b", 1, 1), stock, found, page.Known(histograms=found.histograms)).pictures
    assert {picture.tensor for picture in pictured} >= {t.stands_for for t in stock.tensors if not t.weight} - {"x0"}
    assert set(plan.points) - {"x0"} <= {t.stands_for for t in stock.tensors}


def test_the_factors_of_every_tensor_of_digits_are_a_small_part_of_the_file() -> None:
    before = api.prepared(DIGITS / "digits.onnx", Recipe(effort="fast")).graph
    rng = np.random.default_rng(1)
    sites = find_sites(before)
    after = before.copy()
    factors = {}
    for site in sites:
        scale, shift = rng.uniform(0.5, 2, (2, site.channels)).astype(np.float32)
        factors[site.name] = Factor(scale, shift if site.shifts else np.zeros_like(scale))
    Smooth(factors)(after)
    told = smoothed_tensors(after.model.metadata_props)
    assert len(told) > 8
    errors = api.compare(before, after, DIGITS / "calib.npz", Recipe(max_samples=2), layers=True).errors
    assert {e.tensor for e in errors} >= {one.name for one in told} - {"image"}
    assert min(e.sqnr_db for e in errors) > 90
    added = sum(len(k) + len(v) for k, v in after.model.metadata_props.items())
    assert 0 < added < 0.1 * (DIGITS / "digits.onnx").stat().st_size / 4
