"""Left running: `cryptique-rag up` in a home of its own, runs through the API and its worker, `down`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from pymongo import MongoClient
from pymongo.database import Database

from deployments.embedded import _process_started
from deployments.sample import load_sample
from deployments.settings import DEMO_DATABASE
from deployments.work_pool import POOL, queues
from tests.end_to_end.pipeline import wait_for
from tests.end_to_end.test_cli import run

Record = dict[str, Any]

ROWS = 200
SERVERS = ("mongod", "prefect", "worker")
#: The key stays with the blocks: no process that `up` starts for flows may have it in its environment.
SETTINGS = {"GEMINI_API_KEY": "planted-key", "CRYPTIQUE_EMBEDDER": "local"}
BACKWARDS: Record = {"start": "2025-06-01T00:00:00Z", "end": "2025-01-01T00:00:00Z"}
OF_A_STRANGER: Record = {"teams": ["0" * 24]}
AT_WORK: Record = {"max_seconds": 600}
DONE = 0


class Place:
    """What `up` left running, seen through the Prefect server's API."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        done = run(home, "up", "--json", **settings)
        assert done.returncode == DONE, done.stderr
        self.standing: Record = json.loads(done.stdout)
        self.is_left = True
        self._runs: dict[str, str] = {}
        self.api = httpx.Client(base_url=self.standing["prefect_api_url"], timeout=30, trust_env=False)

    @property
    def work(self) -> Path:
        return self.home / "work"

    def processes(self) -> dict[str, int]:
        return {name: json.loads((self.work / name / "server.json").read_text())["pid"] for name in SERVERS}

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Return the answer, asked for again while the server's SQLite is busy; Prefect's own client does the same."""

        def look() -> httpx.Response | None:
            answer = self.api.request(method, path, json=body)
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

        return wait_for(look, what=f"an answer to {method} {path}")

    def read(self, path: str) -> Any:
        return self.ask("GET", path).raise_for_status().json()

    def change(self, path: str, **values: Any) -> None:
        self.ask("PATCH", path, values).raise_for_status()

    def deployment(self, name: str) -> Record:
        found: Record = self.read(f"/deployments/name/{name.partition('-')[0]}/{name}")
        return found

    def create(self, name: str, parameters: Record) -> httpx.Response:
        path = f"/deployments/{self.deployment(name)['id']}/create_flow_run"
        return self.ask("POST", path, {"parameters": parameters})

    def start(self, name: str, parameters: Record) -> str:
        """Return the id of the run with these parameters, created at the first call."""
        key = json.dumps([name, parameters])
        if key not in self._runs:
            self._runs[key] = self.create_run(name, parameters)
        return self._runs[key]

    def create_run(self, name: str, parameters: Record) -> str:
        """Return the id of a new run."""
        created = self.create(name, parameters)
        assert created.is_success, created.text
        return str(created.json()["id"])

    def end_what_was_scheduled(self) -> None:
        """End the runs that schedules began before they were paused, if any did."""
        under_way = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}}}
        for one in self.ask("POST", "/flow_runs/filter", under_way).raise_for_status().json():
            state = {"type": "CANCELLING" if one["state_type"] == "RUNNING" else "CANCELLED"}
            self.ask("POST", f"/flow_runs/{one['id']}/set_state", {"state": state, "force": True})
            self.wait(one["id"], "CANCELLED", "COMPLETED", "FAILED", "CRASHED")

    def wait(self, flow_run: str, *wanted: str) -> Record:
        """Return the run's state once it has one of these types or names."""

        def look() -> Record | None:
            state: Record = self.read(f"/flow_runs/{flow_run}")["state"]
            return state if state["type"] in wanted or state["name"] in wanted else None

        return wait_for(look, what=f"{' or '.join(wanted)} of run {flow_run}", seconds=180)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("up") / "home"
    place = None
    try:
        place = Place(home, **SETTINGS)
        # Their schedules would start them in the middle of a test.
        for name in ("ingest", "ingest-sites", "aggregate", "monitor", "rollup"):
            found = place.deployment(name)
            place.change(f"/deployments/{found['id']}/schedules/{found['schedules'][0]['id']}", active=False)
        place.end_what_was_scheduled()
        yield place
    finally:
        if place is None or place.is_left:
            run(home, "down")


@pytest.fixture(scope="module")
def source(place: Place) -> Iterator[Database[Record]]:
    with MongoClient[Record](place.standing["mongo_uri"], tz_aware=True) as client:
        load_sample(client[DEMO_DATABASE], rows=ROWS)
        yield client[DEMO_DATABASE]


