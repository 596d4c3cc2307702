"""The flow from a model to its int8 form: whatever it is given as, and the same bytes however the data is dealt out."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import graph_of, run

import onnxq
from onnxq import api
from onnxq.errors import DataError, ModelError, RecipeError, StatisticsError
from onnxq.graph import Graph
from onnxq.monitor import Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from onnxq.statistics import Statistics

DIGITS = Path(__file__).parents[2] / "models" / "digits"
MODEL = DIGITS / "digits.onnx"
IMAGES = np.load(DIGITS / "calib.npz")["image"][:64]
CALIBRATORS = ("entropy", "minmax", "mse", "percentile")

RNG = np.random.default_rng(2)
W = RNG.normal(size=(32, 32)).astype(np.float32)
TEXT = "(float[N,32] x) => (float[N,32] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }"
ROWS = RNG.normal(size=(6, 32)).astype(np.float32)
FEEDS = [{"x": row[None]} for row in ROWS]


def small() -> Graph:
    return graph_of(TEXT, w=W)


def saved(graph: Graph, folder: Path) -> bytes:
    (path,) = api.export(graph, folder / "o.onnx")
    return path.read_bytes()


# --- the same bytes, however the data is dealt out -----------------------------------------------------


def batches(order: Sequence[int], size: int) -> list[dict[str, Any]]:
    images = IMAGES[np.asarray(order)]
    return [{"image": images[i : i + size]} for i in range(0, len(images), size)]


FAST = onnxq.Recipe(effort="fast")  # what a higher effort chooses from a shard is not for the others


@cache
def one_by_one() -> Statistics:
    return api.calibrate(MODEL, batches(range(64), 1), FAST)


SHUFFLED = tuple(int(i) for i in np.random.default_rng(9).permutation(64))
DEALT: dict[str, Callable[[], Statistics]] = {
    "batches of 3": lambda: api.calibrate(MODEL, batches(range(64), 3), FAST),
    "batches of 16": lambda: api.calibrate(MODEL, batches(range(64), 16), FAST),
    "one batch": lambda: api.calibrate(MODEL, batches(range(64), 64), FAST),
    "shuffled": lambda: api.calibrate(MODEL, batches(SHUFFLED, 1), FAST),
    "shuffled, batches of 16": lambda: api.calibrate(MODEL, batches(SHUFFLED, 16), FAST),
    "shards": lambda: onnxq.merge(
        [api.calibrate(MODEL, batches(part, 3), FAST) for part in (SHUFFLED[40:], SHUFFLED[:7], SHUFFLED[7:40])]
    ),
}


@pytest.mark.parametrize("deal", DEALT)
def test_statistics_do_not_depend_on_how_the_samples_were_dealt_out(deal: str, tmp_path: Path) -> None:
    found = DEALT[deal]()
    assert found == one_by_one()
    found.save(tmp_path / "a.npz")
    one_by_one().save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_the_output_is_the_same_to_the_byte(calibrator: str, tmp_path: Path) -> None:
    recipe = replace(FAST, calibrator=calibrator)
    outputs = {
        saved(onnxq.quantize(MODEL, data, recipe)[0], tmp_path)
        for data in (one_by_one(), batches(SHUFFLED, 16), batches(range(64), 1), DEALT["shards"]())
    }
    assert len(outputs) == 1


def test_other_data_and_other_calibrators_give_other_scales() -> None:
    def scales(data: object, calibrator: str) -> list[float]:
        plan = onnxq.quantize(MODEL, data, replace(FAST, calibrator=calibrator))[1]
        return [float(p.params.scale) for p in plan.points.values() if p.params is not None]

    assert len({tuple(scales(one_by_one(), calibrator)) for calibrator in CALIBRATORS}) == 4
    assert scales(batches(range(32), 1), "minmax") != scales(one_by_one(), "minmax")


def test_the_digits_are_still_read(tmp_path: Path) -> None:
    with np.load(DIGITS / "test.npz") as file:
        images, labels = file["image"], file["label"]
    graph, _ = onnxq.quantize(MODEL, one_by_one())
    saved(graph, tmp_path)
    found = run(graph, {"image": images})[0].argmax(axis=1)
    assert np.mean(found == labels) > 0.98  # 447 of 450 in float


# --- what a model can be given as ----------------------------------------------------------------------


def test_a_path_a_proto_and_a_graph_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(small().to_proto(), path)
    models = [path, str(path), onnx.load(path), small(), Graph.from_graphsurgeon(small().to_graphsurgeon())]
    models.append(small().to_graphsurgeon())
    assert len({saved(onnxq.quantize(model, FEEDS)[0], tmp_path) for model in models[:4]}) == 1
    assert len({saved(onnxq.quantize(model, FEEDS)[0], tmp_path) for model in models[4:]}) == 1
    expected = run(onnxq.quantize(path, FEEDS)[0], {"x": ROWS})[0]
    np.testing.assert_array_equal(run(onnxq.quantize(models[-1], FEEDS)[0], {"x": ROWS})[0], expected)


def test_the_callers_model_is_not_changed() -> None:
    proto, graph = small().to_proto(), small()
    before = proto.SerializeToString(deterministic=True)
    for model in (proto, graph):
        onnxq.quantize(model, FEEDS)
        onnxq.quantize(model)
        onnxq.make_plan(model)
        onnxq.compare(model, model, FEEDS, layers=True)
    assert proto.SerializeToString(deterministic=True) == before
    assert graph.to_proto().SerializeToString(deterministic=True) == before


def test_what_is_no_model() -> None:
    with pytest.raises(ModelError, match="int is no model"):
        onnxq.quantize(3, FEEDS)
    with pytest.raises(ModelError, match="GraphProto is no model"):
        onnxq.quantize(small().to_proto().graph, FEEDS)


# --- what data can be given as -------------------------------------------------------------------------


class Reader:
    """As ONNX Runtime's CalibrationDataReader."""

    def __init__(self) -> None:
        self.rewind()

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)

    def rewind(self) -> None:
        self.feeds = iter(FEEDS)


