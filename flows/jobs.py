"""Jobs: a run's claim on its work and its record in ``embeddingjobs``, true while it runs and after it ended.

Which run may take up what: the same work has the same fingerprint, and one live run at a time. What a run began and
did not complete is taken up by the next run of the same work, under the same run key, with its plan, checkpoints and
paid texts. A run that lost its claim writes nothing more.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from prefect import get_run_logger, runtime

from blocks.code_version import read_code_version
from blocks.meters import write_measures
from blocks.shards import ShardStore
from blocks.vector_store import VectorStore
from flows.blocks import Parts, gated
from tasks.domain.errors import BudgetSpentError, PipelineError, QuotaSpentError, WorkTakenError
from tasks.domain.generations import FIRST
from tasks.domain.jobs import JobOrigin, Kind, Status, job_id, job_record
from tasks.domain.manifests import Manifest
from tasks.domain.runs import Run, Scope

#: How long a run that is asked to stop lets its work under way end: a worker kills one that was cancelled after 30.
STOP_WITHIN_S = 20.0
#: Where a job's choices say which file holds the ids of its records.
RECORDS = "records"
_RESUMABLE_FOR = timedelta(days=7)
#: A run on another machine that has not said anything for this long is dead.
_SILENT_FOR = timedelta(minutes=5)
_HEARTBEAT_S = 30.0
_BUDGET_CODE = "budget"
_ALLOWED = "budgetAllowedUsd"
_END_TRIES, _END_PAUSE_S = 5, 2.0
#: A paused load goes on by itself when its quota is back; one that did not by then is anybody's.
_OVERDUE_AFTER = timedelta(hours=1)
_ENDED = {"failed": "failed", "cancelled": "was stopped", "retrying": "paused"}
_WHOLE: dict[str, Any] = {"start": None, "end": None, "teams": [], "contracts": [], "limit": None}
#: The jobs that this process is at.
_at_work_here: set[str] = set()


def new_run(scope: Scope, parts: Parts, *, bulk: bool = False, rebuild: bool = False, thorough: bool = False) -> Run:
    """Return a run that begins now, by the store's clock. With ``bulk`` it looks whether the store has none of it."""
    now = parts.vectors.read_time()
    return Run(
        key=f"{now:%Y%m%dT%H%M%S}-{uuid4().hex[:8]}",
        id=str(runtime.flow_run.id or uuid4()),
        scope=scope,
        started_ms=int(now.timestamp() * 1000),
        target_was_empty=bulk and parts.vectors.is_empty(of=scope.source),
        rebuild=rebuild,
        thorough=thorough,
        owners=parts.owners.digest(),
        code_version=read_code_version(),
    )


def job_origin(kind: Kind, fingerprint: str, *, part: int | None = None, **choices: Any) -> JobOrigin:
    """Return who runs the work here. Jobs with the same fingerprint are the same work: one of them at a time."""
    triggered_by = "prefect" if runtime.deployment.id else "command line"
    choices = {**choices, "claimedAt": datetime.now(UTC)}
    return JobOrigin(fingerprint, triggered_by, worker_id() or "", socket.gethostname(), kind, choices, part)