@pytest.fixture(scope="module")
def first_run(place: Place, source: Database[Record]) -> str:
    return place.start("migrate", {"limit": 50})


def test_the_pool_has_its_queues_in_their_order_and_a_worker(place: Place, first_run: str) -> None:
    assert place.read(f"/work_pools/{POOL}")["type"] == "process"
    for queue in queues():
        found = place.read(f"/work_pools/{POOL}/queues/{queue.name}")
        assert (found["priority"], found["concurrency_limit"]) == (queue.priority, queue.concurrency_limit)
    workers = place.ask("POST", f"/work_pools/{POOL}/workers/filter", {}).raise_for_status().json()
    assert [(worker["name"], worker["status"]) for worker in workers] == [(place.standing["worker"], "ONLINE")]
    assert {"migrate/migrate", "initialise/initialise"} <= set(place.standing["deployments"])
    for pid in place.processes().values():
        environment = Path(f"/proc/{pid}/environ")
        assert not environment.exists() or b"planted-key" not in environment.read_bytes()


def test_a_run_that_the_api_creates_is_done_by_the_worker(
    place: Place, source: Database[Record], first_run: str
) -> None:
    state = place.wait(first_run, "COMPLETED", "FAILED", "CRASHED")
    assert state["type"] == "COMPLETED", state["message"]
    job = source.embeddingjobs.find_one({"metadata.tags": "migrate"})
    assert job is not None
    assert (job["status"], job["progress"]["processed"]) == ("completed", 50)
    assert 0 < len(source.vectordocuments.distinct("sourceId")) <= 50


@pytest.mark.long
def test_a_second_up_repairs_what_differs_and_leaves_the_rest(place: Place) -> None:
    before, migrate = place.processes(), place.deployment("migrate")
    bulk = place.read(f"/work_pools/{POOL}/queues/bulk")
    place.change(f"/work_pools/{POOL}/queues/bulk", priority=3)
    place.start("migrate", BACKWARDS)  # looked at below; the worker goes on meanwhile
    again = run(place.home, "up", "--json", **SETTINGS)
    assert again.returncode == DONE, again.stderr
    assert json.loads(again.stdout) == place.standing
    assert place.processes() == before
    assert place.read(f"/work_pools/{POOL}/queues/bulk")["priority"] == bulk["priority"]
    assert place.deployment("migrate")["id"] == migrate["id"]
    assert [schedule["active"] for schedule in place.deployment("ingest")["schedules"]] == [False]


def test_a_parameter_that_no_run_can_have_is_refused_when_the_run_is_created(place: Place) -> None:
    for name, parameters in (
        ("migrate", {"limit": -1}),
        ("migrate", {"sources": ["rumours"]}),
        ("migrate", {"teams": ["not an id"]}),
        ("ingest", {"max_seconds": 0}),
    ):
        refused = place.create(name, parameters)
        assert refused.status_code == httpx.codes.CONFLICT
        assert next(iter(parameters)) in refused.text


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (BACKWARDS, "exchange them, or leave one out"),
        (OF_A_STRANGER, "no contract belongs to team"),
    ],
)
@pytest.mark.long
def test_what_only_the_source_can_tell_is_refused_before_any_work_and_said_in_the_run(
    place: Place, source: Database[Record], parameters: Record, says: str
) -> None:
    odd = place.start("migrate", parameters)
    if parameters is OF_A_STRANGER:
        place.start("ingest", AT_WORK)  # looked at below: its queue doesn't wait for this one
    state = place.wait(odd, "COMPLETED", "FAILED", "CRASHED")
    assert state["type"] == "FAILED"
    assert says in state["message"]
    assert source.embeddingjobs.count_documents({"metadata.runId": odd}) == 0


def test_down_ends_the_run_at_work_and_every_process(place: Place, source: Database[Record]) -> None:
    at_work = place.start("ingest", AT_WORK)
    place.wait(at_work, "RUNNING")
    pids = place.processes()
    run_pid = int(place.read(f"/flow_runs/{at_work}")["infrastructure_pid"].rpartition(":")[2])
    assert _process_started(run_pid)
    source.client.close()  # later it would look for its server for half a minute
    done = run(place.home, "down")
    assert done.stdout == "stopped: worker, local Prefect server, local mongod\n", done.stderr
    for pid in (*pids.values(), run_pid):
        assert _process_started(pid) is None
    with sqlite3.connect(place.work / "prefect" / "prefect.db") as records:
        [(state,)] = records.execute("SELECT state_type FROM flow_run WHERE id = ?", (str(UUID(at_work)),))
    assert state == "CANCELLED"
    place.is_left = False
    assert run(place.home, "down").stdout == "nothing was running\n"
