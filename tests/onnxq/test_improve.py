from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from graphs import Array, graph_of, run
from legality import assert_legal

from onnxq import Recipe, Rule, api, improving
from onnxq.errors import ModelError, StatisticsError
from onnxq.exchange import make_cache
from onnxq.improvement import factors, pick, rounding, written
from onnxq.monitor import SILENT, Monitor
from onnxq.numerics import sqnr_db
from onnxq.statistics import Statistics, merge
from onnxq.targets import get_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from onnxq.graph import Graph
    from onnxq.improvement import Inspected, Picked
    from onnxq.improvement.smoothing import Allowed
    from onnxq.rescaling import Site

BALANCED = Recipe(effort="balanced", high_precision="fp32")
FAST = replace(BALANCED, effort="fast")
WIDTH = 64
OUTLIERS = (3, 40)


def block(outlier: float = 100.0) -> Graph:
    """Two LayerNorms, each before its products, with two channels that are far larger than the others."""
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {}
    for i, width in ((0, WIDTH), (1, WIDTH)):
        gain = np.ones(WIDTH)
        gain[list(OUTLIERS)] = outlier
        w = rng.normal(size=(WIDTH, width)) / 8
        w[list(OUTLIERS)] /= outlier  # as training leaves them: what is large is read with small weights
        weights |= {f"g{i}": gain, f"b{i}": 0.1 * rng.normal(size=WIDTH), f"w{i}": w}
    text = (
        "(float[N,16,64] x) => (float[N,16,64] y) {"
        "n0 = LayerNormalization(x, g0, b0) m0 = MatMul(n0, w0) t = Tanh(m0) r = Add(t, x) "
        "n1 = LayerNormalization(r, g1, b1) y = MatMul(n1, w1) }"
    )
    return graph_of(text, 17, **{k: v.astype(np.float32) for k, v in weights.items()})


def samples(count: int, seed: int = 1) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 16, WIDTH)).astype(np.float32)} for _ in range(count)]


def quality(graph: Graph, quantized: Graph) -> float:
    pairs = [(run(graph, f)[0], run(quantized, f)[0]) for f in samples(8, seed=2)]
    return sqnr_db(*(np.stack(side) for side in zip(*pairs, strict=True)))


def test_severe_outlier_channels() -> None:
    graph, data = block(), samples(24)
    plain, _ = api.quantize(graph, data, FAST)
    better, plan = api.quantize(graph, data, BALANCED)
    assert quality(graph, plain) < 5
    assert quality(graph, better) >= 15
    assert plan.int8_share() == 1
    ops, before = ([n.op_type for n in g.nodes] for g in (better, plain))
    assert [op for op in ops if op != "Add"] == [op for op in before if op != "Add"]  # biases alone are new
    assert_legal(better.to_proto())


def test_the_part_in_float16() -> None:
    graph = block()
    better, _ = api.quantize(graph, samples(24), replace(BALANCED, high_precision="fp16"))
    assert quality(graph, better) >= 15
    assert_legal(better.to_proto())


def test_order_and_batches_do_not_matter() -> None:
    graph, data = block(), samples(40)
    wanted = api.calibrate(graph, data, BALANCED)
    assert wanted.smoothing
    shuffled = [data[i] for i in np.random.default_rng(3).permutation(len(data))]
    batches = [{"x": np.concatenate([f["x"] for f in shuffled[i : i + 5]])} for i in range(0, len(data), 5)]

    def once() -> Iterator[dict[str, Array]]:
        yield from shuffled

    for given in (shuffled, batches, once()):
        assert api.calibrate(graph, given, BALANCED) == wanted


def test_statistics_carry_the_factors(tmp_path: Path) -> None:
    graph, data = block(), samples(24)
    found = api.calibrate(graph, data, BALANCED)
    found.save(tmp_path / "s.npz")
    again = Statistics.load(tmp_path / "s.npz")
    assert again == found
    direct, from_file = api.quantize(graph, data, BALANCED)[0], api.quantize(graph, tmp_path / "s.npz", FAST)[0]
    assert direct.digest() == from_file.digest()
    assert (again + again).smoothing == found.smoothing


def test_statistics_of_unlike_factors_do_not_merge() -> None:
    graph = block()
    one, other = (api.calibrate(graph, samples(24, seed), BALANCED) for seed in (4, 5))
    with pytest.raises(StatisticsError, match="improved in different ways") as error:
        merge([one, other])
    assert "--effort fast" in error.value.hint


