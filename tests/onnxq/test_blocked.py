"""Tensors left in ONNX Runtime's own order: the same values, sample by sample, and the same statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import graph_of
from onnx import TensorProto, helper

from onnxq import blocked, files
from onnxq.blocked import leave_in_blocks, pays, session_in_any_order
from onnxq.collect import collect, session_for
from onnxq.data import input_specs, open_source
from onnxq.errors import ModelError
from onnxq.runtime import Session

DIGITS = Path(__file__).parents[2] / "models" / "digits"
NCHWC = "com.microsoft.nchwc"
RNG = np.random.default_rng(0)


def convolutions() -> onnx.ModelProto:
    """Convolutions of 16, 24 and 32 channels, a residual addition, and a MatMul that reads one of them in order."""
    widths = {"a": (3, 16), "b": (16, 24), "c": (24, 32), "d": (32, 32)}
    weights = [
        onnx.numpy_helper.from_array(RNG.normal(0, 0.2, (out, into, 3, 3)).astype(np.float32), f"w{name}")
        for name, (into, out) in widths.items()
    ]
    weights.append(onnx.numpy_helper.from_array(RNG.normal(0, 1, (8, 8)).astype(np.float32), "m"))
    nodes, value = [], "x"
    for name in widths:
        conv = helper.make_node("Conv", [value, f"w{name}"], [f"{name}_conv"], pads=[1, 1, 1, 1])
        nodes += [conv, helper.make_node("Relu", [f"{name}_conv"], [name])]
        value = name
    nodes += [helper.make_node("Add", ["c", "d"], ["sum"]), helper.make_node("MatMul", ["a", "m"], ["product"])]
    outputs = [*widths, "sum", "product"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def ordered(array: np.ndarray) -> np.ndarray:
    """The bits of every sample's values, sorted."""
    return np.sort(array.reshape(len(array), -1).view(np.int32), axis=1)


def test_every_sample_has_the_same_values() -> None:
    model = convolutions().SerializeToString()
    free = session_in_any_order(model)
    x = RNG.normal(0, 1, (3, 3, 8, 8)).astype(np.float32)
    expected = Session(model, as_written=True)
    assert free.outputs == expected.outputs
    found = dict(zip(free.outputs, free.run({"x": x}), strict=True))
    for name, array in zip(expected.outputs, expected.run({"x": x}), strict=True):
        assert found[name].shape == array.shape
        assert np.array_equal(ordered(found[name]), ordered(array)), name
    assert np.array_equal(found["product"], expected.run({"x": x}, ["product"])[0])  # what reads it in order still does


def test_a_model_without_blocks_runs_as_it_is() -> None:
    graph = graph_of("(float[N,4] x) => (float[N,4] y) { a = Tanh(x) y = Relu(a) }")
    x = RNG.normal(0, 1, (2, 4)).astype(np.float32)
    found = session_in_any_order(graph.to_proto().SerializeToString())
    assert np.allclose(found.run({"x": x})[0], np.maximum(np.tanh(x), 0), atol=1e-6)


