"""Alerts: what a channel is told of runs that fail, crash and are well again; and what it is never told."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import Flow, flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event
from prefect.logging.handlers import APILogHandler
from prefect.states import Crashed, Paused, Pending, Running, Scheduled
from pymongo import MongoClient

from blocks.slack import SlackNotifier
from deployments import automations
from deployments.automations import PREFIX, register_automations
from deployments.register_blocks import make_blocks
from deployments.work_pool import ONGOING
from flows.blocks import ALERTS
from flows.hooks import (
    ALERT_TOLD,
    BACKUP_MADE,
    alert_on_crashed,
    alert_on_failure,
    note_backup_made,
    resolve_on_completion,
)
from flows.pauses import AWAITING_QUOTA, BUDGET_SPENT
from tasks.alert import send_alert, tell_due, tell_resolved
from tasks.domain.incidents import Incident
from tests.end_to_end.pipeline import Pipeline, Record, SourceData, prefect_client, wait_for
from tests.end_to_end.test_cli import run as run_command
from tests.end_to_end.test_secrets import KEY, PASSWORD, SECRETS, user, with_user
from tests.loopback.gemini import LoopbackGemini
from tests.loopback.slack import LoopbackSlack, Posted

__all__ = ["user"]

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROWS, BY_SHARD = 60, {"shard_rows": 20, "shards_in_flight": 1}
#: Requests are counted from 0, the first is the check, and each of three shards takes one.
IN_THE_SECOND_SHARD = 2


@pytest.fixture
def slack() -> Iterator[LoopbackSlack]:
    with LoopbackSlack() as server:
        yield server


@pytest.fixture
def told_pipeline(pipeline: Pipeline, slack: LoopbackSlack) -> Iterator[Pipeline]:
    """A pipeline whose failures are told; other tests' are not."""
    pipeline.use(cryptique_embedder="local", slack_webhook_url=slack.url)
    yield pipeline
    forget_alerts()


def forget_alerts() -> None:
    with suppress(ValueError):
        SlackNotifier.delete(ALERTS, _sync=True)  # type: ignore[call-arg]
    Pipeline._registered = None


def said(posted: Posted) -> str:
    """Return the text that a person reads in Slack, signs as they are shown."""
    blocks = posted.payload["blocks"]
    texts = [block["text"]["text"] if "text" in block else block["elements"][0]["text"] for block in blocks]
    return "\n".join(texts).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def log_of(run_id: UUID | None) -> str:
    APILogHandler().flush()
    assert run_id is not None
    with prefect_client() as client:
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])))
    return "\n".join(log.message for log in logs)


def events(client: SyncPrefectClient, run_id: object, name: str) -> list[Record] | None:
    """Return the events of this name that the server has recorded of a run, or None as long as there is none."""
    wanted = {"event": {"name": [name]}, "resource": {"id": [f"prefect.flow-run.{run_id}"]}}
    return client.request("POST", "/events/filter", json={"filter": wanted}).json()["events"] or None


# -- what a flow says of itself --------------------------------------------------------------------------------------


