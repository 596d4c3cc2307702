"""Budgets: kept on data that nobody saw, with the fewest multiply-accumulates in float, or refused."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from chains import branches, chain, samples
from graphs import graph_of
from legality import assert_legal
from real_models import DIGITS, cached

import onnxq
from onnxq import Recipe, api, intake
from onnxq.checkpoint import Checkpoint, Keeper
from onnxq.emulation import emulate_bfloat16
from onnxq.errors import AccuracyError, DataError, RecipeError
from onnxq.monitor import QUIET, Monitor
from onnxq.numerics import sqnr_db
from onnxq.parts import Running
from onnxq.placement.groups import groups
from onnxq.report import plan_json
from onnxq.runtime import Session
from onnxq.search.budget import RESTORED
from onnxq.search.groups import without

if TYPE_CHECKING:
    from pathlib import Path

    from onnxq.graph import Graph

RECIPE = Recipe(effort="fast", calibrator="minmax", high_precision="fp32")


def outputs(graph: Graph, data: list[dict[str, Any]]) -> list[list[Any]]:
    session = Session(graph.to_proto().SerializeToString(), as_written=True)
    return [session.run(feed) for feed in data]


def sqnr(graph: Graph, quantized: Graph, data: list[dict[str, Any]]) -> float:
    """Of the only output, in exact int8."""
    a, b = (np.concatenate([found[0].reshape(-1) for found in outputs(g, data)]) for g in (graph, quantized))
    return sqnr_db(a, b)


def test_what_needs_nothing_reverts_nothing() -> None:
    graph, data = chain(4), samples(40)
    found, plan = onnxq.quantize(graph, data, replace(RECIPE, min_sqnr=10.0))
    assert plan.budget is not None
    assert plan.budget.reverted == ()
    assert plan.int8_share() == 1
    assert plan.budget.held_back == 10
    assert sqnr(graph, found, samples(200, seed=5)) > 10


def test_the_hard_layer_alone_goes_back() -> None:
    graph, data = chain(6, hard=(2,)), samples(64)
    plain, _ = onnxq.quantize(graph, data, RECIPE)
    unseen = samples(200, seed=5)
    assert sqnr(graph, plain, unseen) < 25
    found, plan = onnxq.quantize(graph, data, replace(RECIPE, min_sqnr=28.0))
    assert plan.budget is not None
    [reverted] = plan.budget.reverted
    assert reverted.name == [str(n.name) for n in graph.nodes if n.op_type == "MatMul"][2]
    assert plan.int8_share() == plan.budget.mac_share == pytest.approx(5 / 6)
    assert "hold the budget" in plan.skipped[reverted.name]
    assert sqnr(graph, found, unseen) >= 28
    assert_legal(found.to_proto())
    said = json.loads(plan_json(plan, RECIPE, None))["budget"]
    assert said["reverted"][0]["name"] == reverted.name
    assert "dB" in said["reverted"][0]["reason"]
    assert said["goals"][0]["met"] is True
    assert [t["mac_share"] for t in said["pareto"]] == sorted((t["mac_share"] for t in said["pareto"]), reverse=True)


def test_what_goes_back_may_keep_narrow_weights() -> None:
    graph, data = chain(6, hard=(2,)), samples(64)
    recipe = replace(RECIPE, min_sqnr=20.0, target="tensorrt@10")
    whole, plain = onnxq.quantize(graph, data, recipe)
    found, plan = onnxq.quantize(graph, data, replace(recipe, fallback="int8"))
    assert plain.budget is not None
    assert plan.budget is not None
    [reverted] = plan.budget.reverted
    assert (reverted.name, reverted.weights) == (plain.budget.reverted[0].name, "int8/channel")
    assert "its weights stay, in int8/channel" in reverted.reason
    assert "float input" in next(d.reason for d in plan.decisions if d.node == reverted.name)
    assert plan.budget.mac_share == pytest.approx(5 / 6)  # of products whose activations are quantized too
    assert len(found.to_proto().SerializeToString()) < len(whole.to_proto().SerializeToString()) - 2 * 32 * 32
    assert sqnr(graph, found, samples(200, seed=5)) >= 20
    assert_legal(found.to_proto(), allow=frozenset({"P20"}))  # which warns that its product runs in float


def test_formats_are_tried_in_turn() -> None:
    """In mode weight-only no layer of 2 or 4 bits is left at 33 dB; at 12 dB 4 bits are enough for some."""
    graph, data = chain(4), samples(64)
    recipe = replace(RECIPE, target="ort-cpu", mode="weight-only", weights="int2/block:32", min_sqnr=33.0)
    _, plan = onnxq.quantize(graph, data, replace(recipe, fallback="int4/block:16, int8/channel"))
    assert plan.budget is not None
    kept = [r.weights for r in plan.budget.reverted]
    assert "int8/channel" in kept
    assert "" not in kept
    _, low = onnxq.quantize(graph, data, replace(recipe, min_sqnr=12.0, fallback="int4/block:16, int8/channel"))
    assert low.budget is not None
    assert "int4/block:16" in [r.weights for r in low.budget.reverted]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fallback": "int8", "min_sqnr": None}, "fallback needs a budget"),
        ({"fallback": "nf4", "target": "tensorrt@10"}, "fallback: tensorrt@10 cannot run weights in nf4"),
        ({"fallback": "int9"}, "unknown type 'int9'"),
    ],
)
def test_a_fallback_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        onnxq.quantize(chain(2), samples(16), replace(RECIPE, **{"min_sqnr": 20.0, **changes}))


def test_few_are_reverted_compared_with_every_choice() -> None:
    """Against all 64 choices of groups, on the same held-back samples: one more at most is in float."""
    graph, data = chain(6, hard=(1, 4)), samples(64)
    _, plan = onnxq.quantize(graph, data, replace(RECIPE, min_sqnr=30.0))
    assert plan.budget is not None
    ready = api.prepared(graph, RECIPE)
    statistics = api.measured(ready, data)
    every, unseen = groups(ready.plan), samples(64, seed=3)

    def holds(chosen: tuple[Any, ...]) -> bool:
        quantized, _ = api.lowered(without(ready, chosen), statistics)
        return sqnr(ready.graph, quantized, unseen) >= 30.0

    fewest = next(k for k in range(7) if any(holds(chosen) for chosen in itertools.combinations(every, k)))
    assert len(plan.budget.reverted) <= fewest + 1


def test_it_cannot_be_met() -> None:
    with pytest.raises(
        AccuracyError, match=r"SQNR >= 120 dB could not be met: the best on 10 held-back samples is \d+"
    ):
        onnxq.quantize(chain(4), samples(40), replace(RECIPE, min_sqnr=120.0))


@pytest.mark.parametrize("asked", range(34, 42))
def test_what_is_refused_does_not_hold(asked: int) -> None:
    """With two groups the choices between all and nothing are few, and a floor that chance raised may pass them by."""
    rng = np.random.default_rng(1)
    text = "(float[1,3,16,16] x) => (float[1,8,P,Q] y) { h = Conv<strides=[2, 2]>(x, w) r = Relu(h) y = Conv(r, v) }"
    weights = {"w": rng.normal(size=(8, 3, 3, 3)), "v": rng.normal(size=(8, 8, 3, 3))}
    graph = graph_of(text, 17, **{name: 0.2 * w.astype(np.float32) for name, w in weights.items()})
    try:
        onnxq.quantize(graph, "random:64", Recipe(target="ort-cpu", effort="fast", min_sqnr=float(asked)))
    except AccuracyError as error:
        bound = re.search(r"sure: >= ([-0-9.]+)", error.message)
        assert bound is not None
        assert float(bound[1]) < asked


def test_order_and_batches_do_not_matter() -> None:
    graph, data = chain(5, hard=(2,)), samples(48)
    recipe = replace(RECIPE, min_sqnr=28.0)
    wanted, plan = onnxq.quantize(graph, data, recipe)
    batches = [{"x": np.concatenate([f["x"] for f in data[i : i + 6]])} for i in range(0, 48, 6)][::-1]
    for given in (data[::-1], batches, iter(data)):
        found, again = onnxq.quantize(graph, given, recipe)
        assert found.digest() == wanted.digest()
        assert again.budget == plan.budget


def few_passes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """As if there were fewer passes than groups; what is quantized to be run is put into the list."""
    made: list[object] = []
    lowered = api.lowered

    def counting(*given: Any) -> Any:  # noqa: ANN401  as the function's
        made.append(given)
        return lowered(*given)

    monkeypatch.setattr("onnxq.search.measuring.PASSES", 34)
    monkeypatch.setattr("onnxq.search.stretches.FIRST", 4)
    monkeypatch.setattr("onnxq.search.trials.lowered", counting)
    return made


def test_with_fewer_passes_than_groups_the_hard_layers_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made = few_passes(monkeypatch)
    graph, data, hard = branches(100, hard=(5, 6, 17)), samples(64), {5, 6, 17}
    found, plan = onnxq.quantize(graph, data, replace(RECIPE, min_sqnr=44.0))
    assert len(made) <= 34 + math.ceil(math.log2(100)) + RESTORED + 4  # and not one for each group
    assert plan.budget is not None
    assert plan.budget.sensitivity is not None
    assert max(g.together for g in plan.budget.sensitivity.groups) > 1
    names = [str(n.name) for n in graph.nodes if n.op_type == "MatMul"]
    assert {names.index(r.name) for r in plan.budget.reverted} == hard
    assert sqnr(graph, found, samples(200, seed=5)) >= 44
    assert all(r.reason.startswith("quantized alone it leaves the model") for r in plan.budget.reverted)
    assert not any("together" in r.to_dict() for r in plan.budget.reverted)


def test_what_was_measured_with_others_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    few_passes(monkeypatch)
    graph, data = branches(40, hard=(5,)), samples(64)
    found, plan = onnxq.quantize(graph, data, replace(RECIPE, min_sqnr=56.0))
    assert plan.budget is not None
    shared = [r for r in plan.budget.reverted if r.together > 1]
    assert shared
    assert all(f"measured with {r.together - 1} next to it" in r.reason for r in shared)
    assert all(r.to_dict()["together"] == r.together for r in shared)
    assert sqnr(graph, found, samples(200, seed=5)) >= 56


def test_a_metric() -> None:
    graph, data = chain(6, hard=(2,)), samples(64)
    session = Session(graph.to_proto().SerializeToString())

    def agreement(feeds: list[Any], outputs: list[Any]) -> float:
        """Minus the mean error against what the float model gives: 0 for itself."""
        wanted = [session.run({"x": f["x"]})[0] for f in feeds]
        return -float(np.mean([np.abs(o["y"] - y).mean() for o, y in zip(outputs, wanted, strict=True)]))

    recipe = replace(RECIPE, max_drop=0.02, metric_direction="higher")
    found, plan = onnxq.quantize(graph, data, recipe, evaluation=onnxq.Evaluation(metric=agreement))
    assert plan.budget is not None
    assert [r.name for r in plan.budget.reverted][:1] == [
        [str(n.name) for n in graph.nodes if n.op_type == "MatMul"][2]
    ]
    unseen = samples(100, seed=9)
    assert agreement(unseen, [{"y": y} for (y,) in outputs(found, unseen)]) >= -0.02
    assert all(t.drop is not None for t in plan.budget.tried)
    with pytest.raises(AccuracyError, match="drop of agreement <= 0 could not be met"):
        onnxq.quantize(graph, data, replace(recipe, max_drop=0.0), evaluation=onnxq.Evaluation(metric=agreement))


@pytest.mark.parametrize("mode", [{}, {"target": "ort-cpu", "mode": "dynamic", "high_precision": None}])
def test_labels_come_with_the_data_and_stay_out_of_the_model(mode: dict[str, Any]) -> None:
    graph = chain(3)
    data = [{**f, "label": np.array([i])} for i, f in enumerate(samples(16))]

    def metric(feeds: list[Any], outputs: list[Any]) -> float:
        assert all(f["label"].shape == (1,) for f in feeds)
        return float(len(outputs))

    recipe = replace(RECIPE, max_drop=0.0, metric_direction="higher", labels="label", **mode)
    _, plan = onnxq.quantize(graph, data, recipe, evaluation=onnxq.Evaluation(metric=metric))
    assert plan.budget is not None
    assert plan.budget.verdicts[0].value == 0


def test_data_is_needed(tmp_path: Path) -> None:
    graph, data = chain(3), samples(16)
    onnxq.calibrate(graph, data, RECIPE).save(tmp_path / "s.npz")
    recipe = replace(RECIPE, min_sqnr=10.0)
    for given in (None, tmp_path / "s.npz", onnxq.Statistics.load(tmp_path / "s.npz")):
        with pytest.raises(DataError, match="are judged on data"):
            onnxq.quantize(graph, given, recipe)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"max_drop": 0.1}, "metric_direction"),
        ({"metric": "m.py:f"}, "metric needs max_drop"),
        ({"metric_direction": "higher"}, "needs max_drop"),
        ({"max_drop": -0.1, "metric_direction": "higher"}, "max_drop is -0.1"),
        ({"min_sqnr": float("nan")}, "min_sqnr is nan"),
        ({"max_drop": 1.0, "metric_direction": "up"}, "unknown metric_direction 'up'"),
    ],
)
def test_recipes_that_make_no_sense(given: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Recipe(**given)
    with pytest.raises(RecipeError, match="not of the form"):
        onnxq.quantize(chain(3), samples(8), Recipe(max_drop=1.0, metric_direction="higher", metric="accuracy"))


def test_digits_holds_on_images_never_seen() -> None:
    """With few samples, too."""
    with np.load(DIGITS / "test.npz") as test:
        images = [{"image": image[np.newaxis]} for image in test["image"]]
    recipe = Recipe(effort="fast", min_sqnr=42.0, calibrator="minmax", high_precision="fp32")
    model = intake.load(DIGITS / "digits.onnx")
    for count in (12, 100):  # of the images that the network was not trained on either
        evaluation = onnxq.Evaluation(images[:count])
        graph, plan = onnxq.quantize(model, DIGITS / "calib.npz", recipe, evaluation=evaluation)
        assert plan.budget is not None
        assert plan.budget.reverted
        assert plan.int8_share() > 0.3
        assert sqnr(model, graph, images[100:]) >= 42


def test_minilm_holds_on_sentences_never_seen() -> None:
    files = sorted(cached("minilm/calib").glob("*.npz"))
    feeds = [dict(np.load(file)) for file in files[:72]]
    recipe = Recipe(effort="fast", min_sqnr=13.0, calibrator="minmax", high_precision="fp32")
    graph, plan = onnxq.quantize(cached("minilm/minilm.onnx"), feeds[:36], recipe)
    assert plan.budget is not None
    assert plan.budget.reverted
    assert plan.int8_share() > 0.5
    assert sqnr(intake.load(cached("minilm/minilm.onnx")), graph, feeds[36:]) >= 13.0


@pytest.mark.parametrize(
    ("given", "least"),
    [
        ({"target": "ort-cpu"}, 28.0),
        ({"target": "ort-cpu", "format": "qoperator"}, 28.0),
        ({"target": "ort-cpu", "mode": "dynamic"}, 28.0),
        ({"target": "tensorrt@8", "weight_form": "qdq"}, 28.0),
        ({"target": "tensorrt@11", "high_precision": "fp16"}, 28.0),
        ({"target": "tensorrt@11", "high_precision": "bf16"}, 28.0),
        ({"target": "tensorrt", "mode": "weight-only", "high_precision": "fp32"}, 28.0),
        ({"target": "ort-cuda", "high_precision": "fp32"}, 28.0),
    ],
)
def test_targets_forms_and_modes(given: dict[str, Any], least: float) -> None:
    graph, data = chain(5, hard=(2,)), samples(48)
    plain, _ = onnxq.quantize(graph, data, Recipe(effort="fast", calibrator="minmax", **given))
    found, plan = onnxq.quantize(graph, data, Recipe(effort="fast", calibrator="minmax", min_sqnr=least, **given))
    assert plan.budget is not None
    assert 0 < len(plan.budget.reverted) < 5
    assert 0 < plan.int8_share() < 1
    unseen = samples(100, seed=5)
    for made in (plain, found):
        emulate_bfloat16(made)
    assert sqnr(graph, plain, unseen) < least
    assert sqnr(graph, found, unseen) >= least


def test_every_tensor_quantized_for_dla() -> None:
    """Every group can be left out there too, whatever else is quantized for it."""
    recipe = Recipe(target="tensorrt@10+dla", effort="fast", calibrator="minmax", max_samples=64, min_sqnr=34.0)
    _, plan = onnxq.quantize(DIGITS / "digits.onnx", DIGITS / "calib.npz", recipe)
    assert plan.budget is not None
    assert plan.budget.reverted


def test_smoothing_stays() -> None:
    """With balanced effort the factors are chosen once, and the layers that are reverted read them as others do."""
    graph, data = chain(6, hard=(2, 4)), samples(64)
    recipe = replace(RECIPE, effort="balanced")
    plain, _ = onnxq.quantize(graph, data, recipe)
    unseen = samples(100, seed=5)
    least = sqnr(graph, plain, unseen) + 2
    found, plan = onnxq.quantize(graph, data, replace(recipe, min_sqnr=least))
    assert plan.budget is not None
    assert plan.budget.reverted
    assert sqnr(graph, found, unseen) >= least
    assert sqnr(graph, plain, unseen) > 15, "it was smoothed"


def test_a_model_with_two_outputs_keeps_both() -> None:
    text = (
        "(float[N,32] x) => (float[N,32] y, float[N,32] z) {"
        "a = MatMul(x, w0) y = Tanh(a) b = Relu(y) z = MatMul(b, w1) }"
    )
    rng = np.random.default_rng(0)
    weights = {f"w{i}": (rng.normal(size=(32, 32)) / 6).astype(np.float32) for i in range(2)}
    graph, data = graph_of(text, **weights), samples(256)
    _, plan = onnxq.quantize(graph, data, replace(RECIPE, min_sqnr=41.0))
    assert plan.budget is not None
    [reverted] = plan.budget.reverted  # z alone would be saved by its own layer, y only by the first
    assert "a" in reverted.name


def test_every_output_counts_whichever_is_computed_last() -> None:
    text = "(float[N,32] x) => (float[N,32] y, float[N,32] z) {a = MatMul(x, w0) y = MatMul(a, w1) z = Tanh(x) }"
    rng = np.random.default_rng(0)
    weights = {f"w{i}": (rng.normal(size=(32, 32)) / 6).astype(np.float32) for i in range(2)}
    graph, data, read = graph_of(text, **weights), samples(64), set[str]()

    def metric(feeds: object, made: list[dict[str, Any]]) -> float:
        del feeds
        read.update(made[0])
        return float(np.mean([np.abs(o["y"]).mean() for o in made]))

    recipe = replace(RECIPE, min_sqnr=10.0, max_drop=1.0, metric_direction="higher")
    found, plan = onnxq.quantize(graph, data, recipe, evaluation=onnxq.Evaluation(samples(64, seed=5), metric))
    assert plan.budget is not None
    assert read == {"y", "z"}
    assert plan.budget.verdicts[0].value == pytest.approx(sqnr(graph, found, samples(64, seed=5)), abs=1.5)


def test_an_output_whose_size_depends_on_the_data_is_named() -> None:
    text = """(float[N,32] x) => (float[N,32] y, float[K] z) {
        y = MatMul(x, w0) g = Greater(y, zero) h = Reshape(g, flat) z = Compress(y, h)
    }"""
    weight = (np.random.default_rng(0).normal(size=(32, 32)) / 6).astype(np.float32)
    graph = graph_of(text, w0=weight, zero=np.float32(0), flat=np.array([-1]))
    with pytest.raises(AccuracyError) as error:
        onnxq.quantize(graph, samples(64), replace(RECIPE, min_sqnr=10.0))
    assert error.value.hint is not None
    assert "depends on the data: z. They" in error.value.hint


def test_an_output_behind_a_custom_operator_is_said_not_to_count() -> None:
    text = "(float[N,32] x) => (float[N,32] z, float[N,32] y) {y = MatMul(x, w0) z = shop.Plugin(y) }"
    weight = (np.random.default_rng(0).normal(size=(32, 32)) / 6).astype(np.float32)
    said: list[str] = []
    monitor = Monitor(warn=said.append)
    _, plan = onnxq.quantize(graph_of(text, w0=weight), samples(48), replace(RECIPE, min_sqnr=10.0), monitor=monitor)
    assert plan.budget is not None
    assert 10.0 < plan.budget.verdicts[0].value < math.inf
    assert "outputs that do not count, behind custom operators without --custom-ops: z" in said


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_budget_for_weights_that_are_chosen_from_data(method: str) -> None:
    graph, data = chain(5), samples(48)
    recipe = Recipe(mode="weight-only", weights="int4/block:32", weight_method=method)
    before = onnxq.quantize(graph, data, replace(recipe, min_sqnr=5.0))[1]
    assert before.budget is not None
    bound = before.budget.verdicts[0].value + 0.5
    after = onnxq.quantize(graph, data, replace(recipe, min_sqnr=bound))[1]
    assert after.budget is not None
    assert before.budget.reverted == ()
    assert 0 < len(after.budget.reverted) < 5
    assert len(after.weights) == 5 - sum(len(r.nodes) for r in after.budget.reverted)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_weights_that_are_chosen_from_data_may_fall_back(method: str) -> None:
    """What a budget stores in another format than the statistics have it in is rounded to nearest."""
    graph, data = chain(5), samples(48)
    recipe = Recipe(mode="weight-only", target="ort-cpu", weights="int3/block:32", weight_method=method)
    _, plan = onnxq.quantize(graph, data, replace(recipe, min_sqnr=20.0, fallback="int8"))
    assert plan.budget is not None
    assert "int8/channel" in [r.weights for r in plan.budget.reverted]
    assert {str(w.format) for w in plan.weights} >= {"int8/channel"}


def test_outlier_columns_are_taken_apart_once() -> None:
    data = [{"x": feed["x"] * np.where(np.arange(32) == 7, 40, 1).astype(np.float32)} for feed in samples(40)]
    recipe = replace(RECIPE, outlier_threshold=20.0, min_sqnr=5.0)
    found, plan = onnxq.quantize(chain(3), data, recipe)
    assert any("outlier columns" in reason for reason in plan.skipped.values())
    assert sum(n.op_type == "Gather" for n in found.nodes) == 1


def test_a_budget_takes_up_a_checkpoint(tmp_path: Path) -> None:
    graph, data, recipe = chain(3), samples(40), replace(RECIPE, min_sqnr=10.0)
    ready = api.prepared(graph, recipe)
    whole = api.carried_out(ready, data, QUIET)

    def stop() -> None:
        raise KeyboardInterrupt

    path = tmp_path / "q.partial"
    first = Keeper(path, every=0.0)
    stopped = Monitor(stage=lambda what, _: stop() if what.startswith("Running the float") else None)
    with pytest.raises(KeyboardInterrupt):
        api.carried_out(ready, data, stopped, running=Running(keeper=first))
    assert Checkpoint.load(path).statistics.samples == 30
    again = api.carried_out(ready, data[::-1], QUIET, running=Running(keeper=Keeper(path, resume=True)))
    assert again[0].to_proto().SerializeToString() == whole[0].to_proto().SerializeToString()
    assert again[2] == whole[2]


@pytest.mark.parametrize("last", ["y = ArgMax<axis=1, keepdims=0>(c)", "y = SequenceConstruct(c)"])
def test_an_sqnr_of_no_output_is_refused(last: str) -> None:
    """It held at infinity, whatever int8 did: of classes and sequences there are no decibels."""
    w = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    kind = "int64[N]" if "ArgMax" in last else "seq(float[N,64])"
    graph = graph_of(f"(float[N,64] x) => ({kind} y) {{ a = MatMul(x, w) b = Relu(a) c = MatMul(b, w) {last} }}", w=w)
    data = [{"x": row[None]} for row in np.random.default_rng(1).normal(size=(32, 64)).astype(np.float32)]
    with pytest.raises(RecipeError, match="nothing to go by"):
        onnxq.quantize(graph, data, replace(RECIPE, min_sqnr=20.0))
