from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import graph_of, lines, random_feeds, run, same_function

from onnxq.errors import ModelError
from onnxq.graph import Graph
from onnxq.passes.raise_opset import RaiseOpset

ADD = "(float[2] x) => (float[2] y) { y = Add(x, w) }"


@pytest.mark.parametrize("opset", [13, 17, 25])
def test_leaves_new_models_alone(opset: int) -> None:
    graph = graph_of(ADD, opset, w=np.ones(2, np.float32))
    assert RaiseOpset(13)(graph) == 0
    assert graph.opset == opset


def test_reads_what_the_converter_can_bring_from_before_and_after() -> None:
    older = graph_of(
        "(float[2,3] x) => (float[2,3] y) { y = Add<axis=0, broadcast=1>(x, w) }", 6, w=np.ones(2, np.float32)
    )
    assert RaiseOpset()(older) == 1
    assert older.opset == 13
    x = np.zeros((2, 3), np.float32)
    assert np.array_equal(run(older, {"x": x})[0], np.ones((2, 3), np.float32))
    newer = graph_of(ADD, 28, w=np.ones(2, np.float32))
    assert RaiseOpset()(newer) == 1
    assert newer.opset == 25


def test_refuses_an_operator_without_a_conversion() -> None:
    text = "(float[4] x, int64 axis) => (float[4] y) { y = CumProd(x, axis) }"
    with pytest.raises(ModelError, match="opset 26 to 25"):
        RaiseOpset()(graph_of(text, 26))


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ('Pad<mode = "constant", pads = 3>(x)', "'pads' in another type"),
        ('Pad<mode = "constant">(x)', "lacks its attribute 'pads'"),
        ("Squeeze<axes = [0]>()", "has 0 inputs, opset 6 wants 1"),
    ],
)
def test_refuses_what_would_end_the_process_in_the_converter(node: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        RaiseOpset(13)(graph_of(f"(float[1,2] x) => (float[2] y) {{ y = {node} }}", 6))


def test_refuses_a_scan_with_a_batch_axis() -> None:
    text = (
        "(float[1,2] s, float[1,3,2] x) => (float[1,2] t, float[1,3,2] z) { t, z = Scan<num_scan_inputs = 1,"
        "body = b (float[2] a, float[2] c) => (float[2] d, float[2] e) { d = Add(a, c) e = Identity(d) }>(, s, x) }"
    )
    with pytest.raises(ModelError, match="Scan"):
        RaiseOpset()(graph_of(text, 8))


def test_moves_an_attribute_to_an_input() -> None:
    """Squeeze names its axes by an attribute before opset 13 and by an input from then on."""
    graph = graph_of("(float[1,2] x) => (float[2] y) { y = Squeeze<axes = [0]>(x) }", 11)
    before = graph.copy()
    assert RaiseOpset(13)(graph) == 1
    assert graph.opset == 13
    assert len(graph.nodes[0].inputs) == 2
    same_function(before, graph, random_feeds(graph))


@pytest.mark.parametrize(
    ("shape", "dtype", "opset"), [((2, 2), np.float16, 19), ((2,), np.float16, 17), ((2, 2), np.float32, 17)]
)
def test_half_precision_weights_need_opset_19(shape: tuple[int, ...], dtype: type, opset: int) -> None:
    kind = np.dtype(dtype).name.replace("float32", "float")
    graph = graph_of(f"({kind}[2,2] x) => ({kind}[2,2] y) {{ y = Mul(x, w) }}", w=np.ones(shape, dtype))
    assert RaiseOpset(13)(graph) == int(opset == 19)
    assert graph.opset == opset
    assert lines(graph) == ["y = Mul(x, w)"]


@pytest.mark.parametrize(
    ("opset", "body", "says"),
    [
        (26, "i = BitCast<to = 6>(x) y = Cast<to = 1>(i)", "is BitCast as opset 26 has it"),
        (999, "y = Relu(x)", "the installed onnx knows opsets up to"),
    ],
)
def test_what_newer_opsets_cannot_give_up_is_said_in_words(opset: int, body: str, says: str) -> None:
    if onnx.defs.onnx_opset_version() < opset < 100:
        pytest.skip("onnx here does not know that opset yet")
    text = f'<ir_version: 12, opset_import: ["" : {opset}]> g (float[4] x) => (float[4] y) {{ {body} }}'
    with pytest.raises(ModelError, match=says) as caught:
        RaiseOpset()(Graph.from_proto(onnx.parser.parse_model(text)))
    assert "Assertion" not in str(caught.value)
    assert caught.value.hint == "Export the model again with opset 25 or earlier."


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_activations_of_half_precision_want_opset_19_where_each_is_quantized(kind: str) -> None:
    """A DLA has a pair on every tensor, and QuantizeLinear takes halves from opset 19 on."""
    for every, opset in ((False, 13), (True, 19)):
        graph = graph_of(f"({kind}[2] x, {kind}[2] v) => ({kind}[2] y) {{ y = Max(x, v) }}", 13)
        assert RaiseOpset(13, every)(graph) == int(every)
        assert graph.opset == opset
