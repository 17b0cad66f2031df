"""Generations in a real MongoDB: each holds its own, a switch is one write, and a reader sees one of them whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bson
import pytest
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.monitoring import CommandListener, CommandStartedEvent

from blocks.embedders import Embedders
from blocks.generation_book import GenerationBook
from blocks.mongo import MongoSource
from blocks.shards import ShardStore
from blocks.vector_store import VectorStore
from blocks.wordllama import MODEL, LocalEmbedder
from flows.blocks import Parts
from flows.generations import compare_generations, drop, list_generations, roll_back, switch
from flows.hooks import count_letters
from flows.partition import work_fingerprint
from tasks.domain.chunks import ChunkSize
from tasks.domain.dead_letters import DeadLetter
from tasks.domain.errors import InputError, TerminalError, WorkTakenError
from tasks.domain.generations import FIRST, Book, Generation
from tasks.domain.rankings import Question
from tasks.domain.retrieval.tenants import Tenant
from tasks.domain.rows import new_row, row_hash, row_id
from tasks.domain.runs import Scope
from tasks.embed import Slots
from tasks.retrieve import Hit, search

Record = dict[str, Any]
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
TEAM = ObjectId("67dcac002fd1a03439b29e1d")
OLD, NEW = LocalEmbedder(), LocalEmbedder(dimensions=64)
TEXTS = ["a swap failed", "rewards were claimed", "tokens were minted", "a stake was locked", "an approval"]
#: The two generations hold other texts, so that an answer says by its words which one it is from.
WORDS = {FIRST: "of old", "next": "anew"}


def entry(name: str, embedder: LocalEmbedder) -> Generation:
    return Generation(name, "local", MODEL, embedder.dimensions, "none", "float32")


@pytest.fixture
def store(mongo_uri: str, database: Database[Record]) -> Iterator[VectorStore]:
    opened = VectorStore(uri=SecretStr(mongo_uri), database=database.name, embedder="local")
    yield opened
    opened.close()


@pytest.fixture
def two(store: VectorStore) -> VectorStore:
    """A store with the live first generation and a complete one, each with the same records."""
    store.at().initialise(OLD.dimensions)
    fill(store.at(), OLD)
    begin(store, "next")
    store.at("next").initialise(NEW.dimensions)
    fill(store.at("next"), NEW)
    complete(store, "next")
    return store


def begin(store: VectorStore, name: str) -> Book:
    return store.begin_generation(entry(name, NEW), first=entry(FIRST, OLD), now=NOW)


def complete(store: VectorStore, name: str) -> Book:
    return store.complete_generation(name, describers={"transaction": 1}, chunker=1, jobs=["job"], now=NOW)


def fill(store: VectorStore, embedder: LocalEmbedder) -> None:
    texts = [f"{text} {WORDS.get(store.generation_name, '')}" for text in TEXTS]
    vectors = embedder.embed_documents(texts)
    store.insert_rows([make_row(n, text, vectors[n], embedder.dimensions) for n, text in enumerate(texts)])
    store.require_model(embedder.facts, replace=False, write=True)
    store.note_loaded("transaction", now=NOW)


def source_id(number: int) -> ObjectId:
    return ObjectId(f"{number:024x}")


def make_row(number: int, text: str, vector: Any, dimensions: int) -> RawBSONDocument:
    key = f"transaction:contract:0x{number:x}:0"
    body = bson.encode(
        {
            "documentId": key,
            "sourceType": "transaction",
            "sourceId": source_id(number),
            "teamId": TEAM,
            "siteId": "site",
            "content": text,
            "source": f"transaction:{source_id(number)}",
            "summary": "",
            "metadata": {"dataType": "transaction"},
            "status": "active",
            "lineage": {"model": MODEL, "dimensions": dimensions, "task": "none", "ordinal": 0, "chunks": 1},
        }
    )
    return new_row(
        body,
        row_id=row_id(str(source_id(number)), key, 0),
        vector=vector,
        form="float32",
        content_hash=b"c" * 16,
        row_hash=row_hash(body),
        source_digest=b"d" * 16,
        run_id="run",
        now=NOW,
    )


def make_letter(number: int) -> DeadLetter:
    record = bson.encode({"_id": source_id(number)})
    return DeadLetter("transaction", record, "embed", "embedding_refused", "refused", None, None, record)


def ask(store: VectorStore, limit: int = 5) -> list[Hit]:
    (hits,) = search([TEXTS[0]], Tenant(None), limit=limit, vectors=store, embedder=OLD)
    return hits


# -- what belongs to one generation -------------------------------------------------------------------------


def test_a_store_that_never_had_another_generation_is_at_its_first(store: VectorStore) -> None:
    found = store.at()
    assert (found.generation, found.vectors_name, found.letters_name) == (FIRST, "vectordocuments", "deadletters")
    assert store.at(FIRST).vectors_name == store.vectors_name == "vectordocuments"
    assert found.describe_generation() is None
    assert found.is_standing()
    with pytest.raises(InputError, match="there is no generation next; there are: first"):
        store.at("next")


def test_generations_hold_the_same_records_apart(two: VectorStore, database: Database[Record]) -> None:
    first, following = two.at(FIRST), two.at("next")
    assert (first.count({}), following.count({})) == (5, 5)
    following.remove_documents(["transaction:contract:0x0:0"])
    assert (first.count({}), following.count({})) == (5, 4)
    assert first.find_stored(["transaction:contract:0x0:0"])
    assert not following.find_stored(["transaction:contract:0x0:0"])
    assert database["vectordocuments_next"].find_one({}, {"lineage": 1})["lineage"]["dimensions"] == 64  # type: ignore[index]


def test_dead_letters_of_one_neither_close_nor_overwrite_those_of_another(two: VectorStore) -> None:
    first, following = two.at(FIRST), two.at("next")
    first.save_dead_letters([make_letter(1), make_letter(2)], run_id="run 1", now=NOW)
    following.save_dead_letters([make_letter(1)], run_id="run 2", now=NOW)
    assert first.count_dead_letters("run 1") == {"embedding_refused": 2}
    assert following.resolve_dead_letters("transaction", [source_id(1), source_id(2)], run_id="run 2", now=NOW) == 1
    assert not following.has_dead_letters()
    assert set(first.read_dead_letter_ids("transaction")) == {source_id(1), source_id(2)}


def test_an_alert_counts_the_dead_letters_of_the_generation_that_its_run_is_about(two: VectorStore) -> None:
    two.at("next").save_dead_letters([make_letter(1)], run_id="run", now=NOW)
    two.at(FIRST).save_dead_letters([make_letter(1), make_letter(2)], run_id="run", now=NOW)
    counted = {name: count_letters(two, {"metadata": {"choices": {"generation": name}}}, "run") for name in WORDS}
    assert counted == {FIRST: {"embedding_refused": 2}, "next": {"embedding_refused": 1}}
    # A run that failed before it had a job is counted in the live one; a dropped generation has none.
    assert count_letters(two, None, "run") == counted[FIRST]
    assert count_letters(two, {"metadata": {"choices": {"generation": "dropped"}}}, "run") == {}


def test_positions_and_what_is_loaded_are_a_generations_own(store: VectorStore) -> None:
    begin(store, "next")
    first, following = store.at(FIRST), store.at("next")
    first.save_position("transaction", {"token": 1}, source="s", now=NOW)
    first.note_loaded("transaction", now=NOW)
    assert following.load_position("transaction") is None
    assert not following.is_loaded("transaction")
    following.save_position("transaction", {"token": 2}, source="s", now=NOW)
    assert [one.load_position("transaction")["token"] for one in (first, following)] == [1, 2]  # type: ignore[index]
    following.note_loaded("session", now=NOW)
    assert (first.read_loaded_sources(), following.read_loaded_sources()) == (["transaction"], ["session"])


def test_a_generation_gets_collections_validators_and_indexes_of_its_own(
    two: VectorStore, database: Database[Record]
) -> None:
    names = {row["name"]: row["options"] for row in database.list_collections()}
    for base in ("vectordocuments", "deadletters"):
        assert names[f"{base}_next"]["validator"] == names[base]["validator"]
        assert database[f"{base}_next"].index_information().keys() == database[base].index_information().keys()
    made = two.at("next").initialise(NEW.dimensions)
    assert (made.created, made.differs) == ([], [])


def test_a_first_load_of_a_generation_leaves_indexes_for_its_end_whatever_the_live_one_holds(
    store: VectorStore,
) -> None:
    store.at().initialise(OLD.dimensions)
    fill(store.at(), OLD)
    begin(store, "next")
    following = store.at("next")
    assert following.initialise(NEW.dimensions, loading=True).deferred
    assert not store.at(FIRST).initialise(OLD.dimensions, loading=True).deferred
    made = following.initialise(NEW.dimensions)
    assert any("vectordocuments_next" in line for line in made.created)
    assert following.initialise(NEW.dimensions).created == []


def test_a_generation_is_of_one_model_and_none_is_replaced(two: VectorStore) -> None:
    two.at("next").require_model(NEW.facts, replace=False, write=False)
    with pytest.raises(
        TerminalError, match=r"the store's vectors are of .* \(64 dimensions\), this run's of .* \(256\)"
    ):
        two.at("next").require_model(OLD.facts, replace=False, write=False)
    with pytest.raises(TerminalError, match=r"none of them changes its model.*generations build"):
        two.at().require_model(OLD.facts, replace=True, write=False)


def test_a_whole_load_says_what_described_the_generation(two: VectorStore) -> None:
    before = two.read_book()
    two.at("next").note_loaded("session", now=NOW)
    after = two.read_book()
    assert after.generations["next"].describers.keys() == {"transaction", "session"}
    assert (after.generations[FIRST], after.version) == (before.generations[FIRST], before.version + 1)


def test_a_store_that_was_asked_once_stays_at_what_was_live_then(two: VectorStore, mongo_uri: str) -> None:
    asked = VectorStore(uri=SecretStr(mongo_uri), database=two.database, embedder="local")
    assert asked.vectors_name == "vectordocuments"
    two.switch_generation("next", now=NOW)
    assert asked.vectors_name == "vectordocuments"
    assert asked.at().vectors_name == "vectordocuments_next"
    assert (asked.is_live(), asked.at().is_live()) == (False, True)
    asked.close()


def test_stores_at_generations_share_their_connections(two: VectorStore) -> None:
    assert two.at("next")._client is two.at()._client is two._client


def test_the_same_load_into_two_generations_is_two_pieces_of_work(
    two: VectorStore, database: Database[Record], mongo_uri: str, tmp_path: Path
) -> None:
    database.create_collection("transactions")
    source = MongoSource(uri=SecretStr(mongo_uri), database=database.name)

    def work(vectors: VectorStore) -> str:
        # The same model in both: a generation of another describer or form.
        shards = ShardStore(folder=tmp_path)
        parts = Parts(source, vectors, OLD, shards, source.load_owners(), OLD.facts, ChunkSize(), 0, Slots(1))
        return work_fingerprint(Scope(), parts, shard_rows=1_000, rebuild=False)

    assert len({work(two.at(FIRST)), work(two.at("next"))}) == 2
    # What was begun before there were generations is gone on with.
    assert work(two.at(FIRST)) == work(two) == work(two.at())
    source.close()


# -- the book -----------------------------------------------------------------------------------------------


class Commands(CommandListener):
    """Keeps the names of the commands that a client sends."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.names.append(event.command_name)

    def succeeded(self, event: Any) -> None:
        return

    def failed(self, event: Any) -> None:
        return


