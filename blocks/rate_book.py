"""How often somebody asked lately: counts in a SQLite file that all processes of a machine share.

A window slides: of the window before, as much counts as still lies within the last ``window_s`` seconds. A crash of the
machine may lose the last counts: no reason for a disk flush per request. Nor does each request touch the file: while
much is left, a process counts some ahead, and uses them up in memory.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS counts (
    who TEXT NOT NULL, began INTEGER NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (who, began)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS counts_by_time ON counts (began);
"""
_BUSY_S = 2.0
_SWEEP_EVERY = 1_000
#: Of what is left, so much is counted ahead: nothing near the limit, where another process could miss it.
_AHEAD = 50
_LONGEST_AHEAD = 10_000


@dataclass(frozen=True, slots=True)
class Allowance:
    """Whether one more is within the limit, how many are left, and after how many seconds one will be."""

    allowed: bool
    left: int
    retry_after_s: int = 0


class RateBook:
    """Counts by name. While the file can't be used, this process counts for itself: a limit is never off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        #: One connection, for one thread at a time: threads that wait for the file's own lock would sleep for it.
        self._using = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._mine: dict[tuple[str, int], int] = {}
        self._hits = 0
        #: Counted ahead, by name, limit and window: when the window began, how many, and what is left beside them.
        self._ahead: dict[tuple[str, int, int], tuple[int, int, int]] = {}

    def hit(self, who: str, *, limit: int, window_s: int, now_s: float | None = None) -> Allowance:
        """Count one, if it is within the limit, and return whether it was."""
        return self._look(who, limit=limit, window_s=window_s, now_s=now_s, count=True)

    def check(self, who: str, *, limit: int, window_s: int, now_s: float | None = None) -> Allowance:
        """Return whether one more would be within the limit, and count nothing."""
        return self._look(who, limit=limit, window_s=window_s, now_s=now_s, count=False)

    def _look(self, who: str, *, limit: int, window_s: int, now_s: float | None, count: bool) -> Allowance:
        now_s = time.time() if now_s is None else now_s
        began = int(now_s // window_s) * window_s
        key = (who, limit, window_s)
        if count:
            with self._lock:
                window, number, left = self._ahead.get(key, (began, 0, 0))
                if window == began and number:
                    self._ahead[key] = (began, number - 1, left)
                    return Allowance(True, left + number - 1)
        try:
            with self._opened() as connection:
                rows = connection.execute(
                    "SELECT began, number FROM counts WHERE who = ? AND began IN (?, ?)", [who, began, began - window_s]
                ).fetchall()
                found = _allowance(dict(rows), began, limit=limit, window_s=window_s, now_s=now_s)
                if count and found.allowed:
                    more = found.left // _AHEAD
                    connection.execute(
                        "INSERT INTO counts VALUES (?, ?, ?) "
                        "ON CONFLICT DO UPDATE SET number = number + excluded.number",
                        [who, began, 1 + more],
                    )
                    self._count_ahead(key, began, more, found.left - more)
                    self._sweep(connection, before=began - window_s)
                return found
        except (sqlite3.Error, OSError):
            return self._look_here(who, began, limit=limit, window_s=window_s, now_s=now_s, count=count)

    def _count_ahead(self, key: tuple[str, int, int], began: int, more: int, left: int) -> None:
        with self._lock:
            window, number, _ = self._ahead.get(key, (began, 0, 0))
            if len(self._ahead) > _LONGEST_AHEAD:
                self._ahead.clear()
            if more or number:
                self._ahead[key] = (began, more + (number if window == began else 0), left)

    def _look_here(self, who: str, began: int, *, limit: int, window_s: int, now_s: float, count: bool) -> Allowance:
        with self._lock:
            known = {start: self._mine.get((who, start), 0) for start in (began, began - window_s)}
            found = _allowance(known, began, limit=limit, window_s=window_s, now_s=now_s)
            if count and found.allowed:
                self._mine = {key: number for key, number in self._mine.items() if key[1] >= began - window_s}
                self._mine[who, began] = known[began] + 1
            return found

    def _sweep(self, connection: sqlite3.Connection, *, before: int) -> None:
        with self._lock:
            self._hits += 1
            due = self._hits % _SWEEP_EVERY == 0
        if due:
            # The longest window is what counts; whoever sweeps knows only its own.
            connection.execute("DELETE FROM counts WHERE began < ?", [min(before, int(time.time()) - 7_200)])

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with self._using:
            try:
                # Whoever took the file away took the counts with it: both are made again.
                if self._connection is None or self._identity() != self._file:
                    self._open()
                assert self._connection is not None
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                self._close()
                raise

    def _open(self) -> None:
        self._close()
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.touch(mode=0o600)
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        self._connection, self._file = connection, self._identity()
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(_SCHEMA)
        connection.execute("PRAGMA synchronous=OFF")

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino


def _allowance(counts: dict[int, int], began: int, *, limit: int, window_s: int, now_s: float) -> Allowance:
    mine, before = counts.get(began, 0), counts.get(began - window_s, 0)
    passed = (now_s - began) / window_s
    used = mine + before * (1 - passed)
    if used + 1 <= limit:
        return Allowance(True, int(limit - used - 1))
    if mine + 1 <= limit:  # some of the window before must pass
        wait = (1 - (limit - 1 - mine) / before - passed) * window_s
    else:  # this one must, and then some of it
        wait = (1 - passed) * window_s + (1 - (limit - 1) / mine) * window_s
    return Allowance(False, 0, max(1, math.ceil(wait)))
