"""The search index beside a real mongod: it answers as a comparison of everything does, whatever was written before."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bson import ObjectId
from bson.binary import Binary, BinaryVectorDtype
from pydantic import SecretStr
from pymongo.database import Database

from blocks import search_index
from blocks.embedders import Embedders
from blocks.search_index import SearchIndex
from blocks.search_indexes import SearchIndexes
from blocks.vector_store import VectorStore
from blocks.wordllama import MODEL, LocalEmbedder
from tasks.domain.errors import TransientError
from tasks.domain.generations import FIRST, Generation
from tasks.domain.retrieval.entries import make_entry, numbers_of, terms_of
from tasks.domain.retrieval.filters import AnyOf, Between, Filter, overlapping
from tasks.domain.retrieval.memory import MemoryEngine
from tasks.domain.retrieval.segments import SEGMENT_VERSION
from tasks.domain.retrieval.tenants import Tenant
from tasks.domain.rows import read_vector
from tasks.domain.vectors import Matrix

Record = dict[str, Any]
DIMENSIONS = 64
TEAMS = [ObjectId(f"64a00000000000000000000{number}") for number in range(3)]
CHAINS = ["Ethereum", "Polygon", "Base"]
WORDS = [
    "swap",
    "claim",
    "reward",
    "bridge",
    "mint",
    "stake",
    "vote",
    "approve",
    "transfer",
    "router",
    "pool",
    "oracle",
]
BEGAN = datetime(2024, 1, 1, tzinfo=UTC)
#: What is asked after every change: bounds, conditions, words.
ASKED = (
    (Tenant(None), Filter(), ["swap", "router"]),
    (Tenant(str(TEAMS[0])), Filter(), ["vote"]),
    (Tenant(str(TEAMS[1]), "site-1"), Filter((AnyOf("chain", ("polygon", "BASE")),)), ["claim", "reward", "claim"]),
    (Tenant(str(TEAMS[2])), Filter((), (Between("amount", 10, above=True),)), ["mint"]),
    (Tenant(None), Filter((AnyOf("chain", ("Ethereum",), negated=True), AnyOf("missing", ("start",)))), ["stake"]),
    (Tenant(None), overlapping(BEGAN.timestamp(), (BEGAN + timedelta(days=9)).timestamp()), ["pool", "unheard"]),
)


def make_row(number: int, draw: random.Random) -> Record:
    """Return a document of its own number, with whatever is drawn."""
    text = " ".join(draw.choices(WORDS, k=draw.randint(2, 9)))
    vector = np.array([draw.gauss(0, 1) for _ in range(DIMENSIONS)], dtype=np.float32)
    vector /= np.linalg.norm(vector)
    facts: Record = {"chain": draw.choice(CHAINS), "amount": str(draw.choice([0.5, 10, 250])), "unit": "ETH"}
    metadata: Record = {"tags": [draw.choice(WORDS)], "facts": facts, "category": draw.choice(WORDS)}
    if draw.random() < 0.8:
        moment = BEGAN + timedelta(days=draw.randint(0, 30))
        metadata["timeframe"] = {"start": moment, "end": moment + timedelta(days=draw.choice([0, 7]))}
    return {
        "_id": ObjectId(f"{number:024x}"),
        "documentId": f"transaction:contract_{number % 7}:0x{number:x}:0",
        "sourceType": "transaction",
        "sourceId": ObjectId(f"{number:024x}"),
        "teamId": draw.choice(TEAMS),
        "siteId": f"site-{draw.randint(0, 2)}",
        "content": text,
        "embedding": Binary.from_vector(vector.tolist(), BinaryVectorDtype.FLOAT32),
        "metadata": metadata,
        "status": "active",
        "contentHash": draw.randbytes(16),
        "rowHash": draw.randbytes(16),
        "lineage": {"model": MODEL, "dimensions": DIMENSIONS, "task": "none"},
    }


def eventually(holds: Callable[[], bool], *, seconds: float, every: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(every)


class Store:
    def __init__(self, vectors: VectorStore, collection: Any, folder: Path) -> None:
        self.vectors, self.collection, self.folder = vectors, collection, folder
        self.draw = random.Random(7)

    def insert(self, first: int, count: int) -> None:
        self.collection.insert_many([make_row(number, self.draw) for number in range(first, first + count)])

    def change(self, number: int) -> None:
        """Replace, archive or delete a document, or take it back."""
        chosen = {"_id": ObjectId(f"{number:024x}")}
        what = self.draw.choice(["replace", "replace", "archive", "delete"])
        if what == "replace":
            self.collection.replace_one(chosen, make_row(number, self.draw), upsert=True)
        elif what == "archive":
            self.collection.update_one(chosen, {"$set": {"status": "archived"}})
        else:
            self.collection.delete_one(chosen)

    def index(self) -> SearchIndex:
        return SearchIndex(self.vectors, self.folder, dimensions=DIMENSIONS)

    def opened(self) -> SearchIndex:
        index = self.index()
        index.open()
        return index

    def plain(self) -> MemoryEngine:
        """Return an engine over all that is active, read from the store at once."""
        rows = list(self.collection.find({"status": "active"}))
        return MemoryEngine.of(
            [make_entry(row) for row in rows], np.stack([read_vector(row["embedding"]) for row in rows])
        )

    def question(self) -> Matrix:
        vector = np.array([self.draw.gauss(0, 1) for _ in range(DIMENSIONS)], dtype=np.float32)
        return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)

    def require_equal(self, index: SearchIndex) -> None:
        """Compare with everything, by the definition of a filter and by an engine over one segment."""
        plain, view, asked = self.plain(), index.view, self.question()
        rows = list(self.collection.find({"status": "active"}))
        assert len(view) == len(rows)
        for tenant, where, words in ASKED:
            bounds = tenant.filter() & where
            fitting = {
                row["documentId"] for row in rows if bounds.holds(frozenset(terms_of(row)), numbers_of(row["metadata"]))
            }
            mine, right = view.choose(tenant, where), plain.choose(tenant, where)
            assert len(mine) == len(right) == len(fitting)
            assert {one.document_id for one in view.first(mine, 10_000)} == fitting
            weights = dict.fromkeys(words, 1.0)
            for limit in (1, 7, 400):
                near = view.nearest(mine, asked, limit)
                assert [one.document_id for one in near] == [
                    one.document_id for one in plain.nearest(right, asked, limit)
                ]
                assert view.by_words(mine, weights, limit) == plain.by_words(right, weights, limit)
            for name in ("chain", "token", "category"):
                assert view.values(tenant, name) == plain.values(tenant, name)


@pytest.fixture
def store(mongo_uri: str, database: Database[Record], tmp_path: Path) -> Iterator[Store]:
    vectors = VectorStore(uri=SecretStr(mongo_uri), database=database.name, embedder="local")
    yield Store(vectors.at(), database["vectordocuments"], tmp_path / "index")
    vectors.close()


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few documents do what thousands do: be written down, and merged."""
    for name, value in (("_FLUSH_ROWS", 20), ("_SMALL_ROWS", 200), ("_LARGE_ROWS", 400), ("_MERGED", 3)):
        monkeypatch.setattr(search_index, name, value)
    monkeypatch.setattr(search_index, "_BUILD_ROWS", 40)


