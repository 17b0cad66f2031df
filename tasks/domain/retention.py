"""Retention: which backups have served their time, found without a clock of our own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from tasks.domain.backups import BackupClass, StoredBackup, began_at

Rotated = Literal["daily", "weekly", "monthly"]
ROTATED: tuple[Rotated, ...] = ("daily", "weekly", "monthly")
#: One that proved bad stays so long beside a good one that is newer: somebody may want to look at it.
BAD_KEPT = timedelta(days=7)
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Retention:
    """How much is kept: the newest ``daily`` and ``monthly`` ones by their number, weekly ones by their age in days."""

    daily: int = 7
    weekly_days: int = 30
    monthly: int = 12

    def __post_init__(self) -> None:
        if min(self.daily, self.weekly_days, self.monthly) < 1:
            raise ValueError("of each class one is kept at least")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a backup is kept, and why, in words."""

    id: str
    keep: bool
    why: str


def choose(stored: Sequence[StoredBackup], retention: Retention) -> list[Verdict]:
    """Return a verdict on each backup, in the order given.

    Only good ones count, each class for itself: what is in one never makes one of another go, and one of several
    classes goes when all of them let it go. Ages are measured from the newest good one of the class. Two clocks say
    how old a backup is, the database's (``taken``) and that of whoever made it (its name); a backup goes only if it
    has served its time by both, so one clock that is wrong costs nothing, and the newest good one of a class by
    either always stays. Manual ones are never let go. What proved bad goes when a good one has been newer for a
    week; what has no manifest yet is not rotation's.
    """
    good = {name: [one for one in stored if one.state == "good" and name in _classes(one)] for name in ROTATED}
    return [_judge(one, stored, good, retention) for one in stored]


def classes_for(
    kind: Literal["daily", "weekly", "manual"], taken: datetime, stored: Sequence[StoredBackup]
) -> tuple[BackupClass, ...]:
    """Return the classes of a backup that is being made: its kind, and monthly if its month has no good one yet."""
    if kind == "manual":
        return (kind,)
    month = _month(taken)
    has_one = any(one.state == "good" and "monthly" in _classes(one) and _month(_taken(one)) == month for one in stored)
    return (kind,) if has_one else (kind, "monthly")


def _judge(
    one: StoredBackup,
    stored: Sequence[StoredBackup],
    good: dict[Rotated, list[StoredBackup]],
    retention: Retention,
) -> Verdict:
    if one.state == "unfinished":
        return Verdict(one.id, True, "unfinished: no backup yet, and not rotation's to remove")
    if one.manifest is None:
        return Verdict(one.id, True, "its manifest can't be read, so its class is not known: a person decides")
    if "manual" in one.manifest.classes:
        return Verdict(one.id, True, "made by hand: a person decides")
    if one.state != "good":
        return _judge_bad(one, stored)
    kept = [why for name in _classes(one) if (why := _kept_as(name, one, good[name], retention))]
    if kept:
        return Verdict(one.id, True, "; ".join(kept))
    return Verdict(one.id, False, f"has served its time as {' and '.join(_classes(one))}")


def _kept_as(name: Rotated, one: StoredBackup, members: Sequence[StoredBackup], retention: Retention) -> str:
    """Return why a class keeps one of its members, or nothing if it lets it go."""
    place = min(_newer(one, members, clock) for clock in _CLOCKS) + 1
    if place == 1:
        return f"the newest {name} one"
    if name == "weekly":
        age = min(max(clock(other) for other in members) - clock(one) for clock in _CLOCKS)
        if age <= timedelta(days=retention.weekly_days):
            return f"weekly, {age.days} of {retention.weekly_days} days older than the newest"
        return ""
    count = retention.daily if name == "daily" else retention.monthly
    return f"{name}, {place} of {count}" if place <= count else ""


def _judge_bad(one: StoredBackup, stored: Sequence[StoredBackup]) -> Verdict:
    good = [other for other in stored if other.state == "good"]
    ages = [min(clock(other) - clock(one) for clock in _CLOCKS) for other in good]
    longest = max(ages, default=timedelta())
    if longest <= timedelta():
        return Verdict(one.id, True, f"{one.state}: stays until a newer one is good")
    if longest < BAD_KEPT:
        return Verdict(one.id, True, f"{one.state}: stays to be looked at, {longest.days} of {BAD_KEPT.days} days")
    return Verdict(one.id, False, f"{one.state}, and a good one is {longest.days} days newer")


# -- clocks -----------------------------------------------------------------------------------------------------


def _taken(one: StoredBackup) -> datetime:
    assert one.manifest is not None
    return one.manifest.taken


def _began(one: StoredBackup) -> datetime:
    return began_at(one.id) or _LONG_AGO


_CLOCKS: tuple[Callable[[StoredBackup], datetime], ...] = (_taken, _began)


def _newer(one: StoredBackup, members: Sequence[StoredBackup], clock: Callable[[StoredBackup], datetime]) -> int:
    """Return how many are newer by a clock; of those of one time the name decides."""
    return sum((clock(other), other.id) > (clock(one), one.id) for other in members)


def _classes(one: StoredBackup) -> tuple[Rotated, ...]:
    classes = () if one.manifest is None else one.manifest.classes
    return tuple(name for name in ROTATED if name in classes)


def _month(moment: datetime) -> tuple[int, int]:
    at = moment.astimezone(UTC)
    return at.year, at.month
