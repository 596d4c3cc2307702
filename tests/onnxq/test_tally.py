"""Counting in place gives what adding histograms gives; counting while the next sample runs changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import onnxq
from onnxq import intake
from onnxq.collect import collect
from onnxq.counting import BINS
from onnxq.histogram import Histogram, Tally

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
ARRAYS = arrays.arrays(np.float32, st.integers(0, 40), elements=FLOATS)


def counted(*parts: npt.NDArray[Any]) -> Histogram:
    tally = Tally()
    for part in parts:
        tally.add(part)
    return tally.histogram()


@given(st.lists(ARRAYS, max_size=6))
def test_adding_in_place_is_adding(parts: list[npt.NDArray[np.float32]]) -> None:
    total = Histogram.empty()
    for part in parts:
        total = total + Histogram.of(part)
    assert counted(*parts) == total
    assert counted(*reversed(parts)) == total


@pytest.mark.parametrize("share", [0.0, 0.05, 0.13, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 2, 3, 131071, 131072, 131075])
def test_many_zeros_are_counted_like_few(share: float, size: int) -> None:
    rng = np.random.default_rng(size)
    x = np.where(rng.random(size) < share, 0, rng.random(size) + 2.0**-9).astype(np.float32)
    found = counted(x)
    if values := x[x > 0].astype(np.float64).tolist():
        exponent = int(np.frexp(max(values))[1])
        expected, _ = np.histogram(values, BINS, (0.0, 2.0**exponent))
        assert found.exponent == exponent
        np.testing.assert_array_equal(found.positive, expected)
    assert (found.zeros, int(found.negative.sum())) == (int((x == 0).sum()), 0)


def test_what_was_taken_out_does_not_change_with_what_follows() -> None:
    tally = Tally()
    tally.add(np.array([1.0, -2.0, 0.0], np.float32))
    early = tally.histogram()
    tally.add(np.array([7.0, np.nan, np.inf, -np.inf, -np.inf], np.float32))
    assert early == Histogram.of(np.array([1.0, -2.0, 0.0], np.float32))
    assert tally.nonfinite == (1, 1, 2)


MODEL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 3] y)
<float[4, 3] w = {1, 2, 3, -4, 5, 6, 7, -8, 9, 1, 2, 3}>
{ h = MatMul(x, w)  y = Relu(h) }
"""


def test_a_source_may_use_its_arrays_again() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 1, 4)).astype(np.float32)

    def reusing() -> Iterator[dict[str, npt.NDArray[np.float32]]]:
        buffer = np.empty((1, 4), np.float32)
        for row in rows:
            buffer[:] = row
            yield {"x": buffer}

    graph = onnxq.Graph.from_proto(onnx.parser.parse_model(MODEL))
    names = ["x", "h", "y"]
    again, fresh = (
        collect(graph, names, intake.open_data(data, graph, onnxq.Recipe()))
        for data in (reusing(), [{"x": row.copy()} for row in rows])
    )
    assert (again.samples, again.seen) == (fresh.samples, fresh.seen)
    assert {name: again.tensors[name] for name in names} == {name: fresh.tensors[name] for name in names}
    assert again.tensors["x"] == Histogram.of(rows)
