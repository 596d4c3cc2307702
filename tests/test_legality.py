"""Each rule of `legality` on a graph that breaks it and on the nearest one that does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest
from legality import ADVICE, RULES, assert_legal, findings
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

NOTHING: Mapping[str, int] = {}
X8 = "float[1,8,4,4] x"


def const(declaration: str, value: float | str = 1) -> str:
    """An initializer in ONNX text, all elements equal: `float[2,2] w` becomes `float[2,2] w = {1, 1, 1, 1}`."""
    dims = declaration.split("[")[1].split("]", maxsplit=1)[0].split(",") if "[" in declaration else []
    return f"{declaration} = {{{', '.join([str(value)] * prod(map(int, dims)))}}}"


def pair(out: str, name: str, axis: int | None = None) -> str:
    """A Q/DQ pair `out` on a tensor: scale s, or along an axis the vector sv with zero point zv."""
    attribute, scale = ("", "s, z") if axis is None else (f"<axis={axis}>", "sv, zv")
    return f"""{out}_q = QuantizeLinear{attribute}({name}, {scale})
               {out} = DequantizeLinear{attribute}({out}_q, {scale})"""


CONSTANTS = [
    *("float s = {0.5}", "float s2 = {0.25}", "int8 z = {0}", const("float[8] sv"), const("int8[8] zv", 0)),
    *(const("float[8,8,1,1] w"), const("float[8,8] m"), const("float[8] b"), "float lo = {0}", "float hi = {6}"),
]
CONV = f"{pair('xd', 'x')} {pair('wd', 'w', 0)} c = Conv(xd, wd, b)"  # int8 1x1 convolution, 8 to 8 channels


def io(inputs: str = X8, outputs: str = "float[1,8,4,4] y") -> str:
    """The signature of a text graph."""
    return f"({inputs}) => ({outputs})"


def model(
    body: str,
    signature: str = io(),
    extra: tuple[str, ...] = (),
    opset: int = 21,
    types: Mapping[str, int] = NOTHING,
) -> onnx.ModelProto:
    """Parses a graph that has CONSTANTS and `extra`; `types` rewrites constants to types that text cannot say."""
    names = {text.split(" = ")[0].split()[-1] for text in extra}
    constants = [text for text in CONSTANTS if text.split(" = ")[0].split()[-1] not in names]
    head = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    graph = f"g {signature} <{', '.join([*constants, *extra])}> {{ {body} }}"
    parsed = onnx.parser.parse_model(f"{head} {graph}")
    for tensor in parsed.graph.initializer:
        if tensor.name in types:
            values = numpy_helper.to_array(tensor).ravel()
            tensor.CopyFrom(helper.make_tensor(tensor.name, types[tensor.name], tensor.dims, values))
    return parsed


@dataclass(frozen=True)
class Case:
    """A graph with what its rule finds in it, (severity, place) each, and a graph in which it finds nothing."""

    rule: str
    bad: onnx.ModelProto
    found: set[tuple[str, str]]
    good: onnx.ModelProto
    also: frozenset[str] = field(default=frozenset())  # further rules that the bad graph cannot but break


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
    yield Case("P12", weight("2,3", fp4), {("W", "y")}, weight("3,3", TensorProto.INT8))
    for dtype, opset in ((fp8, 19), (int4, 21), (fp4, 23)):
        yield Case("P13", weight("2,2", dtype, opset - 1), {("E", "y")}, weight("2,2", dtype, opset))
    vector = model(pair("y", "m", 0), io(outputs="float[8,8] y"), opset=13)
    yield Case(
        "P13", model(pair("y", "m", 0), io(outputs="float[8,8] y"), opset=12), {("E", "y_q"), ("E", "y")}, vector
    )
    half = io(inputs="float16[1,8,4,4] x", outputs="float16[1,8,4,4] y")
    fp16 = {"s": TensorProto.FLOAT16}
    old, new = (model(pair("y", "x"), half, opset=opset, types=fp16) for opset in (18, 19))
    yield Case("P13", old, {("E", "y_q"), ("E", "y")}, new)
    wide = model(pair("y", "x"), io(outputs="float16[1,8,4,4] y"), types=fp16)
    yield Case("P14", wide, {("E", "y_q")}, new)
    halved = io(outputs="float16[1,8,4,4] y")
    mixed = f"{pair('xd', 'x')} h = Cast<to=10>(x) y = Add(xd, h)"
    alike = f"{pair('xd', 'x')} h = Cast<to=10>(xd) k = Cast<to=10>(x) y = Add(h, k)"
    yield Case("P14", model(mixed, halved), {("E", "y")}, model(alike, halved))


def operators() -> Iterator[Case]:
    conv = model(CONV.replace("c =", "y ="))
    linear = "q = QuantizeLinear(x, s, z) p = QLinearMatMul(q, s, z, q, s, z, s, z) y = DequantizeLinear(p, s, z)"
    yield Case("P15", model(linear), {("E", "p")}, conv, frozenset({"P19"}))
    dynamic = "q, t, u = DynamicQuantizeLinear(x) y = Identity(x)"
    yield Case("P15", model(dynamic), {("E", "q")}, conv)
    contrib = "q = com.microsoft.QuantizeLinear(x, s, z) y = Identity(x)"
    yield Case("P15", model(contrib), {("E", "q")}, model("y = com.microsoft.QuickGelu(x)"))

    biased = f"{CONV.replace('c =', 'y =').replace(', b)', ', bd)')}"
    int32 = f"bd = DequantizeLinear(i, s, k) {biased}"
    extra = (const("int32[8] i"), "int32 k = {0}")
    yield Case("P16", model(int32, extra=extra), {("E", "y")}, conv, frozenset({"P5"}))
    yield Case("P16", model(f"{pair('bd', 'b')} {biased}"), {("E", "y")}, conv)
    yield Case("P16", model(CONV.replace("c =", "y ="), extra=(const("float[4] b"),)), {("E", "y")}, conv)
    yield Case("P16", model(CONV.replace("c =", "y ="), extra=(const("float[1,8] b"),)), {("E", "y")}, conv)
    gemm, square = f"{pair('xd', 'x')} {pair('wd', 'm', 1)}", io("float[8,8] x", "float[8,8] y")
    plain, quantized = f"{gemm} y = Gemm(xd, wd, b)", f"{gemm} {pair('bd', 'b')} y = Gemm(xd, wd, bd)"
    yield Case("P16", model(quantized, square), {("E", "y")}, model(plain, square))
    yield Case("P16", model(CONV.replace("c =", "y ="), extra=(const("float[8,1] b"),)), {("E", "y")}, conv)
    # ConvTranspose [I, O/g, ...] with two groups: 16 output channels.
    deconv = f"{pair('xd', 'x')} {pair('wd', 'w')} y = ConvTranspose<group=2>(xd, wd, b)"
    out = "float[1,16,4,4] y"
    right = model(deconv, io(outputs=out), extra=(const("float[16] b"),))
    yield Case("P16", model(deconv, io(outputs=out)), {("E", "y")}, right)

    dynamic = model("y = Conv(x, k)", io(inputs=f"{X8}, float[8,8,1,1] k"))
    yield Case("P17", dynamic, {("W", "y")}, conv)
    flat = model("y = Conv(x, m)", io(inputs="float[1,8] x", outputs="float[1,8] y"))
    yield Case("P17", flat, {("E", "y")}, model("y = Conv(x, w)"))
    kernel = "y = Conv<kernel_shape=[3,3]>(x, w)"
    yield Case("P17", model(kernel), {("E", "y")}, model(kernel.replace("[3,3]", "[1,1]")))

    pool = "p, i = MaxPool<kernel_shape=[1,1]>(x) y = Identity(p)"
    used = model(pool, io(outputs="float[1,8,4,4] y, int64[1,8,4,4] i"))
    yield Case("P18", used, {("E", "p")}, model(pool))
    read = pool.replace("y = Identity(p)", "f = Cast<to=1>(i) y = Add(p, f)")
    yield Case("P18", model(read), {("E", "p")}, model(pool))


def pairs() -> Iterator[Case]:
    good = model(
        "q = QuantizeLinear(x, s, z) t = Flatten(q) y = DequantizeLinear(t, s, z)", io(outputs="float[1,128] y")
    )
    lone = "q = QuantizeLinear(x, s, z) y = Cast<to=1>(q)"
    yield Case("P19", model(lone), {("W", "q")}, good)
    stored = model("y = DequantizeLinear(i, s, z)", io(outputs="float[2] y"), extra=(const("int8[2] i"),))
    yield Case("P19", model("i = Cast<to=3>(x) y = DequantizeLinear(i, s, z)"), {("W", "y")}, stored)
    yield Case("P19", model("q = QuantizeLinear(x, s, z) y = Relu(x)"), {("W", "q")}, good)

    conv = model(CONV.replace("c =", "y ="))
    yield Case("P20", model(f"{pair('xd', 'x')} y = Conv(xd, w)"), {("W", "y")}, conv)
    yield Case("P20", model(f"{pair('wd', 'w', 0)} y = Conv(x, wd)"), {("W", "y")}, model("y = Conv(x, w)"))
    pooled = f"{pair('xd', 'x')} p = MaxPool<kernel_shape=[1,1]>(xd) {pair('wd', 'w', 0)} y = Conv(p, wd)"
    yield Case("P20", model(pooled.replace("p, wd", "p, w")), {("W", "y")}, model(pooled))
    two = "float[8,8] x, float[8,8] v"
    one = model(f"{pair('xd', 'x')} y = MatMul(xd, v)", io(inputs=two, outputs="float[8,8] y"))
    both = model(f"{pair('xd', 'x')} {pair('vd', 'v')} y = MatMul(xd, vd)", io(inputs=two, outputs="float[8,8] y"))
    yield Case("P20", one, {("W", "y")}, both)
    joined = f"{pair('xd', 'x')} j = Concat<axis=1>(xd, xd) {pair('wd', 'w')} y = Conv(j, wd)"
    half = joined.replace("(xd, xd)", "(xd, x)")
    extra = (const("float[8,16,1,1] w"),)
    yield Case("P20", model(half, extra=extra), {("W", "y")}, model(joined, extra=extra))


def fusions() -> Iterator[Case]:
    after = f"{CONV} r = Relu(c) {pair('y', 'r')}"
    for tail in ("Relu(d)", "Clip(d, lo, hi)", "LeakyRelu(d)", "HardSwish(d)", "BatchNormalization(d, b, b, b, b)"):
        body = f"{CONV} {pair('d', 'c')} y = {tail}"
        yield Case("P21", model(body), {("W", "d_q")}, model(after))
    gemm = f"{pair('xd', 'x')} {pair('wd', 'm', 1)} c = Gemm(xd, wd)"
    square = io(inputs="float[8,8] x", outputs="float[8,8] y")
    cut, kept = f"{gemm} {pair('d', 'c')} y = Relu(d)", f"{gemm} r = Relu(c) {pair('y', 'r')}"
    yield Case("P21", model(cut, square), {("W", "d_q")}, model(kept, square))
    normed = f"{CONV} n = BatchNormalization(c, b, b, b, b)"
    split, fused = f"{normed} {pair('d', 'n')} y = Relu(d)", f"{normed} r = Relu(n) {pair('y', 'r')}"
    yield Case("P21", model(split), {("W", "d_q")}, model(fused))
    for gate in ("Sigmoid", "HardSigmoid"):
        silu = f"{CONV} g = {gate}(c) m1 = Mul(c, g) {pair('y', 'm1')}"
        before = f"{CONV} {pair('d', 'c')} g = {gate}(d) y = Mul(d, g)"
        inside = f"{CONV} g = {gate}(c) {pair('d', 'g')} y = Mul(c, d)"
        yield Case("P21", model(before), {("W", "d_q")}, model(silu))
        yield Case("P21", model(inside), {("W", "d_q")}, model(silu))
    # A sigmoid alone is no SiLU, and a pair beside the activation does not stand before it.
    alone = f"{CONV} {pair('d', 'c')} y = Sigmoid(d)"
    beside = f"{CONV} r = Relu(c) {pair('d', 'c')} y = Add(r, d)"
    for body in (alone, beside):
        yield Case("P21", model(f"{CONV} {pair('d', 'c')} y = Relu(d)"), {("W", "d_q")}, model(body))


def residuals() -> Iterator[Case]:
    two = f"{X8}, float[1,8,4,4] e"
    branch, identity = pair("cd", "c"), pair("ed", "e")
    right = model(f"{CONV} {identity} y = Add(c, ed)", io(inputs=two))
    yield Case("P22", model(f"{CONV} {branch} {identity} y = Add(cd, ed)", io(inputs=two)), {("W", "y")}, right)
    neither = model(f"{CONV} y = Add(e, c)", io(inputs=two))
    yield Case("P22", model(f"{CONV} {branch} y = Add(e, cd)", io(inputs=two)), {("W", "y")}, neither)
    normed = f"{CONV} n = BatchNormalization(c, b, b, b, b) k = Add(n, lo)"
    cut = f"{normed} {pair('kd', 'k')} {identity} y = Add(kd, ed)"
    yield Case(
        "P22", model(cut, io(inputs=two)), {("W", "y")}, model(f"{normed} {identity} y = Add(k, ed)", io(inputs=two))
    )
    # The projection shortcut: two convolutions, of which one is the identity.
    shortcut = f"{CONV} p = Conv(xd, wd)"
    both = model(f"{shortcut} {branch} {pair('pd', 'p')} y = Add(cd, pd)")
    yield Case("P22", both, {("W", "y")}, model(f"{shortcut} {pair('pd', 'p')} y = Add(c, pd)"))
    yield Case("P22", both, {("W", "y")}, model(f"{shortcut} y = Add(c, p)"))
    # The identity may itself be a convolution's output when something else reads it too.
    chain = f"{CONV} {branch} f = Conv(cd, wd)"
    wrong = f"{chain} {pair('fd', 'f')} y = Add(cd, fd)"
    yield Case("P22", model(wrong), {("W", "y")}, model(f"{chain} y = Add(cd, f)"))


def advice() -> Iterator[Case]:
    pooled = f"{pair('xd', 'x')} p = GlobalAveragePool(xd)"
    out = "float[1,8,1,1] y"
    whole = model(f"{pooled} {pair('y', 'p')}", io(outputs=out))
    yield Case("P23", model(f"{pooled} y = Relu(p)", io(outputs=out)), {("W", "p")}, whole)
    two = f"{X8}, float[1,8,4,4] e"
    half = model(f"{pair('xd', 'x')} a = Add(xd, e) {pair('y', 'a')}", io(inputs=two))
    added = f"{pair('xd', 'x')} {pair('ed', 'e')} a = Add(xd, ed) {pair('y', 'a')}"
    yield Case("P23", half, {("W", "a")}, model(added, io(inputs=two)))
    joined = f"{pair('xd', 'x')} {pair('ed', 'e')} j = Concat<axis=1>(xd, ed) {pair('y', 'j')}"
    wide = io(inputs=two, outputs="float[1,16,4,4] y")
    unequal = joined.replace("ed_q, s, z", "ed_q, s2, z").replace("(e, s, z)", "(e, s2, z)")
    yield Case("P24", model(unequal, wide), {("W", "j")}, model(joined, wide))
    twice = f"{pair('xd', 'x')} {pair('xe', 'x')} y = Add(xd, xe)"
    once = model(f"{pair('xd', 'x')} y = Add(xd, xd)")
    yield Case("P25", model(twice), {("W", "x")}, once)
    yield Case("P25", model(f"{pair('xd', 'x')} {pair('y', 'xd')}"), {("W", "y_q")}, once)
    copied = model(f"{pair('xd', 'x')} t = Identity(xd) {pair('y', 't')}")
    yield Case("P26", copied, {("W", "y_q")}, model(f"{pair('xd', 'x')} y = Identity(xd)"))
    pad, extra = "Pad({}, pads)", ("int64[8] pads = {0,0,0,0,0,0,0,0}",)
    late = f"p = {pad.format('x')} {pair('d', 'p')} {pair('wd', 'w', 0)} y = Conv(d, wd)"
    early = f"{pair('d', 'x')} p = {pad.format('d')} {pair('wd', 'w', 0)} y = Conv(p, wd)"
    yield Case("P26", model(late, extra=extra), {("W", "d_q")}, model(early, extra=extra))
    yield Case("P26", model(f"{pair('d', 'x')} y = Erf(d)"), {("W", "d_q")}, model("y = Erf(x)"))
    mask = model(f"{pair('d', 'e')} a = Add(x, d) y = Softmax(a)", io(inputs=two))
    yield Case("P26", mask, {("W", "d_q")}, model("a = Add(x, e) y = Softmax(a)", io(inputs=two)))


def sizes() -> Iterator[Case]:
    def conv(weight: str, group: int = 1, before: str = "Relu", tail: str = "y = Relu(c)") -> onnx.ModelProto:
        outputs, inputs, kernel, _ = map(int, weight.split(","))
        body = f"""r = {before}(x) {pair("xd", "r")} {pair("wd", "w")}
                   c = Conv<group={group}, pads={[kernel // 2] * 4}>(xd, wd) {tail}"""
        data, made = f"float[1,{inputs * group},4,4] x", f"float[1,{outputs},4,4] y"
        return model(body, io(inputs=data, outputs=made), extra=(const(f"float[{weight}] w"),))

    good, silu = conv("16,16,3,3"), "g = Sigmoid(c) y = Mul(c, g)"
    yield Case("P27", conv("12,12,3,3"), {("W", "c")}, good)
    yield Case("P27", conv("8,8,3,3"), {("W", "c")}, conv("16,16,1,1"))
    yield Case("P27", conv("24,16,3,3"), {("I", "c")}, good)
    yield Case("P27", conv("32,18,3,3", 2), {("W", "c")}, conv("32,16,3,3", 2))
    yield Case("P27", conv("16,1,1,1", 16), {("W", "c")}, conv("16,1,3,3", 16))
    yield Case("P27", conv("16,1,3,3", 16, tail=silu), {("I", "c")}, conv("16,16,3,3", tail=silu))

    def product(m: int, k: int, n: int) -> onnx.ModelProto:
        text = f"{pair('xd', 'x')} {pair('wd', 'm')} y = MatMul(xd, wd)"
        extra = (const(f"float[{k},{n}] m"),)
        return model(text, io(inputs=f"float[{m},{k}] x", outputs=f"float[{m},{n}] y"), extra=extra)

    for shape in ((1, 16, 16), (16, 16, 1), (16, 8, 16), (16, 16, 8)):
        yield Case("P28", product(*shape), {("W", "y")}, product(2, 16, 16))


GROUPS = (scales, zero_points, axes, channels, types, operators, pairs, fusions, residuals, advice, sizes)
CASES = [case for group in GROUPS for case in group()]
IDS = [f"{case.rule}-{number}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_rule_finds_the_breach_and_no_other_rule_does(case: Case) -> None:
    found = findings(case.bad)
    assert {(f.severity, f.where) for f in found if f.rule == case.rule} == case.found
    assert {f.rule for f in found if f.severity != "I" and f.rule not in ADVICE} - {case.rule} == case.also


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_legal_neighbour_passes(case: Case) -> None:
    assert [f for f in findings(case.good) if f.rule == case.rule] == []
    assert_legal(case.good)


def allowed() -> Iterator[onnx.ModelProto]:
    """Graphs that look like a breach and are none: what the rules must not say."""
    two = io(f"{X8}, float[1,8,4,4] e")
    square = io("float[8,8] x", "float[8,8] y")
    quantized = f"{pair('xd', 'x')} {pair('wd', 'm', 1)}"
    yield model(pair("y", "x"), extra=("float[1] s = {0.5}", "int8[1] z = {0}"))
    yield model(pair("y", "x"), extra=(const("float[1,1,1,1] s"), const("int8[1,1,1,1] z", 0)))
    wide = (const("float[16,8,1,1] w"), const("float[16] b"), const("float[16] sv"), const("int8[16] zv", 0))
    yield model(CONV.replace("c =", "y ="), io(outputs="float[1,16,4,4] y"), wide)
    yield model(f"{quantized} y = Gemm(xd, wd, b)", square, (const("float[1,8] b"),))
    yield model(f"{quantized} t = Transpose(wd) y = MatMul(xd, t)".replace("axis=1", "axis=0"), square)
    # The pair is on another branch than the activation, or not behind a convolution, or on a graph output.
    yield model(f"{CONV} r = Relu(c) {pair('d', 'c')} t = Relu(d) y = Add(r, t)")
    yield model(f"{CONV} {pair('d', 'c')} y = Relu(d)", io(outputs="float[1,8,4,4] y, float[1,8,4,4] c"))
    yield model(f"{pair('d', 'x')} y = Relu(d)")
    yield model(f"{CONV} k = Mul(c, hi) {pair('d', 'k')} y = Relu(d)")
    # Gates that are no SiLU: not of a convolution, of another tensor, or without the Mul.
    yield model(f"g = Sigmoid(x) {pair('d', 'g')} y = Mul(x, d)")
    yield model(f"{CONV} g = Sigmoid(c) {pair('d', 'g')} y = Mul(e, d)", two)
    yield model(f"{CONV} {pair('d', 'c')} g = Sigmoid(d) t = Mul(d, e) y = Sub(g, t)", two)
    yield model(f"{CONV} {pair('d', 'c')} g = Sigmoid(d) y = Sub(d, g)")
    # Both sides of an Add that fuses into no convolution.
    both = f"{pair('cd', 'c')} {pair('ed', 'e')} a = Add(cd, ed) {pair('y', 'a')}"
    yield model(f"{CONV} {both}", io(f"{X8}, float[1,8,4,4] e", "float[1,8,4,4] y, float[1,8,4,4] c"))
    yield model(f"c = Relu(x) {both}", two)
    yield model("y = Add(x, e)", two)
    yield model(f"{pair('xd', 'x')} y = com.microsoft.Conv(xd, w)")
    yield model("q = QuantizeLinear(x, s, z) y = Identity(q)", io(outputs="int8[1,8,4,4] y"))
    yield model("j = Concat<axis=1>(x, x) y = Relu(j)", io(outputs="float[1,16,4,4] y"))
    int4 = {"i": int(TensorProto.INT4), "k": int(TensorProto.INT4)}
    stored = (const("int8[8,8] i"), "int8 k = {0}")
    yield model("w4 = DequantizeLinear(i, s, k) y = MatMul(x, w4)", square, stored, types=int4)


@pytest.mark.parametrize("graph", list(allowed()))
def test_look_alikes_pass(graph: onnx.ModelProto) -> None:
    small = {"P27", "P28"}  # the graphs are too small to be worth int8
    assert [f for f in findings(graph) if f.severity != "I" and f.rule not in small] == []


def test_every_rule_has_a_case() -> None:
    assert {case.rule for case in CASES} == set(RULES)
    assert list(RULES) == [f"P{number}" for number in range(1, 29)]


def test_assert_legal_lists_errors_and_warnings_but_the_allowed_ones() -> None:
    wrong = model(f"{pair('xd', 'x')} y = Conv(xd, w)", extra=("int8 z = {3}",))
    with pytest.raises(AssertionError, match=r"(?s)P4 E xd_q: .*P20 W y: w is not quantized"):
        assert_legal(wrong)
    with pytest.raises(AssertionError, match="P20") as raised:
        assert_legal(wrong, allow=frozenset({"P4"}))
    assert "P4" not in str(raised.value)
    assert_legal(wrong, allow=frozenset({"P4", "P20"}))


def test_assert_legal_leaves_advice_and_information_out() -> None:
    twice = model(f"{pair('xd', 'x')} {pair('xe', 'x')} y = Add(xd, xe)")
    stored = model("y = DequantizeLinear(x, s, z)", io(inputs="int8[1,8,4,4] x"))
    assert {(f.rule, f.severity) for f in findings(twice)} >= {("P25", "W")}
    assert [(f.rule, f.severity) for f in findings(stored)] == [("P19", "I")]
    assert_legal(twice)
    assert_legal(stored)


def test_model_is_left_alone() -> None:
    proto = model(f"{CONV} {pair('d', 'c')} y = Relu(d)")
    before = proto.SerializeToString(deterministic=True)
    findings(proto)
    assert proto.SerializeToString(deterministic=True) == before


def test_subgraph_bodies_follow_the_same_rules() -> None:
    body = """xq = QuantizeLinear(x, s, z)
              y = If (k) <then_branch = t () => (float[1,8,4,4] a) {
                      d = DequantizeLinear(xq, s, z) e = QuantizeLinear(d, s, bad) a = DequantizeLinear(e, s, bad) },
                  else_branch = f () => (float[1,8,4,4] o) { d = DequantizeLinear(xq, s, z) o = Conv(d, w) }>"""
    found = findings(model(body, io(inputs=f"{X8}, bool k"), extra=("int8 bad = {1}",)))
    assert {(f.rule, f.where) for f in found if f.rule not in ADVICE} == {("P4", "e"), ("P4", "a"), ("P20", "o")}


def test_local_functions_are_looked_into() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
        g (float[4] x, float s, int8 z) => (float[4] y) { y = own.fake (x, s, z) }
        <domain: "own", opset_import: ["" : 21]>
        fake (x, s, z) => (y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"""
    rules = sorted(f.rule for f in findings(onnx.parser.parse_model(text)))
    assert rules == ["P2", "P2", "P4", "P4"]


def test_external_scales_are_read_and_external_weights_are_not(tmp_path: Path) -> None:
    proto = model(f"{CONV.replace('c =', 'y =')}", extra=(const("float[8] sv", 0),))
    for tensor in proto.graph.initializer:  # only raw data moves to a file
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    path = tmp_path / "m.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    loaded = onnx.load_model(path, load_external_data=False)
    weight = next(tensor for tensor in loaded.graph.initializer if tensor.name == "w")
    weight.external_data[0].value = "nowhere.bin"
    found = [(f.rule, f.where) for f in findings(loaded, str(tmp_path))]
    assert [place for place in found if place[0] not in ADVICE] == [("P3", "wd_q"), ("P3", "wd")]
    with pytest.raises(ValueError, match="pass its folder as base_dir"):
        findings(loaded, str(tmp_path / "elsewhere"))


def test_big_weights_need_no_values() -> None:
    proto = model(CONV.replace("c =", "y ="), io(outputs="float[1,8,n,m] y"), extra=(const("float[8,8,5,5] w"),))
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    weight.ClearField("float_data")
    assert_legal(proto)


def test_stored_int8_weights_are_legal() -> None:
    body = f"{pair('xd', 'x')} wd = DequantizeLinear<axis=0>(i, sv, zv) y = Conv(xd, wd, b)"
    assert_legal(model(body, extra=(const("int8[8,8,1,1] i"),)))


def test_half_precision_network_is_legal() -> None:
    halves = dict.fromkeys(("s", "sv", "w", "b"), int(TensorProto.FLOAT16))
    signature = io("float16[1,8,4,4] x", "float16[1,8,4,4] y")
    body = f"{CONV} {pair('d', 'x')} y = Add(c, d)"
    assert_legal(model(body, signature, types=halves))
    with pytest.raises(AssertionError, match="P14 E c: Conv reads FLOAT and FLOAT16"):
        assert_legal(model(body, signature, types=halves | {"b": TensorProto.FLOAT}))


def test_unknown_shapes_break_no_rule() -> None:
    assert_legal(model(CONV.replace("c =", "y ="), io(inputs="float[n,c,h,v] x", outputs="float[n,o,i,j] y")))


def test_defaults_of_onnxruntime_are_not_for_tensorrt(tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    body = """c = Conv<pads=[1,1,1,1]>(x, k, b) r = Relu(c) a = Add(r, x)
              p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, m, b)"""
    float_model = model(body, io(outputs="float[1,8] y"), extra=(const("float[8,8,3,3] k", 0.1),), opset=17)
    float_model.ir_version = 8
    assert_legal(float_model)
    used = {name for node in float_model.graph.node for name in node.input}
    kept = [tensor for tensor in float_model.graph.initializer if tensor.name in used]
    del float_model.graph.initializer[:]
    float_model.graph.initializer.extend(kept)
    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save_model(float_model, source)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined] # no type information
        def __init__(self) -> None:
            draws = np.random.default_rng(0).uniform(-1, 2, (4, 1, 8, 4, 4)).astype(np.float32)
            self.feeds = iter([{"x": draw} for draw in draws])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    quantization.quantize_static(source, target, Reader())
    found = findings(onnx.load_model(target))
    assert {("P4", "E"), ("P5", "E"), ("P16", "E")} <= {(f.rule, f.severity) for f in found}
    with pytest.raises(AssertionError, match="is not zero"):
        assert_legal(onnx.load_model(target))
