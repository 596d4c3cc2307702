"""BipolarQuant and Trunc by their definitions, and a network that Brevitas trained: its own outputs, its own scales."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from graphs import Array, run
from hypothesis import given, settings
from hypothesis import strategies as st
from legality import assert_legal

from onnxq import Recipe, api
from onnxq.errors import ModelError
from onnxq.graph import Graph
from onnxq.intake import load
from onnxq.numerics import sqnr_db
from onnxq.passes.from_qonnx import from_qonnx

if TYPE_CHECKING:
    import numpy.typing as npt

DATA = Path(__file__).parents[1] / "data"
BREVITAS = DATA / "qat_brevitas.onnx"
DOMAIN = "qonnx.custom_op.general"
RNG = np.random.default_rng(3)


def model(op: str, said: dict[str, Any], **held: npt.ArrayLike) -> Graph:
    """One node, on the input x [N, 4], or on the constant w of `held`, by which x is multiplied then."""
    arrays = {name: np.asarray(value, np.float32) for name, value in held.items()}
    first = "w" if "w" in arrays else "x"
    names = [name for name in arrays if name != "w"]
    last = ("MatMul", ["x", "q"]) if first == "w" else ("Identity", ["q"])
    nodes = [
        onnx.helper.make_node(op, [first, *names], ["q"], domain=DOMAIN, **said),
        onnx.helper.make_node(*last, ["y"]),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "qonnx",
        [info("x", 1, ["N", 4])],
        [info("y", 1, ["N", 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(DOMAIN, 2)]
    return Graph.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))


def trunc(scale: float, out: float, bits: float, zero: float = 0, rounding: str = "FLOOR", signed: int = 1) -> Graph:
    numbers = {"scale": scale, "zero": zero, "before": 12.0, "out": out, "bits": bits}
    return model("Trunc", {"rounding_mode": rounding, "signed": signed, "narrow": 0}, **numbers)


def test_bipolar_activations() -> None:
    graph = model("BipolarQuant", {}, scale=0.3)
    assert from_qonnx(graph) == 1
    x = np.array([[-2, -1e-9, 0, 3]], np.float32)
    np.testing.assert_allclose(run(graph, {"x": x})[0], [[-0.3, -0.3, 0.3, 0.3]], rtol=1e-6)  # zero counts as positive


@pytest.mark.parametrize("scale", [0.3, np.linspace(0.1, 0.4, 4).reshape(1, 4)])
def test_bipolar_weights(scale: npt.ArrayLike) -> None:
    w = np.concatenate([RNG.normal(size=(3, 4)), np.zeros((1, 4))])
    graph = model("BipolarQuant", {}, w=w, scale=scale)
    assert from_qonnx(graph) == 1
    found = run(graph, {"x": np.eye(4, dtype=np.float32)})[0]
    np.testing.assert_allclose(found, np.where(w >= 0, 1, -1) * np.asarray(scale), rtol=1e-6)
    codes = [graph.const(v) for v in graph.weights.values() if graph.dtype(v) == "int8"]
    assert {-1, 1} <= {int(c) for array in codes if array is not None for c in array.ravel()}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 6), st.sampled_from(["FLOOR", "CEIL", "ROUND"]), st.booleans(), st.integers(2, 8))
def test_trunc_by_its_definition(shift: int, rounding: str, signed: bool, bits: int) -> None:
    scale, factor = np.float32(0.037), 2.0**shift
    graph = trunc(float(scale), float(scale * np.float32(factor)), bits, rounding=rounding, signed=int(signed))
    assert from_qonnx(graph) == 1
    steps = RNG.integers(-2000, 2000, (64, 4))
    drop = {"FLOOR": np.floor, "CEIL": np.ceil, "ROUND": np.rint}[rounding]
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    expected = np.clip(drop(steps / factor), low, high) * float(scale) * factor
    found = run(graph, {"x": (steps * scale).astype(np.float32)})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (lambda: trunc(0.1, 0.3, 8), "scale times 3"),
        (lambda: trunc(0.1, 0.2, 8, zero=3), "zero point 3"),
        (lambda: trunc(0.1, 0.2, 16), "16 bits"),
        (lambda: trunc(0.1, 0.2, 8, rounding="UP"), "rounding UP"),
        (lambda: model("Trunc", {}, scale=0.1, zero=0, before=12, bits=8), "no single constant scale"),
        (lambda: model("BipolarQuant", {}, scale=np.ones((1, 4))), "several that Q/DQ pairs cannot have"),
    ],
)
def test_what_cannot_be_written_is_named(graph: Any, why: str) -> None:  # noqa: ANN401  a function
    with pytest.raises(ModelError, match=why):
        from_qonnx(graph())


# -- a file of Brevitas's own ---------------------------------------------------------------------------------------


def images() -> tuple[Array, Array]:
    with np.load(DATA / "qat_brevitas.npz") as held:
        return held["image"], held["y"]


def batches(count: int) -> list[dict[str, Array]]:
    return [{"image": RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def test_brevitas_computes_what_it_computed() -> None:
    graph = load(BREVITAS)
    assert from_qonnx(graph) == 7
    image, expected = images()
    np.testing.assert_allclose(run(graph, {"image": image})[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["tensorrt@11", "tensorrt@10", "ort-cpu"])
def test_brevitas_keeps_its_scales(target: str) -> None:
    data = batches(9)
    graph, plan = api.quantize(BREVITAS, data, Recipe(target=target, high_precision="fp32", effort="fast"))
    if target != "ort-cpu":
        assert_legal(graph.to_proto())
    assert plan.kept
    plain = load(BREVITAS)
    from_qonnx(plain)
    learned = {
        float(a.ravel()[0])
        for n in plain.nodes
        if n.op_type == "DequantizeLinear"
        if (a := plain.const(n.inputs[1])) is not None
    }
    held = {
        float(a.ravel()[0])
        for v in graph.weights.values()
        if (a := graph.const(v)) is not None and a.dtype == np.float32 and a.size
    }
    kept = sum(any(np.isclose(s, h, rtol=1e-6) for h in held) for s in learned)
    assert kept >= len(learned) - (0 if target == "ort-cpu" else 3)  # uint8 from 0 on is no symmetric int8
    image, expected = images()
    # ort-cpu: with steps of four bits, biases in int32 are coarse; ONNX Runtime itself makes 36.4 dB of float ones too.
    assert sqnr_db(expected, run(graph, {"image": image})[0]) > (36 if target == "ort-cpu" else 25)
