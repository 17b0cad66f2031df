"""The shard store: Arrow files that stages hand over, a run's plan, and the texts that were paid for."""

from __future__ import annotations

import os
import re
import shutil
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import bson
import pyarrow as pa
from bson.errors import InvalidBSON
from bson.timestamp import Timestamp
from prefect.blocks.core import Block
from pydantic import Field, PrivateAttr, model_validator

from blocks.object_store import COPY_BYTES, ObjectDamagedError, ObjectStore
from blocks.paid_texts import KeptReplies, PaidTexts, folder_error
from blocks.s3 import S3Bucket
from blocks.scratch import process_folder, sweep
from blocks.shared_folder import SharedFolder
from tasks.domain.errors import ShardDamagedError
from tasks.domain.shards import ShardFile, ShardRange

__all__ = ["PaidTexts", "ShardStore"]

_PLAN = "plan.bson"
#: A run that nothing was written for this long can't be taken up any more.
_FORGOTTEN_AFTER_S = 8 * 86_400
#: Only what is named like a run is swept: a folder or a bucket that a person names may hold anything else.
_RUN_KEY = re.compile(r"\d{8}T\d{6}-[0-9a-f]{8}")


class TableSink:
    """A table that is being written; ``file`` is its reference once it is there."""

    def __init__(self, writer: pa.RecordBatchFileWriter, folder: Path) -> None:
        self._writer, self._folder = writer, folder
        self.rows = 0
        self.written: ShardFile | None = None

    def write(self, table: pa.Table) -> None:
        """Write some rows, with the schema that the table was opened with."""
        with _folder_errors(self._folder):
            self._writer.write_table(table)
        self.rows += table.num_rows

    @property
    def file(self) -> ShardFile:
        """Return the reference of the whole table."""
        assert self.written is not None, "the table is not written yet"
        return self.written


