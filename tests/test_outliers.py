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
from onnxq.planning import SPARED


@pytest.mark.parametrize("extra", [("--effort", "fast"), (), ("--float-share", "0")], ids=" ".join)
def test_the_default_command_on_a_severe_case(
    extra: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    graph = transformer()
    onnx.save(graph.to_proto(), "m.onnx")
    np.savez("calib.npz", x0=samples(48, seed=1))
    np.savez("held.npz", x0=samples(16, seed=2))
    command = ["onnxq", "quantize", "m.onnx", "--data", "calib.npz", "-q"]
    monkeypatch.setattr(sys, "argv", [*command, *extra])
    cli.main()
    (error,) = api.compare("m.onnx", "m.int8.onnx", "held.npz").outputs
    if "fast" in extra:
        assert error.sqnr_db < 5  # it is severe
        return
    assert error.sqnr_db > 27
    products = [n for n in json.loads(Path("m.int8.plan.json").read_text())["nodes"].values() if n["op"] == "MatMul"]
    in_int8 = [n for n in products if n["precision"] == "int8"]
    spared = [n for n in products if n["reason"] == SPARED]
    assert len(in_int8) + len(spared) == 4 * 6  # all with weights; the two of each attention stay in float
    limit = 0.0 if extra else 0.05
    assert sum(n["macs"] for n in spared) <= limit * sum(n["macs"] for n in products)
    assert_legal(onnx.load("m.int8.onnx"), target="tensorrt@11")