def test_a_run_that_fails_is_told_once_with_all_that_is_needed_and_its_end_is_told_once(
    told_pipeline: Pipeline, slack: LoopbackSlack, source_data: SourceData
) -> None:
    pipeline = told_pipeline
    rows = source_data.some(ROWS)
    pipeline.load(source_data, [{**rows[0], "value_eth": "NaN"}, *rows[1:]])
    with LoopbackGemini(faults=lambda index: "403" if index >= IN_THE_SECOND_SHARD else None) as gemini:
        pipeline.use_gemini(gemini, cryptique_gemini_concurrency=1, slack_webhook_url=slack.url)
        pipeline.refusal(**BY_SHARD, limit=ROWS, end=datetime(2100, 1, 1, tzinfo=UTC))
        failed_run = pipeline.last_run_id
        (told,) = slack.requests
        words = said(told)
        assert "migrate failed at embed" in words
        assert "Gemini refuses GEMINI_API_KEY" in words
        assert "*Stage* embed" in words
        assert re.search(r"\*So far\* 20 of \d+ records, 19 vector documents written, 1 dead-lettered\n", words)
        assert "amount_unreadable 1" in words
        assert f"/runs/flow-run/{failed_run}|Open the run>" in words
        assert "migrate transactions" in words
        assert "Traceback" not in told.text
        assert told.payload["text"].startswith("migrate failed at embed")
        command = shlex.split(words.partition("```")[2].partition("```")[0])
        assert command[:2] == ["cryptique-rag", "migrate"]
        options = dict(zip(command[2::2], command[3::2], strict=True))
        assert options.pop("--end").startswith("2100-01-01T00:00")
        assert options == {"--limit": str(ROWS), "--shard-rows": "20", "--shards-in-flight": "1"}

        # The same trouble again, within the cooldown: nothing more is said. The check, its first request, passes.
        check = gemini.request_count
        gemini.faults = lambda index: "403" if index > check else None
        pipeline.refusal(**BY_SHARD, limit=ROWS)
        assert len(slack.requests) == 1

        gemini.faults = ()
        pipeline.migrate(**BY_SHARD, limit=ROWS)
        assert len(slack.requests) == 2
        resolved = said(slack.requests[1])
        assert "Resolved: migrate completed again" in resolved
        assert f"/runs/flow-run/{pipeline.last_run_id}|" in resolved
        assert "1 failure was held back" in resolved
        pipeline.migrate(**BY_SHARD, limit=ROWS)
        assert len(slack.requests) == 2
    (memory,) = pipeline.store["ragincidents"].find()
    assert (memory["failing"], memory["held"], memory["unconfirmed"]) == (False, 0, 0)
    assert pipeline.initialise()["differs"] == []


@pytest.mark.long
def test_the_stage_is_that_of_the_task_wherever_it_failed(
    told_pipeline: Pipeline, slack: LoopbackSlack, source_data: SourceData
) -> None:
    pipeline = told_pipeline
    pipeline.load(source_data, source_data.some(5))
    with LoopbackGemini(faults=lambda index: "401") as gemini:
        pipeline.use_gemini(gemini, slack_webhook_url=slack.url)
        pipeline.refusal()
    pipeline.use(cryptique_embedder="local", slack_webhook_url=slack.url)
    message = pipeline.refusal(teams=["f" * 24]).partition("InputError: ")[2]
    first, second = (said(posted) for posted in slack.requests)
    assert "migrate failed at check embedder" in first
    assert first.startswith("🔴")
    # Nothing is broken when the input was wrong: a warning.
    assert second.startswith("🟠")
    assert message in second


