"""Pauses: what a run does when the day's quota or its budget is spent or batch jobs run, and how it goes on."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import Pause
from prefect.states import Paused, Scheduled
from prefect.utilities.engine import propose_state_sync

from flows.progress import tell_waiting
from tasks.domain.errors import BatchesUnderWayError, BudgetSpentError, QuotaSpentError

AWAITING_QUOTA, AWAITING_BATCH, BUDGET_SPENT = "AwaitingQuota", "AwaitingBatch", "BudgetSpent"
#: A run whose budget is spent waits this long for somebody to resume it; what it paid for is kept as long.
WAITS_FOR_A_PERSON = timedelta(days=7)
_LOOK_S = 30.0


def pause_until_the_quota_is_back(error: QuotaSpentError) -> None:
    """End this run's process until then; a worker starts it again. A run without a deployment waits right here.

    A subflow raises the error instead: its parent decides.
    """
    _pause(error, AWAITING_QUOTA, f"{error} This run goes on by itself.")


def pause_until_jobs_may_be_over(error: BatchesUnderWayError) -> None:
    """End this run's process until it looks at its batch jobs again, or wait right here; as for the quota."""
    _pause(error, AWAITING_BATCH, f"{error.words} This run looks again at {error.until:%H:%M} UTC.")


def _pause(error: QuotaSpentError, name: str, words: str) -> None:
    run = _flow_run()
    if run is not None and run.parent_task_run_id is not None:
        raise error
    if run is not None and run.deployment_id is not None:
        _leave(Scheduled(scheduled_time=error.until, name=name, message=words))
    get_run_logger().warning("waiting: %s", words)
    tell_waiting(words)
    pause = threading.Event()
    while (left_s := (error.until - datetime.now(UTC)).total_seconds()) > 0:
        pause.wait(min(left_s, _LOOK_S))


def pause_for_a_person(error: BudgetSpentError) -> NoReturn:
    """End this run's process until somebody resumes it, which allows the same sum again."""
    run = _flow_run()
    if run is not None and run.deployment_id is not None and run.parent_task_run_id is None:
        words = f"{error} Resume the run in the UI, or with `{allow_command(str(run.id))}`."
        seconds = int(WAITS_FOR_A_PERSON.total_seconds())
        _leave(Paused(timeout_seconds=seconds, reschedule=True, name=BUDGET_SPENT, message=words))
    raise error


def allow_command(run_id: str) -> str:
    """Return the command that resumes a paused run. Prefect's `flow-run` has none for that."""
    return f"prefect api POST /flow_runs/{run_id}/resume"


def _flow_run() -> FlowRun | None:
    context = FlowRunContext.get()
    return context.flow_run if context is not None else None


def _leave(state: State[None]) -> NoReturn:
    run = _flow_run()
    assert run is not None
    get_run_logger().warning("paused: %s", state.message)
    with get_client(sync_client=True) as client:
        accepted = propose_state_sync(client, state, flow_run_id=run.id)
    if accepted.type not in (StateType.SCHEDULED, StateType.PAUSED):
        raise RuntimeError(f"the server does not let this run pause: it is {accepted.name}")
    raise Pause(state=accepted)
