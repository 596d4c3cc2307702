"""Measure onnxq: time and memory of calibration, the search for ranges, start-up, accuracy and latency.

    python scripts/bench.py calibrate [--model NAME ...] [--samples 64] [--repeat 3] [--entropy-samples 8]
    python scripts/bench.py search [--model NAME ...]
    python scripts/bench.py start
    python scripts/bench.py accuracy [--model NAME ...]
    python scripts/bench.py latency [--model NAME ...]

The last two set other tools beside onnxq: bench_accuracy.py and bench_latency.py have more options.

Models are those that fetch_models.py --all puts into .cache/models. What is compared runs in turns within one call.
Seconds are those of this machine and this run; only ratios may be compared with other runs. On a machine that others
use too, the fastest of several runs says more than the median: ONNX Runtime's default session, whose threads wait by
spinning, suffers more from neighbours than one without.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console  # noqa: TID251  a script, outside the engine
from rich.table import Table  # noqa: TID251  likewise

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent
MODELS = ROOT / ".cache" / "models"
DIGITS = ROOT / "models" / "digits"

LENGTH = 128  # tokens of a text
RATIO, SECONDS, MEMORY = 2.0, 1.0, 200.0  # the target: this many forward passes, seconds and MiB above one
SEARCH_MS, IMPORT_S = 10.0, 0.15
QUANTIZE = "from onnxq.cli import main; main()"
CALIBRATORS = ("minmax", "percentile", "mse", "entropy", "auto")


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        seconds: wall time from its start to its end; of several runs the median.
        mib: the most memory it had resident, files mapped by it included.
        fastest: least seconds of several runs.
    """

    seconds: float
    mib: float
    fastest: float


def cost(*command: str) -> Cost:
    """Run a command to its end; SystemExit with its output when it fails."""
    with tempfile.TemporaryFile() as output:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{output.read().decode()[-2000:]}")
    return Cost(seconds, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), seconds)


def median(costs: list[Cost]) -> Cost:
    """Medians of time and memory, each by itself, and the fastest."""
    seconds, mib = (statistics.median(getattr(c, name) for c in costs) for name in ("seconds", "mib"))
    return Cost(seconds, mib, min(c.fastest for c in costs))


def calibrate(names: list[str], samples: int, repeat: int, entropy_samples: int) -> None:
    """Side by side with the bare forward pass and with ONNX Runtime's own calibration."""
    for name in names:
        jobs = [(method, samples) for method in ("forward", "quantize", "calibrate", "ort_minmax")]
        found: dict[tuple[str, int], list[Cost]] = {job: [] for job in jobs}
        for _ in range(repeat):
            for job in jobs:
                found[job].append(_child(name, *job))
        if entropy_samples:  # once: it is slow, and keeps every tensor of every sample
            for job in (("forward", entropy_samples), ("ort_entropy", entropy_samples)):
                found.setdefault(job, []).append(_child(name, *job))
        medians = {job: median(costs) for job, costs in found.items()}
        _print_costs(f"{name}, {repeat} runs", medians)
        _judge(medians["forward", samples], medians["quantize", samples])


def _child(name: str, method: str, samples: int) -> Cost:
    model = str(MODELS / f"{name}.onnx")
    return cost(sys.executable, str(SCRIPTS / "bench_child.py"), method, model, str(samples), str(LENGTH))


def _print_costs(title: str, medians: dict[tuple[str, int], Cost]) -> None:
    headers = (
        "wall / forward: medians",
        "fastest",
        "fastest - forward, s (here, now)",
        "peak MiB",
        "peak - forward, MiB",
    )
    table = Table("method", "samples", *headers, title=title)
    for (method, samples), own in medians.items():
        base = medians["forward", samples]
        ratio, best, more = own.seconds / base.seconds, own.fastest / base.fastest, own.fastest - base.fastest
        cells = (f"{ratio:.2f}", f"{best:.2f}", f"{more:+.2f}", f"{own.mib:.0f}", f"{own.mib - base.mib:+.0f}")
        table.add_row(method, str(samples), *cells)
    Console(width=110).print(table)


def _judge(forward: Cost, ours: Cost) -> None:
    limit, mib = RATIO * forward.fastest + SECONDS, ours.mib - forward.mib
    what = f"at most {RATIO} x forward {forward.fastest:.2f} s + {SECONDS} s = {limit:.2f} s"
    _say(ours.fastest <= limit, f"quantize {ours.fastest:.2f} s, {what}")
    _say(mib <= MEMORY, f"memory {mib:+.0f} MiB, at most +{MEMORY:.0f} MiB")


