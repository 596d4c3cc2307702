from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime  # noqa: TID251  as a user does
import pytest
from architectures import ARCHITECTURES
from graphs import Array, graph_of, lines, run
from placing import net

import onnxq
from onnxq import api
from onnxq.numerics import sqnr_db
from onnxq.patterns.ranges import LIMIT, SMALLEST_SCALE
from onnxq.precision import probes
from onnxq.runtime import Session

if TYPE_CHECKING:
    from pathlib import Path

    from onnxq.graph import Graph
    from onnxq.plan import Plan

RNG = np.random.default_rng(0)
X = "float[2,8,32] x"
ONE = np.ones(32, np.float32)
HALF = onnxq.Recipe(high_precision="fp16", calibrator="minmax")


def small(inputs: str, body: str, outputs: str = "y", **given: Any) -> Graph:  # noqa: ANN401  arrays, numbers, shapes
    """A graph; weights are given as arrays and numbers."""
    return net(
        inputs,
        body,
        outputs,
        17,
        **{n: np.array(w, np.float32) if isinstance(w, float) else np.asarray(w) for n, w in given.items()},
    )


def weight(size: float = 1.0, shape: tuple[int, ...] = (32, 32)) -> Array:
    return np.asarray(RNG.normal(size=shape) * size / np.sqrt(shape[0]), np.float32)


def feeds(graph: Graph, size: float = 1.0, **given: Array) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    drawn = [str(v.name) for v in graph.inputs if str(v.name) not in given]
    shapes = {str(v.name): [d if isinstance(d, int) else 2 for d in graph.shape(v) or ()] for v in graph.inputs}
    return [{n: (rng.normal(size=shapes[n]) * size).astype(np.float32) for n in drawn} | given for _ in range(4)]


def between(body: str, inputs: str = X, outputs: str = "y", **given: Any) -> Graph:  # noqa: ANN401  weights or shapes
    """A float part `a -> m` between two quantized products."""
    return small(inputs, f"a = MatMul(x, w1) {body} y = MatMul(m, w2)", outputs, w1=weight(), w2=weight(), **given)


def converted(graph: Graph, data: object, recipe: onnxq.Recipe = HALF) -> tuple[Graph, Plan]:
    made, plan = onnxq.quantize(graph, data, recipe)
    proto = made.to_proto()
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    return made, plan


def sqnr(graph: Graph, data: list[dict[str, Array]], recipe: onnxq.Recipe) -> list[float]:
    """Signal to quantization noise of the first output in dB, with ONNX Runtime optimizing and not."""
    made = onnxq.quantize(graph, data, recipe)[0].to_proto().SerializeToString()
    exact = Session(graph.to_proto().SerializeToString(), optimize=False)
    expected = np.concatenate([exact.run(feed)[0].astype(np.float64) for feed in data])
    ratios = []
    for optimize in (False, True):
        session = Session(made, optimize=optimize)
        error = np.concatenate([session.run(feed)[0] for feed in data]) - expected
        ratios.append(float(10 * np.log10(np.sum(expected**2) / np.sum(error**2))))
    return ratios


def assert_as_good(graph: Graph, data: list[dict[str, Array]], loss: float = 1.0) -> None:
    """The float16 one is no worse than the float32 one, but for the luck of roundings in a small graph."""
    wide = sqnr(graph, data, replace(HALF, high_precision="fp32"))
    half = sqnr(graph, data, HALF)
    assert min(wide) > 15
    assert min(half) > max(wide) - loss


# --- what stays out of it ------------------------------------------------------------------------------


def test_nothing_is_kept_in_an_ordinary_model() -> None:
    graph = between("r = Relu(a) t = Tanh(r) m = Add(t, a)")
    made, plan = converted(graph, feeds(graph))
    assert dict(plan.float32) == {}
    assert {made.dtype(v) for v in made.values() if v.name in set("arm")} == {"float16"}
    assert {d.dtype for d in plan.decisions} == {"float16"}


def test_float32_needs_no_probes_and_no_reasons() -> None:
    graph = between("m = Tanh(a)")
    for recipe in (onnxq.Recipe(high_precision="fp32"), onnxq.Recipe(target="tensorrt@10")):
        ready = api.prepared(graph, recipe)
        assert ready.plan.probes == ()
        assert onnxq.quantize(graph, feeds(graph), recipe)[1].float32 == {}


