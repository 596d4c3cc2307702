"""Rounding with regard to the inputs, against dense float64 algebra written another way."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of, run
from hypothesis import given, settings
from hypothesis import strategies as st
from legality import assert_legal

from onnxq import Recipe, api, improving
from onnxq.feedback import DAMP, feedback, whole
from onnxq.improvement import rounding
from onnxq.improvement.sampling import rows_as_weight, weight_as_rows
from onnxq.linear import linear_at
from onnxq.monitor import SILENT
from onnxq.numerics import sqnr_db
from onnxq.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from onnxq.data import Feed
    from onnxq.graph import Graph
    from onnxq.improvement import Inspected
    from onnxq.statistics import Rounded

    Hessian = tuple[rounding.Floats | None, int]

RECIPE = Recipe(effort="balanced", high_precision="fp32")


ONE = np.ones((1, 1, 1))


def steps(weight: Array, scale: Array) -> Array:
    """The weight in steps of its scale."""
    return (weight / scale).astype(np.float64)


def one_by_one(weight: Array, hessian: Array, scale: Array, limit: int) -> Array:
    """Optimal brain quantization of one group in a fixed order: the inverse is updated, not factorized.

    Frantar and Alistarh, 2022, arXiv 2208.11580, eq. 7: after input i, H^-1 -= H^-1_:i H^-1_i: / H^-1_ii.
    """
    order = np.argsort(-np.diag(hessian), kind="stable")
    damped = hessian + DAMP * np.diag(hessian).mean() * np.eye(len(hessian))
    inverse, left = np.linalg.inv(damped), (weight / scale).astype(np.float64)
    codes = np.zeros_like(left)
    for i in order:
        codes[i] = np.clip(np.rint(left[i]), -limit, limit)
        left -= np.outer(inverse[:, i], (left[i] - codes[i]) / inverse[i, i])
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
        inverse[i, i] = 1.0  # it is done, and no longer read
    return codes


def correlated(rng: np.random.Generator, rows: int, size: int, groups: int = 1) -> Array:
    mixed = rng.normal(size=(groups, rows, max(size // 2, 1))) @ rng.normal(size=(groups, max(size // 2, 1), size))
    return mixed + 0.3 * rng.normal(size=mixed.shape) + rng.normal(size=(groups, 1, size))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 3), st.integers(0, 10**6))
def test_as_by_updates_of_the_inverse(size: int, outputs: int, groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = correlated(rng, 64, size, groups), rng.normal(size=(groups, size, outputs)).astype(np.float32)
    hessian = x.transpose(0, 2, 1) @ x / 64
    scale = (np.abs(w).max(axis=1, keepdims=True) / 127).astype(np.float32)
    found = feedback(steps(w, scale), hessian, ONE, whole(127))
    for g in range(groups):
        np.testing.assert_array_equal(found[g], one_by_one(w[g], hessian[g], scale[g], 127))


def test_long_layers_are_brought_up_to_date_in_blocks() -> None:
    rng = np.random.default_rng(0)
    x, w = correlated(rng, 900, 300), rng.normal(size=(1, 300, 4)).astype(np.float32)
    hessian, scale = x.transpose(0, 2, 1) @ x / 900, np.full((1, 1, 4), 0.03, np.float32)
    np.testing.assert_array_equal(
        feedback(steps(w, scale), hessian, ONE, whole(127))[0], one_by_one(w[0], hessian[0], scale[0], 127)
    )


def test_the_output_errs_less_than_by_the_nearest_codes() -> None:
    rng = np.random.default_rng(1)
    x, w = correlated(rng, 600, 96), rng.normal(size=(1, 96, 32)).astype(np.float32)
    scale = np.abs(w).max(axis=1, keepdims=True) / 7
    seen, unseen = x[:, :400], x[:, 400:]
    codes = feedback(steps(w, scale), seen.transpose(0, 2, 1) @ seen / 400, ONE, whole(7))
    assert np.abs(codes).max() <= 7
    nearest = sqnr_db(unseen @ w, unseen @ (np.rint(w / scale) * scale))
    assert sqnr_db(unseen @ w, unseen @ (codes * scale)) > nearest + 3


def test_independent_inputs_and_dead_ones_get_the_nearest_codes() -> None:
    rng = np.random.default_rng(2)
    w, scale = rng.normal(size=(1, 8, 3)).astype(np.float32), np.full((1, 1, 3), 0.1, np.float32)
    for hessian in (np.eye(8), np.diag([1.0, 0, 2, 0, 3, 4, 5, 6]), np.zeros((8, 8))):
        np.testing.assert_array_equal(feedback(steps(w, scale), hessian[None], ONE, whole(127)), np.rint(w / scale))


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("Conv<group=1>(x, w)", (6, 4, 3, 2)),
        ("Conv<group=2>(x, w)", (6, 2, 3, 2)),
        ("Conv<group=4>(x, w)", (8, 1, 3, 3)),
    ],
)
def test_rows_and_back(text: str, shape: tuple[int, ...]) -> None:
    w = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    graph = graph_of(f"(float[1,4,8,8] x) => (float[1,M,H,W] y) {{ y = {text} }}", 17, w=w)
    linear = linear_at(graph, graph.nodes[0])
    assert linear is not None
    np.testing.assert_array_equal(rows_as_weight(graph, linear, weight_as_rows(graph, [linear])), w)


# --- in the flow --------------------------------------------------------------------------------------


def model() -> Graph:
    rng = np.random.default_rng(4)
    arrays = {
        "mix": rng.normal(size=(8, 64)),
        "w": rng.normal(size=(64, 48)),
        "v": rng.normal(size=(48, 32)),
    }
    text = (
        "(float[N,8,8] x) => (float[N,8,32] y) {"
        " m = MatMul(x, mix) t = Tanh(m) a = MatMul(t, w) r = Relu(a) y = MatMul(r, v) }"
    )
    return graph_of(text, 17, **{k: v.astype(np.float32) for k, v in arrays.items()})


def feeds(count: int, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 8, 8)).astype(np.float32)} for _ in range(count)]


@pytest.fixture(scope="module")
def found() -> Statistics:
    return api.calibrate(model(), feeds(100), RECIPE)


def quality(graph: Graph) -> float:
    pairs = [(run(model(), f)[0], run(graph, f)[0]) for f in feeds(24, seed=7)]
    return sqnr_db(*(np.stack(side) for side in zip(*pairs, strict=True)))


def test_codes_that_help_are_kept_and_saved(found: Statistics, tmp_path: Path) -> None:
    assert {"w", "v"} <= {name.removesuffix("/folded") for name in found.rounding}
    found.save(tmp_path / "s.npz")
    assert Statistics.load(tmp_path / "s.npz") == found
    assert (found + found).rounding == found.rounding
    with_codes, plan = api.quantize(model(), found, RECIPE)
    without, _ = api.quantize(model(), replace(found, rounding={}), RECIPE)
    assert quality(with_codes) > quality(without) + 0.3
    assert sum(w.rounded is not None for w in plan.weights) == len(found.rounding)
    assert_legal(with_codes.to_proto())


def test_few_samples_round_again_with_those_that_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them judge; when that is done they are rows as good as the others. With many no layer lacks rows."""
    counts: list[int] = []
    collect = rounding._hessians

    def seen(model: Inspected, layers: Sequence[rounding._Layer], data: Sequence[Feed]) -> list[Hessian]:
        counts.append(len(data))
        return collect(model, layers, data)

    monkeypatch.setattr(rounding, "_hessians", seen)
    gained = 0.0
    for seed in range(4):
        by_all = api.calibrate(model(), feeds(24, seed), RECIPE)
        with monkeypatch.context() as patch:
            patch.setattr(improving, "rounded_again", lambda *_: {})
            by_half = api.calibrate(model(), feeds(24, seed), RECIPE)
        assert by_all.rounding.keys() == by_half.rounding.keys() != set()
        after, before = (quality(api.quantize(model(), s, RECIPE)[0]) for s in (by_all, by_half))
        gained += after - before
    assert counts == [12, 24, 12] * 4
    assert gained > 0
    counts.clear()
    monkeypatch.setattr(rounding, "_LEAST_ROWS", 64)
    api.calibrate(model(), feeds(96), RECIPE)
    assert len(counts) == 1


