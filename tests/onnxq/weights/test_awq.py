from __future__ import annotations

import numpy as np
import pytest

from onnxq.formats import Format
from onnxq.formats.families import decode, encode
from onnxq.weights.awq import RATIOS, awq_factor, awq_scale
from onnxq.weights.moments import Moments


def seen(x: np.ndarray) -> Moments:
    return Moments(x.T @ x, np.abs(x).mean(axis=0), np.abs(x).max(axis=0), len(x))


def test_scales_are_the_papers() -> None:
    mean = np.array([0.0, 1.0, 4.0, 16.0])
    scale = awq_scale(mean[1:], 0.5)
    np.testing.assert_allclose(scale, np.array([1, 2, 4]) / 2)  # sqrt, over sqrt(4 * 1)
    np.testing.assert_array_equal(awq_scale(mean, 0.0), np.ones(4))
    assert (awq_scale(mean, 0.9) > 0).all()  # a channel of zeros


@pytest.mark.parametrize("text", ["int4/block:32", "uint4/block:32", "nf4/block:64", "int8/channel"])
def test_the_least_error_of_the_outputs_wins(text: str) -> None:
    format_ = Format.parse(text)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 64)) * np.where(np.arange(64) % 16 == 0, 30, 1)
    weights = [rng.normal(size=(64, 16)).astype(np.float32) for _ in range(2)]

    def loss(scale: np.ndarray) -> float:
        total = 0.0
        for w in weights:
            y = x @ w
            total += np.square((x / scale) @ decode(encode(w * scale[:, None], format_)) - y).sum() / np.square(y).sum()
        return total

    factor = awq_factor(weights, seen(x), format_)
    assert factor is not None
    assert not factor.shift.any()
    tried = [loss(awq_scale(np.abs(x).mean(axis=0), r)) for r in RATIOS]
    np.testing.assert_allclose(loss(factor.scale), min(tried), rtol=1e-3)
    assert min(tried) < tried[0] / 1.5


def test_equal_channels_are_left_alone() -> None:
    x = np.eye(32).repeat(4, axis=0)
    w = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    assert awq_factor([w], seen(x), Format.parse("int4/block:16")) is None


def test_moments_of_two_tensors_are_those_of_their_rows() -> None:
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=(30, 8)), 5 * rng.normal(size=(7, 8))
    both, sum_ = seen(np.concatenate([x, z])), seen(x) + seen(z)
    for name in ("gram", "mean", "amax", "rows"):
        np.testing.assert_allclose(getattr(sum_, name), getattr(both, name))
