"""The flow and task runs of a load whose tasks do nothing: ``python -m benchmarks.empty_pipeline SHARDS RESULT.json``.

What is left is Prefect's own client. The flow without any task runs first: its start and end are not a task run's.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime, task
from prefect.events import emit_event
from prefect.futures import PrefectFuture, as_completed

from deployments.console import quiet_prefect
from deployments.local_services import talking_to
from flows.stages import STAGE_COMPLETED, STAGES, task_runner, whole
from tasks.policy import DEFAULT_RETRIES, STAGE

_IN_FLIGHT = 2


@task(name="stage", task_run_name="stage {number}", **STAGE)
def stage(work: Any, number: int, before: Any = None) -> int:
    """Return the number."""
    return number


@flow(name="empty pipeline", task_runner=task_runner())
def empty_pipeline(shards: int) -> None:
    """Take every shard through as many tasks as a load does, two shards at once, and say so as a load does."""
    logger = get_run_logger()
    waiting = iter(range(shards))
    under_way: dict[PrefectFuture[int], int] = {}
    while True:
        while len(under_way) < _IN_FLIGHT and (number := next(waiting, None)) is not None:
            last: PrefectFuture[int] | None = None
            for _ in STAGES:
                last = stage.with_options(retries=DEFAULT_RETRIES).submit(whole(empty_pipeline), number, last)
            assert last is not None
            under_way[last] = number
        if not under_way:
            return
        done = next(as_completed(list(under_way)))
        number = under_way.pop(done)
        done.result()
        for name in STAGES:
            emit_event(
                event=STAGE_COMPLETED,
                resource={"prefect.resource.id": f"cryptique-rag.flow-run.{runtime.flow_run.id}.stage.{name}"},
                payload={"shard": number},
            )
        logger.info("%d of %d", number, shards)


def main() -> None:
    """Run both and write what the client took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=int)
    parser.add_argument("result", type=Path)
    chosen = parser.parse_args()
    used = []
    with quiet_prefect():
        for shards in (1, 0, chosen.shards):  # the first pays for what is imported or made once
            began = time.process_time()
            with talking_to(os.environ["PREFECT_API_URL"]):  # what was logged and emitted is sent before it ends
                empty_pipeline(shards)
            used.append(time.process_time() - began)
    _, flow_s, whole_s = used
    figures = {
        "task_runs": chosen.shards * len(STAGES),
        "flow_cpu_s": round(flow_s, 3),
        "client_cpu_s": round(whole_s - flow_s, 3),
    }
    chosen.result.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
