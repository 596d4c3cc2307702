from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import graph_of, lines, random_feeds, run

from onnxq import Recipe, api
from onnxq.passes.einsum_to_matmul import einsum_to_matmul

if TYPE_CHECKING:
    from onnxq.graph import Graph

RNG = np.random.default_rng(3)


def net(equation: str, x: str, w: tuple[int, ...], *, swapped: bool = False) -> Graph:
    array = RNG.normal(size=w).astype(np.float32)
    inputs = "w, x" if swapped else "x, w"
    graph = graph_of(f'(float[{x}] x) => (float y) {{ y = Einsum<equation="{equation}">({inputs}) }}', w=array)
    graph.infer_shapes()
    return graph


@pytest.mark.parametrize(
    ("equation", "x", "w"),
    [
        ("bi,ij", "2,3", (3, 4)),  # no result is named
        ("ii,ij->j", "3,3", (3, 4)),  # a diagonal
        ("bik,ij->bj", "2,3,5", (3, 4)),  # k is summed in x alone
        ("bi,ijk->bj", "2,3", (3, 4, 5)),  # and here in the weight alone
        ("bi,j->bij", "2,3", (4,)),  # sums nothing
        ("bi,i->b", "2,3", (3,)),  # no columns
        ("gi,gij->gj", "2,3", (2, 3, 4)),  # no rows
        ("bi,ij->bj", "2,1", (3, 4)),  # broadcast
        ("bi,...ij->...bj", "2,3", (2, 3, 4)),  # an ellipsis of the weight
    ],
)
def test_leaves_alone(equation: str, x: str, w: tuple[int, ...]) -> None:
    graph = net(equation, x, w)
    before = lines(graph)
    assert einsum_to_matmul(graph) == 0
    assert lines(graph) == before


def test_leaves_two_tensors_alone() -> None:
    graph = graph_of('(float[2,3] a, float[3,4] b) => (float[2,4] y) { y = Einsum<equation="ij,jk->ik">(a, b) }')
    assert einsum_to_matmul(graph) == 0


def test_leaves_an_ellipsis_of_unknown_rank_and_other_domains_alone() -> None:
    w = np.ones((3, 4), np.float32)
    head = "(float[30] v, int64[R] s) => (float[B,J] y)"
    unknown = graph_of(f'{head} {{ x = Reshape(v, s) y = Einsum<equation="...i,ij->...j">(x, w) }}', w=w)
    other = graph_of('(float[2,3] x) => (float[2,4] y) { y = com.acme.Einsum<equation="bi,ij->bj">(x, w) }', w=w)
    assert einsum_to_matmul(unknown) == einsum_to_matmul(other) == 0


def test_labels_tell_a_rank_that_nothing_else_does() -> None:
    w, x = RNG.normal(size=(2, 3, 4)).astype(np.float32), RNG.normal(size=(5, 2, 3)).astype(np.float32)
    head = "(float[30] v, int64[R] s) => (float[T,G,H] y)"
    graph = graph_of(f'{head} {{ x = Reshape(v, s) y = Einsum<equation="tgi,gij->tgj">(x, w) }}', w=w)
    graph.infer_shapes()
    assert graph.rank(graph.find("x")) is None
    assert einsum_to_matmul(graph) == 1
    found = run(graph, {"v": x.reshape(-1), "s": np.array(x.shape)})[0]
    np.testing.assert_allclose(found, np.einsum("tgi,gij->tgj", x, w), rtol=1e-5, atol=1e-5)


def test_names_of_sizes_are_no_sizes() -> None:
    graph = net("bi,ij->bj", "B,I", (3, 4))
    assert einsum_to_matmul(graph) == 1


