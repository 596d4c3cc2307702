"""Feeds from a Python script, as Polygraphy's `--data-loader-script` takes it: `script.py[:load_data]`."""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.data.objects import open_object
from onnxq.data.paths import existing
from onnxq.errors import DataError, OnnxqError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.data.feeds import InputSpec
    from onnxq.data.source import Sample, Source

_SCRIPT = re.compile(r".+\.py(:\w+)?")


def is_script(text: str) -> bool:
    """Whether the text is that of a script, with or without a function's name."""
    return bool(_SCRIPT.fullmatch(text))


def open_script(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    """What the script's `load_data`, or the function named behind the colon, gives; the script runs here, once.

    Raises:
        DataError: the script is missing or fails, or does not define the function.
    """
    file, _, function = text.rpartition(":") if not text.endswith(".py") else (text, "", "")
    path, wanted = existing(file), function or "load_data"
    names = run_script(path)
    if wanted not in names:
        near = get_close_matches(wanted, names, n=1)
        hint = f"Did you mean {path}:{near[0]}?" if near else f"Define {wanted}() there, or name another: {path}:NAME."
        raise DataError(f"{path}: defines no {wanted!r}", hint)
    source = open_object(names[wanted], inputs, f"{path}:{wanted}")

    def read() -> Iterator[Sample]:
        try:
            yield from source.read()
        except OnnxqError:
            raise
        except (Exception, SystemExit) as err:  # whatever the user's code raises
            raise _failed(path, err) from err

    return replace(source, name=text, read=read)


def _failed(path: Path, err: BaseException) -> DataError:
    """An error of the user's code, with the line of the script."""
    frames, own = traceback.extract_tb(err.__traceback__), path.resolve()
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == own]
    where = f", line {lines[-1]}" if lines else ""
    return DataError(f"{path}{where}: {type(err).__name__}: {err}", "Run the script by itself to see where.")


def run_script(path: Path) -> dict[str, object]:
    """Run a user's script as a module, its own folder importable meanwhile, and return what it defines.

    Raises:
        DataError: it is no script, or fails.
    """
    spec = importlib.util.spec_from_file_location(f"onnxq data script {path.stem}", path)
    if spec is None or spec.loader is None:
        raise DataError(f"{path}: is not a Python script", "Give a .py file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as err:  # whatever the user's code raises
        raise _failed(path, err) from err
    finally:
        sys.path.remove(str(path.resolve().parent))
        del sys.modules[spec.name]
    return vars(module)
