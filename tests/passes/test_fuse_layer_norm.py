from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import graph_of, lines, random_feeds, run, same_function

from onnxq.passes.fuse_layer_norm import fuse_layer_norm
from onnxq.runtime import Session

if TYPE_CHECKING:
    from onnxq.graph import Graph

RNG = np.random.default_rng(0)
SCALE, BIAS = RNG.normal(size=(2, 8)).astype(np.float32)
HEAD = "m = ReduceMean<axes=[-1]>(x) c = Sub(x, m) q = Pow(c, two) v = ReduceMean<axes=[-1]>(q)"
CORE = f"{HEAD} e = Add(v, eps) r = Sqrt(e) d = Div(c, r)"


def norm(body: str, opset: int = 17, shape: str = "2,3,8", **weights: object) -> Graph:
    given = {"two": np.float32(2), "eps": np.float32(1e-5), "g": SCALE, "b": BIAS, **weights}
    used = {name: array for name, array in given.items() if f" {name})" in body or f"({name}," in body}
    graph = graph_of(f"(float[{shape}] x) => (float[{shape}] y) {{ {body} }}", opset, **used)
    graph.infer_shapes()
    return graph


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(f"{HEAD} s = Sqrt(v) y = Div(c, s)", id="no epsilon"),
        pytest.param(CORE.replace("Div(c, r)", "Div(x, r)") + " y = Mul(d, g)", id="x is not centred"),
        pytest.param(
            CORE.replace("axes=[-1]", "axes=[1]").replace("d = Div", "y = Div"), id="over an axis in the middle"
        ),
        pytest.param(
            "q = Pow(x, two) v = ReduceMean<axes=[-1]>(q) e = Add(v, eps) r = Sqrt(e) y = Div(x, r)", id="RMS"
        ),
        pytest.param("m = ReduceMean<axes=[-1]>(x) y = Sub(x, m)", id="centring alone"),
    ],
)
def test_leaves_alone(body: str) -> None:
    graph = norm(body)
    before = lines(graph)
    assert fuse_layer_norm(graph) == 0
    assert lines(graph) == before


def test_leaves_older_opsets_alone() -> None:
    assert fuse_layer_norm(norm(f"{CORE} y = Mul(d, g)", 16)) == 0


def test_leaves_an_unknown_last_dimension_alone() -> None:
    assert fuse_layer_norm(norm(f"{CORE} y = Mul(d, g)", shape="2,3,N")) == 0


def test_leaves_a_scale_along_another_axis_alone() -> None:
    graph = norm(f"{CORE} y = Mul(d, g)", g=RNG.normal(size=(3, 8)).astype(np.float32))
    assert fuse_layer_norm(graph) == 0


def test_leaves_a_scale_of_more_axes_than_x_alone() -> None:
    given = {"eps": np.float32(1e-5), "two": np.float32(2), "g": SCALE.reshape(1, 1, 8)}
    graph = graph_of(f"(float[3,8] x) => (float[1,3,8] y) {{ {CORE} y = Mul(d, g) }}", 17, **given)
    graph.infer_shapes()
    assert fuse_layer_norm(graph) == 0


