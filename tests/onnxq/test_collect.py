"""Collecting: what is counted is what ONNX Runtime computes, whatever the batches, and memory stays flat."""

from __future__ import annotations

import re
import tracemalloc
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort  # noqa: TID251  the oracle
import pytest
from graphs import graph_of

from onnxq import files
from onnxq.collect import collect
from onnxq.counting import BINS
from onnxq.data import input_specs, open_source
from onnxq.errors import DataError, ModelError
from onnxq.histogram import Histogram
from onnxq.monitor import Monitor
from onnxq.relay import collect_within

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxq.graph import Graph
    from onnxq.statistics import Statistics

Feed = dict[str, np.ndarray[Any, Any]]
DIGITS = Path(__file__).parents[2] / "models" / "digits"
RNG = np.random.default_rng(5)
W = RNG.normal(size=(4, 4)).astype(np.float32)
CHAIN = "(float[N,4] x) => (float[N,4] y) { a = MatMul(x, w) y = Tanh(a) }"
ROWS = RNG.normal(size=(12, 4)).astype(np.float32)


def seen(graph: Graph, feeds: Sequence[Feed], tensors: Sequence[str], warnings: list[str] | None = None) -> Statistics:
    monitor = Monitor(warn=(lambda _: None) if warnings is None else warnings.append)
    return collect(graph, tensors, open_source(feeds, input_specs(graph)), monitor=monitor)


def batches(size: int, rows: np.ndarray[Any, Any] = ROWS, name: str = "x") -> list[Feed]:
    return [{name: rows[i : i + size]} for i in range(0, len(rows), size)]


def oracles(graph: Graph, feeds: Sequence[Feed], tensors: Sequence[str]) -> list[np.ndarray[Any, Any]]:
    """All values of tensors, from a session of their own; in one, as what is fused decides about the last bits."""
    proto = graph.to_proto()
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {i.name for i in session.get_inputs()}
    runs = [session.run(None, {k: f[k] for k in names}) for f in feeds]
    return [np.concatenate([array.ravel() for array in arrays]) for arrays in zip(*runs, strict=True)]


def oracle(graph: Graph, feeds: Sequence[Feed], tensor: str) -> np.ndarray[Any, Any]:
    return oracles(graph, feeds, [tensor])[0]


def counts(values: np.ndarray[Any, Any], exponent: int) -> np.ndarray[Any, Any]:
    """Counts of the positive values by numpy's own histogram."""
    return np.histogram(values[values > 0].astype(np.float64), BINS, (0, 2.0**exponent))[0]


def test_histograms_are_of_the_tensors() -> None:
    graph = files.load(DIGITS / "digits.onnx")
    images = np.load(DIGITS / "calib.npz")["image"][:20]
    feeds = batches(1, images, "image")
    tensors = [str(v.name) for v in graph.values()][::9]
    found = seen(graph, feeds, tensors)
    assert list(found.tensors) == tensors
    assert found.model == graph.digest()
    assert found.samples == 20
    assert found.shapes == {"image": ((1, 1, 8, 8), (1, 1, 8, 8))}
    assert tensors[0] == "image"
    for name, values in zip(tensors, [images.ravel(), *oracles(graph, feeds, tensors[1:])], strict=True):
        histogram = found.tensors[name]
        assert (histogram.min, histogram.max) == (values.min(), values.max())
        assert histogram.zeros == np.count_nonzero(values == 0)
        assert histogram.count == values.size
        assert 2.0 ** (histogram.exponent - 1) <= np.abs(values).max() < 2.0**histogram.exponent
        np.testing.assert_array_equal(histogram.positive, counts(values, histogram.exponent))
        np.testing.assert_array_equal(histogram.negative, counts(-values, histogram.exponent))


@pytest.mark.parametrize("size", [2, 3, 5, 12])
def test_batches_are_split_into_samples(size: int) -> None:
    graph = graph_of(CHAIN, w=W)
    alone = seen(graph, batches(1), ["x", "a", "y"])
    assert alone.samples == 12
    assert seen(graph, batches(size), ["x", "a", "y"]) == alone
    backwards = seen(graph, batches(size)[::-1], ["x", "a", "y"])
    assert backwards == alone
    shards = [seen(graph, [feed], ["x", "a", "y"]) for feed in batches(size)]
    assert reduce(add, shards[::-1]) == alone


def test_split_samples_where_a_tensor_has_its_batch_elsewhere_or_none() -> None:
    text = """(float[N,4] x) => (float[N,4] y) {
      t = Transpose<perm=[1,0]>(x)
      s = Relu(t)
      k = Sigmoid(w)
      u = MatMul(k, s)
      y = Transpose<perm=[1,0]>(u)
    }"""
    graph = graph_of(text, w=W)
    tensors = ["s", "k", "u"]
    assert seen(graph, batches(4), tensors) == seen(graph, batches(1), tensors)


