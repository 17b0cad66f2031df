"""The gate on a source's data: what can't be right is named, and nothing is paid for it; what is sound passes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path

import pytest
from bson import ObjectId
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from pymongo import MongoClient

from deployments.sample import load_sample
from deployments.sample_sites.loading import load_visits
from flows.backfill import backfill
from flows.ingest import ingest
from flows.reconcile import reconcile
from flows.replay import replay
from tasks.domain.registry import PLURALS
from tests.end_to_end.pipeline import Pipeline, Record, SourceData, open_pipeline, prefect_client
from tests.loopback.gemini import LoopbackGemini

ROWS = 1_600
IDS = re.compile(r"\b[0-9a-f]{24}\b")

Fault = Callable[[list[Record]], list[Record]]


def with_nulls(rows: list[Record]) -> list[Record]:
    return [{**row, "from_address": None} if at % 5 == 0 else row for at, row in enumerate(rows)]


def doubled(rows: list[Record]) -> list[Record]:
    return [*rows, *({**row, "_id": ObjectId(f"7{str(row['_id'])[1:]}")} for row in rows)]


def shifted(rows: list[Record]) -> list[Record]:
    moved = timedelta(hours=5, minutes=30)
    return [{**row, "block_time": row["block_time"] + moved} if row.get("block_time") else row for row in rows]


def scaled(rows: list[Record]) -> list[Record]:
    return [{**row, "value_eth": _times_10_to_the_12(row.get("value_eth"))} for row in rows]


def _times_10_to_the_12(value: object) -> object:
    try:
        return f"{Decimal(str(value)) * 10**12:f}"
    except InvalidOperation:
        return value


def truncated(rows: list[Record]) -> list[Record]:
    return rows[: len(rows) // 2]


def emptied(rows: list[Record]) -> list[Record]:
    return rows[:0]


def swapped(rows: list[Record]) -> list[Record]:
    return [{**row, "from_address": row.get("to_address"), "to_address": row.get("from_address")} for row in rows]


#: Each fault with a finding that it must lead to, beside others.
FAULTS: dict[str, tuple[Fault, str]] = {
    "a_fifth_is_null": (with_nulls, "missing:from"),
    "doubled_file": (doubled, "doubled:earlier records"),
    "shifted_time_zone": (shifted, "moved:time_ms"),
    "times_10_to_the_12": (scaled, "scaled:amount"),
    "truncated": (truncated, "fewer:all"),
    "empty": (emptied, "empty:all"),
    "swapped_addresses": (swapped, "swapped:from"),
}


@pytest.fixture(scope="module")
def gemini() -> Iterator[LoopbackGemini]:
    with LoopbackGemini() as server:
        yield server


def opened(
    uri: str, client: MongoClient[Record], home: Path, gemini: LoopbackGemini, data: SourceData, rows: list[Record]
) -> Iterator[Pipeline]:
    with open_pipeline(uri, client, home, separate_store=True) as pipeline:
        pipeline.use_gemini(gemini)
        pipeline.load(data, rows)
        yield pipeline


@pytest.fixture(scope="module")
def loaded(
    prefect_api: str,
    mongo_uri: str,
    mongo_client: MongoClient[Record],
    tmp_path_factory: pytest.TempPathFactory,
    source_data: SourceData,
    gemini: LoopbackGemini,
) -> Iterator[Pipeline]:
    """A pipeline whose source, real transactions, was loaded once and found to be sound."""
    home = tmp_path_factory.mktemp("loaded")
    for pipeline in opened(mongo_uri, mongo_client, home, gemini, source_data, source_data.some(ROWS)):
        report = pipeline.migrate(shard_rows=400)
        assert report["quality"]["verdict"] == "sound", report["quality"]
        yield pipeline


@pytest.fixture
def fresh(
    prefect_api: str,
    mongo_uri: str,
    mongo_client: MongoClient[Record],
    tmp_path: Path,
    source_data: SourceData,
    gemini: LoopbackGemini,
) -> Iterator[Pipeline]:
    """A pipeline whose store is empty; its source holds the owners alone."""
    yield from opened(mongo_uri, mongo_client, tmp_path / "home", gemini, source_data, [])


def fill(pipeline: Pipeline, rows: list[Record]) -> None:
    """Let the source hold just these transactions."""
    pipeline.transactions.delete_many({})
    if rows:
        pipeline.transactions.insert_many(rows)


def paid_texts(gemini: LoopbackGemini) -> int:
    """Return how many texts were embedded, without those that only prove that the service answers."""
    return gemini.embedded.total() - gemini.embedded["transaction"]


def artifact_of(pipeline: Pipeline) -> str:
    """Return what the last run's artifact says of the data."""
    assert pipeline.last_run_id is not None
    of_the_run = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[pipeline.last_run_id]),
        key=ArtifactFilterKey(any_=["quality-transaction"]),
    )
    with prefect_client() as client:
        texts = [str(one.data) for one in client.read_artifacts(artifact_filter=of_the_run)]
    assert texts
    return texts[0]


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_and_named_before_anything_is_spent(
    name: str, loaded: Pipeline, source_data: SourceData, gemini: LoopbackGemini
) -> None:
    fault, finding = FAULTS[name]
    stored, paid = loaded.counts()[f"{loaded.store.name}.vectordocuments"], paid_texts(gemini)
    rows = fault(source_data.some(ROWS))
    fill(loaded, rows)
    message = loaded.refusal(shard_rows=400)
    assert "the quality gate stopped transaction, before anything was embedded or written" in message
    assert finding in message.partition("Names to accept: ")[2]
    # It names records, of the source now or of that before.
    named = set(IDS.findall(message.partition("What to do")[0]))
    assert named
    assert named <= {str(row["_id"]) for row in (*rows, *source_data.some(ROWS))}
    assert paid_texts(gemini) == paid
    assert loaded.counts()[f"{loaded.store.name}.vectordocuments"] == stored
    artifact = artifact_of(loaded)
    assert "Great Expectations 1." in artifact
    assert any(one in artifact for one in named)
    [index] = re.findall(r"Data Docs, for a browser on that machine: `([^`]+)`", artifact)
    assert Path(index).is_relative_to(loaded.home)
    pages = "".join(page.read_text() for page in Path(index).parent.rglob("*.html"))
    assert any(one in pages for one in named)


