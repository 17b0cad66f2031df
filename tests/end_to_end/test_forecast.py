"""The forecast of a load against what the load then does."""

from __future__ import annotations

import pytest

from tests.end_to_end.pipeline import Pipeline, SourceData
from tests.loopback.gemini import LoopbackGemini


@pytest.mark.long
def test_a_forecast_from_every_record_is_what_happens(pipeline: Pipeline, source_data: SourceData) -> None:
    pipeline.load(source_data, source_data.some(120))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        report = pipeline.migrate(shard_rows=20)
        forecast = report["forecast"]
        assert (forecast["records"], forecast["sampled"]) == (120, 120)
        assert (forecast["texts"], forecast["tokens"]) == (report["embedded"], report["tokens"])
        again = pipeline.migrate(shard_rows=20)
    assert (again["forecast"]["texts"], again["forecast"]["tokens"]) == (0, 0)


@pytest.mark.long
def test_a_forecast_from_some_records_comes_near_and_pays_for_nothing(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(2_000))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        report = pipeline.migrate(shard_rows=100)
        assert sum(times for text, times in server.embedded.items() if text != "transaction") == report["embedded"]
    forecast = report["forecast"]
    assert (forecast["records"], forecast["sampled"]) == (2_000, 1_000)
    # Of a thousand texts the mean lies within some percent of that of all.
    assert forecast["tokens"] == pytest.approx(report["tokens"], rel=0.1)
    assert forecast["texts"] == pytest.approx(report["embedded"], rel=0.1)


def test_a_dry_run_tells_the_time_of_each_tier(pipeline: Pipeline, source_data: SourceData) -> None:
    pipeline.load(source_data, source_data.some(50))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        report = pipeline.migrate(dry_run=True)
        assert not server.embedded
    texts = report["embedded"]
    expected = {"free": texts * 60 / 100, "tier 1": texts / 50, "tier 2": texts * 60 / 5_000, "tier 3": texts / 167}
    assert report["tier_seconds"] == pytest.approx(expected, rel=0.1, abs=0.1)
