"""The verbs of Graph, and the form that a model has once it is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from graphs import Array, graph_of, lines, run
from onnx import helper, numpy_helper, parser

from onnxq import api
from onnxq.errors import ModelError
from onnxq.graph import Graph, Node, Value
from onnxq.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

F32 = onnx.TensorProto.FLOAT
CHAIN = "(float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Neg(a) y = Abs(b) }"
W = np.arange(16, dtype=np.float32).reshape(4, 4)

FUNCTIONS = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
agraph (float[N] x, bool c) => (float[N] y) {
  a = local.outer(x)
  y = If (c) <then_branch = t () => (float[N] p) { p = local.outer(a) },
              else_branch = e () => (float[N] q) { q = local.inner(a) }>
}
<domain: "local", opset_import: ["" : 17, "local": 1]> outer (u) => (w) { v = local.inner(u)  w = Neg(v) }
<domain: "local", opset_import: ["" : 17]> inner (u) => (w) { two = Constant<value_float=2.0>()  w = Mul(u, two) }
"""

BRANCHES = """(float[N,4] x, bool c) => (float[N,4] y) {
  a = Relu(x)
  b = Neg(a)
  y = If (c) <then_branch = t () => (float[N,4] p) { p = Add(b, w) },
              else_branch = e () => (float[N,4] q) { q = Abs(x) }>
}"""


def node(graph: Graph, op_type: str) -> Node:
    return next(n for n in graph.nodes if n.op_type == op_type)


def value(graph: Graph, name: str) -> Value:
    found = graph.find(name)
    assert found is not None
    return found


def held(graph: Graph, name: str) -> Array:
    found = graph.const(value(graph, name))
    assert found is not None
    return found


# --- what a model becomes ------------------------------------------------------------------------------


def test_constants_become_weights() -> None:
    graph = graph_of("(float[2] x) => (float[2] y) { k = Constant<value_floats=[1.5, 2.5]>() y = Add(x, k) }")
    assert [n.op_type for n in graph.nodes] == ["Add"]
    assert held(graph, "k").tolist() == [1.5, 2.5]
    assert run(graph, {"x": np.ones(2, np.float32)})[0].tolist() == [2.5, 3.5]


def test_weights_listed_as_inputs_are_no_inputs() -> None:
    model = parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 9]> g (float[N,4] x, float[4] w) => (float[N,4] y) { y = Add(x, w) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(W[0], "w"))
    graph = Graph.from_proto(model)
    assert [v.name for v in graph.inputs] == ["x"]
    assert list(graph.weights) == ["w"]
    assert graph.to_proto().ir_version >= 4  # before that, weights had to be inputs


@pytest.mark.parametrize("then", [True, False])
def test_functions_are_inlined_nested_and_in_bodies(then: bool) -> None:
    model = parser.parse_model(FUNCTIONS)
    graph = Graph.from_proto(model)
    proto = graph.to_proto()
    assert not proto.functions
    assert {n.domain for n in graph.nodes} | {n.domain for n in graph.bodies(node(graph, "If"))} == {""}
    names = [n.name for n in (*graph.nodes, *graph.bodies(node(graph, "If")))]
    assert len(set(names)) == len(names)
    got = run(graph, {"x": np.array([1, 2], np.float32), "c": np.array(then)})[0]
    assert got.tolist() == ([4, 8] if then else [-4, -8])  # -2 * (-2x), and 2 * (-2x)


def test_the_default_domain_has_one_spelling() -> None:
    x, y = (helper.make_tensor_value_info(name, F32, ["N"]) for name in "xy")
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")], "g", [x], [y])
    graph = Graph.from_proto(helper.make_model(body, opset_imports=[helper.make_opsetid("ai.onnx", 17)]))
    assert graph.domains == {"": 17}
    assert graph.opset == 17
    assert graph.nodes[0].domain == ""


def test_nodes_get_unique_names_that_do_not_depend_on_their_place() -> None:
    graph = graph_of(CHAIN)
    assert [n.name for n in graph.nodes] == ["Relu:a", "Neg:b", "Abs:y"]
    model = graph.to_proto()
    for n in model.graph.node:
        n.name = "same"
    assert len({n.name for n in Graph.from_proto(model).nodes}) == 3


