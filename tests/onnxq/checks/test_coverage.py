"""P35 and the summary: work per precision, counted by running ONNX's reference on ones, and reformats by hand."""

from __future__ import annotations

import numpy as np
import pytest
from check_graphs import CONV, X8, const, io, model, pair

from onnxq.checks import Report, check


def report(body: str, signature: str = io(), extra: tuple[str, ...] = (), **options: object) -> Report:
    return check(model(body, signature, extra, **options), "tensorrt@10")  # type: ignore[arg-type]  # model's own


@pytest.mark.parametrize("quantized", [True, False])
def test_skipped_products_are_named(quantized: bool) -> None:
    found = report(CONV.replace("c =", "y =") if quantized else "y = Conv(x, w)").findings
    skipped = [f for f in found if f.id == "P35"]
    assert [(f.severity, f.where) for f in skipped] == ([] if quantized else [("I", "y")])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Conv(x, w)", "neither its input nor its weight is quantized"),
        (f"{pair('d', 'x')} y = Conv(d, w)", "only d is quantized"),
        (f"{pair('d', 'w', 0)} y = Conv(x, d)", "only d is quantized"),
        ("y = MatMul(x, x)", "product of two activations, neither quantized"),
    ],
)
def test_reasons(body: str, reason: str) -> None:
    (found,) = [f for f in report(body).findings if f.id == "P35"]
    assert reason in found.message
    assert found.message.startswith("fp32, ")


