"""Accuracy by calibrator or by effort: one row a measure, one column a choice, and the float model against itself.

Statistics are collected once a model and effort.

    python scripts/bench_accuracy.py [--efforts] [NAME ...]

Names: digits, minilm (its other exports: minilm_op14, minilm_dynamo), silero and the models with random weights:
resnet50, mobilenet_v2, vit_b16, bert_base. Of those only the SQNR of the outputs means anything, and random data
with random weights has none of the outliers that set calibrators apart in trained transformers.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.console import Console  # noqa: TID251  a script, outside the engine
from rich.table import Table  # noqa: TID251  likewise

from onnxq import Recipe, api
from onnxq.recipe import EFFORTS
from onnxq.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    Floats = npt.NDArray[np.float32]
    Feed = dict[str, npt.NDArray[Any]]
    Judge = Callable[[Path, Path], dict[str, float]]

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / ".cache" / "models"
DIGITS = ROOT / "models" / "digits"
CALIBRATORS = ("auto", "entropy", "minmax", "mse", "percentile")
FLOAT32 = Recipe(high_precision="fp32")  # what float16 adds is another question
BATCH = 32
UNSEEN = 7  # seed of the random data that judges; calibration has seed 0


def sqnr(reference: Floats, other: Floats) -> float:
    """10 log10(sum reference² / sum (reference - other)²), in dB."""
    noise = float(np.square(reference.astype(np.float64) - other).sum())
    return 10 * float(np.log10(np.square(reference.astype(np.float64)).sum() / noise)) if noise else float("inf")


def judge_digits(reference: Path, model: Path) -> dict[str, float]:
    """Top-1 accuracy on the test images, and SQNR of the logits."""
    with np.load(DIGITS / "test.npz") as data:
        images, labels = data["image"], data["label"]
    exact, found = (Session(m, as_written=True).run({"image": images})[0] for m in (reference, model))
    return {"top-1 %": 100 * float((found.argmax(axis=1) == labels).mean()), "SQNR dB": sqnr(exact, found)}


def judge_minilm(reference: Path, model: Path) -> dict[str, float]:
    """How near tokens stay, and how often a sentence finds its own continuation among all."""
    cosines, hidden, pooled = [], [], []
    for name in ("queries", "passages"):
        with np.load(MODELS / "minilm" / "eval" / f"{name}.npz") as data:
            feed = {key: data[key] for key in data.files}
        exact, found = (_in_batches(m, feed) for m in (reference, model))
        real = feed["attention_mask"].astype(bool)
        cosines.append(_cosine(exact[real], found[real]))
        hidden.append((exact[real], found[real]))
        pooled.append(_pool(found, real))
    near = np.concatenate(cosines)
    best = (pooled[0] @ pooled[1].T).argmax(axis=1)
    return {
        "token cosine, mean": float(near.mean()),
        "token cosine, 1st percentile": float(np.percentile(near, 1)),
        "retrieval top-1 %": 100 * float((best == np.arange(best.size)).mean()),
        "SQNR dB": sqnr(*(np.concatenate(side) for side in zip(*hidden, strict=True))),
    }


def judge_outputs(feeds: list[Feed]) -> Judge:
    """SQNR of every output, on these feeds."""

    def judge(reference: Path, model: Path) -> dict[str, float]:
        exact, found = (Session(m, as_written=True) for m in (reference, model))
        pairs = [(exact.run(feed, exact.outputs), found.run(feed, exact.outputs)) for feed in feeds]
        return {
            f"{name} SQNR dB": sqnr(*(np.stack([side[i] for side in sides]) for sides in zip(*pairs, strict=True)))
            for i, name in enumerate(exact.outputs)
        }

    return judge


def _in_batches(model: Path, feed: Feed) -> Floats:
    session = Session(model, as_written=True)
    starts = range(0, len(feed["input_ids"]), BATCH)
    parts = [session.run({name: a[i : i + BATCH] for name, a in feed.items()})[0] for i in starts]
    return np.concatenate(parts)


def _pool(hidden: Floats, real: npt.NDArray[np.bool_]) -> Floats:
    weights = real[:, :, None].astype(np.float32)
    mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    unit: Floats = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return unit


def _cosine(a: Floats, b: Floats) -> Floats:
    cosine: Floats = (a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return cosine


def _audio(seed: int, samples: int) -> list[Feed]:
    """Tones of a voice's pitch and loudness with a little noise: 4 frames of 576 at 16 kHz."""
    rng = np.random.default_rng(seed)
    t = np.arange(576) / 16000
    feeds: list[Feed] = []
    for _ in range(samples):
        tones = np.sin(2 * np.pi * rng.uniform(80, 400, (4, 1)) * t) * rng.uniform(0, 0.5, (4, 1))
        state = {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}
        feeds.append({"input": (tones + 0.01 * rng.normal(size=(4, 576))).astype(np.float32), **state})
    return feeds


