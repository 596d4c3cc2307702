"""Multiply-accumulates, counted by what a loop over the definition multiplies."""

from __future__ import annotations

from itertools import product as every

import numpy as np
import pytest

from onnxq.work import convolution, count, product, recurrent


def test_what_is_not_known_counts_as_one() -> None:
    assert count(()) == 1
    assert count((3, None, "N", 4)) == 12
    assert convolution((8, 4, 3, 3), None) == 8 * 4 * 9
    assert convolution((8, 4, 3, 3), ("N", 8, "H", 5)) == 8 * 4 * 9 * 5
    assert product((16, 24), None) == 16 * 24
    assert product((24, 16), None, transposed=True) == 16 * 24
    assert product((16,), None) == 16
    assert recurrent(None, [(1, 24, 5), (1, 24, 6)]) == 24 * 11


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (2, 1), (4, 2)])
def test_a_convolution_multiplies_its_weight_at_each_pixel(groups: int, stride: int) -> None:
    n, channels, outputs, kernel, size = 2, 4, 8, 3, 7
    pixels = range(0, size - kernel + 1, stride)
    made = sum(channels // groups * kernel**2 for _ in every(range(n), range(outputs), pixels, pixels))
    side = len(pixels)
    assert convolution((outputs, channels // groups, kernel, kernel), (n, outputs, side, side)) == made


@pytest.mark.parametrize("weight", [(7, 5), (2, 7, 5), (7,)])
def test_a_product_multiplies_as_often_as_its_rows_go_into_sums(weight: tuple[int, ...]) -> None:
    """Of matrices of ones each sum is the number of its terms."""
    result = np.ones((2, 3, 7)) @ np.ones(weight)
    assert product(weight, result.shape) == result.sum()
    turned = (*weight[:-2], *reversed(weight[-2:]))
    assert len(weight) == 1 or product(turned, result.shape, transposed=True) == result.sum()
