from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of, lines, random_feeds, run

from onnxq import Recipe, api
from onnxq.monitor import Monitor
from onnxq.passes.sink_squeezes import sink_squeezes

if TYPE_CHECKING:
    from onnxq.graph import Graph

RNG = np.random.default_rng(8)
AXES = np.array([2])
CONV = "u = Unsqueeze(x, axes) c = Conv(u, w) s = Squeeze(c, axes)"


def weights(**more: Array) -> dict[str, Array]:
    return {"w": RNG.normal(size=(16, 16, 1, 3)).astype(np.float32), "axes": AXES, **more}


def net(body: str, **more: Array) -> Graph:
    given = {"b": RNG.normal(size=(1, 16, 1)).astype(np.float32)} if "b)" in body else {}
    graph = graph_of(
        f"(float[2,16,20] x, float[2,16,18] z) => (float[2,16,L] y) {{ {CONV} {body} }}", **weights(**given, **more)
    )
    graph.infer_shapes()
    return graph


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ("y = Softmax<axis=1>(s)", {}),  # not elementwise
        ("y = Add(s, z)", {}),  # z is no Squeeze
        ("r = Relu(s) q = Mul(s, s) y = Add(r, q)", {}),  # two nodes read it
        ("y = Add(s, d)", {"d": np.ones((1, 1, 1, 1), np.float32)}),  # of a higher rank than s
        (
            "p = ReduceMax(x, last) q = Squeeze(p, last) v = Relu(q) y = Sub(s, z)",
            {"last": np.array([2])},
        ),  # no convolution
        (
            "q = Squeeze(m, zero) y = Add(s, q)",
            {"m": np.ones((1, 2, 16, 18), np.float32), "zero": np.array([0])},
        ),  # axes
        ("v = com.acme.Unsqueeze(s, axes) y = Softmax(v)", {}),  # not the standard's
        ("e = Unsqueeze(s, zero) y = Add(s, e)", {"zero": np.array([0])}),  # a higher rank
    ],
)
def test_what_it_leaves_alone(body: str, more: dict[str, Array]) -> None:
    graph = net(body, **more)
    before = lines(graph)
    assert sink_squeezes(graph) == 0
    assert lines(graph) == before


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("y = Relu(s)", ["y/wide = Relu(c)", "y = Squeeze(y/wide, y/axes)"]),
        (
            "a = Add(s, b) r = Relu(a) v = Unsqueeze(r, axes) y0 = Conv(v, w) y = Squeeze(y0, axes)",
            ["a/wide = Add(c, b/wide)", "v = Relu(a/wide)", "y0 = Conv(v, w)", "y = Squeeze(y0, axes)"],
        ),
        ("y = Sub(h, s)", ["y/wide = Sub(h/wide, c)", "y = Squeeze(y/wide, y/axes)"]),
        (
            "d = Conv(u, w) e = Squeeze(d, minus) a = Add(s, e) y = Tanh(a)",
            ["d = Conv(u, w)", "a/wide = Add(c, d)", "y/wide = Tanh(a/wide)", "y = Squeeze(y/wide, y/axes)"],
        ),
        (
            "r = Relu(s) v = Unsqueeze(r, axes) m = MaxPool<kernel_shape=[1,1]>(v) n = Squeeze(m, axes) y = Mul(n, r)",
            [
                "v = Relu(c)",
                "r = Squeeze(v, r/axes)",
                "m = MaxPool(v)",
                "n = Squeeze(m, axes)",
                "y = Mul(n, r)",
            ],
        ),
        ("y = Clip(s, lo, hi)", ["y/wide = Clip(c, lo, hi)", "y = Squeeze(y/wide, y/axes)"]),
    ],
)
def test_the_same_function_with_the_squeeze_behind(body: str, after: list[str]) -> None:
    more = {"h": np.float32(0.5), "minus": np.array([-2]), "lo": np.float32(-0.1), "hi": np.float32(0.7)}
    used = {name: np.asarray(array) for name, array in more.items() if f"{name}" in body.replace("Squeeze", "")}
    graph = net(body, **used)
    feeds = random_feeds(graph)
    before = run(graph, feeds)[0]
    assert sink_squeezes(graph) > 0
    assert lines(graph)[2:] == after
    assert graph.problem() is None
    np.testing.assert_allclose(run(graph, feeds)[0], before, rtol=1e-6, atol=1e-6)
    assert sink_squeezes(graph) == 0


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_convolutions_of_one_axis_from_tensorflow_run_in_int8_from_end_to_end(target: str) -> None:
    layer = "u{0} = Unsqueeze(r{1}, axes) c{0} = Conv(u{0}, w) s{0} = Squeeze(c{0}, axes)"
    layer += " a{0} = Add(s{0}, b) r{0} = Relu(a{0})"
    body = " ".join(layer.format(i, i - 1) for i in range(1, 4)).replace("r0", "x").replace("r3", "y")
    b = RNG.normal(size=(1, 16, 1)).astype(np.float32)
    graph = graph_of(f"(float[2,16,20] x) => (float[2,16,14] y) {{ {body} }}", **weights(b=b))
    feeds = [random_feeds(graph, seed) for seed in range(4)]
    made, _ = api.quantize(graph, feeds, Recipe(target=target, effort="fast"), Monitor(warn=lambda _: None))
    ops = [node.op_type for node in made.nodes]
    assert (ops.count("Conv"), ops.count("Add"), ops.count("Unsqueeze"), ops.count("Squeeze")) == (3, 0, 1, 1)


