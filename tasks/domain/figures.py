"""Figures as the source writes them (counts, numbers, moments, in any form that BSON and text have), and as texts show
them.

Missing (no field, null, an empty text) is never bad and gives None in silence. What can't be read gives None too, and
is named in the caller's ``warnings``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128

from tasks.domain.amounts import EXACT

_MS_PER_S = 1000
_LARGEST_SECONDS = 10_000_000_000  # the year 2286; a larger number is milliseconds
_LONGEST_EPOCH = 18  # digits; milliseconds of the year 9999 have 15
_MAX_INT64 = 2**63 - 1
#: The milliseconds that a ``datetime`` can hold: 0001-01-01 to 9999-12-31, UTC.
FIRST_MS = -62_135_596_800_000
LAST_MS = 253_402_300_799_999

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")


def warn(name: str, raw: object, warnings: list[str]) -> None:
    """Add that the field was left out, with what stood there; a list or a document shows only what it is."""
    if raw is None or isinstance(raw, str | int | float | Decimal128 | datetime | DatetimeMS):
        # A semicolon parts one warning from the next.
        warnings.append(f"{name} {str(raw)[:40].replace(';', ',')!r} left out")
    else:
        # The inside may hold what must not be repeated: the ids of users.
        warnings.append(f"{name} of type {type(raw).__name__} left out")


def read_count(raw: object, name: str, warnings: list[str], *, most: int = _MAX_INT64 - 1) -> int | None:
    """Return a whole number from 0 to ``most``, or None with a warning where the value can't be one."""
    if type(raw) is int and 0 <= raw <= most:
        return raw
    if raw is None or raw == "":
        return None
    number: int | None = None
    if isinstance(raw, str):
        text = raw.strip().lower()
        try:
            number = int(text, 16) if text.startswith("0x") else int(text)
        except ValueError:
            number = None
    elif isinstance(raw, Decimal128):
        value = raw.to_decimal()
        number = int(value) if value.is_finite() and value == value.to_integral_value(context=EXACT) else None
    elif isinstance(raw, float):
        number = int(raw) if raw.is_integer() else None
    elif isinstance(raw, int) and not isinstance(raw, bool):
        number = int(raw)
    if number is None or not 0 <= number <= most:
        warn(name, raw, warnings)
        return None
    return number


def read_number(
    raw: object, name: str, warnings: list[str], *, least: float = -math.inf, most: float = math.inf
) -> float | None:
    """Return a finite number from ``least`` to ``most``, or None with a warning where the value can't be one.

    Text counts: ``"37.20"``. A comma doesn't: nobody can tell which kind it is.
    """
    if raw is None or raw == "":
        return None
    number: float | None = None
    if isinstance(raw, str):
        text = raw.strip()
        number = float(text) if _NUMBER.fullmatch(text) else None
    elif isinstance(raw, Decimal128):
        value = raw.to_decimal()
        number = float(value) if value.is_finite() else None
    elif isinstance(raw, int | float) and not isinstance(raw, bool):
        try:
            number = float(raw)
        except OverflowError:
            number = None
    if number is None or not math.isfinite(number) or not least <= number <= most:
        warn(name, raw, warnings)
        return None
    return number + 0.0  # without the sign that a zero may carry


def read_moment_ms(raw: object) -> int | None:
    """Return epoch milliseconds (UTC) of any of the forms a time has in the source, or None if it has none of them.

    A datetime or an ISO text without a zone is UTC; numbers are seconds, or milliseconds from 10^10 on. What lies
    outside the years 1 to 9999 is None: no ``datetime`` can show it.
    """
    moment = _milliseconds(raw)
    return moment if moment is not None and FIRST_MS <= moment <= LAST_MS else None


def _milliseconds(raw: object) -> int | None:
    if isinstance(raw, datetime):
        aware = raw if raw.tzinfo else raw.replace(tzinfo=UTC)
        return round(aware.timestamp() * _MS_PER_S)
    if isinstance(raw, DatetimeMS):
        return int(raw)
    if isinstance(raw, bool):
        return None
    if isinstance(raw, Decimal128):
        value = raw.to_decimal()
        raw = float(value) if value.is_finite() else None
    if isinstance(raw, int | float):
        if isinstance(raw, float) and not math.isfinite(raw):
            return None
        return round(raw * _MS_PER_S) if abs(raw) < _LARGEST_SECONDS else round(raw)
    if isinstance(raw, str):
        text = raw.strip()
        if text.isdecimal():
            return _milliseconds(int(text)) if len(text) <= _LONGEST_EPOCH else None
        try:
            return _milliseconds(datetime.fromisoformat(text))
        except ValueError:
            return None
    return None


def read_time_ms(raw: object, name: str, warnings: list[str], *, earliest_ms: int, latest_ms: int) -> int | None:
    """Return epoch milliseconds within the bounds, or None with a warning where the value is no such time."""
    if raw is None or raw == "":
        return None
    moment = read_moment_ms(raw)
    if moment is None or not earliest_ms <= moment <= latest_ms:
        warnings.append(f"{name} is no time between {as_datetime(earliest_ms).year} and now, and is left out")
        return None
    return moment


def as_datetime(moment_ms: int) -> datetime:
    """Return the aware time (UTC) of epoch milliseconds between ``FIRST_MS`` and ``LAST_MS``, exactly."""
    return _EPOCH + timedelta(milliseconds=moment_ms)


def counted(number: int, noun: str) -> str:
    """Return ``1 page view`` or ``1,200 page views``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def rounded(number: float) -> str:
    """Return the figure for a text: grouped, two decimals at most, or three significant digits behind zeros."""
    if number and abs(number) < 0.01:
        return f"{number:.3g}"
    text = f"{number:,.2f}"
    return text.rstrip("0").rstrip(".")


def in_time_words(seconds: float) -> str:
    """Return a duration in the two units that say most: ``42 s``, ``2 min 10 s``, ``3 h 5 min``, ``12 days 4 h``."""
    whole = round(seconds)
    minutes, rest_s = divmod(whole, 60)
    hours, rest_min = divmod(minutes, 60)
    days, rest_h = divmod(hours, 24)
    if days:
        parts = (counted(days, "day"), f"{rest_h} h" if rest_h else "")
    elif hours:
        parts = (f"{hours} h", f"{rest_min} min" if rest_min else "")
    elif minutes:
        parts = (f"{minutes} min", f"{rest_s} s" if rest_s else "")
    else:
        parts = (f"{whole} s", "")
    return " ".join(filter(None, parts))


def confidence_of(warnings: Sequence[str]) -> float:
    """Return 0.5 to 1: every warning takes a tenth."""
    return round(max(0.5, 1.0 - 0.1 * len(warnings)), 2)
