"""What surrounds a run: full disks, two runs at once, folders without permission, names of every kind, kills."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from graphs import graph_of

from onnxq import files
from onnxq.cli import cli
from onnxq.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

DIGITS = Path(__file__).parents[1] / "models" / "digits"
MODEL, DATA = DIGITS / "digits.onnx", DIGITS / "calib.npz"
FEW = ("--data", DATA, "--max-samples", 9, "--effort", "fast")

LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from onnxq.cli import main; main()
"""

MAIN = "from onnxq.cli import main; main()"
Done = subprocess.CompletedProcess[str]


def run(*words: object, code: str = MAIN, cwd: Path | None = None) -> Done:
    full = (sys.executable, "-c", code, *map(str, words))
    return subprocess.run(full, capture_output=True, text=True, check=False, cwd=cwd)


def state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# -- disks and folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "output"), [(("quantize",), "m.onnx"), (("calibrate",), "m.npz")])
def test_a_full_disk_is_named_and_leaves_the_old_output(tmp_path: Path, words: tuple[str, ...], output: str) -> None:
    """A limit on the size of files, which the system tells as it tells of a full disk: in the middle of a write."""
    (tmp_path / output).write_bytes(b"old")
    (tmp_path / "m.plan.json").write_bytes(b"old plan")
    before = state(tmp_path)
    done = run(2000, *words, MODEL, *FEW, "-o", tmp_path / output, code=LIMITED)
    assert done.returncode == 1
    assert f"error: {tmp_path / output} cannot be written: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert state(tmp_path) == before


ORDINARY = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE: what lets root write anywhere
os.execv(sys.executable, [sys.executable, "-c", {MAIN!r}, *sys.argv[1:]])
"""


def test_a_temporary_folder_on_a_full_disk_is_named(tmp_path: Path) -> None:
    spilling = LIMITED.replace("from onnxq.cli", "import onnxq.files\nonnxq.files.SPILL_BYTES = 0\nfrom onnxq.cli")
    done = run(1000, "quantize", MODEL, *FEW, "-o", tmp_path / "m.onnx", code=spilling)
    assert done.returncode == 1
    assert "error: the disk is full (" in done.stderr
    assert f"Temporary files go to {tempfile.gettempdir()}; the variable TMPDIR names another" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder with a model and its data, into which a command may not write; beside it `free`, into which it may."""
    folder = tmp_path / "locked"
    for inside in (folder, tmp_path / "free"):
        inside.mkdir()
    shutil.copy(MODEL, folder / "digits.onnx")
    with np.load(DATA) as data:
        np.savez(folder / "digits.npz", image=data["image"][:9])
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


def test_an_input_folder_need_not_be_writable(locked: Path) -> None:
    before, free = state(locked), locked.with_name("free")
    done = run("quantize", locked / "digits.onnx", "--effort", "fast", cwd=free, code=ORDINARY)
    assert done.returncode == 0, done.stderr
    assert set(state(free)) == {"digits.int8.onnx", "digits.int8.plan.json"}
    assert state(locked) == before


def test_an_output_folder_without_permission_is_told_before_the_work(locked: Path) -> None:
    done = run("quantize", locked / "digits.onnx", "-o", locked / "m.onnx", cwd=locked.parent, code=ORDINARY)
    assert done.returncode == 1
    assert "m.onnx cannot be written: Permission denied" in done.stderr
    assert "Observing" not in done.stderr


# -- two runs at once -------------------------------------------------------------------------------------------


def wide(seed: int) -> Any:  # noqa: ANN401  a Graph
    weight = np.random.default_rng(seed).normal(size=(64, 64)).astype(np.float32)
    return graph_of("(float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", w=weight)


