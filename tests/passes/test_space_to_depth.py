"""First convolutions over blocks of pixels: what is left alone first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import graph_of, lines, random_feeds, same_function
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.passes.space_to_depth import SpaceToDepth
from onnxq.runtime import Session

if TYPE_CHECKING:
    from onnxq.graph import Graph

F32 = np.float32
IMAGE = {"channels": 3, "size": (12, 8), "kernel": (5, 5), "more": "strides=[2, 2], pads=[2, 2, 2, 2]"}


def conv(*, zero: int = 93, weight_zero: int = 0, tail: str = "", sizes: str | None = None, **choices: Any) -> Graph:  # noqa: ANN401  of IMAGE
    channels, (height, width), kernel, more = ({**IMAGE, **choices}[k] for k in IMAGE)
    rng = np.random.default_rng(0)
    group = 3 if "group=3" in more else 1
    text = f"""(float[N,{channels},{sizes or f"{height},{width}"}] x) => (float[N,16,P,Q] y) {{
               q = QuantizeLinear(x, s, z) xd = DequantizeLinear(q, s, z) wd = DequantizeLinear<axis=0>(w, ws, wz)
               c = Conv<{more}>(xd, wd, b) cq = QuantizeLinear(c, so, z) cd = DequantizeLinear(cq, so, z)
               {tail or "y = Relu(cd)"} }}"""
    shape = (18 if group == 3 else 16, channels // group, *kernel)
    weights = {
        "s": F32(0.02),
        "so": F32(4.0),
        "z": np.uint8(zero),
        "b": rng.normal(0, 1, shape[0]).astype(F32),
        "w": rng.integers(-127, 128, shape).astype(np.int8),
        "ws": rng.uniform(0.01, 0.02, shape[0]).astype(F32),
        "wz": np.full(shape[0], weight_zero, np.int8),
    }
    return graph_of(text.replace("[N,16,P", f"[N,{shape[0]},P"), 17, **weights)


@pytest.mark.parametrize(
    "graph",
    [
        conv(more="strides=[1, 1]"),
        conv(more="strides=[2, 1]"),
        conv(more="strides=[2, 2], dilations=[2, 2], pads=[4, 4, 4, 4]"),
        conv(more="strides=[2, 2], group=3"),
        conv(more='strides=[2, 2], auto_pad="SAME_UPPER"'),
        conv(size=(12, 9)),
        conv(sizes="H,W"),
        conv(channels=4),
        conv(kernel=(5, 9), size=(12, 12)),
        conv(weight_zero=3),
        conv(tail="r = Sigmoid(xd) e = ReduceMean<keepdims=1>(r) y = Add(cd, e)"),
    ],
    ids=[
        "no strides",
        "two strides",
        "dilated",
        "groups",
        "auto_pad",
        "odd",
        "unknown",
        "channels",
        "wide",
        "zero point",
        "readers",
    ],
)
def test_others_are_left_alone(graph: Graph) -> None:
    before = lines(graph)
    assert SpaceToDepth()(graph) == 0
    assert lines(graph) == before


def test_blocks_are_channels() -> None:
    graph = conv(tail="y = Relu(c)")
    before = graph.copy()
    assert SpaceToDepth()(graph) == 1
    graph.remove_unused()
    assert [node.op_type for node in graph.nodes][:3] == ["SpaceToDepth", "QuantizeLinear", "DequantizeLinear"]
    weight = graph.const(graph.weights["w_blocks"])
    assert weight is not None
    assert weight.shape == (16, 12, 3, 3)
    graph.infer_shapes()
    same_function(before, graph, random_feeds(graph, N=2), 1e-6)
    assert SpaceToDepth()(graph) == 0


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    stride=st.integers(2, 4),
    blocks=st.tuples(st.integers(3, 5), st.integers(3, 5)),
    pads=st.lists(st.integers(0, 4), min_size=4, max_size=4),
)
def test_the_sums_are_the_same(
    channels: int, kernel: tuple[int, int], stride: int, blocks: tuple[int, int], pads: list[int]
) -> None:
    """ONNX Runtime's integers before and after, bit for bit: sums of integers have no order."""
    size = (blocks[0] * stride, blocks[1] * stride)
    graph = conv(channels=channels, kernel=kernel, size=size, more=f"strides=[{stride}, {stride}], pads={pads}")
    before = Session(graph.to_proto().SerializeToString())
    if SpaceToDepth()(graph):
        graph.remove_unused()
        graph.infer_shapes()
        feeds = random_feeds(graph, N=2)
        after = Session(graph.to_proto().SerializeToString())
        assert all(np.array_equal(a, b) for a, b in zip(before.run(feeds), after.run(feeds), strict=True))


def test_images_that_are_to_come_as_codes_are_left_alone() -> None:
    assert SpaceToDepth(inputs=False)(conv()) == 0
    inner = conv()
    quantize = inner.nodes[0]
    inner.set_input(quantize, 0, inner.add("Sigmoid", [quantize.inputs[0]], name="inner", before=quantize))
    inner.infer_shapes()
    assert SpaceToDepth(inputs=False)(inner) == 1


def test_pairs_with_a_type_of_their_own_are_left_alone() -> None:
    graph = conv()
    graph.set_attribute(graph.nodes[0], "saturate", 0)
    assert SpaceToDepth()(graph) == 0


def test_pairs_with_scales_along_channels_are_left_alone() -> None:
    graph = conv()
    for node in graph.nodes[:2]:
        graph.set_input(node, 1, graph.constant("scales", np.full(3, 0.02, F32)))
        graph.set_input(node, 2, graph.constant("zeros", np.full(3, 93, np.uint8)))
    assert SpaceToDepth()(graph) == 0
