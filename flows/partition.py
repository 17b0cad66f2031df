"""Partition: some of a load's shards as a run of its own, so that several workers share one load."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from prefect import flow, get_run_logger, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Completed
from pydantic import Field

from blocks.code_version import read_code_version
from blocks.memory import limit_heaps
from blocks.records import open_records
from blocks.vector_store import VectorStore
from flows.blocks import Parts, load_parts
from flows.hooks import leave_crash_to_load
from flows.jobs import STOP_WITHIN_S, Job, at_work, is_alive, job_origin, take_up
from flows.parameters import GenerationName
from flows.stages import StageWork, task_runner
from tasks.domain.errors import (
    BudgetSpentError,
    InputError,
    QuotaSpentError,
    TerminalError,
    TransientError,
    WorkTakenError,
)
from tasks.domain.generations import FIRST
from tasks.domain.jobs import job_id
from tasks.domain.log_lines import bound
from tasks.domain.manifests import Manifest
from tasks.domain.runs import Run, Scope, fingerprint
from tasks.domain.shards import ShardRange
from tasks.policy import DEFAULT_RETRIES

DEPLOYMENT = "partition/partition"
#: Shards of one child run: at 10,000 records each some 80,000 records, so that its start, 3 s of CPU, hardly shows.
#: It never changes within a run: two processes must cut the same work at the same places.
PARTITION_SHARDS = 8
#: A partition whose process died is taken up by another child this often.
_MAX_CHILDREN_LOST = 3
_LOOK_S = 1.0
_TAKEN_AGAIN_S = 10.0
#: A partition that waits for a worker is told of this often; a store that does not answer is waited for this long.
_TOLD_EVERY_S, _SILENT_STORE_S = 60.0, 600.0


def work_fingerprint(scope: Scope, parts: Parts, *, shard_rows: int, rebuild: bool) -> str:
    """Return what makes two loads the same work, here and in every process that takes part.

    Owners are no part of it: they change while a load runs, and shards given to other owners are looked at again. The
    generation is: two of them are filled from the same source at once.
    """
    choices: dict[str, Any] = {"rebuild": True} if rebuild else {}
    if parts.vectors.generation_name != FIRST:
        choices["generation"] = parts.vectors.generation_name
    return fingerprint(
        scope,
        parts.facts,
        shard_rows=shard_rows,
        source=open_records(parts.source, scope.source).identify(),
        form=parts.vectors.vector_form,
        **choices,
    )


# -- the child ------------------------------------------------------------------------------------------------


def _run_name() -> str:
    given = runtime.flow_run.parameters
    return f"partition {given.get('number')} of {given.get('run_key')}"


@flow(name="partition", flow_run_name=_run_name, task_runner=task_runner(), on_crashed=[leave_crash_to_load])
def partition(
    run_key: Annotated[str, Field(min_length=1, description="The load that it is a part of.")],
    number: Annotated[int, Field(ge=0, description="Which partition of the load.")],
    load_run: Annotated[str, Field(min_length=1, description="The flow run that started this one.")],
    generation: GenerationName = None,
    retries: Annotated[int, Field(ge=0, le=10, description="How often a stage is tried again.")] = DEFAULT_RETRIES,
) -> State[int]:
    """Take one partition of a load through the stages. A load with ``child_runs`` starts these runs; nobody else does.

    Safe to repeat: a partition that another live run is at is left to it, finished shards are not done again, and a
    run whose load has ended does nothing. The result is how many shards this run finished. When the quota or the
    budget is spent it ends early, and the load, which sees its shards unfinished, decides when to go on.
    """
    limit_heaps()
    parts = load_parts(retries=retries, generation=generation)
    load = parts.vectors.find_job({"jobId": {"$in": [job_id(run_key, "migrate"), job_id(run_key, "backfill")]}})
    if load is None:
        raise InputError(f"there is no load {run_key}: this flow is started by `migrate` or `backfill` with child_runs")
    if (
        load["status"] != "processing"
        or load["metadata"]["runId"] != load_run
        or not is_alive(load, now=parts.vectors.read_time())
    ):
        return Completed(message="the load that started this run has ended", data=0)
    parts = parts.of_source(load["metadata"]["choices"]["scope"]["source"])
    plan = parts.store.read_plan(run_key)
    if plan is None:
        raise TerminalError(
            f"this worker does not see the files of the load {run_key}: workers on several machines need one shard "
            "store, CRYPTIQUE_SHARDS=s3://bucket/prefix or shared:/folder"
        )
    try:
        job = _claim(load, number, parts, planned=sum(shard.planned for shard in plan))
    except WorkTakenError:
        return Completed(message="another run is at this partition", data=0)
    shards = plan[number * PARTITION_SHARDS : (number + 1) * PARTITION_SHARDS]
    try:
        with bound(source=job.run.scope.source), at_work(job, parts, bulk=True) as gated_parts:
            done = _carry_out(job, shards, gated_parts)
    except (QuotaSpentError, BudgetSpentError) as error:
        return Completed(message=f"ended early: {error}", data=0)
    return Completed(message=f"{done} of {len(shards)} shards finished", data=done)


def _claim(load: dict[str, Any], number: int, parts: Parts, *, planned: int) -> Job:
    choices, work = load["metadata"]["choices"], load["metadata"]["fingerprint"]
    scope = Scope.from_record(choices["scope"])
    if work != work_fingerprint(scope, parts, shard_rows=choices["shardRows"], rebuild=choices["rebuild"]):
        raise TerminalError(
            "this worker would do other work than the load that started it: its code or its blocks differ. Bring every "
            "worker to the same version and run `cryptique-rag register` once"
        )
    again = bool(load["retryConfig"]["retryCount"])
    run = Run(
        key=load["metadata"]["runKey"],
        id=str(runtime.flow_run.id),
        scope=scope,
        started_ms=int(load["startedAt"].timestamp() * 1000),
        target_was_empty=choices["targetWasEmpty"] and not again,
        earlier_ids=tuple(load["metadata"]["runIds"]),
        may_have_written=again,
        rebuild=choices["rebuild"],
        owners=parts.owners.digest(),
        code_version=read_code_version(),
        planned=planned,
        accept=tuple(choices.get("accept", ())),
    )
    kept = {name: choices[name] for name in ("claimedAt", "shardsInFlight")}
    origin = job_origin("partition", f"{work}-{run.key}-{number}", part=number)
    job = take_up(run, replace(origin, choices={**(origin.choices or {}), **kept}), parts, resume=True)
    if job.run.may_have_written:
        job.run = replace(job.run, target_was_empty=False)
    # The budget is the load's: what all its runs spend together.
    allowed = choices.get("budgetAllowedUsd")
    if allowed is not None:
        job.note(budgetAllowedUsd=allowed)
    return job


def _carry_out(job: Job, shards: Sequence[ShardRange], parts: Parts) -> int:
    work = StageWork(job.run, parts, in_flight=job.choices["shardsInFlight"])
    # What was finished since the load began is as good as what was given to today's owners.
    finished = parts.vectors.load_checkpoints(job.run.key, owners=job.run.owners, since=job.choices["claimedAt"])
    job.total = sum(shard.planned for shard in shards)
    for shard in shards:
        if shard.number in finished:
            job.manifest.merge(finished[shard.number])
    done = 0
    try:
        for one in work.finish(shard for shard in shards if shard.number not in finished):
            job.manifest.merge(one.manifest)
            done += 1
            get_run_logger().info("shard %d is finished", one.work.number)
            job.save("processing")
    except BaseException as error:
        for late in work.stop(within_s=0.0 if isinstance(error, Exception) else STOP_WITHIN_S):
            job.manifest.merge(late.manifest)
        raise
    return done


# -- the load that starts them --------------------------------------------------------------------------------


@dataclass(slots=True)
class _Child:
    number: int
    run_id: UUID
    told: float = field(default_factory=time.monotonic)


def require_no_children(run_key: str, vectors: VectorStore) -> None:
    """Raise ``WorkTakenError`` while a child run of an earlier process is still at this work."""
    for job in vectors.find_jobs({"metadata.runKey": run_key, "metadata.tags": "partition", "status": "processing"}):
        if is_alive(job, now=vectors.read_time()):
            raise WorkTakenError(
                f"the child run {job['metadata']['runId']} on {job['workerHost']} is still at this work: wait for it, "
                "or cancel it first"
            )


def find_child_ids(job: Job, vectors: VectorStore) -> list[str]:
    """Return the flow runs that were at a load's partitions: their dead letters are the load's."""
    jobs = vectors.find_jobs({"metadata.runKey": job.run.key, "metadata.tags": "partition"})
    return sorted({run_id for child in jobs for run_id in child["metadata"]["runIds"]})


def finish_in_children(
    job: Job, shards: Sequence[ShardRange], finished: set[int], parts: Parts, *, at_once: int
) -> Iterator[tuple[int, Manifest]]:
    """Start child runs for the unfinished partitions, ``at_once`` of them, and yield each shard as it is finished.

    A child that dies is replaced. Raises ``QuotaSpentError`` or ``BudgetSpentError`` when the children stopped for
    one, ``TerminalError`` with a child's own words when it failed; the others are cancelled first.
    """
    logger = get_run_logger()
    vectors, known = parts.vectors, set(finished)
    waiting = sorted({shard.number // PARTITION_SHARDS for shard in shards if shard.number not in known}, reverse=True)
    not_before: dict[int, float] = {}
    lost: dict[int, int] = {}
    children: dict[UUID, _Child] = {}
    silent_since: float | None = None
    claimed_at: datetime = job.choices["claimedAt"]
    logger.info("%d partitions for %d child runs at once", len(waiting), at_once)

    def unfinished(number: int) -> bool:
        part = shards[number * PARTITION_SHARDS : (number + 1) * PARTITION_SHARDS]
        return any(shard.number not in known for shard in part)

    with get_client(sync_client=True) as client:
        try:
            while waiting or children:
                while waiting and len(children) < at_once and not_before.get(waiting[-1], 0.0) <= time.monotonic():
                    number = waiting.pop()
                    child = _start(job, number, lost.get(number, 0), parts.retries)
                    children[child.run_id] = child
                time.sleep(_LOOK_S)
                try:
                    ended = [run for run in _read(client, children) if _has_ended(run, job, children, vectors)]
                    found = vectors.load_checkpoints(job.run.key, known=known, owners=job.run.owners, since=claimed_at)
                    silent_since = None
                except TransientError as error:
                    silent_since = silent_since or time.monotonic()
                    if time.monotonic() - silent_since > _SILENT_STORE_S:
                        raise
                    logger.warning("the store can't be asked for what is finished: %s", error)
                    continue
                for number, manifest in sorted(found.items()):
                    known.add(number)
                    yield number, manifest
                for run in ended:
                    child = children.pop(run.id)
                    if not unfinished(child.number):
                        continue
                    _raise_what_stopped(run, child, job, vectors)
                    assert run.state is not None
                    if not run.state.is_completed():  # its process is gone
                        lost[child.number] = lost.get(child.number, 0) + 1
                        logger.warning("partition %d lost its run %s: %s", child.number, run.name, run.state.message)
                        if lost[child.number] > _MAX_CHILDREN_LOST:
                            raise TerminalError(
                                f"partition {child.number} lost its process {lost[child.number]} times: look at the "
                                f"worker's log and memory; the last run was {run.name} ({run.id})"
                            )
                    not_before[child.number] = time.monotonic() + _TAKEN_AGAIN_S
                    waiting.insert(0, child.number)
        finally:
            _cancel(client, children)


def _start(job: Job, number: int, lost: int, retries: int) -> _Child:
    try:
        run = run_deployment(
            DEPLOYMENT,
            parameters={
                "run_key": job.run.key,
                "number": number,
                "load_run": job.run.id,
                "generation": job.parts.vectors.generation_name,
                "retries": retries,
            },
            timeout=0,
            tags=["partition"],
            # The client asks again after a time-out; the server then answers with the run that it made already.
            idempotency_key=f"{job.run.id}-{number}-{lost}-{time.time_ns()}",
        )
    except ObjectNotFound:
        raise TerminalError(
            f"there is no deployment {DEPLOYMENT} on this Prefect server, so nobody can run a part of this load: "
            "`make up`, or do it in one process with child_runs 0"
        ) from None
    assert isinstance(run, FlowRun)
    return _Child(number, run.id)


def _read(client: SyncPrefectClient, children: dict[UUID, _Child]) -> list[FlowRun]:
    if not children:
        return []
    try:
        return client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=list(children))))
    except Exception as error:  # noqa: BLE001 - a server that restarts does not end what its workers do
        get_run_logger().warning("the server can't be asked for the child runs: %s", error)
        return []


def _has_ended(run: FlowRun, job: Job, children: dict[UUID, _Child], vectors: VectorStore) -> bool:
    """Return whether a child is at an end: it says so, or its process has been silent for too long."""
    child = children[run.id]
    if run.state is None or run.state.is_final():
        return True
    if not run.state.is_running():
        if time.monotonic() - child.told > _TOLD_EVERY_S:
            child.told = time.monotonic()
            get_run_logger().warning(
                "partition %d is not begun (%s): is a worker of the pool running, with a free place, and how many runs "
                "does the queue `partitions` let through?",
                child.number,
                run.state.name,
            )
        return False
    number = child.number
    record = vectors.find_job({"jobId": job_id(job.run.key, "partition", number)})
    claimed = record is not None and record["metadata"]["runId"] == str(run.id)
    return bool(
        claimed
        and record is not None
        and record["status"] == "processing"
        and not is_alive(record, now=vectors.read_time())
    )


def _raise_what_stopped(run: FlowRun, child: _Child, job: Job, vectors: VectorStore) -> None:
    """Raise why a child left shards unfinished, unless its process died or another run is at them."""
    record = vectors.find_job({"jobId": job_id(job.run.key, "partition", child.number)})
    mine = record is not None and record["metadata"]["runId"] == str(run.id)
    if record is not None and mine and record["status"] == "retrying":
        words = str(record["errors"][-1]["error"])
        until = record["retryConfig"]["nextRetryAt"]
        if until is not None:
            raise QuotaSpentError(words, until=until)
        allowed = float(job.origin.choices["budgetAllowedUsd"]) if job.origin.choices else 0.0
        spent = job.manifest.cost_usd(job.parts.facts.usd_per_million_tokens)
        raise BudgetSpentError(spent, allowed)
    if run.state is not None and run.state.is_failed():
        raise TerminalError(f"partition {child.number} failed: {run.state.message}")
    if run.state is not None and run.state.is_cancelled():
        raise TransientError(f"partition {child.number} was cancelled: give the load again, and it goes on")


def _cancel(client: SyncPrefectClient, children: dict[UUID, _Child]) -> None:
    for run_id in children:
        with suppress(Exception):  # one that ended meanwhile
            client.set_flow_run_state(run_id, Cancelling(message="the load that it is a part of has ended"))
