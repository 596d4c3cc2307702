"""Laurent polynomials: sums of products of powers, the powers negative too. What a pattern's formula is written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

Monomial = tuple[tuple[str, int], ...]  # (symbol, exponent != 0), sorted by symbol

TOLERANCE = 5e-3
"""Relative difference allowed in a coefficient: bfloat16 rounds a constant by up to 2**-9, and two may multiply."""


@dataclass(frozen=True)
class Polynomial:
    """sum of coefficient * product of symbol ** exponent; exponents may be negative, zero coefficients are absent."""

    terms: Mapping[Monomial, float]

    @classmethod
    def of(cls, term: str | float) -> Polynomial:
        """The symbol of that name, or the constant."""
        return cls({((term, 1),): 1.0}) if isinstance(term, str) else cls({(): float(term)} if term else {})

    @property
    def constant(self) -> float | None:
        """The number it is when no symbol occurs, else None."""
        return self.terms.get((), 0.0) if set(self.terms) <= {()} else None

    def __add__(self, other: Polynomial | float) -> Polynomial:
        total = dict(self.terms)
        for monomial, factor in _lift(other).terms.items():
            total[monomial] = total.get(monomial, 0.0) + factor
        return Polynomial({m: c for m, c in total.items() if c})

    def __mul__(self, other: Polynomial | float) -> Polynomial:
        total: dict[Monomial, float] = {}
        for left, a in self.terms.items():
            for right, b in _lift(other).terms.items():
                exponents = dict(left)
                for symbol, exponent in right:
                    exponents[symbol] = exponents.get(symbol, 0) + exponent
                monomial = tuple(sorted((s, e) for s, e in exponents.items() if e))
                total[monomial] = total.get(monomial, 0.0) + a * b
        return Polynomial({m: c for m, c in total.items() if c})

    __radd__ = __add__
    __rmul__ = __mul__

    def __sub__(self, other: Polynomial | float) -> Polynomial:
        return self + _lift(other) * -1.0

    def __pow__(self, exponent: int) -> Polynomial:
        result = Polynomial.of(1.0)
        for _ in range(exponent):
            result = result * self
        return result

    def inverse(self) -> Polynomial | None:
        """1 / self when self has exactly one term, else None: no Laurent polynomial."""
        if len(self.terms) != 1:
            return None
        ((monomial, factor),) = self.terms.items()
        return Polynomial({tuple((s, -e) for s, e in monomial): 1.0 / factor})

    @property
    def degree(self) -> int:
        """The largest exponent, by magnitude."""
        return max((abs(e) for monomial in self.terms for _, e in monomial), default=0)

    def close_to(self, other: Polynomial) -> bool:
        """Whether both have the same terms with coefficients equal up to TOLERANCE."""
        return self.terms.keys() == other.terms.keys() and all(
            abs(c - other.terms[m]) <= TOLERANCE * abs(other.terms[m]) for m, c in self.terms.items()
        )


def _lift(value: Polynomial | float) -> Polynomial:
    return value if isinstance(value, Polynomial) else Polynomial.of(value)
