"""What is said of float16 tensors whose scale float16 does not hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of

from onnxq import Recipe, api
from onnxq.coarse import with_held_scales
from onnxq.monitor import Monitor
from onnxq.numerics import INT8, params_from_range
from onnxq.plan import Plan, Point

if TYPE_CHECKING:
    from onnxq.graph import Graph

LEAST = 2.0**-14
INTEGER = Recipe(io_types="int8", effort="fast")


def plan_of(*points: tuple[str, float, str]) -> Plan:
    """A resolved plan of points given as (tensor, largest value, type)."""
    made = (Point(n, (), n, n, dtype=kind, params=params_from_range(-a, a, INT8)) for n, a, kind in points)
    return Plan("tensorrt", {p.tensor: p for p in made}, (), ())


@pytest.mark.parametrize(
    "points", [[], [("a", 1.0, "float16")], [("a", 127 * LEAST, "float16")], [("a", 1e-6, "float32")]]
)
def test_leaves_alone(points: list[tuple[str, float, str]]) -> None:
    plan = plan_of(*points)
    assert with_held_scales(plan) is plan


def test_raises_the_scales_and_says_of_which_and_what_it_costs() -> None:
    plan = with_held_scales(plan_of(("a", 1.0, "float16"), ("b", 127e-6, "float16"), ("c", 1e-6, "float32")))
    scales = {name: float(p.params.scale) for name, p in plan.points.items() if p.params is not None}
    assert scales == pytest.approx({"a": 1 / 127, "b": LEAST, "c": 1e-6 / 127}, rel=1e-6)
    (note,) = plan.notes
    assert "b (a scale of 1e-06 is needed)" in note
    assert "36 dB" in note  # 20 log10(6.1e-5 / 1e-6) = 35.7
    assert "a (" not in note.replace("b (a", "")


def test_names_the_worst_three_of_many() -> None:
    plan = with_held_scales(plan_of(*((f"t{k}", 127e-6 / k, "float16") for k in range(1, 6))))
    assert len(plan.notes) == 1
    assert ", ".join(f"t{k} (a scale of {1e-6 / k:.2g} is needed)" for k in (5, 4, 3)) + ", 2 more;" in plan.notes[0]


def small(kind: type, size: float, *, kept: bool) -> tuple[Graph, list[dict[str, Array]]]:
    """A product whose output is of this size, and data; with `kept` it is not brought to float32 meanwhile."""
    rng = np.random.default_rng(0)
    name = np.dtype(kind).name.replace("float32", "float")
    weights: dict[str, Array] = {
        "w": rng.normal(0, 1 / 8, (64, 64)).astype(kind),
        "v": rng.normal(0, size / 8, (64, 64)).astype(kind),
    }
    apart = "s = SequenceConstruct(x) n = SequenceLength(s)" if kept else "n = Constant<value_int = 1>()"
    text = f"({name}[N,64] x) => ({name}[N,64] y, int64 n) {{ h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) {apart} }}"
    graph = graph_of(text, 19, **weights)
    return graph, [{"x": rng.normal(size=(4, 64)).astype(kind)} for _ in range(12)]


def quantized(kind: type, size: float, recipe: Recipe, *, kept: bool = False) -> tuple[list[str], float]:
    """(warnings, SQNR of the output in dB)."""
    graph, feeds = small(kind, size, kept=kept)
    said: list[str] = []
    made, _ = api.quantize(graph, feeds, recipe, Monitor(warn=said.append))
    return [text for text in said if "too small for int8" in text], api.compare(graph, made, feeds).worst[0].sqnr_db


def test_integer_outputs_of_a_model_that_stays_in_float16_that_are_small_are_told() -> None:
    """The figure that the warning tells is the loss against what it advises."""
    (said,), coarse = quantized(np.float16, 1e-4, INTEGER, kept=True)
    assert "y (a scale of" in said
    assert "--io-types int8" in said
    loss = float(said.split("lose up to ")[1].split(" dB")[0])
    assert coarse < 15
    for kind in (np.float32, np.float16):
        silent, fine = quantized(kind, 1e-4, INTEGER)
        assert not silent
        assert fine > 25
    assert loss == pytest.approx(20 * np.log10(LEAST / float(said.split("a scale of ")[1].split(" is")[0])), abs=0.6)


@pytest.mark.parametrize("recipe", [INTEGER, Recipe(effort="fast"), Recipe(effort="fast", target="ort-cpu")])
def test_nothing_is_said_of_other_models(recipe: Recipe) -> None:
    assert not quantized(np.float16, 1.0, recipe)[0]
    assert not quantized(np.float32, 1e-4, recipe)[0]


def test_without_integer_ends_the_small_output_has_no_pair() -> None:
    said, sqnr = quantized(np.float16, 1e-4, Recipe(effort="fast"))
    assert not said
    assert sqnr > 25


def test_for_ort_cpu_the_pairs_are_float32() -> None:
    said, sqnr = quantized(np.float16, 1e-4, Recipe(effort="fast", target="ort-cpu", io_types="int8"))
    assert not said
    assert sqnr > 25