def test_a_long_graph_in_reverse_is_sorted() -> None:
    count = 5000
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"], name=f"n{i}") for i in range(count)]
    ends = [helper.make_tensor_value_info(name, F32, ["N"]) for name in ("v0", f"v{count}")]
    body = helper.make_graph(nodes[::-1], "g", ends[:1], ends[1:])
    graph = Graph.from_proto(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)]))
    assert [n.name for n in graph.nodes] == [f"n{i}" for i in range(count)]
    assert graph.problem() is None


def test_sorting_sees_what_bodies_read_and_keeps_an_order_that_is_right() -> None:
    proto = graph_of(BRANCHES, w=W[0]).to_proto()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([nodes[2], nodes[1], nodes[0]])  # the If first, which reads b in its body
    assert [n.op_type for n in Graph.from_proto(proto).nodes] == ["Relu", "Neg", "If"]
    text = "(float[N] x) => (float[N] a, float[N] b) { b = Neg(x) a = Relu(x) }"
    graph = graph_of(text)
    graph.sort()
    assert lines(graph) == lines(graph_of(text))


def test_remarks_survive() -> None:
    model = graph_of(CHAIN, 11).to_proto()
    model.producer_name, model.producer_version, model.domain, model.model_version = "maker", "1.2", "org.x", 7
    model.doc_string, model.graph.doc_string, model.graph.name = "model doc", "graph doc", "the graph"
    model.graph.input[0].doc_string = "input doc"
    model.graph.node[1].doc_string = "node doc"
    for holder in (model, model.graph, model.graph.node[1]):
        entry = holder.metadata_props.add()
        entry.key, entry.value = "key", type(holder).__name__
    graph = Graph.from_proto(model)
    assert graph.to_proto() == model
    assert graph.copy().to_proto() == model
    graph.convert_opset(17)
    model.opset_import[0].version, model.ir_version = 17, 8
    proto = graph.to_proto()
    del proto.graph.value_info[:]  # the converter infers shapes
    assert proto == model


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.graph.node[1].input.__setitem__(0, "gone"), "reads 'gone', which nothing makes"),
        (lambda m: m.graph.node[1].output.__setitem__(0, "a"), "two nodes make 'a'"),
        (lambda m: m.graph.output[0].__setattr__("name", "z"), "nothing makes the output 'z'"),
        (lambda m: m.graph.initializer.append(onnx.TensorProto(name="w", dims=[3], data_type=1, raw_data=b"1")), "'w'"),
        (lambda m: m.graph.initializer.append(onnx.TensorProto(name="w", dims=[-3], data_type=1)), "shape [-3]"),
        (lambda m: m.graph.initializer.append(onnx.TensorProto(name="w", data_type=99)), "element type 99"),
        (lambda m: m.graph.initializer.append(onnx.TensorProto(name="w", dims=[2], data_type=1)), "holds 0 numbers"),
        (lambda m: m.graph.node[0].attribute.add(name="k"), "attribute 'k' of node 'Relu:a' (Relu) has no type"),
    ],
)
def test_a_model_that_does_not_hang_together_is_refused(change: Callable[[Any], Any], says: str) -> None:
    model = graph_of(CHAIN).to_proto()
    change(model)
    with pytest.raises(ModelError) as error:
        Graph.from_proto(model)
    assert says in error.value.message
    assert error.value.hint


def test_a_cycle_is_refused() -> None:
    model = graph_of(CHAIN).to_proto()
    model.graph.node[0].input[0] = "b"
    with pytest.raises(ModelError, match=r"cycle: '.*' -> '.*'"):
        Graph.from_proto(model)


# --- reading -------------------------------------------------------------------------------------------


def test_reading() -> None:
    graph = graph_of("(float[N,4] x) => (float[N,?] y) { a = MatMul(x, w) y = Foo<k=3>(a, s) }", w=W, s=np.float32(2))
    a, w, s, x = (value(graph, name) for name in "awsx")
    assert graph.const(w) is not None
    assert graph.const(a) is None
    assert graph.is_const(w)
    assert not graph.is_const(None)
    assert graph.scalar(s) == 2.0
    assert graph.scalar(w) is None
    assert graph.shape(x) == ("N", 4)
    assert graph.rank(x) == 2
    assert graph.rank(a) is None
    assert graph.size(w) == 16
    assert graph.size(x) is None
    assert graph.dtype(x) == "float32"
    assert graph.dtype(a) is None
    assert graph.attribute(node(graph, "Foo"), "k") == 3
    assert graph.attribute(node(graph, "Foo"), "other", 5) == 5
    assert [v.name for v in graph.values()] == ["x", "a", "y"]
    assert graph.users(a) == ((node(graph, "Foo"), 0),)
    assert graph.only_user(a) is node(graph, "Foo")
    assert graph.producer(a, "MatMul", "Gemm") is node(graph, "MatMul")
    assert graph.producer(a, "Conv") is None
    assert graph.producer(x) is None


