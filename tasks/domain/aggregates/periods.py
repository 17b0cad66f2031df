"""Period: a day, an ISO week, a month or all time, as people in a time zone count them; its window is half-open in UTC.

A day is a date on the wall calendar of the zone. Where clocks change it has 23 or 25 hours (or 23.5, or 24.5), and
where they change at midnight it begins at 01:00: only the window says when it really began and ended.
"""

from __future__ import annotations

import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tasks.domain.errors import InputError

Level = Literal["day", "week", "month", "all"]
LEVELS: tuple[Level, ...] = get_args(Level)
#: ``metadata.aggregationLevel`` of a level; all time has none.
AGGREGATION_LEVELS: dict[Level, str] = {"day": "daily", "week": "weekly", "month": "monthly"}

#: Spelt out, because strftime follows the machine's language.
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_DAY = timedelta(days=1)
_WEEK = timedelta(days=7)
_LABEL = re.compile(r"(\d{4})-(?:W(\d{2})|(\d{2})(?:-(\d{2}))?)", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Period:
    """``first`` is the period's first day; that of all time is 1 January of the year 1. ``Period.of`` makes them."""

    level: Level
    first: date

    @classmethod
    def of(cls, level: Level, day: date) -> Period:
        """Return the period of that level that holds the day. Weeks are ISO weeks: they begin on Monday."""
        if level == "week":
            return cls(level, day - timedelta(days=day.weekday()))
        if level == "month":
            return cls(level, day.replace(day=1))
        return cls(level, date.min if level == "all" else day)

    @classmethod
    def from_label(cls, label: str) -> Period:
        """Return the period that ``label`` names. Raises ``InputError`` for text that names none."""
        if label == ALL_TIME.label:
            return ALL_TIME
        match = _LABEL.fullmatch(label)
        try:
            if match is not None and match[2]:
                return cls("week", date.fromisocalendar(int(match[1]), int(match[2]), 1))
            if match is not None:
                return cls("day" if match[4] else "month", date(int(match[1]), int(match[3]), int(match[4] or 1)))
        except ValueError:
            pass
        raise InputError(f"{label[:40]!r} is no period: write 2025-06-03, 2025-W23, 2025-06 or all")

    @property
    def label(self) -> str:
        """Return ``2025-06-03``, ``2025-W23``, ``2025-06`` or ``all``: no two periods share one."""
        if self.level == "week":
            year, week, _ = self.first.isocalendar()
            return f"{year:04}-W{week:02}"
        if self.level == "month":
            return f"{self.first.year:04}-{self.first.month:02}"
        return self.first.isoformat() if self.level == "day" else "all"

    @property
    def end(self) -> date:
        """Return the first day after it; of all time the last day that the calendar has."""
        if self.level == "month":
            return self.first + timedelta(days=monthrange(self.first.year, self.first.month)[1])
        if self.level == "all":
            return date.max
        return self.first + (_WEEK if self.level == "week" else _DAY)

    @property
    def words(self) -> str:
        """Return what people call it: ``3 June 2025``, ``week 23 of 2025 (2 to 8 June)``, ``June 2025``."""
        if self.level == "week":
            year, week, _ = self.first.isocalendar()
            last = self.first + 6 * _DAY
            since = "" if last.month == self.first.month else f" {MONTHS[self.first.month - 1]}"
            return f"week {week} of {year} ({self.first.day}{since} to {last.day} {MONTHS[last.month - 1]})"
        if self.level == "month":
            return f"{MONTHS[self.first.month - 1]} {self.first.year}"
        if self.level == "all":
            return "all time"
        return f"{self.first.day} {MONTHS[self.first.month - 1]} {self.first.year}"

    def previous(self) -> Period | None:
        """Return the period of the same level before it; all time has none."""
        return None if self.level == "all" else Period.of(self.level, self.first - _DAY)

    def next(self) -> Period | None:
        """Return the period of the same level after it; all time has none."""
        return None if self.level == "all" else Period.of(self.level, self.end)

    def holds(self, day: date) -> bool:
        """Return whether the day lies inside."""
        return self.first <= day < self.end or self.level == "all"


ALL_TIME = Period("all", date.min)


class Calendar:
    """Days and hours in one IANA time zone. Raises ``InputError`` for a name that the zone database doesn't have."""

    def __init__(self, zone: str = "UTC") -> None:
        try:
            self._zone = ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise InputError(f"{zone[:60]!r} is no time zone: write an IANA name such as Europe/Berlin") from None
        self.zone = zone

    def place(self, moment_ms: int) -> tuple[date, int]:
        """Return the day and the hour of the day (0 to 23) that the clocks show; an hour may occur twice a day."""
        local = datetime.fromtimestamp(moment_ms // 1000, self._zone)
        return local.date(), local.hour

    def window(self, first: date, end: date) -> tuple[datetime, datetime]:
        """Return the moments, in UTC, at which ``first`` and ``end`` begin: what lies between is ``[start, end)``."""
        return self._beginning(first), self._beginning(end)

    def _beginning(self, day: date) -> datetime:
        # With fold 0 a midnight that the clocks jump over is the moment of the jump, one that comes twice the first.
        return datetime(day.year, day.month, day.day, tzinfo=self._zone).astimezone(UTC)
