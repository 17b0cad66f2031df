"""Migrate through Gemini's batch jobs: the same store at half the price, whatever becomes of jobs and processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import Scheduled
from pymongo import MongoClient

from blocks.gemini import GeminiEmbedder
from blocks.tokens import count_tokens
from flows.backfill import backfill
from flows.migrate import migrate
from flows.progress import waiting_listener
from tests.end_to_end.pipeline import (
    Pipeline,
    Record,
    RunFailedError,
    SourceData,
    comparable,
    open_pipeline,
    prefect_client,
    repeated,
    wait_for,
)
from tests.end_to_end.test_resume import CHECK, ROOT, embedded_texts, or_fail, running_elsewhere
from tests.loopback.gemini import LoopbackGemini
from tests.loopback.gemini_batches import BatchPlan, Reply

ROWS, SHARDS = 900, 3
#: Three shards of some 280 texts each: three jobs.
BY_SHARD: dict[str, Any] = {"shard_rows": 300, "shards_in_flight": 1}
IN_BATCH: dict[str, Any] = {**BY_SHARD, "batch": True, "batch_poll_seconds": 0.05}
USD_PER_TOKEN = 0.15 / 1_000_000


@dataclass
class Service:
    """Gemini on loopback, and what it was asked of batch jobs."""

    server: LoopbackGemini
    plan: BatchPlan
    #: The display names of all jobs that were made, in order.
    made: list[str] = field(default_factory=list)
    texts_of_jobs: list[set[str]] = field(default_factory=list)

    @property
    def looks(self) -> int:
        """How often the jobs were listed."""
        return self.server.batches.requests.count("GET /v1beta/batches")

    @property
    def asked(self) -> set[str]:
        """The texts that were asked for in the ordinary way, without the check's word."""
        return {text for request in self.server.requests for text in request.texts} - {CHECK}

    def require_nothing_left(self, *, files: int = 0) -> None:
        """Assert that the service keeps no job, and so many files that were uploaded for jobs that never began."""
        assert self.server.batches.jobs == {}
        assert len(self.server.batches.files) == files


def text_of(request: Record) -> str:
    return str(request["content"]["parts"][0]["text"])


@pytest.fixture
def service() -> Iterator[Service]:
    plan = BatchPlan()
    with LoopbackGemini(batch_plan=plan, retry_delay_seconds=0.05) as server:
        found = Service(server, plan)
        answer = server.batches.answer

        def noting(method: str, path: str, headers: Any, body: bytes) -> Reply:
            before = set(server.batches.jobs)
            try:
                return answer(method, path, headers, body)
            finally:
                new = [job for name, job in list(server.batches.jobs.items()) if name not in before]
                found.made.extend(job.display_name for job in new)
                found.texts_of_jobs.extend({text_of(request) for _, request in job.lines} for job in new)

        server.batches.answer = noting  # type: ignore[method-assign]
        yield found


@pytest.fixture(scope="module")
def ordinary(
    prefect_api: str,
    mongo_uri: str,
    mongo_client: MongoClient[Record],
    source_data: SourceData,
    tmp_path_factory: pytest.TempPathFactory,
) -> Ordinary:
    """What a run in the ordinary way stores of the rows of most tests here, and its report."""
    home = tmp_path_factory.mktemp("ordinary")
    with open_pipeline(mongo_uri, mongo_client, home) as pipeline, LoopbackGemini() as server:
        pipeline.load(source_data, source_data.some(ROWS))
        pipeline.use_gemini(server)
        report = pipeline.migrate(**BY_SHARD)
        return Ordinary(pipeline.documents(), report)


@dataclass(frozen=True)
class Ordinary:
    documents: dict[str, Record]
    report: Record

    @property
    def texts(self) -> set[str]:
        return {row["content"] for row in self.documents.values()}


@pytest.fixture
def loaded(pipeline: Pipeline, source_data: SourceData, service: Service) -> Pipeline:
    pipeline.load(source_data, source_data.some(ROWS))
    pipeline.use_gemini(service.server)
    return pipeline


class EndedWaitingError(Exception):
    """The run was ended while it waited for its jobs."""


@contextmanager
def while_waiting(do: Callable[[str], None]) -> Iterator[None]:
    """Do something each time a run says that it waits."""
    token = waiting_listener.set(do)
    try:
        yield
    finally:
        waiting_listener.reset(token)


