"""Hooks: what a flow says of itself when it fails, crashes, or completes after that.

Attach all three to every flow::

    @flow(on_failure=[alert_on_failure], on_crashed=[alert_on_crashed], on_completion=[resolve_on_completion])

What is said never changes what happened: a hook logs what it can't do. A process that died can't speak; the server's
automations do (``deployments/automations.py``), unless a worker ran ``alert_on_crashed`` for it.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from prefect import Flow, Task
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import emit_event
from prefect.logging.loggers import flow_run_logger
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL
from pydantic import SecretStr

from blocks.slack import SlackNotifier
from blocks.vector_store import VectorStore
from flows.blocks import load_alerts, load_backups, load_embedder, load_monitor, load_source, load_vectors
from flows.parameters import TRANSACTIONS
from tasks.alert import Told, send_alert, tell_due, tell_resolved
from tasks.domain.alerts import runbook_link
from tasks.domain.errors import BudgetSpentError, InputError, PipelineError, QuotaSpentError, WorkTakenError
from tasks.domain.incidents import Incident, Severity, cause_of, in_words

#: Said after a crash that was told of, so that the server's automation doesn't tell it again.
ALERT_TOLD = "cryptique-rag.alert.told"
#: Said when a backup was made and proved; the server tells if it isn't heard for too long.
BACKUP_MADE = "cryptique-rag.backup.made"

#: How the command line spells parameters; ``no_`` before a name is the option that turns it off. A run that goes on
#: never starts anew, so ``resume`` is left out.
_SCOPE = {
    "sources": "--source",
    "start": "--start",
    "end": "--end",
    "teams": "--team",
    "contracts": "--contract",
    "limit": "--limit",
    "shard_rows": "--shard-rows",
    "shards_in_flight": "--shards-in-flight",
    "child_runs": "--child-runs",
    "batch": "--batch",
    "budget_usd": "--budget-usd",
    "retries": "--retries",
    "dry_run": "--dry-run",
}
_COMMANDS = {
    "migrate": {**_SCOPE, "replace_model": "--replace-model", "remove_orphans": "--remove-orphans"},
    "backfill": {
        **_SCOPE,
        "rebuild": "--rebuild",
        "stored_describer": "--stored-describer",
        "stored_model": "--stored-model",
    },
    "replay": {
        "sources": "--source",
        "reasons": "--reason",
        "teams": "--team",
        "older_than_hours": "--older-than-hours",
        "newer_than_hours": "--newer-than-hours",
        "limit": "--limit",
        "budget_usd": "--budget-usd",
        "dry_run": "--dry-run",
        "retries": "--retries",
    },
    "reconcile": {
        "sources": "--source",
        "no_heal": "--no-heal",
        "remove_orphans": "--remove-orphans",
        "shard_rows": "--shard-rows",
        "budget_usd": "--budget-usd",
        "retries": "--retries",
    },
    "ingest": {"sources": "--source", "max_seconds": "--max-seconds", "until_idle": "--until-idle"},
    "backup": {
        "kind": "--kind",
        "source_collections": "--source-collections",
        "drill": "--drill",
        "no_rotate": "--no-rotate",
        "dry_run": "--dry-run",
    },
    "restore": {
        "backup": "--backup",
        "collections": "--collection",
        "team": "--team",
        "source_collections": "--source-collections",
        "into": "--into",
        "swap": "--swap",
        "overwrite": "--overwrite",
        "accept_unverified": "--accept-unverified",
    },
}
_LEFT_OUT = {"resume"}


def alert_on_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Tell that a run failed: stage, reason, counts so far and how to go on, if its cause's cooldown allows."""
    _guarded(flow, flow_run, lambda: _alert(flow, flow_run, state, crashed=False))


