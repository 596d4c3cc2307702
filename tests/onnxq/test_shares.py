"""Shares in words, by exact fractions, and wherever they are printed."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import graph_of
from hypothesis import given
from hypothesis import strategies as st

from onnxq import api, proof, tables
from onnxq.checks import text
from onnxq.executed import Executed
from onnxq.inventory import look_at
from onnxq.shares import percent

if TYPE_CHECKING:
    from pathlib import Path


@given(st.integers(0, 10**9), st.integers(1, 10**9), st.sampled_from([1, 2]))
def test_a_share_is_rounded_down(part: int, more: int, decimals: int) -> None:
    whole = part + more
    exact = Fraction(100 * part, whole)
    said = Fraction(percent(part / whole, decimals).removesuffix("%"))
    step = Fraction(1, 10**decimals)
    assert said - Fraction(1, 10**6) <= exact < said + step
    assert percent(whole / whole, decimals) == f"{100:.{decimals}f}%"
    assert said < 100 or exact > 100 - Fraction(1, 10**6)


def test_no_command_says_all_where_a_small_layer_is_float(tmp_path: Path) -> None:
    """The last layer has 160 of 4,194,464 multiply-accumulates."""
    model = graph_of(
        """(float[64,256] x) => (float[1,10] y)
        { a = MatMul(x, w) b = ReduceMax<axes=[0]>(a) c = Slice(b, s, e, d) y = MatMul(c, v) }""",
        w=np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32),
        v=np.ones((16, 10), np.float32),
        s=np.array([0]),
        e=np.array([16]),
        d=np.array([1]),
    )
    graph, plan = api.quantize(model, [{"x": np.ones((64, 256), np.float32)}])
    graph.save(file := tmp_path / "m.onnx", check=False)
    assert 0.9999 < plan.int8_share() < 1.0
    for lines in (
        tables.inventory(look_at(file), "m", 0, every=True),
        text.summary(api.check(file), every=False),
        proof.lines(proof.Proof("cpu", (_ran("integer", 2**22), _ran("float", 160)), {})),
        map(str, proof.rows(proof.Proof("cpu", (_ran("integer", 2**22), _ran("float", 160)), {}))),
    ):
        found = "\n".join(lines)
        assert "99.9%" in found
        assert "100.0%" not in found


def _ran(how: str, macs: int) -> Executed:
    return Executed(how, "MatMul", how, macs, lost=False)


@pytest.mark.parametrize(("share", "said"), [(1.0, "100.0%"), (0.57, "57.0%"), (0.0, "0.0%"), (0.99996, "99.9%")])
def test_shares_that_floats_do_not_hold(share: float, said: str) -> None:
    assert percent(share) == said
