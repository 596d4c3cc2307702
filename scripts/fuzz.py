"""Fuzz what onnxq reads: whatever a file holds, it is read or refused with an OnnxqError.

    python scripts/fuzz.py [TARGET ...] [--minutes 10] [--seed 0] [--keep FOLDER]
    python scripts/fuzz.py TARGET --again FILE      # run one file that was kept

Real files are mutated: bytes are flipped, cut, repeated, spliced; fields of models and tokens of texts are exchanged.
Anything but an OnnxqError is a find, and so is a PassError (which is a fault of ours by its definition), a run of over
20 seconds and a process that dies. Finds are kept as files, one for each place they come from. Each target runs in a
process of its own, which is started again when it dies. Exit status 1 when there was a find.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fuzz_seeds
from fuzz_seeds import ROOT, TARGETS

from onnxq.errors import OnnxqError, PassError

if TYPE_CHECKING:
    from types import FrameType

SECONDS = 20
MEMORY = 12 << 30

_NUMBERS = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\0\0\0\0\x80",
)
_WORDS = (b"-1", b"0", b"1e999", b"NaN", b"null", b"[]", b"{}", b'""', b"true", b"9" * 30, b"\n", b"\xc3\x28", b"../x")


def mutated(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """The bytes with a few changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        length = min(rng.choice((1, 2, 4, 8, 32, 200)), len(data) - at)
        kind = rng.randrange(9)
        if kind == 0 and data:
            at = rng.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif kind == 1:
            new = rng.choice(_NUMBERS)
            data = data[:at] + new + data[at + len(new) :]
        elif kind == 2:
            data = data[:at] + rng.choice(_WORDS) + data[at + rng.choice((0, length)) :]
        elif kind == 3:
            data = data[:at] + data[at + length :]
        elif kind == 4:
            data = data[:at]
        elif kind == 5:
            data = data[: at + length] + data[at:]
        elif kind == 6:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            data = data[:at] + other[start : start + length] + data[at + length :]
        elif kind == 7:
            data = data[:at] + rng.randbytes(length) + data[at + length :]
        else:
            other = rng.choice(others)
            data = data[:at] + other[min(at, len(other)) :]
    return data


def too_long(_signal: int, _frame: FrameType | None) -> None:
    """What the alarm does."""
    raise TimeoutError(f"took over {SECONDS} s")


def fault(run: Any, path: Path) -> BaseException | None:  # noqa: ANN401  a target's function
    """What came out of one run that should not have."""
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        run(path)
    except PassError as error:
        return error
    except OnnxqError as error:
        return None if error.message.strip() else error
    except Exception as error:  # noqa: BLE001  that is what is looked for
        return error
    finally:
        signal.alarm(0)
    return None


def place(error: BaseException) -> str:
    """Where an exception came from, as far as onnxq knows: faults of one place are one find."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "/onnxq/" in f.filename or "/passes/" in f.filename
    ]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {where}"


def child(target: str, seconds: float, seed: int, keep: Path) -> None:
    """Fuzz until the time is over; print counts as JSON."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    run, seeds, change = TARGETS[target]
    files = seeds()
    everything = [data for _, data in files]
    runs, refused, start = 0, 0, time.monotonic()
    found: Counter[str] = Counter()
    rng = random.Random(seed)  # noqa: S311  no secret
    with tempfile.TemporaryDirectory() as inside:
        while time.monotonic() - start < seconds:
            name, data = rng.choice(files)
            data = change(data, rng) if change is not None and rng.random() < 0.5 else mutated(data, everything, rng)
            path = Path(inside) / name
            path.write_bytes(data)
            (keep / f"{target}.running").write_bytes(name.encode() + b"\0" + data)  # for whoever finds us dead
            error = fault(run, path)
            runs += 1
            if error is None:
                continue
            where = place(error)
            found[where] += 1
            if found[where] == 1:
                kept = keep / f"{target}-{hashlib.sha256(data).hexdigest()[:8]}-{name}"
                kept.write_bytes(data)
                said = "".join(traceback.format_exception(error)[-6:])
                print(f"{target}: {where}: {kept}\n{said}", file=sys.stderr, flush=True)
    (keep / f"{target}.running").unlink(missing_ok=True)
    print(json.dumps({"runs": runs, "refused": refused, "found": dict(found)}))


def supervise(target: str, minutes: float, seed: int, keep: Path) -> tuple[int, Counter[str]]:
    """(runs, finds) of one target, started again as often as its process dies."""
    end = time.monotonic() + 60 * minutes
    runs, found = 0, Counter[str]()
    while (left := end - time.monotonic()) > 1:
        words = [sys.executable, __file__, target, "--child", str(left), "--seed", str(seed), "--keep", str(keep)]
        done = subprocess.run(words, stdout=subprocess.PIPE, check=False)
        running = keep / f"{target}.running"
        if done.returncode == 0:
            said = json.loads(done.stdout.splitlines()[-1])
            runs, found = runs + said["runs"], found + Counter(said["found"])
        else:
            name, _, data = running.read_bytes().partition(b"\0") if running.exists() else (b"none", b"", b"")
            kept = keep / f"{target}-died-{hashlib.sha256(data).hexdigest()[:8]}-{name.decode()}"
            kept.write_bytes(data)
            found[f"process died with {done.returncode}"] += 1
            print(f"{target}: died with {done.returncode}: {kept}", file=sys.stderr, flush=True)
        seed += 1
    return runs, found


def main() -> None:
    """Run the targets one after the other."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=ROOT / ".cache" / "fuzz", help="folder for what is found")
    parser.add_argument("--again", type=Path, help="run this one file")
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := [t for t in options.targets if t not in TARGETS]:
        parser.error(f"unknown target {unknown[0]!r}; known: {', '.join(TARGETS)}")
    options.keep.mkdir(parents=True, exist_ok=True)
    if options.again is not None:
        with tempfile.TemporaryDirectory() as inside:
            path = Path(inside) / options.again.name.split("-", 2)[-1]
            path.write_bytes(options.again.read_bytes())
            TARGETS[options.targets[0]].run(path)
        return
    if options.child is not None:
        child(options.targets[0], options.child, options.seed, options.keep)
        return
    bad = False
    for target in options.targets or TARGETS:
        runs, found = supervise(target, options.minutes, options.seed, options.keep)
        print(f"{target}: {runs:,} runs in {options.minutes:g} min, finds: {dict(found) or 'none'}", flush=True)
        bad |= bool(found)
    sys.exit(bad)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    fuzz_seeds.ready()
    main()
