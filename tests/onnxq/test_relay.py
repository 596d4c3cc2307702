"""Within however little memory, calibration sees the same bits: the model runs in segments, some samples at a time."""

from __future__ import annotations

import io
import runpy
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner  # noqa: TID251  tests may run the command line inside
from graphs import graph_of as text_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq import Recipe, Running, api, relay
from onnxq.checkpoint import Checkpoint, Keeper
from onnxq.cli import cli
from onnxq.collect import collect, session_for
from onnxq.data import input_specs, open_source
from onnxq.errors import DataError, RecipeError
from onnxq.memory import RESERVED, for_tensors, parse_bytes
from onnxq.monitor import SILENT, Monitor
from onnxq.relay import collect_within
from onnxq.segments import cut, sample_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnxq.graph import Graph
    from onnxq.statistics import Statistics

ROOT = Path(__file__).parents[2]
SYNTHETIC: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "synthetic.py"), run_name="synthetic")["KINDS"]
RNG = np.random.default_rng(23)
DIGITS = ROOT / "models/digits/digits.onnx"
TINY = 1000
"""Bytes: less than any part of these models takes, so that they are cut wherever they can be."""


def graph_of(text: str, **weights: np.ndarray[Any, Any]) -> Graph:
    """With its types, as a prepared graph has them."""
    graph = text_graph(text, **weights)
    graph.infer_shapes()
    return graph


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return np.asarray(RNG.normal(size=shape) / np.sqrt(shape[0]), np.float32)


BLOCKS = graph_of(
    """(float[N,T,8] x, int64[N,T] mask) => (float[N,T,8] y) {
      m = Cast<to=1>(mask) one = Constant<value_float=1.0>() no = Sub(one, m)
      far = Constant<value_float=-50.0>() shut = Mul(no, far) ax = Constant<value_ints=[1]>() bias = Unsqueeze(shut, ax)
      q = MatMul(x, wq) k = Transpose<perm=[0,2,1]>(x) s = MatMul(q, k) sb = Add(s, bias) p = Softmax(sb)
      c = MatMul(p, x) r = Add(x, c)
      q2 = MatMul(r, wk) k2 = Transpose<perm=[0,2,1]>(r) s2 = MatMul(q2, k2) sb2 = Add(s2, bias) p2 = Softmax(sb2)
      c2 = MatMul(p2, r) r2 = Add(r, c2) h = MatMul(r2, up) g = Relu(h) d = MatMul(g, down) y = Add(r2, d)
    }""",
    wq=weight(8, 8),
    wk=weight(8, 8),
    up=weight(8, 32),
    down=weight(32, 8),
)
OBSERVED = ("x", "r", "r2", "g", "s2")
BOUNDS = ("y",)
EVERY = (*OBSERVED, *BOUNDS)
Feed = dict[str, np.ndarray[Any, Any]]


def sample(rows: int = 1, tokens: int = 5) -> Feed:
    mask = (RNG.random((rows, tokens)) < 0.8).astype(np.int64)
    return {"x": RNG.normal(size=(rows, tokens, 8)).astype(np.float32), "mask": mask}


def saved(statistics: Statistics) -> bytes:
    stream = io.BytesIO()
    statistics.save(stream)
    return stream.getvalue()


def within(
    memory: int, graph: Graph, tensors: Sequence[str], feeds: object, keeper: Keeper | None = None
) -> Statistics:
    source = open_source(feeds, input_specs(graph))
    return collect_within(memory, graph, tensors, source, bounds=BOUNDS, monitor=SILENT, keeper=keeper)


def plain(graph: Graph, tensors: Sequence[str], feeds: object) -> Statistics:
    return collect(graph, tensors, open_source(feeds, input_specs(graph)), bounds=BOUNDS, monitor=SILENT)


