"""Calibration in parts: shards by the hash of the samples, and one collection spread over an executor's workers.

What the parts saw adds up to what one run sees, bit for bit, as long as the same kernels run in all of them: other
processors, or another ONNX Runtime, may round the last bits of a tensor differently.
"""

from __future__ import annotations

from collections import Counter, deque
from concurrent.futures import CancelledError, Executor, Future
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnxq import files
from onnxq.blocked import pays
from onnxq.checkpoint import Checkpoint, Total
from onnxq.collect import collect, nothing_seen, sample_hash, samples, session_for
from onnxq.data import InputSpec, Source, input_specs, label_specs, open_source
from onnxq.errors import DataError, OnnxqError, RecipeError
from onnxq.monitor import QUIET, SILENT, Monitor
from onnxq.scratch import Scratch
from onnxq.seen import asked_for
from onnxq.smallest import copied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from onnxq.checkpoint import Keeper
    from onnxq.data import Feed
    from onnxq.data.source import Sample
    from onnxq.graph import Graph
    from onnxq.runtime import Session
    from onnxq.statistics import Statistics

    _Submit = Callable[[list[Feed]], Future[Statistics]]


@dataclass(frozen=True)
class Running:
    """How the samples of a collection are run.

    Attributes:
        executor: in whose workers: of a `concurrent.futures.Executor` or a `dask.distributed.Client`; None for here.
        keeper: writes checkpoints, and takes one up; None for none.
    """

    executor: Workers | None = None
    keeper: Keeper | None = None

    @property
    def collect(self) -> Callable[..., Statistics]:
        """`onnxq.collect.collect`, run that way."""
        if self.executor is None:
            return partial(collect, keeper=self.keeper)
        return partial(spread, executor=self.executor, keeper=self.keeper)


HERE = Running()
"""In this process, without checkpoints."""

Workers = Any
"""A `concurrent.futures.Executor`, or a `dask.distributed.Client`: distributed is an extra, and not typed."""

_AHEAD = 32
"""Groups that are sent before the first of them is done: workers do not wait, and memory stays bounded."""

_TASK_BYTES = 8_000_000
"""Inputs that go to a worker at a time: enough to run for longer than sending them takes."""
_TASK_SAMPLES = 16

SENT_BYTES = 256_000_000
"""A model with more weight bytes than this is read by Dask's workers from its file, where all of them see it."""


def shard(source: Source, index: int, count: int) -> Source:
    """The samples of a source that fall to part `index` of `count`, from 1 on, by the hash of their content.

    So each sample falls to just one shard, whatever the order in which a machine finds them; equal samples fall to
    the same one. Every machine reads all of the data, and runs its part.
    """

    def read() -> Iterator[Sample]:
        return ((where, feed) for where, feed in source.samples() if sample_hash(feed) % count == index - 1)

    return replace(source, name=f"{source.name}, shard {index}/{count}", read=read, length=None, limit=None)


def chosen(source: Source, part: tuple[int, int] | None, skips: Monitor | None) -> Source:
    """The samples of one shard, or all; with `skips` those are left out, and warned of, that cannot be used."""
    if skips is not None and source.bad is None:
        source = replace(source, bad=_skipping(skips))
    return source if part is None else shard(source, *part)


def _skipping(monitor: Monitor) -> Callable[[DataError], None]:
    """What warns of each bad sample once, however often it is met."""
    said: set[str] = set()

    def tell(error: DataError) -> None:
        if error.message not in said:
            said.add(error.message)
            monitor.warn(f"skipped: {error.message}")

    return tell