def test_a_model_in_float16_already_stays_as_it_is() -> None:
    graph = between("m = Exp(a)")
    proto = graph.to_proto()
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    del proto.graph.value_info[:]
    data = [{n: x.astype(np.float16) for n, x in feed.items()} for feed in feeds(graph)]
    made, plan = converted(onnxq.Graph.from_proto(proto), data)
    assert not any(node.op_type == "Cast" for node in made.nodes)
    assert {made.dtype(v) for v in (*made.inputs, *made.outputs)} == {"float16"}
    assert plan.int8_share() == 1


# --- what overflows ------------------------------------------------------------------------------------


def test_an_activation_beyond_float16_keeps_its_layers_in_float32() -> None:
    graph = between(
        "o = Tanh(a) b = Mul(o, up) t = Mul(b, down) m = Tanh(t)", up=np.float32(5e4), down=np.float32(2e-5)
    )
    made, plan = converted(graph, feeds(graph))
    assert set(plan.float32) == {"Mul:b", "Mul:t"}
    assert "b reaches" in plan.float32["Mul:b"]
    assert "65504" in plan.float32["Mul:b"]
    told = plan.to_dict()["nodes"]["Mul:b"]
    assert told["precision"] == "float32"
    assert "b reaches" in told["reason"]
    assert made.dtype(made.find("b")) == "float32"
    assert made.dtype(made.find("m")) == "float16"
    assert_as_good(graph, feeds(graph))


@pytest.mark.parametrize(("top", "kept"), [(LIMIT * 0.99, False), (LIMIT * 1.01, True)])
def test_half_the_range_is_left_to_other_data(top: float, kept: bool) -> None:
    graph = small("float[2,32] x", "i = Neg(x) t = Tanh(i) y = MatMul(t, w)", w=weight())
    data = [{"x": np.full((2, 32), top, np.float32)}]
    assert ("Neg:i" in converted(graph, data)[1].float32) == kept


def test_an_overflowing_convolution_whose_activation_alone_is_seen() -> None:
    graph = small(
        "float[2,16,8,8] x",
        "c = Conv(x, w0) r = Relu(c) n = InstanceNormalization(r, s, z) y = Conv(n, w1)",
        w0=weight(2e5, (16, 16, 1, 1)),
        w1=weight(1, (16, 16, 1, 1)),
        s=np.ones(16, np.float32),
        z=np.zeros(16, np.float32),
    )
    plan = converted(graph, feeds(graph))[1]
    assert set(plan.float32) == {"Conv:c", "Relu:r", "InstanceNormalization:n"}
    assert all("r reaches" in why for why in plan.float32.values())
    assert_as_good(graph, feeds(graph))


def test_what_carries_large_values_on_stays_too() -> None:
    """GlobalAveragePool and Reshape are not observed; what goes in is."""
    graph = small(
        "float[2,16,4,4] x",
        "c = Conv(x, w0) g = GlobalAveragePool(c) f = Flatten(g) s = Softmax(f) y = MatMul(s, w)",
        w0=weight(3e6, (16, 16, 1, 1)),
        w=weight(1, (16, 16)),
    )
    data = feeds(graph)
    plan = converted(graph, data)[1]
    assert {"Conv:c", "GlobalAveragePool:g", "Flatten:f", "Softmax:s"} <= set(plan.float32)
    made = onnxq.quantize(graph, data, HALF)[0]
    assert np.isfinite(Session(made.to_proto().SerializeToString()).run(data[0])[0]).all()


def test_a_model_input_beyond_float16() -> None:
    graph = small(
        "float[2,32] x", "n = LayerNormalization(x, g) y = MatMul(n, w)", g=np.ones(32, np.float32), w=weight()
    )
    data = feeds(graph, 1e5)
    assert "x reaches" in converted(graph, data)[1].float32["LayerNormalization:n"]
    assert_as_good(graph, data)


