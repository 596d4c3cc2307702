"""The grammar of formats, what a recipe makes of them, and that every refusal says why."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from placing import net

from onnxq.errors import RecipeError
from onnxq.formats import KINDS, Cell, Format, cell, cells
from onnxq.formats.table import ROWS, TARGETS
from onnxq.placement import placed
from onnxq.recipe import Recipe, Rule
from onnxq.schemes import weight_format
from onnxq.targets import TARGETS as KNOWN
from onnxq.targets import get_target

if TYPE_CHECKING:
    from pathlib import Path


@st.composite
def formats(draw: st.DrawFn) -> Format:
    kind = draw(st.sampled_from(sorted(KINDS.values(), key=lambda k: k.name)))
    granularity = draw(st.sampled_from(kind.granularities)) if kind.granularities else ""
    free = granularity == "block" and not kind.fixed
    size = draw(st.sampled_from([None, 16, 64, 256])) if free else None
    modifiers = draw(st.sets(st.sampled_from(kind.modifiers))) if kind.modifiers else set()
    return Format(kind.name, granularity, size, frozenset(modifiers))


@given(formats())
def test_text_there_and_back(format_: Format) -> None:
    assert Format.parse(str(format_)) == format_
    assert Format.parse(f" {str(format_).upper()} ") == format_


@given(st.text(alphabet="intufp48/:+block chanel-_0", max_size=24))
def test_any_text_is_a_format_or_an_answer(text: str) -> None:
    with contextlib.suppress(RecipeError):  # any other error fails
        assert Format.parse(str(Format.parse(text))) == Format.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int8", "int8/channel"),
        ("int4", "int4/block:32"),
        ("nf4+double", "nf4/block:64+double"),
        ("uint8/tensor+dynamic", "uint8/tensor+dynamic"),
        ("fp16", "fp16"),
        ("mxfp4/block", "mxfp4/block:32"),
    ],
)
def test_what_is_left_out_is_the_usual(text: str, expected: str) -> None:
    assert str(Format.parse(text)) == expected


@pytest.mark.parametrize("said", ["int8", "uint8", "fp8e4m3", "int16", "uint8+dynamic"])
def test_activations_have_one_scale_where_nothing_is_said(said: str) -> None:
    kind, plus, modifier = said.partition("+")
    assert str(Format.parse(said, "activations")) == f"{kind}/tensor{plus}{modifier}"
    assert str(Format.parse("fp16", "activations")) == "fp16"


def test_a_dla_has_half_precision() -> None:
    assert not cell(Format("fp16"), "weights", "tensorrt@10+dla").reason
    with pytest.raises(RecipeError, match="int8 and fp16 only") as error:
        Recipe(target="tensorrt@10+dla", activations="fp8e4m3")
    assert error.value.hint == "It has: float, fp16, int8/tensor."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("imt4/block", ("unknown type 'imt4'", "'int4'?")),
        ("int8/chanel", ("unknown granularity 'chanel'", "'channel'?")),
        ("int4/token", ("int4 has no scale per token", "block, channel")),
        ("fp16/tensor", ("fp16 has no scale per tensor", "no scales")),
        ("int4/block:48", ("block of 48", "power of two")),
        ("int4/block:8", ("block of 8", "16 or more")),
        ("int4/block:x", ("no format",)),
        ("int4/block:²", ("no format",)),
        ("int4/", ("no format",)),
        ("int4/block/channel", ("two granularities",)),
        ("int8/channel:32", ("only blocks have a size", "int8/block:32")),
        ("mxfp4/block:64", ("blocks of 32, not of 64",)),
        ("nf4+dubble", ("unknown modifier 'dubble'", "'double'?")),
        ("int4+double", ("takes no modifier 'double'", "pow2")),
        ("", ("unknown type",)),
    ],
)
def test_what_is_wrong_in_a_text(text: str, says: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as error:
        Format.parse(text)
    assert all(word in str(error.value) for word in says), str(error.value)
    assert error.value.hint


# -- the table ------------------------------------------------------------------------------------------------


def test_the_table_speaks_of_the_targets_there_are() -> None:
    assert {t.name.removesuffix("+dla") for t in KNOWN.values()} == set(TARGETS)
    assert {t for row in ROWS for t in row.targets} <= set(TARGETS)
    assert {t.split("+")[0] for row in ROWS for t in row.types} <= set(KINDS)


def test_every_cell_works_or_says_why_not() -> None:
    found = list(cells())
    assert all(bool(c.reason) != bool(c.form and c.opset) for c in found)
    assert {c.target for c in found} == set(TARGETS)


@pytest.mark.parametrize("refused", [c for c in cells() if c.reason], ids=lambda c: f"{c.role}-{c.format}-{c.target}")
def test_a_cell_that_does_not_work_is_refused(refused: Cell) -> None:
    said: dict[str, Any] = {refused.role: str(refused.format)}
    with pytest.raises(RecipeError) as error:
        Recipe(target=refused.target, **said)
    assert error.value.hint
    assert refused.reason in error.value.message
    with pytest.raises(RecipeError, match="the rule for"):
        Recipe(target=refused.target, rules=(Rule(**said),))


# -- recipes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "mode", "stored"),
    [
        ({}, "static", "int8/channel"),
        ({"weights": "int4/block:32"}, "weight-only", "int4/block:32"),
        ({"weights": "int8", "activations": "float"}, "weight-only", "int8/channel"),
        ({"activations": "uint8/tensor+dynamic"}, "dynamic", "int8/channel"),
        ({"activations": "uint8"}, "static", "int8/channel"),
        ({"mode": "weight-only", "weight_bits": 4}, "weight-only", "int4/block:32"),
        ({"mode": "weight-only", "weight_bits": 4, "block_size": 64}, "weight-only", "int4/block:64"),
        ({"mode": "weight-only", "block_size": 64}, "weight-only", "int8/block:64"),
        ({"mode": "weight-only"}, "weight-only", "int8/channel"),
    ],
)
def test_formats_tell_the_mode_and_shorthands_the_format(choices: dict[str, object], mode: str, stored: str) -> None:
    recipe = Recipe(target="ort-cpu", **choices)  # type: ignore[arg-type]  # the fields by name
    assert recipe.mode == mode
    assert str(weight_format(recipe, get_target("ort-cpu"))) == stored


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"weights": "int4", "weight_bits": 4, "mode": "weight-only"}, "say the same thing"),
        ({"weights": "int4", "mode": "dynamic"}, "mode dynamic and weights int4/block:32 contradict"),
        ({"activations": "uint8/tensor", "mode": "weight-only"}, "contradict"),
        ({"weights": "int4", "activations": "uint8/tensor"}, "no kernel multiplies"),
        ({"weights": "float"}, "ort-cpu|nothing to quantize"),
        ({"weights": "int44"}, "unknown type"),
        ({"weight_method": "gptq"}, "a choice of the modes weight-only and dynamic, not of static"),
        ({"weights": "fp16", "weight_method": "awq"}, "a choice of the modes weight-only and dynamic, not of float"),
        ({"mode": "dynamic", "weight_method": "gptq", "reduce_range": True}, "does not go with reduce_range"),
        ({"mode": "dynamic", "weight_method": "gptq", "outlier_threshold": 6.0}, "go with outlier_threshold"),
        ({"activations": "int16", "reduce_range": True}, "reduce_range is about kernels of 8-bit integers"),
    ],
)
def test_what_does_not_go_together(choices: dict[str, object], why: str) -> None:
    with pytest.raises(RecipeError, match=why) as error:
        Recipe(target="ort-cpu", **choices)  # type: ignore[arg-type]  # wrong on purpose
    assert error.value.hint


def test_a_recipe_file_holds_the_formats(tmp_path: Path) -> None:
    rules = (Rule("/head/*", weights="int8/block"), Rule(ops=("Gemm",), activations="float"))
    recipe = Recipe(target="ort-cpu", weights="int4", rules=rules)
    path = tmp_path / "r.toml"
    path.write_text(recipe.to_toml())
    assert Recipe.from_toml(path) == recipe
    assert 'weights = "int8/block:32"' in path.read_text()


def test_a_rule_says_the_format_of_its_nodes() -> None:
    graph = net("float[N,64] x", "h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)", w=(64, 128), v=(128, 32))
    recipe = Recipe(target="ort-cpu", weights="int4/block:64", rules=(Rule("*:y", weights="int8/channel"),))
    plan = placed(graph, get_target("ort-cpu"), recipe)
    assert {w.tensor: str(w.format) for w in plan.weights} == {"w": "int4/block:64", "v": "int8/channel"}
