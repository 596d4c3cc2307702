"""Where the time goes on the CPU, kernel by kernel: ours beside other tools' graphs, undisturbed by neighbours.

    python scripts/kernel_sums.py NAME [--runs 60] [--samples 16] [--top 0] [--only TEXT ...] [--file FILE ...]

NAME is one of subjects.py; the files are those that bench_latency.py NAME has left, and any `--file`.
Every file runs with one thread, in turns. "CPU" is the least processor time of a whole run, in milliseconds. Then the
same under ONNX Runtime's profiler: of each kernel the fastest of all runs counts, since a neighbour lengthens some runs
of a kernel, hardly all of them; their sum is printed, and that by operator. The longer a kernel, the rarer is a run
of it that nobody disturbs: where one kernel stands for many, trust the processor time. `--top N` prints the N slowest
kernels of each file, in order of execution.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
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


def sessions(files: dict[str, Path], profiles: Path | None = None) -> dict[str, Any]:
    """Sessions of one thread; profiles go to a folder, where one is given."""
    import onnxruntime as ort  # noqa: TID251  measured bare, outside the engine

    found = {}
    for index, (what, path) in enumerate(files.items()):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        if profiles is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profiles / str(index))
        found[what] = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return found


def processor(files: dict[str, Path], feed: Any, runs: int) -> dict[str, float]:  # noqa: ANN401  a Feed
    """The least processor time of a run of each file, in ms."""
    opened = sessions(files)
    times: dict[str, list[float]] = {what: [] for what in opened}
    for _ in range(runs + 3):
        for what, session in opened.items():
            begun = time.thread_time()  # a session of one thread runs in the caller's
            session.run(None, feed)
            times[what].append((time.thread_time() - begun) * 1000)
    return {what: min(each[3:]) for what, each in times.items()}


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


def left(name: str, samples: int) -> dict[str, Path]:
    """Row -> file: the float model, and what bench_latency.py and peers.py have made of it."""
    theirs = {variant: peers.folder_of(name, samples) / f"{variant}.onnx" for variant in PEERS}
    ours = {path.stem: path for path in sorted((OUT / name).glob("*.onnx"))}
    return {"float": SUBJECTS[name].path} | ours | {what: path for what, path in theirs.items() if path.exists()}


def show(cpu: dict[str, float], found: dict[str, list[Kernel]], top: int) -> None:
    """Print both sums, the operators of 1 % and more, and the slowest kernels."""
    for what in sorted(found, key=lambda name: cpu[name]):
        each, total = found[what], sum(k.ms for k in found[what])
        parts = [f"{op} {ms:.2f}" for op, ms in by_operator(each).most_common() if ms >= total / 100]
        ratio = f" ({cpu[what] / cpu['float']:.3f} of float)" if "float" in cpu else ""
        print(f"{what}: CPU {cpu[what]:.2f} ms{ratio}, {len(each)} kernels {total:.2f} ms: {', '.join(parts)}")
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
    parser.add_argument("--samples", type=int, default=16, help="that other tools calibrated on")
    parser.add_argument("--only", action="append", default=[], help="files whose row has this in its name")
    parser.add_argument("--file", action="append", default=[], type=Path, help="beside those of bench_latency.py")
    args = parser.parse_args()
    wanted = {
        what: p
        for what, p in left(args.name, args.samples).items()
        if not args.only or any(o in what for o in args.only)
    }
    wanted |= {path.name: path for path in args.file}
    feed = timed(args.name)
    show(processor(wanted, feed, args.runs), measured(wanted, feed, args.runs), args.top)


if __name__ == "__main__":
    main()
