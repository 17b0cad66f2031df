"""A migration that tells what MongoDB acknowledged: ``python -m tests.chaos.writes FILE PARAMETERS``.

A line of JSON for each insert and update, in the order of the acknowledgements: the collection, the write concern that
it was asked for with, and which records it is about.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import bson
from pymongo import monitoring

_ID_BYTES = 12


class _Writes(monitoring.CommandListener):
    def __init__(self, file: Path) -> None:
        self._file = file.open("w")
        self._lock = threading.Lock()
        self._asked: dict[int, dict[str, Any]] = {}

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name in ("insert", "update"):
            command = bson.decode(bson.encode(event.command))
            concern = command.get("writeConcern")
            with self._lock:
                self._asked[event.request_id] = {
                    "collection": command[event.command_name],
                    "concern": concern,
                    "records": _records(command),
                }

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        with self._lock:
            asked = self._asked.pop(event.request_id, None)
            if asked is not None:
                self._file.write(json.dumps(asked) + "\n")
                self._file.flush()

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        with self._lock:
            self._asked.pop(event.request_id, None)


def _records(command: dict[str, Any]) -> list[str]:
    """Return the records of inserted documents, and of those that an update writes whole: a checkpoint names many."""
    written = [*command.get("documents", ()), *(update["u"] for update in command.get("updates", ()))]
    found: list[str] = []
    for document in written:
        if isinstance(document, dict):
            if "recordIds" in document:
                ids = bytes(document["recordIds"])
                found += [ids[at : at + _ID_BYTES].hex() for at in range(0, len(ids), _ID_BYTES)]
            elif "sourceId" in document:
                found.append(str(document["sourceId"]))
    return found


def main() -> None:
    """Migrate, and tell."""
    monitoring.register(_Writes(Path(sys.argv[1])))

    from flows.migrate import migrate

    migrate(**json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
