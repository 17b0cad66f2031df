"""Window: half-open ``[start, end)`` in UTC, over a field whose values have several types in the source."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any


@dataclass(frozen=True, slots=True)
class Window:
    """``None`` means unbounded on that side. Times without a zone are UTC."""

    start: datetime | None = None
    end: datetime | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                object.__setattr__(self, name, moment.replace(tzinfo=UTC))
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(
                f"the window's start {self.start:%Y-%m-%d %H:%M} is not before its end {self.end:%Y-%m-%d %H:%M}"
            )

    @property
    def unbounded(self) -> bool:
        """Return whether every record is inside, those without a time too."""
        return self.start is None and self.end is None

    def __str__(self) -> str:
        """Return ``2025-06-01..2025-07-01``, or ``all time``."""
        if self.unbounded:
            return "all time"
        return "..".join(f"{moment:%Y-%m-%d}" if moment else "" for moment in (self.start, self.end))

    def candidates(self, field: str) -> dict[str, Any]:
        """Return a MongoDB filter for the records that may lie inside: dates, epoch seconds, milliseconds, ISO text.

        It never misses one, and takes a few too many: ``holds`` decides. Texts in another form than a date with
        dashes (digits of seconds, ``20250601T12``, a space in front) have another order and are all taken.
        """
        if self.unbounded:
            return {}
        dates: dict[str, Any] = {}
        seconds: dict[str, Any] = {}
        millis: dict[str, Any] = {}
        texts: dict[str, Any] = {}
        if self.start is not None:
            # A second more on either side, because times are rounded to milliseconds before they are compared.
            dates["$gte"] = _moved(self.start, seconds=-1)
            seconds["$gte"] = self.start.timestamp() - 1
            millis["$gte"] = self.start.timestamp() * 1000 - 1
            # A time zone in the text moves it by at most a day against the order of the letters.
            texts["$gte"] = _moved(self.start, days=-1).date().isoformat()
        if self.end is not None:
            dates["$lt"] = _moved(self.end, seconds=1)
            seconds["$lt"] = self.end.timestamp() + 1
            millis["$lt"] = self.end.timestamp() * 1000 + 1
            texts["$lt"] = _moved(self.end, days=2).date().isoformat()
        others = {"$type": "string", "$not": {"$regex": "^[0-9]{4}-[0-9]{2}-[0-9]{2}"}}
        return {"$or": [{field: bounds} for bounds in (dates, seconds, millis, texts, others)]}

    def holds(self, moment_ms: int | None) -> bool:
        """Return whether a time in epoch milliseconds lies inside. No time lies only in an unbounded window."""
        if self.unbounded:
            return True
        if moment_ms is None:
            return False
        after = self.start is None or moment_ms >= self.start.timestamp() * 1000
        return after and (self.end is None or moment_ms < self.end.timestamp() * 1000)


def _moved(moment: datetime, **by: int) -> datetime:
    """Return the moment in UTC, moved, as far as the calendar goes."""
    try:
        return moment.astimezone(UTC) + timedelta(**by)
    except OverflowError:
        return datetime(1, 1, 1, tzinfo=UTC) if min(by.values()) < 0 else datetime(9999, 12, 31, tzinfo=UTC)
