"""Modules that are imported when they are used, and what the command line does without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    "use",
    [
        "import slow; print(slow.VALUE)",
        "from slow import VALUE; print(VALUE)",
        "import slow.inner; print(slow.inner.VALUE)",
        (
            "import slow, threading; t = [threading.Thread(target=lambda: slow.VALUE) for _ in range(8)]; "
            "[x.start() for x in t]; [x.join() for x in t]; print(slow.VALUE)"
        ),
    ],
)
def test_a_late_module_is_imported_once_when_it_is_used(tmp_path: Path, use: str) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "__init__.py").write_text("VALUE = 3\nprint('imported')\n")
    (tmp_path / "slow" / "inner.py").write_text("VALUE = 3\n")
    code = (
        f"from onnxq.late import late\nlate('slow')\nimport slow as same\nprint('before')\n{use}\nprint(same.VALUE)\n"
    )
    assert python(code, where=tmp_path).split() == ["before", "imported", "3", "3"]


def test_what_is_imported_already_or_not_there_is_left_alone() -> None:
    code = "import json, sys\nfrom onnxq.late import late\nlate('json', 'no_such_package')\n"
    code += "print(type(json).__name__, sys.modules['json'] is json, 'no_such_package' in sys.modules)"
    assert python(code).split() == ["module", "True", "False"]


def test_quantizing_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    code = "import sys\nfrom onnxq.cli import main\nmain()\nprint(*sys.modules)\n"
    code += "import onnx_ir as ir\nprint('SIZE', str(ir.SymbolicDim('N') * 2 + 1))"
    given = ("quantize", DIGITS / "digits.onnx", "--data", DIGITS / "calib.npz", "--max-samples", "16", "-q")
    said = python(code, *given, "--effort", "fast", "-o", tmp_path / "m.onnx").splitlines()
    loaded = set(said[-2].split())
    assert not loaded & {"sympy.core", "onnxq.checks", "onnxq.improving", "onnxq.search", "threadpoolctl", "jinja2"}
    assert "onnx_ir" in loaded
    assert said[-1] == "SIZE 2*N + 1"  # what was put off is there