class ShardStore(Block):
    """The files that one stage hands to the next, where every worker of a run finds them.

    With ``folder`` alone they lie there, on one machine. With ``shared`` or ``bucket`` they lie where several
    machines find them: what is written goes there before its reference is returned, and ``folder`` holds only this
    process's copies, index and vectors.
    """

    _block_type_name: ClassVar[str | None] = "Shard store"
    _block_type_slug: ClassVar[str | None] = "shard-store"
    _description: ClassVar[str | None] = "Where the files lie that pipeline stages hand to each other."

    folder: Path = Field(description="Folder of this machine: for the files, or for copies of what is shared.")
    shared: Path | None = Field(default=None, description="Folder that all machines mount; it must be there.")
    bucket: S3Bucket | None = Field(default=None, description="Bucket that all machines reach.")
    docs: Path | None = Field(
        default=None, description="Folder of this machine for the pages on the quality of runs' data (Data Docs)."
    )

    _objects: ObjectStore | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _choose_place(self) -> ShardStore:
        if self.shared is not None and self.bucket is not None:
            raise ValueError("files lie in a shared folder or in a bucket, not in both")
        self._objects = self.bucket if self.shared is None else SharedFolder(self.shared)
        return self

    @property
    def serves_several_machines(self) -> bool:
        """Return whether workers on other machines find what is written here."""
        return self._objects is not None

    def run_folder(self, run_key: str) -> Path:
        """Return this machine's folder of one run; with a shared place, this process's own."""
        return (self.folder if self._objects is None else process_folder(self.folder)) / run_key

    def write_table(self, run_key: str, name: str, table: pa.Table) -> ShardFile:
        """Write a table under a name, whole or not at all, and return its reference. A second call replaces it."""
        with self.open_table(run_key, name, table.schema) as sink:
            sink.write(table)
        return sink.file

    @contextmanager
    def open_table(self, run_key: str, name: str, schema: pa.Schema) -> Iterator[TableSink]:
        """Write a table under a name piece by piece: what is written is there when the block ends, or not at all."""
        path = self.run_folder(run_key) / f"{name}.arrow"
        partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
        try:
            with _folder_errors(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = pa.OSFile(str(partial), "wb")
            with file:
                with _folder_errors(path.parent):
                    writer = pa.ipc.new_file(file, schema)
                sink = TableSink(writer, path.parent)
                yield sink
                with _folder_errors(path.parent):
                    writer.close()
                    file.close()
            with _folder_errors(path.parent):
                size, checksum = _measure(partial)
                os.replace(partial, path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        if self._objects is not None:
            self._objects.put(f"{run_key}/{name}.arrow", path)
        sink.written = ShardFile(f"{run_key}/{name}", sink.rows, size, checksum)

    def read_table(self, file: ShardFile) -> pa.Table:
        """Return the table of a reference. Raises ``ShardDamagedError`` if the file is not the one that was written."""
        with pa.memory_map(str(self._find(file))) as source:
            return pa.ipc.open_file(source).read_all()

    def read_batches(self, file: ShardFile) -> Iterator[pa.RecordBatch]:
        """Yield the pieces in which a table was written, in order; memory holds one. Errors as in ``read_table``."""
        with pa.OSFile(str(self._find(file)), "rb") as source:
            reader = pa.ipc.open_file(source)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)

    def _find(self, file: ShardFile) -> Path:
        """Return where a file lies on this machine, proved to be the one that was written."""
        run_key, _, name = file.name.partition("/")
        path = self.run_folder(run_key) / f"{name}.arrow"
        try:
            found: tuple[int, int] | None = _measure(path)
        except FileNotFoundError:
            found = None
        if found != (file.size_bytes, file.checksum) and self._objects is not None:
            found = self._fetch(self._objects, file, path)
        if found is None:
            raise ShardDamagedError(f"the shard file {file.name} is gone")
        if found != (file.size_bytes, file.checksum):
            raise ShardDamagedError(
                f"the shard file {file.name} holds {found[0]:,} bytes that are not the {file.size_bytes:,} written"
            )
        return path

    def _fetch(self, objects: ObjectStore, file: ShardFile, path: Path) -> tuple[int, int] | None:
        """Bring a file that another process wrote to this machine and return its size and checksum, or None."""
        partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            found = objects.download(f"{file.name}.arrow", partial)
            if found == (file.size_bytes, file.checksum):
                os.replace(partial, path)
        except ObjectDamagedError as error:
            raise ShardDamagedError(f"the shard file {file.name} is damaged: {error}") from error
        except OSError as error:
            raise folder_error(error, path.parent) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        return found

    def write_plan(
        self, run_key: str, shards: Sequence[ShardRange], *, operation_time: Timestamp | None = None
    ) -> None:
        """Keep the ranges of a run, so that a resumed one cuts the source at the same places.

        ``operation_time`` is from before the first record was read: whoever follows the source's changes after this
        run begins there.
        """
        content = bson.encode({"shards": [asdict(shard) for shard in shards], "operationTime": operation_time})
        if self._objects is not None:
            self._objects.put(f"{run_key}/{_PLAN}", content)
            return
        path = self.run_folder(run_key) / _PLAN
        partial = path.with_suffix(".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            os.replace(partial, path)
        except OSError as error:
            raise folder_error(error, path.parent) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def read_plan(self, run_key: str) -> list[ShardRange] | None:
        """Return the ranges of a run, or None if it has no plan here."""
        plan = self._load_plan(run_key)
        return None if plan is None else [ShardRange(**shard) for shard in plan["shards"]]

    def read_operation_time(self, run_key: str) -> Timestamp | None:
        """Return the source's moment before a run read anything, or None where it keeps no history."""
        plan = self._load_plan(run_key)
        moment: Timestamp | None = None if plan is None else plan["operationTime"]
        return moment

    def _load_plan(self, run_key: str) -> dict[str, Any] | None:
        try:
            if self._objects is not None:
                content = self._objects.get(f"{run_key}/{_PLAN}")
            else:
                content = (self.run_folder(run_key) / _PLAN).read_bytes()
            return None if content is None else bson.decode(content)
        except (FileNotFoundError, InvalidBSON):
            return (
                None  # what a crash cut short is no plan: the work begins anew, and finds what it stored and paid for
            )

    def drop_shard(self, run_key: str, number: int) -> None:
        """Delete the files of one shard. Safe to repeat.

        A shared place forgets the shard's replies too: only shards that aren't finished keep any there. This process
        goes on finding the texts of all its shards until it ends or the run is dropped.
        """
        for path in self.run_folder(run_key).glob(f"{number:06d}.*"):
            path.unlink(missing_ok=True)
        if self._objects is not None:
            self._objects.delete_under(f"{run_key}/{number:06d}.")
            self._objects.delete_under(KeptReplies(self._objects, run_key).prefix(number))

    def drop_run(self, run_key: str) -> None:
        """Delete all files of a run. Safe to repeat."""
        shutil.rmtree(self.run_folder(run_key), ignore_errors=True)
        if self._objects is not None:
            self._objects.delete_under(f"{run_key}/")

    def sweep(self, *, now_s: float) -> int:
        """Delete the files of runs that were given up long ago; return of how many. Safe beside runs at work."""
        oldest_s = now_s - _FORGOTTEN_AFTER_S
        if self._objects is None:
            forgotten = [
                folder
                for folder in (self.folder.iterdir() if self.folder.exists() else ())
                if _RUN_KEY.fullmatch(folder.name) and folder.is_dir() and folder.stat().st_mtime < oldest_s
            ]
            for folder in forgotten:
                shutil.rmtree(folder, ignore_errors=True)
            return len(forgotten)
        sweep(self.folder)
        swept = 0
        for run_key in filter(_RUN_KEY.fullmatch, self._objects.list_folders()):
            some = False
            for found in self._objects.list_objects(f"{run_key}/"):
                some = True
                if found.modified_s >= oldest_s:
                    break
            else:
                self._objects.delete_under(f"{run_key}/")
                swept += some
        return swept

    def check(self) -> str:
        """Return where files lie, proved by a small one that is written, read and removed.

        Raises ``TerminalError`` with what to do, or ``TransientError`` where a server doesn't answer. A folder of this
        machine alone is only named: it is made when it is needed.
        """
        if self.bucket is not None:
            return self.bucket.check()
        return f"folder {self.folder}" if self.shared is None else SharedFolder(self.shared).check()

    @contextmanager
    def paid_texts(self, run_key: str, *, shard: int | None = None) -> Iterator[PaidTexts]:
        """Open the run's texts that have a vector.

        In a shared place, name the ``shard`` that is to be embedded: what other processes kept for it is read first.
        Without one, what they kept for all unfinished shards is read.
        """
        folder = self.run_folder(run_key)
        folder.mkdir(parents=True, exist_ok=True)
        replies = None if self._objects is None else KeptReplies(self._objects, run_key)
        texts = PaidTexts(folder, replies=replies, shard=shard)
        try:
            yield texts
        finally:
            texts.close()


@contextmanager
def _folder_errors(folder: Path) -> Iterator[None]:
    """Say in our words what a failure of this machine's disk means."""
    try:
        yield
    except OSError as error:
        raise folder_error(error, folder) from error


def _measure(path: Path) -> tuple[int, int]:
    size = checksum = 0
    with path.open("rb") as file:
        while block := file.read(COPY_BYTES):
            checksum = zlib.crc32(block, checksum)
            size += len(block)
    return size, checksum
