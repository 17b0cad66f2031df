"""Stats: what runs and requests of a span of time come to, as the application's ``embeddingstats`` has it.

Sums add up, so a week and a month are the sums of their days, to the token; every average is made from sums, never from
averages. What nobody measured is left out of a row: a zero would say that there was none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from bson import ObjectId

from tasks.domain.meters import Measure
from tasks.domain.probes import Reading

Period = Literal["hourly", "daily", "weekly", "monthly"]
PERIODS: tuple[Period, ...] = ("hourly", "daily", "weekly", "monthly")
_MS = 1_000
_NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Bucket:
    """A half-open span ``[start, end)`` in UTC: an hour, a day, a week from Monday, or a month."""

    period: Period
    start: datetime
    end: datetime


def bucket_of(period: Period, moment: datetime) -> Bucket:
    """Return the bucket that holds a moment."""
    at = moment.astimezone(UTC)
    start = at.replace(minute=0, second=0, microsecond=0)
    if period == "hourly":
        return Bucket(period, start, start + timedelta(hours=1))
    start = start.replace(hour=0)
    if period == "daily":
        return Bucket(period, start, start + timedelta(days=1))
    if period == "weekly":
        start -= timedelta(days=start.weekday())
        return Bucket(period, start, start + timedelta(days=7))
    start = start.replace(day=1)
    return Bucket(period, start, (start + timedelta(days=32)).replace(day=1))


def buckets_between(period: Period, since: datetime, now: datetime) -> Iterator[Bucket]:
    """Yield the buckets that hold ``since``, ``now`` and all between, the oldest first."""
    bucket = bucket_of(period, since)
    while bucket.start <= now:
        yield bucket
        bucket = bucket_of(period, bucket.end)


#: Whole numbers by name: they add up exactly. Times are milliseconds, money is billionths of a dollar.
Sums = dict[str, int]


@dataclass(slots=True)
class Tally:
    """What a team, or all together, come to in a bucket.

    ``peaks`` are the highest of what was seen. ``sources`` and ``errors`` are sums by source type and by code.
    """

    sums: Sums = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    sources: dict[str, Sums] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)

    def add(self, **sums: int) -> None:
        """Add to the sums; what is named is known from then on, if only to be nothing."""
        _add(self.sums, sums)

    def merge(self, other: Tally) -> None:
        """Add another bucket's tally."""
        _add(self.sums, other.sums)
        for name, value in other.peaks.items():
            self.peaks[name] = max(value, self.peaks.get(name, value))
        for name, sums in other.sources.items():
            _add(self.sources.setdefault(name, {}), sums)
        _add(self.errors, other.errors)

    def to_record(self) -> dict[str, Any]:
        """Return it as plain values; codes are pairs, because a name in MongoDB should hold no dot."""
        return {
            "sums": dict(self.sums),
            "peaks": dict(self.peaks),
            "sources": {name: dict(sums) for name, sums in self.sources.items()},
            "errors": [[code, number] for code, number in sorted(self.errors.items())],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Tally:
        """Return the tally that ``to_record`` was called on."""
        return cls(
            {name: int(value) for name, value in record["sums"].items()},
            dict(record["peaks"]),
            {name: {key: int(value) for key, value in sums.items()} for name, sums in record["sources"].items()},
            {code: int(number) for code, number in record["errors"]},
        )


def _add(sums: dict[str, int], more: Mapping[str, int]) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0) + int(value)


