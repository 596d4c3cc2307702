"""Where the real models of the tests are, and which are there.

The larger ones are made by `make models` into .cache/models; a test of one that is missing is skipped, unless
ONNXQ_REQUIRE_MODELS is set (as in CI), where it fails.
"""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "models" / "digits"
GLYPHS = ROOT / "models" / "glyphs"
CACHE = ROOT / ".cache" / "models"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def cached(name: str) -> Path:
    """A file of .cache/models, or a skip."""
    path = CACHE / name
    if not path.exists():
        missing = f"{name} is not there: run `make models`"
        if os.environ.get("ONNXQ_REQUIRE_MODELS"):
            pytest.fail(missing)
        pytest.skip(missing)
    return path
