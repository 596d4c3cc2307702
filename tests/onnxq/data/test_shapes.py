from __future__ import annotations

from typing import Any

import pytest
from data_samples import F32, X, fails

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
    ],
)
def test_shapes_are_parsed(text: str, shapes: dict[str, Any]) -> None:
    assert parse_shapes(text) == shapes


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
    ],
)
def test_malformed_shapes_are_refused(text: str, says: str) -> None:
    with fails(RecipeError, says):
        parse_shapes(text)
