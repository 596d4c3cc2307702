"""The report page in a real browser, made by the command line of the digits model, and of names that mean harm."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from browser import PHONE, WIDE, Browser, started
from graphs import graph_of
from real_models import DIGITS

from onnxq import cli, page
from onnxq.comparison import Comparison, TensorError
from onnxq.histogram import Histogram
from onnxq.inventory import Holding, Inventory, Layer
from onnxq.page import MOST_LAYERS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=2> 張量"
SHOWN = "return [...document.querySelectorAll('#layers-body tr')].map(row => row.textContent)"
CELLS = "return [...document.querySelectorAll('{} tr')].map(row => row.cells[0].textContent)"
COLUMNS = "return document.querySelectorAll('#tensors-chart .bar').length"


def run(*arguments: object) -> None:
    before, sys.argv = sys.argv, ["onnxq", *map(str, arguments)]
    try:
        cli.main()
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page by `onnxq quantize --report`, and one by `onnxq compare --report` beside it."""
    folder = tmp_path_factory.mktemp("report")
    model, output = DIGITS / "digits.onnx", folder / "digits.int8.onnx"
    run("quantize", model, "--data", DIGITS / "calib.npz", "-o", output, "--report", folder / "run.html", "-q")
    held = folder / "held.npz"
    with np.load(DIGITS / "test.npz") as test:
        np.savez(held, image=test["image"][:16])
    run("compare", model, output, "--data", held, "--report", folder / "report.html", "-q")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(tmp_path_factory.mktemp("profile")) as window:
        yield window


def test_the_page_opens_without_complaint_and_without_a_request(report: Path, browser: Browser, tmp_path: Path) -> None:
    for file in (report, report.with_name("run.html")):
        browser.open(file)
        assert browser.complaints() == []
        assert [url for url in browser.requests() if not url.startswith("data:")] == [file.as_uri()]
        assert "digits.int8.onnx" in browser.driver.title
        assert browser.run("return document.querySelectorAll('#along-chart circle').length") > 30
        browser.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 20_000  # a blank window has 5 kB


def test_shifted_tensors_are_drawn_and_compared_as_the_float_models(report: Path) -> None:
    planned = json.loads(report.with_name("digits.int8.plan.json").read_text())["tensors"]
    for file in (report, report.with_name("run.html")):
        (found,) = re.findall(r'id="data">(.*?)</script>', file.read_text(), re.DOTALL)
        data = json.loads(found)
        assert set(planned) <= {picture["name"] for picture in data["pictures"]}
        for picture in data["pictures"]:
            _, low, high = picture["ranges"][0][:3]  # that of the model, around the values that were seen
            around_zero = abs(low + high) <= 0.05 * high  # no zero point: it was not worth one
            assert around_zero or abs(low - min(0.0, picture["low"])) <= 0.1 * high  # a range holds 0
            assert 0.7 <= high / picture["high"] <= 2  # 16 images may reach less far than all that calibrated
        assert sum(row[7] is not None for row in data["layers"]) > 30


def test_the_layers_are_searched_and_sorted(report: Path, browser: Browser) -> None:
    browser.open(report)
    first = browser.run(SHOWN)
    assert len(first) == 20
    browser.run("document.getElementById('layers-more').click()")
    everything = browser.run(SHOWN)
    assert len(everything) > 30
    search = browser.driver.find_element("id", "layers-search")
    search.send_keys("gemm int8")
    assert [("/11/Gemm" in row) for row in browser.run(SHOWN)] == [True]
    search.clear()
    search.send_keys("there is no such layer")
    assert browser.run(SHOWN) == []
    search.clear()
    search.send_keys(" ")
    assert browser.run(SHOWN) == first
    sorted_by = CELLS.format("#layers-body")
    browser.driver.find_element("css selector", "th[data-key=order] button").click()
    assert browser.run(sorted_by) == [str(place) for place in range(1, 21)]
    browser.driver.find_element("css selector", "th[data-key=order] button").click()
    assert browser.run(sorted_by) == [str(len(everything) - place) for place in range(20)]
    assert browser.complaints() == []


def test_the_precision_filters_the_layers(report: Path, browser: Browser) -> None:
    browser.open(report)
    browser.driver.find_element("css selector", "#layers-precision option[value=int8]").click()
    assert browser.run(SHOWN)
    assert all("int8" in row for row in browser.run(SHOWN))


def test_choosing_a_tensor_draws_its_histogram(report: Path, browser: Browser) -> None:
    browser.open(report)
    seen = set()
    for index in (0, 3, 5):
        browser.run("document.querySelector(arguments[0]).click()", f"#tensors-list input[value='{index}']")
        expected = browser.run(
            "return JSON.parse(document.getElementById('data').textContent).pictures[arguments[0]]", index
        )
        assert browser.run("return document.getElementById('tensors-name').textContent") == expected["name"]
        assert browser.run(COLUMNS) == sum(count > 0 for count in expected["counts"]) > 10
        lines = browser.run(
            "return [...document.querySelectorAll('#tensors-body tr')].map(row => row.cells[0].textContent)"
        )
        assert lines == ["in the model", "entropy", "minmax", "mse", "percentile", "auto"]
        seen.add(expected["name"])
        heights = "return [...document.querySelectorAll('#tensors-chart .bar')].map(bar => bar.getAttribute('height'))"
        logarithmic = browser.run(heights)
        browser.driver.find_element("id", "tensors-log").click()
        assert browser.run(heights) != logarithmic
    assert len(seen) == 3
    browser.driver.find_element("id", "tensors-search").send_keys("concat")
    assert "Concat" in browser.run("return document.getElementById('tensors-name').textContent")
    assert browser.complaints() == []


