"""Samples run at once and counted in turn: the same statistics, in the same order, and not too many of them."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import graph_of

from onnxq import ahead, files
from onnxq.collect import collect
from onnxq.data import input_specs, open_source
from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

DIGITS = Path(__file__).parents[2] / "models" / "digits"
CHAIN = "(float[N,500000] x) => (float[N,500000] y) { a = Tanh(x) y = Relu(a) }"


def given(text: str, tensors: tuple[str, ...], most: int = 8) -> int:
    graph = graph_of(text)
    graph.infer_shapes()
    return ahead.at_once(graph, tensors, most)


def test_as_many_at_once_as_there_are_cores() -> None:
    assert given(CHAIN, ("a", "y")) == 8
    assert given(CHAIN, ("x", "a"), most=1) == 1


def test_no_more_than_fit() -> None:
    large = "(float[N,5000000] x) => (float[N,5000000] y) { a = Tanh(x) y = Relu(a) }"  # 20 MB a tensor
    assert given(large, ("a",)) == 5
    assert given(large, ("a", "y")) == 2
    assert given("(float[N,30000000] x) => (float[N,30000000] y) { y = Relu(x) }", ("y",)) == 1


def test_one_at_once_where_the_interpreter_takes_longer() -> None:
    assert given("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }", ("y",)) == 1


def test_one_at_once_where_sizes_are_not_known() -> None:
    assert given("(float[N,L] x) => (float[N,L] y) { y = Relu(x) }", ("y",)) == 1
    assert given("(float[4,L] x) => (float[4,L] y) { y = Relu(x) }", ("y",)) == 1
    assert given("(float[N,500000] x) => (float[N,500000] y) { y = Relu(x) }", ("y", "not there")) == 1


def test_one_at_once_where_the_next_draw_would_go_to_whoever_is_first() -> None:
    text = "(float[N,500000] x) => (float[N,500000] y) { r = RandomNormalLike <seed: float = 1.0> (x) y = Add(x, r) }"
    assert given(text, ("y",)) == 1


@pytest.mark.parametrize("most", [1, 2, 5])
def test_in_turn_whoever_is_ready_first(most: int) -> None:
    together = threading.Barrier(most, timeout=60)  # breaks where fewer run at once

    def run(number: int) -> int:
        together.wait()
        time.sleep(0.002 * (number % 3))
        return 2 * number

    with ThreadPoolExecutor(20) as runners:
        found = []
        for sample, made in ahead.in_turn(run, ((str(i), i) for i in range(20)), runners, most):
            found.append((sample, made()))
            assert together.n_waiting < most
    assert found == [(str(i), 2 * i) for i in range(20)]


@pytest.mark.parametrize("error", [DataError("no", "hint"), KeyboardInterrupt()])
def test_what_was_read_before_reading_failed_comes_first(error: BaseException) -> None:
    def source() -> Iterator[tuple[int, int]]:
        yield from ((i, i) for i in range(3))
        raise error

    found: list[int] = []
    with ThreadPoolExecutor(2) as runners, pytest.raises(type(error)):
        found.extend(made() for _, made in ahead.in_turn(lambda x: x, source(), runners, 2))
    assert found == [0, 1, 2]


def test_a_failed_run_is_told_in_its_turn() -> None:
    def run(number: int) -> int:
        if number == 1:
            raise DataError("bad", "hint")
        return number

    found = []
    with ThreadPoolExecutor(4) as runners:
        for sample, made in ahead.in_turn(run, [(i, i) for i in range(4)], runners, 4):
            with contextlib.suppress(DataError):
                found.append((sample, made()))
    assert found == [(0, 0), (2, 2), (3, 3)]


def test_statistics_have_the_same_bits_for_any_number_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the source uses its arrays again as soon as it is asked for the next sample."""
    graph = files.load(DIGITS / "digits.onnx")
    graph.infer_shapes()
    images = np.load(DIGITS / "calib.npz")["image"][:24]
    tensors = [str(v.name) for v in graph.values() if v.producer() is not None]

    def reused() -> Iterator[dict[str, npt.NDArray[np.float32]]]:
        array = np.empty_like(images[:1])
        for image in images:
            array[:] = image
            yield {"image": array}

    found = []
    for cores in (1, 2, 4):
        monkeypatch.setattr("onnxq.collect.cores", partial(int, cores))
        monkeypatch.setattr("onnxq.ahead.LEAST_BYTES", 1)
        assert ahead.at_once(graph, tensors, cores) == cores
        found.append(collect(graph, tensors, open_source(reused(), input_specs(graph))))
    assert found[0].samples == len(images)
    assert all(one.tensors == found[0].tensors and one.seen == found[0].seen for one in found)