def test_a_constant_beyond_float16() -> None:
    graph = between("o = Tanh(a) d = Div(o, k) t = Tanh(d) m = Add(t, a)", k=np.float32(1e5))
    plan = converted(graph, feeds(graph))[1]
    assert plan.float32 == {"Div:d": "constant k holds 1e+05; float16 ends at 65504"}
    assert_as_good(graph, feeds(graph))


@pytest.mark.parametrize("low", [-3.4e38, -np.inf])
def test_bounds_that_bound_nothing_are_no_reason(low: float) -> None:
    graph = between("c = Clip(a, lo, hi) m = Tanh(c)", lo=np.float32(low), hi=np.float32(3.4e38))
    assert converted(graph, feeds(graph))[1].float32 == {}
    assert_as_good(graph, feeds(graph))


@pytest.mark.parametrize(
    ("body", "fill", "kept"),
    [
        pytest.param("c = Greater(a, z) v = Where(c, a, k) s = Softmax(v) m = Add(s, a)", -3.4e38, False, id="Where"),
        pytest.param("b = Add(a, k) s = Softmax(b) m = Add(s, a)", -3.4e38, False, id="an added mask"),
        pytest.param("b = Mul(a, k) t = Tanh(b) m = Add(t, a)", -7e4, True, id="a factor"),
        pytest.param("b = Add(a, k) t = Tanh(b) m = Add(t, a)", 7e4, True, id="a summand"),
    ],
)
def test_what_fills_a_mask_is_cut_and_other_constants_are_not(body: str, fill: float, kept: bool) -> None:
    constant = np.where(np.arange(32) < 16, np.float32(fill), np.float32(0)) if "Add(a, k)" in body else fill
    graph = between(body, k=np.asarray(constant, np.float32), z=np.float32(0))
    assert any("constant k" in why for why in converted(graph, feeds(graph))[1].float32.values()) == kept
    assert_as_good(graph, feeds(graph), 1.5)


# --- what vanishes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1e-12, 1e-7, 1e-5])
def test_an_epsilon_and_the_division_that_it_guards(value: float) -> None:
    graph = between("r = Mul(a, zero) n = ReduceL2<keepdims=1>(r) e = Add(n, k) d = Div(r, e) m = Add(d, a)",
                    zero=np.float32(0), k=np.float32(value))  # fmt: skip
    plan = converted(graph, feeds(graph))[1]
    assert {"ReduceL2:n", "Add:e", "Div:d"} == set(plan.float32)
    assert "float16 loses it" in plan.float32["Add:e"]
    assert "Add:e keeps from 0" in plan.float32["Div:d"]
    assert_as_good(graph, feeds(graph))  # 0 / 0 would be NaN


def test_a_bias_may_be_small() -> None:
    graph = small("float[4,32] x", "t = Gemm(x, w, b) y = Tanh(t)", w=weight(), b=np.full(32, 1e-6, np.float32))
    assert converted(graph, feeds(graph))[1].float32 == {}


def test_scales_that_underflow() -> None:
    graph = between("o = Tanh(a) s = Mul(o, k) m = Tanh(s)", k=np.float32(1e-4))
    plan = converted(graph, feeds(graph))[1]
    assert float(next(p for t, p in plan.points.items() if t == "m").params.scale) < SMALLEST_SCALE  # type: ignore[union-attr]  # resolved
    assert plan.float32 == {"MatMul:y": "the scale of m is too small for float16"}
    assert_as_good(graph, feeds(graph))


def test_weight_scales_that_underflow() -> None:
    graph = small("float[4,32] x", "a = MatMul(x, w) r = Softplus(a) y = MatMul(r, v)", w=weight(5e-3), v=weight())
    plan = converted(graph, feeds(graph))[1]
    assert plan.float32 == {"MatMul:a": "scales of w are too small for float16"}
    assert_as_good(graph, feeds(graph))


def test_scales_are_rounded_once_for_all_types() -> None:
    """A scale is the same number in float16 and in float32, so that a group of tensors keeps one scale."""
    graph = ARCHITECTURES["inception"]()
    plan = converted(graph, feeds(graph))[1]
    chosen = [float(p.params.scale) for p in plan.points.values() if p.params is not None]
    assert chosen
    assert all(float(np.float16(scale)) == scale for scale in chosen)
    brain = onnxq.quantize(graph, feeds(graph), replace(HALF, high_precision="bf16"))[1]
    assert all(
        float(ml_dtypes.bfloat16(p.params.scale)) == float(p.params.scale)
        for p in brain.points.values()
        if p.params is not None
    )


