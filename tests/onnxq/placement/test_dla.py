"""Targets with DLA: one pair on every float tensor, what runs where, and what is said of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from architectures import ARCHITECTURES
from graphs import Array, graph_of, random_feeds, run
from placing import net

from onnxq import api, report, tables
from onnxq.checks import check
from onnxq.monitor import Monitor
from onnxq.placement.dla import SUPPORTED, why_gpu
from onnxq.recipe import Recipe, Rule
from onnxq.targets import TARGETS

if TYPE_CHECKING:
    from onnxq.graph import Graph

DIGITS = Path(__file__).parents[3] / "models" / "digits"
ALL = tuple(name for name in TARGETS if name.endswith("+dla"))
EACH = pytest.mark.parametrize("target", ALL)

SMALL = """c = Conv<pads=[1,1,1,1]>(x, w) r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, v) a = Add(d, r)
           m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) k = Mul(m, half) e = Erf(k) j = Concat<axis=1>(e, m)
           g = GlobalAveragePool(j) f = Flatten(g) y = MatMul(f, z)"""


def small(outputs: str = "y") -> Graph:
    half = np.array(0.5, np.float32)
    return net("float[1,3,8,8] x", SMALL, outputs, w=(8, 3, 3, 3), v=(8, 8, 3, 3), z=(16, 10), half=half)


def feeds(seed: int = 0, count: int = 4) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": np.asarray(rng.normal(size=(1, 3, 8, 8)), np.float32)} for _ in range(count)]


def pairs(graph: Graph) -> Counter[str]:
    """Q nodes by the tensor they read, that tensor's Cast looked through; weights left out."""
    found: Counter[str] = Counter()
    for node in graph.nodes:
        value = node.inputs[0]
        if node.op_type != "QuantizeLinear" or value is None or graph.is_const(value):
            continue
        cast = graph.producer(value, "Cast")
        found[str((value if cast is None or cast.inputs[0] is None else cast.inputs[0]).name)] += 1
    return found


def expected(graph: Graph, outputs: tuple[str, ...]) -> Counter[str]:
    """Every float activation of the prepared graph once; a model output's name now stands behind its pair."""
    return Counter(f"{name}/inner" if name in outputs else name for name in api.activations(graph))


@EACH
@pytest.mark.parametrize("outputs", ["y", "y r"])
def test_every_float_tensor_has_one_pair(target: str, outputs: str) -> None:
    recipe = Recipe(target=target)
    before = api.prepared(small(outputs), recipe)
    assert set(before.plan.observe) == set(api.activations(before.graph))
    graph, plan = api.quantize(small(outputs), feeds(), recipe)
    assert plan.resolved
    assert pairs(graph) == expected(before.graph, tuple(outputs.split()))
    makers = {str(v.name): graph.producer(v) for v in graph.outputs}
    through = [m if m is None or m.op_type != "Cast" else graph.producer(m.inputs[0]) for m in makers.values()]
    assert {m.op_type for m in through if m is not None} == {"DequantizeLinear"}
    assert set(makers) == set(outputs.split())
    assert not [f for f in check(graph.to_proto(), target).findings if f.severity == "E"]


@EACH
def test_the_numbers_stay(target: str) -> None:
    graph, _ = api.quantize(small(), feeds(), Recipe(target=target))
    want, got = ([run(g, feed)[0] for feed in feeds(1)] for g in (small(), graph))
    noise = sum(float(np.square(a - b).sum()) for a, b in zip(want, got, strict=True))
    assert 0 < noise < 0.01 * sum(float(np.square(a).sum()) for a in want)  # 20 dB


