"""A folder that several machines mount, such as NFS: no locks, no memory maps, files that appear whole."""

from __future__ import annotations

import errno
import os
import random
import stat
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from blocks.object_store import COPY_BYTES, Sink, StoredObject, UnfinishedUpload
from tasks.domain.errors import PipelineError, TerminalError, TransientError

_PARTIAL = ".partial"
#: What a mounted folder says while its server is away, restarts, or has just replaced the file.
_PASSING = frozenset(
    {
        errno.ESTALE,
        errno.EIO,
        errno.EAGAIN,
        errno.EINTR,
        errno.EBUSY,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
    }
)
_TRIES = 50
_LONGEST_PAUSE_S = 0.01


class SharedFolder:
    """Objects as files under ``root``, which must be there: a folder that isn't mounted is no empty store.

    A file is written under another name first, so a reader on any machine finds it whole or not at all. ``setting``
    is the one that names the folder, for messages.
    """

    def __init__(self, root: Path, *, setting: str = "CRYPTIQUE_SHARDS") -> None:
        self.root = root
        self._setting = setting

    def put(self, name: str, content: bytes | Path) -> None:
        """Store an object; one of the same name is replaced."""
        target = self.root / name
        partial = target.with_name(f"{target.name}.{uuid4().hex}{_PARTIAL}")
        try:
            for last in (False,) * (_TRIES - 1) + (True,):
                try:
                    _write(partial, content)
                    os.replace(partial, target)
                    return
                except FileNotFoundError:
                    # The folder isn't there yet, or whoever emptied it has just taken it away.
                    if last:
                        raise
                    self._require_root()
                    # Each at its own pace: two in step could miss each other for ever.
                    time.sleep(random.uniform(0, _LONGEST_PAUSE_S))
                    # A parent, or the folder itself, is taken away while it is made.
                    with suppress(FileNotFoundError, FileExistsError):
                        target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise self._translated(error) from error

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Store an object unless there is one of this name; return whether this call stored it."""
        target = self.root / name
        partial = target.with_name(f"{target.name}.{uuid4().hex}{_PARTIAL}")
        try:
            self._require_root()
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Whoever finds it builds on it: it is there after a power cut too.
                _write(partial, content, durable=True)
                os.link(partial, target)
            finally:
                partial.unlink(missing_ok=True)
            _keep_name(target)
        except FileExistsError:
            return False
        except OSError as error:
            raise self._translated(error) from error
        return True

    @contextmanager
    def writing(self, name: str) -> Iterator[Sink]:
        """Give a sink whose bytes are the object when the block ends; when it fails, there is none."""
        target = self.root / name
        partial = target.with_name(f"{target.name}.{uuid4().hex}{_PARTIAL}")
        try:
            self._require_root()
            target.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("xb") as file:
                yield _Translating(file, self)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
            _keep_name(target)
        except OSError as error:
            raise self._translated(error) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def stream(self, name: str) -> Iterator[bytes] | None:
        """Yield an object piece by piece, or return None if there is none."""
        try:
            source = (self.root / name).open("rb")
        except FileNotFoundError:
            self._require_root()
            return None
        except OSError as error:
            raise self._translated(error) from error
        return self._blocks(source)

    def _blocks(self, source: BinaryIO) -> Iterator[bytes]:
        with source:
            while block := self._read_block(source):
                yield block

    def get(self, name: str) -> bytes | None:
        """Return an object whole, or None."""
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            self._require_root()
            return None
        except OSError as error:
            raise self._translated(error) from error

    def download(self, name: str, path: Path) -> tuple[int, int] | None:
        """Copy an object to a file of this machine and return its size and CRC32, or None."""
        size = checksum = 0
        with path.open("wb") as sink:  # this machine's disk: its failures are the caller's
            try:
                source = (self.root / name).open("rb")
            except FileNotFoundError:
                self._require_root()
                return None
            except OSError as error:
                raise self._translated(error) from error
            with source:
                while block := self._read_block(source):
                    sink.write(block)
                    checksum = zlib.crc32(block, checksum)
                    size += len(block)
        return size, checksum

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield the objects whose name begins so; files that are being written are none yet."""
        folder, _, start = prefix.rpartition("/")
        try:
            for path, status in _walk(self.root / folder, start):
                if not path.name.endswith(_PARTIAL):
                    name = path.relative_to(self.root).as_posix()
                    yield StoredObject(name, status.st_size, status.st_mtime)
        except OSError as error:
            raise self._translated(error) from error

    def list_folders(self) -> list[str]:
        """Return the folders of the root."""
        self._require_root()
        try:
            with os.scandir(self.root) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError as error:
            raise self._translated(error) from error

    def delete_under(self, prefix: str) -> None:
        """Delete all objects whose name begins so, also half-written ones, and the folders that this empties."""
        folder, _, start = prefix.rpartition("/")
        base = self.root / folder
        try:
            for path in _entries(base, start):
                if path.is_dir() and not path.is_symlink():
                    _remove_tree(path)
                else:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise self._translated(error) from error
        self._remove_empty(base)

    def erase_under(self, prefix: str, *, first: Sequence[str] = ()) -> None:
        """Delete all objects whose name begins so, those named ``first`` before the others. Safe to repeat."""
        for name in first:
            if name.startswith(prefix):
                try:
                    (self.root / name).unlink(missing_ok=True)
                except NotADirectoryError:
                    pass
                except OSError as error:
                    raise self._translated(error) from error
        self.delete_under(prefix)

    def require_unlocked(self, prefix: str) -> None:
        """Do nothing: a folder knows no locks."""

    def is_hidden(self, name: str) -> bool:
        """Return False: what is deleted is gone."""
        return False

    def unfinished_uploads(self, prefix: str = "") -> list[UnfinishedUpload]:
        """Return the files that are being written under names that begin so, or were when their writer was killed."""
        folder, _, start = prefix.rpartition("/")
        found = []
        try:
            for path, status in _walk(self.root / folder, start):
                if path.name.endswith(_PARTIAL):
                    key = path.relative_to(self.root).as_posix()
                    name = key.removesuffix(_PARTIAL).rpartition(".")[0]
                    found.append(UnfinishedUpload(name, status.st_mtime, key))
        except OSError as error:
            raise self._translated(error) from error
        return found

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """Delete a file that was not written to its end, and the folders that this empties. Safe to repeat."""
        path = self.root / upload.key
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise self._translated(error) from error
        self._remove_empty(path.parent)

    def now(self) -> datetime:
        """Return the time by the clock that dates the folder's files, told by one that is written and removed."""
        self._require_root()
        path = self.root / f"clock.{uuid4().hex}{_PARTIAL}"
        try:
            try:
                path.touch(exist_ok=False)
                return datetime.fromtimestamp(path.stat().st_mtime, UTC)
            finally:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise self._translated(error) from error

    def check(self) -> str:
        """Return what the folder is, proved by a small file. Raises ``TerminalError`` with what to do."""
        name = f"check-{uuid4().hex}"
        self.put(name, name.encode())
        if self.get(name) != name.encode():
            raise TerminalError(f"{self.root} does not give back what was written to it: is it mounted in full?")
        self.delete_under(name)
        return f"folder {self.root}, shared by machines"

    def _read_block(self, source: BinaryIO) -> bytes:
        try:
            return source.read(COPY_BYTES)
        except OSError as error:
            raise self._translated(error) from error

    def _remove_empty(self, folder: Path) -> None:
        """Remove a folder, and those above it, as far as they are empty."""
        while folder != self.root and folder.is_relative_to(self.root):
            try:
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                return  # something is in it, or was put there just now
            folder = folder.parent

    def _require_root(self) -> None:
        if not self.root.is_dir():
            raise TerminalError(
                f"the shared folder {self.root} is not there: mount it on this machine, or make it, or correct "
                f"{self._setting}"
            )

    def _translated(self, error: OSError) -> PipelineError:
        words = f"the shared folder {self.root} failed: {error.strerror or error}"
        if error.errno in _PASSING:
            return TransientError(words)
        return TerminalError(
            f"{words}. Free space there, or correct its permissions or {self._setting}, and run the same command "
            "again: it resumes"
        )


