"""Migrate: the whole source, shard by shard, resumable, into ``vectordocuments``."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast
from uuid import UUID, uuid4

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote
from pydantic import Field

from blocks.gemini import USD_PER_MILLION_TOKENS
from blocks.memory import limit_heaps
from blocks.mongo import MongoSource
from blocks.shards import ShardStore
from blocks.vector_store import VectorStore
from flows.blocks import Parts, PipelineEmbedder, load_parts
from flows.hooks import alert_on_crashed, alert_on_failure, resolve_on_completion
from flows.progress import Progress, duration
from tasks.checkpoint import checkpoint_shard
from tasks.chunk import DescribedChunk, chunk_shard
from tasks.domain.errors import InputError, PipelineError, ShardDamagedError, TerminalError, WorkTakenError
from tasks.domain.jobs import JobOrigin, Status, job_id, job_record
from tasks.domain.manifests import Counts, Manifest
from tasks.domain.owners import Owners
from tasks.domain.rows import Verdict
from tasks.domain.runs import Run, Scope, fingerprint
from tasks.domain.shards import Shard, ShardRange
from tasks.domain.tables import from_table
from tasks.domain.vectors import EmbedderFacts
from tasks.domain.windows import Window
from tasks.embed import embed_shard
from tasks.extract import COLLECTION, extract_shard, in_window, source_criteria
from tasks.policy import DEFAULT_RETRIES, STAGE
from tasks.reconcile import Reconciliation, reconcile_run
from tasks.upsert import upsert_shard
from tasks.validate import validate_shard

#: A row of the source, described, chunked and embedded, is some 10 kB: 5,000 rows are 50 MB and six task runs.
DEFAULT_SHARD_ROWS = 5_000
#: Two shards keep both the embedder and the database busy; memory holds no more than these.
DEFAULT_SHARDS_IN_FLIGHT = 2
MAX_SHARDS_IN_FLIGHT = 8
_STAGES = 6
_ARTIFACT_EVERY_S = 5.0
_RESUMABLE_FOR = timedelta(days=7)
#: A run on another machine that has not said anything for this long is dead.
_SILENT_FOR = timedelta(minutes=5)
_HEARTBEAT_S = 30.0
_MAX_REPAIRS = 2
_SHOWN_DIFFERENCES = 5
_ENDED = {"failed": "failed", "cancelled": "was stopped"}
#: What the offline embedder's tokens would have cost.
_REFERENCE_MODEL = "gemini-embedding-001"

ObjectIdText = Annotated[str, Field(pattern="^[0-9a-f]{24}$")]
SourceName = Literal["transactions"]
DEFAULT_SOURCES: list[SourceName] = ["transactions"]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class MigrateReport:
    """What a run did. Records, but for ``removed`` and ``chunks`` (vector documents) and ``embedded`` (texts).

    ``cost_usd`` is at Gemini's list price; an offline embedder charges nothing, and the figure is what Gemini would
    have cost. ``seconds`` is this run's wall time. In a dry run the figures are what a run would do.
    """

    run_id: str
    read: int
    written: int
    unchanged: int
    dead_lettered: int
    removed: int
    chunks: int
    embedded: int
    tokens: int
    cost_usd: float
    seconds: float
    rows_per_second: float
    dry_run: bool
    resumed_shards: int
    embedder: str
    refused: dict[str, int]
    arrived: int = 0
    quota_seconds: float | None = None
    flow_run_id: str | None = None


def _run_name() -> str:
    given = runtime.flow_run.parameters
    try:
        window: Window | str = Window(_moment(given.get("start")), _moment(given.get("end")))
    except ValueError:
        window = "an impossible window"  # the flow itself says what is wrong with it
    prefix = "dry run: migrate" if given.get("dry_run") else "migrate"
    return f"{prefix} {', '.join(given.get('sources') or ())} {window}"


def _moment(value: Any) -> datetime | None:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value if isinstance(value, datetime) else None


@flow(
    name="migrate",
    flow_run_name=_run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=MAX_SHARDS_IN_FLIGHT * _STAGES),  # type: ignore[arg-type]
    on_failure=[alert_on_failure],
    on_crashed=[alert_on_crashed],
    on_completion=[resolve_on_completion],
)
def migrate(
    sources: Annotated[list[SourceName], Field(min_length=1, description="What to migrate.")] = DEFAULT_SOURCES,
    start: Annotated[datetime | None, Field(description="First block time to take, UTC; none: from the first.")] = None,
    end: Annotated[datetime | None, Field(description="First block time not to take, UTC; none: to the last.")] = None,
    teams: Annotated[list[ObjectIdText], Field(description="Only these teams' records, by id; none: all.")] = [],  # noqa: B006
    contracts: Annotated[list[str], Field(description="Only these contracts' records, by contractId; none: all.")] = [],  # noqa: B006
    limit: Annotated[
        int | None, Field(ge=1, description="At most this many records, in the order of their ids.")
    ] = None,
    shard_rows: Annotated[int, Field(ge=1, le=50_000, description="Records in a shard.")] = DEFAULT_SHARD_ROWS,
    shards_in_flight: Annotated[
        int, Field(ge=1, le=MAX_SHARDS_IN_FLIGHT, description="Shards at work at once; memory grows with it.")
    ] = DEFAULT_SHARDS_IN_FLIGHT,
    dry_run: Annotated[
        bool, Field(description="Count rows, tokens, cost and time; write nothing, embed nothing.")
    ] = False,
    resume: Annotated[bool, Field(description="Take up an unfinished run of the same work where it stopped.")] = True,
    replace_model: Annotated[
        bool, Field(description="Replace stored vectors of another model, which embeds everything again.")
    ] = False,
    remove_orphans: Annotated[
        bool, Field(description="Remove vectors of records gone from the source, however many they are.")
    ] = False,
    retries: Annotated[int, Field(ge=0, le=10, description="How often a stage is tried again.")] = DEFAULT_RETRIES,
) -> State[dict[str, Any]]:
    """Migrate source records into the vector store: extract, validate, chunk, embed, upsert, checkpoint, reconcile.

    Run it for the first load and whenever the store may lag behind. A rerun embeds and writes only what changed; a
    run that was cut off goes on at its first unfinished shard. Ends as completed when every record is written,
    unchanged or a dead letter with its reason; fails, with what to do, when source and store differ. The result has
    the fields of ``MigrateReport``.
    """
    logger = get_run_logger()
    began = time.monotonic()
    limit_heaps()
    parts = load_parts(retries=retries)
    vectors, facts = parts.vectors, parts.facts
    scope = _scope(parts.owners, start=start, end=end, teams=teams, contracts=contracts, limit=limit)
    vectors.require_model(facts, replace=replace_model, write=False)
    flow_run_id = str(runtime.flow_run.id or uuid4())
    logger.info("%s with %s into %s.vectordocuments", scope, facts.model, vectors.database)

    if dry_run:
        run = _new_run(scope, flow_run_id, vectors)
        try:
            report = _rehearse(run, parts, shard_rows, began)
        finally:
            parts.store.drop_run(run.key)
        return Completed(message=_message(report), data=asdict(report))

    _check_embedder.with_options(retries=retries)(parts.embedder)
    _initialise.with_options(retries=retries)(vectors, facts.dimensions)
    vectors.require_model(facts, replace=replace_model, write=True)
    work = fingerprint(
        scope,
        facts,
        shard_rows=shard_rows,
        source=parts.source.identify(COLLECTION),
        owners=parts.owners.digest(),
        form=vectors.vector_form,
    )
    triggered_by = "prefect" if runtime.deployment.id else "command line"
    origin = JobOrigin(work, triggered_by, _worker_id() or "", socket.gethostname())
    job = _take_up(scope, flow_run_id, origin, parts, resume=resume)
    with _heartbeat(vectors, job.id):
        report = _carry_out(job, parts, shard_rows, shards_in_flight, remove_orphans, began)
    return Completed(message=_message(report), data=asdict(report))


# -- what is to be done ---------------------------------------------------------------------------------------


def _scope(
    owners: Owners,
    *,
    start: datetime | None,
    end: datetime | None,
    teams: list[str],
    contracts: list[str],
    limit: int | None,
) -> Scope:
    """Return the scope, or raise ``InputError`` for a window, team or contract that can't be meant."""
    try:
        window = Window(start, end)
    except ValueError as error:
        raise InputError(f"{error}: exchange them, or leave one out") from None
    known_teams = {contract.team_id for contract in owners.by_contract_id.values()}
    unknown = [team for team in teams if team not in known_teams]
    if unknown:
        raise InputError(f"no contract belongs to team {', '.join(unknown)}: look at teams._id in the source")
    unknown = [contract for contract in contracts if contract not in owners.by_contract_id]
    if unknown:
        raise InputError(f"there is no contract {', '.join(unknown)}: look at smartcontracts.contractId")
    return Scope("transaction", window, tuple(sorted(teams)), tuple(sorted(contracts)), limit)


