"""Which of two factors of a site is taken: the one with which the model's outputs err less, tried by stretches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of

from onnxq import Recipe, api
from onnxq.improvement.factors import _preferred
from onnxq.improvement.picking import Inspected, Picked
from onnxq.rescaling import find_sites
from onnxq.statistics import Factor

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from onnxq.graph import Graph
    from onnxq.improvement.picking import Quantized

SIZE, RNG = 32, np.random.default_rng(0)
LAYERS = 11
WEIGHTS = {f"w{i}": (RNG.normal(size=(SIZE, SIZE)) / SIZE**0.5).astype(np.float32) for i in range(LAYERS)}
FEEDS = [{"x0": RNG.normal(size=(2, SIZE)).astype(np.float32)} for _ in range(32)]


def chain(weights: Mapping[str, Array] = WEIGHTS) -> Graph:
    steps = " ".join(f"[m{i}] y{i} = MatMul(x{i}, w{i}) [t{i}] x{i + 1} = Tanh(y{i})" for i in range(LAYERS))
    return graph_of(f"(float[2,{SIZE}] x0) => (float[2,{SIZE}] x{LAYERS}) {{ {steps} }}", 17, **weights)


def factor(error: float) -> Factor:
    return Factor(np.full(SIZE, 1 + error, np.float32), np.zeros(SIZE, np.float32))


def errs(asked: list[tuple[frozenset[str], int]], graph: Graph) -> Quantized:
    """A model whose weights are off by as much as the factors say, of the layers that are asked for alone."""
    sites = {node: site.name for site in find_sites(graph) for _, node in site.readers}

    def quantized(factors: Mapping[str, Factor], readers: Collection[str] | None = None, /) -> Graph:
        asked.append((frozenset(readers or ()), len(factors)))
        errors = {name: float(factors[sites[name]].scale[0]) for name in readers or ()}
        return chain({w: x * np.float32(errors.get(f"m{w[1:]}", 1.0)) for w, x in WEIGHTS.items()})

    return quantized


@pytest.mark.parametrize("half", [False, True])
def test_each_stretch_takes_what_errs_less(half: bool) -> None:
    graph = chain()
    asked: list[tuple[frozenset[str], int]] = []
    fed: list[Sequence[object]] = []
    ready = api.prepared(graph, Recipe(effort="fast", high_precision="fp32"))

    def quantizer(feeds: Sequence[Mapping[str, Array]]) -> Quantized:
        fed.append(feeds)
        return errs(asked, ready.graph)

    model = Inspected(ready.graph, ready.plan, quantizer, half=half)
    picked = Picked(FEEDS, {}, judges=16)
    sites = find_sites(ready.graph)
    assert len(sites) == LAYERS
    alone, *others = sites
    good, bad = factor(0.001), factor(0.01)
    found = {site: (good, bad) if i % 4 < 2 else (bad, good) for i, site in enumerate(others)}
    chosen = _preferred(model, {alone: (bad,), **found}, picked)
    assert chosen[alone] is bad or np.array_equal(chosen[alone].scale, bad.scale)  # it has no rival
    for site in others:
        np.testing.assert_array_equal(chosen[site].scale, good.scale)
    stretches = [readers for readers, _ in asked]
    assert all(len(s) == 2 for s in stretches)  # ten rivals, at most eight stretches
    assert len(stretches) == 2 * 5
    assert {count for _, count in asked} == {LAYERS}  # all are smoothed, and a stretch of them is quantized
    judging = [id(feed) for feed in picked.judging]
    assert fed
    assert not any(id(feed) in judging for feeds in fed for feed in feeds)


def test_nothing_is_run_without_rivals() -> None:
    graph = chain()
    ready = api.prepared(graph, Recipe(effort="fast", high_precision="fp32"))
    sites = find_sites(ready.graph)

    def never(_: object) -> Quantized:
        raise AssertionError

    model = Inspected(ready.graph, ready.plan, never)
    found = {site: (factor(0.1),) for site in sites}
    assert _preferred(model, found, Picked(FEEDS, {}, judges=16)) == {site: two[0] for site, two in found.items()}
    assert _preferred(model, {}, Picked(FEEDS, {}, judges=16)) == {}
