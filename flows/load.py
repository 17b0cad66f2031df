"""Load: the records of a scope into ``vectordocuments``, shard by shard, resumable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import Literal

from prefect import get_run_logger, task
from prefect.futures import PrefectFuture

from blocks.mongo import MongoSource
from blocks.records import open_records
from blocks.vector_store import VectorStore
from flows.batches import DEFAULT_POLL_S, drop_batches, finish_in_batches, settle_batches, with_batch_tokens
from flows.blocks import Parts, PipelineEmbedder
from flows.forecast import forecast_load
from flows.jobs import STOP_WITHIN_S, Job, at_work, forget, job_origin, new_run, take_up
from flows.judging import Judging, in_words
from flows.partition import find_child_ids, finish_in_children, require_no_children, work_fingerprint
from flows.pauses import pause_for_a_person, pause_until_jobs_may_be_over, pause_until_the_quota_is_back
from flows.progress import Progress
from flows.report import Announcer, LoadReport, add_reports, by_reason, make_report, publish
from flows.stages import StageTimes, StageWork, extract_arguments, whole
from tasks.batch import FEWEST_TEXTS
from tasks.chunk import DescribedChunk, chunk_shard
from tasks.domain.dead_letters import DeadLetter
from tasks.domain.digests import count_unchanged
from tasks.domain.errors import BatchesUnderWayError, BudgetSpentError, InputError, QuotaSpentError, TerminalError
from tasks.domain.log_lines import PERFORMANCE, bound
from tasks.domain.manifests import Counts, Manifest, Owner
from tasks.domain.owners import Holder, Owners
from tasks.domain.registry import plural_of
from tasks.domain.rows import Verdict
from tasks.domain.runs import Run, Scope
from tasks.domain.shards import DEFAULT_SHARD_ROWS, DEFAULT_SHARDS_IN_FLIGHT, Shard, ShardRange
from tasks.domain.tables import from_table
from tasks.domain.verdicts import DELETIONS
from tasks.domain.windows import Window
from tasks.extract import extract_shard, in_window, source_criteria
from tasks.policy import STAGE
from tasks.reconcile import Reconciliation, reconcile_run
from tasks.validate import validate_shard

_PERFORMANCE = logging.getLogger(PERFORMANCE)
_SHOWN_DIFFERENCES = 5
#: A budget that is spent is still one: with it a source pauses at its first text.
LEAST_USD = 1e-9
#: Sources whose records belong to a contract; all others belong to a website.
_OF_CONTRACTS = frozenset({"transaction", "smart_contract"})
_OF_BOTH = frozenset({"aggregate"})

Kind = Literal["migrate", "backfill"]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a scope is loaded. ``child_runs`` of 0 means in this process; ``budget_usd`` of None means no budget.

    ``batch`` is no part of the work: what was begun with it may be finished without, and the other way round; nor is
    ``accept``, which names findings about the data that a person means. With ``data_docs`` Great Expectations judges a
    small run too.
    """

    shard_rows: int = DEFAULT_SHARD_ROWS
    shards_in_flight: int = DEFAULT_SHARDS_IN_FLIGHT
    child_runs: int = 0
    budget_usd: float | None = None
    resume: bool = True
    replace_model: bool = False
    remove_orphans: bool = False
    rebuild: bool = False
    batch: bool = False
    batch_poll_s: float = DEFAULT_POLL_S
    accept: tuple[str, ...] = ()
    data_docs: bool = False


def make_scope(
    owners: Owners,
    *,
    start: datetime | None,
    end: datetime | None,
    teams: list[str],
    contracts: list[str],
    limit: int | None,
    source: str = "transaction",
) -> Scope:
    """Return the scope, or raise ``InputError`` for a window, team or contract that can't be meant."""
    try:
        window = Window(start, end)
    except ValueError as error:
        raise InputError(f"{error}: exchange them, or leave one out") from None
    has_contracts = source in _OF_CONTRACTS or source in _OF_BOTH
    holders: Iterable[Holder] = () if source in _OF_CONTRACTS else owners.by_site_id.values()
    if has_contracts:
        holders = chain(owners.by_contract_id.values(), holders)
    known_teams = {holder.team_id for holder in holders}
    unknown = [team for team in teams if team not in known_teams]
    if unknown:
        what = "contract" if has_contracts else "website"
        raise InputError(f"no {what} belongs to team {', '.join(unknown)}: look at teams._id in the source")
    if contracts and not has_contracts:
        raise InputError(
            f"contracts choose among transactions and smart contracts; {plural_of(source)} belong to websites"
        )
    unknown = [contract for contract in contracts if contract not in owners.by_contract_id]
    if unknown:
        raise InputError(f"there is no contract {', '.join(unknown)}: look at smartcontracts.contractId")
    return Scope(source, window, tuple(sorted(teams)), tuple(sorted(contracts)), limit)


