"""The audit at a run's end against a real mongod: what others write meanwhile is no difference, and a loss is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import bson
import pytest
from bson import ObjectId
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.monitoring import CommandListener

import tasks.reconcile
from blocks.mongo import MongoSource
from blocks.vector_store import VectorStore
from tasks.domain.dead_letters import DeadLetter
from tasks.domain.manifests import Manifest, Owner, ShardOutcome
from tasks.domain.runs import Run, Scope
from tasks.domain.shards import ShardRange
from tasks.reconcile import Reconciliation, reconcile_run
from tests.builders import NOW, NOW_MS, TEAM_ID

Record = dict[str, Any]
RUN = Run("work", "run", Scope(), NOW_MS)
#: Two shards of six records, the records of two contracts by turns.
RECORDS = [ObjectId(f"{number:024x}") for number in range(1, 13)]
SHARDS = [ShardRange(0, None, RECORDS[6], 6), ShardRange(1, RECORDS[6], None, 6)]
CONTRACTS = ("contract_even", "contract_odd")


class Watch(CommandListener):
    """Sees every command to the store before it is sent, and lets others write at chosen moments."""

    def __init__(self) -> None:
        self.commands: list[Mapping[str, Any]] = []
        self._due: list[tuple[Callable[[Mapping[str, Any]], bool], Callable[[], object]]] = []

    def before(self, moment: Callable[[Mapping[str, Any]], bool], act: Callable[[], object]) -> None:
        """Act once, before the first command of this kind after the acts that were asked for earlier."""
        self._due.append((moment, act))

    @property
    def waiting(self) -> int:
        return len(self._due)

    def started(self, event: Any) -> None:
        self.commands.append(event.command)
        if self._due and self._due[0][0](event.command):
            act = self._due[0][1]
            act()  # the driver swallows errors: one that fails stays due, which the audit's caller sees
            self._due.pop(0)

    def succeeded(self, event: Any) -> None:
        return

    def failed(self, event: Any) -> None:
        return


def reading_a_checkpoint(command: Mapping[str, Any]) -> bool:
    """After the source's ids of a shard were read, before the store's are."""
    return command.get("find") == "ragcheckpoints"


def counting_contracts(command: Mapping[str, Any]) -> bool:
    """After every shard was looked at."""
    return command.get("find") == "vectordocuments" and "documentId" in command.get("min", {})


def looking_again(command: Mapping[str, Any]) -> bool:
    """Before some records' dead letters are asked for."""
    return command.get("find") == "deadletters" and "$in" in str(command["filter"].get("sourceId"))


def looking_at_documents(command: Mapping[str, Any]) -> bool:
    """Before some records' documents are asked for."""
    return command.get("find") == "vectordocuments" and "sourceId" in command["filter"]


class Place:
    """A source and a store, as a run leaves them."""

    def __init__(self, uri: str, client: MongoClient[Record]) -> None:
        name = f"test_{uuid4().hex[:12]}"
        self.client, self.watch = client, Watch()
        self.source = MongoSource(uri=SecretStr(uri), database=name)
        self.store = VectorStore(uri=SecretStr(uri), database=f"{name}_vectors", embedder="local")
        self.store.initialise(4)
        self.writer = VectorStore(uri=SecretStr(uri), database=self.store.database, embedder="local")
        self.store.close()
        self.store._client = MongoClient(uri, tz_aware=True, event_listeners=[self.watch])
        self.transactions: Collection[Record] = client[name]["transactions"]
        self.vectors: Collection[Record] = client[f"{name}_vectors"]["vectordocuments"]
        self.transactions.insert_many([{"_id": one, "contractId": contract_of(one)} for one in RECORDS])
        for record in RECORDS:
            self.save(record)
        self.counts = {}
        self.manifest = Manifest()
        for shard in SHARDS:
            own = RECORDS[shard.number * 6 :][:6]
            made = Manifest()
            for contract, count in Counter(map(contract_of, own)).items():
                made.add(Owner(str(TEAM_ID), contract), read=count, written=count, chunks=count)
            self.store.save_checkpoint(
                RUN.key, shard.number, ShardOutcome(made, b"".join(one.binary for one in own), ()), now=NOW
            )
            self.counts[shard.number] = made.total
            self.manifest.merge(made)

    def save(
        self, record: ObjectId, *, contract: str | None = None, ordinals: tuple[int, ...] = (0,), of: int = 1
    ) -> None:
        """Store a record's documents, as a writer does."""
        contract = contract or contract_of(record)
        for ordinal in ordinals:
            row = {
                "documentId": f"transaction:{contract}:{record}:{ordinal}",
                "sourceType": "transaction",
                "sourceId": record,
                "teamId": TEAM_ID,
                "metadata": {"facts": {"contractId": contract}},
                "lineage": {"ordinal": ordinal, "chunks": of},
            }
            self.vectors.database.get_collection("vectordocuments").insert_one(row, bypass_document_validation=True)

    def lose(self, *records: ObjectId) -> None:
        """Take away documents that should be there."""
        self.vectors.delete_many({"sourceId": {"$in": list(records)}})

    def delete(self, *records: ObjectId) -> None:
        """Delete records, and their documents as ingest does."""
        self.transactions.delete_many({"_id": {"$in": list(records)}})
        self.lose(*records)

    def open_letter(self, record: ObjectId) -> None:
        """Put down that ingest refused a record."""
        row = bson.encode({"_id": record})
        letter = DeadLetter("transaction", row, "extract", "unreadable", "it can't be read", None, None, row)
        self.writer.save_dead_letters([letter], run_id="ingest", now=datetime.now(UTC))

    def refuse(self, record: ObjectId) -> None:
        """Take away the documents of a record that can't be read any more, as ingest does."""
        self.lose(record)
        self.open_letter(record)

    def audit(self) -> Reconciliation:
        found: Reconciliation = reconcile_run.fn(
            RUN,
            SHARDS,
            self.counts,
            self.manifest,
            self.source,
            self.store,
            {},
            lambda row: True,
            False,
        )
        assert self.watch.waiting == 0
        return found

    def close(self) -> None:
        for block in (self.source, self.store, self.writer):
            block.close()
            self.client.drop_database(block.database)


