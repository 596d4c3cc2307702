"""Models that were trained with quantization keep what they learned: torch.ao's Q/DQ, and QONNX as Brevitas has it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from graphs import Array, graph_of, run
from hypothesis import given, settings
from hypothesis import strategies as st
from legality import assert_legal

from onnxq import Recipe, api
from onnxq.errors import ModelError
from onnxq.graph import Graph
from onnxq.intake import load
from onnxq.numerics import INT8, UINT8, sqnr_db
from onnxq.passes import FitPairs
from onnxq.passes.fit_pairs import symmetric
from onnxq.passes.from_qonnx import from_qonnx

if TYPE_CHECKING:
    import numpy.typing as npt

TORCH = Path(__file__).parents[1] / "data" / "qat_torch.onnx"
RNG = np.random.default_rng(9)


def pair(scale: float, zero: int, kind: str, **more: Array) -> Graph:
    text = "(float[N,8] x) => (float[N,8] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    return graph_of(text, 17, s=np.array(scale, np.float32), z=np.array(zero, kind), **more)


def parameters(graph: Graph) -> list[tuple[float, int, str]]:
    found = []
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = graph.const(node.inputs[1]), graph.const(node.inputs[2])
            assert scale is not None
            assert zero is not None
            found.append((float(scale), int(zero), zero.dtype.name))
    return found


# -- zero points --------------------------------------------------------------------------------------------------


def test_left_alone() -> None:
    for graph, grid in ((pair(0.1, 0, "int8"), INT8), (pair(0.1, 7, "uint8"), UINT8)):
        before = graph.digest()
        assert FitPairs(grid)(graph) == 0
        assert graph.digest() == before
    shared = graph_of(
        "(float[N,8] x) => (float[N,8] y, uint8[N,8] q) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        17,
        s=np.array(0.1, np.float32),
        z=np.array(3, np.uint8),
    )
    assert FitPairs(INT8)(shared) == 0  # the codes themselves are an output


def test_the_middle_of_uint8_loses_nothing() -> None:
    graph, plain = pair(0.1, 128, "uint8"), pair(0.1, 128, "uint8")
    assert FitPairs(INT8)(graph) == 1
    assert parameters(graph) == [(float(np.float32(0.1)), 0, "int8")] * 2
    feed = {"x": RNG.normal(size=(64, 8)).astype(np.float32) * 8}
    np.testing.assert_array_equal(run(graph, feed)[0], run(plain, feed)[0])


@given(st.integers(0, 255), st.floats(1e-3, 10))
@settings(max_examples=30, deadline=None)
def test_the_new_grid_covers_the_old_one(zero: int, scale: float) -> None:
    new, ratio = symmetric(np.array(scale, np.float32), np.array(zero, np.uint8))
    reach = max(255 - zero, zero) * scale
    assert ratio < 2.01
    if zero != 128:
        np.testing.assert_allclose(float(new) * 127, reach, rtol=1e-5)


@pytest.mark.parametrize("zero", [0, 255])
def test_weights_with_zero_points(zero: int) -> None:
    held: dict[str, Array] = {
        "w": RNG.integers(0, 256, (8, 6)).astype(np.uint8),
        "s": np.linspace(0.01, 0.05, 6).astype(np.float32),
        "z": np.full(6, zero, np.uint8),
    }
    text = "(float[N,8] x) => (float[N,6] y) { d = DequantizeLinear<axis=1>(w, s, z) y = MatMul(x, d) }"
    graph, plain = graph_of(text, 17, **held), graph_of(text, 17, **held)
    assert FitPairs(INT8)(graph) == 1
    feed = {"x": np.eye(8, dtype=np.float32)}
    exact, found = run(plain, feed)[0], run(graph, feed)[0]
    step = np.abs(exact).max(axis=0) / 127
    assert (np.abs(exact - found) <= step / 2 + 1e-6).all()


def test_weights_of_uint8_without_a_zero_point() -> None:
    """ONNX means 0 there; TensorRT refuses the codes."""
    held: dict[str, Array] = {
        "w": RNG.integers(0, 256, (8, 6)).astype(np.uint8),
        "s": np.linspace(0.01, 0.05, 6).astype(np.float32),
    }
    text = "(float[N,8] x) => (float[N,6] y) { d = DequantizeLinear<axis=1>(w, s) y = MatMul(x, d) }"
    graph, plain = graph_of(text, 17, **held), graph_of(text, 17, **held)
    assert FitPairs(INT8)(graph) == 1
    assert {graph.dtype(v) for v in graph.weights.values()} >= {"int8"}
    feed = {"x": np.eye(8, dtype=np.float32)}
    exact, found = run(plain, feed)[0], run(graph, feed)[0]
    assert (np.abs(exact - found) <= exact.max(axis=0) / 254 + 1e-6).all()


@pytest.mark.parametrize(("said", "fitted"), [("", 1), ("<output_dtype=2>", 1), ("<output_dtype=3>", 0)])
def test_pairs_without_zero_points(said: str, fitted: int) -> None:
    text = f"(float[N,8] x) => (float[N,8] y) {{ q = QuantizeLinear{said}(x, s) y = DequantizeLinear(q, s) }}"
    graph, plain = (graph_of(text, 21, s=np.array(0.1, np.float32)) for _ in range(2))
    assert FitPairs(INT8)(graph) == fitted
    feed = {"x": np.linspace(0, 12, 64, dtype=np.float32).reshape(8, 8)}
    np.testing.assert_allclose(run(graph, feed)[0], run(plain, feed)[0], atol=0.0 if not fitted else 0.16)
    if fitted:
        scales, zeros, kinds = zip(*parameters(graph), strict=True)
        assert (zeros, kinds) == ((0, 0), ("int8", "int8"))
        np.testing.assert_allclose(scales, 0.1 * 255 / 127, rtol=1e-6)


# -- torch.ao -----------------------------------------------------------------------------------------------------


def images(count: int) -> list[dict[str, Array]]:
    return [{"image": (RNG.normal(size=(1, 3, 8, 8)) * 1.5 + 0.3).astype(np.float32)} for _ in range(count)]


def test_torch_ao_on_tensorrt() -> None:
    graph, plan = api.quantize(TORCH, images(8), Recipe(high_precision="fp32"))
    assert_legal(graph.to_proto())
    assert len(plan.kept) == 6
    (note,) = [n for n in plan.notes if "symmetric int8 now" in n]
    assert note.startswith("3 of the model's own")
    assert "dB" in note
    learned = {str(i.name): onnx.numpy_helper.to_array(i) for i in onnx.load(TORCH).graph.initializer}
    scales = [graph.const(n.inputs[1]) for n in graph.nodes if n.op_type == "DequantizeLinear"]
    for name in ("w.0.scale", "w.1.scale", "w.2.scale"):  # weights per channel, as they were trained
        assert any(s is not None and np.array_equal(s, learned[name]) for s in scales)
    assert all("already" in plan_reason(plan, op) for op in ("Conv",))
    data = images(16)
    exact, found = (np.concatenate([run(g, f)[0] for f in data]) for g in (load(TORCH), graph))
    assert sqnr_db(exact, found) > 25


def plan_reason(plan: Any, op: str) -> str:  # noqa: ANN401  a Plan
    return str(next(d.reason for d in plan.decisions if d.op_type == op and d.quantized))


def test_torch_ao_on_ort_cpu_keeps_every_scale() -> None:
    graph, plan = api.quantize(TORCH, images(8), Recipe(target="ort-cpu"))
    assert not [n for n in plan.notes if "symmetric int8 now" in n]
    learned = {str(i.name): onnx.numpy_helper.to_array(i) for i in onnx.load(TORCH).graph.initializer}
    held = [graph.const(v) for v in graph.weights.values()]
    for name in ("a.0.scale", "a.1.scale", "a.2.scale"):
        assert any(h is not None and h.size == 1 and h.reshape(-1)[0] == learned[name][0] for h in held)


# -- TensorFlow: fake quantization, and TFLite's full-integer form ---------------------------------------------------

TENSORFLOW, TFLITE = (TORCH.with_name(f"qat_{name}.onnx") for name in ("tensorflow", "tflite"))


def trained(model: Path) -> tuple[list[dict[str, Array]], Array, list[dict[str, Array]]]:
    """Two feeds, what the trained network gives for them, and calibration data."""
    (name,) = (str(v.name) for v in load(model).inputs)
    with np.load(TORCH.with_name("qat_tensorflow.npz")) as held:
        given, expected = held["image"], held["y"]
    more = [{name: (RNG.normal(size=(1, 8, 8, 3)) * 1.5 + 0.3).astype(np.float32)} for _ in range(8)]
    return [{name: image[None]} for image in given], expected, more


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
@pytest.mark.parametrize(("model", "pairs"), [(TENSORFLOW, 3), (TFLITE, 6)], ids=["tensorflow", "tflite"])
def test_tensorflow_keeps_what_it_learned(model: Path, pairs: int, target: str) -> None:
    feeds, expected, data = trained(model)
    graph, plan = api.quantize(model, data, Recipe(target=target, high_precision="fp32"))
    assert len(plan.kept) == pairs
    found = np.concatenate([run(graph, feed)[0] for feed in feeds])
    assert sqnr_db(expected, found) > 35
    learned = {str(i.name): onnx.numpy_helper.to_array(i) for i in onnx.load(model).graph.initializer}
    held = [graph.const(v) for v in graph.weights.values()]
    if target == "tensorrt":
        assert_legal(graph.to_proto())
        (note,) = [n for n in plan.notes if "symmetric int8 now" in n]
        assert note.startswith(f"{pairs if model is TENSORFLOW else 5} of the model's own")
    else:
        scales = {float(a) for n, a in learned.items() if "scale" in n and a.size == 1}
        assert {float(h) for h in held if h is not None and h.size == 1 and h.dtype == np.float32} >= scales
    if model is TFLITE:
        codes = [a for a in learned.values() if a.dtype == np.int8 and a.size > 100]
        assert len(codes) == 4
        assert all(any(h is not None and np.array_equal(h, c) for h in held) for c in codes)


# -- ModelOpt, whose quantizers are pytorch-quantization's --------------------------------------------------------

MODELOPT = TORCH.with_name("qat_modelopt.onnx")


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_modelopt_keeps_every_scale(target: str) -> None:
    graph, plan = api.quantize(MODELOPT, images(8), Recipe(target=target, high_precision="fp32"))
    assert not [n for n in plan.notes if "symmetric int8 now" in n]
    assert len(plan.kept) == 6
    nodes = onnx.load(MODELOPT).graph.node
    constants = {n.output[0]: onnx.numpy_helper.to_array(n.attribute[0].t) for n in nodes if n.op_type == "Constant"}
    learned = [constants[n.input[1]] for n in nodes if n.op_type == "QuantizeLinear"]
    assert len(learned) == 6
    held = [graph.const(v) for v in graph.weights.values()]
    assert all(any(h is not None and np.array_equal(h, scale) for h in held) for scale in learned)
    if target == "tensorrt":
        assert_legal(graph.to_proto())
    with np.load(MODELOPT.with_suffix(".npz")) as kept:
        given, expected = kept["image"], kept["y"]
    assert sqnr_db(expected, run(graph, {"image": given})[0]) > 40  # the last layer is calibrated


# -- QONNX --------------------------------------------------------------------------------------------------------


def qonnx(bits: int, signed: int, narrow: int = 0, zero: float = 0.0, rounding: str = "ROUND") -> Graph:
    """A Gemm as Brevitas exports it: activation and weight behind Quant nodes, the weight's per channel."""
    number = onnx.helper.make_tensor
    held = {
        "s": np.array(0.05, np.float32),
        "ws": np.linspace(0.01, 0.02, 4).reshape(4, 1).astype(np.float32),
        "z": np.array(zero, np.float32),
        "z0": np.array(0, np.float32),
        "b": np.array(bits, np.float32),
        "b8": np.array(8, np.float32),
        "w": RNG.normal(size=(4, 8)).astype(np.float32),
    }
    domain = "qonnx.custom_op.general"
    node = onnx.helper.make_node
    kept: dict[str, Any] = {"signed": signed, "narrow": narrow, "rounding_mode": rounding}
    nodes = [
        node("Quant", ["x", "s", "z", "b"], ["xq"], domain=domain, **kept),
        node("Quant", ["w", "ws", "z0", "b8"], ["wq"], domain=domain, signed=1, narrow=1, rounding_mode="ROUND"),
        node("Gemm", ["xq", "wq"], ["y"], transB=1),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "brevitas",
        [info("x", 1, ["N", 8])],
        [info("y", 1, ["N", 4])],
        [number(n, 1, a.shape, a.tobytes(), raw=True) for n, a in held.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 13), onnx.helper.make_opsetid(domain, 1)]
    return Graph.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))


