"""Latency and accuracy on the CPU: our graphs and other tools', against the float model, in turns within one run.

    python scripts/bench_latency.py [NAME ...] [--rounds 60] [--samples 16] [--keep]

Names: those of subjects.py; without any, resnet50, mobilenet_v2, minilm and bert_base. Every session has two threads
that do not spin: waiting threads would take the cores from the session whose turn it is. Reported is the median over
all rounds of the ratio to the float model's time in the same round. SQNR, of texts without their padding, is measured
twice: with exact kernels, and as this CPU runs the file, which saturates where it has no VNNI. Other tools run as
peers.py says; what they made and is there is kept.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import peers
from scores import sqnr
from subjects import LENGTH, ROOT, SUBJECTS, TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable

    from subjects import Feed

OUT = ROOT / ".cache" / "latency"
THREADS = 2
TARGETS = {"resnet50": 0.30, "minilm": 0.25, "bert_base": 0.50, "mobilenet_v2": 0.80}
"""Model -> the ratio to float that is asked for."""
OURS: dict[str, dict[str, Any]] = {
    "onnxq ort-cpu": {"target": "ort-cpu"},
    "onnxq ort-cpu, operators": {"target": "ort-cpu", "format": "qoperator"},
    "onnxq ort-cpu, a scale per weight": {"target": "ort-cpu", "format": "qoperator", "weights": "int8/tensor"},
    "onnxq ort-cpu, 7 bits": {"target": "ort-cpu", "reduce_range": True},
    "onnxq tensorrt@10": {"target": "tensorrt@10"},
}
"""Row -> fields of the recipe."""
PEERS = (
    *("ort_static", "ort_uint8_per_tensor", "ort_uint8", "ort_uint8_operators", "ort_uint8_7bit"),
    *("ort_dynamic", "ort_dynamic_per_channel"),
    *("onnxsim_static", "onnxsim_static_full", "onnxsim_qoperator"),
    *("quark_a8w8", "quark_uint8"),
)
PASSES, WARM = 4, 3  # how often sessions are made anew, and rounds that then do not count
JUDGED = 4  # feeds that accuracy is measured on


def timed(name: str) -> Feed:
    """What latency is measured on: one sample, texts LENGTH tokens long."""
    feed = SUBJECTS[name].calibration(1)[0]
    if set(TOKENS) <= set(feed):
        ids = np.random.default_rng(0).integers(1000, 20000, (1, LENGTH))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids}
    return feed


def made(name: str, samples: int, *, keep: bool) -> dict[str, Path | str]:
    """Row -> its file, or why there is none; `keep`: ours that are there are not made again."""
    import onnxq

    subject = SUBJECTS[name]
    found: dict[str, Path | str] = {}
    (OUT / name).mkdir(parents=True, exist_ok=True)
    for what, fields in OURS.items():
        out = OUT / name / f"{what.replace(', ', '_').replace(' ', '_')}.onnx"
        if not (keep and out.exists()):
            graph, _ = onnxq.quantize(subject.path, subject.calibration(samples), onnxq.Recipe(**fields))
            graph.save(out)
        found[what] = out
    return found | {variant: peers.made(variant, name, samples)[0] for variant in PEERS}


# -- the measurement ---------------------------------------------------------------------------------------------


def session(path: Path) -> Any:  # noqa: ANN401  onnxruntime has no types
    """A session of two threads that sleep when they wait."""
    import onnxruntime as ort  # noqa: TID251  measured bare, outside the engine

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def exactly(path: Path | str) -> Callable[..., Any]:
    """The run of a session that computes the same on every CPU."""
    from onnxq.runtime import Session

    own = Session(Path(path))
    return lambda _, feed: own.run(feed, own.outputs)


def quality(reference: Callable[..., Any], other: Callable[..., Any], feeds: list[Feed]) -> float:
    """SQNR in dB over all outputs and feeds together, of texts over the tokens that are no padding."""
    pairs = [[_real(o, f) for o in p] for f in feeds for p in zip(reference(None, f), other(None, f), strict=True)]
    return sqnr(*(np.concatenate([np.ravel(array) for array in side]) for side in zip(*pairs, strict=True)))


def _real(output: Any, feed: Feed) -> Any:  # noqa: ANN401  an array
    mask = feed.get("attention_mask")
    return output if mask is None or output.shape[:2] != mask.shape else output[mask.astype(bool)]


def rounds(paths: dict[str, Path], feed: Feed, count: int) -> dict[str, list[float]]:
    """Seconds of each file, in turns, shuffled in every round: the one before leaves the caches full of its own.

    Sessions are made anew PASSES times, in another order: those made first were up to a tenth slower.
    """
    times: dict[str, list[float]] = {what: [] for what in paths}
    rng = np.random.default_rng(0)
    for _ in range(PASSES):
        sessions = {what: session(paths[what]) for what in rng.permutation(list(paths)).tolist()}
        for turn in range(-WARM, -(-count // PASSES)):
            for what in rng.permutation(list(sessions)).tolist():
                begun = time.perf_counter()
                sessions[what].run(None, feed)
                if turn >= 0:
                    times[what].append(time.perf_counter() - begun)
    return times


def bench(name: str, count: int, samples: int, *, keep: bool) -> None:
    """One model: make, judge, time, print."""
    from rich.console import Console  # noqa: TID251  a script, outside the engine
    from rich.table import Table  # noqa: TID251  likewise

    paths = made(name, samples, keep=keep)
    sessions = {"float": session(SUBJECTS[name].path)}
    failed = {what: path for what, path in paths.items() if isinstance(path, str)}
    for what, path in paths.items():
        if isinstance(path, Path):
            try:
                sessions[what] = session(path)
            except Exception as error:  # noqa: BLE001  a file that does not load is a row of the table
                failed[what] = " ".join(str(error).split())[:90]
    feeds = SUBJECTS[name].unseen()[:JUDGED]
    judged = {what: quality(sessions["float"].run, own.run, feeds) for what, own in sessions.items()}
    exact = {what: quality(sessions["float"].run, exactly(paths[what]), feeds) for what in judged if what in paths}
    loaded = {what: path for what, path in paths.items() if what in sessions and isinstance(path, Path)}
    del sessions
    times = rounds({"float": SUBJECTS[name].path} | loaded, timed(name), count)
    ratios = {what: [a / b for a, b in zip(each, times["float"], strict=True)] for what, each in times.items()}
    table = Table("form", "latency / float", "quartiles", "SQNR dB, exact", "as run", title=f"{name}, {count} rounds")
    for what, each in ratios.items():
        low, middle, high = statistics.quantiles(each, n=4)
        quality_here = f"{exact.get(what, float('inf')):.2f}", f"{judged[what]:.2f}"
        table.add_row(what, f"{middle:.3f}", f"{low:.2f} to {high:.2f}", *quality_here)
    for what, why in failed.items():
        table.add_row(what, "-", "-", "-", str(why))
    Console(width=120).print(table)
    for what in [w for w in OURS if "ort-cpu" in w and name in TARGETS]:
        if what in ratios:
            own = statistics.median(ratios[what])
            verdict = "met" if own <= TARGETS[name] else "NOT MET"
            print(f"{verdict}: {what} {own:.3f}, at most {TARGETS[name]}")


def main() -> None:
    """Parse the command line and bench each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument(
        "--keep", action="store_true", help="time the files of ours that are there, of the same samples"
    )
    args = parser.parse_args()
    for name in args.names or TARGETS:
        bench(name, args.rounds, args.samples, keep=args.keep)


if __name__ == "__main__":
    main()
