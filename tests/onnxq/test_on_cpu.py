"""Nodes that count inside a model give the bits that Tally and Extent give for the same tensors."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from graphs import graph_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from onnxq import collect as collecting
from onnxq import counting, on_cpu
from onnxq.collect import collect
from onnxq.data import input_specs, open_source
from onnxq.errors import OnnxqError
from onnxq.histogram import Extent, Histogram, Tally
from onnxq.monitor import Monitor
from onnxq.on_cpu import OnCpu, add_nodes, counting_session
from onnxq.runtime import Session
from onnxq.scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxq.graph import Graph
    from onnxq.statistics import Statistics

    Array = np.ndarray[Any, Any]

pytestmark = pytest.mark.skipif(counting.NODES is None, reason="no C compiler was there when onnxq was installed")
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38, math.inf, -math.inf, math.nan, 1.0]
arrays = hnp.arrays(np.float32, st.integers(0, 40), elements=st.one_of(st.floats(width=32), st.sampled_from(SPECIAL)))
RNG = np.random.default_rng(0)


def runner(graph: Graph, tensors: Sequence[str], bounds: Sequence[str] = ()) -> OnCpu:
    """As `on_cpu` makes it, for models for which it would not pay."""
    folder, names = Scratch(), (*tensors, *bounds)
    return OnCpu(1, graph, names, counting_session(graph, names, set(tensors), folder.path, 1), folder)


@cache
def negated() -> OnCpu:
    """The values of x with their signs changed, counted as y, their bounds as z."""
    return runner(graph_of("(float[N] x) => (float[N] y, float[N] z) { y = Neg(x) z = Neg(x) }"), ("y",), ("z",))


def same(parts: Sequence[Array]) -> None:
    """Counts of y and bounds of z are those of what is added up by numpy's way, in any number of parts."""
    counts, extent, tally, expected = Tally(), Extent(), Tally(), Extent()
    for part in parts:
        found = negated().observed({"x": part})
        assert isinstance(found["y"], Histogram)
        assert isinstance(found["z"], Histogram)
        counts.take(found["y"])
        extent.take(found["z"])
        tally.add(-part)
        expected.add(-part)
    assert counts.histogram() == tally.histogram()
    assert (extent.bounds, extent.nonfinite) == (expected.bounds, expected.nonfinite)
    assert math.copysign(1, extent.bounds[0]) == math.copysign(1, expected.bounds[0])


@settings(max_examples=100, deadline=None)
@given(st.lists(arrays, min_size=1, max_size=4))
def test_what_is_found_is_what_tally_and_extent_find(parts: list[Array]) -> None:
    same(parts)


@pytest.mark.parametrize("exponent", [-148, -130, -116, -101, -50, 0, 13, 100, 127])
def test_every_magnitude_is_exact(exponent: int) -> None:
    parts = [np.ldexp(RNG.uniform(-1, 1, 20011), exponent - k).astype(np.float32) for k in (0, 1, -1, 5)]
    edges = np.ldexp(np.array([1, 2, 3, 4094, 4095], np.float64), exponent - 12).astype(np.float32)
    same([*parts, np.concatenate([edges, np.nextafter(edges, np.float32(0))])])


@pytest.mark.parametrize("odd", [[math.nan], [math.inf], [-math.inf, math.nan, math.nan]])
@pytest.mark.parametrize("size", [1000, 1024, 5000, 300_000])
def test_what_is_not_finite_is_left_out(size: int, odd: list[float]) -> None:
    values = np.maximum(RNG.standard_normal(size), 0).astype(np.float32)
    values[RNG.choice(size, len(odd), replace=False)] = odd
    same([values, np.array(odd, np.float32)])


def test_what_is_not_float32_comes_as_it_is() -> None:
    text = "(float16[N] x) => (float[N] a, float16[N] b, int64[N] c) { b = Neg(x) a = Cast<to=1>(b) c = Cast<to=7>(a) }"
    graph, x = graph_of(text), np.array([1.5, -2], np.float16)
    found = runner(graph, ("x", "a", "b", "c")).observed({"x": x})
    assert list(found) == ["x", "a", "b", "c"]
    assert found["a"] == Histogram.of(-x.astype(np.float32))
    for name, values in (("x", x), ("b", -x), ("c", np.array([-1, 2]))):
        array = found[name]
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, values)
        assert array.dtype == values.dtype
    assert not np.shares_memory(found["x"], x)  # whoever made the feed may use it again


