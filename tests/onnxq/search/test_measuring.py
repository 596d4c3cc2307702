"""Sensitivity: what it measures, how many passes it takes, and that it goes on where it was stopped."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from chains import branches, chain, samples
from graphs import Array, graph_of, run

import onnxq
from onnxq import Recipe, api
from onnxq.numerics import sqnr_db
from onnxq.placement.groups import groups
from onnxq.runtime import Session
from onnxq.search.groups import only

if TYPE_CHECKING:
    from pathlib import Path

    from onnxq.graph import Graph

RECIPE = Recipe(effort="fast", calibrator="minmax", high_precision="fp32")


def test_a_hard_layer_comes_first_and_its_numbers_are_those_of_numpy() -> None:
    graph, data, judged = chain(5, hard=(2,)), samples(24), samples(9, seed=1)
    found = onnxq.sensitivity(graph, data, RECIPE, eval_data=judged)
    assert [g.name for g in found.groups] == [str(n.name) for n in graph.nodes if n.op_type == "MatMul"]
    worst = found.worst[0]
    assert worst is found.groups[2]
    assert all(g.share == pytest.approx(0.2) for g in found.groups)

    ready = api.prepared(graph, RECIPE)
    alone, _ = api.lowered(only(ready, groups(ready.plan), groups(ready.plan)[2:3]), api.measured(ready, data))
    assert sum(n.op_type == "QuantizeLinear" for n in alone.nodes) == 1
    a, b = (np.stack([run(g, f)[0] for f in _judging(graph, data, judged)]) for g in (ready.graph, alone))
    assert worst.output_db == pytest.approx(sqnr_db(a, b), abs=0.01)
    assert found.int8_db < worst.output_db
    assert worst.own_db is not None
    assert worst.own_db < min(g.own_db or 0 for g in found.groups if g is not worst)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["groups"][0]["name"] == worst.name


def _judging(graph: Graph, data: list[Any], judged: list[Any]) -> tuple[Any, ...]:
    from onnxq.collect import session_for
    from onnxq.data import input_specs, open_source
    from onnxq.search.split import split

    first, second = (open_source(d, input_specs(graph)) for d in (data, judged))
    return split(session_for(graph, (), ("cpu",)), first, second).judging


class Counted:
    """Forward passes of ONNX Runtime, by counting runs of the evaluation's samples."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, judged: list[Any]) -> None:
        self.runs = 0
        inner, known = Session.run, {f["x"].tobytes() for f in judged}

        def counting(session: Session, feed: Any, outputs: Any = None) -> list[Any]:  # noqa: ANN401  as the method's
            self.runs += "x" not in feed or feed["x"].tobytes() in known  # it reads all that the layers read, or x
            return inner(session, feed, outputs)

        monkeypatch.setattr(Session, "run", counting)


def test_passes_over_a_hundred_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = samples(4, seed=1)
    counted = Counted(monkeypatch, judged)
    found = onnxq.sensitivity(chain(101), samples(4), RECIPE, eval_data=judged)
    assert len(found.groups) == 101
    assert found.samples == 2  # the other two would be searched on
    assert found.passes == 103
    assert counted.runs <= 120 * found.samples


def test_groups_are_measured_alone_as_long_as_there_are_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = chain(6, hard=(2,)), samples(16)
    wanted = onnxq.sensitivity(graph, data, RECIPE)
    monkeypatch.setattr("onnxq.search.measuring.PASSES", 8)
    found = onnxq.sensitivity(graph, data, RECIPE)
    assert found == wanted
    assert found.passes == 8
    assert not any("together" in group for group in found.to_dict()["groups"])


def test_of_hundreds_of_groups_the_noisiest_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    hard = (40, 41, 99, 171)
    graph, data, judged = branches(200, hard), samples(8), samples(4, seed=1)
    counted = Counted(monkeypatch, judged)
    found = onnxq.sensitivity(graph, data, RECIPE, eval_data=judged)
    assert found.passes == 118  # a pass more went when samples were read, and halving takes two
    assert counted.runs <= 120 * found.samples
    assert [g.nodes[0] for g in found.groups] == [str(n.name) for n in graph.nodes if n.op_type == "MatMul"]
    assert {found.groups.index(g) for g in found.worst[:4]} == set(hard)
    assert [g.together for g in found.worst[:4]] == [1] * 4
    assert sum(g.together for g in found.groups if g.together > 1) > 200
    said = {g["name"]: g.get("together", 1) for g in found.to_dict()["groups"]}
    assert said == {g.name: g.together for g in found.groups}

    ready = api.prepared(graph, RECIPE)
    every, statistics = groups(ready.plan), api.measured(ready, data)
    feeds = _judging(graph, data, judged)
    first = next(i for i, g in enumerate(found.groups) if g.together > 2)
    size = found.groups[first].together
    assert {g.together for g in found.groups[first : first + size]} == {size}
    stretch, _ = api.lowered(only(ready, every, every[first : first + size]), statistics)
    a, b = (np.stack([run(g, f)[0] for f in feeds]) for g in (ready.graph, stretch))
    together = sum(g.ratios[0] for g in found.groups[first : first + size])
    assert -10 * np.log10(together) == pytest.approx(sqnr_db(a, b), abs=0.01)


