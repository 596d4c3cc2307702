"""Times in the Pareto list: of the choices that it holds, in the form that is shipped, and only where asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from chains import chain, samples

import onnxq
from onnxq import Evaluation, Recipe, intake, proof, tables
from onnxq.errors import ProviderError, RecipeError
from onnxq.outcome import Latency

if TYPE_CHECKING:
    from pathlib import Path

    from onnxq.outcome import Budget

RECIPE = Recipe(target="ort-cpu", effort="fast", calibrator="minmax", min_sqnr=24.0)
HEADER = "time / float"


def found(recipe: Recipe = RECIPE, evaluation: Evaluation = Evaluation(measure=True)) -> Budget:  # noqa: B008  frozen
    _, plan = onnxq.quantize(chain(6, hard=(2,)), samples(64), recipe, evaluation=evaluation)
    assert plan.budget is not None
    return plan.budget


def test_nothing_is_timed_unless_asked() -> None:
    budget = found(evaluation=Evaluation())
    assert all(t.latency is None for t in budget.tried)
    assert HEADER not in "\n".join(tables.budget(budget))


def test_what_cannot_be_timed_is_refused_before_the_search() -> None:
    with pytest.raises(RecipeError, match="tensorrt cannot be timed here"):
        onnxq.quantize(chain(3), None, replace(RECIPE, target="tensorrt"), evaluation=Evaluation(measure=True))
    with pytest.raises(ProviderError):
        onnxq.quantize(chain(3), None, replace(RECIPE, target="ort-cuda"), evaluation=Evaluation(measure=True))


@pytest.mark.parametrize("form", [{}, {"format": "qoperator"}, {"io_types": "int8", "min_sqnr": 19.0}], ids=str)
def test_every_choice_on_the_list_and_no_other_is_timed(form: dict[str, Any]) -> None:
    budget = found(replace(RECIPE, **form))
    assert budget.reverted
    assert len(budget.pareto) > 1
    for tried in budget.tried:
        assert (tried.latency is not None) == (tried in budget.pareto)
    for tried in budget.pareto:
        assert tried.latency is not None
        assert 0 < tried.latency.low <= tried.latency.ratio <= tried.latency.high
        said = tried.to_dict()["latency"]
        assert said == {n: getattr(tried.latency, n) for n in ("ratio", "low", "high", "runs")}
        assert str(tried.latency) in "\n".join(tables.budget(budget))


def test_a_list_of_one_is_timed_too() -> None:
    budget = found(replace(RECIPE, min_sqnr=1.0))
    assert budget.reverted == ()
    assert [t.latency is not None for t in budget.pareto] == [True]
    assert HEADER in "\n".join(tables.budget(budget))


def test_the_models_that_are_timed_are_those_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a time: the share of the products (all of one size) that read integers; in the float model none."""

    def integers(path: Path) -> float:
        graph = intake.load(path)
        products = [n for n in graph.nodes if n.op_type == "MatMul"]
        return sum(graph.producer(n.inputs[0], "DequantizeLinear") is not None for n in products) / len(products)

    def counted(reference: Path, model: Path, feed: Any, **_: object) -> Latency:  # noqa: ANN401  a Feed
        assert integers(reference) == 0
        assert np.asarray(feed["x"]).ndim
        return Latency(integers(model), 0.0, 1.0, 1)

    monkeypatch.setattr(proof, "measure", counted)
    budget = found()
    assert len({t.mac_share for t in budget.pareto}) > 1
    for tried in budget.pareto:
        assert tried.latency is not None
        assert tried.latency.ratio == pytest.approx(tried.mac_share)
