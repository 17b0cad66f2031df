"""What becomes of a run whose worker is stopped, and what a worker's environment holds."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect.client.schemas.objects import State, StateType

from deployments.settings import DEFAULT_CHILD_RUNS
from deployments.work_pool import PROJECT, child_runs_here, seconds_until_stopped, worker_environment
from deployments.worker import next_state
from tasks.domain.errors import InputError

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)


def history(*types: str) -> list[State]:
    return [State(type=StateType(name), timestamp=BEGAN + timedelta(seconds=at)) for at, name in enumerate(types)]


@pytest.mark.parametrize(
    "types",
    [
        ("SCHEDULED", "PENDING"),  # its process had not begun
        ("SCHEDULED", "PENDING", "RUNNING"),  # the engine left the state to its worker
        ("SCHEDULED", "PENDING", "RUNNING", "CRASHED"),  # it had to be killed
        ("RUNNING", "CANCELLING", "CANCELLED", "SCHEDULED", "PENDING", "RUNNING"),  # an earlier attempt was cancelled
    ],
    ids=lambda types: "-".join(types).lower(),
)
def test_a_run_that_is_not_done_is_scheduled_again(types: tuple[str, ...]) -> None:
    state = next_state(history(*types))
    assert state is not None
    assert (state.type, state.name) == (StateType.SCHEDULED, "AwaitingRetry")


@pytest.mark.parametrize("last", ["COMPLETED", "FAILED", "SCHEDULED", "PAUSED"])
def test_a_run_that_came_to_an_end_of_its_own_or_waits_for_a_person_is_left_so(last: str) -> None:
    assert next_state(history("SCHEDULED", "PENDING", "RUNNING", last)) is None


def test_a_run_that_the_server_cancelled_because_another_is_at_its_work_is_not_started_again() -> None:
    assert next_state(history("SCHEDULED", "PENDING", "CANCELLED")) is None


def test_a_run_that_somebody_cancelled_is_not_started_again() -> None:
    assert next_state(history("RUNNING", "CANCELLING", "CANCELLED")) is None
    between = next_state(history("RUNNING", "CANCELLING"))
    assert between is not None
    assert between.type is StateType.CANCELLED


def test_a_worker_keeps_what_it_was_given_and_knows_the_project() -> None:
    given = worker_environment({"PREFECT_WORKER_QUERY_SECONDS": "30", "PREFECT_API_URL": "http://server/api"})
    assert given["PREFECT_WORKER_QUERY_SECONDS"] == "30"
    assert given["PREFECT_API_URL"] == "http://server/api"
    assert given["CRYPTIQUE_ROOT"] == str(PROJECT)
    assert given["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"


def test_a_worker_takes_as_many_runs_as_the_child_runs_of_its_environment_need(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CRYPTIQUE_CHILD_RUNS", raising=False)
    # What else is wrong there is not the worker's: it uses none of it.
    monkeypatch.setenv("CRYPTIQUE_EMBEDDER", "gemini")
    assert child_runs_here() == DEFAULT_CHILD_RUNS
    monkeypatch.setenv("CRYPTIQUE_CHILD_RUNS", "none")
    with pytest.raises(InputError, match="CRYPTIQUE_CHILD_RUNS"):
        child_runs_here()
    # Nothing listens there: the worker says what it is before it asks for work.
    environment = os.environ | {"CRYPTIQUE_CHILD_RUNS": "4", "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    with subprocess.Popen(
        [Path(sys.executable).with_name("cryptique-rag"), "worker", "--name", "w"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stderr is not None
        try:
            said = next((line for line in worker.stderr if line.startswith("worker w: ")), None)
        finally:
            worker.kill()
    assert said == "worker w: up to 9 runs at once\n"


def test_who_stops_a_worker_waits_longer_than_its_runs_may_take() -> None:
    assert seconds_until_stopped(240.0) == 260
