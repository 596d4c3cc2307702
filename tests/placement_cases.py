"""The patterns of docs/placement.md: a small graph each, and what becomes of it.

Notation of the graphs behind: `x~ = QDQ(x)` is a QuantizeLinear and a DequantizeLinear, `w~` a weight stored in int8
behind its DequantizeLinear; pairs with one scale say `QDQ[scale 1]`, one whose scale is fixed says it. Attributes are
left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from placing import Given, net

from onnxq import api
from onnxq.patterns.products import SOFTMAX
from onnxq.recipe import Recipe, Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxq.graph import Graph, Value
    from onnxq.plan import Plan, Point

F32 = np.float32
K3 = "<kernel_shape=[3,3], pads=[1,1,1,1]>"
X = "float[1,16,8,8] x"
QKV = "float[1,32,32] q, float[1,32,32] k, float[1,32,32] v"
ATTENTION = """
    l = MatMul(q, k)
    d = Div(l, c)
    p = Softmax(d)
    o = MatMul(p, v)
    y = MatMul(o, w)"""
W, ONE, WIDE = (16, 16, 3, 3), (16, 16, 1, 1), (16, 32, 1, 1)
NORM: dict[str, Given] = {"b": (16,), "s": np.linspace(0.5, 2, 16, dtype=F32)}
FOUR, SCALES, PADS = np.array(4, F32), np.array([1, 1, 2, 2], F32), np.array([0, 0, 1, 1] * 2)
GELU: dict[str, Given] = {"root": np.array(np.sqrt(2), F32), "one": np.array(1, F32), "half": np.array(0.5, F32)}


@dataclass(frozen=True)
class Case:
    """One pattern: the graph before and after, one sentence why, and where that is said.

    Attributes:
        inputs: the model's inputs, as `net` takes them; the output is y.
        before: its nodes in ONNX text, one a line.
        after: what `shown` says of the quantized graph.
        weights: shapes or arrays.
        rules: of the recipe.
    """

    name: str
    inputs: str
    before: str
    after: str
    why: str
    source: str
    weights: Mapping[str, Given] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()


def quantized(case: Case) -> tuple[Graph, Plan]:
    """The case's graph, quantized with random data."""
    graph = net(case.inputs, " ".join(case.before.split()), "y", 20, **case.weights)
    rng = np.random.default_rng(0)
    feed = {}
    for value in graph.inputs:
        shape = [d for d in graph.shape(value) or () if isinstance(d, int)]
        feed[str(value.name)] = rng.normal(size=shape).astype(F32)
    return api.quantize(graph, [feed], Recipe(high_precision="fp32", rules=case.rules))


def shown(graph: Graph, plan: Plan) -> str:
    """The quantized graph in the notation of this file."""
    members = Counter(p.group for p in plan.points.values())
    numbers = {group: i for i, group in enumerate((g for g, n in members.items() if n > 1), 1)}
    lines = []
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            lines.append(_pair(graph, node.inputs[0], plan.points[_name(node.outputs[0])], numbers))
        elif node.op_type != "DequantizeLinear":
            outputs, inputs = map(_name, node.outputs), (_read(graph, v) for v in node.inputs)
            lines.append(f"{', '.join(outputs)} = {node.op_type}({', '.join(inputs)})")
    return "\n".join(lines)


def _pair(graph: Graph, value: Value | None, point: Point, numbers: Mapping[str, int]) -> str:
    scale = f"[scale {numbers[point.group]}]" if point.group in numbers else ""
    if point.chosen == SOFTMAX and point.params is not None:
        scale = f"[1/{1 / float(point.params.scale):.0f}]"
    return f"{point.tensor}~ = QDQ{scale}({_read(graph, value)})"


def _read(graph: Graph, value: Value | None) -> str:
    """A value's name; with a tilde when it arrives through a DequantizeLinear."""
    dequantize = graph.producer(value, "DequantizeLinear")
    return _name(value) if dequantize is None else _name(dequantize.inputs[0]) + "~"


def _name(value: Value | None) -> str:
    return "" if value is None else str(value.name).removesuffix("_quantized")


