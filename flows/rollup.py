"""Rollup: what runs and requests came to, hour by hour, day, week and month, of each team and of all together."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from bson import ObjectId
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from blocks.monitor_book import MonitorBook
from blocks.rollups import measure_storage, read_jobs, read_tallies, save_stats
from blocks.vector_store import VectorStore
from flows.blocks import load_monitor, load_vectors
from flows.hooks import alert_on_crashed, alert_on_failure, resolve_on_completion
from tasks.domain.errors import InputError, PipelineError
from tasks.domain.stats import (
    Bucket,
    Tally,
    bucket_of,
    buckets_between,
    stats_row,
    tally_jobs,
    tally_measures,
    tally_readings,
)

#: What jobs and requests are kept for; before that nothing can be counted again.
_KEPT = timedelta(days=30)


@flow(
    name="rollup",
    on_failure=[alert_on_failure],
    on_crashed=[alert_on_crashed],
    on_completion=[resolve_on_completion],
)
def rollup(
    hours: Annotated[int, Field(ge=1, le=24 * 29, description="How many hours back are counted again.")] = 3,
) -> State[dict[str, Any]]:
    """Count the last hours again, and the days, weeks and months that they lie in; write ``embeddingstats``.

    Runs every hour. A bucket counted twice is the same, and one whose run was late is counted by the next; after a
    longer pause give ``hours``. Jobs and requests are kept for thirty days: what is older can't be counted again. The
    result holds how many rows of each period were written.
    """
    vectors = load_vectors()
    now = vectors.read_time()
    try:
        book: MonitorBook | None = load_monitor().open_book()
    except PipelineError:
        book = None
    written = roll_up(vectors, book, since=now - timedelta(hours=hours), now=now)
    words = ", ".join(f"{number:,} {period}" for period, number in written.items())
    create_markdown_artifact(f"Rows written: {words}.", key="rollup", description="Rows of embeddingstats")
    return Completed(message=f"rows: {words}", data=written)


def roll_up(vectors: VectorStore, book: MonitorBook | None, *, since: datetime, now: datetime) -> dict[str, int]:
    """Count every bucket from that of ``since`` on, and return how many rows of each period were written."""
    since, now = since.astimezone(UTC), now.astimezone(UTC)
    if since < now - _KEPT:
        raise InputError(f"jobs and requests are kept for {_KEPT.days} days: nothing before that can be counted again")
    first_day = bucket_of("daily", since)
    jobs = read_jobs(vectors, first_day.start)
    storage = measure_storage(vectors)
    written = {"hourly": 0, "daily": 0, "weekly": 0, "monthly": 0}
    for bucket in [*buckets_between("hourly", since, now), *buckets_between("daily", since, now)]:
        tallies = tally_jobs(jobs, bucket)
        tally_measures(tallies[None], vectors.read_measures(bucket.start, bucket.end))
        if book is not None:
            tally_readings(tallies[None], book.read_readings(bucket.start, bucket.end))
        written[bucket.period] += _save(vectors, bucket, tallies, storage, now)
    for period in ("weekly", "monthly"):
        for bucket in buckets_between(period, since, now):
            tallies = _merged(read_tallies(vectors, "daily", bucket.start, bucket.end))
            written[period] += _save(vectors, bucket, tallies, storage, now)
    return written


def _merged(found: Iterable[tuple[ObjectId | None, Tally]]) -> dict[ObjectId | None, Tally]:
    merged: dict[ObjectId | None, Tally] = {None: Tally()}
    for team, tally in found:
        merged.setdefault(team, Tally()).merge(tally)
    return merged


def _save(
    vectors: VectorStore,
    bucket: Bucket,
    tallies: dict[ObjectId | None, Tally],
    storage: dict[str, float],
    now: datetime,
) -> int:
    is_open = bucket.start <= now < bucket.end
    rows = [
        stats_row(bucket, team, tally, storage=storage if is_open and team is None else None)
        for team, tally in tallies.items()
        if team is None or any(tally.sums.values())
    ]
    return save_stats(vectors, bucket, rows)