def interrupt(words: str) -> None:
    raise EndedWaitingError(words)


def run_until_it_waits(pipeline: Pipeline, **parameters: Any) -> str:
    """Run until it waits for its jobs for the first time, and end it there."""
    with while_waiting(interrupt):
        message = pipeline.refusal(**parameters)
    assert "under way at Gemini" in message
    return message


def shard_of(name: str) -> int:
    return int(name.split("/")[2])


def cost_of(report: Record) -> float:
    """Return what the tokens of a report cost: half the price for those of jobs."""
    return float(round((report["tokens"] - report["batch_tokens"] / 2) * USD_PER_TOKEN, 6))


def assert_stored_as_ever(
    pipeline: Pipeline, service: Service, ordinary: Ordinary, report: Record, *, files: int = 0
) -> None:
    """Assert that store, report and record are right, every text was paid for once and nothing is left anywhere."""
    assert comparable(pipeline.documents()) == comparable(ordinary.documents)
    assert embedded_texts(service.server) == Counter(ordinary.texts)
    for name in ("read", "written", "unchanged", "dead_lettered", "chunks", "embedded", "tokens"):
        assert report[name] == ordinary.report[name], name
    assert report["cost_usd"] == cost_of(report)
    if not any(request.status == 403 for request in service.server.requests):  # those count all the same
        assert abs(spent_usd(pipeline) - report["cost_usd"]) < 1e-6
    job = pipeline.jobs()[-1]
    assert (job["status"], job["progress"]["processed"]) == ("completed", ordinary.report["read"])
    assert (job["results"]["totalTokensUsed"], job["results"]["totalCost"]) == (report["tokens"], report["cost_usd"])
    service.require_nothing_left(files=files)
    assert not [path for path in (pipeline.home / "shards").rglob("*") if path.is_file()]


def spent_usd(pipeline: Pipeline) -> float:
    """Return what the day's record says was spent."""
    row = pipeline.store["ragstore"].find_one({"_id": {"$regex": "^spending:"}})
    assert row is not None
    return float(row["nanoUsd"] / 1e9)


# -- the ordinary course ---------------------------------------------------------------------------------------


def test_the_store_is_that_of_an_ordinary_load_at_half_the_price(
    loaded: Pipeline, service: Service, ordinary: Ordinary
) -> None:
    report = loaded.migrate(**IN_BATCH)
    assert_stored_as_ever(loaded, service, ordinary, report)
    assert service.asked == set()
    assert sorted(map(shard_of, service.made)) == [0, 1, 2]
    assert report["batch_tokens"] == report["tokens"]
    assert report["cost_usd"] == pytest.approx(ordinary.report["cost_usd"] / 2, abs=1e-6)

    looks, made = service.looks, list(service.made)
    again = loaded.migrate(**IN_BATCH)
    assert (again["unchanged"], again["embedded"], again["cost_usd"]) == (ROWS, 0, 0)
    assert (service.looks, service.made) == (looks, made)


def test_a_dry_run_tells_the_price_of_the_jobs_and_starts_none(loaded: Pipeline, service: Service) -> None:
    foretold = loaded.migrate(**IN_BATCH, dry_run=True)
    assert service.server.batches.requests == []
    done = loaded.migrate(**IN_BATCH)
    for name in ("read", "written", "embedded", "tokens", "batch_tokens", "cost_usd"):
        assert foretold[name] == done[name] > 0, name
    assert foretold["quota_seconds"] is None


@pytest.mark.long
def test_a_run_waits_for_jobs_that_take_their_time_and_its_record_says_so(
    loaded: Pipeline, service: Service, ordinary: Ordinary
) -> None:
    service.plan.clock = lambda: service.looks
    service.plan.delay_seconds = 7
    seen: list[tuple[str, Record]] = []
    with while_waiting(lambda words: seen.append((words, loaded.jobs()[-1]))):
        report = loaded.migrate(**IN_BATCH)
    assert_stored_as_ever(loaded, service, ordinary, report)
    assert len(seen) > 3
    words, job = seen[0]
    assert words.startswith("3 batch jobs with 8")
    assert "looks again at" in words
    assert (job["status"], job["progress"]["processed"], job["results"]["totalTokensUsed"]) == ("retrying", 0, 0)
    assert job["retryConfig"]["nextRetryAt"] is not None
    # However often it looked, its record says once what it waited for.
    assert [entry["error"] for entry in loaded.jobs()[-1]["errors"]] == [
        "batch jobs at Gemini are not over yet; the run looks again by itself"
    ]


