"""The ``jobs`` command: what runs, what ran and how it ended, from ``embeddingjobs``; needs no Prefect server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.console import JsonOption, print_json, reported, wrong

if TYPE_CHECKING:
    from blocks.vector_store import VectorStore

app = typer.Typer(help="What runs, what ran, and how it ended.", invoke_without_command=True)

_SHOWN_ERRORS = 10


class JobStatus(StrEnum):
    """The statuses of ``embeddingjobs``."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RETRYING = "retrying"


@app.callback()
def jobs(
    context: typer.Context,
    status: Annotated[
        list[JobStatus] | None, typer.Option(help="Only jobs with this status; may be given again.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="The newest so many.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List jobs, the newest first: migrate, partition, ingest, backfill, replay, reconcile.

    `cryptique-rag jobs show ID` tells all of one. A job that says processing while its process is gone is marked.
    """
    if context.invoked_subcommand is not None:
        return
    with reported():
        with _store() as store:
            criteria = {"status": {"$in": [item.value for item in status]}} if status else {}
            found = store.find_jobs(criteria, limit=limit)
        if as_json:
            print_json({"jobs": [_plain(job) for job in found]})
            return
        if not found:
            print("no job yet" if not status else "no job with this status")
            return
        _print_table(found)


@app.command()
def show(
    job: Annotated[str, typer.Argument(help="The jobId, as `cryptique-rag jobs` lists it; its beginning is enough.")],
    as_json: JsonOption = False,
) -> None:
    """Tell all of one job: progress, results, errors and dead letters, retries, worker, and what to do."""
    with reported():
        with _store() as store:
            found = store.find_jobs({"jobId": {"$regex": f"^{_escaped(job)}"}}, limit=2)
        if not found:
            wrong(f"there is no job {job}: `cryptique-rag jobs` lists them")
        if len(found) > 1 and found[0]["jobId"] != job:
            wrong(f"{job} is the beginning of several jobs: give more of it")
        if as_json:
            print_json(_plain(found[0]))
        else:
            _print_job(found[0])


@contextmanager
def _store() -> Iterator[VectorStore]:
    from deployments.local_services import running_services
    from deployments.register_blocks import make_blocks
    from deployments.settings import load_settings

    settings = load_settings()
    with running_services(settings, prefect=False) as running:
        store = make_blocks(settings, embedded_uri=running.mongo_uri).vectors
        try:
            yield store
        finally:
            store.close()


def _escaped(text: str) -> str:
    return "".join(char if char.isalnum() or char in "-_" else f"\\{char}" for char in text)


def _is_gone(job: dict[str, Any]) -> bool:
    """Return whether a job says processing while its process ended without a word."""
    from flows.jobs import is_alive

    # A job without a run is the application's own; nothing is known of its process.
    ours = job["status"] == "processing" and (job.get("metadata") or {}).get("runKey")
    return bool(ours and not is_alive(job, now=datetime.now(UTC)))


def _status(job: dict[str, Any]) -> str:
    status = str(job["status"])
    if _is_gone(job):
        return "processing, but its process is gone"
    retry = (job.get("retryConfig") or {}).get("nextRetryAt")
    if status == "retrying":
        return f"paused until {retry:%Y-%m-%d %H:%M} UTC" if retry else "paused until somebody resumes it"
    return status


def _print_table(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("job", "status", "done", "written", "refused", "cost", "began", "took", "worker"):
        table.add_column(name, justify="right" if name in ("done", "written", "refused", "cost", "took") else "left")
    for job in found:
        progress, results = job.get("progress") or {}, job.get("results") or {}
        table.add_row(
            str(job["jobId"]),
            _status(job),
            f"{progress.get('percentage', 0):.0f} % of {progress.get('total', 0):,}",
            f"{results.get('documentsCreated', 0) + results.get('documentsUpdated', 0):,}",
            f"{progress.get('failed', 0):,}",
            f"${results.get('totalCost', 0):.4f}",
            f"{job['startedAt']:%Y-%m-%d %H:%M}" if job.get("startedAt") else "",
            _took(job),
            str(job.get("workerHost") or ""),
        )
    console = Console(highlight=False)
    # An id that is cut short is no id: where there is too little room, lines run over.
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=1_000)).maximum)
    console.print(table, soft_wrap=True)


def _took(job: dict[str, Any]) -> str:
    from flows.progress import duration

    began = job.get("startedAt")
    ended = job.get("completedAt") or (datetime.now(UTC) if job["status"] == "processing" else job.get("updatedAt"))
    return duration((ended - began).total_seconds()) if began and ended else ""


def _print_job(job: dict[str, Any]) -> None:
    progress, results = job.get("progress") or {}, job.get("results") or {}
    metadata, retry = job.get("metadata") or {}, job.get("retryConfig") or {}
    rows = [
        ("job", job["jobId"]),
        ("what", f"{', '.join(metadata.get('tags') or ())} {metadata.get('reason') or ''}"),
        ("status", _status(job)),
        ("progress", f"{progress.get('processed', 0):,} of {progress.get('total', 0):,} records"),
        ("dead-lettered", f"{progress.get('failed', 0):,}"),
        *((f"documents {name}", f"{results.get(f'documents{name.title()}', 0):,}") for name in _RESULTS),
        ("tokens, cost", f"{results.get('totalTokensUsed', 0):,}, ${results.get('totalCost', 0):.4f}"),
        ("began", job.get("startedAt")),
        ("ended", job.get("completedAt")),
        ("expected end", job.get("estimatedCompletionAt") if job["status"] == "processing" else None),
        ("took", _took(job)),
        ("taken up again", f"{retry.get('retryCount', 0)} times"),
        ("next retry", retry.get("nextRetryAt")),
        ("worker", f"{job.get('workerHost') or ''} ({job.get('workerId') or ''})"),
        ("started by", metadata.get("triggeredBy")),
        ("flow runs", ", ".join(metadata.get("runIds") or [])),
    ]
    for name, value in rows:
        if value not in (None, ""):
            shown = f"{value:%Y-%m-%d %H:%M:%S} UTC" if isinstance(value, datetime) else value
            print(f"{name:<18}{shown}")
    for entry in (job.get("errors") or [])[-_SHOWN_ERRORS:]:
        of = f" record {entry['sourceId']}" if entry.get("sourceId") else ""
        print(f"error             {entry['timestamp']:%Y-%m-%d %H:%M} {entry['errorCode']}{of}: {entry['error']}")


_RESULTS = ("created", "updated", "skipped")


def _plain(job: dict[str, Any]) -> dict[str, Any]:
    """Return a job as programs read it: as it is stored, and whether its process is gone."""
    return {name: value for name, value in job.items() if name != "_id"} | {"processGone": _is_gone(job)}
