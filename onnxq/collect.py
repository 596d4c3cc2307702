"""One pass over the data: ONNX Runtime runs the float model, and every observed tensor is counted and dropped."""

from __future__ import annotations

import gc
import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from onnxq.ahead import at_once, cores, in_turn
from onnxq.blocked import pays, session_in_any_order
from onnxq.checkpoint import Total
from onnxq.customs import behind_customs, custom_nodes, listed
from onnxq.data import split_batch
from onnxq.errors import DataError, ModelError
from onnxq.exposing import expose
from onnxq.files import runnable
from onnxq.graph import begin_at, remove_unread_inputs
from onnxq.monitor import QUIET, Monitor
from onnxq.rows import Runner, independent, only
from onnxq.runtime import Session, unused_gpu
from onnxq.seen import Sample, Seen, asked_for
from onnxq.smallest import copied
from onnxq.timing import paced, timed

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt

    from onnxq.checkpoint import Keeper
    from onnxq.data import Feed, Source
    from onnxq.graph import Graph, Value
    from onnxq.runtime import Loadable
    from onnxq.statistics import Statistics

    Arrays = dict[str, Any]
    """Tensors of a sample, or histograms where it was counted where the model ran."""

_T = TypeVar("_T")


def collect(  # noqa: PLR0913  what is observed, on what, and how it is run
    graph: Graph,
    tensors: Sequence[str],
    source: Source,
    *,
    bounds: Sequence[str] = (),
    providers: Sequence[str] = ("cpu",),
    custom_ops: Sequence[str] = (),
    monitor: Monitor = QUIET,
    keeper: Keeper | None = None,
    session: Session | None = None,
    digest: str | None = None,
) -> Statistics:
    """Run the prepared graph over the data and return what was seen of the named tensors.

    Of `tensors` histograms are made; of `bounds` only the smallest and largest value is kept, at less cost.

    Samples of a batch are run one at a time where the model allows it, so that the result does not depend on how
    they were batched. Memory does not grow with the number of samples. A `session` that `session_for` made for just
    these tensors is used again. With a `keeper` a run that is stopped can go
    on later: samples that its checkpoint has counted are not run again, and the result is that of one run.

    Raises:
        DataError: no sample, NaN in an input, or a feed that the model refuses.
        ModelError: ONNX Runtime cannot load the model, or lacks custom operators that observed tensors depend on.
        StatisticsError: the checkpoint does not belong to this run.
    """
    gc.collect()  # what is left of the graphs before this one are cycles, and they hold weights
    with timed(monitor, "loading into ONNX Runtime"):
        runner, run, most = _runner(graph, (tensors, bounds), (providers, custom_ops), monitor, session)
    warn_of_customs(graph, custom_ops, monitor)
    seen = Seen.of(digest or graph.digest(), tensors, bounds)
    total = Total(seen.statistics(), keeper)

    def count(arrays: Arrays, sample: Sample, room: Event) -> None:
        try:
            with timed(monitor, "counting, beside the next forward pass"):
                seen.count(arrays, sample.label, room)
                seen.tell(monitor)
            seen.note(sample)
            total.keep(seen.checkpoint)
        finally:
            room.set()  # a failure is told by the future

    try:
        found = fresh(samples(runner, source, monitor), total.left)
        count_all(run, found, count, source.bad, monitor, most)
    except KeyboardInterrupt:
        total.keep(seen.checkpoint, now=True)  # the counting thread has ended: no sample is half counted
        raise
    total.add(seen.checkpoint())
    return total.whole()


def _runner(
    graph: Graph,
    names: tuple[Sequence[str], Sequence[str]],
    runtime: tuple[Sequence[str], Sequence[str]],
    monitor: Monitor,
    session: Session | None,
) -> tuple[Runner, Callable[[Feed], Arrays], int]:
    """What runs the model, what gives what is to be counted of a sample, and how many of them it may run at once.

    What is counted where the model runs comes as counts, else as tensors.
    """
    from onnxq.on_cpu import on_cpu  # both make sessions by what is below
    from onnxq.on_device import LOWEST_OPSET, OnDevice

    tensors, bounds = names
    every = asked_for(tensors, bounds)
    if session is None and tuple(runtime[0][:1]) == ("cuda",) and graph.opset >= LOWEST_OPSET:
        device = OnDevice(graph, tensors, bounds, runtime)
        return device, device.observed, 1
    if session is None and tuple(runtime[0][:1]) == ("cuda",):
        monitor.warn(f"tensors are counted on the CPU: opset {graph.opset} cannot, {LOWEST_OPSET} could on the GPU")
    if session is None and unused_gpu(runtime[0]):
        monitor.warn("calibrating on the CPU, although there is a GPU: --providers cuda runs and counts on it")
    if session is None and (passing := on_cpu(graph, tensors, bounds, *runtime)) is not None:
        return passing, passing.observed, passing.most
    session, most = session_at_once(graph, every, *runtime) if session is None else (session, 1)
    return session, partial(observed, session, every), most


