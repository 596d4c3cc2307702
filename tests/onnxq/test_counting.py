"""The compiled kernel and numpy count the same bits, and both what the definition says."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq import counting
from onnxq.counting import BINS, blocks, bounds, count, kernel
from onnxq.histogram import Extent, Histogram, Tally

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, -1.1754942e-38, 3.4028235e38, -3.4028235e38, 1.0, -1.0]
finite = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from(SPECIAL))
values = st.one_of(finite, st.sampled_from([math.inf, -math.inf, math.nan, -math.nan]))
tiny = st.floats(-(2.0**-110), 2.0**-110, width=32)
both = pytest.mark.skipif(kernel() == "numpy", reason="no C compiler was there when onnxq was installed")


def by_definition(array: Array, exponent: int) -> tuple[npt.NDArray[np.int64], int]:
    """floor(|x| 2**(12 - exponent)) in float64, where the product is exact."""
    sides = np.zeros((2, BINS), np.int64)
    for x in array.astype(np.float64):
        if x:
            sides[int(x < 0), math.floor(math.ldexp(abs(float(x)), 12 - exponent))] += 1
    return sides, int((array == 0).sum())


def counted(array: Array, exponent: int) -> tuple[npt.NDArray[np.int64], int]:
    sides = np.zeros((2, BINS), np.int64)
    return sides, count(array, exponent, sides)


def exponent_of(array: Array) -> int:
    largest = float(np.abs(array).max())
    return math.frexp(largest)[1] if largest else -1074


@pytest.fixture(params=["compiled", "numpy"])
def each_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(counting, "COMPILED", None)
    elif kernel() == "numpy":
        pytest.skip("no C compiler was there when onnxq was installed")
    assert kernel() == request.param
    return str(request.param)


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("scale", [1.0, 2.0**-140, 2.0**-101, 2.0**-100, 2.0**-99, 2.0**100])
@pytest.mark.parametrize("size", [1, 5, 1023, 1025, 8192, 8193, 20011])
def test_counts_are_those_of_the_definition(size: int, scale: float) -> None:
    rng = np.random.default_rng(size)
    array = (rng.standard_t(2, size) * scale).astype(np.float32)
    array[rng.random(size) < 0.2] = 0
    array[rng.random(size) < 0.1] = -0.0
    expected, zeros = by_definition(array, exponent_of(array))
    sides, found = counted(array, exponent_of(array))
    np.testing.assert_array_equal(sides, expected)
    assert found == zeros
    assert bounds(array) == (float(array.min()), float(array.max()))


@both
@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 50), elements=st.one_of(values, tiny)), st.integers(0, 3))
def test_both_kernels_give_the_same_bits(array: Array, wider: int) -> None:
    compiled, known = counting.COMPILED, bounds(array)
    if known is not None:
        exponent = exponent_of(array) + wider
        sides, zeros = counted(array, exponent)
        histogram = Histogram.of(array)
    counting.COMPILED = None
    try:
        assert bounds(array) == known
        if known is not None:
            other, others_zeros = counted(array, exponent)
            np.testing.assert_array_equal(sides, other)
            assert (zeros, histogram) == (others_zeros, Histogram.of(array))
    finally:
        counting.COMPILED = compiled


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("odd", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 3, 4999])
def test_what_is_not_finite_is_seen_wherever_it_is(odd: float, at: int) -> None:
    array = np.linspace(-1, 1, 5000, dtype=np.float32)
    array[at] = odd
    assert bounds(array) is None
    extent = Extent()
    extent.add(array)
    assert extent.bounds == (float(np.delete(array, at).min()), float(np.delete(array, at).max()))
    assert sum(extent.nonfinite) == 1


@pytest.mark.usefixtures("each_kernel")
def test_bounds_of_negative_zero_are_positive() -> None:
    tally = Tally()
    tally.add(np.array([-0.0, -0.0], np.float32))
    histogram = tally.histogram()
    assert (math.copysign(1, histogram.min), math.copysign(1, histogram.max), histogram.zeros) == (1.0, 1.0, 2)
    assert not histogram.folded().any()


@pytest.mark.usefixtures("each_kernel")
def test_a_wrong_exponent_stays_inside_the_bins() -> None:
    if kernel() == "compiled":
        sides, zeros = counted(np.array([5.0, -3e38, 1e10], np.float32), 0)
        assert (sides.sum(), zeros) == (3, 0)


@both
def test_arguments_are_looked_at() -> None:
    array, sides = np.ones(4, np.float32), np.zeros((2, BINS), np.int64)
    for bad in (array.astype(np.float64), array[::2], array.view(np.int32)):
        with pytest.raises((TypeError, BufferError, ValueError)):
            counting.COMPILED.count(bad, 1.0, sides)
    for target in (sides[:1], sides.astype(np.int32)):
        with pytest.raises((TypeError, BufferError, ValueError)):
            counting.COMPILED.count(array, 1.0, target)
    sides.flags.writeable = False
    with pytest.raises((TypeError, BufferError, ValueError)):
        counting.COMPILED.count(array, 1.0, sides)


@pytest.mark.parametrize("layout", ["plain", "strided", "reversed", "transposed", "unaligned", "big-endian"])
def test_blocks_are_contiguous_and_hold_every_value_once(layout: str) -> None:
    plain = np.random.default_rng(0).standard_normal((50, 60)).astype(np.float32)
    forms = {
        "plain": plain,
        "strided": np.repeat(plain, 2, axis=1)[:, ::2],
        "reversed": plain[::-1, ::-1],
        "transposed": plain.T,
        "unaligned": np.frombuffer(b"x" + plain.tobytes(), np.float32, offset=1).reshape(plain.shape),
        "big-endian": plain.astype(">f4"),
    }
    found = [block.copy() for block in blocks(forms[layout], 700) if block.flags.c_contiguous and block.flags.aligned]
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.sort(plain.ravel()))
    assert Histogram.of(forms[layout]) == Histogram.of(plain)


@both
def test_threads_count_side_by_side() -> None:
    arrays = [np.random.default_rng(i).standard_normal(200_000).astype(np.float32) for i in range(4)]
    found: dict[int, Histogram] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: Histogram.of(arrays[i])})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[i] == Histogram.of(array) for i, array in enumerate(arrays))
