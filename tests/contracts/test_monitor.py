"""The monitor on real parts: each limit is passed in the real system, told once, held back, told again, resolved."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pytest
from bson.timestamp import Timestamp
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Cancelled, Scheduled
from pydantic import SecretStr
from pymongo.database import Database
from pymongo.uri_parser import parse_uri

from blocks.gemini import GeminiEmbedder
from blocks.machine import Machine
from blocks.meters import METER
from blocks.mongo import MongoSource
from blocks.mongo_health import read_health
from blocks.prefect_server import PrefectServer
from blocks.slack import SlackNotifier
from blocks.vector_store import VectorStore
from deployments.register_blocks import make_blocks
from deployments.settings import Settings
from deployments.watch import probe_parts
from flows.monitor import WATCHED, Lookout, watch_reading
from tasks.domain.alerts import ALERT_NAMES, Limits
from tasks.domain.backups import BackupManifest, Verification
from tasks.domain.errors import PipelineError
from tasks.embed import Slots, _Service
from tasks.probe import ProbeParts
from tests.end_to_end.pipeline import prefect_client, wait_for
from tests.loopback.gemini import LoopbackGemini
from tests.loopback.relay import Relay
from tests.loopback.slack import LoopbackSlack

Row = dict[str, Any]
NOTHING_SET: dict[str, Any] = {"gemini_api_key": None, "slack_webhook_url": None, "cryptique_vectors_uri": None}


class Scene:
    """A system that is looked at: a database, a home and a receiver of the test's own, and a clock."""

    def __init__(self, uri: str, database: Database[Row], home: Path, slack: LoopbackSlack) -> None:
        self.home, self.slack, self.database = home, slack, database
        settings = Settings(
            _env_file=None,
            **{
                **NOTHING_SET,
                "cryptique_source_uri": uri,
                "cryptique_source_database": database.name,
                "cryptique_vectors_database": database.name,
                "cryptique_embedder": "local",
                "cryptique_home": home,
            },
        )
        self.blocks = make_blocks(settings)
        self.book = self.blocks.monitor.open_book()
        self.parts: ProbeParts = probe_parts(self.blocks, self.book, None)
        self.notifier = SlackNotifier(url=SecretStr(slack.url), kind="generic")
        self.now = datetime.now(UTC)
        self._lookout: Lookout | None = None

    @property
    def vectors(self) -> VectorStore:
        return self.blocks.vectors

    def use(self, *, limits: Limits | None = None, **parts: Any) -> None:
        self.parts = replace(self.parts, **({"limits": limits} if limits else {}), **parts)
        self._lookout = None

    def look(self, *, after: timedelta = timedelta(0), also: Any = ()) -> set[str]:
        """Look after so much time; return the names of what is wrong."""
        self.now += after
        if self._lookout is None:
            self._lookout = Lookout(
                self.parts, self.book, self.notifier, public_url="https://rag.example", logger=logging.getLogger("test")
            )
        return {one.name for one in self._lookout.look(now=self.now, every=True, also=also).passed}

    def restart(self) -> None:
        """Be another process, with the same book."""
        self.book = self.blocks.monitor.open_book()
        self._lookout = None

    def said(self, name: str) -> list[Row]:
        """Return the messages about one alert, in order."""
        return [one.payload for one in self.slack.taken if one.payload["cause"] == f"monitor:{name}:look"]


