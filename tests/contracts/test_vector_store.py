"""The vector store and the source against a real mongod: what is written, found, refused, and said of failures."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from urllib.parse import quote_plus

import bson
import numpy as np
import pytest
from bson import ObjectId
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.raw_bson import RawBSONDocument
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.monitoring import CommandListener, CommandStartedEvent

from blocks.mongo import MongoDatabase, MongoSource, mongo_errors
from blocks.vector_store import VectorStore
from tasks.domain.collections import COLLECTIONS, DIGEST_INDEX, LOOKUP_INDEX, VECTOR_DOCUMENTS
from tasks.domain.dead_letters import DeadLetter, record_key
from tasks.domain.digests import StoredRecord
from tasks.domain.errors import PipelineError, ShardDamagedError, TerminalError, TransientError
from tasks.domain.manifests import Manifest, Owner, ShardOutcome
from tasks.domain.rows import RowChange, changed_fields, new_row, read_vector, row_hash, row_id
from tasks.domain.runs import Scope
from tasks.domain.shards import ShardRange
from tasks.domain.vectors import EmbedderFacts
from tasks.domain.windows import Window

Record = dict[str, Any]
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
LATER = datetime(2026, 3, 5, tzinfo=UTC)
TEAM = ObjectId("67dcac002fd1a03439b29e1d")
FACTS = EmbedderFacts("model-a", 4, "none", max_texts_per_request=10, max_tokens_per_text=100)


@pytest.fixture
def store(mongo_uri: str, database: Database[Record]) -> Iterator[VectorStore]:
    opened = VectorStore(uri=SecretStr(mongo_uri), database=database.name, embedder="local")
    opened.initialise(4)
    yield opened
    opened.close()


def source_id(number: int) -> ObjectId:
    return ObjectId(f"{number:024x}")


def make_body(number: int, *, ordinal: int = 0, chunks: int = 1, **changes: Any) -> bytes:
    """Return the body of a row as the pipeline encodes it, in small."""
    return bson.encode(
        {
            "documentId": document_id(number, ordinal),
            "sourceType": "transaction",
            "sourceId": source_id(number),
            "teamId": TEAM,
            "siteId": "site",
            "content": f"text {number}",
            "source": f"transaction:{source_id(number)}",
            "summary": "",
            "metadata": {"dataType": "transaction"},
            "status": "active",
            "lineage": {"model": "model-a", "dimensions": 4, "task": "none", "ordinal": ordinal, "chunks": chunks},
            **changes,
        }
    )


def document_id(number: int, ordinal: int = 0) -> str:
    return f"transaction:contract_{number % 3}:0x{number:x}:{ordinal}"


def digest_of(number: int) -> bytes:
    """Return what stands for the record that ``make_row`` makes a row of."""
    return number.to_bytes(16)


def make_row(
    number: int, *, ordinal: int = 0, form: Any = "float32", digest: bytes | None = None, **changes: Any
) -> RawBSONDocument:
    body = make_body(number, ordinal=ordinal, **changes)
    return new_row(
        body,
        row_id=row_id(str(source_id(number)), document_id(number, ordinal), ordinal),
        vector=np.array([0.1, 0.2, 0.3, number], dtype=np.float32),
        form=form,
        content_hash=bytes([number % 256]) * 16,
        row_hash=row_hash(body),
        source_digest=digest_of(number) if digest is None else digest,
        run_id="run",
        now=NOW,
    )


def make_change(number: int, *, seen: bytes | None = None, **changes: Any) -> RowChange:
    """Return a change of the row that ``make_row`` makes, or of one with the hash ``seen``."""
    body = make_body(number, **changes)
    fields = changed_fields(
        body,
        vector=None,
        form="float32",
        content_hash=b"c" * 16,
        row_hash=row_hash(body),
        source_digest=b"d" * 16,
        run_id="run 2",
        now=LATER,
    )
    return RowChange(fields, seen=row_hash(make_body(number)) if seen is None else seen, becomes=row_hash(body))


def stored_rows(database: Database[Record]) -> dict[str, Record]:
    return {row["documentId"]: row for row in database["vectordocuments"].find()}


# -- rows --------------------------------------------------------------------------------------------------


def test_inserted_rows_are_stored_whole(store: VectorStore, database: Database[Record]) -> None:
    assert store.is_empty()
    assert store.insert_rows([make_row(1)]) == []
    assert not store.is_empty()
    row = stored_rows(database)[document_id(1)]
    assert row["_id"] == row["sourceId"] == source_id(1)
    assert (row["version"], row["createdAt"], row["updatedAt"], row["runId"]) == (1, NOW, NOW, "run")
    assert np.array_equal(read_vector(row["embedding"]), np.array([0.1, 0.2, 0.3, 1], dtype=np.float32))
    assert row["embedding"].subtype == 9


def test_vectors_as_doubles_are_arrays_of_the_same_numbers(store: VectorStore, database: Database[Record]) -> None:
    store.insert_rows([make_row(2, form="doubles")])
    stored = stored_rows(database)[document_id(2)]["embedding"]
    assert [type(number) for number in stored] == [float] * 4
    assert np.array_equal(read_vector(stored), np.array([0.1, 0.2, 0.3, 2], dtype=np.float32))


def test_rows_that_are_there_already_are_told_by_position_and_all_others_are_written(
    store: VectorStore, database: Database[Record]
) -> None:
    store.insert_rows([make_row(5), make_row(1_700)])
    before = stored_rows(database)
    assert store.insert_rows([make_row(number) for number in range(2_500)]) == [5, 1_700]
    after = stored_rows(database)
    assert len(after) == 2_500
    assert {key: after[key] for key in before} == before
    assert store.insert_rows([]) == []


def test_a_row_that_breaks_the_validator_is_refused_in_words(store: VectorStore) -> None:
    with pytest.raises(TerminalError, match="refused a vector document"):
        store.insert_rows([make_row(1), make_row(2, sourceType="unheard of")])


def test_what_is_stored_is_found_with_its_hashes_and_chunks(store: VectorStore) -> None:
    store.insert_rows([make_row(number, chunks=3) for number in range(2_100)])
    found = store.find_stored([document_id(number) for number in range(2_050, 2_200)])
    assert found.keys() == {document_id(number) for number in range(2_050, 2_100)}
    one = found[document_id(2_060)]
    assert (one.source_id, one.chunks) == (source_id(2_060), 3)
    assert one.content_hash == bytes([2_060 % 256]) * 16
    assert one.row_hash == row_hash(make_body(2_060, chunks=3))
    assert store.find_stored([]) == {}


class Finds(CommandListener):
    """Keeps the find commands that a client sends."""

    def __init__(self) -> None:
        self.commands: list[Record] = []

    def started(self, event: CommandStartedEvent) -> None:
        if event.command_name == "find":
            self.commands.append({k: v for k, v in event.command.items() if k in FIND_OPTIONS})

    def succeeded(self, event: Any) -> None:
        return

    def failed(self, event: Any) -> None:
        return


FIND_OPTIONS = ("find", "filter", "projection", "hint", "min", "max", "sort")


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.find_stored([document_id(number) for number in range(50)]),
        lambda store: list(store.read_source_ids(ShardRange(0, source_id(10), source_id(90), 80))),
        lambda store: store.count_records_by_holder("transaction"),
        lambda store: store.find_stored_records(within=ShardRange(0, source_id(10), source_id(90), 80)),
        lambda store: store.find_stored_records(within=[source_id(number) for number in range(50)]),
    ],
    ids=["find_stored", "read_source_ids", "count_records_by_holder", "records of a range", "records by id"],
)
def test_comparisons_are_answered_from_an_index_alone(
    store: VectorStore, database: Database[Record], mongo_uri: str, ask: Callable[[VectorStore], Any]
) -> None:
    store.insert_rows([make_row(number) for number in range(100)])
    finds = Finds()
    with MongoClient[Record](mongo_uri, event_listeners=[finds], tz_aware=True) as client:
        store._client = client
        assert ask(store)
    (command,) = finds.commands
    stats = database.command("explain", command, verbosity="executionStats")["executionStats"]
    assert stats["nReturned"] > 0
    assert stats["totalDocsExamined"] == 0


def test_what_is_stored_is_found_without_the_lookup_index_too(store: VectorStore, database: Database[Record]) -> None:
    store.insert_rows([make_row(number, chunks=3) for number in range(2_100)])
    ids = [document_id(number) for number in range(50, 2_200)]
    by_index = store.find_stored(ids), store.find_stored(ids, with_runs=True)
    assert len(by_index[0]) == 2_050
    database["vectordocuments"].drop_index(LOOKUP_INDEX)
    assert (store.find_stored(ids), store.find_stored(ids, with_runs=True)) == by_index


# -- records that are stored as they are -------------------------------------------------------------------

#: The two ways to ask: the records of a range, and records by id. Both mean the records 0 to 99.
WITHIN: dict[str, Any] = {
    "range": ShardRange(0, source_id(0), source_id(100), 100),
    "ids": [source_id(number) for number in range(100)],
}


@pytest.fixture(params=sorted(WITHIN))
def find_records(store: VectorStore, request: pytest.FixtureRequest) -> Callable[[], dict[ObjectId, StoredRecord]]:
    return lambda: store.find_stored_records(within=WITHIN[request.param])


FindRecords = Callable[[], dict[ObjectId, StoredRecord]]


def test_records_whose_rows_are_all_there_are_told_with_what_made_them(
    store: VectorStore, find_records: FindRecords
) -> None:
    store.insert_rows([make_row(number) for number in (3, 1, 99, 100)])
    store.insert_rows([make_row(2, ordinal=ordinal, chunks=3) for ordinal in (2, 0, 1)])
    assert find_records() == {
        source_id(1): StoredRecord(digest_of(1), 1),
        source_id(2): StoredRecord(digest_of(2), 3),
        source_id(3): StoredRecord(digest_of(3), 1),
        source_id(99): StoredRecord(digest_of(99), 1),
    }


#: What may be stored of the record 1 so that nobody may take it for whole and as it is.
DOUBTFUL: dict[str, list[RawBSONDocument]] = {
    "a chunk of two is missing": [make_row(1, chunks=2)],
    "the first chunk of two is missing": [make_row(1, ordinal=1, chunks=2)],
    "a chunk of three is missing": [make_row(1, ordinal=ordinal, chunks=3) for ordinal in (0, 2)],
    "a chunk too many": [make_row(1), make_row(1, ordinal=1)],
    "another digest in one chunk": [make_row(1, chunks=2), make_row(1, ordinal=1, chunks=2, digest=b"o" * 16)],
    "another number of chunks in one": [make_row(1, chunks=2), make_row(1, ordinal=1, chunks=3)],
    "rows of two document ids": [make_row(1), make_row(700, sourceId=source_id(1), digest=digest_of(1))],
    "a row of another source": [make_row(1), make_row(700, sourceId=source_id(1), sourceType="session")],
    "nothing": [],
}


@pytest.mark.parametrize("rows", DOUBTFUL.values(), ids=DOUBTFUL.keys())
def test_a_record_with_doubtful_rows_is_not_told_and_its_neighbours_are(
    store: VectorStore, find_records: FindRecords, rows: list[RawBSONDocument]
) -> None:
    assert store.insert_rows([make_row(0), *rows, make_row(2, chunks=2), make_row(2, ordinal=1, chunks=2)]) == []
    assert find_records() == {source_id(0): StoredRecord(digest_of(0), 1), source_id(2): StoredRecord(digest_of(2), 2)}


@pytest.mark.parametrize("without", [[document_id(1)], [document_id(1, 1)], [document_id(1), document_id(1, 1)]])
def test_a_record_with_a_row_that_an_older_version_wrote_is_not_told(
    store: VectorStore, database: Database[Record], find_records: FindRecords, without: list[str]
) -> None:
    store.insert_rows([make_row(1, chunks=2), make_row(1, ordinal=1, chunks=2), make_row(2)])
    assert len(find_records()) == 2
    database["vectordocuments"].update_many({"documentId": {"$in": without}}, {"$unset": {"sourceDigest": 1}})
    assert find_records().keys() == {source_id(2)}


def test_every_record_is_in_one_range_whatever_the_types_of_its_bounds(store: VectorStore) -> None:
    store.insert_rows([make_row(number) for number in range(6)])
    # In MongoDB's order numbers and texts lie before object ids, truth and dates behind them.
    bounds = [None, 7, "text", source_id(2), source_id(4), True, datetime(2020, 1, 1, tzinfo=UTC), None]
    found = [
        [int(str(record), 16) for record in store.find_stored_records(within=ShardRange(0, low, up, 0))]
        for low, up in pairwise(bounds)
    ]
    assert found == [[], [], [0, 1], [2, 3], [4, 5], [], []]


def test_more_records_than_one_question_takes_are_all_told(store: VectorStore) -> None:
    store.insert_rows([make_row(number) for number in range(2_100)])
    ids = [source_id(number) for number in range(50, 2_200)]
    found = store.find_stored_records(within=ids)
    assert found == {source_id(number): StoredRecord(digest_of(number), 1) for number in range(50, 2_100)}
    assert store.find_stored_records(within=ShardRange(0, ids[0], None, 0)) == found
    assert store.find_stored_records(within=[]) == {}


def test_in_a_store_without_the_index_no_record_is_told(
    store: VectorStore, database: Database[Record], find_records: FindRecords
) -> None:
    store.insert_rows([make_row(number) for number in range(5)])
    database["vectordocuments"].drop_index(DIGEST_INDEX)
    assert find_records() == {}
    database["vectordocuments"].drop()
    assert find_records() == {}


def test_what_a_row_was_made_from_is_put_down_and_nothing_else_of_it_changes(
    store: VectorStore, database: Database[Record]
) -> None:
    store.insert_rows([make_row(number) for number in range(1_100)])
    before = stored_rows(database)
    made = {document_id(n): (row_hash(make_body(n)), b"n" * 16) for n in range(1_100) if n != 7}
    for _ in range(2):
        store.note_digests(made)
        assert stored_rows(database) == {
            key: row | {"sourceDigest": b"n" * 16} if key in made else row for key, row in before.items()
        }
    store.note_digests({})


def test_a_row_that_changed_or_went_meanwhile_is_left_as_it_is(store: VectorStore, database: Database[Record]) -> None:
    store.insert_rows([make_row(number) for number in (1, 2, 3)])
    seen = {document_id(n): (row_hash(make_body(n)), b"n" * 16) for n in (1, 2, 3)}
    store.update_rows({document_id(1): make_change(1, siteId="theirs")})
    store.remove_documents([document_id(2)])
    before = stored_rows(database)
    store.note_digests(seen)
    after = stored_rows(database)
    assert after.keys() == {document_id(1), document_id(3)}
    assert after[document_id(1)] == before[document_id(1)]
    assert after[document_id(3)]["sourceDigest"] == b"n" * 16


# -- rows that change --------------------------------------------------------------------------------------


def test_changed_rows_get_their_fields_and_a_higher_version_and_keep_the_rest(
    store: VectorStore, database: Database[Record]
) -> None:
    store.insert_rows([make_row(1), make_row(2)])
    before = stored_rows(database)
    store.update_rows({document_id(1): make_change(1, siteId="another")})
    after = stored_rows(database)
    assert after[document_id(2)] == before[document_id(2)]
    row = after[document_id(1)]
    assert (row["siteId"], row["version"], row["updatedAt"], row["createdAt"]) == ("another", 2, LATER, NOW)
    assert row["embedding"] == before[document_id(1)]["embedding"]
    store.update_rows({})


def test_a_repeat_of_ones_own_change_passes(store: VectorStore, database: Database[Record]) -> None:
    store.insert_rows([make_row(1), make_row(2)])
    changes = {document_id(n): make_change(n, siteId="another") for n in (1, 2)}
    # An attempt that died between its writes and their acknowledgement.
    store.update_rows({document_id(1): changes[document_id(1)]})
    store.update_rows(changes)
    assert {row["siteId"] for row in stored_rows(database).values()} == {"another"}


def test_a_row_that_another_writer_changed_meanwhile_is_not_overwritten_and_the_shard_must_be_judged_again(
    store: VectorStore, database: Database[Record]
) -> None:
    store.insert_rows([make_row(1), make_row(2)])
    mine = {document_id(n): make_change(n, siteId="mine") for n in (1, 2)}
    store.update_rows({document_id(1): make_change(1, siteId="theirs")})
    theirs = stored_rows(database)[document_id(1)]
    with pytest.raises(ShardDamagedError, match="1 vector documents were changed by another run meanwhile"):
        store.update_rows(mine)
    after = stored_rows(database)
    assert after[document_id(1)] == theirs
    # The others of the same call are written: the work that runs again finds them as its own.
    assert after[document_id(2)]["siteId"] == "mine"


def test_a_row_that_vanished_meanwhile_is_not_made_again_and_the_shard_must_be_judged_again(
    store: VectorStore, database: Database[Record]
) -> None:
    store.insert_rows([make_row(1), make_row(2)])
    store.remove_documents([document_id(2)])
    with pytest.raises(ShardDamagedError, match="1 vector documents were changed by another run meanwhile"):
        store.update_rows({document_id(1): make_change(1), document_id(2): make_change(2)})
    assert list(stored_rows(database)) == [document_id(1)]


def test_a_row_without_a_hash_is_changed_as_one_that_was_seen_without(
    store: VectorStore, database: Database[Record]
) -> None:
    store.insert_rows([make_row(1)])
    database["vectordocuments"].update_one({}, {"$unset": {"rowHash": 1}})
    with pytest.raises(ShardDamagedError):
        store.update_rows({document_id(1): make_change(1, siteId="another")})
    assert store.find_stored([document_id(1)])[document_id(1)].row_hash == b""
    store.update_rows({document_id(1): make_change(1, seen=b"", siteId="another")})
    assert stored_rows(database)[document_id(1)]["siteId"] == "another"


def test_run_and_version_of_a_row_are_told_where_they_are_asked_for(store: VectorStore) -> None:
    store.insert_rows([make_row(1), make_row(2)])
    store.update_rows({document_id(2): make_change(2, siteId="another")})
    ids = [document_id(1), document_id(2)]
    found = store.find_stored(ids, with_runs=True)
    assert [(found[key].run_id, found[key].version) for key in ids] == [("run", 1), ("run 2", 2)]
    assert {(row.run_id, row.version) for row in store.find_stored(ids).values()} == {("", 0)}


def test_rows_are_removed_by_document_and_by_record(store: VectorStore, database: Database[Record]) -> None:
    store.insert_rows([make_row(1), make_row(1, ordinal=1), make_row(2), make_row(3, sourceType="session")])
    assert store.remove_documents([document_id(2), document_id(77)]) == 1
    # Another source may have a record of the same id.
    assert store.remove_sources("transaction", [source_id(1), source_id(3), source_id(9)]) == 2
    assert list(stored_rows(database)) == [document_id(3)]


def test_ids_of_a_range_are_half_open_and_in_order(store: VectorStore) -> None:
    store.insert_rows([make_row(number) for number in (4, 2, 3, 1)])
    store.insert_rows([make_row(3, ordinal=1)])
    assert list(store.read_source_ids(ShardRange(0, source_id(2), source_id(4), 2))) == [
        source_id(2),
        source_id(3),
        source_id(3),
    ]
    assert len(list(store.read_source_ids(ShardRange(0, None, None, 4)))) == 5


def test_a_range_holds_something_if_any_document_of_its_records_is_stored(store: VectorStore) -> None:
    assert not store.holds_any(ShardRange(0, None, None, 0), of="transaction")
    # The second chunk alone, as a load leaves it that died between two writes.
    store.insert_rows([make_row(3, ordinal=1, chunks=2)])
    for lower, upper, found in ((0, 3, False), (3, 4, True), (0, 9, True), (4, 9, False)):
        assert store.holds_any(ShardRange(0, source_id(lower), source_id(upper), 0), of="transaction") is found
    assert store.holds_any(ShardRange(0, None, None, 0), of="transaction")


def test_what_other_sources_have_does_not_count_where_one_is_asked_for(store: VectorStore) -> None:
    others = [make_row(number, documentId=f"session:s:{number}:0", sourceType="session") for number in range(1, 4)]
    store.insert_rows(others)
    assert not store.is_empty()
    assert (store.is_empty(of="transaction"), store.is_empty(of="session")) == (True, False)
    for shard in (ShardRange(0, None, None, 0), ShardRange(0, source_id(1), source_id(9), 0)):
        assert not store.holds_any(shard, of="transaction")
    store.insert_rows([make_row(7)])
    assert not store.is_empty(of="transaction")
    assert store.holds_any(ShardRange(0, source_id(1), source_id(9), 0), of="transaction")
    assert not store.holds_any(ShardRange(0, source_id(1), source_id(7), 0), of="transaction")


def test_records_are_counted_by_contract_once_each_and_other_sources_not(store: VectorStore) -> None:
    store.insert_rows([make_row(number) for number in range(9)] + [make_row(4, ordinal=1)])
    store.insert_rows([make_row(50, documentId="session:contract_0:0x50:0", sourceType="session")])
    assert store.count_records_by_holder("transaction") == {f"contract_{n}": 3 for n in range(3)}


def lineage(**changes: Any) -> Record:
    """Return a row's fields that say what made it."""
    made = {"model": "model-a", "dimensions": 4, "task": "none", "describer": 1, "ordinal": 0, "chunks": 1}
    return {"lineage": made | changes}


