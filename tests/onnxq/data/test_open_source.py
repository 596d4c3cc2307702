from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from data_samples import FEEDS, ROWS, X, fails, zoo

from onnxq.data import SOURCES, find_beside, open_source
from onnxq.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_missing_and_unknown_paths_are_refused(tmp_path: Path) -> None:
    for name in ("gone", "gone.npz", "gone.npy", "gone.json", "gone.py", "gone.py:load"):
        with fails(DataError, name.split(":")[0], "no such file or folder"):
            open_source(tmp_path / name, [X])
    (tmp_path / "d.csv").write_text("1,2,3")
    with fails(DataError, "d.csv: is no known form", "random:N", "Polygraphy .json"):
        open_source(tmp_path / "d.csv", [X])


def test_reading_changes_nothing_in_the_folder(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ROWS)
    np.savez(tmp_path / "b.npz", x=ROWS)
    (tmp_path / "load.py").write_text("def load_data():\n    yield {'x': [[1.0, 2.0, 3.0]]}\n")

    def state() -> dict[str, Any]:
        return {p.name: (hashlib.sha256(p.read_bytes()).digest(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}

    before = state()
    for source in (tmp_path, tmp_path / "a.npz", tmp_path / "load.py"):
        assert list(open_source(source, [X]))
    assert state() == before


def test_each_text_form_is_in_the_table_once(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS)
    zoo(tmp_path / "test_data_set_0", ROWS)
    texts = ["random:1", "a.py", "a.py:f", str(tmp_path), "/", "a.npz", "A.NPY", "a.json"]
    found = [next(form.name for form in SOURCES if form.matches(text)) for text in texts]
    assert [name.split()[-1] if "folder" in name else name.split()[0] for name in found] == [
        "random:N", "script.py[:load_data]", "script.py[:load_data]", "test_data_set_*", "each", ".npz", ".npy",
        "Polygraphy",
    ]  # fmt: skip


def test_max_samples_draws_no_more_than_it_gives() -> None:
    drawn = []

    def feeds() -> Iterator[Any]:
        for i in range(5):
            drawn.append(i)
            yield FEEDS[i]

    assert len(list(open_source(feeds, [X], max_samples=2))) == 2
    assert drawn == [0, 1]
    assert open_source(FEEDS, [X], max_samples=2).length == 2
    assert open_source(FEEDS, [X], max_samples=9).length == 5
    nested = open_source(open_source(FEEDS, [X], max_samples=2), [X], max_samples=4)
    assert nested.length == len(list(nested)) == 2
    with fails(RecipeError, "max_samples is 0"):
        open_source(FEEDS, [X], max_samples=0)


def test_data_beside_a_model_is_found_in_order(tmp_path: Path) -> None:
    model = tmp_path / "net.v2.onnx"
    assert find_beside(model) is None
    zoo(tmp_path / "test_data_set_0", ROWS)
    assert find_beside(model) == tmp_path
    (tmp_path / "net.v2_calib").mkdir()
    assert find_beside(model) == tmp_path / "net.v2_calib"
    (tmp_path / "net.v2.npz").write_bytes(b"")
    assert find_beside(model) == tmp_path / "net.v2.npz"


def test_importing_is_light() -> None:
    heavy = "{'onnx', 'polygraphy', 'onnxruntime', 'torch'} & set(sys.modules)"
    code = f"import sys, onnxq.data; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_samples_say_where_each_feed_came_from(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ROWS[:2])
    for source, says in [(tmp_path / "d.npy", f"{tmp_path}/d.npy, sample {{}}"), (FEEDS[:2], "list, sample {}")]:
        opened = open_source(source, [X])
        assert [where for where, _ in opened.samples()] == [says.format(0), says.format(1)]
        assert [feed["x"].tolist() for _, feed in opened.samples()] == [[ROWS[0].tolist()], [ROWS[1].tolist()]]
