"""One collection spread over workers gives the bits of one process, also where a worker is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import graph_of

import onnxq
from onnxq import Recipe, Running, files, parts
from onnxq.checkpoint import Checkpoint, Keeper
from onnxq.collect import session_for
from onnxq.graph import Graph
from onnxq.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DIGITS = Path(__file__).parents[1] / "models" / "digits"
MODEL, DATA = DIGITS / "digits.onnx", DIGITS / "calib.npz"
FAST = Recipe(effort="fast", max_samples=96)
Feed = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("alone") / "s.npz"
    onnxq.calibrate(MODEL, DATA, FAST).save(path)
    return path.read_bytes()


def saved(statistics: onnxq.Statistics, path: Path) -> bytes:
    statistics.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("make", [ThreadPoolExecutor, lambda n: ProcessPoolExecutor(n, get_context("spawn"))])
def test_executors(make: Callable[[int], Executor], alone: bytes, tmp_path: Path) -> None:
    with make(2) as pool:
        found = onnxq.calibrate(MODEL, DATA, FAST, running=Running(pool))
    assert saved(found, tmp_path / "s") == alone


@pytest.mark.parametrize("make", [ThreadPoolExecutor, lambda n: ProcessPoolExecutor(n, get_context("spawn"))])
def test_a_model_too_large_for_one_message(
    make: Callable[[int], Executor], alone: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_messages(monkeypatch)
    with make(1) as pool:
        found = onnxq.calibrate(MODEL, DATA, FAST, running=Running(pool))
    assert saved(found, tmp_path / "s") == alone


@pytest.mark.parametrize(("rows", "sessions"), [(1, 1), (4, 2)])
def test_the_driving_process_loads_the_model_for_batches_only(
    rows: int, sessions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    def counted(*args: Any, **options: Any) -> object:  # noqa: ANN401  as session_for
        made.append(args)
        return session_for(*args, **options)

    monkeypatch.setattr(parts, "session_for", counted)
    parts._loaded.cache_clear()
    images = np.load(DATA)["image"][:8]
    feeds = [{"image": images[i : i + rows]} for i in range(0, 8, rows)]
    with ThreadPoolExecutor(1) as pool:
        found = onnxq.calibrate(MODEL, feeds, Recipe(effort="fast"), running=Running(pool))
    assert found.samples == 8
    assert len(made) == sessions


def no_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limits so that weights lie in a file beside the model, and let no message hold them with it."""

    def too_large(_: object) -> None:
        raise ValueError("Message onnx.ModelProto exceeds maximum protobuf size of 2GB")

    monkeypatch.setattr(files, "SPILL_BYTES", 10_000)
    monkeypatch.setattr(Graph, "to_proto", too_large)


