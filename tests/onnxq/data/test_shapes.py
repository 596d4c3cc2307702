from __future__ import annotations

from typing import Any

import pytest
from data_samples import F32, X, fails
from hypothesis import given
from hypothesis import strategies as st

from onnxq.data import InputSpec, open_source, parse_shapes
from onnxq.errors import RecipeError


def test_shapes_that_do_not_fit_the_inputs_are_refused() -> None:
    with fails(RecipeError, "'imag'", "Did you mean 'image'?"):
        open_source("random:1", [InputSpec("image", F32, (1,))], shapes={"imag": (1,)})
    with fails(RecipeError, "'x' has shape [1, 4]; the model takes [N, 3]"):
        open_source("random:1", [X], shapes={"x": (1, 4)})


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("x:1x3x224x224", {"x": (1, 3, 224, 224)}),
        ("x:[1,3,224,224]", {"x": (1, 3, 224, 224)}),
        ("a:1x3,b:[2,4]", {"a": (1, 3), "b": (2, 4)}),
        (" a:[1, 3] b:2x4,  c:5 ", {"a": (1, 3), "b": (2, 4), "c": (5,)}),
        ("scope/x:0:[2],y[0]:3x1", {"scope/x:0": (2,), "y[0]": (3, 1)}),
        ("s:[]", {"s": ()}),
        ("my input:1x3", {"my input": (1, 3)}),
        ("a, b:1x3,c d:0: e/f:[2, 2] g:7", {"a, b": (1, 3), "c d:0: e/f": (2, 2), "g": (7,)}),
        ("time: steps[0] x:[1,4],y z:2", {"time: steps[0] x": (1, 4), "y z": (2,)}),
    ],
)
def test_shapes_are_parsed(text: str, shapes: dict[str, Any]) -> None:
    assert parse_shapes(text) == shapes


NAMES = st.tuples(
    st.sampled_from(["x", "scope/y", "9"]),
    st.lists(st.sampled_from([" in", ",z", ", b", ":a", ": s", "/c[0]"]), max_size=4).map("".join),
    st.sampled_from(["", ":0", ":1x2"]),
).map("".join)


@given(
    st.dictionaries(NAMES, st.lists(st.integers(1, 999), min_size=1, max_size=4), min_size=1, max_size=4),
    st.sampled_from([",", ", ", " "]),
)
def test_shapes_of_names_with_blanks_commas_and_colons_read_back(named: dict[str, list[int]], apart: str) -> None:
    text = apart.join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in named.items())
    assert parse_shapes(text) == {name: tuple(shape) for name, shape in named.items()}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "''"),
        ("x", "'x' is not NAME:SHAPE"),
        (":1x3", "':1x3' is not"),
        ("x:", "'x:' is not"),
        ("x:1x", "'x:1x' is not"),
        ("x:-1x3", "'x:-1x3' is not"),
        ("x:1x?", "'x:1x?' is not"),
        ("x:[1,3", "'x:[1' is not"),
        ("x:[1,3]]", "'x:[1,3]]' is not"),
        ("x:1,,y:2", "'' is not"),
        ("x:1x0", "axis of length 0"),
        ("x:1,x:2", "'x' is given twice"),
        ("x:-1x3,y:2", "'x:-1x3' is not"),
        ("my x:1xN,y:1x4", "'x:1xN' is not"),
        ("x:[...],y:2", "'x:[...]' is not"),
        ("my input", "'my input' is not"),
    ],
)
def test_malformed_shapes_are_refused(text: str, says: str) -> None:
    with fails(RecipeError, says):
        parse_shapes(text)


@pytest.mark.parametrize("text", ["x: 1x3, y:2", "x:NxM,y:3"])
def test_a_malformed_entry_that_reads_as_a_name_is_guessed_at(text: str) -> None:
    with fails(RecipeError, "which is no input", "one of them is malformed"):
        open_source("random:1", [X], shapes=parse_shapes(text))
