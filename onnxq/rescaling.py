"""Where a float graph can be rescaled channel by channel without a change of what it computes.

A tensor x may be exchanged for x' = (x - c) / s, c and s per channel, when whoever makes it and whoever reads it
can make up for that in their constants:

    made:  y = W z + b    ->  y' = (W / s) z + (b - c) / s         (rows of W; normalizations alike)
    read:  y = W x + b    ->  y  = (W s) x' + (b + W c)            (columns of W)

The output of an attention is made by the node that makes V: a scale goes through P V as through any product, and a
shift too, since the rows of a softmax P sum to 1.

A scale alone also passes through what is positively homogeneous: max(0, x / s) = max(0, x) / s, pools, and a sum of
two tensors with the same s. What several nodes with one weight read, or make, takes one factor, see `onnxq.sharers`.
All tensors that are tied together so form one `Site`. Where a tensor has other readers or another maker, the site is
explicit: x' is computed for the linear readers alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxq.linear import CONVS, Linear, constant_operand, linear_at, per_output_channel
from onnxq.sharers import complete, joined, shared, sharers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnxq.graph import Graph, Node, Value

FLOAT = "float32"
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Clip"})
_ELEMENTWISE = frozenset({"Relu", "LeakyRelu", "Clip", "Add"})
_FLAT = frozenset({"Flatten", "Reshape", "Squeeze"})


@dataclass(frozen=True)
class Site:
    """Tensors that can only be rescaled together.

    Attributes:
        name: of its first tensor in the graph's order; factors are kept under it.
        axis: the channel axis of all of them, counted from 0.
        channels: its length.
        tensors: names of all tensors that change.
        readers: (tensor, node) of every linear node that reads one as its input 0.
        explicit: x' is computed by a node of its own; else makers and readers absorb everything.
        shifts: whether a shift is possible as well as a scale.
        clips: Clip nodes among its ties: they saturate at one number for all channels.
        convolves: whether a convolution reads it.
    """

    name: str
    axis: int
    channels: int
    tensors: tuple[str, ...]
    readers: tuple[tuple[str, str], ...]
    explicit: bool
    shifts: bool
    clips: tuple[str, ...] = ()
    convolves: bool = False


def find_sites(graph: Graph) -> tuple[Site, ...]:
    """Every site of the main graph, in its order; no tensor is in two of them."""
    found: list[Site] = []
    for members in _classes(graph):
        folded = _folded(graph, members)
        found += [folded] if folded is not None else _explicit(graph, members)
    return tuple(found)


def channels_read(graph: Graph, linear: Linear) -> int:
    """Length of the input channel axis of a linear node."""
    shape = [d for d in graph.shape(linear.weight) or () if isinstance(d, int)]
    if linear.node.op_type == "Conv":
        return shape[1] * linear.groups
    transposed = linear.node.op_type == "Gemm" and graph.attribute(linear.node, "transB", 0)
    return shape[1] if transposed else shape[0]


def reader_at(graph: Graph, node: Node) -> Linear | None:
    """The linear node when what its input 0 loses can go into its weight; other such nodes may share that."""
    linear = linear_at(graph, node)
    if linear is None or graph.dtype(linear.weight) != FLOAT or not sharers(graph, linear.weight):
        return None
    turned = node.op_type == "Gemm" and graph.attribute(node, "transA", 0)
    return None if turned or node.op_type == "ConvTranspose" else linear


def shift_problem(graph: Graph, linear: Linear) -> bool:
    """Whether a constant cannot go into its bias: it is computed, or zeros are padded to the unshifted input."""
    node = linear.node
    if node.op_type == "Conv":
        padded = any(graph.attribute(node, "pads", ())) or graph.attribute(node, "auto_pad", "NOTSET") not in (
            "NOTSET",
            "VALID",
        )
        if padded:
            return True
    bias = node.inputs[2] if node.op_type != "MatMul" and len(node.inputs) > 2 else None
    return bias is not None and not graph.is_const(bias)


def maker_of(graph: Graph, value: Value) -> Node | Linear | None:
    """The node that can make value / s in place of value by its constants alone, None where it is no such node.

    That is a linear node, perhaps with the Add of its bias, or a normalization.
    """
    node = graph.producer(value)
    if node is None or graph.in_body(node):
        return None
    if (linear := _linear_making(graph, node)) is not None:
        return linear
    mixed = mixed_from(graph, value)
    if mixed and (source := graph.producer(mixed[0])) is not None:
        return _linear_making(graph, source)
    if node.op_type == "LayerNormalization":
        rank = graph.rank(value)
        last = graph.attribute(node, "axis", -1) in (-1, None if rank is None else rank - 1)
        flat = all(graph.rank(v) == 1 for v in node.inputs[1:] if v is not None)
        return node if last and flat and _constants(graph, node.inputs[1:]) else None
    if node.op_type == "BatchNormalization":
        return node if len(node.outputs) == 1 and _constants(graph, node.inputs[1:]) else None
    return None


def mixed_from(graph: Graph, value: Value) -> tuple[Value, ...]:
    """V, what it is turned into and its mixtures, in this order, when value (..., heads * size) is softmax(...) V.

    That is Reshape(Transpose(Softmax MatMul Transpose(Reshape(V)))), where nobody else reads what lies between.
    """
    found: list[Value] = []
    made: Value | None = value
    for op in ("Reshape", "Transpose", "MatMul", "Transpose", "Reshape"):
        node = graph.producer(made, op)
        if node is None or graph.in_body(node) or not _mixes(graph, node):
            return ()
        made = node.inputs[1 if op == "MatMul" else 0]
        if made is None or made.is_graph_output() or len(graph.users(made)) != 1:
            return ()
        found.insert(0, made)
    whole, cut, heads = (graph.shape(v) or () for v in (found[0], found[1], found[4]))
    # (N, L, C) in pieces of known size: how many there are need not be known, when N and L stay what they are.
    pieces = len(whole) == 3 and len(cut) == len(heads) == 4 and cut[:2] == whole[:2] and None not in whole
    return tuple(found) if pieces and isinstance(cut[3], int) and heads[3] == cut[3] else ()


def _mixes(graph: Graph, node: Node) -> bool:
    if node.op_type == "Transpose":
        return tuple(graph.attribute(node, "perm", ())) == (0, 2, 1, 3)
    if node.op_type == "MatMul":
        softmax = graph.producer(node.inputs[0], "Softmax")
        default = -1 if graph.opset >= 13 else 1  # https://onnx.ai/onnx/operators/onnx__Softmax.html
        return softmax is not None and graph.attribute(softmax, "axis", default) in (-1, 3)
    return True


# -- classes of tied tensors ---------------------------------------------------------------------------------


def _classes(graph: Graph) -> Iterable[list[Value]]:
    """Float activations, tied ones together, in the graph's order."""
    values = [v for v in graph.values() if graph.dtype(v) == FLOAT]
    tied = [ties(graph, node) for node in graph.nodes]
    return joined(values, [t for t in (*tied, *_shared_ties(graph, values)) if t])