# -- amounts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GB", 4 * 10**9), ("512MiB", 2**29), (" 1.5 gb ", 15 * 10**8), ("1000", 1000), ("2 kB", 2000), ("1TiB", 2**40)],
)
def test_amounts_are_read(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected
    assert Recipe(memory=text, effort="fast").memory_bytes == expected


@pytest.mark.parametrize("text", ["four", "4XB", "-1GB", "0", "4 G B", "GB", "1e9"])
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe(memory=text, effort="fast")


def test_of_little_memory_a_part_is_left() -> None:
    assert for_tensors(RESERVED + 10**9) == 10**9
    assert for_tensors(RESERVED) == RESERVED // 4


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"effort": "balanced"}, "effort balanced"),
        ({"effort": "best"}, "effort best"),
        ({"effort": "fast", "min_sqnr": 20.0}, "a budget"),
        ({"mode": "weight-only", "weight_method": "gptq"}, "weight_method gptq"),
        ({"effort": "fast", "target": "ort-cpu", "outlier_threshold": 6.0}, "outlier_threshold"),
    ],
)
def test_what_runs_whole_models_is_refused_with_it(choices: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe(memory="4GB", **choices)


def test_workers_are_refused_with_it() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(RecipeError, match="one process"):
        api.calibrate(DIGITS, "random:1", Recipe(memory="4GB", effort="fast"), running=Running(pool))


def test_weight_only_may_have_any_effort() -> None:
    assert Recipe(memory="4GB", mode="weight-only").memory_bytes == 4 * 10**9


# -- cuts -----------------------------------------------------------------------------------------------------


def segments(graph: Graph, names: Sequence[str], budget: int, **shapes: tuple[int, ...]) -> list[Any]:
    return list(cut(graph, names, sample_sizes(graph, shapes), budget))


def test_with_room_for_all_there_is_one_segment() -> None:
    (only,) = segments(BLOCKS, EVERY, 10**9, x=(1, 5, 8), mask=(1, 5))
    assert (only.reads, only.tensors) == ((), EVERY)
    weights = 4 * (8 * 8 * 2 + 8 * 32 * 2) + 4 * 3 + 8  # the constants of the mask too
    observed = 4 * 5 * (8 + 8 + 32 + 5 + 8)  # r, r2, g, s2, y
    largest = 4 * 5 * (32 + 32)  # of the Relu
    assert only.bytes - 2 * largest - observed in range(weights - 12, weights + 1)


def test_segments_begin_where_tensors_are_observed() -> None:
    found = segments(BLOCKS, EVERY, 1, x=(1, 5, 8), mask=(1, 5))
    assert [name for s in found for name in s.tensors if name != "x"] == ["r", "s2", "r2", "g", "y"]
    assert [s.reads for s in found] == [(), ("r",), ("r", "s2"), ("r2",), ("r2", "g")]


def test_what_fits_is_joined() -> None:
    finest = segments(BLOCKS, EVERY, 1, x=(1, 5, 8), mask=(1, 5))
    joined = segments(BLOCKS, EVERY, 2500, x=(1, 5, 8), mask=(1, 5))
    assert 1 < len(joined) < len(finest)
    assert sorted(name for s in joined for name in s.tensors) == sorted(EVERY)


def test_a_model_is_not_cut_where_a_product_would_run_twice() -> None:
    graph = graph_of(
        "(float[1,8] x) => (float[1,8] y) { a = MatMul(x, w) b = MatMul(x, w) c = Relu(b) y = Add(a, c) }",
        w=weight(8, 8),
    )
    assert len(segments(graph, ("x", "c", "y"), 1)) == 1  # a, which is not observed, crosses c


def test_convolutions_are_not_cut_apart() -> None:
    graph = graph_of(
        """(float[1,8,4,4] x) => (float[1,2] y) {
          a = Conv(x, k) b = Relu(a) c = Conv(b, k) d = Add(b, c) e = GlobalAveragePool(d) f = Flatten(e)
          g = MatMul(f, w) h = Relu(g) y = MatMul(h, v)
        }""",
        k=weight(8, 8, 1, 1),
        w=weight(8, 8),
        v=weight(8, 2),
    )
    found = segments(graph, ("x", "b", "d", "f", "h"), 1)
    assert [(s.reads, set(s.tensors)) for s in found] == [((), {"x", "b", "d", "f"}), (("f",), {"h"})]


# -- the same bits --------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 10**5), st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=4))
def test_the_same_bits_within_any_memory(memory: int, sizes: list[tuple[int, int]]) -> None:
    feeds = [sample(*size) for size in sizes]
    assert saved(within(memory, BLOCKS, OBSERVED, feeds)) == saved(plain(BLOCKS, OBSERVED, feeds))


@pytest.mark.parametrize("kind", ["residual", "transformer"])
@pytest.mark.parametrize("target", ["tensorrt@10", "ort-cpu"])
def test_whole_runs_give_the_same_model(kind: str, target: str) -> None:
    recipe = Recipe(target=target, effort="fast")
    made = [api.quantize(SYNTHETIC[kind](40), "random:2", r)[0] for r in (recipe, replace(recipe, memory="1kB"))]
    assert made[0].digest() == made[1].digest()


def test_digits_by_the_command_line(tmp_path: Path) -> None:
    runner, outputs = CliRunner(), [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    data = ("--data", str(ROOT / "models/digits/calib.npz"), "--max-samples", "20", "--effort", "fast", "-q")
    for output, memory in zip(outputs, ((), ("--memory", "1MB")), strict=True):
        args = ["quantize", str(DIGITS), *data, "-o", str(output), *memory]
        done = runner.invoke(cli, args, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_bodies_are_observed_in_the_segment_of_their_node() -> None:
    graph = graph_of(
        """(float[N,8] x, bool c) => (float[N,8] y) {
          a = MatMul(x, w)
          b = If (c) <then_branch = t () => (float[N,8] p) { i = Relu(a) p = MatMul(i, w) },
                      else_branch = e () => (float[N,8] q) { j = Tanh(a) q = MatMul(j, w) }>
          y = MatMul(b, w)
        }""",
        w=weight(8, 8),
    )
    feeds = [{"x": RNG.normal(size=(1, 8)).astype(np.float32), "c": np.array(i % 2 == 0)} for i in range(4)]
    names = ("x", "a", "b", "i", "j")
    assert [set(s.tensors) for s in segments(graph, names, 1)] == [{"x", "a"}, {"i", "j", "b"}]
    assert saved(within(TINY, graph, names, feeds)) == saved(plain(graph, names, feeds))


def test_rows_that_influence_one_another_are_not_split() -> None:
    graph = graph_of(
        """(float[N,8] x) => (float[N,8] y) {
          a = MatMul(x, w) t = Constant<value_int=0>() b = CumSum(a, t) y = MatMul(b, w)
        }""",
        w=weight(8, 8),
    )
    feeds = [{"x": RNG.normal(size=(4, 8)).astype(np.float32)} for _ in range(2)]
    found = within(TINY, graph, ("x", "a", "b"), feeds)
    assert found.samples == 2
    assert saved(found) == saved(plain(graph, ("x", "a", "b"), feeds))


# -- samples ---------------------------------------------------------------------------------------------------

TABLE = graph_of(
    "(int64[N,3] i) => (float[N,3,8] y) { e = Gather(t, i) r = Relu(e) p = MatMul(r, w) j = Cast<to=7>(p)"
    " k = Gather(t, j) m = Relu(k) y = MatMul(m, w) }",
    t=np.abs(weight(8, 8)),
    w=np.full((8, 8), 0.3, np.float32),
)


def test_what_cannot_be_run_is_named_and_left_out_only_when_asked() -> None:
    good = [{"i": np.array([[i, i + 1, 0]])} for i in range(5)]
    for at in (0, 2, 5):
        feeds: list[Feed] = [*good[:at], {"i": np.full((1, 3), 99)}, *good[at:]]
        with pytest.raises(DataError, match=rf"sample {at}: .*idx=99"):
            within(TINY, TABLE, ("r", "m"), feeds)
        told: list[DataError] = []
        source = replace(open_source(feeds, input_specs(TABLE)), bad=told.append)
        found = collect_within(10**9, TABLE, ("r", "m"), source, bounds=BOUNDS, monitor=SILENT)
        assert saved(found) == saved(plain(TABLE, ("r", "m"), good))
        assert [str(at) in error.message for error in told] == [True]


def test_infinities_on_the_way_are_no_bad_samples() -> None:
    graph = graph_of(
        "(float[N,8] x) => (float[N,8] y) { a = Log(x) b = MatMul(x, w) c = Add(a, b) d = Relu(c) y = MatMul(d, w) }",
        w=weight(8, 8),
    )
    warned: list[str] = []
    feeds = [{"x": np.array([[0, 1, 2, 3, 4, 5, 6, -1]], np.float32)} for _ in range(3)]
    source = open_source(feeds, input_specs(graph))
    names = ("x", "a", "c", "d")
    found = collect_within(TINY, graph, names, source, bounds=BOUNDS, monitor=Monitor(warn=warned.append))
    assert saved(found) == saved(plain(graph, names, feeds))
    assert len([text for text in warned if "'a'" in text]) == 1


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    feeds = [sample() for _ in range(6)]

    def stopped() -> Iterator[Feed]:
        yield from feeds[:4]
        raise KeyboardInterrupt

    path = tmp_path / "partial"
    with pytest.raises(KeyboardInterrupt):
        within(TINY, BLOCKS, OBSERVED, stopped(), keeper=Keeper(path))
    assert 0 < Checkpoint.load(path).statistics.samples <= 4
    again = within(TINY, BLOCKS, OBSERVED, feeds[::-1], keeper=Keeper(path, resume=True))
    assert saved(again) == saved(plain(BLOCKS, OBSERVED, feeds))


def test_no_sample_is_an_error() -> None:
    with pytest.raises(DataError, match="no sample"):
        within(TINY, BLOCKS, OBSERVED, [])


def test_what_cannot_be_kept_is_said() -> None:
    warned: list[str] = []
    source = open_source([sample()], input_specs(BLOCKS))
    collect_within(TINY, BLOCKS, OBSERVED, source, monitor=Monitor(warn=warned.append))
    assert [text for text in warned if "cannot be cut" in text]


def test_one_segment_is_loaded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[object]] = []
    beside: list[int] = []

    def one(*args: Any, **options: Any) -> object:  # noqa: ANN401  as `session_for`
        beside.append(sum(ref() is not None for ref in made))
        session = session_for(*args, **options)
        made.append(weakref.ref(session))
        return session

    monkeypatch.setattr(relay, "session_for", one)
    feeds = [sample(2) for _ in range(2)]  # in batches, so that the trial of the first one is looked at too
    within(TINY, BLOCKS, OBSERVED, feeds)
    assert len(beside) > 10
    assert not any(beside)
