"""Runs over what is stored already: they cost next to nothing, and still see whatever changed, on either side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient

from flows.ingest import ingest
from flows.reconcile import reconcile
from flows.replay import replay
from tasks.domain.collections import DIGEST_INDEX
from tasks.domain.transaction_documents import DESCRIBER_VERSION
from tests.builders import use_next_describer
from tests.end_to_end.pipeline import Pipeline, Record, SourceData, open_pipeline, repeated
from tests.end_to_end.run_records import STAGES, counts_by_contract, stages_by_shard, task_runs
from tests.loopback.gemini import LoopbackGemini

ROWS, SHARD_ROWS = 150, 50
BY_SHARD = {"shard_rows": SHARD_ROWS}
ALL, FEW = set(STAGES), {"extract", "upsert", "checkpoint"}
#: The tasks of a run that are not of a shard: check embedder, initialise, plan, index and reconcile.
OTHER_TASKS = 5
#: The first record has several chunks.
LONG = ObjectId(f"{1:024x}")
#: What a dry run tells as the run does it.
TOLD = ("read", "written", "unchanged", "dead_lettered", "chunks", "embedded", "tokens", "cost_usd", "refused")


@pytest.fixture(scope="module")
def stored(
    prefect_api: str,
    mongo_uri: str,
    mongo_client: MongoClient[Record],
    source_data: SourceData,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pipeline]:
    """A source of three shards, migrated into a store of its own. Every test leaves it so, whatever it changed."""
    rows = source_data.some(ROWS - 1)
    story = "A long story about a token and its holders. " * 400
    home = tmp_path_factory.mktemp("stored")
    with open_pipeline(mongo_uri, mongo_client, home, separate_store=True) as pipeline:
        pipeline.load(source_data, [repeated(rows[0], 1, token_name=story), *rows])
        report = pipeline.migrate(**BY_SHARD)
        assert (report["written"], report["dead_lettered"]) == (ROWS, 0)
        assert report["chunks"] > ROWS
        yield pipeline


def migrate_as_rehearsed(pipeline: Pipeline) -> Record:
    """Return the report of a migration that does what a dry run before it tells."""
    before = pipeline.fingerprint()
    told = pipeline.migrate(**BY_SHARD, dry_run=True)
    assert pipeline.fingerprint() == before
    report = pipeline.migrate(**BY_SHARD)
    assert {name: told[name] for name in TOLD} == {name: report[name] for name in TOLD}
    return report


def stages_of_last_run(pipeline: Pipeline, *, looked_at: set[int]) -> dict[int, set[str]]:
    """Return the stages of each shard in the last run, in which these shards were looked at."""
    assert pipeline.last_run_id is not None
    shards = ROWS // SHARD_ROWS
    expected = len(looked_at) * len(ALL) + (shards - len(looked_at)) * len(FEW) + OTHER_TASKS
    return stages_by_shard(task_runs(pipeline.last_run_id, expected=expected))


def shards_of(pipeline: Pipeline, records: set[Any]) -> set[int]:
    """Return the numbers of the shards that hold these records."""
    ids = [row["_id"] for row in pipeline.transactions.find({}, {"_id": 1}).sort("_id", 1)]
    return {ids.index(record) // SHARD_ROWS for record in records}


def require_nothing_to_do(pipeline: Pipeline) -> None:
    """Fail unless the next run skips every record, and rightly so: each is stored as it is described."""
    before = pipeline.documents()
    report = pipeline.migrate(**BY_SHARD)
    assert (report["read"], report["unchanged"], report["embedded"], report["removed"]) == (ROWS, ROWS, 0, 0)
    assert stages_of_last_run(pipeline, looked_at=set()) == dict.fromkeys(range(ROWS // SHARD_ROWS), FEW)
    assert pipeline.documents() == before
    compared = pipeline.complete(reconcile, heal=False)
    assert (compared["compared"], compared["mended"]) == (ROWS, 0)


# -- nothing changed ---------------------------------------------------------------------------------------


def test_a_second_run_reads_and_accounts_for_every_record_and_does_nothing_else(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = source_data.some(ROWS)
    pipeline.load(source_data, rows)
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        first = pipeline.migrate(**BY_SHARD)
        assert pipeline.last_run_id is not None
        shown = counts_by_contract(pipeline.last_run_id)
        before, asked = pipeline.documents(), len(server.requests)
        second = migrate_as_rehearsed(pipeline)
        assert len(server.requests) - asked <= 2, "each run asks once whether the embedder answers"
        assert counts_by_contract(pipeline.last_run_id) == {
            contract: (team, read, 0, written, 0) for contract, (team, read, written, _, _) in shown.items()
        }
    assert (first["read"], second["read"], second["unchanged"]) == (ROWS, ROWS, ROWS)
    assert second["chunks"] == first["chunks"]
    for nothing in ("written", "dead_lettered", "removed", "embedded", "tokens", "cost_usd"):
        assert second[nothing] == 0
    assert stages_of_last_run(pipeline, looked_at=set()) == {0: FEW, 1: FEW, 2: FEW}
    assert pipeline.documents() == before
    job = pipeline.jobs()[-1]
    assert (job["status"], job["progress"]["processed"], job["results"]["documentsSkipped"]) == (
        "completed",
        ROWS,
        ROWS,
    )


@pytest.mark.long
def test_a_refused_record_is_looked_at_again_and_its_neighbours_count_with_it(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = source_data.some(ROWS)
    rows[60] = {**rows[60], "value_eth": "NaN"}
    pipeline.load(source_data, rows)
    first = pipeline.migrate(**BY_SHARD)
    assert pipeline.last_run_id is not None
    shown = counts_by_contract(pipeline.last_run_id)
    second = migrate_as_rehearsed(pipeline)
    assert (first["written"], first["dead_lettered"]) == (ROWS - 1, 1)
    assert (second["read"], second["unchanged"], second["dead_lettered"]) == (ROWS, ROWS - 1, 1)
    assert stages_of_last_run(pipeline, looked_at={1}) == {0: FEW, 1: ALL, 2: FEW}
    assert counts_by_contract(pipeline.last_run_id) == {
        contract: (team, read, 0, written, refused) for contract, (team, read, written, _, refused) in shown.items()
    }
    (letter,) = pipeline.letters()
    assert (letter["status"], letter["attempts"]) == ("open", 2)


def test_a_record_that_is_there_twice_is_stored_once_paid_once_and_refused_once_in_every_run(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = source_data.some(ROWS - 1)
    twin = {**rows[70], "_id": ObjectId(f"{1:024x}")}
    # The index of the source would not allow it; older deployments have none. They are in different shards.
    pipeline.load(source_data, [*rows, twin])
    written = []
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        for _ in range(3):
            report = pipeline.migrate(**BY_SHARD)
            assert (report["read"], report["dead_lettered"]) == (ROWS, 1)
            assert report["written"] + report["unchanged"] == ROWS - 1
            written.append(report["written"])
        # The texts of the records; what else was embedded is the check of each run.
        of_records = {row["content"] for row in pipeline.documents().values()}
        assert {server.embedded[text] for text in of_records} == {1}
    assert written == [ROWS - 1, 0, 0]
    assert len(pipeline.letters(status="open")) == 1
    assert len({twin["_id"], rows[70]["_id"]} & pipeline.stored_source_ids()) == 1


@pytest.mark.long
def test_a_run_over_a_part_of_the_source_skips_as_well(stored: Pipeline) -> None:
    contract, count = Counter(row["contractId"] for row in stored.transactions.find()).most_common(1)[0]
    before = stored.documents()
    for scope in ({"contracts": [contract]}, {"limit": count}):
        report = stored.migrate(**scope)
        assert (report["read"], report["unchanged"], report["embedded"]) == (count, count, 0)
        assert stored.last_run_id is not None
        found = stages_by_shard(task_runs(stored.last_run_id, expected=len(FEW) + OTHER_TASKS))
        assert found == {0: FEW}
    assert stored.documents() == before


@pytest.mark.long
def test_changes_that_change_nothing_stored_are_followed_without_describing_them(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(30))
    pipeline.migrate()
    pipeline.complete(ingest, until_idle=True)
    before = pipeline.documents()
    pipeline.transactions.update_many({}, {"$set": {"nobodyReads": "this"}})
    report = pipeline.complete(ingest, until_idle=True)
    assert (report["read"], report["unchanged"], report["tokens"]) == (30, 30, 0)
    assert pipeline.last_run_id is not None
    found = stages_by_shard(task_runs(pipeline.last_run_id, expected=report["batches"] * len(FEW)))
    assert set(map(frozenset, found.values())) == {frozenset(FEW)}
    assert pipeline.documents() == before


# -- what the next run sees, although it may skip ----------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """Records that are to be written again, and how many texts may be embedded for them."""

    records: set[Any]
    embedded: int


def busiest_contract(pipeline: Pipeline) -> tuple[str, set[Any]]:
    """Return the contract with the most records, and those."""
    rows = list(pipeline.transactions.find({}, {"contractId": 1}))
    contract, _ = Counter(row["contractId"] for row in rows).most_common(1)[0]
    return contract, {row["_id"] for row in rows if row["contractId"] == contract}


def lose_a_document(pipeline: Pipeline) -> Change:
    row = pipeline.store["vectordocuments"].find_one_and_delete({"lineage.chunks": 1})
    return Change({row["sourceId"]}, embedded=1)


def lose_a_chunk(pipeline: Pipeline) -> Change:
    assert pipeline.store["vectordocuments"].delete_one({"sourceId": LONG, "lineage.ordinal": 2}).deleted_count == 1
    return Change({LONG}, embedded=1)


def lose_the_first_chunk(pipeline: Pipeline) -> Change:
    assert pipeline.store["vectordocuments"].delete_one({"sourceId": LONG, "lineage.ordinal": 0}).deleted_count == 1
    return Change({LONG}, embedded=1)


def move_a_contract(pipeline: Pipeline) -> Change:
    contract, records = busiest_contract(pipeline)
    old = pipeline.source["smartcontracts"].find_one({"contractId": contract})
    new = pipeline.source["websites"].find_one({"team": {"$ne": (old or {})["team"]}})
    pipeline.source["smartcontracts"].update_one({"contractId": contract}, {"$set": {"team": (new or {})["team"]}})
    return Change(records, embedded=0)


def add_a_site(pipeline: Pipeline) -> Change:
    owners = {row["contractId"]: row["team"] for row in pipeline.source["smartcontracts"].find()}
    sites = Counter(site["team"] for site in pipeline.source["websites"].find())
    rows = list(pipeline.transactions.find({}, {"contractId": 1}))
    team = next(owners[row["contractId"]] for row in rows if sites[owners[row["contractId"]]] == 1)
    pipeline.source["websites"].insert_one({"siteId": "a second site", "team": team})
    return Change({row["_id"] for row in rows if owners[row["contractId"]] == team}, embedded=0)


def rename_a_contract(pipeline: Pipeline) -> Change:
    contract, records = busiest_contract(pipeline)
    stored = pipeline.store["vectordocuments"].count_documents({"sourceId": {"$in": list(records)}})
    pipeline.source["smartcontracts"].update_one({"contractId": contract}, {"$set": {"name": "Quite Another Name"}})
    return Change(records, embedded=stored)


def change_the_text_of_a_record(pipeline: Pipeline) -> Change:
    row = pipeline.transactions.find_one({"_id": {"$gt": LONG}, "status": {"$ne": "Failed"}})
    pipeline.transactions.update_one({"_id": row["_id"]}, {"$set": {"status": "Failed"}})
    return Change({row["_id"]}, embedded=1)


def change_a_fact_of_a_record(pipeline: Pipeline) -> Change:
    row = pipeline.transactions.find_one({"_id": {"$gt": LONG}, "gas_used": {"$gt": 0}})
    pipeline.transactions.update_one({"_id": row["_id"]}, {"$inc": {"gas_used": 1}})
    return Change({row["_id"]}, embedded=0)


CHANGES: list[Callable[[Pipeline], Change]] = [
    lose_a_document,
    lose_a_chunk,
    lose_the_first_chunk,
    move_a_contract,
    add_a_site,
    rename_a_contract,
    change_the_text_of_a_record,
    change_a_fact_of_a_record,
]


@pytest.mark.parametrize("make", CHANGES, ids=lambda make: make.__name__)
def test_the_next_run_sees_a_change_on_either_side_and_looks_at_nothing_else(
    stored: Pipeline, make: Callable[[Pipeline], Change]
) -> None:
    before = stored.documents()
    change = make(stored)
    looked_at = shards_of(stored, change.records)
    report = migrate_as_rehearsed(stored)
    written = len(change.records)
    assert (report["written"], report["unchanged"]) == (written, ROWS - written)
    # The same text in two records is embedded once.
    assert 0 <= change.embedded - report["embedded"] < max(1, change.embedded)
    found = stages_of_last_run(stored, looked_at=looked_at)
    assert found == {shard: ALL if shard in looked_at else FEW for shard in range(3)}
    after = stored.documents()
    assert after.keys() == before.keys()
    assert {row["sourceId"] for key, row in after.items() if row != before[key]} == change.records
    require_nothing_to_do(stored)


@pytest.mark.long
def test_a_change_that_changes_nothing_stored_is_looked_at_once(stored: Pipeline) -> None:
    row = stored.transactions.find_one({"_id": {"$gt": LONG}, "status": "Success"})
    stored.transactions.update_one({"_id": row["_id"]}, {"$set": {"status": "success"}})
    before = stored.documents()
    looked_at = shards_of(stored, {row["_id"]})
    report = migrate_as_rehearsed(stored)
    assert (report["written"], report["unchanged"], report["embedded"]) == (0, ROWS, 0)
    assert stages_of_last_run(stored, looked_at=looked_at) == {
        shard: ALL if shard in looked_at else FEW for shard in range(3)
    }
    after = stored.documents()
    changed = {key for key in before if after[key] != before[key]}
    assert {before[key]["sourceId"] for key in changed} == {row["_id"]}
    # Not written: only what it was made from is put down anew.
    for key in changed:
        assert after[key] == before[key] | {"sourceDigest": after[key]["sourceDigest"]}
    require_nothing_to_do(stored)


def test_a_field_that_nobody_reads_is_no_change(stored: Pipeline) -> None:
    stored.transactions.update_many({}, {"$set": {"__v": 7, "nobodyReads": "this"}})
    require_nothing_to_do(stored)


@pytest.mark.long
def test_a_store_of_an_older_version_is_completed_without_embedding_or_writing_a_row(stored: Pipeline) -> None:
    vectors = stored.store["vectordocuments"]
    as_made = stored.documents()
    vectors.update_many({}, {"$unset": {"sourceDigest": 1}})
    vectors.drop_index(DIGEST_INDEX)
    told = stored.migrate(**BY_SHARD, dry_run=True)
    assert (told["unchanged"], told["embedded"]) == (ROWS, 0)
    report = stored.migrate(**BY_SHARD)
    assert (report["written"], report["unchanged"], report["embedded"], report["removed"]) == (0, ROWS, 0, 0)
    assert stages_of_last_run(stored, looked_at={0, 1, 2}) == {0: ALL, 1: ALL, 2: ALL}
    assert stored.documents() == as_made
    require_nothing_to_do(stored)


def test_a_run_that_asks_for_everything_skips_nothing(stored: Pipeline) -> None:
    # A row that says of itself that it is what its record makes, and is not.
    vectors = stored.store["vectordocuments"]
    spoiled = vectors.find_one({"lineage.chunks": 1})
    assert spoiled is not None
    vectors.update_one({"_id": spoiled["_id"]}, {"$set": {"content": "another text", "rowHash": b"\1" * 16}})
    mended = stored.complete(reconcile)
    assert (mended["stale"], mended["written"]) == (1, 1)
    row = vectors.find_one({"_id": spoiled["_id"]})
    assert row is not None
    assert row["content"] == spoiled["content"]
    require_nothing_to_do(stored)


@pytest.mark.long
def test_another_describer_is_seen_in_every_record_and_embeds_only_what_reads_otherwise(
    stored: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_next_describer(monkeypatch)
    report = migrate_as_rehearsed(stored)
    assert (report["written"], report["unchanged"], report["embedded"]) == (ROWS, 0, 0)
    assert {row["lineage"]["describer"] for row in stored.documents().values()} == {DESCRIBER_VERSION + 1}
    require_nothing_to_do(stored)
    monkeypatch.undo()
    assert stored.migrate(**BY_SHARD)["written"] == ROWS
    require_nothing_to_do(stored)


# -- dead letters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["migrate", "replay"])
@pytest.mark.long
def test_an_open_dead_letter_of_a_record_that_is_stored_as_it_is_is_closed(
    pipeline: Pipeline, source_data: SourceData, by: str
) -> None:
    rows = source_data.some(ROWS)
    pipeline.load(source_data, [{**rows[0], "value_eth": "NaN"}, *rows[1:]])
    assert pipeline.migrate(**BY_SHARD)["dead_lettered"] == 1
    (letter,) = pipeline.letters()
    box = pipeline.store["deadletters"]
    box.insert_one({**letter, "_id": ObjectId(), "sourceId": rows[75]["_id"]})
    before = pipeline.documents()
    if by == "migrate":
        pipeline.migrate(**BY_SHARD)
        assert stages_of_last_run(pipeline, looked_at={0}) == {0: ALL, 1: FEW, 2: FEW}
    else:
        pipeline.complete(replay)
    status = {found["sourceId"]: found["status"] for found in pipeline.letters()}
    assert status == {rows[0]["_id"]: "open", rows[75]["_id"]: "resolved"}
    assert pipeline.documents() == before
