"""Lineage: from any id to its record, and from the record to all its vectors and what made them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from click.testing import Result
from pymongo import MongoClient
from typer.testing import CliRunner

from blocks.code_version import read_code_version
from deployments.cli import app
from deployments.sample import load_sample
from deployments.sample_sites.loading import load_visits
from deployments.sample_sites.visits import PERSONAL_MARKS, sample_user_ids, sample_visits
from flows import jobs
from flows.aggregate import aggregate
from flows.generations import build_generation
from flows.ingest import ingest
from flows.parameters import SourceName
from flows.replay import replay
from tasks.domain.chunks import CHUNKER_VERSION
from tasks.domain.transaction_documents import DESCRIBER_VERSION
from tests.builders import use_next_describer
from tests.end_to_end.pipeline import Pipeline, Record, open_pipeline

DONE, WRONG_INPUT = 0, 2
ROWS, SESSIONS, JOURNEYS = 60, 60, 20
#: Those that know visitors, one that forgets, and transactions.
SOURCES: list[SourceName] = ["transactions", "monthly_stats", "user_journeys", "sessions"]
OF_VISITORS = ("user_journey", "session")

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def migrated(
    prefect_api: str, mongo_uri: str, mongo_client: MongoClient[Record], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """A migrated source for every test here; each changes records of its own.

    One transaction has a text of several chunks, one an amount that nobody can read.
    """
    with open_pipeline(mongo_uri, mongo_client, tmp_path_factory.mktemp("home")) as pipeline:
        load_sample(pipeline.source, rows=ROWS)
        load_visits(pipeline.source, sessions=SESSIONS, events=0, journeys=JOURNEYS)
        name = " ".join(f"reward token of the season {number}" for number in range(240))
        sound = {"status": "Success", "value_eth": {"$regex": "^[0-9]"}, "tx_type": {"$regex": "Transfer"}}
        for spoilt in ({"value_eth": "NaN"}, {"token_name": name}):
            pipeline.transactions.update_one(sound, {"$set": spoilt})
        pipeline.migrate(sources=SOURCES)
        yield pipeline


@pytest.fixture
def command(migrated: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command as this pipeline's user gives it, in this process."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("CRYPTIQUE_", "GEMINI_", "PREFECT_")):
            monkeypatch.delenv(name)
    for name, value in (
        ("CRYPTIQUE_SOURCE_URI", migrated.uri),
        ("CRYPTIQUE_SOURCE_DATABASE", migrated.source.name),
        ("CRYPTIQUE_EMBEDDER", "local"),
        ("CRYPTIQUE_HOME", str(migrated.home)),
    ):
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(app, ["explain", *map(str, arguments)])


def explained(command: Command, *asked: object) -> list[Record]:
    """Return the records that an id leads to."""
    result = command(*asked, "--json")
    assert result.exit_code == DONE, result.output
    records: list[Record] = json.loads(result.stdout)["records"]
    return records


def the_record(command: Command, *asked: object) -> Record:
    (record,) = explained(command, *asked)
    return record


def lines_of(command: Command, *asked: object) -> list[str]:
    """Return what a person reads, with single spaces."""
    result = command(*asked)
    assert result.exit_code == DONE, result.output
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


def states(record: Record) -> set[str]:
    return {document["standing"]["state"] for document in record["documents"]}


def rows_of(pipeline: Pipeline, record_id: object) -> list[Record]:
    """Return a record's vector documents as they are stored, in order."""
    found = pipeline.store["vectordocuments"].find({"sourceId": record_id}, {"embedding": 0})
    return sorted(found, key=lambda row: int(row["lineage"]["ordinal"]))


def an_ordinary_record(pipeline: Pipeline, place: int) -> Record:
    """Return a transaction that is stored as one vector document; each place is another one."""
    criteria = {"lineage.chunks": 1, "documentId": {"$regex": "^transaction:"}}
    stored = pipeline.store["vectordocuments"].find(criteria).sort("_id", 1).skip(place)
    record: Record = pipeline.transactions.find_one({"_id": next(stored)["sourceId"]})
    return record


