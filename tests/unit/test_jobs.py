"""Jobs: what the record of a run says while it runs, when it ends, and when it is taken up again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId

from tasks.domain.chunks import ChunkSize
from tasks.domain.jobs import JobOrigin, Kind, Status, job_id, job_record
from tasks.domain.manifests import Manifest, Owner
from tasks.domain.runs import Run, Scope
from tasks.domain.vectors import EmbedderFacts

BEGAN = datetime(2026, 3, 4, 5, 0, tzinfo=UTC)
NOW = BEGAN + timedelta(seconds=20)
TEAM = "67dcac002fd1a03439b29e1d"
FACTS = EmbedderFacts("model-a", 4, "none", 10, 100, usd_per_million_tokens=0.15)
RUN = Run(key="20260304T050000-0a1b2c3d", id="run 1", scope=Scope(), started_ms=int(BEGAN.timestamp() * 1000))
ORIGIN = JobOrigin("work", "command line", "host:1:2", "host", "migrate")


def record(
    status: Status = "processing", *, run: Run = RUN, origin: JobOrigin = ORIGIN, **given: Any
) -> dict[str, Any]:
    manifest = Manifest(embedded=30, tokens=2_000_000)
    manifest.add(
        Owner(TEAM, "contract_1"), read=40, written=25, unchanged=14, dead_lettered=1, chunks=50, created=20, updated=8
    )
    arguments = {"total": 80, "manifest": manifest, "now": NOW, "retries": 3, **given}
    return job_record(run, origin, FACTS, ChunkSize(), status=status, **arguments)


@pytest.mark.parametrize(
    ("kind", "name", "job_type"),
    [
        ("migrate", "migration", "migration"),
        ("backfill", "backfill", "reprocessing"),
        ("replay", "replay", "reprocessing"),
        ("reconcile", "reconcile", "batch_update"),
        ("ingest", "ingest", "batch_update"),
    ],
)
def test_a_job_is_named_for_its_flow_and_has_a_type_that_the_application_knows(
    kind: Kind, name: str, job_type: str
) -> None:
    made = record(origin=replace(ORIGIN, kind=kind))
    assert made["jobType"] == job_type
    assert made["jobId"] == job_id(RUN.key, kind)
    assert made["jobId"].partition("-")[0] == made["metadata"]["tags"][0] == kind


def test_parts_of_a_run_have_jobs_of_their_own() -> None:
    assert job_id("key", "partition", 7) == "partition-key-0007"
    assert job_id("key") == "migrate-key"


def test_progress_and_results_are_what_the_manifest_counts() -> None:
    made = record()
    assert made["progress"] == {"total": 80, "processed": 40, "failed": 1, "percentage": 50.0}
    assert made["results"] == {
        "documentsCreated": 20,
        "documentsUpdated": 8,
        "documentsSkipped": 22,
        "totalTokensUsed": 2_000_000,
        "totalCost": 0.3,
        "averageProcessingTime": 500.0,
    }
    assert (made["startedAt"], made["completedAt"], made["updatedAt"]) == (BEGAN, None, NOW)


@pytest.mark.parametrize(
    ("status", "ended"), [("completed", NOW), ("failed", NOW), ("cancelled", NOW), ("retrying", None)]
)
def test_a_job_has_an_end_when_nothing_more_is_done(status: Status, ended: datetime | None) -> None:
    assert record(status)["completedAt"] == ended


def test_work_without_records_is_done_when_it_has_ended_and_not_before() -> None:
    empty: dict[str, Any] = {"total": 0, "manifest": Manifest()}
    assert record("processing", **empty)["progress"]["percentage"] == 0
    assert record("completed", **empty)["progress"]["percentage"] == 100
    assert record("completed", **empty)["results"]["averageProcessingTime"] == 0
    # More than was planned: records that arrived meanwhile.
    assert record("completed", total=30)["progress"]["percentage"] == 100


def test_a_job_that_is_taken_up_counts_it_and_keeps_what_went_wrong_and_who_was_at_it() -> None:
    first = record("failed", error="the key is refused", resumable=True)
    assert (first["retryConfig"]["retryCount"], first["retryConfig"]["maxRetries"]) == (0, 3)
    again = replace(RUN, id="run 2", earlier_ids=("run 1",), started_ms=RUN.started_ms + 60_000)
    second = record("failed", run=again, previous=first, error="and again")
    assert second["retryConfig"]["retryCount"] == 1
    assert (second["startedAt"], second["createdAt"]) == (BEGAN, BEGAN)
    assert second["metadata"]["runIds"] == ["run 1", "run 2"]
    assert second["metadata"]["runId"] == "run 2"
    assert [(entry["error"], entry["errorCode"], entry["retryCount"]) for entry in second["errors"]] == [
        ("the key is refused", "run", 0),
        ("and again", "run", 1),
    ]
    third = record("completed", run=replace(again, id="run 3"), previous=second)
    assert third["retryConfig"]["retryCount"] == 2
    assert len(third["errors"]) == 2


def test_dead_letters_are_told_by_one_example_of_each_reason_and_not_told_twice() -> None:
    letters = {"amount_negative": {"count": 1_200, "sourceId": ObjectId(), "reason": "the amount -3 is below zero"}}
    first = record("failed", error="cut off", letters=letters)
    # Why it ended comes last: what goes on with the work looks there.
    assert [entry["errorCode"] for entry in first["errors"]] == ["amount_negative", "run"]
    example = first["errors"][0]
    assert example["sourceId"] == letters["amount_negative"]["sourceId"]
    assert example["error"] == "1,200 records, such as this one: the amount -3 is below zero"
    second = record("completed", previous=first, letters=letters)
    assert [entry["errorCode"] for entry in second["errors"]] == ["run", "amount_negative"]


def test_errors_are_cut_to_what_a_document_should_hold() -> None:
    previous = None
    for _ in range(60):
        previous = record("failed", error="x" * 5_000, previous=previous)
    assert previous is not None
    assert len(previous["errors"]) == 50
    assert max(len(entry["error"]) for entry in previous["errors"]) == 1_000


def test_a_paused_job_says_when_it_goes_on() -> None:
    later = NOW + timedelta(hours=3)
    paused = record("retrying", error="the day's quota is spent", next_retry=later)
    assert paused["retryConfig"]["nextRetryAt"] == paused["scheduledFor"] == later
    letters = {"amount_negative": {"count": 3, "sourceId": ObjectId(), "reason": "the amount -3 is below zero"}}
    spent = record("retrying", error="the budget is spent", error_code="budget", letters=letters)
    assert spent["errors"][-1]["errorCode"] == "budget"


def test_sizes_stay_within_what_the_applications_schema_allows() -> None:
    assert record(retries=50)["retryConfig"]["maxRetries"] == 10
    huge = job_record(
        RUN,
        ORIGIN,
        replace(FACTS, max_texts_per_request=5_000),
        ChunkSize(whole_tokens=100_000, size_tokens=50_000, overlap_tokens=20_000),
        status="processing",
        total=0,
        manifest=Manifest(),
        now=NOW,
        retries=0,
    )
    assert (huge["config"]["batchSize"], huge["config"]["chunkSize"], huge["config"]["overlapSize"]) == (
        100,
        8_000,
        1_000,
    )


def test_a_job_of_one_team_belongs_to_it() -> None:
    assert record(run=replace(RUN, scope=Scope(team_ids=(TEAM,))))["teamId"] == ObjectId(TEAM)
    assert record(run=replace(RUN, scope=Scope(team_ids=(TEAM, "0" * 24))))["teamId"] is None


def test_what_another_process_needs_to_go_on_is_kept() -> None:
    made = record(origin=replace(ORIGIN, choices={"shardRows": 5}), resumable=False)
    assert (made["metadata"]["choices"], made["metadata"]["resumable"]) == ({"shardRows": 5}, False)
    assert (made["metadata"]["fingerprint"], made["metadata"]["runKey"]) == ("work", RUN.key)
    assert (made["workerId"], made["workerHost"], made["metadata"]["triggeredBy"]) == (
        "host:1:2",
        "host",
        "command line",
    )
