"""Groups: what must change together, and plans without them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import Array, graph_of
from legality import assert_legal
from real_models import DIGITS

from onnxq import Recipe, Rule, api
from onnxq.graph import Graph
from onnxq.placement.groups import Group, groups
from onnxq.search.groups import only, without

RNG = np.random.default_rng(0)


def prepared(graph: Graph, target: str = "tensorrt") -> api.Prepared:
    return api.prepared(
        graph, Recipe(target=target, effort="fast", high_precision="fp32" if target == "tensorrt" else None)
    )


def mats(count: int) -> dict[str, Array]:
    return {f"w{i}": (RNG.normal(size=(32, 32)) / 6).astype(np.float32) for i in range(count)}


def named(found: tuple[Group, ...]) -> list[set[str]]:
    return [{node.split("/")[0] for node in group.nodes} for group in found]


def outputs(ready: api.Prepared, group: Group) -> set[str]:
    nodes = {str(n.name): str(n.outputs[0].name) for n in ready.graph.nodes}
    return {nodes[n] for n in group.nodes}


def test_layers_that_share_nothing_are_alone() -> None:
    ready = prepared(
        graph_of("(float[N,32] x) => (float[N,32] y) { a = MatMul(x, w0) b = Relu(a) y = MatMul(b, w1) }", **mats(2))
    )
    assert [outputs(ready, g) for g in groups(ready.plan)] == [{"a"}, {"y"}]
    assert [g.macs for g in groups(ready.plan)] == [1024, 1024]


def test_readers_of_one_tensor_and_users_of_one_weight_go_together() -> None:
    text = (
        "(float[N,32] x) => (float[N,32] y) { q = MatMul(x, w0) k = MatMul(x, w1) s = Add(q, k) a = Relu(s) "
        "b = MatMul(a, w2) c = Relu(b) d = MatMul(c, w3) e = Relu(d) y = MatMul(e, w2) }"
    )
    ready = prepared(graph_of(text, **mats(4)))
    assert [outputs(ready, g) for g in groups(ready.plan)] == [{"q", "k"}, {"b", "y"}, {"d"}]


def test_a_layer_left_in_float_is_in_no_group() -> None:
    graph = graph_of(
        "(float[N,32] x) => (float[N,32] y) { a = MatMul(x, w0) b = Relu(a) y = MatMul(b, w1) }", **mats(2)
    )
    name = str(graph.nodes[0].name)
    ready = api.prepared(graph, Recipe(rules=(Rule(nodes=name, quantize=False),)))
    assert [outputs(ready, g) for g in groups(ready.plan)] == [{"y"}]


def residual() -> Graph:
    weights = {f"w{i}": (RNG.normal(size=(32, 32, 3, 3)) / 10).astype(np.float32) for i in range(3)}
    text = (
        "(float[N,32,8,8] x) => (float[N,32,8,8] y) {"
        "a = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(a) b = Conv<pads=[1,1,1,1]>(r, w1) s = Add(b, r) t = Relu(s) "
        "y = Conv<pads=[1,1,1,1]>(t, w2) }"
    )
    return graph_of(text, **weights)


def test_an_addition_turns_to_float_with_its_convolution() -> None:
    ready = prepared(residual())
    [add] = [str(n.name) for n in ready.graph.nodes if n.op_type == "Add"]
    assert any(node == add for p in ready.plan.points.values() for node, _ in p.uses)
    branch = next(g for g in groups(ready.plan) if outputs(ready, g) == {"b"})
    reverted = without(ready, [branch])
    assert not any(node == add for p in reverted.plan.points.values() for node, _ in p.uses)
    assert "r" not in reverted.plan.points
    assert {"x", "t"} == set(reverted.plan.points)
    assert "hold the budget" in reverted.plan.skipped[branch.name]


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt@8", "ort-cpu", "ort-cuda"])
def test_digits_without_each_group(target: str) -> None:
    """No use is quantized that was not before, statistics serve, and what is made is legal and runs."""
    ready = api.prepared(
        DIGITS / "digits.onnx", Recipe(target=target, effort="fast", max_samples=4, calibrator="minmax")
    )
    statistics = api.measured(ready, DIGITS / "calib.npz")
    uses = {use for p in ready.plan.points.values() for use in p.uses}
    found = groups(ready.plan)
    assert found
    assert len({n for g in found for n in g.nodes}) == sum(len(g.nodes) for g in found)
    for group in found:
        reverted = without(ready, [group])
        assert {use for p in reverted.plan.points.values() for use in p.uses} <= uses
        assert not {d.node for d in reverted.plan.decisions if d.quantized} & set(group.nodes)
        graph, _ = api.lowered(reverted, statistics)
        if target.startswith("tensorrt"):
            assert_legal(graph.to_proto())
        alone = only(ready, found, (group,))
        assert {d.node for d in alone.plan.decisions if d.quantized} >= set(group.nodes)
        api.lowered(alone, statistics)


def test_original_weights_come_back_and_the_recipe_tells_it_again() -> None:
    ready = api.prepared(DIGITS / "digits.onnx", Recipe(effort="fast", high_precision="fp32", max_samples=8))
    statistics = api.measured(ready, DIGITS / "calib.npz")
    first = groups(ready.plan)[0]
    reverted = without(ready, [first])
    graph, _ = api.lowered(reverted, statistics)
    nodes, before = ({str(n.name): n for n in g.nodes} for g in (graph, ready.graph))
    for name in first.nodes:
        np.testing.assert_array_equal(graph.const(nodes[name].inputs[1]), ready.graph.const(before[name].inputs[1]))
    again = api.prepared(DIGITS / "digits.onnx", reverted.recipe)
    assert again.plan.points == reverted.plan.points
    assert again.plan.weights == reverted.plan.weights


def test_everything_in_float_is_the_float_model() -> None:
    ready = prepared(residual())
    plan = without(ready, groups(ready.plan)).plan
    assert not plan.points
    assert not plan.weights
    assert not plan.int8_share()


def test_names_with_glob_characters() -> None:
    graph = graph_of(
        "(float[N,32] x) => (float[N,32] y) { a = MatMul(x, w0) b = Relu(a) y = MatMul(b, w1) }", **mats(2)
    )
    proto = graph.to_proto()
    proto.graph.node[0].name, proto.graph.node[2].name = "layer[1]/a*", "layer1/a"
    ready = prepared(Graph.from_proto(proto))
    first, second = groups(ready.plan)
    assert [d.node for d in without(ready, [first]).plan.decisions if d.quantized] == list(second.nodes)


def test_nothing_to_revert_changes_nothing() -> None:
    ready = prepared(residual())
    assert without(ready, ()) is ready
    assert replace(ready.plan) == ready.plan
