"""What every stage's task has in common: which errors are tried again, and that nothing stale is remembered."""

from __future__ import annotations

from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from tasks.domain.errors import TransientError

DEFAULT_RETRIES = 3


def is_transient(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether the task may try again: what a record or a person must mend is not tried again."""
    return isinstance(state.result(raise_on_failure=False), TransientError)


#: Retried three times after 2, 4 and 8 seconds, each longer by up to a half, so that shards don't come back together.
#: No result outlives its run: a record read before an owner moved must not be written after it. What a resumed run
#: finds again are checkpoints, and the texts that were paid for, by their content.
STAGE: dict[str, Any] = {
    "retries": DEFAULT_RETRIES,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_transient,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}