def session_at_once(
    graph: Graph, tensors: Sequence[str], providers: Sequence[str] = ("cpu",), custom_ops: Sequence[str] = ()
) -> tuple[Session, int]:
    """The session that gives what is to be counted, in whatever order its values are, and how many samples it may run.

    Raises:
        ModelError: as `session_for`.
    """
    most = at_once(graph, tensors, cores()) if tuple(providers) == ("cpu",) and not custom_ops else 1
    threads = cores() - most + 1 if most > 1 else 0
    ordered = not pays(graph, tensors)
    return session_for(graph, tensors, providers, custom_ops, threads=threads, ordered=ordered), most


def warn_of_customs(graph: Graph, custom_ops: Sequence[str], monitor: Monitor) -> None:
    """Say so where the model has custom operators and runs without them."""
    if not custom_ops and custom_nodes(graph):
        monitor.warn("calibrating without the custom operators: nothing that is observed depends on them")


def nothing_seen(
    graph: Graph, tensors: Sequence[str], bounds: Sequence[str] = (), digest: str | None = None
) -> Statistics:
    """The statistics of these tensors over no sample; `digest` as for `collect`."""
    return Seen.of(digest or graph.digest(), tensors, bounds).statistics()


def fresh(found: Iterable[tuple[str, Feed]], left: Counter[int]) -> Iterator[tuple[Sample, Feed]]:
    """The samples that are not among those `left` of a checkpoint, of which they are taken off; copied."""
    for label, feed in found:
        sample = Sample(label, sample_hash(feed), {k: (v.shape, v.shape) for k, v in feed.items()})
        if left[sample.hash]:
            left[sample.hash] -= 1
        else:
            yield sample, copied(feed)


def count_all(
    run: Callable[[Feed], Arrays],
    found: Iterable[tuple[Sample, Feed]],
    count: Callable[[Arrays, Sample, Event], None],
    bad: Callable[[DataError], None] | None,
    monitor: Monitor = QUIET,
    most: int = 1,
) -> None:
    """Run every sample, `most` at once, and count its tensors while the next ones run.

    Feeds must be arrays of their own. `bad` is told of samples that cannot be run. One thread counts, in order: the
    result is as without it, and an interrupt, which only the main thread sees, leaves no sample half counted.
    """
    counted: Future[None] | None = None
    with ThreadPoolExecutor(1) as counter, ThreadPoolExecutor(most) as runners:
        for sample, made in in_turn(run, paced(found, monitor, "reading data"), runners, most):
            with timed(monitor, "the forward pass, or waiting for it"):
                arrays = _tried(made, sample.label, bad)
            with timed(monitor, "waiting for counting"):
                if counted is not None:
                    counted.result()
                if arrays is None:
                    continue
                room = Event()
                counted = counter.submit(count, arrays, sample, room)
                room.wait()
        if counted is not None:
            with timed(monitor, "waiting for counting"):
                counted.result()


def _tried(run: Callable[[], _T], label: str, bad: Callable[[DataError], None] | None) -> _T | None:
    """What a sample gives; None where it cannot be run and such samples are skipped."""
    try:
        with named(label):
            return run()
    except DataError as error:
        if bad is None:
            raise
        bad(error)
        return None


