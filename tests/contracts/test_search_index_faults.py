"""The search index when things go wrong: ends at any moment, full disks, damage, neighbours, broken comparisons."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo.database import Database

from blocks.search_index import SearchIndex
from blocks.vector_store import VectorStore
from tasks.domain.errors import TransientError
from tests.contracts.test_search_index import DIMENSIONS, Record, Store, eventually, small_files, store

__all__ = ["small_files", "store"]
#: Opens the index of a database and follows it until it is killed; a line is printed when it has opened it.
_FOLLOWER = """
import sys, threading
from pathlib import Path
from pydantic import SecretStr
from blocks import search_index
from blocks.vector_store import VectorStore
uri, database, folder = sys.argv[1:]
search_index._FLUSH_ROWS, search_index._SMALL_ROWS, search_index._LARGE_ROWS, search_index._MERGED = 5, 100, 200, 2
vectors = VectorStore(uri=SecretStr(uri), database=database, embedder="local")
index = search_index.SearchIndex(vectors.at(), Path(folder), dimensions=64)
index.open()
print("opened", flush=True)
index.follow(threading.Event())
"""


class Killed(BaseException):
    """Ends what runs, past whatever catches errors, as ``kill -9`` does."""


def end_as_killed(index: SearchIndex) -> None:
    """Give back what the system gives back of a process that is gone: its lock."""
    if index._lock_file is not None:
        index._lock_file.close()


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int, failure: Callable[[], BaseException]) -> None:
    """Let the ``number``-th file from now on, and all after it, not reach the disk."""
    before, calls = os.fsync, [0]

    def fsync(file: int) -> None:
        calls[0] += 1
        if calls[0] >= number:
            raise failure()
        before(file)

    monkeypatch.setattr(os, "fsync", fsync)


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def write_much(store: Store, first: int) -> None:
    store.insert(first, 30)
    for _ in range(12):
        store.change(store.draw.randint(1, 100))


def grown(store: Store) -> SearchIndex:
    """Return an index with files enough that the next flush merges them."""
    store.insert(1, 100)
    index = store.opened()
    for turn in range(3):
        store.insert(200 + 50 * turn, 25)
        store.change(turn + 1)
        index.catch_up()
        index._keep_house()
    return index


@pytest.mark.parametrize("number", [35, *(pytest.param(each, marks=pytest.mark.long) for each in (1, 17, 18, 34, 36))])
def test_an_end_at_any_file_of_a_flush_loses_nothing(
    store: Store, small_files: None, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    index = grown(store)
    write_much(store, 400)
    index.catch_up()
    with monkeypatch.context() as patched:
        fail_at(patched, number, Killed)
        with pytest.raises(Killed):
            index._keep_house()
    end_as_killed(index)
    store.insert(600, 3)
    again = store.opened()
    # What the manifest names is there, so what came after it is read, and no more.
    assert again.progress.read <= 60
    store.require_equal(again)
    again.close()
    named = {path.name for path in store.folder.iterdir() if path.is_dir()}
    assert named == {one.name for one in again.view.parts}


@pytest.mark.parametrize("number", [18, *(pytest.param(each, marks=pytest.mark.long) for each in (1, 35))])
def test_on_a_full_disk_answers_stay_right_and_files_follow_when_there_is_room(
    store: Store, small_files: None, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    index = grown(store)
    write_much(store, 400)
    index.catch_up()
    with monkeypatch.context() as patched:
        fail_at(patched, number, full_disk)
        with pytest.raises(OSError, match="No space"):
            index._keep_house()
        store.insert(600, 3)
        index.catch_up()
        store.require_equal(index)
    index._flush()
    store.require_equal(index)
    index.close()
    assert store.opened().progress.read <= 1


def test_a_follower_outlives_a_full_disk(store: Store, small_files: None, monkeypatch: pytest.MonkeyPatch) -> None:
    store.insert(1, 30)
    index, stopped = store.opened(), threading.Event()
    with monkeypatch.context() as patched:
        fail_at(patched, 1, full_disk)
        thread = threading.Thread(target=index.follow, args=(stopped,))
        thread.start()
        store.insert(100, 40)
        eventually(lambda: len(index.view) == 70, seconds=5, every=0.02)
        store.insert(200, 5)
        eventually(lambda: len(index.view) == 75, seconds=5, every=0.02)
    stopped.set()
    thread.join()
    store.require_equal(index)
    index.close()


@pytest.mark.parametrize("array", ["postings", "term_starts", "row_ids", "numbers", "ids", "alive"])
def test_another_bit_in_a_file_is_noticed(store: Store, array: str) -> None:
    store.insert(1, 60)
    index = store.opened()
    store.collection.delete_one({"_id": ObjectId(f"{5:024x}")})
    index.catch_up()
    index.close()
    pattern = "alive-*.bin" if array == "alive" else f"segment-*/{array}.bin"
    (file,) = store.folder.glob(pattern)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    again = store.opened()
    assert again.progress.read >= 59
    store.require_equal(again)


def test_a_shortened_list_of_the_living_is_noticed(store: Store) -> None:
    store.insert(1, 60)
    index = store.opened()
    store.collection.delete_one({"_id": ObjectId(f"{5:024x}")})
    index.catch_up()
    index.close()
    (file,) = store.folder.glob("alive-*.bin")
    file.write_bytes(file.read_bytes()[:3])
    store.require_equal(store.opened())


def test_a_comparison_that_is_interrupted_is_done_again(
    store: Store, small_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blocks.search_index._BATCH", 10)
    store.insert(1, 40)
    index = store.opened()
    index._whole = False
    before = VectorStore.read_index_rows
    reads = [0]

    def read(self: VectorStore, ids: Sequence[ObjectId] | None = None, **more: Any) -> Iterator[list[Record]]:
        reads[0] += 1
        if reads[0] == 4:
            raise TransientError("the store is away")
        return before(self, ids, **more)

    database = store.collection.database
    rows = list(store.collection.find({}))
    store.collection.drop()
    database["vectordocuments"].insert_many(rows[:20])
    store.insert(500, 60)
    with monkeypatch.context() as patched:
        patched.setattr(VectorStore, "read_index_rows", read)
        with pytest.raises(TransientError):
            index.catch_up()
    # Some of it is in a file by now, with a manifest that must not pass it off as all.
    assert index.progress.read > 40
    end_as_killed(index)
    again = store.opened()
    assert again.progress.read < 60
    store.require_equal(again)


def test_who_takes_the_lock_over_goes_on_from_the_files_that_there_are(
    store: Store, small_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.insert(1, 60)
    writer, reader = store.opened(), store.opened()
    for turn in range(4):
        store.insert(200 + 30 * turn, 22)
        writer.catch_up()
        writer._keep_house()
    assert not {one.name for one in reader.view.parts} <= {one.name for one in writer.view.parts}
    writer.close()
    # A merge would write again what is open here but deleted on the disk, and hide that it was named.
    monkeypatch.setattr("blocks.search_index._MERGED", 100)
    store.insert(600, 25)
    reader.catch_up()
    reader._keep_house()
    assert reader._lock_file is not None
    reader.close()
    again = store.opened()
    assert again.progress.read <= 1
    store.require_equal(again)


def test_a_name_is_never_another_segments(store: Store, small_files: None) -> None:
    """A reader knows the segments that it has open by their names, also when they are long deleted."""
    store.insert(1, 60)
    first, reader = store.opened(), store.opened()
    names = {one.name for one in reader.view.parts}
    for number in range(1, 61):
        store.change(number)
    first.catch_up()
    first._flush()
    first.close()
    second = store.opened()
    for turn in range(5):
        store.insert(200 + 30 * turn, 25)
        second.catch_up()
        second._keep_house()
        assert not names & {one.name for one in second.view.parts}
    reader.catch_up()
    reader._adopt()
    store.require_equal(reader)


@pytest.mark.parametrize("what", ["folder", "manifest", "half a manifest", "segment"])
def test_files_that_somebody_deletes_are_written_again(store: Store, small_files: None, what: str) -> None:
    index = grown(store)
    manifest = store.folder / "manifest.json"
    if what == "folder":
        subprocess.run(["rm", "-rf", str(store.folder)], check=True)
    elif what == "manifest":
        manifest.unlink()
    elif what == "half a manifest":
        manifest.write_bytes(manifest.read_bytes()[:40])
    else:
        subprocess.run(["rm", "-rf", str(next(store.folder.glob("segment-*")))], check=True)
    write_much(store, 400)
    index.catch_up()
    index._keep_house()
    store.require_equal(index)
    index.close()
    again = store.opened()
    assert again.progress.read <= 1
    store.require_equal(again)


def test_a_reader_outlives_a_manifest_that_is_half_there(store: Store, small_files: None) -> None:
    store.insert(1, 60)
    writer, reader = store.opened(), store.opened()
    manifest = store.folder / "manifest.json"
    whole = manifest.read_bytes()
    for content in (whole[:50], b"[]", b'{"version": 2}'):
        manifest.write_bytes(content)
        store.insert(store.draw.randint(1_000, 1_000_000), 45)
        reader.catch_up()
        reader._keep_house()
        store.require_equal(reader)
    writer.catch_up()
    writer._keep_house()
    reader._adopt()
    store.require_equal(reader)


def test_a_row_that_can_not_be_searched_stops_no_other(store: Store, small_files: None) -> None:
    store.insert(1, 10)
    index = store.opened()
    bad: list[Mapping[str, Any]] = []
    for number, change in enumerate(
        ({"embedding": None}, {"embedding": [float("nan")] * DIMENSIONS}, {"embedding": [0.0] * DIMENSIONS}, {})
    ):
        row = store.collection.find_one({}) or {}
        bad.append({**row, "_id": ObjectId(), "documentId": f"transaction:contract_0:0xbad{number}:0", **change})
    del bad[-1]["content"]
    store.collection.insert_many(bad, bypass_document_validation=True)
    store.insert(100, 5)
    index.catch_up()
    assert len(index.view) == 15


def _run_and_kill(uri: str, database: Database[Record], store: Store, after_s: float) -> None:
    command = [sys.executable, "-c", _FOLLOWER, uri, database.name, str(store.folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"opened\n"
        deadline = time.monotonic() + after_s
        while time.monotonic() < deadline:
            store.insert(store.draw.randint(10_000, 10_000_000), 6)
            store.change(store.draw.randint(1, 100))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.parametrize(
    "after_s", [0.3, *(pytest.param(0.2 + 0.07 * turn, marks=pytest.mark.long) for turn in range(12))]
)
def test_kill_9_while_it_writes_and_merges(
    mongo_uri: str, database: Database[Record], store: Store, after_s: float
) -> None:
    store.insert(1, 100)
    _run_and_kill(mongo_uri, database, store, after_s)
    written = store.collection.count_documents({})
    again = store.opened()
    assert again.progress.read < written
    store.require_equal(again)
