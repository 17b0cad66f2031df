"""Leave the pipeline running on this machine: servers, blocks, work pool, deployments and one worker.

``up`` makes what is missing, corrects what differs and leaves the rest; ``down`` stops what ``up`` started. Servers
that the environment names are used, never started or stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import AwaitingRetry, Cancelled, Cancelling

from blocks.code_version import read_code_version
from deployments.admin_token import admin_token_path, find_or_make_admin_token
from deployments.bootstrap import ensure_pool, register, require_project
from deployments.embedded import LocalServer, running_prefect_server, stop_local_servers
from deployments.local_services import running_services, talking_to
from deployments.register_blocks import protect_home
from deployments.settings import Settings
from deployments.work_pool import POOL, PRIVATE_NAMES, PROJECT, seconds_until_stopped, worker_environment, worker_limit

#: On this machine somebody waits for it: a run has a minute to end, then it is killed and handed back.
_STOP_RUNS_SECONDS = 60.0
_UNFINISHED = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


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
    http_url: str
    #: Where the password of the operations pages lies, never the password.
    admin_password: str

    @property
    def monitoring_url(self) -> str:
        """Return where a browser sees how everything is."""
        return f"{self.http_url}/admin/monitoring"

    @property
    def ui_url(self) -> str:
        """Return where a browser sees it."""
        return self.prefect_api_url.removesuffix("/api")


def up(settings: Settings) -> Standing:
    """Make everything run and return what does. Safe to repeat: what is right stays, processes included.

    Raises ``TerminalError`` with what to do; what was started by then stays, and the next call goes on from there.
    """
    require_project()
    protect_home(settings.home)
    with running_services(settings, keep=True) as services:
        assert services.prefect_url is not None
        url = services.prefect_url
        with ThreadPoolExecutor(2) as beside:
            serving = beside.submit(_ensure_http, settings, url, services.mongo_uri)
            with get_client(sync_client=True) as client:
                ensure_pool(client, child_runs=settings.cryptique_child_runs)
            started = beside.submit(_ensure_worker, settings, url)  # as long as the deployments take: both at once
            registered = register(settings, _environment(settings, url), embedded_uri=services.mongo_uri)
            started.result()
            http_port = serving.result()
    return Standing(
        prefect_api_url=url,
        mongo_uri=services.mongo_uri,
        blocks=registered.blocks,
        deployments=registered.deployments,
        automations=registered.automations,
        worker=_worker_name(settings.home),
        logs=[str(path) for path in sorted(settings.home.glob("*/*.log"))],
        http_url=f"http://127.0.0.1:{http_port}",
        admin_password="CRYPTIQUE_ADMIN_TOKEN"
        if settings.cryptique_admin_token is not None
        else str(admin_token_path(settings.home)),
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
    http = _http(settings, {})
    stopped = [http.label] if http.stop() else []
    stopped += [worker.label] if _stop_worker(settings.home, worker, url, cancel_runs=True) else []
    return stopped + stop_local_servers(settings.home)


# -- the worker -----------------------------------------------------------------------------------------------


def _worker(settings: Settings, url: str) -> LocalServer:
    """Return the worker as a local server: its port is that of its health check."""
    # -P: a file that lies in the working folder is never imported.
    command = [
        *(sys.executable, "-P", "-c", "from deployments.cli import main; main()", "worker"),
        *("--name", _worker_name(settings.home), "--limit", str(worker_limit(settings.cryptique_child_runs))),
        *("--stop-seconds", str(_STOP_RUNS_SECONDS)),
    ]
    return LocalServer(
        label="worker",
        folder=settings.home.resolve() / "worker",
        log_name="worker.log",
        command=lambda port: command,
        environment=lambda port: (
            _environment(settings, url)
            | {"PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1", "PREFECT_WORKER_WEBSERVER_PORT": str(port)}
        ),
        is_ready=_is_polling,
        instead="start one by hand: cryptique-rag worker",
        start_timeout_seconds=120.0,
        stop_timeout_seconds=float(seconds_until_stopped(_STOP_RUNS_SECONDS)),
    )


def _ensure_worker(settings: Settings, url: str) -> None:
    """Start the worker, or replace one that was started with what no longer holds."""
    worker, wanted = _worker(settings, url), _wanted(settings, url)
    if worker.is_running() and _noted(settings.home) != wanted:
        _stop_worker(settings.home, worker, url, cancel_runs=False)
    worker.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _note(settings.home, wanted)
    with worker.used(keep=True):
        pass


# -- the HTTP service -----------------------------------------------------------------------------------------


def _http(settings: Settings, environment: dict[str, str]) -> LocalServer:
    """Return the HTTP service, which watches, as a local server."""
    command = [sys.executable, "-P", "-c", "from deployments.cli import main; main()", "serve", "--host", "127.0.0.1"]
    return LocalServer(
        label="HTTP service",
        folder=settings.home / "http",
        log_name="server.log",
        command=lambda port: [*command, "--port", str(port)],
        environment=lambda port: environment,
        is_ready=_answers,
        instead="start one by hand: cryptique-rag serve",
        preferred_port=settings.cryptique_http_port,
        start_timeout_seconds=120.0,
    )


def _ensure_http(settings: Settings, url: str, mongo_uri: str | None) -> int:
    """Start the service, or replace one that was started with other settings, and return its port."""
    inherited = {
        name: value for name, value in os.environ.items() if name.upper() not in PRIVATE_NAMES and name != "PYTHONPATH"
    }
    chosen = {
        **settings.as_environment(),
        "CRYPTIQUE_HOME": str(settings.home),
        "PREFECT_API_URL": url,
        "PYTHONPATH": str(PROJECT),
        "PYTHONUNBUFFERED": "1",
    }
    if mongo_uri is not None:
        chosen["CRYPTIQUE_SOURCE_URI"] = mongo_uri
    if settings.cryptique_admin_token is None and not settings.is_production:
        chosen["CRYPTIQUE_ADMIN_TOKEN"] = find_or_make_admin_token(settings.home)
    http = _http(settings, inherited | chosen)
    # A digest, for what it is of holds secrets.
    wanted = hashlib.sha256(json.dumps([chosen, sys.executable, read_code_version()]).encode()).hexdigest()
    note = http.folder / "started_with.txt"
    if http.is_running() and (not note.exists() or note.read_text("utf-8") != wanted):
        http.stop()
    http.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    note.write_text(wanted, "utf-8")
    with http.used(keep=True) as port:
        return port


def _answers(port: int) -> bool:
    """Say whether the service lives."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/live", timeout=5.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


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
    # A profile or a setting of the user's may name another server, and its credentials.
    inherited = {name: value for name, value in os.environ.items() if named_by_user or not name.startswith("PREFECT_")}
    local = {} if named_by_user else {"PREFECT_HOME": str(settings.home.resolve() / "worker")}
    places = {"PREFECT_API_URL": url, "CRYPTIQUE_HOME": str(settings.home), "CRYPTIQUE_ROOT": str(PROJECT)}
    return worker_environment(inherited) | local | places