def split(total: int, weights: Sequence[int]) -> list[int]:
    """Return a whole number in parts that go by the weights and add up to it; the largest remainders are rounded up."""
    whole = sum(weights)
    if not whole:
        return [0] * len(weights)
    parts = [total * weight // whole for weight in weights]
    order = sorted(range(len(weights)), key=lambda place: (-(total * weights[place] % whole), place))
    for place in order[: total - sum(parts)]:
        parts[place] += 1
    return parts


def tally_jobs(jobs: Iterable[Mapping[str, Any]], bucket: Bucket) -> dict[ObjectId | None, Tally]:
    """Return what jobs come to, by team; None is all together. A job counts whole where it ended, or was last heard of.

    Tokens and money of a job of several teams are split by the vector documents that it wrote for each.
    """
    found: dict[ObjectId | None, Tally] = {None: Tally()}
    for job in jobs:
        ended = job.get("completedAt") or job["updatedAt"]
        created = int(bucket.start <= job["createdAt"] < bucket.end)
        here = bucket.start <= ended < bucket.end
        shares = _shares(job)
        for team, share in [(None, None), *shares.items()]:
            tally = found.setdefault(team, Tally())
            tally.add(jobs_created=created)
            if here:
                _count_job(tally, job, share)
    return found


def _shares(job: Mapping[str, Any]) -> dict[ObjectId, dict[str, int]]:
    """Return each team's part of a job: its counts, and its share of tokens and money."""
    rows = list((job.get("metadata") or {}).get("teams") or ())
    if not rows and job.get("teamId") is not None:
        return {job["teamId"]: _whole(job)}
    weights = [int(row["created"]) + int(row["updated"]) for row in rows]
    whole = _whole(job)
    tokens, money = split(whole["tokens"], weights), split(whole["nano_usd"], weights)
    return {
        ObjectId(row["teamId"]): {
            "read": int(row["read"]),
            "created": int(row["created"]),
            "updated": int(row["updated"]),
            "skipped": int(row["chunks"]) - int(row["created"]) - int(row["updated"]),
            "refused": int(row["deadLettered"]),
            "tokens": tokens[place],
            "nano_usd": money[place],
        }
        for place, row in enumerate(rows)
    }


def _whole(job: Mapping[str, Any]) -> dict[str, int]:
    progress, results = job.get("progress") or {}, job.get("results") or {}
    return {
        "read": int(progress.get("processed") or 0),
        "created": int(results.get("documentsCreated") or 0),
        "updated": int(results.get("documentsUpdated") or 0),
        "skipped": int(results.get("documentsSkipped") or 0),
        "refused": int(progress.get("failed") or 0),
        "tokens": int(results.get("totalTokensUsed") or 0),
        "nano_usd": round(float(results.get("totalCost") or 0) * _NANO),
    }


def _count_job(tally: Tally, job: Mapping[str, Any], share: Mapping[str, int] | None) -> None:
    counts = _whole(job) if share is None else share
    status = job["status"]
    took_ms = 0
    if job.get("startedAt") is not None:
        took_ms = max(0, round(((job.get("completedAt") or job["updatedAt"]) - job["startedAt"]).total_seconds() * _MS))
    tally.add(
        jobs=1,
        jobs_completed=int(status == "completed"),
        jobs_failed=int(status == "failed"),
        jobs_cancelled=int(status == "cancelled"),
        took_ms=took_ms,
        retries=int((job.get("retryConfig") or {}).get("retryCount") or 0),
        **counts,
    )
    sums = tally.sources.setdefault(str(job.get("sourceType")), {})
    _add(sums, {"read": counts["read"], "took_ms": took_ms, "nano_usd": counts["nano_usd"]})
    if share is None:
        for error in job.get("errors") or ():
            code = str(error.get("errorCode"))
            tally.errors[code] = tally.errors.get(code, 0) + 1


def tally_measures(tally: Tally, measures: Iterable[Measure]) -> None:
    """Add what requests did to the tally of all together."""
    for one in measures:
        if one.kind == "http":
            continue
        tally.add(
            **{
                f"{one.kind}_calls": one.calls,
                f"{one.kind}_failed": one.failed,
                f"{one.kind}_ms": round(one.seconds * _MS),
            }
        )
        if one.kind == "embed":
            tally.add(texts=one.texts, reused=one.reused, throttled=one.throttled)
        else:
            tally.add(results=one.results, scores_millionths=round(one.scores * 1_000_000), scored=one.scored)
            tally.add(search_cached=one.cached, ratings=one.ratings, rated=one.rated)
        for code, number in one.errors.items():
            tally.errors[code] = tally.errors.get(code, 0) + number


#: Probe and figure by the peak that they make.
_PEAKS = {
    "queue": ("queue", "waiting"),
    "workers": ("workers", "online"),
    "memory_bytes": ("memory", "used_bytes"),
    "connections": ("vectors", "connections"),
}


def tally_readings(tally: Tally, readings: Iterable[Reading]) -> None:
    """Add what probes saw of the machine and the database to the tally of all together."""
    for one in readings:
        for name, (probe, figure) in _PEAKS.items():
            if one.probe == probe and figure in one.figures:
                tally.peaks[name] = max(one.figures[figure], tally.peaks.get(name, 0.0))
        if one.probe == "memory" and "used_bytes" in one.figures:
            tally.add(memory_looks=1, memory_bytes=int(one.figures["used_bytes"]))
        if one.probe == "vectors" and one.verdict == "ok":
            tally.add(store_looks=1, store_ms=round(one.took_s * _MS))


def stats_row(
    bucket: Bucket, team: ObjectId | None, tally: Tally, *, storage: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return the row of ``embeddingstats``: the application's groups, and the tally that longer periods add up."""
    sums = tally.sums
    processed, jobs = sums.get("read", 0), sums.get("jobs", 0)
    row: dict[str, Any] = {
        "period": bucket.period,
        "startDate": bucket.start,
        "endDate": bucket.end,
        "teamId": team,
        "processing": _known(
            jobsCreated=sums.get("jobs_created", 0),
            jobsCompleted=sums.get("jobs_completed", 0),
            jobsFailed=sums.get("jobs_failed", 0),
            jobsCancelled=sums.get("jobs_cancelled", 0),
            documentsProcessed=processed,
            documentsCreated=sums.get("created", 0),
            documentsUpdated=sums.get("updated", 0),
            documentsSkipped=sums.get("skipped", 0),
            totalProcessingTime=sums.get("took_ms", 0),
            averageProcessingTime=_ratio(sums.get("took_ms"), processed),
            averageJobDuration=_ratio(sums.get("took_ms"), jobs),
            maxQueueLength=tally.peaks.get("queue"),
            totalErrors=sums.get("refused", 0),
            errorRate=_ratio(100 * sums.get("refused", 0), processed),
            totalRetries=sums.get("retries", 0),
            errorsByCode=[{"code": code, "count": number} for code, number in sorted(tally.errors.items())] or None,
        ),
        "apiUsage": _known(
            totalApiCalls=sums.get("embed_calls"),
            successfulApiCalls=_difference(sums.get("embed_calls"), sums.get("embed_failed")),
            failedApiCalls=sums.get("embed_failed"),
            apiSuccessRate=_percent(
                _difference(sums.get("embed_calls"), sums.get("embed_failed")), sums.get("embed_calls")
            ),
            totalTokensUsed=sums.get("tokens", 0),
            averageTokensPerRequest=_ratio(sums.get("tokens"), sums.get("embed_calls")),
            rateLimitHits=sums.get("throttled"),
            averageResponseTime=_ratio(sums.get("embed_ms"), sums.get("embed_calls")),
            totalCost=sums.get("nano_usd", 0) / _NANO,
            averageCostPerDocument=_ratio(
                sums.get("nano_usd", 0) / _NANO, sums.get("created", 0) + sums.get("updated", 0)
            ),
            textsEmbedded=sums.get("texts"),
            textsReused=sums.get("reused"),
        ),
        "search": _known(
            totalQueries=sums.get("search_calls"),
            successfulQueries=_difference(sums.get("search_calls"), sums.get("search_failed")),
            failedQueries=sums.get("search_failed"),
            averageSearchTime=_ratio(sums.get("search_ms"), sums.get("search_calls")),
            averageResultsReturned=_ratio(
                sums.get("results"), _difference(sums.get("search_calls"), sums.get("search_failed"))
            ),
            averageRelevanceScore=_ratio(sums.get("scores_millionths", 0) / 1_000_000, sums.get("scored")),
            # A question's vector is kept, because asking a model for it is what a search costs.
            cacheHits=sums.get("search_cached"),
            cacheMisses=_difference(sums.get("search_calls"), sums.get("search_cached")),
            cacheHitRate=_percent(sums.get("search_cached"), sums.get("search_calls")),
        ),
        "sourceTypeBreakdown": {
            name: {
                "documents": of_source.get("read", 0),
                "processingTime": of_source.get("took_ms", 0),
                "cost": of_source.get("nano_usd", 0) / _NANO,
            }
            for name, of_source in sorted(tally.sources.items())
        },
        "system": _known(
            activeWorkers=tally.peaks.get("workers"),
            averageMemoryUsage=_ratio(sums.get("memory_bytes"), sums.get("memory_looks")),
            peakMemoryUsage=tally.peaks.get("memory_bytes"),
            averageDbResponseTime=_ratio(sums.get("store_ms"), sums.get("store_looks")),
            dbConnectionsUsed=tally.peaks.get("connections"),
        ),
        "quality": _known(
            totalFeedback=sums.get("rated"),
            averageRating=_ratio(sums.get("ratings"), sums.get("rated")),
            averageChunksPerDocument=_ratio(
                sums.get("created", 0) + sums.get("updated", 0) + sums.get("skipped", 0), processed
            ),
        ),
        "tally": tally.to_record(),
    }
    if storage is not None:
        row["storage"] = dict(storage)
    return row


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _percent(part: float | None, whole: float | None) -> float | None:
    share = _ratio(part, whole)
    return None if share is None else 100 * share


def _difference(whole: int | None, part: int | None) -> int | None:
    return None if whole is None else whole - (part or 0)
