"""A whole transformer with planted outlier channels, through the default command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from encoders import samples, transformer
from legality import assert_legal

from onnxq import api, cli


@pytest.mark.parametrize("effort", ["fast", None])
def test_the_default_command_on_a_severe_case(
    effort: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    graph = transformer()
    onnx.save(graph.to_proto(), "m.onnx")
    np.savez("calib.npz", x0=samples(48, seed=1))
    np.savez("held.npz", x0=samples(16, seed=2))
    command = ["onnxq", "quantize", "m.onnx", "--data", "calib.npz", "-q"]
    monkeypatch.setattr(sys, "argv", command if effort is None else [*command, "--effort", effort])
    cli.main()
    (error,) = api.compare("m.onnx", "m.int8.onnx", "held.npz").outputs
    if effort == "fast":
        assert error.sqnr_db < 5  # it is severe
        return
    assert error.sqnr_db > 27
    products = [n for n in json.loads(Path("m.int8.plan.json").read_text())["nodes"].values() if n["op"] == "MatMul"]
    in_int8 = [n for n in products if n["precision"] == "int8"]
    assert len(in_int8) >= 4 * 6 - 2  # nearly all with weights; the two products of each attention stay in float
    assert_legal(onnx.load("m.int8.onnx"), target="tensorrt@11")
