"""Graphs with sites of smoothing, and factors for them drawn at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from graphs import graph_of

from onnxq.passes.infer_shapes import infer_shapes
from onnxq.statistics import Factor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from graphs import Array

    from onnxq.graph import Graph
    from onnxq.rescaling import Site


def built(text: str, **weights: Array) -> Graph:
    """The graph with the shapes that sites are found by."""
    graph = graph_of(text, **weights)
    infer_shapes(graph)
    return graph


def factors_of(sites: Iterable[Site], seed: int = 1, low: float = 0.1, high: float = 10.0) -> dict[str, Factor]:
    """Factors of each site between low and high, and shifts where it takes them."""
    rng = np.random.default_rng(seed)
    found = {}
    for site in sites:
        scale = np.exp(rng.uniform(np.log(low), np.log(high), site.channels)).astype(np.float32)
        shift = rng.normal(size=site.channels).astype(np.float32) * site.shifts
        found[site.name] = Factor(scale, shift.astype(np.float32))
    return found
