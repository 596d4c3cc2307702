"""How time and memory grow with nodes, samples and the size of the model; each run is a process of its own.

    python scripts/bench_growth.py nodes [--sizes 1000 2000 4000 8000] [--kind residual --kind transformer]
    python scripts/bench_growth.py samples [--sizes 64 128 256 512]
    python scripts/bench_growth.py megabytes [--sizes 60 120 240 480]
    python scripts/bench_growth.py nodes --plot docs    # also writes docs/growth-nodes.svg; needs onnxq[bench]

The models are those of synthetic.py, and for megabytes that of make_large.py. Seconds are CPU seconds of all threads:
on a machine that others use too they vary less than wall time. The last column is seconds or MiB over those of the row
before, divided by the sizes' ratio: 1 is linear, 2 where the size doubles is quadratic.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import make_large
import synthetic
from rich.console import Console  # noqa: TID251  a script, outside the engine
from rich.table import Table  # noqa: TID251  likewise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STAGES = ("load", "prepare", "place", "observe", "lower", "export", "check")
SIZES = {"nodes": (1000, 2000, 4000, 8000), "samples": (64, 128, 256, 512), "megabytes": (60, 120, 240, 480)}
LARGE = "large"
FEW_NODES = 200  # of the model that many samples are drawn for


def child(kind: str, size: int, samples: int) -> dict[str, float]:
    """CPU seconds of every stage and the process's peak memory in MiB, files mapped by it included.

    `size` is in nodes, or megabytes of the kind "large".
    """
    import onnx

    from onnxq import Recipe, api, files, pipeline
    from onnxq.modes import lowest_opset
    from onnxq.passes import prepare
    from onnxq.targets import get_target

    found: dict[str, float] = {}

    def timed(stage: str, step: Callable[[], Any]) -> Any:  # noqa: ANN401  whatever the step gives
        begun = time.process_time()
        result = step()
        found[stage] = time.process_time() - begun
        return result

    recipe = Recipe(target="tensorrt@10")
    target = get_target(recipe.target)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        if kind == LARGE:
            make_large.make(Path(folder), size / 1000, 1024)
        else:
            onnx.save(synthetic.KINDS[kind](size), path)
        graph = timed("load", lambda: files.load(path))
        timed("prepare", lambda: pipeline.run(graph, prepare(lowest_opset(recipe, target), target.placement)))
        graph = files.spill(graph) if files.weight_bytes(graph) > files.SPILL_BYTES else graph
        ready = api.Prepared(graph, timed("place", lambda: api.planned(graph, recipe)), recipe)
        seen = timed("observe", lambda: api.observe(ready, f"random:{samples}"))
        made, _ = timed("lower", lambda: api.lowered(ready, seen))
        timed("export", lambda: api.export(made, out))
        timed("check", lambda: api.check(out, recipe.target))
    found["MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return found


def measured(kind: str, what: str, size: int) -> dict[str, float]:
    """The same, in a process of its own."""
    nodes, samples = (FEW_NODES, size) if what == "samples" else (size, 1)
    command = (sys.executable, __file__, "child", "--kind", kind, "--sizes", str(nodes), str(samples))
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def show(kind: str, what: str, rows: dict[int, dict[str, float]]) -> None:
    """One line a size: seconds a stage, all of them, memory, and how both grew."""
    table = Table(what, *STAGES, "all, s", "s, ratio", "MiB", "MiB, ratio", title=kind)
    before: tuple[int, float, float] | None = None
    for size, row in rows.items():
        total, mib = sum(row[stage] for stage in STAGES), row["MiB"]
        cells = [f"{row[stage]:.2f}" for stage in STAGES]
        grown = ("", "")
        if before is not None:
            step = size / before[0]
            grown = (f"{total / before[1] / step:.2f}", f"{mib / before[2] / step:.2f}")
        table.add_row(str(size), *cells, f"{total:.2f}", grown[0], f"{mib:.0f}", grown[1])
        before = size, total, mib
    Console(width=130).print(table)


def plot(what: str, found: dict[str, dict[int, dict[str, float]]], folder: Path) -> None:
    """Seconds and memory against size, as a small SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "onnxq"  # the same file for the same numbers
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for kind, rows in found.items():
        sizes = list(rows)
        left.plot(sizes, [sum(row[stage] for stage in STAGES) for row in rows.values()], "o-", label=kind)
        right.plot(sizes, [row["MiB"] for row in rows.values()], "o-", label=kind)
    left.set(xlabel=what, ylabel="CPU seconds", xlim=0, ylim=0)
    right.set(xlabel=what, ylabel="peak MiB", xlim=0, ylim=0)
    left.legend()
    figure.savefig(folder / f"growth-{what}.svg", metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*SIZES, "child"))
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--kind", action="append", choices=[*synthetic.KINDS, LARGE])
    parser.add_argument("--plot", type=Path, help="folder for the SVG")
    args = parser.parse_args(arguments)
    if args.what == "child":
        print(json.dumps(child(args.kind[0], *args.sizes)))
        return
    found = {}
    for kind in args.kind or ([LARGE] if args.what == "megabytes" else list(synthetic.KINDS)):
        found[kind] = {size: measured(kind, args.what, size) for size in args.sizes or SIZES[args.what]}
        show(kind, args.what, found[kind])
    if args.plot is not None:
        plot(args.what, found, args.plot)


if __name__ == "__main__":
    main()