def generator() -> Iterator[dict[str, Any]]:
    yield from FEEDS


def test_what_is_no_recipe() -> None:
    for given in (None, "fast", {"effort": "fast"}):
        with pytest.raises(RecipeError, match="is no recipe"):
            onnxq.quantize(small(), FEEDS, given)  # type: ignore[arg-type]  # the mistake


def test_data_in_every_form_gives_the_same(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ROWS)
    statistics = onnxq.calibrate(small(), FEEDS)
    statistics.save(tmp_path / "s.npz")
    forms = [FEEDS, generator(), generator, Reader(), tmp_path / "d.npz", str(tmp_path / "d.npz"), [{"x": ROWS}]]
    forms += [statistics, tmp_path / "s.npz"]
    assert len({saved(onnxq.quantize(small(), data)[0], tmp_path) for data in forms}) == 1


def test_max_samples_and_shapes_of_the_recipe() -> None:
    assert onnxq.calibrate(small(), FEEDS, onnxq.Recipe(max_samples=4)).samples == 4
    with pytest.raises(RecipeError, match="'xx'"):
        onnxq.calibrate(small(), FEEDS, onnxq.Recipe(shapes="xx:1x32"))
    found = onnxq.calibrate(small(), "random:3", onnxq.Recipe(shapes="x:2x32"))
    assert found.shapes["x"][1][1] == 32


def test_without_data_the_weights_alone() -> None:
    graph, plan = onnxq.quantize(small())
    kinds = [n.op_type for n in graph.nodes]
    assert "DequantizeLinear" in kinds
    assert "QuantizeLinear" not in kinds
    assert not plan.points
    assert plan.weights
    assert all(not d.quantized or "no calibration data" in d.reason for d in plan.decisions)
    stored = {graph.dtype(v) for v in graph.weights.values() if graph.rank(v) == 2}
    assert stored == {"int8"}
    np.testing.assert_allclose(run(graph, {"x": ROWS})[0], run(small(), {"x": ROWS})[0], atol=0.6)


# --- errors --------------------------------------------------------------------------------------------


def test_statistics_of_another_model_or_of_none() -> None:
    other = onnxq.calibrate(graph_of(TEXT, w=-W), FEEDS)
    with pytest.raises(StatisticsError, match="another model"):
        onnxq.quantize(small(), other)
    with pytest.raises(StatisticsError, match="no statistics to merge"):
        onnxq.merge([])
    with pytest.raises(StatisticsError, match="different models"):
        onnxq.merge([other, onnxq.calibrate(small(), FEEDS)])


