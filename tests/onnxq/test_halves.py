"""Models in float16 for TensorRT: improved in float32 and written in float16, as a model in float32 is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from graphs import Array, graph_of

from onnxq import Recipe, api
from onnxq.monitor import SILENT

if TYPE_CHECKING:
    from onnxq.graph import Graph

APART = "s = SequenceConstruct(x) l = SequenceLength(s)"
"""What keeps a model as it is."""

NUMPY = {"float": "float32", "float16": "float16"}
NODES = "n = LayerNormalization(x, g, b) h = MatMul(n, w) e = Exp(h) t = Tanh(e) y = MatMul(t, v)"


def network(kind: str = "float16", nodes: str = NODES) -> Graph:
    """Two layers behind a normalization that makes some channels 40 times as large as the others."""
    rng, dtype = np.random.default_rng(0), np.dtype(NUMPY[kind])
    gain = np.where(np.arange(64) % 16, 1.0, 40.0)
    weights = {
        "g": gain,
        "b": gain / 4,
        "w": rng.normal(0, 0.05, (64, 64)) / gain[:, None],
        "v": rng.normal(size=(64, 64)),
    }
    ends = f"({kind}[N,64] x) => ({kind}[N,64] y, int64 l)"
    text = f"{ends} {{ {nodes} {'' if 'l =' in nodes else 'l = Constant<value_int = 1>()'} }}"
    return graph_of(text, 19, **{name: array.astype(dtype) for name, array in weights.items()})


def feeds(count: int = 40, dtype: type = np.float16) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(8, 64)).astype(dtype)} for _ in range(count)]


def floats(graph: Graph) -> set[str | None]:
    """Types of what its nodes make, integers aside."""
    return {graph.dtype(v) for n in graph.nodes for v in n.outputs} - {"int8", "int64", None}


@pytest.mark.parametrize(
    ("target", "nodes", "kind"),
    [
        ("tensorrt", f"{NODES} {APART}", "float16"),
        ("tensorrt@10+dla", NODES, "float16"),
        ("ort-cuda", NODES, "float16"),
        ("tensorrt@10", NODES, "float"),
    ],
)
def test_leaves_alone(target: str, nodes: str, kind: str) -> None:
    """What it cannot bring to float32, targets that are not smoothed or have other ways, and models in float32."""
    ready = api.prepared(network(kind, nodes), Recipe(target=target), SILENT)
    assert {ready.graph.dtype(ready.graph.weights[name]) for name in ("w", "v")} == {NUMPY[kind]}
    assert not ready.source.nodes
    assert ready.recipe == Recipe(target=target)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt@10"])
def test_is_written_in_float16_without_casts(target: str) -> None:
    graph = network()
    made, plan = api.quantize(graph, feeds(), Recipe(target=target, effort="fast"), SILENT)
    onnx.checker.check_model(made.to_proto(), full_check=True)
    assert floats(made) == {"float16"}
    assert [n.op_type for n in made.nodes if n.op_type == "Cast"] == []
    assert [made.dtype(v) for v in (*made.inputs, *made.outputs)] == ["float16", "float16", "int64"]
    assert plan.float32 == {}  # that computed in float16 before: not even Exp
    assert {"w", "v"} == {w.tensor for w in plan.weights}  # known by their names


def test_what_the_user_says_of_types_holds() -> None:
    made, _ = api.quantize(network(), feeds(), Recipe(effort="fast", high_precision="fp32"), SILENT)
    assert [made.dtype(v) for v in (*made.inputs, *made.outputs)] == ["float16", "float16", "int64"]
    (norm,) = [n for n in made.nodes if n.op_type == "LayerNormalization"]
    assert made.dtype(norm.outputs[0]) == "float32"


def test_what_float16_held_bfloat16_may_not() -> None:
    """It has fewer digits: sums stay in float32, as of a model in float32."""
    plan = api.quantize(network(), feeds(), Recipe(effort="fast", high_precision="bf16"), SILENT)[1]
    assert set(plan.float32) == {"Exp:e"}


def test_float32_parts_of_a_model_stay_so_where_the_target_leaves_types_alone() -> None:
    nodes = (
        "n = LayerNormalization(x, g, b) h = MatMul(n, w) i = Cast<to = 1>(h) e = Exp(i) t = Tanh(e)"
        "c = Cast<to = 10>(t) y = MatMul(c, v)"
    )
    for target, kept in (("tensorrt@10", {"Exp:e", "Tanh:t"}), ("tensorrt", {"Exp:e"})):
        made, plan = api.quantize(network(nodes=nodes), feeds(), Recipe(target=target, effort="fast"), SILENT)
        assert set(plan.float32) == kept
        assert {made.dtype(n.outputs[0]) for n in made.nodes if n.name in kept} == {"float32"}


def test_without_data_nothing_is_said_of_overflows() -> None:
    made = {}
    for kind in ("float16", "float"):
        plan = api.quantize(network(kind), None, Recipe(), SILENT)[1]
        made[kind] = [note for note in plan.notes if "overflows float16" in note]
    assert made["float16"] == []
    assert len(made["float"]) == 1


def test_is_smoothed_and_rounded_as_a_model_in_float32_is() -> None:
    """Weights and factors of a model in float16 had been left alone: half of the decibels that effort gains."""
    sqnr = {}
    for name, graph in (
        ("float16", network()),
        ("kept", network(nodes=f"{NODES} {APART}")),
        ("float", network("float")),
    ):
        dtype = np.float32 if name == "float" else np.float16
        statistics = api.calibrate(graph, feeds(dtype=dtype), Recipe(float_share=0.0), SILENT)
        assert bool(statistics.smoothing) is (name != "kept")
        made, _ = api.quantize(graph, statistics, Recipe(float_share=0.0), SILENT)
        sqnr[name] = api.compare(graph, made, feeds(60, dtype)[40:]).worst[0].sqnr_db
    assert sqnr["float16"] > sqnr["kept"] + 3
    assert abs(sqnr["float16"] - sqnr["float"]) < 1.5
