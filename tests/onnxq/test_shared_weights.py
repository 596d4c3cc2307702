"""One weight that several layers read: codes that suit all of them, held once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of, run
from legality import assert_legal

from onnxq import Recipe, Rule, api
from onnxq.choose import with_codes
from onnxq.improvement import rounding
from onnxq.improvement.sampling import weight_as_rows
from onnxq.numerics import INT8_WEIGHT, dequantize, quantize, sqnr_db
from onnxq.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from onnxq.data import Feed
    from onnxq.graph import Graph
    from onnxq.improvement import Inspected

    Hessian = tuple[rounding.Floats | None, int]
    Layers = Sequence[rounding._Layer]

RECIPE = Recipe(effort="balanced", high_precision="fp32", float_share=0.0)


def unrolled(steps: int = 3) -> Graph:
    """h = relu(h w) so many times, of inputs that have much in common."""
    rng = np.random.default_rng(4)
    arrays = {"mix": rng.normal(size=(8, 64)), "w": rng.normal(size=(64, 64)) * 0.2, "v": rng.normal(size=(64, 32))}
    body = "".join(f"a{i} = MatMul(h{i}, w) h{i + 1} = Relu(a{i})" for i in range(steps))
    text = f"(float[N,8,8] x) => (float[N,8,32] y) {{ m = MatMul(x, mix) h0 = Tanh(m) {body} y = MatMul(h{steps}, v) }}"
    return graph_of(text, 17, **{k: v.astype(np.float32) for k, v in arrays.items()})


def feeds(count: int, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 8, 8)).astype(np.float32)} for _ in range(count)]


def quality(graph: Graph) -> float:
    pairs = [(run(unrolled(), f)[0], run(graph, f)[0]) for f in feeds(24, seed=7)]
    return sqnr_db(*(np.stack(side) for side in zip(*pairs, strict=True)))


@pytest.fixture(scope="module")
def found() -> Statistics:
    return api.calibrate(unrolled(), feeds(100), RECIPE)


# --- what must be left alone -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("a = MatMul(x, w) b = Gemm<transB = 1>(x, w)", (48, 48)),
        ("a = Gemm<transB = 1>(x, w) b = Gemm(x, w)", (48, 48)),
        ("a = Gemm<transA = 1>(x, w) b = Gemm<transA = 1>(x, w)", (48, 48)),
    ],
)
def test_scales_along_either_axis(text: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes are of one axis: of a weight that is read in two ways none are chosen."""
    seen = layers_of(
        graph_of(f"(float[48,48] x) => (float[48,48] a, float[48,48] b) {{ {text} }}", 17, w=normal(*shape)),
        [{"x": normal(48, 48, seed=i)} for i in range(32)],
        monkeypatch,
    )
    assert "w" not in seen


