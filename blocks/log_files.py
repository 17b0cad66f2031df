"""Log files: dated, shared by all processes of a machine, one write a line; compressed and removed by one sweeper.

A line is appended by a single ``write`` to a file that was opened with O_APPEND: lines of any number of processes stand
whole, one after the other. A file that grew too large is put aside under a number by whoever sees it first; the others
notice within a second, and what they write until then stands in the file that was put aside.

Who writes holds a shared lock (flock) on the file for that one write, and sees under it whether the file still has a
name; the sweeper takes the file's name away under the exclusive lock. So a process that slept for days and wakes up
with a line and an old file loses nothing.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import logging
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from tasks.domain.log_lines import Stream, file_name, is_over, line_of, may_go, read_file_name, streams_of

MAX_FILE_BYTES = 256 << 20
#: Whoever writes looks this often whether the file was put aside.
_LOOK_EVERY_S = 1.0
#: A day's files are compressed when nobody can still be about to write in them.
_OVER_FOR_S = 3_600.0
_DAY_S = 86_400
#: How long lines must have been lost, or lost and written by turns, before standard error is told how many were.
_TELL_EVERY_S = 60.0
_READ_BYTES = 1 << 20


@dataclass(slots=True)
class _Open:
    descriptor: int
    day: int
    looked_s: float
    inode: int


class DatedLogHandler(logging.Handler):
    """Writes each record's line into the files of its streams, of the day on which it was made (UTC).

    A line that can't be written breaks nothing: the first is told on standard error, and so is how many were lost.
    ``facts`` says what else a line is about: the run that the process is in. The folder is made, but not its parent:
    where that isn't there, no line is written, silently.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ui_url: Callable[[], str | None] | None = None,
        facts: Callable[[], Mapping[str, str]] | None = None,
        max_bytes: int = MAX_FILE_BYTES,
        level: int = logging.INFO,
    ) -> None:
        super().__init__(level)
        self._folder = folder
        self._ui_url = ui_url or (lambda: None)
        self._facts = facts or dict
        self._max_bytes = max_bytes
        self._open: dict[Stream, _Open] = {}
        self._process = os.getpid()
        self._lost = 0
        self._told_s = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            line = line_of(record, ui_url=self._ui_url(), facts=self._facts())
            for stream in streams_of(record):
                self._write(stream, line, record.created)
            if self._lost and time.monotonic() - self._told_s >= _TELL_EVERY_S:
                self._tell_end()
        except FileNotFoundError:
            return  # there is no home yet: a command that only looks makes none
        except Exception as error:  # noqa: BLE001 - what tells of the work must not stop it
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._lost += 1
        if self._lost == 1:
            self._told_s = time.monotonic()
            # Neither the line nor the error's text: either may hold a secret.
            why = error.strerror if isinstance(error, OSError) else type(error).__name__
            _tell(f"log lines can't be written to {self._folder}: {why}")

    def _tell_end(self) -> None:
        _tell(f"{self._lost} log lines could not be written to {self._folder}")
        self._lost = 0

    def close(self) -> None:
        """Close the files; a later record opens them again."""
        self.acquire()
        try:
            for found in self._open.values():
                os.close(found.descriptor)
            self._open = {}
            if self._lost:
                self._tell_end()
        finally:
            self.release()
        super().close()

    def _write(self, stream: Stream, line: bytes, created: float) -> None:
        if self._process != os.getpid():
            # Opened before a fork: the lock on it would be one with the parent's.
            for inherited in self._open.values():
                os.close(inherited.descriptor)
            self._open, self._process = {}, os.getpid()
        day = int(created // _DAY_S)
        found = self._open.get(stream)
        if found is None or found.day != day or created - found.looked_s >= _LOOK_EVERY_S or created < found.looked_s:
            found = self._opened(stream, day, created)
        while not self._append(found.descriptor, line):
            os.close(self._open.pop(stream).descriptor)
            found = self._opened(stream, day, created)

    def _append(self, descriptor: int, line: bytes) -> bool:
        """Write a line; False where the sweeper took the file's name away, and nobody would read it there."""
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        try:
            if os.fstat(descriptor).st_nlink == 0:
                return False
            written = os.write(descriptor, line)
            if written == len(line):
                return True
            self._take_back(descriptor, written)
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _take_back(self, descriptor: int, written: int) -> None:
        """Remove the part of a line for which the disk had room, or end it, so that the next begins on its own."""
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_size == end:
                os.ftruncate(descriptor, end - written)
            else:
                os.write(descriptor, b"\n")

    def _opened(self, stream: Stream, day: int, created: float) -> _Open:
        """Return the file of a stream and day, opened anew where it is another than the one that is open."""
        path = self._folder / file_name(stream, date.fromordinal(date(1970, 1, 1).toordinal() + day))
        found = self._open.get(stream)
        try:
            there = path.stat()
        except FileNotFoundError:
            there = None
        if there is not None and there.st_size >= self._max_bytes:
            self._put_aside(path)
            there = None
        if found is not None and found.day == day and there is not None and there.st_ino == found.inode:
            found.looked_s = created
            return found
        self._folder.mkdir(exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if found is not None:
            os.close(found.descriptor)
        self._open[stream] = _Open(descriptor, day, created, os.fstat(descriptor).st_ino)
        return self._open[stream]

    def _put_aside(self, path: Path) -> None:
        """Give a full file a number, unless another process was quicker."""
        with _naming(self._folder), suppress(FileNotFoundError):
            if path.stat().st_size >= self._max_bytes:
                path.rename(_free_name(path))


def _tell(says: str) -> None:
    # Standard error may be closed, or a file on the same full disk.
    with suppress(Exception):
        sys.stderr.write(f"{says}\n")


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Let nobody else give files of a folder their numbers meanwhile."""
    with open(folder / "rotate.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _free_name(path: Path) -> Path:
    """Return a file's name with the first number that none of its day has, compressed or not."""
    day = path.name.split(".")[0]
    number = 1
    while any((path.parent / f"{day}.{number}{suffix}").exists() for suffix in (".log", ".log.gz")):
        number += 1
    return path.parent / f"{day}.{number}.log"


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did: the names of the files that it compressed and removed."""

    compressed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def sweep_logs(folder: Path, *, now: datetime | None = None) -> Swept:
    """Compress the files of days that are over, and remove those that were kept long enough. Safe at any time.

    One process sweeps at a time; a second one returns at once with nothing done. A kill leaves each file whole, once.
    """
    now = datetime.now(UTC) if now is None else now
    if not folder.is_dir():
        return Swept()
    with open(folder / "sweep.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Swept()
        return _sweep(folder, now)


def _sweep(folder: Path, now: datetime) -> Swept:
    compressed, removed = [], []
    for path in sorted(folder.iterdir()):
        if path.name.endswith(".partial"):
            path.unlink(missing_ok=True)
            continue
        found = read_file_name(path.name)
        if found is None:
            continue
        stream, day = found
        if may_go(stream, day, now=now):
            path.unlink(missing_ok=True)
            removed.append(path.name)
        elif path.suffix == ".log" and is_over(day, now=now, for_s=_OVER_FOR_S) and _compress(path):
            compressed.append(path.name)
    return Swept(tuple(compressed), tuple(removed))


def _compress(path: Path) -> bool:
    """Put a compressed copy in a file's place; False where it still grew, and stays for the next sweep."""
    packed = path.with_suffix(".log.gz")
    if packed.exists():
        if _begins_with(path, packed):
            # A sweep was killed between the copy and the end of what it copied.
            packed.unlink()
        else:
            # Lines that came when their day was compressed already.
            with _naming(path.parent):
                path = path.rename(_free_name(path))
    partial, packed = path.with_suffix(".log.partial"), path.with_suffix(".log.gz")
    before = path.stat()
    with path.open("rb") as plain, partial.open("wb") as raw:
        os.fchmod(raw.fileno(), 0o600)
        with gzip.GzipFile(path.name, "wb", compresslevel=6, fileobj=raw, mtime=before.st_mtime) as out:
            left = before.st_size
            while left and (block := plain.read(min(left, _READ_BYTES))):
                out.write(block)
                left -= len(block)
        raw.flush()
        os.fsync(raw.fileno())
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if os.fstat(held.fileno()).st_size != before.st_size:
            partial.unlink()
            return False
        partial.rename(packed)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        path.unlink()
    return True


def _begins_with(path: Path, packed: Path) -> bool:
    """Return whether a plain file begins with all that a compressed one has."""
    try:
        with gzip.open(packed, "rb") as copy, path.open("rb") as plain:
            return all(block == plain.read(len(block)) for block in iter(lambda: copy.read(_READ_BYTES), b""))
    except (EOFError, OSError, zlib.error):
        return False
