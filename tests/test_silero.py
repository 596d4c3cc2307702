"""Silero VAD, all of whose work lies in the branches of an If: quantized there, it finds the same speech."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from real_models import cached
from speech import speech

import onnxq
from onnxq import Recipe, Rule
from onnxq.proving import prove
from onnxq.runtime import Session

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

FRAME, CONTEXT = {16_000: 512, 8_000: 256}, {16_000: 64, 8_000: 32}
THRESHOLD, RELEASE = 0.5, 0.35
"""Where speech begins and ends, as in the model's own utilities."""
NEAR = 0.1
"""How near the threshold a probability is undecided: a frame on the way from 0 to 1 may cross it a frame later."""


def heard(model: Path, audio: npt.NDArray[np.float32], rate: int) -> tuple[npt.NDArray[np.float32], list[Any]]:
    """Probability of speech in each frame, and the feeds; the state goes from frame to frame, as in a user's loop."""
    session = Session(model)
    state, before = np.zeros((2, 1, 128), np.float32), np.zeros((1, CONTEXT[rate]), np.float32)
    found, feeds = [], []
    for begin in range(0, len(audio) - FRAME[rate] + 1, FRAME[rate]):
        frame = np.concatenate([before, audio[None, begin : begin + FRAME[rate]]], axis=1)
        feeds.append({"input": frame, "state": state, "sr": np.array(rate)})
        probability, state = session.run(feeds[-1], ("output", "stateN"))
        before = frame[:, -CONTEXT[rate] :]
        found.append(float(probability[0, 0]))
    return np.array(found, np.float32), feeds


def segments(probabilities: npt.NDArray[np.float32]) -> list[list[int]]:
    """[first, last] frame of each stretch of speech."""
    found: list[list[int]] = []
    speaking = False
    for index, p in enumerate(probabilities):
        speaking = p >= (RELEASE if speaking else THRESHOLD)
        if speaking and found and found[-1][1] == index - 1:
            found[-1][1] = index
        elif speaking:
            found.append([index, index])
    return found


@cache
def frames(rate: int) -> tuple[npt.NDArray[np.float32], list[Any]]:
    """What the float model hears of the audio for calibration."""
    return heard(cached("silero/silero_vad.onnx"), speech(8, rate, seed=1), rate)


def sqnr(expected: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.sum(expected**2) / np.sum((got - expected) ** 2)))


ENCODER = (Rule("*/encoder/[123]/*", quantize=True), Rule("*/decoder/2/*", quantize=True))
RECIPES = {
    "ort-cpu": (Recipe(target="ort-cpu"), True, 33.0),
    "ort-cpu, operators": (Recipe(target="ort-cpu", format="qoperator"), True, 33.0),
    "ort-cpu, dynamic": (Recipe(target="ort-cpu", mode="dynamic"), False, 30.0),
    "ort-cpu, weight-only": (
        Recipe(target="ort-cpu", mode="weight-only", rules=(Rule(ops=("Conv",), quantize=True),)),
        False,
        33.0,
    ),
    "tensorrt, where a rule asks": (Recipe(rules=ENCODER), True, 28.0),
}


@pytest.mark.parametrize("case", RECIPES)
def test_the_same_speech_is_found(case: str, tmp_path: Path) -> None:
    recipe, calibrated, least = RECIPES[case]
    model = cached("silero/silero_vad.onnx")
    data = [feed for rate in FRAME for feed in frames(rate)[1][::3]] if calibrated else None
    made, plan = onnxq.quantize(model, data, recipe)
    assert {d.op_type for d in plan.decisions if d.quantized} >= {"Conv"}
    assert all(d.node != "If_0" for d in plan.decisions if d.quantized)
    made.save(tmp_path / "vad.onnx")
    assert (tmp_path / "vad.onnx").stat().st_size < model.stat().st_size
    for rate in FRAME:
        audio = speech(8, rate, seed=11)
        expected, got = heard(model, audio, rate)[0], heard(tmp_path / "vad.onnx", audio, rate)[0]
        decided = np.abs(expected - THRESHOLD) > NEAR
        assert decided.mean() > 0.95
        np.testing.assert_array_equal((got > THRESHOLD)[decided], (expected > THRESHOLD)[decided])
        assert sqnr(expected, got) > least
        assert len(segments(expected)) > 1
        np.testing.assert_allclose(segments(got), segments(expected), atol=2)  # 64 ms: a voice dies away slowly


def test_its_convolutions_are_integer_kernels_inside_the_branch(tmp_path: Path) -> None:
    made, plan = onnxq.quantize(
        cached("silero/silero_vad.onnx"), frames(16_000)[1][::3], Recipe(target="ort-cpu", mode="static")
    )
    made.save(tmp_path / "vad.onnx")
    proof = prove(tmp_path / "vad.onnx", data=frames(16_000)[1][:1])
    assert proof.legal
    planned = [d for d in plan.decisions if d.quantized and d.op_type == "Conv" and "then_branch" in d.node]
    assert len([n for n in proof.nodes if n.op_type == "QLinearConv" and "then_branch" in n.name]) == len(planned) >= 3
    assert plan.modes == {"If_0/else_branch": "dynamic"}  # 8 kHz was not in the data
    assert any("If_0/else_branch: no sample reached it" in note for note in plan.notes)
    reasons = {d.node.rpartition("Inline_0__")[2]: d.reason for d in plan.decisions if "then_branch" in d.node}
    assert reasons["/stft/Conv"].startswith("computes a spectrum")
    assert reasons["/encoder/0/reparam_conv/Conv"].startswith("reads the magnitudes of a spectrum")