def test_records_are_found_by_what_made_their_vectors_within_a_scope(store: VectorStore) -> None:
    other_team = ObjectId()
    june, july = datetime(2025, 6, 1, tzinfo=UTC), datetime(2025, 7, 1, tzinfo=UTC)

    def at(moment: datetime) -> Record:
        return {"metadata": {"timeframe": {"start": moment}}}

    store.insert_rows(
        [
            make_row(4, **lineage(), **at(june)),
            make_row(3, **lineage(describer=2), **at(july)),
            make_row(2, **lineage(model="model-b"), **at(june), documentId="transaction:contract_9:0x2:0"),
            make_row(1, **lineage(), **at(june), teamId=other_team),
            # Two documents of one record.
            make_row(5, **lineage(chunks=2), **at(july)),
            make_row(5, ordinal=1, **lineage(chunks=2, ordinal=1), **at(july)),
            make_row(6, **lineage(), documentId="session:contract_9:0x6:0"),
        ]
    )

    def found(scope: Scope | None = None, describer: int | None = None, model: str | None = None) -> list[int]:
        criteria = store.lineage_criteria(scope or Scope(), describer=describer, model=model)
        ids = [int(str(record), 16) for record in store.read_record_ids(criteria)]
        assert store.count_records(criteria) == len(ids)
        return ids

    assert found() == [1, 2, 3, 4, 5]
    assert found(describer=1, model="model-a") == [1, 4, 5]
    assert found(describer=2) == [3]
    assert found(model="model-b") == [2]
    assert found(Scope(team_ids=(str(TEAM),)), model="model-a") == [3, 4, 5]
    assert found(Scope(contract_ids=("contract_9",))) == [2]
    assert found(Scope(window=Window(june, july))) == [1, 2, 4]
    assert found(Scope(window=Window(july, None))) == [3, 5]
    assert found(describer=3) == []
    everything = store.lineage_criteria(Scope(), describer=None, model=None)
    assert list(store.read_record_ids(everything, limit=2)) == [source_id(1), source_id(2)]


