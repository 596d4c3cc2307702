"""Feeds from the JSON that Polygraphy's `--save-inputs` and `save_json` write: a list of dicts of arrays.

Polygraphy's reader of whole files is not used: it also decodes torch tensors, which are pickles (before 0.50 even
without torch's restriction to weights), and holds every array at once. Its decoder is given one array at a time, in
a record made here that can only be a numpy array, and reads that one without pickle.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from onnxq.data.paths import existing
from onnxq.data.source import Sample, Source
from onnxq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.data.feeds import Array, InputSpec

_CLASS = "polygraphy_class"  # the key under which Polygraphy's encoder names the type


def open_json(text: str, inputs: tuple[InputSpec, ...]) -> Source:
    """A Polygraphy JSON, each entry of its list one feed.

    Raises:
        DataError: there is no such file. Reading raises it for what is not such a list, or holds no numpy arrays.
    """
    path = existing(text)

    def read() -> Iterator[Sample]:
        try:
            feeds = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as err:
            hint = "Write it with polygraphy.json.save_json(list_of_feeds, path)."
            raise DataError(f"{path}: cannot be read as JSON: {err}", hint) from err
        if not isinstance(feeds, list):
            raise DataError(f"{path}: is not a list of feeds", "Save a list of dicts: input name -> array.")
        # Only the text is held: arrays are decoded one feed at a time.
        for i, feed in enumerate(feeds):
            where = f"{path}, sample {i}"
            arrays = {k: _decode(v, k, where) for k, v in feed.items()} if isinstance(feed, dict) else feed
            yield where, arrays

    return Source(text, inputs, read)


def _decode(value: object, name: str, where: str) -> Array:
    """An array as Polygraphy has it in JSON: a .npy file in base64 under "array"."""
    from polygraphy.json import from_json  # noqa: TID251  this is the wall; only this form needs it

    says = f"{where}: input {name!r}"
    payload = value.get("array") if isinstance(value, dict) and value.get(_CLASS, "ndarray") == "ndarray" else None
    if not isinstance(payload, str):
        raise DataError(f"{says} is not a numpy array", "Save numpy arrays, not torch tensors or lists.")
    try:
        return np.asarray(from_json(json.dumps({"array": payload, _CLASS: "ndarray"})))
    except Exception as err:  # base64's, numpy's, zip's and Polygraphy's errors have no common base
        # numpy's own words are left out: for any damaged text they speak of pickle, and of allowing it.
        hint = "Write it anew with polygraphy.json.save_json, from arrays of numbers."
        raise DataError(f"{says} cannot be decoded as a .npy file in base64", hint) from err
