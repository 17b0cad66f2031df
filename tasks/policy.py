"""What every stage's task has in common: which errors are tried again, and what is remembered for a resume."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.tasks import exponential_backoff

from tasks.domain.errors import TransientError
from tasks.domain.runs import SHARD_SCHEMA, Run

DEFAULT_RETRIES = 3
_KEPT = timedelta(days=7)


def is_transient(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether the task may try again: what a record or a person must mend is not tried again."""
    return isinstance(state.result(raise_on_failure=False), TransientError)


def resume_key(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    """Return the key under which a stage's result is remembered: the same work, shard and code find it again.

    A shard that runs again because its files were lost is remembered for this flow run only: a later one must not
    find the second set of lost files either.
    """
    run = parameters.get("run")
    shard = parameters.get("shard")
    if not isinstance(run, Run) or shard is None:
        return None
    again = f"-{run.attempt}-{run.id}" if run.attempt else ""
    return f"{run.key}-{context.task.name}-{shard.number}-{SHARD_SCHEMA}{again}"


#: Retried three times after 2, 4 and 8 seconds, each longer by up to a half, so that shards don't come back together.
RETRY_POLICY: dict[str, Any] = {
    "retries": DEFAULT_RETRIES,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_transient,
}
#: A stage that makes a shard file: a resumed run finds its result instead of doing it again.
REMEMBERED: dict[str, Any] = {
    **RETRY_POLICY,
    "cache_key_fn": resume_key,
    "cache_expiration": _KEPT,
    "persist_result": True,
}
#: A stage that writes to the store: safe to do twice, and never skipped.
WRITING: dict[str, Any] = {**RETRY_POLICY, "cache_policy": NO_CACHE, "persist_result": False}