def _shared_ties(graph: Graph, values: list[Value]) -> Iterable[tuple[Value, ...]]:
    """What nodes read that share a weight, and what they make, with the bias or mixed where it is."""
    families = shared(graph)
    makers = [(v, maker_of(graph, v)) for v in values] if families else []
    made = {maker.node: v for v, maker in makers if isinstance(maker, Linear)}  # of several the last
    for linears in families:
        nodes = [linear.node for linear in linears]
        yield tuple(v for node in nodes if (v := node.inputs[0]) is not None)
        yield tuple(made[node] for node in nodes if node in made)


def ties(graph: Graph, node: Node) -> tuple[Value, ...]:
    """The tensors at a node that scale together, none where it is no such node."""
    source = node.inputs[0] if node.inputs else None
    if node.domain not in ("", "ai.onnx") or source is None or graph.is_const(source) or graph.in_body(node):
        return ()
    output = node.outputs[0]
    if node.op_type == "Add":
        other = node.inputs[1]
        shape = graph.shape(source)
        same = other is not None and not graph.is_const(other) and shape is not None and graph.shape(other) == shape
        return (source, other, output) if same and other is not None and None not in (shape or ()) else ()
    if node.op_type in _HOMOGENEOUS:
        bare = len(node.outputs) == 1 and (node.op_type != "Clip" or clip_limit(graph, node) is not None)
        return (source, output) if bare else ()
    if node.op_type in _FLAT:
        before, after = graph.shape(source) or (), graph.shape(output) or ()
        flat = len(before) > 2 and set(before[2:]) == {1} and len(after) == 2 and after[1] == before[1]
        return (source, output) if flat and isinstance(before[1], int) else ()
    return ()


