"""What a search for a budget found, read from the plan's plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MOST_GROUPS = 200


@dataclass(frozen=True)
class Trade:
    """A point of the Pareto list.

    Attributes:
        share: of the multiply-accumulates quantized, 0 to 1.
        sqnr_db: SQNR with it.
        taken: whether it is what was taken.
        time: what is known of its time, measured or predicted, in words; empty where nothing is.
    """

    share: float
    sqnr_db: float
    taken: bool = False
    time: str = ""


@dataclass(frozen=True)
class Cost:
    """What a group of layers costs when it alone is quantized.

    Attributes:
        name: its first layer.
        layers: how many there are.
        share: of the multiply-accumulates, 0 to 1.
        output_db: SQNR of the model's outputs; inf when equal.
        own_db: SQNR of what the layers make; None where it was not measured.
        together: how many groups it was measured with; unless that is 1, `output_db` is an estimate.
    """

    name: str
    layers: int
    share: float
    output_db: float
    own_db: float | None
    together: int = 1


@dataclass(frozen=True)
class Search:
    """The goals, each a sentence; the Pareto list, least quantized first; what each group costs, worst first."""

    goals: tuple[str, ...] = ()
    trades: tuple[Trade, ...] = ()
    costs: tuple[Cost, ...] = ()


def search_of(plan: Mapping[str, Any]) -> Search:
    """What the plan says of it: nothing where there was no budget. What it does not say in these words is left out."""
    budget = plan.get("budget")
    if not isinstance(budget, dict):
        return Search()
    taken = _number(budget.get("mac_share_int8"))
    points = ((_number(t.get("mac_share")), _number(t.get("sqnr_db")), _time(t)) for t in _tables(budget, "pareto"))
    trades = [Trade(share, db, share == taken, t) for share, db, t in points if share is not None and db is not None]
    return Search(
        tuple(_goal(goal, budget.get("held_back_samples")) for goal in _tables(budget, "goals")),
        tuple(sorted(trades, key=lambda trade: (trade.share, trade.sqnr_db))),
        tuple(_costs(budget.get("sensitivity")))[:MOST_GROUPS],
    )


def _time(tried: Mapping[str, Any]) -> str:
    ratio, low, high = (_number(_table(tried, "latency").get(key)) for key in ("ratio", "low", "high"))
    if ratio is not None and low is not None and high is not None:
        return f"measured: {ratio:.3f} of the float model's (quartiles {low:.2f} to {high:.2f})"
    guess = _table(tried, "predicted")
    ratio = _number(guess.get("ratio"))
    return "" if ratio is None else f"predicted: {ratio:.2f} of the float16 model's on an {guess.get('gpu')}"


def _goal(goal: Mapping[str, Any], samples: object) -> str:
    value, bound = _number(goal.get("value")), _number(goal.get("bound"))
    said = "" if value is None else f" {value:.4g} {goal.get('unit', '')}".rstrip()
    said += "" if bound is None or bound == value else f" (99 % sure: {bound:.4g})"
    holds = "holds" if goal.get("met") else "DOES NOT HOLD"
    return f"{goal.get('goal', '')}: {holds},{said} on {samples} held-back samples"


def _costs(sensitivity: object) -> Iterator[Cost]:
    for group in _tables(sensitivity, "groups"):
        share, nodes = _number(group.get("share")), group.get("nodes")
        if share is not None:
            output_db = _number(group.get("output_db"))
            layers = len(nodes) if isinstance(nodes, list) else 1
            exact = math.inf if output_db is None else output_db  # JSON has no infinities
            together = int(_number(group.get("together")) or 1)
            yield Cost(str(group.get("name", "")), layers, share, exact, _number(group.get("own_db")), together)


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = table.get(key)
    return found if isinstance(found, dict) else {}


def _tables(table: object, key: str) -> Iterator[dict[str, Any]]:
    found = table.get(key) if isinstance(table, dict) else None
    yield from (item for item in (found if isinstance(found, list) else ()) if isinstance(item, dict))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
