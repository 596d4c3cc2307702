"""Shares in words."""

from __future__ import annotations

import math


def percent(share: float, decimals: int = 1) -> str:
    """A share of 0 to 1 as `98.3%`, rounded down: 100.0% is said of all only."""
    whole = 10 ** (decimals + 2)
    return f"{math.floor(share * whole + 1e-9) / whole:.{decimals}%}"
