"""The texts that a run has paid for: hash to vector, kept as soon as the reply is there."""

from __future__ import annotations

import os
import sqlite3
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar
from uuid import uuid4

import bson
import numpy as np

from blocks.object_store import ObjectDamagedError, ObjectStore
from tasks.domain.batches import batched
from tasks.domain.errors import PipelineError, TerminalError, TransientError
from tasks.domain.vectors import Matrix

_INDEX = "paid_replies.sqlite"
#: Before the body of a kept reply: what it is, its CRC32 and its length. The body is BSON, then the vectors.
_HEADER = struct.Struct("<8sIQ")
_SIZE = struct.Struct("<i")
_MAGIC = b"CQPAID2\n"
_DTYPE = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class Reply:
    """What one request paid for: texts by their hash, each with its tokens and, in order, its row of the vectors."""

    hashes: Sequence[bytes]
    tokens: Sequence[int]
    vectors: Matrix
    shard: int

    def to_parts(self) -> tuple[bytes, memoryview]:
        """Return it as bytes, with what proves that they are whole; in two parts, so that the vectors aren't copied."""
        vectors = np.ascontiguousarray(self.vectors, dtype=_DTYPE).data.cast("B")
        texts = bson.encode(
            {"hashes": list(self.hashes), "tokens": [int(count) for count in self.tokens], "shard": self.shard}
        )
        checksum = zlib.crc32(vectors, zlib.crc32(texts))
        return _HEADER.pack(_MAGIC, checksum, len(texts) + len(vectors)) + texts, vectors

    def to_bytes(self) -> bytes:
        """Return it with what proves that it is whole."""
        return b"".join(self.to_parts())

    @classmethod
    def from_bytes(cls, content: bytes) -> Reply | None:
        """Return the reply, or None if it is cut short, damaged or none at all."""
        if len(content) < _HEADER.size:
            return None
        magic, checksum, size = _HEADER.unpack_from(content)
        body = memoryview(content)[_HEADER.size :]
        if magic != _MAGIC or len(body) != size or zlib.crc32(body) != checksum:
            return None
        (ends,) = _SIZE.unpack_from(body)
        texts = bson.decode(body[:ends])
        vectors = np.frombuffer(body, dtype=_DTYPE, offset=ends).reshape(len(texts["hashes"]), -1)
        return cls(texts["hashes"], texts["tokens"], vectors, texts["shard"])


@dataclass(frozen=True, slots=True)
class KeptReplies:
    """The replies of one run in a store that machines share: one object each, by shard, never changed."""

    objects: ObjectStore
    run_key: str

    def prefix(self, shard: int | None) -> str:
        """Return what the names of a shard's replies begin with, or those of all shards."""
        return f"{self.run_key}/paid/" + ("" if shard is None else f"{shard:06d}/")

    def put(self, name: str, reply: Reply) -> None:
        """Store a reply under a name that ``names`` gives."""
        self.objects.put(name, reply.to_bytes())

    def names(self, shard: int | None) -> list[str]:
        """Return the names of the replies that a shard, or any, has paid for and that aren't dropped yet."""
        return [found.name for found in self.objects.list_objects(self.prefix(shard))]

    def get(self, name: str) -> Reply | None:
        """Return a reply, or None if it was dropped or is damaged: its texts are then paid for again."""
        try:
            content = self.objects.get(name)
        except ObjectDamagedError:
            return None
        return None if content is None else Reply.from_bytes(content)