def test_what_is_told_is_of_codes_that_the_judging_samples_had_no_part_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has those by all samples; with them the samples that judge would show more than others do."""
    data = feeds(24, 0)
    by_all, plan = api.quantize(model(), data, RECIPE)
    statistics, kept = improving.improved(api.prepared(model(), RECIPE), data)
    with monkeypatch.context() as patch:
        patch.setattr(improving, "rounded_again", lambda *_: {})
        by_half, expected = api.quantize(model(), data, RECIPE)
        assert api.calibrate(model(), data, RECIPE).rounding != statistics.rounding
    assert by_all.digest() != by_half.digest()
    assert kept is not None
    assert plan.judged is not None
    assert plan.judged == expected.judged
    ready = api.prepared(model(), RECIPE)
    codes: list[Mapping[str, Rounded]] = []

    def lowered(apart: Statistics) -> Graph:
        codes.append(apart.rounding)
        return api.lowered(ready, apart, SILENT, near=float("inf"))[0]

    assert plan.judged[0] == kept.sqnr_db(lowered, statistics)
    assert kept.rounding is not None
    assert codes == [kept.rounding] * len(codes) != []
    assert plan.judged[0] != replace(kept, rounding=None).sqnr_db(lowered, statistics)


def test_rows_that_hold_nan_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """H is that of the other rows; where there are no others there is none."""
    rng = np.random.default_rng(7)
    weights = {n: rng.normal(size=(32, 32)).astype(np.float32) for n in "uvw"}
    text = """(float[N,32] x, float[32] t) => (float[N,32] y, float[N,32] z) {
              a = MatMul(x, u) h = Relu(a) y = MatMul(h, v) n = Sqrt(t) b = Add(h, n) z = MatMul(b, w) }"""
    found: list[list[Hessian]] = []
    collect = rounding._hessians

    def seen(model: Inspected, layers: Sequence[rounding._Layer], data: Sequence[Feed]) -> list[Hessian]:
        found.append(collect(model, layers, data))
        return found[-1]

    monkeypatch.setattr(rounding, "_hessians", seen)
    graph = graph_of(text, 17, **weights)
    odd, plain = np.full(32, -1, np.float32), np.zeros(32, np.float32)
    xs = rng.uniform(-1, 1, size=(48, 32, 32)).astype(np.float32)
    data = [{"x": x, "t": odd if i % 4 else plain} for i, x in enumerate(xs)]
    statistics = api.calibrate(graph, data, RECIPE)
    assert statistics.judged is None or np.isfinite(statistics.judged[0])
    (first, second, third) = found[0]
    assert second[1] > 2 * third[1] > 0
    for matrix, _ in (first, second, third):
        assert matrix is not None
        assert np.isfinite(matrix).all()


@pytest.mark.parametrize("form", ["dq", "qdq"])
def test_both_forms_hold_the_codes(found: Statistics, form: str) -> None:
    graph, _ = api.quantize(model(), found, replace(RECIPE, weight_form=form))
    other, _ = api.quantize(model(), found, RECIPE)
    for feed in feeds(3, seed=9):
        np.testing.assert_allclose(run(graph, feed)[0], run(other, feed)[0], rtol=1e-4, atol=1e-4)


def test_codes_are_for_one_scale_of_the_input(found: Statistics) -> None:
    _, plan = api.quantize(model(), found, replace(RECIPE, calibrator="percentile", percentile=90.0))
    rounded = [w.tensor for w in plan.weights if w.rounded is not None]
    assert [name.removesuffix("/folded") for name in rounded] == [
        "w"
    ]  # the range of a Tanh is the same for every calibrator, nearly


@pytest.mark.parametrize("effort", ["balanced", "best"])
def test_the_same_bytes_in_any_order_and_batches(effort: str, tmp_path: Path) -> None:
    data, recipe = feeds(60), replace(RECIPE, effort=effort)
    shuffled = [data[i] for i in np.random.default_rng(5).permutation(len(data))]
    batches = [{"x": np.concatenate([f["x"] for f in shuffled[i : i + 7]])} for i in range(0, len(data), 7)]
    outputs = set()
    for given_data in (data, shuffled, batches):
        (path,) = api.export(api.quantize(model(), given_data, recipe)[0], tmp_path / "o.onnx")
        outputs.add(path.read_bytes())
    assert len(outputs) == 1