# -- dead letters ------------------------------------------------------------------------------------------


def make_letter(record_id: Any, code: str = "amount_negative") -> DeadLetter:
    return DeadLetter(
        source="transaction",
        source_id=bson.encode({"_id": record_id}),
        stage="extract",
        code=code,
        reason=f"the reason of {code}",
        team_id=str(TEAM),
        holder_id="contract_1",
        record=bson.encode({"_id": record_id, "value_eth": "-1"}),
    )


def test_a_record_has_one_dead_letter_with_its_latest_reason_and_its_attempts(
    store: VectorStore, database: Database[Record]
) -> None:
    assert not store.has_dead_letters()
    store.save_dead_letters([make_letter(source_id(1)), make_letter("text id")], run_id="run 1", now=NOW)
    store.save_dead_letters([make_letter(source_id(1), "amount_ambiguous")], run_id="run 2", now=LATER)
    store.save_dead_letters([], run_id="run 3", now=LATER)
    assert store.has_dead_letters()
    one, other = database["deadletters"].find().sort("sourceId", -1)
    assert (one["sourceId"], other["sourceId"]) == (source_id(1), "text id")
    assert (one["code"], one["attempts"], one["runId"]) == ("amount_ambiguous", 2, "run 2")
    assert (one["firstSeen"], one["time"], one["status"], one["teamId"]) == (NOW, LATER, "open", TEAM)
    assert one["record"] == {"_id": source_id(1), "value_eth": "-1"}
    assert (other["code"], other["attempts"], other["runId"]) == ("amount_negative", 1, "run 1")


