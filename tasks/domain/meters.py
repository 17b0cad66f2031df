"""Meter: what requests did, minute by minute: how many, how long, how many failed and of what.

A process counts into its own meter and writes the minutes down now and then; the minutes of all processes add up. Of
durations a histogram is kept, so that a quantile over any window and any number of processes can be told.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from math import inf
from typing import Any, Literal

#: A request to the embedder, a search, or a request to the HTTP service.
Kind = Literal["embed", "search", "http"]

#: Upper bounds in seconds of the histogram of durations. The limits that alerts go by are among them.
BUCKETS_S: tuple[float, ...] = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
    *(2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, inf),
)


@dataclass(frozen=True, slots=True)
class Measure:
    """What the requests of one kind did in one minute; also the sum of many minutes.

    ``minute`` is its beginning, UTC. ``seconds`` is the sum of durations, ``buckets`` their histogram by ``BUCKETS_S``.
    ``errors`` counts failures by code, ``throttled`` the failures that were refusals of too many requests. ``texts``
    and ``tokens`` were embedded and paid with ``usd``; ``reused`` texts had a vector already. ``results`` were found by
    searches, with the best scores adding up to ``scores`` over ``scored`` searches; ``cached`` of them asked what had
    been asked before. ``ratings`` is the sum of what users gave to ``rated`` answers, 1 to 5 each.
    """

    minute: datetime
    kind: Kind
    calls: int = 0
    failed: int = 0
    seconds: float = 0.0
    buckets: tuple[int, ...] = (0,) * len(BUCKETS_S)
    errors: Mapping[str, int] = field(default_factory=dict)
    throttled: int = 0
    texts: int = 0
    tokens: int = 0
    usd: float = 0.0
    reused: int = 0
    results: int = 0
    scores: float = 0.0
    scored: int = 0
    cached: int = 0
    ratings: int = 0
    rated: int = 0

    def __add__(self, other: Measure) -> Measure:
        """Return both together, from the earlier minute on."""
        errors = dict(self.errors)
        for code, number in other.errors.items():
            errors[code] = errors.get(code, 0) + number
        sums = {
            item.name: getattr(self, item.name) + getattr(other, item.name)
            for item in fields(self)
            if item.name not in ("minute", "kind", "buckets", "errors")
        }
        buckets = tuple(mine + theirs for mine, theirs in zip(self.buckets, other.buckets, strict=True))
        return replace(self, minute=min(self.minute, other.minute), buckets=buckets, errors=errors, **sums)

    @property
    def error_rate(self) -> float | None:
        """Return the share of calls that failed, 0 to 1; None where there was no call."""
        return self.failed / self.calls if self.calls else None

    def quantile_s(self, share: float) -> float | None:
        """Return a duration that this share of the calls did not exceed, as finely as the histogram tells.

        Within a bucket durations are taken to lie evenly. What lies beyond the last bound is told as that bound. None
        where there was no call.
        """
        total = sum(self.buckets)
        if not total:
            return None
        wanted, below, seen = share * total, 0.0, 0
        for bound, number in zip(BUCKETS_S, self.buckets, strict=True):
            if number and seen + number >= wanted:
                return below if bound == inf else below + (bound - below) * max(0.0, wanted - seen) / number
            seen += number
            below = bound
        return below


def merged(measures: Iterable[Measure], kind: Kind) -> Measure | None:
    """Return all measures of a kind as one, or None where there is none."""
    found: Measure | None = None
    for measure in measures:
        if measure.kind == kind:
            found = measure if found is None else found + measure
    return found


def measure_row(key: str, measure: Measure, *, now: datetime) -> dict[str, Any]:
    """Return a measure as plain values. Errors are pairs, because a name in MongoDB should hold no dot."""
    values = {item.name: getattr(measure, item.name) for item in fields(measure)}
    return {
        **values,
        "_id": key,
        "buckets": list(measure.buckets),
        "errors": [[code, number] for code, number in measure.errors.items()],
        "createdAt": now,
    }


def read_measure(row: Mapping[str, Any]) -> Measure:
    """Return the measure that ``measure_row`` was called on."""
    values = {item.name: row[item.name] for item in fields(Measure) if item.name in row}
    return Measure(**{**values, "buckets": tuple(row["buckets"]), "errors": dict(row["errors"])})


class Meter:
    """Counts what this process does. Safe to call from any thread."""

    def __init__(self) -> None:
        self._minutes: dict[tuple[datetime, Kind], Measure] = {}
        self._lock = threading.Lock()

    def count(
        self,
        kind: Kind,
        *,
        at: datetime,
        seconds: float,
        error: str | None = None,
        throttled: bool = False,
        texts: int = 0,
        tokens: int = 0,
        usd: float = 0.0,
        reused: int = 0,
        results: int = 0,
        score: float | None = None,
        cached: bool = False,
    ) -> None:
        """Count one call that ended ``at`` and took so long; ``error`` is the code of its failure."""
        bucket = bisect_left(BUCKETS_S, seconds)
        one = Measure(
            minute=at.astimezone(UTC).replace(second=0, microsecond=0),
            kind=kind,
            calls=1,
            failed=int(error is not None),
            seconds=seconds,
            buckets=tuple(int(place == bucket) for place in range(len(BUCKETS_S))),
            errors={} if error is None else {error: 1},
            throttled=int(throttled),
            texts=texts,
            tokens=tokens,
            usd=usd,
            reused=reused,
            results=results,
            scores=score or 0.0,
            scored=int(score is not None),
            cached=int(cached),
        )
        self.give_back([one])

    def add(
        self, kind: Kind, *, at: datetime, texts: int = 0, tokens: int = 0, usd: float = 0.0, reused: int = 0
    ) -> None:
        """Add what belongs to no one call: what a batch job brought, and texts that needed no call."""
        minute = at.astimezone(UTC).replace(second=0, microsecond=0)
        self.give_back([Measure(minute, kind, texts=texts, tokens=tokens, usd=usd, reused=reused)])

    def rate(self, rating: int, *, at: datetime) -> None:
        """Add what a user gave to an answer, 1 to 5."""
        minute = at.astimezone(UTC).replace(second=0, microsecond=0)
        self.give_back([Measure(minute, "search", ratings=rating, rated=1)])

    def take(self) -> list[Measure]:
        """Return what was counted, the oldest first, and forget it here."""
        with self._lock:
            taken, self._minutes = self._minutes, {}
        return sorted(taken.values(), key=lambda measure: (measure.minute, measure.kind))

    def give_back(self, measures: Iterable[Measure]) -> None:
        """Count these too: what could not be written down, to be taken again."""
        with self._lock:
            for measure in measures:
                key = (measure.minute, measure.kind)
                before = self._minutes.get(key)
                self._minutes[key] = measure if before is None else before + measure