@pytest.mark.long
def test_a_shard_with_few_new_texts_goes_the_ordinary_way_at_once(
    loaded: Pipeline, service: Service, source_data: SourceData
) -> None:
    report = loaded.migrate(**{**IN_BATCH, "shard_rows": 90}, limit=400)
    assert service.made == []
    assert report["written"] == 400
    assert report["batch_tokens"] == 0
    assert report["cost_usd"] == cost_of(report)


@pytest.mark.long
def test_a_text_that_several_shards_hold_is_in_one_job_and_the_others_wait_for_it(
    pipeline: Pipeline, service: Service, source_data: SourceData
) -> None:
    some = source_data.some(330)
    second, others = ([{**row, "token_name": name} for row in some] for name in ("Second token", "Other token"))
    # The third shard holds the texts of the first, the fourth thirty others as well.
    rows = [*some[:150], *second[:150], *some[:150], *others[:30], *some[:120]]
    pipeline.load(source_data, [repeated(row, 1_000 + number) for number, row in enumerate(rows)])
    pipeline.use_gemini(service.server)
    service.plan.ends = lambda name: "STUCK" if shard_of(name) == 0 and service.looks < 8 else "SUCCEEDED"
    progress: list[int] = []
    with while_waiting(lambda _: progress.append(pipeline.jobs()[-1]["progress"]["processed"])):
        report = pipeline.migrate(**{**IN_BATCH, "shard_rows": 150})
    contents = {row["content"] for row in pipeline.documents("embedding").values()}
    assert embedded_texts(service.server) == Counter(contents)
    assert (report["written"], report["embedded"]) == (600, len(contents))
    assert service.made[0].split("/")[2:] == ["000000", "0", "1"]
    assert sorted(map(shard_of, service.made)) == [0, 1]
    # Only the second shard could be finished while the first one's job took so long.
    assert set(progress) == {0, 150}
    # What the fourth shard holds alone is too little for a job.
    assert service.asked == contents.difference(*service.texts_of_jobs)
    assert 0 < len(service.asked) <= 30


@pytest.mark.long
def test_a_shard_that_is_too_large_for_a_job_has_several(
    loaded: Pipeline, service: Service, ordinary: Ordinary
) -> None:
    loaded.register()
    block = GeminiEmbedder.load("gemini", _sync=True)  # type: ignore[call-arg]
    block.batch_texts_per_job = 120
    block.save("gemini", overwrite=True, _sync=True)
    try:
        report = loaded.migrate(**IN_BATCH)
    finally:
        Pipeline._registered = None  # the next test has a block of its own
    assert_stored_as_ever(loaded, service, ordinary, report)
    assert Counter(map(shard_of, service.made)) == {0: 3, 1: 3, 2: 3}


@pytest.mark.long
def test_a_backfill_embeds_through_jobs_too(loaded: Pipeline, service: Service, ordinary: Ordinary) -> None:
    report = loaded.complete(backfill, **IN_BATCH)
    assert_stored_as_ever(loaded, service, ordinary, report)
    again = loaded.complete(backfill, **IN_BATCH, rebuild="everything")
    assert again["batch_tokens"] == again["tokens"] == report["tokens"]
    assert set(embedded_texts(service.server).values()) == {2}


# -- jobs that go wrong ----------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("end", ["FAILED", "EXPIRED", "CANCELLED"])
def test_a_job_that_comes_to_nothing_is_submitted_again(
    loaded: Pipeline, service: Service, ordinary: Ordinary, end: str
) -> None:
    service.plan.ends = lambda name: end if name.endswith("/000001/0/1") else "SUCCEEDED"
    report = loaded.migrate(**IN_BATCH)
    assert_stored_as_ever(loaded, service, ordinary, report)
    assert Counter(map(shard_of, service.made)) == {0: 1, 1: 2, 2: 1}
    assert report["batch_tokens"] == report["tokens"]


