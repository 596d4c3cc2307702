from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from graphs import graph_of
from onnx import defs
from optimized import operators

from onnxq import api
from onnxq.checks.ort_cuda import RULES
from onnxq.checks.ort_cuda_kernels import ABSENT, KERNELS, kernel_of

W8 = np.ones((64, 32), np.int8)
S = np.array(0.1, np.float32)
Z = np.array(0, np.int8)
COLUMNS = {"sw": np.ones(32, np.float32), "zw": np.zeros(32, np.int8)}

GOOD = """(float[4, 64] x) => (float[4, 32] y) {
    q = QuantizeLinear(x, s, z) p = MatMulInteger(q, w) c = Cast<to=1>(p) y = Mul(c, s) }"""


def found(text: str, opset: int = 17, **weights: object) -> list[tuple[str, str]]:
    graph = graph_of(text, opset, **weights)  # type: ignore[arg-type]  # arrays
    return [(f.id, f.severity) for f in api.check(graph, "ort-cuda").findings]


def test_the_form_we_emit_passes() -> None:
    report = api.check(graph_of(GOOD, w=W8, s=S, z=Z), "ort-cuda")
    assert not report.findings
    assert report.summary.macs == {"int8": 4 * 64 * 32}


def test_a_recurrent_operator_of_which_only_the_last_state_is_read_has_its_type() -> None:
    w, r = np.ones((1, 24, 8), np.float32), np.ones((1, 24, 8), np.float32)
    text = "(float[5, 1, 8] x) => (float[1, 1, 8] y) { _, y = GRU<hidden_size=8>(x, w, r) }"
    model = graph_of(text, w=w, r=r).to_proto()
    model.graph.node[0].output[0] = ""
    assert api.check(model, "ort-cuda").summary.macs == {"float32": 5 * 2 * 24 * 8}


@pytest.mark.parametrize(
    ("rule", "severity", "text", "opset", "weights"),
    [
        ("C1", "E", "(float[4, 64] x) => (uint8[4, 64] y) { y, s, z = DynamicQuantizeLinear(x) }", 17, {}),
        (
            "C1",
            "E",
            "(uint8[1,4,8,8] x) => (int32[A,B,C,D] y) { y = ConvInteger(x, w) }",
            17,
            {"w": np.ones((4, 4, 3, 3), np.uint8)},
        ),
        (
            "C1",
            "E",
            "(uint8[4, 64] x) => (uint8[4, 32] y) { y = QLinearMatMul(x, s, z, w, s, z, s, z) }",
            17,
            {"w": np.ones((64, 32), np.uint8), "s": S, "z": np.array(0, np.uint8)},
        ),
        (
            "C2",
            "E",
            "(float[4] x) => (float[4] y) { y = DequantizeLinear(w, s, z) }",
            17,
            {"w": np.ones(4, np.int32), "s": S, "z": np.array(0, np.int32)},
        ),
        (
            "C2",
            "E",
            "(float[4] x) => (uint16[4] y) { y = QuantizeLinear(x, s, z) }",
            21,
            {"s": S, "z": np.array(0, np.uint16)},
        ),
        ("C2", "E", "(uint8[4, 64] x) => (int32[4, 32] y) { y = MatMulInteger(x, w) }", 17, {"w": W8}),
        ("C2", "E", "(float[4, 4] x) => (float[A, B] y) { y = Pad(x, p) }", 21, {"p": np.zeros(4, np.int64)}),
        ("C2", "I", "(int64[4] x) => (bool[4] y) { y = Equal(x, x) }", 19, {}),
        ("C2", "W", "(float[4] x) => (float[4] y) { y = Asinh(x) }", 17, {}),
        (
            "C3",
            "W",
            (
                "(float[1,4,8,8] x) => (float[A,B,C,D] y) {"
                " q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Conv(d, w) }"
            ),
            17,
            {"w": np.ones((4, 4, 3, 3), np.float32), "s": S, "z": Z},
        ),
        ("C4", "W", GOOD.replace("32", "40"), 17, {"w": np.ones((64, 40), np.int8), "s": S, "z": Z}),
        (
            "C5",
            "W",
            "(int8[4, 64] x) => (int32[4, 32] y) { y = MatMulInteger(x, w, z) }",
            17,
            {"w": W8, "z": np.array(3, np.int8)},
        ),
        ("C5", "W", "(int8[4, 64] x, int8 z) => (int32[4, 32] y) { y = MatMulInteger(x, w, z) }", 17, {"w": W8}),
        (
            "C6",
            "W",
            "(int64[2] i) => (float[2, 32] y) { d = DequantizeLinear(w, s, z) y = Gather(d, i) }",
            17,
            {"w": W8, "s": S, "z": Z},
        ),
        (
            "C7",
            "I",
            "(float[4, 64] x) => (float[4, 32] y) { d = DequantizeLinear<axis=1>(w, sw, zw) y = MatMul(x, d) }",
            17,
            {"w": W8, **COLUMNS},
        ),
        (
            "C7",
            "W",
            "(float[4, 64] x) => (float[4, 32] y) { d = DequantizeLinear<axis=0>(w, sw, zw) y = Gemm<transB=1>(x, d) }",
            17,
            {"w": W8.T, **COLUMNS},
        ),
        (
            "C7",
            "W",
            (
                "(float[4, 64] x) => (float[4, 32] y) {"
                " d = DequantizeLinear<axis=0, block_size=8>(w, b, o) y = MatMul(x, d) }"
            ),
            21,
            {"w": W8, "b": np.ones((8, 32), np.float32), "o": np.zeros((8, 32), np.int8)},
        ),
    ],
)
def test_findings(rule: str, severity: str, text: str, opset: int, weights: dict[str, object]) -> None:
    assert (rule, severity) in found(text, opset, **weights)


