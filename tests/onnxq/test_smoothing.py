from __future__ import annotations

import numpy as np
import pytest
from graphs import Array, graph_of, random_feeds, run

from onnxq.improvement.sampling import patches, positions, rows, weight_as_rows
from onnxq.improvement.smoothing import Allowed, Reading, choose, on_grid
from onnxq.linear import linear_at
from onnxq.numerics import INT8, UINT8, QType, dequantize, params_from_range, quantize, sqnr_db, weight_params
from onnxq.passes.infer_shapes import infer_shapes
from onnxq.statistics import Factor

ANY = Allowed(shift=True, weights=True, margin=0.3)
PLAIN = Factor(np.ones(16, np.float32), np.zeros(16, np.float32))


def reading(x: Array, w: Array) -> Reading:
    return Reading(x[:, None], w[None], x.min(axis=0), x.max(axis=0))


def quality(x: Array, w: Array, factor: Factor) -> float:
    """SQNR of x w with both sides on int8 grids; the best of many ranges for x."""
    moved, weight = (x - factor.shift) / factor.scale, factor.scale[:, None] * w
    grid = weight_params(weight, 1)
    weight = dequantize(quantize(weight, grid), grid)
    reach = float(np.abs(moved).max())
    found = []
    for share in np.linspace(0.05, 1, 60):
        params = params_from_range(-share * reach, share * reach, INT8)
        found.append(sqnr_db(x @ w, dequantize(quantize(moved, params), params) @ weight + factor.shift @ w))
    return max(found)


def test_nothing_to_gain() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.uniform(-1, 1, (200, 16)).astype(np.float32), rng.uniform(-1, 1, (16, 24)).astype(np.float32)
    assert choose([reading(x, w)], Allowed(shift=True, weights=True, margin=1.0)) == ()


@pytest.mark.parametrize("channel", [0, 7])
def test_an_outlier_channel(channel: int) -> None:
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(200, 16)).astype(np.float32), rng.normal(size=(16, 24)).astype(np.float32)
    x[:, channel] *= 100
    w[channel] /= 100
    factor = choose([reading(x, w)], ANY)[0]
    assert factor.scale[channel] > 10 * np.delete(factor.scale, channel).max()
    assert quality(x, w, factor) > quality(x, w, PLAIN) + 15


def test_a_shift() -> None:
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(200, 16)) + 8 * rng.normal(size=16)).astype(np.float32)
    w = rng.normal(size=(16, 24)).astype(np.float32)
    factor = choose([reading(x, w)], ANY)[0]
    np.testing.assert_allclose(factor.shift, x.mean(axis=0), atol=1.5)
    unshifted = (*choose([reading(x, w)], Allowed(shift=False, weights=True, margin=0.3)), PLAIN)[0]
    assert not unshifted.shift.any()
    assert quality(x, w, factor) > quality(x, w, unshifted) + 6


def test_depthwise_channels_of_unlike_size() -> None:
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(300, 9, 6)) * [1, 0.1, 10, 3, 0.3, 30]).astype(np.float32)
    w = rng.normal(size=(6, 9, 1)).astype(np.float32)
    factor = choose([Reading(x, w, x.min(axis=(0, 1)), x.max(axis=(0, 1)))], ANY)[0]
    ratio = factor.scale / np.array([1, 0.1, 10, 3, 0.3, 30])
    assert ratio.max() / ratio.min() < 2  # each channel to the same size: its weight row takes any factor for nothing


def test_channels_that_nothing_reaches_or_reads() -> None:
    rng = np.random.default_rng(4)
    x, w = rng.normal(size=(200, 16)).astype(np.float32), rng.normal(size=(16, 24)).astype(np.float32)
    x[:, 3], w[5], x[:, 9] = 0, 0, x[:, 9] * 1000
    factor = choose([reading(x, w)], ANY)[0]
    assert np.isfinite(factor.scale).all()
    assert factor.scale.max() / factor.scale.min() <= 2.0**12 * 1.01
    assert choose([reading(x * np.nan, w)], ANY) == ()
    assert choose([reading(x * 0, w)], ANY) == ()


