"""What Prefect keeps of a run: its task runs, and the tables of its summary."""

from __future__ import annotations

from uuid import UUID

from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import TaskRun

from tests.end_to_end.pipeline import prefect_client, wait_for

STAGES = ("extract", "validate", "chunk", "embed", "upsert", "checkpoint")


def task_runs(flow_run_id: UUID, *, expected: int) -> dict[str, TaskRun]:
    """Return the task runs of a flow run by name, once the server has saved all of them."""

    def read() -> dict[str, TaskRun] | None:
        with prefect_client() as client:
            runs = client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])), limit=200
            )
        saved = len(runs) >= expected and all(run.state and run.state.is_final() for run in runs)
        return {run.name: run for run in runs} if saved else None

    return wait_for(read, what=f"{expected} finished task runs")


def inputs_of(run: TaskRun) -> set[UUID]:
    """Return the ids of the task runs whose results a task run was given or waited for."""
    return {given.id for values in run.task_inputs.values() for given in values if given.input_type == "task_run"}


def stages_by_shard(runs: dict[str, TaskRun]) -> dict[int, set[str]]:
    """Return the stages that each shard of a run went through, or each batch of changes."""
    found: dict[int, set[str]] = {}
    for name in runs:
        stage, *rest = name.split()
        if stage in STAGES:
            found.setdefault(int(rest[-1]), set()).add(stage)
    return found


def counts_by_contract(flow_run_id: UUID) -> dict[str, tuple[str, int, int, int, int]]:
    """Return team, read, written, unchanged and dead-lettered by contract, as the run's summary shows them."""
    with prefect_client() as client:
        (artifact,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]),
                key=ArtifactFilterKey(any_=["migrate-summary"]),
            )
        )
    found: dict[str, tuple[str, int, int, int, int]] = {}
    for line in str(artifact.data).splitlines():
        cells = [cell.strip().replace(",", "") for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[1].startswith("contract_"):
            read, written, unchanged, dead_lettered = map(int, cells[2:])
            found[cells[1]] = (cells[0], read, written, unchanged, dead_lettered)
    return found