def _new_run(scope: Scope, flow_run_id: str, vectors: VectorStore) -> Run:
    return Run(
        key=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:8]}",
        id=flow_run_id,
        scope=scope,
        started_ms=int(time.time() * 1000),
        target_was_empty=vectors.is_empty(),
    )


@dataclass(slots=True)
class _Job:
    """The run as ``embeddingjobs`` shows it; every write replaces the record whole."""

    run: Run
    origin: JobOrigin
    parts: Parts
    previous: dict[str, Any] | None = None
    total: int = 0
    manifest: Manifest = field(default_factory=Manifest)

    @property
    def id(self) -> str:
        return job_id(self.run.key)

    def record(self, status: Status, *, left_s: float | None = None, **more: Any) -> dict[str, Any]:
        now = datetime.now(UTC)
        return job_record(
            self.run,
            self.origin,
            self.parts.facts,
            self.parts.size,
            status=status,
            total=self.total,
            manifest=self.manifest,
            now=now,
            previous=self.previous,
            estimated_completion=now + timedelta(seconds=left_s) if left_s is not None else None,
            **more,
        )

    def save(self, status: Status, **more: Any) -> None:
        """Write the record. What can't be written now is written by the next call: it never stops the work."""
        try:
            self.parts.vectors.save_job(self.record(status, **more))
        except PipelineError as error:
            get_run_logger().warning("the job's record is behind: %s", error)


