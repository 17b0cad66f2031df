"""Walking through a scope's days once, in their order, with as few of them in memory as its periods need."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import date
from typing import Any

from tasks.domain.aggregates.periods import ALL_TIME, Period

Part = tuple[Period | None, Any]


def walk(
    days: Iterable[tuple[date | None, Any]], wanted: Collection[Period], kind: Any
) -> Iterator[tuple[Period, Sequence[Part]]]:
    """Yield each wanted period with the days of it and of the period before, among others: all time with its months.

    ``days`` come in order, those of several scopes between each other; None, for rows without a time, at the end. The
    parts are those that are in memory: look at them before the next period is asked for.
    """
    queue = sorted(
        (period for period in wanted if period.level != "all"), key=lambda period: (period.end, period.first)
    )
    needed_from = [date.max] * (len(queue) + 1)
    for number in range(len(queue) - 1, -1, -1):
        previous = queue[number].previous()
        assert previous is not None
        needed_from[number] = min(previous.first, needed_from[number + 1])
    held: list[Part] = []
    months: list[Part] = []
    month: list[Any] = []
    in_month: Period | None = None
    wants_all = ALL_TIME in wanted
    at = 0
    for day, figures in days:
        if day is None:
            months.append((None, figures))
            continue
        while at < len(queue) and queue[at].end <= day:
            yield queue[at], held
            at += 1
            if held and held[0][0].first < needed_from[at]:  # type: ignore[union-attr]
                held = [part for part in held if part[0] is not None and part[0].first >= needed_from[at]]
        if day >= needed_from[at]:
            held.append((Period.of("day", day), figures))
        if wants_all:
            this = Period.of("month", day)
            if month and this != in_month:
                months.append((in_month, kind.merged(month)))
                month = []
            in_month = this
            month.append(figures)
    for period in queue[at:]:
        yield period, held
    if wants_all:
        yield ALL_TIME, [(in_month, kind.merged(month)), *months] if month else months