@pytest.fixture
def scene(mongo_uri: str, database: Database[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr("tasks.probe._MONGO_WITHIN_S", 0.5)  # what hangs here hangs by intention
    METER.take()  # of other tests
    with LoopbackSlack() as slack:
        made = Scene(mongo_uri, database, tmp_path / "home", slack)
        made.vectors.initialise(256)
        yield made
        made.vectors.close()
        made.blocks.source.close()


COOLDOWN = {"critical": timedelta(minutes=5), "warning": timedelta(minutes=15)}


def expect_one_story(
    scene: Scene, name: str, severity: str, begin: Callable[[], object], end: Callable[[], object], *, looks: int = 1
) -> None:
    """Make it true; see one message, none while it goes on, one more after the cooldown, and the end of it."""
    a_look = timedelta(seconds=15)
    scene.look()
    assert scene.said(name) == []
    begin()
    for _ in range(looks):
        assert scene.said(name) == []
        wrong = scene.look(after=a_look)
    assert name in wrong
    (first,) = scene.said(name)
    assert (first["event"], first["severity"]) == ("failed", severity)
    assert first["runbook"] == f"https://rag.example/admin/runbook#alert-{name}"
    assert first["resume"].startswith("cryptique-rag ")
    scene.look(after=a_look)
    scene.restart()  # what was said is known to whoever looks next
    for _ in range(looks):
        scene.look(after=a_look)
    assert len(scene.said(name)) == 1
    scene.look(after=COOLDOWN[severity] - (looks + 2) * a_look)
    assert [one["event"] for one in scene.said(name)] == ["failed"]
    begin()  # what was measured over a window may have left it
    scene.look(after=2 * a_look)
    assert [one["event"] for one in scene.said(name)] == ["failed", "failed"]
    assert scene.said(name)[1]["held_back"] > 0
    end()
    assert name not in scene.look(after=a_look)
    assert [one["event"] for one in scene.said(name)] == ["failed", "failed", "resolved"]
    scene.look(after=timedelta(minutes=1))
    assert len(scene.said(name)) == 3
    (alert,) = [one for one in scene.book.read_alerts(scene.now - timedelta(days=1)) if one.name == name]
    assert alert.ended is not None
    assert alert.severity == severity


# -- what is measured over a window ------------------------------------------------------------------------------------


def asked(scene: Scene, gemini: LoopbackGemini, times: int) -> None:
    """Really ask the embedder, by the stage's own way, and write down what was counted as of now."""
    embedder = GeminiEmbedder(api_key=SecretStr(gemini.api_key), base_url=gemini.url, dimensions=64)
    service = _Service(embedder, Slots(1), 0, None, threading.Event())
    for _ in range(times):
        with suppress(PipelineError):
            service._ask(["a text"], 2)
    minute = scene.now.replace(second=0, microsecond=0)
    scene.vectors.add_measures({uuid4().hex: replace(one, minute=minute) for one in METER.take()})


def test_more_failures_than_a_tenth_are_told_and_so_is_their_end(scene: Scene) -> None:
    scene.use(limits=Limits(error_sample=10))
    with LoopbackGemini() as gemini:

        def fail() -> None:
            gemini.faults = lambda index: "500"
            asked(scene, gemini, 20)

        def succeed() -> None:
            gemini.faults = lambda index: None
            scene.now += timedelta(minutes=20)  # the failures leave the window
            asked(scene, gemini, 20)

        expect_one_story(scene, "error-rate", "critical", fail, succeed)


def test_few_failures_are_no_share(scene: Scene) -> None:
    with LoopbackGemini(faults=lambda index: "500") as gemini:
        asked(scene, gemini, 19)
        assert "error-rate" not in scene.look()
        asked(scene, gemini, 1)
        assert "error-rate" in scene.look()


def test_slow_answers_are_told_and_so_is_their_end(scene: Scene) -> None:
    scene.use(limits=Limits(error_sample=1, slow_s=0.75, window_s=3_600))
    with LoopbackGemini() as gemini:

        def slow() -> None:
            gemini.latency_seconds = 1.0
            asked(scene, gemini, 1)

        def fast() -> None:
            gemini.latency_seconds = 0.0
            scene.now += timedelta(hours=2)
            asked(scene, gemini, 1)

        expect_one_story(scene, "slow-responses", "warning", slow, fast)


def test_what_is_embedded_for_more_than_the_budget_is_told_until_the_next_day(scene: Scene) -> None:
    scene.use(limits=Limits(usd_per_day=1e-9))
    scene.now = scene.now.replace(hour=3)
    with LoopbackGemini() as gemini:

        def next_day() -> None:
            scene.now += timedelta(days=1)

        expect_one_story(scene, "cost", "critical", lambda: asked(scene, gemini, 1), next_day)


# -- what is ----------------------------------------------------------------------------------------------------------


def test_a_mongodb_that_is_gone_is_told_within_two_looks_and_so_is_its_return(scene: Scene, mongo_uri: str) -> None:
    host, port = parse_uri(mongo_uri)["nodelist"][0]
    with Relay(host, port) as relay:
        uri = f"mongodb://127.0.0.1:{relay.port}/?directConnection=true&serverSelectionTimeoutMS=300"
        source = MongoSource(uri=SecretStr(uri), database=scene.database.name)
        scene.use(source=source)
        expect_one_story(scene, "source-unreachable", "critical", relay.cut, relay.mend, looks=2)
        source.close()


def test_a_server_that_hangs_is_one_that_is_gone_and_keeps_no_other_probe_waiting(scene: Scene, mongo_uri: str) -> None:
    host, port = parse_uri(mongo_uri)["nodelist"][0]
    with Relay(host, port) as relay:
        source = MongoSource(
            uri=SecretStr(f"mongodb://127.0.0.1:{relay.port}/?directConnection=true"), database=scene.database.name
        )
        scene.use(source=source)
        scene.look()
        relay.hang()
        assert "source-unreachable" not in scene.look()
        assert "source-unreachable" in scene.look(after=timedelta(seconds=15))
        latest = scene.book.read_latest()
        assert latest["source"].verdict == "failed"
        assert latest["vectors"].verdict == "ok"
        assert latest["vectors"].took_s < latest["source"].took_s
        relay.mend()
        assert "source-unreachable" not in scene.look(after=timedelta(seconds=15))
        source.close()


def test_one_look_that_fails_is_nobody_woken(scene: Scene, mongo_uri: str) -> None:
    host, port = parse_uri(mongo_uri)["nodelist"][0]
    with Relay(host, port) as relay:
        uri = f"mongodb://127.0.0.1:{relay.port}/?directConnection=true&serverSelectionTimeoutMS=300"
        source = MongoSource(uri=SecretStr(uri), database=scene.database.name)
        scene.use(source=source)
        for _ in range(3):
            relay.cut()
            assert "source-unreachable" not in scene.look(after=timedelta(seconds=15))
            relay.mend()
            # The driver looks for a server that was gone every half second: a look before that would fail as well.
            wait_for(lambda: answers(source), what="the source behind the mended relay")
            assert "source-unreachable" not in scene.look(after=timedelta(seconds=15))
        assert scene.said("source-unreachable") == []
        source.close()


def answers(source: MongoSource) -> Literal[True] | None:
    with suppress(PipelineError):
        read_health(source, within_s=5)
        return True
    return None


def test_memory_that_runs_short_is_told_by_the_limit_of_the_container(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "cgroup"
    group.mkdir()
    (group / "memory.max").write_text(f"{1 << 30}\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 104857600\n")

    def use(share: float) -> None:
        (group / "memory.current").write_text(f"{int(share * (1 << 30)) + 104_857_600}\n")

    use(0.5)
    monkeypatch.setattr("tasks.probe.Machine", lambda: Machine(group))
    expect_one_story(scene, "memory", "warning", lambda: use(0.81), lambda: use(0.79))


def test_a_disk_that_is_almost_full_is_told(scene: Scene) -> None:
    used, whole = Machine().read_disk(scene.home)
    share = used / whole
    scene.use(limits=Limits(disk=share / 2))
    assert "disk" in scene.look()
    assert scene.said("disk")[0]["severity"] == "critical"


def test_changes_that_wait_for_more_than_a_quarter_of_an_hour_are_told(scene: Scene) -> None:
    def taken_over(ago: timedelta) -> None:
        moment = Timestamp(int((scene.now - ago).timestamp()), 1)
        scene.vectors.save_position("transaction", {"operationTime": moment}, source="x", now=scene.now)

    assert "ingestion-lag" not in scene.look()  # nothing is followed yet
    taken_over(timedelta(minutes=1))
    expect_one_story(
        scene,
        "ingestion-lag",
        "warning",
        lambda: taken_over(timedelta(minutes=16)),
        lambda: taken_over(timedelta(seconds=-15)),
    )


def test_a_real_position_in_the_change_stream_says_until_when_all_is_taken_over(scene: Scene) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    scene.database.transactions.insert_one({"tx_hash": "0x1"})
    with scene.database.transactions.watch() as stream:
        scene.database.transactions.insert_one({"tx_hash": "0x2"})
        next(stream)
        token = stream.resume_token
    scene.vectors.save_position("transaction", {"token": token}, source="x", now=scene.now - timedelta(days=1))
    scene.now = datetime.now(UTC)
    scene.look()
    lag_s = scene.book.read_latest()["ingest"].figures["lag_s"]
    assert 0 <= lag_s <= (datetime.now(UTC) - before).total_seconds() + 1


def test_a_day_and_two_hours_without_a_good_backup_is_told_and_a_good_one_ends_it(scene: Scene) -> None:
    store = scene.blocks.backups

    def backed_up() -> None:
        backup_id = f"{scene.now:%Y%m%dT%H%M%SZ}-abcd"
        manifest = BackupManifest(backup_id, ("daily",), scene.now, scene.now, (), "version", {}, {})
        store.save_manifest(manifest)
        proof = sha256(manifest.to_bytes()).hexdigest()
        store.save_verification(backup_id, Verification(proof, scene.now, 0, 0, 0, drill=False))

    def wait() -> None:
        scene.now += timedelta(hours=27)

    backed_up()
    expect_one_story(scene, "no-backup", "critical", wait, backed_up)


def test_where_there_never_was_a_backup_its_age_counts_from_when_somebody_looks(scene: Scene) -> None:
    assert "no-backup" not in scene.look(after=timedelta(hours=25))
    assert "no-backup" in scene.look(after=timedelta(hours=2))


def test_a_run_that_refuses_more_than_a_hundredth_is_told_until_one_refuses_less(scene: Scene) -> None:
    def ran(refused: int, *, read: int = 1_000) -> None:
        scene.database.embeddingjobs.insert_one(
            {
                "jobId": f"migrate-{uuid4().hex}",
                "jobType": "migration",
                "sourceType": "transaction",
                "status": "completed",
                "progress": {"total": read, "processed": read, "failed": refused, "percentage": 100},
                "createdAt": scene.now,
                "updatedAt": scene.now,
            }
        )

    ran(10)
    ran(50, read=99)
    expect_one_story(scene, "dead-letters", "warning", lambda: ran(11), lambda: ran(10))


# -- Prefect ----------------------------------------------------------------------------------------------------------


@flow
def waits() -> None:
    """Never runs."""


def test_more_runs_than_may_wait_are_told(scene: Scene, prefect_api: str) -> None:
    server = PrefectServer(prefect_api)
    made = []
    with prefect_client() as client:
        before = server.count_waiting(scene.now + timedelta(hours=3))
        scene.use(prefect=server, limits=Limits(queue=before + 2))

        def scheduled() -> None:
            while len(made) < 3:
                past = Scheduled(scheduled_time=scene.now - timedelta(minutes=1))
                made.append(client.create_flow_run(waits, state=past).id)

        def cancelled() -> None:
            for run_id in made:
                client.set_flow_run_state(run_id, Cancelled(), force=True)

        expect_one_story(scene, "queue", "warning", scheduled, cancelled)


def test_a_pool_without_a_worker_is_told_until_one_is_there(scene: Scene, prefect_api: str) -> None:
    pool = f"pool-{uuid4().hex[:8]}"
    with prefect_client() as client:
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        scene.use(prefect=PrefectServer(prefect_api), pool=pool)
        assert "no-worker" not in scene.look()
        assert "no-worker" in scene.look(after=timedelta(seconds=15))
        beats(client, pool)
        assert "no-worker" not in scene.look(after=timedelta(seconds=15))
        assert [one["event"] for one in scene.said("no-worker")] == ["failed", "resolved"]
        client.delete_work_pool(pool)


def beats(client: SyncPrefectClient, pool: str) -> None:
    client.request("POST", f"/work_pools/{pool}/workers/heartbeat", json={"name": "a worker"})


def test_a_prefect_server_that_is_gone_is_told_and_so_is_its_return(scene: Scene, prefect_api: str) -> None:
    host, _, port = prefect_api.removeprefix("http://").removesuffix("/api").partition(":")
    with Relay(host, int(port)) as relay:
        scene.use(prefect=PrefectServer(f"http://127.0.0.1:{relay.port}/api", timeout_seconds=2.0))
        expect_one_story(scene, "prefect-unreachable", "critical", relay.cut, relay.mend, looks=2)


# -- who watches ------------------------------------------------------------------------------------------------------


def test_a_watch_that_fell_silent_is_told_by_the_flow_and_where_none_was_nothing_is_missed(scene: Scene) -> None:
    def watch() -> Any:
        return [watch_reading(scene.book, silent_after_s=120, now=scene.now)]

    assert "watch-silent" not in scene.look(also=watch())
    scene.book.note(WATCHED, scene.now)
    assert "watch-silent" not in scene.look(also=watch())
    scene.now += timedelta(minutes=5)
    scene.look(also=watch())
    scene.now += timedelta(seconds=3)
    assert "watch-silent" in scene.look(also=watch())
    scene.book.note(WATCHED, scene.now)
    assert "watch-silent" not in scene.look(also=watch())
    assert [one["event"] for one in scene.said("watch-silent")] == ["failed", "resolved"]


def test_a_book_that_can_not_be_written_silences_nobody(scene: Scene) -> None:
    scene.use(limits=Limits(disk=0.000001))
    scene.book.path.unlink()
    scene.book.path.mkdir()
    scene.restart()
    assert "disk" in scene.look()
    assert scene.said("disk")[0]["event"] == "failed"


def test_a_webhook_that_is_down_is_told_later(scene: Scene) -> None:
    scene.use(limits=Limits(disk=0.000001))
    scene.slack.faults = lambda index: 400 if index == 0 else None
    scene.look()
    assert scene.said("disk") == []
    scene.look(after=timedelta(minutes=2))
    assert [one["event"] for one in scene.said("disk")] == ["failed"]


def test_what_is_only_worth_a_line_is_written_down_and_told_to_nobody(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Busy(Machine):
        def read_processors(self) -> float | None:
            return 0.99

    monkeypatch.setattr("tasks.probe.Machine", Busy)
    caplog.set_level(logging.INFO, logger="test")
    for _ in range(12):
        wrong = scene.look(after=timedelta(minutes=1))
    assert "cpu" in wrong
    assert scene.said("cpu") == []
    assert "cpu" in [alert.name for alert in scene.book.read_open_alerts()]
    assert any("alert cpu" in record.getMessage() for record in caplog.records)


def test_every_alert_is_judged_at_each_look(scene: Scene) -> None:
    lookout = Lookout(scene.parts, scene.book, None, public_url=None, logger=logging.getLogger("test"))
    looked = lookout.look(now=scene.now, every=True)
    assert [one.name for one in looked.judgements] == list(ALERT_NAMES)
    assert [one.probe for one in looked.readings if one.verdict == "failed"] == []
