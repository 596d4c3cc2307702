"""Ranges and parameters from statistics."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from placing import TENSORRT, Given, net, planned

from onnxq.caches import Cache
from onnxq.choose import merged, resolve, uncached, weights_only
from onnxq.errors import DataError, StatisticsError
from onnxq.histogram import Histogram
from onnxq.plan import Plan, Point
from onnxq.recipe import Recipe
from onnxq.statistics import Statistics

if TYPE_CHECKING:
    from onnxq.choose import Known

RNG = np.random.default_rng(3)
HEAVY = np.concatenate([RNG.normal(size=20_000), [40.0]]).astype(np.float32)  # one outlier that entropy clips


def plan(*points: Point) -> Plan:
    return Plan("tensorrt", {p.tensor: p for p in points}, (), ())


def point(tensor: str, group: str = "", calibrator: str | None = None, *, protected: bool = False) -> Point:
    return Point(tensor, ((f"n{tensor}", 0),), tensor, group or tensor, calibrator, protected)


def seen(**arrays: npt.ArrayLike) -> Statistics:
    return Statistics("model", {name: Histogram.of(np.asarray(a, np.float32)) for name, a in arrays.items()}, 1)


def resolved(statistics: Statistics, *points: Point, calibrator: str = "minmax") -> Plan:
    return resolve(plan(*points), statistics, Recipe(calibrator=calibrator), TENSORRT)


def scale(found: Plan, tensor: str) -> float:
    params = found.points[tensor].params
    assert params is not None
    assert params.zero_point == 0
    assert params.zero_point.dtype == np.int8
    return float(params.scale)


def test_a_point_covers_what_was_seen() -> None:
    found = resolved(seen(a=[-2.54, 1], b=[0, 1.27]), point("a"), point("b"))
    assert scale(found, "a") == pytest.approx(0.02, rel=1e-6)
    assert scale(found, "b") == pytest.approx(0.01, rel=1e-6)
    assert found.resolved
    assert found.points["a"].range == pytest.approx((-2.54, 2.54))
    assert found.points["a"].chosen == "minmax"


def test_what_is_known_of_other_plans_serves_where_the_tensors_are_the_same() -> None:
    statistics, recipe = seen(a=HEAVY, b=HEAVY[:1000] * 7, c=[0.5, -3.0]), Recipe()
    known: Known = {}
    plans = [plan(point("a", "a"), point("b", "a"), point("c")), plan(point("a"), point("c")), plan(point("b"))]
    for each in plans * 2:
        assert resolve(each, statistics, recipe, TENSORRT, known=known) == resolve(each, statistics, recipe, TENSORRT)
    assert {tensors for _, _, tensors, _ in known} == {frozenset(t) for t in ("ab", "c", "a", "b")}
    none = seen(a=[1.0], b=[1.0], c=[1.0])  # what is known is not looked for again
    found = resolve(plans[0], none, recipe, TENSORRT, known=known)
    assert found.points == resolve(plans[0], statistics, recipe, TENSORRT).points


def test_a_group_has_the_same_bits_from_all_its_values() -> None:
    statistics = seen(a=HEAVY, b=HEAVY[:1000] * 7, c=[0.5, -3.0], d=[1.0])
    for calibrator in ("minmax", "entropy", "mse", "percentile", "auto"):
        members = [point("a", "a"), point("b", "a"), point("c", "a")]
        found = resolved(statistics, *members, point("d"), calibrator=calibrator)
        assert len({found.points[t].params.scale.tobytes() for t in "abc"}) == 1  # type: ignore[union-attr]  # resolved
        assert len({found.points[t].range for t in "abc"}) == 1
        assert scale(found, "a") != scale(found, "d")
    alone = resolved(statistics, point("a"), calibrator="minmax")
    assert scale(alone, "a") == pytest.approx(40 / 127, rel=1e-6)


@pytest.mark.parametrize("ratio", [1, 4, 16, 64])
def test_a_group_with_a_small_branch_has_the_range_of_least_error_over_all(ratio: int) -> None:
    """The oracle searches every range; of the small branch it costs what the arithmetic of a wider step says."""
    large, small = (np.abs(RNG.normal(size=20_000)).astype(np.float32) / r for r in (1, ratio))
    found = resolved(seen(a=large, b=small), point("a", "a"), point("b", "a"), calibrator="auto")
    step = scale(found, "a")
    both = np.concatenate([large, small])

    def error(s: float, x: npt.NDArray[Any]) -> float:
        return float(np.square(x - np.clip(np.rint(x / s), -128, 127) * s).sum())

    best = min(error(s, both) for s in np.geomspace(0.2, 1, 200) * float(both.max()) / 127)
    assert error(step, both) <= 1.02 * best
    alone = scale(resolved(seen(b=small), point("b"), calibrator="auto"), "b")
    lost = 10 * np.log10(error(step, small) / error(alone, small))
    assert lost == pytest.approx(20 * np.log10(step / alone), abs=1.5)
    assert [one.tensor for one in found.narrow] == (["b"] if ratio > 16 else [])


def test_a_branch_too_small_for_its_group_is_noted_once() -> None:
    members = [point(t, "a") for t in "abcd"]
    found = resolved(seen(a=[10.0], b=[0.1], c=[0.5], d=[0.0]), *members)
    (note,) = found.warnings
    assert note.startswith("b: shares a scale with tensors of a range 100 times as wide and keeps 1.3 of 127 steps")
    assert found.to_dict()["notes"] == [note]
    assert not resolved(seen(a=[10.0], b=[1.0]), point("a", "a"), point("b", "a")).warnings


@pytest.mark.parametrize("groups", [1, 3, 4, 40])
def test_many_branches_too_small_are_one_warning_and_the_plan_has_them_all(groups: int) -> None:
    members = [point(f"{end}{i}", f"g{i}") for i in range(groups) for end in ("wide", "small")]
    tensors = {p.tensor: [10.0 if p.tensor.startswith("wide") else 0.1] for p in members}
    found = replace(resolved(seen(**tensors), *members), notes=("a note",))
    assert [one.tensor for one in found.narrow] == [f"small{i}" for i in range(groups)]
    assert found.to_dict()["notes"] == ["a note", *map(str, found.narrow)]
    if groups <= 3:
        assert found.warnings == ("a note", *map(str, found.narrow))
        return
    first, grouped = found.warnings
    assert first == "a note"
    assert grouped.startswith(f"{groups} tensors share a scale")
    assert "small0, small1, small2, ..." in grouped


def test_a_known_range_stands_and_widens_that_of_its_group() -> None:
    known = replace(point("a"), range=(0.0, 1.0), chosen="softmax")
    for calibrator in ("minmax", "percentile", "auto"):
        found = resolved(seen(), known, calibrator=calibrator)
        assert found.points["a"].chosen == "softmax"
        assert scale(found, "a") == np.float32(1 / 127)
    assert [p.tensor for p in uncached(plan(known, point("b")), Cache("A", "1", {"c": np.float32(1)}))] == ["b"]
    pair = (replace(known, group="g"), point("b", "g"))
    assert scale(resolved(seen(a=[0.25], b=[0.5]), *pair), "b") == np.float32(1 / 127)
    assert scale(resolved(seen(a=[0.25], b=[2.54]), *pair), "a") == pytest.approx(0.02, rel=1e-6)


def test_the_order_of_the_plan_is_kept_and_does_not_matter() -> None:
    statistics = seen(a=HEAVY, b=HEAVY[:99] * 3, c=[1.0])
    points = [point("a", "a"), point("c"), point("b", "a")]
    one, other = (resolved(statistics, *p, calibrator="entropy") for p in (points, points[::-1]))
    assert list(one.points) == ["a", "c", "b"]
    assert list(other.points) == ["b", "c", "a"]
    assert {t: scale(one, t) for t in "abc"} == {t: scale(other, t) for t in "abc"}


def test_two_points_that_observe_one_tensor_count_it_once() -> None:
    copy = Point("b", (("n", 0),), "a", "a")
    found = resolved(seen(a=HEAVY), point("a"), copy, calibrator="entropy")
    assert (
        scale(found, "a") == scale(found, "b") == scale(resolved(seen(a=HEAVY), point("a"), calibrator="entropy"), "a")
    )
    assert merged((point("a"), copy), seen(a=HEAVY).tensors).count == HEAVY.size


@pytest.mark.parametrize("calibrator", ["auto", "entropy"])
def test_protected_tensors_are_not_clipped(calibrator: str) -> None:
    free = resolved(seen(a=HEAVY), point("a"), calibrator=calibrator)
    assert scale(free, "a") < 40 / 127
    kept = resolved(seen(a=HEAVY), point("a", protected=True), calibrator=calibrator)
    assert scale(kept, "a") == pytest.approx(40 / 127, rel=1e-6)
    assert kept.points["a"].chosen == "minmax"


def test_one_protected_tensor_protects_its_group() -> None:
    members = (point("a", "a"), point("b", "a", protected=True))
    found = resolved(seen(a=HEAVY, b=[1.0]), *members, calibrator="entropy")
    assert scale(found, "a") == pytest.approx(40 / 127, rel=1e-6)


def test_a_clipping_calibrator_that_was_asked_for_clips_protected_tensors_too() -> None:
    found = resolved(seen(a=HEAVY), point("a", protected=True), calibrator="percentile")
    assert found.points["a"].chosen == "percentile"
    assert scale(found, "a") < 40 / 127


def test_a_rule_wins() -> None:
    found = resolved(seen(a=HEAVY), point("a", calibrator="entropy", protected=True), calibrator="minmax")
    assert found.points["a"].chosen == "entropy"
    assert scale(found, "a") < 40 / 127
    members = (point("a", "a"), point("b", "a", "minmax"))
    found = resolved(seen(a=HEAVY, b=HEAVY), *members, calibrator="entropy")
    assert {p.chosen for p in found.points.values()} == {"minmax"}


def test_only_zeros_give_a_legal_scale_and_a_note() -> None:
    for calibrator in ("minmax", "entropy", "mse", "percentile", "auto"):
        found = resolved(seen(a=np.zeros(9), b=[1.0]), point("a"), point("b"), calibrator=calibrator)
        assert scale(found, "a") == 1.0
        assert len(found.notes) == 1
        assert found.notes[0].startswith("a: only zeros")


def test_tiny_values_give_a_normal_scale() -> None:
    found = resolved(seen(a=[1e-40]), point("a"))
    assert scale(found, "a") == float(np.finfo(np.float32).tiny)


def test_huge_values_fit() -> None:
    largest = float(np.finfo(np.float32).max)
    assert scale(resolved(seen(a=[-largest]), point("a")), "a") == pytest.approx(largest / 127, rel=1e-6)


def test_infinities_do_not_count() -> None:
    assert scale(resolved(seen(a=[1.27, np.inf, np.nan]), point("a")), "a") == pytest.approx(0.01, rel=1e-6)


def test_missing_statistics() -> None:
    with pytest.raises(StatisticsError, match="'b'") as caught:
        resolved(seen(a=[1.0]), point("a"), point("b"))
    assert "onnxq calibrate" in caught.value.hint


@pytest.mark.parametrize("values", [[np.nan, np.inf], []])
def test_no_finite_value(values: list[float]) -> None:
    with pytest.raises(DataError, match=r"'a'.*no finite value"):
        resolved(seen(a=np.array(values)), point("a"))


def test_a_group_needs_one_finite_value_only() -> None:
    found = resolved(seen(a=[np.nan], b=[1.27]), point("a", "a"), point("b", "a"))
    assert scale(found, "a") == pytest.approx(0.01, rel=1e-6)


def test_the_plan_itself_is_left_alone() -> None:
    before = plan(point("a"))
    after = resolve(before, seen(a=[1.0]), Recipe(), TENSORRT)
    assert not before.resolved
    assert after.resolved
    assert before.points["a"].params is None


def test_weights_only() -> None:
    body = """c = Conv(x, w) r = Relu(c) k = Concat<axis=1>(r, x) d = Conv(k, u) m = MatMul(d, d)
        q = QuantizeLinear(m, s, z) y = DequantizeLinear(q, s, z)"""
    pair: dict[str, Given] = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    full = planned(net("float[1,16,8,8] x", body, w=(16, 16, 1, 1), u=(16, 32, 1, 1), **pair))
    found = weights_only(full)
    assert not found.points
    assert found.weights == full.weights
    assert found.kept == ("m",)
    told = {d.node: (d.quantized, d.reason) for d in found.decisions}
    assert told["Conv:c"] == (True, "int8 weight, float input (no calibration data)")
    assert told["Concat:k"] == (False, "runs in float (no calibration data)")
    assert told["MatMul:m"] == (False, "product of two activations")
    assert found.resolved


def test_a_resolved_plan_is_plain_json() -> None:
    found = resolved(seen(a=[-2.54], b=[1.0]), point("a"), point("b", "a"))
    told = json.loads(json.dumps(found.to_dict()))
    assert told["tensors"]["b"]["scale"] == pytest.approx(0.02, rel=1e-6)
    assert told["tensors"]["a"]["calibrator"] == "minmax"
