"""P19 to P26 on a graph that breaks each and on the nearest one that does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from check_graphs import CONV, X8, Case, assert_breached, assert_kept, const, io, model, pair
from legality import findings
from onnx import TensorProto

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx


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
    dq_only = f"{pair('xd', 'x')} wd = DequantizeLinear<axis=0>(i, sv, zv) y = Conv(xd, wd)"
    weights = (const("int8[8,8,1,1] i"),)
    yield Case("P19", model(dq_only, extra=weights), {("W", "wd")}, conv, target="tensorrt@8")
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
    # A Sum of two is an Add.
    summed = model(f"{CONV} {branch} {identity} y = Sum(cd, ed)", io(inputs=two))
    yield Case("P22", summed, {("W", "y")}, model(f"{CONV} {identity} y = Sum(c, ed)", io(inputs=two)))
    # SiLU behind the convolution belongs to the branch, a constant factor too.
    for tail in ("g = Sigmoid(c) k = Mul(c, g)", "g = HardSigmoid(c) k = Mul(g, c)", "k = Mul(c, hi)"):
        cut, whole = (
            f"{CONV} {tail} {identity} {rest}" for rest in (f"{pair('kd', 'k')} y = Add(kd, ed)", "y = Add(k, ed)")
        )
        yield Case("P22", model(cut, io(inputs=two)), {("W", "y")}, model(whole, io(inputs=two)))
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
    pooled = f"{pair('xd', 'x')} t = MaxPool<kernel_shape=[1,1]>(xd) {pair('y', 't')}"  # int8 between equal pairs
    requantized = pooled.replace("(t, s, z)", "(t, s2, z)").replace("(y_q, s, z)", "(y_q, s2, z)")
    yield Case("P26", model(requantized), {("W", "y_q")}, model(pooled))
    pad, extra = "Pad({}, pads)", ("int64[8] pads = {0,0,0,0,0,0,0,0}",)
    late = f"p = {pad.format('x')} {pair('d', 'p')} {pair('wd', 'w', 0)} y = Conv(d, wd)"
    early = f"{pair('d', 'x')} p = {pad.format('d')} {pair('wd', 'w', 0)} y = Conv(p, wd)"
    yield Case("P26", model(late, extra=extra), {("W", "d_q")}, model(early, extra=extra))
    yield Case("P26", model(f"{pair('d', 'x')} y = Erf(d)"), {("W", "d_q")}, model("y = Erf(x)"))
    mask = model(f"{pair('d', 'e')} a = Add(x, d) y = Softmax(a)", io(inputs=two))
    yield Case("P26", mask, {("W", "d_q")}, model("a = Add(x, e) y = Softmax(a)", io(inputs=two)))


CASES = [case for group in (pairs, fusions, residuals, advice) for case in group()]
IDS = [f"{case.rule}-{number}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_rule_finds_the_breach_and_no_other_rule_does(case: Case) -> None:
    assert_breached(case)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_neighbour_passes(case: Case) -> None:
    assert_kept(case)


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
    speed = {"P27", "P28", "P30"}  # the graphs are too small to be worth int8, and some end in float
    assert [f for f in findings(graph) if f.severity != "I" and f.id not in speed] == []


def test_a_pad_of_other_values_never_folds_into_a_convolution() -> None:
    extra = ("int64[8] pads = {0,0,0,0,0,0,0,0}", "float fill = {-1}")
    body = f"p = Pad(x, pads, fill) {pair('d', 'p')} {pair('wd', 'w', 0)} y = Conv(d, wd)"
    assert "P26" not in {f.id for f in findings(model(body, extra=extra))}
