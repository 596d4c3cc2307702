"""Attentions and the products that make their Q, K and V become one integer node: what is left alone first."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from graphs import Array, graph_of, lines, same_function
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.executed import executed
from onnxq.passes.cpu_qattention import quantize_attention

if TYPE_CHECKING:
    from onnxq.graph import Graph

    Weights = dict[str, npt.ArrayLike]

HEAD = "(float[B,S,24] x, {mask}) => (float[B,S,32] y{rest})"
CODES = "x8 = QuantizeLinear(x, sx, zx) "
PRODUCTS = "".join(
    f"{n} = com.microsoft.MatMulIntegerToFloat(x8, w{n}, sx, s{n}, zx, z{n}, b{n}) " for n in ("q", "k", "v")
)
PAIRS = "x9 = DequantizeLinear(x8, sx, zx) " + "".join(
    f"w{n}9 = DequantizeLinear<axis=1>(w{n}, s{n}, z{n}) {n} = MatMul(x9, w{n}9) " for n in ("q", "k", "v")
)
KEPT = "kept = Cast<to=9>(m) added = Where(kept, nought, low) "
ATTEND = "y = com.microsoft.MultiHeadAttention<num_heads=4, scale=0.3>(q, k, v, , , added)"
WHOLE = f"{CODES}{PRODUCTS}{KEPT}{ATTEND}"
MASK = "int64[B,1,S,S] m"


def constants(seed: int = 0) -> Weights:
    """Weights of 24 x 32, a scale and a bias for each column."""
    rng = np.random.default_rng(seed)
    made: Weights = {"sx": np.float32(0.03), "zx": np.uint8(120)}
    made |= {"nought": np.float32(0), "low": np.float32(np.finfo(np.float32).min), "one": np.float32(1)}
    for n in "qkv":
        made[f"w{n}"] = rng.integers(-64, 65, (24, 32)).astype(np.int8)
        made[f"s{n}"] = rng.uniform(0.003, 0.01, 32).astype(np.float32)
        made[f"z{n}"] = np.zeros(32, np.int8)
        made[f"b{n}"] = rng.normal(size=32).astype(np.float32)
    return made


def attention(body: str, mask: str = MASK, rest: str = "", seed: int = 0, weights: Weights | None = None) -> Graph:
    """Four heads of 8 over float[B,S,24] x."""
    used = {
        n: a
        for n, a in (constants(seed) | (weights or {})).items()
        if any(f"{f}{e}" in body for f in (f"({n}", f", {n}") for e in ",)")
    }
    graph = graph_of(f"{HEAD.format(mask=mask, rest=rest)} {{ {body} }}", 17, **used)
    graph.infer_shapes()
    for value in graph.values():  # onnx infers no shapes of other domains
        if value.name in ("q", "k", "v", "q1", "k1", "v1"):
            value.shape = graph.find("y").shape  # type: ignore[union-attr]
    return graph


def feeds(mask: str = MASK, seed: int = 0, batch: int = 2, length: int = 5) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    kind, _, dims = mask.partition("[")
    shape = [{"B": batch, "S": length}.get(d) or int(d) for d in dims.partition("]")[0].split(",")]
    flags = rng.integers(0, 2, shape)
    flags[..., 0] = 1
    return {"x": rng.normal(size=(batch, length, 24)).astype(np.float32), "m": flags.astype(kind)}


CHANGES = [
    ("QuantizeLinear(x, sx, zx)", "QuantizeLinear(x, sx, zx) u = Relu(q)", "", {}),  # read elsewhere
    ("(x8, wk,", "(x8, wq,", "", {}),  # a weight of two products
    (
        "com.microsoft.MatMulIntegerToFloat(x8, wk, sx,",
        "com.microsoft.MatMulIntegerToFloat(c8, wk, sx,",
        CODES.replace("x8", "c8"),
        {},
    ),
    ("(x8, wv, sx, sv, zx,", "(x8, wv, sc, sv, zx,", "", {"sc": np.float32(0.04)}),
    ("(x8, wv, sx, sv, zx,", "(x8, wv, sx, sv, zc,", "", {"zc": np.uint8(121)}),
    ("num_heads=4", "num_heads=4, unidirectional=1", "", {}),
    ("(q, k, v, , , added)", "(q, q, v, , , added)", "", {}),
    ("Where(kept, nought, low)", "Where(kept, low, nought)", "", {}),
    ("Where(kept, nought, low)", "Where(kept, one, low)", "", {}),
    ("Where(kept, nought, low)", "Cast<to=1>(m)", "", {}),
]


@pytest.mark.parametrize(("old", "new", "front", "weights"), CHANGES)
def test_others_are_left_alone(old: str, new: str, front: str, weights: Weights) -> None:
    assert old in WHOLE
    assert quantize_attention(attention(front + WHOLE.replace(old, new), weights=weights)) == 0


@pytest.mark.parametrize(
    "weights",
    [
        {"zk": np.full(32, 3, np.int8)},
        {"wk": np.ones((24, 32), np.uint8), "zk": np.zeros(32, np.uint8)},
        {
            "wk": np.ones((24, 16), np.int8),
            "sk": np.ones(16, np.float32),
            "zk": np.zeros(16, np.int8),
            "bk": np.ones(16, np.float32),
        },
    ],
)
def test_products_of_another_kind_are_left_alone(weights: Weights) -> None:
    assert quantize_attention(attention(WHOLE, weights=weights)) == 0


def test_products_between_pairs_are_left_alone() -> None:
    assert quantize_attention(attention(f"{CODES}{PAIRS}{KEPT}{ATTEND}")) == 0


@pytest.mark.parametrize(
    ("added", "mask"),
    [
        ("added = Cast<to=1>(m)", MASK),  # what is added may be anything
        ("i = Cast<to=1>(m) r = Sub(one, i) added = Mul(r, low)", "float[B,1,S,S] m"),
        ("i = Cast<to=1>(m) r = Add(one, i) added = Mul(r, low)", MASK),
        ("kept = Cast<to=9>(m) added = Where(kept, nought, low)", "int64[B,4,S,S] m"),  # a mask for each head
    ],
)
def test_masks_that_may_add_other_numbers_are_left_alone(added: str, mask: str) -> None:
    assert quantize_attention(attention(f"{CODES}{PRODUCTS}{added} {ATTEND}", mask)) == 0


@pytest.mark.parametrize(
    ("attend", "results"),
    [
        ("y = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, , m)", ""),  # of keys
        ("y, u, w = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v)", ", float[B,4,S,8] u"),
    ],
)
def test_attentions_with_more_inputs_or_results_are_left_alone(attend: str, results: str) -> None:
    body = f"{CODES}{PRODUCTS}{attend}"
    assert quantize_attention(attention(body, "int32[B,S] m", results)) == 0


WIDEN = "b = Shape(q) c = Concat<axis=0>(b, unit) n = Gather(c, axes) wide = Expand(added, n) "
"""To [B or 1, 1, S, S], as MultiHeadAttention reads it."""
MASKS = {
    "where": KEPT,
    "times": "i = Cast<to=1>(m) r = Sub(one, i) added = Mul(r, low) ",
    "swapped": "i = Cast<to=1>(m) r = Sub(one, i) added = Mul(low, r) ",
}


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["", *MASKS]),
    st.sampled_from(["B,1,S,S", "B,1,1,S", "1,1,1,S", "1,1,S,S"]),
    st.sampled_from([0.3, 8**-0.5]),
    st.sampled_from(["none", "of the products", "of the attention", "both"]),
)
def test_it_computes_the_same(seed: int, mask: str, dims: str, scale: float, biases: str) -> None:
    products = re.sub(r", b.\)", ")", PRODUCTS) if biases in ("none", "of the attention") else PRODUCTS
    operands = f"q, k, v, {'all' if biases in ('of the attention', 'both') else ''}, , {'wide' if mask else ''}".rstrip(
        ", "
    )
    attend = f"y = com.microsoft.MultiHeadAttention<num_heads=4, scale={scale}>({operands})"
    body = f"{CODES}{products}{MASKS.get(mask, '')}{WIDEN if mask else ''}{attend}"
    more: Weights = {"all": np.random.default_rng(seed).normal(size=96).astype(np.float32)}
    more |= {"unit": np.array([1]), "axes": np.array([3, 3, 1, 1])}
    graph = attention(body, f"int64[{dims}] m", "", seed, more)
    before = graph.copy()
    assert quantize_attention(graph) == 1
    graph.remove_unused()
    assert graph.problem() is None
    kinds = [node.op_type for node in graph.nodes]
    assert kinds.count("QAttention") == 1
    assert not {"MatMulIntegerToFloat", "MultiHeadAttention", "Where", "Sub"} & set(kinds)
    same_function(before, graph, feeds(f"int64[{dims}] m", seed), 1e-5)


def test_rows_without_a_key_come_out_as_before() -> None:
    graph = attention(WHOLE)
    before = graph.copy()
    assert quantize_attention(graph) == 1
    graph.remove_unused()
    data = feeds()
    data["m"][0, :, 2:] = 0
    same_function(before, graph, data, 1e-5)


def test_one_mask_serves_all_layers() -> None:
    again = f"{CODES}{PRODUCTS}{ATTEND}".replace("y = ", "z = ").replace("QuantizeLinear(x,", "QuantizeLinear(x1,")
    for name in ("x8", "q", "k", "v", "wq", "wk", "wv"):
        again = re.sub(rf"\b{name}\b", f"{name}1", again)
    more: Weights = {f"w{n}1": np.asarray(constants(1)[f"w{n}"]) for n in "qkv"}
    more |= {"start": np.array([0]), "stop": np.array([24]), "last": np.array([2])}
    graph = attention(f"{WHOLE} x1 = Slice(y, start, stop, last) {again}", MASK, ", float[B,S,32] z", weights=more)
    before = graph.copy()
    assert quantize_attention(graph) == 2
    graph.remove_unused()
    assert [node.op_type for node in graph.nodes].count("Expand") == 1
    same_function(before, graph, feeds(), 1e-4)


def test_weights_lie_side_by_side() -> None:
    graph = attention(WHOLE)
    assert quantize_attention(graph) == 1
    graph.remove_unused()
    text = "y = QAttention(x8, y/weight, y/bias, sx, y/weight_scale, kept/flags/expanded, zx, y/weight_zero_point)"
    assert text in lines(graph)


def test_its_multiply_accumulates_are_counted_by_what_they_run_on() -> None:
    graph = attention(WHOLE)
    assert quantize_attention(graph) == 1
    graph.remove_unused()
    seen = {"x8": ("uint8", (2, 5, 24)), "y": ("float", (2, 5, 32))}
    found = {each.runs: each.macs for each in executed(graph.to_proto(), seen) if each.op_type == "QAttention"}
    assert found == {"integer": 3 * 2 * 5 * 24 * 32, "float": 2 * 2 * 4 * 5 * 5 * 8}