def _say(met: bool, what: str) -> None:
    print(f"{'met' if met else 'NOT MET'}: {what}")


def memory(names: list[str], samples: list[int]) -> None:
    """Peak memory against the number of samples."""
    table = Table("model", "samples", "forward MiB", "quantize MiB", "difference")
    for name in names:
        for count in samples:
            forward, ours = (_child(name, method, count).mib for method in ("forward", "quantize"))
            table.add_row(name, str(count), f"{forward:.0f}", f"{ours:.0f}", f"{ours - forward:+.0f}")
    Console(width=110).print(table)


def search(names: list[str], samples: int) -> None:
    """Milliseconds that each calibrator takes for a tensor, on what was really observed."""
    from onnxq import Recipe, api
    from onnxq.calibrators import CALIBRATORS as FUNCTIONS
    from onnxq.targets import get_target

    table = Table("model", "tensors", *CALIBRATORS, title="ms a tensor: median (largest)")
    worst = 0.0
    for name in names:
        recipe = Recipe(shapes=_shapes(name))
        observed = api.calibrate(MODELS / f"{name}.onnx", f"random:{samples}", recipe).tensors
        qtype = get_target(recipe.target).activation
        cells = []
        for calibrator in CALIBRATORS:
            times = []
            for histogram in observed.values():
                begun = time.perf_counter()
                FUNCTIONS[calibrator](histogram, qtype)
                times.append(1e3 * (time.perf_counter() - begun))
            worst = max(worst, statistics.median(times))
            cells.append(f"{statistics.median(times):.2f} ({max(times):.2f})")
        table.add_row(name, str(len(observed)), *cells)
    Console(width=110).print(table)
    _say(worst <= SEARCH_MS, f"worst median {worst:.2f} ms, at most {SEARCH_MS:.0f} ms a tensor")


def start(repeat: int) -> None:
    """What one waits for before any model is large."""
    model = DIGITS / "digits.onnx"
    session = f"import onnxruntime as o; o.InferenceSession({str(model)!r}, providers=['CPUExecutionProvider'])"
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "digits.int8.onnx")
        jobs = {
            "python": (python, "-c", "pass"),
            "import numpy": (python, "-c", "import numpy"),
            "import onnxq": (python, "-c", "import onnxq"),
            "onnxruntime session": (python, "-c", session),
            "onnxq quantize": (
                python,
                "-c",
                QUANTIZE,
                "quantize",
                str(model),
                "--data",
                str(DIGITS / "calib.npz"),
                "-o",
                out,
            ),
        }
        found: dict[str, list[Cost]] = {name: [] for name in jobs}
        for _ in range(repeat):
            for name, command in jobs.items():
                found[name].append(cost(*command))
    medians = {name: median(costs) for name, costs in found.items()}
    pairs = {"import onnxq": "import numpy", "onnxq quantize": "onnxruntime session"}
    table = Table("process", "ratio", "wall, s (this machine, this run)", "peak MiB", title="digits")
    for name, own in medians.items():
        base = pairs.get(name)
        ratio = "" if base is None else f"{own.seconds / medians[base].seconds:.2f} x {base}"
        table.add_row(name, ratio, f"{own.seconds:.3f}", f"{own.mib:.0f}")
    Console(width=110).print(table)
    alone = medians["import onnxq"].seconds - medians["python"].seconds
    _say(alone <= IMPORT_S, f"import onnxq {alone:.3f} s beyond python, at most {IMPORT_S} s")


def _shapes(name: str) -> str:
    tokens = ("input_ids", "attention_mask", "token_type_ids")
    return ",".join(f"{t}:1x{LENGTH}" for t in tokens) if "bert" in name else ""


def main() -> None:
    """Parse the command line and run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("calibrate", "memory", "search", "start", "accuracy", "latency"))
    parser.add_argument("--model", action="append", default=[], help="resnet50, bert_base, ...; may be repeated")
    parser.add_argument("--samples", type=int, action="append", default=[])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--entropy-samples", type=int, default=8, help="of ONNX Runtime's entropy; 0 leaves it out")
    args = parser.parse_args()
    models = args.model or ["resnet50", "bert_base"]
    if args.what == "calibrate":
        calibrate(models, (args.samples or [64])[0], args.repeat, args.entropy_samples)
    elif args.what == "memory":
        memory(models, args.samples or [64, 512])
    elif args.what == "search":
        search(models, (args.samples or [8])[0])
    elif args.what == "start":
        start(args.repeat)
    else:
        subprocess.run((sys.executable, str(SCRIPTS / f"bench_{args.what}.py"), *args.model), check=True)


if __name__ == "__main__":
    main()