def test_statistics_of_another_model() -> None:
    found = api.calibrate(block(), samples(24), BALANCED)
    with pytest.raises(StatisticsError):
        api.quantize(block(90.0), found, BALANCED)


@pytest.mark.parametrize("count", [1, 15])
def test_too_few_samples(count: int) -> None:
    said: list[str] = []
    found = api.calibrate(block(), samples(count), BALANCED, Monitor(warn=said.append))
    assert not found.smoothing
    assert any("too few" in text for text in said)


def test_what_does_not_help_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (factors, rounding):
        monkeypatch.setattr(module, "gains", lambda *_, **__: False)
    found = api.calibrate(block(), samples(24), BALANCED)
    assert not found.smoothing
    assert not found.rounding


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_outputs_of_integer_operators_are_judged(form: str) -> None:
    """What their Sigmoid reads is no tensor of the quantized model any more."""
    rng = np.random.default_rng(1)
    text = """(float[2,8,50] x) => (float[2,8,47] y) {
              c = Conv(x, w) h = Relu(c) d = Conv<dilations=[2], pads=[0,3]>(h, v) y = Sigmoid(d) }"""
    w, v = ((rng.normal(size=shape) / 8).astype(np.float32) for shape in ((32, 8, 3), (8, 32, 3)))
    feeds = [{"x": rng.normal(size=(2, 8, 50)).astype(np.float32)} for _ in range(20)]
    graph = graph_of(text, w=w, v=v)
    made, _ = api.quantize(graph, feeds, Recipe(target="ort-cpu", format=form))
    for expected, got in zip(run(graph, feeds[0]), run(made, feeds[0]), strict=True):
        assert sqnr_db(expected, got) > 30


def test_no_calibration_cache_of_a_smoothed_model() -> None:
    found = api.calibrate(block(), samples(24), BALANCED)
    with pytest.raises(StatisticsError, match="smoothed model"):
        make_cache(block(), found, BALANCED)


def test_a_channel_seen_too_rarely_is_left_alone() -> None:
    rng = np.random.default_rng(6)
    graph = graph_of(
        "(float[N,64] x) => (float[N,64] y) { n = LayerNormalization(x, g, b) y = Gemm(n, w) }",
        17,
        g=np.where(np.arange(64) == 3, 100, 1).astype(np.float32),
        b=np.zeros(64, np.float32),
        w=rng.normal(size=(64, 64)).astype(np.float32),
    )
    few, many = ([{"x": rng.normal(size=(1, 64)).astype(np.float32)} for _ in range(n)] for n in (40, 80))
    assert not api.calibrate(graph, few, replace(BALANCED, rules=GEMMS)).smoothing
    assert api.calibrate(graph, many, replace(BALANCED, rules=GEMMS)).smoothing


GEMMS = (Rule(ops=("Gemm",), quantize=True),)


# -- in front of convolutions -----------------------------------------------------------------------------------

MIXTURES = {
    "gate": "q = GlobalAveragePool(a) h = Conv(q, v) g = Sigmoid(h) m = Mul(a, g)",
    "swish": "g = Sigmoid(a) m = Mul(a, g)",
    "affine": "h = HardSwish(a) t = Mul(h, half) m = Add(t, half)",
    "affine behind an addition": "g = Sigmoid(a) h = Add(a, g) t = Mul(h, half) m = Add(t, half)",
    "hard swish in parts": "t = Add(a, three) c = Clip(t, zero, six) h = Mul(a, c) m = Div(h, six)",
    "a number over it": "h = HardSwish(a) m = Div(six, h)",
    "constant": "t = Relu(a) m = Mul(t, half)",
    "addition": "g = Sigmoid(a) m = Add(a, g)",
    "nothing": "m = Identity(a)",
}


def channels_of_unlike_size(mixture: str, beside: str = "") -> Graph:
    """Two convolutions; channels that differ by a factor of some 50 between them."""
    rng = np.random.default_rng(0)
    gain = np.exp(2.0 * rng.normal(size=32))
    arrays = {
        "w": rng.normal(size=(32, 4, 3, 3)) * gain[:, None, None, None],
        "v": rng.normal(size=(32, 32, 1, 1)) / 200,
        "u": rng.normal(size=(8, 32, 3, 3)) / gain[:, None, None],
        "half": np.array(0.5),
        "zero": np.array(0.0),
        "three": np.array(3.0),
        "six": np.array(6.0),
    }
    body = f"[first] a = Conv(x, w) {MIXTURES[mixture]} y = Conv<pads=[1,1,1,1]>(m, u)"
    more = ", float[N,C,Y,X] z" if beside else ""
    text = f"(float[N,4,12,12] x) => (float[N,8,10,10] y{more}) {{ {body} {beside} }}"
    return graph_of(text, 17, **{k: v.astype(np.float32) for k, v in arrays.items()})


