from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import Array, graph_of, lines, random_feeds, run, same_function

from onnxq import Recipe, api
from onnxq.graph import Graph
from onnxq.monitor import SILENT
from onnxq.passes import RaiseOpset, prepare
from onnxq.passes.group_norm import group_norm

if TYPE_CHECKING:
    from pathlib import Path

GROUPED = "r = Relu(x) y = GroupNormalization<num_groups = 2>(r, s, b)"
OF_GROUPS = {"s": np.array([2, -3], np.float32), "b": np.array([0.5, 7], np.float32)}


@pytest.mark.parametrize(
    ("body", "opset", "channels"),
    [
        (GROUPED, 21, 6),  # there the scales are of channels
        (GROUPED, 25, 6),
        ("y = com.microsoft.GroupNormalization<num_groups = 2>(x, s, b)", 18, 2),
        ("y = InstanceNormalization(x, s, b)", 18, 6),
        ("y = LayerNormalization(x, s, b)", 18, 3),
    ],
)
def test_leaves_alone(body: str, opset: int, channels: int) -> None:
    weights = {name: np.ones(channels, np.float32) for name in "sb"}
    graph = graph_of(f"(float[2,6,3] x) => (float[2,6,3] y) {{ {body} }}", opset, **weights)
    before = lines(graph)
    assert group_norm(graph) == 0
    assert lines(graph) == before


def test_leaves_a_model_without_onnx_operators_alone() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["com.microsoft" : 1]> g (float[4] x) => (float[4] y)'
        "{ y = com.microsoft.Gelu(x) }"
    )
    assert group_norm(Graph.from_proto(model)) == 0


def test_is_an_instance_normalization_under_its_name() -> None:
    graph = graph_of(f"(float[2,6,3] x) => (float[2,6,3] y) {{ {GROUPED} }}", 18, **OF_GROUPS)
    before = graph.copy()
    assert group_norm(graph) == 1
    assert lines(graph) == [
        "r = Relu(x)",
        "y/grouped = Reshape(r, y/groups)",
        "y/normalized = InstanceNormalization(y/grouped, s, b)",
        "y/shape = Shape(r)",
        "y = Reshape(y/normalized, y/shape)",
    ]
    same_function(before, graph, random_feeds(graph))


@pytest.mark.parametrize("opset", [18, 19, 20])
@pytest.mark.parametrize(
    ("shape", "said"),
    [((2, 6), None), ((1, 6, 5), None), ((3, 4, 5, 2), "N,C,H,W"), ((2, 2, 3, 2, 2), None), ((2, 6, 4), "N,6,L")],
)
def test_keeps_its_function_in_any_shape(shape: tuple[int, ...], said: str | None, opset: int) -> None:
    size = said or ",".join(map(str, shape))
    text = f"(float[{size}] x) => (float[{size}] y) {{ {GROUPED.replace('2>', '2, epsilon = 0.25>')} }}"
    graph = graph_of(text, opset, **OF_GROUPS)
    before = graph.copy()
    assert group_norm(graph) == 1
    same_function(before, graph, {"x": np.random.default_rng(1).normal(2, 3, shape).astype(np.float32)})


def test_keeps_its_function_with_computed_scales_and_in_a_body() -> None:
    inside = "(float[2,6,3] z) { t = Neg(s) z = GroupNormalization<num_groups = 2>(x, t, b) }"
    graph = graph_of(
        "(float[2,6,3] x, float[2] s, float[2] b, bool c) => (float[2,6,3] y) { y = If (c)"
        f"<then_branch = then () => {inside}, else_branch = other () => (float[2,6,3] z) {{ z = Identity(x) }}> }}",
        19,
    )
    before = graph.copy()
    assert group_norm(graph) == 1
    feeds = {**random_feeds(graph), "c": np.array(True)}
    same_function(before, graph, feeds)
    assert not np.array_equal(run(graph, feeds)[0], feeds["x"])


def expected(x: Array, scale: Array, bias: Array) -> Array:
    """The function as ONNX defines it, in float64; scale and bias of groups."""
    rows = x.astype(np.float64).reshape(len(x), len(scale), -1)
    rows = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + 1e-5)
    result: Array = (rows * scale.astype(np.float64)[:, None] + bias.astype(np.float64)[:, None]).reshape(x.shape)
    return result


@pytest.mark.parametrize(("kind", "number", "error"), [("float16", 10, 0.005), ("bfloat16", 16, 0.04)])
def test_keeps_its_function_in_half_precision(kind: str, number: int, error: float) -> None:
    """ONNX Runtime does not run the operator in bfloat16, and onnx.checker refuses an InstanceNormalization of it."""
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    weights = {name: array.astype(dtype) for name, array in OF_GROUPS.items()}
    text = f"x = Cast<to = {number}>(i) y = GroupNormalization<num_groups = 2>(x, s, b) o = Cast<to = 1>(y)"
    graph = graph_of(f"(float[2,6,3] i) => (float[2,6,3] o) {{ {text} }}", 18, **weights)
    assert group_norm(graph) == 1
    onnx.checker.check_model(graph.to_proto(), full_check=True)
    x = random_feeds(graph)["i"].astype(dtype)
    got = run(graph, {"i": x.astype(np.float32)})[0]
    np.testing.assert_allclose(got, expected(x, weights["s"], weights["b"]), atol=error)


@pytest.mark.parametrize(("opset", "minimum"), [(18, 21), (20, 23), (18, 20), (18, 19)])
def test_a_raised_opset_keeps_its_function(opset: int, minimum: int) -> None:
    """From 21 on its scales are of channels, and onnx's converter hands over those of groups."""
    text = f"(float[N,C,3] x) => (float[N,C,3] y) {{ {GROUPED} }}"
    before, after = (graph_of(text, opset, **OF_GROUPS) for _ in "ab")
    for step in prepare(minimum):
        step(after)
        if isinstance(step, RaiseOpset):
            assert after.opset == minimum
    same_function(before, after, random_feeds(before, N=2, C=6))


def network() -> Graph:
    """Two convolutions with the operator between them; samples and sizes are open."""
    rng = np.random.default_rng(0)
    shapes = {"w": (32, 16, 3, 3), "v": (16, 32, 3, 3), "s": (2,), "b": (2,)}
    text = (
        "c = Conv<pads = [1, 1, 1, 1]>(x, w) n = GroupNormalization<num_groups = 2>(c, s, b)"
        "r = Relu(n) y = Conv<pads = [1, 1, 1, 1]>(r, v)"
    )
    weights = {name: rng.normal(0.1, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    return graph_of(f"(float[N,16,H,W] x) => (float[N,16,H,W] y) {{ {text} }}", 18, **weights)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt@10", "ort-cpu"])
def test_a_model_with_it_is_quantized_and_written(target: str, tmp_path: Path) -> None:
    """onnx.checker called the operator deprecated, and nothing was written; the oracle is the float model."""
    graph, rng = network(), np.random.default_rng(1)
    feeds = [{"x": rng.normal(size=(1, 16, 12, 10)).astype(np.float32)} for _ in range(12)]
    made, plan = api.quantize(graph, feeds, Recipe(target=target, effort="fast"), SILENT)
    path = tmp_path / "m.onnx"
    made.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    assert len(plan.points) >= 2
    assert api.compare(graph, path, feeds).worst[0].sqnr_db > 30