def _take_up(scope: Scope, flow_run_id: str, origin: JobOrigin, parts: Parts, *, resume: bool) -> _Job:
    """Return the job, claimed for this process: an unfinished one of the same work, or a new one.

    Raises ``WorkTakenError`` while another run is at the same work.
    """
    logger = get_run_logger()
    vectors, store = parts.vectors, parts.store
    previous = vectors.find_job({"metadata.fingerprint": origin.fingerprint})
    run = _new_run(scope, flow_run_id, vectors)
    store.sweep(now_s=time.time())
    taken_up = None
    if previous is not None and previous["status"] != "completed":
        if previous["status"] == "processing" and _is_alive(previous):
            raise WorkTakenError(
                f"run {previous['metadata']['runId']} on {previous['workerHost']} is at this work right now: wait for "
                "it, or cancel it first"
            )
        if resume and _is_resumable(previous, store):
            taken_up = previous
            run = replace(run, key=previous["metadata"]["runKey"])
            logger.info("taking up run %s, which %s", run.key, _ENDED.get(previous["status"], "was cut off"))
        elif previous["status"] == "processing":
            vectors.give_up_job(previous, error="its process is gone", now=datetime.now(UTC))
    job = _Job(run, origin, parts, previous=taken_up)
    if not vectors.claim_job(job.record("processing"), instead_of=taken_up):
        raise WorkTakenError("another run took up this work just now: wait for it, or cancel it first")
    return job


def _is_resumable(job: dict[str, Any], store: ShardStore) -> bool:
    metadata = job["metadata"]
    recent = datetime.now(UTC) - job["startedAt"] < _RESUMABLE_FOR
    return bool(metadata.get("resumable", True) and recent and store.read_plan(metadata["runKey"]) is not None)


@contextmanager
def _heartbeat(vectors: VectorStore, job: str) -> Iterator[None]:
    """Show that this process is alive, also while one shard takes long: a silent job of another machine is dead."""
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(_HEARTBEAT_S):
            with suppress(PipelineError):
                vectors.touch_job(job, now=datetime.now(UTC))

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _is_alive(job: dict[str, Any]) -> bool:
    """Return whether the process of a job is at work still, as far as can be told from here."""
    if job.get("workerHost") == socket.gethostname():
        pid = str(job.get("workerId") or "").split(":")[1:2]
        if pid and pid[0].isdecimal():
            # Pids come round again: the start time tells a process from its successor.
            return int(pid[0]) != os.getpid() and job["workerId"] == _worker_id(int(pid[0]))
    return bool(datetime.now(UTC) - job["updatedAt"] < _SILENT_FOR)


