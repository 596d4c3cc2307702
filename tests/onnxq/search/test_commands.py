"""Sensitivity and budgets on the command line: what is written and said, and the exit status."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from chains import chain, samples

from onnxq import cli

if TYPE_CHECKING:
    from collections.abc import Callable

METRIC = """
import numpy as np
def hits(feeds, outputs):
    return np.mean([o["y"].argmax() == f["label"][0] for f, o in zip(feeds, outputs)])
def writes(feeds, outputs):
    feeds[0]["x"][:] = 0.0
    return 1.0
def broken(feeds, outputs):
    return outputs[0]["logits"]
"""


@pytest.fixture
def onnxq(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command line in an empty folder; a model, its data and a metric lie beside it, in `..`."""
    here = tmp_path / "work"
    here.mkdir()
    monkeypatch.chdir(here)
    onnx.save(chain(5, hard=(2,)).to_proto(), tmp_path / "m.onnx")
    x = np.concatenate([f["x"] for f in samples(80)])
    np.savez(tmp_path / "data.npz", x=x[:40])
    np.savez(tmp_path / "val.npz", x=x[40:], label=np.arange(40) % 32)
    (tmp_path / "metric.py").write_text(METRIC)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["onnxq", *arguments])
        status = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = int(str(stop.code))
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return status, said.out, said.err

    return call


def test_sensitivity(onnxq: Callable[..., tuple[int, str, str]]) -> None:
    status, out, _ = onnxq("sensitivity", "../m.onnx", "--effort", "fast", "--data", "../data.npz", "-o", "s.json")
    assert status == 0
    assert "at outputs dB" in out
    assert "10 samples that did not calibrate" in out
    assert out.index("m2") < out.index("m0"), "the hard layer first"
    found = json.loads(Path("s.json").read_text())
    assert [g["output_db"] for g in found["groups"]] == sorted(g["output_db"] for g in found["groups"])
    assert found["passes"] == 7
    assert sorted(p.name for p in Path().iterdir()) == ["s.json"]


def test_a_budget(onnxq: Callable[..., tuple[int, str, str]]) -> None:
    status, out, _ = onnxq(
        "quantize", "../m.onnx", "--data", "../data.npz", "--effort", "fast", "--min-sqnr", "25", "--report", "r.html"
    )
    assert status == 0
    assert "SQNR >= 25 dB holds:" in out
    assert "on 10 held-back samples" in out
    assert "they are of the calibration data" in out
    assert "reverted to float to hold the budget" in out
    assert "80.0% of their MACs" in out
    plan = json.loads(Path("m.int8.plan.json").read_text())
    assert plan["budget"]["held_back_samples"] == 10
    assert len(plan["budget"]["reverted"]) == 1
    assert Path("r.html").stat().st_size > 1000


def test_a_budget_that_cannot_be_met_writes_nothing(onnxq: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = onnxq("quantize", "../m.onnx", "--data", "../data.npz", "--min-sqnr", "90")
    assert status == 1
    assert out == ""
    assert "error: SQNR >= 90 dB could not be met: the best on 10 held-back samples is" in err
    assert not list(Path().iterdir())


def test_a_metric_with_labels(onnxq: Callable[..., tuple[int, str, str]]) -> None:
    given = ("quantize", "../m.onnx", "--data", "../data.npz", "--eval-data", "../val.npz", "--labels", "label")
    goal = ("--metric-direction", "higher", "--max-drop", "0.2")
    status, out, _ = onnxq(*given, *goal, "--metric", "../metric.py:hits")
    assert status == 0
    assert "drop of ../metric.py:hits <= 0.2 holds: " in out
    assert "on 30 held-back samples" in out
    assert "of the calibration data" not in out
    status, _, err = onnxq(*given, *goal, "--metric", "../metric.py:writes")
    assert status == 1
    assert "metric.py:6: ValueError: assignment destination is read-only" in err
    status, _, err = onnxq(*given, *goal, "--metric", "../metric.py:broken")
    assert status == 1
    assert "metric.py:9: KeyError: 'logits'" in err
    assert "The outputs are 'y'; the samples hold 'x', 'label'" in err


@pytest.mark.parametrize(
    ("given", "status", "says"),
    [
        (("--metric", "../metric.py:hits"), 2, "metric needs max_drop"),
        (("--metric", "../metric.py:hits", "--max-drop", "1"), 2, "max_drop needs metric_direction"),
        (("--min-sqnr", "30", "--max-samples", "3"), 1, "too few to hold some back"),
    ],
)
def test_what_is_wrong(
    onnxq: Callable[..., tuple[int, str, str]], given: tuple[str, ...], status: int, says: str
) -> None:
    found, out, err = onnxq("quantize", "../m.onnx", "--data", "../data.npz", *given)
    assert (found, out) == (status, "")
    assert says in err
    assert not list(Path().iterdir())


def test_statistics_cannot_judge(onnxq: Callable[..., tuple[int, str, str]]) -> None:
    assert onnxq("calibrate", "../m.onnx", "--data", "../data.npz", "-o", "s.npz", "-q")[0] == 0
    status, _, err = onnxq("quantize", "../m.onnx", "--statistics", "s.npz", "--min-sqnr", "30")
    assert status == 1
    assert "statistics hold none of its samples" in err
    assert "--data" in err