@pytest.mark.parametrize(
    ("tail", "scale", "bias"),
    [
        ("", 1.0, 0.0),
        ("y = Mul(d, g)", SCALE, 0.0),
        ("y = Mul(g, d)", SCALE, 0.0),
        ("y = Add(d, b)", 1.0, BIAS),
        ("t = Mul(d, g) y = Add(t, b)", SCALE, BIAS),
        ("t = Mul(d, g) y = Add(b, t)", SCALE, BIAS),
    ],
)
@pytest.mark.parametrize("opset", [17, 19])
def test_one_node_with_scale_and_bias(
    tail: str, scale: float | np.ndarray, bias: float | np.ndarray, opset: int
) -> None:
    body = f"{CORE} {tail}" if tail else CORE.replace("d = Div", "y = Div")
    if opset == 19:  # axes are an input from opset 18 on
        body = body.replace("<axes=[-1]>(x)", "(x, last)").replace("<axes=[-1]>(q)", "(q, last)")
    graph = norm(body, opset, last=np.array([-1]))
    x = (RNG.normal(size=(2, 3, 8)) * 3 + 1).astype(np.float32)
    before = graph.copy()
    assert fuse_layer_norm(graph) == 1
    graph.remove_unused()
    assert [n.op_type for n in graph.nodes] == ["LayerNormalization"]
    wide = x.astype(np.float64)  # Ba et al., 2016, arXiv 1607.06450, eq. 3
    variance = np.mean((wide - wide.mean(-1, keepdims=True)) ** 2, -1, keepdims=True)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-5) * scale + bias
    np.testing.assert_allclose(run(graph, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)
    same_function(before, graph, {"x": x}, rtol=1e-5)


PER_ROOT = f"{HEAD} e = Add(v, eps) r = Sqrt(e) i = Reciprocal(r)"


@pytest.mark.parametrize(
    ("body", "scale", "bias"),
    [
        (f"{PER_ROOT} k = Mul(i, g) p = Mul(x, k) n = Mul(m, k) o = Sub(b, n) y = Add(p, o)", SCALE, BIAS),  # Keras 2
        (
            f"{PER_ROOT} k = Mul(i, g) p = Mul(x, k) w = Neg(m) n = Mul(w, k) o = Add(n, b) y = Add(p, o)",
            SCALE,
            BIAS,
        ),  # Keras 3
        (f"{PER_ROOT} p = Mul(x, i) n = Mul(m, i) o = Sub(b, n) y = Add(p, o)", 1.0, BIAS),
        (f"{PER_ROOT} k = Mul(g, i) p = Mul(k, x) n = Mul(k, m) y = Sub(p, n)", SCALE, 0.0),
        (f"{HEAD} e = Add(v, eps) i = Pow(e, less) d = Mul(c, i) t = Mul(d, g) y = Add(t, b)", SCALE, BIAS),
        (f"{HEAD} e = Add(v, eps) r = Sqrt(e) i = Div(one, r) d = Mul(c, i) t = Mul(d, g) y = Add(t, b)", SCALE, BIAS),
    ],
)
def test_every_order_of_the_same_sum_is_one_node(body: str, scale: np.ndarray, bias: np.ndarray) -> None:
    graph = norm(body, less=np.float32(-0.5), one=np.float32(1))
    before = graph.copy()
    assert fuse_layer_norm(graph) == 1
    graph.remove_unused()
    (node,) = graph.nodes
    assert node.op_type == "LayerNormalization"
    np.testing.assert_array_equal(graph.const(node.inputs[1]), np.broadcast_to(np.float32(scale), 8))
    np.testing.assert_array_equal(graph.const(node.inputs[2]), np.broadcast_to(np.float32(bias), 8))
    same_function(before, graph, random_feeds(graph), rtol=1e-5)


def test_a_mean_weighed_otherwise_is_left_alone() -> None:
    body = f"{PER_ROOT} k = Mul(i, g) p = Mul(x, k) n = Mul(m, i) o = Sub(b, n) y = Add(p, o)"
    assert fuse_layer_norm(norm(body)) == 0


def test_two_trailing_axes() -> None:
    graph = norm(CORE.replace("axes=[-1]", "axes=[1,2]") + " y = Mul(d, g)")
    before = graph.copy()
    assert fuse_layer_norm(graph) == 1
    assert graph.attribute(next(n for n in graph.nodes if n.op_type == "LayerNormalization"), "axis") == -2
    same_function(before, graph, random_feeds(graph), rtol=1e-5)


def test_inner_tensors_that_others_read_stay() -> None:
    body = f"{CORE} t = Mul(d, g) u = Add(t, b) y = Add(u, m)"
    graph = norm(body)
    before = graph.copy()
    assert fuse_layer_norm(graph) == 1
    graph.remove_unused()
    assert lines(graph) == [
        "m = ReduceMean(x)",
        "u = LayerNormalization(x, u/scale, u/bias)",
        "y = Add(u, m)",
    ]
    same_function(before, graph, random_feeds(graph), rtol=1e-5)


def test_behind_a_cast_to_float32() -> None:
    """ONNX Runtime 1.31 fuses it with the Cast, to a node of two types, and does not load the model."""
    text = f"(float16[2,3,8] h) => (float[2,3,8] y) {{ x = Cast<to = 1>(h) {CORE} y = Mul(d, g) }}"
    graph = graph_of(text, 17, two=np.float32(2), eps=np.float32(1e-5), g=SCALE)
    graph.infer_shapes()
    before = graph.copy()
    assert fuse_layer_norm(graph) == 1
    assert lines(graph)[0] == "x = Cast(h)"
    given = {"h": (RNG.normal(size=(2, 3, 8)) * 3 + 1).astype(np.float16)}
    (got,) = Session(graph.to_proto().SerializeToString()).run(given)
    np.testing.assert_allclose(got, run(before, given)[0], rtol=1e-4, atol=1e-4)


def test_between_casts() -> None:
    """As mixed precision is exported: the Cast at the end stays too."""
    nodes = f"x = Cast<to = 1>(h) {CORE} y = Mul(d, g) z = Cast<to = 10>(y)"
    text = f"(float16[2,3,8] h) => (float16[2,3,8] z) {{ {nodes} }}"
    graph = graph_of(text, 17, two=np.float32(2), eps=np.float32(1e-5), g=SCALE)
    graph.infer_shapes()
    before = graph.copy()
    assert fuse_layer_norm(graph) == 1
    graph.remove_unused()
    assert [n.op_type for n in graph.nodes] == ["Cast", "LayerNormalization", "Cast"]
    given = {"h": (RNG.normal(size=(2, 3, 8)) * 3 + 1).astype(np.float16)}
    (got,) = Session(graph.to_proto().SerializeToString()).run(given)
    np.testing.assert_allclose(got.astype(float), run(before, given)[0].astype(float), rtol=2e-3, atol=1e-3)
