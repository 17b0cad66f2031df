"""A worker of its own, with Gemini and Slack on loopback: shared work, pauses, ends in order, ends without a word."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from bson.codec_options import CodecOptions
from pymongo import MongoClient
from pymongo.database import Database

from deployments.embedded import _process_started
from deployments.sample import load_sample
from deployments.settings import DEMO_DATABASE
from tests.end_to_end.pipeline import comparable, wait_for
from tests.end_to_end.test_alerts import said
from tests.end_to_end.test_cli import run
from tests.end_to_end.test_up import DONE, Place
from tests.loopback.gemini import LoopbackGemini
from tests.loopback.slack import LoopbackSlack

Record = dict[str, Any]

#: Ten shards, the second partition of which has two; each shard is one request.
ROWS, SHARD_ROWS = 1_000, 100
BY_SHARD: Record = {"shard_rows": SHARD_ROWS, "shards_in_flight": 1}
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
CHECK = "transaction"
SCHEDULED = ("ingest", "reconcile")


@pytest.fixture(scope="module")
def gemini() -> Iterator[LoopbackGemini]:
    with LoopbackGemini() as server:
        yield server


@pytest.fixture(scope="module")
def slack() -> Iterator[LoopbackSlack]:
    with LoopbackSlack() as server:
        yield server


@pytest.fixture(scope="module")
def settings(gemini: LoopbackGemini, slack: LoopbackSlack) -> dict[str, str]:
    return {
        "CRYPTIQUE_EMBEDDER": "gemini",
        "GEMINI_API_KEY": gemini.api_key,
        "GEMINI_BASE_URL": gemini.url,
        "CRYPTIQUE_GEMINI_DIMENSIONS": "64",
        "CRYPTIQUE_GEMINI_CONCURRENCY": "1",
        "CRYPTIQUE_GEMINI_TEXTS_PER_MINUTE": "100000",
        "CRYPTIQUE_GEMINI_TOKENS_PER_MINUTE": "10000000",
        "SLACK_WEBHOOK_URL": slack.url,
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, str]) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("worker") / "home"
    place = None
    try:
        place = Place(home, **settings)
        for name in SCHEDULED:
            found = place.deployment(name)
            place.change(f"/deployments/{found['id']}/schedules/{found['schedules'][0]['id']}", active=False)
        yield place
    finally:
        run(home, "down", **settings)


@pytest.fixture(scope="module")
def database(place: Place) -> Iterator[Database[Record]]:
    with MongoClient[Record](place.standing["mongo_uri"], tz_aware=True) as client:
        load_sample(client[DEMO_DATABASE], rows=ROWS)
        yield client.get_database(DEMO_DATABASE, codec_options=CodecOptions(tz_aware=True))


def end_scheduled_runs(place: Place) -> None:
    """End what the schedules started before they were paused."""
    ids = [place.deployment(name)["id"] for name in SCHEDULED]
    unfinished = {"flow_runs": {"deployment_id": {"any_": ids}, "state": {"type": {"not_any_": ENDED}}}}

    def look() -> bool | None:
        runs = place.ask("POST", "/flow_runs/filter", unfinished).raise_for_status().json()
        for one in runs:
            if one["state_type"] == "SCHEDULED":
                place.ask("DELETE", f"/flow_runs/{one['id']}")
            elif one["state_type"] == "RUNNING":
                cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
                place.ask("POST", f"/flow_runs/{one['id']}/set_state", cancelling)
        return None if runs else True

    wait_for(look, what="the end of scheduled runs", seconds=120)


@pytest.fixture
def empty(place: Place, database: Database[Record], gemini: LoopbackGemini, slack: LoopbackSlack) -> Database[Record]:
    """The source as it is, nothing stored of it, nothing asked and nothing told so far."""
    end_scheduled_runs(place)
    for name in ("vectordocuments", "embeddingjobs", "deadletters", "ragcheckpoints", "ragincidents", "ragstore"):
        if name in database.list_collection_names():
            database[name].delete_many({})
    gemini.faults = ()
    gemini.embedded.clear()
    slack.requests.clear()
    return database


def documents(database: Database[Record]) -> dict[str, Record]:
    return comparable({row["documentId"]: row for row in database.vectordocuments.find({})}, "version")


@pytest.fixture(scope="module")
def undisturbed(place: Place, database: Database[Record], gemini: LoopbackGemini) -> dict[str, Record]:
    """What a migration without any trouble stores."""
    end_scheduled_runs(place)
    for name in ("vectordocuments", "embeddingjobs"):
        database[name].delete_many({})
    state = place.wait(place.create_run("migrate", BY_SHARD), *ENDED)
    assert state["type"] == "COMPLETED", state["message"]
    return documents(database)


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


# -- work that is shared -----------------------------------------------------------------------------------------


def test_a_migration_shared_by_child_runs_stores_what_one_process_stores(
    place: Place, undisturbed: dict[str, Record], empty: Database[Record], gemini: LoopbackGemini
) -> None:
    parent = place.create_run("migrate", {**BY_SHARD, "child_runs": 2})
    state = place.wait(parent, *ENDED)
    assert state["type"] == "COMPLETED", state["message"]
    assert documents(empty) == undisturbed
    assert set(paid(gemini).values()) == {1}
    jobs = {job["jobId"].rpartition("-")[2]: job for job in empty.embeddingjobs.find({"metadata.tags": "partition"})}
    assert sorted(jobs) == ["0000", "0001"]
    assert {job["status"] for job in jobs.values()} == {"completed"}
    assert sum(job["progress"]["processed"] for job in jobs.values()) == ROWS
    (load,) = empty.embeddingjobs.find({"metadata.tags": "migrate"})
    assert (load["status"], load["progress"]["processed"]) == ("completed", ROWS)


def test_a_partition_whose_process_dies_is_taken_up_by_another_child(
    place: Place,
    undisturbed: dict[str, Record],
    empty: Database[Record],
    gemini: LoopbackGemini,
    slack: LoopbackSlack,
) -> None:
    held = Held(gemini, 4)
    parent = place.create_run("migrate", {**BY_SHARD, "child_runs": 1})
    held.wait()
    (job,) = empty.embeddingjobs.find({"metadata.tags": "partition", "status": "processing"})
    dead = job["metadata"]["runId"]
    os.kill(int(job["workerId"].split(":")[1]), signal.SIGKILL)
    held.let_go.set()
    state = place.wait(parent, *ENDED)
    assert state["type"] == "COMPLETED", state["message"]
    assert documents(empty) == undisturbed
    assert set(paid(gemini).values()) == {1}
    job = empty.embeddingjobs.find_one({"jobId": job["jobId"]}) or {}
    assert (job["status"], job["retryConfig"]["retryCount"]) == ("completed", 1)
    assert job["metadata"]["runIds"] != [dead]
    # Nobody is called for what mended itself; and a load that crashes next is told of, as a later test shows.
    assert slack.requests == []


# -- pauses ------------------------------------------------------------------------------------------------------


def test_a_run_pauses_while_the_days_quota_is_spent_and_goes_on_by_itself(
    place: Place, undisturbed: dict[str, Record], empty: Database[Record], gemini: LoopbackGemini
) -> None:
    first = len(gemini.requests) + 4
    gemini.faults = lambda index: "429-day" if index >= first else None
    paused = place.create_run("migrate", BY_SHARD)
    state = place.wait(paused, "AwaitingQuota", *ENDED)
    assert (state["type"], state["name"]) == ("SCHEDULED", "AwaitingQuota"), state["message"]
    until = datetime.fromisoformat(state["state_details"]["scheduled_time"])
    assert datetime.now(UTC) < until < datetime.now(UTC) + timedelta(hours=25)
    assert f"{until:%Y-%m-%d %H:%M} UTC" in state["message"]
    assert "goes on by itself" in state["message"]
    (job,) = empty.embeddingjobs.find({})
    assert job["status"] == "retrying"
    assert 0 < job["progress"]["processed"] < ROWS
    assert abs(job["retryConfig"]["nextRetryAt"] - until) < timedelta(seconds=1)
    # The day is over: the quota is there again, and so is the run's time.
    gemini.faults = ()
    empty.ragstore.delete_many({"_id": {"$regex": "spending"}})
    scheduled = {
        "type": "SCHEDULED",
        "name": "AwaitingQuota",
        "state_details": {"scheduled_time": str(datetime.now(UTC))},
    }
    place.ask("POST", f"/flow_runs/{paused}/set_state", {"state": scheduled, "force": True}).raise_for_status()
    state = place.wait(paused, *ENDED)
    assert state["type"] == "COMPLETED", state["message"]
    assert documents(empty) == undisturbed
    assert set(paid(gemini).values()) == {1}


def test_a_run_waits_at_its_budget_until_somebody_resumes_it(
    place: Place, undisturbed: dict[str, Record], empty: Database[Record], gemini: LoopbackGemini
) -> None:
    rehearsed = place.wait(place.create_run("migrate", {**BY_SHARD, "dry_run": True}), *ENDED)
    found = re.search(r"\$([0-9.]+)", rehearsed["message"])
    assert found is not None
    budget = float(found[1]) * 0.6
    waiting = place.create_run("migrate", {**BY_SHARD, "budget_usd": budget})
    state = place.wait(waiting, "PAUSED", *ENDED)
    assert (state["type"], state["name"]) == ("PAUSED", "BudgetSpent"), state["message"]
    assert f"/flow_runs/{waiting}/resume" in state["message"]
    (job,) = empty.embeddingjobs.find({})
    assert job["status"] == "retrying"
    assert 0 < job["results"]["totalCost"] <= budget
    place.ask("POST", f"/flow_runs/{waiting}/resume", {}).raise_for_status()
    state = place.wait(waiting, *ENDED)
    assert state["type"] == "COMPLETED", state["message"]
    assert documents(empty) == undisturbed
    assert set(paid(gemini).values()) == {1}


# -- ends --------------------------------------------------------------------------------------------------------


def test_a_cancelled_run_ends_in_order_and_the_same_work_goes_on_later(
    place: Place, undisturbed: dict[str, Record], empty: Database[Record], gemini: LoopbackGemini
) -> None:
    held = Held(gemini, 4)
    cancelled = place.create_run("migrate", BY_SHARD)
    held.wait()
    cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True}
    place.ask("POST", f"/flow_runs/{cancelled}/set_state", cancelling).raise_for_status()
    held.let_go.set()
    assert place.wait(cancelled, *ENDED)["type"] == "CANCELLED"
    job = wait_for(lambda: empty.embeddingjobs.find_one({"status": "cancelled"}), what="the job's end")
    assert 0 < job["progress"]["processed"] < ROWS
    # What is stored is stored whole: checkpoints and vectors say the same.
    checkpoints = list(empty.ragcheckpoints.find({}))
    assert sum(len(row["recordIds"]) // 12 for row in checkpoints) == len(empty.vectordocuments.distinct("sourceId"))
    state = place.wait(place.create_run("migrate", BY_SHARD), *ENDED)
    assert state["type"] == "COMPLETED", state["message"]
    assert documents(empty) == undisturbed
    assert set(paid(gemini).values()) == {1}


def test_a_worker_that_is_stopped_hands_its_run_back_and_the_next_one_goes_on_with_it(
    place: Place,
    undisturbed: dict[str, Record],
    empty: Database[Record],
    gemini: LoopbackGemini,
    slack: LoopbackSlack,
    settings: dict[str, str],
) -> None:
    held = Held(gemini, 4)
    handed_back = place.create_run("migrate", BY_SHARD)
    held.wait()
    worker = place.processes()["worker"]
    os.kill(worker, signal.SIGTERM)
    held.let_go.set()
    wait_for(lambda: True if _process_started(worker) is None else None, what="the worker's end", seconds=120)
    assert place.wait(handed_back, "AwaitingRetry", *ENDED)["type"] == "SCHEDULED"
    again = run(place.home, "up", "--json", **settings)
    assert again.returncode == DONE, again.stderr
    state = place.wait(handed_back, *ENDED)
    assert state["type"] == "COMPLETED", state["message"]
    assert documents(empty) == undisturbed
    assert set(paid(gemini).values()) == {1}
    assert slack.requests == []


def test_a_worker_that_is_killed_is_told_of_once_and_its_run_goes_on_where_it_was(
    place: Place,
    undisturbed: dict[str, Record],
    empty: Database[Record],
    gemini: LoopbackGemini,
    slack: LoopbackSlack,
    settings: dict[str, str],
) -> None:
    held = Held(gemini, 4)
    killed = place.create_run("migrate", BY_SHARD)
    held.wait()
    worker = place.processes()["worker"]
    for pid in [worker, *children_of(worker)]:  # as when a machine loses its power
        os.kill(pid, signal.SIGKILL)
    held.let_go.set()
    began = datetime.now(UTC)
    again = run(place.home, "up", "--json", **settings)
    assert again.returncode == DONE, again.stderr
    state = place.wait(killed, *ENDED)
    assert state["type"] == "CRASHED"
    assert datetime.fromisoformat(state["timestamp"]) - began < timedelta(minutes=2)

    def told() -> list[str] | None:
        return [said(posted) for posted in slack.requests] or None

    (message,) = wait_for(told, what="the message", seconds=90)
    assert "A run crashed" in message
    assert f"prefect flow-run retry {killed}" in message
    retry = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
    place.ask("POST", f"/flow_runs/{killed}/set_state", retry).raise_for_status()
    state = place.wait(killed, "COMPLETED", "FAILED", "CANCELLED")
    assert state["type"] == "COMPLETED", state["message"]
    assert documents(empty) == undisturbed
    assert set(paid(gemini).values()) == {1}
    assert len([posted for posted in slack.requests if "crashed" in said(posted)]) == 1


# -- what can't be meant -----------------------------------------------------------------------------------------


def expect_refusal(place: Place, name: str, parameters: Record) -> Callable[[], str]:
    started = place.create_run(name, parameters)

    def message() -> str:
        state = place.wait(started, *ENDED)
        assert state["type"] == "FAILED", (name, parameters, state)
        return str(state["message"])

    return message


def test_every_deployment_refuses_what_cannot_be_meant(place: Place, empty: Database[Record]) -> None:
    for name, parameters in (
        ("backfill", {"limit": -1}),
        ("backfill", {"rebuild": "nothing"}),
        ("backfill", {"budget_usd": -2}),
        ("migrate", {"child_runs": 99}),
        ("replay", {"older_than_hours": -1}),
        ("reconcile", {"shard_rows": 0}),
        ("partition", {"run_key": "", "number": 0, "load_run": "nobody"}),
    ):
        refused = place.create(name, parameters)
        assert refused.status_code == httpx.codes.CONFLICT, (name, parameters)
    backwards = {"start": "2025-06-01T00:00:00Z", "end": "2025-01-01T00:00:00Z"}
    expected = [
        (expect_refusal(place, "backfill", backwards), "exchange them, or leave one out"),
        (expect_refusal(place, "backfill", {"stored_describer": 99}), "is newer than this code"),
        (expect_refusal(place, "replay", {"reasons": ["rumour"]}), "no open dead letter has the reason rumour"),
        (
            expect_refusal(place, "partition", {"run_key": "nowhere", "number": 3, "load_run": "nobody"}),
            "there is no load nowhere",
        ),
    ]
    for message, says in expected:
        assert says in message()
    assert empty.embeddingjobs.count_documents({}) == 0
