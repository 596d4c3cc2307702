"""Models larger than the memory that a process may still take: its own memory is limited by the system."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from onnxq import Recipe, api, files
from onnxq.graph.shelf import SHELVED_BYTES, FileTensor

ROOT = Path(__file__).parents[1]
MAKE = runpy.run_path(str(ROOT / "scripts" / "make_large.py"), run_name="make_large")["make"]
GIGABYTES, WIDTH = 0.2, 512
ROOM = 140_000_000
"""Bytes: less than the model, twice what its largest weight and two cores' threads need: more cores, more stacks."""

CHILD = """
import re, resource, sys
from pathlib import Path
import onnxq
from onnxq import Recipe

small, model, out, *choices = sys.argv[1:]
recipe = Recipe(**dict(choice.split("=") for choice in choices))
data = "random:2" if recipe.mode == "static" else None

def run(path, to):
    onnxq.quantize(path, data, recipe)[0].save(to)

run(small, out)  # loads what is loaded once
held = int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + ROOM, held + ROOM))
run(model, out)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("large")
    for name in ("small", "large"):
        (folder / name).mkdir()
    return MAKE(folder / "small", 0.01, WIDTH), MAKE(folder / "large", GIGABYTES, WIDTH)


def limited(models: tuple[Path, Path], out: Path, **choices: str) -> subprocess.CompletedProcess[str]:
    given = [f"{key}={value}" for key, value in choices.items()]
    command = [sys.executable, "-c", CHILD.replace("ROOM", str(ROOM)), *map(str, models), str(out), *given]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=out.parent)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize(
    "choices",
    [
        {"target": "ort-cuda", "mode": "weight-only"},
        {"target": "tensorrt@10", "effort": "fast", "memory": "60MB"},
    ],
    ids=lambda c: " ".join(c.values()),
)
def test_memory_is_not_a_matter_of_size(models: tuple[Path, Path], choices: dict[str, str], tmp_path: Path) -> None:
    done = limited(models, tmp_path / "out.onnx", **choices)
    assert done.returncode == 0, done.stderr[-2000:]
    choices.pop("memory", None)
    made, _ = api.quantize(models[1], "random:2" if "effort" in choices else None, Recipe(**choices))  # type: ignore[arg-type]  # all are texts
    assert files.load(tmp_path / "out.onnx").digest() == made.digest()
    values = (v.const_value for v in made.weights.values())
    assert all(isinstance(t, FileTensor) for t in values if t is not None and t.nbytes >= SHELVED_BYTES)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_without_a_limit_of_ours_the_systems_is_met(models: tuple[Path, Path], tmp_path: Path) -> None:
    done = limited(models, tmp_path / "out.onnx", target="tensorrt@10", effort="fast")
    assert done.returncode == 1
    assert "bad_alloc" in done.stderr or "MemoryError" in done.stderr or "allocate" in done.stderr