FORMS: list[tuple[str, tuple[int, ...]]] = [
    ("", ()),
    ("<axis=-1>", ()),
    ("", (32,)),
    ("<axis=1>", (32,)),
    ("<axis=-1>", (32,)),
    ("<axis=0>", (64,)),
    ("<axis=-2>", (64,)),
    ("<axis=1>", (1,)),
    ("<axis=0, block_size=32>", (2, 32)),
    ("<axis=-2, block_size=32>", (2, 32)),
    ("<axis=0, block_size=8>", (8, 32)),
    ("<axis=1, block_size=16>", (64, 2)),
]


@pytest.mark.parametrize(("attributes", "shape"), FORMS)
@pytest.mark.parametrize("product", ["MatMul", "Gemm"])
def test_weights_are_said_to_fuse_where_onnx_runtime_fuses_them(
    product: str, attributes: str, shape: tuple[int, ...]
) -> None:
    text = f"(float[4, 64] x) => (float[4, 32] y) {{ d = DequantizeLinear{attributes}(w, s) y = {product}(x, d) }}"
    scales = np.full(shape, 0.01, np.float32)
    fuses = "MatMulNBits" in operators(graph_of(text, 21, w=W8, s=scales))
    assert ("C7", "I" if fuses else "W") in found(text, 21, w=W8, s=scales)


def test_half_precision_quantizers_need_opset_19() -> None:
    assert kernel_of("", "QuantizeLinear", 13, ("float32", "float32", "int8"), "int8") is not None
    assert kernel_of("", "QuantizeLinear", 13, ("float16", "float16", "int8"), "int8") is None
    assert kernel_of("", "QuantizeLinear", 19, ("float16", "float16", "int8"), "int8") is not None
    assert kernel_of("", "DequantizeLinear", 21, ("int4", "float16", "int4"), "float16") is not None
    assert kernel_of("", "DequantizeLinear", 19, ("int4", "float16", "int4"), "float16") is None


@pytest.mark.parametrize("version", [1, 10, 11, 13])
def test_a_kernel_without_an_end_matches_its_version_alone(version: int) -> None:
    assert (kernel_of("", "MatMulInteger", version, ("int8", "int8"), "int32") is not None) is (version == 10)


def test_the_table_is_in_order() -> None:
    for (domain, op), rows in KERNELS.items():
        spans = [(row.first, row.last) for row in rows]
        assert spans == sorted(spans), op
        assert all(a <= b for a, b in spans), op
        assert all(one[1] < other[0] for one, other in itertools.pairwise(spans)), op
        assert all(row.types and row.source for row in rows), op
        assert domain or defs.has(op), op
        assert op not in ABSENT, op
        if not domain:  # every row speaks of a version that the operator has
            versions = {s.since_version for s in defs.get_all_schemas_with_history() if s.name == op and not s.domain}
            assert all(any(a <= v <= b for v in versions) for a, b in spans), op


def test_the_documentation_lists_every_rule() -> None:
    written = (Path(__file__).parents[3] / "docs" / "onnxruntime.md").read_text()
    assert set(re.findall(r"^\| (C\d) \|", written, re.MULTILINE)) == set(RULES)
