"""`--io-types int8`: who cannot have it, the numbers against those of the same model with float ends, and its tools."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from graphs import graph_of

from onnxq import api, cli, proving
from onnxq.errors import RecipeError
from onnxq.interface import coded, ports, widened_input, widened_output, with_float_ends
from onnxq.monitor import Monitor
from onnxq.numerics import sqnr_db
from onnxq.placement.interface import with_interface
from onnxq.plan import Plan
from onnxq.recipe import Recipe, Rule
from onnxq.runtime import Session

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph
    from onnxq.interface import Port

DIGITS = Path(__file__).parents[2] / "models" / "digits"
TARGETS = ["ort-cpu", "tensorrt@10", "tensorrt@11"]
RNG = np.random.default_rng(0)
W = RNG.normal(size=(32, 32)).astype(np.float32)
EMPTY = Plan("tensorrt@10", {}, (), ())


def integer(target: str, **choices: Any) -> Recipe:  # noqa: ANN401  of a recipe
    return Recipe(target=target, io_types="int8", effort="fast", **choices)


def run(graph: Graph, feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    return Session(graph.to_proto().SerializeToString(), as_written=True).run(feeds)


def codes(x: npt.NDArray[Any], port: Port) -> npt.NDArray[Any]:
    info = np.iinfo(port.dtype)
    q = np.rint(x / np.float32(port.scale)) + port.zero_point
    return np.asarray(np.clip(q, info.min, info.max), port.dtype)


def values(q: npt.NDArray[Any], port: Port) -> npt.NDArray[Any]:
    return (q.astype(np.float64) - port.zero_point) * port.scale


# -- what stays as it is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"target": "ort-cuda"}, "ort-cuda has no integer interface"),
        ({"target": "tensorrt@8"}, "not documented for TensorRT 8"),
        ({"target": "tensorrt@10+dla"}, "inputIOFormats"),
        ({"target": "tensorrt@8+dla"}, "inputIOFormats"),
        ({"target": "tensorrt", "mode": "weight-only"}, "mode weight-only has not"),
        ({"target": "ort-cpu", "mode": "dynamic"}, "mode dynamic has not"),
        ({"target": "tensorrt", "mode": "float", "high_precision": "fp16"}, "mode float has not"),
        ({"target": "tensorrt", "activations": "fp8e4m3/tensor"}, "activations in fp8e4m3"),
    ],
)
def test_refusals(choices: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        Recipe(io_types="int8", **choices)


def test_without_data_there_is_no_scale() -> None:
    graph = graph_of("(float[N,32] x) => (float[N,32] y) { y = MatMul(x, w) }", w=W)
    with pytest.raises(RecipeError, match="needs calibration data"):
        api.quantize(graph, None, integer("tensorrt"))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        pytest.param("(int64[4] x) => (int64[4] y) { y = Abs(x) }", set(), id="whole numbers"),
        pytest.param("(float[4] x) => (int64[1] y) { y = Shape(x) }", {"x"}, id="only the shape is read"),
        pytest.param("(float[4] x, float low) => (float[4] y) { y = Clip(x, low) }", {"low"}, id="a parameter"),
        pytest.param(
            "(float[4] x, bool c) => (float[4] y) { y = If (c) <then_branch = one () => (float[4] o) { o = Neg(x) }, "
            "else_branch = two () => (float[4] o2) { o2 = Abs(x) }> }",
            {"x"},
            id="read in bodies",
        ),
        pytest.param("(float[4] x) => (float[4] y) { d = DequantizeLinear(w, s) y = Add(x, d) }", set(), id="codes"),
        pytest.param("(float[4] x) => (float[4] x) { }", {"x"}, id="an input that is an output"),
        pytest.param(
            "(float[4] x, float t) => (float[4] y) { q = QuantizeLinear(x, t) d = DequantizeLinear(q, t) y = Abs(d) }",
            {"x", "t"},
            id="a scale that is an input",
        ),
    ],
)
def test_ends_that_stay(text: str, left: set[str]) -> None:
    weights: dict[str, npt.ArrayLike] = {"w": np.ones(4, np.uint8), "s": np.float32(1)} if "(w" in text else {}
    graph = graph_of(text, **weights)
    plan = with_interface(graph, EMPTY)
    floats = {str(v.name) for v in graph.inputs if graph.dtype(v) == "float32"}
    assert floats - set(plan.points) == left
    assert {note.split()[1] for note in plan.notes} == left


@pytest.mark.parametrize("kind", ["bfloat16", "double"])
def test_ends_of_other_floats_stay_and_are_told(kind: str) -> None:
    text = f"""({kind}[4,32] x, float[4,32] z) => ({kind}[4,32] u, float[4,32] y) {{
        a = Cast<to=1>(x) b = Add(a, z) y = MatMul(b, w) u = Neg(x) }}"""
    graph = graph_of(text, w=W)
    said: list[str] = []
    name = "float64" if kind == "double" else kind
    plan = api.make_plan(graph, integer("tensorrt@10"))
    assert [note.partition(":")[0] for note in plan.notes] == [f"input x stays {name}", f"output u stays {name}"]
    if kind == "bfloat16":
        return  # ONNX Runtime takes no such array from Python
    feeds = [{"x": RNG.normal(size=(4, 32)), "z": W[:4]} for _ in range(9)]
    made, plan = api.quantize(graph, feeds, integer("tensorrt@10"), Monitor(warn=said.append))
    assert {p.name for p in plan.interface} == {"z", "y"}
    assert {str(v.name): made.dtype(v) for v in (*made.inputs, *made.outputs)} == {
        "x": name,
        "z": "int8",
        "u": name,
        "y": "int8",
    }
    assert sum(f"stays {name}" in text for text in said) == 2


def test_outputs_that_stay() -> None:
    nodes = "q = QuantizeLinear<axis=0>(x, v) y = DequantizeLinear<axis=0>(q, v)"
    text = f"(float[4] x) => (float[4] y, float[4] w) {{ {nodes} }}"
    graph = graph_of(text, v=np.full(4, 0.1, np.float32), w=W[0, :4])
    plan = with_interface(graph, EMPTY)
    assert set(plan.points) == {"x"}
    assert {note.split()[1] for note in plan.notes} == {"y", "w"}


def test_a_pair_that_the_model_has_is_joined() -> None:
    text = "(float[4] x) => (float[4] y) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Add(d, x) }"
    graph = graph_of(text, s=np.float32(0.1), z=np.int8(0))
    plan = with_interface(graph, EMPTY)
    assert set(plan.points) == {"y"}
    assert [(index, tensor) for _, index, tensor in plan.joins] == [(1, "d")]


# -- the numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "half", "steps"),
    [
        ("ort-cpu", None, 1),
        ("tensorrt@10", None, 1),
        ("tensorrt@11", "fp32", 1),
        # On a CPU ONNX Runtime rounds to half precision where it puts its own Casts, which is not where they were.
        ("tensorrt@11", "fp16", 3),
    ],
)
def test_digits(target: str, half: str | None, steps: int) -> None:
    """The same plan with float ends, quantized at the ends by the formula, gives the same within a step."""
    recipe = integer(target, high_precision=half)
    ready = api.prepared(DIGITS / "digits.onnx", recipe)
    statistics = api.observe(ready, DIGITS / "calib.npz")
    made, plan = api.lowered(ready, statistics)
    onnx.checker.check_model(made.to_proto(), full_check=True)
    entry, leave = plan.interface
    kind = "uint8" if target == "ort-cpu" else "int8"
    assert (entry.kind, entry.name, leave.kind, leave.name) == ("input", "image", "output", "logits")
    assert {made.dtype(v) for v in (*made.inputs, *made.outputs)} == {kind}
    assert all(np.float32(p.scale) == p.scale for p in plan.interface)
    if target != "ort-cpu":
        assert not [f for f in api.check(made, target).findings if f.severity == "E"]

    floats = replace(recipe, io_types="float32")
    same, _ = api.lowered(replace(ready, recipe=floats), statistics)
    with np.load(DIGITS / "test.npz") as held_back:
        image = held_back["image"][:64]
    (expected,) = run(same, {"image": image})
    (got,) = run(made, {"image": codes(image, entry)})
    np.testing.assert_array_equal(coded({"image": image}, plan.interface)["image"], codes(image, entry))
    assert got.dtype == kind
    assert np.abs(values(got, leave) - expected).max() <= 1.001 * steps * leave.scale
    assert np.isclose(values(got, leave), expected).mean() > (0.99 if steps == 1 else 0.5)

    ordinary, _ = api.quantize(DIGITS / "digits.onnx", statistics, floats) if target == "ort-cpu" else (None, None)
    if ordinary is not None:  # it quantizes the image anyway; for TensorRT its first layer is float
        (other,) = run(ordinary, {"image": image})
        near = np.clip(other, other.min(), (255 - leave.zero_point) * leave.scale)
        assert np.abs(values(got, leave) - near).max() <= leave.scale


@pytest.mark.parametrize("target", TARGETS)
def test_readers_in_float_and_excluded_nodes_read_the_codes(target: str) -> None:
    text = "(float[N,32] x) => (float[N,32] y, int64[2] n) { a = MatMul(x, w) b = Relu(a) y = Sub(b, x) n = Shape(x) }"
    graph = graph_of(text, w=W)
    data = [{"x": RNG.normal(size=(8, 32)).astype(np.float32)} for _ in range(4)]
    for rules in ((), (Rule(ops=("MatMul",), quantize=False), Rule(nodes="*", ops=("Sub",), quantize=True))):
        if rules and target == "ort-cpu":
            continue
        made, plan = api.quantize(graph, data, integer(target, rules=rules))
        onnx.checker.check_model(made.to_proto(), full_check=True)
        entry, leave = plan.interface
        found, n = run(made, {"x": codes(data[0]["x"], entry)})
        x = data[0]["x"].astype(np.float64)
        assert sqnr_db(np.maximum(x @ W, 0) - x, values(found, leave)) > 30
        assert list(n) == [8, 32]


def test_outputs_are_not_clipped() -> None:
    graph = graph_of("(float[N,32] x) => (float[N,32] y) { y = MatMul(x, w) }", w=W)
    data = [{"x": RNG.standard_t(2, size=(64, 32)).astype(np.float32)}]
    _, plan = api.quantize(graph, data, integer("tensorrt@10"))
    assert plan.points["y"].range is not None
    assert plan.points["y"].range[1] >= np.abs(data[0]["x"] @ W).max() * 0.999


# -- tools ------------------------------------------------------------------------------------------------------


def test_compare_reads_the_metadata() -> None:
    data = [{"x": RNG.normal(size=(8, 32)).astype(np.float32)} for _ in range(4)]
    graph = graph_of("(float[N,32] x) => (float[N,32] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }", w=W)
    made, _ = api.quantize(graph, data, integer("tensorrt@11"))
    ordinary, _ = api.quantize(graph, data, replace(integer("tensorrt@11"), io_types="float32"))
    (found,) = api.compare(graph, made, data).outputs
    (plain,) = api.compare(graph, ordinary, data).outputs
    assert 30 < found.sqnr_db < plain.sqnr_db
    assert {e.tensor for e in api.compare(graph, made, data, layers=True).errors} >= {"a", "y"}
    assert with_float_ends(ordinary) is ordinary


@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt@10"])
def test_budget_and_effort(target: str) -> None:
    data = [{"x": RNG.normal(size=(1, 32)).astype(np.float32)} for _ in range(32)]
    graph = graph_of("(float[N,32] x) => (float[N,32] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }", w=W)
    made, plan = api.quantize(graph, data, Recipe(target=target, io_types="int8", min_sqnr=15.0))
    assert plan.budget is not None
    assert [p.name for p in ports(made)] == ["x", "y"]
    (error,) = api.compare(graph, made, data).outputs
    assert error.sqnr_db > 15


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["onnxq", *map(str, arguments)])
        cli.main()
        return capsys.readouterr().out

    model, data = DIGITS / "digits.onnx", DIGITS / "calib.npz"
    said = call("quantize", model, "--data", data, "--target", "ort-cpu", "--effort", "fast", "--io-types", "int8")
    assert "input image: uint8, scale 0.00392156886, zero point 0" in said
    plan = json.loads((tmp_path / "digits.int8.plan.json").read_text())
    entry = plan["interface"]["inputs"]["image"]
    assert entry == {"dtype": "uint8", "scale": float(np.float32(1 / 255)), "zero_point": 0, "float_type": "float32"}
    written = onnx.load(tmp_path / "digits.int8.onnx")
    metadata = {entry.key: entry.value for entry in written.metadata_props}
    assert float(metadata["onnxq.input.image.scale"]) == entry["scale"]
    assert float(metadata["onnxq.output.logits.scale"]) == plan["interface"]["outputs"]["logits"]["scale"]
    assert "output logits: uint8, scale" in call("show", "digits.int8.onnx")
    proved = call("check", "digits.int8.onnx", "--target", "ort-cpu", "--data", data, "--measure", "--float", model)
    assert "0 nodes lost" in proved
    assert "logits" in call("compare", model, "digits.int8.onnx", "--data", data)


# -- half precision for CPUs ------------------------------------------------------------------------------------


HALF = """(float16[N,16,8,8] x) => (float16[N,16,8,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, w) y = Add(c, x)
}"""


def half_model() -> tuple[Graph, list[dict[str, npt.NDArray[np.float16]]]]:
    rng = np.random.default_rng(0)
    graph = graph_of(HALF, 17, w=(rng.normal(size=(16, 16, 3, 3)) / 10).astype(np.float16))
    return graph, [{"x": rng.normal(size=(1, 16, 8, 8)).astype(np.float16)} for _ in range(8)]


def test_ends_in_float16_that_are_computed_in_float32_become_codes_at_once() -> None:
    graph, feeds = half_model()
    made, plan = api.quantize(graph, feeds, integer("ort-cpu"))
    onnx.checker.check_model(made.to_proto(), full_check=True)
    assert not [n.op_type for n in made.nodes if n.op_type == "Cast"]
    entry, leave = plan.interface
    assert [(p.name, p.dtype, p.float_type) for p in plan.interface] == [(n, "uint8", "float16") for n in "xy"]
    assert [p.scale_type for p in plan.interface] == ["float32"] * 2
    assert [with_float_ends(made).dtype(v) for v in with_float_ends(made).inputs] == ["float16"]
    ran = proving.prove(made).nodes
    assert [n.op_type for n in ran if n.runs == "integer"] == ["QLinearConv", "QLinearConv", "QLinearAdd"]
    assert not [n for n in ran if n.runs in ("float", "float behind DQ", "conversion")]
    low, high = (min(f["x"].min() for f in feeds), max(f["x"].max() for f in feeds))
    assert entry.scale == pytest.approx((float(high) - float(low)) / 255, rel=0.3)  # of a range near what was seen
    for feed in feeds:
        assert np.array_equal(coded(feed, plan.interface)["x"], codes(feed["x"].astype(np.float32), entry))
        found, exact = values(run(made, dict(coded(feed, plan.interface)))[0], leave), run(graph, feed)[0]
        assert np.abs(found - exact.astype(np.float64)).max() < 6 * leave.scale
    (error,) = api.compare(graph, made, feeds).outputs  # with float ends again
    assert error.sqnr_db > 25


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        # another reader than the Cast, a float32 output behind it, and a Cast to something else
        ("(float16[4] x) => (float[4] y, float16[4] z) { y = Cast<to=1>(x) z = Neg(x) }", "xz"),
        ("(float16[4] x) => (float[4] y) { y = Cast<to=1>(x) }", "x"),
        ("(float16[4] x) => (double[4] y) { y = Cast<to=11>(x) }", "x"),
    ],
)
def test_other_casts_of_ends_are_none_of_that(text: str, kinds: str) -> None:
    graph = graph_of(text, 17)
    (value,) = graph.inputs
    assert widened_input(graph, value) is value
    assert all(widened_output(graph, value) is value for value in graph.outputs)
    assert {name for name in with_interface(graph, EMPTY).points if name != "y"} == set(kinds)


def test_images_that_strided_convolutions_read_come_as_codes() -> None:
    w = RNG.normal(size=(16, 3, 5, 5)).astype(np.float32)
    text = "(float[1,3,32,32] x) => (float[1,16,16,16] y) { y = Conv<strides=[2, 2], pads=[2, 2, 2, 2]>(x, w) }"
    feeds = [{"x": RNG.normal(size=(1, 3, 32, 32)).astype(np.float32)} for _ in range(4)]
    graph, plan = api.quantize(graph_of(text, 17, w=w).to_proto(), feeds, integer("ort-cpu"))
    assert [port.name for port in plan.interface] == ["x", "y"]
    assert graph.dtype(graph.inputs[0]) == "uint8"
    other, _ = api.quantize(graph_of(text, 17, w=w).to_proto(), feeds, replace(integer("ort-cpu"), io_types="float32"))
    assert "SpaceToDepth" in [n.op_type for n in other.nodes]
