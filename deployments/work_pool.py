"""The work pool: its name, its queues, and what its workers find in their environment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deployments.logs import CONFIGURATION
from deployments.settings import DEFAULT_CHILD_RUNS, Settings, inspect_settings
from tasks.domain.errors import InputError

#: The project's root, where prefect.yaml lies and flows run.
PROJECT = Path(__file__).resolve().parents[1]
POOL = "cryptique"
#: A run ends at its next request and waits 20 seconds for what is under way; a store that is slow takes longer.
STOP_SECONDS = 240.0
#: After the runs' time: to kill those that are left, and to tell the server.
TELL_SECONDS = 15.0

# Settings lead to databases and hold keys; a flow has all that from its blocks, so a worker gets none of it.
_PRIVATE_PREFIXES = ("CRYPTIQUE_", "GEMINI_", "GOOGLE_API_", "PREFECT_SERVER_", "POSTGRES_")
#: The settings by the names of their variables.
PRIVATE_NAMES = frozenset(name.upper() for name in Settings.model_fields)
_KEPT = frozenset({"CRYPTIQUE_HOME", "CRYPTIQUE_ROOT", "CRYPTIQUE_LOGS", "CRYPTIQUE_ENVIRONMENT", "PREFECT_API_URL"})
# Prefect's own 10 seconds make who starts a run in the UI wait.
_LOOK_FOR_WORK_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Queue:
    """A work queue: a lower ``priority`` is served first; ``concurrency_limit`` holds for all its runs together."""

    name: str
    priority: int
    concurrency_limit: int | None = None


#: The queue of work that should start at once; bulk runs and partitions may wait for a place.
ONGOING = "ongoing"
#: That of backups and restores: a place of their own, so neither a migration keeps them waiting nor they ingestion.
BACKUPS = "backups"
_BULK_RUNS = 2
#: One at a time: what is being restored is not backed up meanwhile.
_BACKUP_RUNS = 1


def queues(child_runs: int = DEFAULT_CHILD_RUNS) -> tuple[Queue, ...]:
    """Return the pool's queues; ``child_runs`` partitions run at once on all workers together.

    Priority alone would let bulk work fill a worker while nothing else is due: the limits keep a place free. Bulk runs
    wait while their partitions work, so both have places.
    """
    return (
        Queue(ONGOING, priority=1),
        Queue(BACKUPS, priority=5, concurrency_limit=_BACKUP_RUNS),
        Queue("bulk", priority=10, concurrency_limit=_BULK_RUNS),
        Queue("partitions", priority=20, concurrency_limit=child_runs),
    )


def worker_limit(child_runs: int = DEFAULT_CHILD_RUNS) -> int:
    """Return how many runs a worker that is alone takes at once: all with a limit and two more. Each is a process.

    Ingestion has the one for most of the time, and what looks and counts every few minutes takes turns in the other.
    """
    return _BULK_RUNS + child_runs + _BACKUP_RUNS + 2


def child_runs_here() -> int:
    """Return CRYPTIQUE_CHILD_RUNS as it is set here, or its default: a worker is given no setting but that, if any.

    Raises ``InputError`` for a value that can't be; what else may be wrong with the settings, a worker doesn't use.
    """
    settings, problems = inspect_settings()
    for problem in problems:
        if problem.startswith("CRYPTIQUE_CHILD_RUNS:"):
            raise InputError(problem)
    return settings.cryptique_child_runs


def worker_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return what a worker and its flows find in their environment: no setting and no key of this project."""
    kept = {
        name: value
        for name, value in inherited.items()
        if name.upper() in _KEPT or not (name.startswith(_PRIVATE_PREFIXES) or name.upper() in PRIVATE_NAMES)
    }
    defaults = {
        "CRYPTIQUE_ROOT": str(PROJECT),
        "PREFECT_LOGGING_SETTINGS_PATH": str(CONFIGURATION),
        "PREFECT_WORKER_QUERY_SECONDS": str(_LOOK_FOR_WORK_SECONDS),
        # The automation that finds runs whose process died without a word waits for these.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        # Prefect's default are all addresses, and the check that the worker is well comes from this machine.
        "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
        "PYTHONUNBUFFERED": "1",
        "DO_NOT_TRACK": "1",
    }
    return defaults | kept


def seconds_until_stopped(stop_seconds: float) -> int:
    """Return how long to wait for a worker's end before killing it: the time of its runs, and its own."""
    return math.ceil(stop_seconds + TELL_SECONDS) + 5
