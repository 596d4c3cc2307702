"""P16 to P18 on a graph that breaks each and on the nearest one that does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from check_graphs import CONV, X8, Case, assert_breached, assert_kept, const, io, model, pair

if TYPE_CHECKING:
    from collections.abc import Iterator


def operators() -> Iterator[Case]:
    conv = model(CONV.replace("c =", "y ="))
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


CASES = [case for group in (operators,) for case in group()]
IDS = [f"{case.rule}-{number}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_rule_finds_the_breach_and_no_other_rule_does(case: Case) -> None:
    assert_breached(case)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_neighbour_passes(case: Case) -> None:
    assert_kept(case)