def _worker_id(pid: int | None = None) -> str | None:
    """Return ``host:pid:start`` of a process of this machine, or None where it no longer runs."""
    pid = os.getpid() if pid is None else pid
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        # The 3rd field is the state, the 22nd the start; the 2nd, the name, may hold spaces and brackets.
        fields = stat.read_text().rpartition(")")[2].split() if stat.exists() else []
        if fields and fields[0] == "Z":  # ended, and not yet noticed by its parent
            return None
        started = fields[19] if fields else ""
    except PermissionError:
        started = ""
    except OSError:
        return None
    return f"{socket.gethostname()}:{pid}:{started}"


@task(name="check embedder", task_run_name="check embedder", **STAGE)
def _check_embedder(embedder: PipelineEmbedder) -> None:
    """Prove that the embedder answers, before anything is made or read. A service that is busy is asked again."""
    embedder.check()


@task(name="initialise", task_run_name="initialise", **STAGE)
def _initialise(vectors: VectorStore, dimensions: int) -> None:
    """Make what the store lacks; what differs is logged, and ``initialise`` reports it in full."""
    logger = get_run_logger()
    drift = vectors.initialise(dimensions)
    if drift.created:
        logger.info("made %d collections and indexes", len(drift.created))
    for line in drift.differs:
        logger.warning("drift: %s", line)


@task(name="plan", task_run_name="plan", **STAGE)
def plan_shards(source: MongoSource, owners: Owners, scope: Scope, shard_rows: int) -> list[ShardRange]:
    """Return the ranges of the source that make up the shards, in order."""
    criteria = source_criteria(scope, owners)
    shards = source.plan_shards(COLLECTION, criteria=criteria, rows=shard_rows, limit=scope.limit)
    get_run_logger().info("%s records in %d shards", f"{sum(s.planned for s in shards):,}", len(shards))
    return shards


# -- doing it -------------------------------------------------------------------------------------------------


def _carry_out(
    job: _Job, parts: Parts, shard_rows: int, shards_in_flight: int, remove_orphans: bool, began: float
) -> MigrateReport:
    """Run every unfinished shard through the stages, reconcile, and keep the job's record true throughout."""
    logger = get_run_logger()
    run, vectors, store, manifest = job.run, parts.vectors, parts.store, job.manifest
    resumable = True
    try:
        shards = store.read_plan(run.key) if job.previous else None
        if shards is None:
            moment = parts.source.read_operation_time()
            shards = plan_shards.with_options(retries=parts.retries)(
                parts.source, _whole(parts.owners), run.scope, shard_rows
            )
            store.write_plan(run.key, shards, operation_time=moment)
        job.total = sum(shard.planned for shard in shards)
        finished = vectors.load_checkpoints(run.key)
        counts = {number: done.total for number, done in finished.items()}
        for done in finished.values():
            manifest.merge(done)
        if finished:
            logger.info("%d of %d shards were finished before", len(finished), len(shards))
        progress = Progress(job.total, done=manifest.total.read, resumed=manifest.total.read)
        announcer = _Announcer(progress)
        checkpoints: list[PrefectFuture[Manifest]] = []
        unfinished = [shard for shard in shards if shard.number not in finished]
        for shard, checkpoint in _finish_shards(run, unfinished, parts, shards_in_flight):
            checkpoints.append(checkpoint)
            done = checkpoint.result()
            manifest.merge(done)
            counts[shard.number] = done.total
            progress.done, progress.dead_lettered = manifest.total.read, manifest.total.dead_lettered
            announcer.tell()
            job.save("processing", left_s=progress.seconds_left)
        manifest.require_closed("the run")
        result = _reconcile(run, shards, counts, manifest, parts, remove_orphans, after=checkpoints)
        if result.differences:
            # Its checkpoints promise what the store doesn't hold: a run that took them up would fail for ever.
            resumable = False
            raise TerminalError(
                "source and store differ after the run: "
                + "; ".join(result.differences[:_SHOWN_DIFFERENCES])
                + ". Run it again: it looks at every record anew, writes what is missing and leaves the rest"
            )
    except BaseException as error:
        stopped = not isinstance(error, Exception)  # Ctrl-C, SIGTERM, a cancel in the UI
        job.save("cancelled" if stopped else "failed", error=str(error) or type(error).__name__, resumable=resumable)
        raise
    announcer.finish()
    if run.scope.whole:
        _hand_over(run, parts)
    job.save("completed")
    store.drop_run(run.key)
    vectors.drop_checkpoints(run.key)
    report = _report(run, manifest, parts, began, resumed_shards=len(finished), result=result)
    _publish(report, manifest, parts)
    if manifest.refused:
        logger.warning("dead letters by reason: %s", _by_reason(manifest.refused))
    return report


