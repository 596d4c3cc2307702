"""The graph that counts gives the bits that Tally gives for the same tensors: on the CPU provider, which stands in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import graph_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq import collect as collecting
from onnxq import runtime
from onnxq.collect import collect
from onnxq.data import input_specs, open_source
from onnxq.histogram import Extent, Histogram, Tally
from onnxq.monitor import Monitor
from onnxq.on_device import OnDevice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxq.graph import Graph
    from onnxq.statistics import Statistics

    Array = np.ndarray[Any, Any]

SAME = "(float[N] x) => (float[N] y) { y = Identity(x) }"
CPU = (("cpu",), ())
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 3.4028235e38, -3.4028235e38, math.inf, -math.inf, math.nan, 1.0]
arrays = hnp.arrays(np.float32, st.integers(0, 40), elements=st.one_of(st.floats(width=32), st.sampled_from(SPECIAL)))


def graph_for(kind: str = "float") -> Graph:
    """What is observed is made by a node: inputs are counted from the feed."""
    return graph_of(f"({kind}[N] x) => ({kind}[N] y) {{ m = Identity(x) y = Neg(m) }}", 17)


def counted(runner: OnDevice, parts: Sequence[Array], name: str = "y") -> Histogram:
    tally = Tally()
    for part in parts:
        found = runner.observed({"x": part})[name]
        assert isinstance(found, Histogram)
        tally.take(found)
    return tally.histogram()


def by_tally(parts: Sequence[Array]) -> Histogram:
    tally = Tally()
    for part in parts:
        tally.add(-part)
    return tally.histogram()


@settings(max_examples=30, deadline=None)
@given(st.lists(arrays, min_size=1, max_size=4))
def test_counts_are_those_of_tally(parts: list[Array]) -> None:
    assert counted(OnDevice(graph_for(), ("y",), (), CPU), parts) == by_tally(parts)


@pytest.mark.parametrize("exponent", [-148, -130, -116, -101, -50, 0, 13, 100, 127])
def test_every_magnitude_is_exact(exponent: int) -> None:
    rng = np.random.default_rng(1)
    parts = [np.ldexp(rng.uniform(-1, 1, 5000), exponent - k).astype(np.float32) for k in (0, 1, -1, 5)]
    edges = np.ldexp(np.array([1, 2, 3, 4094, 4095], np.float64), exponent - 12).astype(np.float32)
    parts.append(np.concatenate([edges, np.nextafter(edges, np.float32(0))]))
    assert counted(OnDevice(graph_for(), ("y",), (), CPU), parts) == by_tally(parts)


def test_half_precision_is_counted_in_float32() -> None:
    graph = graph_of("(float16[N] x) => (float16[N] y) { y = Reshape(x, s) }", 17, s=np.array([-1]))
    part = np.random.default_rng(2).standard_normal(3000).astype(np.float16)
    part[:3] = [0, np.inf, np.nan]
    assert counted(OnDevice(graph, ("y",), (), CPU), [part]) == Histogram.of(part)


@settings(max_examples=20, deadline=None)
@given(st.lists(arrays, min_size=1, max_size=4))
def test_bounds_are_those_of_extent(parts: list[Array]) -> None:
    runner, tally, expected = OnDevice(graph_for(), (), ("y",), CPU), Extent(), Extent()
    for part in parts:
        found = runner.observed({"x": part})["y"]
        assert isinstance(found, Histogram)
        tally.take(found)
        expected.add(-part)
    assert (tally.bounds, tally.nonfinite) == (expected.bounds, expected.nonfinite)


def test_a_sample_is_run_twice_only_where_it_reaches_further(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, runs = OnDevice(graph_for(), ("y",), (), CPU), list[int]()
    inner = runner._session.run

    def run(*args: Any) -> list[Any]:  # noqa: ANN401  passed on
        runs.append(1)
        return inner(*args)

    monkeypatch.setattr(runner._session, "run", run)
    for scale, expected in ((1.5, 2), (1.0, 1), (0.1, 1), (9.0, 2), (8.5, 1)):
        runs.clear()
        runner.observed({"x": np.full(3, scale, np.float32)})
        assert len(runs) == expected, scale


def test_a_collection_is_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    w = np.random.default_rng(3).normal(size=(4, 4)).astype(np.float32)
    text = "(float[N,4] x) => (float[N,4] y) { a = MatMul(x, w) b = Relu(a) y = Tanh(b) }"
    graph = graph_of(text, w=w)
    feeds = [{"x": np.random.default_rng(i).normal(size=(3, 4)).astype(np.float32) * (i + 1)} for i in range(5)]

    def run() -> Statistics:
        source = open_source(feeds, input_specs(graph))
        return collect(graph, ("x", "a", "b"), source, bounds=("y",))

    plain = run()
    made: list[OnDevice] = []

    def device(graph: Graph, names: Any, _: object, *__: object) -> tuple[OnDevice, Any, int]:  # noqa: ANN401  a stand-in
        made.append(OnDevice(graph, names[0], names[1], CPU))
        return made[0], made[0].observed, 1

    monkeypatch.setattr(collecting, "_runner", device)
    found = run()
    assert made
    assert found == plain
    assert found.bounds == plain.bounds


def test_a_gpu_that_is_not_used_is_told(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401  a Path
    (tmp_path / "version").write_text("NVRM")
    monkeypatch.setattr(runtime, "DRIVER", tmp_path / "version")
    graph, said = graph_for(), list[str]()
    source = open_source([{"x": np.ones(3, np.float32)}], input_specs(graph))
    collect(graph, ("y",), source, monitor=Monitor(warn=said.append))
    import onnxruntime  # noqa: TID251  does this build have CUDA?

    has = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    assert any("--providers cuda" in text for text in said) is has
    monkeypatch.setattr(runtime, "DRIVER", tmp_path / "none")
    said.clear()
    collect(graph, ("y",), source, monitor=Monitor(warn=said.append))
    assert not said
