from __future__ import annotations

import numpy as np
from graphs import graph_of

from onnxq.runtime import Session


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