def test_a_label_of_the_name_of_a_tensor_is_not_taken_for_it() -> None:
    graph, x = (
        graph_of("(float[N] x) => (float16[N] y) { z = Neg(x) y = Cast<to=10>(z) }"),
        np.array([1, -3], np.float32),
    )
    label = np.array([7], np.float32)
    found = runner(graph, ("x", "y", "z")).observed({"x": x, "y": label, "z": label})
    assert found["z"] == Histogram.of(-x)
    for name, values in (("x", x), ("y", -x)):
        array = found[name]
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, values)


def test_constants_and_what_bodies_make() -> None:
    text = """(float[N] x, bool k) => (float[N] y) {
        y = If (k)
            <then_branch = t () => (float[N] p) { p = Neg(x) }, else_branch = e () => (float[N] q) { q = Abs(x) }>
    }"""
    graph, x = graph_of(text), np.array([1, -3], np.float32)
    found = runner(graph, ("y", "p"), ("q",)).observed({"x": x, "k": np.array(True)})
    assert found["y"] == found["p"] == Histogram.of(-x)
    assert found["q"] == Histogram.empty()


def test_outputs_that_no_node_makes_stay() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y", "w")]
    weight = onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph)
    add_nodes(model, {"y", "w"})
    assert [node.op_type for node in model.graph.node] == ["Neg", "Counts"]
    assert [value.name for value in model.graph.output] == ["onnxq/found/y", "onnxq/sides/y", "w"]


def convolutions(channels: int = 32) -> Graph:
    """Residual blocks whose tensors are held in blocks, with a Concat and a product behind them."""
    weights = {f"w{i}": RNG.normal(0, 0.1, (channels, channels if i else 3, 3, 3)).astype(np.float32) for i in range(3)}
    text = """(float[N,3,64,64] x) => (float[N,8] y) {
        c0 = Conv<pads=[1,1,1,1]>(x, w0) a = Relu(c0)
        c1 = Conv<pads=[1,1,1,1]>(a, w1) b = Relu(c1) s = Add(a, b)
        c2 = Conv<pads=[1,1,1,1], strides=[2,2]>(s, w2) d = Clip(c2, lo, hi)
        g = GlobalAveragePool(d) f = Flatten(g) y = MatMul(f, m)
    }"""
    limits = {"lo": np.float32(0), "hi": np.float32(6)}
    graph = graph_of(text, 17, **weights, m=RNG.normal(0, 1, (channels, 8)).astype(np.float32), **limits)
    graph.infer_shapes()
    return graph


OBSERVED = ("x", "a", "b", "s", "d", "f")


def run(
    graph: Graph, feeds: list[dict[str, Array]], said: list[str] | None = None, bounds: Sequence[str] = ("y",)
) -> Statistics:
    heard: list[str] = [] if said is None else said
    monitor = Monitor(warn=heard.append)
    return collect(graph, OBSERVED, open_source(feeds, input_specs(graph)), bounds=bounds, monitor=monitor)


def used(monkeypatch: pytest.MonkeyPatch) -> list[OnCpu | None]:
    """What `collect` was given from now on."""
    found: list[OnCpu | None] = []
    inner = on_cpu.on_cpu

    def spied(*args: Any) -> OnCpu | None:  # noqa: ANN401  passed on
        found.append(inner(*args))
        return found[-1]

    monkeypatch.setattr(on_cpu, "on_cpu", spied)
    return found


