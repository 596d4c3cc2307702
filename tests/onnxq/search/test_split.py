"""Which samples are held back: by content, disjoint, whatever their order and batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from graphs import Array, graph_of

from onnxq.collect import sample_hash, session_for
from onnxq.data import input_specs, label_specs, open_source
from onnxq.errors import DataError
from onnxq.monitor import Monitor
from onnxq.search.split import Split, split

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from onnxq.data import Feed

RNG = np.random.default_rng(0)
GRAPH = graph_of("(float[N,4] x) => (float[N,4] y) { y = Tanh(x) }")


def feeds(count: int) -> list[dict[str, Array]]:
    return [{"x": RNG.normal(size=(1, 4)).astype(np.float32)} for _ in range(count)]


def parts(data: object, eval_data: object = None, monitor: Monitor | None = None, labels: Sequence[str] = ()) -> Split:
    session = session_for(GRAPH, (), ("cpu",))
    specs = input_specs(GRAPH)
    other = None if eval_data is None else open_source(eval_data, (*specs, *label_specs(labels)))
    return split(session, open_source(data, specs), other, monitor or Monitor(warn=lambda _: None))


def hashes(found: Iterable[Feed]) -> set[int]:
    return {sample_hash(feed) for feed in found}


@pytest.mark.parametrize("count", [4, 7, 8, 9, 40])
def test_parts_are_disjoint_and_whole(count: int) -> None:
    data = feeds(count)
    found = parts(data)
    calibrating, judging = hashes(found.calibration), hashes(found.judging)
    assert not calibrating & judging
    assert calibrating | judging == hashes(data)
    assert hashes(found.searching) <= calibrating
    assert len(judging) == (count // 4 if count > 8 else count // 2)


def test_order_batches_and_repeats_do_not_matter() -> None:
    data = feeds(24)
    wanted = parts(data)
    shuffled = [data[i] for i in RNG.permutation(24)]
    batches: list[Feed] = [{"x": np.concatenate([f["x"] for f in shuffled[i : i + 6]])} for i in range(0, 24, 6)]
    for given in (shuffled, batches, [*data, *data[:5]]):
        found = parts(given)
        assert found.key == wanted.key
        assert [sample_hash(f) for f in found.judging] == [sample_hash(f) for f in wanted.judging]
        assert [sample_hash(f) for f in found.searching] == [sample_hash(f) for f in wanted.searching]
        assert hashes(found.calibration) == hashes(wanted.calibration)


def test_evaluation_data_does_not_calibrate() -> None:
    data, other = feeds(12), feeds(20)
    said: list[str] = []
    found = parts([*data, other[0]], other, Monitor(warn=said.append))
    assert hashes(found.calibration) == hashes(data)
    assert hashes(found.judging) | hashes(found.searching) == hashes(other)
    assert not hashes(found.judging) & hashes(found.searching)
    assert "1 samples" in said[0]
    assert "do not calibrate" in said[0]


def test_few_samples_are_said() -> None:
    said: list[str] = []
    parts(feeds(32), monitor=Monitor(warn=said.append))
    assert said == ["only 8 different samples to judge on: the figures may be off by chance"]
    parts(feeds(40), monitor=Monitor(warn=said.append))
    assert len(said) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_too_few(count: int) -> None:
    with pytest.raises(DataError, match="too few to hold some back"):
        parts(feeds(count))


@pytest.mark.parametrize(("count", "held_back", "says"), [(1, 8, "1 .* to calibrate on"), (9, 3, "3 .* to judge on")])
def test_of_two_data_the_one_that_is_too_small_is_told(count: int, held_back: int, says: str) -> None:
    with pytest.raises(DataError, match=f": {says}") as error:
        parts(feeds(count), feeds(20)[-held_back:])
    assert "--eval-data" not in str(error.value.hint)


def test_evaluation_data_that_is_the_calibration_data() -> None:
    data = feeds(12)
    with pytest.raises(DataError, match="none is left to calibrate on"):
        parts(data, data)


def test_a_label_makes_no_other_sample() -> None:
    """Of evaluation data alone: the calibration data has none."""
    data, said = feeds(40), list[str]()
    labelled = [feed | {"label": np.array([i])} for i, feed in enumerate(data)]
    found = parts(data, labelled[20:], Monitor(warn=said.append), ["label"])
    read = {sample_hash({"x": feed["x"]}) for feed in (*found.judging, *found.searching)}
    assert len(read) == 20
    assert hashes(found.calibration) == hashes(data[:20])
    assert "20 samples of" in said[0]
    with pytest.raises(DataError, match="none is left to calibrate on"):
        parts(data, labelled, labels=["label"])