@EACH
def test_digits(target: str) -> None:
    recipe = Recipe(target=target, max_samples=64)
    warned: list[str] = []
    ready = api.prepared(DIGITS / "digits.onnx", recipe)
    graph, plan = api.quantize(DIGITS / "digits.onnx", DIGITS / "calib.npz", recipe, Monitor(warn=warned.append))
    assert pairs(graph) == expected(ready.graph, ("logits",))
    assert not [f for f in check(graph.to_proto(), target).findings if f.severity == "E"]
    with np.load(DIGITS / "test.npz") as test:
        held_out = [{"image": test["image"]}]
    found = api.compare(DIGITS / "digits.onnx", graph, held_out, recipe)
    assert found.worst[0].sqnr_db > 25
    assert [note for note in warned if "2 Gemm falls back to the GPU: DLA has no matrix product" in note]
    assert {op for op, _ in report.summarize(plan).fallback} == {"Gemm", "HardSwish", "Relu"}
    assert any("falls back to the GPU: 2 " in line for line in tables.summary_lines(report.summarize(plan)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_networks(name: str) -> None:
    recipe = Recipe(target="tensorrt@11+dla" if name in {"yolo", "transformer"} else "tensorrt@10+dla")
    ready = api.prepared(ARCHITECTURES[name](), recipe)
    samples = [random_feeds(ready.graph, seed, N=4) for seed in range(2)]
    graph, _ = api.quantize(ARCHITECTURES[name](), samples, recipe)
    assert pairs(graph) == expected(ready.graph, tuple(str(v.name) for v in ready.graph.outputs))
    assert not [f for f in check(graph.to_proto(), recipe.target).findings if f.severity == "E"]
    assert api.compare(ready.graph, graph, samples, recipe).worst[0].sqnr_db > 20


def test_the_graph_without_a_pair_fails_the_count() -> None:
    graph, _ = api.quantize(small(), feeds(), Recipe(target="tensorrt@10"))
    assert pairs(graph) != expected(api.prepared(small(), Recipe()).graph, ("y",))


def test_what_only_moves_keeps_its_scale() -> None:
    plan = api.make_plan(small(), Recipe(target="tensorrt@10+dla"))
    groups = {name: point.group for name, point in plan.points.items()}
    assert len({groups[name] for name in ("e", "m", "j", "a")}) == 1  # MaxPool and Concat
    assert groups["g"] == groups["f"]
    assert len({groups[name] for name in ("x", "c", "r", "d", "a", "k", "g", "y")}) == 8


def test_no_layer_is_too_small_and_notes_tell_what_dla_lacks() -> None:
    plan = api.make_plan(small(), Recipe(target="tensorrt@10+dla"))
    assert {d.op_type for d in plan.decisions if d.macs and d.quantized} == {"Conv", "MatMul"}
    (erf,) = [d for d in plan.decisions if d.op_type == "Erf"]
    assert (erf.quantized, erf.reason) == (False, "falls back to the GPU: DLA has no Erf")
    told = [note for note in plan.notes if "falls back to the GPU" in note]
    assert [note.split(" falls")[0] for note in told] == ["1 Erf", "1 MatMul"]
    assert not [note for note in plan.notes if "dynamic" in note]
    assert [note for note in plan.notes if "export-cache" in note]
    assert not [n for n in api.make_plan(small(), Recipe(target="tensorrt@11+dla")).notes if "export-cache" in n]


def test_dynamic_shapes_are_said() -> None:
    graph = net("float[N,3,8,8] x", "y = Conv(x, w)", w=(8, 3, 3, 3))
    assert any("no dynamic dimensions" in note for note in api.make_plan(graph, Recipe(target="tensorrt@8+dla")).notes)


def test_a_rule_keeps_a_node_in_float() -> None:
    recipe = Recipe(target="tensorrt@10+dla", rules=(Rule(ops=("Add",), quantize=False),))
    graph, plan = api.quantize(small(), feeds(), recipe)
    (add,) = [node for node in graph.nodes if node.op_type == "Add"]
    assert all(graph.producer(v, "DequantizeLinear") is None for v in add.inputs)
    assert next(d.reason for d in plan.decisions if d.op_type == "Add") == "excluded by a rule"


def test_pairs_of_the_model_are_shared() -> None:
    text = """(float[1,3,8,8] x) => (float[1,8,6,6] y) {
        q = QuantizeLinear(x, s, o) p = DequantizeLinear(q, s, o) c = Conv(p, w) r = Abs(x) t = ReduceMax(r)
        y = Add(c, t) }"""
    made = graph_of(text, s=np.float32(0.05), o=np.int8(0), w=np.ones((8, 3, 3, 3), np.float32))
    graph, _ = api.quantize(made, feeds(), Recipe(target="tensorrt@10+dla"))
    assert max(pairs(graph).values()) == 1
    (absolute,) = [node for node in graph.nodes if node.op_type == "Abs"]
    assert absolute.inputs[0] is graph.find("p")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("y = Conv(x, w)", None),
        ("y = Relu(x)", None),
        ("y = Conv<dilations=[2,2]>(x, w)", None),
        ("y = Conv<strides=[9,9], kernel_shape=[3,3]>(x, w)", "kernel of 32 and a stride of 8"),
        ("y = Conv(x, big)", "kernel of 32 and a stride of 8"),
        ("y = ConvTranspose(x, t)", None),
        ("y = ConvTranspose<pads=[1,1,1,1]>(x, t)", "without groups, dilation and padding"),
        ("y = ConvTranspose<group=2>(x, t)", "without groups, dilation and padding"),
        ("y = Concat<axis=1>(x, x)", None),
        ("y = Concat<axis=2>(x, x)", "channels only"),
        ("y = Clip(x, zero)", None),
        ("y = Clip(x, one)", "from 0 on"),
        ("y = Clip(x)", "from 0 on"),
        ('y = Resize<mode="linear">(x, , scales)', None),
        ('y = Resize<mode="cubic">(x, , scales)', "nearest or linear"),
        ("f = Flatten(x) y = Sigmoid(f)", "rank 4 here, not 2"),
        ("y = Flatten(x)", None),
        ("y = Gelu(x)", "has no Gelu"),
        ("i = Cast<to=7>(x) y = Cast<to=1>(i)", "has no Cast"),
    ],
)
def test_limits(body: str, why: str | None) -> None:
    weights: dict[str, Any] = {"w": (4, 4, 3, 3), "big": (4, 4, 33, 33), "t": (4, 2, 3, 3)}
    numbers = {"zero": np.zeros((), np.float32), "one": np.ones((), np.float32), "scales": np.array([1, 1, 2, 2], "f")}
    graph = net("float[1,4,40,40] x", body, "y", 20, **{n: a for n, a in (weights | numbers).items() if n in body})
    found = why_gpu(graph, graph.nodes[-1])
    assert found == why if why is None else (found is not None and why in found)


