"""Bodies of If, Loop and Scan: what stays in float first, then that they are quantized like the same model outside."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from architectures import convnext, mobilenet, recurrent, resnet, shufflenet, signal, transformer
from graphs import graph_of, random_feeds, run, same_function
from wrapping import in_if, in_loop, in_scan

import onnxq
from onnxq import Recipe, Rule
from onnxq.collect import session_for
from onnxq.errors import RecipeError
from onnxq.graph import share
from onnxq.modes import MODES
from onnxq.passes import prepare, share_weights
from onnxq.pipeline import run as run_passes
from onnxq.runtime import Session
from onnxq.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxq.graph import Graph
    from onnxq.plan import Plan

CPU = Recipe(target="ort-cpu", calibrator="minmax", reduce_range=True)
TRUE, FALSE = np.array(True), np.array(False)


def linear(text: str = "") -> Graph:
    """Two products, a bias and a Relu between them; large enough for every target."""
    rng = np.random.default_rng(3)
    weights = {n: rng.normal(size=s).astype(np.float32) / 8 for n, s in {"w": (64, 64), "v": (64, 32)}.items()}
    body = "(float[N,64] x) => (float[N,32] y) { m = MatMul(x, w) a = Add(m, b) r = Relu(a) y = MatMul(r, v) }"
    return graph_of(text or body, **weights, b=rng.normal(size=64).astype(np.float32))


def samples(graph: Graph, count: int = 3, **more: Any) -> list[dict[str, Any]]:  # noqa: ANN401  arrays of any type
    """Random feeds of a bare model, with further inputs."""
    return [random_feeds(graph, seed, N=4) | more for seed in range(count)]


def optimized(graph: Graph, feed: dict[str, Any]) -> Any:  # noqa: ANN401  whatever the model gives
    """The first output with ONNX Runtime's optimizations."""
    return Session(graph.to_proto().SerializeToString()).run(feed)[0]


def reasons(graph: Graph, recipe: Recipe) -> dict[str, str]:
    return onnxq.make_plan(graph, recipe).skipped


# --- what stays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [in_if, in_loop, in_scan])
def test_tensorrt_leaves_bodies_in_float_unless_asked(wrap: Callable[[Graph], Graph]) -> None:
    bare = linear()
    graph = wrap(bare)
    found = reasons(graph, Recipe())
    assert found["MatMul:m"].startswith("TensorRT runs bodies in float unless asked")
    plan = onnxq.make_plan(graph, Recipe(rules=(Rule("MatMul:m", quantize=True),)))
    assert {p.tensor for p in plan.points.values()} == {"x"}
    assert [w.uses for w in plan.weights] == [(("MatMul:m", 1),)]


def test_a_rule_leaves_a_layer_of_a_body_in_float() -> None:
    plan = onnxq.make_plan(in_if(linear()), replace(CPU, rules=(Rule("a/joined/Gemm", quantize=False),)))
    assert plan.skipped["a/joined/Gemm"] == "excluded by a rule"
    with pytest.raises(RecipeError, match="matches no node"):
        onnxq.make_plan(in_if(linear()), replace(CPU, rules=(Rule("MatMul:q", quantize=False),)))


def test_a_branch_that_no_sample_reached_is_not_calibrated() -> None:
    bare = linear()
    graph = in_if(bare)
    quantized, plan = onnxq.quantize(graph, samples(bare, cond=TRUE), CPU)
    assert plan.modes == {"choice/else_branch": "dynamic"}
    assert any("choice/else_branch: no sample reached it" in note for note in plan.notes)
    feed = samples(bare, 1, cond=FALSE)[0]
    error = optimized(quantized, feed) - run(graph, feed)[0]
    assert np.abs(error).max() < 0.05 * np.abs(run(graph, feed)[0]).max()
    ops = {part.body.name if part.body else "": {n.op_type for n in part.nodes} for part in quantized.parts()}
    assert "DynamicQuantizeLinear" in ops["choice/else_branch"]
    assert "QuantizeLinear" in ops["choice/then_branch"]


def test_a_cache_of_a_branch_that_no_sample_reached_has_what_was_seen() -> None:
    bare = linear()
    graph = in_if(bare)
    recipe = replace(CPU, effort="fast")
    made = onnxq.make_cache(graph, onnxq.calibrate(graph, samples(bare, cond=TRUE), recipe), recipe)
    assert made.scales


def test_the_model_is_not_changed() -> None:
    bare = linear()
    graph = in_if(bare)
    before = graph.to_proto().SerializeToString()
    onnxq.quantize(graph, samples(bare, cond=TRUE), CPU)
    assert graph.to_proto().SerializeToString() == before


# --- what is quantized --------------------------------------------------------------------------------