def spread(  # noqa: PLR0913  as `collect`, and by whom
    graph: Graph,
    tensors: Sequence[str],
    source: Source,
    *,
    executor: Workers,
    bounds: Sequence[str] = (),
    providers: Sequence[str] = ("cpu",),
    custom_ops: Sequence[str] = (),
    monitor: Monitor = QUIET,
    keeper: Keeper | None = None,
) -> Statistics:
    """What `collect` returns, run by an executor's workers. The data is read here and sent in small groups.

    Each worker loads the model once. A group whose worker dies is run again where the executor does that, as Dask does.

    Raises:
        DataError: as `collect`, or a worker failed.
        ModelError: as `collect`.
        StatisticsError: as `collect`.
    """
    names = asked_for(tensors, bounds)
    here = _Here(partial(session_for, graph, names, providers, custom_ops))
    empty = nothing_seen(graph, tensors, bounds)
    total = Total(empty, keeper)
    waiting: deque[tuple[Future[Statistics], _Group]] = deque()

    def take() -> None:
        future, group = waiting.popleft()
        try:
            found = _result(future, partial(again, [s.feed for s in group]))
            total.add(Checkpoint(found, Counter(s.key for s in group)))
        except DataError:
            if source.bad is None:
                raise
            total.add(_without_bad(graph, work, here.session, group, source.bad))
        total.keep()

    with Scratch() as folder:
        path = files.save(graph, folder / "model.onnx", external_bytes=files.SPILL_BYTES)[0]
        work = Work(path, empty.model, *map(tuple, (tensors, bounds, providers, custom_ops)))
        submit, again, ahead = _submitter(executor, work, small=files.weight_bytes(graph) <= SENT_BYTES)
        try:
            for group in _groups(samples(here, source, monitor), total.left):
                waiting.append((submit([s.feed for s in group]), group))
                if len(waiting) > ahead:
                    take()
            while waiting:
                take()
        except KeyboardInterrupt:
            total.keep(now=True)
            raise
        finally:
            for future, _ in waiting:
                future.cancel()
    return total.whole()


@dataclass
class _Here:
    """What runs the model in the driving process, loaded when it is asked: it tells whether a batch can be split."""

    make: Callable[[], Session]

    @cached_property
    def session(self) -> Session:
        return self.make()

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.session.inputs

    def each(self, feeds: Sequence[Feed]) -> Iterator[list[list[Any]]]:
        return self.session.each(feeds)


@dataclass(frozen=True)
class Work:
    """What a worker needs once: the prepared model, and the arguments of `collect`.

    Attributes:
        model: its file, or name and content of all its files, for workers that do not see them.
        digest: of the model; two of one digest are the same to a worker.
        tensors: as `collect`.
        bounds: as `collect`.
        providers: as `collect`.
        custom_ops: as `collect`.
    """

    model: Path | tuple[tuple[str, npt.NDArray[np.uint8]], ...] = field(compare=False)
    digest: str
    tensors: tuple[str, ...]
    bounds: tuple[str, ...]
    providers: tuple[str, ...]
    custom_ops: tuple[str, ...]


def observed(work: Work, feeds: Sequence[Feed]) -> Statistics:
    """The statistics of some samples, in a worker."""
    loaded = _loaded(work)
    source = open_source(list(feeds), _specs(loaded.graph, feeds[0]))
    return _collected(loaded.graph, work, source, loaded.session)


def _collected(graph: Graph, work: Work, source: Source, session: Session, monitor: Monitor = QUIET) -> Statistics:
    return collect(
        graph,
        work.tensors,
        source,
        bounds=work.bounds,
        custom_ops=work.custom_ops,
        monitor=monitor,
        session=session,
        digest=work.digest,
    )


def _specs(graph: Graph, feed: Feed) -> tuple[InputSpec, ...]:
    """The model's inputs, and what else a feed holds: labels, which count in its hash."""
    inputs = input_specs(graph)
    return (*inputs, *label_specs(sorted(feed.keys() - {spec.name for spec in inputs})))


class _Loaded(NamedTuple):
    """A model in a worker, and the folder that its weights may lie in."""

    graph: Graph
    session: Session
    folder: Scratch


@lru_cache(maxsize=1)
def _loaded(work: Work) -> _Loaded:
    """The graph and the session of a model, made once in each worker."""
    folder, path = Scratch(), work.model
    if not isinstance(path, Path):
        for name, content in path:
            content.tofile(folder.path / name)
        path = folder.path / path[0][0]
    graph = files.load(path)
    names = asked_for(work.tensors, work.bounds)
    session = session_for(graph, names, work.providers, work.custom_ops, ordered=not pays(graph, names))
    return _Loaded(graph, session, folder)


