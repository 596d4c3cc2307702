"""What judges in the accuracy bench, scripts/subjects.py: all test data of a real model, none of which calibrates."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_models import CACHE, DIGITS, GLYPHS, cached

SCRIPTS = Path(__file__).parents[1] / "scripts"
ALL = 1000  # more than any model has for calibration, and as many as there are seeds for it
FILES = {
    "digits": (DIGITS / "test.npz",),
    "glyphs": (GLYPHS / "test.npz",),
    "ocr_cls": (CACHE / "ocr" / "ocr_cls_test.npz",),
    "ocr_det": (CACHE / "ocr" / "ocr_det_test.npz",),
    "ocr_rec": (CACHE / "ocr" / "ocr_rec_test.npz",),
    "topics": (CACHE / "topics" / "test.npz",),
    "minilm": (CACHE / "minilm" / "eval" / "queries.npz", CACHE / "minilm" / "eval" / "passages.npz"),
}


@pytest.fixture(scope="module")
def subjects() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        script = runpy.run_path(str(SCRIPTS / "subjects.py"), run_name="subjects")
    sys.modules.pop("scores", None)
    found: dict[str, Any] = script["SUBJECTS"]
    return found


def present(name: str) -> list[Path]:
    """The files of the test data, or a skip."""
    return [cached(str(file.relative_to(CACHE))) if file.is_relative_to(CACHE) else file for file in FILES[name]]


def samples(feeds: list[dict[str, Any]]) -> list[bytes]:
    """What each row of the first input holds, of texts what is no padding."""
    found = []
    for feed in feeds:
        first = feed[next(iter(feed))]
        kept = feed.get("attention_mask", np.ones_like(first, dtype=bool)).astype(bool)
        found += [row[mask].tobytes() for row, mask in zip(first, kept, strict=True)]
    return found


@pytest.mark.parametrize("name", [*FILES, "silero"])
def test_nothing_that_calibrates_judges(subjects: dict[str, Any], name: str) -> None:
    assert name == "silero" or present(name)
    calibrating, judging = samples(subjects[name].calibration(ALL)), samples(subjects[name].unseen())
    assert len(calibrating) >= 64
    assert not set(calibrating) & set(judging)


@pytest.mark.parametrize("name", FILES)
def test_all_test_data_judges_in_its_order(subjects: dict[str, Any], name: str) -> None:
    files = []
    for path in present(name):
        with np.load(path) as data:
            files.append(dict(data))
    feeds = subjects[name].unseen()
    for key in feeds[0]:
        expected = [row for file in files for row in file[key]]
        found = [row for feed in feeds for row in feed[key]]
        assert len(found) == len(expected)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_silero_is_judged_on_a_thousand_frames_always_the_same(subjects: dict[str, Any]) -> None:
    once, again = (samples(subjects["silero"].unseen()) for _ in range(2))
    assert once == again
    assert len(set(once)) == 1000


def test_no_more_seeds_calibrate_than_lie_before_those_that_judge(subjects: dict[str, Any]) -> None:
    assert len(subjects["bert_base"].calibration(2)) == 2
    with pytest.raises(SystemExit, match=r"silero_vad_16k_sequence.onnx: at most 1000 samples calibrate"):
        subjects["silero"].calibration(ALL + 1)
