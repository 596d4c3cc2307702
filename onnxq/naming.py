"""Which of many globs match a name: those of a single name are looked up, thousands of them cost as little as one."""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ESCAPED = re.compile(r"\[([*?[])\]")
"""What `glob.escape` makes of a character that has a meaning in a glob."""


def matches(pattern: str, name: str) -> bool:
    """Whether a glob matches a name, `/` as any letter; a name that holds glob characters also matches itself."""
    return pattern == name or fnmatch.fnmatchcase(name, pattern)


def only_match(pattern: str) -> str | None:
    """The one name that a glob matches besides its own letters; None where it may match others."""
    plain = _ESCAPED.sub("", pattern)
    return None if any(c in plain for c in "*?[") else _ESCAPED.sub(r"\1", pattern)


@dataclass(frozen=True)
class Globs:
    """Globs in order.

    Attributes:
        named: name -> indices of those that match it and hardly anything else.
        others: (index, glob) of all others.
    """

    named: Mapping[str, Sequence[int]]
    others: Sequence[tuple[int, str]]

    @classmethod
    def of(cls, patterns: Sequence[str]) -> Globs:
        """These globs."""
        named: defaultdict[str, list[int]] = defaultdict(list)
        others = []
        for index, pattern in enumerate(patterns):
            if (only := only_match(pattern)) is None:
                others.append((index, pattern))
            else:
                for name in {pattern, only}:
                    named[name].append(index)
        return cls(dict(named), others)

    def matching(self, name: str) -> list[int]:
        """Indices of the globs that match the name, ascending."""
        return sorted([*self.named.get(name, ()), *(i for i, pattern in self.others if matches(pattern, name))])