# -- from an id to its record and back --------------------------------------------------------------------------------


def test_every_id_of_a_record_and_of_its_vectors_leads_to_the_same_lineage_and_nothing_is_written(
    migrated: Pipeline, command: Command
) -> None:
    before = migrated.fingerprint()
    long = migrated.transactions.find_one({"token_name": {"$regex": "season 239"}})
    rows = rows_of(migrated, long["_id"])
    assert len(rows) > 2
    whole = the_record(command, long["_id"])
    assert [document["documentId"] for document in whole["documents"]] == [row["documentId"] for row in rows]
    assert states(whole) == {"current"}
    tx_hash, key = long["tx_hash"], rows[0]["documentId"].removesuffix(":0")
    for asked in (
        *(row["documentId"] for row in rows[:3]),
        *(row["_id"] for row in rows[:3]),
        key,
        f"{key}:999",
        f" {rows[0]['source']} ",
        f"transactions:{long['_id']}",
        tx_hash,
        tx_hash.removeprefix("0x").upper(),
        str(long["_id"]).upper(),
    ):
        assert explained(command, asked) == [whole], asked
    assert migrated.fingerprint() == before


def test_the_lineage_of_a_vector_says_all_that_made_it(migrated: Pipeline, command: Command) -> None:
    record = an_ordinary_record(migrated, 1)
    (row,) = rows_of(migrated, record["_id"])
    job = migrated.store["embeddingjobs"].find_one({"metadata.runIds": row["runId"], "sourceType": "transaction"})
    told = the_record(command, record["_id"])
    assert (told["source"], told["place"]) == ("transaction", f"{migrated.source.name}.transactions")
    assert (told["recordId"], told["inSource"], told["refused"]) == (str(record["_id"]), True, None)
    assert (told["deadLetters"], told["missing"], told["heldBy"], told["elsewhere"]) == ([], [], {}, [])
    contract = migrated.source["smartcontracts"].find_one({"contractId": record["contractId"]})
    assert contract is not None
    assert told["owner"] == {
        "holderId": record["contractId"],
        "holderName": contract["name"],
        "teamId": str(contract["team"]),
        "siteId": row["siteId"],
    }
    assert told["fields"]["tx_hash"] == record["tx_hash"]
    (document,) = told["documents"]
    assert document["standing"] == {"state": "current", "says": "its record makes the same row now", "differences": []}
    assert (document["content"], document["sourceId"]) == (row["content"], str(record["_id"]))
    assert document["metadata"]["facts"]["txHash"] == record["tx_hash"].lower()
    assert document["lineage"] == {
        "model": row["lineage"]["model"],
        "dimensions": 256,
        "task": row["lineage"]["task"],
        "describer": DESCRIBER_VERSION,
        "chunker": CHUNKER_VERSION,
        "ordinal": 0,
        "chunks": 1,
    }
    assert (document["contentHash"], document["codeVersion"]) == (row["contentHash"].hex(), read_code_version())
    assert (document["run"]["id"], document["run"]["url"]) == (row["runId"], None)
    assert (document["run"]["job"]["jobId"], document["run"]["job"]["status"]) == (job["jobId"], "completed")
    assert "embedding" not in document
    assert document["computedFrom"] is None


