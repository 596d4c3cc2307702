"""Whether the rows of a batch can be run one at a time, tried on what runs the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from onnxq.data import Feed

_ROWS_TRIED = 8


class Runner(Protocol):
    """What runs a model: a Session, or what runs it in parts."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the model's inputs."""

    def each(self, feeds: Sequence[Feed]) -> Iterator[list[list[Any]]]:
        """The outputs for each feed; of a model that is run in parts, those of one part after the other."""


def independent(session: Runner, parts: Sequence[Feed]) -> bool | None:
    """Whether rows do not influence one another, so that axis 0 is a batch axis; None where they cannot show it.

    Tried on some rows of a batch, together and alone: a running sum or a state along axis 0 shows in the later ones.
    """
    rows = sorted({round(i) for i in np.linspace(0, len(parts) - 1, _ROWS_TRIED)})
    tried = [only(session, parts[row]) for row in rows]
    if all(np.array_equal(tried[0][name], part[name]) for part in tried[1:] for name in tried[0]):
        return None
    joined = {name: np.concatenate([part[name] for part in tried]) for name in tried[0]}
    try:
        return all(
            _joins(together, found)
            for whole, *alone in session.each([joined, *tried])
            for together, *found in zip(whole, *alone, strict=True)
        )
    except DataError:  # a model with its batch size built in; what else is wrong the run of the batch will tell
        return False


def _joins(whole: object, parts: Sequence[npt.NDArray[Any]]) -> bool:
    """Whether a tensor of some rows holds what the rows give alone, along whichever axis, or the same for any rows."""
    if not isinstance(whole, np.ndarray) or whole.dtype.kind != "f":
        return True
    shape = parts[0].shape
    if any(part.shape != shape for part in parts):
        return False
    if whole.shape == shape:
        return all(_close(whole, part) for part in parts)
    grown = [(*shape[:i], length * len(parts), *shape[i + 1 :]) for i, length in enumerate(shape)]
    axes = [axis for axis, wanted in enumerate(grown) if wanted == whole.shape]
    return any(_close(whole, np.concatenate(parts, axis)) for axis in axes)


def _close(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Equal up to the rounding of another order of summation."""
    largest = float(np.abs(b[np.isfinite(b)]).max(initial=0))
    return np.allclose(a, b, rtol=1e-3, atol=1e-4 * largest, equal_nan=True)


def only(session: Runner, feed: Feed) -> dict[str, npt.NDArray[Any]]:
    """The inputs of the model among what a feed holds."""
    return {name: feed[name] for name in session.inputs}
