"""The whole pipeline over models that onnxq's authors did not write, and its own promises."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import graph_of, lines, random_feeds, same_function
from onnx.backend.test.loader import load_model_tests

from onnxq.graph import Graph
from onnxq.passes import RaiseOpset, prepare
from onnxq.runtime import Session

ROOT = Path(__file__).parents[2]
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
SOME = re.compile(
    "test_(attention_3d_expanded|averagepool_2d|batchnorm|cast_FLOAT_to|concat_2d|constantofshape|convtranspose|dropout"
    "|expand|gelu|gemm|if|layer_normalization_4d|loop1|mul|pad|reshape|scan9|sequence|shape|slice|softmax)"
)


def prepared(graph: Graph) -> Graph:
    result = graph.copy()
    for step in prepare(13):
        step(result)
    return result


def tensors(outputs: list[Any]) -> list[Any]:
    """The outputs with the members of sequences in their place."""
    return [t for o in outputs for t in (tensors(o) if isinstance(o, list) else [o])]


def test_the_bare_package_says_how_it_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import passes"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "onnxq.passes" in done.stderr.splitlines()[-1]


def test_importing_passes_loads_nothing_heavy() -> None:
    code = "import sys, onnxq.passes; print([m for m in ('onnx', 'onnx_ir', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_small_network_from_front_to_back() -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "s": (4,), "b": (4,), "m": (4,), "v": (4,), "k": (4, 1, 1), "f": (144, 5)}
    weights = {name: rng.uniform(0.5, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    graph = graph_of(
        "(float[N,3,8,8] x) => (float[N,5] y) {"
        "a = Div(x, c) i = Identity(a) p = Conv(i, w) j = Dropout(p) o = Mul(j, k)"
        "n = BatchNormalization(o, s, b, m, v)"
        "t = Add(k, n) r = Relu(t) h = Shape<end = 1>(r) l = Concat<axis = 0>(h, minus) q = Reshape(r, l)"
        "u = Transpose(f) g = Gemm<transB = 1>(q, u) y = Identity(g) }",
        16,
        c=np.float32(255),
        minus=np.array([-1], np.int64),
        **weights,
    )
    after = prepared(graph)
    assert lines(after) == [
        "t = Conv(x, w/folded_2, Conv:p/bias/folded)",
        "r = Relu(t)",
        "h = Shape(r)",
        "l = Concat(h, minus)",
        "q = Reshape(r, l)",
        "y = Gemm(q, u/folded)",
    ]
    assert prepared(after).digest() == after.digest()
    same_function(graph, after, random_feeds(graph, N=2))


def test_a_gelu_stays_whole() -> None:
    text = (
        "(float[2,8] x) => (float[2,4] y) { d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) g = Mul(m, half)"
        "y = MatMul(g, w) }"
    )
    graph = graph_of(
        text,
        root=np.float32(np.sqrt(2)),
        one=np.float32(1),
        half=np.float32(0.5),
        w=np.ones((8, 4), np.float32),
    )
    assert lines(prepared(graph)) == lines(graph)


@pytest.mark.parametrize("name", ["light_squeezenet", "light_shufflenet", "light_inception_v1"])
def test_models_of_the_onnx_package(name: str) -> None:
    """Their weights come from ConstantOfShape nodes, of opset 9."""
    graph = Graph.from_proto(onnx.load(LIGHT / f"{name}.onnx"))
    after = prepared(graph)
    assert {n.op_type for n in after.nodes}.isdisjoint({"ConstantOfShape", "BatchNormalization", "Dropout"})
    assert all(after.is_const(n.inputs[1]) for n in after.nodes if n.op_type == "Conv")
    same_function(graph, after, random_feeds(graph))


def test_nodes_of_the_standard() -> None:
    """onnx's own test models: the pipeline never fails, and what ONNX Runtime can run computes the same."""
    ran = 0
    with warnings.catch_warnings(action="ignore"):  # the making of their data overflows on purpose
        cases = load_model_tests(kind="node")
    for case in cases:
        if not SOME.match(case.name) or "fp16" in case.name or not case.data_sets or case.model is None:
            continue
        graph = Graph.from_proto(case.model)
        if graph.opset < 7:
            continue
        after = graph.copy()
        for step in prepare(13):
            if graph.opset <= 25 or not isinstance(step, RaiseOpset):  # what it refuses, the other passes survive
                step(after)
        feed = {str(v.name): x for v, x in zip(case.model.graph.input, case.data_sets[0][0], strict=False)}
        try:
            expected = Session(case.model.SerializeToString(), optimize=False)._session.run(None, feed)
        except Exception:  # noqa: BLE001, S112  ONNX Runtime lacks the operator or the type
            continue
        got = Session(after.to_proto().SerializeToString(), optimize=False)._session.run(None, feed)
        for a, b in zip(tensors(expected), tensors(got), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6, err_msg=case.name)
        ran += 1
    assert ran > 100
