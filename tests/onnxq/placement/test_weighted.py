"""Where a weight lies, along which axis it is quantized, and the limits of what runs in int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import graph_of, random_feeds
from placing import TENSORRT, net

from onnxq import api
from onnxq.placement.weighted import input_site, macs, unquantizable, weight_of, why_float, why_small
from onnxq.recipe import Recipe, Rule

if TYPE_CHECKING:
    from onnxq.graph import Graph, Node


def last(graph: Graph) -> Node:
    return graph.nodes[-1]


def one(op: str, x: str, w: tuple[int, ...], given: str = "x, w") -> Graph:
    return net(f"float[{x}] x", f"y = {op}({given})", w=w)


AXES = {
    "Conv": ("Conv", "1,4,9", (8, 4, 3), 0),
    "Conv 3-D": ("Conv", "1,4,5,5,5", (8, 4, 3, 3, 3), 0),
    "Conv with groups": ("Conv<group=2>", "1,8,9", (8, 4, 3), 0),
    "ConvTranspose": ("ConvTranspose", "1,4,5,5", (4, 8, 2, 2), 1),
    "ConvTranspose with groups": ("ConvTranspose<group=2>", "1,8,5,5", (8, 4, 2, 2), None),
    "Gemm": ("Gemm", "5,16", (16, 24), 1),
    "Gemm transB": ("Gemm<transB=1>", "5,16", (24, 16), 0),
    "Gemm transA": ("Gemm<transA=1>", "16,5", (16, 24), 1),
    "MatMul of a vector": ("MatMul", "5,16", (16,), None),
    "MatMul": ("MatMul", "5,16", (16, 24), 1),
    "MatMul rank 3": ("MatMul", "2,5,16", (2, 16, 24), 2),
    "MatMul rank 4": ("MatMul", "3,2,5,16", (3, 2, 16, 24), 3),
}


@pytest.mark.parametrize(("op", "x", "w", "axis"), AXES.values(), ids=AXES.keys())
def test_the_axis_is_that_of_the_output_channels(op: str, x: str, w: tuple[int, ...], axis: int | None) -> None:
    graph = one(op, x, w)
    weight = weight_of(graph, last(graph), TENSORRT)
    assert weight is not None
    assert (weight.value.name, weight.index, weight.axis) == ("w", 1, axis)
    if axis is not None and "ConvTranspose" not in op:
        channels = graph.shape(graph.outputs[0])
        assert channels is not None
        assert channels[1 if "Conv" in op else -1] == w[axis]


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
def test_a_computed_weight_is_none(op: str) -> None:
    shape = "4,4" if op in ("Gemm", "MatMul") else "4,4,3,3"
    graph = net(f"float[{shape}] x, float[{shape}] w", f"u = Relu(w) y = {op}(x, u)")
    assert weight_of(graph, last(graph), TENSORRT) is None
    expected = "product of two activations" if op in ("Gemm", "MatMul") else "its weight is computed at run time"
    assert why_float(graph, last(graph), TENSORRT) == expected


def test_a_constant_first_operand_is_no_weight() -> None:
    graph = net("float[16,32] x", "y = MatMul(w, x)", w=(32, 16))
    assert "second operand" in str(why_float(graph, last(graph), TENSORRT))


def test_two_constants() -> None:
    graph = net("float[16,16] x", "y = MatMul(v, w)", v=(16, 16), w=(16, 16))
    assert why_float(graph, last(graph), TENSORRT) == "its input is a constant"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_stays(bad: float) -> None:
    weight = np.ones((16, 16), np.float32)
    graph = net("float[4,16] x", "y = MatMul(x, w)", w=weight)
    assert why_float(graph, last(graph), TENSORRT) is None
    weight[3, 5] = bad
    graph = net("float[4,16] x", "y = MatMul(x, w)", w=weight)
    assert why_float(graph, last(graph), TENSORRT) == "its weight holds NaN or infinity"


def test_types_of_weights() -> None:
    for dtype, reason in ((np.float16, None), (np.float64, "float64"), (np.int32, "int32")):
        name = {np.float16: "float16", np.float64: "double", np.int32: "int32"}[dtype]
        graph = net(f"{name}[4,16] x", "y = MatMul(x, w)", w=np.ones((16, 16), dtype))
        found = why_float(graph, last(graph), TENSORRT)
        assert found is None if reason is None else reason in str(found)


def test_an_empty_weight_stays() -> None:
    graph = net("float[4,0] x", "y = MatMul(x, w)", w=np.ones((0, 16), np.float32))
    assert why_float(graph, last(graph), TENSORRT) == "its weight is empty"


def test_only_a_quantized_weight() -> None:
    body = "d = DequantizeLinear(q, s) t = Transpose(d) y = MatMul(x, t)"
    graph = net("float[4,16] x", body, q=np.ones((16, 16), np.int8), s=np.array(0.1, np.float32))
    assert "already, its input is not" in str(why_float(graph, last(graph), TENSORRT))


# (operator, input behind another node, weight, in int8)
CONV_LIMITS = {
    "16 to 16": ("Conv", "4,16,9,9", (16, 16, 3, 3), True),
    "15 to 16, neither a multiple of 8": ("Conv", "4,15,9,9", (17, 15, 3, 3), False),
    "15 to 16": ("Conv", "4,15,9,9", (16, 15, 3, 3), True),
    "16 to 15": ("Conv", "4,16,9,9", (15, 16, 3, 3), True),
    "17 to 15": ("Conv", "4,17,9,9", (15, 17, 3, 3), False),
    "8 to 8": ("Conv", "4,8,9,9", (8, 8, 3, 3), False),
    "8 to 16": ("Conv", "4,8,9,9", (16, 8, 3, 3), True),
    "3 to 16": ("Conv", "4,3,9,9", (16, 3, 3, 3), True),
    "3 to 8, not the first": ("Conv", "4,3,9,9", (8, 3, 3, 3), False),
    "8 to 16 with an oblong kernel": ("Conv", "4,8,9,9", (16, 8, 1, 3), False),
    "16 to 16 with an oblong kernel": ("Conv", "4,16,9,9", (16, 16, 1, 3), True),
    "depthwise 3x3": ("Conv<group=16>", "4,16,9,9", (16, 1, 3, 3), True),
    "depthwise 1x1": ("Conv<group=16>", "4,16,9,9", (16, 1, 1, 1), False),
    "depthwise 2x3": ("Conv<group=16>", "4,16,9,9", (16, 1, 2, 3), False),
    "depthwise, 12 channels": ("Conv<group=12>", "4,12,9,9", (12, 1, 3, 3), False),
    "depthwise, 2 outputs a channel": ("Conv<group=12>", "4,12,9,9", (24, 1, 3, 3), True),
    "groups of 16": ("Conv<group=2>", "4,32,9,9", (32, 16, 1, 1), True),
    "groups of 4": ("Conv<group=4>", "4,16,9,9", (16, 4, 3, 3), True),
    "groups of 4, 1x1": ("Conv<group=4>", "4,16,9,9", (16, 4, 1, 1), False),
    "groups reading 6": ("Conv<group=4>", "4,24,9,9", (16, 6, 3, 3), False),
    "groups making 6": ("Conv<group=4>", "4,16,9,9", (24, 4, 3, 3), False),
    "wide groups of 18": ("Conv<group=2>", "4,36,9,9", (32, 18, 3, 3), False),
    "one pixel": ("Conv", "1,16,1,1", (16, 16, 1, 1), True),
    "transposed 16 to 16": ("ConvTranspose", "4,16,9,9", (16, 16, 2, 2), True),
    "transposed 15 to 16": ("ConvTranspose", "4,15,9,9", (15, 16, 2, 2), False),
    "transposed 16 to 15": ("ConvTranspose", "4,16,9,9", (16, 15, 2, 2), False),
    "transposed, groups of 8": ("ConvTranspose<group=2>", "4,16,9,9", (16, 8, 2, 2), True),
    "transposed, 14 outputs": ("ConvTranspose<group=2>", "4,16,9,9", (16, 7, 2, 2), False),
    "transposed, groups of 9": ("ConvTranspose<group=2>", "4,18,9,9", (18, 8, 2, 2), False),
    "transposed, groups making 9": ("ConvTranspose<group=2>", "4,16,9,9", (16, 9, 2, 2), False),
    "transposed depthwise": ("ConvTranspose<group=16>", "4,16,9,9", (16, 1, 2, 2), True),
}


@pytest.mark.parametrize(("op", "x", "w", "pays"), CONV_LIMITS.values(), ids=CONV_LIMITS.keys())
def test_limits_of_convolutions(op: str, x: str, w: tuple[int, ...], pays: bool) -> None:
    graph = net(f"float[{x}] x", f"r = Relu(x) y = {op}(r, w)", w=w)
    found = why_small(graph, last(graph), TENSORRT)
    assert (found is None) is pays, found


@pytest.mark.parametrize(("channels", "first", "behind"), [(8, True, False), (12, False, False), (16, True, True)])
def test_the_first_convolution_of_three_channels(channels: int, first: bool, behind: bool) -> None:
    at_input = one("Conv", "1,3,9,9", (channels, 3, 3, 3))
    assert (why_small(at_input, last(at_input), TENSORRT) is None) is first
    inside = net("float[1,3,9,9] x", "r = Relu(x) y = Conv(r, w)", w=(channels, 3, 3, 3))
    assert (why_small(inside, last(inside), TENSORRT) is None) is behind


MATMUL_LIMITS = {
    "16x16": ("MatMul", "4,16", (16, 16), True),
    "K of 15": ("MatMul", "4,15", (15, 16), False),
    "N of 15": ("MatMul", "4,16", (16, 15), False),
    "two rows": ("MatMul", "2,16", (16, 16), True),
    "one row": ("MatMul", "1,16", (16, 16), False),
    "one row in three dimensions": ("MatMul", "1,1,16", (16, 16), False),
    "rows in the batch": ("MatMul", "8,1,16", (16, 16), True),
    "a vector": ("MatMul", "16", (16, 16), False),
    "a vector as weight": ("MatMul", "4,16", (16,), False),
    "unknown batch": ("MatMul", "N,16", (16, 16), True),
    "unknown length": ("MatMul", "1,N,16", (16, 16), True),
    "rank 3": ("MatMul", "2,4,16", (2, 16, 16), True),
    "rank 3, one row for each weight": ("MatMul", "2,1,16", (2, 16, 16), False),
    "rank 3, rows in the batch for one weight": ("MatMul", "2,1,16", (1, 16, 16), True),
    "rank 3, K of 15": ("MatMul", "2,4,15", (2, 15, 16), False),
    "Gemm": ("Gemm", "2,16", (16, 17), True),
    "Gemm one row": ("Gemm", "1,16", (16, 17), False),
    "Gemm unknown batch": ("Gemm", "N,16", (16, 17), True),
    "Gemm transA, one row": ("Gemm<transA=1>", "16,1", (16, 17), False),
    "Gemm transB, N of 15": ("Gemm<transB=1>", "2,16", (15, 16), False),
    "Gemm transB, K of 15": ("Gemm<transB=1>", "2,15", (16, 15), False),
    "Gemm transB": ("Gemm<transB=1>", "2,17", (16, 17), True),
}


@pytest.mark.parametrize(("op", "x", "w", "pays"), MATMUL_LIMITS.values(), ids=MATMUL_LIMITS.keys())
def test_limits_of_matrix_products(op: str, x: str, w: tuple[int, ...], pays: bool) -> None:
    graph = one(op, x, w)
    found = why_small(graph, last(graph), TENSORRT)
    assert (found is None) is pays, found


MATRICES = {name: case for name, case in MATMUL_LIMITS.items() if "vector" not in name}


@pytest.mark.parametrize(("op", "x", "w", "pays"), MATRICES.values(), ids=MATRICES.keys())
def test_the_check_says_of_products_what_placement_does(op: str, x: str, w: tuple[int, ...], pays: bool) -> None:
    graph = one(op, x, w)
    recipe = Recipe(target="tensorrt@10", effort="fast", rules=(Rule(quantize=True),))
    made, plan = api.quantize(graph, [random_feeds(graph, seed, N=4) for seed in range(9)], recipe)
    assert plan.int8_share() == 1.0
    assert ("P28" in {f.id for f in api.check(made, "tensorrt@10").findings}) is not pays


# counted by hand: outputs times what each of them sums over
MACS = {
    "Conv": ("Conv", "2,4,9,9", (8, 4, 3, 3), (2 * 8 * 7 * 7) * (4 * 3 * 3)),
    "Conv with groups": ("Conv<group=2>", "1,8,9,9", (6, 4, 3, 3), (6 * 7 * 7) * (4 * 9)),
    "depthwise": ("Conv<group=8>", "1,8,9,9", (8, 1, 3, 3), (8 * 7 * 7) * 9),
    "strided": ("Conv<strides=[2,2]>", "1,4,9,9", (8, 4, 3, 3), (8 * 4 * 4) * 36),
    "unknown batch counts as one": ("Conv", "N,4,9,9", (8, 4, 3, 3), (8 * 7 * 7) * 36),
    # every input value meets every weight of its channel
    "transposed": ("ConvTranspose<strides=[2,2]>", "1,4,5,5", (4, 8, 2, 2), (4 * 5 * 5) * (8 * 2 * 2)),
    "Gemm": ("Gemm", "5,16", (16, 24), 5 * 24 * 16),
    "Gemm transB": ("Gemm<transB=1>", "5,16", (24, 16), 5 * 24 * 16),
    "Gemm transA": ("Gemm<transA=1>", "16,5", (16, 24), 5 * 24 * 16),
    "MatMul": ("MatMul", "5,16", (16, 24), 5 * 24 * 16),
    "MatMul rank 3": ("MatMul", "2,5,16", (2, 16, 24), 2 * 5 * 24 * 16),
    "MatMul broadcast": ("MatMul", "2,5,16", (16, 24), 2 * 5 * 24 * 16),
    "vector": ("MatMul", "5,16", (16,), 5 * 16),
}


@pytest.mark.parametrize(("op", "x", "w", "count"), MACS.values(), ids=MACS.keys())
def test_macs(op: str, x: str, w: tuple[int, ...], count: int) -> None:
    graph = one(op, x, w)
    assert macs(graph, last(graph), TENSORRT) == count


def test_macs_of_products_of_activations_and_of_nothing() -> None:
    graph = net("float[2,5,16] a, float[2,16,24] b", "p = MatMul(a, b) y = Relu(p)")
    assert [macs(graph, node, TENSORRT) for node in graph.nodes] == [2 * 5 * 24 * 16, 0]


def test_macs_behind_a_pair() -> None:
    body = "d = DequantizeLinear<axis=0>(q, s) y = Conv(x, d)"
    codes, scale = np.ones((8, 4, 3, 3), np.int8), np.full(8, 0.1, np.float32)
    graph = net("float[1,4,9,9] x", body, q=codes, s=scale)
    assert macs(graph, last(graph), TENSORRT) == (8 * 7 * 7) * 36


PADS = {
    "a zero Pad": ("p = Pad(x, n) y = Conv(p, w)", ("Pad:p", 0)),
    "a Pad that says 0": ("p = Pad(x, n, zero) y = Conv(p, w)", ("Pad:p", 0)),
    "a Pad of ones": ("p = Pad(x, n, one) y = Conv(p, w)", ("Conv:y", 0)),
    "a computed fill": ("p = Pad(x, n, f) y = Conv(p, w)", ("Conv:y", 0)),
    "reflection": ('p = Pad<mode="reflect">(x, n) y = Conv(p, w)', ("Conv:y", 0)),
    "a Pad with another user": ("p = Pad(x, n) r = Relu(p) y = Conv(p, w)", ("Conv:y", 0)),
    "a transposed convolution": ("p = Pad(x, n) y = ConvTranspose(p, w)", ("ConvTranspose:y", 0)),
    "no Pad": ("r = Relu(x) y = Conv(r, w)", ("Conv:y", 0)),
}


@pytest.mark.parametrize(("body", "site"), PADS.values(), ids=PADS.keys())
def test_the_pair_goes_before_a_pad_that_folds(body: str, site: tuple[str, int]) -> None:
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    numbers = {"zero": np.array(0, np.float32), "one": np.array(1, np.float32)}
    graph = net("float[1,16,9,9] x, float f", body, n=pads, w=(16, 16, 3, 3), **numbers)
    node, index = input_site(graph, last(graph))
    assert (node.name, index) == site


def test_a_padded_output_of_the_model_keeps_its_pair_behind() -> None:
    graph = net(
        "float[1,16,9,9] x", "p = Pad(x, n) y = Conv(p, w)", "y p", n=np.array([0, 0, 1, 1] * 2), w=(16, 16, 3, 3)
    )
    assert input_site(graph, last(graph))[0].name == "Conv:y"


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_a_recurrent_operator_multiplies_by_all_its_weights_at_each_step(op: str, gates: int, directions: int) -> None:
    """Each gate of a step is W x + R h: hidden * (inputs + hidden) products, for each sequence and direction."""
    steps, batch, inputs, hidden = 7, 2, 5, 6
    side = "bidirectional" if directions == 2 else "forward"
    graph = net(
        f"float[{steps},{batch},{inputs}] x",
        f'y = {op}<hidden_size={hidden}, direction="{side}">(x, w, r)',
        w=(directions, gates * hidden, inputs),
        r=(directions, gates * hidden, hidden),
    )
    one_step = directions * gates * hidden * (inputs + hidden)
    assert macs(graph, last(graph), TENSORRT) == steps * batch * one_step
    assert macs(graph, last(graph), TENSORRT, {"x": (30, 3, inputs)}) == 90 * one_step


@pytest.mark.parametrize(
    ("kind", "says"),
    [("double", "float64; only"), ("bfloat16", "bfloat16; only"), ("int32", "not floating point"), ("float", "")],
)
def test_types_that_cannot_be_quantized_are_named(kind: str, says: str) -> None:
    node = last(graph := graph_of(f"({kind}[4,8] x) => ({kind}[4,8] y) {{ y = Abs(x) }}"))
    assert unquantizable(graph, node).startswith(says)
    assert bool(unquantizable(graph, node)) == bool(says)
