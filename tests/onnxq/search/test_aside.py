from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from onnxq.monitor import SILENT
from onnxq.search.aside import Aside

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "odd",
    [b"[1", b"5", b"[]", b'["b"]', b'{"b": 1}', b"\xff\xfe", b"[" * 100_000, b'"b"', b"null"],
)
def test_what_was_written_before_a_damaged_line_is_kept(tmp_path: Path, odd: bytes) -> None:
    path = tmp_path / "a.partial"
    path.write_bytes(b'"key"\n["a", 1.5]\n' + odd + b"\n")
    assert Aside.open(path, "key", SILENT).known == {"a": 1.5}
    assert path.read_text() == '"key"\n["a", 1.5]\n'
    assert Aside.open(path, "other", SILENT).known == {}