def test_a_resolved_dead_letter_is_closed_until_its_record_is_refused_again(
    store: VectorStore, database: Database[Record]
) -> None:
    store.save_dead_letters([make_letter(source_id(n)) for n in (1, 2)], run_id="run 1", now=NOW)
    assert store.find_dead_letter_keys("transaction", [source_id(n) for n in (1, 2, 3)]) == {
        record_key(source_id(n)) for n in (1, 2)
    }
    assert store.resolve_dead_letters("transaction", [source_id(1), source_id(3)], run_id="run 2", now=LATER) == 1
    assert store.resolve_dead_letters("transaction", [source_id(1)], run_id="run 3", now=LATER) == 0
    assert list(store.read_dead_letter_ids("transaction")) == [source_id(2)]
    assert store.find_dead_letter_keys("session", [source_id(2)]) == set()
    letter = database["deadletters"].find_one({"sourceId": source_id(1)})
    assert letter is not None
    assert (letter["status"], letter["resolvedBy"], letter["resolvedAt"]) == ("resolved", "run 2", LATER)
    store.save_dead_letters([make_letter(source_id(1))], run_id="run 4", now=LATER)
    assert set(store.read_dead_letter_ids("transaction")) == {source_id(1), source_id(2)}


def test_open_dead_letters_are_chosen_by_reason_team_and_age_the_oldest_first(store: VectorStore) -> None:
    other_team = replace(make_letter(source_id(3)), team_id=str(ObjectId()))
    store.save_dead_letters([make_letter(source_id(1), "amount_ambiguous"), other_team], run_id="run 1", now=LATER)
    store.save_dead_letters([make_letter("text id"), make_letter(source_id(4))], run_id="run 0", now=NOW)
    store.save_dead_letters([make_letter(source_id(9))], run_id="run 0", now=NOW)
    store.resolve_dead_letters("transaction", [source_id(9)], run_id="run 1", now=LATER)

    def chosen(**criteria: Any) -> list[Any]:
        wanted = store.letter_criteria("transaction", **criteria)
        ids = list(store.read_open_letters(wanted))
        assert store.count_open_letters(wanted) == len(ids)
        return ids

    ids = chosen()
    assert set(ids[:2]) == {"text id", source_id(4)}
    assert set(ids[2:]) == {source_id(1), source_id(3)}
    assert set(store.read_open_letters(store.letter_criteria("transaction"), limit=2)) == set(ids[:2])
    assert chosen(codes=["amount_ambiguous"]) == [source_id(1)]
    assert set(chosen(team_ids=[str(TEAM)])) == {"text id", source_id(4), source_id(1)}
    assert set(chosen(before=LATER)) == {"text id", source_id(4)}
    assert set(chosen(since=LATER)) == {source_id(1), source_id(3)}
    assert chosen(codes=["amount_ambiguous"], before=LATER) == []
    assert store.letter_criteria("session") == {"sourceType": "session", "status": "open"}
    assert store.count_open_letters(store.letter_criteria("session")) == 0
    # The same letter's ids stand while what is done with them changes it.
    reading = store.read_open_letters(store.letter_criteria("transaction"))
    first = next(reading)
    store.resolve_dead_letters("transaction", ids, run_id="run 2", now=LATER)
    assert [first, *reading] == ids