def test_without_a_webhook_a_failure_leaves_one_line_in_the_log_and_nothing_else(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    forget_alerts()
    pipeline.load(source_data, source_data.some(5))
    pipeline.refusal(teams=["f" * 24])
    log = wait_for(
        lambda: log if "SLACK_WEBHOOK_URL is not set" in (log := log_of(pipeline.last_run_id)) else None, what="the log"
    )
    assert log.count("SLACK_WEBHOOK_URL") == 1
    assert "ragincidents" not in pipeline.store.list_collection_names()


def test_a_webhook_that_is_down_changes_nothing_about_the_run_and_misses_nothing(
    told_pipeline: Pipeline, slack: LoopbackSlack, source_data: SourceData
) -> None:
    pipeline = told_pipeline
    pipeline.load(source_data, source_data.some(5))
    slack.faults = lambda index: 404
    told = pipeline.run(teams=["f" * 24])
    run_id = pipeline.last_run_id
    wait_for(lambda: "the webhook answered 404" in log_of(run_id) or None, what="the log")
    assert slack.taken == []
    forget_alerts()
    pipeline.use(cryptique_embedder="local")
    untold = pipeline.run(teams=["f" * 24])
    assert (told.type, told.name, told.message) == (untold.type, untold.name, untold.message)

    pipeline.use(cryptique_embedder="local", slack_webhook_url=slack.url)
    assert pipeline.run().is_completed()
    slack.faults = ()
    store = make_blocks(pipeline.settings).vectors
    later = datetime.now(UTC) + timedelta(hours=1)
    notifier = SlackNotifier.model_validate({"url": slack.url})
    (one,) = tell_due(notifier=notifier, book=store, now=later)
    assert (one.kind, one.delivered) == ("summary", True)
    assert "It has completed since" in said(slack.taken[0])
    store.close()


def test_a_crash_is_told_and_the_server_hears_that_it_was(told_pipeline: Pipeline, slack: LoopbackSlack) -> None:
    told_pipeline.register()

    @flow(name="crashing", on_crashed=[alert_on_crashed], on_failure=[alert_on_failure])
    def crashing() -> None:
        raise SystemExit(9)

    with pytest.raises(SystemExit):
        crashing()
    (posted,) = slack.requests
    assert "crashing crashed" in said(posted)
    run_id = said(posted).partition("/runs/flow-run/")[2][:36]
    assert f"prefect flow-run retry {run_id}" in said(posted)

    with prefect_client() as client:
        assert len(wait_for(lambda: events(client, run_id, ALERT_TOLD), what="the event")) == 1


def test_no_secret_is_in_any_message_whatever_an_error_repeats(
    told_pipeline: Pipeline,
    slack: LoopbackSlack,
    source_data: SourceData,
    mongo_uri: str,
    user: str,
) -> None:
    pipeline = told_pipeline
    pipeline.load(source_data, source_data.some(5))
    uri = with_user(mongo_uri, user, PASSWORD)
    with LoopbackGemini(api_key=KEY, faults=lambda index: "500-key-echoed") as gemini:
        pipeline.use_gemini(gemini, cryptique_source_uri=uri, cryptique_vectors_uri=uri, slack_webhook_url=slack.url)
        pipeline.refusal(retries=0)

        @flow(name="careless", on_failure=[alert_on_failure], on_completion=[resolve_on_completion])
        def careless() -> None:
            stack = "Traceback (most recent call last):\n  File"
            raise RuntimeError(f"could not use {uri} with {PASSWORD}, {KEY} and {slack.url}\n{stack}")

        careless(return_state=True)
    assert len(slack.requests) == 2
    everything = "\n".join(posted.text for posted in slack.requests)
    assert "could not use" in everything
    assert {secret for secret in {*SECRETS, slack.token, slack.url} if secret in everything} == set()
    assert "Traceback" not in everything


@pytest.mark.parametrize("kind", ["discord", "generic"])
def test_other_webhooks_are_told_in_their_own_form(
    told_pipeline: Pipeline, slack: LoopbackSlack, source_data: SourceData, kind: str
) -> None:
    pipeline = told_pipeline
    pipeline.load(source_data, source_data.some(5))
    pipeline.use(cryptique_embedder="local", slack_webhook_url=slack.url, cryptique_alert_webhook_kind=kind)
    message = pipeline.refusal(teams=["f" * 24]).partition("InputError: ")[2]
    payload = slack.requests[0].payload
    shown = payload["embeds"][0]["description"] if kind == "discord" else payload["text"]
    assert message in shown
    assert "cryptique-rag migrate --team ffffffffffffffffffffffff" in shown


# -- the memory in the store -----------------------------------------------------------------------------------------


def make_incident(stage: str = "embed", error: str = "TransientError") -> Incident:
    return Incident(
        cause=f"migrate:{error}:{stage}",
        flow="migrate",
        severity="critical",
        title=f"migrate failed at {stage}",
        what="it did not work",
        first_seen=NOON,
        last_seen=NOON,
    )


def test_a_storm_is_one_message_then_one_summary_and_a_second_cause_is_told_in_its_middle(
    pipeline: Pipeline, slack: LoopbackSlack
) -> None:
    notifier = SlackNotifier.model_validate({"url": slack.url})
    for number in range(200):
        # As after a restart: nothing is kept between two failures but what lies in the store.
        store = make_blocks(pipeline.settings).vectors
        now = NOON + timedelta(seconds=number)
        send_alert(make_incident(), notifier=notifier, book=store, now=now)
        if number == 100:
            send_alert(make_incident("upsert", "TerminalError"), notifier=notifier, book=store, now=now)
        assert tell_due(notifier=notifier, book=store, now=now) == []
        store.close()
    assert ["embed" in said(posted) for posted in slack.requests] == [True, False]

    store = make_blocks(pipeline.settings).vectors
    for minutes in (5, 6, 10):
        tell_due(notifier=notifier, book=store, now=NOON + timedelta(minutes=minutes))
    assert len(slack.requests) == 3
    summary = said(slack.requests[2])
    assert "199 times more: migrate failed at embed" in summary
    assert "199 failures were held back" in summary

    told = tell_resolved(
        "migrate", link=None, scope="", notifier=notifier, book=store, now=NOON + timedelta(minutes=11)
    )
    assert [one.kind for one in told] == ["resolved", "resolved"]
    assert tell_resolved("migrate", link=None, scope="", notifier=notifier, book=store, now=NOON) == []
    store.close()


def test_of_many_processes_that_fail_at_once_one_speaks_and_none_is_forgotten(
    pipeline: Pipeline, slack: LoopbackSlack, mongo_client: MongoClient[Record]
) -> None:
    notifier = SlackNotifier.model_validate({"url": slack.url})
    count = 8
    together = threading.Barrier(count)

    def fail(_: int) -> None:
        store = make_blocks(pipeline.settings).vectors  # with a client of its own
        store.check()
        together.wait()
        send_alert(make_incident(), notifier=notifier, book=store, now=NOON)
        store.close()

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(fail, range(count)))
    assert len(slack.requests) == 1
    (memory,) = mongo_client[pipeline.store.name]["ragincidents"].find()
    assert (memory["held"], memory["unconfirmed"], memory["incident"]["failures"]) == (count - 1, 0, count)


