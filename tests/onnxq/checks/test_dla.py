"""P36 on graphs that break it and on the nearest ones that do not, and the rules that are not held for a DLA."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from check_graphs import CONV, X8, Case, assert_breached, assert_kept, io, model, pair

from onnxq.checks import CHECKS, check
from onnxq.checks.versions import VERSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

DLA = "tensorrt@10+dla"
WHOLE = f"{CONV} {pair('d', 'c')} r = Relu(d) {pair('y', 'r')}"


def cases() -> Iterator[Case]:
    whole = model(WHOLE)
    yield Case("P36", model(f"{CONV} r = Relu(c) {pair('y', 'r')}"), {("W", "c")}, whole, target=DLA)
    yield Case("P36", model(f"{CONV} {pair('d', 'c')} y = Relu(d)"), {("W", "y")}, whole, target=DLA)
    lone = f"{pair('xd', 'x')} y = Add(xd, v)"
    both = f"{pair('xd', 'x')} {pair('vd', 'v')} a = Add(xd, vd) {pair('y', 'a')}"
    two = io(inputs=f"{X8}, float[1,8,4,4] v")
    yield Case("P36", model(lone, two), {("W", "v"), ("W", "y")}, model(both, two), target=DLA)


KEPT = {
    "a bias": (f"{pair('xd', 'x')} {pair('wd', 'w', 0)} c = Conv(xd, wd, e) {pair('y', 'c')}", f"{X8}, float[8] e"),
    "of a shape": (
        f"{pair('xd', 'x')} k = Mul(n, n) i = Cast<to=7>(k) r = Reshape(xd, i) {pair('y', 'r')}",
        f"{X8}, float[4] n",
    ),
    "read for its shape alone": (
        f"{pair('xd', 'x')} i = Shape(v) r = Reshape(xd, i) {pair('y', 'r')}",
        f"{X8}, {X8[:-1]}v",
    ),
    "integers": (f"{pair('xd', 'x')} k = Add(n, n) r = Reshape(xd, k) {pair('y', 'r')}", f"{X8}, int64[4] n"),
}


CASES = list(cases())


@pytest.mark.parametrize("case", CASES)
def test_rule_finds_the_breach_and_no_other_rule_does(case: Case) -> None:
    assert_breached(case)


@pytest.mark.parametrize("case", CASES)
def test_neighbour_passes(case: Case) -> None:
    assert_kept(case)


@pytest.mark.parametrize("kind", KEPT)
def test_what_needs_no_pair(kind: str) -> None:
    body, inputs = KEPT[kind]
    assert not [f for f in check(model(body, io(inputs=inputs)), DLA).findings if f.id == "P36"]


def test_a_gpu_wants_no_such_thing() -> None:
    assert not [f for f in check(CASES[0].bad, "tensorrt@10").findings if f.id == "P36"]


def test_what_a_gpu_would_fuse_is_no_matter() -> None:
    """P21: a pair between convolution and activation; a DLA wants it there."""
    assert [f.id for f in check(CASES[0].good, "tensorrt@10").findings if f.severity == "W"] == ["P21"]
    assert not [f for f in check(CASES[0].good, DLA).findings if f.severity != "I"]
    assert {name for name, rule in CHECKS.items() if rule.gpu} == {"P21", "P22", "P23", "P26", "P27", "P28", "P29"}


def test_each_line_has_one() -> None:
    names = [name for name in VERSIONS if name.endswith("+dla")]
    assert names == ["tensorrt@8+dla", "tensorrt@10+dla", "tensorrt@11+dla"]
    assert all(check(CASES[0].good, name).target == name for name in names)
