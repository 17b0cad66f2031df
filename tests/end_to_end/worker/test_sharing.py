"""Work that is shared by child runs, and runs that pause and go on."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr
from pymongo.database import Database

from blocks.vector_store import VectorStore
from tasks.domain.generations import FIRST, Generation
from tests.end_to_end.pipeline import comparable
from tests.end_to_end.test_up import Place
from tests.end_to_end.worker.work import BY_SHARD, ENDED, ROWS, Held, Record, documents, paid
from tests.loopback.gemini import LoopbackGemini
from tests.loopback.slack import LoopbackSlack

# -- work that is shared -----------------------------------------------------------------------------------------


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
def test_child_runs_work_on_the_generation_of_their_load_whatever_is_live(
    place: Place, undisturbed: dict[str, Record], empty: Database[Record]
) -> None:
    store = VectorStore(uri=SecretStr(place.standing["mongo_uri"]), database=empty.name, embedder="gemini")
    first = Generation(FIRST, "gemini", "gemini-embedding-001", 64, "RETRIEVAL_DOCUMENT", "float32")
    store.begin_generation(replace(first, name="next"), first=first, now=datetime.now(UTC))
    parent = place.create_run("migrate", {**BY_SHARD, "child_runs": 2, "generation": "next"})
    state = place.wait(parent, *ENDED)
    assert state["type"] == "COMPLETED", state["message"]
    built = {row["documentId"]: row for row in empty.vectordocuments_next.find({})}
    assert comparable(built, "version") == undisturbed
    assert documents(empty) == {}
    jobs = list(empty.embeddingjobs.find({"metadata.tags": "partition"}))
    assert sum(job["progress"]["processed"] for job in jobs) == ROWS
    assert {job["metadata"]["choices"]["generation"] for job in jobs} == {"next"}
    store.close()
    for name in ("vectordocuments_next", "deadletters_next"):
        empty.drop_collection(name)


# -- pauses ------------------------------------------------------------------------------------------------------


@pytest.mark.long
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


@pytest.mark.long
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
