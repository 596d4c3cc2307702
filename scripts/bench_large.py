"""What `onnxq quantize` takes of a model larger than the memory it may have.

    python scripts/bench_large.py [--gigabytes 6] [--width 2048] [--folder FOLDER] [--only NAME]

Makes the model of make_large.py in a temporary folder, runs each of RUNS on it in a process of its own, and prints wall
and CPU seconds, the most anonymous memory (seen every 20 ms from outside) and VmHWM (all that was resident at a time,
pages of mapped files included, which the system takes back when it needs them).

Each process is limited by the system, and fails when it asks for more: RLIMIT_AS is all address space, libraries and
mapped files included; RLIMIT_DATA is all memory that is its own, and leaves out files that are mapped to be read.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import make_large

if TYPE_CHECKING:
    from collections.abc import Sequence

STATIC = ("--target", "tensorrt@10", "--effort", "fast", "--data", "random:4")
GB = 10**9


class Run(NamedTuple):
    """A run of `onnxq quantize`.

    Attributes:
        name: what the table calls it.
        options: of the command.
        limit: which is set, a key of LIMITS.
        fixed, share: to `fixed` bytes and `share` times the model's.
    """

    name: str
    options: tuple[str, ...]
    limit: str
    fixed: int
    share: float = 0.0


LIMITS = {"RLIMIT_AS": "-v", "RLIMIT_DATA": "-d"}
"""Limit -> the shell's option for it, in KiB."""

RUNS = (
    Run("weight-only", ("--target", "ort-cuda", "--mode", "weight-only"), "RLIMIT_AS", 4 * GB),
    Run("int4", ("--target", "ort-cuda", "--mode", "weight-only", "--weights", "int4/block:32"), "RLIMIT_AS", 4 * GB),
    Run("static", STATIC, "RLIMIT_DATA", GB, 1.0),
    Run("static, 4GB", (*STATIC, "--memory", "4GB"), "RLIMIT_DATA", 4 * GB),
    Run("static, 2GB", (*STATIC, "--memory", "2GB"), "RLIMIT_DATA", 2 * GB),
)


def measured(command: Sequence[str], limit: str, most: int, cwd: Path) -> dict[str, float | str]:
    """Run it within the limit, and look at it from outside."""
    shell = ("sh", "-c", f'ulimit {LIMITS[limit]} {most // 1024}; exec "$@"', "sh", *command)
    before, begun, anonymous, high = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0, 0
    with (cwd / "log").open("w") as log:
        process = subprocess.Popen(shell, cwd=cwd, stdout=log, stderr=log)
        while process.poll() is None:
            found = status(process.pid)
            anonymous, high = max(anonymous, found.get("RssAnon", 0)), max(high, found.get("VmHWM", 0))
            time.sleep(0.02)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        print((cwd / "log").read_text()[-2000:], file=sys.stderr)
    return {
        "limit": f"{limit} {most / 1e6:,.0f}",
        "result": "done" if process.returncode == 0 else f"exit {process.returncode}",
        "wall, s": time.monotonic() - begun,
        "CPU, s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "anonymous, MB": anonymous * 1024 / 1e6,
        "VmHWM, MB": high * 1024 / 1e6,
    }


def status(pid: int) -> dict[str, int]:
    """KiB of each kind of memory, now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {
        key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines) if rest.endswith("kB")
    }


def main() -> None:
    """Make the model, and print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--folder", type=Path, help="where there is room for the model and half of it again")
    parser.add_argument("--only", action="append", choices=[run.name for run in RUNS])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        (folder / "model").mkdir()
        model = make_large.make(folder / "model", args.gigabytes, args.width)
        data = model.with_name("model.data")
        size = data.stat().st_size
        print(f"model: {size / 1e6:,.0f} MB\n")
        print(
            "| run | limit, MB | result | wall, s | CPU, s | anonymous, MB | VmHWM, MB |\n|---|---|---|---|---|---|---|"
        )
        for run in RUNS:
            if args.only and run.name not in args.only:
                continue
            command = (str(Path(sys.executable).with_name("onnxq")), "quantize", str(model), *run.options, "-q")
            row = measured((*command, "-o", "out.onnx"), run.limit, run.fixed + int(run.share * size), folder)
            print(
                f"| {run.name} | " + " | ".join(v if isinstance(v, str) else f"{v:,.0f}" for v in row.values()) + " |"
            )
            for made in folder.glob("out.*"):
                made.unlink()


if __name__ == "__main__":
    main()