@contextmanager
def named(label: str) -> Iterator[None]:
    """What fails within on a sample says on which."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{label}: {error.message}", error.hint) from error


def learn_types(graph: Graph, custom_ops: Sequence[str], providers: Sequence[str] = ("cpu",)) -> int:
    """Fill in the element types of what custom nodes make, which onnx cannot infer, as their libraries tell them.

    Return how many became known.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
        RecipeError: a library cannot be loaded.
    """
    made = [v for node in custom_nodes(graph) if not graph.in_body(node) for v in node.outputs]
    unknown = {str(v.name): v for v in made if v.name and graph.dtype(v) is None}
    if not unknown:
        return 0
    types = session_for(graph, tuple(unknown), providers, custom_ops).output_types
    learned = {name: kind for name in unknown if (kind := types[name]) is not None}
    for name, kind in learned.items():
        graph.retype(unknown[name], kind)
    return len(learned)


def session_for(
    graph: Graph,
    tensors: Sequence[str],
    providers: Sequence[str],
    custom_ops: Sequence[str] = (),
    reads: Sequence[str] = (),
    *,
    threads: int = 0,
    ordered: bool = True,
) -> Session:
    """A session of what `observable` makes; unless `ordered`, the values of a tensor may come in another order."""
    model = observable(graph, tensors, custom_ops, reads)
    if not ordered and isinstance(model, bytes) and tuple(providers) == ("cpu",) and not custom_ops:
        return session_in_any_order(model, threads=threads)
    return Session(model, providers, as_written=True, custom_ops=custom_ops, threads=threads)


def observable(
    graph: Graph, tensors: Sequence[str], custom_ops: Sequence[str] = (), reads: Sequence[str] = ()
) -> Loadable | bytes:
    """The graph with exactly the observed tensors as outputs (inputs among them are read from the feed).

    Those of bodies come flat, and empty where the body did not run. `reads` names activations that are given like
    inputs; then nothing of what makes them is left.
    """
    copy = graph.copy()
    begin_at(copy, reads)
    wanted = set(tensors) - {str(v.name) for v in copy.inputs}
    exposed = expose(copy, wanted - {str(v.name) for v in copy.values()})
    values = {**copy.weights, **{str(v.name): v for v in copy.values()}, **exposed}
    if lost := wanted - values.keys():
        raise ModelError(f"tensor {min(lost)!r} is not in the model", "Was the graph changed after planning?")
    outputs = [values[name] for name in tensors if name in wanted] or list(copy.outputs)
    if not custom_ops and not wanted:  # any tensor will do: it only shows whether samples are independent
        behind = behind_customs(copy)
        outputs = [v for name, v in values.items() if name not in behind and v.producer() is not None][-1:] or outputs
    copy.set_outputs(outputs)
    copy.remove_unused()
    if reads:
        remove_unread_inputs(copy)
    if not custom_ops:
        _refuse_customs(copy, outputs)
    return runnable(copy)


def _refuse_customs(graph: Graph, outputs: Sequence[Value]) -> None:
    """Raise ModelError when the graph, cut down to what is observed, still holds custom nodes."""
    missing = custom_nodes(graph)
    if not missing:
        return
    behind = behind_customs(graph)
    lost = [str(v.name) for v in outputs if str(v.name) in behind]
    raise ModelError(
        f"ONNX Runtime lacks custom operators: {listed(missing)}; {len(lost)} tensors to observe depend on them, "
        f"{lost[0]!r} first",
        "Give their library with --custom-ops lib.so, or keep what lies behind them in float with --exclude.",
    )


def samples(session: Runner, source: Source, monitor: Monitor, *, tried: bool = False) -> Iterator[tuple[str, Feed]]:
    """(label, feed) of every sample. Batches are split when the first one shows that this changes nothing.

    Where bad ones are skipped, those are left out that hold NaN, and if `tried` those that the session cannot run.
    """
    splits: bool | None = None
    for label, feed in source.samples():
        parts = split_batch(feed, source.inputs)
        if len(parts) > 1 and splits is None:
            splits = independent(session, parts)
        rows = [(f"{label}, row {row}", part) for row, part in enumerate(parts)]
        for where, part in rows if len(parts) > 1 and splits else [(label, feed)]:
            if not holds_numbers(part, where, source):
                continue
            if not tried or source.bad is None or _tried(partial(_once, session, part), where, source.bad) is not None:
                yield where, part
        monitor.advance()


def observed(session: Session, tensors: Sequence[str], feed: Feed) -> dict[str, npt.NDArray[Any]]:
    """The tensors of one sample. Inputs are copied: whoever made the feed may use its arrays again."""
    computed = dict(zip(session.outputs, session.run(only(session, feed), session.outputs), strict=True))
    return {name: computed[name] if name in computed else feed[name].copy() for name in tensors}


def _once(session: Runner, feed: Feed) -> list[list[list[Any]]]:
    return list(session.each([only(session, feed)]))


def holds_numbers(feed: Feed, label: str, source: Source) -> bool:
    """Whether no input holds NaN; an error where it does, unless such samples are skipped."""
    for name, array in feed.items():
        if array.dtype.kind in "fV" and np.isnan(array).any():  # V: bfloat16
            where = np.argwhere(np.isnan(array))[0].tolist()
            hint = "Repair this sample, or leave it out with --skip-bad."
            error = DataError(f"{label}: input {name!r} holds NaN, first at {where}", hint)
            if source.bad is None:
                raise error
            source.bad(error)
            return False
    return True


def sample_hash(feed: Feed) -> int:
    """64 bits that tell a sample from others by its content."""
    h = hashlib.sha256()
    for name in sorted(feed):
        array = np.ascontiguousarray(feed[name])
        h.update(f"{name}|{array.dtype}|{array.shape}\n".encode())
        h.update(array.tobytes())
    return int.from_bytes(h.digest()[:8], "little")
