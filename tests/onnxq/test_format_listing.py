"""`onnxq formats` and docs/formats.md tell the same table."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxq.cli import main
from onnxq.formats import listing
from onnxq.formats.table import TARGETS

DOC = Path(__file__).parents[2] / "docs" / "formats.md"


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["onnxq", "formats", *arguments])
    main()
    return capsys.readouterr().out


def test_the_doc_has_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    table = said(capsys, monkeypatch, "--markdown")
    assert table in DOC.read_text(), "run `onnxq formats --markdown` and put its output into docs/formats.md"


def test_what_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = said(capsys, monkeypatch)
    assert "int4/block:32" in plain
    assert "zero points are all 0" not in plain
    assert "zero points are all 0" in said(capsys, monkeypatch, "-v")
    one = said(capsys, monkeypatch, "--target", "tensorrt@11")
    assert "tensorrt@11" in one
    assert "nf4" not in one


def test_an_unknown_target_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["onnxq", "formats", "--target", "tensorrt@12"])
    with pytest.raises(SystemExit):
        main()
    assert "tensorrt@1" in capsys.readouterr().err


def test_every_row_has_a_column_for_each_target() -> None:
    assert all(len(row) == len(listing.header(TARGETS)) for row in listing.rows(TARGETS))
    assert {row[0] for row in listing.rows(TARGETS)} == {"weights", "activations"}