# --- sums, phases, integers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("p = Pow(a, two) m = Tanh(p)", {"Pow:p"}),
        ("p = ReduceSum<keepdims=1>(a, last) m = Add(p, a)", {"ReduceSum:p"}),
        ("p = ReduceL2<keepdims=1>(a) m = Add(p, a)", {"ReduceL2:p"}),
        ("p = CumSum(a, axis) m = Tanh(p)", {"CumSum:p"}),
        ("p = ReduceMean<keepdims=1, axes=[-1]>(a) m = Add(p, a)", set()),
    ],
)
@pytest.mark.parametrize("high_precision", ["fp16", "bf16"])
def test_sums_accumulate_in_float32(body: str, kept: set[str], high_precision: str) -> None:
    graph = between(body, two=np.float32(2), last=np.array([-1]), axis=np.array(2))
    assert set(converted(graph, feeds(graph), replace(HALF, high_precision=high_precision))[1].float32) == kept


def test_a_decomposed_rms_norm_accumulates_in_float32() -> None:
    body = "p = Mul(a, a) v = ReduceMean<axes=[-1]>(p) e = Add(v, k) r = Sqrt(e) d = Div(a, r) m = Mul(d, g)"
    graph = between(body, k=np.float32(1e-6), g=weight(1, (32,)))
    plan = converted(graph, feeds(graph))[1]
    assert {"Mul:p", "ReduceMean:v", "Add:e", "Sqrt:r", "Div:d"} <= set(plan.float32)
    assert plan.float32["Mul:p"] == "RMSNorm accumulates in float32"
    assert_as_good(graph, feeds(graph))


def test_a_cube_in_a_gelu_depends_on_what_was_seen() -> None:
    body = (
        "p = Pow(a, three) q = Mul(p, k1) r = Add(a, q) s = Mul(r, k2) t = Tanh(s) u = Add(t, one) v = Mul(a, u)"
        " m = Mul(v, half)"
    )
    constants: dict[str, Any] = {"three": 3.0, "k1": 0.044715, "k2": 0.7978846, "one": 1.0, "half": 0.5}
    graph = between(body, X, "y", **constants)
    assert "Pow:p" not in converted(graph, feeds(graph))[1].float32
    assert "Pow:p" in converted(graph, feeds(graph, 20))[1].float32
    assert_as_good(graph, feeds(graph))


def test_positions_keep_their_digits() -> None:
    body = "f = Cast<to=1>(i) u = Unsqueeze(f, last) d = Mul(u, k) s = Sin(d) m = Add(a, s)"
    graph = between(body, f"{X}, int64[2,8] i", last=np.array([2]), k=np.geomspace(1, 1e-3, 32).astype(np.float32))
    data = feeds(graph, i=np.arange(4000, 4016).reshape(2, 8))
    plan = converted(graph, data)[1]
    assert set(plan.float32) == {"Cast:f", "Unsqueeze:u", "Mul:d", "Sin:s"}
    assert "phase" in plan.float32["Mul:d"]
    assert_as_good(graph, data)


@pytest.mark.parametrize(("top", "kept"), [(2048, set()), (2049, {"Cast:f", "Mul:d"})])
def test_large_integers_are_counted_in_float32(top: int, kept: set[str]) -> None:
    graph = between("f = Cast<to=1>(i) d = Mul(f, k) m = Add(a, d)", f"{X}, int64[1] i", k=np.float32(1e-3))
    plan = converted(graph, feeds(graph, i=np.array([top])))[1]
    assert set(plan.float32) == kept


