"""A small transformer encoder of random weights, with outlier channels planted where trained ones have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from graphs import Array, graph_of

if TYPE_CHECKING:
    from onnxq.graph import Graph

WIDTH, HEADS, LENGTH, HIDDEN = 64, 4, 16, 256
OUTLIERS = (3, 40)

_BLOCK = """
n{i} = LayerNormalization(x{i}, ga{i}, ba{i})
q{i} = MatMul(n{i}, wq{i}) k{i} = MatMul(n{i}, wk{i}) v{i} = MatMul(n{i}, wv{i})
qh{i} = Reshape(q{i}, split) qt{i} = Transpose<perm = [0,2,1,3]>(qh{i})
kh{i} = Reshape(k{i}, split) kt{i} = Transpose<perm = [0,2,3,1]>(kh{i})
vh{i} = Reshape(v{i}, split) vt{i} = Transpose<perm = [0,2,1,3]>(vh{i})
s{i} = MatMul(qt{i}, kt{i}) sd{i} = Mul(s{i}, quarter) p{i} = Softmax<axis = -1>(sd{i})
c{i} = MatMul(p{i}, vt{i}) ct{i} = Transpose<perm = [0,2,1,3]>(c{i}) cj{i} = Reshape(ct{i}, join)
o{i} = MatMul(cj{i}, wo{i}) r{i} = Add(x{i}, o{i})
m{i} = LayerNormalization(r{i}, gb{i}, bb{i})
h{i} = MatMul(m{i}, wi{i}) hb{i} = Add(h{i}, bi{i})
e{i} = Div(hb{i}, root2) f{i} = Erf(e{i}) g{i} = Add(f{i}, one) l{i} = Mul(hb{i}, g{i}) u{i} = Mul(l{i}, half)
d{i} = MatMul(u{i}, wd{i}) x{j} = Add(r{i}, d{i})
"""


def transformer(blocks: int = 4, outlier: float = 100.0) -> Graph:
    """Pre-norm blocks of attention and GELU.

    In every normalization two channels are `outlier` times as large, and in every hidden layer two others; the weights
    that read them are smaller by as much, as training leaves them.
    """
    rng = np.random.default_rng(7)
    plain = {"split": np.array([0, 0, HEADS, WIDTH // HEADS]), "join": np.array([0, 0, WIDTH])}
    halves = {"quarter": 0.25, "root2": np.sqrt(2), "one": 1.0, "half": 0.5}
    weights: dict[str, Array] = {name: np.asarray(value, np.float32) for name, value in halves.items()}
    gain = np.ones(WIDTH)
    gain[list(OUTLIERS)] = outlier

    def normal(rows: int, columns: int) -> Array:
        return np.asarray(rng.normal(size=(rows, columns)) / np.sqrt(rows))

    for i in range(blocks):
        made = {f"g{k}{i}": gain for k in "ab"} | {f"b{k}{i}": 0.1 * rng.normal(size=WIDTH) for k in "ab"}
        made |= {f"w{k}{i}": normal(WIDTH, WIDTH) / gain[:, None] for k in "qkv"} | {f"wo{i}": normal(WIDTH, WIDTH)}
        wide = np.ones(HIDDEN)
        wide[rng.choice(HIDDEN, 2, replace=False)] = outlier / 10
        made |= {f"wi{i}": normal(WIDTH, HIDDEN) / gain[:, None] * wide, f"bi{i}": 0.1 * rng.normal(size=HIDDEN)}
        made |= {f"wd{i}": normal(HIDDEN, WIDTH) / wide[:, None]}
        weights |= {name: array.astype(np.float32) for name, array in made.items()}
    body = "".join(_BLOCK.format(i=i, j=i + 1) for i in range(blocks))
    text = f"(float[N,{LENGTH},{WIDTH}] x0) => (float[N,{LENGTH},{WIDTH}] x{blocks}) {{ {body} }}"
    return graph_of(text, 17, **plain, **weights)


def samples(count: int, seed: int) -> Array:
    """Inputs of the model, (count, length, width)."""
    return np.random.default_rng(seed).normal(size=(count, LENGTH, WIDTH)).astype(np.float32)