def test_statistics_that_lack_a_tensor() -> None:
    found = onnxq.calibrate(small(), FEEDS, onnxq.Recipe(rules=(onnxq.Rule("MatMul:y", quantize=False),)))
    with pytest.raises(StatisticsError, match="'b'"):
        onnxq.quantize(small(), found)


def test_statistics_of_the_same_model_serve_other_recipes() -> None:
    found = onnxq.calibrate(small(), FEEDS)
    recipe = onnxq.Recipe(rules=(onnxq.Rule("MatMul:y", quantize=False),), calibrator="mse")
    plan = onnxq.quantize(small(), found, recipe)[1]
    assert plan.skipped["MatMul:y"]


def test_an_input_that_cannot_be_fed() -> None:
    graph = graph_of(
        "(float[N,32] x, string[N] s) => (float[N,32] y, string[N] t) { y = MatMul(x, w) t = Identity(s) }", w=W
    )
    with pytest.raises(DataError, match="'s'"):
        onnxq.calibrate(graph, FEEDS)


def test_the_monitor_hears_of_it() -> None:
    stages: list[tuple[str, int | None]] = []
    steps: list[None] = []
    monitor = Monitor(lambda *s: stages.append(s), lambda: steps.append(None), pytest.fail)
    onnxq.quantize(small(), FEEDS * 2, FAST, monitor=monitor)
    assert [text.split()[0] for text, _ in stages] == ["Preparing", "Observing", "Choosing", "Quantizing"]
    assert stages[1][1] == len(steps) == 12


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (onnxq.Recipe("tensorrt@10"), r"Observing \d+ tensors on "),
        (onnxq.Recipe("tensorrt@11"), r"Observing \d+ tensors and the bounds of \d+ on "),
        (onnxq.Recipe("tensorrt@11", mode="weight-only"), r"Observing the bounds of \d+ tensors on "),
        (onnxq.Recipe("tensorrt@10", mode="weight-only"), "Reading the shapes of inputs from "),
        (onnxq.Recipe("ort-cpu", mode="dynamic"), "Reading the shapes of inputs from "),
    ],
)
def test_what_a_run_over_the_data_is_for(recipe: onnxq.Recipe, said: str) -> None:
    """Tensors of which bounds alone are kept are told too; where there is neither, nothing is observed."""
    stages: list[str] = []
    monitor = Monitor(stage=lambda text, _: stages.append(text))
    graph = graph_of("(float[N,32] x) => (float[N,32] y) { a = MatMul(x, w) b = Mul(a, a) y = MatMul(b, w) }", w=W)
    onnxq.quantize(graph, FEEDS, replace(recipe, effort="fast"), monitor=monitor)
    assert re.match(said, stages[1])


# --- inputs and outputs in bfloat16 --------------------------------------------------------------------


@pytest.mark.parametrize("effort", ["fast", "balanced"])
@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu", "ort-cuda"])
def test_bfloat16_at_both_ends(target: str, effort: str) -> None:
    """Fed with float32 arrays, or with those of ml_dtypes: the same bytes."""
    text = """(bfloat16[N,32] x) => (bfloat16[N,32] y) {
        f = Cast<to = 1>(x)
        a = MatMul(f, w)
        b = Relu(a)
        c = MatMul(b, w)
        y = Cast<to = 16>(c)
    }"""
    graph, recipe = graph_of(text, 17, w=W), onnxq.Recipe(target=target, effort=effort)
    feeds = [{"x": x[None]} for x in RNG.normal(size=(32, 32)).astype(np.float32)]
    narrow = [{"x": feed["x"].astype(ml_dtypes.bfloat16)} for feed in feeds]
    made = [api.quantize(graph, given, recipe)[0] for given in (feeds, narrow)]
    assert made[0].to_proto() == made[1].to_proto()
    assert [graph.dtype(v) for v in (*made[0].inputs, *made[0].outputs)] == ["bfloat16", "bfloat16"]
    (output,) = api.compare(graph, made[0], feeds).errors
    assert 30 < output.sqnr_db < 60
