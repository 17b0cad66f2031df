"""Generations: what may become of one, what is refused with words, and that the book is read as it was written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import bson
import cloudpickle
import pytest
from bson.codec_options import CodecOptions
from pydantic import SecretStr

from blocks.vector_store import VectorStore
from tasks.domain.collections import DEAD_LETTERS, VECTORS
from tasks.domain.errors import InputError
from tasks.domain.generations import FIRST, Book, Generation, State, own_key, own_name

NOW = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
LATER, LATEST = NOW + timedelta(hours=1), NOW + timedelta(hours=2)
OLD = Generation(FIRST, "gemini", "gemini-embedding-001", 1_536, "RETRIEVAL_DOCUMENT", "float32")
NEW = Generation("next", "gemini", "gemini-embedding-2", 768, "RETRIEVAL_DOCUMENT", "int8", describers={"session": 2})
STORE = VectorStore(uri=SecretStr("mongodb://127.0.0.1:9"), database="somewhere", embedder="local")


def built(*, described: int = 3) -> Book:
    """Return the book of a store with its first generation live and a complete one beside it."""
    book = Book().begun(NEW, first=OLD, now=NOW)
    return book.completed("next", describers={"transaction": described}, chunker=1, jobs=["job 1"], now=NOW)


def states(book: Book) -> dict[str, State]:
    return {name: one.state for name, one in book.generations.items()}


def test_a_store_without_a_book_has_one_generation_which_is_live() -> None:
    book = Book.from_record(None)
    assert (book.live, book.previous, book.version) == (FIRST, None, 0)
    with pytest.raises(InputError, match="there is no generation next; there are: first"):
        book.switched("next", now=NOW)
    with pytest.raises(InputError, match="nothing to go back to"):
        book.rolled_back(now=NOW)
    with pytest.raises(InputError, match="first is live"):
        book.dropping(FIRST)


def test_a_generation_is_begun_beside_the_live_one_and_begun_again_goes_on() -> None:
    book = Book().begun(NEW, first=OLD, now=NOW)
    assert states(book) == {FIRST: "live", "next": "building"}
    assert book.live == FIRST
    assert (book.generations[FIRST].model, book.generations["next"].begun_at) == ("gemini-embedding-001", NOW)
    again = book.begun(NEW, first=NEW, now=LATER)
    assert again.generations == book.generations
    assert again.version == book.version + 1


def test_what_is_half_built_is_not_switched_to() -> None:
    with pytest.raises(InputError, match=r"half built.*generations build next"):
        Book().begun(NEW, first=OLD, now=NOW).switched("next", now=LATER)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "gemini-embedding-001"},
        {"dimensions": 1_536},
        {"form": "float32"},
        {"task": "x"},
        {"embedder": "local"},
    ],
)
def test_a_generation_never_changes_what_made_it(change: dict[str, str]) -> None:
    record = NEW.to_record() | change
    with pytest.raises(InputError, match="begun with gemini-embedding-2, 768 dimensions, int8"):
        built().begun(Generation.from_record("next", record), first=OLD, now=LATER)


def test_the_live_one_is_not_built_and_its_name_is_not_given_to_another() -> None:
    with pytest.raises(InputError, match="is live"):
        Book().begun(Generation.from_record(FIRST, NEW.to_record()), first=OLD, now=NOW)
    with pytest.raises(InputError, match="is live"):
        built().switched("next", now=LATER).begun(NEW, first=OLD, now=LATEST)


def test_completing_says_what_described_it_and_which_jobs_built_it() -> None:
    book = built().completed("next", describers={"session": 4}, chunker=2, jobs=["job 1", "job 2"], now=LATER)
    found = book.generations["next"]
    assert (found.state, found.chunker, found.jobs, found.completed_at) == ("complete", 2, ("job 1", "job 2"), LATER)
    assert found.describers == {"session": 4, "transaction": 3}
    # One that is complete is described by what loaded it last, not by what a build that has just begun would do.
    begun = book.begun(
        Generation.from_record("next", NEW.to_record() | {"describers": {"session": 9}}), first=OLD, now=NOW
    )
    assert begun.generations["next"] == found


def test_a_switch_keeps_the_one_before_and_a_rollback_goes_back_to_it() -> None:
    switched = built().switched("next", now=LATER)
    assert (switched.live, switched.previous) == ("next", FIRST)
    assert states(switched) == {FIRST: "retired", "next": "live"}
    assert switched.generations["next"].live_since == LATER == switched.generations[FIRST].retired_at
    assert "not followed" in switched.generations[FIRST].note
    back = switched.rolled_back(now=LATEST)
    assert (back.live, back.previous) == (FIRST, "next")
    assert states(back) == {FIRST: "live", "next": "retired"}
    # What it misses is said: the time from its retirement to now.
    assert "2026-03-04 06:06 UTC and 2026-03-04 07:06 UTC" in back.generations[FIRST].note
    forth = back.rolled_back(now=LATEST)
    assert (forth.live, forth.previous) == ("next", FIRST)


def test_the_live_one_is_no_target_of_a_switch() -> None:
    with pytest.raises(InputError, match="first is live already"):
        built().switched(FIRST, now=LATER)


def test_what_was_dropped_can_neither_be_used_nor_built_again() -> None:
    switched = built().switched("next", now=LATER)
    with pytest.raises(InputError, match="next is live"):
        switched.dropping("next")
    dropping = switched.dropping(FIRST)
    assert dropping.previous is None
    for refused in (dropping, dropping.dropped(FIRST, now=LATEST)):
        with pytest.raises(InputError, match="nothing to go back to"):
            refused.rolled_back(now=LATEST)
        with pytest.raises(InputError, match="first was dropped"):
            refused.switched(FIRST, now=LATEST)
        with pytest.raises(InputError, match="first was dropped"):
            refused.begun(OLD, first=OLD, now=LATEST)
    assert not dropping.generations[FIRST].is_standing
    # A drop that was cut off goes on; one that is done is not done again.
    assert states(dropping.dropping(FIRST)) == states(dropping)
    with pytest.raises(InputError, match="dropped on 2026-03-04: choose another name"):
        dropping.dropped(FIRST, now=LATEST).dropping(FIRST)


def test_every_change_has_a_version_of_its_own() -> None:
    first = Book().begun(NEW, first=OLD, now=NOW)
    done = first.completed("next", describers={}, chunker=1, jobs=[], now=NOW)
    books = [Book(), first, done, done.switched("next", now=LATER)]
    books += [books[-1].dropping(FIRST), books[-1].dropping(FIRST).dropped(FIRST, now=LATER)]
    assert [book.version for book in books] == [0, 1, 2, 3, 4, 5]


def test_a_book_is_read_as_it_was_written() -> None:
    book = built().switched("next", now=LATER).rolled_back(now=LATEST)
    stored = bson.encode({"_id": "generations", **book.to_record(), "updatedAt": NOW})
    assert Book.from_record(bson.decode(stored, CodecOptions(tz_aware=True))) == book
    # A later version may have added something.
    newer = bson.decode(stored, CodecOptions(tz_aware=True))
    newer["generations"]["next"]["unheardOf"] = 1
    assert Book.from_record(newer) == book


def test_the_first_generation_has_the_names_that_there_always_were() -> None:
    assert own_name(VECTORS, FIRST) == "vectordocuments"
    assert own_name(VECTORS, "b") == "vectordocuments_b"
    assert own_key("position:transaction", FIRST) == "position:transaction"
    assert own_key("position:transaction", "b") == "position:transaction@b"


def test_a_store_at_a_generation_has_its_collections_embedder_and_form_also_in_another_process() -> None:
    chosen = STORE.at(NEW)
    for store in (chosen, cloudpickle.loads(cloudpickle.dumps(chosen))):
        assert (store.vectors_name, store.letters_name) == (f"{VECTORS}_next", f"{DEAD_LETTERS}_next")
        assert (store.embedder, store.vector_form, store.generation) == ("gemini", "int8", "next")
    assert chosen.describe_generation() == NEW
    assert STORE.generation is None