MIXING = {
    "running sum": "{ axis = Constant<value_int=0>() a = CumSum(x, axis) y = Tanh(a) }",
    "running sum from the end": "{ axis = Constant<value_int=0>() a = CumSum<reverse=1>(x, axis) y = Tanh(a) }",
    "mean": "{ m = ReduceMean<axes=[0], keepdims=1>(x) a = Sub(x, m) y = Tanh(a) }",
    "softmax": "{ a = Softmax<axis=0>(x) y = Tanh(a) }",
    "mean alone": "{ a = ReduceMean<axes=[0], keepdims=1>(x) y = Add(x, a) }",
}


@pytest.mark.parametrize("first", [ROWS, np.concatenate([np.zeros((3, 4), np.float32), ROWS])], ids=["", "zeros first"])
@pytest.mark.parametrize("body", MIXING.values(), ids=MIXING)
def test_batches_whose_rows_meet_stay_whole(body: str, first: np.ndarray[Any, Any]) -> None:
    graph = graph_of(f"(float[N,4] x) => (float[N,4] y) {body}")
    feeds = [{"x": first}, {"x": -first}]
    found = seen(graph, feeds, ["a"])
    assert found.samples == 2
    assert found.tensors["a"] == Histogram.of(oracle(graph, feeds, "a"))


def test_a_recurrent_layer_over_axis_0_stays_whole() -> None:
    text = "(float[T,1,4] x) => (float[T,1,1,4] a) { a, h = RNN<hidden_size=4>(x, w, r) }"
    graph = graph_of(text, w=W[None], r=W[None] / 2)
    feeds = [{"x": ROWS[:, None]}]
    found = seen(graph, feeds, ["a"])
    assert found.samples == 1
    assert found.tensors["a"] == Histogram.of(oracle(graph, feeds, "a"))


def test_a_batch_size_built_into_the_model_is_run_as_it_is() -> None:
    graph = graph_of("(float[N,4] x) => (float[6,8] y) { s = Constant<value_ints=[6, 8]>() y = Reshape(x, s) }")
    found = seen(graph, [{"x": ROWS}], ["y"])
    assert (found.samples, found.tensors["y"].count) == (1, 48)


def test_equal_rows_prove_nothing() -> None:
    graph = graph_of(f"(float[N,4] x) => (float[N,4] y) {MIXING['mean']}")
    found = seen(graph, [{"x": np.ones((4, 4), np.float32)}, {"x": ROWS}], ["a"])
    assert found.samples == 2


def test_model_inputs_and_other_types_of_input() -> None:
    text = "(float[N,4] x, int64[N,2] ids) => (float[N,2,4] y) { e = Gather(w, ids) u = Unsqueeze(x, k) y = Add(e, u) }"
    graph = graph_of(text, w=W, k=np.array([1]))
    feeds = [{"x": ROWS[:3], "ids": np.array([[0, 3], [1, 1], [2, 0]])}]
    found = seen(graph, feeds, ["x", "e", "y"])
    assert found.samples == 3
    assert found.tensors["x"] == Histogram.of(ROWS[:3])
    assert found.tensors["e"] == Histogram.of(W[feeds[0]["ids"]])
    only = seen(graph, feeds, ["x"])
    assert only.tensors == {"x": Histogram.of(ROWS[:3])}


def test_a_feed_may_be_reused_by_whoever_made_it() -> None:
    graph = graph_of(CHAIN, w=W)

    def feeds() -> Any:  # noqa: ANN401  a generator of feeds
        buffer = np.empty((1, 4), np.float32)
        for row in ROWS:
            buffer[:] = row
            yield {"x": buffer}

    found = collect(graph, ["x", "a"], open_source(feeds, input_specs(graph)))
    assert found == seen(graph, batches(1), ["x", "a"])


def test_shapes_may_vary() -> None:
    graph = graph_of("(float[N,T] x) => (float[N,T] y) { y = Tanh(x) }")
    feeds = [{"x": np.ones(shape, np.float32)} for shape in [(1, 5), (1, 2), (3, 4)]]
    found = seen(graph, feeds, ["y"])
    assert found.shapes["x"][0][1] == 2
    assert found.shapes["x"][1][1] == 5
    assert found.tensors["y"].count == 5 + 2 + 12


def test_nan_in_an_input_is_refused() -> None:
    feeds = batches(1)[:3]
    feeds[2] = {"x": np.array([[0, 1, np.nan, 3]], np.float32)}
    with pytest.raises(DataError, match=r"sample 2.*'x' holds NaN.*\[0, 2\]") as error:
        seen(graph_of(CHAIN, w=W), feeds, ["a"])
    assert error.value.hint


def test_infinities_inside_do_not_poison_a_range() -> None:
    text = "(float[N,4] x, float[N,4] mask) => (float[N,4] y) { a = Add(x, mask) y = Softmax(a) }"
    mask = np.array([[0, 0, -np.inf, -np.inf]], np.float32)
    feeds: list[Feed] = [{"x": row[None], "mask": mask} for row in ROWS[:3]]
    warnings: list[str] = []
    found = seen(graph_of(text), feeds, ["a", "y"], warnings)
    histogram = found.tensors["a"]
    assert (histogram.neg_inf, histogram.count) == (6, 6)
    assert (histogram.min, histogram.max) == (ROWS[:3, :2].min(), ROWS[:3, :2].max())
    assert found.tensors["y"].nonfinite == 0
    assert len(warnings) == 1
    assert all(word in warnings[0] for word in ("'a'", "2 -inf", "sample 0"))
    assert found.nonfinite.keys() == {"a"}