@pytest.mark.long
def test_a_job_that_fails_three_times_ends_the_run_and_the_ordinary_way_pays_only_for_its_texts(
    loaded: Pipeline, service: Service, ordinary: Ordinary
) -> None:
    service.plan.ends = lambda name: "FAILED" if shard_of(name) == 1 else "SUCCEEDED"
    message = loaded.refusal(**IN_BATCH)
    assert "the batch job of shard 1 came to nothing 3 times: it is failed (13:" in message
    assert "Run it again without batch" in message
    assert Counter(map(shard_of, service.made)) == {0: 1, 1: 3, 2: 1}
    report = loaded.migrate(**BY_SHARD)
    assert_stored_as_ever(loaded, service, ordinary, report)
    assert 0 < report["batch_tokens"] < report["tokens"]
    assert len(service.made) == 5


@pytest.mark.long
def test_what_a_job_does_not_answer_is_asked_for_in_the_ordinary_way_and_paid_for_at_its_price(
    loaded: Pipeline, service: Service, ordinary: Ordinary
) -> None:
    texts = sorted(ordinary.texts)
    failed, missing, broken, unreadable = set(texts[5:12]), set(texts[200:203]), {texts[300]}, {texts[400]}
    error = {"code": 13, "message": "Internal error", "status": "INTERNAL"}
    service.plan.text_error = lambda text: error if text in failed else None
    service.plan.missing, service.plan.broken, service.plan.unreadable = missing, broken, unreadable
    service.plan.shuffle_seed = 3
    report = loaded.migrate(**IN_BATCH)
    left = failed | missing | broken | unreadable
    assert comparable(loaded.documents()) == comparable(ordinary.documents)
    assert service.asked == left
    assert report["batch_tokens"] == report["tokens"] - sum(count_tokens(sorted(left)))
    assert report["tokens"] == ordinary.report["tokens"]
    assert report["cost_usd"] == cost_of(report)
    assert abs(spent_usd(loaded) - report["cost_usd"]) < 1e-6
    service.require_nothing_left()


@pytest.mark.long
def test_a_text_that_a_job_refuses_is_one_dead_letter(
    pipeline: Pipeline, service: Service, source_data: SourceData
) -> None:
    rows = [dict(row) for row in source_data.some(ROWS)]
    refused = rows[500]
    refused["token_name"] = "The forbidden token"
    pipeline.load(source_data, rows)
    service.server.refused_texts = lambda text: "The forbidden token" in text
    pipeline.use_gemini(service.server)
    report = pipeline.migrate(**IN_BATCH)
    assert (report["read"], report["written"], report["dead_lettered"]) == (ROWS, ROWS - 1, 1)
    (letter,) = pipeline.letters()
    assert (letter["sourceId"], letter["stage"], letter["code"]) == (refused["_id"], "embed", "embedding_refused")
    contents = {row["content"] for row in pipeline.documents("embedding").values()}
    assert embedded_texts(service.server) == Counter(contents)
    assert report["batch_tokens"] == report["tokens"]


@pytest.mark.long
def test_results_that_break_off_are_collected_again_and_those_that_are_gone_submitted_again(
    loaded: Pipeline, service: Service, ordinary: Ordinary
) -> None:
    service.plan.downloads = ["drop", "503", "cut"]

    def lose_one(words: str) -> None:
        for job in service.server.batches.jobs.values():
            if job.display_name.endswith("/000002/0/1") and job.results_file is not None:
                service.server.batches.files.pop(job.results_file, None)

    service.plan.clock = lambda: service.looks
    service.plan.delay_seconds = 5
    with while_waiting(lose_one):
        report = loaded.migrate(**IN_BATCH)
    assert comparable(loaded.documents()) == comparable(ordinary.documents)
    assert service.asked == set()
    assert report["batch_tokens"] == report["tokens"] == ordinary.report["tokens"]
    service.require_nothing_left()


@pytest.mark.long
@pytest.mark.parametrize("fault", ["500", "drop", "accepted-drop"])
def test_a_submission_whose_answer_is_lost_makes_one_job(
    loaded: Pipeline, service: Service, ordinary: Ordinary, fault: str
) -> None:
    service.plan.submissions = [None, fault, fault]
    report = loaded.migrate(**IN_BATCH)
    assert sorted(map(shard_of, service.made)) == [0, 1, 2]
    # What was uploaded for a job that never began stays there for two days: with its answer lost, it might have begun.
    assert_stored_as_ever(loaded, service, ordinary, report, files=0 if fault == "accepted-drop" else 2)


