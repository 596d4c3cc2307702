from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from graphs import graph_of

from onnxq.runtime import Session

if TYPE_CHECKING:
    import pytest


def test_integer_products_do_not_saturate() -> None:
    """On x64 CPUs without VNNI ONNX Runtime's default adds two products of codes in 16 bits: 255 * 127 * 2 > 32767."""
    graph = graph_of(
        """(float[1, 8, 4, 4] x) => (float[1, 4, 4, 4] y) {
            xq = QuantizeLinear(x, s, xz)
            xd = DequantizeLinear(xq, s, xz)
            wd = DequantizeLinear(wq, s, wz)
            c = Conv<pads = [0, 0, 0, 0]>(xd, wd)
            yq = QuantizeLinear(c, ys, xz)
            y = DequantizeLinear(yq, ys, xz)
        }""",
        s=np.float32(1),
        xz=np.uint8(0),
        wz=np.int8(0),
        ys=np.float32(255 * 127 * 8 / 255),
        wq=np.full((4, 8, 1, 1), 127, np.int8),
    )
    model = graph.to_proto().SerializeToString()
    feed = {"x": np.full((1, 8, 4, 4), 255, np.float32)}
    (found,), (exact,) = (Session(model, optimize=fast).run(feed) for fast in (True, False))
    np.testing.assert_allclose(exact, 255 * 127 * 8)
    np.testing.assert_array_equal(found, exact)


def test_what_is_tried_again_is_not_told(capfd: pytest.CaptureFixture[str]) -> None:
    """Two convolutions that share a weight of large codes: ONNX Runtime 1.31 does not load its exact form of them."""
    graph = graph_of(
        """(float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] y, float[1, 8, 4, 4] z) {
            xq = QuantizeLinear(x, s, xz)
            xd = DequantizeLinear(xq, s, xz)
            wd = DequantizeLinear<axis = 0>(wq, ws, wz)
            a = Conv(xd, wd)
            aq = QuantizeLinear(a, s, xz)
            y = DequantizeLinear(aq, s, xz)
            vd = DequantizeLinear<axis = 0>(wq, ws, wz)
            b = Conv(y, vd)
            bq = QuantizeLinear(b, s, xz)
            z = DequantizeLinear(bq, s, xz)
        }""",
        s=np.float32(1),
        xz=np.uint8(0),
        ws=np.full(8, 0.25 / 127, np.float32),
        wz=np.zeros(8, np.int8),
        wq=np.full((8, 8, 1, 1), 127, np.int8),
    )
    session = Session(graph.to_proto().SerializeToString())
    y, z = session.run({"x": np.ones((1, 8, 4, 4), np.float32)})
    np.testing.assert_array_equal(y, 2)
    np.testing.assert_array_equal(z, 4)
    assert not any(capfd.readouterr())