def _hand_over(run: Run, parts: Parts) -> None:
    """Put down where following the source's changes begins, if nobody does yet: before this run read anything."""
    moment = parts.store.read_operation_time(run.key)
    if moment is not None and parts.vectors.load_position(run.scope.source_type) is None:
        parts.vectors.save_position(
            run.scope.source_type,
            {"operationTime": moment},
            source=parts.source.identify(COLLECTION),
            now=datetime.now(UTC),
        )


def _finish_shards(
    run: Run, shards: list[ShardRange], parts: Parts, in_flight: int
) -> Iterator[tuple[ShardRange, PrefectFuture[Manifest]]]:
    """Yield each shard with its last stage, which returns its manifest, once it is finished; ``in_flight`` are at work.

    A shard whose files were lost or damaged runs again from its source. The first other failure ends it: shards
    already at work are waited for, since what they paid for is kept.
    """
    waiting = list(reversed(shards))
    chains: dict[PrefectFuture[Any], tuple[ShardRange, int, list[PrefectFuture[Any]]]] = {}

    def submit(shard: ShardRange, attempt: int) -> None:
        # What an earlier attempt wrote is there now, whatever the store held when the run began.
        empty = run.target_was_empty and attempt == 0
        chain = _submit(replace(run, target_was_empty=empty), shard, parts)
        chains[chain[-1]] = (shard, attempt, chain)

    while waiting or chains:
        while waiting and len(chains) < in_flight:
            submit(waiting.pop(), 0)
        last = next(as_completed(list(chains)))
        shard, attempt, chain = chains.pop(last)
        error = _first_error(chain)
        if error is None:
            yield shard, last
        elif isinstance(error, ShardDamagedError) and attempt < _MAX_REPAIRS:
            get_run_logger().warning("shard %d runs again: %s", shard.number, error)
            submit(shard, attempt + 1)
        else:
            for other in chains:
                other.wait()
            raise error


def _whole(value: Value) -> Value:
    """Pass a value to a task as it is: Prefect would else look for futures inside, which costs more than the task."""
    return cast(Value, quote(value))


def _from(future: PrefectFuture[Value]) -> Value:
    """Pass what another task will return: Prefect waits for it and draws the edge."""
    return cast(Value, future)


def _submit(run: Run, shard: ShardRange, parts: Parts) -> list[PrefectFuture[Any]]:
    """Submit the stages of one shard, each waiting for the one before; return their futures."""
    retries = parts.retries
    store, vectors = parts.store, parts.vectors
    extracted = extract_shard.with_options(retries=retries).submit(
        _whole(run), shard, parts.source, _whole(parts.owners), store
    )
    validated = validate_shard.with_options(retries=retries).submit(_whole(run), _from(extracted), store)
    chunked = chunk_shard.with_options(retries=retries).submit(
        _whole(run), _from(validated), store, parts.source, vectors, _whole(parts.facts), _whole(parts.size)
    )
    embedded = embed_shard.with_options(retries=retries).submit(
        _whole(run), _from(chunked), store, parts.embedder, parts.embedder.concurrency
    )
    upserted = upsert_shard.with_options(retries=retries).submit(_whole(run), _from(embedded), store, vectors)
    checkpointed = checkpoint_shard.with_options(retries=retries).submit(
        _whole(run), _from(embedded), _from(upserted), store, vectors
    )
    return [extracted, validated, chunked, embedded, upserted, checkpointed]