def test_a_new_index_answers_as_a_comparison_of_everything(store: Store, small_files: None) -> None:
    store.insert(1, 300)
    store.require_equal(store.opened())


def test_what_is_written_is_followed_through_files_and_merges(store: Store, small_files: None) -> None:
    store.insert(1, 150)
    index = store.opened()
    for turn in range(12):
        store.insert(1_000 + 50 * turn, store.draw.choice([1, 15, 40]))
        for _ in range(15):
            store.change(store.draw.randint(1, 180))
        index.catch_up()
        index._keep_house()
        if turn % 4 == 3:
            store.require_equal(index)
    assert sum(one.name is not None for one in index.view.parts) < 8


def test_a_restart_reads_what_was_written_since_and_nothing_else(store: Store, small_files: None) -> None:
    store.insert(1, 200)
    index = store.opened()
    # The newest write before the beginning may be read twice.
    assert 200 <= index.progress.read <= 201
    for number in range(1, 30):
        store.change(number)
    index.catch_up()
    index.close()
    store.insert(900, 3)
    store.collection.delete_one({"_id": ObjectId(f"{100:024x}")})
    again = store.opened()
    assert again.progress.read <= 3
    store.require_equal(again)


def test_a_crash_loses_nothing(store: Store, small_files: None) -> None:
    store.insert(1, 100)
    index = store.opened()
    store.insert(500, 10)
    index.catch_up()
    # No close: as after kill -9 nothing of memory is written down, and the lock goes with the process.
    assert index._lock_file is not None
    index._lock_file.close()
    (store.folder / "segment-000099").mkdir()
    (store.folder / "segment-000099" / "vectors.bin").write_bytes(b"half")
    again = store.opened()
    store.require_equal(again)
    again.close()
    assert not (store.folder / "segment-000099").exists()


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest", "other version"])
def test_damaged_files_are_made_anew(store: Store, damage: str) -> None:
    store.insert(1, 60)
    store.opened().close()
    (segment,) = (path for path in store.folder.iterdir() if path.is_dir())
    manifest = store.folder / "manifest.json"
    if damage == "cut":
        content = (segment / "vectors.bin").read_bytes()
        (segment / "vectors.bin").write_bytes(content[:-4])
    elif damage == "missing":
        (segment / "postings.bin").unlink()
    elif damage == "manifest":
        manifest.write_text("{")
    else:
        manifest.write_text(manifest.read_text().replace(f'"version": {SEGMENT_VERSION}', '"version": 0'))
    again = store.opened()
    assert 60 <= again.progress.read <= 61
    store.require_equal(again)


