"""What becomes of a run whose worker is stopped, and what a worker's environment holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from prefect.client.schemas.objects import State, StateType

from deployments.work_pool import PROJECT, seconds_until_stopped, worker_environment
from deployments.worker import next_state

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)


def history(*types: str) -> list[State]:
    return [State(type=StateType(name), timestamp=BEGAN + timedelta(seconds=at)) for at, name in enumerate(types)]


@pytest.mark.parametrize(
    "types",
    [
        ("SCHEDULED", "PENDING"),  # its process had not begun
        ("SCHEDULED", "PENDING", "RUNNING"),  # the engine left the state to its worker
        ("SCHEDULED", "PENDING", "RUNNING", "CRASHED"),  # it had to be killed
        ("SCHEDULED", "PENDING", "RUNNING", "CANCELLED"),  # the flow called its own end so; nobody asked for it
        ("RUNNING", "CANCELLING", "CANCELLED", "SCHEDULED", "PENDING", "RUNNING"),  # an earlier attempt was cancelled
    ],
    ids=lambda types: "-".join(types).lower(),
)
def test_a_run_that_is_not_done_is_scheduled_again(types: tuple[str, ...]) -> None:
    state = next_state(history(*types))
    assert state is not None
    assert (state.type, state.name) == (StateType.SCHEDULED, "AwaitingRetry")


@pytest.mark.parametrize("last", ["COMPLETED", "FAILED", "SCHEDULED"])
def test_a_run_that_came_to_an_end_of_its_own_keeps_it(last: str) -> None:
    assert next_state(history("SCHEDULED", "PENDING", "RUNNING", last)) is None


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


def test_who_stops_a_worker_waits_longer_than_its_runs_may_take() -> None:
    assert seconds_until_stopped(240.0) == 260
