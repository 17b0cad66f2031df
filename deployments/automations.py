"""Automations: what the server says of runs that can't speak for themselves.

A run that fails says so itself (``flows/hooks.py``). A process that died, a run that never started and a pool without
a worker can't; the server watches for them. So it does for runs that wait, for a person or for the day's quota: they
have not failed, and their process is gone. A crash that a worker told of is not told again.

The address of the webhook lies encrypted in a ``Webhook`` block; the automations name only the block.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, DoNothing
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL
from prefect.types import SecretDict

from deployments import work_pool
from deployments.settings import Settings
from flows.hooks import ALERT_TOLD, BACKUP_MADE
from flows.pauses import AWAITING_BATCH, AWAITING_QUOTA, BUDGET_SPENT, WAITS_FOR_A_PERSON, allow_command
from tasks.domain.alerts import runbook_link
from tasks.domain.incidents import (
    COOLDOWN,
    Incident,
    Message,
    Severity,
    format_discord,
    format_generic,
    format_slack,
)

WEBHOOK = "cryptique-alerts"
PREFIX = "cryptique-rag: "
CRASHED, CRASH_TOLD, SILENT, NEVER_BEGAN, LATE, LONG, BUDGET, QUOTA, POOL, NO_BACKUP = (
    PREFIX + name
    for name in (
        "run crashed and did not say so",
        "tell of crashed runs",
        "silent run is crashed",
        "run that never began is crashed",
        "run is late",
        "run takes very long",
        "run waits for a person",
        "run waits for the day's quota",
        "work pool not ready",
        "no backup",
    )
)
#: A worker's hook has told of a crash by then, or never will; it may wait for a store that does not answer.
WORKER_SPEAKS_WITHIN = timedelta(seconds=30)
#: Heartbeats come every 30 seconds where PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30; three in a row are missed.
SILENT_AFTER = timedelta(seconds=90)
#: A worker that took a run starts its process within seconds; one that died meanwhile leaves it Pending for ever.
BEGUN_WITHIN = timedelta(minutes=5)
#: A first migration at the quota of tier 1 takes five hours.
LONG_AFTER = timedelta(hours=24)
#: One is made every day; it may take two hours more than yesterday's.
BACKUP_WITHIN = timedelta(hours=26)
_ENDED = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling")}
#: A run that waits for its time or for a person has no process and needs none.
_WAITS = {
    f"prefect.flow-run.{name}"
    for name in ("Scheduled", "AwaitingRetry", "Paused", "Suspended", AWAITING_QUOTA, AWAITING_BATCH, BUDGET_SPENT)
}
_RUNS = {"prefect.resource.id": "prefect.flow-run.*"}
#: Marks in a message, filled in from the event when it is sent: the state's message is that of a run's new state.
_SCOPE, _RUN_ID, _STATE, _TIME = "@@scope@@", "@@run@@", "@@state@@", "@@time@@"
_LONGEST_NAME, _LONGEST_STATE = 300, 500
_FORMATS = {"slack": format_slack, "discord": format_discord, "generic": format_generic}


def register_automations(settings: Settings, *, client: SyncPrefectClient | None = None) -> list[str]:
    """Save the webhook and the automations with the Prefect server in use; return the automations' names.

    Without SLACK_WEBHOOK_URL dead runs are marked as crashed, but nobody is told. A second call
    changes what is there and adds nothing.
    """
    if settings.slack_webhook_url is None:
        with client or get_client(sync_client=True) as server:
            for automation in (_run_silent(), _run_never_began()):
                _save(server, automation)
        return [SILENT, NEVER_BEGAN]
    webhook = Webhook(
        url=settings.slack_webhook_url, headers=SecretDict({"Content-Type": "application/json; charset=utf-8"})
    )
    block = webhook.save(WEBHOOK, overwrite=True, _sync=True)  # type: ignore[call-arg]
    with client or get_client(sync_client=True) as server:
        assert isinstance(block, UUID)
        crashed = _save(server, _run_crashed())
        others = [
            _crash_told(crashed, block, settings),
            _run_silent(),
            _run_never_began(),
            _run_late(block, settings),
            _run_long(block, settings),
            _budget_spent(block, settings),
            _awaiting_quota(block, settings),
            _pool_not_ready(block, settings),
            _no_backup(block, settings),
        ]
        for automation in others:
            _save(server, automation)
    return [CRASHED, *(automation.name for automation in others)]


def _save(client: SyncPrefectClient, automation: AutomationCore) -> UUID:
    """Make the automation, or change the one of its name; Prefect itself would make a second one.

    One that is right already stays untouched: the server forgets what a changed automation was waiting for, and a run
    that died a moment ago would never be missed. One that was paused stays paused.
    """
    found = client.read_automations_by_name(automation.name)
    if not found:
        return client.create_automation(automation)
    wanted = automation.model_copy(update={"enabled": found[0].enabled})
    if _shape(found[0]) != _shape(wanted):
        client.update_automation(found[0].id, wanted)
    return found[0].id


def _shape(automation: AutomationCore) -> Any:
    """Return all that an automation says, without what the server adds."""
    return _without_ids(automation.model_dump(mode="json", include=set(AutomationCore.model_fields)))


def _without_ids(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_ids(item) for name, item in value.items() if name != "id"}
    if isinstance(value, list):
        items = [_without_ids(item) for item in value]
        # Sets of events have no order of their own.
        return sorted(items) if all(isinstance(item, str) for item in items) else items
    return value


# -- what is watched -------------------------------------------------------------------------------------------------


def _run_crashed() -> AutomationCore:
    """Fires for each run that crashed without an alert; it only notes that, for a cooldown would hide other runs."""
    return AutomationCore(
        name=CRASHED,
        description="A run crashed, and no worker told of it.",
        trigger=EventTrigger(
            match=_RUNS,
            after={"prefect.flow-run.Crashed"},
            expect={ALERT_TOLD},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=WORKER_SPEAKS_WITHIN,
        ),
        actions=[DoNothing()],
    )


def _crash_told(crashed: UUID, block: UUID, settings: Settings) -> AutomationCore:
    """Tells of what the other noted, at most once a cooldown: ``for_each`` there would have made it once a run."""
    run = "event.payload.triggering_event.resource"
    return AutomationCore(
        name=CRASH_TOLD,
        description="Tells of crashed runs, at most one message in five minutes.",
        trigger=EventTrigger(
            match={"prefect.resource.id": f"prefect.automation.{crashed}"},
            expect={"prefect.automation.triggered"},
            posture=Posture.Reactive,
            threshold=1,
            within=COOLDOWN["critical"],
        ),
        actions=[
            _tell(
                block,
                settings,
                severity="critical",
                title="A run crashed",
                entry="run-crashed",
                what="Its process is gone or said nothing for too long. What it finished is kept: a retry goes on. "
                "A run from the command line goes on when its command is given again.",
                scope=f"{run}['prefect.resource.name']",
                run_id=f"{run}['prefect.resource.id'].split('.')[-1]",
                resume=f"prefect flow-run retry {_RUN_ID}",
            )
        ],
    )


def _run_silent() -> AutomationCore:
    """Marks a run as crashed when its heartbeats end; the automations above then tell of it."""
    beat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name=SILENT,
        description="A run whose heartbeats end is marked as crashed. Runs without heartbeats are not watched.",
        trigger=EventTrigger(
            match=_RUNS,
            after={beat},
            expect={beat, *_ENDED, *_WAITS},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENT_AFTER,
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                message=f"no sign of life for {SILENT_AFTER.seconds} seconds",
            )
        ],
    )


def _run_never_began() -> AutomationCore:
    """Marks a run of ours as crashed that a worker took and never began: its worker died in between."""
    return AutomationCore(
        name=NEVER_BEGAN,
        description="A run that a worker took and did not begin is marked as crashed.",
        trigger=EventTrigger(
            match=_RUNS,
            match_related={"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.cryptique"},
            after={"prefect.flow-run.Pending"},
            expect={"prefect.flow-run.Running", *_ENDED, *_WAITS},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=BEGUN_WITHIN,
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                message=f"its worker died before it began: nothing was done for {BEGUN_WITHIN.seconds} seconds",
            )
        ],
    )


def _run_late(block: UUID, settings: Settings) -> AutomationCore:
    """Tells of ongoing work and backups: bulk runs and partitions are late whenever they wait, as they should."""
    return AutomationCore(
        name=LATE,
        description="Tells of runs that did not start when they should, at most one message in fifteen minutes.",
        trigger=EventTrigger(
            match=_RUNS,
            match_related={
                "prefect.resource.role": "work-queue",
                "prefect.resource.name": [work_pool.ONGOING, work_pool.BACKUPS],
            },
            expect={"prefect.flow-run.Late"},
            posture=Posture.Reactive,
            threshold=1,
            within=COOLDOWN["warning"],
        ),
        actions=[
            _tell(
                block,
                settings,
                severity="warning",
                title="A run is late",
                entry="run-late",
                what="No worker took it: is one running for its pool and queue, and below its limit? The run starts as "
                "soon as one takes it.",
                scope="event.resource['prefect.resource.name']",
                run_id="event.resource.id.split('.')[-1]",
            )
        ],
    )


def _run_long(block: UUID, settings: Settings) -> AutomationCore:
    return AutomationCore(
        name=LONG,
        description="Tells of a run that has been running for a day.",
        trigger=EventTrigger(
            match=_RUNS,
            after={"prefect.flow-run.Running"},
            expect={*_ENDED, *_WAITS},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=LONG_AFTER,
        ),
        actions=[
            _tell(
                block,
                settings,
                severity="warning",
                title="A run has been running for a day",
                entry="run-long",
                what="Its progress artifact tells whether it still gets on.",
                scope="event.resource['prefect.resource.name']",
                run_id="event.resource.id.split('.')[-1]",
            )
        ],
    )


def _budget_spent(block: UUID, settings: Settings) -> AutomationCore:
    return AutomationCore(
        name=BUDGET,
        description="Tells of runs that spent their budget, at most one message in fifteen minutes.",
        trigger=EventTrigger(
            match=_RUNS,
            expect={f"prefect.flow-run.{BUDGET_SPENT}"},
            posture=Posture.Reactive,
            threshold=1,
            within=COOLDOWN["warning"],
        ),
        actions=[
            _tell(
                block,
                settings,
                severity="warning",
                title="A run spent its budget and waits for a person",
                entry="run-waits",
                what=f"{_STATE} Resumed, it may spend the same sum once more. It waits {WAITS_FOR_A_PERSON.days} days; "
                "then it fails.",
                scope="event.resource['prefect.resource.name']",
                run_id="event.resource.id.split('.')[-1]",
                resume=allow_command(_RUN_ID),
            )
        ],
    )


def _awaiting_quota(block: UUID, settings: Settings) -> AutomationCore:
    return AutomationCore(
        name=QUOTA,
        description="Tells of runs that wait for the day's quota, at most one message in fifteen minutes.",
        trigger=EventTrigger(
            match=_RUNS,
            expect={f"prefect.flow-run.{AWAITING_QUOTA}"},
            posture=Posture.Reactive,
            threshold=1,
            within=COOLDOWN["warning"],
        ),
        actions=[
            _tell(
                block,
                settings,
                severity="warning",
                title="A run waits for the day's quota",
                entry="run-waits",
                what=_STATE,
                scope="event.resource['prefect.resource.name']",
                run_id="event.resource.id.split('.')[-1]",
            )
        ],
    )


def _pool_not_ready(block: UUID, settings: Settings) -> AutomationCore:
    return AutomationCore(
        name=POOL,
        description="Tells of a work pool without a worker, at most one message in five minutes.",
        trigger=EventTrigger(
            match={"prefect.resource.id": "prefect.work-pool.*"},
            expect={"prefect.work-pool.not-ready"},
            posture=Posture.Reactive,
            threshold=1,
            within=COOLDOWN["critical"],
        ),
        actions=[
            _tell(
                block,
                settings,
                severity="critical",
                title="A work pool is not ready",
                entry="work-pool",
                what="No worker of this pool answers: nothing that is scheduled will run.",
                scope="event.resource['prefect.resource.name']",
                run_id=None,
            )
        ],
    )


def _no_backup(block: UUID, settings: Settings) -> AutomationCore:
    """Fires when no backup was made and proved for so long, counted from the last one or from the registration.

    That an event both begins and ends the wait starts it anew at each. Without ``for_each`` the server waits from the
    beginning, also for a first one; while there is none it tells again, after twice as long.
    """
    return AutomationCore(
        name=NO_BACKUP,
        description="Tells that no backup was made and proved for 26 hours, or none since this was registered.",
        trigger=EventTrigger(
            match=_RUNS,
            after={BACKUP_MADE},
            expect={BACKUP_MADE},
            posture=Posture.Proactive,
            threshold=1,
            within=BACKUP_WITHIN,
        ),
        actions=[
            _tell(
                block,
                settings,
                severity="critical",
                title="No backup was made",
                entry="no-backup",
                what=f"None was made and proved good for {BACKUP_WITHIN.total_seconds() / 3600:.0f} hours. Is a worker "
                "running, and the schedule of backup-daily on? The log of the last run of backup says why it failed; "
                "`cryptique-rag backups` lists what there is. Make one now:",
                scope="'backup-daily'",
                run_id=None,
                resume="prefect deployment run backup/backup-daily",
                at="firing.triggered",
            )
        ],
    )


# -- what is said ----------------------------------------------------------------------------------------------------


def _tell(
    block: UUID,
    settings: Settings,
    *,
    severity: Severity,
    title: str,
    entry: str,
    what: str,
    scope: str,
    run_id: str | None,
    resume: str | None = None,
    at: str = "event.occurred",
) -> CallWebhook:
    """Return the action that posts a message in the webhook's form.

    ``entry`` is that of the runbook. ``scope``, ``run_id`` and ``at``, the time that it is told of, are Jinja
    expressions. ``resume`` is a command that works on a run in that state; Prefect retries no run that has not ended.
    """
    base = (PREFECT_UI_URL.value() or (PREFECT_API_URL.value() or "").rstrip("/").removesuffix("/api")).rstrip("/")
    now = datetime.now(UTC)
    incident = Incident(
        cause=f"server:{title}",
        flow="server",
        severity=severity,
        title=title,
        what=what,
        first_seen=now,
        last_seen=now,
        scope=_SCOPE,
        link=f"{base}/runs/flow-run/{_RUN_ID}" if base and run_id else None,
        resume=resume,
        runbook=runbook_link(entry, settings.cryptique_public_url),
    )
    payload = _FORMATS[settings.cryptique_alert_webhook_kind](Message("failed", incident, 1, 0))
    template = json.dumps(_with_time(payload, now), ensure_ascii=False)
    escape = ""
    if settings.cryptique_alert_webhook_kind == "slack":
        escape = " | replace('&', '&amp;') | replace('<', '&lt;') | replace('>', '&gt;')"
    state = "event.resource['prefect.state-message']"
    values = {
        _SCOPE: f"({scope}) | string | truncate({_LONGEST_NAME}){escape}",
        _STATE: f"{state} | string | truncate({_LONGEST_STATE}){escape}",
        _RUN_ID: f"({run_id}) | string",
        _TIME: f"{at} | string | truncate(19, true, '')",
    }
    for mark, expression in values.items():
        # As the inside of a JSON string: a name with a quote must not end it.
        template = template.replace(mark, "{{ (" + expression + " | tojson)[1:-1] }}")
    return CallWebhook(block_document_id=block, payload=template)


def _with_time(value: Any, written: datetime) -> Any:
    """Return a payload whose times are those of the event, not of the registration."""
    if isinstance(value, Mapping):
        return {name: _with_time(item, written) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_time(item, written) for item in value]
    if isinstance(value, str):
        return value.replace(f"{written:%Y-%m-%d %H:%M:%S}", _TIME).replace(written.isoformat(), _TIME)
    return value
