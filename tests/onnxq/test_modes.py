from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import graph_of, random_feeds, same_function
from placing import net

import onnxq
from onnxq.errors import RecipeError
from onnxq.modes import lowest_opset, mode_of
from onnxq.recipe import Recipe
from onnxq.targets import get_target

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from onnxq.graph import Graph


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"target": "tensorrt", "mode": "dynamic"}, "scales that are constants"),
        ({"target": "tensorrt@10", "mode": "dynamic"}, "scales that are constants"),
        ({"target": "ort-cuda", "mode": "dynamic"}, "no CUDA kernel"),
        ({"target": "ort-cuda", "high_precision": "bf16"}, "too few bfloat16 kernels"),
        ({"target": "tensorrt@8", "high_precision": "bf16"}, "from 9 on"),
        ({"target": "tensorrt@11+dla", "high_precision": "bf16"}, "int8 and fp16 only"),
        ({"mode": "weight-only", "weight_bits": 5}, "weight_bits is 5"),
        ({"target": "ort-cuda", "mode": "weight-only", "block_size": 48}, "block_size is 48"),
        ({"target": "ort-cuda", "mode": "weight-only", "block_size": 8}, "block_size is 8"),
        ({"target": "tensorrt", "mode": "weight-only", "block_size": 32}, "in 4 bits only"),
        ({"target": "tensorrt@8", "mode": "weight-only", "weight_bits": 4}, "in no bits only"),
        ({"block_size": 32}, "not of static"),
        ({"weight_bits": 4, "target": "ort-cpu", "mode": "dynamic"}, "not of dynamic"),
        ({"mode": "statical"}, "unknown mode"),
    ],
)
def test_refusals_say_why(choices: dict[str, object], why: str) -> None:
    with pytest.raises(RecipeError, match=why) as found:
        Recipe(**choices)  # type: ignore[arg-type]  # wrong on purpose
    assert found.value.hint


@pytest.mark.parametrize(
    ("choices", "opset"),
    [
        ({"target": "tensorrt@10"}, 13),
        ({"target": "ort-cuda"}, 19),  # fp16 scales
        ({"target": "ort-cuda", "high_precision": "fp32"}, 13),
        ({"target": "ort-cuda", "high_precision": "fp32", "mode": "weight-only"}, 13),
        ({"target": "ort-cuda", "mode": "weight-only", "weight_bits": 4}, 21),
        ({"target": "ort-cuda", "mode": "weight-only", "block_size": 64}, 21),
    ],
)
def test_lowest_opset(choices: dict[str, object], opset: int) -> None:
    recipe = Recipe(**choices)  # type: ignore[arg-type]  # the fields by name
    assert lowest_opset(recipe, get_target(recipe.target)) == opset


@pytest.mark.parametrize(
    ("target", "inputs", "expected"),
    [
        ("ort-cuda", "float[16,64] x", "weight-only"),
        ("ort-cuda", "float[17,64] x", "static"),
        ("ort-cuda", "float[2,4,64] x", "weight-only"),
        ("ort-cuda", "float[N,64] x", "static"),  # not known
        ("tensorrt", "float[1,64] x", "static"),
        ("ort-cpu", "float[1,64] x", "static"),
    ],
)
def test_auto(target: str, inputs: str, expected: str) -> None:
    graph = net(inputs, "y = MatMul(x, w)", w=(64, 96))
    assert mode_of(graph, get_target(target), Recipe(target=target, mode="auto")) == expected


def test_a_small_layer_with_few_rows_does_not_decide() -> None:
    graph = net(
        "float[64,64] x",
        "h = MatMul(x, w) r = ReduceMean<axes=[0], keepdims=1>(h) y = MatMul(r, v)",
        w=(64, 256),
        v=(256, 8),
    )
    assert mode_of(graph, get_target("ort-cuda"), Recipe(target="ort-cuda", mode="auto")) == "static"


def test_a_recipe_file_holds_the_mode(tmp_path: Path) -> None:
    recipe = Recipe(target="ort-cuda", mode="weight-only", weight_bits=4, block_size=64)
    path = tmp_path / "r.toml"
    path.write_text(recipe.to_toml())
    assert Recipe.from_toml(path) == recipe


SPLIT = " ".join(f"{n}4 = Reshape({n}, split)" for n in "qkv")
TURN = "qt = Transpose<perm=[0,2,1,3]>(q4) kt = Transpose<perm=[0,2,3,1]>(k4) vt = Transpose<perm=[0,2,1,3]>(v4)"
ATTENTION = f"""
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) {SPLIT} {TURN}
    s = MatMul(qt, kt) f = Mul(s, factor) p = Softmax<axis=-1>(f) m = MatMul(p, vt)
    t = Transpose<perm=[0,2,1,3]>(m) a = Reshape(t, joined)
    r = Add(a, x) y = LayerNormalization<axis=-1>(r, scale, bias)
"""


def attention() -> Graph:
    rng = np.random.default_rng(0)
    weights: dict[str, npt.ArrayLike] = {f"w{n}": rng.normal(size=(64, 64)).astype(np.float32) / 8 for n in "qkv"}
    weights |= {"split": np.array([0, 0, 4, 16]), "joined": np.array([0, 0, 64]), "factor": np.float32(0.25)}
    weights |= {"scale": np.ones(64, np.float32), "bias": np.zeros(64, np.float32)}
    return graph_of(f"(float[N,T,64] x) => (float[N,T,64] y) {{ {ATTENTION} }}", 17, **weights)


@pytest.mark.parametrize("target", ["ort-cuda", "tensorrt"])
def test_other_targets_keep_what_stays_in_float(target: str) -> None:
    graph, _ = onnxq.quantize(attention(), None, Recipe(target=target, mode="weight-only"))
    assert {"Softmax", "Add", "LayerNormalization"} < {node.op_type for node in graph.nodes}


@pytest.mark.parametrize("mode", ["dynamic", "weight-only"])
def test_what_stays_in_float_on_cpus_takes_few_kernels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(target="ort-cpu", mode=mode)
    graph, _ = onnxq.quantize(attention(), None, recipe)
    kinds = [node.op_type for node in graph.nodes]
    assert kinds.count("MultiHeadAttention") == kinds.count("Sum") == 1
    assert not {"Softmax", "Transpose", "Reshape"} & set(kinds)
    monkeypatch.setattr("onnxq.passes.IN_FLOAT", ())
    before, _ = onnxq.quantize(attention(), None, recipe)
    assert "Softmax" in [node.op_type for node in before.nodes]
    same_function(before, graph, random_feeds(graph, N=2, T=5), 1e-5)
