from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from architectures import ARCHITECTURES
from graphs import graph_of, lines, random_feeds, run

import onnxq
from onnxq import api
from onnxq.passes.imply_zero_points import imply_zero_points
from onnxq.runtime import Session

SCALE = np.float32(0.05)
PAIR = (
    "(float[4,8] x) => (float[8,4] y) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Reshape(d, k) }"
)
SHAPE = np.array([8, 4])


@pytest.mark.parametrize(
    ("opset", "zero_point"),
    [
        pytest.param(20, np.int8(0), id="before opset 21"),
        pytest.param(21, np.uint8(0), id="uint8"),
        pytest.param(21, np.int8(3), id="not zero"),
    ],
)
def test_leaves_alone(opset: int, zero_point: Any) -> None:  # noqa: ANN401  a numpy scalar of some type
    graph = graph_of(PAIR, opset, s=SCALE, z=zero_point, k=SHAPE)
    before = lines(graph)
    assert imply_zero_points(graph) == 0
    assert lines(graph) == before


def test_leaves_weights_alone() -> None:
    stored = graph_of("(float[8] x) => (float[8] y) { d = DequantizeLinear(w, s, z) y = Add(x, d) }", 21,
                      w=np.ones(8, np.int8), s=SCALE, z=np.int8(0))  # fmt: skip
    text = "(float[8] x) => (float[8] y) { q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = Add(x, d) }"
    floats = graph_of(text, 21, w=np.ones(8, np.float32), s=SCALE, z=np.int8(0))
    assert imply_zero_points(stored) == imply_zero_points(floats) == 0


def test_an_activation_keeps_its_values() -> None:
    graph = graph_of(PAIR, 21, s=SCALE, z=np.int8(0), k=SHAPE)
    feeds = random_feeds(graph)
    expected = np.clip(np.rint(feeds["x"] / SCALE), -128, 127).astype(np.float32) * SCALE
    assert imply_zero_points(graph) == 1
    proto = graph.to_proto()
    assert [list(node.input) for node in proto.graph.node][:2] == [["x", "s", "z"], ["q", "s"]]
    np.testing.assert_array_equal(run(graph, feeds)[0], expected.reshape(8, 4))
    np.testing.assert_array_equal(Session(proto.SerializeToString()).run(feeds)[0], expected.reshape(8, 4))


@pytest.mark.parametrize("name", ["transformer", "convnext", "resnet"])
@pytest.mark.parametrize("high_precision", ["fp16", "fp32"])
def test_what_onnx_runtime_loads_before_opset_21_it_loads_after(name: str, high_precision: str) -> None:
    results = []
    for opset in (19, 21, 23):
        graph = ARCHITECTURES[name]()
        graph.convert_opset(opset)
        graph.infer_shapes()
        feeds = random_feeds(graph, N=2)
        made, _ = onnxq.quantize(graph, [feeds], onnxq.Recipe(high_precision=high_precision, calibrator="minmax"))
        onnx.checker.check_model(made.to_proto(), full_check=True)
        assert [f for f in api.check(made).findings if f.severity == "E" or f.id == "P6"] == []
        results.append(Session(made.to_proto().SerializeToString()).run(feeds)[0])
    for later in results[1:]:
        np.testing.assert_allclose(later, results[0], rtol=1e-3, atol=1e-3)