def made(op: str, x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, int]) -> np.ndarray:
    """The output of all-ones operands, by ONNX's reference: its sum is the number of products made (no padding)."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    node = helper.make_node(op, ["x", "w"], ["y"])
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xwy"]
    graph = helper.make_graph([node], "g", tensors[:2], tensors[2:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    (output,) = ReferenceEvaluator(proto).run(None, {"x": np.ones(x, np.float32), "w": np.ones(w, np.float32)})
    return np.asarray(output)


@pytest.mark.parametrize(
    ("op", "x", "w", "attributes"),
    [
        ("Conv", (2, 8, 5, 4), (6, 8, 3, 2), {}),
        ("Conv", (1, 8, 5, 5), (8, 2, 3, 3), {"group": 4}),
        ("ConvTranspose", (1, 4, 3, 3), (4, 5, 2, 2), {}),
        ("Gemm", (3, 7), (7, 5), {}),
        ("Gemm", (3, 7), (5, 7), {"transB": 1}),
        ("MatMul", (2, 3, 7), (7, 5), {}),
        ("MatMul", (2, 3, 7), (2, 7, 5), {}),
        ("MatMul", (3, 7), (7,), {}),
    ],
)
def test_macs_are_the_products_made(
    op: str, x: tuple[int, ...], w: tuple[int, ...], attributes: dict[str, int]
) -> None:
    dims = ",".join(map(str, w))
    call = f"y = {op}{'<' + ', '.join(f'{k}={v}' for k, v in attributes.items()) + '>' if attributes else ''}(x, k)"
    output = made(op, x, w, attributes)
    signature = io(*(f"float[{','.join(map(str, shape))}] {name}" for shape, name in ((x, "x"), (output.shape, "y"))))
    found = report(call, signature, (const(f"float[{dims}] k"),))
    assert found.summary.macs == {"fp32": int(output.sum())}


def test_macs_of_a_grouped_convtranspose_are_those_of_its_groups() -> None:
    body, weight = "y = ConvTranspose<group=2>(x, k)", const("float[4,5,2,2] k")
    found = report(body, io("float[1,4,3,3] x", "float[1,10,4,4] y"), (weight,))
    assert found.summary.macs == {"fp32": 2 * int(made("ConvTranspose", (1, 2, 3, 3), (2, 5, 2, 2), {}).sum())}


def test_shares_by_precision() -> None:
    found = report(f"{CONV} y = Conv(c, w)").summary
    assert found.macs == {"int8": 8 * 8 * 16, "fp32": 8 * 8 * 16}
    assert found.nodes == {"int8": 1, "fp32": 1}
    assert found.share("int8") == pytest.approx(0.5)
    assert found.share("fp16") == 0
    assert report("y = Relu(x)").summary.share("int8") == 0


def test_integer_operators_are_counted_as_refused() -> None:
    body = "q = QuantizeLinear(x, s, z) p = QLinearConv(q, s, z, i, s, z, s, z) y = DequantizeLinear(p, s, z)"
    found = report(body, extra=(const("int8[8,8,1,1] i"),))
    assert found.summary.macs == {"refused": 8 * 8 * 16}


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        # in front of the convolution; its own output is float
        (CONV.replace("c =", "y ="), [("xd_q", "fp32", "int8")]),
        # the second Q is free: the first convolution writes int8, through the activation
        (f"{CONV} r = Relu(c) {pair('d', 'r')} y = Conv(d, wd)", [("xd_q", "fp32", "int8")]),
        (f"{CONV} g = Sigmoid(c) r = Mul(c, g) {pair('d', 'r')} y = Conv(d, wd)", [("xd_q", "fp32", "int8")]),
        (f"{CONV} r = MaxPool<kernel_shape=[1,1]>(c) {pair('d', 'r')} y = Conv(d, wd)", [("xd_q", "fp32", "int8")]),
        # Tanh is float: out of int8 for it, and into int8 behind it
        (
            f"{CONV} {pair('d', 'c')} t = Tanh(d) {pair('e', 't')} y = Conv(e, wd)",
            [("xd_q", "fp32", "int8"), ("d", "int8", "fp32"), ("e_q", "fp32", "int8")],
        ),
        # a residual Add fuses with its convolution; the identity arrives in int8
        (f"{CONV} a = Add(c, xd) {pair('d', 'a')} y = Conv(d, wd)", [("xd_q", "fp32", "int8")]),
        # an Add of two dequantized tensors that is not quantized behind runs in float
        (f"{pair('xd', 'x')} y = Add(xd, xd)", [("xd_q", "fp32", "int8"), ("xd", "int8", "fp32")]),
        # a second pair with another scale requantizes, one with the same does not
        (
            (
                f"{pair('xd', 'x')} e_q = QuantizeLinear(xd, s2, z) e = DequantizeLinear(e_q, s2, z) "
                f"{pair('wd', 'w', 0)} y = Conv(e, wd)"
            ),
            [("xd_q", "fp32", "int8"), ("e_q", "int8", "int8")],
        ),
        (f"{pair('xd', 'x')} {pair('e', 'xd')} {pair('wd', 'w', 0)} y = Conv(e, wd)", [("xd_q", "fp32", "int8")]),
        # a Pad whose readers quantize with the same scale works on codes, one that a convolution reads does not
        (
            f"{pair('xd', 'x')} p = Pad(xd, pads, lo) {pair('e', 'p')} {pair('wd', 'w', 0)} y = Conv(e, wd)",
            [("xd_q", "fp32", "int8")],
        ),
        (
            f"{pair('xd', 'x')} p = Pad(xd, pads, lo) {pair('wd', 'w', 0)} y = Conv(p, wd)",
            [("xd_q", "fp32", "int8"), ("xd", "int8", "fp32")],
        ),
        # from one float type to another
        ("h = Cast<to=10>(x) t = Tanh(h) y = Cast<to=1>(t)", [("h", "fp32", "fp16"), ("y", "fp16", "fp32")]),
    ],
)
def test_reformats(body: str, changes: list[tuple[str, str, str]]) -> None:
    found = report(body, extra=("int64[8] pads = {0, 0, 0, 0, 0, 0, 0, 0}",)).summary.reformats
    assert [(change.where, change.before, change.after) for change in found] == changes


def test_a_concat_takes_its_quantizer_to_its_inputs() -> None:
    two = io(f"{X8}, float[1,8,4,4] e", "float[1,16,4,4] y")
    behind = f"p = Conv(xd, wd) j = Concat<axis=1>(c, p) {pair('d', 'j')} y = Tanh(d)"
    assert [c.where for c in report(f"{CONV} {behind}", two).summary.reformats] == ["xd_q", "d"]
    half = behind.replace("(c, p)", "(c, e)")
    assert [c.where for c in report(f"{CONV} {half}", two).summary.reformats] == ["xd_q", "d_q", "d"]


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_recurrent_operators_count_and_run_in_float(op: str, gates: int) -> None:
    sizes = {"w2": (gates * 6, 5), "r2": (gates * 6, 6)}
    extra = tuple(f"float[1,{m},{n}] {name} = {{{', '.join(['1'] * m * n)}}}" for name, (m, n) in sizes.items())
    found = report(f"y = {op}<hidden_size=6>(x, w2, r2)", "(float[7,2,5] x) => (float[7,1,2,6] y)", extra)
    assert found.summary is not None
    assert found.summary.macs == {"fp32": 7 * 2 * gates * 6 * (5 + 6)}
    (said,) = [f for f in found.findings if f.id == "P35"]
    assert "recurrent" in said.message