def _images(samples: int) -> list[Feed]:
    rng = np.random.default_rng(UNSEEN)
    return [{"image": rng.standard_normal((1, 3, 224, 224)).astype(np.float32)} for _ in range(samples)]


def _tokens(samples: int) -> list[Feed]:
    rng = np.random.default_rng(UNSEEN)
    names = ("input_ids", "attention_mask", "token_type_ids")
    return [{name: rng.integers(0, 2, (1, 128)) for name in names} for _ in range(samples)]


def case(name: str) -> tuple[Path, object, Recipe, Judge]:
    """The model of that name, its calibration data, what its recipe needs, and how it is judged."""
    if name == "digits":
        return DIGITS / "digits.onnx", DIGITS / "calib.npz", FLOAT32, judge_digits
    if name.startswith("minilm"):
        return MODELS / "minilm" / f"{name}.onnx", MODELS / "minilm" / "calib", FLOAT32, judge_minilm
    if name == "silero":
        path = MODELS / "silero" / "silero_vad_16k_sequence.onnx"
        return path, _audio(0, 16), replace(FLOAT32, shapes="input:4x576"), judge_outputs(_audio(UNSEEN, 16))
    if name == "bert_base":
        shapes = "input_ids:1x128,attention_mask:1x128,token_type_ids:1x128"
        return MODELS / "bert_base.onnx", "random:16", replace(FLOAT32, shapes=shapes), judge_outputs(_tokens(8))
    return MODELS / f"{name}.onnx", "random:16", FLOAT32, judge_outputs(_images(8))


def effort_rows(name: str) -> dict[str, list[float]]:
    """Measure -> one number for the float model and one for each effort, and the seconds each took."""
    model, data, recipe, judge = case(name)
    found = {measure: [number] for measure, number in judge(model, model).items()}
    seconds = [0.0]
    with tempfile.TemporaryDirectory() as folder:
        for effort in EFFORTS:
            begun = time.perf_counter()
            quantized, _ = api.quantize(model, data, replace(recipe, effort=effort))
            seconds.append(time.perf_counter() - begun)
            output = Path(folder) / f"{effort}.onnx"
            api.export(quantized, output)
            for measure, number in judge(model, output).items():
                found[measure].append(number)
    return found | {"seconds": seconds}


def rows(name: str) -> dict[str, list[float]]:
    """Measure -> one number for the float model and one for each calibrator."""
    model, data, recipe, judge = case(name)
    ready = api.prepared(model, recipe)
    statistics = api.observe(ready, data)
    found = {measure: [number] for measure, number in judge(model, model).items()}
    with tempfile.TemporaryDirectory() as folder:
        for calibrator in CALIBRATORS:
            chosen = replace(ready, recipe=replace(recipe, calibrator=calibrator))
            output = Path(folder) / f"{calibrator}.onnx"
            api.export(api.lowered(chosen, statistics)[0], output)
            for measure, number in judge(model, output).items():
                found[measure].append(number)
    return found


def main() -> None:
    """Print the table of the models named, or of all."""
    efforts = "--efforts" in sys.argv
    names = [a for a in sys.argv[1:] if a != "--efforts"] or [
        "digits",
        "minilm",
        "silero",
        "resnet50",
        "mobilenet_v2",
        "vit_b16",
        "bert_base",
    ]
    table = Table("model", "measure", "float", *(EFFORTS if efforts else CALIBRATORS))
    for name in names:
        for measure, numbers in (effort_rows if efforts else rows)(name).items():
            digits = 5 if "cosine" in measure else 2
            table.add_row(name, measure, *(f"{number:.{digits}f}" for number in numbers))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