@pytest.mark.filterwarnings("default")  # Dask's own, as below
@pytest.mark.parametrize("shared", [True, False])
def test_such_a_model_with_dask(shared: bool, alone: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers read its file where they see it; else its files' contents are sent."""
    from distributed import Client, LocalCluster  # noqa: TID251  the peer that is tested with

    no_messages(monkeypatch)
    monkeypatch.setattr(parts, "SENT_BYTES", 10_000)
    sent: list[str] = []
    if not shared:
        monkeypatch.setattr(parts, "_all_see", lambda *_: False)

    def contents(folder: Path) -> list[tuple[str, np.ndarray[Any, Any]]]:
        found = [(path.name, np.fromfile(path, np.uint8)) for path in sorted(folder.glob("model.onnx*"))]
        sent.extend(Path(name).suffix for name, _ in found)
        return found

    monkeypatch.setattr(parts, "_contents", contents)
    with (
        LocalCluster(  # type: ignore[no-untyped-call]  # no annotations
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        Client(cluster) as client,  # type: ignore[no-untyped-call]  # likewise
    ):
        found = onnxq.calibrate(MODEL, DATA, FAST, running=Running(client))
    assert saved(found, tmp_path / "s") == alone
    assert sent == ([] if shared else [".onnx", ".data"])


def test_workers_skip_what_cannot_be_run_and_pass_labels_over(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = "(int64[N,3] i) => (float[N,3,32] y) { e = Gather(t, i) r = Relu(e) y = MatMul(r, w) }"
    graph = graph_of(text, t=rng.normal(size=(8, 32)).astype("f4"), w=rng.normal(size=(32, 32)).astype("f4"))
    feeds = [{"i": rng.integers(0, 8, (1, 3)), "k": np.ones(1)} for _ in range(40)]
    feeds[5] = {"i": np.full((1, 3), 99), "k": np.ones(1)}
    recipe, warned = Recipe(target="ort-cpu", effort="fast", labels="k", skip_bad=True), list[str]()
    one = onnxq.calibrate(graph, feeds, recipe)
    with ThreadPoolExecutor(2) as pool:
        running = Running(pool, Keeper(tmp_path / "c", every=0.0))
        found = onnxq.calibrate(graph, feeds, recipe, Monitor(warn=warned.append), running=running)
        with pytest.raises(onnxq.DataError, match="idx=99"):
            onnxq.calibrate(graph, feeds, replace(recipe, skip_bad=False), running=Running(pool))
    assert found.samples == Checkpoint.load(tmp_path / "c").counted.total() == 39
    assert saved(found, tmp_path / "a") == saved(one, tmp_path / "b")
    [said] = warned
    assert said.startswith("skipped: ")
    assert "sample 5: " in said


class Forgetful(ThreadPoolExecutor):
    """Cancels the first calls, as Dask does with what it forgets when a worker dies."""

    def __init__(self, calls: int) -> None:
        super().__init__(1)
        self.left = calls

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401  as its base has them
        """The call, or one that is cancelled."""
        if self.left > 0:
            self.left -= 1
            forgotten: Future[Any] = Future()
            forgotten.cancel()
            return forgotten
        return super().submit(fn, *args, **kwargs)


def test_what_the_workers_forget_is_sent_again(alone: bytes, tmp_path: Path) -> None:
    with np.load(DATA) as data:
        feeds = [{"image": image[None]} for image in data["image"][:96]]
    with Forgetful(1) as pool:
        assert saved(onnxq.calibrate(MODEL, feeds, FAST, running=Running(pool)), tmp_path / "s") == alone
    with Forgetful(1000) as pool, pytest.raises(onnxq.DataError, match="a worker failed: CancelledError"):
        onnxq.calibrate(MODEL, feeds, FAST, running=Running(pool))


def die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_pool_whose_worker_dies_says_so() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(die, None)
        with pytest.raises(onnxq.DataError, match="a worker failed"):
            onnxq.calibrate(MODEL, DATA, FAST, running=Running(pool))


@pytest.mark.filterwarnings("default")  # Dask's own, of sockets and processes that die with a killed worker
def test_a_dask_cluster_of_which_a_worker_is_killed(alone: bytes, tmp_path: Path) -> None:
    from distributed import Client, LocalCluster  # noqa: TID251  the peer that is tested with

    with np.load(DATA) as data:
        images = data["image"][:96]

    with (
        LocalCluster(  # type: ignore[no-untyped-call]  # no annotations
            n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        Client(cluster) as client,  # type: ignore[no-untyped-call]  # likewise
    ):
        workers = client.run(os.getpid)

        def feeds() -> Iterator[Feed]:
            for i, image in enumerate(images):
                if i == len(images) // 2:  # the first groups are sent, and being run
                    os.kill(next(iter(workers.values())), signal.SIGKILL)
                yield {"image": image[None]}

        found = onnxq.calibrate(MODEL, feeds(), Recipe(effort="fast"), running=Running(client))
        assert saved(found, tmp_path / "s") == alone
        done = onnxq_command("calibrate", MODEL, "--data", DATA, "--max-samples", 96, "--effort", "fast", "--dask",
                             cluster.scheduler_address, "-o", tmp_path / "d.npz")  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "d.npz").read_bytes() == alone


def onnxq_command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, check=False)


def command(*words: object) -> list[str]:
    return [sys.executable, "-c", "from onnxq.cli import main; main()", *map(str, words)]


def test_no_dask_scheduler() -> None:
    done = onnxq_command("calibrate", MODEL, "--data", DATA, "--dask", "127.0.0.1:1", "-o", os.devnull + ".npz")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr


SLOW = """
import pathlib, time, numpy as np
def load_data():
    for i, image in enumerate(np.load({data!r})["image"][:96]):
        yield {{"image": image[None]}}
        if i == 20:
            pathlib.Path(__file__).with_name("under way").touch()
        time.sleep(0.05 if i > 20 else 0)
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_goes_on(stop: signal.Signals, alone: bytes, tmp_path: Path) -> None:
    if signal.getsignal(stop) is signal.SIG_IGN:
        pytest.skip("a shell started this in the background, where Ctrl-C is ignored, and so do its children")
    (tmp_path / "data.py").write_text(SLOW.format(data=str(DATA)))
    output, part = tmp_path / "s.npz", tmp_path / "s.npz.partial"
    words = command("calibrate", MODEL, "--data", tmp_path / "data.py", "--effort", "fast", "-o", output)
    slow = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while slow.poll() is None and not (tmp_path / "under way").exists():
        time.sleep(0.05)
    slow.send_signal(stop)
    _, said = slow.communicate(timeout=60)
    assert slow.returncode == 130, said
    assert not output.exists()
    assert f"{part} has what was counted so far: the same command with --resume goes on" in said
    (tmp_path / "under way").unlink()
    done = subprocess.run([*words, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == alone
    assert not part.exists()
