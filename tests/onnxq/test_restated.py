"""Which nodes older operator sets take: what they do not first, then onnx's own texts, then bits."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from graphs import Array, graph_of, random_feeds, run
from onnx import defs

from onnxq.restated import LOWEST, SAME, SAME_FROM, fits, rounds_otherwise

ANEW = {"Attention", "DFT", "GroupNormalization", "EyeLike", "NegativeLogLikelihoodLoss", "SplitToSequence"}
"""Operators that the tables leave out: their texts changed, or no model that is quantized has them."""
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
READ = {
    "AveragePool": "ceil_mode, auto_pad, dilations",
    "MaxPool": "ceil_mode",
    "Cast": "float8, saturate, round_mode",
    "CastLike": "float8, saturate, round_mode",
    "DequantizeLinear": "float8, blocks, output_dtype",
    "QuantizeLinear": "float8, blocks, precision",
    "Pad": "wrap",
    "ReduceMax": "bool",
    "ReduceMin": "bool",
    "Resize": "half_pixel_symmetric, keep_aspect_ratio_policy",
}
"""Operators of which texts differ, and in what: read, and found in a type, an attribute or `ASIDE`."""

IMAGE = "(float[2,3,8,8] x) => (float[A,B,C,D] y)"


def one(text: str, opset: int, to: int, **weights: Any) -> bool:  # noqa: ANN401  arrays
    graph = graph_of(text, opset, **weights)
    graph.infer_shapes()
    return all(fits(graph, node, to) for node in graph.nodes)


@pytest.mark.parametrize(
    ("text", "opset", "weights"),
    [
        (f'{IMAGE} {{ y = Pad<mode="wrap">(x, p) }}', 19, {"p": np.ones(8, np.int64)}),
        (f"{IMAGE} {{ y = MaxPool<kernel_shape=[2,2],ceil_mode=1>(x) }}", 22, {}),
        (f"{IMAGE} {{ y = AveragePool<kernel_shape=[2,2],ceil_mode=1>(x) }}", 22, {}),
        (f"{IMAGE} {{ y = AveragePool<kernel_shape=[2,2],dilations=[2,2]>(x) }}", 19, {}),
        (f'{IMAGE} {{ y = AveragePool<kernel_shape=[2,2],auto_pad="SAME_UPPER">(x) }}', 19, {}),
        (
            f'{IMAGE} {{ y = Resize<coordinate_transformation_mode="half_pixel_symmetric",mode="linear">(x,,s) }}',
            19,
            {"s": np.ones(4, np.float32)},
        ),
        (
            f'{IMAGE} {{ y = Resize<keep_aspect_ratio_policy="not_larger">(x, , , s) }}',
            19,
            {"s": np.array([2, 3, 16, 9])},
        ),
        (f"{IMAGE} {{ y = GroupNormalization<num_groups=3>(x, s, s) }}", 21, {"s": np.ones(3, np.float32)}),
        (f"{IMAGE} {{ y = GridSample(x, g) }}", 20, {"g": np.zeros((2, 4, 4, 2), np.float32)}),
        (f"{IMAGE} {{ y = Gelu(x) }}", 20, {}),
        (f"{IMAGE} {{ y = RMSNormalization(x, s) }}", 23, {"s": np.ones(8, np.float32)}),
        (f"{IMAGE} {{ y = Swish(x) }}", 24, {}),
        ("(bfloat16[2,3,8,8] x) => (bfloat16[A,B,C,D] y) { y = GlobalMaxPool(x) }", 22, {}),
        ("(float[4] x) => (float8e4m3fn[4] y) { y = Cast<to=17>(x) }", 19, {}),
        ("(float[4] x) => (float8e4m3fn[4] y) { y = Cast<to=17>(x) }", 24, {}),
        ("(bool[4] x) => (bool[A] y) { y = ReduceMax(x) }", 20, {}),
        ("(float16[4] x) => (int8[4] y) { y = QuantizeLinear(x, s, z) }", 19, {"s": np.float16(1), "z": np.int8(0)}),
        ("(float16[4] x) => (int8[4] y) { y = QuantizeLinear(x, s, z) }", 23, {"s": np.float32(1), "z": np.int8(0)}),
        ("(float[4] x) => (int8[4] y) { y = QuantizeLinear<output_dtype=3>(x, s) }", 21, {"s": np.float32(1)}),
        (
            "(float[4] x) => (int8[4] y) { y = QuantizeLinear<precision=1>(x, s, z) }",
            23,
            {"s": np.float32(1), "z": np.int8(0)},
        ),
        (
            "(float[2,32] x) => (int8[2,32] y) { y = QuantizeLinear<block_size=16>(x, s, z) }",
            21,
            {"s": np.ones((2, 2), np.float32), "z": np.zeros((2, 2), np.int8)},
        ),
        ("(int8[4] x) => (float16[4] y) { y = DequantizeLinear<output_dtype=10>(x, s) }", 23, {"s": np.float32(1)}),
        ("(float[4] x) => (float[4] y) { a = com.example.Own(x) y = Identity(a) }", 21, {}),
    ],
)
def test_what_an_older_operator_set_does_not_take(text: str, opset: int, weights: dict[str, Any]) -> None:
    assert not one(text, opset, opset - 1, **weights)


def test_attributes_at_their_defaults_do_not_count() -> None:
    quantize = "(float[4] x) => (int8[4] y) { y = QuantizeLinear<saturate=1,precision=0,output_dtype=0>(x, s, z) }"
    assert one(quantize, 25, 18, s=np.float32(1), z=np.int8(0))
    assert one('(float[4] x) => (int32[4] y) { y = Cast<to=6,saturate=1,round_mode="up">(x) }', 25, 18)
    assert not one("(float[4] x) => (int32[4] y) { y = Cast<to=6,saturate=0>(x) }", 25, 18)
    assert one(f"{IMAGE} {{ y = AveragePool<kernel_shape=[2,2],dilations=[1,1]>(x) }}", 25, 18)


def test_an_operator_of_another_domain_does_not_count() -> None:
    assert one("(float[4] x) => (float[4] y) { y = com.microsoft.Gelu(x) }", 25, 18)


def versions() -> dict[str, list[defs.OpSchema]]:
    """Operator -> its versions from the lowest opset to 25 that differ, the oldest first."""
    found: dict[str, dict[int, defs.OpSchema]] = defaultdict(dict)
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= 25 and not schema.deprecated:
            found[schema.name][schema.since_version] = schema
    kept = {}
    for name, by_version in found.items():
        first = max((v for v in by_version if v <= SAME_FROM.get(name, LOWEST)), default=min(by_version))
        kept[name] = [by_version[v] for v in sorted(by_version) if v >= first]
    return {name: schemas for name, schemas in kept.items() if len(schemas) > 1}


VERSIONS = versions()


def test_every_operator_with_several_versions_is_in_a_table() -> None:
    assert set(VERSIONS) - ANEW - RANDOM == SAME | set(SAME_FROM)


@pytest.mark.parametrize("name", sorted(SAME | set(SAME_FROM)))
def test_only_types_and_attributes_came_in(name: str) -> None:
    """By onnx's texts of the versions."""
    for older, newer in itertools.pairwise(VERSIONS[name]):
        assert (older.min_input, older.min_output) == (newer.min_input, newer.min_output)
        assert (older.max_input, older.max_output) == (newer.max_input, newer.max_output)
        assert set(older.attributes) <= set(newer.attributes)
        assert not any(a.required for key, a in newer.attributes.items() if key not in older.attributes)
        for key, attribute in older.attributes.items():
            assert str(attribute.default_value) == str(newer.attributes[key].default_value)
        if name not in READ:
            assert str(older.doc).split() == str(newer.doc).split()