def test_a_position_that_is_lost_is_made_good_by_a_comparison(store: Store) -> None:
    store.insert(1, 120)
    store.opened().close()
    store.insert(400, 5)
    store.collection.delete_many({"_id": {"$lt": ObjectId(f"{20:024x}")}})
    store.change(50)
    manifest = store.folder / "manifest.json"
    text = manifest.read_text()
    start = text.index('"position": ') + len('"position": ')
    end = text.index(', "whole"')
    manifest.write_text(f'{text[:start]}{{"token": {{"_data": "8200000000"}}}}{text[end:]}')
    again = store.opened()
    assert again.progress.read <= 6
    store.require_equal(again)


def test_a_collection_that_takes_the_place_of_another_is_compared(store: Store) -> None:
    """As a restore does it: the new documents under another name first, and a rename in one step."""
    store.insert(1, 80)
    index = store.opened()
    database = store.collection.database
    rows = list(store.collection.find({"_id": {"$gt": ObjectId(f"{40:024x}")}}))
    database["restored"].insert_many([*rows, make_row(700, store.draw)])
    database["restored"].rename("vectordocuments", dropTarget=True)
    index.catch_up()
    index.catch_up()
    assert 81 <= index.progress.read <= 82
    store.require_equal(index)


def test_two_processes_have_it_open_and_one_writes(store: Store, small_files: None) -> None:
    store.insert(1, 60)
    writer, reader = store.opened(), store.opened()
    assert reader._lock_file is None
    for turn in range(4):
        store.insert(200 + 30 * turn, 30)
        writer.catch_up()
        reader.catch_up()
        writer._keep_house()
        reader._keep_house()
    # What the reader had in memory is in the writer's files by now.
    assert sum(one.living for one in reader.view.parts if one.name is None) < 60
    store.require_equal(reader)
    writer.close()
    store.insert(800, 25)
    reader.catch_up()
    reader._keep_house()
    assert reader._lock_file is not None
    store.require_equal(reader)


