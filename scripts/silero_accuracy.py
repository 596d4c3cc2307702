"""What int8 changes of Silero VAD's decisions: one row a form, over speech at both sampling rates.

    .venv/bin/python scripts/silero_accuracy.py [--speech FOLDER --calibration FOLDER] [--minutes 5] [--noise 20]

Without folders the speech is synthesized, for calibration and for judging from other seeds. With folders it is their
recordings (mono PCM16 .wav of any one rate, in the order of their names) with pauses between. A frame flips when its
probability crosses 0.5. What a user of the model decides by are the stretches of speech that its own utilities cut out
(`get_speech_timestamps`, defaults: begins at 0.5, ends below 0.35, 250 ms of speech and 100 ms of silence at least).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

import onnxq

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from speech import speech
from test_silero import FRAME, RECIPES, RELEASE, THRESHOLD, heard, sqnr

MODEL = Path(__file__).parents[1] / ".cache" / "models" / "silero" / "silero_vad.onnx"
SPECTRUM = onnxq.Recipe(target="ort-cpu", rules=(onnxq.Rule(ops=("Conv",), quantize=True),))
FORMS = {**RECIPES, "ort-cpu, the layers around the spectrum too": (SPECTRUM, True, 0.0)}
SECONDS, CALIBRATION, JUDGED = 12, (1, 2), (11, 12, 13)
SPEECH, SILENCE = 250 / 32, 100 / 32
"""The shortest speech and silence, in frames of 32 ms."""


def recorded(folder: Path, seconds: float, rate: int, noise: float) -> npt.NDArray[np.float32]:
    """Recordings with pauses of 0.3 to 1.5 s between, and white noise so many dB below the loudest tenth of them."""
    rng = np.random.default_rng(0)
    parts: list[npt.NDArray[np.float32]] = []
    for path in sorted(folder.rglob("*.wav")):
        with wave.open(str(path)) as file:
            own, samples = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
        parts += [_resampled(samples, own, rate), np.zeros(int(rng.uniform(0.3, 1.5) * rate), np.float32)]
        if sum(map(len, parts)) >= seconds * rate:
            break
    audio = np.concatenate(parts)[: int(seconds * rate)]
    loud = float(np.sqrt(np.quantile(audio.astype(np.float64) ** 2, 0.9)))
    return (audio + rng.normal(size=audio.size) * loud * 10 ** (-noise / 20)).astype(np.float32)


def _resampled(samples: npt.NDArray[np.float64], own: int, rate: int) -> npt.NDArray[np.float32]:
    """Without aliases: the spectrum cut or filled with zeros."""
    size = round(len(samples) * rate / own)
    return (np.fft.irfft(np.fft.rfft(samples), size) * size / len(samples)).astype(np.float32)


def timestamps(probabilities: npt.NDArray[np.float32]) -> list[tuple[int, int]]:
    """(first frame, frame behind the last) of each stretch of speech, by the rules of the model's own utilities."""
    found: list[tuple[int, int]] = []
    begin = end = None
    for index, p in enumerate(probabilities):
        if p >= THRESHOLD:
            begin, end = index if begin is None else begin, None
        elif begin is not None and p < RELEASE:
            end = index if end is None else end
            if index - end >= SILENCE:
                found, begin, end = [*found, (begin, end)], None, None
    last = [] if begin is None else [(begin, len(probabilities))]
    return [(a, b) for a, b in [*found, *last] if b - a > SPEECH]


def compared(expected: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> tuple[int, list[int]]:
    """How many stretches int8 finds that float finds too, one for one, and by how many frames their edges move."""
    one, other = timestamps(expected), timestamps(got)
    pairs = [(a, b) for a in one for b in other if a[0] < b[1] and b[0] < a[1]]
    ours, theirs = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    same = [(a, b) for a, b in pairs if ours[a] == theirs[b] == 1]
    return len(same), [abs(x - y) for a, b in same for x, y in zip(a, b, strict=True)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, help="folder of recordings to judge on")
    parser.add_argument("--calibration", type=Path, help="folder of recordings to calibrate on")
    parser.add_argument("--minutes", type=float, default=5, help="of recordings, for each sampling rate")
    parser.add_argument("--noise", type=float, default=30, help="dB below the speech")
    chosen = parser.parse_args()
    if chosen.speech and chosen.calibration:
        learnt = [(rate, recorded(chosen.calibration, SECONDS * 2, rate, chosen.noise)) for rate in FRAME]
        audio = [(rate, recorded(chosen.speech, chosen.minutes * 60, rate, chosen.noise)) for rate in FRAME]
    else:
        learnt = [(rate, speech(SECONDS, rate, seed)) for rate in FRAME for seed in CALIBRATION]
        audio = [(rate, speech(SECONDS, rate, seed)) for rate in FRAME for seed in JUDGED]
    data = [feed for rate, samples in learnt for feed in heard(MODEL, samples, rate)[1][::3]]
    expected = [heard(MODEL, samples, rate)[0] for rate, samples in audio]
    wanted = np.concatenate(expected)
    stretches = sum(len(timestamps(e)) for e in expected)
    print("| form | int8 layers | MB | frames that flip | their probability | stretches | edges moved, by | SQNR dB |")
    print("|---|---|---|---|---|---|---|---|")
    print(f"| float | | {MODEL.stat().st_size / 1e6:.2f} | of {wanted.size} | in float | {stretches} | | |")
    for name, (recipe, calibrated, _) in FORMS.items():
        made, plan = onnxq.quantize(MODEL, data if calibrated else None, recipe)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vad.onnx"
            made.save(path)
            size = path.stat().st_size / 1e6
            got = [heard(path, samples, rate)[0] for rate, samples in audio]
        flips = wanted[(wanted > THRESHOLD) != (np.concatenate(got) > THRESHOLD)]
        layers = sum(d.quantized for d in plan.decisions if d.op_type in ("Conv", "LSTM"))
        near = f"{flips.min():.2f} to {flips.max():.2f}" if flips.size else ""
        pairs = [compared(a, b) for a, b in zip(expected, got, strict=True)]
        same, edges = sum(n for n, _ in pairs), [n for _, each in pairs for n in each if n]
        each = [sqnr(a, b) for a, b in zip(expected, got, strict=True)]
        missed = sum(len(timestamps(g)) for g in got) - same
        print(
            f"| {name} | {layers} | {size:.2f} | {flips.size} | {near} | {same} same, {missed} other |"
            f" {len(edges)}, {max(edges, default=0)} frames | {min(each):.1f} to {max(each):.1f} |"
        )


if __name__ == "__main__":
    main()