def test_shares_are_as_own_errors_and_add_up_for_every_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same groups, measured in one stretch by hand."""
    text = "(float[N,32] x) => (float[N,32] y, float[N,32] z) {"
    text += " a = Tanh(x) b = MatMul(a, v) c = Tanh(b) y = MatMul(c, w) d = Relu(c) z = MatMul(d, v2) }"
    rng = np.random.default_rng(0)
    graph = graph_of(text, **{n: rng.normal(size=(32, 32)).astype(np.float32) for n in ("v", "w", "v2")})
    data, judged = samples(16), samples(8, seed=1)
    monkeypatch.setattr("onnxq.search.measuring.PASSES", 4)
    monkeypatch.setattr(
        "onnxq.search.measuring.parted", lambda count, _, noise: noise(range(count)) and (range(count),)
    )
    found = onnxq.sensitivity(graph, data, RECIPE, eval_data=judged)
    assert [g.together for g in found.groups] == [3, 3, 3]
    ready = api.prepared(graph, RECIPE)
    quantized, _ = api.lowered(ready, api.measured(ready, data))
    feeds = _judging(graph, data, judged)
    own = np.array([10 ** (-(g.own_db or 0) / 10) for g in found.groups])
    for output in range(2):
        a, b = (np.stack([run(g, f)[output] for f in feeds]) for g in (ready.graph, quantized))
        ratios = np.array([g.ratios[output] for g in found.groups])
        assert -10 * np.log10(ratios.sum()) == pytest.approx(sqnr_db(a, b), abs=0.01)
        np.testing.assert_allclose(ratios / ratios.sum(), own / own.sum(), rtol=1e-6)


def stopped(graph: Graph, data: list[dict[str, Array]], aside: Path, model: int) -> None:
    """A measurement that is interrupted where it would make that many models."""
    made: list[object] = []
    lowered = api.lowered

    def stopping(*given: Any) -> Any:  # noqa: ANN401  as the function's
        made.append(given)
        if len(made) == model:
            raise KeyboardInterrupt
        return lowered(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxq.search.trials.lowered", stopping)
        with pytest.raises(KeyboardInterrupt):
            onnxq.sensitivity(graph, data, RECIPE, aside=aside)


def test_stretches_go_on_where_they_were_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.search.measuring.PASSES", 15)
    monkeypatch.setattr("onnxq.search.stretches.FIRST", 4)
    graph, data, aside = branches(16, hard=(5,)), samples(16), tmp_path / "s.partial"
    wanted = onnxq.sensitivity(graph, data, RECIPE)
    assert wanted.worst[0] is wanted.groups[5]
    assert {g.together for g in wanted.groups} == {1, 2, 4}
    stopped(graph, data, aside, 8)
    found = onnxq.sensitivity(graph, data, RECIPE, aside=aside)
    assert found.groups == wanted.groups
    assert found.passes == wanted.passes - 6
    assert not aside.exists()


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    graph, data, aside = chain(6, hard=(1,)), samples(16), tmp_path / "s.partial"
    wanted = onnxq.sensitivity(graph, data, RECIPE)
    stopped(graph, data, aside, 5)
    assert len(aside.read_text().splitlines()) == 4  # the key, and three groups
    with aside.open("a") as file:
        file.write('["/half a li')  # as a machine that lost power leaves it
    found = onnxq.sensitivity(graph, data, RECIPE, aside=aside)
    assert found.groups == wanted.groups
    assert found.passes == wanted.passes - 3
    assert not aside.exists()


def test_results_of_another_run_are_dropped(tmp_path: Path) -> None:
    graph, data, aside = chain(3), samples(16), tmp_path / "s.partial"
    aside.write_text('"another key"\n["/m0/MatMul", [1.0, ["0x0p+0"]]]\n')
    said: list[str] = []
    found = onnxq.sensitivity(graph, data, RECIPE, onnxq.monitor.Monitor(warn=said.append), aside=aside)
    assert found.groups == onnxq.sensitivity(graph, data, RECIPE).groups
    assert any("beginning anew" in text for text in said)


def test_other_data_and_other_weights_have_other_keys() -> None:
    from onnxq.search.flow import _trials
    from onnxq.search.measuring import key_of

    keys = set()
    for graph, data, recipe in (
        (chain(3), samples(16), RECIPE),
        (chain(3, hard=(1,)), samples(16), RECIPE),
        (chain(3), samples(17), RECIPE),
        (chain(3), samples(16), Recipe(effort="fast", calibrator="mse", high_precision="fp32")),
    ):
        trials, parts = _trials(api.prepared(graph, recipe), data, None, onnxq.monitor.SILENT)
        keys.add(key_of(trials, parts.key))
    assert len(keys) == 4


def test_order_does_not_matter() -> None:
    graph, data = chain(4, hard=(1,)), samples(20)
    assert onnxq.sensitivity(graph, data[::-1], RECIPE) == onnxq.sensitivity(graph, data, RECIPE)