def test_groups_of_another_number(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """(float[1,32,8,8] x) => (float[1,64,8,8] a, float[1,64,8,8] b) {
              h = Concat<axis = 1>(x, x) a = Conv<group = 1>(x, w) b = Conv<group = 2>(h, w) }"""
    graph = graph_of(text, 17, w=normal(64, 32, 1, 1))
    assert "w" not in layers_of(graph, [{"x": normal(1, 32, 8, 8, seed=i)} for i in range(32)], monkeypatch)


def test_a_layer_that_reads_floats() -> None:
    """It keeps the float weight, and the codes are chosen for the others."""
    recipe = replace(RECIPE, rules=(Rule(nodes="a1", quantize=False),))
    model = unrolled()
    name = next(str(n.name) for n in model.nodes if n.outputs[0].name == "a1")
    graph, plan = api.quantize(model, feeds(100), replace(recipe, rules=(Rule(nodes=name, quantize=False),)))
    (point,) = (w for w in plan.weights if w.tensor == "w")
    assert [n for n, _ in point.uses] == [str(n.name) for n in model.nodes if n.outputs[0].name in ("a0", "a2")]
    assert point.rounded is not None
    assert point.rounded.input_scale.shape == (2,)
    np.testing.assert_array_equal(graph.const(graph.weights["w"]), model.const(model.weights["w"]))


def test_codes_for_scales_that_are_others_now(found: Statistics) -> None:
    _, plan = api.quantize(unrolled(), found, RECIPE)
    codes = found.rounding["w"]
    for moved in ([1, 1, 1], [1, 1, 2], [2, 1, 1], [1, 1]):
        scale = codes.input_scale[: len(moved)] * np.array(moved, np.float32)
        bare = replace(plan, weights=tuple(replace(w, rounded=None) for w in plan.weights))
        again = with_codes(bare, {"w": replace(codes, input_scale=scale)}, INT8_WEIGHT)
        assert any(w.rounded is not None for w in again.weights) == (moved == [1, 1, 1])


# --- what all layers read -----------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def layers_of(graph: Graph, data: Sequence[Feed], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the weights that codes are looked for of."""
    return {layer.point.tensor for layers, _ in hessians_of(graph, data, monkeypatch) for layer in layers}


def hessians_of(
    graph: Graph, data: Sequence[Feed], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Layers, list[Hessian]]]:
    found: list[tuple[Layers, list[Hessian]]] = []
    collect = rounding._hessians

    def seen(model: Inspected, layers: Layers, feeds: Sequence[Feed]) -> list[Hessian]:
        found.append((layers, collect(model, layers, feeds)))
        return found[-1][1]

    with monkeypatch.context() as patch:
        patch.setattr(rounding, "_hessians", seen)
        patch.setattr(rounding, "_WORTH_DB", -100.0)
        api.calibrate(graph, data, RECIPE)
    return found


def on_grid(layer: rounding._Layer, data: Sequence[Feed]) -> list[dict[str, Array]]:
    grids = tuple(zip(layer.tensors, layer.params, strict=True))
    return [{name: dequantize(quantize(feed[name], grid), grid) for name, grid in grids} for feed in data]


def are_samples(found: Array, each: Sequence[Array], count: int) -> None:
    """Whether the sum is that of so many of the samples, each whole and once: which ones, hashes decide."""
    by_sample = np.array(each, np.float64).reshape(len(each), -1)
    taken, *_ = np.linalg.lstsq(by_sample.T, found.reshape(-1), rcond=None)
    np.testing.assert_allclose(np.sort(taken), [0.0] * (len(each) - count) + [1.0] * count, atol=1e-2)


