"""Batch jobs of a run: which texts go up, under which name, at what price, and what its record says."""

from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import orjson
import pyarrow as pa
import pytest
from pydantic import SecretStr

from blocks.gemini import USD_PER_MILLION_TOKENS
from blocks.gemini_batches import BATCH_USD_PER_MILLION_TOKENS, BatchFacts
from blocks.shards import ShardStore
from blocks.vector_store import VectorStore
from tasks.batch import FEWEST_TEXTS, Choice, Purse, Submission, choose_texts, jobs_prefix
from tasks.domain.chunks import ChunkSize
from tasks.domain.errors import BatchesUnderWayError
from tasks.domain.jobs import JobOrigin, job_record
from tasks.domain.manifests import BATCH_PRICE_SHARE, Manifest
from tasks.domain.quotas import Allowance, Quota
from tasks.domain.rows import Verdict
from tasks.domain.runs import Run, Scope
from tasks.domain.shards import Shard, ShardFile
from tasks.domain.vectors import EmbedderFacts

NOW = datetime(2026, 3, 4, 5, 0, tzinfo=UTC)
RUN = Run(key="20260304T050000-0a1b2c3d", id="run 1", scope=Scope(), started_ms=int(NOW.timestamp() * 1000))
FACTS = BatchFacts(max_texts_per_job=150, max_tokens_per_job=10_000, usd_per_million_tokens=0.075)


def hash_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def held_by(**texts: range) -> pa.Table:
    """Return texts by their numbers that shards hold, such as ``shard_3=range(5)``."""
    pairs = [
        (hash_of(number), int(name.removeprefix("shard_"))) for name, numbers in texts.items() for number in numbers
    ]
    return pa.table(
        {
            "content_hash": pa.array([key for key, _ in pairs], pa.large_binary()),
            "holder": pa.array([holder for _, holder in pairs], pa.int64()),
        }
    )


@pytest.fixture
def store(tmp_path: Path) -> ShardStore:
    return ShardStore(folder=tmp_path)


def choose(
    store: ShardStore, numbers: range, *, held: pa.Table | None = None, waiting: frozenset[int] = frozenset()
) -> Choice:
    """Choose among chunks with these texts, in shard 7; every text comes twice, and one more chunk is unchanged."""
    again = [*numbers, *numbers, 999_999]
    verdicts = [next(v for v in Verdict if v.needs_vector)] * (len(again) - 1) + [Verdict.UNCHANGED]
    chunks = pa.table(
        {
            "verdict": pa.array([int(verdict) for verdict in verdicts], pa.int64()),
            "content_hash": pa.array([hash_of(number) for number in again], pa.large_binary()),
            "text": pa.array([f"text {number}" for number in again], pa.large_string()),
            "tokens": pa.array([10 + number % 3 for number in again], pa.int64()),
        }
    )
    shard = Shard(7, len(again), store.write_table(RUN.key, "000007.chunks", chunks))
    chosen: Choice = choose_texts.fn(RUN, shard, store, FACTS, held_by() if held is None else held, waiting)
    return chosen


def rows_of(store: ShardStore, submission: Submission) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = store.read_table(submission.file).to_pylist()
    return rows


def test_every_text_without_a_vector_goes_up_once_in_jobs_that_the_service_takes(store: ShardStore) -> None:
    with store.paid_texts(RUN.key, shard=7) as paid:
        paid.keep([hash_of(3)], np.ones((1, 4), np.float32), tokens=[10], shard=7)
    choice = choose(store, range(400))
    rows = [row for submission in choice.submissions for row in rows_of(store, submission)]
    assert [row["content_hash"] for row in rows] == [hash_of(number) for number in range(400) if number != 3]
    assert {row["holder"] for row in rows} == {7}
    assert [submission.part for submission in choice.submissions] == [0, 1, 2]
    for submission in choice.submissions:
        own = rows_of(store, submission)
        assert (submission.texts, submission.tokens) == (len(own), sum(row["tokens"] for row in own))
        assert submission.texts <= FACTS.max_texts_per_job
        assert submission.has_job
    assert (len(choice.hashes), choice.after) == (399, frozenset())


@pytest.mark.parametrize("texts", [0, 1, FEWEST_TEXTS - 1])
def test_few_texts_go_the_ordinary_way_at_once(store: ShardStore, texts: int) -> None:
    choice = choose(store, range(texts))
    assert (choice.submissions, len(choice.hashes)) == ((), texts)
    assert [submission.texts for submission in choose(store, range(FEWEST_TEXTS)).submissions] == [FEWEST_TEXTS]


def test_a_text_in_another_shards_job_is_left_to_it_and_waited_for(store: ShardStore) -> None:
    held = held_by(shard_3=range(50), shard_4=range(50, 80))
    choice = choose(store, range(250), held=held, waiting=frozenset({3}))
    first, second = choice.submissions
    own = [row for row in [*rows_of(store, first), *rows_of(store, second)] if row["holder"] == 7]
    assert [row["content_hash"] for row in own] == [hash_of(number) for number in range(80, 250)]
    # Shard 4 gets its texts without a job: nobody need wait for it.
    assert choice.after == {3}
    assert {row["holder"] for row in rows_of(store, first)} == {3, 7}
    assert (first.texts, second.texts) == (150, 20)


