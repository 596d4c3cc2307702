"""The report page as text: what it tells, that it stays small, and that names in it stay names."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxq import page
from onnxq.comparison import Comparison, TensorError
from onnxq.histogram import Histogram
from onnxq.inventory import Holding, Inventory, Layer
from onnxq.page import content as page_content
from onnxq.page.budget import Cost, search_of
from onnxq.page.content import Reason

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2>"
LAYERS = (
    Layer("conv", "Conv", "int8", 900, ("a",)),
    Layer("relu", "Relu", "float16", 0, ("b",)),
    Layer("gemm", "Gemm", "float16", 100, ("y",)),
)
TENSORS = (
    Holding("w", "int8", True, "per channel, axis 0", 8, 0.01, 0.02, 0, 64, ("conv",)),
    Holding("x", "int8", False, "per tensor", 1, 0.02, 0.02, 0, 0, ("conv",)),
)
STOCK = Inventory("maker", 19, LAYERS, TENSORS, (("int8", 1, 64),))
ERRORS = (
    TensorError("a", 22.0, 0.99, 0.1, 3.0),
    TensorError("b", math.inf, 1.0, 0.0, 3.0),
    TensorError("y", 31.5, 0.999, 0.2, 5.0, 0.75, output=True),
    TensorError("q", -math.inf, 0.0, math.inf, 1.0),
)
PLAN = {
    "target": "tensorrt@11",
    "recipe": 'calibrator = "mse"\n',
    "notes": ["a note"],
    "tensors": {"x": {"calibrator": "mse"}},
    "nodes": {
        "conv": {"op": "Conv", "precision": "int8", "reason": "int8 input and weight", "macs": 900},
        "relu": {"op": "Relu", "precision": "float16", "reason": "fuses"},
        "gemm": {"op": "Gemm", "precision": "float16", "reason": "too small", "macs": 100},
    },
}
BUDGET: dict[str, Any] = {
    "goals": [{"goal": "SQNR at least 35 dB", "value": 39.5, "bound": 36.0, "met": True, "unit": "dB"}],
    "held_back_samples": 12,
    "mac_share_int8": 0.9,
    "pareto": [
        {"mac_share": 1.0, "sqnr_db": 31.5},
        {"mac_share": 0.9, "sqnr_db": 40.0},
        {"mac_share": 0.1, "sqnr_db": None},
    ],
    "sensitivity": {
        "groups": [
            {"name": "conv", "nodes": ["conv", "two"], "share": 0.1, "output_db": 33.0, "own_db": 25.0},
            {"name": "gemm", "nodes": ["gemm"], "share": 0.0, "output_db": None, "own_db": None},
        ]
    },
}
FILES = page.Files("m.onnx", "m.int8.onnx", 4000, 1000)
HISTOGRAMS = {"x": Histogram.of(np.linspace(-2, 3, 1000, dtype=np.float32))}
KNOWN = page.Known(PLAN | {"budget": BUDGET}, HISTOGRAMS, "Measured on 3 samples.")
FOUND = Comparison(ERRORS, 3)


def whole() -> page.Content:
    return page.gather(FILES, STOCK, FOUND, KNOWN)


def data(text: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    made: dict[str, Any] = json.loads(found, parse_constant=pytest.fail)
    return made


def test_layers_with_their_errors_and_reasons() -> None:
    rows = whole().rows
    assert [(r.name, r.order, r.tensor) for r in rows[:3]] == [("conv", 0, "a"), ("relu", 1, "b"), ("gemm", 2, "y")]
    assert [r.error for r in rows] == list(ERRORS)
    assert [r.reason for r in rows[:3]] == ["int8 input and weight", "fuses", "too small"]
    assert (rows[3].name, rows[3].precision) == ("q", "unknown")  # compared, and no layer of its own
    assert whole().low_share == 0.9


def test_of_several_outputs_the_worst_stands_for_the_layer() -> None:
    split = Layer("split", "Split", "float32", 0, ("a", "b", "c"))
    made = Comparison((TensorError("a", 30.0, 1, 0, 1), TensorError("b", 9.0, 1, 0, 1)), 1)
    (row,) = page.gather(FILES, replace(STOCK, layers=(split,)), made).rows
    assert (row.tensor, row.error) == ("b", made.errors[1])


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_broken_scales_have_no_range(scale: float) -> None:
    tensor = replace(TENSORS[1], low=scale, high=scale)
    (picture,) = page.gather(FILES, replace(STOCK, tensors=(tensor,)), None, KNOWN).pictures
    assert picture.drawn.thresholds[0].name == "entropy"


def test_reasons_by_work() -> None:
    assert whole().reasons == (Reason("too small", 1, 100, (("Gemm", 1),)), Reason("fuses", 1, 0, (("Relu", 1),)))


def test_the_search_for_a_budget() -> None:
    found = whole().search
    assert found.goals == ("SQNR at least 35 dB: holds, 39.5 dB (99 % sure: 36) on 12 held-back samples",)
    assert [(t.share, t.sqnr_db, t.taken) for t in found.trades] == [(0.9, 40.0, True), (1.0, 31.5, False)]
    assert found.costs == (Cost("conv", 2, 0.1, 33.0, 25.0), Cost("gemm", 1, 0.0, math.inf, None))
    text = page.render(whole(), "1")
    assert "SQNR at least 35 dB" in text
    assert "33.0 dB" in text


def test_a_group_measured_with_others_says_so() -> None:
    assert "≈" not in page.render(whole(), "1")
    groups = [{**BUDGET["sensitivity"]["groups"][0], "together": 7}, *BUDGET["sensitivity"]["groups"][1:]]
    budget = BUDGET | {"sensitivity": {"groups": groups}}
    found = page.gather(FILES, STOCK, None, page.Known(PLAN | {"budget": budget}))
    assert [cost.together for cost in found.search.costs] == [7, 1]
    text = page.render(found, "1")
    assert "≈ 33.0 dB of 7" in text
    assert "measured together" in text


def test_times_are_told_as_measured_or_predicted() -> None:
    tried = [dict(t) for t in BUDGET["pareto"]]
    text = page.render(page.gather(FILES, STOCK, None, page.Known(PLAN | {"budget": BUDGET})), "1")
    assert "trades-times" not in text
    tried[0]["latency"] = {"ratio": 0.5123, "low": 0.5, "high": 0.55, "runs": 20}
    tried[1]["predicted"] = {"ratio": 0.625, "gpu": "NVIDIA L4"}
    budget = BUDGET | {"pareto": tried}
    assert [t.time for t in search_of({"budget": budget}).trades] == [
        "predicted: 0.62 of the float16 model's on an NVIDIA L4",
        "measured: 0.512 of the float model's (quartiles 0.50 to 0.55)",
    ]
    text = page.render(page.gather(FILES, STOCK, None, page.Known(PLAN | {"budget": budget})), "1")
    assert "predicted: 0.62 of the float16" in text
    assert '<table id="trades-times">' in text


ODD_BUDGETS: tuple[object, ...] = (None, [], {}, {"pareto": 3, "goals": [1], "sensitivity": []})
ODD_BUDGETS += ({"sensitivity": {"groups": [{}]}, "goals": [{}], "pareto": [{}]},)
ODD_BUDGETS += ({"pareto": [{"latency": 3, "predicted": {"ratio": "much"}}]},)


@pytest.mark.parametrize("budget", ODD_BUDGETS)
def test_budgets_in_other_words(budget: object) -> None:
    assert search_of({"budget": budget}).trades == ()
    page.render(page.gather(FILES, STOCK, None, page.Known(PLAN | {"budget": budget})), "1")


def test_pictures_of_activations_with_the_range_in_the_model() -> None:
    (picture,) = whole().pictures
    assert (picture.tensor, picture.readers, picture.chosen) == ("x", ("conv",), "mse")
    first = picture.drawn.thresholds[0]
    assert first.name == "in the model"
    assert first.high == pytest.approx(0.02 * 127)
    codes = Holding("x", "uint8", False, "per tensor", 1, 0.02, 0.02, 100)
    (shifted,) = page.gather(FILES, replace(STOCK, tensors=(codes,)), None, KNOWN).pictures
    assert shifted.drawn.thresholds[0].low == pytest.approx(-2.0)
    assert shifted.drawn.thresholds[0].high == pytest.approx(3.1)
    fp8 = Holding("x", "fp8 (e4m3)", False, "per tensor", 1, 0.02, 0.02, 0)
    (bare,) = page.gather(FILES, replace(STOCK, tensors=(fp8,)), None, KNOWN).pictures
    assert bare.drawn.thresholds == ()


def test_the_summary_stands_in_the_text() -> None:
    text = page.render(whole(), "1.2.3")
    for said in (
        "m.int8.onnx",
        "31.5 dB",
        "75 %",
        "25 % of 4.0 kB",
        "90 %",
        "tensorrt@11",
        "a note",
        "1.2.3",
        "calibrator",
    ):
        assert said in text, said
    found = data(text)
    assert [row[1] for row in found["layers"]] == ["conv", "relu", "gemm", "q"]
    assert [row[7] for row in found["layers"]] == [22.0, "inf", 31.5, "-inf"]
    assert [row[6] for row in found["layers"]] == [-1] * 4
    assert found["trades"] == [[0.9, 40.0, 1, ""], [1.0, 31.5, 0, ""]]


def test_the_same_content_gives_the_same_bytes() -> None:
    assert page.render(whole(), "1") == page.render(whole(), "1")
    assert not re.search(r"20\d\d-\d\d", page.render(whole(), "1")), "no dates"


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = page.render(whole(), "1")
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"<(link|script|img|iframe)[^>]*(src|href)=(?!\"data:)", text)
    assert "default-src 'none'" in text
    for kind, body in (("style", r"<style>(.*?)</style>"), ("script", r"<script>(.*?)</script>")):
        (inside,) = re.findall(body, text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in text


ODD = (HOSTILE, "{{ 7*7 }}", "a" * 5000, "тензор 張量 🎲", "\ud800 alone", "nul\x00", "\u2028")


@pytest.mark.parametrize("name", ODD)
def test_names_stay_names(name: str) -> None:
    stock = replace(
        STOCK, layers=(Layer(name, name, "int8", 900, (name,)),), tensors=(replace(TENSORS[1], tensor=name),)
    )
    plan = PLAN | {"notes": [name], "recipe": name, "target": name, "nodes": {name: {"op": name, "reason": name}}}
    found = Comparison((TensorError(name, 22.0, 0.9, 0.1, 3.0, None, output=True),), 1)
    known = page.Known(plan, {name: HISTOGRAMS["x"]}, name)
    text = page.render(page.gather(page.Files(name, name, 4, 1), stock, found, known), "1")
    plain = page.render(whole(), "1")
    text.encode()
    for mark in ("<script", "<img", "</script", "<svg"):
        assert text.count(mark) <= plain.count(mark)
    assert "49" not in text or "{{" not in name
    assert data(text)["layers"][0][1] == page.short(name)
    assert len(page.short(name)) <= page.LONGEST


def test_a_model_of_which_little_is_known() -> None:
    bare = page.gather(FILES, Inventory("", 13, (), (), ()), None)
    text = page.render(bare, "1")
    assert "m.int8.onnx" in text
    assert data(text) == {"layers": [], "pictures": [], "texts": [], "trades": []}
    odd: list[dict[str, Any]] = [{"nodes": {"conv": {}}}, {"nodes": {"conv": {"macs": "many", "reason": None}}}]
    for plan in odd:
        page.render(page.gather(FILES, STOCK, FOUND, page.Known(plan)), "1")


def test_pages_of_large_models_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_content, "MOST_HISTOGRAMS", 20)
    count = 6000
    layers = tuple(
        Layer(f"/model/layers.{i}/self_attn/q_proj/MatMul", "MatMul", "int8", i, (f"t{i}",)) for i in range(count)
    )
    tensors = tuple(Holding(f"t{i}", "int8", False, "per tensor", 1, 0.02, 0.02, 0) for i in range(50))
    found = Comparison(tuple(TensorError(f"t{i}", 20 + i / 1e3, 0.99, 0.1, 3.0) for i in range(count)), 1)
    known = page.Known(histograms=dict.fromkeys((t.tensor for t in tensors), HISTOGRAMS["x"]))
    made = page.gather(FILES, replace(STOCK, layers=layers, tensors=tensors), found, known)
    assert (len(made.rows), made.all_rows) == (page_content.MOST_LAYERS, count)
    assert {r.order for r in made.rows} == set(range(page_content.MOST_LAYERS))  # the worst, in the model's order
    assert (len(made.pictures), made.all_pictures) == (20, 50)
    text = page.render(made, "1")
    assert len(text) < 2_000_000
    assert "4000 of 6000 layers" in text


def test_shares_round_to_all_only_when_all_is_meant() -> None:
    assert [page._share(x) for x in (0.0, 1e-5, 0.255, 0.99999, 1.0)] == [
        "0 %",
        "< 0.1 %",
        "25.5 %",
        "> 99.9 %",
        "100 %",
    ]


def test_each_precision_has_a_colour() -> None:
    kinds = ("int8", "float16", "float32", "int4 weight", "fp8 (e4m3)", "unknown")
    assert [page._tint(kind) for kind in kinds] == [0, 1, 2, 3, 4, 2]
    narrow = replace(STOCK, layers=(Layer("m", "MatMul", "int4 weight", 9, ("y",)),))
    assert "only weights are stored narrow" in page.render(page.gather(FILES, narrow, None), "1")
    assert "only weights" not in page.render(whole(), "1")
