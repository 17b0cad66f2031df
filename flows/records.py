"""Records: chosen records of the source, by id, through the stages; what replay, reconcile and rebuilding share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import bson
import pyarrow as pa
from prefect import get_run_logger

from flows.blocks import Parts
from flows.jobs import RECORDS, STOP_WITHIN_S, Job, at_work, forget, job_origin, new_run, take_up
from flows.load import Rehearsal
from flows.pauses import pause_for_a_person, pause_until_the_quota_is_back
from flows.progress import Progress
from flows.report import Announcer, LoadReport, by_reason, make_report, publish
from flows.stages import StageTimes, StageWork, extract_arguments, whole
from tasks.domain.batches import batched
from tasks.domain.changes import ChangeBatch
from tasks.domain.errors import BudgetSpentError, QuotaSpentError, ShardDamagedError
from tasks.domain.jobs import Kind
from tasks.domain.runs import Run, Scope
from tasks.domain.shards import ShardFile
from tasks.extract import extract_changes

BATCH_RECORDS = 1_000
_IN_FLIGHT = 2
_FIGURES = "figures"


@dataclass(frozen=True, slots=True)
class Selection:
    """Ids of records, and what was found on the way to them: figures that a run which goes on needs again."""

    ids: Iterable[Any]
    figures: dict[str, int] = field(default_factory=dict)


#: Chooses the records of a run. Called once, under the claim; a run that is taken up has the same records.
Select = Callable[[Run], Selection]


def load_records(
    kind: Kind,
    work: str,
    scope: Scope,
    select: Select,
    parts: Parts,
    *,
    began: float,
    rebuild: bool = False,
    thorough: bool = False,
    budget_usd: float | None = None,
    resume: bool = False,
) -> tuple[LoadReport, dict[str, int]]:
    """Take the selected records through the stages as they are in the source now; return what was done, and figures.

    Those that are gone from the source lose their vectors and dead letters. ``work`` names what is done: two runs
    with the same name never do it at once (``WorkTakenError``). Pauses as ``flows/pauses.py`` says, and goes on
    afterwards with the same records where it was; with ``resume`` so does another run, after a failure or a kill.
    With ``thorough`` documents that a record doesn't make are looked for whatever else is found.
    """
    parts = parts.of_source(scope.source)
    while True:
        parts.stopping.clear()
        origin = job_origin(kind, work, budgetUsd=budget_usd, scope=scope.to_record())
        job = take_up(new_run(scope, parts, rebuild=rebuild, thorough=thorough), origin, parts, resume=resume)
        try:
            with at_work(job, parts, bulk=True) as gated_parts:
                report, figures, times = _carry_out(job, gated_parts, select, began, resume=resume)
        except QuotaSpentError as error:
            pause_until_the_quota_is_back(error)
            # A day may have passed in this process: whose records they are is read again.
            parts = replace(parts, owners=parts.source.load_owners())
        except BudgetSpentError as error:
            pause_for_a_person(error)
        except Exception:
            if not job.resumable:
                forget(job.run, parts)
            raise
        else:
            forget(job.run, parts)
            publish(kind, report, job.run, job.manifest, parts, times)
            if report.refused:
                get_run_logger().warning("dead letters by reason: %s", by_reason(report.refused))
            return report, figures


def _carry_out(
    job: Job, parts: Parts, select: Select, began: float, *, resume: bool
) -> tuple[LoadReport, dict[str, int], StageTimes]:
    """Run every unfinished batch of records through the stages, and keep the job's record true throughout."""
    run, manifest = job.run, job.manifest
    work = StageWork(run, parts, in_flight=_IN_FLIGHT)
    try:
        chosen, figures = _choose(job, select)
        job.total = chosen.num_rows
        finished = parts.vectors.load_checkpoints(run.key, owners=run.owners)
        for done in finished.values():
            manifest.merge(done)
        if finished:
            get_run_logger().info("%d batches of records were finished before", len(finished))
        progress = Progress(job.total, done=manifest.total.read, resumed=manifest.total.read)
        announcer = Announcer(job.origin.kind, progress)
        for one in work.finish(batch for batch in _read_batches(chosen) if batch.number not in finished):
            manifest.merge(one.manifest)
            progress.done, progress.dead_lettered = manifest.total.read, manifest.total.dead_lettered
            announcer.tell()
            job.save("processing", left_s=progress.seconds_left)
        manifest.require_closed("the run")
    except BaseException as error:
        for late in work.stop(within_s=0.0 if isinstance(error, Exception) else STOP_WITHIN_S):
            manifest.merge(late.manifest)
        # A run that was asked to stop goes on with its records; one that failed chooses anew, if it may not resume.
        paused = isinstance(error, QuotaSpentError | BudgetSpentError)
        job.resumable = resume or paused or not isinstance(error, Exception)
        raise
    announcer.finish()
    return make_report(run, manifest, parts, began, resumed_shards=len(finished)), figures, work.times


