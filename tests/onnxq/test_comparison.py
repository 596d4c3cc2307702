"""Errors of one model against another, with numpy as the oracle."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from graphs import graph_of, run
from real_models import DIGITS

from onnxq import api, search
from onnxq.api import compare, export, quantize
from onnxq.comparison import Comparison, TensorError, compare_graphs
from onnxq.data import input_specs, open_source
from onnxq.errors import DataError, ModelError
from onnxq.histogram import Histogram
from onnxq.monitor import Monitor
from onnxq.recipe import Recipe
from onnxq.report import comparison_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onnxq.data import Feed
    from onnxq.graph import Graph

RNG = np.random.default_rng(3)
W = RNG.normal(size=(4, 4)).astype(np.float32)
NOISE = (RNG.normal(size=(4, 4)) / 100).astype(np.float32)
TEXT = "(float[N,4] x) => (float[N,4] y, float[N,4] z) { a = MatMul(x, w) y = Relu(a) z = Neg(y) }"
FEEDS = [{"x": row[None]} for row in RNG.normal(size=(5, 4)).astype(np.float32)]


def errors(
    reference: Graph, other: Graph, layers: bool = False, feeds: Sequence[Feed] = FEEDS
) -> dict[str, TensorError]:
    found = compare_graphs(reference, other, open_source(feeds, input_specs(reference)), layers=layers)
    assert found.samples == len(feeds)
    return {error.tensor: error for error in found.errors}


def test_the_figures() -> None:
    found = errors(graph_of(TEXT, w=W), graph_of(TEXT, w=W + NOISE), layers=True)
    assert list(found) == ["a", "y", "z"]
    rows = np.concatenate([f["x"] for f in FEEDS])
    before, after = rows @ W, rows @ (W + NOISE)
    error = found["a"]
    assert error.sqnr_db == pytest.approx(10 * math.log10((before**2).sum() / ((before - after) ** 2).sum()), rel=1e-4)
    flat = before.ravel() / np.linalg.norm(before), after.ravel() / np.linalg.norm(after)
    assert error.cosine == pytest.approx(np.vdot(*flat), rel=1e-5)
    assert error.max_abs == pytest.approx(np.abs(before - after).max(), rel=1e-4)
    assert error.amax == pytest.approx(np.abs(before).max(), rel=1e-5)


def test_outputs_alone_unless_layers_are_asked_for() -> None:
    graph = graph_of(TEXT, w=W)
    assert list(errors(graph, graph)) == ["y", "z"]
    assert {(e.sqnr_db, e.max_abs) for e in errors(graph, graph).values()} == {(math.inf, 0.0)}


def test_the_graphs_given_stay_as_they_are() -> None:
    graph = graph_of(TEXT, w=W)
    before = graph.to_proto().SerializeToString()
    errors(graph, graph, layers=True)
    assert graph.to_proto().SerializeToString() == before


def test_worst_first() -> None:
    made = [
        TensorError(name, sqnr, 1.0, 0.0, 1.0) for name, sqnr in [("b", 9.0), ("c", math.inf), ("a", 9.0), ("d", 3.0)]
    ]
    assert [e.tensor for e in Comparison(tuple(made), 1).worst] == ["d", "a", "b", "c"]


def test_infinities_that_both_have_are_no_error_and_others_are_the_worst() -> None:
    text = "(float[N,4] x) => (float[N,4] y) { y = Log(x) }"
    feeds = [{"x": np.array([[0, 1, 2, 3]], np.float32)}]  # log 0 is -inf
    assert errors(graph_of(text), graph_of(text), feeds=feeds)["y"].max_abs == 0
    shifted = "(float[N,4] x) => (float[N,4] y) { a = Add(x, one) y = Log(a) }"
    error = errors(graph_of(text), graph_of(shifted, one=np.float32(1)), feeds=feeds)["y"]
    assert (error.max_abs, error.sqnr_db) == (math.inf, -math.inf)


def test_values_whose_squares_overflow() -> None:
    text = "(double[N,4] x) => (double[N,4] y) { y = Mul(x, k) }"
    feeds = [{"x": np.full((1, 4), 1e300)}] * 3
    found = errors(graph_of(text, k=np.float64(1)), graph_of(text, k=np.float64(0.5)), feeds=feeds)["y"]
    assert math.isfinite(found.sqnr_db)
    assert found.max_abs == pytest.approx(5e299)


def test_all_zero_tensors() -> None:
    text = "(float[N,4] x) => (float[N,4] y) { y = Mul(x, k) }"
    zero, one = graph_of(text, k=np.float32(0)), graph_of(text, k=np.float32(1))
    assert errors(zero, zero)["y"] == TensorError("y", math.inf, 1.0, 0.0, 0.0, 1.0, output=True)
    error = errors(zero, one)["y"]
    assert (error.sqnr_db, error.cosine) == (-math.inf, 0.0)


def test_outputs_that_are_no_numbers_are_left_out_and_whole_numbers_are_not() -> None:
    text = "(float[N,4] x) => (float[N,4] y, int64[N] best, string[N,4] words) "
    text += "{ y = Relu(x) best = ArgMax<axis=1, keepdims=0>(x) words = Cast<to=8>(x) }"
    assert list(errors(graph_of(text), graph_of(text))) == ["y", "best"]


def test_top1_by_rows_along_the_classes() -> None:
    text = "(float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }"
    strong = (W + 200 * NOISE).astype(np.float32)
    rows = np.concatenate([f["x"] for f in FEEDS])
    expected = float(((rows @ W).argmax(1) == (rows @ strong).argmax(1)).mean())
    assert 0 < expected < 1
    assert errors(graph_of(text, w=W), graph_of(text, w=strong))["y"].top1 == pytest.approx(expected)
    layers = errors(graph_of(TEXT, w=W), graph_of(TEXT, w=W), layers=True)
    assert {name: e.top1 for name, e in layers.items()} == {"a": None, "y": 1.0, "z": 1.0}
    assert {name for name, e in layers.items() if e.output} == {"y", "z"}


def test_top1_of_images_goes_over_channels_and_of_whole_numbers_is_equality() -> None:
    x = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    flip = np.array([1, 1, -1], np.float32).reshape(1, 3, 1, 1)
    text = "(float[N,3,H,W] x) => (float[N,3,H,W] y, int64[N,H,W] best) "
    text += "{ y = Mul(x, k) best = ArgMax<axis=1, keepdims=0>(y) }"
    found = errors(graph_of(text, k=np.float32(1)), graph_of(text, k=flip), feeds=[{"x": x}])
    same = float((x.argmax(1) == (x * flip).argmax(1)).mean())
    assert found["y"].top1 == found["best"].top1 == pytest.approx(same)
    flat = graph_of("(float[N,1] x) => (float[N,1] y) { y = Relu(x) }")
    assert errors(flat, flat, feeds=[{"x": np.ones((2, 1), np.float32)}])["y"].top1 is None


def test_the_order_of_the_samples_does_not_matter() -> None:
    feeds = [{"x": (10.0**k * f["x"]).astype(np.float32)} for k, f in enumerate(FEEDS)]
    graphs = graph_of(TEXT, w=W), graph_of(TEXT, w=W + NOISE)
    assert errors(*graphs, layers=True, feeds=feeds) == errors(*graphs, layers=True, feeds=feeds[::-1])


def test_tensors_that_do_not_fit_are_compared_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = graph_of(TEXT, w=W), graph_of(TEXT, w=W + NOISE)
    whole = errors(*graphs, layers=True)
    stages: list[str] = []
    monkeypatch.setattr("onnxq.comparison._GROUP_BYTES", 16)  # one row of one tensor
    monitor = Monitor(stage=lambda text, _: stages.append(text))
    once = open_source((feed for feed in FEEDS), input_specs(graphs[0]))
    found = compare_graphs(*graphs, once, layers=True, histograms={"x", "a", "z"}, monitor=monitor)
    assert stages == ["Comparing 2 tensors more", "Comparing 1 tensors more"]
    assert {e.tensor: e for e in found.errors} == whole
    assert found.samples == len(FEEDS)
    rows = np.concatenate([f["x"] for f in FEEDS])
    assert set(found.histograms) == {"x", "a", "z"}
    assert found.shapes == dict.fromkeys(("x", "a", "y", "z"), (1, 4))
    assert found.histograms["x"] == Histogram.of(rows)
    assert found.histograms["a"].amax == pytest.approx(np.abs(rows @ W).max(), rel=1e-5)


def test_layers_go_with_outputs_of_whole_numbers() -> None:
    text = "(float[N,4] x) => (float[N,4] y, int64[N] best) "
    text += "{ y = Relu(x) k = Cast<to=7>(y) best = ArgMax<axis=1, keepdims=0>(k) }"
    found = errors(graph_of(text), graph_of(text), layers=True)
    assert list(found) == ["y", "best"]
    assert found["best"].output


def test_outputs_that_are_lost_are_said() -> None:
    said: list[str] = []
    reference = graph_of(TEXT, w=W)
    other = graph_of(TEXT.replace(", float[N,4] z)", ")"), w=W)
    source = open_source(FEEDS, input_specs(reference))
    found = compare_graphs(reference, other, source, monitor=Monitor(warn=said.append))
    assert [e.tensor for e in found.errors] == ["y"]
    assert said == ["outputs that the quantized model has not, so not compared: z"]
    assert (found.lost, found.gained) == (("z",), ())
    back = compare_graphs(other, reference, source)
    assert (back.lost, back.gained) == ((), ("z",))


PAIR = """(float[N,4] x) => (float[N,4] y) {
    q = QuantizeLinear(x, s, o) d = DequantizeLinear(q, s, o) a = MatMul(d, w) y = Relu(a)
}"""
CODES = "(float[N,4] x) => (float[N,4] y) { k = Cast<to=1>(c) w = Mul(k, s) a = MatMul(x, w) y = Relu(a) }"


def quantized_in(way: str) -> Graph:
    s, o = np.float32(0.03), np.array(0, np.int8)
    if way == "codes alone":
        return graph_of(CODES, c=np.clip(np.rint(W / s), -128, 127).astype(np.int8), s=s)
    return graph_of(PAIR, s=s, o=o, w=W)


@pytest.mark.parametrize(
    ("first", "second", "swapped"),
    [
        ("float", "float", False),
        ("float", "pairs", False),
        ("float", "codes alone", False),
        ("pairs", "pairs", False),
        ("pairs", "codes alone", False),
        ("codes alone", "pairs", False),
        ("pairs", "float", True),
        ("codes alone", "float", True),
    ],
)
def test_models_that_are_swapped_are_said(first: str, second: str, swapped: bool) -> None:
    said: list[str] = []
    plain = graph_of(TEXT.replace(", float[N,4] z)", ")").replace("z = Neg(y)", ""), w=W)
    reference, other = (plain if way == "float" else quantized_in(way) for way in (first, second))
    source = open_source(FEEDS, input_specs(reference))
    found = compare_graphs(reference, other, source, monitor=Monitor(warn=said.append))
    assert [e.tensor for e in found.errors] == ["y"]
    assert [text.split(":")[0] for text in said] == ["the first model is quantized and the second is not"] * swapped


def test_large_tensors_are_summed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = graph_of(TEXT, w=W), graph_of(TEXT, w=W + NOISE)
    whole = errors(*graphs)["y"]
    monkeypatch.setattr("onnxq.comparison._BLOCK", 3)
    assert errors(*graphs)["y"].sqnr_db == pytest.approx(whole.sqnr_db, rel=1e-9)


def test_a_layer_of_another_shape_is_left_out_and_said() -> None:
    text = "(float[N,4] x) => (float[N,4] y) { a = Concat<axis=1>(x, x) b = Slice(a, from, to, one) y = Relu(b) }"
    other = text.replace("a = Concat<axis=1>(x, x)", "a = Concat<axis=1>(x, x, x)")
    ends = {"from": np.array([0]), "to": np.array([4]), "one": np.array([1])}
    said: list[str] = []
    reference = graph_of(text, **ends)
    source = open_source(FEEDS, input_specs(reference))
    monitor = Monitor(warn=said.append)
    found = compare_graphs(reference, graph_of(other, **ends), source, layers=True, monitor=monitor)
    assert [e.tensor for e in found.errors] == ["b", "y"]
    assert said == ["'a' is of shape [1, 8] in the float model, [1, 12] in the other; it is not compared"]


def test_below_speaks_of_outputs_only() -> None:
    made = (TensorError("a", 3.0, 1, 0, 1), TensorError("y", 20.0, 1, 0, 1, None, output=True))
    assert [e.tensor for e in Comparison(made, 1).below(25)] == ["y"]
    assert Comparison(made, 1).below(20) == ()


def test_models_that_do_not_go_together() -> None:
    graph = graph_of(TEXT, w=W)
    other = graph_of("(float[N,4] x) => (float[N,4] q) { q = Relu(x) }")
    with pytest.raises(ModelError, match="no numeric tensor") as error:
        errors(graph, other)
    assert "'q'" in error.value.hint
    wide = graph_of("(float[N,4] x) => (float[N,M] y) { y = Concat<axis=1>(x, x) }")
    with pytest.raises(ModelError, match=r"'y' is of shape \[1, 4\].*\[1, 8\]"):
        errors(graph, wide)
    more = graph_of("(float[N,4] x, float[N,4] u) => (float[N,4] y) { y = Add(x, u) }")
    with pytest.raises(ModelError, match="'u'"):
        errors(graph, more)
    with pytest.raises(DataError, match="no samples"):
        compare(graph, graph, [])


def test_models_on_disk(tmp_path: Path) -> None:
    onnx.save(graph_of(TEXT, w=W).to_proto(), tmp_path / "a.onnx")
    found = compare(tmp_path / "a.onnx", graph_of(TEXT, w=W).to_proto(), FEEDS)
    assert {e.sqnr_db for e in found.errors} == {math.inf}


@pytest.mark.parametrize("activations", ["fp8e4m3", "int8"])
def test_a_file_need_not_say_what_its_pairs_make(activations: str, tmp_path: Path) -> None:
    recipe = Recipe(target="tensorrt@11", activations=activations, effort="fast")
    graph, _ = quantize(DIGITS / "digits.onnx", DIGITS / "calib.npz", recipe)
    export(graph, tmp_path / "q.onnx")
    stored = onnx.load(tmp_path / "q.onnx")
    del stored.graph.value_info[:]
    (error,) = compare(DIGITS / "digits.onnx", stored, DIGITS / "calib.npz").errors
    assert error.sqnr_db > 30  # ONNX Runtime's optimizer makes 0 dB of float8


def test_the_json_is_json() -> None:
    text = comparison_json(Comparison((TensorError("t", -math.inf, 0.5, math.inf, 1.0),), 2))
    assert json.loads(text, parse_constant=pytest.fail) == {
        "samples": 2,
        "tensors": [
            {"tensor": "t", "sqnr_db": None, "cosine": 0.5, "max_abs": None, "amax": 1.0, "top1": None, "output": False}
        ],
    }


def test_spilled_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.files.SPILL_BYTES", 0)
    graph = graph_of(TEXT, w=W)
    assert errors(graph, graph)["y"].max_abs == 0


def test_int8_is_computed_exactly_whatever_the_cpu() -> None:
    # Where a CPU has no VNNI, ONNX Runtime's kernel for int8 adds pairs of products in 16 bits, and they saturate.
    rng = np.random.default_rng(5)
    codes, w = rng.integers(100, 128, (4, 64)), rng.integers(100, 128, (64, 8))
    text = (
        "(float[4,64] x) => (float[4,8] y) { q = QuantizeLinear(x, one, zero) d = DequantizeLinear(q, one, zero)"
        " v = DequantizeLinear(w, one, zero) p = MatMul(d, v) o = QuantizeLinear(p, big, zero)"
        " y = DequantizeLinear(o, big, zero) }"
    )
    big = np.float32(2**14)
    arrays = {"one": np.float32(1), "zero": np.int8(0), "big": big, "w": w.astype(np.int8)}
    quantized = graph_of(text, 17, **{k: np.asarray(v) for k, v in arrays.items()})
    plain = graph_of("(float[4,64] x) => (float[4,8] y) { y = MatMul(x, w) }", 17, w=w.astype(np.float32))
    feed = {"x": codes.astype(np.float32)}
    source = open_source([feed], input_specs(plain))
    (error,) = compare_graphs(plain, quantized, source).errors
    exact = (codes @ w).astype(np.float64)
    rounded = np.rint(exact / big) * big
    assert error.max_abs == pytest.approx(np.abs(exact - rounded).max())


def test_a_weight_that_is_an_output_stays_one() -> None:
    """It is what it was, and in the way of nothing: of effort, comparison and sensitivity."""
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    graph = graph_of("(float[N,64] x) => (float[N,64] y, float[64,64] w) { a = MatMul(x, w) y = Relu(a) }", w=weight)
    data = [{"x": row[None]} for row in np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)]
    heard: list[str] = []
    quantized, _ = api.quantize(graph, data, monitor=Monitor(warn=heard.append))
    assert not [text for text in heard if "cannot be chosen" in text]
    assert [e.tensor for e in api.compare(graph, quantized, data).outputs] == ["y"]
    (group,) = search.sensitivity(graph, data).groups
    assert group.output_db is not None
    np.testing.assert_array_equal(run(quantized, data[0])[1], weight)


def test_a_turned_tensor_in_halves() -> None:
    """ONNX Runtime 1.31's optimizer ends the process on both models."""
    turned = "(float16[M,N,4] x) => (float16[N,M,4] y) { t = Transpose<perm=[1, 0, 2]>(x)"
    codes = RNG.integers(-127, 128, size=(4, 4)).astype(np.int8)
    steps = np.full(4, 0.01, np.float16)
    stored = graph_of(f"{turned} d = DequantizeLinear<axis=1>(w, s) y = MatMul(t, d) }}", 19, w=codes, s=steps)
    plain = graph_of(f"{turned} y = MatMul(t, w) }}", 19, w=(codes * steps).astype(np.float16))
    feeds = [{"x": RNG.normal(size=(3, 2, 4)).astype(np.float16)}]
    assert errors(plain, stored, feeds=feeds)["y"].sqnr_db > 50
