"""A worker of a test file's own, with Gemini and Slack on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bson.codec_options import CodecOptions
from pymongo import MongoClient
from pymongo.database import Database

from deployments.sample import load_sample
from deployments.settings import DEMO_DATABASE
from tests.end_to_end.pipeline import wait_for
from tests.end_to_end.test_cli import run
from tests.end_to_end.test_up import Place
from tests.end_to_end.worker.work import BY_SHARD, ENDED, ROWS, Record, documents
from tests.loopback.gemini import LoopbackGemini
from tests.loopback.slack import LoopbackSlack

SCHEDULED = ("ingest", "ingest-sites", "reconcile", "aggregate", "monitor", "rollup")


@pytest.fixture(scope="module")
def gemini() -> Iterator[LoopbackGemini]:
    with LoopbackGemini() as server:
        yield server


@pytest.fixture(scope="module")
def slack() -> Iterator[LoopbackSlack]:
    with LoopbackSlack() as server:
        yield server


@pytest.fixture(scope="module")
def settings(gemini: LoopbackGemini, slack: LoopbackSlack) -> dict[str, str]:
    return {
        "CRYPTIQUE_EMBEDDER": "gemini",
        "GEMINI_API_KEY": gemini.api_key,
        "GEMINI_BASE_URL": gemini.url,
        "CRYPTIQUE_GEMINI_DIMENSIONS": "64",
        "CRYPTIQUE_GEMINI_CONCURRENCY": "1",
        "CRYPTIQUE_GEMINI_TEXTS_PER_MINUTE": "100000",
        "CRYPTIQUE_GEMINI_TOKENS_PER_MINUTE": "10000000",
        "SLACK_WEBHOOK_URL": slack.url,
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, str]) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("worker") / "home"
    place = None
    try:
        place = Place(home, **settings)
        for name in SCHEDULED:
            found = place.deployment(name)
            place.change(f"/deployments/{found['id']}/schedules/{found['schedules'][0]['id']}", active=False)
        yield place
    finally:
        run(home, "down", **settings)


@pytest.fixture(scope="module")
def database(place: Place) -> Iterator[Database[Record]]:
    with MongoClient[Record](place.standing["mongo_uri"], tz_aware=True) as client:
        load_sample(client[DEMO_DATABASE], rows=ROWS)
        yield client.get_database(DEMO_DATABASE, codec_options=CodecOptions(tz_aware=True))


def end_scheduled_runs(place: Place) -> None:
    """End what the schedules started before they were paused."""
    ids = [place.deployment(name)["id"] for name in SCHEDULED]
    unfinished = {"flow_runs": {"deployment_id": {"any_": ids}, "state": {"type": {"not_any_": ENDED}}}}

    def look() -> bool | None:
        runs = place.ask("POST", "/flow_runs/filter", unfinished).raise_for_status().json()
        for one in runs:
            if one["state_type"] == "SCHEDULED":
                place.ask("DELETE", f"/flow_runs/{one['id']}")
            elif one["state_type"] == "RUNNING":
                cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
                place.ask("POST", f"/flow_runs/{one['id']}/set_state", cancelling)
        return None if runs else True

    wait_for(look, what="the end of scheduled runs", seconds=120)


@pytest.fixture
def empty(place: Place, database: Database[Record], gemini: LoopbackGemini, slack: LoopbackSlack) -> Database[Record]:
    """The source as it is, nothing stored of it, nothing asked and nothing told so far."""
    end_scheduled_runs(place)
    for name in ("vectordocuments", "embeddingjobs", "deadletters", "ragcheckpoints", "ragincidents", "ragstore"):
        if name in database.list_collection_names():
            database[name].delete_many({})
    gemini.faults = ()
    gemini.embedded.clear()
    slack.requests.clear()
    return database


@pytest.fixture(scope="module")
def undisturbed(place: Place, database: Database[Record], gemini: LoopbackGemini) -> dict[str, Record]:
    """What a migration without any trouble stores."""
    end_scheduled_runs(place)
    for name in ("vectordocuments", "embeddingjobs"):
        database[name].delete_many({})
    state = place.wait(place.create_run("migrate", BY_SHARD), *ENDED)
    assert state["type"] == "COMPLETED", state["message"]
    return documents(database)
