from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from data_samples import X, fails, values

from onnxq.data import open_source
from onnxq.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_script_yields_feeds_from_a_generator_or_a_list(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 4.0\n")
    script = tmp_path / "json.py"  # a standard module's name must not get in its way
    script.write_text(
        "import numpy as np\nfrom beside import VALUE\n"
        "def load_data():\n    for i in range(2):\n        yield {'x': np.full((1, 3), VALUE + i)}\n"
        "def other():\n    return [{'x': np.zeros((1, 3))}]\n"
    )
    modules, path = set(sys.modules), list(sys.path)
    source = open_source(str(script), [X])
    assert (source.name, source.length) == (str(script), None)
    for _ in range(2):
        assert values(source) == [[[4.0] * 3], [[5.0] * 3]]
    assert values(open_source(f"{script}:other", [X])) == [[[0.0] * 3]]
    assert set(sys.modules) - modules <= {"beside"}
    assert sys.path == path
    sys.modules.pop("beside", None)


def test_faulty_scripts_are_refused(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text("def load_date():\n    return 1\n")
    with fails(DataError, "s.py: defines no 'load_data'", "s.py:load_date?"):
        open_source(script, [X])
    with fails(DataError, f"{script}:load_date: gave a value of type int"):
        list(open_source(f"{script}:load_date", [X]))
    script.write_text("load_data = 3\nmany = [3]\n")
    with fails(DataError, f"{script}:load_data: is not an iterable of feeds", "a callable"):
        open_source(script, [X])
    with fails(DataError, f"{script}:many, sample 0: is of type int, not a mapping"):
        list(open_source(f"{script}:many", [X]))
    script.write_text("import numpy\n1 / 0\n")
    with fails(DataError, "s.py, line 2: ZeroDivisionError: division by zero"):
        open_source(script, [X])
    script.write_text("raise SystemExit(0)\n")  # it would end the run as if it were done
    with fails(DataError, "s.py, line 1: SystemExit: 0"):
        open_source(script, [X])
    script.write_text(
        "def load_data(count):\n    yield {}\ndef late():\n    yield {'x': [[1.0] * 3]}\n    raise OSError(5)\n"
    )
    with fails(DataError, "s.py: TypeError: load_data() missing 1 required"):
        list(open_source(script, [X]))
    found = iter(open_source(f"{script}:late", [X]))
    assert next(found)["x"].shape == (1, 3)
    with fails(DataError, "s.py, line 5: OSError: 5"):
        next(found)
