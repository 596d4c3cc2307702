"""What the command line does without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "models" / "digits"


def python(code: str, *arguments: object, where: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=where,
        env={**os.environ, "PYTHONPATH": f"{where}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quantizing_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    code = "import sys\nfrom onnxq.cli import main\nmain()\nprint(*sys.modules)\n"
    given = ("quantize", DIGITS / "digits.onnx", "--data", DIGITS / "calib.npz", "--max-samples", "16", "-q")
    said = python(code, *given, "--effort", "fast", "-o", tmp_path / "m.onnx").splitlines()
    loaded = set(said[-1].split())
    assert not loaded & {"onnxq.checks", "onnxq.improving", "onnxq.search", "threadpoolctl", "jinja2"}
    assert "onnx_ir" in loaded
