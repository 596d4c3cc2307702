"""Globs by name: the same as asking each of them."""

from __future__ import annotations

import glob

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onnxq.naming import Globs, matches, only_match

TEXTS = st.text("ab*?[]!-/", max_size=6)


@given(st.lists(TEXTS, max_size=5), TEXTS)
@example(["a[*]", "a*"], "a*")
@example(["[[]a]", "[a]"], "[a]")
@example(["[*]]", "[]]", "[!]]"], "*]")
def test_the_globs_found_are_those_that_match(patterns: list[str], name: str) -> None:
    assert Globs.of(patterns).matching(name) == [i for i, p in enumerate(patterns) if matches(p, name)]


@given(TEXTS)
def test_an_escaped_name_is_looked_up(name: str) -> None:
    assert only_match(glob.escape(name)) == name
    assert not Globs.of([glob.escape(name)]).others


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [("a/*", "a/b/c", True), ("a/*", "A/b", False), ("a[0]", "a[0]", True), ("a[0]", "a0", True), ("a?", "a", False)],
)
def test_what_a_glob_matches(pattern: str, name: str, *, expected: bool) -> None:
    assert matches(pattern, name) is expected