def _first_error(chain: list[PrefectFuture[Any]]) -> BaseException | None:
    """Return what the first failed stage of a shard raised; the stages behind it only say that it did."""
    for future in chain:
        future.wait()
        if not future.state.is_completed():
            error = future.state.result(raise_on_failure=False)
            return error if isinstance(error, BaseException) else TerminalError(str(future.state.message))
    return None


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
    criteria = source_criteria(run.scope, parts.owners)
    return reconcile_run.with_options(retries=parts.retries)(
        _whole(run),
        _whole(shards),
        _whole(counts),
        _whole(manifest),
        parts.source,
        parts.vectors,
        COLLECTION,
        _whole(criteria),
        _whole(partial(in_window, scope=run.scope)),
        remove_orphans,
        wait_for=after,  # all of them are done: this draws the edges
    )


# -- a dry run ------------------------------------------------------------------------------------------------


def _rehearse(run: Run, parts: Parts, shard_rows: int, began: float) -> MigrateReport:
    """Return what a run would do: read, describe and compare, but embed and write nothing."""
    shards = plan_shards(parts.source, _whole(parts.owners), run.scope, shard_rows)
    progress = Progress(sum(shard.planned for shard in shards))
    seen: set[bytes] = set()  # some 50 bytes per distinct text: only a dry run holds them all
    read = written = unchanged = chunks = tokens = 0
    refused: dict[str, int] = {}
    for shard in shards:
        extracted = extract_shard(run, shard, parts.source, _whole(parts.owners), parts.store)
        validated = validate_shard(run, extracted, parts.store)
        chunked: Shard = chunk_shard(run, validated, parts.store, parts.source, parts.vectors, parts.facts, parts.size)
        changed: dict[str, bool] = {}
        for row in from_table(DescribedChunk, parts.store.read_table(chunked.rows)):
            verdict = Verdict(row.verdict)
            chunks += 1
            changed[row.record_id] = changed.get(row.record_id, False) or verdict != Verdict.UNCHANGED
            if verdict.needs_vector and row.content_hash not in seen:
                seen.add(row.content_hash)
                tokens += row.tokens
        for file in chunked.refused:
            for code in parts.store.read_table(file).column("code").to_pylist():
                refused[code] = refused.get(code, 0) + 1
        read += chunked.read
        written += sum(changed.values())
        unchanged += len(changed) - sum(changed.values())
        parts.store.drop_shard(run.key, shard.number)
        progress.done, progress.dead_lettered = read, sum(refused.values())
        progress.tell()
    return _figures(
        run,
        parts,
        began,
        read=read,
        written=written,
        unchanged=unchanged,
        dead_lettered=sum(refused.values()),
        removed=0,
        chunks=chunks,
        embedded=len(seen),
        tokens=tokens,
        refused=refused,
        dry_run=True,
        resumed_shards=0,
        quota_seconds=_quota_seconds(parts.facts, len(seen), tokens),
    )


def _quota_seconds(facts: EmbedderFacts, texts: int, tokens: int) -> float | None:
    """Return how long the configured quota makes a run wait at least, or None where there is no quota."""
    waits = [
        amount * 60 / quota
        for amount, quota in ((texts, facts.texts_per_minute), (tokens, facts.tokens_per_minute))
        if quota
    ]
    return round(max(waits), 1) if waits else None


# -- what is said of it ---------------------------------------------------------------------------------------


def _figures(run: Run, parts: Parts, began: float, **figures: Any) -> MigrateReport:
    seconds = time.monotonic() - began
    price = parts.facts.usd_per_million_tokens or USD_PER_MILLION_TOKENS[_REFERENCE_MODEL]
    return MigrateReport(
        run_id=run.key,
        flow_run_id=run.id,
        cost_usd=round(figures["tokens"] * price / 1_000_000, 6),
        seconds=round(seconds, 2),
        rows_per_second=round(figures["read"] / seconds, 1) if seconds else 0.0,
        embedder=f"{parts.facts.model}, {parts.facts.dimensions} dimensions",
        **figures,
    )


