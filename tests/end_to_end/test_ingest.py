"""Ingest: the store follows the source's inserts, updates and deletes, from a position that never runs ahead."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient

from flows.ingest import ingest
from tests.end_to_end.pipeline import Pipeline, Record, SourceData, comparable, open_pipeline

ROWS = 300
LONGEST_LAG_S = 10.0


def take_over(pipeline: Pipeline, **parameters: Any) -> Record:
    """Return the report of a run of ingest that must complete; by default it ends when nothing is left."""
    state = pipeline.run(ingest, **{"until_idle": True, **parameters})
    assert state.is_completed(), state.message
    report: Record = state.result()
    return report


def as_if_migrated_now(pipeline: Pipeline) -> dict[str, Record]:
    """Return the documents that a migration of the source as it stands makes in an empty store."""
    with open_pipeline(
        pipeline.settings.cryptique_source_uri.get_secret_value(),  # type: ignore[union-attr]
        pipeline.source.client,
        pipeline.home / "compared",
        separate_store=True,
    ) as other:
        other.use(
            cryptique_source_database=pipeline.source.name, cryptique_vectors_database=f"{pipeline.store.name}_compared"
        )
        other.store = pipeline.source.client[f"{pipeline.store.name}_compared"]
        other.migrate()
        documents = comparable(other.documents())
        other.empty_store()
    return documents


@pytest.fixture
def followed(pipeline: Pipeline, source_data: SourceData) -> Pipeline:
    """A pipeline whose source was migrated, so that its changes are followed from then on."""
    pipeline.load(source_data, source_data.some(ROWS))
    pipeline.migrate()
    return pipeline


def change_everything(pipeline: Pipeline, source_data: SourceData) -> dict[str, int]:
    """Insert, update, replace and delete in the source; return how many of each."""
    records = list(pipeline.transactions.find({}).sort("_id", 1))
    fresh = [row for row in source_data.some(ROWS + 60, seed=2) if not pipeline.transactions.find_one(row["_id"])][:50]
    pipeline.transactions.insert_many(fresh)
    for record in records[:20]:
        pipeline.transactions.update_one({"_id": record["_id"]}, {"$set": {"value_eth": "77.25"}})
    for record in records[20:30]:
        pipeline.transactions.replace_one({"_id": record["_id"]}, {**record, "gas_used": 4_242_424})
    gone = [record["_id"] for record in records[30:45]]
    pipeline.transactions.delete_many({"_id": {"$in": gone}})
    return {"inserted": len(fresh), "updated": 20, "replaced": 10, "deleted": len(gone)}


def test_what_changed_since_the_migration_is_taken_over_and_nothing_else_is_touched(
    followed: Pipeline, source_data: SourceData
) -> None:
    before = followed.documents()
    changed = change_everything(followed, source_data)
    report = take_over(followed)
    assert report["caught_up"] is None
    # Changes from before the migration's end are seen once more, and found unchanged.
    assert report["written"] == changed["inserted"] + changed["updated"] + changed["replaced"]
    assert report["removed"] == changed["deleted"]
    assert report["read"] == report["written"] + report["unchanged"] + report["dead_lettered"]
    after = followed.documents()
    untouched = before.keys() & after.keys() - {key for key, row in after.items() if row["version"] > 1}
    assert all(after[key] == before[key] for key in untouched)
    assert comparable(after, "version") == {
        key: {name: value for name, value in row.items() if name != "version"}
        for key, row in as_if_migrated_now(followed).items()
    }
    assert take_over(followed)["batches"] == 0


@pytest.mark.long
def test_changes_made_while_it_follows_are_searchable_within_seconds(
    followed: Pipeline, source_data: SourceData, mongo_uri: str
) -> None:
    rows = source_data.some(ROWS + 1_500, seed=3)
    known = {record["_id"] for record in followed.transactions.find({}, {"_id": 1})}
    fresh = [row for row in rows if row["_id"] not in known][:1_000]

    def write() -> None:
        with MongoClient[Record](mongo_uri, tz_aware=True) as client:
            transactions = client[followed.source.name]["transactions"]
            for start in range(0, len(fresh), 50):
                some = fresh[start : start + 50]
                transactions.insert_many(some)
                transactions.update_many(
                    {"_id": {"$in": [row["_id"] for row in some[:15]]}}, {"$set": {"status": "Failed"}}
                )
                transactions.delete_many({"_id": {"$in": [row["_id"] for row in some[40:]]}})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        report = take_over(followed, max_seconds=25, until_idle=False)
    finally:
        writer.join()
    rest = take_over(followed)
    assert report["batches"] > 0
    assert report["lag_p95_s"] < LONGEST_LAG_S
    assert rest["dead_lettered"] == report["dead_lettered"] == 0
    assert followed.stored_source_ids() == {row["_id"] for row in followed.transactions.find({}, {"_id": 1})}
    failed = followed.store["vectordocuments"].count_documents({"metadata.facts.status": "failed"})
    assert failed == sum(
        1 for row in as_if_migrated_now(followed).values() if row["metadata"]["facts"].get("status") == "failed"
    )


@pytest.mark.long
def test_without_a_position_the_whole_source_is_compared_once_and_then_followed(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(40))
    first = take_over(pipeline)
    assert first["caught_up"] == "nothing was followed before"
    assert len(pipeline.stored_source_ids()) == 40
    pipeline.transactions.delete_one({})
    second = take_over(pipeline)
    assert (second["caught_up"], second["removed"]) == (None, 1)


@pytest.mark.parametrize("loss", [pytest.param("an unknown token", marks=pytest.mark.long), "a dropped collection"])
def test_lost_history_is_told_and_healed_by_comparing_everything(
    followed: Pipeline, source_data: SourceData, loss: str
) -> None:
    if loss == "an unknown token":
        followed.store["ragstore"].update_one(
            {"_id": "position:transaction"}, {"$set": {"token": {"_data": "8200"}}, "$unset": {"operationTime": ""}}
        )
        followed.transactions.delete_one({})
    else:
        followed.source.drop_collection("transactions")
        followed.transactions.insert_many(source_data.some(ROWS - 5))
    report = take_over(followed)
    assert report["caught_up"]
    assert followed.stored_source_ids() == {row["_id"] for row in followed.transactions.find({}, {"_id": 1})}
    assert take_over(followed)["caught_up"] is None


def test_a_run_that_dies_before_its_position_is_saved_is_taken_up_and_nothing_comes_twice(
    followed: Pipeline, source_data: SourceData
) -> None:
    changed = change_everything(followed, source_data)
    position = followed.store["ragstore"].find_one({"_id": "position:transaction"})
    followed.store.command("collMod", "ragstore", validator={"nobody": {"$exists": True}})
    state = followed.run(ingest, until_idle=True)
    assert state.is_failed()
    assert followed.store["ragstore"].find_one({"_id": "position:transaction"}) == position
    stored = followed.documents()
    followed.store.command("collMod", "ragstore", validator={})
    report = take_over(followed)
    # What was written counts now that it is accounted for; the same versions and times say that nobody wrote again.
    assert report["written"] == changed["inserted"] + changed["updated"] + changed["replaced"]
    assert followed.documents() == stored
    assert [job["retryConfig"]["retryCount"] for job in followed.jobs() if "ingest" in job["metadata"]["tags"]] == [1]


def test_a_record_that_can_not_be_used_any_more_loses_its_vectors_and_gets_a_dead_letter_until_it_is_mended(
    followed: Pipeline,
) -> None:
    record = followed.transactions.find_one({})
    followed.transactions.update_one({"_id": record["_id"]}, {"$set": {"value_eth": "NaN"}})
    report = take_over(followed)
    assert (report["dead_lettered"], report["refused"]) == (1, {"amount_unreadable": 1})
    assert record["_id"] not in followed.stored_source_ids()
    followed.transactions.update_one({"_id": record["_id"]}, {"$set": {"value_eth": record["value_eth"]}})
    assert take_over(followed)["written"] == 1
    assert [letter["status"] for letter in followed.letters(sourceId=record["_id"])] == ["resolved"]


def test_a_source_without_history_is_read_from_its_watermark_with_an_overlap(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(20))
    assert take_over(pipeline, follow="watermark")["caught_up"] == "nothing was followed before"
    template = pipeline.transactions.find_one({})
    now = datetime.now(UTC)
    made = [now + timedelta(seconds=1), now - timedelta(minutes=9), now - timedelta(minutes=11)]
    for number, moment in enumerate(made):
        pipeline.transactions.insert_one(
            {**template, "_id": ObjectId(), "tx_hash": f"0x{number:064x}", "createdAt": moment}
        )
    report = take_over(pipeline, follow="watermark")
    assert report["written"] == 2  # the third lies before the overlap: the next whole migration finds it
    again = take_over(pipeline, follow="watermark")
    assert (again["written"], again["caught_up"]) == (0, None)


@pytest.mark.long
def test_each_run_that_took_something_over_has_its_job(followed: Pipeline) -> None:
    followed.transactions.update_one({}, {"$set": {"value_eth": "3.5"}})
    report = take_over(followed)
    job = followed.jobs()[-1]
    assert (job["jobId"], job["jobType"], job["status"]) == (f"ingest-{report['run_id']}", "batch_update", "completed")
    assert job["results"]["documentsUpdated"] == 1