def _wanted(settings: Settings, url: str) -> dict[str, str | int]:
    """Return what a running worker can't change any more: one that differs is replaced."""
    limit = worker_limit(settings.cryptique_child_runs)
    return {"prefect_api_url": url, "root": str(PROJECT), "python": sys.executable, "limit": limit}


def _noted(home: Path) -> object:
    try:
        return json.loads((home / "worker" / "started_with.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _note(home: Path, wanted: dict[str, str | int]) -> None:
    (home / "worker" / "started_with.json").write_text(json.dumps(wanted) + "\n", "utf-8")


def _stop_worker(home: Path, worker: LocalServer, url: str | None, *, cancel_runs: bool) -> bool:
    """Stop the worker. Its runs are cancelled, or handed back, so that the next worker goes on with them."""
    if not worker.is_running():
        return False
    if url is None:
        return worker.stop()
    name = _worker_name(home)
    with talking_to(url), get_client(sync_client=True) as client:
        if cancel_runs:
            _cancel_runs(client, name)
        stopped = worker.stop()
        # The worker sees to that itself, unless it had to be killed.
        for run in _runs_of(client, name):
            over: State = Cancelled(message="killed with its worker by `down`")
            again: State = AwaitingRetry(message="its worker was killed: the next one goes on with it")
            client.set_flow_run_state(run.id, over if cancel_runs else again, force=True)
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
