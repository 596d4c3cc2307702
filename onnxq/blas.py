"""How many threads numpy's matrix products run on: the wall around threadpoolctl.

With several threads OpenBLAS shares out every product and factorization, and each thread waits in a loop for the
others: at the sizes of layers that takes more processor time than the arithmetic. One thread a product, and layers
side by side (`side_by_side`), keeps the cores as busy, and no bit depends on how many there are.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_T = TypeVar("_T")
_R = TypeVar("_R")


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it, also as a decorator, each matrix product of numpy's in this process is computed by one thread."""
    from threadpoolctl import threadpool_limits  # noqa: TID251  this is the wall

    with threadpool_limits(limits=1, user_api="blas"):
        yield


def side_by_side(function: Callable[[_T], _R], items: Iterable[_T], threads: int) -> Iterator[_R]:
    """The function's results, in the order of the items; so many at once, which for numpy's products is real."""
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(function, items)