WRAPPED: dict[str, tuple[Callable[[Graph], Graph], dict[str, Any]]] = {
    "if": (in_if, {"cond": TRUE}),
    "if, weights outside": (lambda g: in_if(g, outside=True), {"cond": TRUE}),
    "if in if": (lambda g: in_if_again(in_if(g)), {"cond": TRUE, "cond2": TRUE}),
    "loop": (in_loop, {}),
    "loop in if": (lambda g: in_if(in_loop(g)), {"cond": TRUE}),
    "if in loop": (lambda g: in_loop(in_if(g)), {"cond": TRUE}),
    "scan": (in_scan, {}),
}


def in_if_again(graph: Graph) -> Graph:
    """One If around another, with a condition of its own."""
    proto = graph.to_proto()
    for value in proto.graph.input:
        value.name = "cond2" if value.name == "cond" else value.name
    for node in proto.graph.node:
        node.input[:] = ["cond2" if name == "cond" else name for name in node.input]
    return in_if(onnxq.Graph.from_proto(proto))


@pytest.mark.parametrize("case", WRAPPED)
@pytest.mark.parametrize("make", [linear, resnet, mobilenet])
def test_a_body_computes_what_the_same_model_outside_does(make: Callable[[], Graph], case: str) -> None:
    bare, (wrap, more) = make(), WRAPPED[case]
    graph = wrap(bare)
    inside = [bodied(feed, case) | more for feed in samples(bare)]
    expected, plain = onnxq.quantize(bare, samples(bare), CPU)
    quantized, plan = onnxq.quantize(graph, inside, CPU)
    onnx.checker.check_model(quantized.to_proto(), full_check=True)
    found = scales(plan)
    assert {name: found.get(name) for name in scales(plain)} == pytest.approx(scales(plain), rel=1e-5)
    assert {d.node for d in plain.decisions if d.quantized} <= {d.node for d in plan.decisions if d.quantized}
    want = optimized(expected, samples(bare, 1)[0])
    got = optimized(quantized, inside[0]).reshape(-1, *want.shape)[0]
    step = 1 / 127  # a kernel that sums in another order may round to the next code
    np.testing.assert_allclose(got, want, rtol=0, atol=step * np.abs(want).max())


def scales(plan: Plan) -> dict[str, float]:
    """Tensor -> its scale."""
    return {p.tensor: float(p.params.scale) for p in plan.points.values() if p.params is not None}


def bodied(feed: dict[str, Any], case: str) -> dict[str, Any]:
    """The feed as the wrapped model takes it."""
    return {f"{k}/all": np.stack([v, v]) for k, v in feed.items()} if case == "scan" else feed


