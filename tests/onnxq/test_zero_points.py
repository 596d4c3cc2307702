"""Zero points on a target that has none: what effort chooses, and what it gains."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of, run
from legality import assert_legal

from onnxq import Recipe, Rule, api
from onnxq.errors import StatisticsError
from onnxq.numerics import sqnr_db
from onnxq.statistics import Statistics, merge

if TYPE_CHECKING:
    from pathlib import Path

    from onnxq.graph import Graph

BALANCED = Recipe(effort="balanced", high_precision="fp32")
FAST = replace(BALANCED, effort="fast")
RNG = np.random.default_rng(3)


def floats(*shape: int) -> Array:
    fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    return np.asarray(RNG.normal(size=shape) * np.sqrt(2 / fan), np.float32)


WEIGHTS = {
    "a": floats(32, 3, 3, 3),
    "ab": 0.1 * floats(32),
    "b": floats(32, 32, 3, 3),
    "bb": 0.1 * floats(32),
    "c": floats(32, 32, 1, 1),
    "cb": 0.1 * floats(32),
    "d": floats(16, 32, 1, 1),
}


def network() -> Graph:
    """A padded convolution, a residual and one of one pixel, ReLUs between them."""
    text = (
        "(float[N,3,12,12] x) => (float[N,16,12,12] y) {"
        "p = Conv<pads = [1,1,1,1]>(x, a, ab) q = Relu(p) "
        "r = Conv<pads = [1,1,1,1]>(q, b, bb) s = Relu(r) "
        "t = Conv(s, c, cb) u = Add(t, q) v = Relu(u) y = Conv(v, d) }"
    )
    return graph_of(text, **WEIGHTS)


def samples(count: int, seed: int = 1) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 3, 12, 12)).astype(np.float32)} for _ in range(count)]


def quality(graph: Graph, quantized: Graph) -> float:
    pairs = [(run(graph, f)[0], run(quantized, f)[0]) for f in samples(6, seed=2)]
    return sqnr_db(*(np.stack(side) for side in zip(*pairs, strict=True)))


def ops(graph: Graph) -> list[str]:
    return [n.op_type for n in graph.nodes if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]


def test_fast_and_targets_with_zero_points_choose_none() -> None:
    graph, data = network(), samples(20)
    assert not api.calibrate(graph, data, FAST).zero_points
    assert not api.calibrate(graph, data, replace(BALANCED, target="ort-cpu")).zero_points
    assert not api.calibrate(graph, data, replace(BALANCED, target="tensorrt@10+dla")).zero_points
    assert not api.calibrate(graph, data, replace(BALANCED, io_types="int8")).zero_points


@pytest.mark.parametrize("target", ["tensorrt@8", "tensorrt@10", "tensorrt@11"])
def test_relus_gain_most_of_a_bit(target: str) -> None:
    graph, data = network(), samples(24)
    recipe = replace(BALANCED, target=target)
    plain, _ = api.quantize(graph, data, replace(FAST, target=target))
    better, plan = api.quantize(graph, data, recipe)
    assert quality(graph, better) > quality(graph, plain) + 2
    assert plan.int8_share() == 1
    assert "Relu" not in ops(better)
    assert ops(better).count("Pad") <= 2
    assert any("as x - c" in note for note in plan.remarks)
    assert_legal(better.to_proto(), target=target)
    assert api.check(better, target).count("E") == 0


def test_in_float16() -> None:
    graph, data = network(), samples(24)
    half = replace(BALANCED, high_precision="fp16")
    better, _ = api.quantize(graph, data, half)
    plain, _ = api.quantize(graph, data, replace(half, effort="fast"))
    assert quality(graph, better) > quality(graph, plain) + 2
    assert_legal(better.to_proto(), target="tensorrt@11")


def test_in_float16_the_constants_are_those_that_the_codes_mean() -> None:
    """What is added to a tensor in place of a zero point is a whole number of steps, or zeros are no code."""
    text = """(float[N,3,12,12] x) => (float[N,16,12,12] y) {
              p = Conv<pads = [1,1,1,1]>(x, a, ab) q = HardSwish(p) r = Conv<pads = [1,1,1,1]>(q, b, bb)
              s = HardSwish(r) y = Conv(s, d) }"""
    graph = graph_of(text, **{name: WEIGHTS[name] for name in ("a", "ab", "b", "bb", "d")})
    ready = api.prepared(graph, replace(FAST, high_precision="fp16"))
    found = replace(api.observe(ready, samples(20)), zero_points=("q", "s"))
    made, plan = api.lowered(ready, found)
    assert {p.params.zero_point != 0 for p in plan.points.values() if p.params and p.tensor in "qs"} == {True}
    offsets = []
    for node in (n for n in made.nodes if n.op_type == "QuantizeLinear"):
        add = made.producer(node.inputs[0], "Add")
        if add is not None:
            step, offset = (np.asarray(made.const(v)) for v in (node.inputs[1], add.inputs[1]))
            assert offset.dtype == np.float16
            offsets.append(float(offset) / float(step))
    assert len(offsets) == 2
    np.testing.assert_allclose(offsets, np.rint(offsets), atol=0.01)
    assert max(np.abs(offsets)) > 64  # where float16 rounds by up to 0.03 steps


def test_the_choice_does_not_depend_on_the_order_and_is_kept_in_the_file(tmp_path: Path) -> None:
    graph, data = network(), samples(24)
    one = api.calibrate(graph, data, BALANCED)
    other = api.calibrate(graph, data[::-1], BALANCED)
    assert one.zero_points
    assert one == other
    path = tmp_path / "s.npz"
    one.save(path)
    assert Statistics.load(path) == one
    with pytest.raises(StatisticsError, match="improved in different ways"):
        merge([one, replace(one, zero_points=())])


def test_a_layer_that_goes_back_to_float_takes_its_zero_point_along() -> None:
    graph, data = network(), samples(24)
    statistics = api.calibrate(graph, data, BALANCED)
    last = next(str(n.name) for n in graph.nodes if n.outputs[0].name == "y")
    without = replace(BALANCED, rules=(Rule(nodes=last, quantize=False),))
    again, plan = api.quantize(graph, statistics, without)
    assert last in plan.skipped
    assert quality(graph, again) > quality(graph, api.quantize(graph, statistics, BALANCED)[0]) - 1