def load(kind: Kind, scope: Scope, parts: Parts, options: LoadOptions, *, began: float) -> LoadReport:
    """Load the scope and return what was done.

    Pauses while the day's quota is spent or its batch jobs run, and where the run's budget is spent
    (``flows/pauses.py``). Raises ``WorkTakenError`` while another run is at the same work.
    """
    parts = parts.of_source(scope.source)
    work = work_fingerprint(scope, parts, shard_rows=options.shard_rows, rebuild=options.rebuild)
    resume, prepared = options.resume, False
    while True:
        if not prepared:
            prepare(parts, replace_model=options.replace_model, loading=True)
        run = replace(new_run(scope, parts, bulk=True, rebuild=options.rebuild), accept=_accepted(options))
        origin = job_origin(
            kind,
            work,
            scope=scope.to_record(),
            shardRows=options.shard_rows,
            shardsInFlight=options.shards_in_flight,
            rebuild=options.rebuild,
            targetWasEmpty=run.target_was_empty,
            budgetUsd=options.budget_usd,
            accept=list(_accepted(options)),
        )
        parts.stopping.clear()
        job = take_up(run, origin, parts, resume=resume)
        try:
            with bound(source=scope.source, team=_only(scope)), at_work(job, parts, bulk=True) as gated_parts:
                report, times = _carry_out(job, gated_parts, options, began)
        except QuotaSpentError as error:
            prepared = isinstance(error, BatchesUnderWayError)
            if isinstance(error, BatchesUnderWayError):
                pause_until_jobs_may_be_over(error)
            else:
                pause_until_the_quota_is_back(error)
            # A day may have passed in this process: whose records they are is read again.
            parts = replace(parts, owners=parts.source.load_owners())
        except BudgetSpentError as error:
            pause_for_a_person(error)
        else:
            drop_batches(job, parts)
            forget(job.run, parts)
            publish(kind, report, job.run, job.manifest, parts, times)
            _tell_performance(kind, report, scope, time.monotonic() - began)
            if report.refused:
                get_run_logger().warning("dead letters by reason: %s", by_reason(report.refused))
            return report
        resume = True


def _tell_performance(kind: Kind, report: LoadReport, scope: Scope, seconds: float) -> None:
    _PERFORMANCE.info(
        "%s of %s took %.1f s",
        *(kind, scope.source, seconds),
        extra={
            "source": scope.source,
            "team": _only(scope),
            "seconds": round(seconds, 3),
            "records": report.read,
            "records_per_s": round(report.read / seconds, 1) if seconds else None,
        },
    )


def _only(scope: Scope) -> str | None:
    """Return the team that a load is for, where it is for one."""
    return scope.team_ids[0] if len(scope.team_ids) == 1 else None


def _accepted(options: LoadOptions) -> tuple[str, ...]:
    """Return the findings that a person means: who lets orphans be removed knows that records are gone."""
    return (*options.accept, *(DELETIONS if options.remove_orphans else ()))


def load_each(
    sources: Sequence[str], run_one: Callable[[str, float | None], LoadReport], *, budget_usd: float | None
) -> LoadReport:
    """Return what all sources' runs did together; each is given what the ones before it left of the budget."""
    reports: dict[str, LoadReport] = {}
    for source in sources:
        left = None if budget_usd is None else max(LEAST_USD, budget_usd - sum(r.cost_usd for r in reports.values()))
        reports[source] = run_one(source, left)
    return next(iter(reports.values())) if len(reports) == 1 else add_reports(reports)


