from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import Array, graph_of, lines, run
from onnx.reference import ReferenceEvaluator

import onnxq
from onnxq import api
from onnxq.graph import Graph
from onnxq.monitor import Monitor
from onnxq.numerics import sqnr_db
from onnxq.passes.widen_halves import HALVES, has_halves, widen_halves

RNG = np.random.default_rng(5)
QUIET = Monitor(warn=lambda _: None)


def half(*shape: int) -> Array:
    return (RNG.normal(size=shape) / 3).astype(np.float16)


@pytest.mark.parametrize(
    "text",
    [
        "(float[4,8] x) => (float[4,8] y) { a = MatMul(x, x) y = Cast<to=1>(a) }",
        "(float16[4,8] x) => (float16[4,8] y) { y = com.acme.Blur(x) }",
        "(float16[4,8] x) => (seq(float16[2,8]) y) { y = SplitToSequence(x) }",
        "(float16[4,8] x) => (float16[4,8] x) { }",
    ],
)
def test_what_it_leaves_alone(text: str) -> None:
    graph = graph_of(text.replace("(x, x)", "(x, w)"), **({"w": RNG.normal(size=(8, 8))} if "MatMul" in text else {}))
    before = graph.to_proto().SerializeToString()
    assert widen_halves(graph) == 0
    assert graph.to_proto().SerializeToString() == before


TEXT = """(float16[2,8] x, bool b) => (float16[2,8] y, float16[2,8] w, float[2,8] z) {
    a = MatMul(x, v)
    n = Shape(a) f = ConstantOfShape(n) c = Add(a, f)
    h = Cast<to=10>(p) d = Mul(c, h)
    e = If (b) <
        then_branch = t () => (float16[2,8] g) { g = Mul(d, u) },
        else_branch = o () => (float16[2,8] k) { k = Sub(x, d) }
    >
    y = Relu(e) z = Cast<to=1>(y)
}"""


@pytest.mark.parametrize("branch", [True, False])
def test_the_same_function_with_the_types_of_its_ends(branch: bool) -> None:
    v, u, p = half(8, 8), half(8), np.float32(0.5)
    graph = graph_of(TEXT, 19, v=v, u=u, p=p, w=half(2, 8))
    fill = next(node for node in graph.nodes if node.op_type == "ConstantOfShape")
    graph.set_attribute(fill, "value", onnx.numpy_helper.from_array(np.array([1.5], np.float16)))
    graph.infer_shapes()
    feed = {"x": half(2, 8), "b": np.array(branch)}
    before = run(graph, feed)
    assert widen_halves(graph) == 9
    onnx.checker.check_model(graph.to_proto(), full_check=True)
    after = run(graph, feed)
    assert [x.dtype.name for x in after] == [x.dtype.name for x in before] == ["float16", "float16", "float32"]
    d = (feed["x"].astype(np.float64) @ v.astype(np.float64) + 1.5) * 0.5
    exact = np.maximum(d * u.astype(np.float64) if branch else feed["x"] - d, 0)
    np.testing.assert_allclose(after[2], exact, rtol=1e-5, atol=1e-6)  # computed in float32 throughout
    np.testing.assert_array_equal(after[0], after[2].astype(np.float16))
    np.testing.assert_array_equal(after[1], before[1])
    assert not [v for v in graph.values() if graph.dtype(v) == "float16" and v.name not in ("x", "y", "w")]


def filled(text: str, fill: Array, **arrays: Array) -> Graph:
    """The graph, as it comes from a file without value_info, with this value for each ConstantOfShape."""
    graph = graph_of(text, **arrays)
    for part in graph.parts():
        for node in part.nodes:
            if node.op_type == "ConstantOfShape":
                part.set_attribute(node, "value", fill)
    return Graph.from_proto(graph.to_proto())