def test_when_the_store_is_what_failed_a_process_still_speaks_and_speaks_once(slack: LoopbackSlack) -> None:
    settings = {"cryptique_source_uri": "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=50"}
    from deployments.settings import Settings

    store = make_blocks(Settings.model_validate(settings)).vectors
    notifier = SlackNotifier.model_validate({"url": slack.url})
    incident = make_incident(stage=uuid4().hex)
    for _ in range(3):
        send_alert(incident, notifier=notifier, book=store, now=NOON)
    (posted,) = slack.requests
    assert "The store can't be reached" in said(posted)


# -- what the server says --------------------------------------------------------------------------------------------


@pytest.fixture
def watched(
    prefect_api: str, pipeline: Pipeline, slack: LoopbackSlack, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pipeline]:
    """A server with our automations, which wait as short as Prefect allows."""
    for name in ("WORKER_SPEAKS_WITHIN", "SILENT_AFTER", "BEGUN_WITHIN"):
        monkeypatch.setattr(automations, name, timedelta(seconds=10))
    pipeline.use(cryptique_embedder="local", slack_webhook_url=slack.url)
    try:
        yield pipeline
    finally:
        with prefect_client() as client:
            for automation in our_automations(client):
                client.delete_automation(automation.id)


def our_automations(client: Any) -> list[Any]:
    return [automation for automation in client.read_automations() if automation.name.startswith(PREFIX)]


def create_run_in_queue(client: SyncPrefectClient, of: Flow[..., Any], queue: str, pool: str) -> FlowRun:
    """Create a run as the scheduler does, for a worker of the pool."""
    deployment = client.create_deployment(
        client.create_flow(of), f"{queue}-{uuid4().hex[:6]}", work_pool_name=pool, work_queue_name=queue
    )
    return client.create_flow_run_from_deployment(deployment, name=f'{queue} "<&>" {uuid4().hex[:6]}')


def last_changes(client: Any) -> dict[str, str]:
    return {row["name"]: row["updated"] for row in client.request("POST", "/automations/filter", json={}).json()}


def test_automations_are_registered_once_and_do_not_hold_the_address(watched: Pipeline, slack: LoopbackSlack) -> None:
    names = register_automations(watched.settings)
    with prefect_client() as client:
        first = last_changes(client)
        paused = next(automation for automation in our_automations(client) if automation.name == automations.LATE)
        client.pause_automation(paused.id)
    assert sorted(register_automations(watched.settings)) == sorted(names)
    with prefect_client() as client:
        assert sorted(automation.name for automation in our_automations(client)) == sorted(names)
        # Nobody touched those that were right: what they wait for is not forgotten, and what was paused stays so.
        again = last_changes(client)
        assert {name for name in names if again[name] != first[name]} == {automations.LATE}
        assert [found.enabled for found in our_automations(client) if found.name == automations.LATE] == [False]
        told = client.request("POST", "/automations/filter", json={}).text
        told += client.request("POST", "/block_documents/filter", json={"include_secrets": False}).text
    assert "call-webhook" in told
    assert slack.token not in told
    # Without a webhook nobody is told, but a dead run is still marked as one.
    assert register_automations(watched.make_settings()) == [automations.SILENT, automations.NEVER_BEGAN]