@dataclass(slots=True)
class Job:
    """The run as ``embeddingjobs`` shows it; every write replaces the record whole."""

    run: Run
    origin: JobOrigin
    parts: Parts
    previous: dict[str, Any] | None = None
    created_after: datetime | None = None
    total: int = 0
    manifest: Manifest = field(default_factory=Manifest)
    resumable: bool = True

    @property
    def id(self) -> str:
        """Return its ``jobId``."""
        return job_id(self.run.key, self.origin.kind, self.origin.part)

    @property
    def choices(self) -> Mapping[str, Any]:
        """Return what a process needs that goes on with this work."""
        return self.origin.choices or {}

    @property
    def allowed_usd(self) -> float | None:
        """Return the dollars that this work may spend in all, or None for any sum."""
        allowed = self.choices.get(_ALLOWED)
        return None if allowed is None else float(allowed)

    def note(self, **choices: Any) -> None:
        """Add to what a process needs that goes on with this work."""
        self.origin = replace(self.origin, choices={**self.choices, **choices})
        self.save("processing")

    def save(self, status: Status, *, left_s: float | None = None, **more: Any) -> bool:
        """Write the record; return whether that worked. What can't be written now is written by the next call.

        Raises ``WorkTakenError`` if another run has taken this one for dead and claimed its work.
        """
        now = datetime.now(UTC)
        estimate = now + timedelta(seconds=left_s) if left_s is not None else None
        try:
            kept = self.parts.vectors.keep_job(self._record(status, now=now, estimated_completion=estimate, **more))
        except PipelineError as error:
            get_run_logger().warning("the job's record is behind: %s", error)
            return False
        if not kept:
            raise WorkTakenError("another run took this one for dead and goes on with its work: this one ends here")
        return True

    def end(self, error: BaseException | None = None) -> None:
        """Write how it ended, with an example of each reason for dead letters; tried for some seconds."""
        more: dict[str, Any] = {"resumable": self.resumable}
        status: Status = "completed"
        if isinstance(error, QuotaSpentError):
            status, more = "retrying", {"error": str(error), "next_retry": error.until}
        elif isinstance(error, BudgetSpentError):
            status, more = "retrying", {"error": str(error), "error_code": _BUDGET_CODE}
        elif error is not None:
            # Ctrl-C, SIGTERM or a cancel in the UI is no Exception.
            status = "failed" if isinstance(error, Exception) else "cancelled"
            more["error"] = (str(error) if isinstance(error, Exception) else "") or type(error).__name__
        with suppress(PipelineError):
            more["letters"] = self.parts.vectors.find_dead_letter_examples(self.run.ids)
        pause = threading.Event()
        for _ in range(_END_TRIES):
            if self.save(status, **more):
                return
            pause.wait(_END_PAUSE_S)

    def claim(self) -> bool:
        """Write the record as one that is being processed; False if another run was quicker."""
        record = self._record("processing", now=datetime.now(UTC))
        return self.parts.vectors.claim_job(record, instead_of=self.previous)

    def _record(self, status: Status, *, now: datetime, **more: Any) -> dict[str, Any]:
        return job_record(
            self.run,
            self.origin,
            self.parts.facts,
            self.parts.size,
            status=status,
            total=self.total,
            manifest=self.manifest,
            now=now,
            retries=self.parts.retries,
            previous=self.previous,
            created_after=self.created_after,
            **more,
        )


def take_up(run: Run, origin: JobOrigin, parts: Parts, *, resume: bool) -> Job:
    """Return the job, claimed for this process: an unfinished one of the same work, or a new one.

    Raises ``WorkTakenError`` while another run is at the same work. A run that takes up another's work has its key.
    Without ``resume`` it takes up only what this flow run itself began, before a pause or a retry of Prefect's.
    """
    logger = get_run_logger()
    vectors, store = parts.vectors, parts.store
    origin = replace(origin, choices={**(origin.choices or {}), "generation": vectors.generation_name})
    previous = _find_previous(origin.fingerprint, vectors)
    now = vectors.read_time()
    # Files have this machine's times; a clock that is ahead must not make them look old.
    store.sweep(now_s=min(time.time(), now.timestamp()))
    taken_up = None
    if previous is not None and previous["status"] == "completed" and previous["metadata"]["runKey"] != run.key:
        # Its process may have died before it deleted what it left between its stages. (A partition has its load's key.)
        forget(replace(run, key=previous["metadata"]["runKey"]), parts)
    if previous is not None and previous["status"] != "completed":
        if previous["status"] == "processing" and is_alive(previous, now=now):
            raise WorkTakenError(
                f"run {previous['metadata']['runId']} on {previous['workerHost']} is at this work right now: wait for "
                "it, or cancel it first"
            )
        earlier = _run_ids(previous)
        if (resume or run.id in earlier) and _is_resumable(previous, store, now=now):
            taken_up = previous
            run = replace(
                run,
                key=previous["metadata"]["runKey"],
                earlier_ids=tuple(earlier),
                may_have_written=True,
                began_ms=int(previous["startedAt"].timestamp() * 1000),
            )
            logger.info("taking up run %s, which %s", run.key, _ENDED.get(previous["status"], "was cut off"))
        elif previous["status"] == "processing":
            vectors.give_up_job(previous, error="its process is gone", now=datetime.now(UTC))
    job = Job(run, replace(origin, choices=_choices(origin, taken_up)), parts, previous=taken_up)
    if previous is not None:
        # The newest of the same work is the one that counts, also after a clock was set back.
        job.created_after = previous["createdAt"]
    if not job.claim():
        raise WorkTakenError("another run took up this work just now: wait for it, or cancel it first")
    return job


