"""Servers for a measurement: mongod and the Prefect server as production has it or on SQLite, with their processes."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

from benchmarks.processes import children_of, cpu_seconds
from deployments.embedded import embedded_mongod, local_prefect_server
from tests.end_to_end.production import production, without_settings

#: ``postgres``: API and services apart, on PostgreSQL and Redis, with the settings of ``server.env.example``.
Orchestrator = Literal["postgres", "sqlite"]
ORCHESTRATORS: tuple[Orchestrator, ...] = ("postgres", "sqlite")

_PAGE = 200
_LOOK_S, _LONGEST_SETTLING_S = 2.0, 60.0
_ABOUT_IDLE, _TICK_SHARE = 1.5, 0.02


@dataclass(frozen=True, slots=True)
class Mongo:
    """A mongod, a replica set of one."""

    uri: str
    roots: tuple[int, ...]


@contextmanager
def mongo_server(home: Path, *, cache_gb: float, oplog_mb: int) -> Iterator[Mongo]:
    """Yield a mongod of the caller's own, with its data under ``home``."""
    before = children_of(os.getpid())
    with embedded_mongod(home, cache_gb=cache_gb, oplog_mb=oplog_mb) as uri:
        yield Mongo(uri, tuple(children_of(os.getpid()) - before))


@dataclass(frozen=True, slots=True)
class PrefectServer:
    """A Prefect server with all that serves it: databases, messages, API and services are its processes.

    ``environment`` is what a client's process needs. ``idle_share`` is the CPU seconds a second that all of it uses
    while nobody asks it anything.
    """

    kind: Orchestrator
    roots: tuple[int, ...]
    environment: Mapping[str, str]
    api: httpx.Client
    idle_share: float

    def settle(self) -> None:
        """Wait until it idles: it records what it was told in the background, and that CPU counts."""
        deadline = time.monotonic() + _LONGEST_SETTLING_S
        used = cpu_seconds(self.roots)
        while time.monotonic() < deadline:
            time.sleep(_LOOK_S)
            before, used = used, cpu_seconds(self.roots)
            if (used - before) / _LOOK_S <= _ABOUT_IDLE * self.idle_share + _TICK_SHARE:
                return

    def task_runs(self, flow_run_id: str) -> tuple[dict[str, float], dict[str, int]]:
        """Return the wall seconds, and the number, of the flow run's task runs by stage."""
        seconds: Counter[str] = Counter()
        number: Counter[str] = Counter()
        chosen = {"flow_runs": {"id": {"any_": [flow_run_id]}}, "limit": _PAGE}
        while page := self._ask("/task_runs/filter", chosen | {"offset": number.total()}):
            for run in page:
                stage = run["name"].rstrip("0123456789- ")
                seconds[stage] += run["total_run_time"]
                number[stage] += 1
        return {stage: round(total, 3) for stage, total in seconds.items()}, dict(number)

    def _ask(self, path: str, body: dict[str, Any]) -> Any:
        return self.api.post(path, json=body).raise_for_status().json()


@contextmanager
def prefect_server(kind: Orchestrator, home: Path, *, idle_seconds: float = 10.0) -> Iterator[PrefectServer]:
    """Yield a Prefect server of the caller's own, measured while it idles for ``idle_seconds``."""
    before = children_of(os.getpid())
    home.mkdir(parents=True, exist_ok=True)
    if kind == "sqlite":
        with (
            local_prefect_server(home) as url,
            httpx.Client(base_url=url, timeout=60, trust_env=False) as api,
        ):
            environment = without_settings() | {"PREFECT_API_URL": url, "PREFECT_HOME": str(home / "client")}
            yield _measured(kind, before, environment, api, idle_seconds)
        return
    with production(home) as place:
        yield _measured(kind, before, place.client_environment, place.api, idle_seconds)


def _measured(
    kind: Orchestrator, before: set[int], environment: Mapping[str, str], api: httpx.Client, idle_seconds: float
) -> PrefectServer:
    roots = tuple(children_of(os.getpid()) - before)
    time.sleep(idle_seconds / 2)  # what it does once, right after its start
    used, began = cpu_seconds(roots), time.monotonic()
    time.sleep(idle_seconds)
    idle_share = (cpu_seconds(roots) - used) / (time.monotonic() - began)
    return PrefectServer(kind, roots, environment, api, idle_share)