def clip_limit(graph: Graph, node: Node) -> float | None:
    """The upper limit of a Clip to [0, limit], both written as constants."""
    limits = [graph.scalar(v) for v in node.inputs[1:3] if v is not None]
    return limits[1] if len(limits) == 2 and limits[0] == 0 and limits[1] is not None and limits[1] > 0 else None


def _folded(graph: Graph, members: list[Value]) -> Site | None:
    """The site whose makers and readers absorb everything, None where one of them cannot."""
    if any(v.is_graph_output() or v.is_graph_input() for v in members):
        return None
    tied = {str(v.name): node for v in members if (node := tie_making(graph, v)) is not None}
    makers = [(v, maker_of(graph, v)) for v in members if str(v.name) not in tied]
    read = [(v, _absorbing(graph, v)) for v in members]
    if any(maker is None for _, maker in makers) or any(linears is None for _, linears in read):
        return None
    readers = [(v, linear) for v, linears in read for linear in linears or ()]
    whole = _takes_all(graph, [linear for _, linear in readers]) and _takes_all(graph, [m for _, m in makers])
    axes = {_made_axis(graph, maker, v) for v, maker in makers if maker is not None}
    axes |= {_read_axis(graph, linear, v) for v, linear in readers}
    if not whole or (axes != {1} and any(node.op_type not in _ELEMENTWISE for node in tied.values())):
        return None  # a pool's channel axis is 1
    clips = tuple(str(node.name) for node in tied.values() if node.op_type == "Clip")
    if clips and any(node.op_type == "Add" for node in tied.values()):
        return None  # a sum passes the limit of the Clip beside it
    site = _site(graph, members, readers, axes)
    made = {maker.channels for _, maker in makers if isinstance(maker, Linear)}
    if site is None or made - {site.channels}:  # of another length where what it made was reshaped
        return None
    alone = not tied and not any(isinstance(maker, Linear) and _no_bias(maker) for _, maker in makers)
    return replace(site, explicit=False, shifts=site.shifts and alone, clips=clips)


def _takes_all(graph: Graph, nodes: Iterable[Node | Linear | None]) -> bool:
    """Whether every node that shares a weight with one of these is among them."""
    linears = [linear for linear in nodes if isinstance(linear, Linear)]
    return complete(graph, linears) == {linear.weight for linear in linears}


def tie_making(graph: Graph, value: Value) -> Node | None:
    """The node that makes the value and ties it to what it reads."""
    made = graph.producer(value)
    return made if made is not None and any(v is value for v in ties(graph, made)) else None


def _absorbing(graph: Graph, value: Value) -> list[Linear] | None:
    """The linear nodes that read the value; None when something else reads its numbers too."""
    found = []
    for user, index in graph.users(value):
        if user.op_type == "Shape" or any(v is value for v in ties(graph, user)):
            continue
        linear = reader_at(graph, user) if index == 0 and _reads_once(graph, user, value) else None
        if linear is None:
            return None
        found.append(linear)
    return found


def _reads_once(graph: Graph, node: Node, value: Value) -> bool:
    return [user for user, _ in graph.users(value)].count(node) == 1


