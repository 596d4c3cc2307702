"""Latency and accuracy on the CPU: our graphs and other tools', against the float model, in turns within one run.

    python scripts/bench_latency.py [NAME ...] [--rounds 60] [--samples 16]

Names: resnet50, mobilenet_v2, minilm, bert_base. MiniLM is calibrated and judged on real text, the others on random
data with random weights. Every session has two threads that do not spin: waiting threads would take the cores from
the session whose turn it is. Reported is the median of all rounds over the float model's. The files lie in
.cache/latency; those of other tools that are there are kept.

onnxsim runs in its own environment, made by `python scripts/peers.py onnxsim`; without it its rows are left out.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Feed = dict[str, npt.NDArray[Any]]

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / ".cache" / "models"
OUT = ROOT / ".cache" / "latency"
ONNXSIM = ROOT / ".venv-peers" / "onnxsim" / "bin" / "python"
LENGTH = 128  # tokens of a text
THREADS = 2
TARGETS = {"resnet50": 0.30, "minilm": 0.25, "bert_base": 0.50, "mobilenet_v2": 0.80}
"""Model -> the ratio to float that is asked for."""


def source(name: str) -> Path:
    """The float model."""
    return MODELS / (f"minilm/{name}.onnx" if name == "minilm" else f"{name}.onnx")


def calibration(name: str, samples: int) -> list[Feed]:
    """Feeds to calibrate on: the same for every tool."""
    if name == "minilm":
        return [_npz(path) for path in sorted((MODELS / "minilm" / "calib").glob("*.npz"))[:samples]]
    return [_random(name, seed) for seed in range(samples)]


def unseen(name: str) -> list[Feed]:
    """Feeds to judge accuracy on."""
    if name == "minilm":
        table = _npz(MODELS / "minilm" / "eval" / "queries.npz")
        return [{key: array[i : i + 8] for key, array in table.items()} for i in range(0, 32, 8)]
    return [_random(name, 1000 + seed) for seed in range(4)]


def timed(name: str) -> Feed:
    """What latency is measured on: one sample, LENGTH tokens."""
    if name != "minilm":
        return _random(name, 0)
    ids = np.random.default_rng(0).integers(1000, 20000, (1, LENGTH))
    ones = np.ones_like(ids)
    return {"input_ids": ids, "attention_mask": ones, "token_type_ids": 0 * ones}


def _npz(path: Path) -> Feed:
    with np.load(path) as data:
        return {key: data[key] for key in data.files}


def _random(name: str, seed: int) -> Feed:
    rng = np.random.default_rng(seed)
    if name.startswith("bert"):
        ids = rng.integers(0, 30000, (1, LENGTH))
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {_input(name): rng.standard_normal((1, 3, 224, 224)).astype(np.float32)}


def _input(name: str) -> str:
    import onnx

    return str(onnx.load(source(name), load_external_data=False).graph.input[0].name)


# -- the candidates ----------------------------------------------------------------------------------------------


def ours(target: str, **options: Any) -> Callable[[str, int, Path], None]:  # noqa: ANN401  fields of the recipe
    """`onnxq quantize --target TARGET`."""

    def make(name: str, samples: int, out: Path) -> None:
        import onnxq

        recipe = onnxq.Recipe(target=target, **options)
        graph, _ = onnxq.quantize(source(name), calibration(name, samples), recipe)
        graph.save(out)

    return make


def ort_static(
    *, per_channel: bool = False, uint8: bool = False, operators: bool = False
) -> Callable[[str, int, Path], None]:
    """ONNX Runtime's `quantize_static`, behind its own preprocessing as its documentation asks."""

    def make(name: str, samples: int, out: Path) -> None:
        from onnxruntime.quantization import (  # noqa: TID251  a peer, measured outside the engine
            CalibrationDataReader,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        class Reader(CalibrationDataReader):  # type: ignore[misc]  # no type information
            def __init__(self) -> None:
                self.feeds = iter(calibration(name, samples))

            def get_next(self) -> Feed | None:
                return next(self.feeds, None)

        activation = QuantType.QUInt8 if uint8 else QuantType.QInt8
        form = QuantFormat.QOperator if operators else QuantFormat.QDQ
        quantize_static(_preprocessed(name), out, Reader(), form, activation_type=activation, per_channel=per_channel)

    return make


def ort_dynamic(**options: Any) -> Callable[[str, int, Path], None]:  # noqa: ANN401  options of quantize_dynamic
    """ONNX Runtime's `quantize_dynamic`."""

    def make(name: str, _samples: int, out: Path) -> None:
        from onnxruntime.quantization import quantize_dynamic  # noqa: TID251  a peer, measured outside the engine

        quantize_dynamic(_preprocessed(name), out, **options)

    return make


def _preprocessed(name: str) -> Path:
    from onnxruntime.quantization.shape_inference import (  # noqa: TID251  a peer, measured outside the engine
        quant_pre_process,
    )

    out = OUT / name / "preprocessed.onnx"
    if not out.exists():
        quant_pre_process(source(name), out, skip_symbolic_shape=True)
    return out


def onnxsim(function: str, *, full_graph: bool = False) -> Callable[[str, int, Path], None]:
    """One of onnxsim's functions, in its own environment."""

    def make(name: str, samples: int, out: Path) -> None:
        command = (str(ONNXSIM), __file__, "--inside", function, str(int(full_graph)), name, str(samples), str(out))
        subprocess.run(command, check=True, capture_output=True)

    return make


def inside(function: str, full_graph: bool, name: str, samples: int, out: Path) -> None:
    """What runs in onnxsim's environment."""
    import onnx
    import onnxsim as tool

    options = {"full_graph": True} if full_graph else {}
    onnx.save_model(getattr(tool, function)(str(source(name)), calibration(name, samples), **options), out)


CANDIDATES: dict[str, Callable[[str, int, Path], None]] = {
    "onnxq ort-cpu": ours("ort-cpu"),
    "onnxq ort-cpu, operators": ours("ort-cpu", format="qoperator"),
    "onnxq tensorrt@10": ours("tensorrt@10"),
    "ort static": ort_static(),
    "ort static, uint8": ort_static(uint8=True),
    "ort static, uint8, per channel": ort_static(uint8=True, per_channel=True),
    "ort static, uint8, operators": ort_static(uint8=True, operators=True),
    "ort dynamic": ort_dynamic(),
    "ort dynamic, per channel": ort_dynamic(per_channel=True),
    "onnxsim static": onnxsim("quantize_static"),
    "onnxsim static, full graph": onnxsim("quantize_static", full_graph=True),
    "onnxsim operators": onnxsim("quantize_qoperator"),
}
OURS = ("onnxq ort-cpu", "onnxq ort-cpu, operators", "onnxq tensorrt@10")


def made(name: str, samples: int) -> dict[str, Path | str]:
    """Candidate -> its file, or why there is none."""
    found: dict[str, Path | str] = {}
    (OUT / name).mkdir(parents=True, exist_ok=True)
    for what, make in CANDIDATES.items():
        out = OUT / name / f"{what.replace(', ', '_').replace(' ', '_')}.onnx"
        if "onnxsim" in what and not ONNXSIM.exists():
            continue
        try:
            if what in OURS or not out.exists():  # ours changes with the code
                make(name, samples, out)
            found[what] = out
        except Exception as error:  # noqa: BLE001  a tool that fails is a row of the table
            text = error.stderr.decode() if isinstance(error, subprocess.CalledProcessError) else str(error)
            found[what] = " ".join(text.split())[-90:]
    return found


# -- the measurement ---------------------------------------------------------------------------------------------


def session(path: Path) -> Any:  # noqa: ANN401  onnxruntime has no types
    """A session of two threads that sleep when they wait."""
    import onnxruntime as ort  # noqa: TID251  measured bare, outside the engine

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def sqnr(reference: Any, other: Any, feeds: list[Feed]) -> float:  # noqa: ANN401  sessions
    """SQNR in dB over all outputs and feeds together."""
    power = noise = 0.0
    for feed in feeds:
        for exact, found in zip(reference.run(None, feed), other.run(None, feed), strict=True):
            power += float(np.square(exact, dtype=np.float64).sum())
            noise += float(np.square(exact.astype(np.float64) - found).sum())
    return 10 * float(np.log10(power / noise)) if noise else float("inf")


def rounds(sessions: dict[str, Any], feed: Feed, count: int) -> dict[str, list[float]]:
    """Seconds of each session, in turns, shuffled in every round: the one before leaves the caches full of its own."""
    times: dict[str, list[float]] = {what: [] for what in sessions}
    rng = np.random.default_rng(0)
    for _ in range(count + 3):
        for what in rng.permutation(list(sessions)).tolist():
            begun = time.perf_counter()
            sessions[what].run(None, feed)
            times[what].append(time.perf_counter() - begun)
    return {what: each[3:] for what, each in times.items()}


def bench(name: str, count: int, samples: int) -> None:
    """One model: make, judge, time, print."""
    from rich.console import Console  # noqa: TID251  a script, outside the engine; onnxsim's environment lacks it
    from rich.table import Table  # noqa: TID251  likewise

    paths = made(name, samples)
    sessions = {"float": session(source(name))}
    failed = {what: path for what, path in paths.items() if isinstance(path, str)}
    for what, path in paths.items():
        if isinstance(path, Path):
            try:
                sessions[what] = session(path)
            except Exception as error:  # noqa: BLE001  a file that does not load is a row of the table
                failed[what] = " ".join(str(error).split())[:90]
    quality = {what: sqnr(sessions["float"], own, unseen(name)) for what, own in sessions.items()}
    times = rounds(sessions, timed(name), count)
    base = statistics.median(times["float"])
    table = Table("form", "latency / float", "quartiles", "SQNR dB", title=f"{name}, {count} rounds")
    for what, each in times.items():
        low, _, high = statistics.quantiles(each, n=4)
        ratio = f"{statistics.median(each) / base:.3f}"
        table.add_row(what, ratio, f"{low / base:.2f} to {high / base:.2f}", f"{quality[what]:.2f}")
    for what, why in failed.items():
        table.add_row(what, "-", "-", str(why))
    Console(width=120).print(table)
    for what in OURS[:2]:
        if what in times:
            own = statistics.median(times[what]) / base
            verdict = "met" if own <= TARGETS[name] else "NOT MET"
            print(f"{verdict}: {what} {own:.3f}, at most {TARGETS[name]}")


def main() -> None:
    """Parse the command line and bench each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--samples", type=int, default=16)
    if sys.argv[1:2] == ["--inside"]:
        function, full_graph, name, samples, out = sys.argv[2:]
        inside(function, full_graph == "1", name, int(samples), Path(out))
        return
    args = parser.parse_args()
    for name in args.names or TARGETS:
        bench(name, args.rounds, args.samples)


if __name__ == "__main__":
    main()
