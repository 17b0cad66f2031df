"""The reports of a real system: what was planted in it stands in them, and what is old is swept."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from blocks.log_files import DatedLogHandler
from blocks.slack import SlackNotifier
from deployments.register_blocks import make_blocks
from flows.blocks import ALERTS
from flows.maintain import audit_report, capacity_forecast, daily_report, weekly_review
from flows.rollup import roll_up
from tasks.domain.alerts import Alert
from tasks.domain.log_lines import SECURITY
from tasks.domain.probes import Reading
from tasks.domain.stats import bucket_of, stats_row, tally_jobs
from tests.end_to_end.pipeline import Pipeline, SourceData
from tests.loopback.slack import LoopbackSlack


@pytest.fixture
def slack() -> Iterator[LoopbackSlack]:
    with LoopbackSlack() as server:
        yield server
    with suppress(ValueError):
        SlackNotifier.delete(ALERTS, _sync=True)  # type: ignore[call-arg]
    Pipeline._registered = None


def test_reports_tell_what_is_and_what_was_planted(
    pipeline: Pipeline, slack: LoopbackSlack, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(60))
    assert pipeline.run().is_completed()
    pipeline.use(cryptique_embedder="local", slack_webhook_url=slack.url, cryptique_alert_webhook_kind="generic")
    blocks = make_blocks(pipeline.settings)
    book, now = blocks.monitor.open_book(), datetime.now(UTC)
    roll_up(blocks.vectors, book, since=now - timedelta(hours=2), now=now)
    # Planted: an alert, a lost TTL index, a day that was counted, a log of long ago, readings of long ago.
    book.begin_alert(Alert("queue", "warning", "Too many jobs wait", "101 jobs", "queue", now))
    book.add_readings([Reading("disk", now - timedelta(days=40), "ok", "", 0.1)])
    pipeline.store.deadletters.drop_indexes()
    pipeline.store.ragcheckpoints.drop_indexes()
    pipeline.store.embeddingjobs.update_one({}, {"$set": {"completedAt": now - timedelta(days=33)}})
    handler = DatedLogHandler(pipeline.settings.logs_folder)
    pipeline.settings.logs_folder.mkdir(parents=True, exist_ok=True)
    for days_ago, event in ((0, "restore_swapped"), (100, "long_ago")):
        record = logging.LogRecord(SECURITY, logging.INFO, "", 0, "who did", (), None)
        record.created, record.event = (now - timedelta(days=days_ago)).timestamp(), event
        handler.emit(record)
    handler.close()
    job = {
        "status": "completed",
        "sourceType": "transaction",
        "progress": {"processed": 1_000, "failed": 20},
        "createdAt": now - timedelta(days=1),
        "updatedAt": now - timedelta(days=1),
        "teamId": None,
        "results": {"documentsCreated": 980, "totalTokensUsed": 70_000, "totalCost": 0.0105},
    }
    yesterday = bucket_of("daily", now - timedelta(days=1))
    row = stats_row(yesterday, None, tally_jobs([job], yesterday)[None])
    pipeline.store.embeddingstats.insert_one({**row, "createdAt": now, "updatedAt": now})

    audited = pipeline.run(audit_report).result()["lines"]
    assert any(line == "audited on this machine: restore_swapped 1" for line in audited)

    daily = pipeline.run(daily_report).result()["lines"]
    found = "\n".join(daily)
    assert "! Too many jobs wait since" in found
    assert "! there is no good backup" in found
    assert "made what was missing" in found
    assert "! 1 documents of embeddingjobs should have expired by completedAt" in found
    assert "yesterday: 1,000 records read, 980 vectors made, 0 changed, 20 dead-lettered" in found
    assert "cost yesterday: $0.0105 for 70,000 tokens" in found
    assert "3 log files" in found or "2 log files" in found
    assert "1 old readings" in found
    wants = [line.startswith("!") for line in daily]
    assert wants == sorted(wants, reverse=True)

    weekly = "\n".join(pipeline.run(weekly_review).result()["lines"])
    assert "records read: 1,000 (nothing to compare with)" in weekly
    assert "dead letters: 2 % (nothing to compare with)" in weekly
    assert "slow queries: the server writes none down" in weekly

    forecast = pipeline.run(capacity_forecast).result()["lines"]
    assert "vector documents: not enough history yet, seven days are needed" in forecast
    reports = [one.payload for one in slack.taken if one.payload["event"] == "report"]
    assert [one["title"].partition(",")[0] for one in reports] == [
        "Quarterly audit",
        "Daily health report",
        "Weekly performance review",
        "Capacity forecast",
    ]
