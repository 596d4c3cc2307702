"""Models in float16 and bfloat16: improved in float32 and written in their own type, as a model in float32 is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import Array, graph_of

from onnxq import Recipe, api
from onnxq.errors import ModelError
from onnxq.monitor import SILENT
from onnxq.numerics import numpy_type

if TYPE_CHECKING:
    from onnxq.graph import Graph

FAST = Recipe(effort="fast")
APART = "s = SequenceConstruct(x) l = SequenceLength(s)"
"""What keeps a model as it is."""

NUMPY = {"float": "float32", "float16": "float16", "bfloat16": "bfloat16"}
NODES = "n = LayerNormalization(x, g, b) h = MatMul(n, w) e = Exp(h) t = Tanh(e) y = MatMul(t, v)"


def network(kind: str = "float16", nodes: str = NODES) -> Graph:
    """Two layers behind a normalization that makes some channels 40 times as large as the others."""
    rng, dtype = np.random.default_rng(0), numpy_type(NUMPY[kind])
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
        ("tensorrt", NODES, "float"),
        ("ort-cpu", NODES, "float"),
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


# --- bfloat16 ------------------------------------------------------------------------------------------


def rounded(array: Array) -> Array:
    return array.astype(ml_dtypes.bfloat16)


def in_float32() -> Graph:
    """The model in bfloat16 in float32: the same numbers."""
    graph = network("float")
    for name, value in dict(graph.weights).items():
        array = graph.const(value)
        if array is not None and array.dtype == np.float32:
            graph.replace_uses(value, graph.constant(f"{name}_held", rounded(array).astype(np.float32)))
    graph.remove_unused()
    return graph


def stored(graph: Graph, dtype: str) -> list[Array]:
    """Its weights of the type, whatever their names."""
    arrays = [graph.const(value) for value in graph.weights.values() if graph.dtype(value) == dtype]
    return sorted((a for a in arrays if a is not None and a.ndim == 2), key=lambda a: a.tobytes())


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt@10"])
@pytest.mark.parametrize("mode", ["static", "weight-only"])
def test_bfloat16_is_written_in_bfloat16_without_casts(target: str, mode: str) -> None:
    graph, data = network("bfloat16"), feeds(dtype=np.float32)
    recipe = Recipe(target=target, mode=mode, effort="fast")
    made, plan = api.quantize(graph, data if mode == "static" else None, recipe, SILENT)
    onnx.checker.check_model(made.to_proto(), full_check=True)
    assert floats(made) == {"bfloat16"}
    assert [n.op_type for n in made.nodes if n.op_type == "Cast"] == []
    assert [made.dtype(v) for v in (*made.inputs, *made.outputs)] == ["bfloat16", "bfloat16", "int64"]
    assert plan.float32 == {}
    assert [f for f in api.check(made, target).findings if f.severity == "E"] == []
    assert plan.notes == ()


def held_feeds(count: int = 40) -> list[dict[str, Array]]:
    """Samples that bfloat16 holds, and so the same for both models."""
    return [{"x": rounded(feed["x"]).astype(np.float32)} for feed in feeds(count, np.float32)]


def test_bfloat16_gets_the_codes_of_the_same_model_in_float32() -> None:
    one, plan = api.quantize(in_float32(), held_feeds(), replace(FAST, high_precision="bf16"), SILENT)
    other, same = api.quantize(network("bfloat16"), held_feeds(), FAST, SILENT)
    assert len(stored(one, "int8")) == 2
    for a, b in zip(stored(one, "int8"), stored(other, "int8"), strict=True):
        np.testing.assert_array_equal(a, b)
    scales = [[p.params.scale for p in made.points.values() if p.params is not None] for made in (plan, same)]
    assert scales[0] == scales[1]
    assert len(scales[0]) == 2
    assert set(plan.float32) == {"Exp:e"}  # the model in bfloat16 computes it in bfloat16


def test_bfloat16_gains_by_effort_what_the_same_model_in_float32_does() -> None:
    """Not the same: samples are split by their bits."""
    wide, new = in_float32(), held_feeds(60)[40:]
    sqnr = {}
    for name, graph, recipe in (
        ("float32", wide, Recipe(float_share=0.0, high_precision="bf16")),
        ("bfloat16", network("bfloat16"), Recipe(float_share=0.0)),
        ("fast", network("bfloat16"), FAST),
    ):
        made, _ = api.quantize(graph, held_feeds(), recipe, SILENT)
        sqnr[name] = api.compare(wide, made, new).worst[0].sqnr_db
    assert sqnr["bfloat16"] > sqnr["fast"] + 3
    assert abs(sqnr["bfloat16"] - sqnr["float32"]) < 1.5


def test_of_both_types_the_float32_part_stays_so() -> None:
    nodes = (
        "n = LayerNormalization(x, g, b) h = MatMul(n, w) i = Cast<to = 1>(h) e = Exp(i) t = Tanh(e)"
        "c = Cast<to = 16>(t) y = MatMul(c, v)"
    )
    for target in ("tensorrt@10", "tensorrt"):
        data, kind = feeds(dtype=np.float32), "bfloat16"
        made, plan = api.quantize(network(kind, nodes), data, Recipe(target=target, effort="fast"), SILENT)
        assert set(plan.float32) == {"Exp:e", "Tanh:t"}
        assert {made.dtype(n.outputs[0]) for n in made.nodes if n.name in plan.float32} == {"float32"}
        assert made.dtype(made.find("n")) == kind


def test_weights_in_float32_that_are_cast_count_as_bfloat16() -> None:
    """As of exporters' mixed precision."""
    text = """(bfloat16[N,64] x) => (bfloat16[N,64] y) {
        c = Cast<to = 16>(w) a = MatMul(x, c) b = Relu(a) d = Cast<to = 16>(v) y = MatMul(b, d)
    }"""
    rng = np.random.default_rng(0)
    w, v = (rng.normal(0, 0.1, (64, 64)).astype(np.float32) for _ in "wv")
    made, plan = api.quantize(graph_of(text, 19, w=w, v=v), feeds(dtype=np.float32), FAST, SILENT)
    assert {d.quantized for d in plan.decisions if d.op_type == "MatMul"} == {True}
    assert floats(made) == {"bfloat16"}


