"""Kill onnxq at random moments and look at what is left.

    python scripts/kills.py [--times 200] [--seed 0]

Three commands are killed in turns, by SIGKILL, over their whole life and more often while they write: `quantize` on
digits; the same with weights spilled to disk and written as external data, as for a model beyond 2 GB; and `calibrate
--resume` with checkpoints every tenth of a second. In the folder lies an older output, or none. After each kill what
lies there must be whole, the old one or the new one, with its external data; after a run that is left alone nothing
else may lie there or in the folder for temporary files, and the output must have the bytes of a run that was never
killed. Exit status 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL, DATA = ROOT / "models" / "digits" / "digits.onnx", ROOT / "models" / "digits" / "calib.npz"
RERUN_EVERY = 5
NOT_OURS = (".ses",)  # ONNX Runtime 1.31 writes it into the folder for temporary files

MAIN = "from onnxq.cli import main; main()"
OUTSIDE = f"""import onnxq.files as f
f.SPILL_BYTES = 0
f.save.__kwdefaults__["external_bytes"] = 0
{MAIN}"""
OFTEN = f"""import functools, onnxq.checkpoint as c
c.Keeper = functools.partial(c.Keeper, every=0.1)
{MAIN}"""


@dataclass
class Command:
    """One command, the files that it makes, and what it has to do with an older output."""

    name: str
    code: str
    words: list[str]
    outputs: tuple[str, ...]
    older: list[str]
    resumes: bool = False
    empty: bool = False  # no older output lies there
    seconds: float = 0.0
    whole: dict[str, bytes] = field(default_factory=dict)
    before: dict[str, bytes] = field(default_factory=dict)

    def start(self, folder: Path, temporary: Path, more: list[str]) -> subprocess.Popen[bytes]:
        """The process, its output in `folder`."""
        words = [sys.executable, "-c", self.code, *self.words, *more, "-o", str(folder / self.outputs[0])]
        env = os.environ | {"TMPDIR": str(temporary)}
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)

    def run(self, folder: Path, temporary: Path, more: list[str]) -> None:
        """To its end."""
        process = self.start(folder, temporary, more)
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(f"{self.name}: {said.decode()}")


def commands() -> list[Command]:
    """Those that are killed."""
    quantize = ["quantize", str(MODEL), "--data", str(DATA), "--max-samples", "48", "--target", "tensorrt@8"]
    older = ["--calibrator", "minmax", "--weight-range", "mse"]
    calibrate = ["calibrate", str(MODEL), "--data", str(DATA), "--effort", "fast"]
    both = ("m.onnx", "m.plan.json")
    return [
        Command("quantize", MAIN, quantize, both, older),
        Command("quantize, external data", OUTSIDE, [*quantize, "--effort", "fast"], both, older),
        Command("calibrate --resume", OFTEN, calibrate, ("s.npz",), ["--max-samples", "9"], resumes=True),
    ]


def files(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, without what is hidden or a checkpoint."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name[0] != "." and p.suffix != ".partial"}


def wrong(command: Command, folder: Path) -> str:
    """What is wrong with what a kill left, or nothing."""
    found = files(folder)
    main = command.outputs[0]
    if main not in found:
        return "" if command.empty else f"{main} is gone"
    if found[main] not in (command.before[main], command.whole[main]):
        return f"{main} is neither the old nor the new one"
    belongs = command.before if found[main] == command.before[main] else command.whole
    lacking = [name for name in belongs if name.endswith(".data") and found.get(name) != belongs[name]]
    if lacking:
        return f"{main} is there without its {lacking[0]}"
    odd = [n for n in found if found[n] not in (command.before.get(n), command.whole.get(n))]
    return f"{odd[0]} is half written" if odd else ""


def littered(command: Command, folder: Path, temporary: Path) -> str:
    """What a whole run left that it should not have, or nothing."""
    if (found := files(folder)) != command.whole:
        names = sorted(n for n in {*found, *command.whole} if found.get(n) != command.whole.get(n))
        return f"after a rerun these are not as without kills: {names}"
    left = [p.name for f in (folder, temporary) for p in f.iterdir() if p.name not in {*command.whole, *NOT_OURS}]
    return f"after a rerun these are left: {left}" if left else ""


@dataclass
class Place:
    """A command, the folder of its output and the one for its temporary files."""

    command: Command
    folder: Path
    temporary: Path

    @property
    def more(self) -> list[str]:
        """Flags beyond the command's own."""
        return ["--resume"] if self.command.resumes else []


def prepared(command: Command, top: Path) -> Place:
    """The command with the files of a run that is left alone, and an older output in its folder."""
    place = Place(command, top / command.name, top / f"{command.name} temporary")
    for inside in (place.folder, place.temporary):
        inside.mkdir()
    command.run(place.folder, place.temporary, [])
    begin = time.monotonic()
    command.run(place.folder, place.temporary, [])  # modules are cached now
    command.seconds = time.monotonic() - begin
    command.whole = files(place.folder)
    for path in place.folder.iterdir():
        path.unlink()
    command.run(place.folder, place.temporary, command.older)
    command.before = files(place.folder)
    return place


def kill(place: Place, rng: random.Random) -> str:
    """Start, kill, and say what was there."""
    command = place.command
    moment = rng.uniform(0, 1.1) if rng.random() < 0.6 else rng.uniform(0.8, 1.05)
    process = command.start(place.folder, place.temporary, place.more)
    try:
        process.wait(moment * command.seconds)
        state = "had ended"
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        there = files(place.folder).get(command.outputs[0])
        state = "no output" if there is None else "new" if there == command.whole[command.outputs[0]] else "old"
    if process.stderr is not None:
        process.stderr.close()
    return f"{command.name}: {state}"


def rerun(place: Place) -> str:
    """Let one run end, and say what is wrong then; the next kills find the older output again, or none."""
    command = place.command
    begin = time.monotonic()
    command.run(place.folder, place.temporary, place.more)
    command.seconds = (command.seconds + time.monotonic() - begin) / 2  # others use the machine too
    said = littered(command, place.folder, place.temporary)
    command.empty = not command.empty
    for path in place.folder.iterdir():
        path.unlink()
    for name, data in ({} if command.empty else command.before).items():
        (place.folder / name).write_bytes(data)
    return said


def main() -> None:
    """Kill, look, count."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)  # noqa: S311  no secret
    counts: Counter[str] = Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as top:
        places = [prepared(command, Path(top)) for command in commands()]
        for turn in range(options.times):
            place = places[turn % len(places)]
            counts[kill(place, rng)] += 1
            said = wrong(place.command, place.folder)
            counts["a checkpoint was left"] += any(p.suffix == ".partial" for p in place.folder.iterdir())
            counts["a hidden folder was left"] += any(p.name[0] == "." for p in place.folder.iterdir())
            if not said and turn // len(places) % RERUN_EVERY == RERUN_EVERY - 1:
                said = rerun(place)
                counts["reruns, with the same bytes and nothing left"] += not said
            if said:
                faults.append(f"{turn}, {place.command.name}: {said}")
                print(faults[-1], flush=True)
    for what, count in sorted(counts.items()):
        print(f"{count:5d}  {what}")
    print(f"{options.times} kills, {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
