from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.blocks import LARGEST, Blocks, quantize_blocks, spread
from onnxq.feedback import feedback
from onnxq.weights.clip import clipped_blocks
from onnxq.weights.gptq import column_errors, quantize_gptq

Floats = npt.NDArray[np.float64]


def layer(k: int, n: int, rows: int, seed: int = 0) -> tuple[npt.NDArray[np.float32], Floats]:
    """A weight, and the Gram matrix of correlated inputs whose channels differ in size."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, k)) @ rng.normal(size=(k, k)) * np.exp(rng.normal(size=k))
    return rng.normal(size=(k, n)).astype(np.float32), x.T @ x


def compensated(w: Floats, gram: Floats, grid: Blocks) -> npt.NDArray[np.float64]:
    """What is to be shown to be the same."""
    scale = spread(grid.scale.astype(np.float64), 0, grid.size, len(w))
    codes: npt.NDArray[np.float64] = feedback(w[None], gram[None], scale[None], LARGEST[grid.bits])[0]
    return codes


def eliminated(w: Floats, gram: Floats, grid: Blocks, damp: float) -> npt.NDArray[np.int8]:
    """The paper's own form: round a row, spread its error by the inverse of H, and eliminate the row from it."""
    damped = gram + damp * np.diag(gram).mean() * np.eye(len(w))
    order = np.argsort(-np.diag(gram), kind="stable")
    scale = spread(grid.scale.astype(np.float64), 0, grid.size, len(w))
    left, inverse = w.copy(), np.linalg.inv(damped[np.ix_(order, order)])
    codes = np.zeros(w.shape, np.int8)
    for step, k in enumerate(order):
        codes[k] = np.clip(np.rint(left[k] / scale[k]), -LARGEST[grid.bits], LARGEST[grid.bits])
        error = (left[k] - codes[k] * scale[k]) / inverse[0, 0]
        left[order[step:]] -= np.outer(inverse[:, 0], error)
        inverse = (inverse - np.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]
    return codes


@pytest.mark.parametrize("size", [None, 8, 32])
def test_codes_are_those_of_row_by_row_elimination(size: int | None) -> None:
    w, gram = layer(75, 20, 300)
    grid = quantize_blocks(w, 0, size, 4)
    wide = w.astype(np.float64)
    np.testing.assert_array_equal(compensated(wide, gram, grid), eliminated(wide, gram, grid, 0.01))


@given(
    st.integers(1, 40), st.integers(1, 60), st.sampled_from([None, 16]), st.sampled_from([3, 4, 8]), st.integers(0, 9)
)
@settings(max_examples=40, deadline=None)
def test_never_worse_than_rounding(k: int, rows: int, size: int | None, bits: int, seed: int) -> None:
    w, gram = layer(k, 5, rows, seed)  # fewer rows than channels too: a Gram matrix without an inverse
    found, nearest = quantize_gptq(w, gram, size, bits), quantize_blocks(w, 0, size, bits)
    wide = w.astype(np.float64)
    slack = 1e-9 * float(np.abs(gram).max())
    assert (column_errors(wide, gram, found) <= column_errors(wide, gram, nearest) + slack).all()
    clipped = clipped_blocks(w, gram, size, bits)
    assert (column_errors(wide, gram, found) <= column_errors(wide, gram, clipped) + slack).all()
    assert np.abs(found.codes).max(initial=0) <= LARGEST[bits]


def test_much_better_on_correlated_inputs() -> None:
    w, gram = layer(96, 48, 2000)
    wide = w.astype(np.float64)
    for bits in (4, 3):
        before = column_errors(wide, gram, quantize_blocks(w, 0, 32, bits)).sum()
        assert column_errors(wide, gram, quantize_gptq(w, gram, 32, bits)).sum() < before / 3


def test_inputs_that_tell_nothing_leave_rounding() -> None:
    w, gram = layer(40, 8, 100)
    independent = np.diag(np.diag(gram))  # nothing to make up for
    np.testing.assert_array_equal(
        compensated(w.astype(np.float64), independent, grid := quantize_blocks(w, 0, 8, 4)), grid.codes
    )
    found = quantize_gptq(w, np.zeros((40, 40)), 8, 4)  # nothing was seen
    assert found.codes.shape == w.shape
    assert np.isfinite(found.scale).all()


def test_a_dead_channel_is_rounded_as_it_is() -> None:
    w, gram = layer(16, 8, 100)
    gram[3] = gram[:, 3] = 0
    grid = quantize_blocks(w, 0, None, 4)
    np.testing.assert_array_equal(compensated(w.astype(np.float64), gram, grid)[3], grid.codes[3])


def test_errors_are_those_of_the_outputs() -> None:
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(50, 12)), rng.normal(size=(12, 4)).astype(np.float32)
    found = quantize_gptq(w, x.T @ x, None, 3)
    errors = np.square(x @ w - x @ found.dequantized()).sum(axis=0)
    np.testing.assert_allclose(column_errors(w.astype(np.float64), x.T @ x, found), errors)


def test_clipping_is_the_best_of_the_values_tried() -> None:
    w, gram = layer(24, 6, 200)
    found = clipped_blocks(w, gram, 8, 4)
    part = slice(8, 16)
    block, local = w[part].astype(np.float64), gram[part, part]

    def loss(scale: Floats) -> Floats:
        error = block - np.clip(np.rint(block / scale), -7, 7) * scale
        return np.diag(error.T @ local @ error)

    amax = np.abs(block).max(axis=0)
    tried = np.stack([loss((amax * (1 - i / 20) / 7).astype(np.float32).astype(np.float64)) for i in range(10)])
    np.testing.assert_allclose(loss(found.scale[1].astype(np.float64)), tried.min(axis=0))


def test_what_does_not_fit_is_refused() -> None:
    w, gram = layer(8, 4, 20)
    with pytest.raises(ValueError, match="Gram matrix of shape"):
        quantize_gptq(w, gram[:4, :4], None, 4)
    w[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        quantize_gptq(w, gram, None, 4)