def test_sound_data_passes_again_and_a_person_may_have_its_proof(
    loaded: Pipeline, source_data: SourceData, gemini: LoopbackGemini
) -> None:
    fill(loaded, source_data.some(ROWS))
    paid = paid_texts(gemini)
    report = loaded.migrate()
    assert report["quality"] == {"verdict": "sound", "judge": "the rules alone", "findings": [], "docs": None}
    assert "# Data quality of transaction: sound" in artifact_of(loaded)
    assert "# Data quality of transaction_vectors: sound" in artifact_of(loaded)
    proved = loaded.migrate(data_docs=True)["quality"]
    assert proved["verdict"] == "sound"
    assert proved["judge"].startswith("Great Expectations 1.")
    assert "transaction_vectors.rows" in Path(proved["docs"]).read_text()
    assert paid_texts(gemini) == paid


def test_a_dry_run_tells_the_verdict_and_a_person_may_accept_it(loaded: Pipeline, source_data: SourceData) -> None:
    fill(loaded, truncated(source_data.some(ROWS)))
    state = loaded.run(dry_run=True)
    assert state.is_completed()
    assert "quality: stop" in str(state.message)
    assert {finding.split(" ")[1] for finding in state.result()["quality"]["findings"]} >= {"fewer:all:", "lost:all:"}
    accepted = loaded.migrate(dry_run=True, accept=["fewer", "lost", "team_fewer"])
    assert accepted["quality"]["verdict"] == "warn"


def with_some_swapped(rows: list[Record], share: float) -> tuple[list[Record], set[ObjectId]]:
    """Return the rows, in some of which the contract that was called calls, and the ids of these."""
    calls = [row for row in rows if row.get("to_address") == row.get("contract_address") != row.get("from_address")]
    chosen = {row["_id"] for row in random.Random(1).sample(calls, round(share * len(rows)))}
    return [swapped([row])[0] if row["_id"] in chosen else row for row in rows], chosen


def test_records_that_cannot_be_right_are_withheld_until_they_are_accepted(
    fresh: Pipeline, source_data: SourceData
) -> None:
    rows, wrong = with_some_swapped(source_data.some(1_000), 0.08)
    fill(fresh, rows)
    report = fresh.migrate()
    assert report["quality"]["verdict"] == "quarantine"
    letters = fresh.letters(code="quarantined_swapped", status="open")
    assert wrong <= {letter["sourceId"] for letter in letters}
    assert report["refused"]["quarantined_swapped"] == len(letters)
    assert "name their contract as the sender" in letters[0]["reason"]
    assert not fresh.stored_source_ids() & {letter["sourceId"] for letter in letters}
    accepted = fresh.complete(backfill, accept=["swapped"])
    assert accepted["written"] == len(letters)
    assert not fresh.letters(code="quarantined_swapped", status="open")