@pytest.mark.long
def test_a_service_that_takes_one_job_at_a_time_is_given_the_others_later(
    loaded: Pipeline, service: Service, ordinary: Ordinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blocks.gemini_batches.SUBMIT_AGAIN_SECONDS", 0.05)
    service.plan.max_jobs = 1
    service.plan.clock = lambda: service.looks
    service.plan.delay_seconds = 3
    words: list[str] = []
    with while_waiting(words.append):
        report = loaded.migrate(**IN_BATCH)
    assert_stored_as_ever(loaded, service, ordinary, report)
    assert len(service.made) == 3
    assert any(
        said.startswith("1 batch job with") and "No more for now: Gemini takes no further" in said for said in words
    )


# -- budgets and quotas ----------------------------------------------------------------------------------------


@pytest.mark.long
def test_at_its_budget_a_run_collects_what_it_submitted_and_goes_on_when_more_is_allowed(
    loaded: Pipeline, service: Service, ordinary: Ordinary
) -> None:
    service.plan.clock = lambda: service.looks
    service.plan.delay_seconds = 4
    budget = ordinary.report["cost_usd"] / 2 * 0.8
    words: list[str] = []
    with while_waiting(words.append):
        message = loaded.refusal(**IN_BATCH, budget_usd=budget)
    assert "of the run's budget" in message
    assert words[0].startswith("2 batch jobs with")
    assert "of the run's budget" in words[0]
    (job,) = loaded.jobs()
    assert (job["status"], job["errors"][-1]["errorCode"]) == ("retrying", "budget")
    assert job["progress"]["processed"] == 600
    assert 0 < job["results"]["totalCost"] <= budget
    assert abs(spent_usd(loaded) - job["results"]["totalCost"]) < 1e-6
    report = loaded.migrate(**IN_BATCH, budget_usd=budget)
    assert_stored_as_ever(loaded, service, ordinary, report)


@pytest.mark.long
def test_a_job_that_no_day_has_room_for_is_for_a_person(loaded: Pipeline, service: Service) -> None:
    loaded.use_gemini(service.server, cryptique_gemini_texts_per_day=150)
    message = loaded.refusal(**IN_BATCH)
    assert "is more than a whole day allows here" in message
    assert service.made == []


# -- what can't be meant ---------------------------------------------------------------------------------------


def test_what_can_not_be_combined_with_batch_is_refused_in_words(
    pipeline: Pipeline, source_data: SourceData, service: Service
) -> None:
    pipeline.load(source_data, source_data.some(5))
    assert "batch needs Gemini: the embedder wordllama" in pipeline.refusal(batch=True)
    pipeline.use_gemini(service.server)
    assert "batch and child_runs can't be combined" in pipeline.refusal(batch=True, child_runs=2)
    with pytest.raises(RunFailedError, match="leave out batch, or stored_describer"):
        pipeline.complete(backfill, batch=True, stored_describer=1)
    assert service.server.request_count == 0
    assert pipeline.store.list_collection_names() == []


# -- the one way and the other ----------------------------------------------------------------------------------


@pytest.mark.long
def test_begun_in_batch_and_finished_in_the_ordinary_way_each_text_is_paid_for_once(
    loaded: Pipeline, service: Service, ordinary: Ordinary
) -> None:
    # One job is over when the ordinary run begins, one runs until its second look, one never began.
    service.plan.pending_reads = 1
    run_until_it_waits(loaded, **IN_BATCH)
    over, running, pending = sorted(service.server.batches.jobs.values(), key=lambda job: job.display_name)
    over.reads, running.reads = 9, 1
    looks = service.looks
    service.plan.running_reads = 1
    service.plan.ends = lambda name: "SUCCEEDED"

    def let_it_end(words: str) -> None:
        assert words.startswith("1 batch job with")
        running.reads = 9

    with while_waiting(let_it_end):
        report = loaded.migrate(**BY_SHARD, batch_poll_seconds=0.05)
    assert_stored_as_ever(loaded, service, ordinary, report)
    assert service.looks > looks
    assert pending.end == "CANCELLED"
    assert 0 < report["batch_tokens"] < report["tokens"]
    assert len(service.made) == 3


@pytest.mark.long
def test_begun_in_the_ordinary_way_and_finished_in_batch_each_text_is_paid_for_once(
    loaded: Pipeline, service: Service, ordinary: Ordinary
) -> None:
    service.server.faults = lambda index: "403" if index >= 5 else None
    loaded.use_gemini(service.server, cryptique_gemini_concurrency=1)
    loaded.refusal(**BY_SHARD)
    paid = len(embedded_texts(service.server))
    assert 300 < paid < 500
    service.server.faults = ()
    report = loaded.migrate(**IN_BATCH)
    assert_stored_as_ever(loaded, service, ordinary, report)
    assert report["resumed_shards"] == 1
    assert sorted(map(shard_of, service.made)) == [1, 2]
    assert 0 < report["batch_tokens"] < report["tokens"]


@pytest.mark.long
def test_back_and_forth_between_the_two_ways_each_text_is_paid_for_once(
    loaded: Pipeline, service: Service, ordinary: Ordinary
) -> None:
    service.plan.pending_reads = 1
    run_until_it_waits(loaded, **IN_BATCH)
    # The ordinary run cancels the jobs and fails at once; the next one in batch makes others.
    checked = len(service.server.requests) + 1
    service.server.faults = lambda index: "403" if index >= checked else None
    loaded.refusal(**BY_SHARD, batch_poll_seconds=0.05)
    assert {job.end for job in service.server.batches.jobs.values()} == {"CANCELLED"}
    service.server.faults = ()
    service.plan.pending_reads = 0
    report = loaded.migrate(**IN_BATCH)
    assert_stored_as_ever(loaded, service, ordinary, report)
    assert Counter(map(shard_of, service.made)) == {0: 2, 1: 2, 2: 2}


# -- processes that die ----------------------------------------------------------------------------------------


@dataclass
class HeldCall:
    """Holds the ``nth`` call of batch jobs that matches, before it is answered or when it is half done."""

    service: Service
    matches: Callable[[str, str], bool]
    nth: int
    when: str
    arrived: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        answer = self.service.server.batches.answer
        calls = iter(range(1_000))

        def held(method: str, path: str, headers: Any, body: bytes) -> Reply:
            if not self.matches(method, path) or next(calls) != self.nth:
                return answer(method, path, headers, body)
            if self.when == "before":
                self._hold()
                return Reply(status=503)
            reply = answer(method, path, headers, body)
            if reply.stream is None:
                self._hold()
                return reply
            return Reply(stream=self._half(reply.stream))

        self.service.server.batches.answer = held  # type: ignore[method-assign]

    def _hold(self) -> None:
        self.arrived.set()
        self.released.wait(120)

    def _half(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        for number, line in enumerate(lines):
            # Enough lines for some to be kept.
            if number == 260:
                self._hold()
                return
            yield line


def is_submission(method: str, path: str) -> bool:
    return ":asyncBatchEmbedContent" in path


def is_download(method: str, path: str) -> bool:
    return path.startswith("/download/")


def is_deletion(method: str, path: str) -> bool:
    return method == "DELETE"


@pytest.mark.long
@pytest.mark.parametrize(
    ("matches", "nth", "when"),
    [
        (is_submission, 1, "before"),
        (is_submission, 1, "after"),
        (is_download, 1, "after"),
        (is_deletion, 2, "after"),
    ],
    ids=["before-it-submits", "before-it-learns-of-its-job", "while-it-collects", "while-it-deletes"],
)
def test_a_killed_process_leaves_a_run_that_goes_on_with_its_jobs(
    loaded: Pipeline,
    service: Service,
    ordinary: Ordinary,
    prefect_api: str,
    matches: Callable[[str, str], bool],
    nth: int,
    when: str,
) -> None:
    call = HeldCall(service, matches, nth, when)
    with running_elsewhere(loaded, prefect_api, **IN_BATCH) as process:
        wait_for(or_fail(process, loaded, call.arrived.is_set), what="the held call", seconds=120)
        process.kill()
        assert process.wait() == -9
    call.released.set()
    report = loaded.migrate(**IN_BATCH)
    assert comparable(loaded.documents()) == comparable(ordinary.documents)
    assert embedded_texts(service.server) == Counter(ordinary.texts)
    assert (report["tokens"], report["batch_tokens"]) == (ordinary.report["tokens"], ordinary.report["tokens"])
    assert report["cost_usd"] == cost_of(report)
    # One job a shard, whenever its submitter died.
    assert sorted(map(shard_of, service.made)) == [0, 1, 2]
    service.require_nothing_left(files=when == "before")
    assert [job["status"] for job in loaded.jobs()] == ["completed"]


@pytest.mark.long
def test_a_run_whose_files_are_lost_while_its_jobs_run_finds_them_by_their_names(
    loaded: Pipeline, service: Service, ordinary: Ordinary
) -> None:
    run_until_it_waits(loaded, **IN_BATCH)
    files = list((loaded.home / "shards").rglob("batch-*.arrow"))
    assert len(files) == SHARDS
    for file in files:
        file.unlink()
    report = loaded.migrate(**IN_BATCH)
    assert comparable(loaded.documents()) == comparable(ordinary.documents)
    assert embedded_texts(service.server) == Counter(ordinary.texts)
    assert report["batch_tokens"] == report["tokens"]
    assert sorted(map(shard_of, service.made)) == [0, 1, 2]


@pytest.mark.long
def test_machines_that_share_a_shard_store_go_on_with_each_others_jobs(
    loaded: Pipeline, service: Service, ordinary: Ordinary, prefect_api: str
) -> None:
    loaded.use_gemini(service.server, cryptique_shards=f"shared:{loaded.home / 'mounted'}")
    (loaded.home / "mounted").mkdir(parents=True)
    # The third job's answers are asked for when those of the first two are kept.
    call = HeldCall(service, is_download, 2, "after")
    with running_elsewhere(loaded, prefect_api, **IN_BATCH) as process:
        wait_for(or_fail(process, loaded, call.arrived.is_set), what="the held call", seconds=120)
        process.kill()
        process.wait()
    call.released.set()
    # This process has a folder of its own: all that it finds of the other's is in the shared one.
    downloads = service.server.batches.downloads
    report = loaded.migrate(**IN_BATCH)
    assert_stored_as_ever(loaded, service, ordinary, report)
    assert service.asked == set()
    # What the dead process kept is not fetched again.
    assert service.server.batches.downloads - downloads == 1
    assert sorted(map(shard_of, service.made)) == [0, 1, 2]


# -- a run of a deployment -------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_of_a_deployment_ends_its_process_until_it_looks_again(
    loaded: Pipeline, service: Service, ordinary: Ordinary, prefect_api: str
) -> None:
    service.plan.clock = lambda: service.looks
    service.plan.delay_seconds = 4
    loaded.register()
    parameters = {**IN_BATCH, "batch_poll_seconds": 3_600.0}
    with prefect_client() as client:
        run_id = make_deployment_run(client, loaded, parameters)
        execute(loaded, prefect_api, run_id)
        run = client.read_flow_run(run_id)
        assert run.state is not None
        assert (run.state.type.value, run.state.name) == ("SCHEDULED", "AwaitingBatch")
        assert "3 batch jobs with 8" in str(run.state.message)
        until = run.state.state_details.scheduled_time
        assert until is not None
        assert 3_000 < (until - datetime.now(UTC)).total_seconds() <= 3_600
        (job,) = loaded.jobs()
        assert (job["status"], job["progress"]["processed"]) == ("retrying", 0)
        assert abs((job["retryConfig"]["nextRetryAt"] - until).total_seconds()) < 1

        service.plan.delay_seconds = 0
        client.set_flow_run_state(run_id, Scheduled(scheduled_time=datetime.now(UTC), name="AwaitingBatch"), force=True)
        execute(loaded, prefect_api, run_id)
        run = client.read_flow_run(run_id)
        assert run.state is not None
        assert run.state.is_completed(), run.state.message
    assert comparable(loaded.documents()) == comparable(ordinary.documents)
    assert embedded_texts(service.server) == Counter(ordinary.texts)
    assert len(service.made) == 3
    service.require_nothing_left()


def make_deployment_run(client: SyncPrefectClient, pipeline: Pipeline, parameters: dict[str, Any]) -> UUID:
    """Return a flow run of a deployment of migrate's, which no worker takes."""
    deployment = client.create_deployment(
        client.create_flow(migrate),
        f"{pipeline.source.name}",
        entrypoint="flows.migrate.migrate",
        path=str(ROOT),
        enforce_parameter_schema=False,
    )
    run: FlowRun = client.create_flow_run_from_deployment(deployment, parameters=parameters)
    return run.id


def execute(pipeline: Pipeline, api_url: str, run_id: UUID) -> None:
    """Do what a worker does with a run that is due, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "PREFECT_API_URL": api_url,
        "PREFECT_HOME": str(pipeline.home / "prefect"),
    }
    prefect = Path(sys.executable).parent / "prefect"
    log = pipeline.home / "executed.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        subprocess.run(
            [prefect, "flow-run", "execute", str(run_id)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=240,
            check=False,
        )