def test_the_matrix_is_of_the_rows_of_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Summed by hand; there are so few rows that all are taken."""
    text = "(float[8,32] x, float[4,32] z) => (float[8,48] a, float[4,48] b) { a = MatMul(x, w) b = MatMul(z, w) }"
    graph = graph_of(text, 17, w=normal(32, 48))
    data = [{"x": normal(8, 32, seed=i), "z": 5 + normal(4, 32, seed=100 + i)} for i in range(32)]
    ((layer,), ((hessian, count),)) = hessians_of(graph, data, monkeypatch)[0]
    assert layer.tensors == ("x", "z")
    assert hessian is not None
    products = [f["x"].T @ f["x"] + f["z"].T @ f["z"] for f in on_grid(layer, data)]
    are_samples(hessian * count, products, count // 12)


@pytest.mark.parametrize(("kind", "groups"), [("pads = [1,1,1,1]", 1), ("group = 4, strides = [2,2]", 4)])
def test_levels_of_a_pyramid(kind: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """W^T H W is the power of what the convolutions write at all levels."""
    text = f"""(float[1,64,8,8] x, float[1,64,4,4] z) => (float[1,64,H,W] a, float[1,64,I,J] b) {{
               a = Conv<{kind}>(x, w) b = Conv<{kind}>(z, w) }}"""
    weight = normal(64, 64 // groups, 3, 3)
    graph = graph_of(text, 17, w=weight)
    data = [{"x": normal(1, 64, 8, 8, seed=i), "z": normal(1, 64, 4, 4, seed=i + 50)} for i in range(32)]
    ((layer,), ((hessian, count),)) = hessians_of(graph, data, monkeypatch)[0]
    assert layer.tensors == ("x", "z")
    assert hessian is not None
    outputs = [run(graph, feed) for feed in on_grid(layer, data)]
    powers = [np.square(a).sum(axis=(0, 2, 3)) + np.square(b).sum(axis=(0, 2, 3)) for a, b in outputs]
    rows = weight_as_rows(graph, [layer.linear]).astype(np.float64)
    power = np.einsum("gkn,gkl,gln->gn", rows, hessian * count, rows)
    positions = sum(y[0, 0].size for y in outputs[0])
    are_samples(power, powers, count // positions)


# --- in the flow ------------------------------------------------------------------------------------------


def test_one_set_of_codes_that_helps_all(found: Statistics, tmp_path: Path) -> None:
    assert "w" in found.rounding
    assert found.rounding["w"].input_scale.shape == (3,)
    found.save(tmp_path / "s.npz")
    assert Statistics.load(tmp_path / "s.npz") == found
    graph, plan = api.quantize(unrolled(), found, RECIPE)
    without, _ = api.quantize(unrolled(), replace(found, rounding={}), RECIPE)
    assert quality(graph) > quality(without) + 0.3
    assert [len(w.uses) for w in plan.weights if w.tensor == "w" and w.rounded is not None] == [3]
    assert_legal(graph.to_proto())
    sizes = [api.export(g, tmp_path / f"{i}.onnx")[0].stat().st_size for i, g in enumerate((graph, without))]
    assert sizes[0] == sizes[1]


def test_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    data, outputs = feeds(60), set()
    for order in (np.arange(60), np.random.default_rng(5).permutation(60)):
        statistics = api.calibrate(unrolled(), [data[i] for i in order], RECIPE)
        assert "w" in statistics.rounding
        (path,) = api.export(api.quantize(unrolled(), statistics, RECIPE)[0], tmp_path / "o.onnx")
        outputs.add(path.read_bytes())
    assert len(outputs) == 1


# --- smoothed together --------------------------------------------------------------------------------------


def block_thrice(outlier: float = 100.0) -> Graph:
    """One block of a normalization, in which two channels are far larger than the others, and two products."""
    rng, gain = np.random.default_rng(3), np.ones(64)
    gain[[5, 40]] = outlier
    step = """n{i} = LayerNormalization(x{i}, g) a{i} = MatMul(n{i}, w) r{i} = Relu(a{i}) c{i} = MatMul(r{i}, v)
              x{j} = Add(x{i}, c{i}) """
    arrays = {"g": gain, "w": rng.normal(size=(64, 64)) / gain[:, None] / 8, "v": rng.normal(size=(64, 64)) / 8}
    text = "".join(step.format(i=i, j=i + 1) for i in range(3))
    weights = {k: v.astype(np.float32) for k, v in arrays.items()}
    return graph_of(f"(float[N,8,64] x0) => (float[N,8,64] x3) {{ {text} }}", 17, **weights)


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_one_factor_for_all_uses(target: str) -> None:
    recipe = replace(RECIPE, target=target, high_precision=None)
    data = [{"x0": normal(1, 8, 64, seed=i)} for i in range(64)]
    statistics = api.calibrate(block_thrice(), data, recipe)
    assert "n0" in statistics.smoothing
    better, _ = api.quantize(block_thrice(), statistics, recipe)
    plain, _ = api.quantize(block_thrice(), data, replace(recipe, effort="fast"))
    new = [{"x0": normal(1, 8, 64, seed=i)} for i in range(100, 124)]
    exact, *found = (np.stack([run(g, f)[0] for f in new]) for g in (block_thrice(), better, plain))
    gained = sqnr_db(exact, found[0]) - sqnr_db(exact, found[1])
    assert gained > 6
    for graph in (better, plain):
        held = [v for v in graph.weights.values() if graph.rank(v) == 2 and graph.dtype(v) == "int8"]
        assert [graph.shape(v) for v in held] == [(64, 64)] * 2
