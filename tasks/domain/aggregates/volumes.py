"""Volume: what moved in one unit, to the last digit. Two units are never added, and what is unknown is never a zero.

Four kinds of amount stay out of the total and are counted: those that say "less than" (``below``), those that can only
mean "without limit" (``unlimited``), and those of transactions that failed or are pending (``not_moved``: a reverted
call moves nothing). Zeros are in the total, and counted too: most calls of a contract send none of the chain's coin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow
from typing import Any

from tasks.domain.amounts import plain

#: A sum may need the digits of a uint256 before the point and as many behind it, and some for the number of rows.
#: Should one ever need more, it stops the run: a rounded total looks like an exact one.
SUMS = Context(prec=400, traps=[Inexact, InvalidOperation, Overflow, DivisionByZero])
_ZERO, _TENTH, _ONE, _TEN = Decimal(0), Decimal("0.1"), Decimal(1), Decimal(10)


@dataclass(slots=True)
class Volume:
    """``amounts`` were added to ``total``, ``zeros`` of them are 0, and ``largest`` is the largest of them.

    ``bands`` count the amounts that CQ Intelligence shows apart: below 0.1, from 0.1 to below 1, from 1 to 10, and
    above 10. Zeros are in none; an amount "less than 0.0001" is in the first, because it is known to lie there.
    """

    total: Decimal = _ZERO
    amounts: int = 0
    zeros: int = 0
    below: int = 0
    unlimited: int = 0
    not_moved: int = 0
    largest: Decimal | None = None
    bands: list[int] = field(default_factory=lambda: [0, 0, 0, 0])

    def add(self, value: Decimal, *, below: bool, unlimited: bool, moved: bool) -> None:
        """Add one amount."""
        if not moved:
            self.not_moved += 1
        elif unlimited:
            self.unlimited += 1
        elif below:
            self.below += 1
            if value <= _TENTH:
                self.bands[0] += 1
        else:
            self.amounts += 1
            if not value:
                self.zeros += 1
            else:
                self.total = SUMS.add(self.total, value)
                self.bands[0 if value < _TENTH else 1 if value < _ONE else 2 if value <= _TEN else 3] += 1
            if self.largest is None or value > self.largest:
                self.largest = value

    @classmethod
    def merged(cls, volumes: Iterable[Volume]) -> Volume:
        """Return what all of them hold; it shares nothing with them."""
        whole = cls()
        for part in volumes:
            whole.total = SUMS.add(whole.total, part.total)
            whole.amounts += part.amounts
            whole.zeros += part.zeros
            whole.below += part.below
            whole.unlimited += part.unlimited
            whole.not_moved += part.not_moved
            if part.largest is not None and (whole.largest is None or part.largest > whole.largest):
                whole.largest = part.largest
            whole.bands = [mine + other for mine, other in zip(whole.bands, part.bands, strict=True)]
        return whole

    def stored(self) -> dict[str, Any]:
        """Return it as BSON values; decimals are text, because Decimal128 has 34 digits."""
        return {
            "total": plain(self.total),
            "amounts": self.amounts,
            "zeros": self.zeros,
            "below": self.below,
            "unlimited": self.unlimited,
            "notMoved": self.not_moved,
            "largest": None if self.largest is None else plain(self.largest),
            "bands": list(self.bands),
        }

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Volume:
        """Return the volume of what ``stored`` gave."""
        return cls(
            Decimal(stored["total"]),
            stored["amounts"],
            stored["zeros"],
            stored["below"],
            stored["unlimited"],
            stored["notMoved"],
            None if stored["largest"] is None else Decimal(stored["largest"]),
            list(stored["bands"]),
        )


def merge_volumes(parts: Iterable[Mapping[str, Volume]]) -> dict[str, Volume]:
    """Return the volumes of all parts, unit by unit."""
    by_unit: dict[str, list[Volume]] = {}
    for part in parts:
        for unit, volume in part.items():
            by_unit.setdefault(unit, []).append(volume)
    return {unit: Volume.merged(volumes) for unit, volumes in by_unit.items()}
