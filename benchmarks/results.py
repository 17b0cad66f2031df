"""Results: every measurement by its name and rows, kept in a file from the moment it is made."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

Record = dict[str, Any]
FILE = "results.json"


class Results:
    """Measurements by key. ``folder`` of None keeps them in memory only."""

    def __init__(self, folder: Path | None, *, resume: bool = False) -> None:
        """Begin anew, or, with ``resume``, with what the folder holds: a new measurement replaces its like."""
        self.folder = folder
        self._record: Record = {"machine": {}, "measurements": {}}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if resume and (folder / FILE).is_file():
                self._record = json.loads((folder / FILE).read_text("utf-8"))

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Return what a folder holds, to look at."""
        return cls(folder, resume=True)

    @property
    def machine(self) -> Mapping[str, Any]:
        """Return what it was measured on."""
        machine: Record = self._record["machine"]
        return machine

    def describe_machine(self, mongod: str) -> None:
        """Put down what this machine is and which versions run on it."""
        began = datetime.now(UTC).isoformat(timespec="seconds")
        self._record["machine"] = describe_machine() | {"mongod": mongod, "began": began}
        self._save()

    def put(self, name: str, rows: int | None, value: Mapping[str, Any]) -> Record:
        """Keep a measurement, at once, and return it with its rows and its time."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        kept: Record = {"rows": rows, "measured_at": now, **value}
        self._record["measurements"][_key(name, rows)] = kept
        self._save()
        return kept

    def get(self, name: str, rows: int | None = None) -> Record | None:
        """Return a measurement, or None where it was not made."""
        found: Record | None = self._record["measurements"].get(_key(name, rows))
        return found

    def by_rows(self, name: str) -> list[Record]:
        """Return all measurements of this name, the fewest rows first."""
        found = [one for key, one in self._record["measurements"].items() if key.partition("@")[0] == name]
        return sorted(found, key=lambda one: one["rows"] or 0)

    def _save(self) -> None:
        if self.folder is None:
            return
        draft = self.folder / f"{FILE}.new"
        draft.write_text(json.dumps(self._record, indent=1, sort_keys=True) + "\n", "utf-8")
        draft.replace(self.folder / FILE)


def _key(name: str, rows: int | None) -> str:
    return name if rows is None else f"{name}@{rows}"


def describe_machine() -> Record:
    """Return processor, cores in use, memory and versions."""
    cpu = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory[0] * 1024 / 1e9, 1) if memory else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "prefect": version("prefect"),
        "pymongo": version("pymongo"),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