def test_dead_letters_are_counted_by_reason_the_most_frequent_first_with_an_example_of_each(store: VectorStore) -> None:
    letters = [make_letter(source_id(n), "rare" if n == 1 else "frequent") for n in (3, 2, 1)]
    store.save_dead_letters(letters, run_id="run 1", now=NOW)
    store.save_dead_letters([make_letter(source_id(8), "of another run")], run_id="run 2", now=NOW)
    store.save_dead_letters([make_letter(source_id(7), "closed")], run_id="run 1", now=NOW)
    store.resolve_dead_letters("transaction", [source_id(7)], run_id="run 1", now=LATER)
    assert next(iter(store.count_letters_by_code())) == "frequent"
    assert store.count_letters_by_code() == {"frequent": 2, "rare": 1, "of another run": 1}
    assert store.count_dead_letters("run 1") == {"frequent": 2, "rare": 1}
    assert store.find_dead_letter_examples(["run 0", "run 1"]) == {
        "frequent": {"count": 2, "sourceId": source_id(2), "reason": "the reason of frequent"},
        "rare": {"count": 1, "sourceId": source_id(1), "reason": "the reason of rare"},
    }


# -- checkpoints, jobs, the model --------------------------------------------------------------------------


def test_checkpoints_come_back_as_they_were_saved_and_only_for_their_run(store: VectorStore) -> None:
    manifest = Manifest(embedded=7, tokens=70, refused={"amount_negative": 1})
    manifest.add(Owner(str(TEAM), "contract_1"), read=5, written=3, unchanged=1, dead_lettered=1, chunks=6, removed=2)
    manifest.add(Owner(None, None), read=1, dead_lettered=1)
    ids = [source_id(3), source_id(1)]
    outcome = ShardOutcome(manifest, b"".join(one.binary for one in ids), ())
    empty = ShardOutcome(Manifest(), b"", ())
    store.save_checkpoint("key", 3, empty, now=NOW)
    store.save_checkpoint("key", 3, outcome, now=NOW)
    store.save_checkpoint("key", 0, empty, now=NOW)
    store.save_checkpoint("other key", 9, empty, now=NOW)
    assert store.load_checkpoints("key") == {0: Manifest(), 3: manifest}
    assert store.load_stored_ids("key", 3) == {one.binary for one in ids}
    assert store.load_stored_ids("key", 0) == store.load_stored_ids("key", 77) == set()
    store.drop_checkpoints("key")
    assert store.load_checkpoints("key") == {}
    assert store.load_checkpoints("other key") == {9: Manifest()}


def test_a_job_is_written_whole_by_its_id_and_the_newest_is_found(
    store: VectorStore, database: Database[Record]
) -> None:
    job = {"jobId": "a", "jobType": "migration", "status": "processing", "createdAt": NOW, "notes": "x"}
    store.save_job(job)
    store.save_job({**job, "status": "completed"})
    store.save_job({**job, "jobId": "b", "createdAt": LATER})
    assert database["embeddingjobs"].count_documents({}) == 2
    newest = store.find_job({"jobType": "migration"})
    assert newest is not None
    assert newest["jobId"] == "b"
    assert store.find_job({"jobId": "c"}) is None
    with pytest.raises(TerminalError, match="writing a job"):
        store.save_job({**job, "jobId": "d", "status": "unheard of"})


def test_jobs_are_listed_newest_first_and_a_live_one_shows_that_it_lives(store: VectorStore) -> None:
    job = {"jobType": "migration", "createdAt": NOW, "updatedAt": NOW}
    store.save_job({**job, "jobId": "a", "status": "processing"})
    store.save_job({**job, "jobId": "b", "status": "completed", "createdAt": LATER})
    assert [found["jobId"] for found in store.find_jobs({})] == ["b", "a"]
    assert [found["jobId"] for found in store.find_jobs({}, limit=1)] == ["b"]
    assert [found["jobId"] for found in store.find_jobs({"status": "processing"})] == ["a"]
    for name in ("a", "b"):
        store.touch_job(name)
    # What has ended stays as it ended.
    found = {row["jobId"]: row["updatedAt"] for row in store.find_jobs({})}
    assert found["b"] == NOW < found["a"] <= store.read_time()


