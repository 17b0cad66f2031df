"""Backfill: a past window, team, contract or version once more; the position of ingest stays where it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from flows.backfill import backfill
from flows.ingest import ingest
from tasks.domain.errors import QuotaSpentError
from tasks.domain.transaction_documents import DESCRIBER_VERSION
from tests.builders import use_next_describer
from tests.end_to_end.pipeline import HeldRequest, Pipeline, SourceData, beside, comparable, vector_of
from tests.loopback.gemini import LoopbackGemini

ROWS = 120
CHECK = "transaction"


@pytest.fixture
def migrated(pipeline: Pipeline, source_data: SourceData) -> Pipeline:
    """A pipeline whose source is stored, and followed from then on."""
    pipeline.load(source_data, source_data.some(ROWS))
    pipeline.migrate()
    return pipeline


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let the code be the next release, whose describer has a new version; the stored one is returned."""

    def release() -> int:
        use_next_describer(monkeypatch)
        return DESCRIBER_VERSION

    return release


def middle_of(pipeline: Pipeline) -> tuple[datetime, datetime]:
    """Return two block times with a third of the rows between them."""
    times = sorted(row["block_time"] for row in pipeline.transactions.find({"block_time": {"$type": "date"}}))
    return times[len(times) // 3], times[2 * len(times) // 3]


# -- which records -----------------------------------------------------------------------------------------


def test_a_window_of_the_past_is_compared_and_only_what_changed_in_it_is_written(migrated: Pipeline) -> None:
    start, end = middle_of(migrated)
    inside = {row["_id"] for row in migrated.transactions.find({"block_time": {"$gte": start, "$lt": end}})}
    changed = sorted(inside)[0]
    outside = migrated.transactions.find_one({"block_time": {"$gte": end}})["_id"]
    for record in (changed, outside):
        migrated.transactions.update_one({"_id": record}, {"$set": {"status": "Failed", "method_name": "stake"}})
    before, position = migrated.documents(), migrated.position()
    report = migrated.complete(backfill, start=start, end=end)
    assert (report["read"], report["written"]) == (len(inside), 1)
    assert report["read"] == report["written"] + report["unchanged"]
    after = migrated.documents()
    assert {row["sourceId"] for key, row in after.items() if row != before[key]} == {changed}
    assert position is not None
    assert migrated.position() == position
    # What ingest has still to follow, it follows.
    assert migrated.complete(ingest, until_idle=True)["written"] == 1


def test_teams_and_contracts_choose_their_records(migrated: Pipeline, source_data: SourceData) -> None:
    rows = list(migrated.transactions.find({}))
    team, of_team = Counter(str(source_data.contract_of(row)["team"]) for row in rows).most_common(1)[0]
    assert migrated.complete(backfill, teams=[team])["read"] == of_team
    contract, of_contract = Counter(row["contractId"] for row in rows).most_common(1)[0]
    assert migrated.complete(backfill, contracts=[contract])["read"] == of_contract
    assert migrated.flow_run().name == f"backfill transactions all time, contract {contract}"


def test_a_backfill_of_everything_moves_no_position_and_makes_none(pipeline: Pipeline, source_data: SourceData) -> None:
    pipeline.load(source_data, source_data.some(20))
    report = pipeline.complete(backfill)
    assert report["written"] == len(pipeline.documents()) == 20
    assert pipeline.position() is None
    (job,) = pipeline.jobs()
    assert (job["jobId"], job["jobType"]) == (f"backfill-{report['run_id']}", "reprocessing")
    assert (job["status"], job["progress"]["percentage"]) == ("completed", 100.0)


def test_what_can_not_be_meant_is_refused_before_any_work(pipeline: Pipeline, source_data: SourceData) -> None:
    pipeline.load(source_data, source_data.some(3))
    choices: list[tuple[dict[str, Any], str]] = [
        ({"teams": ["0" * 24]}, f"no contract belongs to team {'0' * 24}"),
        ({"contracts": ["contract_0"]}, "there is no contract contract_0"),
        ({"start": datetime(2025, 2, 1, tzinfo=UTC), "end": datetime(2025, 1, 1, tzinfo=UTC)}, "is not before its end"),
        ({"stored_describer": DESCRIBER_VERSION + 1}, "is newer than this code"),
        ({"stored_model": "no-such-model"}, "no stored vector is of the model no-such-model"),
        ({"rebuild": "nothing"}, "rebuild"),
    ]
    for parameters, words in choices:
        assert words in pipeline.refusal(flow=backfill, **parameters)
        assert pipeline.store.list_collection_names() == []


# -- what is done to them ----------------------------------------------------------------------------------


@pytest.mark.long
def test_rebuilding_everything_embeds_what_did_not_change_and_leaves_the_same_documents(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(60))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        first = pipeline.migrate()
        before = pipeline.documents()
        vectors = pipeline.store["vectordocuments"]
        vectors.update_one({}, {"$set": {"embedding": [0.5] * 64}})  # what no hash tells
        assert pipeline.complete(backfill)["written"] == 0
        report = pipeline.complete(backfill, rebuild="everything")
        assert (report["written"], report["unchanged"]) == (60, 0)
        assert report["embedded"] == first["embedded"]
        assert {times for text, times in server.embedded.items() if text != CHECK} == {2}
    after = pipeline.documents()
    assert comparable(after, "version", "embedding") == comparable(before, "version", "embedding")
    for key, row in after.items():
        assert np.allclose(vector_of(row), vector_of(before[key]))
        assert row["version"] == before[key]["version"] + 1


@pytest.mark.long
def test_only_what_an_older_describer_stored_is_described_again(migrated: Pipeline, newer: Callable[[], int]) -> None:
    older = newer()
    teams = Counter(str(row["teamId"]) for row in migrated.documents().values())
    team = teams.most_common(1)[0][0]
    of_team = {row["_id"] for row in migrated.documents().values() if str(row["teamId"]) == team}
    assert migrated.complete(backfill, stored_describer=older, teams=[team], limit=3)["written"] == 3
    first = migrated.documents()
    made = {row["_id"] for row in first.values() if row["lineage"]["describer"] == older + 1}
    assert made == set(sorted(of_team)[:3])
    report = migrated.complete(backfill, stored_describer=older)
    # No text is another than before: what the version changed is written, and nothing is embedded.
    assert (report["read"], report["written"], report["embedded"]) == (ROWS - 3, ROWS - 3, 0)
    after = migrated.documents()
    assert {row["lineage"]["describer"] for row in after.values()} == {older + 1}
    assert {key for key, row in after.items() if row == first[key]} == {
        key for key, row in first.items() if row["_id"] in made
    }
    assert migrated.complete(backfill, stored_describer=older)["read"] == 0


@pytest.mark.long
def test_a_store_of_another_model_is_rebuilt_whole_and_no_part_of_it_alone(
    migrated: Pipeline, source_data: SourceData
) -> None:
    old = next(iter(migrated.documents().values()))["lineage"]["model"]
    with LoopbackGemini() as server:
        migrated.use_gemini(server)
        contract = source_data.contract_of(migrated.transactions.find_one({}))["contractId"]
        refused = migrated.refusal(flow=backfill, stored_model=old, contracts=[contract])
        assert f"vectors of {old} can only be replaced" in refused
        assert "Leave out window, teams, contracts" in refused
        assert server.embedded.keys() <= {CHECK}

        report = migrated.complete(backfill, stored_model=old)
        assert (report["read"], report["written"]) == (ROWS, ROWS)
        assert migrated.store["vectordocuments"].distinct("lineage.model") == ["gemini-embedding-001"]
        assert {len(vector_of(row)) for row in migrated.documents().values()} == {64}
        # The store is that model's now.
        assert migrated.migrate()["unchanged"] == ROWS


def test_a_dry_run_tells_what_it_would_cost_and_changes_nothing(migrated: Pipeline, newer: Callable[[], int]) -> None:
    older = newer()
    before = migrated.fingerprint()
    choices: list[tuple[dict[str, Any], bool]] = [
        ({"rebuild": "everything"}, True),
        ({"stored_describer": older}, False),
    ]
    for chosen, embedded in choices:
        report = migrated.complete(backfill, dry_run=True, **chosen)
        assert (report["dry_run"], report["read"], report["written"]) == (True, ROWS, ROWS)
        assert (report["tokens"] > 0, report["cost_usd"] > 0) == (embedded, embedded)
    assert migrated.fingerprint() == before


# -- two at once, and one that is cut off ------------------------------------------------------------------


@pytest.mark.long
def test_the_same_backfill_twice_at_once_is_refused_and_another_one_is_not(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(40))
    contract = pipeline.transactions.find_one({})["contractId"]
    held = HeldRequest()
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server)
        pipeline.migrate()
        held.hold(server.request_count + 1)  # after the check
        everything: dict[str, Any] = {"rebuild": "everything", "stored_describer": DESCRIBER_VERSION}
        with beside(lambda: pipeline.complete(backfill, **everything)) as first:
            held.wait(first)
            try:
                message = pipeline.refusal(flow=backfill, **everything)
                assert "is at this work right now" in message
                assert pipeline.complete(backfill, contracts=[contract])["unchanged"] > 0
            finally:
                held.release()
            assert first.result()["written"] == 40
    assert sorted(job["status"] for job in pipeline.jobs()) == ["completed"] * 3


