"""Replay: dead letters once more after a fix, by reason, team and age; each is resolved or stays with its reason."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flows.replay import replay
from tests.end_to_end.pipeline import HeldRequest, Pipeline, Record, SourceData, beside
from tests.loopback.gemini import LoopbackGemini

#: Which value spoils a record, and the reason that is told of it.
SPOILED = {"NaN": "amount_unreadable", "-3.2": "amount_negative"}


@pytest.fixture
def refused(pipeline: Pipeline, source_data: SourceData) -> Pipeline:
    """A migrated source of 60 records, of which four can't be read and two hold negative amounts."""
    pipeline.load(source_data, source_data.some(60))
    for number, record in enumerate(list(pipeline.transactions.find({}).sort("_id", 1))[::10]):
        spoil(pipeline, record, "NaN" if number % 3 else "-3.2")
    assert pipeline.migrate()["refused"] == {"amount_negative": 2, "amount_unreadable": 4}
    return pipeline


def spoil(pipeline: Pipeline, record: Record, value: str) -> None:
    change = {"$set": {"value_eth": value, "good": record["value_eth"]}}
    pipeline.transactions.update_one({"_id": record["_id"]}, change)


def mend(pipeline: Pipeline, *values: str) -> int:
    """Give the spoiled records their own amounts back, those with one of these or all; return how many."""
    criteria = {"value_eth": {"$in": values or list(SPOILED)}}
    return int(pipeline.transactions.update_many(criteria, [{"$set": {"value_eth": "$good"}}]).modified_count)


def statuses(pipeline: Pipeline, **criteria: Any) -> dict[str, int]:
    return dict(Counter(letter["status"] for letter in pipeline.letters(**criteria)))


def test_what_a_fix_mends_or_is_gone_is_resolved_and_what_is_refused_again_stays_with_one_more_attempt(
    refused: Pipeline,
) -> None:
    first = {letter["sourceId"]: letter for letter in refused.letters()}
    changed, gone = [key for key, letter in first.items() if letter["code"] == "amount_unreadable"][:2]
    refused.transactions.update_one({"_id": changed}, {"$set": {"value_eth": "-1"}})
    refused.transactions.delete_one({"_id": gone})
    mend(refused, "-3.2")
    before = refused.documents()
    report = refused.complete(replay)
    assert (report["resolved"], report["still_open"], report["read"], report["written"]) == (3, 3, 5, 2)
    assert report["refused"] == {"amount_negative": 1, "amount_unreadable": 2}
    state = refused.flow_run().state
    assert state is not None
    assert str(state.message).startswith("3 of 6 dead letters resolved, 3 stay open")
    again = {letter["sourceId"]: letter for letter in refused.letters(status="open")}
    assert (again[changed]["code"], again[changed]["attempts"]) == ("amount_negative", 2)
    assert {letter["attempts"] for letter in again.values()} == {2}
    assert all(letter["firstSeen"] == first[key]["firstSeen"] < letter["time"] for key, letter in again.items())
    (letter,) = refused.letters(sourceId=gone)
    assert (letter["status"], letter["attempts"]) == ("resolved", 1)

    # A fix for all of them.
    assert mend(refused, "NaN", "-1") == 3
    report = refused.complete(replay)
    assert (report["resolved"], report["still_open"]) == (3, 0)
    assert (report["read"], report["written"], report["dead_lettered"]) == (3, 3, 0)
    assert statuses(refused) == {"resolved": 6}
    assert sum(letter["resolvedBy"] == str(refused.last_run_id) for letter in refused.letters()) == 3
    after = refused.documents()
    assert {key: after[key] for key in before} == before
    assert refused.stored_source_ids() == {row["_id"] for row in refused.transactions.find({}, {"_id": 1})}
    # There is nothing left to do.
    assert refused.complete(replay)["read"] == 0


@pytest.mark.long
def test_reason_team_age_and_limit_choose_the_dead_letters(refused: Pipeline) -> None:
    mend(refused)
    letters = refused.letters()
    box = refused.store["deadletters"]
    old, oldest = letters[0]["_id"], letters[1]["_id"]
    for letter, hours in ((old, 30), (oldest, 50)):
        box.update_one({"_id": letter}, {"$set": {"time": datetime.now(UTC) - timedelta(hours=hours)}})
    team, of_team = Counter(str(letter["teamId"]) for letter in letters).most_common(1)[0]
    for chosen, expected in (
        ({"reasons": ["amount_negative"]}, 2),
        ({"teams": [team]}, of_team),
        ({"older_than_hours": 24}, 2),
        ({"newer_than_hours": 40, "older_than_hours": 24}, 1),
        ({"limit": 5}, 5),
    ):
        assert refused.complete(replay, dry_run=True, **chosen)["resolved"] == expected
    assert refused.complete(replay, limit=1)["resolved"] == 1
    assert refused.flow_run().name == "replay all dead letters"
    assert box.find_one(oldest)["status"] == "resolved"  # type: ignore[index]
    assert refused.complete(replay, reasons=["amount_negative"])["resolved"] in (1, 2)
    assert statuses(refused, code="amount_negative") == {"resolved": 2}
    assert "open" in statuses(refused)


def test_a_dry_run_and_a_choice_that_can_not_be_meant_change_nothing(refused: Pipeline) -> None:
    mend(refused, "NaN")
    before = refused.fingerprint()
    report = refused.complete(replay, dry_run=True)
    assert (report["resolved"], report["still_open"], report["dry_run"]) == (4, 2, True)
    assert report["tokens"] > 0
    state = refused.flow_run().state
    assert state is not None
    assert "4 of 6 dead letters would be resolved" in str(state.message)
    assert refused.flow_run().name == "dry run: replay all dead letters"

    message = refused.refusal(flow=replay, reasons=["amount_unreadable", "typo"])
    assert "no open dead letter has the reason typo; there are: amount_unreadable 4, amount_negative 2" in message
    assert "nothing is older than 48 hours and newer than 24" in refused.refusal(
        flow=replay, older_than_hours=48, newer_than_hours=24
    )
    assert refused.fingerprint() == before


@pytest.mark.long
def test_a_replay_has_its_job_and_the_same_one_twice_at_once_is_refused(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(20))
    spoil(pipeline, pipeline.transactions.find_one({}), "NaN")
    held = HeldRequest()
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server)
        pipeline.migrate()
        mend(pipeline)
        held.hold(server.request_count + 1)  # after the check
        with beside(lambda: pipeline.complete(replay)) as first:
            held.wait(first)
            try:
                assert "is at this work right now" in pipeline.refusal(flow=replay)
            finally:
                held.release()
            report = first.result()
    assert report["resolved"] == 1
    _, job = pipeline.jobs()
    assert (job["jobId"], job["jobType"]) == (f"replay-{report['run_id']}", "reprocessing")
    assert (job["status"], job["progress"]["total"], job["results"]["documentsCreated"]) == ("completed", 1, 1)
