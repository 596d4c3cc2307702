from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of, lines, named_in, random_feeds, same_function
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.passes.fold_affine import fold_affine

if TYPE_CHECKING:
    import numpy.typing as npt

    from onnxq.graph import Graph

RNG = np.random.default_rng(3)
CONV = "(float[2,3,8,8] x) => (float[2,4,6,6] y) "


def floats(*shape: int) -> Array:
    """Numbers away from 0, so that dividing by them keeps the precision."""
    return np.asarray(RNG.uniform(0.5, 2, shape) * RNG.choice([-1, 1], shape), dtype=np.float32)


@pytest.mark.parametrize(
    ("text", "constant"),
    [
        pytest.param(CONV + "{ c = Conv(x, w) m = Mul(c, k) y = Add(m, c) }", (1,), id="another user"),
        pytest.param(CONV + "{ c = Conv(x, w) y = Mul(c, k) }", (6,), id="along the width"),
        pytest.param(CONV + "{ c = Conv(x, w) y = Mul(c, k) }", (1, 4, 6, 6), id="for each pixel"),
        pytest.param(CONV + "{ c = Conv(x, w) y = Mul(c, k) }", (2, 1, 1, 1), id="for each sample"),
        pytest.param("(float[2,3,8,8] x) => (float[1,2,4,6,6] y) { c = Conv(x, w) y = Mul(c, k) }",
                     (1,) * 5, id="rank grows behind"),
        pytest.param(CONV + "{ c = Conv(x, w) y = Div(k, c) }", (1,), id="divided by the activation"),
        pytest.param(CONV + "{ c = Conv(x, w) r = Relu(c) y = Mul(r, k) }", (1,), id="something in between"),
        pytest.param(CONV + "{ u = Relu(w) c = Conv(x, u) y = Mul(c, k) }", (1,), id="a computed weight"),
        pytest.param("(float[2,3,8,8] x) => (float[2,4,8,8] y) { a = Add(x, k) y = Conv<pads = [1,1,1,1]>(a, w) }",
                     (1,), id="shift before padding"),
        pytest.param('(float[2,3,8,8] x) => (float y) { a = Sub(x, k) y = Conv<auto_pad = "SAME_UPPER">(a, w) }',
                     (1,), id="shift before automatic padding"),
        pytest.param("(float[2,1,8,8] x) => (float[2,4,6,6] y) { a = Mul(x, k) y = Conv(a, w) }",
                     (1, 3, 1, 1), id="channels grow by broadcasting"),
        pytest.param("(float[2,N,8,8] x) => (float[2,4,6,6] y) { a = Mul(x, k) y = Conv(a, w) }",
                     (1, 3, 1, 1), id="channels may grow by broadcasting"),
        pytest.param("(float[3,8,8] x) => (float[1,4,6,6] y) { a = Mul(x, k) y = Conv(a, w) }",
                     (1, 1, 1, 1), id="rank grows by broadcasting"),
        pytest.param(CONV + "{ a = Mul(x, k) c = Conv(a, w) d = Conv(a, w) y = Add(c, d) }", (1,), id="two users"),
        pytest.param(CONV + "{ g = Sigmoid(x) p = Mul(x, g) a = Mul(p, k) y = Conv(a, w) }", (1,), id="end of a gate"),
        pytest.param(CONV + "{ c = Conv(x, w) q = QuantizeLinear(c, s) d = DequantizeLinear(q, s) y = Mul(d, k) }",
                     (1,), id="quantized in between"),
        pytest.param(CONV + "{ q = QuantizeLinear(w, s) d = DequantizeLinear(q, s) c = Conv(x, d) y = Mul(c, k) }",
                     (1,), id="a quantized weight"),
    ],
)  # fmt: skip
def test_leaves_alone(text: str, constant: tuple[int, ...]) -> None:
    graph = graph_of(text, w=floats(4, 3, 3, 3), k=floats(*constant), s=np.float32(0.1))
    graph.infer_shapes()
    before = lines(graph)
    assert fold_affine(graph) == 0
    assert lines(graph) == before