def test_integers_run_where_they_run() -> None:
    graph = net("float[1,4,8,8] x", "i = Cast<to=7>(x) y = Cast<to=1>(i)")
    assert why_gpu(graph, graph.nodes[0]) is None


def test_the_table_holds_operators_of_the_standard() -> None:
    from onnx import defs

    assert all(defs.has(op) for op in SUPPORTED)
    assert SUPPORTED.isdisjoint({"Gemm", "MatMul", "LSTM", "Erf", "LayerNormalization", "TopK"})


@EACH
def test_next_steps(target: str) -> None:
    graph, plan = api.quantize(small(), feeds(), Recipe(target=target))
    (build,) = [
        line for _, line in report.next_steps(plan, Recipe(), graph, Path("m.onnx"), None) if line.startswith("trtexec")
    ]
    assert "--useDLACore=0 --allowGPUFallback" in build
    assert ("--int8" in build) == (target != "tensorrt@11+dla")
    assert (" --fp16" in build) == (target != "tensorrt@11+dla")


@EACH
def test_what_a_shape_is_computed_from_stays_float(target: str) -> None:
    text = "(float[4] x, float n) => (float[M] y) { s = Mul(n, two) r = Range(zero, s, one) q = Sqrt(r) y = Relu(q) }"
    numbers = {name: np.array(n, np.float32) for name, n in (("zero", 0), ("one", 1), ("two", 2))}
    plan = api.make_plan(graph_of(text, **numbers), Recipe(target=target))
    assert not {"n", "s"} & set(plan.points)
    assert {"r", "q", "y"} <= set(plan.points)


@EACH
def test_a_model_without_operators_of_onnx_gets_no_pair(target: str) -> None:
    graph = graph_of("(float[1,4] x) => (float[1,4] y) { y = Binarizer(x) }")
    proto = graph.to_proto()
    proto.graph.node[0].domain = "ai.onnx.ml"
    del proto.opset_import[:]
    proto.opset_import.add(domain="ai.onnx.ml", version=3)
    assert not api.make_plan(proto, Recipe(target=target)).points
