"""Measure onnxq: time and memory of calibration, the search for ranges, start-up, accuracy and latency.

    python scripts/bench.py calibrate [--model NAME ...] [--samples 64] [--repeat 3] [--peer-samples 8] [--limit 90]
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
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console  # noqa: TID251  a script, outside the engine
from rich.table import Table  # noqa: TID251  likewise

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent
MODELS = ROOT / ".cache" / "models"
DIGITS = ROOT / "models" / "digits"

LENGTH = 128  # tokens of a text
RATIO, SECONDS, MEMORY = 2.0, 1.0, 200.0  # the target: this many forward passes, seconds and MiB above one
SEARCH_MS, IMPORT_S, START_S = 10.0, 0.15, 1.5
FEW = 16  # samples of which start-up is most of what they cost
CALIBRATE_RATIO, MINMAX_RATIO = {"mobilenet_v2": 3.0}, 1.2  # of the forward pass; 1.5 for other models
QUANTIZE = "from onnxq.cli import main; main()"
CALIBRATORS = ("minmax", "percentile", "mse", "entropy", "auto")


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        seconds: wall time from its start to its end; of several runs the median.
        mib: the most memory it had resident, files mapped by it included.
        fastest: least seconds of several runs.
        failed: why it did not come to its end.
        cpu: least seconds of the processor, of all threads: what neighbours disturb least.
    """

    seconds: float
    mib: float
    fastest: float
    failed: str = ""
    cpu: float = math.nan


def cost(*command: str, limit: tuple[float, float] = (math.inf, math.inf)) -> Cost:
    """Run a command to its end, or to a limit of (seconds, MiB) and kill it there.

    Without limits SystemExit with its output when it fails; with them that is told by the result.
    """
    peak = 0.0
    with tempfile.TemporaryFile() as output:
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output)
        failed = ""
        while limit != (math.inf, math.inf) and not _ended(process):
            peak, seconds = max(peak, _resident(process.pid)), time.perf_counter() - begun
            if seconds > limit[0] or peak > limit[1]:
                failed = f"killed at {limit[0]:.0f} s" if seconds > limit[0] else f"killed at {limit[1]:.0f} MiB"
                process.kill()
                break
            time.sleep(_EVERY_S)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode and not failed:
            output.seek(0)
            said = output.read().decode(errors="replace")
            if limit == (math.inf, math.inf):
                raise SystemExit(f"{' '.join(command)}\n{said[-2000:]}")
            failed = (said.strip().splitlines() or [f"status {process.returncode}"])[-1][:80]
    mib = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Cost(seconds, max(mib, peak), seconds, failed, usage.ru_utime + usage.ru_stime)