class PaidTexts:
    """Content hash -> vector, on disk, for one run: what was paid for is kept as soon as the reply is there.

    A task that is retried, a run that is resumed and a text that comes again all find their vectors here, and so does
    the stage that stores them. Memory stays flat: replies are appended to a file of this process, and a small index
    says where each one and each text stands. A reply that a crash cut short or damaged is none.
    Within a process each text is claimed by one caller at a time, so two shards in flight never pay for the same
    text; between processes the worst case is that both pay.

    ``folder`` is of this machine. Where machines share the work, each reply also goes to ``replies``; opened for a
    shard, what others kept for it is taken over first, and without one, what others kept for any shard.
    """

    #: What callers of this process are at work on: folder and hash. Told to those who wait whenever some are given up.
    _claims: ClassVar[set[tuple[str, bytes]]] = set()
    _claims_lock: ClassVar[threading.Condition] = threading.Condition()

    def __init__(self, folder: Path, *, replies: KeptReplies | None = None, shard: int | None = None) -> None:
        self._folder = folder
        self._name = f"paid-{uuid4().hex}.replies"
        self._replies = replies
        self._lock = threading.Lock()
        self._sink: BinaryIO | None = None
        self._sources: dict[str, int] = {}
        with self._claims_lock:  # two threads that switch a new file to WAL at once lock each other out
            try:
                self._connection = _open_index(folder / _INDEX)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise folder_error(error, folder) from error
                # What can't be read was damaged by a crash; its texts are paid for again, which beats stopping.
                (folder / _INDEX).rename(folder / f"{_INDEX}.damaged-{uuid4().hex[:8]}")
                self._connection = _open_index(folder / _INDEX)
        if replies is not None:
            try:
                self._take_over(replies, shard)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            self._connection.close()
            if self._sink is not None:
                self._sink.close()
            for descriptor in self._sources.values():
                os.close(descriptor)
            self._sources.clear()

    def find(self, hashes: Sequence[bytes]) -> dict[bytes, Matrix]:
        """Return the vectors that are known."""
        places: dict[tuple[str, int, int], list[tuple[bytes, int]]] = {}
        with self._lock:
            for some in batched(hashes, 500):
                marks = ",".join("?" * len(some))
                rows = self._connection.execute(
                    "SELECT hash, place, file, position, size FROM texts JOIN replies ON reply = id "
                    f"WHERE hash IN ({marks})",
                    some,
                )
                for key, place, *where in rows:
                    places.setdefault(tuple(where), []).append((key, place))
        found: dict[bytes, Matrix] = {}
        for where, wanted in places.items():
            reply = self._read(*where)
            if reply is not None:
                # A row of its own: a view would keep the whole reply in memory.
                found.update((key, reply.vectors[place].copy()) for key, place in wanted)
        return found

    def replies_of(self, shard: int) -> Iterator[Reply]:
        """Yield what a shard paid for, over all its attempts; memory holds one reply."""
        with self._lock:
            places = self._connection.execute(
                "SELECT file, position, size FROM replies WHERE shard = ? ORDER BY id", (shard,)
            ).fetchall()
        for where in places:
            reply = self._read(*where)
            if reply is not None:
                yield reply

    def keep(self, hashes: Sequence[bytes], vectors: Matrix, *, tokens: Sequence[int], shard: int) -> None:
        """Keep the vectors that a shard paid for, with the tokens of each text, and wake those who wait for them.

        Where the shared store doesn't take them, this process has them still when the error is raised.
        """
        reply = Reply(hashes, tokens, vectors, shard)
        name = None if self._replies is None else f"{self._replies.prefix(shard)}{uuid4().hex}"
        self._append(reply, name)
        if self._replies is not None and name is not None:
            self._replies.put(name, reply)
        self.release(hashes)

    def paid_by(self, shard: int) -> tuple[int, int]:
        """Return how many texts a shard paid for, over all its attempts, and their tokens."""
        with self._lock:
            row = self._connection.execute(
                "SELECT COALESCE(SUM(texts), 0), COALESCE(SUM(tokens), 0) FROM replies WHERE shard = ?", (shard,)
            ).fetchone()
        return int(row[0]), int(row[1])

    def claim(self, hashes: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Return the hashes that this caller is to embed, and those that another caller is at work on.

        What is claimed must be kept or released, come what may; others wait for it.
        """
        mine: list[bytes] = []
        others: list[bytes] = []
        folder = str(self._folder)
        with self._claims_lock:
            for key in hashes:
                claim = (folder, key)
                if claim in self._claims:
                    others.append(key)
                else:
                    self._claims.add(claim)
                    mine.append(key)
        return mine, others

    def release(self, hashes: Sequence[bytes]) -> None:
        """Give up claims; whoever waits looks again. Safe for hashes that are not claimed."""
        folder = str(self._folder)
        with self._claims_lock:
            self._claims.difference_update((folder, key) for key in hashes)
            self._claims_lock.notify_all()

    def wait(self, hashes: Sequence[bytes]) -> None:
        """Return when no other caller is at work on these texts any more."""
        folder = str(self._folder)
        wanted = {(folder, key) for key in hashes}
        with self._claims_lock:
            self._claims_lock.wait_for(lambda: self._claims.isdisjoint(wanted))

    def _take_over(self, replies: KeptReplies, shard: int | None) -> None:
        names = replies.names(shard)
        with self._lock:
            known = (
                {name for (name,) in self._connection.execute("SELECT name FROM replies WHERE name IS NOT NULL")}
                if names
                else set()
            )
        for name in names:
            reply = None if name in known else replies.get(name)
            if reply is not None:
                self._append(reply, name)

    def _append(self, reply: Reply, name: str | None) -> None:
        """Put a reply into this process's file and index; ``name`` is the one it has in the shared store."""
        parts = reply.to_parts()
        with self._lock:
            try:
                if self._sink is None:
                    self._sink = (self._folder / self._name).open("ab")
                start = self._sink.tell()
                self._sink.writelines(parts)
                self._sink.flush()
                with self._connection:  # commits, or rolls back
                    self._connection.execute("BEGIN IMMEDIATE")
                    added = self._connection.execute(
                        "INSERT OR IGNORE INTO replies (file, position, size, shard, texts, tokens, name) "
                        "VALUES (?, ?, ?, ?, ?, ?, ?)",
                        (
                            self._name,
                            start,
                            sum(map(len, parts)),
                            reply.shard,
                            len(reply.hashes),
                            sum(map(int, reply.tokens)),
                            name,
                        ),
                    )
                    if added.rowcount:  # else another thread took the same reply over
                        self._connection.executemany(
                            "INSERT OR REPLACE INTO texts VALUES (?, ?, ?)",
                            [(key, added.lastrowid, place) for place, key in enumerate(reply.hashes)],
                        )
            except (OSError, sqlite3.Error) as error:
                raise folder_error(error, self._folder) from error

    def _read(self, file: str, position: int, size: int) -> Reply | None:
        """Return a reply, or None where it is not whole."""
        with self._lock:
            if file not in self._sources:
                try:
                    self._sources[file] = os.open(self._folder / file, os.O_RDONLY)
                except FileNotFoundError:
                    return None
            source = self._sources[file]
        return Reply.from_bytes(os.pread(source, size, position))


def _open_index(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
    # Losing the last transactions to a power cut costs a few embeddings, never a wrong vector.
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS replies (id INTEGER PRIMARY KEY, file TEXT NOT NULL, position INTEGER NOT NULL, "
        "size INTEGER NOT NULL, shard INTEGER NOT NULL, texts INTEGER NOT NULL, tokens INTEGER NOT NULL, "
        "name TEXT UNIQUE)"
    )
    connection.execute("CREATE INDEX IF NOT EXISTS replies_of_shard ON replies (shard)")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS texts (hash BLOB PRIMARY KEY, reply INTEGER NOT NULL, place INTEGER NOT NULL) "
        "WITHOUT ROWID"
    )
    return connection


def folder_error(error: OSError | sqlite3.Error, folder: Path) -> PipelineError:
    """Return what a failure of the folder means: a full disk is for a person, a busy file for the retry."""
    words = str(error)
    if isinstance(error, OSError) or "full" in words or "readonly" in words:
        return TerminalError(
            f"can't write to {folder}: {words}. Free space there, or point CRYPTIQUE_HOME (CRYPTIQUE_SHARDS) "
            "elsewhere, and run the same command again: it resumes"
        )
    return TransientError(f"the index of paid texts in {folder} is busy: {words}")