def test_users_are_seen_in_bodies_and_an_output_has_more_than_one() -> None:
    graph = graph_of(BRANCHES, w=W[0])
    b = value(graph, "b")
    ((inner, index),) = graph.users(b)
    assert (inner.op_type, index) == ("Add", 0)
    assert graph.in_body(inner)
    assert not graph.in_body(node(graph, "If"))
    assert [n.op_type for n in graph.bodies(node(graph, "If"))] == ["Add", "Abs"]
    assert graph.only_user(b) is inner
    assert graph.only_user(value(graph, "y")) is None
    assert graph.only_user(value(graph, "x")) is None  # Relu, and Abs in a body


# --- editing -------------------------------------------------------------------------------------------


def test_add_goes_behind_its_inputs_and_names_are_fresh() -> None:
    graph = graph_of(CHAIN)
    new = graph.add("Sigmoid", [value(graph, "a")], name="a", like=value(graph, "x"))
    assert new.name == "a_1"
    assert graph.shape(new) == ("N", 4)
    assert [n.op_type for n in graph.nodes] == ["Relu", "Sigmoid", "Neg", "Abs"]
    front = graph.add("Neg", [value(graph, "x"), None], name="front", attributes={"k": 1, "s": "t"})
    assert front.producer() is graph.nodes[0]
    last = graph.add("Tanh", [value(graph, "x")], name="late", before=node(graph, "Abs"))
    assert [n.op_type for n in graph.nodes][-2:] == ["Tanh", "Abs"]
    graph.add("Add", [value(graph, "b"), value(graph, "a")], name="sum")  # the first input is made last
    order = [output.name for n in graph.nodes for output in n.outputs]
    assert order.index("sum") == order.index("b") + 1
    assert len({graph.fresh("late"), graph.fresh("late"), last.name}) == 3
    assert graph.problem() is None


def test_fresh_knows_the_names_inside_bodies() -> None:
    graph = graph_of(BRANCHES, w=W[0])
    assert graph.fresh("q") != "q"


def test_constant_set_input_set_attribute() -> None:
    graph = graph_of(CHAIN)
    weight = graph.constant("w", W[::2].T)  # not contiguous
    assert held(graph, "w").tolist() == W[::2].T.tolist()
    scalar = graph.constant("w", np.array(3.0, np.float32))
    assert (scalar.name, graph.shape(scalar)) == ("w_1", ())
    graph.set_input(node(graph, "Abs"), 2, weight)
    assert lines(graph)[-1] == "y = Abs(b, _, w)"
    graph.set_attribute(node(graph, "Abs"), "k", [1, 2])
    assert list(graph.attribute(node(graph, "Abs"), "k")) == [1, 2]
    graph.set_attribute(node(graph, "Abs"), "k", None)
    assert graph.attribute(node(graph, "Abs"), "k") is None


def test_replace_some_uses() -> None:
    graph = graph_of("(float[N] x) => (float[N] y) { a = Relu(x) y = Add(a, a) }")
    a = value(graph, "a")
    graph.replace_uses(a, value(graph, "x"), [(node(graph, "Add"), 1)])
    assert lines(graph)[-1] == "y = Add(a, x)"


def test_replace_uses_in_bodies() -> None:
    graph = graph_of(BRANCHES, w=W[0])
    graph.replace_uses(value(graph, "b"), value(graph, "a"))
    feed = {"x": np.ones((1, 4), np.float32), "c": np.array(True)}
    assert run(graph, feed)[0].tolist() == [[1, 2, 3, 4]]


def names(graph: Graph) -> tuple[list[str | None], list[str | None]]:
    return [v.name for v in graph.inputs], [v.name for v in graph.outputs]


