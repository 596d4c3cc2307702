"""What a sample of calibration costs, part by part: processor time in ms, which busy neighbours hardly change.

    python scripts/bench_stages.py [resnet50 bert_base ...] [--samples 8]

The forward pass in ONNX Runtime's default session, in one whose threads do not spin, and with the observed tensors as
outputs; counting them; bounds of what float16 must hold; bounds alone of the counted ones; the hash of the sample.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq import Recipe, api
from onnxq.collect import observed, sample_hash, session_for
from onnxq.histogram import Extent, Tally
from onnxq.intake import open_data
from onnxq.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MODELS = Path(__file__).resolve().parents[1] / ".cache" / "models"
TEXT = ",".join(f"{name}:1x128" for name in ("input_ids", "attention_mask", "token_type_ids"))


def cost(function: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Milliseconds of the processor for each, in the better of two rounds."""
    rounds = []
    for _ in range(2):
        begun = time.process_time()
        for item in items:
            function(item)
        rounds.append(1e3 * (time.process_time() - begun) / len(items))
    return min(rounds)


def run(session: Session, feed: dict[str, Any]) -> None:
    """One forward pass."""
    session.run({name: feed[name] for name in session.inputs}, session.outputs)


def add(arrays: dict[str, Any], totals: dict[str, Tally | Extent], _: object) -> None:
    """Count one sample."""
    for name, total in totals.items():
        total.add(arrays[name])


def parts(path: Path, samples: int) -> list[float]:
    """The row of a model: millions of values counted, of values whose bounds are looked at, then ms."""
    recipe = Recipe(effort="fast", shapes=TEXT if "bert" in path.stem else "")
    ready = api.prepared(path, recipe)
    names = ready.plan.observe
    light = [name for name in ready.plan.probes if name not in names]
    session = session_for(ready.graph, (*names, *light), ("cpu",))
    feeds = [feed for _, feed in open_data(f"random:{samples}", ready.graph, recipe).samples()]
    arrays = observed(session, (*names, *light), feeds[0])
    runs = [partial(run, s) for s in (Session(path, as_deployed=True), Session(path), session)]
    counts: tuple[dict[str, Tally | Extent], ...] = (
        {name: Tally() for name in names},
        {name: Extent() for name in light},
        {name: Extent() for name in names},
    )
    values = [sum(arrays[name].size for name in group) / 1e6 for group in (names, light)]
    return [
        *values,
        *(cost(one, feeds) for one in runs),
        *(cost(partial(add, arrays, totals), feeds) for totals in counts),
        cost(sample_hash, feeds),
    ]


def main() -> None:
    """Print a row a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["resnet50", "mobilenet_v2", "bert_base", "vit_b16"])
    parser.add_argument("--samples", type=int, default=8)
    args = parser.parse_args()
    print(
        "| model | counted, M | bounds, M | forward | no spinning | with outputs | counting | bounds | minmax | hash |"
    )
    print(f"|{'---|' * 10}")
    for name in args.models:
        row = " | ".join(f"{value:.1f}" for value in parts(MODELS / f"{name}.onnx", args.samples))
        print(f"| {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
