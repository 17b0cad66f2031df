"""EmbeddingJob: a run as the application's ``embeddingjobs`` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from bson import ObjectId

from tasks.domain.chunks import ChunkSize
from tasks.domain.manifests import Manifest
from tasks.domain.runs import Run
from tasks.domain.vectors import EmbedderFacts

Kind = Literal["migrate", "ingest"]
Status = Literal["pending", "processing", "completed", "failed", "cancelled", "retrying"]

#: The schema's limits; sizes there are characters, ours are tokens of about four.
_MAX_BATCH, _MIN_CHUNK, _MAX_CHUNK, _MAX_OVERLAP = 100, 100, 8_000, 1_000
_CHARS_PER_TOKEN = 4
_MAX_ERRORS = 50
_JOB_TYPES: dict[Kind, str] = {"migrate": "migration", "ingest": "batch_update"}


@dataclass(frozen=True, slots=True)
class JobOrigin:
    """Who runs it and why, and what makes two runs the same work."""

    fingerprint: str
    triggered_by: str
    worker_id: str
    worker_host: str


def job_id(run_key: str, kind: Kind = "migrate") -> str:
    """Return the job's id: a resumed run goes on with its job."""
    return f"{kind}-{run_key}"


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
    previous: Mapping[str, Any] | None = None,
    estimated_completion: datetime | None = None,
    error: str | None = None,
    resumable: bool = True,
    kind: Kind = "migrate",
) -> dict[str, Any]:
    """Return the job as it stands. ``total`` counts the records that were planned, ``manifest`` what is done.

    A failed job that is not ``resumable`` is not taken up: the work begins anew. ``previous`` is the job as it was.
    """
    counts = manifest.total
    errors = list((previous or {}).get("errors", ()))[-_MAX_ERRORS:]
    if error is not None:
        errors.append({"timestamp": now, "sourceId": None, "error": error[:1_000], "errorCode": "run", "retryCount": 0})
    cost = manifest.tokens * facts.usd_per_million_tokens / 1_000_000
    seconds = max(0.0, now.timestamp() - run.started_ms / 1000)
    done = status in ("completed", "failed", "cancelled")
    return {
        "jobId": job_id(run.key, kind),
        "jobType": _JOB_TYPES[kind],
        "priority": 5,
        "sourceType": run.scope.source_type,
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
        "startedAt": (previous or {}).get("startedAt") or run.started,
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
        "errors": errors,
        "retryConfig": {"maxRetries": 3, "retryCount": 0, "nextRetryAt": None, "backoffMultiplier": 2},
        "scheduledFor": None,
        "dependsOn": [],
        "workerId": origin.worker_id,
        "workerHost": origin.worker_host,
        "metadata": {
            "triggeredBy": origin.triggered_by,
            "reason": str(run.scope),
            "tags": [kind],
            "notes": None,
            "runKey": run.key,
            "runId": run.id,
            "fingerprint": origin.fingerprint,
            "resumable": resumable,
        },
        "createdAt": (previous or {}).get("createdAt") or run.started,
        "updatedAt": now,
    }
