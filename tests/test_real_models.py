"""The main job on models that somebody else made: each quantizes, is legal for TensorRT, and runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from legality import assert_legal
from onnx.backend.test.loader import load_model_tests
from real_models import DIGITS, GLYPHS, LIGHT, cached

import onnxq
from onnxq import api, intake
from onnxq.checks import check
from onnxq.data import input_specs
from onnxq.report import summarize
from onnxq.runtime import Session

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from onnxq.plan import Plan


def quantized(model: Path, data: object, tmp_path: Path, recipe: onnxq.Recipe) -> tuple[Path, Plan]:
    """Quantize, write (with onnx.checker's full check), hold the rules P1-P22, and load with ORT's defaults."""
    graph, plan = onnxq.quantize(model, data, recipe)
    output = tmp_path / "out.onnx"
    api.export(graph, output)
    assert_legal(onnx.load(output))
    Session(output)
    assert all(d.reason for d in plan.decisions)
    return output, plan


@pytest.mark.parametrize("float_share", [0.0, None])
@pytest.mark.parametrize("calibrator", ["auto", "entropy", "minmax", "mse", "percentile"])
def test_digits_keeps_its_accuracy(calibrator: str, float_share: float | None, tmp_path: Path) -> None:
    recipe = onnxq.Recipe(calibrator=calibrator, float_share=float_share)
    output, plan = quantized(DIGITS / "digits.onnx", DIGITS / "calib.npz", tmp_path, recipe)
    with np.load(DIGITS / "test.npz") as test:
        images, labels = test["image"], test["label"]
    before, after = (
        float((Session(model).run({"image": images})[0].argmax(1) == labels).mean())
        for model in (DIGITS / "digits.onnx", output)
    )
    assert before >= 0.98
    assert after >= before - 0.005
    if float_share == 0.0:
        assert summarize(plan).int8 == 14  # all but the last Gemm, 32 -> 10
    assert summarize(plan).mac_share >= 0.95  # by default a few cheap layers stay in float
    assert output.stat().st_size < (DIGITS / "digits.onnx").stat().st_size / 2.6  # nodes and metadata count


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_glyphs_keeps_its_accuracy(target: str, tmp_path: Path) -> None:
    recipe = onnxq.Recipe(target=target, max_samples=128)
    if target == "tensorrt":
        recipe = replace(recipe, high_precision="fp32")
    graph, plan = onnxq.quantize(GLYPHS / "glyphs.onnx", GLYPHS / "calib.npz", recipe)
    api.export(graph, tmp_path / "out.onnx")
    with np.load(GLYPHS / "test.npz") as test:
        images, labels = test["image"][:1000], test["label"][:1000]
    before, after = (
        float((Session(model).run({"image": images})[0].argmax(1) == labels).mean())
        for model in (GLYPHS / "glyphs.onnx", tmp_path / "out.onnx")
    )
    assert before >= 0.95
    assert after >= before - 0.005
    assert not [n for n in graph.nodes if n.op_type == "BatchNormalization"]
    assert summarize(plan).mac_share >= (0.95 if target == "tensorrt" else 0.85)  # gates and costly layers are float


@pytest.mark.parametrize("form", ["dq", "qdq"])
def test_both_weight_forms_are_legal_and_equal(form: str, tmp_path: Path) -> None:
    recipe = onnxq.Recipe(weight_form=form)
    output, _ = quantized(DIGITS / "digits.onnx", DIGITS / "calib.npz", tmp_path, recipe)
    other, _ = onnxq.quantize(DIGITS / "digits.onnx", DIGITS / "calib.npz")
    errors = onnxq.compare(other, output, DIGITS / "calib.npz").errors
    assert all(e.sqnr_db > 40 for e in errors)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("bvlc_alexnet", 0.85),  # the rest: three Gemms of one row; grouped convolutions stay
        ("densenet121", 0.99),
        ("inception_v1", 0.99),
        ("inception_v2", 0.99),
        ("resnet50", 0.99),
        ("shufflenet", 0.70),  # groups of 34 channels, no multiple of 4
        ("squeezenet", 0.99),
        ("vgg19", 0.98),
        ("zfnet512", 0.85),
    ],
)
def test_light_models(name: str, share: float, tmp_path: Path) -> None:
    output, plan = quantized(LIGHT / f"light_{name}.onnx", "random:1", tmp_path, onnxq.Recipe(calibrator="minmax"))
    assert plan.int8_share() >= share
    assert onnx.load(output).opset_import[0].version == 19  # the first with scales in float16


EFFORTS = {"minilm": "balanced"}
"""The default is for one of the three that are one model: it takes its time."""


@pytest.mark.parametrize("name", ["minilm", "minilm_op14", "minilm_dynamo"])
def test_minilm(name: str, tmp_path: Path) -> None:
    model = cached(f"minilm/{name}.onnx")
    output, plan = quantized(model, model.parent / "calib", tmp_path, onnxq.Recipe(effort=EFFORTS.get(name, "fast")))
    linear = [d for d in plan.decisions if d.op_type in ("MatMul", "Gemm") and "attention" not in d.reason]
    assert len(linear) == 36
    assert all(d.quantized for d in linear)

    queries, passages = (_embed(model, model.parent / "eval" / f"{n}.npz") for n in ("queries", "passages"))
    queries8, passages8 = (_embed(output, model.parent / "eval" / f"{n}.npz") for n in ("queries", "passages"))
    tokens = np.concatenate([queries[1], passages[1]]), np.concatenate([queries8[1], passages8[1]])
    cosine = np.sum(tokens[0] * tokens[1], axis=1) / np.prod([np.linalg.norm(t, axis=1) for t in tokens], axis=0)
    assert cosine.mean() >= 0.97
    assert _retrieved(queries8[0], passages8[0]) >= _retrieved(queries[0], passages[0]) - 0.02


@pytest.mark.parametrize(
    "name", ["silero_vad_16k_op15", "silero_vad_half", "silero_vad_16k_sequence", "silero_vad_openvino_16k"]
)
def test_silero(name: str, tmp_path: Path) -> None:
    model = cached(f"silero/{name}.onnx")
    inputs = {i.name for i in onnx.load(model).graph.input}
    rows = 4 if name.endswith("sequence") else 1
    shapes = f"input:{rows}x576" + (f",state:2x{rows}x128" if "state" in inputs else "")
    quiet = np.random.default_rng(0)
    feeds = [_audio(quiet, rows, inputs) for _ in range(8)]
    _, plan = quantized(model, feeds, tmp_path, onnxq.Recipe(shapes=shapes, effort="fast"))
    assert summarize(plan).int8 >= 3


@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_op18_ifless"])
def test_silero_inside_an_if_is_refused_for_tensorrt_with_the_reason(name: str) -> None:
    with pytest.raises(onnxq.ModelError, match="nothing to quantize") as caught:
        onnxq.quantize(cached(f"silero/{name}.onnx"))
    assert "TensorRT runs bodies in float unless asked" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "shapes", "share"),
    [
        ("resnet_small", "", 0.95),
        ("mobilenet_small", "", 0.97),
        ("vit_small", "", 0.95),
        ("bert_small", "input_ids:1x16,attention_mask:1x16,token_type_ids:1x16", 0.95),
        ("resnet50", "", 0.99),
        ("mobilenet_v2", "", 0.99),
        ("vit_b16", "", 0.95),
        ("bert_base", "input_ids:1x16,attention_mask:1x16,token_type_ids:1x16", 0.95),
    ],
)
def test_architectures(name: str, shapes: str, share: float, tmp_path: Path) -> None:
    _, plan = quantized(cached(f"{name}.onnx"), "random:2", tmp_path, onnxq.Recipe(shapes=shapes))
    assert plan.int8_share() >= share


SMALL = ("resnet_small", "mobilenet_small", "vit_small", "bert_small")
TOKENS = "input_ids:1x16,attention_mask:1x16,token_type_ids:1x16"


@pytest.mark.parametrize("target", ["tensorrt@8", "tensorrt@10", "tensorrt@11"])
@pytest.mark.parametrize("name", ["digits", "light_squeezenet", "light_shufflenet", "light_inception_v1", *SMALL])
def test_onnxq_check_finds_no_error_in_what_onnxq_writes(name: str, target: str, tmp_path: Path) -> None:
    """Nor a warning, but of operators that have no int8 form (P30) and of what float16 cannot hold (P32).

    On digits a zero point lets the last pool write float, for an addition before its Q (P23).
    """
    if name == "digits":
        model, data = DIGITS / "digits.onnx", str(DIGITS / "calib.npz")
    else:
        model, data = LIGHT / f"{name}.onnx" if name.startswith("light") else cached(f"{name}.onnx"), "random:1"
    shapes = TOKENS if name == "bert_small" else ""
    recipe = onnxq.Recipe(target=target, shapes=shapes, calibrator="minmax")
    output = tmp_path / "out.onnx"
    api.export(onnxq.quantize(model, data, recipe)[0], output)
    report = check(output, target)
    assert [str(f) for f in report.findings if f.severity == "E"] == []
    allowed = {"P30", *(["P32"] if target == "tensorrt@11" else []), *(["P23"] if name == "digits" else [])}
    assert {f.id for f in report.findings if f.severity == "W"} <= allowed


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("digits", 0.1),
        ("minilm/minilm", 0.1),
        ("resnet_small", 0.1),
        ("mobilenet_small", 0.3),  # 3 dB in float32: random weights
        ("vit_small", 0.3),  # random weights: 46 % of the error is the same for all inputs, so few roundings decide
        ("bert_small", 1.5),  # 56 dB in float32: there float16's own roundings, at 61 dB, begin to show
        # Of the following only few samples are run: so much is the luck of the roundings.
        ("silero/silero_vad_16k_op15", 0.2),
        ("silero/silero_vad_half", 0.2),
        ("silero/silero_vad_16k_sequence", 0.2),
        ("silero/silero_vad_openvino_16k", 0.2),
        ("resnet50", 0.3),
        ("mobilenet_v2", 0.3),
        ("vit_b16", 0.3),
        ("bert_base", 0.3),
    ],
)
def test_float16_is_as_good_as_float32(name: str, loss: float) -> None:
    """SQNR against the float model, in dB, of all outputs together."""
    model, data, feeds, shapes = _comparison(name)
    expected = _outputs(model, feeds)
    sqnr = {}
    for high_precision in ("fp32", "fp16"):
        recipe = onnxq.Recipe(high_precision=high_precision, shapes=shapes, effort="fast")
        made = onnxq.quantize(model, data, recipe)[0].to_proto().SerializeToString()
        noise = np.sum((_outputs(made, feeds) - expected) ** 2)
        sqnr[high_precision] = 10 * np.log10(np.sum(expected**2) / noise)
    assert sqnr["fp16"] > sqnr["fp32"] - loss, sqnr


def _comparison(name: str) -> tuple[Path, Any, list[dict[str, npt.NDArray[Any]]], str]:
    """(Model, calibration data, feeds to compare with, shapes)."""
    if name == "digits":
        with np.load(DIGITS / "test.npz") as test:
            feeds = [{"image": test["image"]}]
        return DIGITS / "digits.onnx", DIGITS / "calib.npz", feeds, ""
    model = cached(f"{name}.onnx")
    rng = np.random.default_rng(0)
    inputs = {i.name for i in onnx.load(model, load_external_data=False).graph.input}
    if name.startswith("minilm"):
        with np.load(model.parent / "eval" / "passages.npz") as arrays:
            parts = {n: arrays[n][:64] for n in inputs}
        return (
            model,
            model.parent / "calib",
            [{n: x[i : i + 16] for n, x in parts.items()} for i in range(0, 64, 16)],
            "",
        )
    if name.startswith("silero"):
        rows = 4 if name.endswith("sequence") else 1
        shapes = f"input:{rows}x576" + (f",state:2x{rows}x128" if "state" in inputs else "")
        audio = [_audio(rng, rows, inputs) for _ in range(308)]
        return model, audio[:8], audio[8:], shapes
    count = 60 if name.endswith("small") else 6
    if name.startswith("bert"):
        words = [{n: np.ones((1, 16), np.int64) for n in inputs} for _ in range(count)]
        ids = rng.integers(0, 500, (count, 1, 16))
        return (
            model,
            "random:2",
            [w | {"input_ids": i, "token_type_ids": 0 * i} for w, i in zip(words, ids, strict=True)],
            TOKENS,
        )
    spec = input_specs(intake.load(model))[0]
    sizes = [d if isinstance(d, int) else 1 for d in spec.shape or ()]
    return model, "random:2", [{spec.name: rng.normal(size=sizes).astype(np.float32)} for _ in range(count)], ""


def _outputs(model: Path | bytes, feeds: list[dict[str, npt.NDArray[Any]]]) -> npt.NDArray[np.float64]:
    session = Session(model)
    return np.concatenate([np.ravel(out).astype(np.float64) for feed in feeds for out in session.run(feed)])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # making onnx's cases overflows on purpose
@pytest.mark.parametrize("kind", ["node", "simple", "pytorch-operator", "pytorch-converted"])
def test_nothing_in_onnx_backend_tests_crashes(kind: str) -> None:
    """Each is quantized or refused with a reason; nothing else comes out."""
    cases = load_model_tests(kind=kind)
    done = 0
    for case in cases:
        model = case.model if case.model is not None else _stored(case.model_dir)
        try:
            onnxq.quantize(model, "random:1", onnxq.Recipe(calibrator="minmax"))
        except onnxq.PassError:
            raise
        except onnxq.OnnxqError as error:
            assert error.message  # noqa: PT017  any refusal will do, but it must say something
        done += 1
    assert done == len(cases) > 0


def _stored(folder: str | None) -> onnx.ModelProto:
    return onnx.load(f"{folder}/model.onnx")


def _audio(rng: np.random.Generator, rows: int, inputs: set[str]) -> dict[str, npt.NDArray[Any]]:
    t = np.arange(576) / 16000
    tones = np.sin(2 * np.pi * rng.uniform(80, 400, (rows, 1)) * t) * rng.uniform(0, 0.5, (rows, 1))
    feed: dict[str, npt.NDArray[Any]] = {"input": (tones + 0.01 * rng.normal(size=(rows, 576))).astype(np.float32)}
    if "state" in inputs:
        feed["state"] = np.zeros((2, rows, 128), np.float32)
    feed |= {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c") if name in inputs}
    if "sr" in inputs:
        feed["sr"] = np.array(16000, np.int64)
    return feed


def _embed(model: Path, data: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(sentence embeddings, unit length; embeddings of all real tokens)."""
    session = Session(model)
    with np.load(data) as arrays:
        feed = {name: arrays[name][:128] for name in session.inputs}
        mask = arrays["attention_mask"][:128]
    hidden = np.concatenate(
        [session.run({k: v[i : i + 16] for k, v in feed.items()}, session.outputs[:1])[0] for i in range(0, 128, 16)]
    )
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True), hidden[mask > 0]


def _retrieved(queries: npt.NDArray[Any], passages: npt.NDArray[Any]) -> float:
    return float(np.mean((queries @ passages.T).argmax(axis=1) == np.arange(len(queries))))
