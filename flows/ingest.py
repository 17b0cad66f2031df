"""Ingest: what changed in the source since the last time, into ``vectordocuments``, while it changes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from blocks.memory import limit_heaps
from flows.blocks import Parts, load_parts, of_generation
from flows.hooks import alert_on_crashed, alert_on_failure, resolve_on_completion
from flows.jobs import STOP_WITHIN_S, Job, at_work, forget, job_origin, new_run, require_no_paused_load, take_up
from flows.migrate import migrate
from flows.parameters import TRANSACTIONS, GenerationName, Sources
from flows.stages import StageWork, task_runner
from tasks.domain.changes import ChangeBatch, Lags
from tasks.domain.errors import HistoryLostError, QuotaSpentError, WorkTakenError
from tasks.domain.log_lines import bound
from tasks.domain.registry import find_source
from tasks.domain.runs import Scope
from tasks.policy import DEFAULT_RETRIES

#: Started every five minutes, it follows for nearly as long: changes are searchable within seconds of being made.
DEFAULT_MAX_SECONDS = 285.0
_POSITION_EVERY_S = 30.0
#: A source without history is read from this long before the newest record that was seen: clocks and writers differ.
OVERLAP = timedelta(minutes=10)
_WATERMARK_FIELD = "createdAt"
_SOURCE = "transaction"
_COLLECTION = find_source(_SOURCE).collection

Follow = Literal["auto", "stream", "watermark"]


@dataclass(slots=True)
class IngestReport:
    """What a run took over. Records, but for ``removed`` and ``chunks`` (documents) and ``tokens``.

    The lags are from a change in the source to its being searchable, in seconds; None where nothing changed.
    ``caught_up`` says that the whole source was compared, because there was no position to follow on from;
    ``others`` is what was done of the sources beside transactions.
    """

    run_id: str
    read: int = 0
    written: int = 0
    unchanged: int = 0
    dead_lettered: int = 0
    removed: int = 0
    chunks: int = 0
    tokens: int = 0
    batches: int = 0
    lag_p50_s: float | None = None
    lag_p95_s: float | None = None
    lag_max_s: float | None = None
    seconds: float = 0.0
    caught_up: str | None = None
    refused: dict[str, int] = field(default_factory=dict)
    others: dict[str, Any] | None = None


def run_name() -> str:
    """Return ``ingest transactions``, or how many sources."""
    sources = runtime.flow_run.parameters.get("sources") or TRANSACTIONS
    return f"ingest {sources[0] if len(sources) == 1 else f'{len(sources)} sources'}"


@flow(
    name="ingest",
    flow_run_name=run_name,
    task_runner=task_runner(),
    on_failure=[alert_on_failure],
    on_crashed=[alert_on_crashed],
    on_completion=[resolve_on_completion],
)
def ingest(
    sources: Sources = TRANSACTIONS,
    max_seconds: Annotated[
        float, Field(gt=0, le=86_400, description="How long to follow the source's changes before ending.")
    ] = DEFAULT_MAX_SECONDS,
    batch_records: Annotated[int, Field(ge=1, le=10_000, description="Most changes taken over at once.")] = 1_000,
    follow: Annotated[
        Follow, Field(description="auto: change stream where the source keeps history, else the watermark.")
    ] = "auto",
    until_idle: Annotated[bool, Field(description="End as soon as nothing is left to take over.")] = False,
    generation: GenerationName = None,
    retries: Annotated[int, Field(ge=0, le=10, description="How often a stage is tried again.")] = DEFAULT_RETRIES,
) -> State[dict[str, Any]]:
    """Take over what changed in the source: inserts, updates, replacements and deletes, each once.

    Runs every few minutes by its deployment and follows for most of the time in between. Its position moves only
    when a batch is stored, so a run that dies is taken up by the next one; what it did twice is done once. Without
    a position, or when the source no longer knows what changed, everything is compared once by ``migrate``. Sources
    other than transactions are small: ``migrate`` goes through each of them, and passes over what is stored. A change
    of an owner (contracts, teams, websites) is seen by the next whole ``migrate``, not here. Without a
    ``generation`` it follows the one that is live when it begins, and ends within half a minute of another one's being
    live. The result has the fields of ``IngestReport``.
    """
    logger = get_run_logger()
    began = time.monotonic()
    limit_heaps()
    parts = load_parts(retries=retries, generation=generation)
    source, vectors = parts.source, parts.vectors
    vectors.require_model(parts.facts, replace=False, write=False)
    report = IngestReport("")
    others = [source for source in sources if source not in TRANSACTIONS]
    if others:
        try:
            done: Any = migrate(sources=others, generation=vectors.generation_name, retries=retries)
            report.others = done
        except QuotaSpentError as error:
            return _waiting(error, report)
        except WorkTakenError as error:
            logger.info("%s; the next run looks again", error)
    if len(others) == len(sources):
        report.seconds = round(time.monotonic() - began, 1)
        return Completed(message=_others_in_words(report), data=asdict(report))
    origin = job_origin("ingest", of_generation(f"ingest-{_SOURCE}", parts))
    try:
        job = take_up(new_run(Scope(_SOURCE), parts), origin, parts, resume=True)
    except WorkTakenError as error:
        return Completed(message=f"waiting: {error}", data=asdict(report))
    report.run_id = job.run.key
    follows_live = generation is None
    following = _Following(job, report, began + max_seconds, until_idle, follows_live=follows_live)
    streamed = follow == "stream" or (follow == "auto" and source.read_operation_time() is not None)
    try:
        with bound(source=_SOURCE), at_work(job, parts, bulk=False) as gated_parts:
            following.begin(gated_parts)
            try:
                if streamed:
                    following.follow_stream(batch_records)
                else:
                    following.follow_watermark(batch_records)
            except BaseException as error:
                following.stop(within_s=0.0 if isinstance(error, Exception) else STOP_WITHIN_S)
                raise
            finally:
                following.count()
    except WorkTakenError as error:
        # The first load is under way or paused; where it began is where the next run goes on.
        logger.info("nothing to do yet: %s", error)
        vectors.drop_job(job.id, run_id=job.run.id)
        return Completed(message=f"waiting: {error}", data=asdict(report))
    except QuotaSpentError as error:
        # The position stands before what is not stored: the next run begins there, with what was paid for.
        return _waiting(error, report)
    forget(job.run, parts)
    if not report.batches:
        vectors.drop_job(job.id, run_id=job.run.id)
    report.seconds = round(time.monotonic() - began, 1)
    _publish(report)
    return Completed(message=_message(report), data=asdict(report))


def _waiting(error: QuotaSpentError, report: IngestReport) -> State[dict[str, Any]]:
    """Return the state of a run that can do nothing now: each of the next ones tries again."""
    message = f"waiting: {error} Ingestion goes on by itself."
    get_run_logger().warning("%s", message)
    return Completed(message=message, data=asdict(report))


class _Following:
    """One run's way along the source's changes."""

    def __init__(
        self, job: Job, report: IngestReport, deadline: float, until_idle: bool, *, follows_live: bool
    ) -> None:
        self._job, self._report, self._follows_live = job, report, follows_live
        self._deadline, self._until_idle = deadline, until_idle
        self._manifest = job.manifest
        self._lags = Lags()
        self._idle = False

    def begin(self, parts: Parts) -> None:
        """Set out with these parts."""
        self._parts = parts
        self._identity = parts.source.identify(_COLLECTION)
        self._work = StageWork(self._job.run, parts, in_flight=1)

    def stop(self, *, within_s: float) -> None:
        """Let what is at work end, and count it."""
        for late in self._work.stop(within_s=within_s):
            self._manifest.merge(late.manifest)

    def follow_stream(self, batch_records: int) -> None:
        """Follow the change stream; where there is no position, or history is lost, compare everything first."""
        position = self._parts.vectors.load_position(_SOURCE)
        reason = None
        if position is None:
            reason = "nothing was followed before"
        elif position["source"] != self._identity:
            reason = "the source is another collection than the one that was followed"
        if reason is not None:
            position = self._catch_up(reason)
        assert position is not None
        try:
            self._take_over(self._batches(position, batch_records))
        except HistoryLostError as error:
            get_run_logger().warning("history lost: %s", error)
            self._identity = self._parts.source.identify(_COLLECTION)
            position = self._catch_up(str(error))
            self._take_over(self._batches(position, batch_records))

    def follow_watermark(self, batch_records: int) -> None:
        """Take what was created since the watermark, with an overlap; deletes and updates wait for ``migrate``."""
        position = self._parts.vectors.load_position(_SOURCE)
        if position is None or "watermark" not in position or position["source"] != self._identity:
            started = datetime.now(UTC)
            self._compare_everything("nothing was followed before")
            self._save({"watermark": started})
            return
        seen = position["watermark"]
        self._take_over(
            self._parts.source.find_newer(
                _COLLECTION, _WATERMARK_FIELD, seen - OVERLAP, known_until=seen, batch_records=batch_records
            )
        )

    def count(self) -> None:
        """Put what was done so far into the report and the job."""
        counts, report = self._manifest.total, self._report
        self._job.total = counts.read
        report.read, report.written, report.unchanged = counts.read, counts.written, counts.unchanged
        report.dead_lettered, report.removed, report.chunks = counts.dead_lettered, counts.removed, counts.chunks
        report.tokens, report.refused = self._manifest.tokens, dict(sorted(self._manifest.refused.items()))
        report.lag_p50_s, report.lag_p95_s, report.lag_max_s = map(self._lags.quantile_s, (0.5, 0.95, 1.0))

    def _batches(self, position: dict[str, Any], batch_records: int) -> Iterator[ChangeBatch]:
        return self._parts.source.follow_changes(_COLLECTION, position, batch_records=batch_records, stop=self._is_over)

    def _is_over(self) -> bool:
        return time.monotonic() >= self._deadline or (self._until_idle and self._idle)

    def _catch_up(self, reason: str) -> dict[str, Any]:
        """Compare the whole source, and return the moment from before that, to follow on from."""
        moment = self._parts.source.read_operation_time()
        self._compare_everything(reason)
        position = {"operationTime": moment}
        self._save(position)
        return position

    def _compare_everything(self, reason: str) -> None:
        get_run_logger().warning("comparing the whole source: %s", reason)
        require_no_paused_load(self._parts, _SOURCE)
        self._report.caught_up = reason
        migrate(generation=self._parts.vectors.generation_name, retries=self._parts.retries)

    def _take_over(self, batches: Iterator[ChangeBatch]) -> None:
        """Take the batches through the stages, and move the position behind each when it is stored."""
        looked = time.monotonic()
        for batch in batches:
            self._idle = not batch.ids
            if batch.ids:
                for done in self._work.finish([batch]):
                    self._manifest.merge(done.manifest)
                self._report.batches += 1
                self._lags.add(batch.times_ms, now_ms=int(time.time() * 1000))
            # The position moves while nothing changes too: one that stands still falls out of the history.
            due = time.monotonic() - looked >= _POSITION_EVERY_S
            if batch.position and (batch.ids or due):
                self._save(batch.position)
            if due:
                looked = time.monotonic()
                if self._follows_live and not self._parts.vectors.is_live():
                    get_run_logger().info("another generation is live: the next run follows that one")
                    break
            if time.monotonic() >= self._deadline:
                break

    def _save(self, position: dict[str, Any]) -> None:
        self._parts.vectors.save_position(_SOURCE, position, source=self._identity, now=datetime.now(UTC))


def _others_in_words(report: IngestReport) -> str:
    if report.others is None:
        return "waiting: another run is at these sources"
    done = report.others
    return (
        f"{done['written']:,} written, {done['unchanged']:,} unchanged, {done['dead_lettered']:,} dead-lettered, "
        f"{done['removed']:,} removed"
    )


def _message(report: IngestReport) -> str:
    lag = f", 95 % searchable within {report.lag_p95_s} s" if report.lag_p95_s is not None else ""
    caught_up = " after comparing the whole source" if report.caught_up else ""
    return (
        f"{report.written:,} written, {report.unchanged:,} unchanged, {report.dead_lettered:,} dead-lettered, "
        f"{report.removed:,} removed{lag}{caught_up}"
    )


def _publish(report: IngestReport) -> None:
    lines = [f"# {_message(report)}", "", "| figure | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in asdict(report).items() if value not in (None, {})]
    create_markdown_artifact("\n".join(lines), key="ingest-summary", description="What was taken over, and its lag")
