"""The rollup of a real load: what ``embeddingstats`` says is what the load said, for its teams and all together."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flows.rollup import rollup
from tests.end_to_end.pipeline import Pipeline, SourceData
from tests.loopback.gemini import LoopbackGemini


def test_a_load_is_counted_once_by_hour_day_week_and_month_for_each_team(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(120))
    with LoopbackGemini() as gemini:
        pipeline.use_gemini(gemini)
        report = pipeline.run().result()
        written = pipeline.run(rollup).result()
        again = pipeline.run(rollup, hours=3).result()
    assert again == written
    rows = list(pipeline.store.embeddingstats.find())
    assert len(rows) == sum(written.values())
    job = pipeline.store.embeddingjobs.find_one({"metadata.tags": "migrate"})
    assert job is not None
    for period in ("hourly", "daily", "weekly", "monthly"):
        of_period = [
            row for row in rows if row["period"] == period and row["startDate"] <= job["completedAt"] < row["endDate"]
        ]
        (whole,) = [row for row in of_period if row["teamId"] is None]
        teams = [row for row in of_period if row["teamId"] is not None]
        assert len(teams) >= 2
        assert whole["apiUsage"]["totalTokensUsed"] == report["tokens"]
        assert whole["apiUsage"]["totalCost"] == pytest.approx(job["results"]["totalCost"], abs=1e-9)
        assert whole["apiUsage"]["totalApiCalls"] >= 1
        assert whole["apiUsage"]["failedApiCalls"] == 0
        assert whole["processing"]["documentsProcessed"] == report["read"]
        assert whole["storage"]["totalVectorDocuments"] == pipeline.store.vectordocuments.count_documents({})
        for group, name in (
            ("apiUsage", "totalTokensUsed"),
            ("processing", "documentsProcessed"),
            ("processing", "documentsCreated"),
        ):
            assert sum(row[group][name] for row in teams) == whole[group][name], name
        assert sum(row["apiUsage"]["totalCost"] for row in teams) == pytest.approx(whole["apiUsage"]["totalCost"])


def test_what_is_kept_no_more_can_not_be_counted_again(pipeline: Pipeline) -> None:
    from flows.rollup import roll_up
    from tasks.domain.errors import InputError

    now = datetime.now(UTC)
    pipeline.register()
    with pytest.raises(InputError, match="30 days"):
        roll_up(None, None, since=now - timedelta(days=31), now=now)  # type: ignore[arg-type]