@pytest.mark.parametrize("order", ["g, s", "s, g"])
@pytest.mark.parametrize("length", ["20", "L"])
def test_a_gate_that_broadcasts_keeps_the_shape_of_what_it_gates(order: str, length: str) -> None:
    text = f"""(float[2,16,{length}] x) => (float[2,16,K] y) {{
               u = Unsqueeze(x, axes) c = Conv(u, w1) s = Squeeze(c, axes)
               p = GlobalAveragePool(u) d = Conv(p, w1) e = Squeeze(d, axes) g = Sigmoid(e)
               m = Mul({order}) v = Unsqueeze(m, axes) y0 = Conv(v, w1) y = Squeeze(y0, axes) }}"""
    w1 = RNG.normal(size=(16, 16, 1, 1)).astype(np.float32)
    graph = graph_of(text, axes=AXES, w1=w1)
    graph.infer_shapes()
    before = graph.copy()
    assert sink_squeezes(graph) > 0
    values = {str(v.name): v for v in graph.values()}
    assert graph.shape(values["v"]) == (before.shape({str(v.name): v for v in before.values()}["v"]))
    assert graph.problem() is None
    feeds = {"x": RNG.normal(size=(2, 16, 20)).astype(np.float32)}
    np.testing.assert_allclose(run(graph, feeds)[0], run(before, feeds)[0], rtol=1e-5, atol=1e-5)


def test_nodes_and_tensors_keep_the_names_that_rules_and_caches_know() -> None:
    graph = net("a = Add(s, b) r = Relu(a) v = Unsqueeze(r, axes) y0 = Conv(v, w) y = Squeeze(y0, axes)")
    names = {n.op_type: n.name for n in graph.nodes if n.op_type in ("Add", "Relu")}
    assert sink_squeezes(graph) > 0
    assert {n.op_type: n.name for n in graph.nodes if n.op_type in ("Add", "Relu")} == names
    assert "v" in {v.name for v in graph.values()}
    assert len({n.name for n in graph.nodes}) == len(graph.nodes)


def test_a_bound_of_a_clip_is_no_tensor_that_moves() -> None:
    text = "(float[1,1,1,1] x) => (float[4] y) { c = Conv(x, k) s = Squeeze(c, every) y = Clip(h, s) }"
    graph = graph_of(text, k=np.ones((1, 1, 1, 1), np.float32), every=np.arange(4), h=np.ones(4, np.float32))
    graph.infer_shapes()
    assert sink_squeezes(graph) == 0