def test_of_two_runs_that_claim_the_same_work_one_gets_it(store: VectorStore) -> None:
    metadata = {"fingerprint": "work"}
    job = {"jobId": "a", "jobType": "migration", "status": "processing", "createdAt": NOW, "updatedAt": NOW}
    job["metadata"] = metadata
    assert store.claim_job(job)
    assert not store.claim_job({**job, "jobId": "b"})
    assert store.claim_job({**job, "jobId": "c", "metadata": {"fingerprint": "other work"}})
    as_read = store.find_job({"jobId": "a"})
    assert as_read is not None
    assert store.claim_job({**job, "updatedAt": LATER}, instead_of=as_read)
    # Somebody else took it over since it was read.
    assert not store.claim_job({**job, "updatedAt": LATER}, instead_of=as_read)
    store.give_up_job(as_read, error="its process is gone", now=LATER)
    again = store.find_job({"jobId": "a"})
    assert again is not None
    assert again["status"] == "processing"
    store.give_up_job(again, error="its process is gone", now=LATER)
    gone = store.find_job({"jobId": "a"})
    assert gone is not None
    assert (gone["status"], gone["errors"][0]["error"]) == ("failed", "its process is gone")
    assert store.claim_job({**job, "jobId": "b"})


def test_a_store_refuses_another_model_until_it_is_told_to_replace_it(store: VectorStore) -> None:
    store.require_model(FACTS, replace=False, write=False)
    store.require_model(FACTS, replace=False, write=True)
    store.require_model(FACTS, replace=False, write=True)
    for name, value in (("model", "model-b"), ("dimensions", 8), ("task", "RETRIEVAL_DOCUMENT")):
        other = EmbedderFacts(
            **{"model": "model-a", "dimensions": 4, "task": "none", name: value},
            max_texts_per_request=10,
            max_tokens_per_text=100,
        )
        with pytest.raises(TerminalError, match="--replace-model"):
            store.require_model(other, replace=False, write=True)
    other = EmbedderFacts("model-b", 8, "none", max_texts_per_request=10, max_tokens_per_text=100)
    store.require_model(other, replace=True, write=True)
    store.require_model(other, replace=False, write=False)
    with pytest.raises(TerminalError, match=r"of model-b \(8 dimensions\), this run's of model-a \(4\)"):
        store.require_model(FACTS, replace=False, write=False)


def test_the_model_of_a_store_whose_books_were_lost_is_read_from_its_rows(
    store: VectorStore, database: Database[Record]
) -> None:
    store.insert_rows([make_row(1)])
    other = EmbedderFacts("model-b", 4, "none", max_texts_per_request=10, max_tokens_per_text=100)
    with pytest.raises(TerminalError, match="--replace-model"):
        store.require_model(other, replace=False, write=True)
    store.require_model(FACTS, replace=False, write=True)
    database["ragstore"].drop()
    database["vectordocuments"].update_many({}, {"$unset": {"lineage": 1}})
    with pytest.raises(TerminalError, match="documents that this pipeline did not write"):
        store.require_model(FACTS, replace=True, write=True)


# -- collections and drift ---------------------------------------------------------------------------------


def schema_of(database: Database[Record]) -> dict[str, Any]:
    return {
        row["name"]: (row["options"], database[row["name"]].index_information()) for row in database.list_collections()
    }


def test_a_second_initialise_makes_nothing(store: VectorStore, database: Database[Record]) -> None:
    before = schema_of(database)
    assert before.keys() == {collection.name for collection in COLLECTIONS}
    drift = store.initialise(4)
    assert (drift.created, drift.differs) == ([], [])
    assert schema_of(database) == before


def test_initialise_makes_what_is_missing_and_nothing_else(store: VectorStore, database: Database[Record]) -> None:
    store.insert_rows([make_row(1)])
    database["vectordocuments"].drop_index("metadata.tags_1")
    database["embeddingstats"].drop()
    drift = store.initialise(4)
    assert drift.differs == []
    made = {f"index {name} of embeddingstats" for name in database["embeddingstats"].index_information()}
    assert set(drift.created) == (made - {"index _id_ of embeddingstats"}) | {
        "index metadata.tags_1 of vectordocuments",
        "collection embeddingstats",
    }
    assert len(stored_rows(database)) == 1


def test_what_differs_is_reported_and_left_as_it_is(store: VectorStore, database: Database[Record]) -> None:
    vectors, jobs = database["vectordocuments"], database["embeddingjobs"]
    for name in ("documentId_1", "expiresAt_1", "siteId_1", "content_text_summary_text_metadata.tags_text"):
        vectors.drop_index(name)
    vectors.create_index("documentId")
    vectors.create_index("expiresAt", expireAfterSeconds=60)
    vectors.create_index([("teamId", 1), ("content", 1)], name="siteId_1")
    vectors.create_index([("content", "text")], name="their_text")
    vectors.create_index("runId", name="of_theirs")
    jobs.drop_index("completedAt_1")
    jobs.create_index("completedAt", expireAfterSeconds=30 * 86_400)
    database.command("collMod", "deadletters", validator={"sourceType": {"$exists": True}})
    database.command("collMod", "vectordocuments", validator={}, validationLevel="off")
    store.insert_rows([make_row(1)])
    before = schema_of(database)
    drift = store.initialise(4)
    assert drift.created == []
    assert schema_of(database) == before
    assert len(stored_rows(database)) == 1
    said = "\n".join(drift.differs)
    for words in (
        "index documentId_1 of vectordocuments has unique False, not True",
        "index expiresAt_1 of vectordocuments has expireAfterSeconds 60, not 0",
        "index siteId_1 of vectordocuments has the keys",
        "index their_text of vectordocuments covers ['content'], not",
        "index completedAt_1 of embeddingjobs has partialFilterExpression None, not",
        "deadletters has another validator",
        "vectordocuments has no validator",
    ):
        assert words in said
    assert len(drift.differs) == 7
    assert any("further index of_theirs" in note for note in drift.notes)


def test_an_empty_collection_of_somebody_else_gets_our_validator(mongo_uri: str, database: Database[Record]) -> None:
    database.create_collection("vectordocuments")
    store = VectorStore(uri=SecretStr(mongo_uri), database=database.name, embedder="local")
    drift = store.initialise(4)
    store.close()
    assert "validator of vectordocuments" in drift.created
    assert drift.differs == []
    assert "validator" in database["vectordocuments"].options()


# -- a first load ------------------------------------------------------------------------------------------

EARLY = {"_id_", *(index.name for index in VECTOR_DOCUMENTS.indexes if index.early)}
DEFERRED = {index.name for index in VECTOR_DOCUMENTS.indexes if not index.early}


@pytest.fixture
def new_store(mongo_uri: str, database: Database[Record]) -> Iterator[VectorStore]:
    """A store where nothing was made yet."""
    opened = VectorStore(uri=SecretStr(mongo_uri), database=database.name, embedder="local")
    yield opened
    opened.close()


def index_names(database: Database[Record]) -> set[str]:
    return set(database["vectordocuments"].index_information())


