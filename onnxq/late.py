"""Modules that a package imports and this program most likely never needs: imported when something of them is used.

`importlib.util.LazyLoader` does not do here: with Python 3.11 a second `import` of such a module loads it already.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from threading import RLock
from types import ModuleType
from typing import Any

_LOCK = RLock()


class _Late(ModuleType):
    """Stands for a module until the first of its names is asked for, and hands on from then on."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever the module holds
        with _LOCK:
            if sys.modules.get(self.__name__) is self:
                del sys.modules[self.__name__]
            return getattr(import_module(self.__name__), name)


def late(*names: str) -> None:
    """Put off the import of these modules for all of the process, where they are not imported yet and can be."""
    for name in names:
        if name not in sys.modules and find_spec(name.partition(".")[0]) is not None:
            sys.modules[name] = _Late(name)