@pytest.mark.parametrize(
    ("text", "old", "new", "expected"),
    [
        # what takes the place of an output takes its name
        ("(float[N] x) => (float[N] y) { a = Relu(x) y = Neg(a) }", "y", "a", ["y = Relu(x)", "_ = Neg(y)"]),
        # an input cannot: an Identity carries the name
        ("(float[N] x) => (float[N] y) { y = Neg(x) }", "y", "x", ["y = Identity(x)", "_ = Neg(x)"]),
        # nor can another output
        (
            "(float[N] x) => (float[N] y, float[N] z) { y = Neg(x) z = Abs(x) }",
            "y",
            "z",
            ["_ = Neg(x)", "z = Abs(x)", "y = Identity(z)"],
        ),
    ],
)
def test_outputs_keep_their_names(text: str, old: str, new: str, expected: list[str]) -> None:
    graph = graph_of(text)
    before = names(graph)
    replaced = value(graph, old)
    graph.replace_uses(replaced, value(graph, new))
    assert names(graph) == before
    assert sorted(line.replace(str(replaced.name), "_") for line in lines(graph)) == sorted(expected)
    assert graph.problem() is None
    onnx.checker.check_model(graph.to_proto())


def test_an_output_that_is_an_input_stays() -> None:
    graph = graph_of("(float[N] x) => (float[N] x, float[N] y) { a = Relu(x) y = Neg(x) }")
    graph.replace_uses(value(graph, "x"), value(graph, "a"), None)
    assert names(graph) == (["x"], ["x", "y"])
    assert lines(graph)[-1] == "y = Neg(a)"


def test_a_weight_that_is_an_output_gives_its_name_away() -> None:
    graph = graph_of("(float[N] x) => (float[4] w, float[N] y) { y = Neg(x) a = Relu(v) }", w=W[0], v=-W[1])
    graph.replace_uses(value(graph, "w"), value(graph, "a"))
    assert names(graph) == (["x"], ["w", "y"])
    feed = {"x": np.ones(1, np.float32)}
    assert run(graph, feed)[0].tolist() == [0, 0, 0, 0]


def test_bypass_and_remove() -> None:
    graph = graph_of(CHAIN)
    graph.bypass(node(graph, "Neg"))
    assert lines(graph) == ["a = Relu(x)", "y = Abs(a)"]
    graph.bypass(node(graph, "Abs"))
    assert lines(graph) == ["y = Relu(x)"]
    graph.bypass(node(graph, "Relu"))
    assert lines(graph) == ["y = Identity(x)"]
    assert names(graph) == (["x"], ["y"])
    with pytest.raises(ValueError, match="cannot be removed"):
        graph.remove(graph.nodes[0])


def test_absorb_and_rename() -> None:
    graph = graph_of(CHAIN)
    graph.absorb(node(graph, "Neg"), value(graph, "a"))
    assert lines(graph) == ["b = Relu(x)", "y = Abs(b)"]
    graph.absorb(node(graph, "Abs"), value(graph, "b"))
    assert lines(graph) == ["y = Relu(x)"]
    assert names(graph) == (["x"], ["y"])
    graph = graph_of(CHAIN)
    graph.rename(value(graph, "a"), "y")
    assert lines(graph) == ["y_1 = Relu(x)", "b = Neg(y_1)", "y = Abs(b)"]
    assert graph.problem() is None
    graph = graph_of(CHAIN)
    new = graph.add("Cast", [value(graph, "y")], name="cast", attributes={"to": 10})
    graph.retype(new, "float16")
    graph.replace_output(value(graph, "y"), new)
    assert lines(graph)[-2:] == ["y/inner = Abs(b)", "y = Cast(y/inner)"]
    assert graph.dtype(graph.outputs[0]) == "float16"


def test_bypass_needs_an_input() -> None:
    graph = graph_of("() => (float[4] y) { y = RandomNormal<shape=[4]>() }")
    graph.set_input(graph.nodes[0], 0, None)
    with pytest.raises(ModelError, match="no first input"):
        graph.bypass(graph.nodes[0])


def test_remove_unused_set_outputs_extract_copy() -> None:
    graph = graph_of("(float[N,4] x) => (float[N,4] y) { b = MatMul(w, w) a = Relu(x) y = Add(x, v) }", w=W, v=W[0])
    copy = graph.copy()
    assert copy.remove_unused() == 3  # MatMul, Relu, w
    assert (lines(copy), list(copy.weights)) == (["y = Add(x, v)"], ["v"])
    assert len(graph.nodes) == 3
    copy = graph.copy()
    copy.add_output(value(copy, "a"))
    copy.add_output(value(copy, "a"))
    assert names(copy)[1] == ["y", "a"]
    copy.set_outputs([value(copy, "a")])
    copy.remove_unused()
    assert lines(copy) == ["a = Relu(x)"]
    part = graph.extract([value(graph, "b")])
    np.testing.assert_allclose(run(part, {})[0], W @ W)
    assert names(graph)[1] == ["y"]


