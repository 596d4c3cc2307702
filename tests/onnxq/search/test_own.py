"""Own errors of all layers at once: as those of each layer that alone is quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from chains import branches, chain, samples
from graphs import graph_of, run

import onnxq
from onnxq import Recipe, api
from onnxq.placement.groups import groups
from onnxq.search.groups import only
from onnxq.search.own import apart
from onnxq.shifted import Shifted, record

if TYPE_CHECKING:
    from onnxq.graph import Graph

RECIPE = Recipe(effort="fast", calibrator="minmax", high_precision="fp32")


def test_what_the_quantized_graph_lacks_is_passed_over_and_it_is_left_as_it_is() -> None:
    floats = graph_of("(float[2] x) => (float[2] y) { a = Relu(x) y = Relu(a) }")
    floats.infer_shapes()
    whole = graph_of("(float[2] x) => (float[2] y) { b = Neg(x) y = Neg(b) }")
    before = whole.to_proto().SerializeToString()
    found = apart(whole, floats, ["a", "y"])
    assert list(found.makes.values()) == ["y"]
    assert found.reads == {"x": ("x", 0.0)}
    assert [n.op_type for n in found.graph.nodes] == ["Neg", "Neg"]
    assert whole.to_proto().SerializeToString() == before


@pytest.mark.parametrize("graph", [chain(6, hard=(2,)), branches(4, hard=(1,))], ids=["chain", "branches"])
def test_each_layer_reads_what_the_float_model_computes(graph: Graph) -> None:
    """Against the graphs in which one group at a time is quantized."""
    data = samples(16)
    ready = api.prepared(graph, RECIPE)
    statistics, every = api.measured(ready, data), groups(ready.plan)
    nodes = {str(n.name): str(n.outputs[0].name) for n in ready.graph.nodes}
    layers = [nodes[g.name] for g in every]
    found = apart(api.lowered(ready, statistics)[0], ready.graph, layers)
    feed = samples(1, seed=3)[0]
    floats = ready.graph.copy()
    floats.set_outputs([v for v in floats.values() if v.producer() is not None])
    exact = dict(zip((str(v.name) for v in floats.outputs), run(floats, feed), strict=True)) | feed
    got = dict(zip(found.makes.values(), run(found.graph, found.feed(exact)), strict=True))
    assert sorted(got) == sorted(layers)
    for group, layer in zip(every, layers, strict=True):
        alone, _ = api.lowered(only(ready, every, (group,)), statistics)
        alone.set_outputs([v for v in alone.values() if v.name == layer])
        np.testing.assert_allclose(got[layer], run(alone, feed)[0], rtol=1e-5, atol=1e-6)
        assert not np.array_equal(got[layer], exact[layer])


def test_a_tensor_with_a_constant_added_is_given_with_it() -> None:
    floats = graph_of("(float[2] x) => (float[2] y) { a = Neg(x) y = Neg(a) }")
    floats.infer_shapes()
    whole = graph_of("(float[2] x) => (float[2] y) { n = Neg(x) s = Add(n, c) z = Sub(s, c) y = Neg(z) }", c=[0.5, 0.5])
    record(whole, [Shifted("a", "s", 0.5)])
    found = apart(whole, floats, ["y"])
    assert found.reads == {"s": ("a", 0.5)}
    feed = found.feed({"a": np.array([3, -1], np.float32)})
    assert feed["s"].dtype == np.float32
    np.testing.assert_array_equal(feed["s"], [3.5, -0.5])
    assert [n.op_type for n in found.graph.nodes] == ["Sub", "Neg"]


def test_own_errors_are_those_of_a_run_for_each_group(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = chain(9, hard=(3, 6)), samples(16)
    wanted = onnxq.sensitivity(graph, data, RECIPE)
    monkeypatch.setattr("onnxq.search.measuring.PASSES", 9)
    monkeypatch.setattr("onnxq.search.stretches.FIRST", 2)
    found = onnxq.sensitivity(graph, data, RECIPE)
    together = [(a, b) for a, b in zip(wanted.groups, found.groups, strict=True) if b.together > 1]
    assert together
    for alone, shared in together:
        assert shared.own_db == pytest.approx(alone.own_db, abs=0.01)
