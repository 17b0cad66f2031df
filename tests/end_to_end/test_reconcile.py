"""Reconcile: what differs between source and store is found record by record, and mended without touching the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from bson import ObjectId
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

from flows.ingest import ingest
from flows.reconcile import reconcile
from tests.end_to_end.pipeline import (
    HeldRequest,
    Pipeline,
    Record,
    SourceData,
    beside,
    comparable,
    prefect_client,
    repeated,
)
from tests.loopback.gemini import LoopbackGemini

ROWS = 300
KINDS = ("missing", "stale", "doubled", "unaccounted", "orphaned")


@pytest.fixture
def migrated(pipeline: Pipeline, source_data: SourceData) -> Pipeline:
    """A migrated source with three records that are refused and one of several chunks."""
    rows = source_data.some(ROWS)
    rows = [{**row, "value_eth": "NaN"} if at in (1, 101, 201) else row for at, row in enumerate(rows)]
    pipeline.load(source_data, rows)
    story = "A long story about a token and its holders. " * 400
    pipeline.transactions.insert_one(repeated(rows[0], 1, token_name=story))
    assert pipeline.migrate(shard_rows=100)["dead_lettered"] == 3
    return pipeline


def records(pipeline: Pipeline, start: int, count: int) -> list[Any]:
    """Return some of the stored records of one chunk, others for another start."""
    stored = pipeline.store["vectordocuments"].find({"lineage.chunks": 1}, {"sourceId": 1}).sort("sourceId", 1)
    return [row["sourceId"] for row in stored][start : start + count]


def lose_documents(pipeline: Pipeline) -> set[Any]:
    lost = records(pipeline, 0, 4)
    pipeline.store["vectordocuments"].delete_many({"sourceId": {"$in": lost}})
    # One chunk of many, which no count of records tells.
    pipeline.store["vectordocuments"].delete_one({"lineage.ordinal": 3})
    return {*lost, ObjectId(f"{1:024x}")}


def change_documents(pipeline: Pipeline) -> set[Any]:
    changed = records(pipeline, 10, 3)
    pipeline.store["vectordocuments"].update_many(
        {"sourceId": {"$in": changed}}, {"$set": {"content": "not what the source says", "rowHash": b"\1" * 16}}
    )
    return set(changed)


def move_contract(pipeline: Pipeline) -> set[Any]:
    rows = list(pipeline.store["vectordocuments"].find({"lineage.chunks": 1}))
    contract, _ = Counter(row["metadata"]["facts"]["contractId"] for row in rows).most_common()[-1]
    moved = {row["sourceId"] for row in rows if row["metadata"]["facts"]["contractId"] == contract}
    old = pipeline.source["smartcontracts"].find_one({"contractId": contract})["team"]  # type: ignore[index]
    new = pipeline.source["teams"].find_one({"_id": {"$ne": old}})["_id"]  # type: ignore[index]
    pipeline.source["smartcontracts"].update_one({"contractId": contract}, {"$set": {"team": new}})
    # A change of an owner is none of the records that ingest follows.
    assert pipeline.complete(ingest, until_idle=True)["written"] == 0
    return moved


def delete_records(pipeline: Pipeline) -> set[Any]:
    gone = records(pipeline, 20, 5)
    pipeline.transactions.delete_many({"_id": {"$in": gone}})
    return set(gone)


def double_documents(pipeline: Pipeline) -> set[Any]:
    doubled = records(pipeline, 30, 2)
    vectors = pipeline.store["vectordocuments"]
    for record in doubled:
        row: Record = vectors.find_one({"sourceId": record})  # type: ignore[assignment]
        vectors.insert_one({**row, "_id": ObjectId(), "documentId": f"transaction:contract_of_old:{record}:0"})
    # A refused record has no document at all.
    refused = pipeline.letters()[0]["sourceId"]
    vectors.insert_one({**row, "_id": ObjectId(), "sourceId": refused, "documentId": f"transaction:x:{refused}:0"})
    return {*doubled, refused}


def lose_dead_letters(pipeline: Pipeline) -> set[Any]:
    letter = pipeline.letters()[0]
    pipeline.store["deadletters"].delete_one({"_id": letter["_id"]})
    # And one that stayed open though its record is stored.
    stored = records(pipeline, 40, 1)[0]
    pipeline.store["deadletters"].insert_one({**letter, "_id": ObjectId(), "sourceId": stored})
    return {letter["sourceId"], stored}


DAMAGES: list[tuple[str, Callable[[Pipeline], set[Any]]]] = [
    ("missing", lose_documents),
    ("stale", change_documents),
    ("stale", move_contract),
    ("orphaned", delete_records),
    ("doubled", double_documents),
    ("unaccounted", lose_dead_letters),
]


def expected_documents(pipeline: Pipeline) -> dict[str, Record]:
    """Return what a migration of the source as it stands makes in an empty store."""
    kept = pipeline.documents()
    letters = pipeline.letters()
    pipeline.empty_store()
    pipeline.migrate(shard_rows=100)
    made = comparable(pipeline.documents(), "version")
    vectors, box = pipeline.store["vectordocuments"], pipeline.store["deadletters"]
    vectors.delete_many({})
    vectors.insert_many(kept.values())
    box.delete_many({})
    box.insert_many(letters)
    return made


def shown(pipeline: Pipeline) -> str:
    """Return the list of differences of the last run."""
    assert pipeline.last_run_id is not None
    with prefect_client() as client:
        (artifact,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[pipeline.last_run_id]),
                key=ArtifactFilterKey(any_=["reconcile-differences"]),
            )
        )
    return str(artifact.data)


@pytest.mark.parametrize(("kind", "damage"), DAMAGES, ids=[damage.__name__ for _, damage in DAMAGES])
def test_what_differs_is_found_mended_and_nothing_else_is_touched(
    migrated: Pipeline, kind: str, damage: Callable[[Pipeline], set[Any]]
) -> None:
    damaged = damage(migrated)
    assert damaged
    before, expected = migrated.documents(), expected_documents(migrated)
    letters = migrated.letters()
    told = migrated.refusal(flow=reconcile, heal=False, shard_rows=100)
    assert f"source and store differ: {len(damaged)} {kind}." in told
    assert migrated.documents() == before
    assert migrated.letters() == letters

    report = migrated.complete(reconcile, shard_rows=100)
    assert {name: report[name] for name in KINDS} == dict.fromkeys(KINDS, 0) | {kind: len(damaged)}
    assert report["compared"] == migrated.transactions.count_documents({})
    assert report["mended"] == len(damaged)
    assert {f"- {record}" for record in damaged} <= set(shown(migrated).splitlines())
    after = migrated.documents()
    assert comparable(after, "version") == expected
    untouched = {key: row for key, row in before.items() if row["sourceId"] not in damaged}
    assert {key: row for key, row in after.items() if row["sourceId"] not in damaged} == untouched
    refused = {row["_id"] for row in migrated.transactions.find({"value_eth": "NaN"})}
    assert {letter["sourceId"] for letter in migrated.letters(status="open")} == refused

    again = migrated.complete(reconcile, shard_rows=100)
    assert {name: again[name] for name in (*KINDS, "mended", "written", "removed")} == dict.fromkeys(
        (*KINDS, "mended", "written", "removed"), 0
    )
    assert migrated.documents() == after


def test_everything_at_once_is_told_by_kind_and_mended_in_one_run(migrated: Pipeline) -> None:
    found = Counter(dict.fromkeys(KINDS, 0))
    for kind, damage in DAMAGES:
        if damage is not move_contract:
            found[kind] += len(damage(migrated))
    expected = expected_documents(migrated)
    report = migrated.complete(reconcile)
    # The refused record that lost its dead letter has a document too: it is told under both.
    assert {name: report[name] for name in KINDS} == dict(found)
    assert comparable(migrated.documents(), "version") == expected
    assert "nothing differs" in str(migrated.run(reconcile, heal=False).message)


def test_a_run_where_nothing_differs_embeds_and_writes_nothing(pipeline: Pipeline, source_data: SourceData) -> None:
    pipeline.load(source_data, source_data.some(50))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        pipeline.migrate()
        before, embedded = pipeline.documents(), server.embedded.copy()
        report = pipeline.complete(reconcile)
        assert (report["compared"], report["mended"], report["written"]) == (50, 0, 0)
        # Asked for one word, to see that it answers.
        assert (server.embedded - embedded).keys() == {"transaction"}
        # Without mending nobody is asked anything.
        embedded = server.embedded.copy()
        assert pipeline.complete(reconcile, heal=False)["compared"] == 50
        assert server.embedded == embedded
    assert pipeline.documents() == before
    assert [job["status"] for job in pipeline.jobs()] == ["completed"] * 3
    assert {job["jobType"] for job in pipeline.jobs()[1:]} == {"batch_update"}


def test_only_what_differs_is_embedded(pipeline: Pipeline, source_data: SourceData) -> None:
    pipeline.load(source_data, source_data.some(50))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        pipeline.migrate()
        lost = list(pipeline.documents().values())[7]
        pipeline.store["vectordocuments"].delete_one({"_id": lost["_id"]})
        embedded = server.embedded.copy()
        assert pipeline.complete(reconcile)["written"] == 1
        assert (server.embedded - embedded).keys() == {"transaction", lost["content"]}


def test_documents_of_another_source_are_neither_compared_nor_touched(migrated: Pipeline) -> None:
    vectors = migrated.store["vectordocuments"]
    row: Record = vectors.find_one({"lineage.chunks": 1})  # type: ignore[assignment]
    for number, record in enumerate((row["sourceId"], ObjectId())):
        other = {"_id": ObjectId(), "documentId": f"session:s:{number}:0", "sourceType": "session", "sourceId": record}
        vectors.insert_one({**row, **other})
    before = migrated.documents()
    assert migrated.complete(reconcile, heal=False)["orphaned"] == 0
    assert migrated.complete(reconcile)["mended"] == 0
    assert migrated.documents() == before


def test_many_orphans_at_once_are_doubted_and_nothing_is_touched_until_somebody_says_so(migrated: Pipeline) -> None:
    gone = records(migrated, 0, 150)
    migrated.transactions.delete_many({"_id": {"$in": gone}})
    changed = change_documents(migrated) - set(gone)
    before = migrated.documents()
    message = migrated.refusal(flow=reconcile)
    assert "150 of 301 stored records are not in the source" in message
    assert "--remove-orphans" in message
    assert "## orphaned" in shown(migrated)
    assert migrated.documents() == before
    job = migrated.jobs()[-1]
    assert (job["status"], "--remove-orphans" in job["errors"][-1]["error"]) == ("failed", True)

    report = migrated.complete(reconcile, remove_orphans=True)
    assert (report["orphaned"], report["removed"], report["stale"]) == (150, 150, len(changed))
    assert not set(gone) & migrated.stored_source_ids()


def test_a_dead_letter_of_a_record_that_is_gone_is_closed(migrated: Pipeline) -> None:
    letter = migrated.letters()[0]
    migrated.transactions.delete_one({"_id": letter["sourceId"]})
    migrated.complete(reconcile)
    assert [one["status"] for one in migrated.letters(sourceId=letter["sourceId"])] == ["resolved"]


# -- writers at work meanwhile -----------------------------------------------------------------------------


def test_what_a_live_writer_stored_between_comparing_and_mending_is_not_undone(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    story = "A long story about a token and its holders. "
    rows = [repeated(row, 1 + at) for at, row in enumerate(source_data.some(20))]
    pipeline.load(source_data, rows)
    held = HeldRequest()
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server)
        pipeline.migrate()
        vectors, transactions = pipeline.store["vectordocuments"], pipeline.transactions
        lost, stale, doubled, refused = (row["_id"] for row in rows[:4])
        vectors.delete_one({"sourceId": lost})
        vectors.update_one({"sourceId": stale}, {"$set": {"rowHash": b"\1" * 16, "contentHash": b"\1" * 16}})
        row: Record = vectors.find_one({"sourceId": doubled})  # type: ignore[assignment]
        vectors.insert_one({**row, "_id": ObjectId(), "documentId": f"transaction:old:{doubled}:0"})
        transactions.update_one({"_id": refused}, {"$set": {"value_eth": "NaN"}})
        held.hold(server.request_count + 1)  # after the check: what differs is known, read and described
        with beside(lambda: pipeline.complete(reconcile)) as reconciling:
            held.wait(reconciling)
            try:
                # Each changes once more: longer, shorter, readable again; and all of it is stored by ingest.
                transactions.update_one({"_id": lost}, {"$set": {"status": "Failed", "method_name": "newer"}})
                transactions.update_one({"_id": stale}, {"$set": {"status": "Failed", "method_name": "newer"}})
                transactions.update_one({"_id": doubled}, {"$set": {"token_name": story * 400}})
                transactions.update_one({"_id": refused}, {"$set": {"value_eth": "7.25"}})
                assert pipeline.complete(ingest, until_idle=True)["written"] == 4
                newer = pipeline.documents()
            finally:
                held.release()
            report = reconciling.result()
        after = pipeline.documents()
        assert comparable(after) == comparable(
            {k: row for k, row in newer.items() if not k.startswith("transaction:old")}
        )
        assert {row["metadata"]["facts"]["method"] for row in after.values() if row["sourceId"] in (lost, stale)} == {
            "newer"
        }
        assert sum(row["sourceId"] == doubled for row in after.values()) > 3
        assert refused in {row["sourceId"] for row in after.values()}
        assert pipeline.letters(status="open") == []
        assert (report["written"], report["missing"]) == (0, 1)
        assert pipeline.complete(reconcile)["mended"] == 0


def test_a_second_reconcile_at_once_is_refused(pipeline: Pipeline, source_data: SourceData) -> None:
    pipeline.load(source_data, source_data.some(20))
    held = HeldRequest()
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server)
        pipeline.migrate()
        pipeline.store["vectordocuments"].delete_one({})
        held.hold(server.request_count + 1)  # after the check
        with beside(lambda: pipeline.complete(reconcile)) as first:
            held.wait(first)
            try:
                assert "is at this work right now" in pipeline.refusal(flow=reconcile)
            finally:
                held.release()
            assert first.result()["written"] == 1