def test_a_constant_of_a_shape_whose_type_no_one_says() -> None:
    text = (
        "(float16[N,32] x) => (float16[N,32] y) { a = MatMul(x, w) n = Shape(x) f = ConstantOfShape(n) y = Add(a, f) }"
    )
    graph, feed = filled(text, np.array([1.5], np.float16), w=half(32, 32)), {"x": half(3, 32)}
    before = run(graph, feed)[0].astype(np.float64)
    made, _ = api.quantize(graph, None, onnxq.Recipe(target="ort-cpu", mode="dynamic"), QUIET)
    onnx.checker.check_model(made.to_proto(), full_check=True)
    after = run(made, feed)[0]
    assert after.dtype == np.float16
    assert sqnr_db(before, after.astype(np.float64)) > 30


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("branch", [True, False])
def test_a_constant_of_a_shape_that_a_branch_gives(dtype: str, branch: bool) -> None:
    text = f"""(bool c, {dtype}[N,4] x) => (float[N,4] y) {{
        n = Shape(x)
        e = If (c) <then_branch = t () => ({dtype}[N,4] g) {{ g = ConstantOfShape(n) }},
                    else_branch = o () => ({dtype}[N,4] k) {{ k = Mul(x, x) }}>
        s = Add(e, x) y = Cast<to=1>(s)
    }}"""
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    graph, x = filled(text, np.array([1.5], kind)), half(3, 4).astype(kind)
    assert widen_halves(graph) >= 2
    onnx.checker.check_model(graph.to_proto(), full_check=True)
    exact = x.astype(np.float64) + (1.5 if branch else x.astype(np.float64) ** 2)
    (got,) = ReferenceEvaluator(graph.to_proto()).run(None, {"c": np.array(branch), "x": x})
    np.testing.assert_allclose(np.asarray(got), exact, rtol=1e-6)


def test_a_constant_of_a_shape_in_float_or_of_integers_stays() -> None:
    text = "(int64[2] n, float16[2] x) => (float y, float16[2] z) { y = ConstantOfShape(n) z = Relu(x) }"
    for fill in (np.array([0.1], np.float32), np.array([3], np.int64)):
        graph = filled(text.replace("float y", "int64 y") if fill.dtype == np.int64 else text, fill)
        assert widen_halves(graph) == 1
        node = next(node for node in graph.nodes if node.op_type == "ConstantOfShape")
        np.testing.assert_array_equal(graph.attribute(node, "value").numpy(), fill, strict=True)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_model_in_half_precision_runs_on_integers_on_the_cpu(mode: str) -> None:
    text = "(float16[N,32] x) => (float16[N,32] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"
    graph = graph_of(text, w=half(32, 32))
    feeds = [{"x": half(6, 32)} for _ in range(8)]
    recipe = onnxq.Recipe(target="ort-cpu", mode=mode, effort="fast", reduce_range=True)
    made, plan = api.quantize(graph, feeds if mode == "static" else None, recipe, QUIET)
    assert [d.quantized for d in plan.decisions if d.op_type == "MatMul"] == [True, True]
    exact = np.concatenate([run(graph, feed)[0] for feed in feeds]).astype(np.float64)
    got = [run(made, feed)[0] for feed in feeds]
    assert got[0].dtype == np.float16
    assert sqnr_db(exact, np.concatenate(got).astype(np.float64)) > 30


def test_a_weight_that_a_branch_gives() -> None:
    text = """(bool b, float16[4] x) => (float16[4] y) {
        e = If (b) <then_branch = t () => (float16[4] g) <float16[4] g = {1, 2, 3, 4}> { },
                    else_branch = o () => (float16[4] k) { k = Add(x, x) }>
        y = Mul(e, x)
    }"""
    graph = graph_of(text)
    feeds = [{"b": np.array(b), "x": half(4)} for b in (True, False)]
    before = [run(graph, feed)[0] for feed in feeds]
    assert widen_halves(graph) >= 3
    onnx.checker.check_model(graph.to_proto(), full_check=True)
    np.testing.assert_allclose([run(graph, feed)[0] for feed in feeds], before, rtol=2e-3)


def test_weights_alone_are_narrowed_in_the_type_they_have() -> None:
    """Nothing on integers is computed then, and what stays would only be twice as large."""
    graph = graph_of(
        "(float16[N,32] x) => (float16[N,32] y) { a = MatMul(x, w) y = Mul(a, v) }", w=half(32, 32), v=half(32)
    )
    made, _ = api.quantize(graph, None, onnxq.Recipe(target="ort-cpu", mode="weight-only"), QUIET)
    assert "Cast" not in " ".join(lines(made))


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("(float[2] x) => (float[2] y) { y = Exp(x) }", set()),
        ("(float16[2] x) => (float16[2] y) { y = Exp(x) }", {"float16"}),
        ("(float[2] x) => (float y) { c = Cast<to=16>(x) d = Neg(c) y = Cast<to=1>(d) }", {"bfloat16"}),
        (
            """(bool c, float[2] x) => (float y) {
                y = If (c) <then_branch = t () => (float g) { h = Cast<to=16>(x) g = Cast<to=1>(h) },
                            else_branch = o () => (float k) { k = Neg(x) }>
            }""",
            {"bfloat16"},
        ),
    ],
)
def test_whether_a_model_has_halves(text: str, kinds: set[str]) -> None:
    graph = graph_of(text, 19)
    assert {kind for kind in HALVES if has_halves(graph, (kind,))} == kinds
    assert has_halves(graph) == bool(kinds)
