"""A tensor name of the prepared model stands for the same values as in the float one: ONNX Runtime computes both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import graph_of, random_feeds
from real_models import DIGITS

from onnxq import api, intake
from onnxq.recipe import Recipe
from onnxq.runtime import Session

if TYPE_CHECKING:
    from onnxq.graph import Graph

rng = np.random.default_rng(3)


def values(graph: Graph, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every float activation, as ONNX Runtime computes it without optimizing anything."""
    copy = graph.copy()
    copy.infer_shapes()
    named = {str(v.name): v for v in copy.values()}
    names = [name for name in api.activations(copy) if name not in feeds]
    copy.set_outputs([named[name] for name in names])
    found = Session(copy.to_proto().SerializeToString(), optimize=False).run(feeds)
    return dict(zip(names, found, strict=True))


def weight(*shape: int) -> np.ndarray:
    return rng.normal(0, 0.3, shape).astype(np.float32)


def norm(channels: int) -> dict[str, np.ndarray]:
    return {
        "s": (rng.random(channels) + 2).astype(np.float32),
        "b": weight(channels) + 3,
        "m": weight(channels),
        "v": (rng.random(channels) + 0.5).astype(np.float32),
    }


CONV = """(float[1, 16, 6, 6] x) => (float[1, 16, 6, 6] y) {
    c = Conv(x, w)
    n = BatchNormalization(c, s, b, m, v)
    k = Mul(n, factor)
    r = Relu(k)
    p = Mul(r, factor)
    y = Conv(p, w)
}"""
SHARED = """(float[1, 16, 6, 6] x) => (float[1, 16, 6, 6] y) {
    c = Conv(x, w)
    n = BatchNormalization(c, s, b, m, v)
    r = Relu(n)
    z = Add(c, r)
    y = Conv(z, w)
}"""
PRODUCT = """(float[16, 16] x) => (float[16, 16] y) {
    c = MatMul(x, w2)
    n = BatchNormalization(c, s, b, m, v)
    r = Relu(n)
    y = MatMul(r, w2)
}"""
LAST = """(float[16, 16] x) => (float[16, 16] y) {
    c = MatMul(x, w2)
    y = BatchNormalization(c, s, b, m, v)
}"""
WEIGHTS = {"w": weight(16, 16, 1, 1), "w2": weight(16, 16), "factor": np.full((1, 16, 1, 1), 5, np.float32), **norm(16)}


def both(text: str) -> tuple[Graph, Graph]:
    used = {name: array for name, array in WEIGHTS.items() if f"{name})" in text or f" {name}," in text}
    graph = graph_of(text, **used)
    return graph, api.prepared(graph, Recipe()).graph


@pytest.mark.parametrize(("text", "kept"), [(CONV, "kr"), (SHARED, "cnrz"), (PRODUCT, "nr"), (LAST, "")])
def test_a_folded_tensor_takes_the_name_of_the_last_step(text: str, kept: str) -> None:
    before, after = both(text)
    known = {str(v.name) for v in before.values()}
    names = [str(v.name) for v in after.values() if str(v.name) in known]
    assert names == ["x", *kept, "y"]


def assert_same_values(before: Graph, after: Graph) -> None:
    feeds = random_feeds(before, N=2)
    old, new = values(before, feeds), values(after, feeds)
    shared = [name for name in new if name in old]
    assert shared
    for name in shared:
        np.testing.assert_allclose(new[name], old[name], rtol=1e-3, atol=1e-3 * np.abs(old[name]).max())


@pytest.mark.parametrize("text", [CONV, SHARED, PRODUCT, LAST])
def test_tensors_of_one_name_have_the_same_values(text: str) -> None:
    assert_same_values(*both(text))


def test_digits() -> None:
    before = intake.load(DIGITS / "digits.onnx")
    assert_same_values(before, api.prepared(before, Recipe()).graph)