def _report(
    run: Run, manifest: Manifest, parts: Parts, began: float, *, resumed_shards: int, result: Reconciliation
) -> MigrateReport:
    counts = manifest.total
    return _figures(
        run,
        parts,
        began,
        read=counts.read,
        written=counts.written,
        unchanged=counts.unchanged,
        dead_lettered=counts.dead_lettered,
        removed=counts.removed + result.removed,
        chunks=counts.chunks,
        embedded=manifest.embedded,
        tokens=manifest.tokens,
        refused=dict(sorted(manifest.refused.items())),
        dry_run=False,
        resumed_shards=resumed_shards,
        arrived=result.arrived,
    )


def _by_reason(refused: dict[str, int]) -> str:
    return ", ".join(f"{code} {number:,}" for code, number in sorted(refused.items()))


def _message(report: MigrateReport) -> str:
    rejects = f"{report.dead_lettered:,} dead letter{'' if report.dead_lettered == 1 else 's'}"
    if report.dry_run:
        quota = f", at least {duration(report.quota_seconds)} at the quota" if report.quota_seconds else ""
        return (
            f"dry run: {report.written:,} of {report.read:,} records to write, {rejects}, {report.tokens:,} tokens, "
            f"${report.cost_usd:.4f}{quota}"
        )
    return f"{report.written:,} written, {report.unchanged:,} unchanged, {rejects}, {report.removed:,} removed"


class _Announcer:
    """Says how far the run is: in its log, on its progress artifact, and to whoever listens."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._artifact: UUID | None = None
        with _never_stopping("the progress artifact"):
            self._artifact = cast(
                UUID,
                create_progress_artifact(
                    progress=progress.percent, key="migrate-progress", description="Records done of those planned"
                ),
            )
        self._told = time.monotonic()
        progress.tell()

    def tell(self) -> None:
        get_run_logger().info("%s", self._progress)
        self._progress.tell()
        if time.monotonic() - self._told >= _ARTIFACT_EVERY_S:
            self._told = time.monotonic()
            self._update()

    def finish(self) -> None:
        self._progress.tell()
        self._update()

    def _update(self) -> None:
        if self._artifact is None:
            return
        with _never_stopping("the progress artifact"):
            update_progress_artifact(
                artifact_id=self._artifact, progress=self._progress.percent, description=str(self._progress)
            )


@contextmanager
def _never_stopping(what: str) -> Iterator[None]:
    """Log a failure of what only tells about the work: it must not stop the work itself."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever the server's client raises
        get_run_logger().warning("%s could not be written: %s", what, error)


def _publish(report: MigrateReport, manifest: Manifest, parts: Parts) -> None:
    """Put the run's counts, by owner and by reason, beside the run in the UI."""
    shown = 50
    owners = manifest.to_record()["counts"]
    lines = [
        f"# {_message(report)}",
        "",
        "| read | written | unchanged | dead-lettered | removed | chunks | embedded | tokens | cost | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| {report.read:,} | {report.written:,} | {report.unchanged:,} | {report.dead_lettered:,} "
        f"| {report.removed:,} | {report.chunks:,} | {report.embedded:,} | {report.tokens:,} "
        f"| ${report.cost_usd:.4f} | {report.seconds:,.1f} |",
        "",
        f"Embedder: {report.embedder}. Database: {parts.vectors.database}.",
    ]
    if manifest.refused:
        lines += ["", "## Dead letters", "", "| reason code | records |", "|---|---|"]
        lines += [f"| {code} | {number:,} |" for code, number in sorted(manifest.refused.items())]
        lines += ["", f"Each with its reason: `db.deadletters.find({{runId: '{report.flow_run_id}'}})`"]
    lines += [
        "",
        "## By team and contract",
        "",
        "| team | contract | read | written | unchanged | dead-lettered |",
    ]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        f"| {row['team_id'] or 'unknown'} | {row['contract_id'] or 'unknown'} | {row['read']:,} | {row['written']:,} "
        f"| {row['unchanged']:,} | {row['dead_lettered']:,} |"
        for row in sorted(owners, key=lambda row: -row["read"])[:shown]
    ]
    if len(owners) > shown:
        lines.append(f"\n{len(owners) - shown:,} more contracts have fewer records.")
    with _never_stopping("the summary artifact"):
        create_markdown_artifact("\n".join(lines), key="migrate-summary", description="What the run did")
