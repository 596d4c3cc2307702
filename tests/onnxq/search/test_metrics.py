"""The user's metric: how it is found, called, and what is said when it is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from onnxq.errors import DataError, OnnxqError
from onnxq.search.goals import MaxDrop, Trial
from onnxq.search.metrics import Metric, load_metric
from onnxq.search.noise import Exact

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FEEDS = [{"x": np.ones(2), "label": np.array([i])} for i in range(20)]


def outputs(values: list[float]) -> list[dict[str, np.ndarray]]:
    return [{"y": np.array([v])} for v in values]


def trial(before: list[float], after: list[float]) -> Trial:
    exact = Exact(tuple(FEEDS[: len(before)]), ("y",), tuple(outputs(before)))
    return Trial.of(exact, outputs(after))


def mean(feeds: object, found: list[dict[str, np.ndarray]]) -> float:
    del feeds
    return float(np.mean([o["y"][0] for o in found]))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("metric", "not of the form script.py:function"),
        ("m.py", "not of the form script.py:function"),
        ("lost.py:f", "lost.py"),
        ("m.py:accurcy", "defines no 'accurcy'.*Did you mean .*:accuracy"),
        ("m.py:LIMIT", "'LIMIT' is of type int, not a function"),
        ("bad.py:f", "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_loaded(text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text("LIMIT = 3\ndef accuracy(feeds, outputs):\n    return 1.0\n")
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(OnnxqError, match=f"(?s){says}"):
        load_metric(text)
    assert load_metric("m.py:accuracy")(FEEDS, outputs([1.0])) == 1.0


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda _, o: o[0]["logits"], "failed at .*: KeyError: 'logits'.*outputs are 'y'.*hold 'x', 'label'"),
        (lambda *_: float("nan"), "returned nan on 2 samples"),
        (lambda *_: None, "returned NoneType, not one number"),
        (lambda *_: np.ones(3), r"returned ndarray of shape \[3\], not one number"),
        (lambda _: 1.0, "failed.*TypeError"),
    ],
)
def test_what_is_wrong_is_said(function: Callable[..., object], says: str) -> None:
    with pytest.raises(DataError, match=f"(?s){says}"):
        Metric("m.py:f", function)(FEEDS[:2], outputs([1.0, 2.0]))


def test_direction_and_relative_drops() -> None:
    found = trial([4.0] * 4, [3.0] * 4)
    for most, relative, higher, drop in ((1.0, False, True, 1.0), (1.0, False, False, -1.0), (1.0, True, True, 0.25)):
        goal = MaxDrop(Metric("m", mean), most, relative, higher)
        verdict = goal.verdict(found)
        assert verdict.value == pytest.approx(drop)
        assert verdict.bound == pytest.approx(drop)  # every sample drops alike
        assert verdict.met
    assert not MaxDrop(Metric("m", mean), 0.9, relative=False, higher=True).verdict(found).met
    with pytest.raises(DataError, match="relative drop has no meaning"):
        MaxDrop(Metric("m", mean), 0.9, relative=True, higher=True).verdict(trial([0.0] * 4, [1.0] * 4))


def test_the_margin_is_the_jackknife_of_a_mean() -> None:
    """With one sample a part it is the standard error of a mean, s / sqrt N."""
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=10), rng.normal(size=10)
    verdict = MaxDrop(Metric("m", mean), 1.0, relative=False, higher=True).verdict(trial([*before], [*after]))
    error = (before - after).std(ddof=1) / np.sqrt(10)
    assert verdict.bound == pytest.approx((before - after).mean() + 2.821 * error)


def test_a_metric_that_fails_on_parts_has_no_margin() -> None:
    def whole(feeds: object, found: list[dict[str, np.ndarray]]) -> float:
        if len(found) < 20:
            raise ValueError("one class only")
        return mean(feeds, found)

    verdict = MaxDrop(Metric("m", whole), 1.0, relative=False, higher=True).verdict(trial([*range(20)], [0.0] * 20))
    assert verdict.bound == verdict.value == pytest.approx(9.5)


def test_a_metric_that_never_changes_is_no_proof() -> None:
    goal = MaxDrop(Metric("m", mean), 0.005, relative=False, higher=True)
    same = trial([1.0] * 10, [1.0] * 10)
    said = str(goal.doubt(goal.verdict(same), 10))
    assert "the same on all 10 samples that judge: of others up to 36.9% may change" in said
    none_of_them = (1 - 0.369) ** 10
    assert none_of_them == pytest.approx(0.01, rel=0.01)
    assert goal.doubt(goal.verdict(trial([1.0] * 10, [0.9] + [1.0] * 9)), 10) is None
    assert MaxDrop(Metric("m", mean), 0.5, relative=False, higher=True).doubt(goal.verdict(same), 10) is None