def test_problems_are_found() -> None:
    graph = graph_of(CHAIN)
    assert graph.problem() is None
    graph.set_input(node(graph, "Relu"), 0, value(graph, "b"))
    assert "reads 'b' before anything makes it" in str(graph.problem())
    graph = graph_of(CHAIN)
    value(graph, "b").name = "a"
    assert graph.problem() == "two nodes make 'a'"


# --- the whole model -----------------------------------------------------------------------------------


def test_infer_shapes_reaches_what_can_be_known() -> None:
    graph = graph_of(
        "(float[N,4] x) => (float[?,?] y) { a = MatMul(x, w) y = Foo(a) }", w=np.ones((4, 400), np.float32)
    )
    graph.infer_shapes()
    assert graph.shape(value(graph, "a")) == ("N", 400)
    assert held(graph, "w").shape == (4, 400)
    assert names(graph) == (["x"], ["y"])


RESHAPED = """(float[N,S,8] x, int64[k] t, int64[3] u) => (float y) {
    p = Foo(u) q = Cast<to=7>(p) a = Reshape(x, %s) b = Relu(a) c = MatMul(b, w) d = Shape(c) e = Slice(d, zero, one)
    f = Concat<axis=0>(e, one, one) g = Reshape(c, f) y = Relu(g) }"""


@pytest.mark.parametrize(
    ("shape", "ranks"), [("t", [None, None, None]), ("u", [3, 3, 3]), ("q", [None, None, None])], ids=str
)
def test_what_a_computed_shape_makes_has_the_rank_that_the_shape_is_long(shape: str, ranks: list[int | None]) -> None:
    """Of the first the length is not known, nor of what a custom operator makes; of the last Reshape's it follows."""
    weights = {"w": np.ones((8, 8), np.float32), "zero": np.array([0]), "one": np.array([1])}
    graph = graph_of(RESHAPED % shape, 17, **weights)
    graph.infer_shapes()
    assert [graph.rank(value(graph, name)) for name in "acg"] == ranks
    if shape == "u":
        sizes = [graph.shape(value(graph, name)) or () for name in "ac"]
        assert [[d for d in shape if isinstance(d, int)] for shape in sizes] == [[], [8]]


def test_ranks_of_computed_shapes_hold_in_bodies_and_what_is_known_stays() -> None:
    text = """(float[4,8] x, int64[2] t, bool c) => (float z) {
        s = ConstantOfShape(t) k = Reshape(x, known) m = MatMul(k, s)
        z = If (c) <then_branch = t1 () => (float p) { r = Reshape(m, t) p = Relu(r) },
                    else_branch = e1 () => (float q) { q = Identity(m) }> }"""
    graph = graph_of(text, 17, known=np.array([8, 4]))
    graph.infer_shapes()
    assert graph.shape(value(graph, "k")) == (8, 4)
    assert graph.rank(value(graph, "s")) == 2
    inner = {str(v.name): v for part in graph.parts() for node in part.nodes for v in node.outputs}
    assert inner["r"].shape is not None
    assert len(inner["r"].shape) == 2


def test_a_reshape_that_makes_nothing_has_no_rank_to_give() -> None:
    shape = helper.make_tensor_value_info("s", onnx.TensorProto.INT64, [2])
    graph = graph_of("(float[4,2] x) => (float[4,2] y) { y = Relu(x) }").to_proto()
    graph.graph.input.append(shape)
    graph.graph.node.insert(0, helper.make_node("Reshape", ["x", "s"], []))
    found = Graph.from_proto(graph)
    found.infer_shapes()
    assert [len(node.outputs) for node in found.nodes] == [0, 1]


@pytest.mark.parametrize(
    ("operator", "source", "kind"),
    [("Scaler", "double", "float32"), ("Normalizer", "int64", "float32"), ("Imputer", "double", "float64")],
)
def test_what_onnx_infers_nothing_of_and_keeps_the_shape_has_its_type_and_shape(
    operator: str, source: str, kind: str
) -> None:
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]> m ({source}[N,4] x) => (float[N,8] y) {{
            s = ai.onnx.ml.{operator}(x) f = Cast<to = 1>(s) y = MatMul(f, w) }}"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 8), np.float32), "w"))
    graph = Graph.from_proto(model)
    graph.infer_shapes()
    assert (graph.dtype(value(graph, "s")), graph.shape(value(graph, "s"))) == (kind, ("N", 4))
    assert graph.shape(value(graph, "f")) == ("N", 4)
    assert (graph.nodes[0].domain, graph.nodes[0].op_type) == ("ai.onnx.ml", operator)