def _choose(job: Job, select: Select) -> tuple[pa.Table, dict[str, int]]:
    """Return the ids of the run's records with their figures: as they were chosen when it began, or chosen now."""
    store, run = job.parts.store, job.run
    before = (((job.previous or {}).get("metadata") or {}).get("choices")) or {}
    if RECORDS in before:
        try:
            table = store.read_table(ShardFile(**before[RECORDS]))
        except ShardDamagedError as error:
            # Its checkpoints count batches that can't be told any more.
            get_run_logger().warning("choosing the records anew: %s", error)
            job.parts.vectors.drop_checkpoints(run.key)
        else:
            job.note(**{RECORDS: before[RECORDS], _FIGURES: before[_FIGURES]})
            return table, before[_FIGURES]
    selection = select(run)
    table = _to_table(selection.ids)
    file = store.write_table(run.key, RECORDS, table)
    job.note(**{RECORDS: asdict(file), _FIGURES: selection.figures})
    return table, selection.figures


_SCHEMA = pa.schema([("id", pa.large_binary())])


def _to_table(ids: Iterable[Any]) -> pa.Table:
    """Return ids of whatever type as a table: some 30 bytes a record, where a list of them takes 100."""
    batches = [
        pa.record_batch([pa.array([bson.encode({"_id": one}) for one in some], pa.large_binary())], schema=_SCHEMA)
        for some in batched(ids, BATCH_RECORDS)
    ]
    return pa.Table.from_batches(batches, schema=_SCHEMA)


def _read_batches(table: pa.Table) -> Iterator[ChangeBatch]:
    """Yield the ids as pieces of work, numbered the same each time."""
    for number, start in enumerate(range(0, table.num_rows, BATCH_RECORDS)):
        some = table.column("id").slice(start, BATCH_RECORDS).to_pylist()
        yield ChangeBatch(number, tuple(bson.decode(one)["_id"] for one in some), (), {})


def rehearse_records(
    scope: Scope, select: Select, parts: Parts, *, rebuild: bool = False
) -> tuple[LoadReport, dict[str, int]]:
    """Return what taking the selected records through the stages would do; write nothing, embed nothing."""
    began = time.monotonic()
    parts = parts.of_source(scope.source)
    run = new_run(scope, parts, rebuild=rebuild)
    rehearsal = Rehearsal()
    try:
        selection = select(run)
        chosen = _to_table(selection.ids)
        progress = Progress(chosen.num_rows)
        for batch in _read_batches(chosen):
            shard = extract_changes(whole(run), whole(batch), *extract_arguments(parts))
            rehearsal.add(run, shard, parts)
            progress.done = rehearsal.manifest.total.read
            progress.tell()
    finally:
        parts.store.drop_run(run.key)
    return make_report(run, rehearsal.manifest, parts, began, dry_run=True), selection.figures