def contract_of(record: ObjectId) -> str:
    return CONTRACTS[int(str(record), 16) % 2]


@pytest.fixture
def place(mongo_uri: str, mongo_client: MongoClient[Record], monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(tasks.reconcile, "_SETTLING_SECONDS", (0.01, 0.01, 0.01))
    made = Place(mongo_uri, mongo_client)
    yield made
    made.close()


def test_where_nothing_differs_no_record_is_looked_up(place: Place) -> None:
    found = place.audit()
    assert (found.in_source, found.stored, found.documents, found.differences) == (12, 12, 12, [])
    assert not [command for command in place.watch.commands if looking_again(command) or looking_at_documents(command)]


def test_what_a_writer_deleted_or_refused_before_the_audit_is_no_difference(place: Place) -> None:
    place.delete(RECORDS[0], RECORDS[7])
    place.refuse(RECORDS[1])
    found = place.audit()
    assert found.differences == []
    assert (found.in_source, found.stored, found.dead_lettered, found.orphaned) == (10, 9, 1, 0)


def test_what_a_writer_deletes_and_refuses_during_the_audit_is_no_difference(place: Place) -> None:
    place.watch.before(reading_a_checkpoint, lambda: place.delete(RECORDS[0]))
    place.watch.before(reading_a_checkpoint, lambda: place.refuse(RECORDS[6]))
    place.watch.before(counting_contracts, lambda: (place.delete(RECORDS[1]), place.refuse(RECORDS[8])))
    found = place.audit()
    assert found.differences == []
    # What went after its shard was looked at counts as it was then.
    assert (found.in_source, found.stored, found.dead_lettered) == (11, 10, 1)


def test_a_writer_that_has_removed_but_not_yet_written_is_waited_for(place: Place) -> None:
    place.watch.before(reading_a_checkpoint, lambda: place.lose(RECORDS[0], RECORDS[1]))
    place.watch.before(looking_again, lambda: None)
    place.watch.before(looking_again, lambda: None)
    place.watch.before(looking_again, lambda: (place.open_letter(RECORDS[0]), place.save(RECORDS[1])))
    found = place.audit()
    assert found.differences == []
    assert (found.in_source, found.stored, found.dead_lettered) == (12, 11, 1)


def test_a_record_of_which_a_writer_has_stored_half_its_chunks_is_waited_for(place: Place) -> None:
    def grow() -> None:
        place.lose(RECORDS[2])
        place.save(RECORDS[2], ordinals=(0, 1), of=3)

    place.watch.before(reading_a_checkpoint, grow)
    place.watch.before(looking_at_documents, lambda: None)
    place.watch.before(looking_at_documents, lambda: place.save(RECORDS[2], ordinals=(2,), of=3))
    assert place.audit().differences == []
    place.vectors.delete_one({"documentId": {"$regex": ":1$"}})
    (said,) = place.audit().differences
    assert f"record {RECORDS[2]} has documents that don't fit together" in said


def test_a_record_that_moved_to_another_contract_meanwhile_is_no_difference(place: Place) -> None:
    place.transactions.update_one({"_id": RECORDS[0]}, {"$set": {"contractId": contract_of(RECORDS[1])}})
    place.lose(RECORDS[0])
    place.save(RECORDS[0], contract=contract_of(RECORDS[1]))
    assert place.audit().differences == []


def test_one_that_was_deleted_unread_and_one_that_arrived_since_are_not_a_record_that_was_missed(place: Place) -> None:
    place.counts[1] = type(place.counts[1])(read=5, written=5, chunks=5)
    place.transactions.insert_one({"_id": ObjectId.from_datetime(NOW), "contractId": CONTRACTS[0]})
    found = place.audit()
    assert (found.differences, found.arrived) == ([], 1)
    # One that was there before the run is another matter.
    place.transactions.insert_one({"_id": ObjectId(f"{99:024x}"), "contractId": CONTRACTS[0]})
    assert place.audit().differences == ["1 records of shard 1 were planned but not read"]


def test_vectors_that_were_lost_are_found_among_those_that_went_by_right(place: Place) -> None:
    place.delete(RECORDS[2])
    place.refuse(RECORDS[4])
    place.lose(RECORDS[0])
    said = place.audit().differences
    assert said[0] == f"1 records of shard 0 lost their vectors: {RECORDS[0]}"
    assert [line.partition(" (team")[0] for line in said[1:]] == [contract_of(RECORDS[0])]


def test_vectors_that_are_lost_after_their_shard_was_looked_at_are_found_by_contract(place: Place) -> None:
    # One of the other contract goes by right.
    place.watch.before(counting_contracts, lambda: (place.lose(RECORDS[0]), place.delete(RECORDS[1])))
    assert place.audit().differences == [
        f"1 records of shard 0 lost their vectors: {RECORDS[0]}",
        f"{contract_of(RECORDS[0])} (team {TEAM_ID}): the run accounts for 6 records, the store holds 5",
    ]


def test_a_document_of_another_source_does_not_stand_for_a_record_s(place: Place) -> None:
    place.vectors.update_one(
        {"sourceId": RECORDS[3]},
        {"$set": {"sourceType": "session", "documentId": "session:s:3:0"}},
        bypass_document_validation=True,
    )
    assert place.audit().differences[0] == f"1 records of shard 0 lost their vectors: {RECORDS[3]}"
