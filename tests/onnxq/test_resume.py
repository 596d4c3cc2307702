"""A collection that was stopped goes on to the same bits; what is bad is named, and skipped only when asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import graph_of
from hypothesis import given
from hypothesis import strategies as st

from onnxq import Recipe, api
from onnxq.checkpoint import Checkpoint, Keeper, checkpoint_of
from onnxq.collect import collect, nothing_seen, sample_hash
from onnxq.data import input_specs, open_source
from onnxq.errors import DataError, RecipeError, StatisticsError
from onnxq.monitor import Monitor
from onnxq.statistics import merge

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnxq.statistics import Statistics

Feed = dict[str, np.ndarray[Any, Any]]
RNG = np.random.default_rng(11)
FEEDS = [{"x": RNG.normal(size=(1, 4)).astype(np.float32)} for _ in range(10)]
GRAPH = graph_of("(float[N,4] x) => (float[N,4] y) { a = MatMul(x, w) y = Tanh(a) }", w=np.eye(4, dtype=np.float32))
FAST = Recipe(effort="fast")


def run(feeds: object, keeper: Keeper | None = None, tensors: Sequence[str] = ("a", "x")) -> Statistics:
    return collect(GRAPH, tensors, open_source(feeds, input_specs(GRAPH)), bounds=("y",), keeper=keeper)


def stopped_after(count: int, feeds: Sequence[Feed] = FEEDS) -> Iterator[Feed]:
    yield from feeds[:count]
    raise KeyboardInterrupt


def saved(statistics: Statistics, path: Path) -> bytes:
    statistics.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("count", [1, 4, 10])
@pytest.mark.parametrize("order", [1, -1])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, count: int, order: int) -> None:
    path = tmp_path / "s.partial"
    with pytest.raises(KeyboardInterrupt):
        run(stopped_after(count), Keeper(path))
    assert Checkpoint.load(path).statistics.samples == count
    again = [dict(feed) for feed in FEEDS][::order]
    total = run((feed for feed in again), Keeper(path, resume=True))
    assert saved(total, tmp_path / "a") == saved(run(FEEDS), tmp_path / "b")


def test_checkpoints_are_written_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.collect.cores", lambda: 2)
    path = tmp_path / "s.partial"
    seen: list[int] = []

    def feeds() -> Iterator[Feed]:
        for feed in FEEDS:
            seen.append(Checkpoint.load(path).statistics.samples if path.exists() else 0)
            yield feed

    run(feeds(), Keeper(path, every=0.0))
    assert seen == sorted(seen)
    assert seen[-1] >= len(FEEDS) - 4  # one is read, two run, one is being counted


def test_without_resume_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.partial"
    Checkpoint(nothing_seen(GRAPH, ("a", "x"), ("y",))).save(path)
    assert run(FEEDS, Keeper(path)).samples == len(FEEDS)


def test_equal_samples_count_as_often_as_they_came(tmp_path: Path) -> None:
    twice = [FEEDS[0], FEEDS[0], FEEDS[1]]
    with pytest.raises(KeyboardInterrupt):
        run(stopped_after(1, twice), Keeper(tmp_path / "s"))
    total = run(twice, Keeper(tmp_path / "s", resume=True))
    assert total.samples == 3
    assert saved(total, tmp_path / "a") == saved(run(twice), tmp_path / "b")


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.partial"
    with pytest.raises(KeyboardInterrupt):
        run(stopped_after(3), Keeper(path))
    with pytest.raises(StatisticsError, match="of another model, recipe or data"):
        run(FEEDS, Keeper(path, resume=True), tensors=("a",))
    with pytest.raises(StatisticsError, match=r"2 samples that the checkpoint .* are no longer in the data"):
        run([*FEEDS[2:]], Keeper(path, resume=True))


@given(st.binary(max_size=200))
def test_damaged_checkpoints_are_refused(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("junk") / "s.partial"
    path.write_bytes(junk)
    with pytest.raises(StatisticsError, match=r"cannot be read|is damaged"):
        Checkpoint.load(path)


def test_a_checkpoint_cut_short_is_refused(tmp_path: Path) -> None:
    Checkpoint(run(FEEDS)).save(tmp_path / "s")  # of ten samples, but no hashes
    with pytest.raises(StatisticsError, match="is damaged"):
        Checkpoint.load(tmp_path / "s")


# -- bad samples ----------------------------------------------------------------------------------------------


def folder(path: Path) -> Path:
    """Five samples, of which one is cut short, one is of a wrong shape and one holds NaN."""
    path.mkdir()
    for i, feed in enumerate(FEEDS[:5]):
        np.save(path / f"{i}.npy", feed["x"])
    (path / "1.npy").write_bytes((path / "1.npy").read_bytes()[:-3])
    np.save(path / "2.npy", np.zeros((1, 5), np.float32))
    np.save(path / "3.npy", np.full((1, 4), np.nan, np.float32))
    return path


@pytest.mark.parametrize(("bad", "words"), [("1", "cannot be read"), ("2", "axis 1 is 5"), ("3", "holds NaN")])
def test_a_bad_sample_is_named(tmp_path: Path, bad: str, words: str) -> None:
    data = folder(tmp_path / "d")
    for other in {"1", "2", "3"} - {bad}:
        (data / f"{other}.npy").unlink()
    with pytest.raises(DataError, match=rf"{bad}\.npy.*{words}"):
        run(str(data))


def test_bad_samples_are_skipped_when_asked(tmp_path: Path) -> None:
    data, warned = folder(tmp_path / "d"), list[str]()
    recipe = Recipe(skip_bad=True, effort="fast", rules=())
    model = graph_of("(float[N,4] x) => (float[N,32] y) { y = MatMul(x, w) }", w=RNG.normal(size=(4, 32)).astype("f4"))
    ready = api.prepared(model, Recipe(effort="fast", target="ort-cpu", rules=()), Monitor())
    found = api.observe(
        api.Prepared(ready.graph, ready.plan, recipe), str(data), Monitor(warn=warned.append), tensors=("x",)
    )
    assert found.samples == 2
    assert found.seen == sum(sample_hash(FEEDS[i]) for i in (0, 4)) % 2**64
    assert [line for line in warned if line.startswith("skipped: ")] == warned
    assert len(warned) == 3


def test_nothing_but_bad_samples(tmp_path: Path) -> None:
    data = folder(tmp_path / "d")
    for good in ("0", "4"):
        (data / f"{good}.npy").unlink()
    source = open_source(str(data), input_specs(GRAPH))
    told: list[DataError] = []
    with pytest.raises(DataError, match="no sample"):
        collect(GRAPH, ("a",), type(source)(source.name, source.inputs, source.read, bad=told.append))
    assert len(told) == 3


# -- shards ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/", "/2", "-1/2"])
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(RecipeError, match="is not i/n"):
        Recipe(shard=text, effort="fast")


def test_shards_need_effort_fast() -> None:
    with pytest.raises(RecipeError, match="cannot be collected with effort balanced"):
        Recipe(shard="1/2", effort="balanced")


DIGITS = Path(__file__).parents[2] / "models" / "digits"


def test_shards_add_up_to_the_same_bits(tmp_path: Path) -> None:
    with np.load(DIGITS / "calib.npz") as data:
        images = data["image"][:24]
    feeds = [{"image": image[None]} for image in images]
    whole = api.calibrate(DIGITS / "digits.onnx", feeds, FAST)
    parts = []
    for i in (1, 2, 3):
        order = RNG.permutation(len(feeds))  # no machine need find them in the same order
        parts.append(
            api.calibrate(DIGITS / "digits.onnx", [feeds[k] for k in order], Recipe(effort="fast", shard=f"{i}/3"))
        )
    assert sorted(part.samples for part in parts) != [0, 0, 24]
    assert saved(merge(parts), tmp_path / "a") == saved(whole, tmp_path / "b")


def test_checkpoints_lie_beside_the_output() -> None:
    assert checkpoint_of(Path("a/model.int8.onnx")) == Path("a/model.int8.onnx.partial")


def test_samples_that_cannot_be_run_are_skipped_by_every_step() -> None:
    """An index beyond the table, which no check of shapes finds: by efforts, methods, budgets and comparisons."""
    table, w = RNG.normal(size=(8, 32)).astype("f4"), RNG.normal(size=(32, 32)).astype("f4")
    graph = graph_of(
        "(int64[N,3] i) => (float[N,3,32] y) { e = Gather(t, i) r = Relu(e) y = MatMul(r, w) }", t=table, w=w
    )
    good = [{"i": RNG.integers(0, 8, (1, 3))} for _ in range(24)]
    data = [*good[:3], {"i": np.full((1, 3), 99)}, *good[3:]]
    for recipe in (
        Recipe(target="ort-cpu", skip_bad=True),
        Recipe(target="ort-cpu", skip_bad=True, outlier_threshold=50.0),
        Recipe(target="ort-cpu", skip_bad=True, min_sqnr=5.0),
        Recipe(mode="weight-only", weight_method="gptq", skip_bad=True),
    ):
        warned = list[str]()
        found, _ = api.quantize(graph, data, recipe, Monitor(warn=warned.append))
        assert found.digest() == api.quantize(graph, good, recipe, Monitor())[0].digest()
        assert len([w for w in warned if "skipped" in w and "sample 3" in w]) == 1
        with pytest.raises(DataError, match=r"sample 3: .*idx=99"):
            api.quantize(graph, data, replace(recipe, skip_bad=False))
    assert api.compare(graph, found, data, recipe, monitor=Monitor(warn=warned.append)).samples == len(good)
    with pytest.raises(DataError, match="no sample is left"):
        api.compare(graph, found, data[3:4], recipe)
    for attempt in (api.quantize, api.calibrate, lambda g, d, r: api.compare(g, found, d, r)):
        with pytest.raises(DataError, match=r"sample 3: .*idx=99"):
            attempt(graph, data, Recipe(target="ort-cpu"))