def prepare(parts: Parts, *, replace_model: bool, loading: bool = False) -> None:
    """Prove that the embedder answers and make what the store lacks, before anything is read or claimed.

    With ``loading`` an empty store gets the indexes that nothing needs yet when the load is done.

    Pauses while the day's quota is spent (``flows/pauses.py``).
    """
    while True:
        try:
            _check_embedder.with_options(retries=parts.retries)(parts.embedder)
            break
        except QuotaSpentError as error:
            pause_until_the_quota_is_back(error)
    _initialise.with_options(retries=parts.retries)(parts.vectors, parts.facts.dimensions, loading=loading)
    parts.vectors.require_model(parts.facts, replace=replace_model, write=True)


@task(name="check embedder", task_run_name="check embedder", **STAGE)
def _check_embedder(embedder: PipelineEmbedder) -> None:
    """Prove that the embedder answers, before anything is made or read. A service that is busy is asked again."""
    embedder.check()


@task(name="initialise", task_run_name="initialise", **STAGE)
def _initialise(vectors: VectorStore, dimensions: int, *, loading: bool) -> None:
    """Make what the store lacks; what differs is logged, and ``initialise`` reports it in full."""
    logger = get_run_logger()
    drift = vectors.initialise(dimensions, loading=loading)
    if drift.created:
        logger.info("made %d collections and indexes", len(drift.created))
    if drift.deferred:
        logger.info("a first load: %d indexes of vectordocuments are made when it is done", len(drift.deferred))
    for line in drift.differs:
        logger.warning("drift: %s", line)


@task(name="index", task_run_name="index", **STAGE)
def _make_indexes(vectors: VectorStore, dimensions: int) -> None:
    """Make the indexes that were left for the end of a first load, if any were."""
    began = time.monotonic()
    drift = vectors.initialise(dimensions)
    if drift.created:
        get_run_logger().info("made %d indexes in %.1f s", len(drift.created), time.monotonic() - began)


@task(name="plan", task_run_name="plan", **STAGE)
def plan_shards(source: MongoSource, owners: Owners, scope: Scope, shard_rows: int) -> list[ShardRange]:
    """Return the ranges of the source that make up the shards, in order."""
    records = open_records(source, scope.source)
    shards = records.plan(source_criteria(records.kind, scope, owners), rows=shard_rows, limit=scope.limit)
    get_run_logger().info("%s records in %d shards", f"{sum(s.planned for s in shards):,}", len(shards))
    return shards


# -- doing it -------------------------------------------------------------------------------------------------


def _carry_out(job: Job, parts: Parts, options: LoadOptions, began: float) -> tuple[LoadReport, StageTimes]:
    """Run every unfinished shard through the stages, reconcile, and keep the job's record true throughout."""
    logger = get_run_logger()
    vectors, manifest = parts.vectors, job.manifest
    judging = Judging(job.run, parts, prove=options.data_docs)
    shards = _plan(job, parts, options, judging)
    job.total = sum(shard.planned for shard in shards)
    run = job.run = replace(job.run, planned=job.total)
    work = StageWork(run, parts, in_flight=options.shards_in_flight)
    try:
        # What was given to other owners than today's is looked at again.
        finished = vectors.load_checkpoints(run.key, owners=run.owners)
        resumed_shards = len(finished)
        counts = {number: done.total for number, done in finished.items()}
        for number, done in finished.items():
            manifest.merge(with_batch_tokens(job, number, done))
        if finished:
            logger.info("%d of %d shards were finished before", len(finished), len(shards))
        progress = Progress(job.total, done=manifest.total.read, resumed=manifest.total.read)
        announcer = Announcer(job.origin.kind, progress)
        checkpoints: list[PrefectFuture[Manifest]] = []
        for number, done, checkpoint in _finish(job, shards, set(finished), parts, options, work):
            if checkpoint is not None:
                checkpoints.append(checkpoint)
            manifest.merge(with_batch_tokens(job, number, done))
            counts[number] = done.total
            progress.done, progress.dead_lettered = manifest.total.read, manifest.total.dead_lettered
            announcer.tell()
            job.save("processing", left_s=progress.seconds_left)
            judging.judge_so_far(job)
        manifest.require_closed("the run")
        _make_indexes.with_options(retries=parts.retries)(parts.vectors, parts.facts.dimensions, wait_for=checkpoints)
        result = _reconcile(run, shards, counts, manifest, parts, options.remove_orphans, after=checkpoints)
        if result.differences:
            # Its checkpoints promise what the store doesn't hold: a run that took them up would fail for ever.
            job.resumable = False
            raise TerminalError(
                "source and store differ after the run: "
                + "; ".join(result.differences[:_SHOWN_DIFFERENCES])
                + ". Run it again: it looks at every record anew, writes what is missing and leaves the rest"
            )
        judgements = judging.judge_end(job, result)
        if job.origin.kind == "migrate" and run.scope.whole:
            _hand_over(run, parts)
    except BaseException as error:
        for late in work.stop(within_s=0.0 if isinstance(error, Exception) else STOP_WITHIN_S):
            manifest.merge(with_batch_tokens(job, late.work.number, late.manifest))
        raise
    announcer.finish()
    forecast = job.choices.get("forecast")
    report = make_report(
        job.run,
        manifest,
        parts,
        began,
        resumed_shards=resumed_shards,
        result=result,
        forecast=forecast,
        quality=in_words(judgements),
    )
    return report, work.times