def test_sizes_computed_in_float_stay_exact() -> None:
    body = (
        "c = Conv(x, w0) h = Shape(c) f = Cast<to=1>(h) d = Mul(f, k) e = Floor(d) i = Cast<to=7>(e)"
        ' u = Resize<mode="nearest">(c, , , i) y = Conv(u, w0)'
    )
    graph = small("float[1,16,1,N] x", body, w0=weight(1, (16, 16, 1, 1)), k=np.array([1, 1, 1, 1.5], np.float32))
    data = [{"x": RNG.normal(size=(1, 16, 1, 2051)).astype(np.float32)}]
    plan = converted(graph, data)[1]
    assert {"Cast:f", "Mul:d", "Floor:e"} <= set(plan.float32)
    assert_as_good(graph, data)  # 3076 columns, not 3078


def test_a_bias_of_more_steps_than_float16_counts() -> None:
    """ONNX Runtime computes bias / (scale_x scale_w) in the layer's type."""
    bias = np.full(32, 3.0, np.float32)
    graph = small("float[4,32] x", "a = Gemm(x, w, b) r = Relu(a) y = MatMul(r, v)", w=weight(0.1), b=bias, v=weight())
    plan = converted(graph, feeds(graph))[1]
    assert set(plan.float32) == {"Gemm:a", "Relu:r"}
    assert "steps" in plan.float32["Gemm:a"]
    assert_as_good(graph, feeds(graph))


def test_a_bias_that_makes_up_for_a_zero_point(tmp_path: Path) -> None:
    """Zero points put -128 s into a bias, and W c: too many steps of s_x s_w for float16 where sums are long.

    A session with ONNX Runtime's own options, in which people try files: they overflowed there.
    """
    shapes = {"w": (64, 64, 3, 3), "b": (64,), "v": (16, 64, 3, 3)}
    text = "(float[1,64,6,6] x) => (float[1,16,2,2] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }"
    rng = np.random.default_rng(0)
    graph = graph_of(text, 17, **{k: (0.1 * rng.normal(size=s)).astype(np.float32) for k, s in shapes.items()})
    data = [{"x": x[None]} for x in rng.normal(size=(24, 64, 6, 6)).astype(np.float32)]
    quantized, plan = api.quantize(graph, data, onnxq.Recipe())
    (point,) = (p.params for p in plan.points.values() if ("Conv:y", 0) in p.uses)
    assert point is not None
    assert point.zero_point != 0
    assert {"Conv:a", "Relu:r"} <= set(plan.float32)
    assert as_users_run(graph, quantized, data[:4], tmp_path) > 30


