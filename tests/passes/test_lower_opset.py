"""The opset that CUDA has kernels for: what is left alone first, then which it is, then the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import graph_of, lines, random_feeds, run
from optimized import operators

from onnxq import api
from onnxq.graph import Graph
from onnxq.passes.lower_opset import lower_opset
from onnxq.runtime import Session

IMAGE = "(float[2,3,8,8] x) => (float[A,B,C,D] y)"
HALF = {"s": np.array(0.03, np.float16), "z": np.array(0, np.int8)}
PADS = np.array([0, 1, 0, 1])


def lowered(text: str, opset: int, **weights: Any) -> tuple[Graph, Graph]:  # noqa: ANN401  arrays
    """The graph before and after."""
    before, after = (graph_of(text, opset, **weights) for _ in range(2))
    for graph in (before, after):
        graph.infer_shapes()
    lower_opset(after)
    return before, after


@pytest.mark.parametrize(
    ("text", "opset", "weights"),
    [
        (f"{IMAGE} {{ y = Flatten(x) }}", 18, {}),
        (f"{IMAGE} {{ y = Flatten(x) }}", 13, {}),
        ("(float16[4,8] x) => (int8[4,8] y) { y = QuantizeLinear(x, s, z) }", 19, HALF),  # has a kernel as it is
        (f"{IMAGE} {{ a = Pad(x, p) y = Gelu(a) }}", 20, {"p": np.zeros(8, np.int64)}),  # no older opset has it
        (f"{IMAGE} {{ y = GroupNormalization<num_groups=3>(x, w, w) }}", 21, {"w": np.ones(3, np.float32)}),
        (f"{IMAGE} {{ y = com.microsoft.Gelu(x) }}", 18, {}),
        (f"{IMAGE} {{ y = AveragePool<kernel_shape=[2,2]>(x) }}", 19, {}),  # another kernel on the CPU, for nothing
    ],
)
def test_left_alone(text: str, opset: int, weights: dict[str, Any]) -> None:
    before, after = lowered(text, opset, **weights)
    assert after.opset == opset
    assert after.digest() == before.digest()


def test_a_model_of_other_domains_only() -> None:
    model = graph_of("(float[4] x) => (float[4] y) { y = com.microsoft.Gelu(x) }", 23).to_proto()
    del model.opset_import[0]
    graph = Graph.from_proto(model)
    assert lower_opset(graph) == 0
    assert graph.domains == {"com.microsoft": 1}


@pytest.mark.parametrize(
    ("nodes", "opset", "lowest", "weights"),
    [
        ("y = Flatten(x)", 21, 18, {}),
        ("y = MaxPool<kernel_shape=[2,2]>(x)", 22, 18, {}),
        ("y = Pad(x, p)", 25, 18, {"p": np.array([0, 0, 1, 0, 0, 0, 1, 2])}),
        ("y = Cast<to=10,saturate=1>(x)", 24, 18, {}),
        ("y = Transpose(x)", 22, 18, {}),  # has a kernel at 22 too, but only in later releases
        ("a = GlobalAveragePool(x) y = Gelu(a)", 24, 20, {}),
        ("a = AveragePool<kernel_shape=[2,2]>(x) y = Flatten(a)", 23, 19, {}),
        (
            "y = If(c) <then_branch = t () => (b) { b = Flatten(x) }, else_branch = e () => (b) { b = Flatten(x) }>",
            21,
            18,
            {"c": np.array(True)},
        ),
    ],
)
def test_the_lowest_with_most_kernels(nodes: str, opset: int, lowest: int, weights: dict[str, Any]) -> None:
    before, after = lowered(f"(float[2,3,8,8] x) => (y) {{ {nodes} }}", opset, **weights)
    assert after.opset == lowest
    assert lines(after) == lines(before)
    assert not [f for f in api.check(after, "ort-cuda").findings if f.severity != "I"]
    feeds = random_feeds(before)
    for one, two in zip(run(before, feeds), run(after, feeds), strict=True):
        assert one.dtype == two.dtype
        assert one.tobytes() == two.tobytes()


def test_attributes_that_the_older_version_lacks_go() -> None:
    _, graph = lowered("(float[4] x) => (int32[4] y) { y = Cast<to=6,saturate=1>(x) }", 24)
    assert set(graph.nodes[0].attributes) == {"to"}


def test_what_lacks_a_kernel_anyway_does_not_keep_the_others() -> None:
    _, graph = lowered(f"{IMAGE} {{ a = Det(x) b = Flatten(x) y = Add(a, b) }}", 22)
    assert graph.opset == 18


def test_pairs_of_float16_become_those_of_onnx_runtime() -> None:
    text = """(float16[16,64] x) => (float16[18,64] y, int8[18,64] q) {
        d = Pad(x, p) q = QuantizeLinear<saturate=1>(d, s, z) y = DequantizeLinear(q, s, z) }"""
    before, after = lowered(text, 19, p=np.array([1, 0, 1, 0]), **HALF)
    assert after.opset == 18
    assert [(n.domain, n.op_type) for n in after.nodes[1:]] == [
        ("com.microsoft", "QuantizeLinear"),
        ("com.microsoft", "DequantizeLinear"),
    ]
    assert not any(n.attributes for n in after.nodes)
    assert [v.name for v in after.outputs] == ["y", "q"]
    assert not api.check(after, "ort-cuda").findings
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    for start in range(0, every.size, 1024):
        feeds = {"x": np.resize(every[start : start + 1024], (16, 64))}
        for one, two in zip(run(before, feeds), run(after, feeds), strict=True):
            np.testing.assert_array_equal(one, two)


def test_weights_with_scales_along_an_axis_are_read_by_the_same_fusion() -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.integers(-127, 128, (64, 32)).astype(np.int8),
        "s": rng.uniform(0.001, 0.01, 32).astype(np.float16),
        "z": np.zeros(32, np.int8),
        "p": PADS,
    }
    text = """(float16[4,62] x) => (float16[4,32] y) {
        d = DequantizeLinear(w, s, z) a = Pad(x, p) y = MatMul(a, d) }"""
    before, after = lowered(text, 21, **weights)
    assert after.opset == 18
    assert [n.domain for n in after.nodes] == ["com.microsoft", "", ""]
    feeds = {"x": rng.normal(size=(4, 62)).astype(np.float16)}
    one, two = (Session(g.to_proto().SerializeToString()).run(feeds)[0] for g in (before, after))
    np.testing.assert_array_equal(one, two)
    # unfused, the CPU provider dequantizes in float32 and leaves out that the weight was rounded to float16
    np.testing.assert_allclose(run(after, feeds)[0].astype(float), run(before, feeds)[0].astype(float), atol=0.01)
    assert operators(after).count("MatMulNBits") == operators(before).count("MatMulNBits") == 1
    found = api.check(after, "ort-cuda")
    assert [f.id for f in found.findings] == ["C7"]
    assert list(found.summary.macs) == ["float16, narrow weights"]


def test_pairs_have_no_kernel_of_their_own_from_23_on() -> None:
    text = """(float16[4,8] x) => (float16[4,8] y) {
        n = RMSNormalization(x, w) q = QuantizeLinear(n, s, z) y = DequantizeLinear(q, s, z) }"""
    before, after = lowered(text, 24, w=np.ones(8, np.float16), **HALF)
    assert after.opset == 23
    assert [n.domain for n in after.nodes] == ["", "com.microsoft", "com.microsoft"]
    assert not api.check(after, "ort-cuda").findings
    feeds = {"x": np.random.default_rng(0).normal(size=(4, 8)).astype(np.float16)}
    np.testing.assert_array_equal(run(before, feeds)[0], run(after, feeds)[0])


def test_no_axis_is_the_second_and_one_scale_has_none() -> None:
    weights = {"w": np.ones((2, 4), np.int8), "s": np.ones(4, np.float16), "one": np.ones(1, np.float16), "p": PADS}
    text = """(float16[2,2] x) => (float16[2,4] y) {
        a = DequantizeLinear(w, s) b = DequantizeLinear<axis=0>(w, one) c = Pad(x, p) e = Add(a, b) y = Add(c, e) }"""
    before, after = lowered(text, 21, **weights)
    assert [{k: v.value for k, v in n.attributes.items()} for n in after.nodes[:2]] == [{"axis": 1}, {}]
    feeds = {"x": np.ones((2, 2), np.float16)}
    np.testing.assert_array_equal(run(before, feeds)[0], run(after, feeds)[0])