def test_of_two_runs_on_one_output_the_later_one_wins_whole(tmp_path: Path) -> None:
    """Also with external data, whose files differ in name: neither run may take the other's for stale."""
    graphs, path, stop = [wide(1), wide(2)], tmp_path / "m.onnx", threading.Event()
    plan = path.with_suffix(".plan.json")
    wanted = {}
    for i, graph in enumerate(graphs):
        files.save(graph, path, external_bytes=0, texts={plan: str(i)})
        wanted[Session(path).run({"x": np.eye(64, dtype=np.float32)})[0].tobytes()] = str(i)

    def write(i: int) -> None:
        while not stop.is_set():
            files.save(graphs[i], path, external_bytes=0, texts={plan: str(i)})

    threads = [threading.Thread(target=write, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    found = Session(path).run({"x": np.eye(64, dtype=np.float32)})[0].tobytes()
    assert plan.read_text() == wanted[found]
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".data", ".json", ".onnx"]


def test_two_commands_on_one_output(tmp_path: Path) -> None:
    forms = [("--target", "tensorrt@8"), ("--target", "tensorrt@10")]
    wanted = []
    for i, form in enumerate(forms):
        (tmp_path / str(i)).mkdir()
        done = run("quantize", MODEL, *FEW, *form, "-o", tmp_path / str(i) / "m.onnx")
        assert done.returncode == 0, done.stderr
        wanted.append(state(tmp_path / str(i)))
    (tmp_path / "both").mkdir()
    words = [[sys.executable, "-c", MAIN, "quantize", str(MODEL), *map(str, FEW), *form] for form in forms]
    runs = [subprocess.Popen([*w, "-q", "-o", str(tmp_path / "both" / "m.onnx")]) for w in words]
    assert [process.wait() for process in runs] == [0, 0]
    assert state(tmp_path / "both") in wanted


# -- names ------------------------------------------------------------------------------------------------------

NAMES = [
    "a b",
    "a:0",
    "/enc/layer.0/out",
    "a\nb",
    "../../etc/passwd",
    "ネコ🐈",
    "x" * 3000,
    "a%s{0}$HOME`id`",
    "[*?]",
    '"quoted"',
    "back\\slash",
    "\u202eright to left",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_tensors_and_nodes_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,32] x) => (float[N,32] y) '
        "{ a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }"
    )
    weight = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w" + name))
    renamed = {"x": name, "y": "y" + name, "a": "a" + name, "w": "w" + name}
    for node in proto.graph.node:
        node.name = f"{node.op_type}{name}{node.output[0]}"
        node.input[:] = [renamed.get(i, i) for i in node.input]
        node.output[:] = [renamed.get(o, o) for o in node.output]
    proto.graph.input[0].name, proto.graph.output[0].name = name, "y" + name
    onnx.save(proto, tmp_path / "m.onnx")
    feeds: list[dict[str, Any]] = [
        {name: np.random.default_rng(i).normal(size=(1, 32)).astype(np.float32)} for i in range(9)
    ]
    (tmp_path / "data").mkdir()
    for i, feed in enumerate(feeds):
        np.savez(tmp_path / "data" / f"{i}.npz", **feed)
    before = state(tmp_path)
    monkeypatch.chdir(tmp_path)
    cli.main(["quantize", "m.onnx", "--data", "data", "--effort", "fast", "-v", "-o", "q.onnx"], standalone_mode=False)
    assert before.items() <= state(tmp_path).items()
    assert set(state(tmp_path)) - set(before) == {"q.onnx", "q.plan.json"}
    assert any(name in node for node in json.loads((tmp_path / "q.plan.json").read_text())["nodes"])
    found, exact = (Session(tmp_path / n).run(feeds[0])[0] for n in ("q.onnx", "m.onnx"))
    assert np.square(found - exact).sum() < 1e-2 * np.square(exact).sum()


@pytest.mark.parametrize(
    "name", ["a b.onnx", "a:b.onnx", "ネコ🐈.onnx", "-x.onnx", "a\nb.onnx", "[a]*.onnx", "%s.onnx"]
)
def test_files_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shutil.copy(MODEL, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    cli.main(["quantize", *map(str, FEW), "--", name], standalone_mode=False)
    stem = name.removesuffix(".onnx")
    assert set(state(tmp_path)) == {name, f"{stem}.int8.onnx", f"{stem}.int8.plan.json"}


def test_names_too_long_for_the_system_are_an_error_like_others(tmp_path: Path) -> None:
    done = run("quantize", MODEL, *FEW, "-o", tmp_path / ("x" * 252 + ".onnx"))
    assert done.returncode == 1
    assert "cannot be written: File name too long" in done.stderr
    done = run("quantize", "y" * 300 + ".onnx", *FEW, cwd=tmp_path)
    assert done.returncode == 1
    assert "File name too long" in done.stderr
    assert "Traceback" not in done.stderr


# -- kills ------------------------------------------------------------------------------------------------------


def test_kills_leave_the_old_output_or_the_new_and_a_rerun_leaves_nothing_else(tmp_path: Path) -> None:
    """A few; scripts/kills.py does hundreds."""
    words = [sys.executable, "-c", MAIN, "quantize", str(MODEL), *map(str, FEW)]
    words += ["-o", str(tmp_path / "m.onnx")]
    begin = time.monotonic()
    assert run(*words[3:]).returncode == 0
    seconds = time.monotonic() - begin
    whole = state(tmp_path)
    old = dict.fromkeys(whole, b"old")
    rng = random.Random(0)  # noqa: S311  no secret
    for moment in (0.9, 0.95, 1.0, rng.random()):
        for name, data in old.items():
            (tmp_path / name).write_bytes(data)
        running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moment * seconds)
        running.kill()
        running.wait()
        found = {name: data for name, data in state(tmp_path).items() if name[0] != "."}
        assert all(data in (old[name], whole[name]) for name, data in found.items())
    assert run(*words[3:]).returncode == 0
    assert state(tmp_path) == whole
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
