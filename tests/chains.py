"""Layers, in a chain or side by side, of which some are hard to quantize, and data for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from graphs import Array, graph_of

if TYPE_CHECKING:
    from onnxq.graph import Graph

WIDTH = 32


def chain(layers: int, hard: tuple[int, ...] = ()) -> Graph:
    """`layers` products with Tanh between; one channel before a hard layer is 60 times as large, read with as small
    weights."""
    rng = np.random.default_rng(7)
    weights = [rng.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH) for _ in range(layers)]
    for i in hard:
        weights[i - 1][:, 3] *= 60
        weights[i][3] /= 60
    text, value = "", "x"
    for i in range(layers - 1):
        text += f"m{i} = MatMul({value}, w{i}) t{i} = {'Relu' if i + 1 in hard else 'Tanh'}(m{i}) "
        value = f"t{i}"
    text += f"y = MatMul({value}, w{layers - 1}) "
    arrays: dict[str, Array] = {f"w{i}": w.astype(np.float32) for i, w in enumerate(weights)}
    return graph_of(f"(float[N,{WIDTH}] x) => (float[N,{WIDTH}] y) {{ {text}}}", **arrays)


def branches(layers: int, hard: tuple[int, ...] = ()) -> Graph:
    """`layers` products side by side, each of an activation of its own, added up: so does what quantizing them does to
    the output. The hard ones are 30 times as large."""
    rng = np.random.default_rng(7)
    arrays: dict[str, Array] = {}
    text = ""
    for i in range(layers):
        size = (30 if i in hard else 1) / np.sqrt(WIDTH)
        arrays[f"w{i}"] = (rng.normal(size=(WIDTH, WIDTH)) * size).astype(np.float32)
        text += f"t{i} = LeakyRelu<alpha={i / layers}>(x) m{i} = MatMul(t{i}, w{i}) "
    text += f"y = Sum({', '.join(f'm{i}' for i in range(layers))}) "
    return graph_of(f"(float[N,{WIDTH}] x) => (float[N,{WIDTH}] y) {{ {text}}}", **arrays)


def samples(count: int, seed: int = 0) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, WIDTH)).astype(np.float32)} for _ in range(count)]