def _plan(job: Job, parts: Parts, options: LoadOptions, judging: Judging) -> list[ShardRange]:
    """Return the run's shards: as they were cut when it began, or cut now, if some of their records may be paid for."""
    run, store = job.run, parts.store
    shards = store.read_plan(run.key) if job.previous else None
    if shards is None:
        moment = parts.source.read_operation_time()
        shards = plan_shards.with_options(retries=parts.retries)(
            parts.source, whole(parts.owners), run.scope, options.shard_rows
        )
        forecast, sample = forecast_load.with_options(retries=parts.retries)(
            whole(run), whole(shards), whole(parts), whole(judging.before)
        )
        job.note(forecast=forecast.to_record())
        judging.judge_plan(sample, sum(shard.planned for shard in shards))
        # What has a plan may be taken up, and is not judged again from the beginning.
        store.write_plan(run.key, shards, operation_time=moment)
    return shards


def _finish(
    job: Job, shards: list[ShardRange], finished: set[int], parts: Parts, options: LoadOptions, work: StageWork
) -> Iterator[tuple[int, Manifest, PrefectFuture[Manifest] | None]]:
    """Yield each shard's number and manifest when it is finished, here or by a child run."""
    unfinished = [shard for shard in shards if shard.number not in finished]
    if not options.child_runs:
        require_no_children(job.run.key, parts.vectors)
    if options.batch:
        for done in finish_in_batches(job, unfinished, parts, work, poll_s=options.batch_poll_s):
            yield done.work.number, done.manifest, done.checkpoint
        return
    settle_batches(job, parts, unfinished, poll_s=options.batch_poll_s)
    if options.child_runs:
        for number, manifest in finish_in_children(job, shards, finished, parts, at_once=options.child_runs):
            yield number, manifest, None
        job.run = replace(job.run, earlier_ids=(*job.run.earlier_ids, *find_child_ids(job, parts.vectors)))
        return
    for done in work.finish(unfinished):
        yield done.work.number, done.manifest, done.checkpoint


def _hand_over(run: Run, parts: Parts) -> None:
    """Put down that the source is loaded, and where following its changes begins: before this run read anything."""
    parts.vectors.note_loaded(run.scope.source, now=datetime.now(UTC))
    moment = parts.store.read_operation_time(run.key)
    if moment is not None and parts.vectors.load_position(run.scope.source) is None:
        parts.vectors.save_position(
            run.scope.source,
            {"operationTime": moment},
            source=open_records(parts.source, run.scope.source).identify(),
            now=datetime.now(UTC),
        )


def _reconcile(
    run: Run,
    shards: list[ShardRange],
    counts: dict[int, Counts],
    manifest: Manifest,
    parts: Parts,
    remove_orphans: bool,
    *,
    after: list[PrefectFuture[Manifest]],
) -> Reconciliation:
    kind = open_records(parts.source, run.scope.source).kind
    return reconcile_run.with_options(retries=parts.retries)(
        whole(run),
        whole(shards),
        whole(counts),
        whole(manifest),
        parts.source,
        parts.vectors,
        whole(source_criteria(kind, run.scope, parts.owners)),
        whole(partial(in_window, kind=kind, scope=run.scope)),
        remove_orphans,
        wait_for=after,  # all of them are done: this draws the edges
    )


# -- a dry run ------------------------------------------------------------------------------------------------


