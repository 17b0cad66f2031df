"""The production set-up: Prefect on PostgreSQL and Redis, API and services apart, two workers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pymongo import MongoClient
from pymongo.database import Database

from deployments.embedded import _free_port
from deployments.sample import load_sample
from deployments.work_pool import POOL
from tests.end_to_end.pipeline import wait_for
from tests.end_to_end.production import COMMAND, Production, process, production

pytestmark = pytest.mark.long

Record = dict[str, Any]

ROWS = 3_000
SHARD_ROWS = 300
WORKERS = ("worker-1", "worker-2")
KEY = "planted-key"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    with production(tmp_path_factory.mktemp("production")) as running:
        yield running


@pytest.fixture(scope="module")
def source(mongo_client: MongoClient[Record]) -> Iterator[Database[Record]]:
    name = f"production_{uuid4().hex[:12]}"
    load_sample(mongo_client[name], rows=ROWS)
    yield mongo_client[name]
    mongo_client.drop_database(name)


@pytest.fixture(scope="module")
def registered(place: Production, mongo_uri: str, source: Database[Record]) -> Record:
    """What `cryptique-rag bootstrap` told the server."""
    settings = {
        "CRYPTIQUE_SOURCE_URI": mongo_uri,
        "CRYPTIQUE_SOURCE_DATABASE": source.name,
        "CRYPTIQUE_EMBEDDER": "local",
        "GEMINI_API_KEY": KEY,
    }
    done = subprocess.run(
        [COMMAND, "bootstrap", "--json"],
        cwd=place.folder,
        env=place.client_environment | settings,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: Record = json.loads(done.stdout)
    return told


@pytest.fixture(scope="module")
def workers(place: Production, registered: Record) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    ingest = place.read("/deployments/name/ingest/ingest")
    with ExitStack() as stack:
        started = {}
        for name in WORKERS:
            # As if somebody had given a worker the settings of the pipeline: its runs must not see them.
            environment = place.client_environment | {
                "PREFECT_WORKER_WEBSERVER_PORT": str(_free_port()),
                "GEMINI_API_KEY": KEY,
            }
            command = [COMMAND, "worker", "--name", name, "--limit", "1", "--stop-seconds", "60"]
            started[name] = stack.enter_context(process(place.folder / f"{name}.log", command, environment))
        # The scheduler is one of the services; what it plans must not get in between later.
        wait_for(lambda: scheduled(place, ingest["id"]) or None, what="a scheduled run of ingest", seconds=90)
        schedule = ingest["schedules"][0]["id"]
        path = f"/deployments/{ingest['id']}/schedules/{schedule}"
        place.api.patch(path, json={"active": False}).raise_for_status()
        wait_for(lambda: online(place) == set(WORKERS) or None, what="both workers", seconds=90)
        yield started


def scheduled(place: Production, deployment: str) -> int:
    filters = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    return int(place.ask("/flow_runs/count", filters))


def online(place: Production) -> set[str]:
    return {
        worker["name"] for worker in place.ask(f"/work_pools/{POOL}/workers/filter", {}) if worker["status"] == "ONLINE"
    }


def states(place: Production, flow_run: str) -> list[str]:
    found = httpx.QueryParams({"flow_run_id": flow_run})
    return [
        state["name"] for state in sorted(place.read(f"/flow_run_states/?{found}"), key=lambda one: one["timestamp"])
    ]


def test_nobody_is_let_in_without_the_password(place: Production) -> None:
    for auth in (None, ("admin", "wrong")):
        answer = httpx.post(f"{place.api_url}/flows/filter", json={}, auth=auth, trust_env=False, timeout=30)
        assert answer.status_code == httpx.codes.UNAUTHORIZED


def test_the_server_knows_its_blocks_deployments_and_queues(place: Production, registered: Record) -> None:
    assert {"ingest/ingest", "initialise/initialise", "migrate/migrate"} <= set(registered["deployments"])
    assert {"vectors", "source", "gemini"} <= {name.rpartition("/")[2] for name in registered["blocks"]}
    assert place.read(f"/work_pools/{POOL}")["type"] == "process"


def test_a_run_whose_worker_is_stopped_is_finished_by_the_other(
    place: Production, source: Database[Record], workers: dict[str, subprocess.Popen[bytes]]
) -> None:
    migrate = place.read("/deployments/name/migrate/migrate")["id"]
    parameters = {"shard_rows": SHARD_ROWS, "shards_in_flight": 1}
    run = place.ask(f"/deployments/{migrate}/create_flow_run", {"parameters": parameters})["id"]

    def first_vectors() -> bool | None:
        return source.vectordocuments.find_one({}) is not None or None

    wait_for(first_vectors, what="the first shard", seconds=120)
    first = place.read(f"/flow_runs/{run}")["labels"]["prefect.worker.name"]
    pid = int(place.read(f"/flow_runs/{run}")["infrastructure_pid"].rpartition(":")[2])
    environment = Path(f"/proc/{pid}/environ")
    assert not environment.exists() or KEY.encode() not in environment.read_bytes()
    workers[first].terminate()
    assert workers[first].wait(timeout=120) == 0, (place.folder / f"{first}.log").read_text()[-2_000:]
    written = source.vectordocuments.count_documents({})
    assert 0 < written < ROWS

    def ended() -> Record | None:
        found: Record = place.read(f"/flow_runs/{run}")
        return found if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    last = wait_for(ended, what="the end of the run", seconds=180)
    assert last["state_type"] == "COMPLETED", last["state"]["message"]
    assert last["labels"]["prefect.worker.name"] != first
    assert "AwaitingRetry" in states(place, run)
    assert "Crashed" not in states(place, run)
    job = source.embeddingjobs.find_one({})
    assert job is not None
    assert (job["status"], job["progress"]["processed"]) == ("completed", ROWS)


def test_the_services_have_recorded_every_task_run(
    place: Production, workers: dict[str, subprocess.Popen[bytes]]
) -> None:
    """They hear of task runs through Redis and write them to PostgreSQL, in another process than the API."""
    filters = {"task_runs": {"name": {"like_": "checkpoint"}, "state": {"type": {"any_": ["COMPLETED"]}}}}

    def recorded() -> int | None:
        count = int(place.ask("/task_runs/count", filters))
        return count if count >= ROWS // SHARD_ROWS else None

    wait_for(recorded, what="a task run for each shard's checkpoint", seconds=60)


def test_the_health_checks_tell_what_is_well_and_what_is_not(place: Production) -> None:
    for part in ("api", "services"):
        told = place.health(part)
        assert told.returncode == 0, told.stderr
    assert place.health("api", PREFECT_SERVER_API_PORT=str(_free_port())).returncode == 1
    nowhere = place.health("services", PREFECT_REDIS_MESSAGING_URL=f"redis://127.0.0.1:{_free_port()}/0")
    assert nowhere.returncode == 1
    assert "Redis" in nowhere.stderr