_EVERY_S = 0.02


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; it is still to be waited for, which tells its peak."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _resident(pid: int) -> float:
    """MiB of a running process, 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def median(costs: list[Cost]) -> Cost:
    """Medians of time and memory, each by itself, and the fastest."""
    seconds, mib = (statistics.median(getattr(c, name) for c in costs) for name in ("seconds", "mib"))
    return Cost(seconds, mib, min(c.fastest for c in costs), costs[0].failed, min(c.cpu for c in costs))


@dataclass(frozen=True)
class Peers:
    """How other tools are measured: on how many samples, and the limit of (seconds, MiB) at which one is killed."""

    samples: int
    limit: tuple[float, float]


OURS = ("forward", "quantize", "calibrate", "minmax")
OTHERS = {
    "ort_minmax": "onnxruntime",
    "ort_percentile": "onnxruntime",
    "ort_entropy": "onnxruntime",
    "modelopt": "modelopt",
    "onnxsim": "onnxsim",
}
"""Method -> the environment of `peers.py` it runs in."""


def calibrate(names: list[str], samples: int, repeat: int, peers: Peers) -> None:
    """Side by side with the bare forward pass and with other tools, which hold every tensor of every sample.

    Each is run on two numbers of samples: what a sample costs is the difference, and the rest is start-up.
    """
    for name in names:
        counts = (fewer(samples), samples)
        found: dict[tuple[str, int], list[Cost]] = {(method, count): [] for method in OURS for count in counts}
        for _ in range(repeat):
            for (method, count), costs in found.items():
                costs.append(_child(name, method, count))
        if peers.samples:
            counts = (fewer(peers.samples), peers.samples)
            found |= {(method, count): [_peer(name, method, count, peers)] for method in OTHERS for count in counts}
        medians = {job: median(costs) for job, costs in found.items()}
        _print_costs(f"{name}, {repeat} runs; of peers, one", medians)
        _judge(medians["forward", samples], medians["quantize", samples])
        _judge_calibration(name, medians, samples)
        if peers.samples:
            _judge_peers(medians, samples, peers.samples)


def fewer(samples: int) -> int:
    """The smaller of the two numbers of samples that a method is run on."""
    return max(1, samples // 4)


def each(costs: dict[tuple[str, int], Cost], method: str, samples: int) -> float:
    """Seconds that a method takes for one more sample, from its fastest runs."""
    few = fewer(samples)
    return (costs[method, samples].fastest - costs[method, few].fastest) / (samples - few)


def _peer(name: str, method: str, samples: int, peers: Peers) -> Cost:
    """Another tool in the environment that peers.py made for it; a row that says so where there is none."""
    python = ROOT / ".venv-peers" / OTHERS[method] / "bin" / "python"
    if not python.exists():
        return Cost(math.nan, math.nan, math.nan, f"no environment: python scripts/peers.py {OTHERS[method]}")
    return _child(name, method, samples, str(python), peers.limit)


def _child(
    name: str,
    method: str,
    samples: int,
    python: str = sys.executable,
    limit: tuple[float, float] = (math.inf, math.inf),
) -> Cost:
    model = str(MODELS / f"{name}.onnx")
    return cost(python, str(SCRIPTS / "bench_child.py"), method, model, str(samples), str(LENGTH), limit=limit)


def _print_costs(title: str, medians: dict[tuple[str, int], Cost]) -> None:
    headers = ("one more, ms (here, now)", "/ forward's", "wall, s", "CPU, s", "peak MiB", "beyond forward")
    table = Table("method", "samples", *headers, title=title)
    most = max(samples for method, samples in medians if method == "forward")
    for (method, samples), own in medians.items():
        told = samples > 1 and (method, fewer(samples)) in medians and not medians[method, fewer(samples)].failed
        more = each(medians, method, samples) if told else math.nan
        ratio = more / each(medians, "forward", most)
        base = medians.get(("forward", samples), medians["forward", most])
        cells = (
            "" if math.isnan(more) else f"{1e3 * more:.1f}",
            "" if math.isnan(more) else f"{ratio:.2f}",
            f"{own.fastest:.2f}",
            f"{own.cpu:.2f}",
            f"{own.mib:.0f}",
            f"{own.mib - base.mib:+.0f}",
        )
        table.add_row(f"{method}: {own.failed}" if own.failed else method, str(samples), *cells)
    Console(width=110).print(table)


def _judge_calibration(name: str, medians: dict[tuple[str, int], Cost], samples: int) -> None:
    forward = each(medians, "forward", samples)
    for method, most in (("calibrate", CALIBRATE_RATIO.get(name, 1.5)), ("minmax", MINMAX_RATIO)):
        ratio = each(medians, method, samples) / forward
        _say(ratio <= most, f"{method}: one more sample {ratio:.2f} x its forward pass, at most {most}")


def _judge_peers(medians: dict[tuple[str, int], Cost], samples: int, theirs: int) -> None:
    ours, base = medians["calibrate", samples], medians["forward", samples]
    for method in OTHERS:
        few, own = medians[method, fewer(theirs)], medians[method, theirs]
        if any(math.isnan(cost.seconds) or (cost.failed and "killed" not in cost.failed) for cost in (few, own)):
            print(f"not compared: {method}, {own.failed or few.failed}")
            continue
        smaller = (own.mib - base.mib) / max(ours.mib - base.mib, 1.0)
        if few.failed:
            faster, what = (
                few.seconds / ours.fastest,
                f"killed on {fewer(theirs)} samples, calibrate's run on {samples}",
            )
        else:
            faster, what = each(medians, method, theirs) / each(medians, "calibrate", samples), "one more sample"
        histogram = method in ("ort_percentile", "ort_entropy")
        met = faster >= (5 if histogram else 1) and (not histogram or smaller >= 10)
        least = "at least " if own.failed else ""
        memory = f"{smaller:.1f} times as much memory beyond the forward pass ({theirs} samples against {samples})"
        _say(met, f"{method} takes {least}{faster:.1f} times as long as calibrate ({what}), and {memory}")


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
    """What one waits for before any model or data is large; with byte code compiled, as after the first run of all.

    Quantizing is run on few samples and on all: what does not grow with them is start-up.
    """
    model, data = DIGITS / "digits.onnx", DIGITS / "calib.npz"
    session = f"import onnxruntime as o; o.InferenceSession({str(model)!r}, providers=['CPUExecutionProvider'])"
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few.npz"
        with np.load(data) as arrays:
            every = len(arrays["image"])
            np.savez(few, **{name: array[:FEW] for name, array in arrays.items()})
        compiled = ("-u", "PYTHONDONTWRITEBYTECODE", f"PYTHONPYCACHEPREFIX={folder}/compiled")
        python = ("env", *compiled, sys.executable, "-c")
        quantize = (
            *python,
            QUANTIZE,
            "quantize",
            str(model),
            "--effort",
            "fast",
            "-o",
            f"{folder}/int8.onnx",
            "--data",
        )
        jobs = {
            "python": (*python, "pass"),
            "import numpy": (*python, "import numpy"),
            "import onnxq": (*python, "import onnxq"),
            "onnxruntime session": (*python, session),
            f"onnxq quantize, {FEW} samples": (*quantize, str(few)),
            f"onnxq quantize, {every} samples": (*quantize, str(data)),
        }
        for command in jobs.values():
            cost(*command)
        found: dict[str, list[Cost]] = {name: [] for name in jobs}
        for _ in range(repeat):
            for name, command in jobs.items():
                found[name].append(cost(*command))
    medians = {name: median(costs) for name, costs in found.items()}
    table = Table("process", "ratio", "wall, s (this machine, this run)", "CPU, s", "peak MiB", title="digits")
    for name, own in medians.items():
        base = "import numpy" if "import" in name else "onnxruntime session"
        ratio = f"{own.seconds / medians[base].seconds:.2f} x {base}" if "onnxq" in name else ""
        table.add_row(name, ratio, f"{own.seconds:.3f}", f"{own.cpu:.3f}", f"{own.mib:.0f}")
    Console(width=110).print(table)
    alone = medians["import onnxq"].seconds - medians["python"].seconds
    some, whole = (medians[f"onnxq quantize, {count} samples"].fastest for count in (FEW, every))
    fixed = some - (whole - some) * FEW / (every - FEW)
    _say(fixed <= START_S, f"onnxq quantize {fixed:.2f} s besides its samples at effort fast, at most {START_S} s")
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
    parser.add_argument("--peer-samples", type=int, default=8, help="of other tools, once; 0 leaves them out")
    parser.add_argument("--limit", type=float, default=90, help="seconds after which another tool is killed")
    parser.add_argument("--limit-mib", type=float, default=12_000, help="resident MiB at which it is")
    args = parser.parse_args()
    models = args.model or ["resnet50", "bert_base"]
    if args.what == "calibrate":
        calibrate(
            models, (args.samples or [64])[0], args.repeat, Peers(args.peer_samples, (args.limit, args.limit_mib))
        )
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
