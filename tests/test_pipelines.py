"""The hand-over to TensorRT: the script that builds an engine, and the names of Polygraphy that it and the docs use."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from polygraphy.backend import trt  # noqa: TID251  its names are what is tested

from onnxq.data import InputSpec
from onnxq.targets import TARGETS

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "models" / "digits"
SCRIPT = ROOT / "scripts" / "build_engine.py"
DOCS = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
no_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="it would build")


@pytest.fixture(scope="module")
def script() -> Any:  # noqa: ANN401  a module
    spec = importlib.util.spec_from_file_location("build_engine", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@no_tensorrt
def test_without_tensorrt_the_script_quantizes_and_says_that_it_skips_the_rest(tmp_path: Path) -> None:
    done = call(DIGITS / "digits.onnx", "--data", DIGITS / "calib.npz", "--out", tmp_path)
    assert done.returncode == 3, done.stderr
    assert "skipped: tensorrt is not installed here" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["digits.int8.onnx"]
    ops = {node.op_type for node in onnx.load(tmp_path / "digits.int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= ops


def test_the_script_tells_failures_apart(tmp_path: Path) -> None:
    done = call(tmp_path / "nowhere.onnx", "--out", tmp_path)
    assert (done.returncode, "nowhere.onnx" in done.stderr) == (1, True)
    assert call(DIGITS / "digits.onnx", "--target", "tensorrt@7").returncode == 2


SPECS = (InputSpec("x", np.dtype(np.float32), ("n", 3)), InputSpec("k", np.dtype(np.int64), (2,)))


@pytest.mark.parametrize("target", TARGETS)
def test_polygraphy_takes_what_the_script_gives_it(script: Any, target: str) -> None:  # noqa: ANN401  a module
    if not target.startswith("tensorrt"):
        pytest.skip("not for TensorRT")
    loader = script.build(Path("m.onnx"), SPECS, {"x": ((1, 3), (8, 3))}, target)
    weak = target in {"tensorrt@8", "tensorrt@8+dla", "tensorrt@10+dla"}
    network, config = loader._network, loader._config
    assert network.strongly_typed == (not weak)
    assert bool(config.int8) == bool(config.fp16) == weak
    assert bool(config.use_dla) == bool(config.allow_gpu_fallback) == target.endswith("+dla")
    (profile,) = config.profiles
    assert (profile["x"].min, profile["x"].opt, profile["x"].max) == ((1, 3), (8, 3), (8, 3))
    assert profile["k"].max == (2,)


def test_the_target_fits_the_installed_version(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    class Fake:
        __version__ = "10.13.2"
        __spec__ = object()

    monkeypatch.setitem(sys.modules, "tensorrt", Fake())
    assert script.default_target() == "tensorrt@10"
    monkeypatch.setattr(Fake, "__version__", "12.0.0")
    assert script.default_target() == "tensorrt"


def test_the_names_in_the_docs_exist_in_polygraphy() -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL))
    names = {
        n
        for line in re.findall(r"from polygraphy\.backend\.trt import \(?([^)]*?)\)?\n", code)
        for n in re.findall(r"\w+", line)
    }
    assert {"CreateConfig", "EngineFromNetwork", "NetworkFromOnnxPath", "TrtRunner"} <= names
    assert not [name for name in names if not hasattr(trt, name)]
    compile(code, "docs/pipelines.md", "exec")
    for given, called in (("strongly_typed", trt.NetworkFromOnnxPath), ("use_dla", trt.CreateConfig)):
        assert given in inspect.signature(called.__init__).parameters


def test_the_docs_show_every_target_and_its_commands() -> None:
    for name, target in TARGETS.items():
        if not name.startswith("tensorrt@"):
            continue
        assert f"`{name}`" in DOCS
        build = next(line for line in target.next_step.values() if line.startswith("trtexec"))
        flags = [word for word in build.replace("{shapes}", "").split() if "{" not in word and word != "trtexec"]
        (row,) = [line for line in DOCS.splitlines() if line.startswith(f"| `{name}`")]
        assert f"`{' '.join(flags)}`" in row if flags else "none" in row, (name, flags)