@pytest.mark.long
def test_the_register_command_makes_the_server_say_what_cannot_speak(watched: Pipeline, slack: LoopbackSlack) -> None:
    settings = {
        "CRYPTIQUE_SOURCE_URI": watched.uri,
        "CRYPTIQUE_SOURCE_DATABASE": watched.source.name,
        "CRYPTIQUE_EMBEDDER": "local",
        "SLACK_WEBHOOK_URL": slack.url,
    }
    with prefect_client() as client:
        done = run_command(watched.home.parent, "register", **settings, PREFECT_API_URL=str(client.api_url))
        assert done.returncode == 0, done.stderr
        names = [automation.name for automation in our_automations(client)]
    forget_alerts()
    assert automations.CRASHED in names
    assert {f"registered {name}" for name in names} < set(done.stdout.splitlines())


def test_the_server_tells_of_what_cannot_speak_and_only_of_that(watched: Pipeline, slack: LoopbackSlack) -> None:
    @flow
    def silent() -> None: ...

    with prefect_client() as client:
        # Paused, so that the server itself has nothing to say of it.
        queues = client.create_work_pool(
            WorkPoolCreate(name=f"pool {uuid4().hex[:6]}", type="process", is_paused=True)
        ).name
        bulk_run, late_run = (create_run_in_queue(client, silent, name, queues) for name in ("bulk", ONGOING))
    register_automations(watched.settings)

    def is_crashed(run_id: UUID) -> Callable[[], bool | None]:
        def look() -> bool | None:
            state = client.read_flow_run(run_id).state
            return True if state is not None and state.is_crashed() else None

        return look

    with prefect_client() as client:
        told_run, dead_run, silent_run, spent_run, waiting_run = (
            client.create_flow_run(silent, name=f'{name} "<&>" {uuid4().hex[:6]}', state=Running())
            for name in ("told", "dead", "silent", "spent", "waiting")
        )

        def messages(count: int) -> list[str]:
            def look() -> list[str] | None:
                return [said(posted) for posted in slack.requests] if len(slack.requests) >= count else None

            return wait_for(look, what=f"{count} messages of the server", seconds=90)

        # One after the other: on SQLite the server loses events that come while it writes others (database is locked).
        # A bulk run waits for its place, which is as it should be; another is late.
        client.set_flow_run_state(bulk_run.id, Scheduled(name="Late"), force=True)
        client.set_flow_run_state(late_run.id, Scheduled(name="Late"), force=True)
        messages(1)
        # Two wait: one for a person, one for tomorrow.
        spent = Paused(name=BUDGET_SPENT, message="$1 of <$2> is spent.", timeout_seconds=60)
        client.set_flow_run_state(spent_run.id, spent, force=True)
        messages(2)
        waiting = Scheduled(name=AWAITING_QUOTA, message='The day\'s "quota" is used up. ' + "Much more. " * 100)
        client.set_flow_run_state(waiting_run.id, waiting, force=True)
        messages(3)
        # A pool has no worker.
        pool = {"prefect.resource.id": f"prefect.work-pool.{uuid4()}", "prefect.resource.name": "our pool"}
        emit_event(event="prefect.work-pool.not-ready", resource=pool)
        messages(4)
        # Two runs crash; of one a worker's hook has told.
        client.set_flow_run_state(told_run.id, Crashed(), force=True)
        wait_for(lambda: events(client, told_run.id, "prefect.flow-run.Crashed"), what="the crash")
        resource = {"prefect.resource.id": f"prefect.flow-run.{told_run.id}", "prefect.resource.name": "told"}
        emit_event(event=ALERT_TOLD, resource=resource)
        wait_for(lambda: events(client, told_run.id, ALERT_TOLD), what="the hook's event")
        client.set_flow_run_state(dead_run.id, Crashed(), force=True)
        words = messages(5)
        titles = ("A run crashed", "A work pool", "A run is late", "A run spent", "A run waits")
        crashed, pool_words, late, budget, quota = (next(w for w in words if t in w) for t in titles)
        assert f"*Scope* {dead_run.name}" in crashed
        assert f"/runs/flow-run/{dead_run.id}|Open the run>" in crashed
        assert f"prefect flow-run retry {dead_run.id}" in crashed
        assert f"*Scope* {late_run.name}" in late
        assert "retry" not in late
        assert "*Scope* our pool" in pool_words
        assert f"*Scope* {spent_run.name}" in budget
        assert "$1 of <$2> is spent. Resumed, it may spend the same sum once more. It waits 7 days" in budget
        assert f"/runs/flow-run/{spent_run.id}|Open the run>" in budget
        assert f"*Scope* {waiting_run.name}" in quota
        assert 'The day\'s "quota" is used up. Much more.' in quota
        assert len(quota) < 1_000
        # The command that it offers is one that works.
        command = budget.partition("```")[2].partition("```")[0]
        assert str(spent_run.id) in command
        resumed = subprocess.run(
            [Path(sys.executable).with_name("prefect"), *shlex.split(command)[1:]],
            env=os.environ | {"PREFECT_API_URL": str(client.api_url)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert resumed.returncode == 0, resumed.stderr
        state = client.read_flow_run(spent_run.id).state
        assert state is not None
        assert not state.is_paused()
        assert f"{datetime.now(UTC):%Y-%m-%d}" in crashed

        # One was taken by a worker that died before it began.
        taken_run = client.create_flow_run(silent, name="taken", tags=["cryptique"], state=Pending())
        # One was alive and says nothing any more.
        resource = {"prefect.resource.id": f"prefect.flow-run.{silent_run.id}", "prefect.resource.name": "silent"}
        emit_event(event="prefect.flow-run.heartbeat", resource=resource)
        wait_for(is_crashed(silent_run.id), what="the silent run's crash", seconds=90)
        wait_for(is_crashed(taken_run.id), what="the crash of the run that never began", seconds=90)
    # These crashed within the cooldown of the dead one.
    assert len(slack.requests) == 5
    json.dumps([posted.payload for posted in slack.requests])


def no_backup_told(slack: LoopbackSlack, count: int) -> list[str]:
    def look() -> list[str] | None:
        told = [said(posted) for posted in slack.requests if "No backup was made" in said(posted)]
        return told if len(told) >= count else None

    return wait_for(look, what=f"{count} messages about backups", seconds=90)


def test_a_day_without_a_backup_is_told_also_when_there_never_was_one(
    watched: Pipeline, slack: LoopbackSlack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automations, "BACKUP_WITHIN", timedelta(seconds=10))
    register_automations(watched.settings)
    (told,) = no_backup_told(slack, 1)
    assert told.startswith("🔴")
    assert f"{datetime.now(UTC):%Y-%m-%d}" in told
    assert "`cryptique-rag backups` lists" in told
    assert "prefect deployment run backup/backup-daily" in told


@pytest.mark.long
def test_a_backup_starts_the_wait_for_the_next_one_and_a_dry_run_does_not(
    watched: Pipeline, slack: LoopbackSlack, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = timedelta(seconds=30)
    monkeypatch.setattr(automations, "BACKUP_WITHIN", window)

    @flow(on_completion=[note_backup_made])
    def backup(dry_run: bool = False) -> None: ...

    register_automations(watched.settings)
    with prefect_client() as client:
        for _ in range(2):
            time.sleep(5)
            made, rehearsed = (backup(dry_run=dry, return_state=True) for dry in (False, True))
        found = wait_for(lambda: events(client, made.state_details.flow_run_id, BACKUP_MADE), what="the event")
        (told,) = no_backup_told(slack, 1)
        assert events(client, rehearsed.state_details.flow_run_id, BACKUP_MADE) is None
    last = datetime.fromisoformat(found[0]["occurred"].replace("Z", "+00:00"))
    (time_told,) = re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", told)
    assert datetime.fromisoformat(f"{time_told}+00:00") >= (last + window).replace(microsecond=0)
