"""Recipes: TOML in and out, and an answer to every key or value that is wrong."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.calibrators import CALIBRATORS
from onnxq.errors import RecipeError
from onnxq.recipe import WEIGHT_FORMS, WEIGHT_RANGES, Recipe, Rule, recipe_from_table

if TYPE_CHECKING:
    from pathlib import Path

CALIBRATOR = st.sampled_from(sorted(CALIBRATORS))
RULES = st.builds(
    Rule,
    nodes=st.text(min_size=1),
    ops=st.lists(st.sampled_from(["Conv", "MatMul"]), max_size=2).map(tuple),
    quantize=st.booleans(),
    calibrator=st.none() | CALIBRATOR,
    per_channel=st.none() | st.booleans(),
)
RECIPES = st.builds(
    Recipe,
    calibrator=CALIBRATOR,
    percentile=st.floats(1, 100),
    weight_range=st.sampled_from(WEIGHT_RANGES),
    weight_form=st.sampled_from(WEIGHT_FORMS),
    providers=st.sampled_from(["cpu", "cuda,cpu"]),
    max_samples=st.none() | st.integers(1, 10**6),
    shapes=st.sampled_from(["", "x:1x3x8x8"]),
    rules=st.lists(RULES, max_size=3).map(tuple),
)


@given(RECIPES)
def test_toml_there_and_back(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    path = tmp_path_factory.getbasetemp() / "r.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8", newline="")
    assert Recipe.from_toml(path) == recipe


def test_defaults_are_left_out() -> None:
    assert Recipe().to_toml() == ""
    assert Recipe(calibrator="mse", rules=(Rule("/head/*", quantize=False),)).to_toml() == (
        'calibrator = "mse"\nrules = [\n    { nodes = "/head/*", quantize = false },\n]\n'
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('calibratr = "mse"', ("unknown key 'calibratr'", "'calibrator'?")),
        ('calibrator = "entrpy"', ("'entrpy'", "'entropy'?")),
        ('target = "tensort"', ("'tensort'", "'tensorrt'?")),
        ('weight_form = "qqdq"', ("weight_form", "'qqdq'", "'qdq'?", "dq, qdq")),
        ('weight_range = "max"', ("weight_range", "absmax")),
        ('providers = "gpu"', ("'gpu'", "cuda")),
        ("percentile = 0", ("percentile", "0")),
        ("percentile = 100.5", ("percentile", "100.5")),
        ("max_samples = 0", ("max_samples is 0",)),
        ("max_samples = 2.5", ("max_samples = 2.5", "whole number")),
        ("max_samples = true", ("max_samples = True", "whole number")),
        ('percentile = "99"', ("percentile = '99'", "number")),
        ("calibrator = 3", ("calibrator = 3", "text")),
        ("rules = 3", ("[[rules]]",)),
        ("rules = [3]", ("[[rules]]",)),
        ("[[rules]]\nnode = '*'\nquantize = false", ("unknown key 'node'", "'nodes'?")),
        ("[[rules]]\nnodes = '*'", ("changes nothing", "quantize")),
        ("[[rules]]\nquantize = 'no'", ("quantize = 'no'", "true or false")),
        ("[[rules]]\nops = 3\nquantize = false", ("ops = 3", "list")),
        ("[[rules]]\nops = ['Conv', 3]\nquantize = false", ("ops", "list")),
        ("[[rules]]\ncalibrator = 'minmaxx'", ("'minmaxx'", "'minmax'?")),
        ("x = [", ("cannot be read",)),
        ("x = 1\n!", ("line 2",)),
    ],
)
def test_what_is_wrong_in_a_file(tmp_path: Path, text: str, says: tuple[str, ...]) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        Recipe.from_toml(path)
    assert all(word in str(error.value) for word in (str(path), *says)), str(error.value)
    assert error.value.message.count(str(path)) == 1
    assert error.value.hint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(RecipeError, match=str(path)):
            Recipe.from_toml(path)
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"b\.toml"):
        Recipe.from_toml(tmp_path / "b.toml")


def test_the_table_given_is_not_changed() -> None:
    table = {"calibrator": "mse", "rules": [{"quantize": False}]}
    recipe_from_table(table, "here")
    assert table == {"calibrator": "mse", "rules": [{"quantize": False}]}


def test_every_plain_field_has_the_words_for_its_flag() -> None:
    plain = [f for f in fields(Recipe) if f.name != "rules"]
    assert all(f.metadata["help"].endswith((".", "]")) for f in plain)


def test_rules_match_by_glob_by_name_and_by_op() -> None:
    assert Rule("/head/*", quantize=False).matches("/head/conv", "Conv")
    assert not Rule("/head/*", quantize=False).matches("/Head/conv", "Conv")
    assert Rule("a[0]", quantize=False).matches("a[0]", "Conv")  # its own name, though it reads as a glob for a0
    assert Rule("a[0]", quantize=False).matches("a0", "Conv")
    assert Rule(ops=("Conv",), quantize=False).matches("any", "Conv")
    assert not Rule("any", ops=("Conv",), quantize=False).matches("any", "Gemm")
    assert Rule(ops="Conv", quantize=False).ops == ("Conv",)  # type: ignore[arg-type]  # as TOML may have it


def test_the_last_rule_that_speaks_of_it_wins() -> None:
    recipe = Recipe(rules=(Rule("a*", quantize=False), Rule("ab", quantize=True), Rule("*", per_channel=False)))
    assert recipe.rule_value("ab", "Conv", "quantize") is True
    assert recipe.rule_value("ac", "Conv", "quantize") is False
    assert recipe.rule_value("b", "Conv", "quantize") is None
    assert recipe.rule_value("b", "Conv", "per_channel") is False


def test_a_rule_that_matches_nothing_is_an_error() -> None:
    nodes = [("/backbone/conv1", "Conv"), ("/backbone/conv2", "Conv"), ("/head/fc", "Gemm")]
    Recipe(rules=(Rule("/head/*", quantize=False),)).check_rules(nodes)
    with pytest.raises(RecipeError, match="matches no node") as error:
        Recipe(rules=(Rule("*/conv3", quantize=False),)).check_rules(nodes)
    assert "'/backbone/conv1'" in error.value.hint
    with pytest.raises(RecipeError) as error:
        Recipe(rules=(Rule(ops=("Gem",), quantize=False),)).check_rules(nodes)
    assert "'Gemm'" in error.value.hint
    with pytest.raises(RecipeError) as error:
        Recipe(rules=(Rule("zzz", quantize=False),)).check_rules(nodes)
    assert "onnxq plan" in error.value.hint


@pytest.mark.parametrize(
    ("kind", "choices", "says"),
    [
        (Recipe, {"percentile": "99"}, ("percentile = '99'", "a number")),
        (Recipe, {"max_samples": 2.5}, ("max_samples = 2.5", "a whole number")),
        (Recipe, {"max_samples": True}, ("max_samples = True",)),
        (Recipe, {"reduce_range": "no", "target": "ort-cpu"}, ("reduce_range = 'no'", "true or false")),
        (Recipe, {"shapes": {"x": [1, 32]}}, ("shapes = {'x': [1, 32]}", "text")),
        (Recipe, {"providers": ["cpu"]}, ("providers = ['cpu']", "text")),
        (Recipe, {"effort": None}, ("effort = None",)),
        (Recipe, {"target": 11}, ("target = 11",)),
        (Recipe, {"rules": Rule("a", quantize=False)}, ("rules", "a tuple of rules")),
        (Recipe, {"rules": ({"nodes": "a", "quantize": False},)}, ("no onnxq.Rule", "onnxq.Rule(")),
        (Rule, {"nodes": ["a"], "quantize": False}, ("nodes = ['a']",)),
        (Rule, {"quantize": "no"}, ("quantize = 'no'", "true or false")),
        (Rule, {"ops": (3,), "quantize": False}, ("ops = (3,)", "a list of texts")),
    ],
)
def test_values_of_another_type_are_named(kind: type, choices: dict[str, object], says: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError) as error:
        kind(**choices)
    assert all(word in str(error.value) for word in says), error.value


def test_numbers_of_numpy_are_numbers() -> None:
    made = Recipe(percentile=np.float32(99), max_samples=np.int64(3), float_share=0)  # type: ignore[arg-type]  # as computed
    assert (made.percentile, made.max_samples, made.float_share) == (99, 3, 0)
