"""P27 to P29 on a graph that breaks each and on the nearest one that does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from check_graphs import Case, assert_breached, assert_kept, const, io, model, pair

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx


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

    def product(m: int | str, k: int, n: int, weight: str = "") -> onnx.ModelProto:
        text = f"{pair('xd', 'x')} {pair('wd', 'm')} y = MatMul(xd, wd)"
        extra = (const(f"float[{weight or f'{k},{n}'}] m"),)
        return model(text, io(inputs=f"float[{m},{k}] x", outputs=f"float[{m},{n}] y"), extra=extra)

    for shape in ((1, 16, 16), (16, 16, 1), (16, 8, 16), (16, 16, 8)):
        yield Case("P28", product(*shape), {("W", "y")}, product(2, 16, 16))
    for rows in ("12,1", "N,1", "2,1,1", "1,2"):  # in the batch, of which all read one matrix
        yield Case("P28", product(1, 16, 16), {("W", "y")}, product(rows, 16, 16))
    yield Case("P28", product("1,1,1", 16, 16), {("W", "y")}, product("2,2", 16, 16, "2,16,16"))
    yield Case("P28", product("2,1", 16, 16, "2,16,16"), {("W", "y")}, product("2,1", 16, 16, "1,16,16"))


def attention() -> Iterator[Case]:
    def scores(length: int, scale: float = 1 / 127) -> onnx.ModelProto:
        body = f"""{pair("ad", "a")} {pair("kd", "k")} {pair("vd", "v")}
                   m1 = MatMul(ad, kd) m2 = Mul(m1, lo) m3 = Add(m2, mask) p = Softmax(m3)
                   pq = QuantizeLinear(p, sp, z) pd = DequantizeLinear(pq, sp, z) y = MatMul(pd, vd)"""
        inputs = f"float[1,{length},64] a, float[1,64,{length}] k, float[1,{length},64] v, float[1,1,{length}] mask"
        return model(body, io(inputs, f"float[1,{length},64] y"), extra=(f"float sp = {{{scale}}}",))

    floats = model(
        "m1 = MatMul(a, k) p = Softmax(m1) y = MatMul(p, v)",
        io("float[1,1024,64] a, float[1,64,1024] k, float[1,1024,64] v", "float[1,1024,64] y"),
    )
    for good in (scores(512), floats):
        yield Case("P29", scores(513), {("W", "m1"), ("W", "y")}, good)
    yield Case("P29", scores(16, 1 / 64), {("W", "pq")}, scores(16))
    yield Case("P29", scores(16, 1 / 255), {("W", "pq")}, scores(16, 0.0078740))


CASES = [case for group in (sizes, attention) for case in group()]
IDS = [f"{case.rule}-{number}" for number, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_rule_finds_the_breach_and_no_other_rule_does(case: Case) -> None:
    assert_breached(case)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_neighbour_passes(case: Case) -> None:
    assert_kept(case)
