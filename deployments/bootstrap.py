"""What a Prefect server must be told before it is of use: pool, queues, blocks, deployments, automations."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.objects import WorkPool
from prefect.exceptions import ObjectNotFound

from deployments.automations import register_automations
from deployments.local_services import talking_to
from deployments.register_blocks import protect_home, register_blocks
from deployments.settings import Settings
from deployments.work_pool import POOL, PROJECT, queues, worker_environment
from tasks.domain.errors import InputError, TerminalError

_SERVER_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Registered:
    """What the server knows afterwards, by name."""

    blocks: list[str]
    deployments: list[str]
    automations: list[str]


def bootstrap(settings: Settings) -> Registered:
    """Tell the Prefect server of the settings all it must know, once it answers; return what that is.

    Safe to repeat: what differs is corrected, and a schedule that was paused stays paused. Settings that no server of
    several machines can work with (the embedded mongod) raise ``InputError``; a server that doesn't answer within two
    minutes raises ``TerminalError``.
    """
    if settings.prefect_api_url is None:
        raise InputError("PREFECT_API_URL is not set: say which Prefect server to set up; for this machine: make up")
    if settings.embedded:
        raise InputError("CRYPTIQUE_SOURCE_URI is not set: workers need a MongoDB that they can reach")
    require_project()
    protect_home(settings.home)
    with talking_to(settings.prefect_api_url), get_client(sync_client=True) as client:
        _wait_for_server(client, settings.prefect_api_url)
        ensure_pool(client, child_runs=settings.cryptique_child_runs)
        environment = worker_environment(os.environ) | {"PREFECT_API_URL": settings.prefect_api_url}
        return register(settings, environment)


def register(settings: Settings, environment: Mapping[str, str], *, embedded_uri: str | None = None) -> Registered:
    """Save blocks, deployments and automations with the Prefect server in use; the pool must be there.

    ``environment`` is for Prefect's own command, which makes the deployments: it names the same server.
    """
    blocks = register_blocks(settings, embedded_uri=embedded_uri)
    _deploy(environment)
    automations = register_automations(settings)
    with get_client(sync_client=True) as client:
        return Registered(blocks, _deployment_names(client), automations)


def require_project() -> None:
    """Raise ``TerminalError`` where there is only the package and not the project, whose prefect.yaml is needed."""
    if not (PROJECT / "prefect.yaml").is_file():
        raise TerminalError(
            f"there is no prefect.yaml in {PROJECT}: this runs from a clone of the project, installed by `make setup`"
        )


def ensure_pool(client: SyncPrefectClient, *, child_runs: int) -> None:
    """Make the process work pool and its queues, or correct the queues; a pool that was paused stays paused."""
    pool = _find_pool(client)
    if pool is None:
        from prefect.workers.process import ProcessWorker  # slow to import, and rarely needed

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
    for queue in queues(child_runs):
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


def _wait_for_server(client: SyncPrefectClient, url: str) -> None:
    deadline = time.monotonic() + _SERVER_SECONDS
    while (error := client.api_healthcheck()) is not None:
        if time.monotonic() > deadline:
            raise TerminalError(
                f"the Prefect server at {url} does not answer: look at its log; is PREFECT_API_URL right?"
            ) from error
        time.sleep(1.0)


def _deploy(environment: Mapping[str, str]) -> None:
    """Create or update all deployments of prefect.yaml; a schedule that was paused stays paused."""
    command = [sys.executable, "-P", "-m", "prefect", "deploy", "--all", "--no-prompt"]
    done = subprocess.run(
        command, cwd=PROJECT, env=dict(environment), capture_output=True, text=True, timeout=300, check=False
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
