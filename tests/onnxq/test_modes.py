from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from placing import net

from onnxq.errors import RecipeError
from onnxq.modes import lowest_opset, mode_of
from onnxq.recipe import Recipe
from onnxq.targets import get_target

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"target": "tensorrt", "mode": "dynamic"}, "scales that are constants"),
        ({"target": "tensorrt@10", "mode": "dynamic"}, "scales that are constants"),
        ({"target": "ort-cuda", "mode": "dynamic"}, "no CUDA kernel"),
        ({"target": "ort-cuda", "high_precision": "bf16"}, "float32 and float16"),
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