def test_a_document_of_other_dimensions_is_not_searched(store: Store) -> None:
    store.insert(1, 10)
    other = make_row(11, store.draw)
    other["embedding"] = Binary.from_vector([1.0] * 32, BinaryVectorDtype.FLOAT32)
    store.collection.insert_one(other)
    index = store.opened()
    assert len(index.view) == 10


def test_a_view_stays_what_it_was(store: Store) -> None:
    store.insert(1, 50)
    index = store.opened()
    view = index.view
    chosen = view.choose(Tenant(None), Filter())
    store.collection.delete_many({})
    index.catch_up()
    assert len(index.view) == 0
    assert len(view.first(chosen, 100)) == 50


def test_what_is_written_is_found_within_a_second(store: Store) -> None:
    store.insert(1, 20)
    index, stopped = store.opened(), threading.Event()
    thread = threading.Thread(target=index.follow, args=(stopped,))
    thread.start()
    try:
        for number in range(100, 105):
            store.insert(number, 1)
            wrote = time.monotonic()
            eventually(lambda: len(index.view) == 21 + number - 100, seconds=5, every=0.02)  # noqa: B023
            assert time.monotonic() - wrote < 1
        store.collection.delete_one({"_id": ObjectId(f"{3:024x}")})
        eventually(lambda: len(index.view) == 24, seconds=5, every=0.02)
        assert index.behind_s < 2
    finally:
        stopped.set()
        thread.join()


