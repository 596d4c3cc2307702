"""Where the time goes on the CPU, kernel by kernel: ours beside other tools' graphs, undisturbed by neighbours.

    python scripts/kernel_sums.py NAME [--runs 60] [--top 0] [--only TEXT ...] [--file FILE ...]

NAME is one of subjects.py; the files are those that bench_latency.py NAME has left, and any `--file`.
Every file runs with one thread under ONNX Runtime's profiler, in turns. Of each kernel the fastest of all runs counts:
a neighbour lengthens some runs of a kernel, hardly all of them. The sum of these is printed in milliseconds, and by
operator; with `--top N` also the N slowest kernels of each file, in order of execution.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers
from bench_latency import OUT, PEERS, timed
from subjects import SUBJECTS

SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class Kernel:
    """One kernel of an optimized graph.

    Attributes:
        name: of its node.
        op: its operator.
        ms: its fastest time.
    """

    name: str
    op: str
    ms: float


def sessions(files: dict[str, Path], folder: Path) -> dict[str, Any]:
    """Profiling sessions of one thread."""
    import onnxruntime as ort  # noqa: TID251  measured bare, outside the engine

    found = {}
    for index, (what, path) in enumerate(files.items()):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / str(index))
        found[what] = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return found


def kernels(profile: Path, skipped: int = 3) -> list[Kernel]:
    """The fastest time of each kernel in a profile, in order of execution; the first runs do not count."""
    times: dict[tuple[str, str, str], list[float]] = {}
    for event in json.loads(profile.read_text()):
        if event["name"].endswith(SUFFIX):
            key = event["args"]["node_index"], event["name"].removesuffix(SUFFIX), event["args"]["op_name"]
            times.setdefault(key, []).append(event["dur"] / 1000)
    return [Kernel(name, op, min(each[skipped:])) for (_, name, op), each in times.items()]


def measured(files: dict[str, Path], feed: Any, runs: int) -> dict[str, list[Kernel]]:  # noqa: ANN401  a Feed
    """Kernels of each file, from runs in turns."""
    with tempfile.TemporaryDirectory() as folder:
        opened = sessions(files, Path(folder))
        for _ in range(runs + 3):
            for session in opened.values():
                session.run(None, feed)
        return {what: kernels(Path(session.end_profiling())) for what, session in opened.items()}


def by_operator(found: list[Kernel]) -> Counter[str]:
    """Operator -> the sum of its kernels, in ms."""
    sums: Counter[str] = Counter()
    for kernel in found:
        sums[kernel.op] += kernel.ms  # type: ignore[assignment]  # a Counter of floats
    return sums


def left(name: str) -> dict[str, Path]:
    """Row -> file: the float model, and what bench_latency.py and peers.py have made of it."""
    theirs = {variant: peers.OUT / name / f"{variant}.onnx" for variant in PEERS}
    ours = {path.stem: path for path in sorted((OUT / name).glob("*.onnx"))}
    return {"float": SUBJECTS[name].path} | ours | {what: path for what, path in theirs.items() if path.exists()}


def show(found: dict[str, list[Kernel]], top: int) -> None:
    """Print the sums, the operators of 1 % and more, and the slowest kernels."""
    float_sum = sum(k.ms for k in found.get("float", []))
    for what, each in sorted(found.items(), key=lambda item: sum(k.ms for k in item[1])):
        total = sum(k.ms for k in each)
        parts = [f"{op} {ms:.2f}" for op, ms in by_operator(each).most_common() if ms >= total / 100]
        ratio = f", {total / float_sum:.3f} of float" if float_sum else ""
        print(f"{what}: {total:.2f} ms{ratio}, {len(each)} kernels: {', '.join(parts)}")
        least = sorted((k.ms for k in each), reverse=True)[:top][-1:]
        for kernel in each if top else ():
            if kernel.ms >= least[0]:
                print(f"    {kernel.ms:7.3f}  {kernel.op:24} {kernel.name}")


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SUBJECTS)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--top", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], help="files whose row has this in its name")
    parser.add_argument("--file", action="append", default=[], type=Path, help="beside those of bench_latency.py")
    args = parser.parse_args()
    wanted = {what: p for what, p in left(args.name).items() if not args.only or any(o in what for o in args.only)}
    show(measured(wanted | {path.name: path for path in args.file}, timed(args.name), args.runs), args.top)


if __name__ == "__main__":
    main()
