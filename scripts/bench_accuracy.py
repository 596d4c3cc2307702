"""Accuracy side by side: onnxq by effort and calibrator, for TensorRT and for ONNX Runtime, and other tools.

    python scripts/bench_accuracy.py [NAME ...] [--only COLUMN ...] [--samples 32] [--limit SECONDS] [--again] [--table]

One cell is one model by one way of quantizing it: SQNR, task score, share of the MACs in int8 (int8_work.py), share of
those that ONNX Runtime runs in integer kernels on this CPU (as `onnxq check --target ort-cpu` proves it), errors of
`onnxq check`, seconds. Cells lie in .cache/bench/accuracy/<model>/<column>.json and what is there is kept;
`--again` makes those that are named anew, `--table` only prints. Names are those of subjects.py. `--only onnxq`
takes every column that starts so. Every tool calibrates on the same feeds; other feeds judge. Everything but int8 is
float32, in the columns that end in float16 that. Q/DQ graphs are judged as they are written; forms for ONNX Runtime's
CPU as it runs them, and graphs of other tools both ways. A tool that takes longer than `--limit` is left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import int8_work
import peers
from bench_tables import accuracy_tables
from subjects import ROOT, SUBJECTS

from onnxq import Recipe, api, proof
from onnxq.recipe import EFFORTS
from onnxq.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from scores import Feed, Outputs

    Make = Callable[[str, int, Path], tuple[Path, float]]  # model, samples, folder -> file, seconds

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


def ours(recipe: Recipe) -> Make:
    """`onnxq quantize` with this recipe."""

    def make(name: str, samples: int, folder: Path) -> tuple[Path, float]:
        begun = time.perf_counter()
        graph, _ = api.quantize(SUBJECTS[name].path, SUBJECTS[name].calibration(samples), recipe)
        api.export(graph, folder / "int8.onnx")
        return folder / "int8.onnx", time.perf_counter() - begun

    return make


def theirs(variant: str, limit: float | None) -> Make:
    """Another tool, see peers.py."""

    def make(name: str, samples: int, _folder: Path) -> tuple[Path, float]:
        path, seconds = peers.made(variant, name, samples, limit)
        if isinstance(path, str):
            raise SystemExit(path)
        return path, seconds

    return make


def columns(limit: float | None = None) -> dict[str, Make]:
    """Name -> how the model is quantized."""
    found = {}
    for effort in EFFORTS:
        found[f"onnxq tensorrt {effort}"] = ours(Recipe(target="tensorrt", effort=effort, high_precision="fp32"))
        found[f"onnxq tensorrt {effort} float16"] = ours(Recipe(target="tensorrt", effort=effort))  # its default
        found[f"onnxq ort-cpu {effort}"] = ours(Recipe(target="ort-cpu", effort=effort))
    for calibrator in CALIBRATORS[1:]:
        recipe = Recipe(target="tensorrt", effort="fast", calibrator=calibrator, high_precision="fp32")
        found[f"onnxq tensorrt fast {calibrator}"] = ours(recipe)
    return found | {variant: theirs(variant, limit) for variant in PEERS}


def outputs(path: Path, feeds: list[Feed], *, as_written: bool) -> Outputs:
    """Every output for every feed."""
    session = Session(path, as_written=as_written)
    return [session.run(feed) for feed in feeds]


def cell(name: str, column: str, make: Make, samples: int, exact: Outputs, feeds: list[Feed]) -> dict[str, Any]:
    """Quantize and measure; an error becomes the cell's text."""
    subject = SUBJECTS[name]

    def measures(path: Path, *, as_written: bool) -> dict[str, float]:
        return dict(subject.measure(feeds, exact, outputs(path, feeds, as_written=as_written)))

    try:
        with tempfile.TemporaryDirectory() as folder:
            path, seconds = make(name, samples, Path(folder))
            found = {
                "measures": measures(path, as_written=not column.startswith("onnxq ort-cpu")),
                "int8": int8_work.share(path, feeds[0]),
                "errors": None if "ort-cpu" in column else api.check(path, "tensorrt").count("E"),
                "seconds": seconds,
            }
            if column in PEERS:
                found["as run"] = measures(path, as_written=False)
            if not column.startswith("onnxq tensorrt"):  # that form is for another runtime
                found["integers"] = proof.prove(path, subject.calibration(1)[0]).mac_share()
            return found
    except (Exception, SystemExit) as error:  # noqa: BLE001  a tool that fails is a cell of the table
        return {"error": " ".join(f"{error}".split())[:160] or type(error).__name__}


def fill(names: list[str], wanted: dict[str, Make], samples: int, *, again: bool) -> None:
    """Make the cells that are missing."""
    for name in names:
        folder = CELLS / str(samples) / name
        folder.mkdir(parents=True, exist_ok=True)
        missing = [c for c in wanted if again or not (folder / f"{c}.json").exists()]
        if name in TWINS:
            missing = [c for c in missing if c.removeprefix("onnxq tensorrt fast ") not in CALIBRATORS]
        if not missing or not SUBJECTS[name].path.exists():
            continue
        feeds = SUBJECTS[name].unseen()
        exact = outputs(SUBJECTS[name].path, feeds, as_written=False)
        float_cell = {"measures": SUBJECTS[name].measure(feeds, exact, exact)}
        (folder / "float.json").write_text(json.dumps(float_cell))
        for column in missing:
            found = cell(name, column, wanted[column], samples, exact, feeds)
            (folder / f"{column}.json").write_text(json.dumps(found))
            print(f"{name}, {column}: {found}", flush=True)


def main() -> None:
    """Parse the command line, fill, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--only", action="append", default=[], metavar="COLUMN")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="leave a tool out that takes longer on a model")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.names) - set(SUBJECTS):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(SUBJECTS)}")
    names = args.names or list(SUBJECTS)
    ways = columns(args.limit)
    wanted = {c: make for c, make in ways.items() if not args.only or any(c.startswith(o) for o in args.only)}
    if not args.table:
        fill(names, wanted, args.samples, again=args.again)
    cells, invented = CELLS / str(args.samples), {n: SUBJECTS[n].invented for n in names}
    print(accuracy_tables(cells, invented, list(ways), Recipe().effort))


if __name__ == "__main__":
    main()