@pytest.mark.parametrize("mode", [m for m in MODES if m not in ("static", "float")])
@pytest.mark.parametrize("target", ["ort-cpu", "ort-cuda", "tensorrt@10"])
def test_the_other_modes(target: str, mode: str) -> None:
    if mode in TARGETS[target].refuses:
        return
    bare = linear()
    asked = (Rule(ops=("MatMul",), quantize=True),)
    recipe = Recipe(target=target, mode=mode, rules=asked, high_precision="fp32", calibrator="minmax")
    data = mode == "auto"
    expected, _ = onnxq.quantize(bare, samples(bare) if data else None, recipe)
    feed = samples(bare, 1)[0]
    wrapped: tuple[tuple[Callable[[Graph], Graph], dict[str, Any]], ...] = ((in_if, {"cond": TRUE}), (in_loop, {}))
    for wrap, more in wrapped:
        quantized, _ = onnxq.quantize(wrap(bare), samples(bare, 3, **more) if data else None, recipe)
        found, want = run(quantized, feed | more)[0], run(expected, feed)[0]
        np.testing.assert_allclose(found.reshape(-1, *want.shape)[0], want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_half_precision_inside_bodies() -> None:
    bare = linear()
    recipe = Recipe(target="ort-cuda", calibrator="minmax")
    quantized, _ = onnxq.quantize(in_if(bare), samples(bare, cond=TRUE) + samples(bare, cond=FALSE), recipe)
    onnx.checker.check_model(quantized.to_proto(), full_check=True)
    for cond in (TRUE, FALSE):
        feed = samples(bare, 1, cond=cond)[0]
        want = run(in_if(bare), feed)[0]
        assert np.abs(run(quantized, feed)[0] - want).max() < 0.05 * np.abs(want).max()
    assert quantized.dtype(quantized.outputs[0]) == "float32"


def test_a_body_without_layers_stays_in_float32() -> None:
    text = """(float[N,64] x, bool c) => (float[N,64] y) {
      m = MatMul(x, w)
      y = If (c) <then_branch = t () => (float[N,64] p) { p = Neg(m) },
                  else_branch = e () => (float[N,64] q) { q = Abs(m) }>
    }"""
    graph = graph_of(text, w=np.eye(64, dtype=np.float32))
    _, plan = onnxq.quantize(graph, samples(linear(), c=TRUE), Recipe(target="ort-cuda"))
    found = {d.op_type: (d.dtype, d.reason) for d in plan.decisions}
    assert found["Neg"][0] == found["Abs"][0] == "float32"
    assert "body without layers" in found["Neg"][1]


@pytest.mark.parametrize(("layer", "seen"), [("s = Neg(a)", set()), ("s = MatMul(a, w)", {"p", "a"})])
def test_only_bodies_with_layers_are_observed(layer: str, seen: set[str]) -> None:
    """The others stay in float32 whatever their values are, and each iteration's would be counted."""
    text = f"""(float[N,64] x, int64 n, bool c) => (float[N,64] y) {{
      m = MatMul(x, w)
      y = Loop(n, c, m) <body = b (int64 i, bool go, float[N,64] p) => (bool on, float[N,64] r) {{
        on = Identity(go) a = Add(p, x) {layer} r = Tanh(s) }}>
    }}"""
    graph = graph_of(text, w=np.eye(64, dtype=np.float32))
    plan = onnxq.make_plan(graph, Recipe(target="tensorrt@11"))
    assert {name for name in plan.probes if name in "pasr"} == seen


@pytest.mark.parametrize("wrap", [in_if, in_loop, in_scan])
@pytest.mark.parametrize("make", [transformer, convnext, signal, recurrent, shufflenet])
def test_preparing_bodies_changes_no_function(make: Callable[[], Graph], wrap: Callable[[Graph], Graph]) -> None:
    bare = make()
    graph = wrap(bare)
    made = graph.copy()
    run_passes(made, prepare(17, "ort-cpu"))
    feed: dict[str, Any] = random_feeds(bare, N=2, L=8)
    feed = {f"{k}/all": np.stack([v, 2 * v]) for k, v in feed.items()} if wrap is in_scan else feed
    for more in ({"cond": TRUE}, {"cond": FALSE}) if wrap is in_if else ({},):
        same_function(graph, made, feed | more)


def test_one_scale_for_a_tensor_that_two_branches_read() -> None:
    bare = linear()
    _, plan = onnxq.quantize(in_if(bare), samples(bare, cond=TRUE) + samples(bare, cond=FALSE), CPU)
    assert len(plan.points["x"].uses) == 2
    assert not plan.modes


def test_weights_that_two_branches_share_are_stored_once() -> None:
    bare = linear()
    proto = in_if(bare, outside=True).to_proto()
    then_branch, else_branch = proto.graph.node[0].attribute
    else_branch.g.CopyFrom(then_branch.g)
    graph = onnxq.Graph.from_proto(proto)
    quantized, _ = onnxq.quantize(graph, samples(bare, cond=TRUE) + samples(bare, cond=FALSE), CPU)
    feed = samples(bare, 1, cond=TRUE)[0]
    want = optimized(quantized, feed)
    merged = quantized.copy()
    assert share(merged, lambda _: True) == 2  # w and v; small as they are, share_weights leaves them
    assert share_weights(quantized) == 0
    np.testing.assert_allclose(optimized(merged, feed), want, atol=1e-5)
    onnx.checker.check_model(merged.to_proto(), full_check=True)
    narrow, _ = onnxq.quantize(graph, None, replace(CPU, mode="weight-only", reduce_range=False))
    assert share_weights(narrow) == 0  # MatMulNBits wants its weight in its own graph


def test_a_model_without_bodies_has_nothing_to_share() -> None:
    assert share(linear(), lambda _: True) == 0


# --- values out of bodies -----------------------------------------------------------------------------


def test_values_of_a_growing_loop_come_out_whole() -> None:
    text = """(float[1,4] x) => (float[?,4] y) {
      n = Constant<value_int=3>() t = Constant<value_int=1>() c = Cast<to=9>(t)
      y, s = Loop(n, c, x) <body = b (int64 i, bool go, float[?,?] before) => (bool on, float[?,?] after, float[?] z) {
        on = Identity(go) twice = Mul(before, before) after = Concat<axis=0>(before, twice)
        z = ReduceMax<keepdims=0>(twice) }>
    }"""
    graph = graph_of(text, 17)
    x = np.array([[1.0, 2.0, 3.0, 0.5]], np.float32)
    session = session_for(graph, ("twice", "y"), ("cpu",))
    found = dict(zip(session.outputs, session.run({"x": x}, session.outputs), strict=True))
    state, want = x, []
    for _ in range(3):
        want.append((state * state).ravel())
        state = np.concatenate([state, state * state])
    np.testing.assert_allclose(found["twice"], np.concatenate(want), rtol=1e-6)
    np.testing.assert_allclose(found["y"], state, rtol=1e-6)


@pytest.mark.parametrize("times", [0, 5])
def test_values_of_loops_in_loops_come_out_in_order(times: int) -> None:
    """One behind the other, of no iteration none; what the loops themselves give is as before."""
    text = """(float[4] x, int64 n) => (float[?] y, float[?,?] z) {
      t = Constant<value_int=1>() c = Cast<to=9>(t)
      y, z = Loop(n, c, x) <body = b (int64 i, bool go, float[?] old) => (bool on, float[?] new, float[?] q) {
        on = Identity(go) twice = Add(old, old)
        new, s = Loop(n, go, twice) <body = d (int64 j, bool goes, float[?] p) => (bool ends, float[?] r, float[?] u) {
          ends = Identity(goes) more = Add(p, one) r = Identity(more) u = Identity(more) }>
        q = Abs(new) }>
    }"""
    graph = graph_of(text, 17, one=np.float32(1))
    feed = {"x": np.array([1.0, -2.0, 3.0, 0.5], np.float32), "n": np.array(times)}
    plain = run(graph, feed)
    session = session_for(graph, ("twice", "more", "y", "z"), ("cpu",))
    found = dict(zip(session.outputs, session.run(feed, session.outputs), strict=True))
    state, twice, more = feed["x"], [np.zeros(0)], [np.zeros(0)]
    for _ in range(times):
        twice.append(2 * state)
        more += [2 * state + 1 + j for j in range(times)]
        state = more[-1]
    np.testing.assert_array_equal(found["twice"], np.concatenate(twice))
    np.testing.assert_array_equal(found["more"], np.concatenate(more))
    for name, want in zip("yz", plain, strict=True):
        np.testing.assert_array_equal(found[name], want)


def test_a_branch_that_is_not_taken_gives_nothing() -> None:
    session = session_for(in_if(linear()), ("a",), ("cpu",))
    feed = samples(linear(), 1)[0]
    assert session.run(feed | {"cond": FALSE})[0].size == 0
    assert session.run(feed | {"cond": TRUE})[0].size == 4 * 64


# --- a constant condition -----------------------------------------------------------------------------

CONSTANT = """(float[N,64] x) => (float[N,64] y) {{
  s = Relu(x) k = Constant<value_int={taken}>() c = Cast<to=9>(k)
  y = If (c) <then_branch = t () => (float[N,64] p) {{ q = MatMul(s, w) p = Relu(q) }},
              else_branch = e () => (float[N,64] p) {{ {other} }}>
}}"""


@pytest.mark.parametrize("taken", [0, 1])
@pytest.mark.parametrize("other", ["p = Neg(s)", "p = Identity(s)", "q = MatMul(x, w) p = Add(q, s)"])
def test_a_branch_that_is_always_taken_takes_the_place_of_the_if(taken: int, other: str) -> None:
    w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    graph = graph_of(CONSTANT.format(taken=taken, other=other), w=w)
    made = graph.copy()
    run_passes(made, prepare(17))
    assert all(n.op_type != "If" for n in made.nodes)
    same_function(graph, made, random_feeds(graph, N=3))


def test_a_dropped_branch_reads_nothing_any_more() -> None:
    text = """(float[N,64] x, bool c) => (float[N,64] y) {
      m = MatMul(x, w) k = Constant<value_int=1>() d = Cast<to=9>(k)
      y = If (d) <then_branch = t () => (float[N,64] p) { p = MatMul(m, w) },
                  else_branch = e () => (float[N,64] q) { q = Abs(m) }>
      n = Neg(x)
      z = If (c) <then_branch = t () => (float[N,64] r) { r = Relu(n) },
                  else_branch = e () => (float[N,64] s) { s = Abs(n) }>
    }"""
    graph = graph_of(text, w=np.eye(64, dtype=np.float32))
    run_passes(graph, prepare(17))
    assert [n.op_type for n in graph.nodes] == ["MatMul", "MatMul"]  # z is no output, so n is not needed either
    product = graph.nodes[0].outputs[0]
    assert [n.op_type for n, _ in graph.users(product)] == ["MatMul"]


def test_an_if_whose_condition_is_computed_stays() -> None:
    graph = in_if(linear())
    made = graph.copy()
    run_passes(made, prepare(17))
    assert [n.op_type for n in made.nodes] == ["If"]
    same_function(graph, made, samples(linear(), 1, cond=TRUE)[0])
    same_function(graph, made, samples(linear(), 1, cond=FALSE)[0])