def test_convert_opset_keeps_large_weights_bodies_and_other_domains() -> None:
    text = """(float[N,64] x, bool c) => (float[N,64] y) {
      s = com.microsoft.Gelu(x)
      k = Unsqueeze <axes=[0]>(s)
      m = Squeeze <axes=[0]>(k)
      y = If (c) <then_branch = t () => (float[N,64] p) { p = MatMul(m, w) },
                  else_branch = e () => (float[N,64] q) { q = MatMul(m, v) }>
    }"""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(64, 64)).astype(np.float32) for name in "wv"}
    graph = graph_of(text, 11, **weights)
    feed = {"x": rng.normal(size=(2, 64)).astype(np.float32), "c": np.array(True)}
    before = run(graph, feed)[0]
    held = graph.weights["w"].const_value
    graph.convert_opset(17)
    assert graph.domains == {"": 17, "com.microsoft": 1}
    assert len(node(graph, "Squeeze").inputs) == 2  # axes are an input from 13 on
    assert graph.weights["w"].const_value is held  # it did not go through the converter
    assert names(graph) == (["x", "c"], ["y"])
    np.testing.assert_array_equal(run(graph, feed)[0], before)


def test_convert_opset_says_what_it_cannot() -> None:
    graph = graph_of("(float[N] x) => (float[N] y) { y = Gelu(x) }", 20)
    with pytest.raises(ModelError, match="from opset 20 to 17") as error:
        graph.convert_opset(17)
    assert "opset 17" in error.value.hint


def test_there_and_back_through_graphsurgeon() -> None:
    graph = graph_of(BASE, w=W)
    assert Graph.from_graphsurgeon(graph.to_graphsurgeon()).digest() == graph.digest()
    graph = graph_of(BRANCHES, w=W[0])  # a weight that only a body reads moves into it on that way
    back = Graph.from_graphsurgeon(graph.to_graphsurgeon())
    feed = {"x": np.ones((1, 4), np.float32), "c": np.array(True)}
    np.testing.assert_array_equal(run(back, feed)[0], run(graph, feed)[0])


# --- digest --------------------------------------------------------------------------------------------

BASE = "(float[N,4] x) => (float[N,4] y) { a = Gemm<alpha=1.5>(x, w) y = Relu(a) }"


def test_the_digest_is_of_what_is_computed() -> None:
    base = graph_of(BASE, w=W).digest()
    assert graph_of(BASE, w=W.copy()).digest() == base
    renamed = graph_of(BASE, w=W).to_proto()
    renamed.graph.node[0].name, renamed.graph.node[1].doc_string, renamed.producer_name = "other", "words", "me"
    renamed.graph.node[0].attribute[0].doc_string = "more words"
    assert Graph.from_proto(renamed).digest() == base
    bumped = W.copy()
    bumped[3, 3] = np.nextafter(W[3, 3], np.float32(np.inf))
    others = [
        graph_of(BASE, w=bumped),
        graph_of(BASE, w=W.T),
        graph_of(BASE, w=W.astype(np.float64)),
        graph_of(BASE.replace("1.5", "1.25"), w=W),
        graph_of(BASE.replace("Relu", "Tanh"), w=W),
        graph_of(BASE.replace("Relu(a)", "Relu(x)"), w=W),
        graph_of(BASE.replace("N,4] x", "N,8] x"), w=W),
        graph_of(BASE, 18, w=W),
    ]
    assert len({base, *(graph.digest() for graph in others)}) == 1 + len(others)


def test_the_digest_sees_into_bodies_but_not_their_node_names() -> None:
    model = graph_of(BRANCHES, w=W[0]).to_proto()
    base = Graph.from_proto(model).digest()
    body = next(n for n in model.graph.node if n.op_type == "If").attribute[0].g
    body.node[0].name = "other"
    assert Graph.from_proto(model).digest() == base
    body.node[0].op_type = "Sub"
    assert Graph.from_proto(model).digest() != base


