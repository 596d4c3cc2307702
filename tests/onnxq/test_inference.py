"""Shape inference in stretches finds what onnx's own finds of the whole model."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx.parser
import pytest
from onnx import shape_inference

from onnxq import inference
from onnxq.inference import check_fully, inferred

if TYPE_CHECKING:
    from collections.abc import Iterator

SYNTHETIC = Path(__file__).parents[2] / "scripts" / "synthetic.py"
BRANCHES: Any = runpy.run_path(str(SYNTHETIC), run_name="synthetic")["branches"]

IF = """If (k) <then_branch = t{n} () => (a{n}) {{ p{n} = MatMul({x}, w) a{n} = Relu(p{n}) }},
                else_branch = e{n} () => (b{n}) {{ b{n} = If (k) <
                    then_branch = tt{n} () => (c{n}) {{ c{n} = Neg({x}) }},
                    else_branch = ee{n} () => (d{n}) {{ d{n} = Abs({x}) }}> }}>"""


def model(nodes: str, outputs: str = "float[n, 8] y") -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]> g (float[n, 8] x, bool k, float[8, 8] w) => ({outputs})
        <int64[1] last = {{-1}}, int64[1] two = {{2}}, int64[1] four = {{4}}> {{ {nodes} }}"""
    )


SHAPES = f"""s = Shape<start=0, end=1>(x)
    one = {IF.format(n=1, x="x")}
    target = Concat<axis=0>(s, two, four)
    two_ = {IF.format(n=2, x="one")}
    three = {IF.format(n=3, x="two_")}
    split = Reshape(three, target)
    turned = Transpose<perm=[0, 2, 1]>(split)
    more = Concat<axis=0>(s, last)
    flat = Reshape(turned, more)
    y = {IF.format(n=4, x="flat")}"""
"""The target of a Reshape is computed ahead of what lies between."""


def known(graph: onnx.GraphProto) -> Iterator[tuple[str, bytes]]:
    for value in (*graph.value_info, *graph.output):
        yield value.name, value.type.SerializeToString(deterministic=True)
    for attribute in (a for node in graph.node for a in node.attribute):
        if attribute.HasField("g"):
            yield from known(attribute.g)


@pytest.mark.parametrize("most", [1, 4, 5, 9, 100])
@pytest.mark.parametrize("proto", [model(SHAPES), BRANCHES(80)], ids=["shapes", "branches"])
@pytest.mark.parametrize("data_prop", [True, False])
def test_any_stretches_find_what_the_whole_finds(
    monkeypatch: pytest.MonkeyPatch, proto: onnx.ModelProto, most: int, *, data_prop: bool
) -> None:
    monkeypatch.setattr(inference, "MOST_BODIES", most)
    before = proto.SerializeToString(deterministic=True)
    whole = shape_inference.infer_shapes(proto, data_prop=data_prop)
    found = inferred(proto, data_prop=data_prop)
    assert proto.SerializeToString(deterministic=True) == before
    assert dict(known(found.graph)) == dict(known(whole.graph))
    assert list(found.graph.node) == list(whole.graph.node)
    assert [v.name for v in found.graph.output] == [v.name for v in proto.graph.output]
    assert list(found.graph.initializer) == list(proto.graph.initializer)


def test_values_of_shapes_cross_from_one_stretch_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "MOST_BODIES", 4)
    found = inferred(model(SHAPES))
    dims = {v.name: v.type.tensor_type.shape.dim for v in found.graph.value_info}
    assert [d.dim_param or d.dim_value for d in dims["split"]] == ["n", 2, 4]


@pytest.mark.parametrize("most", [4, 100])
def test_what_does_not_fit_is_found_in_any_stretch(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(inference, "MOST_BODIES", most)
    check_fully(model(SHAPES))
    wrong = model(SHAPES.replace("y = If", "y_ = MatMul(target, flat) y = If"))
    inferred(wrong)
    with pytest.raises(shape_inference.InferenceError):
        inferred(wrong, strict=True, data_prop=False)
    with pytest.raises(shape_inference.InferenceError):
        check_fully(wrong)


@pytest.mark.parametrize("most", [4, 100])
def test_what_is_declared_wrongly_is_found(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(inference, "MOST_BODIES", most)
    with pytest.raises(shape_inference.InferenceError):
        check_fully(model(SHAPES, "float[n, 9, 9] y"))


WRONG = """() => (float[] {name}) {{ {name} = Relu(x) }}"""
"""A branch that declares a scalar and makes a matrix."""


@pytest.mark.parametrize("most", [1, 100])
@pytest.mark.parametrize("written", [False, True])
def test_shapes_that_bodies_declare_wrongly_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, most: int, *, written: bool
) -> None:
    monkeypatch.setattr(inference, "MOST_BODIES", most)

    def check(outputs: str, then: str = WRONG.format(name="a")) -> None:
        branches = f"then_branch = t {then}, else_branch = e {WRONG.format(name='b')}"
        proto = model(f"z = If (k) <{branches}> y = Identity(z)", outputs)
        before = proto.SerializeToString()
        onnx.save(proto, tmp_path / "m.onnx")
        check_fully(tmp_path / "m.onnx" if written else proto, proto if most == 1 else None)
        assert proto.SerializeToString() == before

    check("float[n, 8] y")
    for outputs, then in (
        ("float[n, 9] y", WRONG.format(name="a")),
        ("float[n, 8] y", "() => (float[] a) { a = Shape(x) }"),
    ):
        with pytest.raises(shape_inference.InferenceError):
            check(outputs, then)


@pytest.mark.parametrize("most", [4, 100])
def test_a_file_of_many_bodies_is_checked_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, most: int) -> None:
    monkeypatch.setattr(inference, "MOST_BODIES", most)
    right, wrong = model(SHAPES), model(SHAPES, "float[n, 9, 9] y")
    onnx.save(right, tmp_path / "right.onnx")
    onnx.save(wrong, tmp_path / "wrong.onnx")
    check_fully(tmp_path / "right.onnx", right)
    with pytest.raises(shape_inference.InferenceError):
        check_fully(tmp_path / "wrong.onnx", wrong)
    with pytest.raises(onnx.checker.ValidationError):
        check_fully(tmp_path / "nowhere.onnx", right)


def test_what_bodies_are_shown_grows_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnx copies for each body all names that are known: bodies times names, added up over the stretches."""
    monkeypatch.setattr(inference, "MOST_BODIES", 8)
    copied: list[int] = []
    infer = shape_inference.infer_shapes

    def counted(part: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
        names = len(part.graph.node) + len(part.graph.input) + len(part.graph.initializer)
        copied.append(sum(len(node.attribute) for node in part.graph.node if node.op_type == "If") * names)
        return infer(part, **options)

    monkeypatch.setattr(shape_inference, "infer_shapes", counted)
    inferred(BRANCHES(400))
    small = sum(copied)
    copied.clear()
    inferred(BRANCHES(800))
    assert 0 < sum(copied) <= 2.1 * small
