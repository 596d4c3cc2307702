"""Whose fault it is when something fails on a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest
from graphs import graph_of

from onnxq import api
from onnxq.errors import ModelError, PassError
from onnxq.intake import checked

if TYPE_CHECKING:
    from pathlib import Path

GOOD = graph_of("(float[2,3] x) => (float[2,3] y) { y = Relu(x) }")
BAD = graph_of("(float[2,3] x) => (float[2,3] y) { y = Relu<nonsense = 3>(x) }")


def failing(error: Exception, model: object) -> None:
    with checked(model):
        raise error


@pytest.mark.parametrize("error", [PassError("a pass failed"), KeyError("x"), AssertionError()])
def test_a_model_that_the_checker_refuses_is_to_blame(error: Exception) -> None:
    with pytest.raises(ModelError, match=r"is not a valid ONNX model: .*nonsense"):
        failing(error, BAD)
    with pytest.raises(type(error)):
        failing(error, GOOD)


def test_refusals_pass_as_they_are() -> None:
    with pytest.raises(ModelError, match="too old"):
        failing(ModelError("too old"), BAD)


def test_nothing_is_checked_where_nothing_fails() -> None:
    with checked(BAD):
        pass
    assert api.make_plan(BAD).decisions


def test_checks_of_a_model_that_is_none() -> None:
    graph = graph_of("(float[1,3,4,4] x) => (float[1,2,4,4] y) { y = Conv(x) }")
    with pytest.raises(ModelError, match="is not a valid ONNX model"):
        api.check(graph, "tensorrt@10")


def test_a_file_is_shown_to_the_checker_as_it_is(tmp_path: Path) -> None:
    """Two functions of one name: the loader keeps one of them."""
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[2] x) => (float[2] y) { y = own.F(x) }
    <domain: "own", opset_import: ["" : 17]> F (x) => (y) { y = Add(x, x) }"""
    model = onnx.parser.parse_model(text)
    model.functions.append(model.functions[0])
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m.onnx is not a valid ONNX model: .*local functions"):
        api.check(tmp_path / "m.onnx", "tensorrt@10")
