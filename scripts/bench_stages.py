"""What a sample of calibration costs, part by part and as a whole, in ms.

    python scripts/bench_stages.py [resnet50 bert_base ...] [--samples 8]

Parts, by processor time, which busy neighbours hardly change: the forward pass in ONNX Runtime's default session, in
one whose threads do not spin, and in the session that gives the observed tensors; counting them; bounds of what float16
must hold; bounds alone of the counted ones; the hash; where it is done so, the forward pass of the model that
counts itself, all or bounds alone, which stands for all but the hash. Then how many samples run at once, and what one
more sample costs a whole `collect`, by processor time and by the clock: all calibrators' statistics, and bounds alone.
The clock's column of the forward pass is that of the default session.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq import Recipe, api
from onnxq.collect import collect, observed, sample_hash, session_at_once
from onnxq.histogram import Extent, Tally
from onnxq.intake import open_data
from onnxq.on_cpu import on_cpu
from onnxq.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MODELS = Path(__file__).resolve().parents[1] / ".cache" / "models"
TEXT = ",".join(f"{name}:1x128" for name in ("input_ids", "attention_mask", "token_type_ids"))
ROUNDS = 3


def cost(function: Callable[[Any], object], items: Sequence[Any]) -> tuple[float, float]:
    """Milliseconds for each: of the processor, and by the clock, each in the best of some rounds."""
    return least(partial(all_of, function, items), len(items))


def all_of(function: Callable[[Any], object], items: Sequence[Any]) -> None:
    """Call the function on each."""
    for item in items:
        function(item)


def least(work: Callable[[], object], count: int) -> tuple[float, float]:
    """The same of work on so many items."""
    rounds = []
    for _ in range(ROUNDS):
        begun = time.process_time(), time.perf_counter()
        work()
        ended = time.process_time(), time.perf_counter()
        rounds.append([1e3 * (after - before) / count for before, after in zip(begun, ended, strict=True)])
    processor, clock = (min(column) for column in zip(*rounds, strict=True))
    return processor, clock


def run(session: Session, feed: dict[str, Any]) -> None:
    """One forward pass."""
    session.run({name: feed[name] for name in session.inputs}, session.outputs)


def add(arrays: dict[str, Any], totals: dict[str, Tally | Extent], _: object) -> None:
    """Count one sample."""
    for name, total in totals.items():
        total.add(arrays[name])


def parts(path: Path, samples: int) -> list[str]:
    """The row of a model: millions of values counted, of values whose bounds are looked at, then ms."""
    recipe = Recipe(effort="fast", shapes=TEXT if "bert" in path.stem else "")
    ready = api.prepared(path, recipe)
    names = ready.plan.observe
    light = tuple(name for name in ready.plan.probes if name not in names)
    session, most = session_at_once(ready.graph, (*names, *light))
    feeds = [feed for _, feed in open_data(f"random:{samples}", ready.graph, recipe).samples()]
    arrays = observed(session, (*names, *light), feeds[0])
    forward, *runs = (cost(partial(run, s), feeds) for s in (Session(path, as_deployed=True), Session(path), session))
    counts: tuple[dict[str, Tally | Extent], ...] = (
        {name: Tally() for name in names},
        {name: Extent() for name in light},
        {name: Extent() for name in names},
    )
    values = [sum(arrays[name].size for name in group) / 1e6 for group in (names, light)]
    others = [*runs, *(cost(partial(add, arrays, totals), feeds) for totals in counts), cost(sample_hash, feeds)]
    passing = [on_cpu(ready.graph, *asked, ("cpu",), ()) for asked in ((names, light), ((), (*names, *light)))]
    inside = [f"{cost(made.observed, feeds)[0]:.1f}" if made else "" for made in passing]
    most = passing[0].most if passing[0] else most
    everything, bounds = (one_more(ready, feeds, *asked) for asked in ((names, light), ((), (*names, *light))))
    clock = [both[1] for both in (forward, everything, bounds)]
    found = [*values, forward[0], *(both[0] for both in others)]
    cells = [f"{value:.1f}" for value in found]
    return [*cells, *inside, str(most), *(f"{value:.1f}" for value in (everything[0], bounds[0], *clock))]


def one_more(
    ready: api.Prepared, feeds: Sequence[Mapping[str, Any]], tensors: Sequence[str], bounds: Sequence[str]
) -> tuple[float, float]:
    """Milliseconds, of the processor and by the clock, that `collect` takes for one more sample."""

    def whole(times: int) -> None:
        source = open_data([dict(feed) for feed in times * list(feeds)], ready.graph, ready.recipe)
        collect(ready.graph, tensors, source, bounds=bounds)

    few, many = (least(partial(whole, times), 1) for times in (1, 4))
    processor, clock = ((b - a) / (3 * len(feeds)) for a, b in zip(few, many, strict=True))
    return processor, clock


COLUMNS = (
    *("model", "counted, M", "bounds, M", "forward", "no spinning", "with outputs", "counting", "bounds", "minmax"),
    *(
        "hash",
        "counting itself",
        "bounds itself",
        "at once",
        "all of collect",
        "of minmax alone",
        "clock: forward",
        "clock: all",
        "clock: minmax",
    ),
)


def main() -> None:
    """Print a row a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["resnet50", "mobilenet_v2", "bert_base", "vit_b16"])
    parser.add_argument("--samples", type=int, default=8)
    args = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|{'---|' * len(COLUMNS)}")
    for name in args.models:
        print(f"| {name} | {' | '.join(parts(MODELS / f'{name}.onnx', args.samples))} |", flush=True)


if __name__ == "__main__":
    main()