@pytest.mark.parametrize("grid", [INT8, UINT8])
@pytest.mark.parametrize("channels", [64, 96, 320])
def test_the_range_is_of_all_channels(channels: int, grid: QType) -> None:
    """Every channel counts: of rows by 64 channels evenly spaced values may be those of every eighth alone."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(700, 1, channels)).astype(np.float32)
    x[:, :, 1::2] *= 20
    spread = np.abs(x).max()
    tried = [quality_on(x, share * spread, grid) for share in np.linspace(0.1, 1, 91)]
    assert sqnr_db(x, on_grid(x, grid)) > max(tried) - 0.05


def quality_on(x: Array, reach: float, grid: QType) -> float:
    params = params_from_range(-reach, reach, grid)
    return sqnr_db(x, dequantize(quantize(x, params), params))


def test_a_rival_that_cuts_nothing_off() -> None:
    """With weights of equal size the best leaves them some of the channels' unlike sizes; the rival takes all."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(400, 16)) * np.geomspace(1, 10, 16)).astype(np.float32)
    w = rng.normal(size=(16, 24)).astype(np.float32)
    best, rival = choose([reading(x, w)], Allowed(shift=False, weights=True, margin=0.3))
    reach = np.abs(x).max(axis=0)
    np.testing.assert_allclose(reach / rival.scale, (reach / rival.scale)[0], rtol=1e-5)
    assert np.ptp(reach / best.scale) > 0.1 * reach.max() / best.scale.max()
    assert quality(x, w, best) > quality(x, w, rival)


def test_the_best_is_no_rival_of_itself() -> None:
    """Behind a depthwise convolution weights cost nothing: all channels to one reach is the best already."""
    rng, sizes = np.random.default_rng(7), np.array([1, 0.1, 10, 3, 0.3, 30])
    x, w = (rng.uniform(-1, 1, (300, 9, 6)) * sizes).astype(np.float32), np.ones((6, 9, 1), np.float32)
    (found,) = choose(
        [Reading(x, w, x.min(axis=(0, 1)), x.max(axis=(0, 1)))], Allowed(shift=False, weights=True, margin=0.3)
    )
    np.testing.assert_allclose(found.scale / sizes, (found.scale / sizes)[0], rtol=0.05)


def test_positions_do_not_depend_on_chance() -> None:
    chosen = positions(1000, 20, 7)
    assert len(set(chosen.tolist())) == 20
    assert chosen.tolist() == positions(1000, 20, 7).tolist()
    assert chosen.tolist() != positions(1000, 20, 8).tolist()
    assert positions(5, 20, 1).tolist() == [0, 1, 2, 3, 4]
    counts = np.bincount(np.concatenate([positions(50, 10, seed) for seed in range(500)]), minlength=50)
    assert 60 < counts.min() <= counts.max() < 140  # 100 each on average, 9 the standard deviation


def test_rows_hold_the_largest_value() -> None:
    x = np.random.default_rng(5).normal(size=(1, 400, 8)).astype(np.float32)
    x[0, 321, 2] = 50
    assert rows(x, 2, 10, 0)[0].max() == 50


@pytest.mark.parametrize(
    ("attributes", "weight", "shape"),
    [
        ("pads = [1,0,2,1], strides = [2,1]", (8, 6, 3, 2), (2, 6, 9, 7)),
        ("group = 3, dilations = [2,1], pads = [2,1,2,1]", (9, 2, 3, 3), (1, 6, 9, 7)),
        ("group = 6", (12, 1, 3, 3), (1, 6, 9, 7)),
        ("pads = [1,1], strides = [3]", (4, 6, 3), (2, 6, 20)),
    ],
)
def test_patches_times_weights_are_the_convolution(
    attributes: str, weight: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    w = np.random.default_rng(6).normal(size=weight).astype(np.float32)
    graph = graph_of(f"(float{list(shape)} x) => (float y) {{ y = Conv<{attributes}>(x, w) }}", w=w)
    infer_shapes(graph)
    linear = linear_at(graph, graph.nodes[0])
    assert linear is not None
    feeds = random_feeds(graph)
    taken = patches(graph, linear, feeds["x"], 10**6, 0)  # all of them
    groups = weight_as_rows(graph, [linear])
    grouped = (
        taken.reshape(*taken.shape[:2], len(groups), -1).transpose(2, 0, 1, 3).reshape(len(groups), len(taken), -1)
    )
    found = np.concatenate(list(grouped @ groups), axis=1)
    wanted = np.moveaxis(run(graph, feeds)[0], 1, -1).reshape(-1, weight[0])
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert len(patches(graph, linear, feeds["x"], 5, 0)) == 5