@pytest.mark.parametrize("error", [OSError("no room"), ModelError("cannot be read")])
def test_where_it_cannot_be_had_outputs_come_in_order(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> onnx.ModelProto:
        raise error

    monkeypatch.setattr(onnx, "load", fail)
    model, x = convolutions().SerializeToString(), RNG.normal(0, 1, (1, 3, 8, 8)).astype(np.float32)
    pairs = zip(session_in_any_order(model).run({"x": x}), Session(model).run({"x": x}), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def optimized(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")]
    return helper.make_graph(list(nodes), "g", values[:0], values)


def reorder(source: str, name: str, channels: int, last: int = 0) -> onnx.NodeProto:
    return helper.make_node("ReorderOutput", [source], [name], domain=NCHWC, channels=channels, channels_last=last)


def made(*names: str) -> list[onnx.NodeProto]:
    return [helper.make_node("Conv", ["x", "w"], [name], domain=NCHWC) for name in names]


def test_what_only_outputs_wanted_in_order_is_dropped() -> None:
    graph = optimized(*made("p", "q"), reorder("p", "y", 32), reorder("q", "z", 48))
    assert leave_in_blocks(graph) == 2
    assert [list(node.output) for node in graph.node] == [["y"], ["z"]]


def test_who_reads_it_in_order_still_does() -> None:
    reader = helper.make_node("Flatten", ["y"], ["z"])
    graph = optimized(*made("p"), reorder("p", "y", 32), reader)
    assert leave_in_blocks(graph) == 1
    assert [(list(n.input), list(n.output)) for n in graph.node] == [
        (["x", "w"], ["y"]),
        (["y"], ["p"]),
        (["p"], ["z"]),
    ]


@pytest.mark.parametrize(
    "node", [reorder("p", "y", 24), reorder("p", "y", 32, last=1), helper.make_node("Relu", ["p"], ["y"])]
)
def test_blocks_that_are_not_full_and_other_layouts_are_put_in_order(node: onnx.NodeProto) -> None:
    graph = optimized(*made("p", "z"), node)
    before = graph.SerializeToString()
    assert leave_in_blocks(graph) == 0
    assert graph.SerializeToString() == before


def test_what_is_no_output_is_put_in_order() -> None:
    graph = optimized(*made("p"), reorder("p", "o", 32), helper.make_node("Flatten", ["o"], ["y"]), *made("z"))
    before = graph.SerializeToString()
    assert leave_in_blocks(graph) == 0
    assert graph.SerializeToString() == before


def test_models_with_bodies_are_left_alone() -> None:
    body = helper.make_graph([helper.make_node("Relu", ["y"], ["r"])], "b", [], [])
    branch = helper.make_node("If", ["k"], ["z"], then_branch=body, else_branch=body)
    graph = optimized(*made("p"), reorder("p", "y", 32), branch)
    before = graph.SerializeToString()
    assert leave_in_blocks(graph) == 0
    assert graph.SerializeToString() == before


def test_it_pays_for_many_values_behind_convolutions() -> None:
    conv = "c = Conv <pads = [1,1,1,1]> (x, w)"
    large = graph_of(f"(float[N,16,100,200] x, float[16,16,3,3] w) => (float[N,16,100,200] y) {{ {conv} y = Relu(c) }}")
    small = graph_of(f"(float[N,16,4,4] x, float[16,16,3,3] w) => (float[N,16,4,4] y) {{ {conv} y = Relu(c) }}")
    other = graph_of("(float[N,500000] x) => (float[N,500000] y) { y = Relu(x) }")
    for graph in (large, small, other):
        graph.infer_shapes()
    assert pays(large, ("c", "y"))
    assert not pays(small, ("c", "y"))
    assert not pays(other, ("y",))


def test_statistics_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = files.load(DIGITS / "digits.onnx")
    graph.infer_shapes()
    images = np.load(DIGITS / "calib.npz")["image"][:8]
    tensors = [str(v.name) for v in graph.values() if v.producer() is not None]
    monkeypatch.setattr("onnxq.ahead.LEAST_BYTES", 1)
    found = []
    for least in (1, 10**12):
        monkeypatch.setattr(blocked, "LEAST_BYTES", least)
        assert pays(graph, tensors) is (least == 1)
        source = open_source([{"image": images}], input_specs(graph))
        found.append(collect(graph, tensors[1:], source, bounds=tensors[:1]))
    assert found[0].samples == len(images)
    assert found[0].tensors == found[1].tensors
    assert found[0].bounds == found[1].bounds


def test_a_session_is_ordered_unless_told() -> None:
    graph = files.load(DIGITS / "digits.onnx")
    names = [str(v.name) for v in graph.values() if v.producer() is not None]
    feed = {"image": np.load(DIGITS / "calib.npz")["image"][:2]}
    plain, free = (session_for(graph, names, ("cpu",), ordered=told) for told in (True, False))
    for a, b in zip(plain.run(feed), free.run(feed), strict=True):
        assert a.shape == b.shape
        assert np.array_equal(ordered(np.ascontiguousarray(a)), ordered(np.ascontiguousarray(b)))
