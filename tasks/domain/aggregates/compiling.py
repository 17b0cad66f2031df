"""Aggregate: the figures of one period of one subject, put together from partial figures, with the period before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from tasks.domain.aggregates.newcomers import Newcomers, newcomers_in
from tasks.domain.aggregates.periods import Calendar, Period
from tasks.domain.aggregates.subjects import Subject
from tasks.domain.aggregates.transactions import TransactionFigures
from tasks.domain.aggregates.visits import VisitFigures

F = TypeVar("F", TransactionFigures, VisitFigures)


@dataclass(frozen=True, slots=True)
class Aggregate(Generic[F]):
    """``before`` is None where the period before has no rows. ``series`` counts transactions or sessions by day, and by
    month for all time.

    ``window`` is half-open, in UTC; that of all time reaches from the first day with rows to the last one, and is None
    where no row has a time. ``complete`` says that the window had ended when the run began; all time never does.
    """

    subject: Subject
    period: Period
    calendar: Calendar
    figures: F
    before: F | None
    newcomers: Newcomers
    series: tuple[tuple[Period, int], ...]
    window: tuple[datetime, datetime] | None
    complete: bool | None

    @property
    def new_now(self) -> int:
        """Return how many wallets or visitors were new in the period."""
        return newcomers_in(self.newcomers, self.period)

    @property
    def new_before(self) -> int:
        """Return how many were new in the period before."""
        before = self.period.previous()
        return 0 if before is None else newcomers_in(self.newcomers, before)


def put_together(
    subject: Subject,
    period: Period,
    calendar: Calendar,
    parts: Iterable[tuple[Period | None, F]],
    newcomers: Newcomers,
    *,
    kind: type[F],
    now_ms: int,
) -> Aggregate[F] | None:
    """Return the aggregate of a period, or None where the period has no rows: its document must go.

    ``parts`` are days that cover the period and the one before it (for all time months will do); others are left out.
    None as a part's period means rows without a time, which only all time takes. Several parts may be of one period, as
    a team's chains are. Raises ``ValueError`` for a part that lies in the period and beyond it.
    """
    mine: list[F] = []
    earlier: list[F] = []
    series: dict[Period, int] = {}
    previous = period.previous()
    for part, figures in parts:
        if part is None:
            if period.level == "all":
                mine.append(figures)
        elif _inside(part, period):
            mine.append(figures)
            shown = Period.of("month", part.first) if period.level == "all" else part
            series[shown] = series.get(shown, 0) + _count(figures)
        elif previous is not None and _inside(part, previous):
            earlier.append(figures)
    whole = kind.merged(mine)
    if not whole.rows:
        return None
    before = kind.merged(earlier)
    window = _window(period, calendar, whole)
    return Aggregate(
        subject,
        period,
        calendar,
        whole,
        before if before.rows else None,
        newcomers,
        () if period in series else tuple(sorted(series.items())),
        window,
        None if period.level == "all" or window is None else window[1].timestamp() * 1000 <= now_ms,
    )


def _inside(part: Period, period: Period) -> bool:
    if not period.holds(part.first):
        if part.first < period.first < part.end:
            raise ValueError(f"{part.label} lies in {period.label} and before it")
        return False
    if part.end > period.end:
        raise ValueError(f"{part.label} lies in {period.label} and after it")
    return True


def _count(figures: TransactionFigures | VisitFigures) -> int:
    return figures.transactions if isinstance(figures, TransactionFigures) else figures.sessions


def _window(
    period: Period, calendar: Calendar, figures: TransactionFigures | VisitFigures
) -> tuple[datetime, datetime] | None:
    if period.level != "all":
        return calendar.window(period.first, period.end)
    if figures.oldest_ms is None or figures.newest_ms is None:
        return None
    last = Period.of("day", calendar.place(figures.newest_ms)[0])
    return calendar.window(calendar.place(figures.oldest_ms)[0], last.end)