@pytest.mark.parametrize("channels", [32, 24])  # 24: the last block is not full
@pytest.mark.parametrize("cores", [1, 2, 5])
def test_a_collection_is_the_same(monkeypatch: pytest.MonkeyPatch, cores: int, channels: int) -> None:
    """Without the nodes, and for batches, odd samples and all; so is what is said."""
    graph = convolutions(channels)
    feeds = [{"x": RNG.normal(0, 1 + i, (1 + i % 3, 3, 64, 64)).astype(np.float32)} for i in range(6)]
    feeds[4]["x"][0, 0, 0, 0] = np.inf
    monkeypatch.setattr(on_cpu, "cores", lambda: cores)
    monkeypatch.setattr(collecting, "cores", lambda: cores)
    found, said = used(monkeypatch), (list[str](), list[str]())
    counted = run(graph, feeds, said[0])
    assert found[0] is not None
    assert found[0].most == cores
    monkeypatch.setattr(on_cpu, "NODES", None)
    plain = run(graph, feeds, said[1])
    assert found[1] is None
    assert counted.samples == plain.samples == 12
    assert counted.tensors == plain.tensors
    assert counted.bounds == plain.bounds
    assert counted.nonfinite == plain.nonfinite
    assert said[0] == said[1] != []
    assert (counted.seen, counted.shapes) == (plain.seen, plain.shapes)


def test_a_gpu_that_is_not_used_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "unused_gpu", lambda _: True)
    found, said = used(monkeypatch), list[str]()
    run(convolutions(), [{"x": RNG.normal(0, 1, (1, 3, 64, 64)).astype(np.float32)}], said)
    assert found[0] is not None
    assert ["although there is a GPU" in text for text in said] == [True]


def test_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = convolutions()

    def made(of: Graph = graph, providers: tuple[str, ...] = ("cpu",), customs: tuple[str, ...] = ()) -> OnCpu | None:
        return on_cpu.on_cpu(of, OBSERVED[1:4], (), providers, customs)

    monkeypatch.setattr(on_cpu, "cores", lambda: 2)
    assert made() is not None
    assert made(providers=("cuda",)) is None
    assert made(customs=("lib.so",)) is None
    text = "(float[N,500000] x) => (float[N,500000] s) { a = Tanh(x) b = Relu(a) s = Neg(b) }"
    other = graph_of(text)
    other.infer_shapes()
    assert made(other) is None
    with monkeypatch.context() as patch:
        patch.setattr(on_cpu, "MOST_WEIGHTS", 1000)
        assert made() is None
    with monkeypatch.context() as patch:
        patch.setattr("onnxq.ahead.MOST_BYTES", 1000)  # one sample at once
        assert made() is None
        patch.setattr(on_cpu, "cores", lambda: 1)
        assert made() is not None


@pytest.mark.parametrize("error", [OSError("no room"), OSError("no folder"), OnnxqError("not for this one", "")])
def test_what_cannot_be_had_is_not_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception) -> None:
    graph, feeds = convolutions(), [{"x": RNG.normal(0, 1, (1, 3, 64, 64)).astype(np.float32)}]
    expected, found = run(graph, feeds), used(monkeypatch)
    if str(error) == "no folder":
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    elif isinstance(error, OSError):
        monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(error))
    else:
        (tmp_path / "other.so").write_bytes(b"not a library")
        monkeypatch.setattr(on_cpu, "NODES", str(tmp_path / "other.so"))
    assert run(graph, feeds).tensors == expected.tensors
    assert found == [None]


def test_a_tensor_is_counted_as_soon_as_it_is_made(tmp_path: Path) -> None:
    graph = convolutions()
    with Scratch() as folder:
        counting_session(graph, OBSERVED, {"a"}, folder, 1)
        path = folder / "counting.onnx"
        options = {"as_written": True, "optimize": False, "threads": 1, "custom_ops": [str(counting.NODES)]}
        session = Session(path, in_order=True, profile_to=tmp_path / "p", **options)  # type: ignore[arg-type]
        model = onnx.load(path, load_external_data=False)
    session.run({"x": RNG.normal(0, 1, (1, 3, 64, 64)).astype(np.float32)})
    events = [event for event in json.loads(session.end_profile().read_text()) if event["cat"] == "Node"]
    nodes = list(model.graph.node)
    ours = [index for index, node in enumerate(nodes) if node.domain == "onnxq"]
    assert [nodes[index].op_type for index in ours] == ["Counts"] + 4 * ["Bounds"]
    assert all(nodes[index].input[0] in nodes[index - 1].output for index in ours)
    assert [event["args"]["op_name"] for event in events] == [node.op_type for node in nodes]