@pytest.fixture
def held_merge(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Let merges that run beside begin, and end only when they are let; the events are of both."""
    begun, may_end = threading.Event(), threading.Event()
    before = search_index._merged

    def merged(*given: Any) -> Any:
        if threading.current_thread().name != "search-merge":
            return before(*given)
        begun.set()
        assert may_end.wait(30)
        return before(*given)

    monkeypatch.setattr(search_index, "_merged", merged)
    yield begun, may_end
    may_end.set()


def test_what_is_written_while_a_merge_runs_is_found_before_it_ends_and_holds_after(
    store: Store, small_files: None, held_merge: tuple[threading.Event, threading.Event]
) -> None:
    begun, may_end = held_merge
    store.insert(1, 40)
    index, stopped = store.opened(), threading.Event()
    thread = threading.Thread(target=index.follow, args=(stopped,))
    thread.start()
    try:
        for turn in range(3):
            store.insert(100 + 100 * turn, 25)
            eventually(lambda: len(index.view) == 65 + 25 * turn, seconds=5, every=0.02)  # noqa: B023
        assert begun.wait(5)
        chosen = index._merge.chosen if index._merge is not None else ()
        merged = {one.segment.row_id(place) for one in chosen for place in range(len(one.segment))}
        assert len(merged) >= 60
        # Found before the merge ends: another, one that changes, one that goes; and files are written on.
        gone, changed, *_ = sorted(merged)
        store.collection.delete_one({"_id": gone})
        store.collection.replace_one({"_id": changed}, make_row(int(str(changed), 16), store.draw))
        store.insert(700, 30)
        eventually(lambda: len(index.view) == 144, seconds=5, every=0.02)
        eventually(lambda: sum(one.living for one in index.view.parts if one.name is None) == 0, seconds=5, every=0.02)
        store.require_equal(index)
        assert {str(one.name) for one in chosen} <= _names(index)
        may_end.set()
        eventually(lambda: not {str(one.name) for one in chosen} & _names(index), seconds=5, every=0.02)
        store.require_equal(index)
    finally:
        may_end.set()
        stopped.set()
        thread.join()
    index.close()
    again = store.opened()
    assert again.progress.read <= 1
    store.require_equal(again)


def test_an_index_that_is_closed_in_the_middle_of_a_merge_has_lost_nothing(
    store: Store, small_files: None, held_merge: tuple[threading.Event, threading.Event]
) -> None:
    begun, may_end = held_merge
    store.insert(1, 40)
    index, stopped = store.opened(), threading.Event()
    thread = threading.Thread(target=index.follow, args=(stopped,))
    thread.start()
    for turn in range(3):
        store.insert(100 + 100 * turn, 25)
        eventually(lambda: len(index.view) == 65 + 25 * turn, seconds=5, every=0.02)  # noqa: B023
    assert begun.wait(5)
    stopped.set()
    may_end.set()
    thread.join(10)
    assert not thread.is_alive()
    index.close()
    again = store.opened()
    assert again.progress.read <= 1
    store.require_equal(again)
    again.close()
    assert {path.name for path in store.folder.iterdir() if path.is_dir()} == _names(again)


def test_a_merge_that_fails_leaves_what_there_is_and_is_tried_again(
    store: Store, small_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_index, "_FLUSH_S", 0.3)
    before, failures = search_index._merged, iter([OSError("no room"), ValueError("damaged"), MemoryError()])

    def merged(*given: Any) -> Any:
        for failure in failures:
            raise failure
        return before(*given)

    store.insert(1, 40)
    index, stopped = store.opened(), threading.Event()
    monkeypatch.setattr(search_index, "_merged", merged)
    monkeypatch.setattr(search_index, "_RETRY_S", 0.05)
    thread = threading.Thread(target=index.follow, args=(stopped,))
    thread.start()
    try:
        for turn in range(3):
            store.insert(100 + 100 * turn, 25)
            eventually(lambda: len(index.view) == 65 + 25 * turn, seconds=5, every=0.02)  # noqa: B023
        eventually(lambda: len(index.view.parts) < search_index._MERGED, seconds=10, every=0.05)
        assert next(failures, None) is None
        assert len(index.view) == 115
        store.require_equal(index)
    finally:
        stopped.set()
        thread.join()


def _names(index: SearchIndex) -> set[str]:
    return {str(one.name) for one in index.view.parts}


OLD, NEW = LocalEmbedder(dimensions=64), LocalEmbedder(dimensions=128)


def entry(name: str, embedder: LocalEmbedder) -> Generation:
    return Generation(name, "local", MODEL, embedder.dimensions, "none", "float32")


def test_another_generation_is_opened_beside_the_old_one_and_takes_its_place(
    mongo_uri: str, database: Database[Record], tmp_path: Path
) -> None:
    vectors = VectorStore(uri=SecretStr(mongo_uri), database=database.name, embedder="local")
    draw, now = random.Random(3), datetime.now(UTC)
    indexes = SearchIndexes(vectors, Embedders(OLD), tmp_path)
    try:
        with pytest.raises(TransientError, match="is being made"):
            indexes.live()
        vectors.require_model(OLD.facts, replace=False, write=True)
        database["vectordocuments"].insert_many([make_row(number, draw) for number in range(1, 21)])
        indexes.start()
        assert indexes.wait(20)
        assert (indexes.live().generation, len(indexes.live())) == (FIRST, 20)
        vectors.begin_generation(entry("next", NEW), first=entry(FIRST, OLD), now=now)
        rows = [make_row(number, draw) for number in range(1, 6)]
        for row, vector in zip(rows, NEW.embed_documents([row["content"] for row in rows]), strict=True):
            row["embedding"] = Binary.from_vector(vector.tolist(), BinaryVectorDtype.FLOAT32)
        database["vectordocuments_next"].insert_many(rows)
        vectors.complete_generation("next", describers={"transaction": 1}, chunker=1, jobs=["job"], now=now)
        vectors.switch_generation("next", now=now)
        eventually(lambda: indexes.live().generation == "next", seconds=20, every=0.05)
        assert len(indexes.live()) == 5
        vectors.begin_to_drop_generation(FIRST)
        vectors.drop_generation(FIRST, now=now)
        assert (tmp_path / "search" / database.name / "next").is_dir()
    finally:
        indexes.stop()
        vectors.close()