def test_leaves_model_outputs_and_computed_operands() -> None:
    text = "(float[2,3,8,8] x, float k) => (float[2,4,6,6] y, float[2,4,6,6] c) { c = Conv(x, w) y = Mul(c, k) }"
    assert fold_affine(graph_of(text, w=floats(4, 3, 3, 3))) == 0
    text = text.replace(", float k", "").replace("Mul(c, k)", "Mul(c, w1)")
    assert fold_affine(graph_of(text, w=floats(4, 3, 3, 3), w1=floats(1))) == 0


@pytest.mark.parametrize("number", [0.0, np.inf, np.nan, 1e-38])
def test_leaves_what_overflows(number: float) -> None:
    graph = graph_of(
        CONV + "{ c = Conv(x, w) y = Div(c, k) }", w=floats(4, 3, 3, 3) * np.float32(10), k=np.float32(number)
    )
    assert fold_affine(graph) == 0


def test_leaves_half_precision_that_would_vanish() -> None:
    text = "(float16[1,2] x) => (float16[1,2] y) { a = Mul(x, k) y = MatMul(a, w) }"
    tiny = np.array([[1e-4, 2e-4], [3e-4, 1e-4]], np.float16)
    assert fold_affine(graph_of(text, w=tiny, k=np.float16(1e-3))) == 0
    assert fold_affine(graph_of(text, w=tiny, k=np.float16(2))) == 1


def test_an_add_behind_a_matmul_stays() -> None:
    graph = graph_of("(float[2,5] x) => (float[2,4] y) { p = MatMul(x, w) y = Add(p, k) }", w=floats(5, 4), k=floats(4))
    assert fold_affine(graph) == 0


def test_integers_stay() -> None:
    text = "(int32[2,5] x) => (int32[2,4] y) { p = MatMul(x, w) y = Mul(p, k) }"
    assert fold_affine(graph_of(text, w=np.ones((5, 4), np.int32), k=np.int32(2))) == 0


def test_a_chain_behind_a_convolution() -> None:
    text = CONV + "{ c = Conv(x, w) m = Mul(k, c) a = Sub(e, m) d = Div(a, k) y = Relu(d) }"
    graph = graph_of(text, w=floats(4, 3, 3, 3), k=floats(4, 1, 1), e=floats(1))
    before = graph.copy()
    assert fold_affine(graph) == 3
    assert [line.split("(")[0] for line in lines(graph)] == ["d = Conv", "y = Relu"]
    same_function(before, graph, random_feeds(graph))


def test_normalization_before_a_convolution() -> None:
    """By hand: y = 2 (x - 3) / 4 summed over two channels = 0.5 x0 + 0.5 x1 - 3."""
    text = "(float[1,2,1,1] x) => (float[1,1,1,1] y) { a = Sub(x, m) b = Div(a, d) y = Conv(b, w) }"
    graph = graph_of(
        text, w=np.full((1, 2, 1, 1), 2, np.float32), m=np.float32(3), d=np.full((1, 2, 1, 1), 4, np.float32)
    )
    graph.infer_shapes()
    assert fold_affine(graph) == 2
    weight, bias = (graph.const(v) for v in graph.nodes[0].inputs[1:])
    assert weight is not None
    assert bias is not None
    assert weight.ravel().tolist() == [0.5, 0.5]
    assert bias.tolist() == [-3.0]


def test_a_padded_convolution_takes_the_factor_and_leaves_the_shift() -> None:
    text = "(float[2,3,8,8] x) => (float[2,4,8,8] y) { a = Sub(x, k) b = Div(a, k) y = Conv<pads = [1,1,1,1]>(b, w) }"
    graph = graph_of(text, w=floats(4, 3, 3, 3), k=floats(1, 3, 1, 1))
    graph.infer_shapes()
    before = graph.copy()
    assert fold_affine(graph) == 1
    assert lines(graph) == ["a = Sub(x, k)", "y = Conv(a, w/folded)"]
    same_function(before, graph, random_feeds(graph))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("m = Mul(x, k) y = MatMul(m, w)", ["y = MatMul(x, w/folded)"]),
        ("m = Mul(x, r) y = MatMul(m, w)", ["y = MatMul(x, w/folded)"]),
        ("p = MatMul(x, w) y = Mul(c, p)", ["y = MatMul(x, w/folded)"]),
        (
            "p = MatMul(x, w) a = Add(c, p) y = Mul(a, c)",
            ["p/scaled = MatMul(x, w/folded)", "y = Add(c/folded, p/scaled)"],
        ),
        ("p = MatMul(x, w) a = Add(p, c) y = Sub(a, e)", ["p = MatMul(x, w)", "y = Add(p, c/folded)"]),
        ("m = Add(x, k) y = MatMul(m, w)", ["m = Add(x, k)", "y = MatMul(m, w)"]),
    ],
)
def test_matmul(body: str, expected: list[str]) -> None:
    graph = graph_of(
        "(float[3,2,5] x) => (float[3,2,4] y) { " + body + " }",
        w=floats(5, 4),
        k=floats(1),
        r=floats(5),
        c=floats(4),
        e=floats(4),
    )
    before = graph.copy()
    fold_affine(graph)
    assert lines(graph) == expected
    same_function(before, graph, random_feeds(graph))


