"""Matrix products by one thread each, and work side by side."""

from __future__ import annotations

import threading

import numpy as np
from threadpoolctl import threadpool_info  # noqa: TID251  what onnxq.blas sets is asked of the library itself

from onnxq.blas import one_thread, side_by_side


def threads() -> list[int]:
    return [found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"]


def test_the_limit_holds_within_and_is_taken_back_whatever_happens() -> None:
    np.linalg.cholesky(np.eye(3))
    before = threads()
    assert before, "numpy has a BLAS"
    with one_thread():
        assert set(threads()) == {1}
    assert threads() == before

    @one_thread()
    def failing() -> None:
        assert set(threads()) == {1}
        raise KeyError

    for _ in range(2):
        try:
            failing()
        except KeyError:
            assert threads() == before


def test_results_come_in_the_order_of_the_items() -> None:
    barrier = threading.Barrier(2, timeout=60)

    def late(number: int) -> int:
        barrier.wait()  # passes only when two are under way
        return number**2

    assert list(side_by_side(late, range(6), 2)) == [0, 1, 4, 9, 16, 25]
    assert list(side_by_side(abs, [], 2)) == []