@pytest.mark.long
def test_what_is_withheld_stays_so_whatever_looks_at_it_until_it_is_mended(
    fresh: Pipeline, source_data: SourceData
) -> None:
    sound = source_data.some(1_000)
    rows, wrong = with_some_swapped(sound, 0.08)
    fill(fresh, rows)
    fresh.migrate()
    letters = fresh.letters(code="quarantined_swapped", status="open")
    # What is left of them in another run, though few beside what is stored, is no better.
    again = fresh.migrate()
    assert (again["written"], again["refused"].get("quarantined_swapped")) == (0, len(letters))
    kept = fresh.complete(replay, reasons=["quarantined_swapped"])
    assert (kept["resolved"], kept["still_open"]) == (0, len(letters))
    compared = fresh.complete(reconcile)
    assert (compared["compared"], compared["mended"]) == (len(rows), 0)
    mended = sorted(wrong)[:40]
    by_id = {row["_id"]: row for row in sound}
    for record in mended:
        fresh.transactions.replace_one({"_id": record}, by_id[record])
    released = fresh.complete(replay, reasons=["quarantined_swapped"])
    assert (released["resolved"], released["still_open"]) == (40, len(letters) - 40)


@pytest.mark.long
def test_a_fault_that_no_sample_shows_stops_the_run_while_it_goes_on(
    fresh: Pipeline, source_data: SourceData, gemini: LoopbackGemini
) -> None:
    sound = source_data.some(2_000)
    # Of each shard the first hundred are looked at before the start.
    rows = [{**row, "from_address": None} if at % 200 >= 150 else row for at, row in enumerate(sound)]
    fill(fresh, rows)
    message = fresh.refusal(shard_rows=200)
    assert re.search(r"when \d+ of 2,000 records were read: \d+ of \d+ records have no from, for example", message)
    assert set(IDS.findall(message)) & {str(row["_id"]) for row in rows if row["from_address"] is None}
    stored = len(fresh.stored_source_ids())
    assert 0 < stored < 1_000
    fill(fresh, sound)
    paid = paid_texts(gemini)
    report = fresh.migrate(shard_rows=200)
    assert report["quality"]["verdict"] == "sound"
    assert report["read"] == report["written"] + report["unchanged"] + report["dead_lettered"] == 2_000
    # What was stored of sound records is not paid for again.
    assert paid_texts(gemini) - paid < 2_000 - stored / 2


@pytest.mark.long
def test_following_the_source_withholds_too_and_judges_nothing_else(fresh: Pipeline, source_data: SourceData) -> None:
    sound = source_data.some(1_000)
    fill(fresh, sound[:700])
    fresh.migrate()
    rows, wrong = with_some_swapped(sound[700:], 0.2)
    fresh.complete(ingest, until_idle=True)
    fresh.transactions.insert_many(rows)
    report = fresh.complete(ingest, until_idle=True)
    assert report["read"] == 300
    assert wrong <= {letter["sourceId"] for letter in fresh.letters(code="quarantined_swapped", status="open")}
    assert not fresh.stored_source_ids() & wrong


@pytest.mark.long
def test_the_generated_data_of_every_source_is_sound_for_all_its_dirt(fresh: Pipeline, source_data: SourceData) -> None:
    fresh.use(cryptique_embedder="local")
    for name in fresh.source.list_collection_names():
        fresh.source[name].drop()
    load_sample(fresh.source, rows=3_000)
    load_visits(fresh.source, sessions=1_500, events=800, journeys=200)
    for _ in range(2):  # the second one has something to compare with
        report = fresh.migrate(sources=list(PLURALS))
        assert report["quality"]["verdict"] in ("sound", "warn"), report["quality"]
        assert {name for name, one in report["by_source"].items() if one["read"]} == {
            row["_id"] for row in fresh.store["ragprofiles"].find()
        }


@pytest.mark.long
def test_all_the_real_transactions_are_sound(fresh: Pipeline, source_data: SourceData) -> None:
    fresh.use(cryptique_embedder="local")
    fill(fresh, source_data.transactions)
    for shard_rows in (2_000, 20_000):
        assert fresh.migrate(shard_rows=shard_rows)["quality"]["findings"] == []
    assert fresh.complete(backfill, rebuild="everything")["quality"]["findings"] == []
