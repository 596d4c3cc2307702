from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from onnxq import blocks
from onnxq.blocks import quantize_blocks, spread, stored_bytes


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (4, 7)])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("size", [16, 5, None])
def test_every_block_by_the_definition(bits: int, largest: int, axis: int, size: int | None) -> None:
    w = np.random.default_rng(0).normal(size=(40, 48)).astype(np.float32)
    found = quantize_blocks(w, axis, size, bits)
    rows = w if axis == 0 else w.T
    codes, scale = (found.codes, found.scale) if axis == 0 else (found.codes.T, found.scale.T)
    step = size or len(rows)
    assert scale.shape == (-(-len(rows) // step), rows.shape[1])  # a short last block counts
    for block in range(len(scale)):
        part = rows[block * step : (block + 1) * step].astype(np.float64)
        for column in range(rows.shape[1]):
            s = np.float32(np.abs(part[:, column]).max() / largest)
            assert scale[block, column] == s
            expected = [max(-largest, min(largest, round(x / float(s)))) for x in part[:, column]]  # half to even
            assert codes[block * step : (block + 1) * step, column].tolist() == expected


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("method", ["absmax", "mse"])
def test_a_large_weight_in_parts(axis: int, method: Literal["absmax", "mse"], monkeypatch: pytest.MonkeyPatch) -> None:
    w = np.random.default_rng(4).normal(size=(40, 37)).astype(np.float32)
    whole = quantize_blocks(w, axis, 16, 4, method)
    monkeypatch.setattr(blocks, "_PART", 100)
    parts = quantize_blocks(w, axis, 16, 4, method)
    np.testing.assert_array_equal(whole.codes, parts.codes)
    np.testing.assert_array_equal(whole.scale, parts.scale)


def test_error_is_half_a_step() -> None:
    w = np.random.default_rng(1).normal(size=(70, 8)).astype(np.float32)
    found = quantize_blocks(w, 0, 32, 4)
    steps = spread(found.scale.astype(np.float64), 0, 32, 70)
    assert (np.abs(found.dequantized() - w) <= steps * (0.5 + 1e-6)).all()
    assert np.abs(found.dequantized() - w).max() > 0.3 * steps.min()  # and no less fine than asked


def test_mse_is_never_worse_and_clips_an_outlier() -> None:
    w = np.random.default_rng(2).normal(size=(64, 4)).astype(np.float32)
    w[0] = 6.0
    plain, best = (np.square(quantize_blocks(w, 0, 64, 4, m).dequantized() - w).sum(0) for m in ("absmax", "mse"))
    assert (best <= plain).all()
    assert best.sum() < 0.95 * plain.sum()


def test_zeros_and_the_smallest_scales() -> None:
    w = np.zeros((32, 2), np.float16)
    w[3, 1] = 6e-8
    found = quantize_blocks(w, 0, 16)
    assert found.scale.dtype == np.float16
    assert found.scale[0, 0] == 1
    assert found.scale[0, 1] == np.finfo(np.float16).tiny
    assert not found.codes.any()


def test_only_finite_weights() -> None:
    with pytest.raises(ValueError, match="NaN"):
        quantize_blocks(np.array([[np.inf]], np.float32), 0, None)


@pytest.mark.parametrize(
    ("k", "n", "bits", "size", "expected"),
    [
        (64, 48, 8, None, 64 * 48 + 48 * 2 + 48),  # codes, scales, zero points
        (64, 48, 8, 32, 64 * 48 + 96 * 2 + 96),
        (64, 48, 4, 32, 64 * 48 // 2 + 96 * 2 + 48),
        (72, 3, 4, 32, 108 + 9 * 2 + 5),  # a short block; an odd number of 4-bit zero points
    ],
)
def test_stored_bytes(k: int, n: int, bits: int, size: int | None, expected: int) -> None:
    assert stored_bytes(k, n, bits, size, 2) == expected
