"""Where NVIDIA ModelOpt puts Q/DQ pairs and onnxq does not, and the other way round, as a table for docs/placement.md.

    python scripts/compare_placement.py --peer        quantize with ModelOpt, in its throw-away environment
    python scripts/compare_placement.py               quantize with onnxq, compare, print the tables
    python scripts/compare_placement.py minilm        one of the models; with --uses every use that differs

Models: scripts/export_architectures.py, scripts/export_minilm.py, models/digits. Both tools get the same copy of each, with
its free dimensions fixed and LayerNormalization as one node, in .cache/peers/placement; the originals are read only.
A use is one input of one node. It counts as quantized when a per-tensor Q/DQ pair makes it. Both run with fp32 for the rest.
Ranges of the random architectures are minmax, from 4 invented samples; of digits and MiniLM each tool's default, from the
calibration set, with the SQNR of all outputs on held-out data.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.graph import Graph, Node
    from onnxq.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
MODELS, DIGITS, OUT = ROOT / ".cache" / "models", ROOT / "models" / "digits", ROOT / ".cache" / "peers" / "placement"
LENGTH, BATCH, SAMPLES = 128, 4, 64
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
Feed = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Subject:
    """A model: its file, the sizes of one batch, and whether there is real data for it."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    real: bool = False


IMAGES = {"image": (BATCH, 3, 224, 224)}
TEXTS = dict.fromkeys(TOKENS, (BATCH, LENGTH))
SUBJECTS = {
    "digits": Subject(DIGITS / "digits.onnx", {"image": (64, 1, 8, 8)}, real=True),
    "resnet50": Subject(MODELS / "resnet50.onnx", IMAGES),
    "mobilenet_v2": Subject(MODELS / "mobilenet_v2.onnx", IMAGES),
    "vit_b16": Subject(MODELS / "vit_b16.onnx", IMAGES),
    "bert_base": Subject(MODELS / "bert_base.onnx", TEXTS),
    "minilm": Subject(MODELS / "minilm" / "minilm.onnx", TEXTS, real=True),
}


# -- data ---------------------------------------------------------------------------------------------------


def calibration(name: str) -> Feed:
    """All calibration samples, stacked: calib of digits and MiniLM, invented ones otherwise."""
    if name == "digits":
        return _read(DIGITS / "calib.npz")
    if name == "minilm":
        return _stacked([_read(p) for p in sorted((MODELS / "minilm" / "calib").glob("*.npz"))[:SAMPLES]])
    rng = np.random.default_rng(20261120)
    if name == "bert_base":
        ids = rng.integers(1000, 20000, (BATCH, LENGTH))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {"image": rng.normal(size=IMAGES["image"]).astype(np.float32)}


def held_out(name: str) -> Feed:
    """Samples that no tool was calibrated on."""
    if name == "digits":
        feed = _read(DIGITS / "test.npz")
        return {"image": feed["image"][:256]}
    return {k: v[:SAMPLES] for k, v in _stacked([_read(MODELS / "minilm" / "eval" / "passages.npz")]).items()}


def batches(name: str, feed: Feed) -> Iterator[Feed]:
    """The samples in whole batches of the subject's size."""
    size = next(iter(SUBJECTS[name].shapes.values()))[0]
    count = len(next(iter(feed.values())))
    for start in range(0, count - size + 1, size):
        yield {k: v[start : start + size] for k, v in feed.items()}


def _read(path: Path) -> Feed:
    with np.load(path) as data:
        return {k: data[k] for k in data.files}


def _stacked(feeds: list[Feed]) -> Feed:
    """Texts cut or padded with zeros to LENGTH tokens; the mask is zero there."""
    padded = [
        {k: np.pad(f[k][:, :LENGTH], ((0, 0), (0, max(0, LENGTH - f[k].shape[1])))) for k in TOKENS} for f in feeds
    ]
    return {k: np.concatenate([f[k] for f in padded]) for k in TOKENS}


def fixed(name: str) -> Path:
    """A copy of the model whose inputs have the subject's sizes."""
    import onnx

    path = OUT / f"{name}.float.onnx"
    if not path.exists():
        model = onnx.load(SUBJECTS[name].path)
        for value in model.graph.input:
            for dim, size in zip(value.type.tensor_type.shape.dim, SUBJECTS[name].shapes[value.name], strict=True):
                dim.Clear()
                dim.dim_value = size
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        del model.graph.value_info[:]
        onnx.save_model(onnx.shape_inference.infer_shapes(model), path)
    return path


# -- the two tools ------------------------------------------------------------------------------------------


def peer(name: str) -> None:
    """Quantize with ModelOpt; runs inside its environment, on a copy of the copy: it rewrites its input."""
    import shutil

    from modelopt.onnx.quantization import quantize

    subject = SUBJECTS[name]
    source = OUT / f"{name}.peer_input.onnx"
    shutil.copyfile(fixed(name), source)
    quantize(
        str(source),
        quantize_mode="int8",
        calibration_data=calibration(name),
        calibration_method="entropy" if subject.real else "max",
        calibration_shapes=",".join(f"{k}:{'x'.join(map(str, v))}" for k, v in subject.shapes.items()),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(OUT / f"{name}.modelopt.onnx"),
    )
    source.unlink()
    print(f"{name}: ModelOpt {version('nvidia-modelopt')}, ONNX Runtime {version('onnxruntime')}")
