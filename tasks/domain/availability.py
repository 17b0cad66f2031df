"""Availability: what looks saw over a span of time, cut into stretches, days and outages.

What a look saw holds until the next one, but no longer than a look covers; the rest is time in which nobody looked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from tasks.domain.alerts import Looks


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of time, in seconds since 1970, in which all vital parts answered or one ``failed``."""

    began_s: float
    ended_s: float
    failed: bool

    @property
    def seconds(self) -> float:
        """Return how long it was."""
        return self.ended_s - self.began_s


def find_stretches(looks: Iterable[tuple[float, int]], *, until: datetime, covers_s: float) -> list[Stretch]:
    """Return what was seen until a moment. ``looks`` are moments in order, and whether a vital part failed then.

    Looks that follow on each other and saw the same make one stretch.
    """
    found: list[Stretch] = []
    seen = list(looks)
    ends = [*(at for at, _ in seen[1:]), until.timestamp()]
    for (at, failed), after in zip(seen, ends, strict=False):  # without any look there is an end too many
        end = min(max(after, at), at + covers_s)
        last = found[-1] if found else None
        if last is not None and last.failed == bool(failed) and last.ended_s == at:
            found[-1] = replace(last, ended_s=end)
        else:
            found.append(Stretch(at, end, bool(failed)))
    return found


def count_looks(stretches: Sequence[Stretch], since: datetime, until: datetime) -> Looks:
    """Return ``[since, until)`` by what was seen in it."""
    begins, ends = since.timestamp(), until.timestamp()
    good = bad = 0.0
    for one in stretches:
        held = max(0.0, min(one.ended_s, ends) - max(one.began_s, begins))
        good, bad = (good, bad + held) if one.failed else (good + held, bad)
    return Looks(good, bad, max(0.0, ends - begins - good - bad))


def find_outages(stretches: Sequence[Stretch]) -> list[tuple[datetime, datetime]]:
    """Return when a vital part failed, from when to when, the newest first."""
    return [
        (datetime.fromtimestamp(one.began_s, UTC), datetime.fromtimestamp(one.ended_s, UTC))
        for one in reversed(stretches)
        if one.failed
    ]