def test_a_layer_is_told_about_when_it_is_pointed_at(report: Path, browser: Browser) -> None:
    browser.open(report)
    caption = "return document.getElementById('along-caption').textContent"
    before = browser.run(caption)
    assert " dB, cosine " in before
    browser.driver.find_element("id", "along-chart").send_keys("\ue014")  # arrow right
    assert browser.run(caption) != before


def test_dark_and_light(report: Path, browser: Browser) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    browser.open(report, dark=True)
    assert max(browser.run(ground)) < 60
    browser.open(report)
    assert min(browser.run(ground)) > 220


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_scrolls_down_only(report: Path, browser: Browser, dark: bool) -> None:
    browser.open(report, PHONE, dark=dark)
    browser.run("document.getElementById('layers-more').click()")
    assert browser.run("return document.documentElement.scrollWidth") <= PHONE[0]
    assert browser.run("return document.getElementById('tensors-chart').querySelector('svg').clientWidth") <= PHONE[0]
    assert browser.complaints() == []


def test_the_search_for_a_budget_and_its_times(browser: Browser, tmp_path: Path) -> None:
    model, made = DIGITS / "digits.onnx", tmp_path / "m.html"
    budget = ("--effort", "fast", "--min-sqnr", "42", "-o", tmp_path / "q.onnx", "--report", made, "-q")
    run("quantize", model, "--data", DIGITS / "calib.npz", *budget)
    pareto = json.loads((tmp_path / "q.plan.json").read_text())["budget"]["pareto"]
    for size in (WIDE, PHONE):
        browser.open(made, size)
        assert browser.complaints() == []
        rows = browser.run("return [...document.querySelectorAll('#trades-times tbody tr')].map(row => row.innerText)")
        assert len(rows) == len(pareto) > 1
        for row, tried in zip(rows, reversed(pareto), strict=True):  # the page has what is least quantized first
            assert f"predicted: {tried['predicted']['ratio']:.2f} of the float16 model's on an NVIDIA L4" in row
        titles = browser.run("return [...document.querySelectorAll('#trades-chart title')].map(t => t.textContent)")
        assert sum("time predicted: " in title for title in titles) == len(pareto)
        assert browser.run("return document.documentElement.scrollWidth") <= size[0]


def test_names_are_shown_and_never_run(browser: Browser, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    proto = graph_of("(float[N,32] x) => (float[N,32] y) { a = MatMul(x, w) y = MatMul(a, w) }", w=weights).to_proto()
    for node in proto.graph.node:
        node.name = HOSTILE + node.output[0]
    proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = HOSTILE
    onnx.save(proto, tmp_path / "m.onnx")
    made = tmp_path / "m.html"
    run("quantize", tmp_path / "m.onnx", "--data", "random:4", "-o", tmp_path / "q.onnx", "--report", made, "-q")
    browser.open(made)
    assert browser.run("return window.hacked") is None
    assert browser.complaints() == []
    assert any(HOSTILE in row for row in browser.run(SHOWN))
    assert HOSTILE in browser.run(
        "return [...document.querySelectorAll('#tensors-list .name')].map(name => name.textContent)"
    )


def test_thousands_of_layers(browser: Browser, tmp_path: Path) -> None:
    layers = tuple(Layer(f"/block.{i}/linear/MatMul", "MatMul", "int8", i, (f"t{i}",)) for i in range(MOST_LAYERS))
    tensors = tuple(Holding(f"t{i}", "int8", False, "per tensor", 1, 0.1, 0.1, 0) for i in range(100))
    found = Comparison(tuple(TensorError(f"t{i}", 20 + i % 17, 0.99, 0.1, 3.0) for i in range(MOST_LAYERS)), 1)
    values = Histogram.of(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    known = page.Known(histograms=dict.fromkeys((t.tensor for t in tensors), values))
    stock = Inventory("", 19, layers, tensors, ())
    (tmp_path / "m.html").write_text(page.render(page.gather(page.Files("a", "b", 1, 1), stock, found, known), "1"))
    browser.open(tmp_path / "m.html", PHONE)
    assert browser.complaints() == []
    marks = browser.run("return document.querySelectorAll('#along-chart circle').length")
    assert 10 < marks < PHONE[0]
    assert "each mark is the worst of" in browser.run("return document.getElementById('along-legend').textContent")
    browser.driver.find_element("id", "layers-search").send_keys("block.3999/")
    assert len(browser.run(SHOWN)) == 1
    assert browser.run("return document.documentElement.scrollWidth") <= PHONE[0]
