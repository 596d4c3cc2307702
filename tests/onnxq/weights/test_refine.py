"""Weights chosen from data, from the model and the data to the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import Array, graph_of, run
from onnx.reference import ReferenceEvaluator

from onnxq import Recipe, api, intake
from onnxq.errors import DataError, RecipeError, StatisticsError
from onnxq.statistics import Statistics
from onnxq.weights import Seen, moments, refined
from onnxq.weights.awq import awq_factor
from onnxq.weights.moments import Moments
from onnxq.weights.refine import EXPLICIT_DB

if TYPE_CHECKING:
    from onnxq.graph import Graph

CAUSAL = Path(__file__).parents[3] / "models" / "causal"
FOUR = Recipe(target="ort-cpu", mode="weight-only", weight_bits=4)
GPTQ, AWQ = replace(FOUR, weight_method="gptq"), replace(FOUR, weight_method="awq")


def net() -> Graph:
    """A LayerNorm before two products, a Gemm with a transposed weight, a weight read twice."""
    rng = np.random.default_rng(0)
    shapes = {"a": (64, 64), "b": (64, 64), "c": (32, 64), "d": (64, 64)}
    text = (
        "(float[N,4,64] x) => (float[M,32] y) {"
        "n = LayerNormalization(x, g, z) p = MatMul(n, a) q = MatMul(n, b) r = Tanh(p) s = Mul(r, q) "
        "t = MatMul(s, d) u = MatMul(t, d) f = Reshape(u, k) y = Gemm<transB=1>(f, c) }"
    )
    weights: dict[str, Array] = {n: (rng.normal(size=s) / 8).astype(np.float32) for n, s in shapes.items()}
    gain = np.where(np.arange(64) % 9 == 0, 20, 1).astype(np.float32)
    return graph_of(text, 17, **weights, g=gain, z=np.zeros(64, np.float32), k=np.array([-1, 64]))


def feeds(count: int, seed: int = 1) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(64, 64))
    return [{"x": (rng.normal(size=(1, 4, 64)) @ mix).astype(np.float32)} for _ in range(count)]


def noise(recipe: Recipe, data: object, *, exactly: bool = False) -> float:
    """`exactly`: by onnx's reference, since integer products saturate in ONNX Runtime on CPUs without VNNI."""
    graph, _ = api.quantize(net(), data, recipe)
    evaluator: Any = ReferenceEvaluator(graph.to_proto()) if exactly else None
    total = 0.0
    for feed in feeds(16, 2):
        (exact,), (found,) = run(net(), feed), evaluator.run(None, feed) if exactly else run(graph, feed)
        total += float(np.square(exact - found).sum() / np.square(exact).sum())
    return total


def test_better_than_rounding() -> None:
    for bits in (4, 3):
        nearest, gptq, awq = (
            noise(replace(r, weight_bits=bits), d) for r, d in ((FOUR, None), (GPTQ, feeds(64)), (AWQ, feeds(64)))
        )
        assert gptq < nearest / 1.5
        assert awq < nearest / 1.2


@pytest.mark.parametrize("text", ["nf4/block:32", "nf4/block:16+double", "fp4/block:32", "uint4/block:32", "nvfp4"])
def test_better_than_rounding_in_other_formats(text: str) -> None:
    plain = Recipe(target="ort-cpu", weights=text)
    nearest = noise(plain, None)
    gptq, awq = (noise(replace(plain, weight_method=m), feeds(64)) for m in ("gptq", "awq"))
    assert gptq < nearest / 1.3
    assert awq < nearest / 1.1


@pytest.mark.parametrize("activations", ["uint8/tensor+dynamic", "int8/token"])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_codes_beside_integers(activations: str, method: str) -> None:
    """W8A8: of the noise most is that of the activations, which AWQ's factors lower; the codes are the chosen ones."""
    plain = Recipe(target="ort-cpu", activations=activations)
    recipe = replace(plain, weight_method=method)
    found = api.calibrate(net(), feeds(64), recipe)
    better = noise(recipe, found, exactly=True)
    assert better < noise(plain, None, exactly=True) / (2 if method == "awq" else 1)
    graph, plan = api.quantize(net(), found, recipe)
    assert plan.mode == "dynamic"
    for name, stored in found.weights.items():
        np.testing.assert_array_equal(graph.const(graph.weights[f"{name}_quantized"]), stored.arrays["codes"])


@pytest.mark.parametrize("text", ["nf4+double", "uint4", "fp8e4m3", "nvfp4", "binary", "int2"])
def test_statistics_carry_every_format(text: str, tmp_path: Path) -> None:
    recipe = Recipe(target="ort-cpu", weights=text, weight_method="gptq")
    found = api.calibrate(net(), feeds(8), recipe)
    found.save(tmp_path / "s.npz")
    assert Statistics.load(tmp_path / "s.npz") == found
    made = [api.quantize(net(), d, recipe)[0].to_proto() for d in (Statistics.load(tmp_path / "s.npz"), feeds(8))]
    assert made[0] == made[1]


