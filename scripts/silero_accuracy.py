"""What int8 changes of Silero VAD's decisions: one row a form, over synthesized speech at both sampling rates.

    .venv/bin/python scripts/silero_accuracy.py

A frame flips when its probability crosses 0.5; a stretch of speech moves when it begins or ends in another frame. The
speech for calibration and for judging come from other seeds.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

import onnxq

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from speech import speech
from test_silero import FRAME, RECIPES, heard, segments, sqnr

MODEL = Path(__file__).parents[1] / ".cache" / "models" / "silero" / "silero_vad.onnx"
SPECTRUM = onnxq.Recipe(target="ort-cpu", rules=(onnxq.Rule(ops=("Conv",), quantize=True),))
FORMS = {**RECIPES, "ort-cpu, the layers around the spectrum too": (SPECTRUM, True, 0.0)}
SECONDS, CALIBRATION, JUDGED = 12, (1, 2), (11, 12, 13)


def shift(expected: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> int | None:
    """How far a stretch of speech moved, in frames; None when there are others than there were."""
    one, other = np.array(segments(expected)), np.array(segments(got))
    return int(np.abs(one - other).max()) if one.shape == other.shape else None


def main() -> None:
    """Print the table."""
    data = [f for rate in FRAME for s in CALIBRATION for f in heard(MODEL, speech(SECONDS, rate, s), rate)[1][::3]]
    audio = [(rate, speech(SECONDS, rate, seed)) for rate in FRAME for seed in JUDGED]
    expected = [heard(MODEL, samples, rate)[0] for rate, samples in audio]
    print("| form | int8 layers | MB | frames that flip | their probability in float | moved by, frames | SQNR dB |")
    print("|---|---|---|---|---|---|---|")
    print(f"| float | | {MODEL.stat().st_size / 1e6:.2f} | of {sum(map(len, expected))} | | | |")
    for name, (recipe, calibrated, _) in FORMS.items():
        made, plan = onnxq.quantize(MODEL, data if calibrated else None, recipe)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vad.onnx"
            made.save(path)
            size = path.stat().st_size / 1e6
            got = [heard(path, samples, rate)[0] for rate, samples in audio]
        wanted, found = np.concatenate(expected), np.concatenate(got)
        flips = wanted[(wanted > 0.5) != (found > 0.5)]
        layers = sum(d.quantized for d in plan.decisions if d.op_type in ("Conv", "LSTM"))
        near = f"{flips.min():.2f} to {flips.max():.2f}" if flips.size else ""
        moved = [shift(a, b) for a, b in zip(expected, got, strict=True)]
        far = "other stretches" if None in moved else str(max(m for m in moved if m is not None))
        each = [sqnr(a, b) for a, b in zip(expected, got, strict=True)]
        print(
            f"| {name} | {layers} | {size:.2f} | {flips.size} | {near} | {far} | {min(each):.1f} to {max(each):.1f} |"
        )


if __name__ == "__main__":
    main()