def _submitter(executor: Workers, work: Work, *, small: bool) -> tuple[_Submit, _Submit, int]:
    """What sends a group of samples to a worker, what does so once more, and how many groups may wait.

    The processes of an executor of this machine read the model's file; so do Dask's workers if it is not `small` and
    all of them see it. Else it goes to them once, over the network, and once more with what is sent again.
    """
    if isinstance(executor, Executor):

        def submit(feeds: list[Feed]) -> Future[Statistics]:
            return executor.submit(observed, work, feeds)

        return submit, submit, _AHEAD
    if isinstance(work.model, Path) and (small or not _all_see(executor, work.model)):
        work = replace(work, model=tuple(_contents(work.model.parent)))
    sent = executor.scatter(work, broadcast=True)
    threads = sum(executor.nthreads().values())
    first, again = (partial(executor.submit, observed, own, pure=False) for own in (sent, work))
    return first, again, max(_AHEAD, 3 * threads)


def _all_see(client: Workers, path: Path) -> bool:
    """Whether all workers have that file, of that size."""
    return set(client.run(_size, path).values()) == {_size(path)}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _contents(folder: Path) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """The model's files, it first; mapped, not read."""
    for path in sorted(folder.glob("model.onnx*"), key=lambda path: len(path.name)):
        yield path.name, np.memmap(path, np.uint8, "r").view(np.ndarray)


class _Sample(NamedTuple):
    """A sample, its hash, and the words that say where it came from."""

    key: int
    feed: Feed
    label: str


_Group = list[_Sample]


def _groups(found: Iterator[tuple[str, Feed]], left: Counter[int]) -> Iterator[_Group]:
    """The samples that are not among those left of a checkpoint, in small groups."""
    group: _Group = []
    size = 0
    for label, feed in found:
        key = sample_hash(feed)
        if left[key]:
            left[key] -= 1
            continue
        group.append(_Sample(key, copied(feed), label))
        size += sum(array.nbytes for array in feed.values())
        if size >= _TASK_BYTES or len(group) == _TASK_SAMPLES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _without_bad(
    graph: Graph, work: Work, session: Session, group: _Group, bad: Callable[[DataError], None]
) -> Checkpoint:
    """A group that a worker failed on, run here sample by sample; `bad` is told of those that cannot be run."""
    total = Checkpoint(nothing_seen(graph, work.tensors, work.bounds, work.digest))
    for sample in group:
        one = Source(sample.label, _specs(graph, sample.feed), partial(list, [(sample.label, sample.feed)]))
        try:
            total += Checkpoint(_collected(graph, work, one, session, SILENT), Counter([sample.key]))
        except DataError as error:
            bad(error)
    return total


def _result(future: Future[Statistics], again: Callable[[], Future[Statistics]]) -> Statistics:
    """What the worker found, or another one: nobody here cancels, but Dask forgets what only a dead worker held."""
    try:
        try:
            return future.result()
        except CancelledError:
            return again().result()
    except OnnxqError:
        raise
    except Exception as error:  # whatever the executor raises when a worker is lost
        raise DataError(
            f"a worker failed: {type(error).__name__}: {error}",
            "Look at the worker's own log; did it run out of memory? What was counted is not lost with --resume.",
        ) from error


def dask_client(scheduler: str) -> Workers:
    """A client of the Dask cluster at that address, for `spread`; use it in a `with` statement.

    Raises:
        RecipeError: Dask is not installed, or the scheduler does not answer.
    """
    try:
        from distributed import Client  # noqa: TID251  this is the wall
    except ImportError as error:
        raise RecipeError("--dask needs Dask, which is not installed", "pip install 'onnxq[dask]'") from error
    try:
        return Client(scheduler, timeout="10s")  # type: ignore[no-untyped-call]  # its methods have no annotations
    except (OSError, ValueError) as error:
        hint = "Start one with `dask scheduler`, workers with `dask worker ADDRESS`, onnxq installed beside each."
        raise RecipeError(f"no Dask scheduler answers at {scheduler}: {error}", hint) from error