def images(count: int, seed: int = 1) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 4, 12, 12)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize(
    "mixture", ["constant", "addition", "nothing", "affine behind an addition", "hard swish in parts"]
)
def test_no_node_is_put_behind_what_writes_int8(mixture: str) -> None:
    assert "m" not in api.calibrate(channels_of_unlike_size(mixture), images(24), BALANCED).smoothing


@pytest.mark.parametrize("mixture", ["gate", "swish"])
def test_integer_products_keep_their_kernel(mixture: str) -> None:
    assert "m" not in api.calibrate(channels_of_unlike_size(mixture), images(24), ON_CPU).smoothing


ON_CPU = replace(BALANCED, target="ort-cpu", high_precision=None)


@pytest.mark.parametrize("mixture", ["hard swish in parts", "affine"])
def test_no_scale_for_each_where_channels_come_last(mixture: str) -> None:
    """Between two convolutions in integers, however many operators on single values in float are there."""
    assert "m" not in api.calibrate(channels_of_unlike_size(mixture), images(24), ON_CPU).smoothing


@pytest.mark.parametrize("mixture", ["hard swish in parts", "affine"])
def test_behind_a_convolution_in_float_factors_are_scales_of_codes(mixture: str) -> None:
    graph, recipe = channels_of_unlike_size(mixture), replace(ON_CPU, rules=(Rule(nodes="first", quantize=False),))
    found = api.calibrate(graph, images(24), recipe)
    assert "m" in found.smoothing
    quantized, _ = api.quantize(graph, found, recipe)
    (scales,) = (s for n in quantized.nodes if n.op_type == "QuantizeLinear" and (s := quantized.shape(n.inputs[1])))
    assert scales == (32,)
    assert sum(n.op_type == "Mul" for n in quantized.nodes) == sum(n.op_type == "Mul" for n in graph.nodes)