@pytest.mark.parametrize("recipe", [GPTQ, AWQ], ids=["gptq", "awq"])
def test_the_same_bytes_in_any_order_and_batching(recipe: Recipe) -> None:
    data = feeds(12)
    batch = [{"x": np.concatenate([feed["x"] for feed in data])}]
    made = [api.quantize(net(), d, recipe)[0].to_proto().SerializeToString() for d in (data, data[::-1], batch)]
    assert made[0] == made[1] == made[2]


def test_gram_matrices_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = api.prepared(net(), GPTQ)
    seen = Seen(ready.graph, ready.plan, [("a sample", feed) for feed in feeds(8)])
    whole = refined(seen, "gptq")
    assert sorted(whole) == ["a", "b", "c", "d"]
    monkeypatch.setattr(moments, "BYTES", 1)  # one tensor a run
    assert refined(seen, "gptq") == whole


@pytest.mark.parametrize("recipe", [GPTQ, AWQ], ids=["gptq", "awq"])
def test_statistics_carry_the_weights(recipe: Recipe, tmp_path: Path) -> None:
    found = api.calibrate(net(), feeds(8), recipe)
    found.save(tmp_path / "s.npz")
    again = Statistics.load(tmp_path / "s.npz")
    assert dict(again.weights) == dict(found.weights)
    one, other = (api.quantize(net(), s, recipe)[0].to_proto() for s in (again, feeds(8)))
    assert one == other
    with pytest.raises(StatisticsError, match="in this format"):
        api.quantize(net(), again, replace(recipe, weight_bits=3))
    with pytest.raises(StatisticsError):
        _ = again + api.calibrate(net(), feeds(8, 5), recipe)


def test_without_data_it_says_so() -> None:
    with pytest.raises(DataError, match="gptq needs data"):
        api.quantize(net(), None, GPTQ)
    with pytest.raises(RecipeError, match="modes weight-only and dynamic"):
        Recipe(weight_method="gptq")


def test_three_bits_are_stored_in_four() -> None:
    three = replace(FOUR, weight_bits=3)
    graph, plan = api.quantize(net(), None, three)
    codes = [graph.const(v) for name, v in graph.weights.items() if name.endswith("_quantized")]
    assert all(c is not None and c.dtype.name == "int4" and np.abs(c.astype(np.int8)).max() == 3 for c in codes)
    assert {w.bits for w in plan.weights} == {3}


def perplexity(graph: Graph, tokens: Array) -> float:
    (logits,) = run(graph, {"tokens": tokens})
    logits = logits[:, :-1].astype(np.float64)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(np.exp(-np.take_along_axis(logits, tokens[:, 1:, None], -1).mean()))


def test_a_language_model() -> None:
    """docs/weights.md has the whole table; this is a part of its held-out text."""
    tokens = np.load(CAUSAL / "held_out.npz")["tokens"][::16]
    data = [{"tokens": row[None]} for row in np.load(CAUSAL / "calib.npz")["tokens"][::8]]
    float_one = perplexity(intake.load(CAUSAL / "causal.onnx"), tokens)
    three = (
        perplexity(api.quantize(CAUSAL / "causal.onnx", d, replace(r, weight_bits=3))[0], tokens)
        for r, d in ((FOUR, None), (GPTQ, data), (AWQ, data))
    )
    nearest, gptq, awq = (found / float_one - 1 for found in three)
    assert gptq < nearest / 2
    assert awq < nearest / 1.3


def test_what_one_weight_meets_takes_one_factor() -> None:
    """That of the rows of both tensors."""
    rng, large = np.random.default_rng(4), np.where(np.arange(64) % 16 == 0, 30, 1)
    weight = (rng.normal(size=(64, 64)) / 8).astype(np.float32)
    text = """(float[N,4,64] x, float[N,4,64] z) => (float[N,4,64] a, float[N,4,64] b) {
              a = MatMul(x, d) b = MatMul(z, d) }"""
    by = {"x": large, "z": 2 * large[::-1]}
    data = [{n: (rng.normal(size=(1, 4, 64)) * size).astype(np.float32) for n, size in by.items()} for _ in range(24)]
    statistics = api.calibrate(graph_of(text, 17, d=weight), data, AWQ)
    (factor,), (stored,) = statistics.smoothing.values(), statistics.weights.values()
    rows = np.concatenate([feed[n].reshape(-1, 64) for feed in data for n in by]).astype(np.float64)
    seen = Moments(rows.T @ rows, np.abs(rows).mean(axis=0), np.abs(rows).max(axis=0), len(rows))
    wanted = awq_factor([weight], seen, stored.format, EXPLICIT_DB)
    assert wanted is not None
    np.testing.assert_allclose(factor.scale, wanted.scale, rtol=1e-5)
