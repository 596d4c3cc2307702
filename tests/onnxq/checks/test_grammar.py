"""P1 to P13 and P15 on a graph that breaks each and on the nearest one that does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from check_graphs import CONV, X8, Case, assert_breached, assert_kept, const, io, model, pair
from onnx import TensorProto, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx


def scales() -> Iterator[Case]:
    qdq = model(pair("y", "x"))
    yield Case("P1", model("q = QuantizeLinear(x) y = DequantizeLinear(q, s, z)"), {("E", "q")}, qdq, frozenset({"P7"}))
    computed = "t = Add(s, s) q = QuantizeLinear(x, t, z) y = DequantizeLinear(q, s, z)"
    node = "t = Constant<value_float=0.5>() q = QuantizeLinear(x, t, z) y = DequantizeLinear(q, t, z)"
    yield Case("P2", model(computed), {("E", "q")}, model(node))
    empty = model(pair("y", "x", 1), extra=("float[0] sv = {}", "int8[0] zv = {}"))
    yield Case("P2", empty, {("E", "y_q"), ("E", "y")}, qdq, frozenset({"P8", "P10"}))
    double = model(pair("y", "x"), types={"s": TensorProto.DOUBLE})
    yield Case("P2", double, {("E", "y_q"), ("E", "y")}, qdq)
    for value in ("0", "-1", "nan", "inf"):
        wrong = model(pair("y", "x"))
        scale = next(tensor for tensor in wrong.graph.initializer if tensor.name == "s")
        scale.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), "s"))
        yield Case("P3", wrong, {("E", "y_q"), ("E", "y")}, qdq)
    half = io(inputs="float16[1,8,4,4] x", outputs="float16[1,8,4,4] y")
    least, below = ((f"float s = {{{value}}}",) for value in ("6.2e-5", "6.0e-5"))
    fp16 = {"s": TensorProto.FLOAT16}
    yield Case(
        "P3",
        model(pair("y", "x"), half, extra=below, types=fp16),
        {("W", "y_q"), ("W", "y")},
        model(pair("y", "x"), half, extra=least, types=fp16),
    )
    yield Case("P3", model(pair("y", "x"), extra=("float s = {1e-40}",)), {("W", "y_q"), ("W", "y")}, qdq)


def zero_points() -> Iterator[Case]:
    qdq, both = model(pair("y", "x")), {("E", "y_q"), ("E", "y")}
    cast = "c = Cast<to=3>(lo) i = Identity(c) q = QuantizeLinear(x, s, i) y = DequantizeLinear(q, s, i)"
    yield Case("P4", model(pair("y", "x"), extra=("int8 z = {1}",)), both, model(cast))
    graph_input = model(pair("y", "x"), io(inputs=f"{X8}, int8 zp"))
    for node in graph_input.graph.node:
        node.input[2] = "zp"
    yield Case("P4", graph_input, both, qdq)
    for dtype in ("uint8", "int16", "int32"):
        yield Case("P5", model(pair("y", "x"), extra=(f"{dtype} z = {{0}}",)), both, qdq)
    bare = "q = QuantizeLinear<output_dtype=5>(x, s) y = DequantizeLinear(q, s)"  # 5 is INT16
    yield Case("P5", model(bare), {("E", "q"), ("E", "y")}, model(bare.replace("=5", "=3")))
    unsaid = "q = QuantizeLinear(x, s) y = DequantizeLinear(q, s, u)"
    yield Case(
        "P6",
        model(unsaid, extra=("uint8 u = {0}",)),
        {("W", "q")},
        model("q = QuantizeLinear<output_dtype=3>(x, s) y = DequantizeLinear(q, s)"),
        frozenset({"P5"}),
    )
    count = ("int8[2] z = {0, 0}",)
    yield Case("P7", model(pair("y", "x"), extra=count), both, model(pair("y", "x"), extra=("int8[1] z = {0}",)))
    said = "q = QuantizeLinear<output_dtype=2>(x, s, z) y = DequantizeLinear(q, s, z)"
    yield Case("P7", model(said), {("E", "q")}, model(said.replace("=2", "=3")))
    other = "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, u)"
    yield Case("P7", model(other, extra=("uint8 u = {0}",)), {("E", "y")}, qdq, frozenset({"P5"}))


def axes() -> Iterator[Case]:
    out = "float[8,8] y"
    vector, both = model(pair("y", "m", 0), io(outputs=out)), {("E", "y_q"), ("E", "y")}
    silent = model(pair("y", "m", 1).replace("<axis=1>", ""), io(outputs=out))
    yield Case("P8", silent, both, model(pair("y", "m", -1), io(outputs=out)))
    yield Case("P8", model(pair("y", "m", 2), io(outputs=out)), both, vector)
    short = (const("float[4] sv"), const("int8[4] zv", 0))
    yield Case("P8", model(pair("y", "m", 0), io(outputs=out), extra=short), both, vector)
    cube = (const("float[1,1,8] sv"), const("int8[1,1,8] zv", 0))
    yield Case("P8", model(pair("y", "m", 0), io(outputs=out), extra=cube), both, vector)

    def blocked(dims: str, axis: int, shape: str = "8,8") -> onnx.ModelProto:
        extra = (const(f"float[{dims}] sv"), const(f"int8[{dims}] zv", 0), const(f"float[{shape}] m"))
        text = pair("y", "m", axis).replace("axis", "block_size=2, axis")
        return model(text, io(outputs=f"float[{shape}] y"), extra=extra)

    yield Case("P9", blocked("4,4", 0), both, blocked("4,8", 0))
    yield Case("P9", blocked("3,8", 0), both, blocked("8,4", 1))
    yield Case("P9", blocked("4,8,8", 0, "8,8,8"), both, blocked("8,4,8", 1, "8,8,8"))
    activation = f"{pair('xd', 'x', 1)} {pair('wd', 'w', 0)} y = Conv(xd, wd, b)"
    square = io("float[8,8] x, float[8,8] v", out)
    product = model(f"{pair('xd', 'x')} {pair('vd', 'v', 0)} y = MatMul(xd, vd)", square)
    tensor = f"{pair('xd', 'x')} {pair('vd', 'v')} y = MatMul(xd, vd)"
    yield Case("P10", product, {("E", "vd_q"), ("E", "vd")}, model(tensor, square))
    grid = (const("float[4,8] sv"), const("int8[4,8] zv", 0))
    blocks = model(pair("y", "x", 0), io("float[8,8] x", out), grid)
    yield Case("P10", blocks, {("E", "y_q"), ("E", "y")}, model(pair("y", "x"), io("float[8,8] x", out)))
    open_shape = model(pair("y", "x", 1), io("float[n,c,4,4] x", "float[n,c,4,4] y"))
    yield Case("P10", open_shape, {("E", "y_q"), ("E", "y")}, model(pair("y", "x")))
    moved = f"t = Transpose<perm=[1,0]>(m) {pair('y', 't', 1)}"
    yield Case("P10", model(activation), {("E", "xd_q"), ("E", "xd")}, model(moved, io(outputs=out)))


def channels() -> Iterator[Case]:
    both = {("E", "wd_q"), ("E", "wd")}

    def conv(op: str, axis: int | None) -> onnx.ModelProto:
        return model(f"{pair('xd', 'x')} {pair('wd', 'w', axis)} y = {op}(xd, wd)")

    yield Case("P11", conv("Conv", 1), both, conv("Conv", 0))
    yield Case("P11", conv("ConvTranspose", 0), both, conv("ConvTranspose", 1))
    grouped = model(
        f"{pair('xd', 'x')} {pair('wd', 'w', 0)} y = ConvTranspose<group=2>(xd, wd)", io(outputs="float[1,16,4,4] y")
    )
    whole = model(
        f"{pair('xd', 'x')} {pair('wd', 'w')} y = ConvTranspose<group=2>(xd, wd)", io(outputs="float[1,16,4,4] y")
    )
    yield Case("P11", grouped, both, whole)

    def product(call: str, axis: int, between: str = "") -> onnx.ModelProto:
        text = f"{pair('xd', 'x')} {pair('wd', 'm', axis)} {between} y = {call}"
        return model(text, io(inputs="float[8,8] x", outputs="float[8,8] y"))

    yield Case("P11", product("Gemm(xd, wd)", 0), both, product("Gemm(xd, wd)", 1))
    yield Case("P11", product("Gemm<transB=1>(xd, wd)", 1), both, product("Gemm<transB=1>(xd, wd)", 0))
    yield Case("P11", product("MatMul(xd, wd)", 0), both, product("MatMul(xd, wd)", 1))
    yield Case("P11", product("MatMul(wd, xd)", 1), both, product("MatMul(wd, xd)", 0))
    turn = "t = Transpose<perm=[1,0]>(wd)"
    yield Case("P11", product("MatMul(xd, t)", 1, turn), both, product("MatMul(xd, t)", 0, turn))


def types() -> Iterator[Case]:
    def weight(dims: str, dtype: int, opset: int = 23) -> onnx.ModelProto:
        extra = (const(f"int8[{dims}] i"), "int8 z = {0}")
        text = "y = DequantizeLinear(i, s, z)"
        return model(text, io(outputs=f"float[{dims}] y"), extra=extra, opset=opset, types={"i": dtype, "z": dtype})

    int4, fp4, fp8 = TensorProto.INT4, TensorProto.FLOAT4E2M1, TensorProto.FLOAT8E4M3FN
    yield Case("P12", weight("3,3", int4), {("E", "y")}, weight("3,2", int4))
    yield Case("P12", weight("2,3", fp4), {("W", "y")}, weight("3,3", TensorProto.INT8), frozenset({"P5"}))
    for dtype, opset in ((fp8, 19), (int4, 21), (fp4, 23)):
        old, new = weight("2,2", dtype, opset - 1), weight("2,2", dtype, opset)
        yield Case("P13", old, {("E", "y")}, new, target="tensorrt@11")
    vector = model(pair("y", "m", 0), io(outputs="float[8,8] y"), opset=13)
    yield Case(
        "P13", model(pair("y", "m", 0), io(outputs="float[8,8] y"), opset=12), {("E", "y_q"), ("E", "y")}, vector
    )
    half = io(inputs="float16[1,8,4,4] x", outputs="float16[1,8,4,4] y")
    fp16 = {"s": TensorProto.FLOAT16}
    old, new = (model(pair("y", "x"), half, opset=opset, types=fp16) for opset in (18, 19))
    yield Case("P13", old, {("E", "y_q"), ("E", "y")}, new)


def operators() -> Iterator[Case]:
    conv = model(CONV.replace("c =", "y ="))
    linear = "q = QuantizeLinear(x, s, z) p = QLinearMatMul(q, s, z, q, s, z, s, z) y = DequantizeLinear(p, s, z)"
    yield Case("P15", model(linear), {("E", "p")}, conv, frozenset({"P19"}))
    dynamic = "q, t, u = DynamicQuantizeLinear(x) y = Identity(x)"
    yield Case("P15", model(dynamic), {("E", "q")}, conv)
    contrib = pair("y", "x").replace("= ", "= com.microsoft.")
    yield Case("P15", model(contrib), {("E", "y_q"), ("E", "y")}, model("y = com.microsoft.QuickGelu(x)"))


def versions() -> Iterator[Case]:
    both = {("E", "y_q"), ("E", "y")}
    qdq, uint8 = model(pair("y", "x")), model(pair("y", "x"), extra=("uint8 z = {0}",))
    yield Case("P5", uint8, both, qdq, target="tensorrt@8")
    yield Case("P5", uint8, {("W", "y_q"), ("W", "y")}, qdq, target="tensorrt@11")
    old, new = (model(pair("y", "x"), opset=opset) for opset in (17, 18))
    yield Case("P13", new, {("W", "opset")}, old, target="tensorrt@8")
    unsaid = model("q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)")  # uint8 for ONNX, int8 for TensorRT
    yield Case("P6", unsaid, {("W", "q")}, qdq)

    def stored(dtype: int) -> onnx.ModelProto:
        extra = (const("int8[2,2] i"), "int8 z = {0}")
        signature = io(outputs="float[2,2] y")
        return model("y = DequantizeLinear(i, s, z)", signature, extra, 23, {"i": dtype, "z": dtype})

    int8 = stored(TensorProto.INT8)
    yield Case("P5", stored(TensorProto.UINT8), {("E", "y")}, int8, target="tensorrt@11")  # data, not a zero point
    yield Case("P5", stored(TensorProto.FLOAT4E2M1), {("W", "y")}, stored(TensorProto.INT4))
    for dtype in (TensorProto.INT4, TensorProto.FLOAT4E2M1, TensorProto.FLOAT8E4M3FN):
        weight = f"{pair('wd', 'w', 0)} y = Conv(x, w)"
        yield Case("P5", stored(dtype), {("E", "y")}, model(weight), frozenset({"P19"}), "tensorrt@8")
    grid = (const("float[4,8] sv"), const("int8[4,8] zv", 0))
    text, out = pair("y", "m", 0).replace("axis", "block_size=2, axis"), io(outputs="float[8,8] y")
    yield Case("P9", model(text, out, grid), both, model(pair("y", "m"), out), target="tensorrt@8")

    def transposed(axis: int | None) -> onnx.ModelProto:
        return model(f"{pair('xd', 'x')} {pair('wd', 'w', axis)} y = ConvTranspose(xd, wd)")

    found = {("W", "wd_q"), ("W", "wd")}
    yield Case("P11", transposed(1), found, transposed(None), target="tensorrt@8")
    odd = (const("int8[2,3] i"), "int8 z = {0}")
    four = {"i": int(TensorProto.INT4), "z": int(TensorProto.INT4)}
    row = model("y = DequantizeLinear(i, s, z)", io(outputs="float[2,3] y"), odd, 23, four)
    yield Case("P12", row, {("W", "y")}, stored(TensorProto.INT4))


CASES = [case for group in (versions, scales, zero_points, axes, channels, types, operators) for case in group()]
IDS = [f"{case.rule}-{number}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_rule_finds_the_breach_and_no_other_rule_does(case: Case) -> None:
    assert_breached(case)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_neighbour_passes(case: Case) -> None:
    assert_kept(case)
