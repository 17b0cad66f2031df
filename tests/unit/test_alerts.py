"""When a limit is passed, when it is not, and when nobody can tell; and how much of a month was seen to be well."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.domain.alerts import ALERT_NAMES, Judgement, Limits, Looks, judge, query_of, runbook_link
from tasks.domain.probes import Reading, Verdict

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def reading(probe: str, verdict: Verdict = "ok", *, ago_s: float = 0, **figures: float) -> Reading:
    return Reading(probe, NOW - timedelta(seconds=ago_s), verdict, "it says so.", 0.1, figures)


def judged(name: str, *readings: Reading, limits: Limits | None = None) -> Judgement:
    ordered = sorted(readings, key=lambda one: one.at)
    (found,) = [one for one in judge(ordered, limits or Limits(), now=NOW) if one.name == name]
    return found


@pytest.mark.parametrize(
    ("name", "probe", "figures", "at_limit", "over"),
    [
        ("error-rate", "requests", {"calls": 20.0}, {"error_rate": 0.10}, {"error_rate": 0.11}),
        ("slow-responses", "requests", {}, {"p95_s": 5.0}, {"p95_s": 5.01}),
        ("memory", "memory", {}, {"used": 0.80}, {"used": 0.81}),
        ("queue", "queue", {}, {"waiting": 100.0}, {"waiting": 101.0}),
        ("ingestion-lag", "ingest", {}, {"lag_s": 900.0}, {"lag_s": 901.0}),
        ("no-backup", "backups", {}, {"age_s": 93_600.0}, {"age_s": 93_601.0}),
        ("dead-letters", "letters", {}, {"share": 0.01}, {"share": 0.0101}),
        ("disk", "disk", {}, {"used": 0.90}, {"used": 0.91}),
        ("replication-lag", "vectors", {}, {"replication_lag_s": 60.0}, {"replication_lag_s": 61.0}),
        ("connections", "vectors", {}, {"connections_used": 0.80}, {"connections_used": 0.81}),
        ("slow-operations", "vectors", {}, {"slow_operations": 5.0}, {"slow_operations": 6.0}),
    ],
)
def test_a_limit_is_passed_above_it_and_not_at_it(
    name: str, probe: str, figures: dict[str, float], at_limit: dict[str, float], over: dict[str, float]
) -> None:
    assert judged(name, reading(probe, **figures, **at_limit)).passed is False
    assert judged(name, reading(probe, **figures, **over)).passed is True


def test_what_a_probe_could_not_tell_neither_opens_nor_closes() -> None:
    assert judged("queue", reading("queue", "failed")).passed is None
    assert judged("queue").passed is None
    assert judged("queue", reading("queue", ago_s=3_600, waiting=500)).passed is None
    assert judged("queue", reading("queue", "unknown")).passed is False  # nothing is configured: nothing is wrong


def test_two_failures_in_a_row_are_one_that_is_gone() -> None:
    failed = [reading("vectors", "failed", ago_s=15), reading("vectors", "failed")]
    assert judged("vectors-unreachable", *failed).passed is True
    assert judged("vectors-unreachable", reading("vectors", ago_s=15), reading("vectors", "failed")).passed is None
    assert judged("vectors-unreachable", *failed[:1], reading("vectors")).passed is False


def test_without_a_budget_no_cost_is_too_high() -> None:
    spent = reading("spending", usd_today=1e6)
    assert judged("cost", spent).passed is False
    assert judged("cost", spent, limits=Limits(usd_per_day=10.0)).passed is True


def test_too_few_requests_are_no_share_and_prove_no_recovery() -> None:
    assert judged("error-rate", reading("requests", calls=19, error_rate=1.0)).passed is None
    assert judged("error-rate", reading("requests", calls=0)).passed is False


def test_processors_that_are_busy_for_a_moment_are_nothing() -> None:
    busy: list[Any] = [reading("cpu", ago_s=60 * minute, used=0.99) for minute in range(11)]
    assert judged("cpu", *busy).passed is True
    assert judged("cpu", *busy).told_as is None
    assert judged("cpu", *busy[:3]).passed is False


def test_what_is_said_holds_what_was_measured_and_the_limit() -> None:
    assert (
        judged("memory", reading("memory", used=0.934)).says
        == "93% of the limit is used (alert above 80%). it says so."
    )


def test_each_alert_names_its_entry_and_a_command() -> None:
    assert runbook_link("disk", "https://rag.example/") == "https://rag.example/admin/runbook#alert-disk"
    assert runbook_link("disk", None) == "deployments/runbook.md#alert-disk"
    assert all(query_of(name).startswith("cryptique-rag ") for name in ALERT_NAMES)


def test_a_month_is_good_bad_or_not_looked_at() -> None:
    looks = [(0.0, 0), (60.0, 1), (120.0, 0), (1_000.0, 0)]
    found = Looks.from_times(looks, since=0.0, until=1_060.0, covers_s=360.0)
    assert found == Looks(good_s=60 + 360 + 60, bad_s=60, unknown_s=1_060 - 540)
    assert found.availability == pytest.approx(480 / 540)
    assert found.budget_left_s(0.9) == pytest.approx(106 - 60)
    assert Looks.from_times([], since=0.0, until=10.0, covers_s=5.0).availability is None
