"""Generations through the flows: built beside the live one, half built and resumed, switched to, gone back from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from blocks.embedders import Embedders
from blocks.vector_store import VectorStore
from blocks.wordllama import LocalEmbedder
from deployments.cli import app
from deployments.register_blocks import make_blocks
from flows.generations import build_generation, drop, roll_back, switch
from flows.ingest import ingest
from flows.migrate import migrate
from flows.reconcile import reconcile
from tasks.domain.errors import InputError
from tasks.domain.generations import FIRST
from tasks.domain.retrieval.tenants import Tenant
from tasks.retrieve import search
from tests.end_to_end.pipeline import HeldRequest, Pipeline, Record, SourceData, beside, comparable, wait_for
from tests.loopback.gemini import LoopbackGemini

ROWS = 300
BY_SHARD = {"shard_rows": 100, "shards_in_flight": 1}
MODEL = "gemini-embedding-2"
ROOT = Path(__file__).resolve().parents[2]
_BUILD = "import json, sys; from flows.generations import build_generation; build_generation(**json.loads(sys.argv[1]))"
QUESTION = "who claimed rewards from staking"
#: What two generations' documents of one record differ in.
OF_THE_MODEL = ("embedding", "lineage", "contentHash", "rowHash", "sourceDigest", "version")
Command = Callable[..., Result]


@pytest.fixture
def migrated(pipeline: Pipeline, source_data: SourceData) -> Pipeline:
    """A pipeline whose source is migrated with the local embedder, and followed from then on."""
    pipeline.load(source_data, source_data.some(ROWS))
    pipeline.migrate()
    return pipeline


@pytest.fixture
def store(pipeline: Pipeline) -> Iterator[VectorStore]:
    opened = make_blocks(pipeline.settings).vectors
    yield opened
    opened.close()


def build(pipeline: Pipeline, **parameters: Any) -> Record:
    """Return the report of a build that must complete; by default of a smaller model of the local embedder."""
    return pipeline.complete(build_generation, **{"name": "next", "dimensions": 64, **parameters})


def documents(pipeline: Pipeline, name: str = "next") -> dict[str, Record]:
    collection = "vectordocuments" if name == FIRST else f"vectordocuments_{name}"
    return {row["documentId"]: row for row in pipeline.store[collection].find()}


def dimensions_of(rows: dict[str, Record]) -> set[int]:
    return {row["lineage"]["dimensions"] for row in rows.values()}


def ask(store: VectorStore) -> set[int]:
    """Return the dimensions of the vectors of those documents that answer a question."""
    (hits,) = search([QUESTION], Tenant(None), limit=5, vectors=store, embedder=LocalEmbedder())
    assert len(hits) == 5
    return {hit.lineage["dimensions"] for hit in hits}


def hash_of(pipeline: Pipeline, *collections: str) -> dict[str, str]:
    """Return MongoDB's own hash of these collections of the store."""
    found: dict[str, str] = pipeline.store.command("dbHash", collections=list(collections))["collections"]
    return found


# -- the life of a generation ---------------------------------------------------------------------------------


def test_a_generation_is_built_beside_the_live_one_switched_to_gone_back_from_and_dropped(
    migrated: Pipeline, store: VectorStore, source_data: SourceData
) -> None:
    before = hash_of(migrated, "vectordocuments", "deadletters")
    live = documents(migrated, FIRST)
    report = build(migrated)
    assert (report["state"], report["sources"], report["load"]["written"]) == ("complete", ["transaction"], len(live))
    # The live one is as it was; the new one says the same in other vectors.
    assert hash_of(migrated, "vectordocuments", "deadletters") == before
    built = documents(migrated)
    assert (dimensions_of(live), dimensions_of(built)) == ({256}, {64})
    assert comparable(built, *OF_THE_MODEL) == comparable(live, *OF_THE_MODEL)
    assert ask(store) == {256}

    switch("next", vectors=store, embedders=Embedders(LocalEmbedder()))
    assert ask(store) == {64}
    # Ingestion follows the live one, whatever is configured; the other is left as it retired.
    first, second, *_ = migrated.transactions.find({}).sort("_id", 1).limit(3)
    migrated.transactions.update_one({"_id": first["_id"]}, {"$set": {"value_eth": "77.25"}})
    migrated.transactions.delete_one({"_id": second["_id"]})
    assert migrated.complete(ingest, until_idle=True)["removed"] >= 1
    assert hash_of(migrated, "vectordocuments") == {"vectordocuments": before["vectordocuments"]}
    now = documents(migrated)
    assert second["_id"] not in {row["sourceId"] for row in now.values()}

    assert roll_back(vectors=store).live == FIRST
    assert ask(store) == {256}
    assert comparable(documents(migrated, FIRST)) == comparable(live)
    # What it missed is taken over from its own position: nothing else is looked at.
    caught_up = migrated.complete(ingest, until_idle=True)
    assert caught_up["caught_up"] is None
    assert caught_up["read"] < ROWS
    assert comparable(documents(migrated, FIRST), *OF_THE_MODEL) == comparable(now, *OF_THE_MODEL)
    assert dimensions_of(documents(migrated, FIRST)) == {256}

    with pytest.raises(InputError, match="first is live"):
        drop(FIRST, vectors=store)
    drop("next", vectors=store)
    assert "next" not in " ".join(migrated.store.list_collection_names())
    assert ask(store) == {256}


