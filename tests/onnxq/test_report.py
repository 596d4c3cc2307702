"""What a run tells: figures, JSON, and commands that can be pasted."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # noqa: TID251  as a user runs the file
import pytest
from graphs import graph_of, run

from onnxq import api, report
from onnxq.errors import RecipeError
from onnxq.monitor import Monitor
from onnxq.numerics import sqnr_db
from onnxq.recipe import Recipe

DIGITS = Path(__file__).parents[2] / "models" / "digits"
FAST = Recipe(effort="fast")
W = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
SMALL = W[:, :4]
TEXT = """(float[N,32] x) => (float[N,4] y) { a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) y = MatMul(c, small) }"""
FEEDS = [{"x": np.random.default_rng(1).normal(size=(n, 32)).astype(np.float32)} for n in (1, 1, 1)]


def test_the_summary_counts() -> None:
    found = report.summarize(api.make_plan(graph_of(TEXT, w=W, small=SMALL)), 100, 30)
    assert (found.weighted, found.int8) == (3, 2)
    assert found.mac_share == pytest.approx(2 * 32 * 32 / (2 * 32 * 32 + 32 * 4))
    assert (found.bytes_before, found.bytes_after) == (100, 30)
    ((reason, op, count),) = found.reasons
    assert (op, count) == ("MatMul", 1)
    assert "16" in reason
    assert {op for _, op, _ in found.others} <= {"Relu"}


def test_the_plan_as_json_is_the_same_for_the_same_run() -> None:
    recipe = Recipe(target="tensorrt@10", calibrator="minmax")
    graph = graph_of(TEXT, w=W, small=SMALL)
    seen = api.calibrate(graph, FEEDS, recipe)
    texts = {report.plan_json(api.quantize(graph, seen, recipe)[1], recipe, seen) for _ in range(2)}
    assert len(texts) == 1
    found = json.loads(texts.pop(), parse_constant=pytest.fail)
    assert found["recipe"] == 'target = "tensorrt@10"\ncalibrator = "minmax"\n'
    assert found["data"] == {"samples": 3, "digest": f"{seen.seen:016x}", "model": seen.model}
    point = found["tensors"]["x"]
    largest = float(np.abs(np.concatenate([f["x"] for f in FEEDS])).max())
    assert point["range"] == pytest.approx([-largest, largest])
    assert point["scale"] == pytest.approx(largest / 127)
    assert (point["dtype"], point["zero_point"], point["calibrator"]) == ("int8", 0, "minmax")
    unresolved = json.loads(report.plan_json(api.make_plan(graph), Recipe(), None))
    assert unresolved["data"] is None
    assert "scale" not in unresolved["tensors"]["x"]


def flags(text: str, name: str, *, seen: bool, shapes: tuple[tuple[int, ...], ...] = ()) -> list[list[str]]:
    """The words of the commands that build with trtexec."""
    graph = graph_of(text, w=W)
    feeds = [{n: np.ones(shape, np.float32) for n in ("x",)} for shape in shapes]
    statistics = api.calibrate(graph, feeds) if seen else None
    quantized, plan = api.quantize(graph, statistics, monitor=Monitor(warn=lambda _: None))
    lines = [shlex.split(line) for _, line in report.next_steps(plan, Recipe(), quantized, Path(name), statistics)]
    found = [words for words in lines if words[0] == "trtexec"]
    assert found
    return found


DYNAMIC = "(float[N,T,32] x) => (float[N,T,32] y) { y = MatMul(x, w) }"


def test_the_next_command_has_the_shapes_that_were_seen() -> None:
    for line in flags(DYNAMIC, "m.int8.onnx", seen=True, shapes=((1, 7, 32), (1, 3, 32))):
        assert line[:3] == ["trtexec", "--onnx=m.int8.onnx", "--saveEngine=m.int8.plan"]
        assert "--minShapes=x:1x3x32" in line
        assert {"--optShapes=x:1x7x32", "--maxShapes=x:1x7x32"} <= set(line)


@pytest.mark.parametrize(
    ("text", "seen", "told"),
    [(TEXT, FEEDS, ""), (DYNAMIC, [{"x": np.ones((1, t, 32), np.float32)} for t in (3, 7)], " --shapes x:1x7x32")],
)
def test_the_next_check_on_the_cpu_has_the_sizes_that_it_needs(
    text: str, seen: list[dict[str, Any]], told: str
) -> None:
    recipe = Recipe(target="ort-cpu", effort="fast")
    graph = graph_of(text, w=W, **({"small": SMALL} if text is TEXT else {}))
    statistics = api.calibrate(graph, seen, recipe)
    quantized, plan = api.quantize(graph, statistics, recipe, Monitor(warn=lambda _: None))
    command = "onnxq check m.onnx --target ort-cpu"
    lines = dict(report.next_steps(plan, recipe, quantized, Path("m.onnx"), statistics))
    assert lines["ONNX Runtime"] == command + told
    without = dict(report.next_steps(plan, recipe, quantized, Path("m.onnx"), None))
    assert without["ONNX Runtime"] == command + (" --shapes x:1xNx32" if told else "")


def test_the_next_check_of_a_model_of_text_asks_for_data() -> None:
    text = "(string[8] s, float[8,32] x) => (float[8,32] y, string[8] t) { y = MatMul(x, w) t = Identity(s) }"
    recipe = Recipe(target="ort-cpu", mode="dynamic")
    quantized, plan = api.quantize(graph_of(text, w=W), None, recipe, Monitor(warn=lambda _: None))
    lines = dict(report.next_steps(plan, recipe, quantized, Path("m.onnx"), None))
    assert lines["ONNX Runtime"] == "onnxq check m.onnx --target ort-cpu --data ..."


def test_the_next_command_without_data_or_dynamic_shapes() -> None:
    for line in flags(DYNAMIC, "a b/m.onnx", seen=False):
        assert {"--onnx=a b/m.onnx", "--minShapes=..."} <= set(line)
    static = "(float[2,32] x) => (float[2,32] y) { y = MatMul(x, w) }"
    for line in flags(static, "m.onnx", seen=True, shapes=((2, 32),)):
        assert not [word for word in line if "Shapes" in word]


def test_shares_are_by_the_shapes_of_the_data_where_the_model_says_none() -> None:
    """Convolutions of unknown height and width would count as one pixel each, beside a head that is known."""
    model = onnx.load(DIGITS / "digits.onnx")
    images = [{"image": np.load(DIGITS / "calib.npz")["image"][:8]}]
    known = api.quantize(model, images, FAST)[1]
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        dim.dim_param = name
    del model.graph.value_info[:]
    unknown = api.quantize(model, images, FAST)[1]
    assert [d.macs for d in unknown.decisions] == [d.macs for d in known.decisions]
    unsized = api.make_plan(model, FAST)
    assert unsized.macs < known.macs / 2  # without data unknown dimensions count as 1, and it says so
    assert any("--shapes image:1x1xNxN tells them" in note for note in unsized.notes)
    side = images[0]["image"].shape[-1]
    sized = api.make_plan(model, replace(FAST, shapes=f"image:1x1x{side}x{side}"))
    assert [d.macs for d in sized.decisions] == [d.macs for d in known.decisions]
    assert not any("--shapes" in note for note in sized.notes)


def test_shares_are_by_the_shapes_of_the_data_where_the_model_says_no_rank() -> None:
    """onnx.checker refuses such a model, ONNX Runtime runs it; layers that nothing is known of count one position."""
    text = "(float[4,16,9,9] x) => (float[4,8] y) { a = Conv(x, k) b = GlobalMaxPool(a) c = Flatten(b) y = Gemm(c, g) }"
    rng = np.random.default_rng(2)
    kernel, last = (rng.normal(size=s).astype(np.float32) for s in ((16, 16, 3, 3), (16, 8)))
    known = graph_of(text, k=kernel, g=last).to_proto()
    bare = onnx.ModelProto.FromString(known.SerializeToString())
    for value in (bare.graph.input[0], bare.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    feeds = [{"x": rng.normal(size=(4, 16, 9, 9)).astype(np.float32)}]
    counted = {d.op_type: d.macs for d in api.quantize(known, feeds, FAST)[1].decisions}
    assert counted["Conv"] == 4 * 7 * 7 * 16 * 16 * 9
    assert {d.op_type: d.macs for d in api.quantize(bare, feeds, FAST)[1].decisions} == counted
    unsized = api.make_plan(bare, FAST)
    assert {d.op_type: d.macs for d in unsized.decisions} == counted | {"Conv": 16 * 16 * 9, "Gemm": 16 * 8}
    assert any("--shapes 'x:[...]' tells them" in note for note in unsized.notes)
    assert {d.op_type: d.macs for d in api.make_plan(bare, replace(FAST, shapes="x:4x16x9x9")).decisions} == counted


def test_shapes_for_a_plan_are_shapes_of_the_model() -> None:
    for shapes in ("other:1x1", "image:1x3x8x8"):
        with pytest.raises(RecipeError):
            api.make_plan(DIGITS / "digits.onnx", replace(FAST, shapes=shapes))


def test_open_batches_need_no_shapes() -> None:
    model = "(float[N,32] x) => (float[N,32] y) { y = MatMul(x, w) }"
    assert not any("--shapes" in note for note in api.make_plan(graph_of(model, w=W)).notes)


RECURRENT = """(float[7,1,32] x) => (float[7,1,1,16] y) { a = MatMul(x, w) y = LSTM<hidden_size=16>(a, wi, wr) }"""
GATES = {"wi": np.zeros((1, 64, 32), np.float32), "wr": np.zeros((1, 64, 16), np.float32)}


def test_what_a_recurrent_operator_does_in_float_is_no_share_of_int8() -> None:
    found = report.summarize(api.make_plan(graph_of(RECURRENT, w=W, **GATES)))
    assert (found.weighted, found.int8) == (2, 1)
    assert found.reasons == (("recurrent, runs in float", "LSTM", 1),)
    assert found.mac_share == pytest.approx(32 * 32 / (32 * 32 + 64 * (32 + 16)))
    dynamic = report.summarize(
        api.make_plan(graph_of(RECURRENT, w=W, **GATES), Recipe(target="ort-cpu", mode="dynamic"))
    )
    assert (dynamic.weighted, dynamic.int8, dynamic.mac_share) == (2, 2, 1.0)


@pytest.mark.parametrize(("kind", "half"), [("float", 2), ("double", 0)])
def test_what_mode_float_brought_to_half_precision(kind: str, half: int) -> None:
    """Nodes of float64 stay what they are: no pass converts them, nor is it said so."""
    text = f"({kind}[N,32] x) => ({kind}[N,32] y) {{ a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }}"
    graph = graph_of(text, w=W.astype(np.float64 if kind == "double" else np.float32))
    quantized, plan = api.quantize(graph, None, Recipe(mode="float"), monitor=Monitor(warn=lambda _: None))
    found = report.summarize(plan)
    assert (found.number, found.weighted, found.int8, found.mac_share) == ("float16", 2, half, half / 2)
    assert {quantized.dtype(n.outputs[0]) for n in quantized.nodes if n.op_type == "MatMul"} == {
        "float16" if half else "float64"
    }


def test_a_model_of_integers_is_told_from_one_without_layers() -> None:
    integers = """(float[1,32] x) => (int32[1,32] y)
        { q, s, z = DynamicQuantizeLinear(x) y = MatMulInteger(q, codes, z) }"""
    plan = api.make_plan(graph_of(integers, codes=W.astype(np.int8)))
    assert plan.empty
    assert "integers already (1 DynamicQuantizeLinear, 1 MatMulInteger)" in plan.why_empty()
    assert "float model" in plan.why_empty()
    for_dla = api.make_plan(graph_of(integers, codes=W.astype(np.int8)), Recipe(target="tensorrt@10+dla"))
    assert for_dla.empty  # where every tensor gets a pair, too
    assert "integers already" in for_dla.why_empty()
    plain = api.make_plan(graph_of("(float[1,32] x) => (float[1,32] y) { y = Relu(x) }"))
    assert plain.why_empty() == "It holds no Conv, ConvTranspose, Gemm or MatMul."
    assert not api.make_plan(graph_of(TEXT, w=W, small=SMALL)).empty


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(target="ort-cpu"), True),
        (Recipe(target="ort-cpu", mode="dynamic"), True),
        (Recipe(target="ort-cpu", reduce_range=True), False),
        (Recipe(target="ort-cpu", mode="weight-only"), False),
        (Recipe(), False),
    ],
)
def test_sums_that_saturate_on_some_cpus_are_told_of(recipe: Recipe, *, said: bool) -> None:
    graph, plan = api.quantize(graph_of(TEXT, w=W, small=SMALL), FEEDS, recipe, Monitor(warn=lambda _: None))
    lines = [line for _, line in report.next_steps(plan, recipe, graph, Path("m.onnx"), None)]
    assert (report.EXACT in lines) is said


@pytest.mark.parametrize(
    ("dtype", "recipe", "kept", "said"),
    [
        ("float16", Recipe(), True, True),  # a sequence keeps it from being brought to float32 meanwhile
        ("float16", Recipe(), False, False),
        ("float16", FAST, True, False),
        ("float", Recipe(), False, False),
    ],
)
def test_the_option_without_which_onnx_runtime_spoils_biases(
    dtype: str, recipe: Recipe, *, kept: bool, said: bool, tmp_path: Path
) -> None:
    """Zero points put -128 s into a bias, that s_x s_w divides: too many steps where the model is in float16."""
    rng = np.random.default_rng(0)
    ends = f"({dtype}[1,64,6,6] x) => ({dtype}[1,16,2,2] y, int64 n)"
    apart = "s = SequenceConstruct(x) n = SequenceLength(s)" if kept else "n = Constant<value_int = 1>()"
    text = f"{ends} {{ a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) {apart} }}"
    kind = np.float16 if dtype == "float16" else np.float32
    weights = {"w": rng.normal(size=(64, 64, 3, 3)), "b": rng.normal(size=64), "v": rng.normal(size=(16, 64, 3, 3))}
    graph = graph_of(text, 17, **{k: (0.1 * v).astype(kind) for k, v in weights.items()})
    feeds = [{"x": x[None]} for x in rng.normal(size=(24, 64, 6, 6)).astype(kind)]
    quantized, plan = api.quantize(graph, feeds, recipe)
    lines = [line for _, line in report.next_steps(plan, recipe, quantized, Path("m.onnx"), None)]
    assert (report.PLAIN in lines) is said
    quantized.save(tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    if said:
        exec(report.PLAIN, {"options": options})  # noqa: S102  what the user is told to write
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
    pairs = [(run(graph, feed)[0], session.run(None, feed)[0]) for feed in feeds[:4]]
    assert sqnr_db(*(np.stack(side) for side in zip(*pairs, strict=True))) > 30


@pytest.mark.parametrize("recipe", [FAST, Recipe(mode="weight-only"), Recipe(mode="float"), Recipe(target="ort-cpu")])
def test_a_model_with_layers_that_are_quantized_is_not_said_to_have_none(recipe: Recipe) -> None:
    assert api.make_plan(graph_of(TEXT, w=W, small=SMALL), recipe).idle == ()


def test_without_layers_there_is_nothing_to_say_of_them() -> None:
    relu = graph_of("(float[1,32] x) => (float[1,32] y) { y = Relu(x) }")
    assert api.make_plan(relu, Recipe(target="tensorrt@10+dla")).idle == ()


def test_a_model_of_which_every_layer_stays_in_float_is_told_with_the_reasons() -> None:
    graph = graph_of(TEXT, w=W, small=SMALL)
    seen = api.calibrate(graph, FEEDS, FAST)
    large = tuple(str(n.name) for n in graph.nodes if n.op_type == "MatMul")[:2]

    def told(spared: tuple[str, ...]) -> list[str]:
        said: list[str] = []
        _, plan = api.quantize(graph, replace(seen, spared=spared), FAST, Monitor(warn=said.append))
        found = [text for text in said if "NO LAYER" in text]
        assert found == [note for note in json.loads(report.plan_json(plan, FAST, seen))["notes"] if "NO LAYER" in note]
        return found

    assert told(large[:1]) == []
    (text,) = told(large)
    assert "all 3 layers stay in float (2 MatMul: left in float: in int8 it makes far more of the error" in text
    assert "; 1 MatMul: " in text
    assert "--mode weight-only" in text
