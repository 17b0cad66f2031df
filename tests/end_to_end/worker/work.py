"""The work that a worker's tests give it, and ways to look at it and to hold it up."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from pymongo.database import Database

from tests.end_to_end.pipeline import comparable, wait_for
from tests.loopback.gemini import LoopbackGemini

Record = dict[str, Any]

#: Ten shards, the second partition of which has two; each shard is one request.
ROWS, SHARD_ROWS = 1_000, 100
BY_SHARD: Record = {"shard_rows": SHARD_ROWS, "shards_in_flight": 1}
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
CHECK = "transaction"


def documents(database: Database[Record]) -> dict[str, Record]:
    return comparable({row["documentId"]: row for row in database.vectordocuments.find({})}, "version")


def paid(gemini: LoopbackGemini) -> Counter[str]:
    return Counter({text: times for text, times in gemini.embedded.items() if text != CHECK})


class Held:
    """Holds the first request from a number on, until it is let go; then that one is dropped."""

    def __init__(self, gemini: LoopbackGemini, number: int) -> None:
        self.arrived, self.let_go = threading.Event(), threading.Event()
        self._first = len(gemini.requests) + number
        gemini.faults = self._fault

    def _fault(self, index: int) -> str | None:
        if index != self._first:
            return None
        self.arrived.set()
        self.let_go.wait(300)
        return "drop"

    def wait(self) -> None:
        wait_for(lambda: True if self.arrived.is_set() else None, what="the held request", seconds=180)


def children_of(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they started."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                parent = int(Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            if parent == pid:
                found += [int(entry), *children_of(int(entry))]
    return found