@pytest.mark.parametrize("name", sorted(READ))
def test_what_was_read_differs(name: str) -> None:
    schemas = VERSIONS.get(name, [])
    assert any(a.doc != b.doc or set(a.attributes) != set(b.attributes) for a, b in itertools.pairwise(schemas))


RNG = np.random.default_rng(0)
WEIGHTS = {
    "k": RNG.normal(size=(3, 3, 3, 3)).astype(np.float32),
    "p": np.array([0, 0, 1, 2, 0, 0, 1, 0]),
    "s": np.ones(3, np.float32),
    "zoom": np.array([1, 1, 2, 1.5], np.float32),
    "axis": np.array([-1]),
    "front": np.array([0]),
    "sizes": np.array([2, 24, 8]),
    "size": np.array(0.05, np.float32),
    "zero": np.array(3, np.int8),
    "few": np.array([2]),
    "yes": np.array([True]),
    **{f"w{gates}": RNG.normal(size=(1, gates * 4, 8)).astype(np.float32) for gates in (1, 3, 4)},
    **{f"r{gates}": RNG.normal(size=(1, gates * 4, 4)).astype(np.float32) for gates in (1, 3, 4)},
}
POINTWISE = """Sin Cos Tan Sinh Cosh Atan Asinh Elu Selu Softplus Softsign HardSigmoid HardSwish Mish Round Identity
    IsNaN IsInf ThresholdedRelu GlobalAveragePool GlobalMaxPool LpNormalization Flatten Transpose Shape Size Dropout"""
