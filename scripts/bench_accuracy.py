"""Accuracy side by side: onnxq by effort and calibrator, for TensorRT and for ONNX Runtime, and other tools.

    python scripts/bench_accuracy.py [NAME ...] [--only COLUMN ...] [--samples 32] [--again] [--table]

One cell is one model by one way of quantizing it: SQNR, task score, share of the MACs in int8 (int8_work.py), errors
of `onnxq check`, seconds. Cells lie in .cache/bench/accuracy/<model>/<column>.json and what is there is kept;
`--again` makes those that are named anew, `--table` only prints. Names are those of subjects.py. `--only onnxq`
takes every column that starts so. Every tool calibrates on the same feeds; other feeds judge. Everything but int8 is
float32. Q/DQ graphs are judged as they are written; forms for ONNX Runtime's CPU as it runs them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import int8_work
import peers
from bench_tables import accuracy_tables
from subjects import ROOT, SUBJECTS

from onnxq import Recipe, api
from onnxq.recipe import EFFORTS
from onnxq.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from scores import Feed, Outputs

CELLS = ROOT / ".cache" / "bench" / "accuracy"
CALIBRATORS = ("auto", "entropy", "minmax", "mse", "percentile")
SAMPLES = 32
PEERS = (
    *("ort_symmetric", "ort_symmetric_percentile", "ort_uint8", "ort_uint8_entropy", "ort_uint8_linear"),
    *("modelopt_int8_fp32", "modelopt_int8_fp32_max"),
    *("onnxsim_static", "onnxsim_static_mse", "onnxsim_static_smooth"),
    *("quark_a8w8", "quark_uint8", "quark_a8w8_smooth"),
)
TWINS = ("minilm_op14", "minilm_dynamo")  # of minilm: every tool once is enough


def ours(target: str, effort: str, calibrator: str) -> Callable[[str, int, Path], tuple[Path, float]]:
    """`onnxq quantize --target TARGET --effort EFFORT --calibrator CALIBRATOR`, with float32 around int8."""

    def make(name: str, samples: int, folder: Path) -> tuple[Path, float]:
        recipe = Recipe(target=target, effort=effort, calibrator=calibrator)
        if target != "ort-cpu":
            recipe = replace(recipe, high_precision="fp32")
        begun = time.perf_counter()
        graph, _ = api.quantize(SUBJECTS[name].path, SUBJECTS[name].calibration(samples), recipe)
        api.export(graph, folder / "int8.onnx")
        return folder / "int8.onnx", time.perf_counter() - begun

    return make


def theirs(variant: str) -> Callable[[str, int, Path], tuple[Path, float]]:
    """Another tool, see peers.py."""

    def make(name: str, samples: int, _folder: Path) -> tuple[Path, float]:
        path, seconds = peers.made(variant, name, samples)
        if isinstance(path, str):
            raise SystemExit(path)
        return path, seconds

    return make


def columns() -> dict[str, Callable[[str, int, Path], tuple[Path, float]]]:
    """Name -> how the model is quantized."""
    found = {
        f"onnxq {target} {effort}": ours(target, effort, "auto")
        for target in ("tensorrt", "ort-cpu")
        for effort in EFFORTS
    }
    found |= {f"onnxq tensorrt fast {c}": ours("tensorrt", "fast", c) for c in CALIBRATORS[1:]}
    return found | {variant: theirs(variant) for variant in PEERS}


def outputs(path: Path, feeds: list[Feed], *, as_written: bool) -> Outputs:
    """Every output for every feed."""
    session = Session(path, as_written=as_written)
    return [session.run(feed) for feed in feeds]


def cell(name: str, column: str, samples: int, exact: Outputs, feeds: list[Feed]) -> dict[str, Any]:
    """Quantize and measure; an error becomes the cell's text."""
    subject = SUBJECTS[name]
    try:
        with tempfile.TemporaryDirectory() as folder:
            path, seconds = columns()[column](name, samples, Path(folder))
            found = outputs(path, feeds, as_written=not column.startswith("onnxq ort-cpu"))
            return {
                "measures": subject.measure(feeds, exact, found),
                "int8": int8_work.share(path, feeds[0]),
                "errors": None if "ort-cpu" in column else api.check(path, "tensorrt").count("E"),
                "seconds": seconds,
            }
    except (Exception, SystemExit) as error:  # noqa: BLE001  a tool that fails is a cell of the table
        return {"error": " ".join(f"{error}".split())[:160] or type(error).__name__}


def fill(names: list[str], wanted: list[str], samples: int, *, again: bool) -> None:
    """Make the cells that are missing."""
    for name in names:
        folder = CELLS / str(samples) / name
        folder.mkdir(parents=True, exist_ok=True)
        missing = [c for c in wanted if again or not (folder / f"{c}.json").exists()]
        if name in TWINS:
            missing = [c for c in missing if not c.startswith("onnxq tensorrt fast ")]
        if not missing or not SUBJECTS[name].path.exists():
            continue
        feeds = SUBJECTS[name].unseen()
        exact = outputs(SUBJECTS[name].path, feeds, as_written=False)
        float_cell = {"measures": SUBJECTS[name].measure(feeds, exact, exact)}
        (folder / "float.json").write_text(json.dumps(float_cell))
        for column in missing:
            found = cell(name, column, samples, exact, feeds)
            (folder / f"{column}.json").write_text(json.dumps(found))
            print(f"{name}, {column}: {found}", flush=True)


def main() -> None:
    """Parse the command line, fill, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--only", action="append", default=[], metavar="COLUMN")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.names) - set(SUBJECTS):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(SUBJECTS)}")
    names = args.names or list(SUBJECTS)
    wanted = [c for c in columns() if not args.only or any(c.startswith(o) for o in args.only)]
    if not args.table:
        fill(names, wanted, args.samples, again=args.again)
    cells, invented = CELLS / str(args.samples), {n: SUBJECTS[n].invented for n in names}
    print(accuracy_tables(cells, invented, list(columns()), Recipe().effort))


if __name__ == "__main__":
    main()
