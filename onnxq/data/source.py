"""`Source`: a stream of checked feeds, whatever it is read from."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxq.data.feeds import check_feed
from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from onnxq.data.feeds import Feed, InputSpec

Sample = tuple[str, object]
"""A feed that is not checked yet, after the words that say where it came from; or the DataError that reading it gave,
where others can be read after it."""


@dataclass(frozen=True)
class Source:
    """A stream of checked feeds; each iteration is a new pass over the data, where the data allows one.

    Attributes:
        name: what messages and the plan call it.
        inputs: the model's inputs, which every feed must fit.
        read: begins a pass.
        length: the number of feeds, None where only reading tells.
        limit: read at most this many feeds.
        once: only one pass is possible.
        bad: is told of every feed that cannot be read or does not fit, and it is skipped; None: that is an error.
    """

    name: str
    inputs: tuple[InputSpec, ...]
    read: Callable[[], Iterable[Sample]]
    length: int | None = None
    limit: int | None = None
    once: bool = False
    bad: Callable[[DataError], None] | None = None

    @classmethod
    def of(cls, feeds: Sequence[Feed]) -> Source:
        """Feeds that were read before, to be taken as they are whatever is said of reading, as how images are made."""
        return cls("list", (), lambda: ((f"list, sample {i}", feed) for i, feed in enumerate(feeds)), len(feeds))

    def __iter__(self) -> Iterator[Feed]:
        return (feed for _, feed in self.samples())

    def samples(self) -> Iterator[tuple[str, Feed]]:
        """Every feed behind the words that say where it came from.

        Raises:
            DataError: a feed cannot be read or does not fit the model, or there is none.
        """
        empty = True
        for where, feed in itertools.islice(self.read(), self.limit):
            try:
                if isinstance(feed, DataError):
                    raise feed
                checked = check_feed(feed, self.inputs, where)
            except DataError as error:
                if self.bad is None:
                    raise
                self.bad(error)
                continue
            empty = False
            yield where, checked
        if empty:
            held = "holds no samples" if self.bad is None else "holds no sample that can be read and fits the model"
            raise DataError(f"{self.name}: {held}", "Give at least one feed of the model's inputs.")