@pytest.mark.parametrize(
    ("equation", "x", "w", "operators"),
    [
        ("bi,ij->bj", "2,3", (3, 4), ["MatMul"]),
        ("b i, j i -> b j", "2,3", (4, 3), ["MatMul"]),
        ("...i,ij->...j", "2,5,3", (3, 4), ["MatMul"]),
        ("bti,ihd->bthd", "2,5,3", (3, 4, 2), ["MatMul", "Reshape"]),
        ("bthd,hdo->bto", "2,5,3,4", (3, 4, 6), ["Reshape", "MatMul"]),
        ("btgi,gih->btgh", "2,5,3,4", (3, 4, 6), ["Transpose", "MatMul", "Transpose"]),
        ("bit,ji->bjt", "2,3,5", (4, 3), ["Transpose", "MatMul", "Transpose"]),
        ("bgih,hgoid->dobg", "2,3,4,5", (5, 3, 6, 4, 2), ["Transpose", "Reshape", "MatMul", "Reshape", "Transpose"]),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_is_numpys_einsum(equation: str, x: str, w: tuple[int, ...], operators: list[str], swapped: bool) -> None:
    left, result = equation.split("->")
    equation = f"{','.join(left.split(',')[::-1])}->{result}" if swapped else equation
    graph = net(equation, x, w, swapped=swapped)
    array = np.asarray(graph.const(graph.find("w")), np.float64)
    title, feeds = graph.nodes[0].name, random_feeds(graph)
    assert einsum_to_matmul(graph) == 1
    assert [node.op_type for node in graph.nodes] == operators
    assert next(node.name for node in graph.nodes if node.op_type == "MatMul") == title
    inputs = (array, feeds["x"]) if swapped else (feeds["x"], array)
    np.testing.assert_allclose(run(graph, feeds)[0], np.einsum(equation, *inputs), rtol=1e-5, atol=1e-5)


def test_open_sizes_of_rows_stay_open() -> None:
    graph = net("btgi,gih->btgh", "N,T,3,4", (3, 4, 6))
    array = np.asarray(graph.const(graph.find("w")), np.float64)
    assert einsum_to_matmul(graph) == 1
    for shape in ((1, 2, 3, 4), (2, 7, 3, 4)):
        x = RNG.normal(size=shape).astype(np.float32)
        expected = np.einsum("btgi,gih->btgh", x.astype(np.float64), array)
        np.testing.assert_allclose(run(graph, {"x": x})[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("groups", "shape"), [(3, (2, 5, 1, 4)), (1, (2, 5, 3, 4)), (3, (2, 5, 3, 4))])
def test_batches_of_open_size_are_broadcast_as_an_einsum_does(groups: int, shape: tuple[int, ...]) -> None:
    graph = net("btgi,gihd->btghd", "N,T,G,4", (groups, 4, 6, 2))
    array = np.asarray(graph.const(graph.find("w")), np.float64)
    x = RNG.normal(size=shape).astype(np.float32)
    expected = np.einsum("btgi,gihd->btghd", x.astype(np.float64), array)
    before = run(graph, {"x": x})[0]
    assert einsum_to_matmul(graph) == 1
    for found in (before, run(graph, {"x": x})[0]):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("w", "shape"), [((3, 4), (2, 1)), ((1, 4), (2, 3))])
def test_sums_of_open_size_that_would_be_broadcast_are_an_error_and_no_other_number(
    w: tuple[int, int], shape: tuple[int, int]
) -> None:
    graph, x = net("bi,ij->bj", "N,I", w), np.ones(shape, np.float32)
    assert run(graph, {"x": x})[0].shape == (2, 4)  # ONNX Runtime is more lenient than the standard
    assert einsum_to_matmul(graph) == 1
    with pytest.raises(Exception, match="MatMul"):
        run(graph, {"x": x})


def test_no_rows_are_no_error() -> None:
    graph = net("bthd,hdo->bto", "N,5,3,4", (3, 4, 6))
    assert einsum_to_matmul(graph) == 1
    assert run(graph, {"x": np.zeros((0, 5, 3, 4), np.float32)})[0].shape == (0, 5, 6)


def test_a_weight_that_layers_share_stays_one() -> None:
    w, v = RNG.normal(size=(8, 2, 4)).astype(np.float32), RNG.normal(size=(8, 8)).astype(np.float32)
    graph = graph_of(
        """(float[2,5,8] x) => (float[2,5,8] y) {
            a = Einsum<equation="bti,ihd->bthd">(x, w) b = Reshape(a, s) c = Einsum<equation="bti,ihd->bthd">(b, w)
            d = Reshape(c, s) e = Einsum<equation="bti,ij->btj">(d, v) y = Einsum<equation="bti,ji->btj">(e, v)
        }""",
        w=w,
        v=v,
        s=np.array([0, 0, 8]),
    )
    graph.infer_shapes()
    assert einsum_to_matmul(graph) == 4
    read = [node.inputs[1] for node in graph.nodes if node.op_type == "MatMul"]
    assert read[0] is read[1]
    assert read[2] is graph.find("v")  # as it is
    assert read[3] is not read[2]  # and on its side


@pytest.mark.parametrize("target", ["tensorrt", "ort-cpu"])
def test_such_a_layer_is_quantized(target: str) -> None:
    graph = net("bti,ihd->bthd", "4,8,32", (32, 4, 16))
    feeds = [random_feeds(graph, seed) for seed in range(4)]
    _, plan = api.quantize(graph, feeds, Recipe(target=target, effort="fast"))
    assert [d.precision for d in plan.decisions if d.op_type == "MatMul"] == ["int8"]
