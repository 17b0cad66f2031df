"""What runs and requests come to: teams add up to all, months to their days, and what nobody measured is not there."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId

from tasks.domain.meters import Meter
from tasks.domain.probes import Reading
from tasks.domain.stats import (
    Tally,
    bucket_of,
    buckets_between,
    split,
    stats_row,
    tally_jobs,
    tally_measures,
    tally_readings,
)

NOON = datetime(2026, 3, 4, 12, 30, tzinfo=UTC)  # a Wednesday
ONE, TWO, THREE = (ObjectId(f"{number:024x}") for number in (1, 2, 3))
Row = dict[str, Any]


def job(ended: datetime, *, teams: dict[ObjectId, tuple[int, int]], tokens: int, usd: float, **more: Any) -> Row:
    """Return a job of teams, by records read and vector documents created for each."""
    read, created = (sum(counts[place] for counts in teams.values()) for place in (0, 1))
    return {
        "status": "completed",
        "sourceType": "transaction",
        "teamId": None,
        "progress": {"processed": read, "failed": 0},
        "results": {
            "documentsCreated": created,
            "documentsUpdated": 0,
            "documentsSkipped": read - created,
            "totalTokensUsed": tokens,
            "totalCost": usd,
        },
        "errors": [],
        "retryConfig": {"retryCount": 1},
        "createdAt": ended - timedelta(minutes=10),
        "startedAt": ended - timedelta(minutes=10),
        "updatedAt": ended,
        "completedAt": ended,
        "metadata": {
            "teams": [
                {"teamId": str(team), "read": r, "chunks": r, "created": c, "updated": 0, "deadLettered": 0}
                for team, (r, c) in teams.items()
            ]
        },
        **more,
    }


def test_buckets_begin_where_a_calendar_says() -> None:
    edges = {
        "hourly": (datetime(2026, 3, 4, 12, tzinfo=UTC), datetime(2026, 3, 4, 13, tzinfo=UTC)),
        "daily": (datetime(2026, 3, 4, tzinfo=UTC), datetime(2026, 3, 5, tzinfo=UTC)),
        "weekly": (datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 3, 9, tzinfo=UTC)),
        "monthly": (datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)),
    }
    for period, (start, end) in edges.items():
        bucket = bucket_of(period, NOON)  # type: ignore[arg-type]
        assert (bucket.start, bucket.end) == (start, end)
        assert bucket_of(period, bucket.start) == bucket  # type: ignore[arg-type]
        assert bucket_of(period, bucket.end).start == end  # type: ignore[arg-type]
    assert bucket_of("monthly", datetime(2026, 12, 31, 23, tzinfo=UTC)).end == datetime(2027, 1, 1, tzinfo=UTC)
    assert [one.start.day for one in buckets_between("daily", NOON - timedelta(days=2), NOON)] == [2, 3, 4]


def test_a_split_adds_up_whatever_the_weights() -> None:
    choose = random.Random(3)
    for _ in range(500):
        weights = [choose.choice([0, 1, 7, 1_000]) for _ in range(choose.randint(1, 9))]
        total = choose.randint(0, 10_000)
        parts = split(total, weights)
        assert sum(parts) == (total if any(weights) else 0)
        assert all(
            abs(part - total * weight / max(1, sum(weights))) < 1 for part, weight in zip(parts, weights, strict=True)
        )


def test_the_teams_of_shared_jobs_add_up_to_all_together() -> None:
    jobs = [
        job(NOON, teams={ONE: (100, 10), TWO: (50, 5), THREE: (7, 0)}, tokens=1_001, usd=0.000_123_457),
        job(NOON, teams={TWO: (3, 3)}, tokens=17, usd=0.000_000_002, status="failed"),
        job(NOON - timedelta(hours=2), teams={ONE: (9, 9)}, tokens=99, usd=1.0),
    ]
    found = tally_jobs(jobs, bucket_of("hourly", NOON))
    teams = [tally for team, tally in found.items() if team is not None]
    for name in ("read", "created", "skipped", "tokens", "nano_usd"):
        assert sum(tally.sums.get(name, 0) for tally in teams) == found[None].sums[name], name
    assert found[None].sums["tokens"] == 1_018
    assert (found[ONE].sums["tokens"], found[TWO].sums["tokens"], found[THREE].sums["tokens"]) == (667, 334 + 17, 0)
    row = stats_row(bucket_of("hourly", NOON), None, found[None])
    assert (row["processing"]["jobsCompleted"], row["processing"]["jobsFailed"]) == (1, 1)
    assert row["apiUsage"]["totalCost"] == pytest.approx(0.000_123_459, abs=1e-12)
    assert row["processing"]["totalRetries"] == 2
    assert row["sourceTypeBreakdown"]["transaction"]["documents"] == 160


def test_a_job_without_figures_by_team_is_its_teams_own() -> None:
    alone = job(NOON, teams={}, tokens=10, usd=0.5, teamId=ONE)
    alone["progress"]["processed"], alone["metadata"] = 4, {}
    found = tally_jobs([alone], bucket_of("daily", NOON))
    assert found[ONE].sums["tokens"] == found[None].sums["tokens"] == 10
    assert found[ONE].sums["read"] == 4


def test_days_add_up_to_their_month_and_averages_are_of_sums() -> None:
    days = [bucket_of("daily", NOON + timedelta(days=back)) for back in range(3)]
    month, by_hand = Tally(), Tally()
    for number, day in enumerate(days, start=1):
        jobs = [job(day.start + timedelta(hours=3), teams={ONE: (10**number, number)}, tokens=number, usd=number)]
        tally = tally_jobs(jobs, day)[None]
        meter = Meter()
        for _ in range(number):
            meter.count("search", at=day.start, seconds=float(number), results=number, score=0.5)
        tally_measures(tally, meter.take())
        month.merge(Tally.from_record(tally.to_record()))
        by_hand.merge(tally)
    row = stats_row(bucket_of("monthly", NOON), None, month)
    assert row == stats_row(bucket_of("monthly", NOON), None, by_hand)
    assert row["processing"]["documentsProcessed"] == 1_110
    assert row["processing"]["averageProcessingTime"] == pytest.approx(3 * 600_000 / 1_110)
    assert row["search"]["averageSearchTime"] == pytest.approx(1_000 * (1 + 4 + 9) / 6)
    assert row["search"]["averageResultsReturned"] == pytest.approx((1 + 4 + 9) / 6)
    assert row["search"]["averageRelevanceScore"] == pytest.approx(0.5)


def test_what_nobody_measured_is_not_there() -> None:
    row = stats_row(bucket_of("hourly", NOON), None, Tally())
    assert "totalApiCalls" not in row["apiUsage"]
    assert row["search"] == {}
    assert row["system"] == {}
    assert "averageProcessingTime" not in row["processing"]
    assert row["processing"]["documentsProcessed"] == 0


def test_probes_make_the_figures_of_the_system() -> None:
    tally = Tally()
    tally_readings(
        tally,
        [
            Reading("memory", NOON, "ok", "", 0.1, {"used_bytes": 100.0}),
            Reading("memory", NOON, "ok", "", 0.1, {"used_bytes": 300.0}),
            Reading("queue", NOON, "ok", "", 0.1, {"waiting": 7.0}),
            Reading("vectors", NOON, "ok", "", 0.02, {"connections": 9.0}),
            Reading("vectors", NOON, "failed", "", 6.0),
        ],
    )
    row = stats_row(bucket_of("hourly", NOON), None, tally)
    assert row["system"] == {
        "averageMemoryUsage": 200.0,
        "peakMemoryUsage": 300.0,
        "averageDbResponseTime": 20.0,
        "dbConnectionsUsed": 9.0,
    }
    assert row["processing"]["maxQueueLength"] == 7.0
