"""Calibration on a GPU: tensors fetched and counted on the CPU, against counts made on the device; the same bits.

    python scripts/bench_gpu_counting.py [--model NAME ...] [--samples 32] [--dry-run]

Without a GPU that ONNX Runtime can use it says so and ends with status 0. One session each; both run the same samples
in turns. `same bits`: tensors whose two histograms are one. ONNX Runtime may fuse the two graphs differently, and CUDA
may choose other algorithms: then the tensors differ, not their counting (tests/onnxq/test_on_device.py).
`--dry-run` goes the same way on the CPU provider, to see that all of it works; its times say nothing of a GPU.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from gpu import MODELS, is_there, may_measure, options

from onnxq import Recipe, api
from onnxq.collect import observed, session_for
from onnxq.histogram import Histogram, Tally
from onnxq.intake import open_data
from onnxq.on_device import OnDevice

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("resnet50", "mobilenet_v2", "vit_b16", "bert_base")
TEXT = ",".join(f"{name}:1x128" for name in ("input_ids", "attention_mask", "token_type_ids"))


def measure(path: Path, samples: int, provider: str) -> str:
    """One line of the table."""
    recipe = Recipe(effort="fast", high_precision="fp32", shapes=TEXT if "bert" in path.stem else "")
    ready = api.prepared(path, recipe)
    names = ready.plan.observe
    session = session_for(ready.graph, names, (provider,))
    device = OnDevice(ready.graph, names, (), ((provider,), ()))
    seconds = {"run": 0.0, "fetched": 0.0, "device": 0.0}
    fetched, counted = ({name: Tally() for name in names} for _ in range(2))
    for number, (_, feed) in enumerate(open_data(f"random:{samples + 1}", ready.graph, recipe).samples()):
        begun = time.perf_counter()
        arrays = observed(session, names, feed)
        ran = time.perf_counter()
        for name, array in arrays.items():
            fetched[name].add(array)
        between = time.perf_counter()
        for name, found in device.observed(feed).items():
            if isinstance(found, Histogram):
                counted[name].take(found)
            else:
                counted[name].add(found)
        if number:  # the first warms up, and is run twice
            ended = time.perf_counter()
            times = {"run": ran - begun, "fetched": between - begun, "device": ended - between}
            seconds = {key: seconds[key] + spent for key, spent in times.items()}
    same = sum(fetched[name].histogram() == counted[name].histogram() for name in names)
    per = {key: 1e3 * spent / samples for key, spent in seconds.items()}
    ratio = per["fetched"] / per["device"]
    cells = (*(f"{per[key]:.2f}" for key in ("run", "fetched", "device")), f"{ratio:.2f}", f"{same} of {len(names)}")
    return f"| {path.stem} | {' | '.join(cells)} |"


def main() -> None:
    """Measure, and print the table."""
    parser = options(str(__doc__), NAMES, list(NAMES))
    parser.add_argument("--samples", type=int, default=32)
    given = parser.parse_args()
    if not may_measure(dry_run=given.dry_run):
        return
    sys.stdout.write("| model | run and fetch, ms | and count on the CPU | count on the device | ratio | same bits |\n")
    sys.stdout.write("|---|---|---|---|---|---|\n")
    for name in given.model:
        path = MODELS / f"{name}.onnx"
        if is_there(path):
            sys.stdout.write(measure(path, given.samples, "cpu" if given.dry_run else "cuda") + "\n")


if __name__ == "__main__":
    main()