def test_a_person_reads_the_lineage_in_lines(
    migrated: Pipeline, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = an_ordinary_record(migrated, 1)
    (row,) = rows_of(migrated, record["_id"])
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example:4200/api")
    lines = lines_of(command, record["tx_hash"])
    assert lines[0] == f"transaction {record['_id']}: record of {migrated.source.name}.transactions, is there"
    for expected in (
        "vector documents 1 in generation first (live)",
        f"tx_hash {record['tx_hash']}",
        f"vector document {row['documentId']}",
        "standing current: its record makes the same row now",
        f"text {row['content']}",
        f"chunk 1 of 1, chunker {CHUNKER_VERSION}",
        f"describer transaction, version {DESCRIBER_VERSION}",
        f"run http://prefect.example:4200/runs/flow-run/{row['runId']}",
        f"code version {read_code_version()}",
    ):
        assert expected in lines


def test_of_many_chunks_a_person_reads_the_one_asked_for_and_a_line_of_each_other(
    migrated: Pipeline, command: Command
) -> None:
    long = migrated.transactions.find_one({"token_name": {"$regex": "season 239"}})
    rows = rows_of(migrated, long["_id"])
    lines = lines_of(command, rows[2]["documentId"])
    assert [line for line in lines if line.startswith("vector document t")] == [
        f"vector document {rows[2]['documentId']}"
    ]
    assert [line.split()[1] for line in lines if line.startswith("current transaction:")] == [
        row["documentId"] for row in rows if row != rows[2]
    ]


def test_a_job_that_expired_is_said_to_have(migrated: Pipeline, command: Command) -> None:
    (row,) = rows_of(migrated, an_ordinary_record(migrated, 1)["_id"])
    migrated.store["vectordocuments"].update_one({"_id": row["_id"]}, {"$set": {"runId": "of-last-year"}})
    assert any("30 days after a job's end it expires" in line for line in lines_of(command, row["_id"]))
    migrated.store["vectordocuments"].update_one({"_id": row["_id"]}, {"$set": {"runId": row["runId"]}})


@pytest.mark.parametrize(
    "asked",
    ["0" * 24, f"0x{'0' * 64}", "transaction:nobody:nothing:0", f"session:{'0' * 24}", "what is this", ".*", "12", ""],
)
def test_an_id_that_is_nowhere_is_wrong_input_and_told_what_ids_there_are(command: Command, asked: str) -> None:
    result = command(asked, "--json")
    assert (result.exit_code, result.stdout) == (WRONG_INPUT, "")
    assert "is nowhere" in result.stderr
    assert "a documentId, with or without its ordinal" in result.stderr


# -- whether a row is current -----------------------------------------------------------------------------------------


def test_a_row_whose_record_changed_says_what_differs_until_the_next_run(migrated: Pipeline, command: Command) -> None:
    record = an_ordinary_record(migrated, 2)
    migrated.transactions.update_one({"_id": record["_id"]}, {"$set": {"value_eth": "77.25 ABC", "gas_used": 12_345}})
    (document,) = the_record(command, record["_id"])["documents"]
    assert document["standing"]["state"] == "text changed"
    differences = {one["field"]: one for one in document["standing"]["differences"]}
    assert "77.25" in differences["content"]["now"]
    assert differences["content"]["stored"] == document["content"]
    assert differences["metadata.facts.gasUsed"]["now"] == 12_345
    assert "metadata.facts.txHash" not in differences
    migrated.complete(ingest, until_idle=True)
    (document,) = the_record(command, record["_id"])["documents"]
    assert (document["standing"]["state"], document["version"]) == ("current", 2)
    assert document["run"]["id"] == str(migrated.last_run_id)
    assert document["run"]["job"]["jobId"].startswith("ingest-")


def test_a_row_of_an_older_describer_differs_in_its_lineage_alone(
    migrated: Pipeline, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_next_describer(monkeypatch)
    (document,) = the_record(command, an_ordinary_record(migrated, 1)["_id"])["documents"]
    assert document["standing"]["state"] == "fields changed"
    assert document["standing"]["differences"] == [
        {"field": "lineage.describer", "stored": DESCRIBER_VERSION, "now": DESCRIBER_VERSION + 1}
    ]


def test_what_somebody_changed_in_the_store_by_hand_is_seen(migrated: Pipeline, command: Command) -> None:
    record = an_ordinary_record(migrated, 3)
    (row,) = rows_of(migrated, record["_id"])
    migrated.store["vectordocuments"].update_one({"_id": row["_id"]}, {"$set": {"content": "All is well."}})
    (document,) = the_record(command, row["_id"])["documents"]
    assert document["standing"]["state"] == "edited"
    assert document["standing"]["differences"] == [
        {"field": "content", "stored": "All is well.", "now": row["content"]}
    ]


def test_a_deleted_record_is_told_with_the_owner_it_was_stored_with(migrated: Pipeline, command: Command) -> None:
    record = an_ordinary_record(migrated, 4)
    (row,) = rows_of(migrated, record["_id"])
    migrated.transactions.delete_one({"_id": record["_id"]})
    for asked in (record["_id"], record["tx_hash"], row["documentId"]):
        told = the_record(command, asked)
        assert (told["inSource"], told["fields"], states(told)) == (False, {}, {"gone"})
        assert (told["owner"]["teamId"], told["owner"]["holderId"]) == (str(row["teamId"]), record["contractId"])


def test_a_statistic_that_its_ring_forgot_is_kept(migrated: Pipeline, command: Command) -> None:
    row = migrated.store["vectordocuments"].find_one({"documentId": {"$regex": "^monthly_stats:"}})
    assert row is not None
    told = the_record(command, row["_id"])
    assert states(told) == {"current"}
    migrated.source[told["place"].partition(".")[2]].delete_many({})
    assert states(the_record(command, row["_id"])) == {"kept"}


def test_a_release_that_describes_the_same_rewrites_nothing_and_its_new_rows_name_it(
    migrated: Pipeline, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {"documentId": {"$regex": "^transaction:"}, "version": 1}
    migrated.migrate()
    before = {row["_id"]: row for row in migrated.store["vectordocuments"].find(stored)}
    old = an_ordinary_record(migrated, 5)
    new = {**old, "_id": ObjectId(), "tx_hash": f"0x{8:064x}"}
    twin = {**new, "_id": ObjectId()}
    migrated.transactions.drop_indexes()
    migrated.transactions.insert_many([new, twin])
    assert the_record(command, new["_id"])["missing"] == [f"transaction:{new['contractId']}:{new['tx_hash']}:0"]
    monkeypatch.setattr(jobs, "read_code_version", lambda: "9.9.9+release")
    report = migrated.migrate()
    assert (report["written"], report["embedded"]) == (1, 1)
    after = {row["_id"]: row for row in migrated.store["vectordocuments"].find(stored)}
    assert {key: row for key, row in after.items() if key in before} == before
    told, other = explained(command, new["tx_hash"])
    if not told["documents"]:
        told, other = other, told
    assert told["documents"][0]["codeVersion"] == "9.9.9+release"
    assert states(the_record(command, old["_id"])) == {"current"}
    # The same transaction twice: the record whose place the other one holds names that one.
    document = told["documents"][0]["documentId"]
    assert (other["heldBy"], other["missing"], other["documents"]) == ({document: told["recordId"]}, [], [])
    (letter,) = other["deadLetters"]
    assert letter["code"] == "duplicate_record"
    assert letter["toDo"].startswith("delete one of the two records in the source")


# -- dead letters -----------------------------------------------------------------------------------------------------


def test_a_refused_record_is_told_with_its_reason_and_what_to_do_until_it_is_stored(
    migrated: Pipeline, command: Command
) -> None:
    letter = migrated.store["deadletters"].find_one({"code": "amount_unreadable"})
    assert letter is not None
    commanded = "`cryptique-rag replay --source transactions --reason amount_unreadable`"
    told = the_record(command, letter["sourceId"])
    assert (told["inSource"], told["documents"], told["missing"]) == (True, [], [])
    assert told["refused"] == {"code": "amount_unreadable", "reason": letter["reason"]}
    (shown,) = told["deadLetters"]
    assert (shown["status"], shown["reason"]) == ("open", letter["reason"])
    assert shown["toDo"] == f"mend the record in the source (or the code that refuses it), then {commanded}"
    lines = lines_of(command, f"transaction:{letter['sourceId']}")
    assert f"dead letter open, amount_unreadable: {letter['reason']}" in lines
    assert f"to do {shown['toDo']}" in lines

    migrated.transactions.update_one({"_id": letter["sourceId"]}, {"$set": {"value_eth": "1.5 ABC"}})
    (shown,) = the_record(command, letter["sourceId"])["deadLetters"]
    assert shown["toDo"] == f"the record can be described now: {commanded} takes it through the stages again"
    migrated.complete(replay, reasons=["amount_unreadable"])
    told = the_record(command, letter["sourceId"])
    (shown,) = told["deadLetters"]
    assert (shown["status"], states(told)) == ("resolved", {"current"})
    assert shown["toDo"].startswith(f"nothing: it was closed by the run {migrated.last_run_id} on ")


def test_what_is_stored_of_a_record_that_is_refused_now_says_so(migrated: Pipeline, command: Command) -> None:
    record = an_ordinary_record(migrated, 6)
    migrated.transactions.update_one({"_id": record["_id"]}, {"$set": {"block_time": "yesterday"}})
    told = the_record(command, record["_id"])
    assert states(told) == {"refused"}
    assert told["refused"]["code"] == "block_time_unreadable"


# -- visitors ---------------------------------------------------------------------------------------------------------


def test_a_visitors_record_is_explained_and_nobodys_name_is_told(migrated: Pipeline, command: Command) -> None:
    visits = tuple(sample_visits(SESSIONS, seed=1, transactions=ROWS))
    hidden = {*sample_user_ids(visits), *PERSONAL_MARKS, *(visit.visitor.name for visit in visits)}
    assert len(hidden) > 20
    held = json.dumps(list(migrated.source["sessions"].find()), default=str)
    assert any(mark in held for mark in hidden)
    for source in OF_VISITORS:
        of_source = {"documentId": {"$regex": f"^{source}:"}}
        stored = [row["sourceId"] for row in migrated.store["vectordocuments"].find(of_source).limit(3)]
        refused = [letter["sourceId"] for letter in migrated.letters(sourceType=source)][:3]
        assert stored, source
        for record_id in (*stored, *refused):
            asked = f"{source}:{record_id}"
            told = the_record(command, asked)
            assert (told["inSource"], told["fields"]) == (True, {}), asked
            assert states(told) == ({"current"} if record_id in stored else set()), asked
            shown = f"{told}{command(asked).output}"
            assert [mark for mark in sorted(hidden) if mark in shown] == []


def test_without_the_key_of_the_pseudonyms_a_session_is_told_as_it_was_stored(
    migrated: Pipeline, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = migrated.store["vectordocuments"].find_one({"documentId": {"$regex": "^session:"}})
    assert row is not None
    monkeypatch.setenv("CRYPTIQUE_HOME", str(tmp_path / "elsewhere"))
    result = command(row["documentId"])
    assert result.exit_code == DONE, result.output
    assert "the key of the pseudonyms is empty" in result.stderr
    told = the_record(command, row["documentId"])
    assert (told["inSource"], states(told), told["owner"]["teamId"]) == (None, {"unknown"}, str(row["teamId"]))


# -- generations, aggregates, strangers -------------------------------------------------------------------------------


def test_the_live_generation_is_read_and_others_are_named(migrated: Pipeline, command: Command) -> None:
    record = an_ordinary_record(migrated, 7)
    assert the_record(command, record["_id"])["elsewhere"] == []
    migrated.complete(build_generation, name="next", dimensions=64, sources=["transactions"])
    told = the_record(command, record["_id"])
    assert [one["lineage"]["dimensions"] for one in told["documents"]] == [256]
    assert told["elsewhere"] == [{"generation": "next", "state": "complete", "documents": 1, "refused": None}]
    other = the_record(command, record["_id"], "--generation", "next")
    assert [one["lineage"]["dimensions"] for one in other["documents"]] == [64]
    assert states(other) == {"current"}
    assert other["elsewhere"] == [{"generation": "first", "state": "live", "documents": 1, "refused": None}]
    assert "1 in generation next (complete); --generation next shows them" in lines_of(command, record["_id"])
    result = command(record["_id"], "--generation", "last")
    assert result.exit_code == WRONG_INPUT
    assert "there is no generation last; there are: first, next" in result.stderr


def test_an_aggregate_says_what_it_was_computed_from(migrated: Pipeline, command: Command) -> None:
    migrated.complete(aggregate, of=["transactions"])
    of_contracts = {"documentId": {"$regex": "^aggregate:"}, "metadata.facts.scope": "contract"}
    row = migrated.store["vectordocuments"].find_one({**of_contracts, "metadata.facts.period": "month"})
    assert row is not None
    facts = row["metadata"]["facts"]
    stored = migrated.store["ragaggregates"].find_one({"_id": row["sourceId"]})
    assert stored is not None
    for asked in (stored["key"], row["documentId"], row["_id"], f"aggregates:{stored['_id']}"):
        told = the_record(command, asked)
        assert (told["source"], told["recordId"]) == ("aggregate", str(stored["_id"]))
    assert (told["place"], told["inSource"]) == (f"{migrated.store.name}.ragaggregates", True)
    (document,) = told["documents"]
    assert document["standing"]["state"] == "current"
    read = facts["computedFrom"]
    computed = document["computedFrom"]
    for name in ("scope", "contractId", "period", "label", "timeZone"):
        assert computed[name] == facts[name]
    assert (computed["rows"], computed["digest"]) == (read["rows"], read["digest"])
    assert computed["rows"] > 0
    lines = lines_of(command, row["documentId"])
    for expected in (
        f"computed from {read['rows']:,} row{'s' if read['rows'] > 1 else ''} of transactions",
        "scope contract",
        "period month",
        f"label {facts['label']}",
        "timeZone UTC",
        f"digest {read['digest']}",
    ):
        assert expected in lines
    # What says less of itself is told as far as it goes.
    for less in ({"aggregate": True}, {"computedFrom": "rows"}, {}):
        migrated.store["vectordocuments"].update_one({"_id": row["_id"]}, {"$set": {"metadata.facts": less}})
        assert states(the_record(command, row["documentId"])) == {"edited"}
        assert any(line.startswith("standing edited") for line in lines_of(command, row["documentId"]))


def test_a_document_that_this_pipeline_did_not_make_is_told_as_it_is(migrated: Pipeline, command: Command) -> None:
    row: dict[str, Any] = next(iter(migrated.documents().values()))
    names = ("sourceType", "teamId", "siteId", "embedding", "content", "source", "metadata", "status")
    foreign = {name: row[name] for name in names} | {"documentId": "handwritten", "sourceId": ObjectId()}
    migrated.store["vectordocuments"].insert_one(foreign)
    told = the_record(command, "handwritten")
    assert (told["source"], told["place"], told["inSource"], states(told)) == ("handwritten", None, None, {"unknown"})
    lines = lines_of(command, "handwritten")
    assert "run unknown: no run of this pipeline wrote it" in lines
    assert "code version unknown: written before rows told it" in lines


def test_what_a_stranger_wrote_does_not_reach_the_terminal_as_a_command(migrated: Pipeline, command: Command) -> None:
    record = an_ordinary_record(migrated, 8)
    hostile = {"method_name": "\x1b[2Jswap\u202e", "evil\x1b]0;x\x07": 1, "token_symbol": "\x9b31m\nowner"}
    migrated.transactions.update_one({"_id": record["_id"]}, {"$set": hostile})
    shown = command(record["_id"]).stdout
    assert re.search("(text|fields) changed", shown)
    assert not [char for char in shown if char in "\x1b\x07\x9b\u202e"]
