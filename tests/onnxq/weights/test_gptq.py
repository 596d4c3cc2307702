from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.feedback import feedback
from onnxq.formats import KINDS, Format
from onnxq.formats.families import FAMILIES, decode, encode, grid_of
from onnxq.weights.clip import clipped, shrunk
from onnxq.weights.gptq import column_errors, quantize_gptq

if TYPE_CHECKING:
    from onnxq.formats.grid import Grid

Floats = npt.NDArray[np.float64]
FORMATS = [Format(name, g) for name in FAMILIES for g in KINDS[name].granularities if g != "token"]
FORMATS += [Format.parse(text) for text in ("nf4/block:16+double", "int4/block:16+pow2")]
FOUR = Format.parse("int4/block:16")
TYPICAL = ("int4/channel", "int4/block:16", "int3/block:32", "uint4/block:16", "nf4/block:16", "fp4/block:64", "mxfp4")


def errors(w: npt.NDArray[np.float32], gram: Floats, format_: Format) -> tuple[Floats, Floats, Floats]:
    """Of every column: by GPTQ, of the clipped ranges, rounded to nearest."""
    wide = w.astype(np.float64)
    found = (quantize_gptq(w, gram, format_), clipped(w, gram, format_), encode(w, format_))
    one, two, three = (column_errors(wide, gram, decode(stored)) for stored in found)
    return one, two, three


def layer(k: int, n: int, rows: int, seed: int = 0) -> tuple[npt.NDArray[np.float32], Floats]:
    """A weight, and the Gram matrix of correlated inputs whose channels differ in size."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, k)) @ rng.normal(size=(k, k)) * np.exp(rng.normal(size=k))
    return rng.normal(size=(k, n)).astype(np.float32), x.T @ x


def compensated(w: Floats, gram: Floats, grid: Grid) -> Floats:
    """What is to be shown to be the same."""
    moved = w + grid.zero * grid.scale
    numbers: Floats = feedback(moved[None], gram[None], grid.scale[None], grid.nearest)[0]
    return numbers


def eliminated(w: Floats, gram: Floats, grid: Grid, damp: float) -> Floats:
    """The paper's own form: round a row, spread its error by the inverse of H, and eliminate the row from it."""
    damped = gram + damp * np.diag(gram).mean() * np.eye(len(w))
    order = np.argsort(-np.diag(gram), kind="stable")
    zero = np.broadcast_to(grid.zero, w.shape)
    left, inverse = w.copy(), np.linalg.inv(damped[np.ix_(order, order)])
    numbers = np.zeros(w.shape)
    for step, k in enumerate(order):
        numbers[k] = grid.nearest(left[k] / grid.scale[k] + zero[k])
        error = (left[k] - (numbers[k] - zero[k]) * grid.scale[k]) / inverse[0, 0]
        left[order[step:]] -= np.outer(inverse[:, 0], error)
        inverse = (inverse - np.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]
    return numbers


@pytest.mark.parametrize("text", TYPICAL)
def test_codes_are_those_of_row_by_row_elimination(text: str) -> None:
    w, gram = layer(75, 20, 300)
    grid, wide = grid_of(w, Format.parse(text)), w.astype(np.float64)
    np.testing.assert_array_equal(compensated(wide, gram, grid), eliminated(wide, gram, grid, 0.01))


@pytest.mark.parametrize("format_", FORMATS, ids=str)
def test_a_grid_holds_what_the_format_does(format_: Format) -> None:
    w, _ = layer(75, 20, 300)
    grid, stored = grid_of(w, format_), encode(w, format_)
    assert {n: a.dtype for n, a in grid.arrays.items()} == {
        n: a.dtype for n, a in stored.arrays.items() if n != "codes"
    }
    again = grid.stored(grid.numbers(w))
    np.testing.assert_allclose(decode(again), grid.real(grid.numbers(w)), rtol=1e-12, atol=1e-15)
    if format_.type != "ternary":  # whose codes go by a threshold of their own
        np.testing.assert_array_equal(decode(again), decode(stored))  # two codes of a table may both be zero


@pytest.mark.parametrize("format_", FORMATS, ids=str)
@given(k=st.integers(1, 40), rows=st.integers(1, 60), seed=st.integers(0, 9))
@settings(max_examples=5, deadline=None)
def test_never_worse_than_rounding(format_: Format, k: int, rows: int, seed: int) -> None:
    w, gram = layer(k, 5, rows, seed)  # fewer rows than channels too: a Gram matrix without an inverse
    found, ranges, nearest = errors(w, gram, format_)
    slack = 1e-6 * float(np.abs(gram).max())
    if format_.granularity == "tensor" or "double" in format_.modifiers or format_.type == "nvfp4":
        found, ranges, nearest = (np.atleast_1d(e.sum()) for e in (found, ranges, nearest))
    if format_.type != "ternary":
        assert (found <= nearest + slack).all()
    assert (found <= ranges + slack).all()


@pytest.mark.parametrize("text", TYPICAL)
def test_much_better_on_correlated_inputs(text: str) -> None:
    found, _, nearest = errors(*layer(96, 48, 2000), Format.parse(text))
    assert found.sum() < nearest.sum() / 2


def test_inputs_that_tell_nothing_leave_rounding() -> None:
    w, gram = layer(40, 8, 100)
    independent = np.diag(np.diag(gram))  # nothing to make up for
    np.testing.assert_array_equal(
        compensated(w.astype(np.float64), independent, grid := grid_of(w, FOUR)), grid.numbers(w)
    )
    assert decode(quantize_gptq(w, np.zeros((40, 40)), FOUR)).shape == w.shape  # nothing was seen


def test_a_dead_channel_is_rounded_as_it_is() -> None:
    w, gram = layer(16, 8, 100)
    gram[3] = gram[:, 3] = 0
    grid = grid_of(w, Format.parse("int4/channel"))
    np.testing.assert_array_equal(compensated(w.astype(np.float64), gram, grid)[3], grid.numbers(w)[3])


def test_errors_are_those_of_the_outputs() -> None:
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(50, 12)), rng.normal(size=(12, 4)).astype(np.float32)
    real = decode(quantize_gptq(w, x.T @ x, Format.parse("int3/channel")))
    exact = np.square(x @ w - x @ real).sum(axis=0)
    np.testing.assert_allclose(column_errors(w.astype(np.float64), x.T @ x, real), exact)


def test_clipping_is_the_best_of_the_values_tried() -> None:
    w, gram = layer(48, 6, 200)
    scale = clipped(w, gram, FOUR).arrays["scale"][1].astype(np.float64)
    part = slice(16, 32)
    block, local = w[part].astype(np.float64), gram[part, part]

    def loss(scale: Floats) -> Floats:
        error = block - np.clip(np.rint(block / scale), -7, 7) * scale
        return np.diag(error.T @ local @ error)

    amax = np.abs(block).max(axis=0)
    tried = np.stack([loss((amax * (1 - i / 20) / 7).astype(np.float32).astype(np.float64)) for i in range(10)])
    np.testing.assert_allclose(loss(scale), tried.min(axis=0))


def test_what_does_not_fit_is_refused() -> None:
    w, gram = layer(8, 4, 20)
    with pytest.raises(ValueError, match="Gram matrix of shape"):
        shrunk(w, gram[:4, :4], FOUR)
    w[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        quantize_gptq(w, gram, FOUR)