def test_an_empty_store_that_is_to_be_loaded_gets_the_other_indexes_when_the_load_is_done(
    new_store: VectorStore, database: Database[Record], mongo_client: MongoClient[Record]
) -> None:
    drift = new_store.initialise(4, loading=True)
    assert (set(drift.deferred), drift.differs) == (DEFERRED, [])
    assert index_names(database) == EARLY
    # What is not of the vectors is there from the start: jobs and checkpoints are written meanwhile.
    assert schema_of(database).keys() - {"ragstore"} == {collection.name for collection in COLLECTIONS}
    # A row that is there already is told, as in a store that is not being loaded.
    assert new_store.insert_rows([make_row(1), make_row(2)]) == []
    assert new_store.insert_rows([make_row(2), make_row(3)]) == [0]
    assert new_store.find_stored_records(within=ShardRange(0, None, None, 3)).keys() == {
        source_id(number) for number in (1, 2, 3)
    }

    done = new_store.initialise(4)
    assert list(database["ragstore"].find()) == []
    database["ragstore"].drop()
    assert set(done.created) == {f"index {name} of vectordocuments" for name in DEFERRED}
    assert (done.deferred, done.differs) == ([], [])
    loaded = schema_of(database)
    mongo_client.drop_database(database.name)
    new_store.initialise(4)
    assert schema_of(database) == loaded
    again = new_store.initialise(4)
    assert (again.created, again.differs) == ([], [])


def test_a_first_load_that_goes_on_is_still_one_however_much_it_wrote(
    new_store: VectorStore, database: Database[Record]
) -> None:
    new_store.initialise(4, loading=True)
    new_store.insert_rows([make_row(number) for number in range(10)])
    drift = new_store.initialise(4, loading=True)
    assert (drift.created, set(drift.deferred)) == ([], DEFERRED)
    assert index_names(database) == EARLY
    new_store.initialise(4)
    assert index_names(database) == EARLY | DEFERRED
    # It is done: an index that is lost now is made again by any load.
    database["vectordocuments"].drop_index("metadata.tags_1")
    drift = new_store.initialise(4, loading=True)
    assert (drift.created, drift.deferred) == (["index metadata.tags_1 of vectordocuments"], [])


def test_a_first_load_goes_on_without_what_somebody_made_meanwhile(
    new_store: VectorStore, database: Database[Record]
) -> None:
    new_store.initialise(4, loading=True)
    new_store.insert_rows([make_row(1)])
    database["vectordocuments"].create_index("teamId")
    drift = new_store.initialise(4, loading=True)
    assert (drift.created, set(drift.deferred)) == ([], DEFERRED - {"teamId_1"})
    new_store.initialise(4)
    assert index_names(database) == EARLY | DEFERRED


def test_while_a_first_load_goes_on_the_store_answers_what_it_answers_afterwards(
    new_store: VectorStore, database: Database[Record]
) -> None:
    new_store.initialise(4, loading=True)
    new_store.insert_rows([make_row(number, **lineage()) for number in range(20)])
    shard = ShardRange(0, source_id(3), source_id(9), 0)

    def answers() -> list[Any]:
        return [
            new_store.find_stored([document_id(number) for number in range(30)], with_runs=True),
            new_store.find_stored_records(within=shard),
            list(new_store.read_source_ids(shard)),
            list(new_store.read_source_ids(ShardRange(0, None, None, 0))),
            new_store.count_records_by_holder("transaction"),
            new_store.find_documents("transaction", [source_id(4), source_id(77)]),
            new_store.count_records(new_store.lineage_criteria(Scope(), describer=1, model=None)),
            list(new_store.read_record_ids(new_store.lineage_criteria(Scope(), describer=1, model=None))),
        ]

    loading = answers()
    assert all(loading)
    new_store.initialise(4)
    assert answers() == loading


@pytest.mark.parametrize("emptied", [False, True], ids=["with documents", "emptied again"])
def test_a_load_into_a_store_that_has_its_indexes_leaves_them(
    store: VectorStore, database: Database[Record], emptied: bool
) -> None:
    store.insert_rows([make_row(1)])
    if emptied:
        store.remove_documents([document_id(1)])
    before = schema_of(database)
    drift = store.initialise(4, loading=True)
    assert (drift.created, drift.deferred, drift.differs) == ([], [], [])
    assert schema_of(database) == before


def test_documents_that_are_there_get_every_index_before_a_load(
    new_store: VectorStore, database: Database[Record]
) -> None:
    new_store.insert_rows([make_row(1)])
    drift = new_store.initialise(4, loading=True)
    assert drift.deferred == []
    assert index_names(database) == EARLY | DEFERRED
    new_store.remove_documents([document_id(1)])
    assert new_store.initialise(4, loading=True).deferred == []


# -- the source --------------------------------------------------------------------------------------------


def test_shards_cover_every_record_whatever_the_type_of_its_id(mongo_uri: str, database: Database[Record]) -> None:
    ids: list[Any] = [source_id(number) for number in range(25)] + ["text", 7, 2.5, datetime(2020, 1, 1, tzinfo=UTC)]
    database["transactions"].insert_many([{"_id": value, "kept": True, "left": True} for value in ids])
    source = MongoSource(uri=SecretStr(mongo_uri), database=database.name)
    for limit, rows in ((None, 4), (13, 5), (12, 4), (100, 29), (1, 1)):
        shards = source.plan_shards("transactions", criteria={}, rows=rows, limit=limit)
        read = [
            [row["_id"] for row in source.read_range("transactions", shard, criteria={}, fields=["kept"])]
            for shard in shards
        ]
        in_order = [row["_id"] for row in database["transactions"].find().sort("_id", 1)]
        assert [value for part in read for value in part] == in_order[:limit]
        assert [len(part) for part in read] == [shard.planned for shard in shards]
        assert all(len(part) <= rows for part in read)
    assert source.plan_shards("transactions", criteria={"kept": False}, rows=4) == []
    (row, *_) = source.read_range("transactions", ShardRange(0, None, None, 29), criteria={}, fields=["kept"])
    assert row.keys() == {"_id", "kept"}
    assert source.find_existing("transactions", [source_id(1), source_id(99), "text"]) == {
        record_key(source_id(1)),
        record_key("text"),
    }
    source.close()


AS_THE_SOURCE_READS: CodecOptions[Record] = CodecOptions(
    tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler="replace"
)


def strange_records() -> list[Any]:
    """Return records with their fields in several orders, ids of several types and values that are hard to read."""
    broken = bson.encode({"_id": source_id(9_001), "kept": "text", "left": 1}).replace(b"text", b"t\xff\xfet")
    return [
        {"_id": source_id(3), "left": 1, "other": {"b": 1, "a": [1, 2.5]}, "kept": "12.5"},
        {"_id": source_id(1), "kept": None, "other": datetime(2020, 1, 1, tzinfo=UTC)},
        {"kept": bson.DatetimeMS(10**15), "_id": "text id"},
        {"_id": 7, "other": bson.Decimal128("1.50"), "kept": bson.Int64(5)},
        {"_id": source_id(2), "left": "nothing of this is read"},
        RawBSONDocument(broken),
        *({"_id": source_id(10_000 + number), "kept": number, "other": number} for number in range(2_100)),
    ]


