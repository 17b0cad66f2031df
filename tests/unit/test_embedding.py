"""Embedding: requests share their process's slots, every text is paid once, and refusals stand alone."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blocks.shards import ShardStore
from blocks.wordllama import LocalEmbedder
from tasks.domain.dead_letters import DeadLetter
from tasks.domain.errors import RecordError, StoppedError, TransientError
from tasks.domain.runs import Run, Scope
from tasks.domain.shards import Shard
from tasks.domain.tables import from_table
from tasks.domain.vectors import EmbedderFacts, Matrix
from tasks.embed import Slots, embed_shard
from tests.embedding_worker import write_shard

RUN = Run(key="run", id="run", scope=Scope(), started_ms=0)
BATCH_TEXTS = 5


class Watched:
    """The local embedder in small requests, with its calls counted; ``before`` runs at the start of each."""

    def __init__(self, before: Callable[[Sequence[str]], None] = lambda _: None) -> None:
        self.before = before
        self.asked: Counter[str] = Counter()
        self.most_at_once = 0
        self._local = LocalEmbedder()
        self._at_once = 0
        self._lock = threading.Lock()

    @property
    def facts(self) -> EmbedderFacts:
        return replace(self._local.facts, max_texts_per_request=BATCH_TEXTS)

    def embed_documents(self, texts: Sequence[str]) -> Matrix:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self.before(texts)
            with self._lock:
                self.asked.update(texts)
            return self._local.embed_documents(texts)
        finally:
            with self._lock:
                self._at_once -= 1

    def embed_query(self, text: str) -> Matrix:
        return self._local.embed_query(text)


@pytest.fixture
def store(tmp_path: Path) -> ShardStore:
    return ShardStore(folder=tmp_path / "shards")


def make_shard(store: ShardStore, number: int, texts: list[str]) -> Shard:
    # Each shard's file would else take the name of the other's.
    written = write_shard(store, f"{RUN.key}-{number}", texts)
    table = store.read_table(written.rows)
    return replace(written, number=number, rows=store.write_table(RUN.key, f"{number:06d}.chunks", table))


def embed(
    store: ShardStore, shard: Shard, embedder: Watched, slots: Slots, stop: threading.Event | None = None
) -> Shard:
    done: Shard = embed_shard.fn(RUN, shard, store, embedder, slots, stop=stop)
    return done


def vectors_of(store: ShardStore, shard: Shard) -> dict[bytes, bytes]:
    """Return what the next stage finds: what the shard paid for, and what it has from others."""
    table = store.read_table(shard.rows)
    found = dict(zip(table.column("content_hash").to_pylist(), table.column("vector").to_pylist(), strict=True))
    with store.paid_texts(RUN.key, shard=shard.number) as paid:
        for reply in paid.replies_of(shard.number):
            assert not found.keys() & set(reply.hashes), "each text has one vector, however often it comes"
            found.update(zip(reply.hashes, map(np.ndarray.tobytes, reply.vectors), strict=True))
    return found


def texts_of(name: str, count: int) -> list[str]:
    return [f"{name} text number {number}" for number in range(count)]


def test_every_text_gets_the_vector_that_the_embedder_gives_it(store: ShardStore) -> None:
    texts = texts_of("some", 17)
    shard = make_shard(store, 1, [*texts, *texts[:3]])
    embedder = Watched()
    done = embed(store, shard, embedder, Slots(3))
    hashes = store.read_table(shard.rows).column("content_hash").to_pylist()
    found = vectors_of(store, done)
    assert found.keys() == set(hashes)
    # Texts of one request are padded to the longest: the last bits of a sum may differ.
    expected = LocalEmbedder().embed_documents(texts)
    assert np.allclose(np.stack([np.frombuffer(found[key], "<f4") for key in hashes[:17]]), expected, atol=1e-6)
    assert set(embedder.asked.values()) == {1}
    assert (done.embedded, done.chunks) == (17, shard.rows)


def test_a_repeat_asks_for_nothing_and_gives_the_same_vectors(store: ShardStore) -> None:
    shard = make_shard(store, 1, texts_of("some", 12))
    first = embed(store, shard, Watched(), Slots(3))
    before = vectors_of(store, first)
    again = Watched()
    second = embed(store, shard, again, Slots(3))
    assert not again.asked
    assert vectors_of(store, second) == before
    assert (second.embedded, second.tokens, second.rows.rows) == (first.embedded, first.tokens, first.rows.rows)


def test_a_shard_without_a_text_to_embed_asks_for_nothing(store: ShardStore) -> None:
    embedder = Watched()
    done = embed(store, make_shard(store, 1, []), embedder, Slots(2))
    assert not embedder.asked
    assert (vectors_of(store, done), done.embedded, done.rows.rows) == ({}, 0, 0)


def test_all_shards_of_a_process_share_its_slots(store: ShardStore) -> None:
    pause = threading.Event()
    embedder = Watched(before=lambda _: pause.wait(0.01) and None)
    slots = Slots(3)
    shards = [make_shard(store, number, texts_of(f"shard {number}", 60)) for number in range(3)]
    with ThreadPoolExecutor(max_workers=3) as pool:
        done = list(pool.map(lambda shard: embed(store, shard, embedder, slots), shards))
    # Without them it would be nine; with one shard's own it would be less than all of them.
    assert embedder.most_at_once == 3
    assert [shard.embedded for shard in done] == [60, 60, 60]


class WaitsFor(threading.Event):
    """A stop that nobody sets; who sleeps on it wakes when something else has happened."""

    def __init__(self, happened: threading.Event) -> None:
        super().__init__()
        self._happened = happened

    def wait(self, timeout: float | None = None) -> bool:
        self._happened.wait(60)
        return False


def test_a_request_that_waits_for_its_retry_holds_no_slot(store: ShardStore) -> None:
    failed, other_is_done = threading.Event(), threading.Event()
    order: list[str] = []

    def fail_once(texts: Sequence[str]) -> None:
        order.append(texts[0].split()[0])
        if not failed.is_set() and texts[0].startswith("first"):
            failed.set()
            raise TransientError("not now")

    embedder, slots = Watched(before=fail_once), Slots(1)
    first, other = (make_shard(store, number, texts_of(name, 5)) for number, name in enumerate(("first", "other")))
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(embed, store, first, embedder, slots, WaitsFor(other_is_done))
        assert failed.wait(60)
        embed(store, other, embedder, slots)
        other_is_done.set()
        running.result()
    assert order == ["first", "other", "first"]


def test_of_those_who_wait_for_a_slot_the_first_to_come_goes_first() -> None:
    slots = Slots(1)
    places = [slots.join() for _ in range(6)]
    order: list[int] = []

    def go(place: int) -> None:
        with slots.taken(place):
            order.append(place)

    with ThreadPoolExecutor(max_workers=5) as pool:
        with slots.taken(places[0]):
            waiting = [pool.submit(go, place) for place in reversed(places[1:])]
            while len(slots._waiting) < 5:
                assert not any(future.done() for future in waiting)
                time.sleep(0.001)
        for future in waiting:
            future.result(60)
    assert order == places[1:]


def test_a_slot_that_is_left_by_an_error_is_free_again() -> None:
    slots = Slots(1)
    with pytest.raises(TransientError), slots.taken(slots.join()):
        raise TransientError("not now")
    with slots.taken(slots.join()):
        pass


def test_a_text_in_two_shards_is_paid_once(store: ShardStore) -> None:
    texts = texts_of("shared", 40)
    shards = [make_shard(store, number, texts) for number in range(3)]
    embedder, slots = Watched(), Slots(4)
    with ThreadPoolExecutor(max_workers=3) as pool:
        done = list(pool.map(lambda shard: embed(store, shard, embedder, slots), shards))
    assert set(embedder.asked.values()) == {1}
    assert embedder.asked.keys() == set(texts)
    assert sum(shard.embedded for shard in done) == 40
    assert len({tuple(sorted(vectors_of(store, shard).items())) for shard in done}) == 1


def test_a_refused_text_becomes_a_dead_letter_and_the_others_of_its_request_get_their_vectors(
    store: ShardStore,
) -> None:
    texts = texts_of("some", 14)
    refused = {texts[2], texts[3], texts[11]}

    def refuse(asked: Sequence[str]) -> None:
        if refused & set(asked):
            raise RecordError("embedding_refused", "the service refuses it")

    embedder = Watched(before=refuse)
    # Two shards with the same texts: what one was refused the other one asks for itself.
    for number in range(2):
        shard = make_shard(store, number, texts)
        done = embed(store, shard, embedder, Slots(2))
        hashes = store.read_table(shard.rows).column("content_hash").to_pylist()
        assert vectors_of(store, done).keys() == {
            key for key, text in zip(hashes, texts, strict=True) if text not in refused
        }
        letters = list(from_table(DeadLetter, store.read_table(done.refused[-1])))
        assert [letter.code for letter in letters] == ["embedding_refused"] * 3
    assert embedder.asked.keys() == set(texts) - refused
    assert set(embedder.asked.values()) == {1}


def test_what_was_paid_before_a_failure_is_not_asked_for_again(store: ShardStore) -> None:
    texts = texts_of("some", 30)
    broken = threading.Event()
    broken.set()

    def fail(asked: Sequence[str]) -> None:
        if broken.is_set() and texts[17] in asked:
            raise StoppedError

    embedder = Watched(before=fail)
    shard = make_shard(store, 1, texts)
    with pytest.raises(StoppedError):
        embed(store, shard, embedder, Slots(1))
    assert 0 < len(embedder.asked) < 30
    broken.clear()
    done = embed(store, shard, embedder, Slots(1))
    assert set(embedder.asked.values()) == {1}
    assert (len(vectors_of(store, done)), done.embedded) == (30, 30)
