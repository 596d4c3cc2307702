"""How the time and memory of every command grow with the number of nodes; each run is a process of its own.

    python scripts/bench_growth_commands.py [--kind inception] [--sizes 1000 4000 12000] [--command show] [--limit 600]

The models are those of synthetic.py, whose tensors are small, so that it is work on the graph that is measured. A
command that reads a quantized model gets what `quantize --effort fast` made for its target. Seconds are CPU seconds of
all threads, from start to end. The exponent is that of the seconds beyond those of a model of SMALL nodes: 1 is linear,
n log n is 1.1 to 1.15 here, 2 is quadratic. A size that would take more than the limit by that exponent is left out.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import synthetic
from rich.console import Console  # noqa: TID251  a script, outside the engine
from rich.table import Table  # noqa: TID251  likewise

if TYPE_CHECKING:
    from collections.abc import Sequence

SMALL = 100
SIZES = (1000, 4000, 12000)
LIMIT = 600.0
MADE = "quantize {float} --data random:2 --effort fast -o {{{target}}} --target {target}"
"""How the model is made that commands for a target read."""

COMMANDS = {
    "fast": "quantize {float} --data random:2 --effort fast -o {out}",
    "fast, report": "quantize {float} --data random:2 --effort fast -o {out} --report {page}",
    "fast, ort-cpu": "quantize {float} --data random:2 --effort fast -o {out} --target ort-cpu",
    "weight-only": "quantize {float} --mode weight-only -o {out}",
    "dynamic": "quantize {float} --mode dynamic --target ort-cpu -o {out}",
    "plan": "plan {float}",
    "plan, ort-cpu": "plan {float} --target ort-cpu",
    "show": "show {tensorrt}",
    "check": "check {tensorrt}",
    "check, @8": "check {tensorrt} --target tensorrt@8",
    "check, @10+dla": "check {tensorrt} --target tensorrt@10+dla",
    "check, ort-cuda": "check {tensorrt} --target ort-cuda",
    "check, ort-cpu": "check {ort-cpu} --target ort-cpu",
    "compare": "compare {float} {tensorrt} --data random:2",
    "compare, layers": "compare {float} {tensorrt} --data random:2 --layers --report {page}",
    "balanced": "quantize {float} --data random:16 -o {out}",
    "sensitivity": "sensitivity {float} --data random:8 --effort fast -o {json}",
    "min-sqnr": "quantize {float} --data random:8 --effort fast -o {out} --min-sqnr 60",
}
"""Label -> command line."""


def run(line: str, places: dict[str, str], folder: Path) -> tuple[float, float]:
    """CPU seconds and peak MiB of one command."""
    words = [word.format_map(places) for word in line.split()]
    with (folder / "said").open("w+") as said:
        started = subprocess.Popen(
            [Path(sys.executable).with_name("onnxq"), *words], cwd=folder, stdout=said, stderr=said
        )
        _, status, used = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if started.returncode not in (0, 3):
        sys.exit(f"onnxq {' '.join(words)}: {text[-2000:]}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class Models:
    """The models of one kind and size, made when a command first needs them."""

    def __init__(self, kind: str, size: int, folder: Path) -> None:
        self.folder = folder / f"{kind}{size}"
        self.folder.mkdir(exist_ok=True)
        self.places = {
            n: str(self.folder / f) for n, f in (("out", "out.onnx"), ("page", "p.html"), ("json", "s.json"))
        }
        self._kind, self._size = kind, size

    def run(self, line: str) -> tuple[float, float]:
        """CPU seconds and peak MiB of one command, after what it reads has been made."""
        for name in ("float", "tensorrt", "ort-cpu"):
            if f"{{{name}}}" in line and name not in self.places:
                self.places[name] = str(self.folder / f"{name}.onnx")
                if name == "float":
                    onnx.save(synthetic.KINDS[self._kind](self._size), self.places[name])
                else:
                    self.run(MADE.format(float="{float}", target=name))
        return run(line, self.places, self.folder)


def exponent(found: dict[int, tuple[float, float]]) -> float:
    """Of the last two sizes' seconds beyond those of the first."""
    (_, (base, _)), *_, (few, (less, _)), (many, (more, _)) = found.items()
    return math.log(max(more - base, 1e-3) / max(less - base, 1e-3)) / math.log(many / few)


def grown(line: str, sizes: Sequence[int], limit: float, models: dict[int, Models]) -> dict[int, tuple[float, float]]:
    """Size -> CPU seconds and peak MiB, as far as the limit allows."""
    found: dict[int, tuple[float, float]] = {}
    for size in (SMALL, *sizes):
        if len(found) > 1:
            last, power = max(found), min(exponent(found), 2.0) if len(found) > 2 else 1.0
            if found[last][0] * (size / last) ** power > limit:
                break
        found[size] = models[size].run(line)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--kind", action="append", choices=list(synthetic.KINDS))
    parser.add_argument("--command", action="append", choices=list(COMMANDS))
    parser.add_argument("--limit", type=float, default=LIMIT, help="CPU seconds of one run")
    args = parser.parse_args(arguments)
    console = Console(width=150)
    for kind in args.kind or ("transformer", "inception"):
        table = Table("command", *(f"{n}: s, MiB" for n in (SMALL, *args.sizes)), "exponent", title=kind)
        with tempfile.TemporaryDirectory() as folder:
            models = {size: Models(kind, size, Path(folder)) for size in (SMALL, *args.sizes)}
            for name in args.command or COMMANDS:
                found = grown(COMMANDS[name], args.sizes, args.limit, models)
                cells = [f"{found[n][0]:.1f}, {found[n][1]:.0f}" if n in found else "" for n in (SMALL, *args.sizes)]
                row = (name, *cells, f"{exponent(found):.2f}" if len(found) > 2 else "")
                console.print(" | ".join(row))  # as it comes: all takes long
                table.add_row(*row)
        console.print(table)


if __name__ == "__main__":
    main()