def rehearse(scope: Scope, parts: Parts, options: LoadOptions, *, began: float) -> LoadReport:
    """Return what a load would do: read, describe and compare, but embed and write nothing."""
    parts = parts.of_source(scope.source)
    run = replace(new_run(scope, parts, bulk=True, rebuild=options.rebuild), accept=_accepted(options))
    rehearsal = Rehearsal(batch=options.batch)
    try:
        shards = plan_shards(parts.source, whole(parts.owners), scope, options.shard_rows)
        progress = Progress(sum(shard.planned for shard in shards))
        run = replace(run, planned=progress.total)
        for planned in shards:
            shard = extract_shard(whole(run), planned, *extract_arguments(parts))
            rehearsal.add(run, shard, parts)
            progress.done = rehearsal.manifest.total.read
            progress.dead_lettered = rehearsal.manifest.total.dead_lettered
            progress.tell()
        judgements = Judging(run, parts, prove=options.data_docs).judge_rehearsal(rehearsal.manifest)
    finally:
        parts.store.drop_run(run.key)
    return make_report(run, rehearsal.manifest, parts, began, dry_run=True, quality=in_words(judgements))


def describe(run: Run, extracted: Shard, parts: Parts) -> tuple[list[DescribedChunk], list[DeadLetter]]:
    """Return an extracted shard's chunks, compared with the store, and all its dead letters; drop its files.

    Whatever is stored was judged then: nothing more is withheld than was before.
    """
    chunks, letters, _ = _describe(run, extracted, parts, judged=False)
    return chunks, letters


def _describe(
    run: Run, extracted: Shard, parts: Parts, *, judged: bool
) -> tuple[list[DescribedChunk], list[DeadLetter], bytes]:
    """Return what ``describe`` does, and the shard's profile; ``judged`` is as in ``validate_shard``."""
    validated: Shard = validate_shard(whole(run), extracted, parts.source, parts.store, parts.vectors, judged=judged)
    shard: Shard = chunk_shard(
        whole(run), validated, parts.store, parts.source, parts.vectors, whole(parts.facts), whole(parts.size)
    )
    chunks = list(from_table(DescribedChunk, parts.store.read_table(shard.rows)))
    letters = [letter for file in shard.refused for letter in from_table(DeadLetter, parts.store.read_table(file))]
    parts.store.drop_shard(run.key, shard.number)
    return chunks, letters, validated.profile


class Rehearsal:
    """What the stages would do with the pieces of work that were added."""

    def __init__(self, *, batch: bool = False) -> None:
        self.manifest = Manifest()
        self._batch = batch
        self._seen: set[bytes] = set()  # some 50 bytes per distinct text: only a dry run holds them all

    def add(self, run: Run, extracted: Shard, parts: Parts) -> None:
        """Describe and compare one extracted shard, and count what would be done."""
        if extracted.unchanged is not None:
            self.manifest.add_unchanged(count_unchanged(parts.store.read_table(extracted.unchanged)))
        chunks, letters, profile = _describe(run, extracted, parts, judged=True)
        self.manifest.merge(Manifest(packed=profile))
        changed: dict[str, bool] = {}
        owners: dict[str, Owner] = {}
        embedded, tokens = self.manifest.embedded, self.manifest.tokens
        for row in chunks:
            verdict = Verdict(row.verdict)
            owners[row.record_id] = Owner(row.team_id, row.holder_id)
            changed[row.record_id] = changed.get(row.record_id, False) or verdict != Verdict.UNCHANGED
            if verdict.needs_vector and row.content_hash not in self._seen:
                self._seen.add(row.content_hash)
                self.manifest.embedded += 1
                self.manifest.tokens += row.tokens
        if self._batch and self.manifest.embedded - embedded >= FEWEST_TEXTS:
            self.manifest.batch_tokens += self.manifest.tokens - tokens
        for record_id, owner in owners.items():
            self.manifest.add(owner, read=1, written=changed[record_id], unchanged=not changed[record_id])
        self.manifest.add(Owner(None, None), chunks=len(chunks))
        for letter in letters:
            self.manifest.add(Owner(letter.team_id, letter.holder_id), read=1, dead_lettered=1)
            self.manifest.refused[letter.code] = self.manifest.refused.get(letter.code, 0) + 1
