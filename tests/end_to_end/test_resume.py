"""Runs that stop half way: by an error, by a kill, in the middle of a write; and the run that goes on afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from tests.end_to_end.pipeline import Pipeline, Record, SourceData, comparable, open_pipeline, wait_for
from tests.loopback.gemini import LoopbackGemini

CHECK = "transaction"
ROOT = Path(__file__).resolve().parents[2]
_MIGRATE = "import json, sys; from flows.migrate import migrate; migrate(**json.loads(sys.argv[1]))"

#: Three shards of three requests each, one after the other: requests are counted from 0, the first is the check.
ROWS, BY_SHARD = 900, {"shard_rows": 300, "shards_in_flight": 1}
IN_THE_SECOND_SHARD = 5


def embedded_texts(server: LoopbackGemini) -> Counter[str]:
    return Counter({text: times for text, times in server.embedded.items() if text != CHECK})


@pytest.fixture(scope="module")
def undisturbed(
    prefect_api: str,
    mongo_uri: str,
    mongo_client: MongoClient[Record],
    source_data: SourceData,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Record]:
    """What a run without any trouble stores of the rows of most tests here."""
    home = tmp_path_factory.mktemp("undisturbed")
    with open_pipeline(mongo_uri, mongo_client, home) as pipeline, LoopbackGemini() as server:
        pipeline.load(source_data, source_data.some(ROWS))
        pipeline.use_gemini(server)
        pipeline.migrate(**BY_SHARD)
        return pipeline.documents()


@contextmanager
def running_elsewhere(pipeline: Pipeline, api_url: str, **parameters: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a migration in a process of its own, which is killed at the end if it still runs."""
    pipeline.register()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PREFECT_API_URL": api_url,
        "PREFECT_HOME": str(pipeline.home / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(pipeline.home / "results"),
    }
    log = pipeline.home / "elsewhere.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _MIGRATE, json.dumps(parameters)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def or_fail(process: subprocess.Popen[bytes], pipeline: Pipeline, happened: Callable[[], bool]) -> Callable[[], Any]:
    """Return a look at whether it happened, which fails at once when the process has ended before."""

    def look() -> bool | None:
        if happened():
            return True
        if process.poll() is not None:
            pytest.fail(f"the migration ended: {(pipeline.home / 'elsewhere.log').read_text()[-3_000:]}")
        return None

    return look


# -- a run that fails --------------------------------------------------------------------------------------


