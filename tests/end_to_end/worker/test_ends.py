"""Ends in order, ends without a word, and work that cannot be meant."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from pymongo.database import Database

from deployments.embedded import _process_started
from tests.end_to_end.pipeline import wait_for
from tests.end_to_end.test_alerts import said
from tests.end_to_end.test_cli import run
from tests.end_to_end.test_up import DONE, Place
from tests.end_to_end.worker.work import BY_SHARD, ENDED, ROWS, Held, Record, children_of, documents, paid
from tests.loopback.gemini import LoopbackGemini
from tests.loopback.slack import LoopbackSlack

# -- ends --------------------------------------------------------------------------------------------------------


pytestmark = pytest.mark.long


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
