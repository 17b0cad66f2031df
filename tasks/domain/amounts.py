"""Amounts as the source writes them: a decimal and, sometimes, a unit.

``value_eth`` is not ETH. The forms are those of the application's importers: bare native ``0.05``, a float's
repr ``5e-7``, a token amount ``12.5 BEP20`` or ``1,234.5 ABC``, zero as ``0 ERC20``, and ``<0.0001``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Context, Decimal, InvalidOperation

from bson.decimal128 import Decimal128

from tasks.domain.errors import RecordError

#: A uint256 has 78 digits, and importers assumed 18 decimals: nothing real needs more.
EXACT = Context(prec=100)
_UINT256_MAX = Decimal(2**256 - 1)
#: No token divides its smallest unit further than a uint256 has digits; a longer fraction is damage, and would
#: be carried as a text of any length.
_MOST_DECIMALS = 78
#: From half of the largest uint256 on, whatever decimals were assumed, an amount means "without limit":
#: 2**255 / 10**18 is the smallest such figure that an importer which assumed 18 decimals can have written.
UNLIMITED_FROM = Decimal(2**255) / Decimal(10**18)

#: Markers of a token standard: they say that the amount is in a token, not in which.
TOKEN_STANDARDS = frozenset({"ERC20", "BEP20", "ERC-20", "BEP-20", "ERC721", "ERC1155"})

_AMOUNT = re.compile(r"(<)?\s*([+-]?[0-9.,]*[0-9.](?:[eE][+-]?[0-9]{1,3})?)(?:\s+(.*))?", re.DOTALL)
_GROUPED = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]*)?")
#: What follows the number when spaces group its digits: ``1 234.5 ABC``. A symbol such as ``1INCH`` doesn't fit.
_GROUPED_BY_SPACE = re.compile(r"\d{3}(?![^\W_])")


@dataclass(frozen=True, slots=True)
class Amount:
    """An exact figure; ``unit`` is what stood behind it (a symbol or a marker), ``below`` means "less than"."""

    value: Decimal
    unit: str | None = None
    below: bool = False

    @property
    def unlimited(self) -> bool:
        """Return whether the figure can only mean "without limit" (the largest uint256 or near it)."""
        return self.value >= UNLIMITED_FROM


def parse_amount(raw: object) -> Amount | None:
    """Return the amount, or None where the field is missing or empty (which is not zero).

    Raises ``RecordError`` for text without a leading number, NaN, infinity, a negative figure, and a comma or a
    space that may stand inside the number (``0,015``, ``1 234.5``): guessing there would be wrong by a factor of
    a thousand.
    """
    if raw is None:
        return None
    if isinstance(raw, str):
        text = raw.strip()
        if not text:
            return None
        match = _AMOUNT.fullmatch(text)
        if match is None:
            raise RecordError("amount_unreadable", f"value_eth {text[:60]!r} does not begin with a number")
        below, number, unit = match.group(1), match.group(2), match.group(3)
        if "," in number:
            if not _GROUPED.fullmatch(number):
                raise RecordError(
                    "amount_ambiguous",
                    f"value_eth {text[:60]!r}: the comma may be a decimal comma; write 1234.5 or 1,234.5",
                )
            number = number.replace(",", "")
        if unit and _GROUPED_BY_SPACE.match(unit):
            raise RecordError(
                "amount_ambiguous",
                f"value_eth {text[:60]!r}: the space may group the digits of the number; write 1234.5 or 1,234.5",
            )
        value = _decimal(number, text)
        return Amount(value, unit.strip() or None if unit else None, below is not None)
    if isinstance(raw, Decimal128):
        return Amount(_decimal(str(raw), str(raw)))
    if isinstance(raw, int) and not isinstance(raw, bool):
        return Amount(_decimal(str(raw), str(raw)))
    if isinstance(raw, float):
        # repr gives the shortest text that is the same double: the digits a person would have typed.
        return Amount(_decimal(repr(raw), repr(raw)))
    raise RecordError("amount_unreadable", f"value_eth is {type(raw).__name__}, not text or a number")


def _decimal(number: str, shown: str) -> Decimal:
    try:
        value = Decimal(number, EXACT)
    except InvalidOperation:
        raise RecordError("amount_unreadable", f"value_eth {shown[:60]!r} is not a number") from None
    if not value.is_finite():
        raise RecordError("amount_not_finite", f"value_eth {shown[:60]!r} is not a finite number")
    if value < 0:
        raise RecordError("amount_negative", f"value_eth {shown[:60]!r} is negative, which no transfer can be")
    if value > _UINT256_MAX:
        raise RecordError("amount_too_large", f"value_eth {shown[:60]!r} is above the largest uint256")
    if value == 0:
        return Decimal(0)  # without the sign and the exponent that a zero may carry
    places = _decimal_places(value)
    if places > _MOST_DECIMALS:
        raise RecordError(
            "amount_too_precise",
            f"value_eth {shown[:60]!r} has {places:,} decimal places; no token has more than {_MOST_DECIMALS}",
        )
    return value


def _decimal_places(value: Decimal) -> int:
    """Return how many digits stand behind the point, zeros at the end not counted where they would be too many."""
    _, digits, exponent = value.as_tuple()
    if isinstance(exponent, int) and -exponent > _MOST_DECIMALS:
        exponent = value.normalize(Context(prec=len(digits))).as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0


def plain(value: Decimal) -> str:
    """Return the figure without exponent and without trailing zeros: ``0.0000005``, ``1200``."""
    text = format(value, "f")
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"


def readable(value: Decimal) -> str:
    """Return the figure for a text that is searched: grouped, or four significant digits behind zeros.

    The exact figure lives in the vector document's facts; a text with 18 decimals costs tokens and finds nothing.
    """
    if value >= UNLIMITED_FROM:
        return "the largest possible amount of"
    if value == 0:
        return "0"
    if value >= 1000:
        return f"{value:,.0f}"
    return plain(Decimal(f"{value:.4g}"))
