"""Leave the pipeline running on this machine: servers, blocks, work pool, deployments and one worker.

``up`` makes what is missing, corrects what differs and leaves the rest; ``down`` stops what ``up`` started. Servers
that the environment names are used, never started or stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkPool
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling

from deployments.automations import register_automations
from deployments.embedded import LocalServer, running_prefect_server, stop_local_servers
from deployments.local_services import running_services, talking_to
from deployments.register_blocks import protect_home, register_blocks
from deployments.settings import Settings
from tasks.domain.errors import TerminalError

POOL = "cryptique"
#: Runs at once on this machine; each is a process of some 300 MB and more.
WORKER_LIMIT = 3

# The project's root, where prefect.yaml lies and flows run.
_ROOT = Path(__file__).resolve().parents[1]
# Settings lead to databases and hold keys; a flow has all that from its blocks, so a worker gets none of it.
_PRIVATE_PREFIXES = ("CRYPTIQUE_", "GEMINI_", "GOOGLE_API_", "PREFECT_")
_PRIVATE_NAMES = frozenset(name.upper() for name in Settings.model_fields)
# Of a server that the user named: how to reach it, and with which credentials.
_CLIENT_PREFIXES = ("PREFECT_API_", "PREFECT_CLIENT_", "PREFECT_HOME", "PREFECT_PROFILE")
_STOP_RUNS_SECONDS = 60.0
# Prefect's own 10 seconds make who starts a run in the UI wait.
_LOOK_FOR_WORK_SECONDS = 5
_UNFINISHED = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


@dataclass(frozen=True, slots=True)
class Queue:
    """A work queue: a lower ``priority`` is served first; ``concurrency_limit`` holds for all its runs together."""

    name: str
    priority: int
    concurrency_limit: int | None = None


#: Priority alone would let bulk work fill the worker while nothing else is due: its limit keeps one place free.
QUEUES = (Queue("ongoing", priority=1), Queue("bulk", priority=10, concurrency_limit=WORKER_LIMIT - 1))


@dataclass(frozen=True, slots=True)
class Standing:
    """What runs after ``up``. ``mongo_uri`` is None where the user's own MongoDB serves."""

    prefect_api_url: str
    mongo_uri: str | None
    blocks: list[str]
    deployments: list[str]
    automations: list[str]
    worker: str
    logs: list[str]

    @property
    def ui_url(self) -> str:
        """Return where a browser sees it."""
        return self.prefect_api_url.removesuffix("/api")


def up(settings: Settings) -> Standing:
    """Make everything run and return what does. Safe to repeat: what is right stays, processes included.

    Raises ``TerminalError`` with what to do; what was started by then stays, and the next call goes on from there.
    """
    _require_project()
    protect_home(settings.home)
    with running_services(settings, keep=True) as services:
        assert services.prefect_url is not None
        url = services.prefect_url
        blocks = register_blocks(settings, embedded_uri=services.mongo_uri)
        with get_client(sync_client=True) as client, ThreadPoolExecutor(1) as beside:
            _ensure_pool(client)
            deployed = beside.submit(_deploy, settings, url)  # as long as the worker's start: both at once
            _ensure_worker(settings, url)
            deployed.result()
            deployments = _deployment_names(client)
            automations = register_automations(settings)
    return Standing(
        prefect_api_url=url,
        mongo_uri=services.mongo_uri,
        blocks=blocks,
        deployments=deployments,
        automations=automations,
        worker=_worker_name(settings.home),
        logs=[str(path) for path in sorted(settings.home.glob("*/*.log"))],
    )


def is_standing(settings: Settings) -> bool:
    """Return whether a worker of this home runs, which takes its blocks from what was registered last."""
    return _worker(settings, "").is_running()