def test_a_product_gets_a_bias_that_makes_up_for_a_zero_point(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = {"u": rng.normal(size=(64, 512)), "w": rng.uniform(0, 0.1, (512, 64)), "v": rng.normal(size=(64, 16))}
    body = "h = MatMul(x, u) s = Relu(h) a = MatMul(s, w) r = Relu(a) y = MatMul(r, v)"
    graph = graph_of(
        f"(float[8,64] x) => (float[8,16] y) {{ {body} }}",
        17,
        **{name: array.astype(np.float32) for name, array in given.items()},
    )
    data = [{"x": x} for x in rng.normal(size=(64, 8, 64)).astype(np.float32)]
    quantized, plan = api.quantize(graph, data, onnxq.Recipe(float_share=0.0))
    (point,) = (p.params for p in plan.points.values() if ("MatMul:a", 0) in p.uses)
    assert point is not None
    assert point.zero_point != 0
    assert {"MatMul:a", "Relu:r"} <= set(plan.float32)
    assert as_users_run(graph, quantized, data[:4], tmp_path) > 30


def as_users_run(graph: Graph, quantized: Graph, data: list[dict[str, Array]], folder: Path) -> float:
    """SQNR in dB of a session with ONNX Runtime's own options."""
    quantized.save(folder / "m.onnx")
    session = onnxruntime.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"])
    pairs = [(run(graph, feed)[0], session.run(None, feed)[0]) for feed in data]
    return sqnr_db(*(np.stack(side) for side in zip(*pairs, strict=True)))


@pytest.mark.parametrize("added", ["Add(p, b)", "Add(b, p)"])
@pytest.mark.parametrize("rank", [2, 3])
def test_a_bias_behind_a_product(added: str, rank: int, tmp_path: Path) -> None:
    """ONNX Runtime makes a Gemm of them, whose bias becomes an integer likewise: 0 dB with its own options."""
    graph = small(
        f"float[{'2,' * (rank - 2)}8,32] x",
        f"p = MatMul(x, w) a = {added} r = Relu(a) y = MatMul(r, v)",
        w=weight(0.1),
        b=np.linspace(-3, 3, 32, dtype=np.float32),
        v=weight(),
    )
    quantized, plan = converted(graph, feeds(graph))
    assert set(plan.float32) == {"MatMul:p", "Add:a", "Relu:r"}
    assert "steps" in plan.float32["MatMul:p"]
    assert as_users_run(graph, quantized, feeds(graph), tmp_path) > 30


@pytest.mark.parametrize(
    ("body", "layer"), [("y = Gemm(x, w, b)", {"Gemm:y"}), ("p = MatMul(x, w) y = Add(p, b)", {"MatMul:p", "Add:y"})]
)
def test_a_bias_in_front_of_an_output(body: str, layer: set[str]) -> None:
    """Only where codes leave the model is the bias written as an integer."""
    graph = small("float[4,32] x", body, w=weight(0.1), b=np.full(32, 3.0, np.float32))
    for ends, kept in (("float32", set()), ("int8", layer)):
        assert set(converted(graph, feeds(graph), replace(HALF, io_types=ends))[1].float32) == kept


def test_what_fuses_behind_a_float32_layer_stays_with_it() -> None:
    """A Cast between an int8 convolution and its activation or residual addition would part them."""
    same = "<kernel_shape=[3,3], pads=[1,1,1,1]>"
    graph = small(
        "float[2,16,8,8] x",
        f"c = Conv{same}(x, w) r = Relu(c) d = Conv{same}(r, v) a = Add(d, r) s = Relu(a) y = Conv(s, u)",
        w=weight(1, (16, 16, 3, 3)),
        v=weight(1e-3, (16, 16, 3, 3)),
        u=weight(1, (16, 16, 1, 1)),
    )
    made, plan = converted(graph, feeds(graph))
    assert set(plan.float32) == {"Conv:d", "Add:a", "Relu:s"}
    assert plan.float32["Add:a"] == "fuses behind Conv:d, which stays in float32"
    assert "a = Add(d, r_dequantized)" in lines(made)
    assert [f for f in api.check(made).findings if f.id in ("P22", "P23")] == []


def test_an_addition_does_not_follow_the_shortcut_that_it_reads_quantized() -> None:
    """The pair parts them: what it gives to the addition has whatever type the addition has."""
    graph = small(
        "float[2,16,8,8] x",
        "r = Relu(x) b = Conv(r, w) q = Relu(b) c = Conv(q, w)"
        " p = Conv(r, v, d) a = Add(c, p) s = Relu(a) y = Conv(s, w)",
        w=weight(1, (16, 16, 1, 1)),
        v=weight(0.1, (16, 16, 1, 1)),
        d=np.full(16, 3.0, np.float32),
    )
    made, plan = converted(graph, feeds(graph))
    assert set(plan.float32) == {"Conv:p"}
    assert "a = Add(c, p_dequantized)" in lines(made)
    assert [f for f in api.check(made).findings if f.id in ("P22", "P23", "P32")] == []


# --- other types, no data ------------------------------------------------------------------------------


def test_bfloat16_has_the_range_of_float32() -> None:
    graph = between(
        "o = Tanh(a) b = Mul(o, up) t = Mul(b, down) m = Tanh(t)", up=np.float32(5e4), down=np.float32(2e-5)
    )
    made, plan = converted(graph, feeds(graph), replace(HALF, high_precision="bf16"))
    assert plan.float32 == {}
    assert made.dtype(made.find("b")) == "bfloat16"
    assert plan.probes == ()
    assert {made.dtype(v) for v in (*made.inputs, *made.outputs)} == {"float32"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_models_are_valid_and_legal(name: str) -> None:
    graph = ARCHITECTURES[name]()
    made, _ = converted(graph, feeds(graph), replace(HALF, high_precision="bf16"))
    assert [f for f in api.check(made).findings if f.severity == "E"] == []


def test_without_data_the_weights_alone_and_a_note() -> None:
    graph = between("o = Tanh(a) d = Div(o, k) m = Tanh(d)", k=np.float32(1e5))
    made, plan = converted(graph, None)
    assert "nothing is known of what overflows float16" in " ".join(plan.notes)
    assert set(plan.float32) == {"Div:d"}
    assert made.dtype(made.find("m")) == "float16"
    assert not any(n.op_type == "QuantizeLinear" for n in made.nodes)
    brain = converted(graph, None, replace(HALF, high_precision="bf16"))[1]
    assert brain.notes == ()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_as_good_as_in_float32(name: str) -> None:
    graph = ARCHITECTURES[name]()
    assert_as_good(graph, feeds(graph))


def test_input_and_output_types_on_request() -> None:
    graph = between("p = Pow(a, k) m = Tanh(p)", outputs="y p", k=np.float32(2))
    made, _ = converted(graph, feeds(graph), replace(HALF, io_types="high-precision"))
    assert {made.dtype(v) for v in (*made.inputs, *made.outputs)} == {"float16"}
    kept, _ = converted(graph, feeds(graph), HALF)
    assert {kept.dtype(v) for v in (*kept.inputs, *kept.outputs)} == {"float32"}


# --- what is observed ----------------------------------------------------------------------------------


def test_probes_are_what_may_grow_and_is_not_seen_anyway() -> None:
    graph = between(
        "r = Relu(a) s = Sigmoid(a) b = Add(r, s) e = Exp(b) g = Sigmoid(e) c = Mul(b, g) t = Tanh(c) m = Add(t, b)"
    )
    ready = api.prepared(graph, HALF)
    assert set(ready.plan.points) == {"x", "m"}
    # a goes into Relu and Sigmoid only, r into an Add, c into a Tanh; e and s are the work of no growing operator;
    # y goes as far as m and the weight let it
    assert set(probes(graph, replace(ready.plan, probes=()))) == {"b"}


def test_what_is_seen_bounds_the_rest() -> None:
    """A layer behind a normalization: sqrt(32) times the sums of its weights, and so on through GELU and sum."""
    body = "n = LayerNormalization(a, s) b = MatMul(n, w3) e = Erf(b) p = Add(e, k) g = Mul(b, p) m = Add(g, n)"
    graph = between(body, s=ONE, w3=weight(), k=np.float32(1))
    assert set(probes(graph, replace(api.prepared(graph, HALF).plan, probes=()))) == {"a"}  # x may be of any size
    assert converted(graph, feeds(graph))[1].float32 == {}


@pytest.mark.parametrize(("size", "kept"), [(1.0, False), (3000.0, True)])
def test_what_may_go_further_than_thought_stays_in_float32(size: float, kept: bool) -> None:
    """m is seen and its product is not: where m went far, the product may go beyond float16 for all that is known."""
    graph = between("m = Mul(a, k)", k=np.float32(1))
    assert "y" not in probes(graph, replace(api.prepared(graph, HALF).plan, probes=()))
    plan = converted(graph, feeds(graph, size))[1]
    assert any("y may reach" in why for why in plan.float32.values()) == kept


def test_the_cube_of_a_gelu_needs_its_input_seen() -> None:
    body = "n = LayerNormalization(a, s) b = MatMul(n, w3) q = Pow(b, c) i = Mul(q, k) j = Add(b, i) l = Mul(j, r) "
    body += "t = Tanh(l) o = Add(t, one) h = Mul(b, o) m = Mul(h, half)"
    numbers = {"c": 3.0, "k": 0.044715, "r": 0.7978846, "one": 1.0, "half": 0.5}
    given: dict[str, Any] = {name: np.float32(number) for name, number in numbers.items()}
    graph = small(
        X, f"a = MatMul(x, w1) {body} y = MatMul(m, w2)", w1=weight(), w2=weight(), w3=weight(), **given, s=ONE
    )
    assert "b" in probes(graph, replace(api.prepared(graph, HALF).plan, probes=()))


def test_statistics_hold_the_probes() -> None:
    graph = between("b = Mul(a, a) m = Add(b, a)")
    found = onnxq.calibrate(graph, feeds(graph), HALF)
    assert set(found.tensors) == {"x", "m"}
    assert set(found.reach) == {"x", "m", "a"}  # what b adds to is seen, and y goes as far as m lets it
