"""Newcomers: how many wallets, or visitors, were seen for the first time on each day of a scope.

A wallet is new in the period that holds the day of its first transaction with the contract or the team, and returning
in every other period that it is in. So a period's new wallets are the sum of its days' newcomers, whatever the period.
Rows without a time say nothing of first days and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date

import numpy as np

from tasks.domain.aggregates.periods import Period
from tasks.domain.aggregates.tallies import Tally, add_up

#: How many were new, by day; days without any are left out.
Newcomers = Mapping[date, int]


def count_newcomers(days: Iterable[tuple[date, Tally]]) -> dict[date, int]:
    """Return how many keys each day is the first of.

    ``days`` are all days of the scope, in any order; a day may come several times, as those of a team's chains do.
    """
    filled = sorted(((day, tally) for day, tally in days if len(tally)), key=lambda item: item[0])
    if not filled:
        return {}
    keys = np.concatenate([tally.keys for _, tally in filled])
    places = np.repeat(np.arange(len(filled)), [len(tally) for _, tally in filled])
    # The sort is stable and the days are in order, so the first of equal keys is the earliest.
    order = np.argsort(keys, kind="stable")
    keys, places = keys[order], places[order]
    firsts = places[np.concatenate(([True], keys[1:] != keys[:-1]))]
    counts = np.bincount(firsts, minlength=len(filled)).tolist()
    return add_up({day: count} for (day, _), count in zip(filled, counts, strict=True) if count)


def newcomers_in(newcomers: Newcomers, period: Period) -> int:
    """Return how many were new in the period."""
    if period.level == "all":
        return sum(newcomers.values())
    # A period has some days, a scope thousands.
    days = map(date.fromordinal, range(period.first.toordinal(), period.end.toordinal()))
    return sum(newcomers.get(day, 0) for day in days)


def changed_days(before: Newcomers, after: Newcomers) -> set[date]:
    """Return the days whose number of newcomers changed: a late row may take a newcomer from a later day."""
    return {day for day in before.keys() | after.keys() if before.get(day, 0) != after.get(day, 0)}