def down(settings: Settings) -> list[str]:
    """Stop the worker with its runs, then the servers of this home, and return what was stopped. Safe to repeat.

    A run at work is cancelled: it stops as it does on SIGTERM, and the same run given again goes on from there.
    Raises ``TerminalError`` when a command still uses a server; the others are stopped all the same.
    """
    url = settings.prefect_api_url or running_prefect_server(settings.home)
    worker = _worker(settings, url or "")
    stopped = [worker.label] if _stop_worker(settings.home, worker, url) else []
    return stopped + stop_local_servers(settings.home)


def _require_project() -> None:
    if not (_ROOT / "prefect.yaml").is_file():
        raise TerminalError(
            f"there is no prefect.yaml in {_ROOT}: `up` runs from a clone of the project, installed by `make setup`"
        )


# -- what the Prefect server is told --------------------------------------------------------------------------


def _ensure_pool(client: SyncPrefectClient) -> None:
    """Make the process work pool and its queues, or correct the queues; a pool that was paused stays paused."""
    pool = _find_pool(client)
    if pool is None:
        from prefect.workers.process import ProcessWorker  # slow to import, and `down` needs none of it

        template = ProcessWorker.get_default_base_job_template()
        pool = client.create_work_pool(
            WorkPoolCreate(
                name=POOL, type="process", description="Runs flows as processes.", base_job_template=template
            )
        )
    if pool.type != "process":
        raise TerminalError(
            f"the work pool {POOL} of this Prefect server is of type {pool.type}, not process: rename or remove it"
        )
    for queue in QUEUES:
        present = {found.name: found for found in client.read_work_queues(work_pool_name=POOL)}
        found = present.get(queue.name)
        if found is None:
            client.create_work_queue(
                queue.name, priority=queue.priority, concurrency_limit=queue.concurrency_limit, work_pool_name=POOL
            )
        elif (found.priority, found.concurrency_limit) != (queue.priority, queue.concurrency_limit):
            client.update_work_queue(found.id, priority=queue.priority, concurrency_limit=queue.concurrency_limit)


def _find_pool(client: SyncPrefectClient) -> WorkPool | None:
    try:
        return client.read_work_pool(POOL)
    except ObjectNotFound:
        return None


