"""Work grows with the number of nodes, not with its square: lines of Python run are counted, not seconds."""

from __future__ import annotations

import glob
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from onnxq import Recipe, Rule, api, checks
from onnxq.graph import Graph

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

KINDS: dict[str, Callable[[int], Any]] = runpy.run_path(
    str(Path(__file__).parents[1] / "scripts" / "synthetic.py"), run_name="synthetic"
)["KINDS"]
TINY, SMALL, LARGE = 50, 100, 200
OURS = {"onnxq", "passes", "onnx_ir", Path(__file__).name}


def lines(work: Callable[[], object]) -> Counter[str]:
    """Lines that each function of onnxq and onnx_ir ran, those of comprehensions too; work inside C does not show."""
    counts: Counter[str] = Counter()
    known: dict[CodeType, bool] = {}

    def trace(frame: FrameType, _event: str, _arg: object) -> Any:  # noqa: ANN401  itself
        code = frame.f_code
        if code not in known:
            known[code] = any(part in OURS for part in Path(code.co_filename).parts)
        if not known[code]:
            return None
        counts[f"{code.co_filename}:{code.co_qualname}"] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return counts


def quantized(kind: str, nodes: int, recipe: Recipe) -> Callable[[], object]:
    """All of `quantize` but the running of the model, whose work ONNX Runtime does."""
    ready = api.prepared(KINDS[kind](nodes), recipe)
    seen = api.observe(ready, "random:1")

    def work() -> None:
        again = api.prepared(KINDS[kind](nodes), recipe)
        made, _ = api.lowered(again, seen)
        if recipe.target.startswith("tensorrt"):
            checks.check(made.to_proto(), recipe.target)

    return work


def steep(small: Counter[str], large: Counter[str], sizes: float) -> dict[str, tuple[int, int]]:
    """Functions whose work grows a good deal faster than the sizes; n log n stays below."""
    limit = 1.3 * sizes
    return {n: (small[n], c) for n, c in large.items() if c > limit * small[n] + 200}


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("residual", "tensorrt@10"),
        ("residual", "ort-cpu"),
        ("transformer", "tensorrt@11"),
        ("inception", "tensorrt@11"),
        ("inception", "ort-cpu"),
    ],
)
def test_no_function_does_quadratic_work(kind: str, target: str) -> None:
    recipe = Recipe(target=target)
    quantized(kind, TINY, recipe)()  # imports and caches
    small, large = (lines(quantized(kind, nodes, recipe)) for nodes in (SMALL, LARGE))
    assert not steep(small, large, LARGE / SMALL)


def test_nor_with_the_number_of_bodies() -> None:
    recipe = Recipe(target="ort-cpu", effort="fast")
    small, large = (lines(quantized("branches", nodes, recipe)) for nodes in (TINY, 2 * TINY))
    assert not steep(small, large, 2.0)


def test_rules_for_single_nodes_are_looked_up() -> None:
    """Efforts and budgets send layers to float by a rule each."""

    def planned(count: int) -> Callable[[], object]:
        ready = api.prepared(KINDS["residual"](count), Recipe(target="tensorrt@10"))
        names = [d.node for d in ready.plan.decisions if d.quantized][::2]
        recipe = Recipe(target="tensorrt@10", rules=tuple(Rule(glob.escape(name), quantize=False) for name in names))
        return lambda: api.planned(ready.graph, recipe)

    planned(TINY)()
    assert not steep(lines(planned(SMALL)), lines(planned(LARGE)), LARGE / SMALL)


def test_quadratic_work_is_found() -> None:
    def pairs(count: int) -> Callable[[], object]:
        return lambda: [(a, b) for a in range(count) for b in range(count)]

    assert steep(lines(pairs(20)), lines(pairs(40)), 2.0)


def test_nodes_of_one_name_are_numbered_in_one_go() -> None:
    def named(count: int) -> Callable[[], object]:
        proto = KINDS["residual"](count)
        for node in proto.graph.node:
            node.name = "node"
        return lambda: Graph.from_proto(proto)

    named(TINY)()
    assert not steep(lines(named(SMALL)), lines(named(LARGE)), LARGE / SMALL)
