"""The report: one page that works without a network, made of a `Content`.

The same content gives the same bytes. Style and script are written into the page, and its content security policy
allows nothing else to be loaded or run, so that a name in a hostile model stays a name.
"""

from __future__ import annotations

import base64
import hashlib
import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq.inventory import is_low
from onnxq.page.content import MOST_HISTOGRAMS, MOST_LAYERS, Content, Files, Known, Picture, Row, gather

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jinja2 import Environment  # noqa: TID251  this is the wall

__all__ = ["MOST_HISTOGRAMS", "MOST_LAYERS", "Content", "Files", "Known", "Picture", "Row", "gather", "render"]

LONGEST = 160
"""Characters of a name that are shown; of a longer one both ends."""

_HERE = Path(__file__).parent


def render(content: Content, version: str) -> str:
    """The page as HTML text.

    Args:
        content: what it tells.
        version: of onnxq, for the foot.
    """
    style, script = (_own(name) for name in ("page.css", "page.js"))
    text: str = (
        _environment()
        .get_template("page.html")
        .render(
            content=content,
            data=_payload(content),
            script=script,
            script_hash=_hash(script),
            style=style,
            style_hash=_hash(style),
            version=version,
        )
    )
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: TID251  this is the wall

    made = Environment(
        autoescape=True,
        loader=FileSystemLoader(_HERE, encoding="utf-8"),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters |= {"bytes": _bytes, "decibels": _decibels, "share": _share, "short": short, "tint": _tint}
    return made


@lru_cache(maxsize=2)
def _own(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# -- text ----------------------------------------------------------------------------------------------------


def short(text: str) -> str:
    """A name that fits into a table."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[: half - 1]}…{text[-half:]}"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def _decibels(value: float) -> str:
    if math.isinf(value):
        return "exact" if value > 0 else "not finite"
    return f"{value:.1f} dB"


def _tint(kind: str) -> int:
    """Number of the colour of a precision: its own for integers, weights alone, 8-bit floats, halves and the rest."""
    if is_low(kind):
        return 4 if kind.startswith("fp") else 0
    return 3 if "weight" in kind else (1 if kind in ("float16", "bfloat16") else 2)


def _share(value: float) -> str:
    """A share in per cent; 100 % is said only of all, 0 % of nothing."""
    text = f"{100 * value:.1f}"
    if text == "0.0" and value > 0:
        return "< 0.1 %"
    return "> 99.9 %" if text == "100.0" and value < 1 else f"{text.removesuffix('.0')} %"


# -- data for the script -------------------------------------------------------------------------------------


def _payload(content: Content) -> dict[str, Any]:
    """What the script draws; texts that recur are said once."""
    texts = _Texts()
    places = {picture.tensor: index for index, picture in enumerate(content.pictures)}
    return {
        "layers": [_layer(row, texts, places) for row in content.rows],
        "pictures": [_picture(picture) for picture in content.pictures],
        "texts": texts.known,
        "trades": [[_number(t.share), _number(t.sqnr_db), int(t.taken), t.time] for t in content.search.trades],
    }


class _Texts:
    """Texts by number, in the order in which they first come."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, text: str) -> int:
        if text not in self._places:
            self._places[text] = len(self.known)
            self.known.append(text)
        return self._places[text]


def _layer(row: Row, texts: _Texts, places: dict[str, int]) -> list[Any]:
    """[order, name, operator, precision, reason, MACs, picture, SQNR, cosine, max error, max value, output?]."""
    error = row.error
    head = [row.order, short(row.name), *(texts.place(short(t)) for t in (row.op_type, row.precision, row.reason))]
    numbers: list[Any] = [None] * 4
    if error is not None:
        numbers = [_number(value) for value in (error.sqnr_db, error.cosine, error.max_abs, error.amax)]
    return [*head, row.macs, places.get(row.tensor, -1), *numbers, int(error is not None and error.output)]


def _picture(picture: Picture) -> dict[str, Any]:
    drawn = picture.drawn
    return {
        "name": short(picture.tensor),
        "kind": picture.kind,
        "chosen": short(picture.chosen),
        "readers": [short(reader) for reader in picture.readers[:5]],
        "more": max(0, len(picture.readers) - 5),
        "start": _number(drawn.start),
        "width": _number(drawn.width),
        "counts": _rounded(drawn.counts),
        "zeros": _number(drawn.zeros),
        "count": drawn.count,
        "low": _number(drawn.low),
        "high": _number(drawn.high),
        "ranges": [[t.name, *map(_number, (t.low, t.high, t.clipped, t.sqnr_db))] for t in drawn.thresholds],
    }


def _rounded(counts: Iterable[int]) -> list[int]:
    """Counts to three digits: no more can be seen."""
    return [int(float(f"{count:.3g}")) for count in counts]


def _number(value: float) -> float | str:
    """A number to six digits; JSON has no infinities, so they are texts."""
    if math.isinf(value) or math.isnan(value):
        return "inf" if value > 0 else "-inf"
    return float(f"{value:.6g}")