CASES = (
    Case(
        "Convolution and activation",
        X,
        f"""
            c = Conv{K3}(x, w, b)
            r = Relu(c)
            y = Conv{K3}(r, v)""",
        """
            x~ = QDQ(x)
            c = Conv(x~, w~, b)
            r = Relu(c)
            r~ = QDQ(r)
            y = Conv(r~, v~)""",
        (
            "Every input of a convolution is quantized, activation and weight; its bias and its output are not. "
            "The activation fuses, and the next pair gives the fused kernel its output scale."
        ),
        "developer guide, recommendations 1 to 3",
        {"w": W, "v": W, "b": (16,)},
    ),
    Case(
        "BatchNorm",
        X,
        f"""
            c = Conv{K3}(x, w)
            n = BatchNormalization(c, s, b, b, s)
            r = Relu(n)
            y = Conv{K3}(r, v)""",
        """
            x~ = QDQ(x)
            n = Conv(x~, w/folded~, Conv:c/bias)
            r = Relu(n)
            r~ = QDQ(r)
            y = Conv(r~, v~)""",
        (
            "BatchNorm is folded before ranges are taken, since it changes the range of every output channel of "
            "the weight."
        ),
        "developer guide, recommendation 3",
        {"w": W, "v": W, **NORM},
    ),
    Case(
        "Residual addition",
        X,
        f"""
            c = Conv{K3}(x, w)
            r = Relu(c)
            d = Conv{K3}(r, v)
            a = Add(d, r)
            z = Relu(a)
            y = Conv{K3}(z, w)""",
        """
            x~ = QDQ(x)
            c = Conv(x~, w~)
            r = Relu(c)
            r~ = QDQ(r)
            d = Conv(r~, v~)
            a = Add(d, r~)
            z = Relu(a)
            z~ = QDQ(z)
            y = Conv(z~, w~)""",
        (
            "Addition and activation fuse into the convolution, whose result is still in high precision there; "
            "only the identity is read in int8, from the pair that the branch has anyway."
        ),
        "developer guide, recommendation 4",
        {"w": W, "v": W},
    ),
    Case(
        "Residual addition with a projection",
        X,
        f"""
            r = Relu(x)
            c = Conv{K3}(r, w)
            z = Relu(c)
            d = Conv{K3}(z, v)
            s = Conv(r, o)
            y = Add(s, d)""",
        """
            r = Relu(x)
            r~ = QDQ(r)
            c = Conv(r~, w~)
            z = Relu(c)
            z~ = QDQ(z)
            d = Conv(z~, v~)
            s = Conv(r~, o~)
            s~ = QDQ(s)
            y = Add(s~, d)""",
        (
            "With a convolution on both sides the longer path is the branch that fuses; the shorter one is the "
            "shortcut and is read in int8."
        ),
        "ModelOpt `build_non_residual_input_map`",
        {"w": W, "v": W, "o": ONE},
    ),
    Case(
        "SiLU",
        X,
        f"""
            c = Conv{K3}(x, w)
            g = Sigmoid(c)
            m = Mul(c, g)
            y = Conv{K3}(m, v)""",
        """
            x~ = QDQ(x)
            c = Conv(x~, w~)
            g = Sigmoid(c)
            m = Mul(c, g)
            m~ = QDQ(m)
            y = Conv(m~, v~)""",
        "Conv, Sigmoid and Mul are one kernel; the pair stands behind the Mul.",
        "ModelOpt `_is_fusible_mul`",
        {"w": W, "v": W},
    ),
    Case(
        "SiLU and a residual addition",
        X,
        f"""
            c = Conv{K3}(x, w)
            g = Sigmoid(c)
            m = Mul(c, g)
            d = Conv{K3}(m, v)
            h = Sigmoid(d)
            n = Mul(d, h)
            a = Add(m, n)
            y = Conv(a, o)""",
        """
            x~ = QDQ(x)
            c = Conv(x~, w~)
            g = Sigmoid(c)
            m = Mul(c, g)
            m~ = QDQ(m)
            d = Conv(m~, v~)
            h = Sigmoid(d)
            n = Mul(d, h)
            a = Add(m~, n)
            a~ = QDQ(a)
            y = Conv(a~, o~)""",
        "A branch that ends in Conv, Sigmoid and Mul counts as one that ends in the convolution.",
        "ModelOpt pull requests 425, 450",
        {"w": W, "v": W, "o": ONE},
    ),
    Case(
        "HardSwish",
        X,
        f"""
            c = Conv{K3}(x, w)
            n = BatchNormalization(c, s, b, b, s)
            h = HardSwish(n)
            y = Conv{K3}(h, v)""",
        """
            x~ = QDQ(x)
            n = Conv(x~, w/folded~, Conv:c/bias)
            h = HardSwish(n)
            h~ = QDQ(h)
            y = Conv(h~, v~)""",
        "An activation like any other: a pair between convolution and HardSwish would cut one kernel in two.",
        "developer guide, recommendation 2",
        {"w": W, "v": W, **NORM},
    ),
    Case(
        "Squeeze-excite",
        "float[2,16,8,8] x",
        f"""
            c = Conv{K3}(x, w)
            h = HardSwish(c)
            g = GlobalAveragePool(h)
            d = Conv(g, o)
            r = Relu(d)
            e = Conv(r, o)
            s = HardSigmoid(e)
            m = Mul(h, s)
            y = Conv(m, o)""",
        """
            x~ = QDQ(x)
            c = Conv(x~, w~)
            h = HardSwish(c)
            h~ = QDQ(h)
            g = GlobalAveragePool(h~)
            g~ = QDQ(g)
            d = Conv(g~, o~)
            r = Relu(d)
            r~ = QDQ(r)
            e = Conv(r~, o~)
            s = HardSigmoid(e)
            s~ = QDQ(s)
            m = Mul(h~, s~)
            m~ = QDQ(m)
            y = Conv(m~, o~)""",
        (
            "The product that applies the gate fuses with no convolution: it reads and writes int8, so that the "
            "wide tensor is written once, in int8, for pool and product."
        ),
        "developer guide, recommendation 5; ModelOpt `_is_fusible_mul`",
        {"w": W, "o": ONE},
    ),
    Case(
        "GELU",
        "float[4,16,32] x",
        """
            u = MatMul(x, w)
            a = Div(u, root)
            e = Erf(a)
            p = Add(e, one)
            q = Mul(u, p)
            t = Mul(q, half)
            y = MatMul(t, v)""",
        """
            x~ = QDQ(x)
            u = MatMul(x~, w~)
            a = Div(u, root)
            e = Erf(a)
            p = Add(e, one)
            q = Mul(u, p)
            t~ = QDQ(q)
            y = MatMul(t~, v~)""",
        "No pair inside; the next product's input is quantized.",
        "ModelOpt `find_hardcoded_patterns`",
        {"w": (32, 64), "v": (64, 32), **GELU},
    ),
    Case(
        "ConvNext block",
        "float[1,32,8,8] x",
        """
            s = Conv(x, o)
            d = Conv<kernel_shape=[7,7], pads=[3,3,3,3], group=32>(s, w)
            t = Transpose<perm=[0,2,3,1]>(d)
            n = LayerNormalization<axis=-1>(t, g)
            u = MatMul(n, p)
            e = Gelu(u)
            v = MatMul(e, q)
            z = Transpose<perm=[0,3,1,2]>(v)
            a = Add(s, z)
            y = Conv(a, o)""",
        """
            x~ = QDQ(x)
            s = Conv(x~, o~)
            s~ = QDQ(s)
            d = Conv(s~, w~)
            t = Transpose(d)
            t~ = QDQ(t)
            n = LayerNormalization(t~, g)
            n~ = QDQ(n)
            u = MatMul(n~, p~)
            e = Gelu(u)
            e~ = QDQ(e)
            v = MatMul(e~, q~)
            z = Transpose(v)
            a = Add(s, z)
            a~ = QDQ(a)
            y = Conv(a~, o~)""",
        (
            "The convolution feeds both sides, so there is no residual to fuse: the addition stays float. The "
            "LayerNorm computes in float too, but reads int8, which lets the depthwise convolution write int8."
        ),
        "ModelOpt `build_non_residual_input_map`, `find_conv_to_layernorm_nodes`",
        {"o": (32, 32, 1, 1), "w": (32, 1, 7, 7), "g": (32,), "p": (32, 64), "q": (64, 32)},
    ),
    Case(
        "Convolution and LayerNorm",
        X,
        f"""
            c = Conv{K3}(x, w)
            n = LayerNormalization<axis=-1>(c, g)
            y = Relu(n)""",
        """
            x~ = QDQ(x)
            c = Conv(x~, w~)
            c~ = QDQ(c)
            n = LayerNormalization(c~, g)
            y = Relu(n)""",
        "The same without the copy: a pair before the norm, for the sake of the convolution.",
        "ModelOpt pull request 1117",
        {"w": W, "g": (8,)},
    ),
    Case(
        "Resize",
        X,
        f"""
            c = Conv{K3}(x, w)
            r = Relu(c)
            u = Resize<mode="linear">(r, , scales)
            y = Conv{K3}(u, v)""",
        """
            x~ = QDQ(x)
            c = Conv(x~, w~)
            r = Relu(c)
            r~ = QDQ[scale 1](r)
            u = Resize(r~, , scales)
            u~ = QDQ[scale 1](u)
            y = Conv(u~, v~)""",
        (
            "A Resize behind a convolution reads int8 and makes no new values, so that both ends share one scale "
            "and the larger map is never written in float."
        ),
        "ModelOpt `_find_quantizable_kgen_partitions`",
        {"w": W, "v": W, "scales": SCALES},
    ),
    Case(
        "Pad",
        X,
        """
            r = Relu(x)
            p = Pad(r, pads)
            y = Conv<kernel_shape=[3,3]>(p, w)""",
        """
            r = Relu(x)
            r~ = QDQ(r)
            p = Pad(r~, pads)
            y = Conv(p, w~)""",
        "The pair stands before a Pad of zeros, so that it folds into the convolution.",
        "TensorRT issue 2592",
        {"w": W, "pads": PADS},
    ),
    Case(
        "Concat",
        X,
        f"""
            c = Conv{K3}(x, w)
            a = Relu(c)
            d = Conv(x, o)
            b = Relu(d)
            k = Concat<axis=1>(a, b)
            y = Conv(k, wide)""",
        """
            x~ = QDQ(x)
            c = Conv(x~, w~)
            a = Relu(c)
            a~ = QDQ[scale 1](a)
            d = Conv(x~, o~)
            b = Relu(d)
            b~ = QDQ[scale 1](b)
            k = Concat(a~, b~)
            k~ = QDQ[scale 1](k)
            y = Conv(k~, wide~)""",
        (
            "One scale at every input and at the reader, so that the branches write straight into the joined "
            "tensor. What that costs a branch of small range is below."
        ),
        "ModelOpt `get_concat_eliminated_tensors`",
        {"w": W, "o": ONE, "wide": WIDE},
    ),
    Case(
        "Concat with a pooled branch",
        X,
        f"""
            c = Conv{K3}(x, w)
            r = Relu(c)
            m = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(r)
            k = Concat<axis=1>(r, m)
            y = Conv(k, wide)""",
        """
            x~ = QDQ(x)
            c = Conv(x~, w~)
            r = Relu(c)
            r~ = QDQ[scale 1](r)
            m = MaxPool(r)
            m~ = QDQ[scale 1](m)
            k = Concat(r~, m~)
            k~ = QDQ[scale 1](k)
            y = Conv(k~, wide~)""",
        "MaxPool commutes with quantization: its output shares the scale of its input.",
        'developer guide, "Q/DQ layer placement"',
        {"w": W, "wide": WIDE},
    ),
    Case(
        "Pools",
        "float[2,16,8,8] x",
        f"""
            c = Conv{K3}(x, w)
            r = Relu(c)
            p = AveragePool<kernel_shape=[2,2]>(r)
            y = Conv(p, o)""",
        """
            x~ = QDQ(x)
            c = Conv(x~, w~)
            r = Relu(c)
            r~ = QDQ(r)
            p = AveragePool(r~)
            p~ = QDQ(p)
            y = Conv(p~, o~)""",
        "An average does not commute: int8 in means int8 out, so there is a pair at both ends.",
        "developer guide, recommendation 5",
        {"w": W, "o": ONE},
    ),
    Case(
        "Attention",
        QKV,
        ATTENTION,
        """
            l = MatMul(q, k)
            d = Div(l, c)
            p = Softmax(d)
            o = MatMul(p, v)
            o~ = QDQ(o)
            y = MatMul(o~, w~)""",
        (
            "Products of two activations stay in float unless a rule asks for int8; the figures are below. The "
            "projections around them are quantized."
        ),
        "measured, below",
        {"c": FOUR, "w": (32, 32)},
    ),
    Case(
        "Attention, with a rule",
        QKV,
        ATTENTION,
        """
            v~ = QDQ(v)
            k~ = QDQ(k)
            q~ = QDQ(q)
            l = MatMul(q~, k~)
            d = Div(l, c)
            p = Softmax(d)
            p~ = QDQ[1/127](p)
            o = MatMul(p~, v~)
            o~ = QDQ(o)
            y = MatMul(o~, w~)""",
        (
            "Both inputs of both products; the scale of the softmax is 1/127 whatever was seen. Scaling and mask "
            "stay in float."
        ),
        "ModelOpt `find_nodes_from_mha_to_exclude`; Softmax in `ort_patching`",
        {"c": FOUR, "w": (32, 32)},
        (Rule(ops=("MatMul",), quantize=True),),
    ),
    Case(
        "Too small a layer",
        X,
        """
            c = Conv(x, few)
            r = Relu(c)
            d = Conv(r, more)
            y = Conv(d, o)""",
        """
            x~ = QDQ(x)
            c = Conv(x~, few~)
            r = Relu(c)
            r~ = QDQ(r)
            d = Conv(r~, more~)
            d~ = QDQ(d)
            y = Conv(d~, o~)""",
        (
            "Six channels fill no int8 tensor core; neither layer around them gets a pair. A rule with quantize = "
            "true insists."
        ),
        "ModelOpt `find_nodes_from_convs_to_exclude`",
        {"few": (6, 16, 1, 1), "more": (16, 6, 1, 1), "o": ONE},
    ),
)
"""One for each heading of the page, in its order."""
