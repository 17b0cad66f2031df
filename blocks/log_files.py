"""Log files: dated, shared by all processes of a machine, one write a line; compressed and removed by one sweeper.

A line is appended by a single ``write`` to a file that was opened with O_APPEND: lines of any number of processes stand
whole, one after the other. A file that grew too large is put aside under a number by whoever sees it first; the others
notice within a second, and what they write until then stands in the file that was put aside.
"""

from __future__ import annotations

import fcntl
import gzip
import logging
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
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
_READ_BYTES = 1 << 20


@dataclass(slots=True)
class _Open:
    descriptor: int
    day: int
    looked_s: float
    inode: int


class DatedLogHandler(logging.Handler):
    """Writes each record's line into the files of its streams, of the day on which it was made (UTC).

    A line that can't be written breaks nothing: the first is told on standard error, and so is the next that works.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ui_url: Callable[[], str | None] | None = None,
        max_bytes: int = MAX_FILE_BYTES,
        level: int = logging.INFO,
    ) -> None:
        super().__init__(level)
        self._folder = folder
        self._ui_url = ui_url or (lambda: None)
        self._max_bytes = max_bytes
        self._open: dict[Stream, _Open] = {}
        self._failing = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            line = line_of(record, ui_url=self._ui_url())
            for stream in streams_of(record):
                self._write(stream, line, record.created)
            if self._failing:
                self._failing = False
                sys.stderr.write(f"log lines are written to {self._folder} again\n")
        except FileNotFoundError:
            return  # there is no home yet: a command that only looks makes none
        except OSError as error:
            if not self._failing:
                self._failing = True
                sys.stderr.write(f"log lines can't be written to {self._folder}: {error.strerror}\n")
        except Exception:  # noqa: BLE001 - what tells of the work must not stop it
            self.handleError(record)

    def close(self) -> None:
        """Close the files; a later record opens them again."""
        self.acquire()
        try:
            for found in self._open.values():
                os.close(found.descriptor)
            self._open = {}
        finally:
            self.release()
        super().close()

    def _write(self, stream: Stream, line: bytes, created: float) -> None:
        day = int(created // _DAY_S)
        found = self._open.get(stream)
        if found is None or found.day != day or created - found.looked_s >= _LOOK_EVERY_S or created < found.looked_s:
            found = self._opened(stream, day, created)
        written = os.write(found.descriptor, line)
        if written != len(line):
            # The disk is full: what stands there is closed, so that the next line begins on its own.
            with suppress(OSError):
                os.write(found.descriptor, b"\n")
            raise OSError(28, "only a part of a line could be written")

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
        with open(self._folder / "rotate.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if path.stat().st_size < self._max_bytes:
                    return
                number = 1
                while True:
                    aside = path.with_suffix(f".{number}.log")
                    if not aside.exists() and not aside.with_suffix(".log.gz").exists():
                        path.rename(aside)
                        return
                    number += 1


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
    partial, packed = path.with_suffix(".log.partial"), path.with_suffix(".log.gz")
    before = path.stat()
    with path.open("rb") as plain, partial.open("wb") as raw:
        with gzip.GzipFile(path.name, "wb", compresslevel=6, fileobj=raw, mtime=before.st_mtime) as out:
            shutil.copyfileobj(plain, out, _READ_BYTES)
        raw.flush()
        os.fsync(raw.fileno())
    if path.stat().st_size != before.st_size:
        partial.unlink()
        return False
    partial.chmod(0o600)
    partial.rename(packed)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    path.unlink()
    return True