class _Translating:
    """A file whose failures are told in our words, also inside of a library that would hide them."""

    def __init__(self, file: BinaryIO, folder: SharedFolder) -> None:
        self._file = file
        self._folder = folder

    def write(self, block: bytes, /) -> int:
        try:
            return self._file.write(block)
        except OSError as error:
            raise self._folder._translated(error) from error


def _write(path: Path, content: bytes | Path, *, durable: bool = False) -> None:
    with path.open("xb") as sink:
        if isinstance(content, bytes):
            sink.write(content)
        else:
            with content.open("rb") as source:
                while block := source.read(COPY_BYTES):
                    sink.write(block)
        if durable:
            sink.flush()
            os.fsync(sink.fileno())


def _keep_name(path: Path) -> None:
    """Put a file's name on the disk too, not its bytes alone."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _entries(folder: Path, start: str = "") -> list[Path]:
    """Return what is directly in a folder and begins so, in order; nothing if somebody has just deleted it."""
    try:
        return sorted(folder / name for name in os.listdir(folder) if name.startswith(start))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _walk(folder: Path, start: str = "") -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the files under a folder, those directly in it only if their name begins so; others may delete some."""
    for path in _entries(folder, start):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(path)
        else:
            yield path, status


def _remove_tree(folder: Path) -> None:
    for parent, _folders, files in os.walk(folder, topdown=False):
        for name in files:
            Path(parent, name).unlink(missing_ok=True)
        with suppress(OSError):  # something was put there just now
            os.rmdir(parent)
