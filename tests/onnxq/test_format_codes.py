"""The codes of every weight format: float64 references, bounds of the round trip, pinned values, bits stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from real_models import cached

from onnxq.formats import KINDS, Format
from onnxq.formats.codebooks import CODEBOOKS, LEVELS, nearest, scales_of
from onnxq.formats.families import FAMILIES, decode, encode
from onnxq.formats.stored import Stored, block_count, in_blocks
from onnxq.intake import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt


def every_format() -> Iterator[str]:
    """Each type of weights with each granularity and modifier; blocks of 16 where the size is free."""
    for name in FAMILIES:
        kind = KINDS[name]
        for granularity in kind.granularities:
            size = 16 if granularity == "block" and not kind.fixed else None
            for modifiers in [(), *((m,) for m in kind.modifiers if m != "dynamic")]:
                if granularity != "token":
                    yield str(Format(name, granularity, size, frozenset(modifiers)))


TEXTS = tuple(every_format())
NUMBERS = st.floats(-1e4, 1e4, width=32).map(lambda x: 0.0 if abs(x) < 1e-4 else x)
MATRICES = st.tuples(st.integers(1, 40), st.integers(1, 3)).flatmap(lambda s: arrays(np.float32, s, elements=NUMBERS))


def spread(stored: Stored) -> npt.NDArray[np.float64]:
    """|scale| of every value of the matrix."""
    if "scale" not in stored.arrays or "global" in stored.arrays or stored.format.type in CODEBOOKS:
        size = stored.arrays["codes"].shape[2]
        return np.repeat(scales_of(stored)[:, :, 0], size, axis=1)[:, : stored.shape[0]].T
    scale = np.abs(stored.arrays["scale"].astype(np.float64))
    if stored.format.block_size is not None:
        return np.repeat(scale, stored.format.block_size, axis=0)[: stored.shape[0]]
    return np.broadcast_to(scale, stored.shape)


def bound(w: npt.NDArray[Any], stored: Stored) -> npt.NDArray[np.float64]:
    """The largest error that theory allows each value."""
    kind, step, x = stored.format.type, spread(stored), np.abs(w.astype(np.float64))
    if kind in LEVELS and kind != "mxfp4":  # beyond the last level only where the scale was rounded
        half_gap = float(np.diff(sorted(LEVELS[kind])).max()) / 2
        return np.maximum(half_gap * step, x - max(LEVELS[kind]) * step)
    known: dict[str, npt.NDArray[np.float64]] = {
        **dict.fromkeys(("int8", "int4", "int3", "uint8", "uint4"), step / 2),  # half a step, nothing is clipped
        "int2": step,  # values from -2 to 2, codes from -2 to 1
        "fp8e4m3": np.maximum(x / 16, step * 2.0**-10),  # half an ulp of 3 bits; half the smallest subnormal
        "fp8e5m2": np.maximum(x / 8, step * 2.0**-17),
        "mxfp8": np.maximum(np.maximum(x / 16, step * 2.0**-10), x - 448 * step),
        "mxfp4": np.maximum(step, x - 6 * step),  # the scale is a power of two below: up to 8 steps are cut at 6
    }
    return known.get(kind, x + step)  # signs and levels: no more than both


@pytest.mark.parametrize("text", TEXTS)
@settings(max_examples=15, deadline=None)
@given(w=MATRICES)
def test_round_trip_within_its_bound(text: str, w: npt.NDArray[np.float32]) -> None:
    stored = encode(w, Format.parse(text))
    error = np.abs(decode(stored) - w)
    allowed = bound(w, stored) * (1 + 1e-6) + 1e-30
    assert (error <= allowed).all(), float((error - allowed).max())
    assert all(np.isfinite(a.astype(np.float64)).all() for a in stored.arrays.values())


@pytest.mark.parametrize("text", TEXTS)
def test_zeros_and_not_finite(text: str) -> None:
    zeros = decode(encode(np.zeros((20, 3), np.float32), Format.parse(text)))
    np.testing.assert_array_equal(zeros, 1.0 if text.startswith("binary") else 0.0)  # a bit has no zero: sign(0) is +
    with pytest.raises(ValueError, match="NaN"):
        encode(np.full((20, 3), np.nan, np.float32), Format.parse(text))


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("int8/channel", 8 + 40 / 256),  # a float32 scale and an int8 zero point per 256 values
        ("int8/block:32", 8 + 40 / 32),
        ("int4/block:64", 4 + 36 / 64),
        ("uint4/block:32", 4 + 36 / 32),
        ("int2/block:32", 2 + 34 / 32),
        ("ternary", 2 + 34 / 256),
        ("nf4/block:64", 4 + 32 / 64),
        ("nf4/block:64+double", 4 + 8 / 64 + 32 / (64 * 256) + 32 / (256 * 512)),  # 0.127 bits of scales, and the mean
        ("mxfp4", 4 + 8 / 32),
        ("mxfp8", 8 + 8 / 32),
        ("nvfp4", 4 + 8 / 16 + 32 / (256 * 512)),
        ("log4/channel", 4 + 32 / 256),
        ("binary", 1 + 32 / 256),
        ("fp8e4m3/channel", 8 + 40 / 256),
    ],
)
def test_bits_stored(text: str, bits: float) -> None:
    w = np.random.default_rng(0).normal(size=(256, 512)).astype(np.float32)
    assert encode(w, Format.parse(text)).bits_per_weight() == pytest.approx(bits, abs=1e-9)


@pytest.mark.parametrize("text", ["nf4/block:4096", "int4/block:4096+pow2", "uint8/block:4096"])
def test_a_block_ends_with_its_column(text: str) -> None:
    w = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    stored = encode(w, Format.parse(text))
    assert stored.arrays["codes"].size == w.size
    np.testing.assert_allclose(decode(stored), decode(encode(w, Format.parse(text.replace("4096", "128")))), atol=1e-6)


# -- published values and oracles -----------------------------------------------------------------------------


def test_levels_of_nf4_are_the_published_ones() -> None:
    below = [-1, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004]
    above = [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1]
    published = [*below, 0, *above]
    np.testing.assert_allclose(LEVELS["nf4"], published, atol=2e-7)


def test_nf4_reads_back_levels_not_codes() -> None:
    w = np.linspace(-2, 2, 64, dtype=np.float32)[:, None]
    stored = encode(w, Format.parse("nf4"))
    codes = stored.arrays["codes"].astype(int).reshape(64)
    expected = [min(range(16), key=lambda c: abs(LEVELS["nf4"][c] - x / 2)) for x in w[:, 0].astype(float)]
    assert codes.tolist() == expected
    np.testing.assert_allclose(decode(stored)[:, 0], [2 * LEVELS["nf4"][c] for c in codes], rtol=1e-12)
    assert np.abs(decode(stored) - w).max() < np.abs(codes[:, None] / 2 - w).max()  # the code is no number


@pytest.mark.parametrize("kind", ["mxfp4", "nvfp4"])
def test_e2m1_rounds_as_the_type_does(kind: str) -> None:
    x = np.linspace(-6, 6, 4801)  # multiples of 1/400: every tie between levels is among them
    expected = x.astype(ml_dtypes.float4_e2m1fn).astype(np.float64)
    np.testing.assert_array_equal(np.array(LEVELS[kind])[nearest(x, LEVELS[kind])], expected)
    codes = nearest(x, LEVELS[kind])
    bits = x.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    assert ((codes == bits) | (expected == 0)).all()  # the code is the type's bits, but for the sign of a zero


def test_scales_of_microscaling() -> None:
    w = np.zeros((32, 1), np.float32)
    w[3] = 11.0
    stored = encode(w, Format.parse("mxfp4"))
    assert stored.arrays["exponent"].ravel().tolist() == [127 + 3 - 2]  # 2^(floor(log2 11) - 2)
    assert decode(stored)[3, 0] == 2.0 * 6.0  # 11 / 2 = 5.5 is nearest to 6
    w = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    stored = encode(w, Format.parse("mxfp8"))
    shared = 2.0 ** (np.floor(np.log2(np.abs(in_blocks(w, 32)).max(axis=2))) - 8)  # 8: the exponent of 448
    np.testing.assert_array_equal(scales_of(stored)[:, :, 0], shared)
    codes = np.clip(in_blocks(w, 32) / shared[:, :, None], -448, 448).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(stored.arrays["codes"].view(np.uint8), codes.view(np.uint8))
    stored = encode(w, Format.parse("nvfp4"))
    whole = np.abs(w).max() / (448 * 6)
    assert stored.arrays["global"] == pytest.approx(whole)
    amax = np.abs(in_blocks(w, 16)).max(axis=2)
    expected = (amax / 6 / float(stored.arrays["global"])).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(stored.arrays["scale"][:, :, 0].view(np.uint8), expected.view(np.uint8))
    assert stored.arrays["scale"].astype(np.float64).max() == 448


def test_double_quantization_by_the_definition() -> None:
    w = np.random.default_rng(2).normal(size=(64 * 5, 70)).astype(np.float32)
    plain, double = (encode(w, Format.parse(t)) for t in ("nf4", "nf4+double"))
    a = scales_of(plain)[:, :, 0].ravel()  # 350 scales: a block of 256 and a short one
    mean = np.float64(np.float32(a.mean()))
    back = np.concatenate([_absmax_8_bit(part - mean) + mean for part in (a[:256], a[256:])])
    np.testing.assert_allclose(scales_of(double).ravel(), back, rtol=1e-6)
    assert double.bits_per_weight() - 4 == pytest.approx(0.127, abs=0.02)


def _absmax_8_bit(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    s = np.float64(np.float32(np.abs(x).max() / 127))
    back: npt.NDArray[np.float64] = np.rint(x / s) * s
    return back


def test_binary_has_the_least_squared_error() -> None:
    w = np.random.default_rng(3).normal(size=(50, 4)).astype(np.float32)
    error = np.square(decode(encode(w, Format.parse("binary"))) - w).sum(axis=0)
    alpha = np.abs(w.astype(np.float64)).mean(axis=0)
    np.testing.assert_allclose(error, np.square(w.astype(np.float64)).sum(axis=0) - 50 * alpha**2, rtol=1e-5)
    for other in (0.95, 1.05):
        assert (np.square(np.sign(w) * alpha * other - w).sum(axis=0) > error).all()


def test_ternary_by_the_definition() -> None:
    w = np.random.default_rng(4).normal(size=(50, 4))
    found = decode(encode(w.astype(np.float32), Format.parse("ternary")))
    for column, expected in zip(found.T, w.T, strict=True):
        beyond = np.abs(expected) > 0.7 * np.abs(expected).mean()
        assert (np.sign(column) == np.sign(expected) * beyond).all()
        assert column[beyond].__abs__() == pytest.approx(np.abs(expected[beyond]).mean(), rel=1e-6)


def test_int2_uses_all_its_codes() -> None:
    w = np.array([[2.0], [1.0], [0.0], [-1.0], [-0.4]], np.float32)
    stored = encode(w, Format.parse("int2/channel"))
    assert stored.arrays["scale"].tolist() == [-1.0]  # the extreme value is positive, and gets the code -2
    assert stored.arrays["codes"].astype(int).ravel().tolist() == [-2, -1, 0, 1, 0]


def test_powers_of_two_do_not_clip() -> None:
    w = np.random.default_rng(5).normal(size=(64, 8)).astype(np.float32)
    scale = encode(w, Format.parse("int8/block:16+pow2")).arrays["scale"]
    assert (np.log2(scale) % 1 == 0).all()
    assert (127 * scale >= np.abs(in_blocks(w, 16)).max(axis=2).T).all()
    assert (127 * scale / 2 < np.abs(in_blocks(w, 16)).max(axis=2).T).all()


@pytest.mark.parametrize("data", ["Gaussian", "MiniLM"])
def test_the_order_that_qlora_finds(data: str) -> None:
    """Dettmers et al. 2023, table 2: NF4, then FP4 (E2M1), then Int4; blocks of 64, absmax."""
    w = np.random.default_rng(6).normal(size=(4096, 64)).astype(np.float32)
    if data == "MiniLM":
        graph = load(cached("minilm/minilm.onnx"))
        found = (graph.const(n.inputs[1]) for n in graph.nodes if n.op_type == "MatMul")
        w = np.concatenate([m.reshape(384, -1) for m in found if m is not None and m.ndim == 2], axis=1)
    texts = ("nf4/block:64", "fp4e2m1/block:64", "int4/block:64", "fp4/block:64")
    errors = [float(np.square(decode(encode(w, Format.parse(text))) - w).mean()) for text in texts]
    assert errors[0] < 0.8 * errors[1]
    assert errors == sorted(errors)  # bitsandbytes' FP4 has 1/192 in the place of E2M1's 1/12, and comes last


def test_blocks_are_counted_with_the_short_one() -> None:
    assert [block_count(k, 32) for k in (1, 32, 33, 64)] == [1, 1, 2, 2]


@pytest.mark.parametrize("text", ["nf4", "binary", "uint4", "int8/block+pow2"])
def test_ranges_are_searched_for_plain_integers_only(text: str) -> None:
    with pytest.raises(ValueError, match="no choice of ranges"):
        encode(np.ones((16, 2), np.float32), Format.parse(text), "mse")
