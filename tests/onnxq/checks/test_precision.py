"""P14 and P30 to P33 on a graph that breaks each and on the nearest one that does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from check_graphs import CONV, Case, assert_breached, assert_kept, io, model, pair
from legality import assert_legal
from onnx import TensorProto

from onnxq.checks import check

if TYPE_CHECKING:
    from collections.abc import Iterator


def float_types() -> Iterator[Case]:
    half = io(inputs="float16[1,8,4,4] x", outputs="float16[1,8,4,4] y")
    fp16 = {"s": TensorProto.FLOAT16}
    new = model(pair("y", "x"), half, opset=19, types=fp16)
    wide = model(pair("y", "x"), io(outputs="float16[1,8,4,4] y"), types=fp16)
    yield Case("P14", wide, {("E", "y_q")}, new)
    halved = io(outputs="float16[1,8,4,4] y")
    mixed = f"{pair('xd', 'x')} h = Cast<to=10>(x) y = Add(xd, h)"
    alike = f"{pair('xd', 'x')} h = Cast<to=10>(xd) k = Cast<to=10>(x) y = Add(h, k)"
    yield Case("P14", model(mixed, halved), {("E", "y")}, model(alike, halved))


def speed() -> Iterator[Case]:
    """Behind an int8 convolution: its activation, then what reads it."""
    for tail in ("r = Relu(c)", "g = Sigmoid(c) r = Mul(c, g)", "k = Relu(c) r = Flatten(k)", "r = Identity(c)"):
        shape = "float[1,128] y" if "Flatten" in tail else "float[1,8,4,4] y"
        good = model(f"{CONV} {tail} {pair('d', 'r')} y = Tanh(d)", io(outputs=shape))
        yield Case("P30", model(f"{CONV} {tail} y = Tanh(r)", io(outputs=shape)), {("W", "c")}, good)
    joined = io(outputs="float[1,16,4,4] y")
    behind = model(f"{CONV} j = Concat<axis=1>(c, x) {pair('d', 'j')} y = Tanh(d)", joined)
    yield Case("P30", model(f"{CONV} j = Concat<axis=1>(c, x) y = Tanh(j)", joined), {("W", "c")}, behind)
    yield Case("P30", model(f"{CONV} y = Tanh(c)"), {("W", "c")}, model(CONV.replace("c =", "y =")))
    added = f"{CONV} {pair('xe', 'x')} a = Add(c, xe)"
    yield Case("P30", model(f"{added} y = Tanh(a)"), {("W", "c")}, model(f"{added} {pair('d', 'a')} y = Tanh(d)"))

    other = pair("xe", "x").replace("s, z", "s, f")
    two = f"{pair('xd', 'x')} {other} y = Add(xd, xe)"
    eight, fp8 = ("int8 f = {0}",), {"f": int(TensorProto.FLOAT8E4M3FN)}
    yield Case("P31", model(two, extra=eight, types=fp8), {("W", "xe_q")}, model(two, extra=eight))


def strong() -> Iterator[Case]:
    halves = dict.fromkeys(("s", "sv", "w", "b"), int(TensorProto.FLOAT16))
    half = io("float16[1,8,4,4] x", "float16[1,8,4,4] y")
    for body, where in (
        ("y = Conv(x, w)", {"y"}),
        ("c = Conv(x, w) t = Tanh(c) y = Exp(t)", {"c", "t"}),
        (f"{CONV} r = Relu(c) y = Tanh(r)", {"y"}),  # the Relu fuses
    ):
        found = {("W", name) for name in where}
        yield Case("P32", model(body), found, model(body, half, types=halves), target="tensorrt@11")
    whole = model(f"{CONV} g = Sigmoid(c) m1 = Mul(c, g) {pair('y', 'm1')}")
    yield Case("P32", model("y = Tanh(x)"), {("W", "y")}, whole, target="tensorrt@11")
    plain = model("y = Conv(x, w)")
    yield Case("P32", plain, {("W", "y")}, model(CONV.replace("c =", "y =")), target="tensorrt@11")


def shapes() -> Iterator[Case]:
    out = io(outputs="float[n,m] y")
    of_shape = "n = Shape(x) f = Cast<to=1>(n) {} k = Cast<to=7>({}) y = Reshape(x, k)"
    bad, good = of_shape.format(pair("d", "f"), "d"), of_shape.format("", "f")
    yield Case("P33", model(bad, out), {("E", "d_q"), ("E", "d")}, model(good, out))
    integers = model(
        "q = QuantizeLinear(i, s, z) y = DequantizeLinear(q, s, z)", io(inputs="int32[2] i", outputs="float[2] y")
    )
    yield Case("P33", integers, {("E", "q")}, model(pair("y", "x")))
    # What lies before the Shape node is data.
    yield Case(
        "P33",
        model(bad, out),
        {("E", "d_q"), ("E", "d")},
        model(f"{pair('d', 'x')} n = Shape(d) y = Reshape(x, n)", out),
    )
    # So is what a branch makes that data chose.
    ends = ("p = Constant<value = int64[1] {1}>()", "q = Constant<value = int64[1] {2}>()")
    chosen = f"""{pair("d", "x")} m = ReduceMax<keepdims=0>(d) h = Cast<to=9>(m) k = Constant<value = int64[1] {{0}}>()
        e = If (h) <then_branch = t () => (int64[1] p) {{ {ends[0]} }},
                    else_branch = f () => (int64[1] q) {{ {ends[1]} }}>
        y = Slice(x, k, e)"""
    yield Case("P33", model(bad, out), {("E", "d_q"), ("E", "d")}, model(chosen, io(outputs="float[n,8,4,4] y")))


CASES = [case for group in (float_types, speed, strong, shapes) for case in group()]
IDS = [f"{case.rule}-{number}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_rule_finds_the_breach_and_no_other_rule_does(case: Case) -> None:
    assert_breached(case)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_neighbour_passes(case: Case) -> None:
    assert_kept(case)


def test_half_precision_network_is_legal() -> None:
    halves = dict.fromkeys(("s", "sv", "w", "b"), int(TensorProto.FLOAT16))
    signature = io("float16[1,8,4,4] x", "float16[1,8,4,4] y")
    body = f"{CONV} {pair('d', 'x')} y = Add(c, d)"
    assert_legal(model(body, signature, types=halves))
    with pytest.raises(AssertionError, match="P14 E c: Conv reads FLOAT and FLOAT16"):
        assert_legal(model(body, signature, types=halves | {"b": TensorProto.FLOAT}))


@pytest.mark.parametrize("target", ["tensorrt@8", "tensorrt@10"])
def test_float32_is_no_matter_where_types_are_weak(target: str) -> None:
    assert [f for f in check(model("c = Conv(x, w) y = Tanh(c)"), target).findings if f.id == "P32"] == []


@pytest.mark.parametrize(
    "operator",
    [
        "MaxPool<kernel_shape=[1,1]>({})",
        "AveragePool<kernel_shape=[1,1]>({})",
        "Transpose({})",
        "Concat<axis=1>({}, {})",
    ],
)
def test_the_type_of_what_runs_on_int8_is_no_matter(operator: str) -> None:
    """Between a pair and a pair the kernel reads and writes int8, whatever type the model names."""
    body = f"{pair('d', 'x')} o = {operator.format('d', 'd')} {pair('y', 'o')}"
    out = io(outputs="float[1,16,4,4] y") if "Concat" in operator else io(outputs="float[a,b,c,e] y")
    assert [f for f in check(model(body, out), "tensorrt@11").findings if f.id == "P32"] == []
    alone = f"o = {operator.format('x', 'x')} y = Exp(o)"
    assert [f.where for f in check(model(alone, out), "tensorrt@11").findings if f.id == "P32"] != []
