"""Embedding tables of a model for ort-cpu: 8 bits in every mode, unless a rule leaves them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import graph_of

import onnxq
from onnxq import Recipe, Rule
from onnxq.runtime import Session

if TYPE_CHECKING:
    from onnxq.graph import Graph

RNG = np.random.default_rng(0)
FEEDS = [{"i": RNG.integers(0, 1024, (2, 5))} for _ in range(4)]


def model(rows: int = 1024) -> Graph:
    text = "(int64[2,5] i) => (float[2,5,64] y) { e = Gather(table, i) y = MatMul(e, w) }"
    table, w = RNG.normal(size=(rows, 64)), RNG.normal(size=(64, 64))
    return graph_of(text, 17, table=table.astype(np.float32), w=w.astype(np.float32))


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight-only"])
def test_rows_are_stored_in_8_bits(mode: str) -> None:
    graph = model()
    made, plan = onnxq.quantize(graph, None if mode != "static" else FEEDS, Recipe(target="ort-cpu", mode=mode))
    assert {d.op_type: d.quantized for d in plan.decisions}["Gather"]
    stored = [n for n in made.nodes if n.op_type == "GatherBlockQuantized"]
    assert len(stored) == 1
    assert made.dtype(stored[0].inputs[0]) == "uint8"
    exact = Session(graph.to_proto().SerializeToString()).run(FEEDS[0])[0]
    found = Session(made.to_proto().SerializeToString()).run(FEEDS[0])[0]
    assert 10 * np.log10(np.sum(exact**2) / np.sum((found - exact) ** 2)) > 30


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_rule_and_a_small_table_stay_float(mode: str) -> None:
    rule = Recipe(target="ort-cpu", mode=mode, rules=(Rule(ops=("Gather",), quantize=False),))
    for graph, recipe in ((model(), rule), (model(1023), Recipe(target="ort-cpu", mode=mode))):
        small = [{"i": np.minimum(f["i"], 1022)} for f in FEEDS]
        made, plan = onnxq.quantize(graph, small if mode == "static" else None, recipe)
        assert not {d.op_type: d.quantized for d in plan.decisions}["Gather"]
        assert "GatherBlockQuantized" not in {n.op_type for n in made.nodes}
