"""The patterns of docs/placement.md: what each graph becomes, that it is legal, and that the page says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from placement_cases import ATTENTION, CASES, FOUR, QKV, Case, quantized, shown
from placing import Given, int8, net, planned, reason, uses

from onnxq import api
from onnxq.recipe import Recipe, Rule

ROOT = Path(__file__).parents[3]
EACH = pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
INSIST = Recipe(high_precision="fp32", rules=(Rule(ops=("MatMul",), quantize=True),))
GIVEN: dict[str, Given] = {"c": FOUR, "w": (32, 32)}
HEADS = "float[1,4,{0},32] q, float[1,4,32,{1}] k, float[1,4,{1},32] v"


@EACH
def test_a_pattern_becomes_what_the_page_shows(case: Case) -> None:
    assert shown(*quantized(case)) == dedent(case.after).strip()


@EACH
def test_the_checks_have_nothing_against_it(case: Case) -> None:
    report = api.check(quantized(case)[0].to_proto())
    assert report.legal
    against = {f.id for f in report.findings if f.severity in ("E", "W")}
    assert not against & {"P19", "P20", "P21", "P22", "P23", "P24", "P25", "P26", "P28", "P29"}


def test_the_page_is_up_to_date() -> None:
    script = [sys.executable, "scripts/placement_page.py", "--check"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr


# --- attention ----------------------------------------------------------------------------------------


def attention(inputs: str, body: str = ATTENTION, recipe: Recipe = INSIST) -> dict[str, set[str]]:
    """The quantized uses of an attention; w and c are there."""
    return uses(planned(net(inputs, " ".join(body.split()), "y", 17, **GIVEN), recipe))


ADVICE = {
    "513 tokens": (HEADS.format(513, 513), ATTENTION, "attention over 513 tokens"),
    "a free length": (HEADS.format("L", "L"), ATTENTION, "sequence of unknown length"),
    "one query": (HEADS.format(1, 64), ATTENTION, "one query"),
    "a small head": ("float[1,64,8] q, float[1,8,64] k, float[1,64,32] v", ATTENTION, "head or a sequence of 8"),
    "a mask": (
        HEADS.format(64, 64) + ", float[1,1,64,64] m",
        ATTENTION.replace("d = Div(l, c)", "n = Div(l, c) d = Add(n, m)"),
        "a mask that is computed at run time",
    ),
    "a mask, selected": (
        HEADS.format(64, 64) + ", bool[1,1,64,64] m",
        ATTENTION.replace("d = Div(l, c)", "d = Where(m, l, c)"),
        "a mask that is computed at run time",
    ),
}


@pytest.mark.parametrize(("inputs", "body", "words"), ADVICE.values(), ids=ADVICE.keys())
def test_what_speaks_against_int8_attention_is_said(inputs: str, body: str, words: str) -> None:
    graph = net(inputs, " ".join(body.split()), "y", 17, **GIVEN)
    plan = planned(graph)
    assert words in reason(plan, "MatMul:l")
    assert words in reason(plan, "MatMul:o")
    assert not int8(plan) & {"MatMul:l", "MatMul:o"}
    insisted = planned(graph, INSIST)
    assert int8(insisted) >= {"MatMul:l", "MatMul:o"}
    assert words in reason(insisted, "MatMul:l")  # still said


@pytest.mark.parametrize("length", [16, 512])
def test_nothing_but_accuracy_speaks_against_a_short_attention(length: int) -> None:
    graph = net(HEADS.format(length, length), " ".join(ATTENTION.split()), "y", 17, **GIVEN)
    assert "int8 costs accuracy" in reason(planned(graph), "MatMul:l")
    assert reason(planned(graph, INSIST), "MatMul:l") == "two int8 activations, as a rule says"


def test_the_mask_and_the_scores_have_no_pair() -> None:
    inputs, body, _ = ADVICE["a mask"]
    found = attention(inputs, body)
    assert found == {
        "q": {"MatMul:l@0"},
        "k": {"MatMul:l@1"},
        "p": {"MatMul:o@0"},
        "v": {"MatMul:o@1"},
        "o": {"MatMul:y@0"},
    }


def test_a_relative_position_is_no_mask() -> None:
    body = ATTENTION.replace("d = Div(l, c)", "d = Add(l, c)")
    graph = net(HEADS.format(64, 64), " ".join(body.split()), "y", 17, c=(64, 64), w=(32, 32))
    assert "int8 costs accuracy" in reason(planned(graph), "MatMul:l")


def test_each_product_can_be_ruled_by_itself() -> None:
    both = attention(HEADS.format(64, 64))
    rules = (*INSIST.rules, Rule(nodes="MatMul:o", quantize=False))
    first = attention(HEADS.format(64, 64), recipe=Recipe(rules=rules))
    assert set(both) == {"q", "k", "p", "v", "o"}
    assert set(first) == {"q", "k", "o"}


@pytest.mark.parametrize("calibrator", ["minmax", "entropy", "percentile", "mse", "auto"])
def test_the_softmax_has_the_scale_of_its_meaning_with_every_calibrator(calibrator: str) -> None:
    graph = net(QKV, " ".join(ATTENTION.split()), "y", 17, **GIVEN)
    rng = np.random.default_rng(0)
    feed = {name: rng.normal(size=(1, 32, 32)).astype(np.float32) for name in "qkv"}
    rules = (*INSIST.rules, Rule(nodes="MatMul:o", calibrator="percentile"))
    plan = api.quantize(graph, [feed], Recipe(calibrator=calibrator, high_precision="fp32", rules=rules))[1]
    point = plan.points["p"]
    assert point.params is not None
    assert point.params.scale == np.float32(1 / 127)
    assert (point.range, point.chosen) == ((0.0, 1.0), "softmax")
    assert plan.points["v"].chosen == "percentile"


@pytest.mark.parametrize(
    ("between", "known"),
    [
        ("r = Transpose<perm=[0,2,1]>(p)", True),
        ("i = IsNaN(p) r = Where(i, zero, p)", True),
        ("r = Mul(p, two)", False),  # head masks and inverted dropout scale
        ("i = IsNaN(p) r = Where(i, two, p)", False),
    ],
)
def test_what_is_no_softmax_any_more_is_calibrated(between: str, *, known: bool) -> None:
    body = ATTENTION.replace("o = MatMul(p, v)", f"{between} o = MatMul(r, v)")
    numbers = {"zero": np.array(0, np.float32), "two": np.array(2, np.float32)}
    graph = net(QKV, " ".join(body.split()), "y", 17, **GIVEN, **numbers)
    assert (planned(graph, INSIST).points["r"].range is not None) is known


def test_a_softmax_written_out_is_known_too() -> None:
    body = ATTENTION.replace("p = Softmax(d)", "e = Exp(d) t = ReduceSum<keepdims=1>(e, last) p = Div(e, t)")
    graph = net(QKV, " ".join(body.split()), "y", 17, **GIVEN, last=np.array([-1]))
    assert planned(graph, INSIST).points["p"].range == (0.0, 1.0)
