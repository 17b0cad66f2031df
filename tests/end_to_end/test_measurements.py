"""The benchmarks' measurements on a few hundred rows: what they compare did the same work, on real servers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pymongo import MongoClient

from benchmarks.measurements import (
    BenchmarkError,
    Place,
    change_source,
    load_source,
    make_target,
    migrate,
    orchestrate_nothing,
    require_complete,
    run_script,
    write_ready_made,
)
from benchmarks.servers import Mongo, PrefectServer
from benchmarks.targets import bytes_on_disk, missing_indexes
from tests.end_to_end.production import without_settings

Record = dict[str, Any]

ROWS = 400


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def place(
    mongo_uri: str, mongo_client: MongoClient[Record], session_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Place:
    mongo = Mongo(mongo_uri, (_process_of(session_home / "mongod"),))
    return Place(mongo, mongo_client, tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="module")
def server(prefect_api: str, session_home: Path) -> Iterator[PrefectServer]:
    environment = without_settings() | {"PREFECT_API_URL": prefect_api}
    with httpx.Client(base_url=prefect_api, timeout=60, trust_env=False) as api:
        yield PrefectServer("sqlite", (_process_of(session_home / "prefect"),), environment, api, idle_share=0.05)


@pytest.fixture(scope="module")
def source(place: Place, shared_data: Path) -> Iterator[str]:
    name = f"measured_{uuid4().hex[:8]}"
    load_source(place, name, ROWS)
    yield name
    place.client.drop_database(name)


@pytest.fixture
def target(place: Place) -> Iterator[str]:
    name = f"target_{uuid4().hex[:8]}"
    yield name
    place.client.drop_database(name)


def _process_of(folder: Path) -> int:
    return int(json.loads((folder / "server.json").read_text())["pid"])


def test_a_load_is_measured_then_one_without_changes_then_one_with_some_then_the_limit(
    place: Place, server: PrefectServer, source: str, target: str
) -> None:
    first = migrate(place, server, source=source, target=target)
    require_complete(place, target, first)
    assert first["report"]["read"] == ROWS
    assert all(first["cpu_s"][part] > 0 for part in ("ours", "prefect", "mongod"))
    assert first["cpu_s"]["ours"] >= first["run_cpu_s"]
    assert first["peaks_mb"][0][1] >= first["peak_mb"] * 0.9
    assert {"extract", "chunk", "embed", "upsert", "checkpoint"} <= first["stage_wall_s"].keys()

    stored = bytes_on_disk(place.database(target).vectordocuments)
    assert stored["documents"] == first["report"]["chunks"]
    assert stored["bson_bytes"] > 1536 * 4 + stored["content_bytes"]

    again = migrate(place, server, source=source, target=target)
    assert (again["embedder"]["texts"], again["report"]["written"]) == (0, 0)
    with pytest.raises(BenchmarkError, match="documents are stored"):
        require_complete(place, target, again)

    assert change_source(place, source) == ROWS / 100
    changed = migrate(place, server, source=source, target=target)
    assert 0 < changed["embedder"]["texts"] <= changed["report"]["written"] <= ROWS / 100

    for limit in write_ready_made(place, source=target, target=f"{target}_limit").values():
        assert limit["documents"] == stored["documents"]
        assert limit["cpu_s"]["mongod"] > 0
    assert not list(place.scratch.glob("*.bson"))


def test_the_scripts_fill_the_same_collection_and_the_strong_one_pays_once(
    place: Place, source: str, target: str
) -> None:
    written = {}
    for name in ("afternoon", "strong"):
        make_target(place, target)
        assert missing_indexes(place.database(target).vectordocuments) == []
        first = run_script(place, f"benchmarks.{name}", source=source, target=target)
        assert (first["rows"], first["texts"], first["stored"]) == (ROWS, ROWS, ROWS)
        again = run_script(place, f"benchmarks.{name}", source=source, target=target)
        assert again["texts"] == (0 if name == "strong" else ROWS)
        assert again["stored"] == ROWS
        rows = place.database(target).vectordocuments.find({}, {"embedding": 0})
        written[name] = {row["documentId"]: (row["content"], row["teamId"], row["siteId"]) for row in rows}
    assert written["afternoon"] == written["strong"]


def test_an_empty_pipeline_has_the_task_runs_of_a_load(place: Place, server: PrefectServer) -> None:
    measured = orchestrate_nothing(place, server, shards=2)
    assert measured["task_runs"] == 12
    assert measured["server_cpu_s"] > 0


def test_a_measurement_that_fails_says_what_its_process_said_last(place: Place, source: str, target: str) -> None:
    with pytest.raises(BenchmarkError, match=r"benchmarks\.nothing ended with 1:\n.*No module named"):
        run_script(place, "benchmarks.nothing", source=source, target=target)
