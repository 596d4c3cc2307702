"""Which input channels of matrix products are outliers in LLM.int8()'s sense."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxq.collect import named, samples, session_for
from onnxq.linear import linear_at
from onnxq.monitor import QUIET, Monitor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from onnxq.data import Source
    from onnxq.graph import Graph
    from onnxq.plan import Plan

MOST = 8
"""Of a tensor with more outliers than one channel in so many nothing is split: it is large as a whole."""


def outlier_columns(
    graph: Graph,
    plan: Plan,
    source: Source,
    threshold: float,
    providers: Sequence[str] = ("cpu",),
    custom_ops: Sequence[str] = (),
    monitor: Monitor = QUIET,
) -> dict[str, tuple[int, ...]]:
    """Tensor -> its columns in which some |x| reached the threshold, of what quantized MatMul and Gemm nodes read.

    Dettmers et al. 2022 take 6.0. All samples count, in any order.

    Raises:
        DataError: the data cannot be read or does not fit.
    """
    quantized = {d.node for d in plan.decisions if d.quantized and d.op_type in ("MatMul", "Gemm")}
    read = {
        str(node.inputs[0].name): None
        for node in graph.nodes
        if node.name in quantized
        and node.inputs[0] is not None
        and linear_at(graph, node) is not None
        and not graph.attribute(node, "transA", 0)
    }
    if not read:
        return {}
    names = tuple(read)
    monitor.stage(f"Looking for outlier columns in {len(names)} tensors", source.length)
    session = session_for(graph, names, providers, custom_ops)
    largest: dict[str, npt.NDArray[np.float64]] = {}
    for where, feed in samples(session, source, monitor, tried=True):
        given = {name: feed[name] for name in session.inputs}
        with named(where):
            found = session.run(given, session.outputs)
        arrays = {**feed, **dict(zip(session.outputs, found, strict=True))}
        for name in names:
            rows = np.abs(arrays[name].reshape(-1, arrays[name].shape[-1]))
            amax = rows.max(axis=0, initial=0).astype(np.float64)
            largest[name] = np.maximum(largest.get(name, amax), amax)
    return {name: columns for name in names if (columns := _columns(largest.get(name), threshold, name, monitor))}


def _columns(amax: npt.NDArray[np.float64] | None, threshold: float, name: str, monitor: Monitor) -> tuple[int, ...]:
    if amax is None:
        return ()
    columns = np.flatnonzero(amax >= threshold)
    if columns.size * MOST > amax.size:
        monitor.warn(
            f"{name}: {columns.size} of {amax.size} columns reach {threshold:g}; too many to be outliers, none is split"
        )
        return ()
    return tuple(int(c) for c in columns)