def test_few_texts_beside_those_of_a_job_wait_for_it_without_one_of_their_own(store: ShardStore) -> None:
    choice = choose(store, range(60), held=held_by(shard_3=range(50)), waiting=frozenset({3}))
    (submission,) = choice.submissions
    assert (submission.has_job, submission.texts, choice.after) == (False, 10, {3})
    # Once that job is over there is nothing to wait for.
    assert choose(store, range(60), held=held_by(shard_3=range(50))).submissions == ()


def test_what_was_submitted_is_the_same_in_the_next_process(store: ShardStore) -> None:
    (submission,) = choose(store, range(120)).submissions
    for one in (submission, replace(submission, attempt=3, reserved_on="2026-03-04", outcome="collected")):
        record = orjson.loads(orjson.dumps(one.to_record()))
        assert Submission.from_record(RUN.key, 7, record) == one


def test_a_job_is_known_by_its_run_its_shard_and_its_attempt() -> None:
    submission = Submission(7, 0, ShardFile("run/batch-000007-0", 1, 2, 3), 1, 10)
    names = [
        one.display_name(key)
        for key in ("run-1", "run-10")
        for one in (
            submission,
            replace(submission, part=1),
            replace(submission, attempt=2),
            replace(submission, shard=70),
        )
    ]
    assert len(set(names)) == len(names)
    assert [name.startswith(jobs_prefix("run-1")) for name in names] == [True] * 4 + [False] * 4
    assert [name.startswith(jobs_prefix("run-1", 7)) for name in names[:4]] == [True, True, True, False]


def test_what_jobs_may_spend_can_go_to_another_process() -> None:
    store = VectorStore(uri=SecretStr("mongodb://127.0.0.1:9"), database="somewhere", embedder="gemini")
    purse = Purse(store, Allowance.of(Quota(usd_per_day=2.0), budget_usd=1.0), 0.075, "run")
    arrived = cloudpickle.loads(cloudpickle.dumps(purse))
    assert (arrived.allowance, arrived.usd_per_million_tokens, arrived.run_key) == (purse.allowance, 0.075, "run")
    assert arrived.vectors.model_dump() == store.model_dump()


# -- price and record ------------------------------------------------------------------------------------------


def test_every_model_costs_half_in_a_batch_job() -> None:
    assert BATCH_USD_PER_MILLION_TOKENS.keys() == USD_PER_MILLION_TOKENS.keys()
    for model, price in USD_PER_MILLION_TOKENS.items():
        assert BATCH_USD_PER_MILLION_TOKENS[model] == pytest.approx(price * BATCH_PRICE_SHARE)


def test_a_manifest_prices_tokens_by_the_way_they_came() -> None:
    manifest = Manifest(tokens=1_000_000)
    manifest.merge(Manifest(tokens=3_000_000, batch_tokens=2_000_000))
    assert manifest.cost_usd(0.15) == pytest.approx(2 * 0.15 + 2 * 0.075)
    again = Manifest.from_record(manifest.to_record())
    assert again == manifest
    older = {name: value for name, value in manifest.to_record().items() if name != "batch_tokens"}
    assert Manifest.from_record(older).batch_tokens == 0


def test_a_run_that_looks_again_and_again_says_once_what_it_waits_for() -> None:
    facts = EmbedderFacts("model-a", 4, "none", 10, 100, usd_per_million_tokens=0.15)
    waits = BatchesUnderWayError(NOW, jobs=2, texts=500)
    record: dict[str, Any] | None = None
    for minute in range(5):
        letters = {"amount_negative": {"count": minute + 1, "reason": "below zero", "sourceId": None}}
        record = job_record(
            RUN,
            JobOrigin("work", "prefect", "host:1:2", "host"),
            facts,
            ChunkSize(),
            status="retrying",
            total=10,
            manifest=Manifest(tokens=2_000_000, batch_tokens=2_000_000),
            now=NOW + timedelta(minutes=minute),
            retries=3,
            previous=record,
            error=str(waits),
            letters=letters,
        )
    assert record is not None
    assert [entry["errorCode"] for entry in record["errors"]] == ["amount_negative", "run"]
    assert record["errors"][-1]["timestamp"] == NOW + timedelta(minutes=4)
    assert record["results"]["totalCost"] == 0.15


@pytest.mark.parametrize(("jobs", "words"), [(1, "1 batch job with 500 texts"), (1_200, "1,200 batch jobs with")])
def test_a_wait_says_how_much_is_under_way_and_arrives_in_another_process(jobs: int, words: str) -> None:
    error = BatchesUnderWayError(NOW, jobs=jobs, texts=500, why="no room")
    arrived = pickle.loads(pickle.dumps(error))
    assert arrived.words == error.words
    assert words in error.words
    assert error.words.endswith("No more for now: no room")
    assert (arrived.until, str(arrived)) == (NOW, str(error))