def _deploy(settings: Settings, url: str) -> None:
    """Create or update all deployments of prefect.yaml; a schedule that was paused stays paused."""
    command = [sys.executable, "-P", "-m", "prefect", "deploy", "--all", "--no-prompt"]
    done = subprocess.run(
        command, cwd=_ROOT, env=_environment(settings, url), capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode != 0:
        said = "\n".join([*done.stdout.splitlines(), *done.stderr.splitlines()][-15:])
        raise TerminalError(f"`prefect deploy --all` failed with code {done.returncode}:\n{said}")


def _deployment_names(client: SyncPrefectClient) -> list[str]:
    found = client.read_deployments(
        deployment_filter=DeploymentFilter(), work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    )
    flows: dict[UUID, str] = {flow_id: client.read_flow(flow_id).name for flow_id in {item.flow_id for item in found}}
    return sorted(f"{flows[item.flow_id]}/{item.name}" for item in found)


# -- the worker -----------------------------------------------------------------------------------------------


def _worker(settings: Settings, url: str) -> LocalServer:
    """Return the worker as a local server: its port is that of its health check."""
    folder = settings.home.resolve() / "worker"
    # -P: a file that lies in the working folder is never imported.
    command = [
        *(sys.executable, "-P", "-m", "prefect", "worker", "start"),
        *("--pool", POOL, "--type", "process", "--limit", str(WORKER_LIMIT)),
        *("--name", _worker_name(settings.home), "--with-healthcheck"),
    ]
    return LocalServer(
        label="worker",
        folder=folder,
        log_name="worker.log",
        command=lambda port: command,
        environment=lambda port: (
            _environment(settings, url)
            | {"PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1", "PREFECT_WORKER_WEBSERVER_PORT": str(port)}
        ),
        is_ready=_is_polling,
        instead=f"start one by hand: prefect worker start --pool {POOL}",
        start_timeout_seconds=120.0,
        stop_timeout_seconds=30.0,
    )


def _ensure_worker(settings: Settings, url: str) -> None:
    """Start the worker, or replace one that was started with what no longer holds."""
    worker, wanted = _worker(settings, url), _wanted(url)
    if worker.is_running() and _noted(settings.home) != wanted:
        _stop_worker(settings.home, worker, url)
    worker.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _note(settings.home, wanted)
    with _interruptible_children(), worker.used(keep=True):
        pass


def _is_polling(port: int) -> bool:
    """Say whether the worker asked its server for work lately."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _worker_name(home: Path) -> str:
    """Return a name that stays and that no other home or machine has."""
    return f"{socket.gethostname()}-{hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:6]}"


def _environment(settings: Settings, url: str) -> dict[str, str]:
    """Return what a worker and its flows find in their environment: no setting and no key of this project."""
    named_by_user = settings.prefect_api_url is not None
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not (name.startswith(_PRIVATE_PREFIXES) or name.upper() in _PRIVATE_NAMES)
        or (named_by_user and name.startswith(_CLIENT_PREFIXES))
    }
    # A profile of the user's may name another server, and its credentials.
    local = {} if named_by_user else {"PREFECT_HOME": str(settings.home.resolve() / "worker")}
    return (
        inherited
        | local
        | {
            "PREFECT_API_URL": url,
            "CRYPTIQUE_HOME": str(settings.home),
            "CRYPTIQUE_ROOT": str(_ROOT),
            "PREFECT_WORKER_QUERY_SECONDS": str(_LOOK_FOR_WORK_SECONDS),
            # The automation that finds runs whose process died without a word waits for these.
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PYTHONUNBUFFERED": "1",
            "DO_NOT_TRACK": "1",
        }
    )


def _wanted(url: str) -> dict[str, str | int]:
    """Return what a running worker can't change any more: one that differs is replaced."""
    return {"prefect_api_url": url, "root": str(_ROOT), "python": sys.executable, "limit": WORKER_LIMIT}


def _noted(home: Path) -> object:
    try:
        return json.loads((home / "worker" / "started_with.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _note(home: Path, wanted: dict[str, str | int]) -> None:
    (home / "worker" / "started_with.json").write_text(json.dumps(wanted) + "\n", "utf-8")


@contextmanager
def _interruptible_children() -> Iterator[None]:
    """Let SIGINT reach what is started within, also from a shell's background job, whose children ignore it.

    Prefect's worker turns SIGTERM into a SIGINT to itself: one that ignores it can only be killed.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stop_worker(home: Path, worker: LocalServer, url: str | None) -> bool:
    """Stop the worker and its runs. Prefect's worker kills its runs when it ends, and they stay Running for ever.

    So they are cancelled first, which lets them end in order, and afterwards none is left without an end.
    """
    if not worker.is_running():
        return False
    if url is None:
        return worker.stop()
    name = _worker_name(home)
    with talking_to(url), get_client(sync_client=True) as client:
        _cancel_runs(client, name)
        stopped = worker.stop()
        for run in _runs_of(client, name):
            client.set_flow_run_state(run.id, Cancelled(message="killed with its worker by `down`"), force=True)
    return stopped


def _cancel_runs(client: SyncPrefectClient, worker: str) -> None:
    """Cancel the worker's runs and wait until they ended, for a minute at most."""
    asked: set[UUID] = set()
    deadline = time.monotonic() + _STOP_RUNS_SECONDS
    while (runs := _runs_of(client, worker)) and time.monotonic() < deadline:
        for run in runs:
            if run.id not in asked:
                client.set_flow_run_state(run.id, Cancelling(message="its worker is stopped by `down`"))
                asked.add(run.id)
        time.sleep(0.5)


def _runs_of(client: SyncPrefectClient, worker: str) -> list[FlowRun]:
    found = client.read_flow_runs(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED))),
    )
    return [run for run in found if run.labels.get("prefect.worker.name") == worker]