@pytest.mark.parametrize("floats", [("first",), ("first", "beside")])
def test_only_what_goes_into_the_codes_needs_little_gain(
    floats: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a convolution in float the Mul stays, a pass over memory, and must gain as much as one."""
    margins: list[float] = []
    allowed = factors._allowed

    def seen(site: Site, want: Sequence[factors._Wanted], model: Inspected, rows: int) -> Allowed:
        found = allowed(site, want, model, rows)
        margins.append(found.margin)
        return found

    monkeypatch.setattr(factors, "_allowed", seen)
    graph = channels_of_unlike_size("affine", "[beside] z = Conv(m, u)")
    rules = tuple(Rule(nodes=name, quantize=False) for name in floats)
    api.calibrate(graph, images(24), replace(ON_CPU, rules=rules))
    target = get_target("ort-cpu")
    assert target.convolved_db is not None
    assert margins == [pytest.approx(target.pointwise_db if "beside" in floats else target.convolved_db, rel=0.2)]


def test_a_division_by_the_tensor_is_no_constant_of_its_kernel() -> None:
    recipe = replace(ON_CPU, rules=(Rule(nodes="first", quantize=False),))
    assert "m" not in api.calibrate(channels_of_unlike_size("a number over it"), images(24), recipe).smoothing


@pytest.mark.parametrize("mixture", ["gate", "swish", "affine"])
def test_factors_join_the_kernel_of_a_product(mixture: str) -> None:
    graph = channels_of_unlike_size(mixture)
    found = api.calibrate(graph, images(24), BALANCED)
    assert "m" in found.smoothing
    with_factors, _ = api.quantize(graph, found, BALANCED)
    without, _ = api.quantize(graph, images(24), FAST)
    pairs = [[run(g, f)[0] for g in (graph, with_factors, without)] for f in images(16, seed=5)]
    exact, better, before = (np.stack(side) for side in zip(*pairs, strict=True))
    assert sqnr_db(exact, better) > sqnr_db(exact, before) + 3
    assert_legal(with_factors.to_proto())


@pytest.mark.parametrize(("unlike", "far"), [(1.0, False), (1e-3, True)])
def test_a_model_of_which_little_is_left_is_told(unlike: float, far: bool) -> None:
    rng = np.random.default_rng(0)
    w, v = (rng.normal(size=(32, 32)).astype(np.float32) for _ in range(2))
    text = "(float[N,32] x) => (float[N,32] y) { a = MatMul(x, w) b = MatMul(x, v) y = Sub(a, b) }"
    graph = graph_of(text, 17, w=w, v=(w + unlike * v).astype(np.float32))  # with `unlike` small y is noise in int8
    feeds = [{"x": rng.normal(size=(4, 32)).astype(np.float32)} for _ in range(32)]
    said: list[str] = []
    quantized, _ = api.quantize(graph, feeds, Recipe(float_share=0.0), Monitor(warn=said.append))
    found = [line for line in said if "far from the float model" in line]
    exact, seen = ([run(g, f)[0] for f in feeds] for g in (graph, quantized))
    assert (sqnr_db(np.concatenate(exact), np.concatenate(seen)) < 10) == far
    assert len(found) == far


def two_outputs() -> Graph:
    """One output is far off in int8, as most of what it adds up cancels; the third holds integers."""
    rng = np.random.default_rng(0)
    w, v = (rng.normal(size=(64, 64)).astype(np.float32) for _ in range(2))
    text = """(float[N,64] x) => (float[N,64] y, float[N,64] z, int64[N,1] k) {
        a = MatMul(x, w) b = MatMul(x, v) y = Sub(a, b) z = Relu(b) k = ArgMax<axis=1>(a)
    }"""
    return graph_of(text, 17, w=w, v=(w + np.float32(0.2) * v).astype(np.float32))


TOLD = [Recipe(high_precision="fp32"), Recipe(target="ort-cpu"), Recipe(effort="best")]
TOLD += [Recipe(target="ort-cpu", io_types="int8"), Recipe(target="ort-cpu", format="qoperator")]


@pytest.mark.parametrize("recipe", TOLD)
def test_the_figure_told_is_that_of_the_samples_that_judge(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle runs the file's graph itself, as it is written: in float16 around int8, with codes at the ends.

    Of so many samples that ranges hardly depend on one that judges; of fewer see `test_written`.
    """
    rng = np.random.default_rng(5)
    feeds = [{"x": rng.normal(size=(32, 64)).astype(np.float32)} for _ in range(100)]
    seen: list[Picked] = []

    def picked(*given: Any) -> Picked | None:  # noqa: ANN401  whatever `pick` takes
        found = pick(*given)
        seen.extend(() if found is None else (found,))
        return found

    monkeypatch.setattr(improving, "pick", picked)
    graph = two_outputs()
    quantized, plan = api.quantize(graph, feeds, recipe, SILENT)
    assert plan.judged is not None
    sqnr, samples = plan.judged
    assert samples == len(seen[0].judging)
    judged = [{"x": feed["x"]} for feed in seen[0].judging]
    errors = {e.tensor: e.sqnr_db for e in api.compare(graph, quantized, judged, monitor=SILENT).outputs}
    assert errors["y"] < errors["z"] - 3
    assert sqnr == pytest.approx(errors["y"], abs=0.01)
    assert plan.to_dict()["judged"] == {"sqnr_db": round(sqnr, 2), "samples": samples, "as_written": True}
    monkeypatch.setattr(written, "quantized_session", refused)
    other, plan = api.quantize(graph, feeds, recipe, SILENT)
    assert other.to_proto() == quantized.to_proto()  # it is looked at behind all choices
    assert plan.to_dict()["judged"]["as_written"] is False
    assert plan.judged is not None
    assert 8 <= plan.judged[1] <= samples  # no more than it took
    assert plan.judged[0] == pytest.approx(errors["y"], abs=1.0)  # of float32 around int8


def refused(*_: object) -> None:
    raise ModelError("ONNX Runtime has no kernel for this")


def test_no_figure_without_samples_that_judge() -> None:
    graph, rng = two_outputs(), np.random.default_rng(5)
    feeds = [{"x": rng.normal(size=(32, 64)).astype(np.float32)} for _ in range(32)]
    for recipe in (Recipe(effort="fast"), Recipe(target="ort-cpu", mode="dynamic")):
        plan = api.quantize(graph, feeds, recipe, SILENT)[1]
        assert plan.judged is None
        assert "judged" not in plan.to_dict()
    few = [{"x": feeds[0]["x"][:8]}]  # to choose by
    assert api.quantize(graph, few, Recipe(), SILENT)[1].judged is None
    found = api.calibrate(graph, feeds, Recipe(), SILENT)
    assert found.judged is not None
    other = Recipe(calibrator="percentile", percentile=90.0)  # another model, of the same statistics
    assert api.quantize(graph, found, other, SILENT)[1].judged is None
