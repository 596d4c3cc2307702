"""Concats of tensors whose ranges differ too much for one scale: what stays joined first, then what is parted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import Array, run
from placing import groups, net, uses

import onnxq
from onnxq import Recipe, Rule, api
from onnxq.planning import PARTED, parted, prepared

if TYPE_CHECKING:
    from onnxq.graph import Graph

RNG = np.random.default_rng(0)
W: dict[str, Any] = {name: RNG.normal(size=(16, 16, 3, 3)).astype(np.float32) / 12 for name in "abc"}
BODY = (
    "p = Conv<pads=[1,1,1,1]>(x, a) q = Conv<pads=[1,1,1,1]>(z, b) j = Concat<axis=1>(p, q) "
    "u = Mul(j, level) y = Conv<pads=[1,1,1,1]>(j, c) "
)


def model(ratio: float) -> Graph:
    """Half of the channels `ratio` times as large as the others, which the weights behind them make up for."""
    level = np.repeat([1.0, 1 / ratio], 16).reshape(1, 32, 1, 1).astype(np.float32)
    return net("float[1,16,8,8] x, float[1,16,8,8] z", BODY, "u y", 17, **held(ratio), level=level)


def held(ratio: float) -> dict[str, Any]:
    joint = np.concatenate([W["c"], W["c"] / ratio], axis=1).astype(np.float32)
    return {"a": W["a"], "b": W["b"] * np.float32(ratio), "c": joint}


def samples(count: int, start: int = 0) -> list[dict[str, Array]]:
    made = (
        np.random.default_rng(seed).normal(size=(2, 1, 16, 8, 8)).astype(np.float32)
        for seed in range(start, start + count)
    )
    return [{"x": x, "z": z} for x, z in made]


def recipe(target: str, effort: str = "fast", *rules: Rule) -> Recipe:
    return Recipe(target=target, effort=effort, high_precision="fp32" if target == "tensorrt" else None, rules=rules)


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_similar_ranges_share_a_scale(target: str) -> None:
    ready = prepared(model(4.0), recipe(target))
    found = api.observe(ready, samples(4))
    assert parted(ready, found) is ready
    assert any("j" in group for group in groups(ready.plan))


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_layers_that_read_all_of_it_lose_nothing_by_sharing(target: str) -> None:
    body = BODY.replace("u = Mul(j, level) ", "")
    graph = net("float[1,16,8,8] x, float[1,16,8,8] z", body, "y", 17, **held(1000.0))
    ready = prepared(graph, recipe(target))
    assert parted(ready, api.observe(ready, samples(4))) is ready


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_a_layer_that_reads_the_smaller_tensor_alone_does(target: str) -> None:
    body = BODY.replace("u = Mul(j, level) ", "u = Conv<pads=[1,1,1,1]>(p, a) ")
    graph = net("float[1,16,8,8] x, float[1,16,8,8] z", body, "u y", 17, **held(1000.0))
    ready = prepared(graph, recipe(target))
    apart = parted(ready, api.observe(ready, samples(4)))
    assert apart.plan.skipped["Concat:j"] == PARTED
    assert {"Conv:u", "Conv:y"} <= {d.node for d in apart.plan.decisions if d.quantized}


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_a_rule_that_asks_for_the_concat_is_obeyed(target: str) -> None:
    ready = prepared(model(1000.0), recipe(target, "fast", Rule(ops=("Concat",), quantize=True)))
    found = api.observe(ready, samples(4))
    assert parted(ready, found) is ready
    assert api.lowered(ready, found)[1].narrow


def test_on_a_dla_every_tensor_keeps_its_pair() -> None:
    ready = prepared(model(1000.0), Recipe(target="tensorrt@10+dla", effort="fast"))
    assert parted(ready, api.observe(ready, samples(4))) is ready


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_other_ranges_do_not(target: str) -> None:
    ready = prepared(model(1000.0), recipe(target))
    found = api.observe(ready, samples(4))
    apart = parted(ready, found)
    assert apart.plan.skipped["Concat:j"] == PARTED
    assert "Conv:y@0" in uses(apart.plan)["j"]
    assert not groups(apart.plan)
    assert parted(apart, found) is apart
    assert set(apart.plan.observe) <= found.tensors.keys()


@pytest.mark.parametrize("effort", ["fast", "balanced"])
@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_the_smaller_tensor_keeps_its_digits(target: str, effort: str) -> None:
    graph, feeds = model(1000.0), samples(32)
    made, plan = onnxq.quantize(graph, feeds, recipe(target, effort))
    assert not plan.narrow
    wide = plan.points["j"]
    seen = max(float(np.abs(run(net_of(graph, "j"), feed)[0]).max()) for feed in feeds)
    assert wide.range is not None
    assert max(map(abs, wide.range)) > 0.5 * seen  # of all that the Concat holds, not of its first input
    for feed in samples(4, 100):
        exact, got = run(graph, feed)[0], run(made, feed)[0]  # u, in which both halves weigh the same
        for half in (slice(0, 16), slice(16, 32)):
            noise = np.square(exact[:, half] - got[:, half]).sum() / np.square(exact[:, half]).sum()
            assert noise < 1e-3  # 30 dB


def net_of(graph: Graph, tensor: str) -> Graph:
    found = graph.copy()
    found.set_outputs([next(v for v in found.values() if v.name == tensor)])
    return found