def test_nan_inside_is_said() -> None:
    graph = graph_of("(float[N,4] x) => (float[N,4] y) { a = Sqrt(x) y = Tanh(a) }")
    warnings: list[str] = []
    found = seen(graph, [{"x": np.array([[-1, 1, 4, 9]], np.float32)}], ["a"], warnings)
    assert found.tensors["a"].max == 3
    assert "1 NaN" in warnings[0]
    assert "saturate" not in warnings[0]


def test_what_cannot_be_collected() -> None:
    graph = graph_of(CHAIN, w=W)
    with pytest.raises(DataError, match="holds no sample"):
        seen(graph, [], ["a"])
    with pytest.raises(ModelError, match="'b' is not in the model"):
        seen(graph, batches(1), ["b"])
    broken = graph_of("(float[N,4] x) => (float[N,4] y) { y = NoSuchOp(x) }")
    with pytest.raises(ModelError, match="NoSuchOp"):
        seen(broken, batches(1), ["y"])
    picky = graph_of("(float[N,4] x) => (float[N,4] y) { s = Constant<value_ints=[3, 3]>() y = Reshape(x, s) }")
    with pytest.raises(DataError, match="ONNX Runtime failed on the data"):
        seen(picky, batches(1), ["y"])


@pytest.mark.parametrize("spill", [False, True])
def test_large_models_run_from_a_file(monkeypatch: pytest.MonkeyPatch, spill: bool) -> None:
    monkeypatch.setattr(files, "SPILL_BYTES", 0)
    graph = graph_of(CHAIN, w=np.tile(W, (1, 1)))
    expected = oracle(graph, batches(1), "a")
    source = files.spill(graph) if spill else graph
    assert seen(source, batches(1), ["a"]).tensors["a"] == Histogram.of(expected)


def test_memory_does_not_grow_with_the_samples() -> None:
    graph = graph_of("(float[N,20000] x) => (float[N,20000] y) { a = Relu(x) y = Tanh(a) }")

    def peak(samples: int) -> int:
        rng = np.random.default_rng(0)
        source = open_source(
            lambda: ({"x": rng.normal(size=(1, 20000)).astype(np.float32)} for _ in range(samples)), input_specs(graph)
        )
        tracemalloc.start()
        collect(graph, ["x", "a", "y"], source)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(2)  # what is loaded once
    few, many = peak(10), peak(200)
    assert many < few + 1_000_000  # 190 samples of three tensors would be 45 MB


MASKED = (
    "(float[N,4] x, float[N,4] mask) => (float[N,4] y) {"
    "a = Add(x, mask) p = Softmax(a) b = Add(p, mask) q = Softmax(b)"
    "c = Add(q, mask) r = Softmax(c) d = Add(r, mask) e = Softmax(d) y = Sqrt(e) }"
)
HIDDEN = {"mask": np.array([[0, 0, -np.inf, -np.inf]], np.float32)}


@pytest.mark.parametrize("memory", [None, 1000])  # 1 kB: a segment for each tensor
def test_a_mask_in_every_layer_is_said_once(memory: int | None) -> None:
    graph, names, warnings = graph_of(MASKED), ("a", "b", "c", "d", "e"), list[str]()
    feeds: list[Feed] = [{"x": row[None], **HIDDEN} for row in ROWS[:3]]
    monitor, source = Monitor(warn=warnings.append), open_source(feeds, input_specs(graph))
    if memory is None:
        found = collect(graph, names, source, monitor=monitor)
    else:
        found = collect_within(memory, graph, names, source, monitor=monitor)
    assert found.nonfinite.keys() == {"a", "b", "c", "d"}
    (said,) = [text for text in warnings if "inf" in text]
    assert said.startswith(
        "tensors 'a', 'b', 'c' and 1 more hold -inf in list, sample 0: they are left out of the ranges"
    )


def test_what_a_later_sample_shows_first_is_said_then_and_other_kinds_apart() -> None:
    warnings: list[str] = []
    nodes = "a = Add(x, mask) b = Sub(x, mask) l = Sqrt(b) y = Tanh(l)"
    text = f"(float[N,4] x, float[N,4] mask) => (float[N,4] y) {{ {nodes} }}"
    rows = [np.zeros((1, 4), np.float32), HIDDEN["mask"], -HIDDEN["mask"]]
    feeds: list[Feed] = [{"x": np.ones((1, 4), np.float32), "mask": mask} for mask in rows]
    seen(graph_of(text), feeds, ["a", "b", "l"], warnings)
    assert [re.sub(" in .*", "", text) for text in warnings] == [
        "tensor 'a' holds 2 -inf",  # in sample 1
        "tensors 'b' and 'l' hold +inf",  # and in sample 2 nothing is new: 'l' holds NaN, and was named
    ]