@pytest.mark.long
def test_after_a_switch_all_flows_work_on_the_live_generation_and_say_so_in_their_jobs(
    migrated: Pipeline, store: VectorStore
) -> None:
    build(migrated)
    switch("next", vectors=store, embedders=Embedders(LocalEmbedder()))
    first = hash_of(migrated, "vectordocuments", "deadletters")
    damaged = documents(migrated)
    migrated.store["vectordocuments_next"].delete_many({"documentId": {"$in": sorted(damaged)[:7]}})
    assert migrated.complete(reconcile)["missing"] == 7
    assert comparable(documents(migrated)) == comparable(damaged)
    again = migrated.complete(migrate)
    assert (again["written"], again["unchanged"]) == (0, len({row["sourceId"] for row in damaged.values()}))
    assert migrated.initialise()["created"] == []
    assert hash_of(migrated, "vectordocuments", "deadletters") == first
    # Another one is still told by its name.
    assert migrated.complete(migrate, generation=FIRST)["written"] == 0
    told = Counter((job["metadata"]["tags"][0], job["metadata"]["choices"]["generation"]) for job in migrated.jobs())
    assert told["migrate", "next"] == 2
    assert told["migrate", FIRST] == 2
    assert told["reconcile", "next"] == 1


@pytest.mark.long
def test_a_run_that_follows_the_live_generation_ends_when_another_one_is_live(
    migrated: Pipeline, store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(migrated)
    monkeypatch.setattr("flows.ingest._POSITION_EVERY_S", 0.2)
    with beside(lambda: migrated.complete(ingest, max_seconds=3_600)) as following:
        under_way = {"metadata.tags": "ingest", "status": "processing"}
        wait_for(lambda: migrated.store["embeddingjobs"].find_one(under_way), what="the run that follows")
        switch("next", vectors=store, embedders=Embedders(LocalEmbedder()))
        assert following.result(timeout=120)["read"] == 0
    # One that is told its generation goes on with that.
    assert migrated.complete(ingest, generation=FIRST, max_seconds=2)["read"] == 0


# -- costs first ------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_a_generation_costs_and_writes_nothing(migrated: Pipeline, source_data: SourceData) -> None:
    with LoopbackGemini() as server:
        migrated.use_gemini(server, cryptique_embedder="local")
        before = migrated.fingerprint()
        report = build(migrated, model=MODEL, dimensions=32, form="int8", dry_run=True)
        assert migrated.fingerprint() == before
        assert server.request_count == 0
    load = report["load"]
    assert (report["made_by"], report["state"]) == ("gemini-embedding-2, 32 dimensions, int8", "building")
    assert (load["dry_run"], load["read"], load["written"]) == (True, ROWS, len(migrated.stored_source_ids()))
    assert load["cost_usd"] == pytest.approx(load["tokens"] * 0.20 / 1_000_000, abs=1e-6)
    assert load["tokens"] > 0
    assert load["tier_seconds"]


def test_what_can_not_be_built_is_refused_before_anything_is_written(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    def refusal(**parameters: Any) -> str:
        return pipeline.refusal(flow=build_generation, **{"name": "next", **parameters})

    pipeline.load(source_data, source_data.some(20))
    assert "the store holds no vectors yet" in refusal()
    pipeline.migrate()
    before = pipeline.fingerprint()
    assert "64, 128 or 256" in refusal(dimensions=100)
    assert "is live" in refusal(name=FIRST)
    assert pipeline.fingerprint() == before
    build(pipeline)
    assert "was begun with" in refusal(dimensions=128)


# -- half built -------------------------------------------------------------------------------------------------


@contextmanager
def building_elsewhere(pipeline: Pipeline, api_url: str, **parameters: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a build in a process of its own, which is killed at the end if it still runs."""
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
            [sys.executable, "-c", _BUILD, json.dumps(parameters)],
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


def paid(server: LoopbackGemini, model: str) -> Counter[str]:
    """Return how often each text was embedded by a model."""
    answered = [request for request in server.requests if request.model == model and request.status == 200]
    # The check of an embedder is a single word, the question of a search another task.
    return Counter(text for request in answered if len(request.texts) > 1 for text in request.texts)


@pytest.mark.long
@pytest.mark.long
def test_a_half_built_generation_goes_on_after_a_kill_and_pays_again_only_for_what_was_on_its_way(
    pipeline: Pipeline, source_data: SourceData, prefect_api: str
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    held = HeldRequest()
    parameters = {"name": "next", "model": MODEL, **BY_SHARD}
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        pipeline.migrate(**BY_SHARD)
        before = hash_of(pipeline, "vectordocuments", "deadletters")
        vectors = make_blocks(pipeline.settings).vectors
        # After the check and the first shard's texts.
        held.hold(server.request_count + 3)
        with building_elsewhere(pipeline, prefect_api, **parameters) as process:

            def arrived() -> bool | None:
                if process.poll() is not None:
                    pytest.fail(f"the build ended: {(pipeline.home / 'elsewhere.log').read_text()[-3_000:]}")
                return held._arrived.is_set() or None

            wait_for(arrived, what="the held request", seconds=240)
        held.release()
        assert 0 < len(documents(pipeline)) < len(documents(pipeline, FIRST))
        assert vectors.read_book().generations["next"].state == "building"
        with pytest.raises(InputError, match="half built"):
            switch("next", vectors=vectors, embedders=Embedders())
        finished = pipeline.store["ragcheckpoints"].count_documents({})
        held.hold(-2)
        report = pipeline.complete(build_generation, **parameters)
        assert report["load"]["resumed_shards"] == finished > 0
        # What was on its way when the process died is asked for again: nobody kept the answer.
        counts = paid(server, MODEL)
        assert len(counts) == len(paid(server, "gemini-embedding-001"))
        assert sum(counts.values()) - len(counts) <= 100
        assert hash_of(pipeline, "vectordocuments", "deadletters") == before
        live = documents(pipeline, FIRST)
        assert comparable(documents(pipeline), *OF_THE_MODEL) == comparable(live, *OF_THE_MODEL)
        book = vectors.read_book()
        (job,) = (job for job in pipeline.jobs() if job["metadata"]["choices"].get("generation") == "next")
        assert (book.generations["next"].state, book.generations["next"].jobs) == ("complete", (job["jobId"],))
        assert job["retryConfig"]["retryCount"] == 1
        vectors.close()


def test_the_live_generation_is_followed_while_another_is_built_and_both_have_what_changed(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(ROWS))
    held = HeldRequest()
    with LoopbackGemini(faults=held) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=1)
        pipeline.migrate(**BY_SHARD)
        held.hold(server.request_count + 3)
        with beside(lambda: build(pipeline, model=MODEL, dimensions=None, **BY_SHARD)) as building:
            try:
                held.wait(building)
                fresh = [
                    row
                    for row in source_data.some(ROWS + 20, seed=2)
                    if pipeline.transactions.find_one(row["_id"]) is None
                ][:10]
                pipeline.transactions.insert_many(fresh)
                taken = pipeline.complete(ingest, until_idle=True)
                assert taken["read"] == 10
                there = {row["sourceId"] for row in documents(pipeline, FIRST).values()}
                assert there & {row["_id"] for row in fresh}
                assert not any(row["sourceId"] in {r["_id"] for r in fresh} for row in documents(pipeline).values())
            finally:
                held.release()
            report = building.result()
        assert report["caught_up"]["read"] == 10
        live = documents(pipeline, FIRST)
        assert comparable(documents(pipeline), *OF_THE_MODEL) == comparable(live, *OF_THE_MODEL)


@pytest.mark.long
def test_a_text_that_only_the_new_model_refuses_is_a_dead_letter_of_the_new_generation_alone(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(60))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        pipeline.migrate()
        assert pipeline.letters() == []
        text = next(iter(pipeline.documents().values()))["content"]
        same = {row["sourceId"] for row in pipeline.documents().values() if row["content"] == text}
        server.refused_texts = {text}
        report = build(pipeline, model=MODEL, dimensions=None)
        assert report["load"]["refused"] == {"embedding_refused": len(same)}
        assert pipeline.letters() == []
        assert {row["sourceId"] for row in pipeline.store["deadletters_next"].find()} == same
        assert same <= {row["sourceId"] for row in pipeline.documents().values()}
        assert not same & {row["sourceId"] for row in documents(pipeline).values()}


# -- going back -----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_going_back_waits_for_no_slow_import(migrated: Pipeline, store: VectorStore) -> None:
    build(migrated)
    switch("next", vectors=store, embedders=Embedders(LocalEmbedder()))
    told = "import sys; from deployments.cli import app; app(['generations', 'rollback'], standalone_mode=False); "
    told += "print('prefect' in sys.modules)"
    settings = {
        "CRYPTIQUE_SOURCE_URI": migrated.uri,
        "CRYPTIQUE_SOURCE_DATABASE": migrated.source.name,
        "CRYPTIQUE_VECTORS_DATABASE": migrated.store.name,
        "CRYPTIQUE_EMBEDDER": "local",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CRYPTIQUE_", "GEMINI_"))}
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=ROOT, env=environment | settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "first is live again" in done.stdout
    assert done.stdout.rstrip().endswith("False")
    assert store.read_book().live == FIRST


# -- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(migrated: Pipeline, prefect_api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command as this pipeline's user gives it, in this process."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for name in list(os.environ):
        if name.startswith(("CRYPTIQUE_", "GEMINI_")):
            monkeypatch.delenv(name)
    for name, value in (
        ("CRYPTIQUE_SOURCE_URI", migrated.uri),
        ("CRYPTIQUE_SOURCE_DATABASE", migrated.source.name),
        ("CRYPTIQUE_VECTORS_DATABASE", migrated.store.name),
        ("CRYPTIQUE_EMBEDDER", "local"),
        ("CRYPTIQUE_HOME", str(migrated.home)),
        ("PREFECT_API_URL", prefect_api),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Pipeline, "_registered", None)

    def run(*arguments: str) -> Result:
        with migrated.results_in_home():
            return CliRunner().invoke(app, ["generations", *arguments])

    return run


def as_json(result: Result) -> Record:
    assert result.exit_code == 0, result.output
    found: Record = json.loads(result.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.long
def test_the_command_shows_costs_builds_compares_switches_goes_back_and_drops(
    command: Command, migrated: Pipeline, tmp_path: Path
) -> None:
    only = as_json(command("--json"))
    assert (only["live"], [one["name"] for one in only["generations"]]) == (FIRST, [FIRST])
    assert only["generations"][0]["documents"] == len(migrated.documents())

    # Without --yes nothing is built, for nobody is there to be asked.
    shown = command("build", "next", "--dimensions", "64")
    assert shown.exit_code == 0, shown.output
    assert "tokens to embed" in shown.stdout
    assert "Nothing was built" in shown.stdout
    assert not documents(migrated)
    built = as_json(command("build", "next", "--dimensions", "64", "--yes", "--json"))
    assert (built["state"], built["load"]["written"]) == ("complete", len(migrated.stored_source_ids()))

    row = min(migrated.documents().values(), key=lambda found: found["documentId"])
    questions = tmp_path / "questions.jsonl"
    lines = [
        {"qid": "1", "question": row["content"], "relevant": [str(row["sourceId"])]},
        {"qid": "2", "question": QUESTION},
    ]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    compared = as_json(command("compare", "next", "--questions", str(questions), "--all-teams", "--json"))
    assert (compared["one"], compared["other"]) == (FIRST, "next")
    assert compared["by_kind"]["all"]["judged"] == 1
    assert 0 < compared["by_kind"]["all"]["overlap"] <= 1
    assert "nDCG" in command("compare", "next", "--questions", str(questions), "--all-teams").stdout

    assert as_json(command("switch", "next", "--json"))["live"] == "next"
    assert "next is live already" in command("switch", "next").output
    found = CliRunner().invoke(app, ["search", QUESTION, "--all-teams", "--json"])
    assert found.exit_code == 0, found.output
    listed = as_json(command("list", "--json"))
    assert [(one["name"], one["state"]) for one in listed["generations"]] == [("next", "live"), (FIRST, "retired")]
    assert "not followed" in command("list").stdout

    back = command("rollback")
    assert back.exit_code == 0, back.output
    assert "first is live again" in back.stdout
    assert "taken over by `ingest`" in back.stdout
    assert command("drop", "next").exit_code == 2
    assert documents(migrated)
    assert as_json(command("drop", "next", "--yes", "--json"))["live"] == FIRST
    assert not documents(migrated)


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["build", "Next"], "no name of a generation"),
        (["switch", "next"], "there is no generation next"),
        (["rollback"], "nothing to go back to"),
        (["drop", FIRST, "--yes"], "first is live"),
    ],
)
def test_what_can_not_be_meant_ends_with_words_and_exit_code_2(
    command: Command, arguments: list[str], says: str
) -> None:
    result = command(*arguments)
    assert result.exit_code == 2
    assert says in result.output
