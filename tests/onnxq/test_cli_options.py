"""The options that each command has: all that it heeds, and none that it does not."""

from __future__ import annotations

import sys
from dataclasses import fields
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import graph_of

from onnxq import api, cli, exchange
from onnxq.cli_options import BUDGET, PLACING, RANGING, READING, WRITING
from onnxq.errors import OnnxqError
from onnxq.modes import MODES
from onnxq.monitor import SILENT
from onnxq.recipe import Recipe
from onnxq.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from onnxq.graph import Graph

NAMES = {field.name for field in fields(Recipe)} - {"rules"}
HEEDED = {
    "quantize": NAMES,
    "calibrate": NAMES - BUDGET - WRITING,
    "sensitivity": NAMES - BUDGET,
    "plan": PLACING,
    "export-cache": RANGING,
    "compare": READING,
}
NEEDS: dict[str, tuple[str, ...]] = {
    "export-cache": ("--statistics", "s.npz", "-o", "c"),
    "calibrate": ("--data", "d", "-o", "s.npz"),
}
NEEDS |= {"compare": ("q.onnx", "--data", "d"), "sensitivity": ("--data", "d")}


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Status and all that was said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["onnxq", *arguments])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
    said = capsys.readouterr()
    return status, said.out + said.err


@pytest.mark.parametrize("command", HEEDED)
def test_a_command_takes_the_options_that_it_heeds_and_no_others(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = call(capsys, command, "--help")
    assert status == 0
    for name in NAMES:
        if name in HEEDED[command]:
            assert flag(name) in text
        else:
            status, said = call(capsys, command, "m.onnx", *NEEDS.get(command, ()), flag(name), "1")
            assert (status, "No such option" in said) == (2, True), said
    rules = () if command == "compare" else ("--exclude", "--exclude-op")
    verbose = () if command == "export-cache" else ("--verbose",)
    assert all(one in text for one in ("--recipe", "--quiet", *verbose, *rules))


@pytest.mark.parametrize("command", ["merge", "export-cache", "export-scales"])
def test_commands_that_have_no_more_to_say_do_not_take_verbose(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--verbose" not in call(capsys, command, "--help")[1]
    assert call(capsys, command, "-v")[0] == 2


# --- what is heeded -----------------------------------------------------------------------------------


RNG = np.random.default_rng(3)
W = {"w": RNG.normal(size=(64, 64)).astype(np.float32), "k": RNG.normal(size=(64, 64, 3, 3)).astype(np.float32)}
FEEDS = [{"x": RNG.normal(size=(1, 64, 8, 8)).astype(np.float32)} for _ in range(4)]


def small() -> Graph:
    return graph_of(
        "(float[N,64,8,8] x) => (float[N,64] y) { a = Conv(x, k) b = Relu(a) m = ReduceMean<axes=[2,3],"
        " keepdims=0>(b) y = MatMul(m, w) }",
        13,
        **W,
    )


def recipes(effort: str = "balanced") -> Iterator[Recipe]:
    """One for each target and mode that it takes."""
    for target, mode in product(TARGETS, MODES):
        try:
            yield Recipe(target=target, mode=mode, effort=effort)
        except OnnxqError:
            continue


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], set[str]]:
    """The fields of recipes that are read while something is done, but for those of recipes as they are made."""

    def during(work: Callable[[], object]) -> set[str]:
        found: set[str] = set()
        plain = Recipe.__getattribute__
        made = Recipe.__post_init__
        making: list[Recipe] = []

        def spied(self: Recipe, name: str) -> Any:  # noqa: ANN401  any field
            caller = sys._getframe(1).f_code.co_filename
            if name in NAMES and not making and not caller.endswith(("dataclasses.py", "<string>")):  # copies
                found.add(name)
            return plain(self, name)

        def checked(self: Recipe) -> None:
            making.append(self)
            made(self)
            making.pop()

        with monkeypatch.context() as patch:
            patch.setattr(Recipe, "__getattribute__", spied)
            patch.setattr(Recipe, "__post_init__", checked)
            work()
        return found

    return during


def test_a_plan_is_of_the_options_that_it_takes(asked: Callable[[Callable[[], object]], set[str]]) -> None:
    graph = small()
    heeded = set[str]().union(*(asked(partial(api.make_plan, graph, recipe, SILENT)) for recipe in recipes()))
    # providers are asked for with custom operators only; a recipe file's fallback, what opset its formats want
    assert heeded - {"fallback"} == PLACING - {"providers"}


def test_a_cache_is_of_the_options_that_it_takes(asked: Callable[[Callable[[], object]], set[str]]) -> None:
    graph, heeded = small(), set[str]()
    for recipe in recipes(effort="fast"):
        if recipe.mode == "static":
            seen = api.calibrate(graph, FEEDS, recipe, SILENT, all_tensors=True)
            heeded |= asked(partial(exchange.make_cache, graph, seen, recipe, monitor=SILENT))
    assert heeded - {"fallback"} == RANGING - {"providers"}


def test_statistics_are_of_the_options_that_they_take(asked: Callable[[Callable[[], object]], set[str]]) -> None:
    graph, heeded = small(), set[str]()
    many = [{"x": RNG.normal(size=(1, 64, 8, 8)).astype(np.float32)} for _ in range(32)]
    for recipe in recipes("fast"):
        heeded |= asked(partial(api.calibrate, graph, FEEDS, recipe, SILENT))
    for recipe in (
        Recipe(),
        Recipe(target="ort-cpu"),
        Recipe(target="ort-cpu", mode="weight-only", weight_method="awq"),
    ):
        heeded |= asked(partial(api.calibrate, graph, many, recipe, SILENT))
    assert heeded - {"fallback"} == NAMES - BUDGET - WRITING


@pytest.mark.parametrize("flags", ["--max-samples=8", "--skip-bad", "--shard=1/2", "--memory=4GB", "--resume"])
def test_what_is_about_data_is_refused_beside_statistics(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    effort = ("--effort", "fast")
    status, said = call(capsys, "quantize", "m.onnx", "--statistics", "s.npz", *effort, flags)
    assert (status, f"{flags.partition('=')[0]} is about reading data" in said) == (2, True), said