def test_few_weights_in_bfloat16_do_not_decide() -> None:
    """A large model in float32 goes to float16 as others do, and what is bfloat16 in it with it."""
    nodes = "a = MatMul(x, w) b = Cast<to = 16>(a) c = MatMul(b, v) y = Cast<to = 1>(c)"
    text = f"(float[N,64] x) => (float[N,32] y) {{ {nodes} }}"
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(64, 64)).astype(np.float32), rounded(rng.normal(size=(64, 32)))
    for target, kind in (("tensorrt", "float16"), ("tensorrt@10", "bfloat16")):
        graph = graph_of(text, 19, w=w, v=v)
        made, plan = api.quantize(graph, feeds(dtype=np.float32), replace(FAST, target=target), SILENT)
        assert {d.quantized for d in plan.decisions if d.op_type == "MatMul"} == {True}
        assert plan.float_type == kind
        assert api.compare(graph, made, feeds(8, np.float32)).worst[0].sqnr_db > 30


@pytest.mark.parametrize("target", ["tensorrt@11+dla", "ort-cuda", "ort-cpu"])
def test_targets_without_bfloat16_take_what_they_have(target: str) -> None:
    """Inputs and outputs stay what they are."""
    graph, data = network("bfloat16"), feeds(dtype=np.float32)
    modes = {"ort-cpu": ("static", "dynamic", "weight-only"), "ort-cuda": ("static", "weight-only")}
    for mode in modes.get(target, ("static",)):
        given = data if mode == "static" else None
        made, plan = api.quantize(graph, given, Recipe(target=target, mode=mode, effort="fast"), SILENT)
        onnx.checker.check_model(made.to_proto(), full_check=True)
        assert {d.quantized for d in plan.decisions if d.op_type == "MatMul"} == {True}
        assert [made.dtype(v) for v in (*made.inputs, *made.outputs)] == ["bfloat16", "bfloat16", "int64"]
        assert {n.op_type for n in made.nodes for v in n.outputs if made.dtype(v) == "bfloat16"} == {"Cast"}
        assert api.compare(graph, made, data[:8]).worst[0].sqnr_db > 20


def test_tensorrt_8_refuses_ends_in_bfloat16() -> None:
    with pytest.raises(ModelError, match="'x' is bfloat16, but TensorRT has bfloat16 from 9 on") as raised:
        api.quantize(network("bfloat16"), feeds(), Recipe(target="tensorrt@8"), SILENT)
    assert "float32 or float16" in raised.value.hint
    text = "(float[N,64] x) => (float[N,64] y) { b = Cast<to = 16>(x) c = MatMul(b, v) y = Cast<to = 1>(c) }"
    graph = graph_of(text, 19, v=rounded(np.random.default_rng(0).normal(size=(64, 64))))
    made, _ = api.quantize(graph, feeds(dtype=np.float32), replace(FAST, target="tensorrt@8"), SILENT)
    assert floats(made) == {"float32"}


def test_mode_float_brings_bfloat16_to_float16() -> None:
    made, plan = api.quantize(network("bfloat16"), None, Recipe(mode="float", high_precision="fp16"), SILENT)
    assert floats(made) == {"float16", "bfloat16", "float32"}  # at both ends, and Exp
    assert set(plan.float32) == {"Exp:e"}


@pytest.mark.parametrize("data", [None, feeds(8, np.float32)])
def test_mode_float_leaves_what_is_bfloat16_so(data: list[dict[str, Array]] | None) -> None:
    """With data too, which ONNX Runtime runs in float32 alone."""
    made, plan = api.quantize(network("bfloat16"), data, Recipe(mode="float", high_precision="bf16"), SILENT)
    assert floats(made) == {"bfloat16"}
    assert plan.float32 == {}
