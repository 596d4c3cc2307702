"""The first convolution's channels are padded: what is left alone first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import graph_of, lines, random_feeds, same_function

from onnxq.passes.pad_channels import pad_channels

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph

F32 = np.float32


def conv(
    channels: int = 3,
    out: int = 16,
    group: int = 1,
    tail: str = "y = Relu(c)",
    *,
    per_channel: bool = True,
    zero: int = 128,
    kernel: int = 3,
) -> Graph:
    rng = np.random.default_rng(0)
    axis = "<axis=0>" if per_channel else ""
    text = f"""(float[N,{channels},6,6] x) => (float[Q] y) {{
               q = QuantizeLinear(x, s, z) xd = DequantizeLinear(q, s, z) wd = DequantizeLinear{axis}(w, ws, wz)
               c = Conv<group={group}>(xd, wd) {tail} }}"""
    weights: dict[str, npt.ArrayLike] = {"s": F32(0.03), "z": np.uint8(zero)}
    weights["w"] = rng.integers(-127, 128, (out, channels // group, kernel, kernel)).astype(np.int8)
    weights["ws"] = rng.uniform(0.01, 0.02, out).astype(F32) if per_channel else F32(0.01)
    weights["wz"] = np.zeros(out, np.int8) if per_channel else np.int8(0)
    return graph_of(text, 17, **weights)


@pytest.mark.parametrize(
    "graph",
    [
        conv(channels=4),
        conv(out=8),
        conv(kernel=5),
        conv(channels=6, out=16, group=2),
        conv(tail="r = Sigmoid(xd) e = ReduceMean<keepdims=0>(r) y = Add(c, e)"),
    ],
    ids=["whole", "few outputs", "large kernel", "groups", "read by others"],
)
def test_others_are_left_alone(graph: Graph) -> None:
    assert pad_channels(graph) == 0


def test_a_kept_weight_with_scales_along_its_input_channels_is_left_alone() -> None:
    graph = conv()
    weight = graph.producer(graph.nodes[-2].inputs[1], "DequantizeLinear")
    assert weight is not None
    graph.set_attribute(weight, "axis", 1)
    graph.set_input(weight, 1, graph.constant("three", np.full(3, 0.01, F32)))
    graph.set_input(weight, 2, graph.constant("zeros", np.zeros(3, np.int8)))
    assert pad_channels(graph) == 0


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("per_channel", [True, False])
def test_zeros_are_added_to_codes_and_weight(channels: int, per_channel: bool) -> None:
    graph = conv(channels, per_channel=per_channel, zero=93)
    before = graph.copy()
    assert pad_channels(graph) == 1
    graph.remove_unused()
    graph.infer_shapes()
    assert lines(graph)[1] == "q_padded = Pad(q, q_pads, z)"
    padded = graph.const(graph.weights["w_padded"])
    assert padded is not None
    assert padded.shape == (16, -(-channels // 4) * 4, 3, 3)
    assert not padded[:, channels:].any()
    same_function(before, graph, random_feeds(graph, N=2), 1e-6)
    assert pad_channels(graph) == 0