STEP = st.tuples(st.sampled_from(["Mul", "Div", "Add", "Sub"]), st.booleans(), st.booleans())


def step(source: str, target: str, constant: str, op: str, *, swapped: bool) -> str:
    return f"{target} = {op}({constant}, {source})" if swapped else f"{target} = {op}({source}, {constant})"


@settings(max_examples=80, deadline=None)
@given(STEP, STEP, st.integers(1, 2), st.booleans(), st.booleans(), st.booleans())
def test_any_convolution(
    before: tuple[str, bool, bool],
    behind: tuple[str, bool, bool],
    groups: int,
    padded: bool,
    transposed: bool,
    biased: bool,
) -> None:
    op = "ConvTranspose" if transposed else "Conv"
    size = 5 + 2 if transposed else 3
    size += (-2 if transposed else 2) * padded
    per_channel = before[2] and before[0] != "Div"
    text = (
        f"(float[2,4,5] x) => (float[2,6,{size}] y) {{"
        + step("x", "a", "k", before[0], swapped=before[1] and before[0] != "Div")
        + f" c = {op}<group = {groups}, pads = {[int(padded)] * 2}>(a, w{', o' if biased else ''}) "
        + step("c", "y", "e", behind[0], swapped=behind[1])
        + "}"
    )
    graph = graph_of(
        text,
        w=floats(4, 6 // groups, 3) if transposed else floats(6, 4 // groups, 3),
        k=floats(1, 4, 1) if per_channel else floats(1),
        e=floats(6, 1) if behind[2] else floats(1, 1, 1),
        **({"o": floats(6)} if biased else {}),
    )
    original = graph.copy()
    folded = fold_affine(graph)
    assert folded >= int(not (behind[0] == "Div" and behind[1]))
    feeds = random_feeds(graph)
    if behind[0] == "Div" and behind[1]:  # 1 / y magnifies rounding where y is near 0
        return
    same_function(original, graph, feeds)


@settings(max_examples=40, deadline=None)
@given(STEP, st.integers(0, 1), st.integers(0, 1), st.sampled_from([None, (), (4,), (1, 4), (3, 1), (3, 4)]))
def test_any_gemm(behind: tuple[str, bool, bool], trans_a: int, trans_b: int, shape: tuple[int, ...] | None) -> None:
    op, swapped, per_channel = behind
    swapped = swapped and op != "Div"
    text = (
        f"(float[{'5,3' if trans_a else '3,5'}] x) => (float[3,4] y) {{ a = Mul(k, x)"
        f" c = Gemm<transA = {trans_a}, transB = {trans_b}, alpha = 0.5, beta = 1.5>"
        f"(a, w{'' if shape is None else ', o'}) " + step("c", "y", "e", op, swapped=swapped) + "}"
    )
    graph = graph_of(
        text,
        w=floats(4, 5) if trans_b else floats(5, 4),
        k=floats(1) if trans_a else floats(1, 5),
        e=floats(1, 4) if per_channel else floats(),
        **({} if shape is None else {"o": floats(*shape)}),
    )
    original = graph.copy()
    assert fold_affine(graph) == 2
    same_function(original, graph, random_feeds(graph))


# --- weights that several nodes share ------------------------------------------------------------------


def held() -> dict[str, npt.ArrayLike]:
    rng = np.random.default_rng(3)
    w, b = rng.normal(size=(16, 16)).astype(np.float32), rng.normal(size=16).astype(np.float32)
    v = rng.uniform(0.5, 2, size=16).astype(np.float32)
    return {"w": w, "b": b, "v": v, "u": v.copy(), "c": np.float32(2), "k": np.array([1, 0, 2])}


def of_shared(nodes: str) -> Graph:
    graph = graph_of(f"(float[N,16] x) => (float[N,16] y) {{ {nodes} }}", 17, **named_in(nodes, held()))
    graph.infer_shapes()
    return graph


@pytest.mark.parametrize(
    "nodes",
    [
        "p = Mul(x, c) a = MatMul(p, w) y = MatMul(a, w)",  # one has the factor, the other none
        "p = Mul(x, c) a = MatMul(p, w) q = Mul(a, v) y = MatMul(q, w)",  # not the same
        "a = MatMul(x, w) e = Mul(a, v) r = Relu(e) d = MatMul(r, w) y = Add(d, b)",
        "a = Gemm(x, w, b) e = Mul(a, c) r = Relu(e) d = Gemm(r, w, b) s = Mul(d, c) t = Add(d, s) y = Relu(t)",
        "t = Gather(w, k) a = Gemm(x, w, b) e = Mul(a, c) r = Relu(e) s = ReduceSum<keepdims = 0>(t) y = Add(r, s)",
    ],
)
def test_a_shared_weight_is_not_split(nodes: str) -> None:
    graph = of_shared(nodes)
    before = lines(graph)
    assert fold_affine(graph) == 0
    assert lines(graph) == before


@pytest.mark.parametrize(
    "nodes",
    [
        "a = MatMul(x, w) e = Mul(a, v) r = Relu(e) d = MatMul(r, w) y = Mul(d, u)",  # equal numbers, not one constant
        "a = MatMul(x, w) f = Add(a, b) e = Mul(f, c) r = Relu(e) d = MatMul(r, w) g = Add(d, b) y = Mul(g, c)",
        "p = Mul(x, v) a = Gemm(p, w, b) r = Relu(a) q = Mul(r, v) y = Gemm(q, w, b)",
        "p = Div(x, c) a = Gemm(p, w, b) r = Relu(a) q = Div(r, c) y = Gemm(q, w, b)",
    ],
)
def test_the_same_step_at_all_of_them_is_folded_once(nodes: str) -> None:
    graph = of_shared(nodes)
    before = graph.copy()
    assert fold_affine(graph) == 2
    graph.remove_unused()
    products = [n for n in graph.nodes if n.op_type in ("MatMul", "Gemm")]
    assert len({n.inputs[1] for n in products}) == 1
    assert [name for name in graph.weights if graph.rank(graph.weights[name]) == 2] == ["w/folded"]
    same_function(before, graph, random_feeds(graph, N=3))


def test_a_shift_behind_a_shared_weight_is_folded_by_itself() -> None:
    """It leaves the weight as it is."""
    graph = of_shared("a = Gemm(x, w, b) e = Add(a, v) r = Relu(e) y = Gemm(r, w, b)")
    before = graph.copy()
    assert fold_affine(graph) == 1
    assert len({n.inputs[1] for n in graph.nodes if n.op_type == "Gemm"}) == 1
    same_function(before, graph, random_feeds(graph, N=3))


@pytest.mark.parametrize(
    ("nodes", "gone"),
    [
        # the factors meet once all shifts in front of them are gone, of which the last is folded at last
        ("a = Gemm(x, w, b) e = Add(a, v) f = Mul(e, c) r = Relu(f) d = Gemm(r, w) g = Add(d, v) y = Mul(g, c)", 4),
        # a second factor of one alone, behind one that both have
        ("a = Gemm(x, w, b) e = Mul(a, c) f = Mul(e, v) r = Relu(f) d = Gemm(r, w, b) y = Mul(d, c)", 2),
    ],
)
def test_steps_in_a_row_leave_a_shared_weight_one(nodes: str, gone: int) -> None:
    graph = of_shared(nodes)
    before = graph.copy()
    assert fold_affine(graph) == gone
    graph.remove_unused()
    assert [name for name in graph.weights if graph.rank(graph.weights[name]) == 2] == ["w/folded"]
    same_function(before, graph, random_feeds(graph, N=3))
