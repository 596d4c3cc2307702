"""What one sample costs the worker that runs it and the process that drives: how many workers that can feed.

    python scripts/bench_parts.py [digits resnet50 bert_base] [--samples 48]

Everything is measured in this process, one after the other, in CPU seconds: the figures do not depend on how busy the
machine is, but on its processor. For docs/many-machines.md.
"""

from __future__ import annotations

import argparse
import pickle  # noqa: TID251  what executors send results with; only our own are read
import time
from pathlib import Path
from typing import TYPE_CHECKING

import onnxq
from onnxq import Recipe, api
from onnxq.collect import sample_hash
from onnxq.intake import open_data
from onnxq.parts import Work, observed

if TYPE_CHECKING:
    from onnxq.statistics import Statistics

ROOT = Path(__file__).resolve().parent.parent
GROUP = 16


def measure(model: Path, data: str, samples: int) -> tuple[float, float]:
    """CPU milliseconds of a sample in the worker, and in the process that drives."""
    recipe = Recipe(effort="fast", max_samples=samples)
    ready = api.prepared(model, recipe)
    plan = ready.plan
    work = Work(ready.graph.to_proto().SerializeToString(), plan.observe, plan.probes, recipe.provider_list, ())
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


def main() -> None:
    """Print a row a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["digits", "resnet50", "bert_base"])
    parser.add_argument("--samples", type=int, default=48)
    args = parser.parse_args()
    print(f"onnxq {onnxq.__version__}\n| model | f, ms | r + m, ms | n |\n|---|---|---|---|")
    for name in args.models:
        digits = name == "digits"
        path = ROOT / "models/digits/digits.onnx" if digits else ROOT / f".cache/models/{name}.onnx"
        data = str(path.with_name("calib.npz")) if digits else f"random:{args.samples}"
        f, drive = measure(path, data, args.samples)
        print(f"| {name} | {f:.2f} | {drive:.2f} | {f / drive:.0f} |")


if __name__ == "__main__":
    main()
