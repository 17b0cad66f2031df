"""The shard store: Arrow files in a folder, and the index of texts that a run has already paid for."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, ClassVar
from uuid import uuid4

import bson
import numpy as np
import pyarrow as pa
from bson.timestamp import Timestamp
from prefect.blocks.core import Block
from pydantic import Field

from tasks.domain.batches import batched
from tasks.domain.errors import PipelineError, ShardDamagedError, TerminalError, TransientError
from tasks.domain.shards import ShardFile, ShardRange
from tasks.domain.vectors import Matrix

_READ_BYTES = 1 << 20
_PLAN, _INDEX = "plan.bson", "paid_texts.sqlite"
#: A run's folder that nothing was written to for this long can't be taken up any more.
_FORGOTTEN_AFTER_S = 8 * 86_400


class ShardStore(Block):
    """A folder that every worker of a run sees, holding the files that one stage hands to the next."""

    _block_type_name: ClassVar[str | None] = "Shard store"
    _block_type_slug: ClassVar[str | None] = "shard-store"
    _description: ClassVar[str | None] = "Folder for the files that pipeline stages hand to each other."

    folder: Path = Field(description="The folder; all workers of one run must see the same one.")

    def run_folder(self, run_key: str) -> Path:
        """Return the folder of one run."""
        return self.folder / run_key

    def write_table(self, run_key: str, name: str, table: pa.Table) -> ShardFile:
        """Write a table under a name, whole or not at all, and return its reference. A second call replaces it."""
        path = self.run_folder(run_key) / f"{name}.arrow"
        partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            size, checksum = _measure(partial)
            os.replace(partial, path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise _translated(error, path.parent) from error
        return ShardFile(f"{run_key}/{name}", table.num_rows, size, checksum)

    def read_table(self, file: ShardFile) -> pa.Table:
        """Return the table of a reference. Raises ``ShardDamagedError`` if the file is not the one that was written."""
        path = self.folder / f"{file.name}.arrow"
        try:
            found = _measure(path)
        except FileNotFoundError:
            raise ShardDamagedError(f"the shard file {file.name} is gone") from None
        if found != (file.size_bytes, file.checksum):
            raise ShardDamagedError(
                f"the shard file {file.name} holds {found[0]:,} bytes that are not the {file.size_bytes:,} written"
            )
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()

    def write_plan(
        self, run_key: str, shards: Sequence[ShardRange], *, operation_time: Timestamp | None = None
    ) -> None:
        """Keep the ranges of a run, so that a resumed one cuts the source at the same places.

        ``operation_time`` is from before the first record was read: whoever follows the source's changes after this
        run begins there.
        """
        path = self.run_folder(run_key) / _PLAN
        partial = path.with_suffix(".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(
                bson.encode({"shards": [asdict(shard) for shard in shards], "operationTime": operation_time})
            )
            os.replace(partial, path)
        except OSError as error:
            raise _translated(error, path.parent) from error

    def read_plan(self, run_key: str) -> list[ShardRange] | None:
        """Return the ranges of a run, or None if its folder is not here."""
        try:
            plan = bson.decode((self.run_folder(run_key) / _PLAN).read_bytes())
        except FileNotFoundError:
            return None
        return [ShardRange(**shard) for shard in plan["shards"]]

    def read_operation_time(self, run_key: str) -> Timestamp | None:
        """Return the source's moment before a run read anything, or None where it keeps no history."""
        try:
            plan = bson.decode((self.run_folder(run_key) / _PLAN).read_bytes())
        except FileNotFoundError:
            return None
        moment: Timestamp | None = plan["operationTime"]
        return moment

    def drop_shard(self, run_key: str, number: int) -> None:
        """Delete the files of one shard. Safe to repeat."""
        for path in self.run_folder(run_key).glob(f"{number:06d}.*"):
            path.unlink(missing_ok=True)

    def drop_run(self, run_key: str) -> None:
        """Delete all files of a run. Safe to repeat."""
        shutil.rmtree(self.run_folder(run_key), ignore_errors=True)

    def sweep(self, *, now_s: float) -> int:
        """Delete the folders of runs that were given up long ago; return how many. Safe beside runs at work."""
        forgotten = [
            folder
            for folder in (self.folder.iterdir() if self.folder.exists() else ())
            if folder.is_dir() and now_s - folder.stat().st_mtime > _FORGOTTEN_AFTER_S
        ]
        for folder in forgotten:
            shutil.rmtree(folder, ignore_errors=True)
        return len(forgotten)

    @contextmanager
    def paid_texts(self, run_key: str) -> Iterator[PaidTexts]:
        """Open the run's index of texts that have a vector."""
        folder = self.run_folder(run_key)
        folder.mkdir(parents=True, exist_ok=True)
        texts = PaidTexts(folder)
        try:
            yield texts
        finally:
            texts.close()


def _measure(path: Path) -> tuple[int, int]:
    size = checksum = 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            checksum = zlib.crc32(block, checksum)
            size += len(block)
    return size, checksum