def test_records_are_read_with_bytes_that_are_the_same_each_time(mongo_uri: str, database: Database[Record]) -> None:
    database["transactions"].insert_many(strange_records())
    source = MongoSource(uri=SecretStr(mongo_uri), database=database.name)
    fields = ("kept", "other")
    ranges = [
        ShardRange(0, None, None, 0),
        ShardRange(0, None, source_id(2), 0),
        ShardRange(0, source_id(2), source_id(11_000), 0),
    ]
    for shard in ranges:
        plain = list(source.read_range("transactions", shard, criteria={}, fields=fields))
        raw = list(source.read_raw_range("transactions", shard, criteria={}, fields=fields))
        assert len(plain) > 1
        assert [record for _, record in raw] == plain
        assert [bson.decode(row, AS_THE_SOURCE_READS) for row, _ in raw] == plain
        assert list(source.read_raw_range("transactions", shard, criteria={}, fields=reversed(fields))) == raw
    ids = [record["_id"] for record in database["transactions"].find({}, {"_id": 1})] + [source_id(77), "nobody"]
    by_id = {record_key(record["_id"]): row for row, record in source.read_raw_records("transactions", ids, fields)}
    whole = source.read_raw_range("transactions", ranges[0], criteria={}, fields=fields)
    assert by_id == {record_key(record["_id"]): row for row, record in whole}
    chosen = list(source.read_raw_range("transactions", ranges[0], criteria={"left": 1}, fields=fields))
    assert [record["_id"] for _, record in chosen] == [source_id(3), source_id(9_001)]
    assert chosen[0][0] == bson.encode({"_id": source_id(3), "other": {"b": 1, "a": [1, 2.5]}, "kept": "12.5"})
    source.close()


@pytest.mark.parametrize(
    "change",
    [{"kept": "12.50"}, {"kept": 12.5}, {"other": {"a": [1, 2.5], "b": 1}}, {"other": {"b": 1.0, "a": [1, 2.5]}}],
    ids=repr,
)
def test_a_record_that_changed_in_a_field_that_is_read_has_other_bytes(
    mongo_uri: str, database: Database[Record], change: Record
) -> None:
    record = {"_id": source_id(3), "left": 1, "other": {"b": 1, "a": [1, 2.5]}, "kept": "12.5"}
    database["transactions"].insert_one(record)
    source = MongoSource(uri=SecretStr(mongo_uri), database=database.name)

    def read() -> bytes:
        ((raw, _),) = source.read_raw_records("transactions", [source_id(3)], ("kept", "other"))
        return raw

    before = read()
    database["transactions"].update_one({}, {"$set": {"left": 2, "further": 3}})
    assert read() == before
    database["transactions"].update_one({}, {"$set": change})
    assert read() != before
    source.close()


# -- failures in our words ---------------------------------------------------------------------------------

PASSWORD = "planted/pass:word@7f3a"


def failure(uri: str, ask: Callable[[MongoDatabase], Any] = MongoDatabase.check) -> PipelineError:
    """Return the error of one question to a database."""
    block = MongoSource(uri=SecretStr(uri), database="any")
    try:
        with pytest.raises(PipelineError) as caught:
            ask(block)
    finally:
        block.close()
    return caught.value


def shown_with_causes(error: BaseException | None) -> str:
    """Return the messages of an error and of all that a traceback would show above it."""
    shown = []
    while error is not None:
        shown.append(f"{error!r} {error}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(shown)


def test_a_server_that_answers_gives_its_version(mongo_uri: str) -> None:
    source = MongoSource(uri=SecretStr(mongo_uri), database="any")
    assert source.check()[0].isdigit()
    source.close()
    # Closed is not broken: the next question opens it again.
    assert source.check()[0].isdigit()
    source.close()


@pytest.mark.parametrize("user", ["nobody", "known"])
def test_a_refused_user_is_an_error_for_a_person_without_the_password(
    mongo_uri: str, mongo_client: MongoClient[Record], user: str
) -> None:
    mongo_client.admin.command("createUser", "known", pwd="another", roles=["read"])
    try:
        rest = mongo_uri.removeprefix("mongodb://")
        error = failure(f"mongodb://{user}:{quote_plus(PASSWORD)}@{rest}&authSource=admin")
    finally:
        mongo_client.admin.command("dropUser", "known")
    assert type(error) is TerminalError
    assert "MongoDB refuses the user of CRYPTIQUE_SOURCE_URI" in str(error)
    assert "check user, password and roles" in str(error)
    assert "7f3a" not in shown_with_causes(error)


def test_a_server_that_does_not_answer_is_asked_again() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port, and nobody answers
        port = unused.getsockname()[1]
        password = quote_plus(PASSWORD)
        error = failure(f"mongodb://user:{password}@127.0.0.1:{port}/?serverSelectionTimeoutMS=300")
    assert type(error) is TransientError
    assert "MongoDB of CRYPTIQUE_SOURCE_URI does not answer while asking for its version" in str(error)
    assert "7f3a" not in shown_with_causes(error)


@pytest.mark.parametrize(
    "uri",
    [
        f"mongodb://user:{PASSWORD}@127.0.0.1/",
        "mongodb://user:pass/7f3a@127.0.0.1/",
        "mongodb://user:pass@7f3a@127.0.0.1/",
        "mongodb://user:%zz7f3a@127.0.0.1/",
        "mongodb://user:7f3a@127.0.0.1:99999/",
        "mongodb://user:7f3a@/",
        "mongodb://",
        "mongo://user:7f3a@127.0.0.1/",
        "mongodb://user:7f3a@127.0.0.1/a b/c?x",
    ],
)
def test_a_broken_uri_is_an_error_for_a_person_and_is_not_quoted(uri: str) -> None:
    error = failure(uri)
    assert isinstance(error, TerminalError)
    assert "CRYPTIQUE_SOURCE_URI" in str(error)
    assert "7f3a" not in shown_with_causes(error)


def test_what_the_server_refuses_for_good_is_an_error_for_a_person(mongo_uri: str) -> None:
    def write_where_nobody_may(block: MongoDatabase) -> None:
        with mongo_errors("writing", block.setting):
            block.open_database().client["local"].command("createUser", "x", pwd="y", roles=[])

    error = failure(mongo_uri, write_where_nobody_may)
    assert isinstance(error, TerminalError)
    assert "MongoDB refused while writing" in str(error)
