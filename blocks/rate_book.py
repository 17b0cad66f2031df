"""How often somebody asked lately: counts in a SQLite file that all processes of a machine share.

A window slides: of the window before, as much counts as still lies within the last ``window_s`` seconds. A crash of the
machine may lose the last counts: no reason for a disk flush per request.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
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
        self._ready = False
        self._lock = threading.Lock()
        self._mine: dict[tuple[str, int], int] = {}
        self._hits = 0

    def hit(self, who: str, *, limit: int, window_s: int, now_s: float | None = None) -> Allowance:
        """Count one, if it is within the limit, and return whether it was."""
        return self._look(who, limit=limit, window_s=window_s, now_s=now_s, count=True)

    def check(self, who: str, *, limit: int, window_s: int, now_s: float | None = None) -> Allowance:
        """Return whether one more would be within the limit, and count nothing."""
        return self._look(who, limit=limit, window_s=window_s, now_s=now_s, count=False)

    def _look(self, who: str, *, limit: int, window_s: int, now_s: float | None, count: bool) -> Allowance:
        now_s = time.time() if now_s is None else now_s
        began = int(now_s // window_s) * window_s
        try:
            with self._opened() as connection:
                rows = connection.execute(
                    "SELECT began, number FROM counts WHERE who = ? AND began IN (?, ?)", [who, began, began - window_s]
                ).fetchall()
                found = _allowance(dict(rows), began, limit=limit, window_s=window_s, now_s=now_s)
                if count and found.allowed:
                    connection.execute(
                        "INSERT INTO counts VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET number = number + 1",
                        [who, began],
                    )
                    self._sweep(connection, before=began - window_s)
                return found
        except (sqlite3.Error, OSError):
            # Whoever took the file away took the table with it: the next call makes both again.
            self._ready = False
            return self._look_here(who, began, limit=limit, window_s=window_s, now_s=now_s, count=count)

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
        if not self._ready:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.touch(mode=0o600)
        with closing(sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)) as connection:
            if not self._ready:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executescript(_SCHEMA)
                self._ready = True
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")


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
