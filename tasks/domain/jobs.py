"""EmbeddingJob: a run as the application's ``embeddingjobs`` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from bson import ObjectId

from tasks.domain.chunks import ChunkSize
from tasks.domain.manifests import Counts, Manifest
from tasks.domain.runs import Run
from tasks.domain.vectors import EmbedderFacts

Kind = Literal["migrate", "partition", "ingest", "backfill", "replay", "reconcile", "aggregate"]
Status = Literal["pending", "processing", "completed", "failed", "cancelled", "retrying"]

#: The schema's limits; sizes there are characters, ours are tokens of about four.
_MAX_BATCH, _MIN_CHUNK, _MAX_CHUNK, _MAX_OVERLAP = 100, 100, 8_000, 1_000
_CHARS_PER_TOKEN = 4
_MAX_ERRORS = 50
_JOB_TYPES: dict[Kind, str] = {
    "migrate": "migration",
    "partition": "migration",
    "ingest": "batch_update",
    "backfill": "reprocessing",
    "replay": "reprocessing",
    "reconcile": "batch_update",
    "aggregate": "batch_update",
}


@dataclass(frozen=True, slots=True)
class JobOrigin:
    """Who runs it and why, and what makes two runs the same work.

    ``choices`` are what another process needs to take part in it or to go on with it, as plain values; ``part`` is
    which partition of the run it is.
    """

    fingerprint: str
    triggered_by: str
    worker_id: str
    worker_host: str
    kind: Kind = "migrate"
    choices: Mapping[str, Any] | None = None
    part: int | None = None


def job_id(run_key: str, kind: Kind = "migrate", part: int | None = None) -> str:
    """Return the job's id: a resumed run goes on with its job. ``part`` numbers the partitions of one run."""
    return f"{kind}-{run_key}" + (f"-{part:04d}" if part is not None else "")


def job_record(
    run: Run,
    origin: JobOrigin,
    facts: EmbedderFacts,
    size: ChunkSize,
    *,
    status: Status,
    total: int,
    manifest: Manifest,
    now: datetime,
    retries: int,
    previous: Mapping[str, Any] | None = None,
    created_after: datetime | None = None,
    estimated_completion: datetime | None = None,
    error: str | None = None,
    error_code: str = "run",
    resumable: bool = True,
    next_retry: datetime | None = None,
    letters: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the job as it stands. ``total`` counts the records that were planned, ``manifest`` what is done.

    A failed job that is not ``resumable`` is not taken up: the work begins anew. ``previous`` is the job as it was
    when this run took it up, and each taking up counts as a retry. A new job is never older than ``created_after``.
    ``letters`` are examples of dead letters by code.
    """
    counts = manifest.total
    before = previous or {}
    errors = [entry for entry in before.get("errors", ()) if entry.get("errorCode") not in (letters or ())]
    taken_up = int((before.get("retryConfig") or {}).get("retryCount", -1)) + 1
    errors += [
        {
            "timestamp": now,
            "sourceId": example.get("sourceId"),
            "error": f"{example['count']:,} records, such as this one: {example['reason']}"[:1_000],
            "errorCode": code,
            "retryCount": 0,
        }
        for code, example in (letters or {}).items()
    ]
    # Last, whatever was refused: what goes on with this work looks there for why it ended.
    if error is not None:
        if status == "retrying":
            # A run that waits looks again and again, and says so once.
            errors = [entry for entry in errors if (entry["error"], entry["errorCode"]) != (error[:1_000], error_code)]
        errors.append(
            {
                "timestamp": now,
                "sourceId": None,
                "error": error[:1_000],
                "errorCode": error_code,
                "retryCount": taken_up,
            }
        )
    cost = manifest.cost_usd(facts.usd_per_million_tokens)
    seconds = max(0.0, now.timestamp() - run.started_ms / 1000)
    done = status in ("completed", "failed", "cancelled")
    metadata = before.get("metadata") or {}
    return {
        "jobId": job_id(run.key, origin.kind, origin.part),
        "jobType": _JOB_TYPES[origin.kind],
        "priority": 5,
        "sourceType": run.scope.source,
        "sourceIds": [],
        "teamId": ObjectId(run.scope.team_ids[0]) if len(run.scope.team_ids) == 1 else None,
        "siteId": None,
        "status": status,
        "progress": {
            "total": total,
            "processed": counts.read,
            "failed": counts.dead_lettered,
            "percentage": 100.0 if not total and done else round(100 * min(1.0, counts.read / max(total, 1)), 2),
        },
        "startedAt": before.get("startedAt") or run.started,
        "completedAt": now if done else None,
        "estimatedCompletionAt": estimated_completion,
        "config": {
            "batchSize": min(_MAX_BATCH, facts.max_texts_per_request),
            "chunkSize": max(_MIN_CHUNK, min(_MAX_CHUNK, size.size_tokens * _CHARS_PER_TOKEN)),
            "overlapSize": min(_MAX_OVERLAP, size.overlap_tokens * _CHARS_PER_TOKEN),
            "embeddingModel": facts.model,
        },
        "results": {
            "documentsCreated": counts.created,
            "documentsUpdated": counts.updated,
            "documentsSkipped": counts.chunks - counts.created - counts.updated,
            "totalTokensUsed": manifest.tokens,
            "totalCost": round(cost, 6),
            "averageProcessingTime": round(1000 * seconds / counts.read, 3) if counts.read else 0,
        },
        "errors": errors[-_MAX_ERRORS:],
        "retryConfig": {
            "maxRetries": min(10, retries),
            "retryCount": taken_up,
            "nextRetryAt": next_retry,
            "backoffMultiplier": 2,
        },
        "scheduledFor": next_retry,
        "dependsOn": [],
        "workerId": origin.worker_id,
        "workerHost": origin.worker_host,
        "metadata": {
            "triggeredBy": origin.triggered_by,
            "reason": str(run.scope),
            "tags": [origin.kind],
            "notes": None,
            "runKey": run.key,
            "runId": run.id,
            "runIds": list(dict.fromkeys([*metadata.get("runIds", ()), *run.earlier_ids, run.id])),
            "fingerprint": origin.fingerprint,
            "resumable": resumable,
            "choices": dict(origin.choices or {}),
            "teams": _by_team(manifest),
        },
        "createdAt": before.get("createdAt") or _later(run.started, created_after),
        "updatedAt": now,
    }


def _by_team(manifest: Manifest) -> list[dict[str, Any]]:
    """Return what was done for each team; records whose team could not be told are in the run's own figures only."""
    teams: dict[str, Counts] = {}
    for owner, counts in manifest.by_owner.items():
        if owner.team_id is not None:
            teams[owner.team_id] = teams.get(owner.team_id, Counts()) + counts
    return [
        {
            "teamId": team,
            "read": counts.read,
            "chunks": counts.chunks,
            "created": counts.created,
            "updated": counts.updated,
            "deadLettered": counts.dead_lettered,
        }
        for team, counts in sorted(teams.items())
    ]


def _later(moment: datetime, after: datetime | None) -> datetime:
    """Return the moment, or one right after another that it must not lie before; MongoDB keeps milliseconds."""
    return moment if after is None else max(moment, after + timedelta(milliseconds=1))
