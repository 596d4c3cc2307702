"""A run tells where its time went, and is the same run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import onnxq
from onnxq import Recipe, cli
from onnxq.monitor import Monitor
from onnxq.timing import Watch, paced, timed

DIGITS = Path(__file__).parents[2] / "models" / "digits"


def test_stages_follow_one_another_and_add_up() -> None:
    told: list[str] = []
    watch, begun = Watch(), time.perf_counter()
    monitor = watch.on(Monitor(stage=lambda name, _: told.append(name)))
    monitor.spent("before the first stage", 1.0)  # belongs to none
    for name in ("a", "b"):
        monitor.stage(name, None)
        with timed(monitor, "part"):
            time.sleep(0.01)
        assert list(paced([1, 2], monitor, "reading")) == [1, 2]
    stages = watch.stages()
    assert [s.name for s in stages] == told == ["a", "b"]
    assert sum(s.seconds for s in stages) <= time.perf_counter() - begun
    for stage in stages:
        parts = dict(stage.parts)
        assert set(parts) == {"part", "reading"}
        assert 0.01 <= parts["part"] <= stage.seconds


def test_what_fails_was_timed_too() -> None:
    watch = Watch()
    monitor = watch.on(Monitor())
    monitor.stage("a", None)
    with pytest.raises(ValueError, match="no"), timed(monitor, "part"):
        raise ValueError("no")
    assert [name for name, _ in watch.stages()[0].parts] == ["part"]


def test_a_calibration_tells_its_parts() -> None:
    watch = Watch()
    onnxq.calibrate(DIGITS / "digits.onnx", "random:3", Recipe(effort="fast"), watch.on(Monitor(warn=lambda _: None)))
    parts = {name for stage in watch.stages() for name, _ in stage.parts}
    assert {
        "reading the model",
        "reading data",
        "the forward pass, or waiting for it",
        "loading into ONNX Runtime",
    } <= parts
    assert any(name.startswith("counting") for name in parts)


def test_the_command_line_prints_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["onnxq", "quantize", str(DIGITS / "digits.onnx"), "--data", str(DIGITS / "calib.npz"), "-v"]
    monkeypatch.setattr("sys.argv", [*arguments, "--effort", "fast", "-o", str(tmp_path / "out.onnx")])
    cli.main()
    said = capsys.readouterr().out
    assert "seconds" in said
    assert "of it the forward pass" in said
    assert "Checking and writing" in said
