from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from placing import net

import onnxq
from onnxq.checks.versions import VERSIONS
from onnxq.errors import ModelError, RecipeError
from onnxq.operators import is_integer
from onnxq.targets import TARGETS, get_target

if TYPE_CHECKING:
    from onnxq.graph import Graph

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def deconvolution() -> Graph:
    return net(
        "float[1,16,4,4] x",
        "c = Conv(x, w) r = Relu(c) y = ConvTranspose<strides=[2,2]>(r, t)",
        "y",
        13,
        w=(16, 16, 1, 1),
        t=(16, 16, 2, 2),
    )


def emitted(target: str, **options: str) -> onnx.ModelProto:
    recipe = onnxq.Recipe(target=target, **options)  # type: ignore[arg-type]  # a test names texts only
    return onnxq.quantize(deconvolution(), "random:2", recipe)[0].to_proto()


def scales(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Weight or activation -> its scale."""
    return {t.name.split("_scale")[0]: t for t in model.graph.initializer if "_scale" in t.name}


@pytest.mark.parametrize(
    ("target", "form", "deconv", "kind", "opset"),
    [
        ("tensorrt@8", "qdq", 1, FLOAT, 13),
        ("tensorrt@10", "dq", 16, FLOAT, 13),
        ("tensorrt@11", "dq", 16, FLOAT16, 19),
    ],
)
def test_what_is_written_for_each_version(target: str, form: str, deconv: int, kind: int, opset: int) -> None:
    model = emitted(target)
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("QuantizeLinear") == (4 if form == "qdq" else 2)  # two activations, and two weights
    assert ops.count("DequantizeLinear") == 4
    found = scales(model)
    assert sum(found["t"].dims) == (0 if deconv == 1 else deconv)  # 0-d: one scale
    assert list(found["w"].dims) == [16]
    assert {t.data_type for t in found.values()} == {kind}
    assert model.opset_import[0].version == opset
    assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {FLOAT}


def test_without_a_number_it_is_the_newest() -> None:
    assert get_target("tensorrt") is get_target("tensorrt@11")
    assert emitted("tensorrt") == emitted("tensorrt@11")


def test_the_recipe_has_the_last_word() -> None:
    ops = [node.op_type for node in emitted("tensorrt@11", weight_form="qdq", high_precision="fp32").graph.node]
    assert ops.count("QuantizeLinear") == 4
    assert "Cast" not in ops


@pytest.mark.parametrize(
    ("target", "flags", "convert"),
    [
        ("tensorrt@8", ("--int8", "--fp16"), ("--int8", "--fp16")),  # weakly typed: flags allow types
        ("tensorrt@10", ("--stronglyTyped",), ("--strongly-typed",)),
        ("tensorrt@11", (), ("--strongly-typed",)),  # the precision flags are gone
    ],
)
def test_next_steps(target: str, flags: tuple[str, ...], convert: tuple[str, ...]) -> None:
    steps = get_target(target).next_step
    trtexec = steps[f"trtexec (TensorRT {target.partition('@')[2]})"]
    filled = trtexec.format(model="m.int8.onnx", engine="m.plan", shapes=" --optShapes=x:1x3x8x8").split()
    assert filled[:3] == ["trtexec", "--onnx=m.int8.onnx", "--saveEngine=m.plan"]
    assert filled[3:] == [*flags, "--optShapes=x:1x3x8x8"]
    polygraphy = steps["polygraphy"].format(model="m.int8.onnx", engine="m.plan").split()
    assert polygraphy == ["polygraphy", "convert", "m.int8.onnx", *convert, "-o", "m.plan"]


@pytest.mark.parametrize(
    ("name", "near"), [("tensort", "'tensorrt'"), ("tensorrt@12", "'tensorrt@1"), ("tensorrt10", "'tensorrt@10'")]
)
def test_an_unknown_target(name: str, near: str) -> None:
    with pytest.raises(RecipeError, match=name) as caught:
        get_target(name)
    assert f"Did you mean {near}" in caught.value.hint
    assert all(known in caught.value.hint for known in TARGETS)
    with pytest.raises(RecipeError, match=name):
        onnxq.Recipe(target=name)


def test_nothing_like_it() -> None:
    with pytest.raises(RecipeError) as caught:
        get_target("qqq")
    assert caught.value.hint.startswith("Known: tensorrt,")


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt@8", "tensorrt@10", "tensorrt@11"])
def test_targets_and_checks_agree(name: str) -> None:
    target, version = TARGETS[name], VERSIONS[name]
    assert target.name == version.name
    assert version.stored_weights == (target.weight_form == "dq")
    assert version.transposed_per_channel == target.deconv_per_channel
    assert version.strongly_typed == (target.high_precision == "fp16")
    assert target.activation.dtype == target.weight.dtype == "int8"


@pytest.mark.parametrize("name", ["tensorrt@8+dla", "tensorrt@10+dla", "tensorrt@11+dla"])
def test_a_dla_has_no_mode_of_weights_alone(name: str) -> None:
    model = net("float[8,64] x", "y = MatMul(x, w)", "y", 17, w=(64, 64))
    with pytest.raises(RecipeError, match="cannot run mode weight-only: a DLA takes int8 weights where") as caught:
        onnxq.quantize(model, None, onnxq.Recipe(target=name, mode="weight-only"))
    assert "static, float, auto" in caught.value.hint


PARTLY_INTEGERS = (
    "float[8,64] x",
    "m = MatMul(x, w) q, s, z = DynamicQuantizeLinear(m) p = MatMulInteger(q, v, z) y = Cast<to=1>(p)",
    "y",
    13,
)


@pytest.mark.parametrize(
    ("target", "mode"),
    [("tensorrt@8", "static"), ("tensorrt@11", "weight-only"), ("tensorrt@11", "float"), ("tensorrt@10+dla", "static")],
)
def test_integer_operators_that_the_backend_lacks_are_refused_before_anything_is_done(target: str, mode: str) -> None:
    """What `check` says of the finished file (P15) is said before."""
    model = net(*PARTLY_INTEGERS, w=(64, 64), v=np.ones((64, 4), np.uint8))
    recipe = onnxq.Recipe(target=target, mode=mode, effort="fast")
    with pytest.raises(ModelError, match=r"TensorRT lacks: DynamicQuantizeLinear of .*; MatMulInteger of") as caught:
        onnxq.quantize(model, "random:2", recipe)
    assert "float model that it was made from" in caught.value.hint
    (note,) = (note for note in onnxq.make_plan(model, recipe).notes if note.startswith("`quantize`"))
    assert "TensorRT lacks DynamicQuantizeLinear" in note


@pytest.mark.parametrize("target", ["ort-cpu", "ort-cuda"])
def test_onnx_runtime_takes_them(target: str) -> None:
    model = net(*PARTLY_INTEGERS, w=(64, 64), v=np.ones((64, 4), np.uint8))
    made, plan = onnxq.quantize(model, "random:2", onnxq.Recipe(target=target, mode="weight-only"))
    assert "MatMulInteger" in [node.op_type for node in made.nodes]
    assert not [note for note in onnxq.make_plan(model, onnxq.Recipe(target=target)).notes if "`quantize`" in note]
    assert plan.weights


def test_the_plan_of_mode_float_says_which_type() -> None:
    plan = onnxq.make_plan(deconvolution(), onnxq.Recipe(mode="float"))
    assert {d.reason for d in plan.decisions} == {"computes in float16"}


@pytest.mark.parametrize(
    ("op_type", "domain", "integer"),
    [
        *[(op, "", True) for op in ("QLinearConv", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")],
        *[(op, "", False) for op in ("QuantizeLinear", "DequantizeLinear", "MatMul", "QGemm")],
        *[(op, "com.microsoft", True) for op in ("QuantizeLinear", "MatMulNBits", "MatMulBnb4", "DynamicQuantizeLSTM")],
        *[(op, "com.microsoft", False) for op in ("FusedConv", "MultiHeadAttention")],
        ("QLinearConv", "com.example", False),
    ],
)
def test_integer_operators(op_type: str, domain: str, *, integer: bool) -> None:
    assert is_integer(op_type, domain) == integer