def test_a_size_of_minus_one_is_a_free_axis() -> None:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {CHAIN}')
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    graph = Graph.from_proto(model)
    assert graph.shape(graph.inputs[0]) == (None, 4)
    onnx.checker.check_model(graph.to_proto(), full_check=True)


def test_a_body_is_checked_alone() -> None:
    graph = graph_of(
        """(float[4] x, bool c) => (float[4] y) {
          a = Relu(x) z = Tanh(a)
          y = If (c) <then_branch = t () => (float[4] p) { i = Relu(a) j = Tanh(i) p = Add(j, a) },
                      else_branch = e () => (float[4] q) { q = Neg(a) }>
        }"""
    )
    _, then, other = graph.parts()
    assert (then.problem(), other.problem()) == (None, None)
    relu, tanh, add = then.nodes
    then.set_input(relu, 0, tanh.outputs[0])
    assert "before anything makes it" in str(then.problem())
    assert other.problem() is None
    then.set_input(relu, 0, graph.nodes[0].outputs[0])
    assert then.problem() is None
    then.set_input(add, 0, other.nodes[0].outputs[0])  # of a body beside it
    assert graph.problem() is not None
    gone = tanh.outputs[0]
    then.remove(tanh)
    then.set_input(add, 0, gone)
    assert "before anything makes it" in str(then.problem())


def test_a_body_removes_what_it_does_not_need_and_leaves_the_rest() -> None:
    graph = graph_of(
        """(float[4] x, bool c) => (float[4] y) {
          a = Relu(x) z = Tanh(a)
          y = If (c) <then_branch = t () => (float[4] p) { i = Relu(a) p = Neg(a) },
                      else_branch = e () => (float[4] q) { k = Relu(a) q = Neg(a) }>
        }"""
    )
    _, then, other = graph.parts()
    assert then.remove_unused() == 1
    assert [len(part.nodes) for part in graph.parts()] == [3, 1, 2]
    assert graph.remove_unused() == 1
    assert [len(part.nodes) for part in graph.parts()] == [2, 1, 1]
    assert other.problem() is None


def test_an_output_that_is_declared_with_another_rank_than_it_has() -> None:
    """A Reshape to three dimensions known at run time alone, declared with two: onnx's check lets it pass."""
    text = """(float[N,8] x) => (float[1,Q] y) {
        s = Shape(x) n = Gather(s, zero) l = Unsqueeze(n, first) t = Concat<axis=0>(l, one, rest) y = Reshape(x, t) }"""
    constants = {"zero": np.array(0), "first": np.array([0]), "one": np.array([1]), "rest": np.array([8])}
    graph = graph_of(text, 17, **constants)
    assert graph.rank(graph.outputs[0]) == 2
    graph.infer_shapes()
    assert graph.shape(graph.outputs[0]) == (None, None, None)
    right = graph_of(text.replace("[1,Q] y", "[N,1,8] y"), 17, **constants)
    right.infer_shapes()
    assert right.shape(right.outputs[0]) == ("N", 1, 8)


def test_such_a_model_is_quantized_with_a_float_part_in_half_precision(tmp_path: Path) -> None:
    text = """(float[N,32] x) => (float[1,Q] y) { m = MatMul(x, w) s = Shape(x) n = Gather(s, zero)
        l = Unsqueeze(n, first) t = Concat<axis=0>(l, one, rest) y = Reshape(m, t) }"""
    constants = {"zero": np.array(0), "first": np.array([0]), "one": np.array([1]), "rest": np.array([32])}
    graph = graph_of(text, 17, w=np.eye(32, dtype=np.float32), **constants)
    feeds = [{"x": np.full((2, 32), n, np.float32)} for n in (1, 2)]
    quantized, _ = api.quantize(graph, feeds, Recipe(effort="fast"))
    api.export(quantized, tmp_path / "q.onnx")
    assert quantized.rank(quantized.outputs[0]) == 3


def test_an_output_of_a_reshape_before_opset_5_has_its_shape_in_an_attribute() -> None:
    node = onnx.helper.make_node("Reshape", ["x"], ["y"], shape=[4, 8])
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, d) for n, d in (("x", [32]), ("y", [4, 8]))]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([node], "old", ends[:1], ends[1:]), opset_imports=[onnx.helper.make_opsetid("", 1)]
    )
    graph = Graph.from_proto(proto)
    graph.infer_shapes()
    assert graph.shape(graph.outputs[0]) == (4, 8)
