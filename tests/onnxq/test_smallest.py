"""The smallest keys are kept, whatever the order of the offers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onnxq.smallest import Smallest

KEYS = st.lists(st.integers(0, 30), max_size=40)


def kept(keys: list[int], most: int) -> list[int]:
    found = Smallest[int](most)
    for key in keys:
        found.offer(key, lambda key=key: key)  # type: ignore[misc]  # mypy does not infer a default's type
    return found.values()


@given(KEYS, st.integers(1, 8), st.randoms())
def test_they_are_the_smallest_each_once(keys: list[int], most: int, random: object) -> None:
    expected = sorted(set(keys))[:most]
    assert kept(keys, most) == expected
    random.shuffle(keys)  # type: ignore[attr-defined]  # random.Random
    assert kept(keys, most) == expected


@given(KEYS, st.integers(1, 8), st.integers(1, 8))
def test_it_shrinks_and_never_grows(keys: list[int], most: int, less: int) -> None:
    found = Smallest[int](most)
    for key in keys:
        found.offer(key, lambda key=key: key)  # type: ignore[misc]  # as above
        found.shrink(less)
    assert found.values() == sorted(set(keys))[: min(most, less)]
    assert len(found) <= found.most == min(most, less) or not keys


def test_what_is_not_kept_is_not_made() -> None:
    made: list[int] = []
    found = Smallest[None](2)
    for key in (1, 2, 3, 1):
        found.offer(key, lambda key=key: made.append(key))  # type: ignore[misc]  # as above
    assert made == [1, 2]