def _explicit(graph: Graph, members: list[Value]) -> list[Site]:
    """The sites of single tensors, and of those that one weight meets, whose linear readers alone get others."""
    read = [(v, linear) for v in members for linear in _reading(graph, v)]
    whole = complete(graph, [linear for _, linear in read])
    read = [(v, linear) for v, linear in read if linear.weight in whole]

    def site(group: list[Value], read: list[tuple[Value, Linear]]) -> Site | None:
        readers = [(v, linear) for v, linear in read if any(v is one for one in group)]
        return _site(graph, group, readers, {_read_axis(graph, linear, v) for v, linear in readers})

    found: list[Site | None] = []
    alone = [(v, linear) for v, linear in read if len(graph.users(linear.weight)) == 1]
    for group in joined(members, [[v for v, linear in read if linear.weight is w] for w in whole]):
        together = site(group, read)
        found += [together] if together is not None else [site([v], alone) for v in group]
    return [one for one in found if one is not None]


def _reading(graph: Graph, value: Value) -> list[Linear]:
    """The linear nodes among those that read the value."""
    users = [user for user, index in graph.users(value) if index == 0 and _reads_once(graph, user, value)]
    return [linear for user in users if (linear := reader_at(graph, user)) is not None]


def _site(
    graph: Graph, members: list[Value], readers: list[tuple[Value, Linear]], axes: set[int | None]
) -> Site | None:
    """The site, taken as explicit; None where its tensors have not one channel axis of one length."""
    sizes = {channels_read(graph, linear) for _, linear in readers}
    axis = next(iter(axes), None)
    if len(axes) != 1 or len(sizes) != 1 or axis is None:
        return None
    names = tuple(str(v.name) for v in members)
    read = tuple((str(v.name), str(linear.node.name)) for v, linear in readers)
    shifts = not any(shift_problem(graph, linear) for _, linear in readers)
    convolves = any(linear.node.op_type == "Conv" for _, linear in readers)
    return Site(names[0], axis, sizes.pop(), names, read, explicit=True, shifts=shifts, convolves=convolves)


def _read_axis(graph: Graph, linear: Linear, value: Value) -> int | None:
    rank = graph.rank(value)
    if rank is None or rank < 2:
        return None
    return 1 if linear.node.op_type == "Conv" else rank - 1


def _made_axis(graph: Graph, maker: Node | Linear, value: Value) -> int | None:
    rank = graph.rank(value)
    if rank is None:
        return None
    if isinstance(maker, Linear):
        return rank + maker.axis
    return 1 if maker.op_type == "BatchNormalization" else rank - 1


def _linear_making(graph: Graph, node: Node) -> Linear | None:
    """The linear node, or the Add of its bias, as one whose rows can take a factor and its bias a shift."""
    linear = linear_at(graph, node)
    if linear is None and node.op_type == "Add" and (index := constant_operand(graph, node)) is not None:
        product = node.inputs[1 - index]
        if product is not None and graph.only_user(product) is node:
            linear = linear_at(graph, graph.producer(product, "MatMul"))
        if linear is None or per_output_channel(graph, linear, node.inputs[index]) is None:
            return None
        linear = replace(linear, bias_add=node)
    if linear is None or graph.dtype(linear.weight) != FLOAT or not sharers(graph, linear.weight):
        return None
    bias = linear.node.inputs[2] if linear.node.op_type != "MatMul" and len(linear.node.inputs) > 2 else None
    conv = linear.node.op_type in CONVS and graph.is_const(bias)
    plain = bias is None or conv or per_output_channel(graph, linear, bias) is not None
    return linear if plain else None


def _no_bias(linear: Linear) -> bool:
    """Whether a shift has nowhere to go: a MatMul without the Add of a bias."""
    return linear.node.op_type == "MatMul" and linear.bias_add is None


def _constants(graph: Graph, values: Iterable[Value | None]) -> bool:
    return all(v is None or (graph.is_const(v) and graph.dtype(v) == FLOAT) for v in values)
