"""The models that the benchmarks measure: where each lies, what calibrates it, what judges it, and how.

Nothing here but numpy: other tools import it inside their own environments. All test data that there is of a model
judges, and none of it calibrates. `make models` brings the models of .cache/models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scores

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Feed = dict[str, npt.NDArray[Any]]

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / ".cache" / "models"
LENGTH = 128  # tokens of a text
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
UNSEEN = 1000  # the seeds of invented samples that judge start here; those of calibration at 0


@dataclass(frozen=True)
class Subject:
    """A model and its data.

    Attributes:
        path: the float model.
        calibration: how many -> feeds to calibrate on, the same for every tool.
        unseen: feeds to judge on.
        measure: (feeds, the float model's outputs, another's) -> name of a measure -> number. Outputs are a list of
            arrays for each feed. The first is the SQNR in dB, the second, if any, the score of the task.
        invented: weights and data are random: only the SQNR means something, and not much.
    """

    path: Path
    calibration: Callable[[int], list[Feed]]
    unseen: Callable[[], list[Feed]]
    measure: scores.Measure
    invented: bool = False


def stacked(feeds: list[Feed]) -> Feed:
    """All feeds as one array an input, texts padded with zeros to LENGTH tokens: for tools that take one shape only."""
    return {key: np.concatenate([_padded(f[key]) if key in TOKENS else f[key] for f in feeds]) for key in feeds[0]}


def _padded(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    cut = ids[:, :LENGTH]
    return np.pad(cut, ((0, 0), (0, LENGTH - cut.shape[1])))


# -- data ------------------------------------------------------------------------------------------------------------


def _npz(path: Path) -> Feed:
    with np.load(path) as data:
        return {key: data[key] for key in data.files}


def _batches(table: Feed, size: int) -> list[Feed]:
    feed = {key: array for key, array in table.items() if key != "label"}
    rows = len(next(iter(feed.values())))
    return [{key: array[i : i + size] for key, array in feed.items()} for i in range(0, rows, size)]


def _rows(path: Path, size: int = 1) -> Callable[[int], list[Feed]]:
    """Calibration from a file of stacked samples, so many samples a feed."""
    return lambda count: _batches(_npz(path), size)[:count]


def _folder(path: Path) -> Callable[[int], list[Feed]]:
    return lambda count: [_npz(file) for file in sorted(path.glob("*.npz"))[:count]]


def _table(path: Path, size: int) -> Callable[[], list[Feed]]:
    """All samples of a file, so many a feed."""
    return lambda: _batches(_npz(path), size)


def _images(seed: int) -> Feed:
    """Coarse noise with a little fine noise, float32 [1, 3, 224, 224]."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(1, 3, 8, 8)).repeat(28, axis=2).repeat(28, axis=3)
    return {"image": (coarse + 0.1 * rng.normal(size=coarse.shape)).astype(np.float32)}


def _ids(seed: int) -> Feed:
    ids = np.random.default_rng(seed).integers(1000, 20000, (1, LENGTH))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def _voice(seed: int) -> Feed:
    """Tones of a voice's pitch and loudness with a little noise: 4 frames of 576 at 16 kHz."""
    rng = np.random.default_rng(seed)
    t = np.arange(576) / 16000
    tones = np.sin(2 * np.pi * rng.uniform(80, 400, (4, 1)) * t) * rng.uniform(0, 0.5, (4, 1))
    state = {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}
    return {"input": (tones + 0.01 * rng.normal(size=(4, 576))).astype(np.float32), **state}


# -- the table -------------------------------------------------------------------------------------------------------


def _committed(name: str, size: int) -> Subject:
    folder = ROOT / "models" / name
    measure = scores.top1(folder / "test.npz")
    return Subject(folder / f"{name}.onnx", _rows(folder / "calib.npz", 8), _table(folder / "test.npz", size), measure)


def _minilm(name: str) -> Subject:
    folder = MODELS / "minilm"

    def unseen() -> list[Feed]:
        return [f for part in ("queries", "passages") for f in _table(folder / "eval" / f"{part}.npz", 32)()]

    return Subject(folder / f"{name}.onnx", _folder(folder / "calib"), unseen, scores.retrieval)


def _ocr(name: str, measure: scores.Measure) -> Subject:
    folder = MODELS / "ocr"
    test = _table(folder / f"{name}_test.npz", 8)
    return Subject(folder / f"{name}.onnx", _rows(folder / f"{name}_calib.npz"), test, measure)


def _seeded(path: Path, make: Callable[[int], Feed], judging: int, measure: scores.Measure) -> Subject:
    """Made-up samples: those of the seeds from 0 on calibrate, `judging` of the seeds from UNSEEN on judge."""

    def calibration(count: int) -> list[Feed]:
        if count > UNSEEN:
            raise SystemExit(f"{path.name}: at most {UNSEEN} samples calibrate; the seeds behind them judge")
        return [make(seed) for seed in range(count)]

    return Subject(path, calibration, lambda: [make(UNSEEN + i) for i in range(judging)], measure)


def _random(name: str, make: Callable[[int], Feed], measure: scores.Measure) -> Subject:
    return replace(_seeded(MODELS / f"{name}.onnx", make, 8, measure), invented=True)


TOPICS = MODELS / "topics"
SUBJECTS = {
    "digits": _committed("digits", 450),
    "glyphs": _committed("glyphs", 250),
    "ocr_cls": _ocr("ocr_cls", scores.top1(MODELS / "ocr" / "ocr_cls_test.npz")),
    "ocr_det": _ocr("ocr_det", scores.decisions(0.3)),
    "ocr_rec": _ocr("ocr_rec", scores.characters(MODELS / "ocr" / "ocr_rec_test.npz")),
    "silero": _seeded(MODELS / "silero" / "silero_vad_16k_sequence.onnx", _voice, 250, scores.decisions(0.5)),
    "minilm": _minilm("minilm"),
    "minilm_op14": _minilm("minilm_op14"),
    "minilm_dynamo": _minilm("minilm_dynamo"),
    "topics": Subject(
        TOPICS / "topics.onnx",
        _folder(TOPICS / "calib"),
        _table(TOPICS / "test.npz", 50),
        scores.top1(TOPICS / "test.npz"),
    ),
    "resnet50": _random("resnet50", _images, scores.agreement),
    "mobilenet_v2": _random("mobilenet_v2", _images, scores.agreement),
    "vit_b16": _random("vit_b16", _images, scores.agreement),
    "bert_base": _random("bert_base", _ids, scores.hidden),
}
