"""Migrate with Gemini's protocol on loopback: what is sent, what is paid for, and what a failing service changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.end_to_end.pipeline import Pipeline, Record, SourceData, comparable, repeated, vector_of
from tests.loopback.gemini import LoopbackGemini, raw_vector

#: What the embedder's check asks for before a run.
CHECK = "transaction"
FAULTS = ("429", "500", "503", "drop", "malformed", "wrong-dimension", "missing-vector", "nan", "empty")


def embedded_texts(server: LoopbackGemini) -> Counter[str]:
    """Return how often each text of a record was embedded, without the check's word."""
    return Counter({text: times for text, times in server.embedded.items() if text != CHECK})


def contents(pipeline: Pipeline) -> set[str]:
    return {row["content"] for row in pipeline.documents("embedding").values()}


def sent_in_vain(server: LoopbackGemini) -> set[str]:
    """Return the texts of the requests that got no good answer."""
    spoiled = [request for request in server.requests if request.fault is not None]
    return {text for request in spoiled for text in request.texts}


# -- what is sent ------------------------------------------------------------------------------------------


def test_every_text_is_sent_once_as_a_document_and_its_own_vector_is_stored(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = source_data.some(300)
    pipeline.load(source_data, rows)
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        report = pipeline.migrate(shard_rows=100)
    documents = pipeline.documents()
    assert embedded_texts(server) == Counter(contents(pipeline))
    assert report["embedded"] == len(contents(pipeline)) == server.task_types["RETRIEVAL_DOCUMENT"]
    for row in documents.values():
        raw = raw_vector(row["content"], model="gemini-embedding-001", dimensions=64)
        assert np.allclose(vector_of(row), raw / np.linalg.norm(raw), atol=1e-6)
        assert row["lineage"]["model"] == "gemini-embedding-001"
        assert row["lineage"]["dimensions"] == 64
    assert report["cost_usd"] == round(report["tokens"] * 0.15 / 1_000_000, 6) > 0


def test_equal_texts_in_shards_that_run_side_by_side_are_embedded_once(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    some = source_data.some(4)
    made = [repeated(some[number % 4], 1 + number) for number in range(200)]
    pipeline.load(source_data, made)
    # The answer takes long enough for the second shard to ask for the same texts meanwhile.
    with LoopbackGemini(latency_seconds=0.3) as server:
        pipeline.use_gemini(server)
        report = pipeline.migrate(shard_rows=50, shards_in_flight=4)
    assert report["written"] == len(pipeline.documents()) == 200
    assert report["embedded"] == len(contents(pipeline)) == 4
    assert embedded_texts(server) == Counter(contents(pipeline))
    by_content = {row["content"]: row["embedding"] for row in pipeline.documents().values()}
    assert all(row["embedding"] == by_content[row["content"]] for row in pipeline.documents().values())


@pytest.mark.long
def test_a_dry_run_writes_nothing_asks_nobody_and_foretells_the_run(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = source_data.some(400)
    pipeline.load(source_data, [*rows[1:], {**rows[0], "value_eth": "NaN"}])
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        before = pipeline.fingerprint()
        foretold = pipeline.migrate(shard_rows=150, dry_run=True)
        assert server.request_count == 0
        assert pipeline.fingerprint() == before
        assert pipeline.store.list_collection_names() == []
        assert not list((pipeline.home / "shards").rglob("*.arrow"))
        assert_same_figures(foretold, pipeline.migrate(shard_rows=150))
        assert foretold["dead_lettered"] == 1
        assert foretold["tokens"] > 0

        # The same on a store that is filled: one text changes, one owner, one record is new, one is mended.
        pipeline.transactions.update_one({"_id": rows[5]["_id"]}, {"$set": {"status": "Failed", "method_name": "x"}})
        pipeline.transactions.replace_one({"_id": rows[0]["_id"]}, rows[0])
        pipeline.transactions.insert_one(repeated(rows[9], 1, token_name="Unheard-of token"))
        before, requests = pipeline.fingerprint(), server.request_count
        foretold = pipeline.migrate(shard_rows=150, dry_run=True)
        assert server.request_count == requests
        assert pipeline.fingerprint() == before
        assert_same_figures(foretold, pipeline.migrate(shard_rows=150))
        assert foretold["written"] == 3
    message = pipeline.flow_run().state
    assert message is not None
    assert message.message == "3 written, 398 unchanged, 0 dead letters, 0 removed"


def test_a_dry_run_says_how_long_the_quota_makes_a_run_wait(pipeline: Pipeline, source_data: SourceData) -> None:
    pipeline.load(source_data, source_data.some(100))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server, cryptique_gemini_texts_per_minute=30)
        report = pipeline.migrate(dry_run=True)
    assert report["quota_seconds"] == round(report["embedded"] * 60 / 30, 1) > 100


def assert_same_figures(foretold: Record, done: Record) -> None:
    names = ("read", "written", "unchanged", "dead_lettered", "chunks", "embedded", "tokens", "cost_usd", "refused")
    assert {name: foretold[name] for name in names} == {name: done[name] for name in names}


# -- a service that refuses --------------------------------------------------------------------------------


def test_one_refused_text_among_four_thousand_is_one_dead_letter_and_written_once_it_is_mended(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = [dict(row) for row in source_data.some(4_000)]
    refused = rows[1_234]
    refused["token_name"] = "The forbidden token"
    pipeline.load(source_data, rows)
    with LoopbackGemini(refused_texts=lambda text: "The forbidden token" in text) as server:
        pipeline.use_gemini(server)
        report = pipeline.migrate(shard_rows=2_000)
        assert (report["read"], report["written"], report["dead_lettered"]) == (4_000, 3_999, 1)
        state = pipeline.flow_run().state
        assert state is not None
        assert state.is_completed()
        assert state.message == "3,999 written, 0 unchanged, 1 dead letter, 0 removed"
        assert pipeline.stored_source_ids() == {row["_id"] for row in rows if row is not refused}
        assert embedded_texts(server) == Counter(contents(pipeline))
        (letter,) = pipeline.letters()
        assert (letter["sourceId"], letter["stage"]) == (refused["_id"], "embed")
        assert (letter["code"], letter["status"]) == ("embedding_refused", "open")
        assert "Gemini refuses the text" in letter["reason"]
        assert letter["runId"] == str(pipeline.last_run_id)
        assert letter["holderId"] == refused["contractId"]
        (job,) = pipeline.jobs()
        assert (job["status"], job["progress"]["processed"], job["progress"]["failed"]) == ("completed", 4_000, 1)

        # Refused again: the letter stays the one letter and counts the attempts.
        assert pipeline.migrate(shard_rows=2_000)["dead_lettered"] == 1
        assert [letter["attempts"] for letter in pipeline.letters()] == [2]

        server.refused_texts = ()
        report = pipeline.migrate(shard_rows=2_000)
        assert (report["written"], report["unchanged"], report["embedded"]) == (1, 3_999, 1)
        (letter,) = pipeline.letters()
        assert (letter["status"], letter["resolvedBy"]) == ("resolved", str(pipeline.last_run_id))
        assert pipeline.stored_source_ids() == {row["_id"] for row in rows}


def test_a_refused_key_fails_the_run_before_anything_is_read_or_written(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(5))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server, gemini_api_key="another-key")
        assert "Gemini refuses GEMINI_API_KEY" in pipeline.refusal()
    assert server.request_count == 1
    assert pipeline.store.list_collection_names() == []


def test_a_service_that_is_busy_when_the_run_begins_is_asked_again(pipeline: Pipeline, source_data: SourceData) -> None:
    pipeline.load(source_data, source_data.some(5))
    with LoopbackGemini(faults=["503", "drop"]) as server:
        pipeline.use_gemini(server)
        assert pipeline.migrate()["written"] == 5


# -- a service that fails ----------------------------------------------------------------------------------


@pytest.mark.long
def test_with_every_fifth_request_failing_the_store_equals_that_of_a_run_without_failures(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    pipeline.load(source_data, source_data.some(1_500))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=8)
        report = pipeline.migrate(shard_rows=500)
    undisturbed = pipeline.documents()
    pipeline.empty_store()

    plan = every_fifth_fails()
    with LoopbackGemini(faults=plan, retry_delay_seconds=0.05) as server:
        pipeline.use_gemini(server, cryptique_gemini_concurrency=8)
        # Few texts a request make enough requests for every kind of fault to come up.
        disturbed = pipeline.migrate(shard_rows=35, shards_in_flight=4)
    assert {request.fault for request in server.requests} == {None, *FAULTS}
    failed = sum(request.fault is not None for request in server.requests)
    assert failed >= len(server.requests) * 0.19
    assert comparable(pipeline.documents()) == comparable(undisturbed)
    for name in ("read", "written", "dead_lettered", "chunks", "embedded", "tokens", "cost_usd"):
        assert disturbed[name] == report[name]
    # The loopback server counts good answers only: each text got exactly one, spoiled or not before.
    assert embedded_texts(server) == Counter(contents(pipeline))
    asked = Counter(text for request in server.requests for text in request.texts if text != CHECK)
    assert {text for text, times in asked.items() if times > 1} <= sent_in_vain(server)


def every_fifth_fails() -> list[str | None]:
    """Return a plan in which every fifth request fails, each kind of fault in its turn."""
    return [FAULTS[(index // 5) % len(FAULTS)] if index % 5 == 2 else None for index in range(400)]


# -- models ------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.long
def test_vectors_of_another_model_are_not_mixed_in_unless_somebody_says_to_replace_them(
    pipeline: Pipeline, source_data: SourceData
) -> None:
    rows = source_data.some(30)
    pipeline.load(source_data, rows)
    pipeline.migrate()
    before = pipeline.documents()
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        message = pipeline.refusal()
        assert "wordllama" in message
        assert "--replace-model" in message
        assert server.request_count == 0
        assert pipeline.documents() == before
        report = pipeline.migrate(replace_model=True)
        assert (report["written"], report["embedded"]) == (30, len(contents(pipeline)))
        assert {row["lineage"]["model"] for row in pipeline.documents().values()} == {"gemini-embedding-001"}
        assert {vector_of(row).shape for row in pipeline.documents().values()} == {(64,)}


@pytest.mark.long
def test_vectors_stored_as_doubles_hold_the_same_numbers(pipeline: Pipeline, source_data: SourceData) -> None:
    pipeline.load(source_data, source_data.some(30))
    with LoopbackGemini() as server:
        pipeline.use_gemini(server)
        pipeline.migrate()
        binary = pipeline.documents()
        pipeline.empty_store()
        pipeline.use_gemini(server, cryptique_vector_form="doubles")
        pipeline.migrate()
    for key, row in pipeline.documents().items():
        assert isinstance(row["embedding"], list)
        assert all(isinstance(number, float) for number in row["embedding"])
        assert np.array_equal(vector_of(row), vector_of(binary[key]))
    without = "embedding"
    assert comparable(pipeline.documents(), without) == comparable(binary, without)