def was_begun(fingerprint: str, parts: Parts, *, resume: bool) -> bool:
    """Return whether ``take_up`` would go on with work that was begun: what was asked then is not asked again."""
    previous = _find_previous(fingerprint, parts.vectors)
    if previous is None or previous["status"] == "completed":
        return False
    asked = resume or str(runtime.flow_run.id) in _run_ids(previous)
    return asked and _is_resumable(previous, parts.store, now=parts.vectors.read_time())


def _find_previous(fingerprint: str, vectors: VectorStore) -> dict[str, Any] | None:
    """Return the job of this work that is being processed, of which there is one at most, or else the newest."""
    work = {"metadata.fingerprint": fingerprint}
    return vectors.find_job({**work, "status": "processing"}) or vectors.find_job(work)


def _run_ids(job: Mapping[str, Any]) -> list[str]:
    metadata = job["metadata"]
    return list(metadata.get("runIds") or [metadata["runId"]])


def _choices(origin: JobOrigin, previous: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the run does and what it takes over from the one that it goes on with, its budget included.

    A budget is for the work, not for a run of it. Somebody who lets it go on after it was spent allows the same sum
    again, another sum given then is added, and one given after anything else is the new limit of the whole work.
    """
    given = dict(origin.choices or {})
    before = dict(((previous or {}).get("metadata") or {}).get("choices") or {})
    budget, allowed = given.get("budgetUsd"), before.get(_ALLOWED)
    errors = (previous or {}).get("errors") or [{}]
    spent = (previous or {}).get("status") == "retrying" and errors[-1].get("errorCode") == _BUDGET_CODE
    if budget is None:
        before.pop(_ALLOWED, None)
    elif allowed is None:
        given[_ALLOWED] = budget
    elif spent:
        given[_ALLOWED] = allowed + budget
    else:
        given[_ALLOWED] = allowed if budget == before.get("budgetUsd") else budget
    return {**before, **given}


def _is_resumable(job: dict[str, Any], store: ShardStore, *, now: datetime) -> bool:
    metadata = job["metadata"]
    recent = now - job["updatedAt"] < _RESUMABLE_FOR
    if not metadata.get("resumable", True) or not recent:
        return False
    needs_plan = RECORDS not in (metadata.get("choices") or {}) and "ingest" not in (metadata.get("tags") or ())
    return not needs_plan or store.read_plan(metadata["runKey"]) is not None


def require_no_paused_load(parts: Parts, source: str) -> None:
    """Raise ``WorkTakenError`` while a load of the whole source is paused: nobody else may spend what it may not."""
    scope = {f"metadata.choices.scope.{name}": value for name, value in {"source": source, **_WHOLE}.items()}
    scope |= _of_generation(parts.vectors)
    for job in parts.vectors.find_jobs({"metadata.tags": "migrate", "status": "retrying", **scope}, limit=1):
        until = job["retryConfig"]["nextRetryAt"]
        if until is None or datetime.now(UTC) < until + _OVERDUE_AFTER:
            raise WorkTakenError(f"the load {job['jobId']} is paused: {job['errors'][-1]['error']}")


def require_loaded(parts: Parts, source: str) -> None:
    """Raise ``WorkTakenError`` before the source was loaded whole once, and while a load of all of it is under way."""
    if not parts.vectors.is_loaded(source):
        raise WorkTakenError("the whole source was never loaded: run `migrate` first")
    require_no_paused_load(parts, source)
    under_way = {"metadata.tags": "migrate", "status": "processing", **_of_generation(parts.vectors)}
    for job in parts.vectors.find_jobs(under_way):
        if is_alive(job, now=parts.vectors.read_time()):
            raise WorkTakenError(f"the load {job['jobId']} is under way")


def _of_generation(vectors: VectorStore) -> dict[str, Any]:
    """Return the filter of the jobs of a generation; jobs that are older than generations are the first one's."""
    name = vectors.generation_name
    return {"metadata.choices.generation": {"$in": [name, None]} if name == FIRST else name}


@contextmanager
def at_work(job: Job, parts: Parts, *, bulk: bool) -> Iterator[Parts]:
    """Yield the parts to work with, gate included; beat meanwhile, and write how it ends, however it does."""
    with _heartbeat(job, parts):
        try:
            with gated(parts, job.run, bulk=bulk, budget_usd=job.allowed_usd) as job.parts:
                yield job.parts
        except BaseException as error:
            if not isinstance(error, WorkTakenError):
                job.end(error)
            raise
        job.end()


@contextmanager
def _heartbeat(job: Job, parts: Parts) -> Iterator[None]:
    """Show that this process is alive, also while one shard takes long: a silent job of another machine is dead.

    A run that learns here that another has claimed its work stops at its next request.
    """
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(_HEARTBEAT_S):
            with suppress(PipelineError):
                if not parts.vectors.touch_job(job.id, run_id=job.run.id):
                    parts.stopping.set()
                write_measures(parts.vectors)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    _at_work_here.add(job.id)
    try:
        yield
    finally:
        _at_work_here.discard(job.id)
        stopped.set()
        thread.join()
        try:
            write_measures(parts.vectors)
        except PipelineError as error:
            get_run_logger().warning("what requests did is written later: %s", error)


def forget(run: Run, parts: Parts) -> None:
    """Delete what a finished run leaves between its stages. What can't be deleted now is swept later."""
    try:
        parts.store.drop_run(run.key)
        parts.vectors.drop_checkpoints(run.key)
    except PipelineError as error:
        get_run_logger().warning("files of the finished run %s stay for a week: %s", run.key, error)


def is_alive(job: Mapping[str, Any], *, now: datetime) -> bool:
    """Return whether the process of a job is at work still, as far as can be told from here.

    ``now`` is by the store's clock, as the job's signs of life are; one that lies ahead of it proves nothing.
    """
    words = str(job.get("workerId") or "").split(":")
    if len(words) == _WORKER_ID_WORDS and words[3] == _place() and words[1].isdecimal():
        # Pids come round again: the start time tells a process from its successor.
        if job["workerId"] != worker_id(int(words[1])):
            return False
        # A process may outlive its job, where the end of it could not be written.
        return int(words[1]) != os.getpid() or job["jobId"] in _at_work_here
    return bool(abs(now - job["updatedAt"]) < _SILENT_FOR)


_WORKER_ID_WORDS = 4


def _place() -> str:
    """Return what two processes have in common that see each other's pids; hostnames come twice in containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def worker_id(pid: int | None = None) -> str | None:
    """Return ``host:pid:start:place`` of a process of this machine, or None where it no longer runs."""
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
    return f"{socket.gethostname()}:{pid}:{started}:{_place()}"
