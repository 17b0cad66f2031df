"""Two writers at one record: whatever the order of their writes, the newer text is what stays stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flows.ingest import ingest
from tests.end_to_end.pipeline import HeldRequest, Pipeline, Record, SourceData, beside, comparable, repeated
from tests.loopback.gemini import LoopbackGemini

ROWS = 30
STORY = "A long story about a token and its holders. "
#: What the slower writer read of the records, and what the quicker one has stored of them by the time it writes.
OLDER, NEWER = {"status": "Success", "method_name": "older"}, {"status": "Failed", "method_name": "newer"}


def by_ingest(pipeline: Pipeline) -> Record:
    return pipeline.complete(ingest, until_idle=True)


def by_another_migration(pipeline: Pipeline) -> Record:
    return pipeline.migrate(limit=10)


def methods(pipeline: Pipeline, records: list[Any]) -> set[Any]:
    found = pipeline.store["vectordocuments"].find({"sourceId": {"$in": records}})
    return {row["metadata"]["facts"].get("method") for row in found}


@pytest.mark.parametrize("quicker", [by_ingest, by_another_migration])
@pytest.mark.long
def test_a_migration_that_was_held_up_does_not_overwrite_what_another_writer_stored_meanwhile(
    pipeline: Pipeline, source_data: SourceData, quicker: Callable[[Pipeline], Record]
) -> None:
    rows = [repeated(row, 1 + at) for at, row in enumerate(source_data.some(ROWS))]
    raced, mine = [row["_id"] for row in rows[:2]], [row["_id"] for row in rows[20:25]]
    held = HeldRequest()
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server)
        pipeline.load(source_data, rows)
        pipeline.migrate()
        change = {"_id": {"$in": [*raced, *mine]}}
        pipeline.transactions.update_many(change, {"$set": OLDER})
        held.hold(server.request_count + 1)  # after the check: the shard is read and compared
        with beside(pipeline.migrate) as slower:
            held.wait(slower)
            try:
                pipeline.transactions.update_many({"_id": {"$in": raced}}, {"$set": NEWER})
                assert quicker(pipeline)["written"] >= len(raced)
                assert methods(pipeline, raced) == {"newer"}
                stored = pipeline.documents()
            finally:
                held.release()
            report = slower.result()
        after = pipeline.documents()
        assert (methods(pipeline, raced), methods(pipeline, mine)) == ({"newer"}, {"older"})
        assert {key: row for key, row in after.items() if row["sourceId"] in raced} == {
            key: row for key, row in stored.items() if row["sourceId"] in raced
        }
        assert report["read"] == ROWS == report["written"] + report["unchanged"] + report["dead_lettered"]
        # It wrote what the other had not: the raced records are unchanged to it.
        written = {row["sourceId"] for row in after.values() if row["runId"] == report["flow_run_id"]}
        assert report["written"] == len(written)
        assert not written & set(raced)
        assert pipeline.migrate()["unchanged"] == ROWS


@pytest.mark.long
def test_a_record_that_is_new_to_both_is_stored_as_the_newer_one_read_it(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = [repeated(row, 1 + at) for at, row in enumerate(source_data.some(ROWS))]
    fresh = {**rows[-1], **OLDER}
    held = HeldRequest()
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server)
        pipeline.load(source_data, rows[:-1])
        pipeline.migrate()
        pipeline.transactions.insert_one(fresh)
        held.hold(server.request_count + 1)  # after the check
        with beside(pipeline.migrate) as slower:
            held.wait(slower)
            try:
                pipeline.transactions.update_one({"_id": fresh["_id"]}, {"$set": NEWER})
                assert by_ingest(pipeline)["written"] == 1
            finally:
                held.release()
            report = slower.result()
    assert methods(pipeline, [fresh["_id"]]) == {"newer"}
    assert (report["read"], report["written"], report["unchanged"]) == (ROWS, 0, ROWS)


def test_what_ingest_mends_deletes_and_refuses_meanwhile_stays_so_and_is_no_difference(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = [repeated(row, 1 + at) for at, row in enumerate(source_data.some(ROWS))]
    # Of the first shard, which is finished by then, and of the second, which is read and compared.
    deleted, refused = (row["_id"] for row in rows[:2])
    spoiled, gone, changed = (row["_id"] for row in rows[20:23])
    held = HeldRequest()
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server)
        pipeline.load(source_data, rows)
        pipeline.migrate()
        pipeline.transactions.update_one({"_id": spoiled}, {"$set": {"value_eth": "NaN"}})
        pipeline.transactions.update_one({"_id": changed}, {"$set": OLDER})
        held.hold(server.request_count + 1)  # after the check
        with beside(lambda: pipeline.migrate(shard_rows=15, shards_in_flight=1)) as slower:
            held.wait(slower)
            try:
                assert pipeline.store["ragcheckpoints"].distinct("shard") == [0]
                pipeline.transactions.update_one({"_id": spoiled}, {"$set": {"value_eth": "7.25"}})
                pipeline.transactions.update_one({"_id": refused}, {"$set": {"value_eth": "NaN"}})
                pipeline.transactions.delete_many({"_id": {"$in": [deleted, gone]}})
                assert by_ingest(pipeline)["dead_lettered"] == 1
            finally:
                held.release()
            report = slower.result()
    # What was read as unusable and is mended keeps its vectors.
    assert pipeline.stored_source_ids() == {row["_id"] for row in rows} - {deleted, refused, gone}
    assert [letter["sourceId"] for letter in pipeline.letters(status="open")] == [refused]
    # The first shard counted what was so when it was read.
    assert (report["read"], report["written"], report["dead_lettered"]) == (ROWS - 1, 1, 0)


@pytest.mark.long
def test_a_text_that_grew_meanwhile_keeps_all_its_chunks(pipeline: Pipeline, source_data: SourceData) -> None:
    rows = [repeated(row, 1 + at) for at, row in enumerate(source_data.some(3))]
    rows[1]["token_name"] = STORY * 400
    record = rows[1]["_id"]
    held = HeldRequest()
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server)
        pipeline.load(source_data, rows)
        pipeline.migrate()
        pipeline.transactions.update_one({"_id": record}, {"$set": {"token_name": "Short"}})
        held.hold(server.request_count + 1)  # after the check
        with beside(pipeline.migrate) as slower:
            held.wait(slower)
            try:
                pipeline.transactions.update_one({"_id": record}, {"$set": {"token_name": STORY * 300}})
                by_ingest(pipeline)
                newer = pipeline.documents()
            finally:
                held.release()
            slower.result()
    assert comparable(pipeline.documents()) == comparable(newer)
    assert sum(row["sourceId"] == record for row in newer.values()) > 3