class PaidTexts:
    """Content hash -> vector, on disk, for one run: what was paid for is kept as soon as the reply is there.

    A task that is retried, a run that is resumed and a text that comes again all find their vectors here. Memory
    stays flat: vectors are appended to a file of this process, and a small index says where each one stands.
    Within a process each text is claimed by one caller at a time, so two shards in flight never pay for the same
    text; between processes the worst case is that both pay.
    """

    _claims: ClassVar[dict[tuple[str, bytes], threading.Event]] = {}
    _claims_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = f"paid-{uuid4().hex}.f4"
        self._lock = threading.Lock()
        self._sink: BinaryIO | None = None
        self._sources: dict[str, int] = {}
        with self._claims_lock:  # two threads that switch a new file to WAL at once lock each other out
            try:
                self._connection = _open_index(folder / _INDEX)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise _translated(error, folder) from error
                # What can't be read was damaged by a crash; its texts are paid for again, which beats stopping.
                (folder / _INDEX).rename(folder / f"{_INDEX}.damaged-{uuid4().hex[:8]}")
                self._connection = _open_index(folder / _INDEX)

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
        """Return the vectors that are known; one that was cut short by a crash is not."""
        found: dict[bytes, Matrix] = {}
        with self._lock:
            for some in batched(hashes, 500):
                marks = ",".join("?" * len(some))
                rows = self._connection.execute(
                    f"SELECT hash, file, position, size FROM texts WHERE hash IN ({marks})",
                    some,
                )
                for key, name, position, size in rows.fetchall():
                    source = self._source(name)
                    vector = os.pread(source, size, position) if source is not None else b""
                    if len(vector) == size:
                        found[key] = np.frombuffer(vector, dtype="<f4")
        return found

    def keep(self, hashes: Sequence[bytes], vectors: Matrix, *, tokens: Sequence[int], shard: int) -> None:
        """Keep the vectors that a shard paid for, with the tokens of each text, and wake those who wait for them."""
        rows = np.ascontiguousarray(vectors, dtype="<f4")
        size = rows.shape[1] * rows.itemsize
        with self._lock:
            try:
                if self._sink is None:
                    self._sink = (self._folder / self._name).open("ab")
                start = self._sink.tell()
                self._sink.write(rows.data)
                self._sink.flush()
                with self._connection:  # commits, or rolls back
                    self._connection.execute("BEGIN IMMEDIATE")
                    self._connection.executemany(
                        "INSERT OR REPLACE INTO texts VALUES (?, ?, ?, ?, ?, ?)",
                        [
                            (key, self._name, start + index * size, size, count, shard)
                            for index, (key, count) in enumerate(zip(hashes, tokens, strict=True))
                        ],
                    )
            except (OSError, sqlite3.Error) as error:
                raise _translated(error, self._folder) from error
        self.release(hashes)

    def paid_by(self, shard: int) -> tuple[int, int]:
        """Return how many texts a shard paid for, over all its attempts, and their tokens."""
        with self._lock:
            row = self._connection.execute(
                "SELECT COUNT(*), COALESCE(SUM(tokens), 0) FROM texts WHERE shard = ?", (shard,)
            ).fetchone()
        return int(row[0]), int(row[1])

    def claim(self, hashes: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Return the hashes that this caller is to embed, and those that another caller is at work on.

        What is claimed must be kept or released, come what may; others wait for it.
        """
        mine: list[bytes] = []
        others: list[bytes] = []
        with self._claims_lock:
            for key in hashes:
                if (str(self._folder), key) in self._claims:
                    others.append(key)
                else:
                    self._claims[str(self._folder), key] = threading.Event()
                    mine.append(key)
        return mine, others

    def release(self, hashes: Sequence[bytes]) -> None:
        """Give up claims; whoever waits looks again. Safe for hashes that are not claimed."""
        with self._claims_lock:
            for key in hashes:
                event = self._claims.pop((str(self._folder), key), None)
                if event is not None:
                    event.set()

    def wait(self, hashes: Sequence[bytes]) -> None:
        """Return when no other caller is at work on these texts any more."""
        for key in hashes:
            with self._claims_lock:
                event = self._claims.get((str(self._folder), key))
            if event is not None:
                event.wait()

    def _source(self, name: str) -> int | None:
        if name not in self._sources:
            try:
                self._sources[name] = os.open(self._folder / name, os.O_RDONLY)
            except FileNotFoundError:
                return None
        return self._sources[name]


def _open_index(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
    # Losing the last transactions to a power cut costs a few embeddings, never a wrong vector.
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS texts (hash BLOB PRIMARY KEY, file TEXT NOT NULL, position INTEGER NOT NULL, "
        "size INTEGER NOT NULL, tokens INTEGER NOT NULL, shard INTEGER NOT NULL) WITHOUT ROWID"
    )
    connection.execute("CREATE INDEX IF NOT EXISTS texts_of_shard ON texts (shard, tokens)")
    return connection


def _translated(error: OSError | sqlite3.Error, folder: Path) -> PipelineError:
    """Return what a failure of the folder means: a full disk is for a person, a busy file for the retry."""
    words = str(error)
    if isinstance(error, OSError) or "full" in words or "readonly" in words:
        return TerminalError(
            f"can't write to {folder}: {words}. Free space there, or point CRYPTIQUE_HOME elsewhere, and run the same "
            "command again: it resumes"
        )
    return TransientError(f"the index of paid texts in {folder} is busy: {words}")
