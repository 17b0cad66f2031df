"""Jobs: a run's claim on its work and its record in ``embeddingjobs``, true while it runs and after it ended."""

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

from blocks.shards import ShardStore
from blocks.vector_store import VectorStore
from flows.blocks import Parts
from tasks.domain.errors import PipelineError, WorkTakenError
from tasks.domain.jobs import JobOrigin, Kind, Status, job_id, job_record
from tasks.domain.manifests import Manifest
from tasks.domain.runs import Run, Scope

_RESUMABLE_FOR = timedelta(days=7)
#: A run on another machine that has not said anything for this long is dead.
_SILENT_FOR = timedelta(minutes=5)
_HEARTBEAT_S = 30.0
BUDGET_CODE = "budget"
#: Where a job's choices say which file holds the ids of its records.
RECORDS = "records"
_ENDED = {"failed": "failed", "cancelled": "was stopped", "retrying": "paused"}
#: The jobs that this process is at.
_at_work_here: set[str] = set()


def new_run(scope: Scope, vectors: VectorStore | None = None, *, rebuild: bool = False) -> Run:
    """Return a run that begins now. One that loads much is given the store, to see whether it is empty."""
    return Run(
        key=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:8]}",
        id=str(runtime.flow_run.id or uuid4()),
        scope=scope,
        started_ms=int(time.time() * 1000),
        target_was_empty=vectors is not None and vectors.is_empty(),
        rebuild=rebuild,
    )


def job_origin(kind: Kind, fingerprint: str, *, part: int | None = None, **choices: Any) -> JobOrigin:
    """Return who runs the work here. Jobs with the same fingerprint are the same work: one of them at a time."""
    triggered_by = "prefect" if runtime.deployment.id else "command line"
    return JobOrigin(fingerprint, triggered_by, worker_id() or "", socket.gethostname(), kind, choices, part)


@dataclass(slots=True)
class Job:
    """The run as ``embeddingjobs`` shows it; every write replaces the record whole."""

    run: Run
    origin: JobOrigin
    parts: Parts
    previous: dict[str, Any] | None = None
    total: int = 0
    manifest: Manifest = field(default_factory=Manifest)

    @property
    def id(self) -> str:
        """Return its ``jobId``."""
        return job_id(self.run.key, self.origin.kind, self.origin.part)

    def allow_budget(self) -> float | None:
        """Return the dollars that this work may spend in all, or None for any sum.

        A run that goes on after its budget was spent has the same sum again: somebody wanted it to go on.
        """
        budget = (self.origin.choices or {}).get("budgetUsd")
        if budget is None:
            return None
        before = self.previous or {}
        allowed = before.get("metadata", {}).get("choices", {}).get("budgetAllowedUsd")
        spent = [entry["errorCode"] for entry in before.get("errors", ())][-1:] == [BUDGET_CODE]
        allowed = budget if allowed is None else allowed + budget if spent else allowed
        self.note(budgetAllowedUsd=allowed)
        return float(allowed)

    def note(self, **choices: Any) -> None:
        """Add to what a process needs that goes on with this work."""
        self.origin = replace(self.origin, choices={**(self.origin.choices or {}), **choices})
        self.save("processing")

    def record(self, status: Status, *, left_s: float | None = None, **more: Any) -> dict[str, Any]:
        """Return it as it stands, with an estimate of the seconds left where there is one."""
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
            retries=self.parts.retries,
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

    def end(self, error: BaseException | None = None, *, resumable: bool = True) -> None:
        """Write how it ended, with an example of each reason for dead letters."""
        letters: Mapping[str, Mapping[str, Any]] = {}
        with suppress(PipelineError):
            letters = self.parts.vectors.find_dead_letter_examples(self.run.ids)
        if error is None:
            self.save("completed", letters=letters)
            return
        stopped = not isinstance(error, Exception)  # Ctrl-C, SIGTERM, a cancel in the UI
        words = str(error) or type(error).__name__
        self.save("cancelled" if stopped else "failed", error=words, resumable=resumable, letters=letters)


def take_up(run: Run, origin: JobOrigin, parts: Parts, *, resume: bool) -> Job:
    """Return the job, claimed for this process: an unfinished one of the same work, or a new one.

    Raises ``WorkTakenError`` while another run is at the same work. A run that takes up another's work has its key.
    Without ``resume`` it takes up only what this flow run itself began, before a pause or a retry of Prefect's.
    """
    logger = get_run_logger()
    vectors, store = parts.vectors, parts.store
    previous = vectors.find_job({"metadata.fingerprint": origin.fingerprint})
    store.sweep(now_s=time.time())
    taken_up = None
    if previous is not None and previous["status"] != "completed":
        if previous["status"] == "processing" and is_alive(previous):
            raise WorkTakenError(
                f"run {previous['metadata']['runId']} on {previous['workerHost']} is at this work right now: wait for "
                "it, or cancel it first"
            )
        metadata = previous["metadata"]
        earlier = metadata.get("runIds") or [metadata["runId"]]
        if (resume or run.id in earlier) and _is_resumable(previous, store):
            taken_up = previous
            run = replace(run, key=metadata["runKey"], earlier_ids=tuple(earlier), may_have_written=True)
            logger.info("taking up run %s, which %s", run.key, _ENDED.get(previous["status"], "was cut off"))
        elif previous["status"] == "processing":
            vectors.give_up_job(previous, error="its process is gone", now=datetime.now(UTC))
    job = Job(run, origin, parts, previous=taken_up)
    if not vectors.claim_job(job.record("processing"), instead_of=taken_up):
        raise WorkTakenError("another run took up this work just now: wait for it, or cancel it first")
    return job


def _is_resumable(job: dict[str, Any], store: ShardStore) -> bool:
    metadata = job["metadata"]
    recent = datetime.now(UTC) - job["updatedAt"] < _RESUMABLE_FOR
    if not metadata.get("resumable", True) or not recent:
        return False
    return RECORDS in (metadata.get("choices") or {}) or store.read_plan(metadata["runKey"]) is not None


@contextmanager
def heartbeat(vectors: VectorStore, job: str) -> Iterator[None]:
    """Show that this process is alive, also while one shard takes long: a silent job of another machine is dead."""
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(_HEARTBEAT_S):
            with suppress(PipelineError):
                vectors.touch_job(job, now=datetime.now(UTC))

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    _at_work_here.add(job)
    try:
        yield
    finally:
        _at_work_here.discard(job)
        stopped.set()
        thread.join()


def is_alive(job: Mapping[str, Any]) -> bool:
    """Return whether the process of a job is at work still, as far as can be told from here."""
    if job.get("workerHost") == socket.gethostname():
        pid = str(job.get("workerId") or "").split(":")[1:2]
        if pid and pid[0].isdecimal():
            # Pids come round again: the start time tells a process from its successor.
            if job["workerId"] != worker_id(int(pid[0])):
                return False
            # A process may outlive its job, where the end of it could not be written.
            return int(pid[0]) != os.getpid() or job["jobId"] in _at_work_here
    return bool(datetime.now(UTC) - job["updatedAt"] < _SILENT_FOR)


def worker_id(pid: int | None = None) -> str | None:
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
