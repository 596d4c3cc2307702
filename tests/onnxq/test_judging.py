"""What judges a change of the model: errors of outputs and of what they are made of, with numpy as the oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of, run
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq import Recipe, api
from onnxq.improvement import judging
from onnxq.improvement.judging import FEATURES, Judge, features, tensor_noise
from onnxq.improvement.picking import Inspected
from onnxq.improvement.shifting import names_of
from onnxq.passes import Smooth
from onnxq.rescaling import find_sites
from onnxq.statistics import Factor
from onnxq.tried import Ranges

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxq.graph import Graph, Value

FAST = Recipe(effort="fast", high_precision="fp32")


def classifier(outputs: int = 2) -> Graph:
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 3, 3, 3), "v": (64, 8, 3, 3), "u": (64, outputs)}
    arrays = {name: (rng.normal(size=shape) / 4).astype(np.float32) for name, shape in shapes.items()}
    text = """(float[N,3,16,16] x) => (float[N,M] y) {
              a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) c = Conv<strides=[2,2]>(b, v) d = Relu(c)
              e = GlobalAveragePool(d) f = Flatten(e) y = MatMul(f, u) }"""
    return graph_of(text, 17, **arrays)


def images(count: int, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


def judge(graph: Graph, feeds: list[dict[str, Array]]) -> Judge:
    ready = api.prepared(graph, FAST)
    return Judge(Inspected(ready.graph, ready.plan, lambda _: lambda _, __=None: ready.graph), feeds)


def mean_power(exact: Sequence[Mapping[str, Array]], names: Sequence[str]) -> dict[str, float]:
    powers = {n: [np.square(e[n], dtype=np.float64).sum() for e in exact if e[n].dtype.kind == "f"] for n in names}
    return {n: float(np.mean(found)) if found else 0.0 for n, found in powers.items()}


def test_features_are_what_the_last_layers_read() -> None:
    assert features(classifier()) == ("b", "f")  # not x: the model's input has no error of its own
    steps = " ".join(f"x{i + 1} = MatMul(x{i}, w) " for i in range(12))
    w = np.eye(4, dtype=np.float32)
    deep = graph_of(f"(float[N,4] x0) => (float[N,4] x12) {{ {steps} }}", 17, w=w)
    assert features(deep) == tuple(f"x{i}" for i in range(12 - FEATURES, 12))
    assert features(graph_of("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }", 17)) == ()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6))
def test_noise_over_mean_power(samples: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    exact = [{"a": rng.normal(size=(3, 2)), "i": np.arange(3), "z": np.zeros(2)} for _ in range(samples)]
    found = [{"a": e["a"] + rng.normal(size=(3, 2)), "i": np.arange(3) + 1, "z": np.ones(2)} for e in exact]
    a, b = (np.stack([pair["a"] for pair in side]) for side in (exact, found))
    expected = ((a - b) ** 2).sum(axis=(1, 2)) / ((a**2).sum() / samples)
    noise = tensor_noise(zip(exact, found, strict=True), mean_power(exact, ("a", "i", "z")))
    np.testing.assert_allclose(noise[:, 0], expected, rtol=1e-12)
    assert not noise[:, 1:].any()  # neither integers nor what is zero everywhere


def test_what_is_infinite_in_float_does_not_count() -> None:
    exact, found = {"a": np.array([np.inf, 2.0])}, {"a": np.array([0.0, 3.0])}
    power = {"a": judging._power(exact["a"])}
    assert power == {"a": 4.0}
    np.testing.assert_allclose(tensor_noise([(exact, found)], power), [[0.25]])


def test_two_logits_are_no_lottery() -> None:
    """Over the samples the judged noise spreads far less than that of the logits."""
    graph, feeds = classifier(), images(48)
    quantized, _ = api.quantize(graph, images(16, seed=1), FAST)
    judged = 10 * np.log10(judge(graph, feeds).noise(quantized).first(48))
    pairs = [(run(graph, f)[0], run(quantized, f)[0]) for f in feeds]
    logits = 10 * np.log10([np.square(a - b).sum() / np.square(a).sum() for a, b in pairs])
    spread = [np.diff(np.percentile(side, [20, 80]))[0] for side in (judged, logits)]
    assert spread[0] < spread[1] / 3


def test_many_outputs_weigh_as_much_as_features() -> None:
    graph, feeds = classifier(200), images(4)
    quantized, _ = api.quantize(graph, images(16, seed=1), FAST)
    found = judge(graph, feeds).noise(quantized).first(4)
    names = ("y", "b", "f")
    sessions = [replace_outputs(g, names) for g in (graph, quantized)]
    pairs = [(run_named(sessions[0], f), run_named(sessions[1], f)) for f in feeds]
    each = tensor_noise(pairs, mean_power([exact for exact, _ in pairs], names))
    expected = np.sqrt(each[:, 0] * np.sqrt(each[:, 1] * each[:, 2]))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def replace_outputs(graph: Graph, names: tuple[str, ...]) -> Graph:
    copy = graph.copy()
    values = {str(v.name): v for v in copy.values()}
    copy.set_outputs([values[name] for name in names])
    return copy


def run_named(graph: Graph, feed: dict[str, Array]) -> dict[str, Array]:
    return dict(zip([str(v.name) for v in graph.outputs], run(graph, feed), strict=True))


def test_smoothed_features_are_moved_back() -> None:
    """Smoothing changes no output: with what it put in place of a tensor moved back there is no noise at all."""
    rng = np.random.default_rng(3)
    arrays = {"g": np.ones(32), "h": np.zeros(32), "w": rng.normal(size=(32, 32)), "v": rng.normal(size=(32, 32))}
    text = """(float[N,32] x) => (float[N,32] y) {
              n = LayerNormalization(x, g, h) m = MatMul(n, w) r = Relu(m) y = MatMul(r, v) }"""
    graph = api.prepared(graph_of(text, 17, **{k: a.astype(np.float32) for k, a in arrays.items()}), FAST).graph
    feeds = [{"x": rng.normal(size=(1, 32)).astype(np.float32)} for _ in range(4)]
    site = next(s for s in find_sites(graph) if s.tensors == ("n",))
    factor = Factor(np.linspace(0.5, 4, 32, dtype=np.float32), np.linspace(-1, 1, 32, dtype=np.float32))
    smoothed = graph.copy()
    Smooth({site.name: factor})(smoothed)
    found = judge(graph, feeds)
    assert found.noise(smoothed, {site.name: factor}).first(4).max() < 1e-8
    still = Factor(factor.scale, np.zeros(32, np.float32))
    assert found.noise(smoothed, {site.name: still}).first(4).min() > 1e-6


def test_large_features_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, feeds = classifier(), images(4)
    quantized, _ = api.quantize(graph, images(16, seed=1), FAST)
    every = judge(graph, feeds).noise(quantized).first(4)
    monkeypatch.setattr(judging, "_BYTES", 64 * 4 * len(feeds))  # f, but not b
    some = judge(graph, feeds).noise(quantized).first(4)
    monkeypatch.setattr(judging, "_BYTES", 0)
    outputs = judge(graph, feeds).noise(quantized).first(4)
    pairs = [(run(graph, f)[0], run(quantized, f)[0]) for f in feeds]
    power = np.mean([np.square(a).sum() for a, _ in pairs])
    np.testing.assert_allclose(outputs, [np.square(a - b).sum() / power for a, b in pairs], rtol=1e-3)
    assert not np.allclose(every, some)
    assert not np.allclose(some, outputs)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt@8", "ort-cpu"])
def test_pairs_alone_compute_what_is_lowered(target: str) -> None:
    graph, data = classifier(40), images(20)
    ready = api.prepared(graph, replace(FAST, target=target))
    statistics = api.observe(ready, data)
    ranges = Ranges.of(ready, statistics, shifts=target != "ort-cpu")
    names = names_of(ranges.possible)
    assert bool(names) == (target != "ort-cpu")
    pairs, lowered = ranges.paired(names), api.lowered(ready, replace(statistics, zero_points=names))[0]
    assert {str(v.name) for v in graph.values()} <= {str(v.name) for v in pairs.values()}
    for feed in images(3, seed=2):
        np.testing.assert_allclose(run(pairs, feed)[0], run(lowered, feed)[0], rtol=1e-3, atol=2e-3)


def detector(bias: float) -> Graph:
    """A map of probabilities, most of which are near 0 where the bias is far below."""
    rng = np.random.default_rng(5)
    arrays = {"w": rng.normal(size=(16, 3, 3, 3)) / 2, "v": rng.normal(size=(1, 16, 1, 1)), "b": np.full(1, bias)}
    text = """(float[N,3,16,16] x) => (float[N,1,16,16] y) {
              a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) z = Conv(r, v, b) y = Sigmoid(z) }"""
    return graph_of(text, 17, **{k: a.astype(np.float32) for k, a in arrays.items()})


@pytest.mark.parametrize("bias", [0.0, -4.0, -40.0])
def test_many_probabilities_between_0_and_1_are_looked_at_beside_logits(bias: float) -> None:
    graph, feeds = detector(bias), images(6)
    quantized, _ = api.quantize(graph, images(16, seed=1), FAST)
    names = ("y", "z", "r")
    sessions = [replace_outputs(g, names) for g in (graph, quantized)]
    pairs = [(run_named(sessions[0], f), run_named(sessions[1], f)) for f in feeds]
    y, z, r = tensor_noise(pairs, mean_power([exact for exact, _ in pairs], names)).T
    between = np.mean([(4 * exact["y"] * (1 - exact["y"])).sum() for exact, _ in pairs])
    share = between / (between + 100)
    expected = np.sqrt(r * y**share * z ** (1 - share))
    np.testing.assert_allclose(judge(graph, feeds).noise(quantized).first(6), expected, rtol=1e-3)
    assert share < 0.01 if bias == -40 else share > 0.02


def test_a_few_probabilities_change_next_to_nothing() -> None:
    """Two of a classifier have at most two values between 0 and 1."""
    logits = classifier(2)
    text = """(float[N,3,16,16] x) => (float[N,M] p) {
              a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) c = Conv<strides=[2,2]>(b, v) d = Relu(c)
              e = GlobalAveragePool(d) f = Flatten(e) y = MatMul(f, u) p = Softmax<axis=-1>(y) }"""
    arrays = {name: value for name in "wvu" if (value := logits.const(named_value(logits, name))) is not None}
    graph, feeds = graph_of(text, 17, **arrays), images(8)
    both = [judge(g, feeds).noise(api.quantize(g, images(16, seed=1), FAST)[0]).first(8) for g in (logits, graph)]
    np.testing.assert_allclose(both[1], both[0], rtol=0.02)


def named_value(graph: Graph, name: str) -> Value:
    return next(v for n in graph.nodes for v in n.inputs if v is not None and v.name == name)
