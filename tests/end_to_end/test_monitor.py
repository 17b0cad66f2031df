"""The flow that looks: what it finds is in its message, its artifact and its result; it completes whatever that is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.artifacts import Artifact
from prefect.client.schemas.actions import WorkPoolCreate

from blocks.slack import SlackNotifier
from deployments.register_blocks import make_blocks
from deployments.work_pool import POOL
from flows.blocks import ALERTS
from flows.monitor import WATCHED, monitor
from tests.end_to_end.pipeline import Pipeline, SourceData, prefect_client
from tests.loopback.slack import LoopbackSlack


@pytest.fixture
def slack() -> Iterator[LoopbackSlack]:
    with LoopbackSlack() as server:
        yield server
    with suppress(ValueError):
        SlackNotifier.delete(ALERTS, _sync=True)  # type: ignore[call-arg]
    Pipeline._registered = None


def test_a_run_tells_what_is_wrong_and_its_end_and_completes(
    pipeline: Pipeline, slack: LoopbackSlack, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(120))
    pipeline.use(
        cryptique_embedder="local",
        slack_webhook_url=slack.url,
        cryptique_alert_webhook_kind="generic",
        cryptique_alert_disk=0.0001,
        cryptique_public_url="https://rag.example",
    )
    with prefect_client() as client:
        with suppress(Exception):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        client.request("POST", f"/work_pools/{POOL}/workers/heartbeat", json={"name": uuid4().hex})
    state = pipeline.run(monitor)
    found = state.result()
    assert state.is_completed()
    assert "disk" in found["open"]
    assert {name for name, one in found["readings"].items() if one["verdict"] == "failed"} == set()
    assert found["readings"]["workers"]["says"].startswith(("1 online", "2 online", "3 online"))
    artifact = Artifact.get("health", _sync=True)  # type: ignore[call-arg]
    assert artifact is not None
    assert "A disk is almost full" in str(artifact.data)
    (told,) = [one.payload for one in slack.taken if one.payload["cause"] == "monitor:disk:look"]
    assert told["link"] == "https://rag.example/admin/monitoring"

    book = make_blocks(pipeline.settings).monitor.open_book()
    book.note(WATCHED, datetime.now(UTC) - timedelta(minutes=10))
    pipeline.use(cryptique_embedder="local", slack_webhook_url=slack.url, cryptique_alert_webhook_kind="generic")
    again = pipeline.run(monitor).result()
    assert again["open"] == ["watch-silent"]
    events = [one.payload["event"] for one in slack.taken if one.payload["cause"] == "monitor:disk:look"]
    assert events == ["failed", "resolved"]
    assert [one.payload["severity"] for one in slack.taken if "watch-silent" in one.payload["cause"]] == ["critical"]
