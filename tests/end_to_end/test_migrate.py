"""Migrate with the offline embedder: every record accounted for, written once, and kept true afterwards."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from bson import ObjectId
from pymongo import MongoClient

from tasks.domain.collections import EMBEDDING_JOBS
from tests.end_to_end.pipeline import (
    Pipeline,
    Record,
    SourceData,
    comparable,
    open_pipeline,
    repeated,
    vector_of,
)
from tests.end_to_end.run_records import STAGES, counts_by_contract, inputs_of, task_runs

DATE = datetime(2024, 3, 1, tzinfo=UTC)


# -- the whole sample --------------------------------------------------------------------------------------


class Whole:
    """All real rows, migrated once for the tests of this module."""

    def __init__(self, pipeline: Pipeline, data: SourceData) -> None:
        self.pipeline = pipeline
        pipeline.load(data, data.transactions)
        self.report = pipeline.migrate(shard_rows=2_000)
        self.run_id = pipeline.last_run_id


@pytest.fixture(scope="module")
def whole(
    prefect_api: str,
    mongo_uri: str,
    mongo_client: MongoClient[Record],
    source_data: SourceData,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Whole]:
    with open_pipeline(mongo_uri, mongo_client, tmp_path_factory.mktemp("whole")) as pipeline:
        yield Whole(pipeline, source_data)


def test_all_real_rows_are_written_and_the_accounting_closes_in_total_and_per_owner(
    whole: Whole, source_data: SourceData
) -> None:
    report = whole.report
    assert report["read"] == len(source_data.transactions) == 7_845
    assert report["read"] == report["written"] + report["unchanged"] + report["dead_lettered"]
    assert (report["written"], report["unchanged"], report["dead_lettered"]) == (7_845, 0, 0)

    documents = whole.pipeline.documents("embedding")
    assert len(documents) == report["chunks"]
    assert {row["sourceId"] for row in documents.values()} == {row["_id"] for row in source_data.transactions}
    in_source = Counter(row["contractId"] for row in source_data.transactions)
    in_store = Counter(
        row["metadata"]["facts"]["contractId"] for row in documents.values() if row["lineage"]["ordinal"] == 0
    )
    assert in_store == in_source
    assert whole.run_id is not None
    shown = counts_by_contract(whole.run_id)
    assert len(shown) == 50
    for contract_id, (team_id, read, written, unchanged, dead_lettered) in shown.items():
        assert read == written + unchanged + dead_lettered == in_source[contract_id]
        assert team_id == str(source_data.contract_of({"contractId": contract_id})["team"])


def test_every_stored_row_holds_what_its_record_says(whole: Whole, source_data: SourceData) -> None:
    records = {row["_id"]: row for row in source_data.transactions}
    for document_id, row in whole.pipeline.documents().items():
        record = records[row["sourceId"]]
        facts = row["metadata"]["facts"]
        assert document_id == f"transaction:{record['contractId']}:{record['tx_hash']}:{row['lineage']['ordinal']}"
        assert (facts["txHash"], facts["contractId"]) == (record["tx_hash"], record["contractId"])
        assert row["teamId"] == source_data.contract_of(record)["team"]
        assert row["metadata"].get("timeframe", {}).get("start") == record.get("block_time")
        vector = vector_of(row)
        assert vector.shape == (256,)
        assert abs(float(np.linalg.norm(vector)) - 1) < 1e-3


def test_rows_of_a_team_with_one_site_carry_its_site_and_all_others_the_scope_of_their_team(
    whole: Whole, source_data: SourceData
) -> None:
    sites: dict[Any, list[str]] = {team["_id"]: [] for team in source_data.teams}
    for site in source_data.websites:
        sites[site["team"]].append(site["siteId"])
    assert {len(of_team) for of_team in sites.values()} == {1, 2}
    seen: Counter[str] = Counter()
    for row in whole.pipeline.documents("embedding").values():
        of_team = sites[row["teamId"]]
        assert row["siteId"] == (of_team[0] if len(of_team) == 1 else f"team:{row['teamId']}")
        seen["one site" if len(of_team) == 1 else "scope"] += 1
    assert min(seen.values()) > 100


def test_the_graph_reads_extract_to_checkpoint_per_shard_and_then_reconcile(whole: Whole) -> None:
    assert whole.run_id is not None
    names = {f"{stage} {shard}" for shard in range(4) for stage in STAGES}
    runs = task_runs(whole.run_id, expected=len(names) + 5)
    assert names <= runs.keys()
    for shard in range(4):
        for before, after in pairwise(STAGES):
            assert runs[f"{before} {shard}"].id in inputs_of(runs[f"{after} {shard}"])
        for last in ("index", "reconcile"):
            assert runs[f"checkpoint {shard}"].id in inputs_of(runs[last])
        assert inputs_of(runs[f"extract {shard}"]) == {runs["plan"].id}
    assert all(run.state is not None and run.state.is_completed() for run in runs.values())


def test_the_job_of_a_run_is_completed_with_its_counts_and_a_job_id_of_its_own(whole: Whole) -> None:
    whole.pipeline.migrate(limit=20)
    first, *others = whole.pipeline.jobs()
    assert others
    assert len({job["jobId"] for job in (first, *others)}) == 1 + len(others)
    assert first["jobId"] == f"migrate-{whole.report['run_id']}"
    assert (first["status"], first["jobType"], first["sourceType"]) == ("completed", "migration", "transaction")
    assert first["progress"] == {"total": 7_845, "processed": 7_845, "failed": 0, "percentage": 100.0}
    assert first["results"]["documentsCreated"] == 7_845
    assert first["results"]["documentsSkipped"] == 0
    assert first["results"]["totalTokensUsed"] == whole.report["tokens"] > 0
    assert first["startedAt"] <= first["completedAt"]
    assert first["errors"] == []
    assert first["metadata"]["runId"] == str(whole.run_id)
    # The validator of the collection is the application's schema: a job that breaks it could not be written.
    matches = {"$and": [{"jobId": first["jobId"]}, {"$jsonSchema": EMBEDDING_JOBS.schema}]}
    assert whole.pipeline.store["embeddingjobs"].count_documents(matches) == 1


def test_a_second_run_embeds_and_writes_nothing(whole: Whole) -> None:
    before = whole.pipeline.documents()
    report = whole.pipeline.migrate(shard_rows=2_000)
    assert (report["read"], report["unchanged"]) == (7_845, 7_845)
    for nothing in ("written", "dead_lettered", "removed", "embedded", "tokens", "cost_usd"):
        assert report[nothing] == 0
    # Whole documents, with their times: not one byte was written.
    assert whole.pipeline.documents() == before


def test_a_hundred_deleted_documents_are_restored_and_no_other_is_touched(whole: Whole) -> None:
    before = whole.pipeline.documents()
    gone = set(random.Random(7).sample(sorted(before), 100))
    assert whole.pipeline.store["vectordocuments"].delete_many({"documentId": {"$in": list(gone)}}).deleted_count == 100
    report = whole.pipeline.migrate(shard_rows=2_000)
    assert (report["written"], report["unchanged"], report["removed"]) == (100, 7_745, 0)
    after = whole.pipeline.documents()
    assert comparable(after) == comparable(before)
    assert {key for key in after if after[key]["runId"] != before[key]["runId"]} == gone
    assert all(after[key] == before[key] for key in before.keys() - gone)


def test_an_initialise_after_a_migration_finds_nothing_to_make(whole: Whole) -> None:
    found = whole.pipeline.initialise()
    assert (found["created"], found["differs"]) == ([], [])


# -- which rows --------------------------------------------------------------------------------------------


@pytest.mark.long
def test_only_the_rows_of_the_asked_team_and_contract_are_migrated(pipeline: Pipeline, source_data: SourceData) -> None:
    rows = source_data.some(300)
    pipeline.load(source_data, rows)
    team = Counter(str(source_data.contract_of(row)["team"]) for row in rows).most_common(1)[0][0]
    of_team = [row for row in rows if str(source_data.contract_of(row)["team"]) == team]
    report = pipeline.migrate(teams=[team])
    assert report["read"] == report["written"] == len(of_team) > 0
    assert pipeline.stored_source_ids() == {row["_id"] for row in of_team}
    assert pipeline.jobs()[0]["teamId"] == ObjectId(team)

    contract = next(row["contractId"] for row in rows if str(source_data.contract_of(row)["team"]) != team)
    of_contract = [row for row in rows if row["contractId"] == contract]
    report = pipeline.migrate(contracts=[contract])
    assert report["read"] == report["written"] == len(of_contract)
    assert pipeline.stored_source_ids() == {row["_id"] for row in of_team + of_contract}
    # A contract of another team: no row can be both.
    assert pipeline.migrate(teams=[team], contracts=[contract])["read"] == 0


@pytest.mark.long
def test_a_limit_takes_the_first_records_in_the_order_of_their_ids(pipeline: Pipeline, source_data: SourceData) -> None:
    rows = source_data.some(60)
    pipeline.load(source_data, rows)
    assert pipeline.migrate(limit=25, shard_rows=10)["read"] == 25
    assert pipeline.stored_source_ids() == {row["_id"] for row in rows[:25]}
    assert pipeline.migrate(limit=1_000)["read"] == 60


def test_a_window_takes_exactly_the_rows_inside_whatever_type_their_time_has(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    start, end = DATE, datetime(2024, 4, 1, tzinfo=UTC)
    row = source_data.transactions[0]
    seconds = start.timestamp()
    inside = [
        start,
        datetime(2024, 3, 31, 23, 59, 59, 999000, tzinfo=UTC),
        "2024-03-01T00:00:00Z",
        "2024-03-31T23:59:59.999Z",
        "2024-04-01T01:30:00+02:00",
        "2024-02-29T23:30:00-01:00",
        "2024-03-15 12:00:00",
        int(seconds),
        seconds + 0.5,
        int(seconds * 1000),
        str(int(seconds) + 60),
    ]
    outside = [
        datetime(2024, 2, 29, 23, 59, 59, 999000, tzinfo=UTC),
        end,
        "2024-02-29T23:59:59Z",
        "2024-04-01T00:00:00Z",
        "2024-03-01T01:00:00+02:00",
        "2024-04-01",
        int(seconds) - 1,
        int(end.timestamp()),
        int(end.timestamp() * 1000),
        None,
        "soon",
    ]
    made = [repeated(row, 1 + at, block_time=value) for at, value in enumerate(inside + outside)]
    pipeline.load(source_data, made)
    report = pipeline.migrate(start=start, end=end)
    assert pipeline.stored_source_ids() == {row["_id"] for row in made[: len(inside)]}
    assert report["read"] == report["written"] == len(inside)
    # With the window open on one side only, the other bound still holds.
    assert pipeline.migrate(start=end)["read"] == sum(
        value in (end, "2024-04-01T00:00:00Z", "2024-04-01", int(end.timestamp()), int(end.timestamp() * 1000))
        for value in outside
    )


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"teams": ["0" * 24]}, "no contract belongs to team 000000000000000000000000"),
        ({"teams": ["amber"]}, "teams"),
        ({"contracts": ["contract_0"]}, "there is no contract contract_0"),
        ({"start": DATE, "end": DATE}, "is not before its end"),
        ({"limit": -1}, "limit"),
        ({"limit": 0}, "limit"),
        ({"shard_rows": 0}, "shard_rows"),
        ({"sources": []}, "sources"),
        ({"sources": ["wallets"]}, "sources"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_can_not_be_meant_is_refused_before_anything_is_written(
    pipeline: Pipeline, source_data: SourceData, parameters: dict[str, Any], words: str
) -> None:
    pipeline.load(source_data, source_data.some(3))
    before = pipeline.fingerprint()
    assert words in pipeline.refusal(**parameters)
    assert pipeline.fingerprint() == before
    assert pipeline.store.list_collection_names() == []


def test_an_empty_source_is_a_run_without_records_and_not_a_failure(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, [])
    report = pipeline.migrate()
    assert (report["read"], report["written"], report["chunks"]) == (0, 0, 0)
    assert pipeline.jobs()[0]["status"] == "completed"


# -- rows that change --------------------------------------------------------------------------------------


def test_a_contract_that_moves_to_another_team_takes_its_rows_along_without_embedding(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = source_data.some(200)
    pipeline.load(source_data, rows)
    pipeline.migrate()
    before = pipeline.documents()
    moved = Counter(row["contractId"] for row in rows).most_common(1)[0][0]
    ids = {row["_id"] for row in rows if row["contractId"] == moved}
    old_team = source_data.contract_of({"contractId": moved})["team"]
    new_team = next(team for team in source_data.teams if team["_id"] != old_team)
    pipeline.source["smartcontracts"].update_one({"contractId": moved}, {"$set": {"team": new_team["_id"]}})
    report = pipeline.migrate()
    assert (report["written"], report["unchanged"], report["embedded"]) == (len(ids), 200 - len(ids), 0)
    for key, row in pipeline.documents().items():
        if row["sourceId"] in ids:
            assert row["teamId"] == new_team["_id"]
            assert row["siteId"] != before[key]["siteId"]
            assert (row["version"], row["embedding"]) == (2, before[key]["embedding"])
            assert row["createdAt"] == before[key]["createdAt"]
            assert row["updatedAt"] > before[key]["updatedAt"]
        else:
            assert row == before[key]


def test_a_changed_text_is_embedded_again_and_replaces_the_old_one(pipeline: Pipeline, source_data: SourceData) -> None:
    rows = source_data.some(50)
    pipeline.load(source_data, rows)
    pipeline.migrate()
    before = pipeline.documents()
    changed = rows[7]["_id"]
    pipeline.transactions.update_one(
        {"_id": changed}, {"$set": {"status": "Failed", "method_name": "stake", "functionName": "stake(uint256 x)"}}
    )
    report = pipeline.migrate()
    assert (report["written"], report["unchanged"], report["embedded"]) == (1, 49, 1)
    for key, row in pipeline.documents().items():
        if row["sourceId"] == changed:
            assert row["content"].startswith("Failed (reverted)")
            assert row["version"] == before[key]["version"] + 1 == 2
            assert not np.allclose(vector_of(row), vector_of(before[key]), atol=1e-3)
        else:
            assert row == before[key]


@pytest.mark.long
def test_a_shortened_record_leaves_no_chunk_of_its_old_text(pipeline: Pipeline, source_data: SourceData) -> None:
    rows = [repeated(row, 1 + at) for at, row in enumerate(source_data.some(3))]
    story = "A long story about a token and its holders. "
    rows[1]["token_name"] = story * 400
    pipeline.load(source_data, rows)
    report = pipeline.migrate()
    assert report["chunks"] == len(pipeline.documents()) > 10
    pipeline.transactions.update_one({"_id": rows[1]["_id"]}, {"$set": {"token_name": story * 130}})
    some = pipeline.migrate()
    assert some["chunks"] == len(pipeline.documents()) > 3
    assert some["removed"] == report["chunks"] - some["chunks"] > 0
    pipeline.transactions.update_one({"_id": rows[1]["_id"]}, {"$set": {"token_name": "Story"}})
    one = pipeline.migrate()
    assert one["chunks"] == len(pipeline.documents()) == 3
    assert (one["written"], one["unchanged"]) == (1, 2)
    assert {row["lineage"]["ordinal"] for row in pipeline.documents().values()} == {0}
    assert pipeline.migrate()["written"] == 0


def test_a_record_that_gets_another_contract_leaves_nothing_under_the_old_one(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = source_data.some(20)
    pipeline.load(source_data, rows)
    pipeline.migrate()
    moved = rows[3]
    other = next(c for c in source_data.contracts if c["contractId"] != moved["contractId"])
    pipeline.transactions.update_one(
        {"_id": moved["_id"]}, {"$set": {"contractId": other["contractId"], "contract": other["_id"]}}
    )
    report = pipeline.migrate()
    assert report["written"] == 1
    stored = [key for key, row in pipeline.documents().items() if row["sourceId"] == moved["_id"]]
    assert stored == [f"transaction:{other['contractId']}:{moved['tx_hash']}:0"]
    assert len(pipeline.documents()) == 20
    assert pipeline.migrate()["unchanged"] == 20


@pytest.mark.long
def test_a_record_that_is_imported_again_under_a_new_id_keeps_its_place(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = source_data.some(20)
    pipeline.load(source_data, rows)
    pipeline.migrate()
    again = {**rows[5], "_id": ObjectId()}
    pipeline.transactions.delete_one({"_id": rows[5]["_id"]})
    pipeline.transactions.insert_one(again)
    report = pipeline.migrate()
    assert (report["written"], report["embedded"], report["dead_lettered"]) == (1, 0, 0)
    assert pipeline.stored_source_ids() == {row["_id"] for row in rows if row is not rows[5]} | {again["_id"]}
    assert pipeline.migrate()["unchanged"] == 20


def test_a_record_that_is_refused_now_loses_its_vectors_and_gets_them_back_when_it_is_mended(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = source_data.some(20)
    pipeline.load(source_data, rows)
    pipeline.migrate()
    before = pipeline.documents()
    spoiled = rows[11]
    pipeline.transactions.update_one({"_id": spoiled["_id"]}, {"$set": {"value_eth": "-3.2"}})
    report = pipeline.migrate()
    assert (report["unchanged"], report["dead_lettered"], report["removed"]) == (19, 1, 1)
    assert spoiled["_id"] not in pipeline.stored_source_ids()
    (letter,) = pipeline.letters()
    assert (letter["sourceId"], letter["code"], letter["status"]) == (spoiled["_id"], "amount_negative", "open")
    assert letter["holderId"] == spoiled["contractId"]

    pipeline.transactions.replace_one({"_id": spoiled["_id"]}, spoiled)
    report = pipeline.migrate()
    assert (report["written"], report["unchanged"], report["dead_lettered"]) == (1, 19, 0)
    (letter,) = pipeline.letters()
    assert (letter["status"], letter["resolvedBy"]) == ("resolved", str(pipeline.last_run_id))
    assert comparable(pipeline.documents()) == comparable(before)


# -- rows that go ------------------------------------------------------------------------------------------


def test_deleted_records_lose_their_vectors_and_count_as_removed(pipeline: Pipeline, source_data: SourceData) -> None:
    rows = source_data.some(150)
    pipeline.load(source_data, rows)
    pipeline.migrate()
    gone = {row["_id"] for row in rows[10:14]} | {rows[0]["_id"], rows[-1]["_id"]}
    pipeline.transactions.delete_many({"_id": {"$in": list(gone)}})
    report = pipeline.migrate(shard_rows=40)
    assert (report["read"], report["unchanged"], report["removed"]) == (144, 144, 6)
    assert pipeline.stored_source_ids() == {row["_id"] for row in rows} - gone


def test_a_run_over_a_part_of_the_source_removes_nothing_outside_it(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = source_data.some(60)
    pipeline.load(source_data, rows)
    pipeline.migrate()
    pipeline.transactions.delete_many({"_id": {"$in": [rows[2]["_id"], rows[50]["_id"]]}})
    assert pipeline.migrate(limit=10)["removed"] == 0
    assert len(pipeline.documents()) == 60


def test_a_source_that_lost_many_records_is_doubted_and_nothing_is_removed_until_somebody_says_so(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = source_data.some(300)
    pipeline.load(source_data, rows)
    pipeline.migrate()
    before = pipeline.documents()
    gone = [row["_id"] for row in rows[:150]]
    pipeline.transactions.delete_many({"_id": {"$in": gone}})
    message = pipeline.refusal()
    assert "150 of 300 records of the last good run that were looked for are gone" in message
    assert "--remove-orphans" in message
    assert pipeline.documents() == before
    job = pipeline.jobs()[-1]
    assert job["status"] == "failed"
    assert "--remove-orphans" in job["errors"][-1]["error"]

    report = pipeline.migrate(remove_orphans=True)
    assert (report["removed"], report["unchanged"]) == (150, 150)
    assert pipeline.stored_source_ids() == {row["_id"] for row in rows[150:]}


@pytest.mark.long
def test_a_dead_letter_of_a_deleted_record_is_closed(pipeline: Pipeline, source_data: SourceData) -> None:
    rows = source_data.some(10)
    pipeline.load(source_data, [*rows[1:], {**rows[0], "value_eth": "NaN"}])
    assert pipeline.migrate()["dead_lettered"] == 1
    pipeline.transactions.delete_one({"_id": rows[0]["_id"]})
    pipeline.migrate()
    assert [letter["status"] for letter in pipeline.letters()] == ["resolved"]
