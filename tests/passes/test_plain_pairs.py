"""Pairs with moved codes between them and biases in int32: what is left alone first."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Array, graph_of, lines, random_feeds, same_function

from onnxq.passes.plain_pairs import plain_pairs

HELD: dict[str, Array] = {"s": np.array(0.1, np.float32), "z": np.array(3, np.int8)}
Q = "q = QuantizeLinear(x, s, z)"


BESIDE = f"(float[2,8] x) => (float[2,8] y) {{ {Q} d = DequantizeLinear(q, s, z) y = Relu(d) }}"
READ_TWICE = f"""(float[2,8] x) => (float[8,2] y, int8[8,2] t) {{
    {Q} t = Transpose<perm=[1,0]>(q) d = DequantizeLinear(t, s, z) y = Relu(d) }}"""
AN_AXIS = """(float[2,8] x) => (float[8,2] y) {
    q = QuantizeLinear<axis=1>(x, s, z) t = Transpose<perm=[1,0]>(q)
    d = DequantizeLinear<axis=0>(t, s, z) y = Relu(d) }"""
EIGHT: dict[str, Array] = {"s": np.linspace(0.1, 0.2, 8, dtype=np.float32), "z": np.zeros(8, np.int8)}


@pytest.mark.parametrize(("text", "more"), [(BESIDE, {}), (READ_TWICE, {}), (AN_AXIS, EIGHT)])
def test_left_alone(text: str, more: dict[str, Array]) -> None:
    graph = graph_of(text, 17, **{**HELD, **more})
    before = graph.digest()
    assert plain_pairs(graph) == 0
    assert graph.digest() == before


def test_dequantized_before_it_is_moved() -> None:
    text = (
        f"(float[2,8] x) => (float[4,4] y) {{ {Q} t = Transpose<perm=[1,0]>(q) r = Reshape(t, k) "
        "d = DequantizeLinear(r, s, z) y = Relu(d) }"
    )
    graph, plain = (graph_of(text, 17, **HELD, k=np.array([4, 4])) for _ in range(2))
    assert plain_pairs(graph) == 1
    assert [line.partition("= ")[2].partition("(")[0] for line in lines(graph)] == [
        *("QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape", "Relu")
    ]
    assert lines(graph)[-2].startswith("d = ")
    same_function(plain, graph, random_feeds(plain), rtol=0)


@pytest.mark.parametrize("scale", [np.float32(0.01), np.linspace(0.01, 0.02, 4).astype(np.float32)])
def test_biases_in_float(scale: Array) -> None:
    rng = np.random.default_rng(0)
    text = "(float[2,8] x) => (float[2,4] y) { b = DequantizeLinear<axis=0>(c, s) y = Gemm(x, w, b) }"
    held = {"c": rng.integers(-999, 999, 4).astype(np.int32), "s": np.asarray(scale), "w": rng.normal(size=(8, 4))}
    graph, plain = (
        graph_of(text, 17, **{n: a.astype(np.float32) if n == "w" else a for n, a in held.items()}) for _ in range(2)
    )
    assert plain_pairs(graph) == 1
    assert [n.op_type for n in graph.nodes] == ["Gemm"]
    same_function(plain, graph, random_feeds(plain), rtol=1e-6)


WEIGHT = "(float[2,8] x) => (float[2,4] y) {{ d = DequantizeLinear<axis={}>({}) y = MatMul(x, d) }}"


@pytest.mark.parametrize(
    ("axis", "shape", "inputs", "count"),
    [
        (1, (4,), "w, s", 0),
        (1, (), "w, s, z", 0),
        (-1, (4,), "w, s", 1),
        (-2, (8,), "w, s, z", 1),
        (1, (1,), "w, s, z", 1),
        (-1, (1,), "w, s", 1),
    ],
)
def test_axes_from_the_front_and_scalars(axis: int, shape: tuple[int, ...], inputs: str, count: int) -> None:
    rng = np.random.default_rng(0)
    held: dict[str, Array] = {
        "w": rng.integers(-128, 127, (8, 4)).astype(np.int8),
        "s": rng.uniform(0.01, 0.1, shape).astype(np.float32),
        "z": np.zeros(shape, np.int8),
    }
    graph, plain = (graph_of(WEIGHT.format(axis, inputs), 21, **held) for _ in range(2))
    assert plain_pairs(graph) == count
    assert graph.attribute(graph.nodes[0], "axis") == axis % 2
    assert graph.shape(graph.nodes[0].inputs[1]) == (() if shape == (1,) else shape)
    same_function(plain, graph, random_feeds(plain), rtol=0)


def test_a_vector_of_one_block_stays() -> None:
    """One scale for a block of all rows: not one for the tensor by its rank."""
    text = "(float[2,8] x) => (float[2,1] y) { d = DequantizeLinear<axis=-2, block_size=8>(w, s) y = MatMul(x, d) }"
    graph = graph_of(text, 21, w=np.ones((8, 1), np.int8), s=np.full((1, 1), 0.1, np.float32))
    assert plain_pairs(graph) == 1
    assert graph.attribute(graph.nodes[0], "axis") == 0
    assert graph.shape(graph.nodes[0].inputs[1]) == (1, 1)


def test_activations_keep_their_vectors() -> None:
    graph = graph_of(BESIDE, 17, s=np.array([0.1], np.float32), z=np.array([0], np.int8))
    assert plain_pairs(graph) == 0
    assert graph.shape(graph.nodes[0].inputs[1]) == (1,)