def test_a_switch_and_a_rollback_are_one_read_and_one_write_whatever_the_store_holds(
    two: VectorStore, mongo_uri: str
) -> None:
    commands = Commands()
    with MongoClient[Record](mongo_uri, event_listeners=[commands], tz_aware=True) as client:
        two._client = client
        two.switch_generation("next", now=NOW)
        assert commands.names == ["find", "update"]
        two.roll_back_generation(now=NOW)
        assert commands.names == ["find", "update"] * 2


def test_of_two_switches_at_the_same_moment_one_is_refused(two: VectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(two, "third")
    complete(two, "third")
    seen = two.read_book()
    two.switch_generation("next", now=NOW)
    monkeypatch.setattr(GenerationBook, "read", lambda _: seen)
    for late in (lambda: two.switch_generation("third", now=NOW), lambda: two.switch_generation("next", now=NOW)):
        with pytest.raises(WorkTakenError, match="somebody else changed the generations"):
            late()
    monkeypatch.undo()
    assert two.read_book().live == "next"


def test_generations_that_are_begun_at_the_same_moment_are_all_in_the_book(store: VectorStore) -> None:
    names = ["b", "c", "d"]
    with ThreadPoolExecutor(max_workers=3) as pool:
        list(pool.map(lambda name: begin(store, name), names))
    book = store.read_book()
    assert book.generations.keys() == {FIRST, *names}
    assert (book.live, book.version) == (FIRST, 3)


def test_a_generation_that_lacks_what_the_live_one_holds_is_not_switched_to(two: VectorStore) -> None:
    two.at(FIRST).note_loaded("session", now=NOW)
    with pytest.raises(InputError, match="next lacks sessions"):
        switch("next", vectors=two, embedders=Embedders(OLD))
    assert two.read_book().live == FIRST


def test_a_generation_that_nobody_can_ask_is_not_switched_to(two: VectorStore) -> None:
    other = Generation("gone", "gemini", "gemini-embedding-2", 768, "RETRIEVAL_DOCUMENT", "float32")
    two.begin_generation(other, first=entry(FIRST, OLD), now=NOW)
    complete(two, "gone")
    two.at("gone").note_loaded("transaction", now=NOW)
    with pytest.raises(TerminalError, match=r"gone is of gemini-embedding-2.*set GEMINI_API_KEY"):
        switch("gone", vectors=two, embedders=Embedders(OLD))
    assert two.read_book().live == FIRST


# -- dropping -----------------------------------------------------------------------------------------------


def test_dropping_deletes_all_of_one_generation_and_nothing_of_another(
    two: VectorStore, database: Database[Record]
) -> None:
    two.at("next").save_dead_letters([make_letter(1)], run_id="run", now=NOW)
    for name in (FIRST, "next"):
        two.at(name).save_position("transaction", {"token": name}, source="s", now=NOW)
    two.close_spending("gemini", until=NOW, now=NOW)
    begin(two, "nex")
    two.at("nex").save_position("transaction", {"token": "nex"}, source="s", now=NOW)
    kept = database["vectordocuments"].count_documents({})
    drop("next", vectors=two)
    assert not {"vectordocuments_next", "deadletters_next"} & set(database.list_collection_names())
    assert database["vectordocuments"].count_documents({}) == kept
    ids = {row["_id"] for row in database["ragstore"].find()}
    assert ids == {
        "generations",
        "vectordocuments",
        "loaded:transaction",
        "position:transaction",
        "position:transaction@nex",
        "spending:gemini",
    }
    with pytest.raises(InputError, match="was dropped"):
        two.at("next")


def test_the_first_generation_is_dropped_as_any_other(two: VectorStore, database: Database[Record]) -> None:
    two.at(FIRST).save_position("transaction", {"token": 1}, source="s", now=NOW)
    with pytest.raises(InputError, match="first is live: switch to another one first"):
        drop(FIRST, vectors=two)
    two.switch_generation("next", now=NOW)
    drop(FIRST, vectors=two)
    assert {row["_id"] for row in database["ragstore"].find()} == {
        "generations",
        "vectordocuments_next",
        "loaded:transaction@next",
    }
    # What is made for the live one later does not bring it back.
    two.at().initialise(NEW.dimensions)
    assert "vectordocuments" not in database.list_collection_names()


def test_a_drop_that_was_cut_off_goes_on(two: VectorStore, database: Database[Record]) -> None:
    two.begin_to_drop_generation("next")
    assert database["vectordocuments_next"].count_documents({}) == 5
    with pytest.raises(InputError, match="was dropped"):
        two.switch_generation("next", now=NOW)
    assert drop("next", vectors=two).generations["next"].state == "dropped"
    assert "vectordocuments_next" not in database.list_collection_names()


def test_a_generation_that_a_run_is_at_is_not_dropped(two: VectorStore, database: Database[Record]) -> None:
    job = {
        "jobId": "migrate-1",
        "jobType": "migration",
        "status": "processing",
        "createdAt": datetime.now(UTC),
        "updatedAt": datetime.now(UTC),
        "workerHost": "elsewhere",
        "workerId": "",
        "metadata": {"runKey": "1", "choices": {"generation": "next"}},
    }
    database["embeddingjobs"].insert_one(job)
    with pytest.raises(WorkTakenError, match="migrate-1 on elsewhere is at the generation next"):
        drop("next", vectors=two)
    assert two.read_book().generations["next"].state == "complete"
    database["embeddingjobs"].update_one({}, {"$set": {"metadata.choices.generation": FIRST}})
    drop("next", vectors=two)


# -- readers ------------------------------------------------------------------------------------------------


def test_the_live_generation_answers_in_its_own_model(two: VectorStore) -> None:
    assert {hit.lineage["dimensions"] for hit in ask(two)} == {256}
    switch("next", vectors=two, embedders=Embedders(OLD))
    hits = ask(two)
    # The configured embedder is the old one still: the question was asked in the generation's model all the same.
    assert {hit.lineage["dimensions"] for hit in hits} == {64}
    assert hits[0].content == f"{TEXTS[0]} anew"
    assert {hit.lineage["dimensions"] for hit in ask(two.at(FIRST))} == {256}


class Switches:
    """Which generation was made live when, so that a reader knows which ones its answer may be from."""

    def __init__(self, store: VectorStore) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._begun, self._settled = [FIRST], 0
        self._answered = 0
        self.over = threading.Event()
        self.answers: set[tuple[str, ...]] = set()

    def make(self, name: str) -> None:
        """Make a generation live, and wait until somebody has asked and been answered after that."""
        with self._changed:
            self._begun.append(name)
        book = self._store.switch_generation(name, now=NOW) if name == "next" else roll_back(vectors=self._store)
        assert book.live == name
        with self._changed:
            self._settled += 1
            assert self._changed.wait_for(lambda: self._answered == self._settled or self.over.is_set(), 60)

    def read(self, expected: dict[str, tuple[str, ...]]) -> None:
        """Search until it is over; each answer is wholly that of a generation that was live meanwhile."""
        try:
            while not self.over.is_set():
                settled = self._settled
                answer = tuple(hit.content for hit in ask(self._store))
                with self._changed:
                    possible = {expected[name] for name in self._begun[settled:]}
                    assert answer in possible, (answer, self._begun[settled:])
                    self.answers.add(answer)
                    self._answered = max(self._answered, settled)
                    self._changed.notify_all()
        finally:
            self.over.set()
            with self._changed:
                self._changed.notify_all()


def test_a_reader_that_searches_all_the_time_sees_each_switch_as_one(two: VectorStore) -> None:
    expected = {name: tuple(hit.content for hit in ask(two.at(name))) for name in WORDS}
    assert expected[FIRST] != expected["next"]
    switches = Switches(two)
    with ThreadPoolExecutor(max_workers=2) as pool:
        readers = [pool.submit(switches.read, expected) for _ in range(2)]
        try:
            for _ in range(25):
                switches.make("next")
                switches.make(FIRST)
        finally:
            switches.over.set()
    for reader in readers:
        reader.result()  # raises what a search raised
    assert switches.answers == set(expected.values())


def test_a_search_under_which_its_generation_is_dropped_begins_again_with_the_live_one(
    two: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, dropped = VectorStore.read_vectors, threading.Event()

    def dropped_meanwhile(store: VectorStore, criteria: Any, **options: Any) -> Any:
        if store.generation == FIRST and not dropped.is_set():
            dropped.set()
            two.switch_generation("next", now=NOW)
            drop(FIRST, vectors=two)
        return read(store, criteria, **options)

    monkeypatch.setattr(VectorStore, "read_vectors", dropped_meanwhile)
    hits = ask(two)
    assert dropped.is_set()
    assert {hit.lineage["dimensions"] for hit in hits} == {64}
    assert len(hits) == 5


def test_a_rollback_says_what_is_missing_and_can_be_undone(two: VectorStore) -> None:
    switch("next", vectors=two, embedders=Embedders(OLD))
    book = roll_back(vectors=two)
    assert (book.live, book.previous) == (FIRST, "next")
    assert "taken over by `ingest` from this generation's own position" in book.generations[FIRST].note
    assert roll_back(vectors=two).live == "next"


def test_two_generations_are_compared_each_in_its_own_model(two: VectorStore, database: Database[Record]) -> None:
    questions = [Question(str(n), text, "exact", frozenset({str(source_id(n))})) for n, text in enumerate(TEXTS)]
    compare = {"vectors": two, "embedders": Embedders(OLD), "one": FIRST, "other": "next"}
    found = compare_generations(questions, Tenant(None), **compare)
    assert found["by_kind"]["exact"] == {
        "questions": 5,
        "judged": 5,
        "overlap": 1.0,
        FIRST: {"recall": 1.0, "ndcg": 1.0},
        "next": {"recall": 1.0, "ndcg": 1.0},
    }
    database["vectordocuments_next"].delete_one({"sourceId": source_id(0)})
    worse = compare_generations(questions, Tenant(None), **compare)["by_kind"]["all"]
    assert worse[FIRST]["recall"] == 1.0
    assert worse["next"]["recall"] == 0.8
    assert worse["overlap"] == 0.8
    with pytest.raises(InputError, match="there is no generation other"):
        compare_generations(questions, Tenant(None), **{**compare, "other": "other"})


def test_generations_are_listed_with_what_they_hold_the_live_one_first(two: VectorStore) -> None:
    two.at(FIRST).save_position("transaction", {"token": 1}, source="s", now=NOW)
    two.switch_generation("next", now=NOW)
    book, standing = list_generations(two, Embedders(OLD))
    assert (book.live, [one.generation.name for one in standing]) == ("next", ["next", FIRST])
    assert [(one.documents, one.sources) for one in standing] == [(5, ["transaction"])] * 2
    assert [one.followed_until for one in standing] == [None, NOW]
    assert all(one.bytes_on_disk > 0 for one in standing)


def test_a_store_that_never_had_another_lists_its_one_also_when_it_is_empty(store: VectorStore) -> None:
    ((_, (only,)), empty) = list_generations(store, Embedders(OLD)), store.at().is_empty()
    assert empty
    assert (only.generation.name, only.generation.state, only.documents) == (FIRST, "live", 0)
    assert only.generation.dimensions == 256
