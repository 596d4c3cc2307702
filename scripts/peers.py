"""Quantize the digits model with other tools, for docs/check.md: what does `onnxq check` say of their models?

    python scripts/peers.py                 all of them, into .cache/peers
    python scripts/peers.py modelopt        one of them

Each tool gets a throw-away environment of its own, .venv-peers/<name>; what exists is kept. NVIDIA ModelOpt brings
torch, several GB where pip's default build is one for GPUs. All calibrate on models/digits/calib.npz, in batches
of 64, and are called as their documentation's first example calls them; options are in the functions' text.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "models" / "digits" / "calib.npz"
OUT = ROOT / ".cache" / "peers"
MODEL = OUT / "digits.onnx"  # a copy: ModelOpt writes into the file that it is given
PACKAGES = {
    "onnxruntime": ("onnxruntime==1.31.1", "onnx==1.23.2", "sympy==1.14.0"),
    "modelopt": ("nvidia-modelopt[onnx]==0.47.0", "torch==2.13.0"),
    "onnxsim": ("onnxsim==0.8.1", "onnxruntime==1.31.1"),
}


def feeds() -> Iterator[dict[str, np.ndarray]]:
    """The calibration images in batches: image, float32 [64, 1, 8, 8]."""
    with np.load(DATA) as data:
        images = data["image"]
    yield from ({"image": images[i : i + 64]} for i in range(0, len(images), 64))


def onnxruntime() -> Iterator[Path]:
    """`quantize_static` as it comes, and with per-channel weights."""
    from onnxruntime.quantization import (  # noqa: TID251  another tool's own environment
        CalibrationDataReader,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # no type information
        def __init__(self) -> None:
            self.feeds = feeds()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    for name, per_channel in (("ort_static", False), ("ort_static_per_channel", True)):
        quantize_static(MODEL, OUT / f"{name}.onnx", Reader(), per_channel=per_channel)
        yield OUT / f"{name}.onnx"


def modelopt() -> Iterator[Path]:
    """`quantize` as it comes (the rest in fp16), with the rest in fp32, and with weights stored in int8."""
    from modelopt.onnx.quantization import quantize

    with np.load(DATA) as data:
        images = data["image"]
    options: Mapping[str, object]
    for name, options in (
        ("modelopt_int8", {}),
        ("modelopt_int8_fp32", {"high_precision_dtype": "fp32"}),
        ("modelopt_int8_dq_only", {"dq_only": True}),
    ):
        quantize(
            str(MODEL),
            quantize_mode="int8",
            calibration_data={"image": images},
            calibration_shapes="image:64x1x8x8",
            calibration_eps=["cpu"],
            output_path=str(OUT / f"{name}.onnx"),
            **options,
        )
        yield OUT / f"{name}.onnx"


def onnxsim() -> Iterator[Path]:
    """`quantize_static` as it comes, of every activation, and in the QOperator form."""
    import onnx
    import onnxsim as tool  # type: ignore[import-not-found]  # is in an environment of its own

    for name, make, options in (
        ("onnxsim_static", tool.quantize_static, {}),
        ("onnxsim_static_full", tool.quantize_static, {"full_graph": True}),
        ("onnxsim_qoperator", tool.quantize_qoperator, {}),
    ):
        onnx.save_model(make(str(MODEL), list(feeds()), **options), OUT / f"{name}.onnx")
        yield OUT / f"{name}.onnx"


MAKERS: dict[str, Callable[[], Iterator[Path]]] = {
    "onnxruntime": onnxruntime,
    "modelopt": modelopt,
    "onnxsim": onnxsim,
}


def environment(name: str) -> Path:
    """The Python of the tool's environment, made when it is not there."""
    folder = ROOT / ".venv-peers" / name
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES[name]], check=True)
    return python


def main() -> None:
    """Make the models named on the command line, each in its tool's environment."""
    wanted = sys.argv[1:]
    if wanted[:1] == ["--inside"]:
        OUT.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "models" / "digits" / "digits.onnx", MODEL)
        package = PACKAGES[wanted[1]][0].split("==")[0].split("[")[0]
        for path in MAKERS[wanted[1]]():
            print(f"{path.relative_to(ROOT)}: {package} {version(package)}")
        return
    if unknown := set(wanted) - set(MAKERS):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(MAKERS)}")
    OUT.mkdir(parents=True, exist_ok=True)
    for name in wanted or MAKERS:
        subprocess.run([environment(name), __file__, "--inside", name], check=True)


if __name__ == "__main__":
    main()