def rounded(x: npt.NDArray[Any], scale: npt.NDArray[Any], zero: float, low: int, high: int) -> npt.NDArray[np.float64]:
    """Quant as the QONNX paper defines it, in float64."""
    steps = np.clip(np.rint(x.astype(np.float64) / scale + zero), low, high)
    return np.asarray((steps - zero) * scale, np.float64)


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "zero", "low", "high"),
    [(8, 1, 0, 0, -128, 127), (8, 1, 1, 0, -127, 127), (4, 1, 0, 0, -8, 7), (4, 0, 0, 0, 0, 15), (8, 0, 0, 20, 0, 255)],
)
def test_quant_nodes(bits: int, signed: int, narrow: int, zero: int, low: int, high: int) -> None:
    graph = qonnx(bits, signed, narrow, zero)
    w, ws, s = (graph.const(graph.weights[n]) for n in ("w", "ws", "s"))
    assert w is not None
    assert ws is not None
    assert s is not None
    assert from_qonnx(graph) == 2
    x = (RNG.normal(size=(40, 8)) * 3).astype(np.float32)
    exact = rounded(x, s, zero, low, high) @ rounded(w, ws, 0, -127, 127).T
    np.testing.assert_allclose(run(graph, {"x": x})[0], exact, rtol=1e-4, atol=1e-4)


def test_quant_nodes_on_tensorrt() -> None:
    graph, plan = api.quantize(qonnx(8, 1), None, Recipe(high_precision="fp32"))
    assert_legal(graph.to_proto())
    assert {n.op_type for n in graph.nodes} == {"QuantizeLinear", "DequantizeLinear", "Gemm"}
    assert plan.kept


def test_quant_nodes_that_cannot_be_written() -> None:
    with pytest.raises(ModelError, match="16 bits"):
        from_qonnx(qonnx(16, 1))
    with pytest.raises(ModelError, match="rounds by FLOOR"):
        from_qonnx(qonnx(8, 1, rounding="FLOOR"))
    with pytest.raises(ModelError, match="zero point 128, which is no int8"):
        from_qonnx(qonnx(8, 1, zero=128.0))
