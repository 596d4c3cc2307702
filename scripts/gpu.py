"""What the benchmarks on a GPU begin with: their options, and whether there is a GPU to measure on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.errors import ProviderError
from onnxq.runtime import try_provider

if TYPE_CHECKING:
    from collections.abc import Sequence

MODELS = Path(__file__).resolve().parents[1] / ".cache" / "models"


def options(doc: str, names: Sequence[str], default: Sequence[str]) -> argparse.ArgumentParser:
    """A parser with the options that all of them have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=names, default=default)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU provider: see that it works")
    return parser


def may_measure(*, dry_run: bool) -> bool:
    """Whether to go on; what has to be said about it is printed."""
    reason = None if dry_run else why_no_gpu()
    if reason is not None:
        sys.stdout.write(f"nothing measured: {reason}\n")
    elif dry_run:
        sys.stdout.write("dry run on the CPU provider: the ratios say nothing of a GPU\n")
    return reason is None


def why_no_gpu() -> str | None:
    """Why nothing can be measured here; None when ONNX Runtime runs a model on a CUDA device."""
    import onnxruntime as ort  # noqa: TID251  measured bare, outside the engine

    ort.set_default_logger_severity(4)
    try:
        try_provider("cuda")
    except ProviderError as error:
        return error.message
    return None


def is_there(path: Path) -> bool:
    """Whether a model is there; if not, what makes it is printed."""
    if not path.exists():
        sys.stdout.write(f"{path} is not there: run `make models`\n")
    return path.exists()