@pytest.mark.long
def test_a_backfill_that_failed_half_way_goes_on_where_it_stopped_and_pays_for_no_text_twice(
    pipeline: Pipeline, source_data: SourceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 450
    monkeypatch.setattr("flows.records.BATCH_RECORDS", 150)
    pipeline.load(source_data, source_data.some(rows))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        everything: dict[str, Any] = {
            "rebuild": "everything",
            "stored_describer": DESCRIBER_VERSION,
            "shards_in_flight": 1,
        }
        pipeline.migrate()
        paid, first_bad = server.embedded.copy(), server.request_count + 4
        server.faults = lambda index: "403" if index >= first_bad else None
        assert "Gemini refuses GEMINI_API_KEY" in pipeline.refusal(flow=backfill, **everything)
        halfway = server.embedded - paid
        assert 100 < len(halfway) < rows
        (_, job) = pipeline.jobs()
        assert (job["status"], job["metadata"]["resumable"]) == ("failed", True)

        server.faults = ()
        report = pipeline.complete(backfill, **everything)
        assert (report["read"], report["written"], report["unchanged"]) == (rows, rows, 0)
        again = server.embedded - paid
        assert {text: times for text, times in again.items() if times != 1 and text != CHECK} == {}
        assert report["embedded"] == len(again.keys() - {CHECK})
    (_, job) = pipeline.jobs()
    assert (job["status"], job["retryConfig"]["retryCount"]) == ("completed", 1)
    assert job["progress"] == {"total": rows, "processed": rows, "failed": 0, "percentage": 100.0}
    assert {row["version"] for row in pipeline.documents().values()} == {2}
    assert pipeline.store["ragcheckpoints"].count_documents({}) == 0
    assert not [path for path in (pipeline.home / "shards").rglob("*") if path.is_file()]


@pytest.mark.long
def test_a_backfill_that_paused_for_the_quota_goes_on_with_the_same_records_and_its_budget(
    pipeline: Pipeline, source_data: SourceData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.records.BATCH_RECORDS", 100)
    pipeline.load(source_data, source_data.some(300))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        pipeline.migrate()
        paid, spent_from = server.embedded.copy(), server.request_count + 3
        server.faults = lambda index: "429-day" if index >= spent_from else None
        pauses: list[str] = []

        def midnight(error: QuotaSpentError) -> None:
            pauses.append(str(error))
            (_, job) = pipeline.jobs()
            assert (job["status"], job["retryConfig"]["nextRetryAt"]) == ("retrying", error.until)
            server.faults = ()
            pipeline.begin_next_day()

        # Nobody waits for the real one.
        monkeypatch.setattr("flows.records.pause_until_the_quota_is_back", midnight)
        report = pipeline.complete(
            backfill, stored_describer=DESCRIBER_VERSION, rebuild="everything", limit=280, budget_usd=1.0
        )
        assert len(pauses) == 1
        assert (report["read"], report["written"], report["unchanged"]) == (280, 280, 0)
        again = server.embedded - paid
        assert {times for text, times in again.items() if text != CHECK} == {1}
    (_, job) = pipeline.jobs()
    assert (job["status"], job["retryConfig"]["retryCount"]) == ("completed", 1)
    assert job["metadata"]["choices"]["budgetAllowedUsd"] == 1.0
    assert job["metadata"]["runIds"] == [str(pipeline.last_run_id)]
    assert Counter(row["version"] for row in pipeline.documents().values()) == {1: 20, 2: 280}
