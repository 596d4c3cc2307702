"""What one sample costs the worker that runs it and the process that drives: how many workers that can feed.

    python scripts/bench_parts.py [digits resnet50 bert_base] [--samples 48]
    python scripts/bench_parts.py resnet50 --merge 10 100 1000
    python scripts/bench_parts.py resnet50 --workers 1 2

The first measures everything in this process, one after the other, in CPU seconds: the figures do not depend on how
busy the machine is, but on its processor. The second adds up so many statistics files. The third runs worker processes,
each on one core, and also tells wall time, which wants a machine with nothing else to do. For docs/many-machines.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pickle  # noqa: TID251  what executors send results with; only our own are read
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxq
from onnxq import Recipe, api, files
from onnxq.collect import sample_hash
from onnxq.intake import open_data
from onnxq.parts import Work, observed
from onnxq.scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnxq.statistics import Statistics

ROOT = Path(__file__).resolve().parent.parent
GROUP = 16


def measure(model: Path, data: str, samples: int) -> tuple[float, float]:
    """CPU milliseconds of a sample in the worker, and in the process that drives."""
    recipe = Recipe(effort="fast", max_samples=samples)
    ready = api.prepared(model, recipe)
    plan = ready.plan
    folder = Scratch()
    path = files.save(ready.graph, folder.path / "model.onnx", external_bytes=files.SPILL_BYTES)[0]
    work = Work(path, ready.graph.digest(), plan.observe, plan.probes, recipe.provider_list, ())
    begun = time.process_time()
    feeds = list(open_data(data, ready.graph, recipe))
    for feed in feeds:
        sample_hash(feed)
    for i in range(0, len(feeds), GROUP):
        pickle.dumps(feeds[i : i + GROUP])
    reading = time.process_time() - begun
    observed(work, feeds[:1])  # loads the model
    begun = time.process_time()
    results = [pickle.dumps(observed(work, feeds[i : i + GROUP])) for i in range(0, len(feeds), GROUP)]
    running = time.process_time() - begun
    begun = time.process_time()
    total: Statistics = pickle.loads(results[0])  # noqa: S301  just made
    for result in results[1:]:
        total += pickle.loads(result)  # noqa: S301  just made
    merging = time.process_time() - begun
    return 1000 * running / total.samples, 1000 * (reading + merging) / total.samples


def merged(model: Path, data: str, counts: Sequence[int]) -> Iterator[str]:
    """A row for each number of files: CPU seconds, milliseconds a file, MiB more at the peak."""
    parts = [onnxq.calibrate(model, data, Recipe(effort="fast", max_samples=n)) for n in range(1, 5)]
    with tempfile.TemporaryDirectory() as name:
        for i in range(max(counts)):
            parts[i % len(parts)].save(Path(name) / f"{i}.npz")
        size = sum(file.stat().st_size for file in Path(name).iterdir()) / max(counts)
        for count in counts:
            before, begun = peak(), time.process_time()
            onnxq.merge([Path(name) / f"{i}.npz" for i in range(count)])
            seconds = time.process_time() - begun
            each = 1000 * seconds / count
            yield f"| {count} | {size / 1e3:.0f} | {seconds:.2f} | {each:.2f} | {peak() - before:.0f} |"


def peak() -> float:
    """The most that this process had in memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def on_one_core(turns: Any) -> None:  # noqa: ANN401  a shared counter
    """In a worker, as it begins: take the next core for itself."""
    with turns.get_lock():
        core, turns.value = turns.value, turns.value + 1
    os.sched_setaffinity(0, {core % (os.cpu_count() or 1)})


def spread(model: Path, data: str, samples: int, workers: int) -> str:
    """A row: wall seconds, and CPU seconds of the driving process and of the workers."""
    context = multiprocessing.get_context("spawn")
    recipe = Recipe(effort="fast", max_samples=samples)
    before = os.times()
    turns = context.Value("i", 0)
    with ProcessPoolExecutor(workers, context, on_one_core, (turns,)) as pool:
        list(pool.map(time.sleep, [0.5] * workers))  # until all are there
        begun = time.monotonic()
        onnxq.calibrate(model, data, recipe, running=onnxq.Running(pool))
        wall = time.monotonic() - begun
    after = os.times()
    here = after.user + after.system - before.user - before.system
    there = after.children_user + after.children_system - before.children_user - before.children_system
    return f"| {workers} | {wall:.1f} | {here:.1f} | {there:.1f} |"


def main() -> None:
    """Print a row a model, or a number of files or workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["digits", "resnet50", "bert_base"])
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--merge", type=int, nargs="+", metavar="FILES")
    parser.add_argument("--workers", type=int, nargs="+")
    args = parser.parse_args()
    heads = {
        "files": "| files | kB each | CPU s | ms a file | MiB more |\n|---|---|---|---|---|",
        "workers": "| workers | wall, s | CPU s here | CPU s of workers |\n|---|---|---|---|",
        "": "| model | f, ms | r + m, ms | n |\n|---|---|---|---|",
    }
    print(f"onnxq {onnxq.__version__}\n" + heads["files" if args.merge else "workers" if args.workers else ""])
    for name in args.models:
        digits = name == "digits"
        path = ROOT / "models/digits/digits.onnx" if digits else ROOT / f".cache/models/{name}.onnx"
        data = str(path.with_name("calib.npz")) if digits else f"random:{args.samples}"
        if args.merge or args.workers:
            for row in merged(path, data, args.merge) if args.merge else ():
                print(row, flush=True)
            for workers in args.workers or ():
                print(spread(path, data, args.samples, workers), flush=True)
            continue
        f, drive = measure(path, data, args.samples)
        print(f"| {name} | {f:.2f} | {drive:.2f} | {f / drive:.0f} |")


if __name__ == "__main__":
    main()