def test_a_run_that_failed_half_way_goes_on_at_its_unfinished_shards_and_pays_for_no_text_twice(
    pipeline: Pipeline, source_data: SourceData, undisturbed: dict[str, Record]
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    with LoopbackGemini(faults=lambda index: "403" if index >= IN_THE_SECOND_SHARD else None) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        message = pipeline.refusal(**BY_SHARD)
        assert "Gemini refuses GEMINI_API_KEY" in message
        assert 0 < len(pipeline.documents()) < ROWS
        assert pipeline.store["ragcheckpoints"].count_documents({}) == 1
        (job,) = pipeline.jobs()
        assert (job["status"], job["progress"]["processed"]) == ("failed", 300)
        assert "Gemini refuses GEMINI_API_KEY" in job["errors"][-1]["error"]
        first_id, paid = pipeline.last_run_id, len(embedded_texts(server))

        server.faults = ()
        report = pipeline.migrate(**BY_SHARD)
        assert report["resumed_shards"] == 1
        assert (report["read"], report["written"], report["unchanged"]) == (ROWS, ROWS, 0)
        assert report["embedded"] == len(embedded_texts(server)) > paid
        assert set(embedded_texts(server).values()) == {1}
    assert comparable(pipeline.documents()) == comparable(undisturbed)
    (job,) = pipeline.jobs()
    assert (job["status"], job["results"]["documentsCreated"]) == ("completed", ROWS)
    # Taken up once; what failed the first time stays told.
    assert (job["retryConfig"]["retryCount"], len(job["errors"])) == (1, 1)
    assert pipeline.last_run_id != first_id
    assert job["metadata"]["runIds"] == [str(first_id), str(pipeline.last_run_id)]
    # Nothing is left lying about.
    assert pipeline.store["ragcheckpoints"].count_documents({}) == 0
    assert not [path for path in (pipeline.home / "shards").rglob("*") if path.is_file()]


@pytest.mark.long
def test_a_run_told_not_to_resume_starts_over_and_still_writes_nothing_twice(
    pipeline: Pipeline, source_data: SourceData, undisturbed: dict[str, Record]
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    with LoopbackGemini(faults=lambda index: "403" if index >= IN_THE_SECOND_SHARD else None) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        pipeline.refusal(**BY_SHARD)
        server.faults = ()
        report = pipeline.migrate(**BY_SHARD, resume=False)
    assert (report["resumed_shards"], report["read"]) == (0, ROWS)
    assert (report["written"], report["unchanged"]) == (600, 300)
    assert comparable(pipeline.documents()) == comparable(undisturbed)
    assert [job["status"] for job in pipeline.jobs()] == ["failed", "completed"]


def test_a_run_that_wrote_a_shard_but_not_its_checkpoint_leaves_every_row_as_it_is_when_it_goes_on(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(200))
    pipeline.initialise()
    options = pipeline.store["ragcheckpoints"].options()
    pipeline.store.command("collMod", "ragcheckpoints", validator={"nobody": {"$exists": True}})
    assert "checkpoint" in pipeline.refusal(shard_rows=100, shards_in_flight=1)
    first = pipeline.documents()
    assert len(first) == 100
    pipeline.store.command("collMod", "ragcheckpoints", validator=options["validator"])
    report = pipeline.migrate(shard_rows=100, shards_in_flight=1)
    assert (report["read"], report["written"] + report["unchanged"]) == (200, 200)
    after = pipeline.documents()
    # Nobody wrote these rows again: the same version, the same time.
    assert {key: after[key] for key in first} == first


@pytest.mark.long
def test_a_shard_whose_files_are_lost_between_two_attempts_runs_again_from_its_source(
    pipeline: Pipeline, source_data: SourceData, undisturbed: dict[str, Record]
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    with LoopbackGemini(faults=lambda index: "403" if index >= IN_THE_SECOND_SHARD else None) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        pipeline.refusal(**BY_SHARD)
        files = list((pipeline.home / "shards").rglob("*.arrow"))
        assert files
        for file in files:
            file.write_bytes(file.read_bytes()[:-100])
        server.faults = ()
        report = pipeline.migrate(**BY_SHARD)
        assert report["resumed_shards"] == 1
        assert set(embedded_texts(server).values()) == {1}
    assert comparable(pipeline.documents()) == comparable(undisturbed)


# -- a run that is killed ----------------------------------------------------------------------------------


@pytest.mark.long
def test_a_killed_run_is_not_disturbed_while_it_lives_and_taken_up_once_it_is_dead(
    pipeline: Pipeline, source_data: SourceData, undisturbed: dict[str, Record], prefect_api: str
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    arrived, killed = threading.Event(), threading.Event()

    def hold(index: int) -> str | None:
        if index != IN_THE_SECOND_SHARD:
            return None
        arrived.set()
        killed.wait(120)
        return "drop"

    with LoopbackGemini(faults=hold) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        with running_elsewhere(pipeline, prefect_api, **BY_SHARD) as process:
            wait_for(or_fail(process, pipeline, arrived.is_set), what="the held request", seconds=120)
            before = pipeline.documents()
            assert len(before) > 0
            message = pipeline.refusal(**BY_SHARD)
            assert "is at this work right now: wait for it, or cancel it first" in message
            assert pipeline.documents() == before
            assert process.poll() is None
            process.kill()
            assert process.wait() == -9
        killed.set()
        (job,) = pipeline.jobs()
        assert job["status"] == "processing"

        report = pipeline.migrate(**BY_SHARD)
        assert report["resumed_shards"] == 1
        assert (report["read"], report["written"]) == (ROWS, ROWS)
        assert set(embedded_texts(server).values()) == {1}
    assert comparable(pipeline.documents()) == comparable(undisturbed)
    assert [job["status"] for job in pipeline.jobs()] == ["completed"]


def test_a_run_killed_while_it_writes_leaves_a_store_that_the_next_run_completes(
    pipeline: Pipeline, source_data: SourceData, prefect_api: str
) -> None:
    pipeline.load(source_data, source_data.some(3_000))
    pipeline.migrate()
    expected = pipeline.documents("embedding")
    pipeline.empty_store()
    vectors = pipeline.store["vectordocuments"]
    with running_elsewhere(pipeline, prefect_api, shard_rows=500) as process:
        written = or_fail(process, pipeline, lambda: vectors.find_one({}, {"_id": 1}) is not None)
        wait_for(written, what="the first vector document", seconds=120)
        process.kill()
        process.wait()
    stored = vectors.count_documents({})
    assert 0 < stored < 3_000
    report = pipeline.migrate(shard_rows=500)
    assert (report["read"], report["written"] + report["unchanged"]) == (3_000, 3_000)
    assert comparable(pipeline.documents("embedding")) == comparable(expected)
    assert pipeline.migrate()["written"] == 0