def alert_on_crashed(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Tell that a run's process died; a worker, which outlives it, calls this. The parameters' names are Prefect's."""
    _guarded(flow, flow_run, lambda: _alert(flow, flow_run, state, crashed=True))


def leave_crash_to_load(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Keep the server from telling of a partition whose process died: its load gives it to another, or tells itself.

    Such a message would hold back that of a load which dies within the same five minutes.
    """
    _guarded(flow, flow_run, lambda: _note_told(flow_run))


def resolve_on_completion(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Tell once that a flow completed again after a failure that was told, and send summaries that are due."""
    if flow_run.parameters.get("dry_run"):
        return  # it proves nothing of embedder and store
    _guarded(flow, flow_run, lambda: _resolve(flow, flow_run))


def note_backup_made(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Let the server hear that a backup was made and proved; a dry run made none."""
    if not flow_run.parameters.get("dry_run"):
        _guarded(flow, flow_run, lambda: _emit(BACKUP_MADE, flow_run))


def _guarded(flow: Flow[..., Any], flow_run: FlowRun, act: Any) -> None:
    try:
        act()
    except Exception as error:  # noqa: BLE001 - what only tells of a run must not add to its trouble
        # Its words may hold anything.
        _logger(flow, flow_run).warning("no alert could be sent (%s)", type(error).__name__)


def _logger(flow: Flow[..., Any], flow_run: FlowRun) -> Any:
    return flow_run_logger(flow_run, flow)


def _alert(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any], *, crashed: bool) -> None:
    logger = _logger(flow, flow_run)
    if isinstance(state.result(raise_on_failure=False), WorkTakenError):
        return  # refused because another run is at the work: whoever asked is told, nobody is woken
    notifier = load_alerts()
    if notifier is None:
        logger.info("nobody is told of this failure: SLACK_WEBHOOK_URL is not set")
        return
    now = datetime.now(UTC)
    store = _load_store()
    incident, store = _incident(flow, flow_run, state, notifier, store, crashed=crashed, now=now)
    told = send_alert(incident, notifier=notifier, book=store, now=now)
    _log(logger, told)
    # Held back is as good as told: the server has nothing to add, and its own cooldown counts nothing.
    if crashed and (told.delivered or told.kind is None):
        _note_told(flow_run)
    _tell_due(notifier, store, logger, now)


def _note_told(flow_run: FlowRun) -> None:
    """Say that nobody else need tell of this run's crash."""
    _emit(ALERT_TOLD, flow_run)


def _emit(event: str, flow_run: FlowRun) -> None:
    emit_event(
        event=event,
        resource={"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.name": flow_run.name},
    )


def _resolve(flow: Flow[..., Any], flow_run: FlowRun) -> None:
    logger = _logger(flow, flow_run)
    notifier = load_alerts()
    if notifier is None:
        return
    now = datetime.now(UTC)
    store = load_vectors()
    told = tell_resolved(
        flow.name, link=run_link(flow_run), scope=flow_run.name, notifier=notifier, book=store, now=now
    )
    for one in told:
        _log(logger, one)
    _tell_due(notifier, store, logger, now)


def _tell_due(notifier: SlackNotifier, store: VectorStore | None, logger: Any, now: datetime) -> None:
    if store is None:
        return
    try:
        for one in tell_due(notifier=notifier, book=store, now=now):
            _log(logger, one)
    except PipelineError as error:
        logger.warning("summaries that are due wait: %s", error)


def _log(logger: Any, told: Told) -> None:
    logger.log(logging.INFO if told.delivered or told.kind is None else logging.WARNING, "alert %s", told)


def _load_store() -> VectorStore | None:
    try:
        return load_vectors()
    except PipelineError:
        return None


# -- what is said ----------------------------------------------------------------------------------------------------


def _incident(
    flow: Flow[..., Any],
    flow_run: FlowRun,
    state: State[Any],
    notifier: SlackNotifier,
    store: VectorStore | None,
    *,
    crashed: bool,
    now: datetime,
) -> tuple[Incident, VectorStore | None]:
    """Return the incident, and the store if it answers: what doesn't is asked once, not for every part."""
    error = _error_of(state)
    stage = stage_of(error)
    name = "Crashed" if crashed else type(error).__name__ if error is not None else state.name or "Failed"
    counts: dict[str, int] = {}
    letters: dict[str, int] = {}
    try:
        if store is not None:
            job = store.find_job({"metadata.runId": str(flow_run.id)})
            counts = _counts(job)
            letters = count_letters(store, job, str(flow_run.id))
    except PipelineError:
        store = None
    severity: Severity = "warning" if _harmless(error, flow_run) else "critical"
    did = "crashed" if crashed else "failed"
    words = str(error) if isinstance(error, PipelineError) else state.message or (str(error) if error else "")
    incident = Incident(
        cause=cause_of(flow.name, name, stage),
        flow=flow.name,
        severity=severity,
        title=f"{flow.name} {did}" + (f" at {stage}" if stage else ""),
        what=in_words(words, secrets=_secrets(notifier)) or f"The run {did} without a word.",
        first_seen=now,
        last_seen=now,
        scope=flow_run.name,
        stage=stage,
        error=name,
        counts=counts,
        dead_letters=letters,
        link=run_link(flow_run),
        resume=resume_command(flow, flow_run),
        runbook=runbook_link("run-crashed" if crashed else "run-failed", _public_url()),
    )
    return incident, store


def _public_url() -> str | None:
    try:
        return load_monitor().public_url
    except PipelineError:
        return None


def _error_of(state: State[Any]) -> BaseException | None:
    """Return what the run raised, where this process still has it."""
    try:
        result: Any = state.result(raise_on_failure=False, _sync=True)  # type: ignore[call-overload]
    except Exception:  # noqa: BLE001 - the result is another process's, and its loss is no second failure
        return None
    return result if isinstance(result, BaseException) else None


def _harmless(error: BaseException | None, flow_run: FlowRun) -> bool:
    """Return whether nothing is broken: the input was wrong, the money is spent, or it was a rehearsal."""
    waiting = isinstance(error, InputError | QuotaSpentError | BudgetSpentError)
    refused = waiting or type(error).__name__.startswith("Parameter")
    return refused or bool(flow_run.parameters.get("dry_run"))


def stage_of(error: BaseException | None) -> str:
    """Return the task in which an error was raised, by its name in the UI, or the flow's own step."""
    stage = ""
    traceback: TracebackType | None = error.__traceback__ if error is not None else None
    while traceback is not None:
        frame = traceback.tb_frame
        owner = frame.f_globals.get(frame.f_code.co_name)
        if isinstance(owner, Task) and owner.fn.__code__ is frame.f_code:
            stage = owner.name
        traceback = traceback.tb_next
    return stage


def _counts(job: Mapping[str, Any] | None) -> dict[str, int]:
    """Return a run's figures so far, from its job: records, but for the vector documents."""
    if job is None:
        return {}
    progress, results = job.get("progress") or {}, job.get("results") or {}
    stored = results.get("documentsCreated", 0) + results.get("documentsUpdated", 0)
    return {
        f"of {progress.get('total', 0):,} records": progress.get("processed", 0),
        "vector documents written": stored,
        "dead-lettered": progress.get("failed", 0),
    }


def count_letters(store: VectorStore, job: Mapping[str, Any] | None, run_id: str) -> dict[str, int]:
    """Return a run's dead letters by reason code: those of the generation that it is about, live or not."""
    metadata = (job or {}).get("metadata") or {}
    try:
        return store.at((metadata.get("choices") or {}).get("generation")).count_dead_letters(run_id)
    except InputError:
        return {}  # the generation was dropped, and its dead letters with it


def run_link(flow_run: FlowRun) -> str | None:
    """Return where the UI shows the run."""
    base = PREFECT_UI_URL.value() or (PREFECT_API_URL.value() or "").rstrip("/").removesuffix("/api")
    return f"{base.rstrip('/')}/runs/flow-run/{flow_run.id}" if base else None


def resume_command(flow: Flow[..., Any], flow_run: FlowRun) -> str:
    """Return the command that goes on with a run's work, quoted for a shell.

    A deployment's run is scheduled again with the same parameters, for a worker. One from the command line is the
    same command again, or where the command line has no such option, the same run again in this checkout.
    """
    again = f"prefect flow-run retry {flow_run.id}"
    if flow_run.deployment_id is not None:
        return again
    again += f" --entrypoint {flow.fn.__module__}.{flow.fn.__name__}"
    options = _COMMANDS.get(flow.name)
    if options is None:
        return again
    words = ["cryptique-rag", flow.name]
    defaults = {name: spec.get("default") for name, spec in flow.parameters.properties.items()}
    for name, value in flow_run.parameters.items():
        # A list's default is made when the flow is called, so the schema doesn't tell it.
        if name in _LEFT_OUT or value == defaults.get(name) or value in ([], TRANSACTIONS):
            continue
        if isinstance(value, bool):
            name = name if value else f"no_{name}"
        if name not in options or value is None:
            return again
        if isinstance(value, bool):
            words.append(options[name])
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            words += [options[name], _spelled(one)]
    return shlex.join(words)


def _spelled(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return value if isinstance(value, str) else json.dumps(value)


def _secrets(notifier: SlackNotifier) -> list[str]:
    """Return what no message may hold, whatever an error's words repeat."""
    found: list[str] = []
    blocks: list[Any] = [notifier]
    try:
        vectors = load_vectors()
        blocks += [load_source(), vectors, load_embedder(vectors)]
    except PipelineError:
        pass
    try:
        backups = load_backups()
        blocks += [backups, *([backups.bucket] if backups.bucket is not None else [])]
    except PipelineError:
        pass
    for block in blocks:
        for name in type(block).model_fields:
            value = getattr(block, name)
            if isinstance(value, SecretStr):
                found += _parts(value.get_secret_value())
                found += value.get_secret_value().splitlines()
    return [secret for secret in found if secret]


def _parts(secret: str) -> list[str]:
    """Return a secret whole and, if it is an address with a password, the password as it is written and as it is."""
    _, _, rest = secret.partition("://")
    user, at, _ = rest.rpartition("@")
    password = user.partition(":")[2] if at else ""
    return [secret, password, unquote(password)]