NODES = [
    *(f"y = {op}(x)" for op in POINTWISE.split()),
    "y = Pad(x, p)",
    'y = Pad<mode="reflect">(x, p)',
    "y = Conv<pads=[1,1,1,1]>(x, k)",
    "y = ConvTranspose<strides=[2,2]>(x, k)",
    "y = MaxPool<kernel_shape=[3,3],pads=[1,1,1,1],strides=[2,2]>(x)",
    "y = LpPool<kernel_shape=[2,2]>(x)",
    "y = InstanceNormalization(x, s, s)",
    "y = ReduceMax(x, axis)",
    "y = ReduceMin(x, axis)",
    "y = Equal(x, x)",
    'y = Resize<mode="linear">(x, , zoom)',
    'y = Resize<mode="nearest",coordinate_transformation_mode="asymmetric">(x, , zoom)',
    "y = Cast<to=10>(x)",
    "y = Cast<to=6>(x)",
    "y = QuantizeLinear(x, size, zero)",
    "q = QuantizeLinear(x, size, zero) y = DequantizeLinear(q, size, zero)",
    "u = Unsqueeze(x, front) y = Squeeze(u, front)",
    "y = Reshape(x, sizes)",
    "y, i = TopK(x, few)",
    "h = Shape(x) y = ConstantOfShape(h)",
    "h = Shape(x) y = CastLike(x, h)",
    "t = Reshape(x, sizes) y = LSTM<hidden_size=4>(t, w4, r4)",
    "t = Reshape(x, sizes) y = GRU<hidden_size=4>(t, w3, r3)",
    "t = Reshape(x, sizes) y = RNN<hidden_size=4>(t, w1, r1)",
    "y = If(yes) <then_branch = t () => (b) { b = Sin(x) }, else_branch = e () => (b) { b = Cos(x) }>",
]


def in_both(nodes: str, opset: int) -> tuple[Array, Array]:
    """What nodes give in an opset, and in the lowest, by ONNX Runtime's kernels or functions."""
    used = {name: array for name, array in WEIGHTS.items() if name in re.findall(r"\w+", nodes)}
    graph = graph_of(f"(float[2,3,8,8] x) => (y) {{ {nodes} }}", opset, **used)
    graph.infer_shapes()
    feeds = random_feeds(graph)
    (newer,) = run(graph, feeds)
    assert all(fits(part, n, LOWEST) for part in graph.parts() for n in part.nodes)
    graph.restate_opset(LOWEST)
    (older,) = run(graph, feeds)
    return newer, older


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("opset", [25, 22])
def test_the_same_bits(nodes: str, opset: int) -> None:
    newer, older = in_both(nodes, opset)
    assert newer.dtype == older.dtype
    assert newer.tobytes() == older.tobytes()


def test_another_kernel_adds_in_another_order() -> None:
    nodes = "y = AveragePool<kernel_shape=[3,3],pads=[1,1,1,1],count_include_pad=1>(x)"
    newer, older = in_both(nodes, 22)
    np.testing.assert_allclose(newer, older, rtol=1e-5, atol=1e-6)
    graph = graph_of(f"(float[2,3,8,8] x) => (y) {{ {nodes} }}", 22)
    assert [rounds_otherwise(graph, graph.nodes[0], opset) for opset in (22, 19, 18)] == [False, False, True]
