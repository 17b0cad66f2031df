"""Gemini's batch jobs against a loopback server: submitted once, found again, collected whole."""

from __future__ import annotations

import logging
import socket
import traceback
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

import blocks.gemini_batches
from blocks.gemini import GeminiEmbedder
from blocks.gemini_batches import Answer, BatchGoneError, BatchJob, BatchState, GeminiBatches
from tasks.domain.errors import (
    NotSentError,
    PipelineError,
    QuotaSpentError,
    RecordError,
    TerminalError,
    ThrottledError,
    TransientError,
)
from tests.loopback.gemini import LoopbackGemini, raw_vector
from tests.loopback.gemini_batches import DOWNLOAD_FAULTS, SUBMISSION_FAULTS, UPLOAD_FAULTS, BatchPlan

KEY = "loopback-key/with+signs"
DIMENSIONS = 1536
TEXTS = [(f"key-{number}", f"Transaction {number} of the customer") for number in range(8)]


@pytest.fixture
def plan() -> BatchPlan:
    return BatchPlan()


@pytest.fixture
def server(plan: BatchPlan) -> Iterator[LoopbackGemini]:
    with LoopbackGemini(api_key=KEY, batch_plan=plan) as running:
        yield running


@pytest.fixture
def batches(server: LoopbackGemini) -> GeminiBatches:
    return make_embedder(server).batches


def make_embedder(server: LoopbackGemini, **settings: object) -> GeminiEmbedder:
    values: dict[str, object] = {"api_key": KEY, "base_url": server.url, "timeout_seconds": 20}
    return GeminiEmbedder.model_validate(values | settings)


def finished(batches: GeminiBatches, texts: list[tuple[str, str]] = TEXTS, *, name: str = "run-1:0") -> BatchJob:
    job = batches.submit(texts, display_name=name)
    while not job.is_over:
        job = batches.read(job.name)
    return job


def said_by(error: BaseException) -> str:
    """Return all that a log could show of an error."""
    said: list[str] = []
    one: BaseException | None = error
    while one is not None:
        said += ["".join(traceback.format_exception(one, chain=False)), repr(one), repr(vars(one))]
        one = one.__cause__ or one.__context__
    return "\n".join(said)


def outcome(answer: Answer) -> str:
    return type(answer).__name__ if isinstance(answer, Exception) else "vector"


# -- the way of a job --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gemini-embedding-001", "gemini-embedding-2"])
@pytest.mark.parametrize("results_in", ["response", "response.output", "metadata"])
def test_a_job_gives_each_key_the_vector_that_an_ordinary_request_gives(model: str, results_in: str) -> None:
    plan = BatchPlan(results_in=results_in, shuffle_seed=5)
    with LoopbackGemini(api_key=KEY, batch_plan=plan) as server:
        embedder = make_embedder(server, model=model)
        answers = list(embedder.batches.collect(finished(embedder.batches)))
        ordinary = embedder.embed_documents([text for _, text in TEXTS])
    assert [key for key, _ in answers] != [key for key, _ in TEXTS]
    vectors = dict(answers)
    assert vectors.keys() == dict(TEXTS).keys()
    for (key, _), row in zip(TEXTS, ordinary, strict=True):
        vector = vectors[key]
        assert isinstance(vector, np.ndarray)
        assert vector.dtype == np.float32
        assert vector.shape == (DIMENSIONS,)
        assert np.array_equal(vector, row)


def test_a_job_waits_runs_and_ends_and_says_how_many_texts(plan: BatchPlan, batches: GeminiBatches) -> None:
    plan.pending_reads, plan.running_reads = 2, 1
    job = batches.submit(TEXTS, display_name="run-1:0")
    assert (job.state, job.display_name, job.model) == (BatchState.PENDING, "run-1:0", "gemini-embedding-001")
    assert job.created_at is not None
    assert job.created_at.utcoffset() is not None
    states = []
    while not job.is_over:
        job = batches.read(job.name)
        states.append(job.state)
        assert (job.texts, job.has_results) == (8, job.is_over)
    assert states == [BatchState.PENDING, BatchState.PENDING, BatchState.RUNNING, BatchState.SUCCEEDED]
    assert (job.succeeded, job.failed, job.pending) == (8, 0, 0)
    assert job.ended_at is not None


def test_a_job_takes_as_long_as_it_takes(plan: BatchPlan, batches: GeminiBatches) -> None:
    clock = [0.0]
    plan.clock, plan.delay_seconds = (lambda: clock[0]), 3_600
    job = batches.submit(TEXTS, display_name="slow")
    assert batches.read(job.name).state is BatchState.RUNNING
    clock[0] = 3_600
    assert batches.read(job.name).has_results


def test_a_job_costs_half_and_has_bounds() -> None:
    first = GeminiEmbedder.model_validate({"api_key": KEY})
    second = GeminiEmbedder.model_validate({"api_key": KEY, "model": "gemini-embedding-2", "batch_texts_per_job": 7})
    for embedder, usd in ((first, 0.075), (second, 0.10)):
        assert embedder.batches.facts.usd_per_million_tokens == usd
        assert embedder.facts.usd_per_million_tokens == 2 * usd
    assert (first.batches.facts.max_texts_per_job, first.batches.facts.max_tokens_per_job) == (10_000, 1_500_000)
    assert second.batches.facts.max_texts_per_job == 7


def test_a_file_travels_in_pieces_and_arrives_whole(
    server: LoopbackGemini, batches: GeminiBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks.gemini_batches, "_UPLOAD_PIECE_BYTES", 300)
    finished(batches)
    (content,) = server.batches.uploaded.values()
    assert server.batches.upload_steps == 1 + -(-len(content) // 300)
    lines = [orjson.loads(line) for line in content.splitlines()]
    assert [(line["key"], line["request"]["content"]["parts"][0]["text"]) for line in lines] == TEXTS
    assert lines[0]["request"] | {"content": None} == {
        "model": "models/gemini-embedding-001",
        "content": None,
        "taskType": "RETRIEVAL_DOCUMENT",
        "outputDimensionality": DIMENSIONS,
    }


def test_what_no_job_can_hold_is_refused_before_it_is_sent(server: LoopbackGemini) -> None:
    batches = make_embedder(server, batch_texts_per_job=8).batches
    for texts in ([*TEXTS, ("key-9", "one too many")], [("a", "x"), ("a", "y")], [("", "x")], [], [("a", " \n")]):
        with pytest.raises(ValueError, match=r"key|texts|text"):
            batches.submit(texts, display_name="never")
    assert server.batches.requests == []


def test_a_text_that_holds_nothing_to_embed_gets_no_answer(batches: GeminiBatches) -> None:
    job = finished(batches, [("blank", " "), ("half", "half a character: \ud83e"), *TEXTS])
    assert dict(batches.collect(job)).keys() == dict(TEXTS).keys()


def test_memory_stays_flat_while_results_arrive(server: LoopbackGemini, batches: GeminiBatches) -> None:
    texts = [(str(number), f"Transaction {number}") for number in range(2_000)]
    vector = raw_vector("", model="any", dimensions=DIMENSIONS)
    server.batches._vector = lambda text, model, dimensions: vector
    job = finished(batches, texts)
    tracemalloc.start()
    try:
        count = sum(1 for _ in batches.collect(job))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == len(texts)
    results_bytes = len(server.batches._result_line("any", "0", job_request())) * len(texts)
    assert results_bytes > 30_000_000
    assert peak < results_bytes / 10


def job_request() -> dict[str, Any]:
    return {"content": {"parts": [{"text": "any"}]}, "outputDimensionality": DIMENSIONS}


# -- found again -------------------------------------------------------------------------------------------


def test_a_job_whose_submitter_never_learned_its_name_is_found_and_not_submitted_twice(
    plan: BatchPlan, server: LoopbackGemini, batches: GeminiBatches
) -> None:
    plan.submissions = ["accepted-drop"]
    with pytest.raises(TransientError) as caught:
        batches.submit_once(TEXTS, display_name="run-1:0")
    assert not isinstance(caught.value, ThrottledError | NotSentError)  # it may have been accepted, and was

    def never() -> list[tuple[str, str]]:
        raise AssertionError("the texts were asked for again")

    later = make_embedder(server).batches  # another process
    job = later.submit_once(never, display_name="run-1:0")
    assert list(server.batches.jobs) == [job.name]
    assert len(dict(later.collect(later.read(job.name)))) == 8
    assert later.submit_once(never, display_name="run-1:0").state is BatchState.SUCCEEDED
    assert (server.batches.submissions, max(server.embedded.values())) == (1, 1)


@pytest.mark.parametrize("fault", ["drop", "500"])
def test_a_submission_that_was_not_accepted_is_made_again(
    plan: BatchPlan, server: LoopbackGemini, batches: GeminiBatches, fault: str
) -> None:
    plan.submissions = [fault]
    with pytest.raises(TransientError):
        batches.submit_once(TEXTS, display_name="run-1:0")
    batches.submit_once(lambda: iter(TEXTS), display_name="run-1:0")
    assert len(server.batches.jobs) == 1


@pytest.mark.parametrize("end", ["FAILED", "CANCELLED", "EXPIRED"])
def test_a_job_that_came_to_nothing_does_not_stand_in_the_way_of_another(
    plan: BatchPlan, batches: GeminiBatches, end: str
) -> None:
    plan.ends = {"run-1:0": end}
    lost = finished(batches)
    assert lost.state.name == end
    again = batches.submit_once(TEXTS, display_name="run-1:0")
    assert again.name != lost.name


def test_a_job_of_another_model_is_not_taken_for_this_one(server: LoopbackGemini) -> None:
    for model in ("gemini-embedding-001", "gemini-embedding-2"):
        job = make_embedder(server, model=model).batches.submit_once(TEXTS, display_name="run-1:0")
        assert job.model == model
    assert len(server.batches.jobs) == 2


def test_jobs_are_found_by_the_beginning_of_their_names_over_all_pages(plan: BatchPlan, batches: GeminiBatches) -> None:
    plan.page_size, plan.ends = 2, {"run-1:1": "FAILED", "run-1:2": "STUCK"}
    for name in ("run-1:0", "run-10:0", "run-1:1", "other", "run-1:2"):
        batches.submit([("key", "text")], display_name=name)
    found = batches.find("run-1:")
    assert [job.display_name for job in found] == ["run-1:2", "run-1:1", "run-1:0"]
    assert [job.state.value for job in found] == ["pending", "failed", "succeeded"]
    assert [job.is_over for job in found] == [False, True, True]
    assert batches.find("run-2:") == []


# -- jobs that come to nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["FAILED", "CANCELLED", "EXPIRED"])
def test_a_job_that_came_to_nothing_says_so_and_has_nothing_to_collect(
    plan: BatchPlan, server: LoopbackGemini, batches: GeminiBatches, end: str
) -> None:
    plan.ends = lambda name: end
    job = finished(batches)
    assert (job.state.name, job.is_over, job.has_results) == (end, True, False)
    assert ("internal error" in job.reason) is (end == "FAILED")
    assert "Transaction" not in job.reason  # it quoted a text
    with pytest.raises(ValueError, match="no results"):
        next(batches.collect(job))
    assert sum(server.embedded.values()) == 0


def test_a_job_that_is_stuck_is_cancelled_and_one_that_is_over_stays_what_it_is(
    plan: BatchPlan, batches: GeminiBatches
) -> None:
    plan.ends = {"stuck": "STUCK"}
    stuck, good = batches.submit(TEXTS, display_name="stuck"), finished(batches)
    for _ in range(3):
        assert not batches.read(stuck.name).is_over
    for _ in range(2):
        batches.cancel(stuck.name)
        batches.cancel(good.name)
    assert batches.read(stuck.name).state is BatchState.CANCELLED
    assert batches.read(good.name).state is BatchState.SUCCEEDED


def test_a_job_that_does_not_exist_is_gone(batches: GeminiBatches) -> None:
    with pytest.raises(BatchGoneError, match="batches/nobody"):
        batches.read("batches/nobody")
    with pytest.raises(TerminalError, match="batches/nobody"):
        batches.cancel("batches/nobody")
    with pytest.raises(ValueError, match="no name"):
        batches.read("files/../batches/nobody")


# -- submissions that are refused --------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "wait"), [("429", 900.0), ("429-wait", 41.0)])
def test_a_refused_submission_says_how_long_to_wait_and_made_no_job(
    plan: BatchPlan, server: LoopbackGemini, batches: GeminiBatches, fault: str, wait: float
) -> None:
    plan.submissions = [fault]
    with pytest.raises(ThrottledError, match="no further batch job now") as caught:
        batches.submit(TEXTS, display_name="run-1:0")
    assert caught.value.retry_after_seconds == wait
    assert server.batches.jobs == {}
    assert len(server.batches.uploaded) == 1
    assert server.batches.files == {}


def test_too_many_jobs_are_refused_until_one_has_ended(plan: BatchPlan, batches: GeminiBatches) -> None:
    plan.max_jobs, plan.pending_reads = 1, 1
    first = batches.submit(TEXTS, display_name="run-1:0")
    with pytest.raises(ThrottledError):
        batches.submit(TEXTS, display_name="run-1:1")
    batches.read(first.name)
    assert batches.read(first.name).is_over
    batches.submit(TEXTS, display_name="run-1:1")


def test_too_large_a_job_is_refused_like_too_many(plan: BatchPlan, batches: GeminiBatches) -> None:
    plan.max_texts = 7
    with pytest.raises(ThrottledError):
        batches.submit(TEXTS, display_name="run-1:0")


@pytest.mark.parametrize("fault", UPLOAD_FAULTS)
@pytest.mark.parametrize("step", [0, 1])
def test_an_upload_that_breaks_made_no_job(
    plan: BatchPlan, server: LoopbackGemini, batches: GeminiBatches, fault: str, step: int
) -> None:
    plan.uploads = [None] * step + [fault]
    with pytest.raises(TransientError):
        batches.submit(TEXTS, display_name="run-1:0")
    assert server.batches.submissions == 0
    batches.submit(TEXTS, display_name="run-1:0")


def test_a_wrong_key_and_a_model_that_does_not_exist_stop_the_run(server: LoopbackGemini) -> None:
    with pytest.raises(TerminalError, match="GEMINI_API_KEY"):
        make_embedder(server, api_key="another").batches.submit(TEXTS, display_name="never")
    with pytest.raises(TerminalError, match="GEMINI_API_KEY"):
        make_embedder(server, api_key="two words").batches.find("")
    with pytest.raises(TerminalError, match="text-embedding-004"):
        make_embedder(server, model="text-embedding-004").batches.submit(TEXTS, display_name="never")


def test_a_service_that_nobody_runs_made_no_job() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        batches = GeminiEmbedder.model_validate({"api_key": KEY, "base_url": url}).batches
        with pytest.raises(NotSentError):
            batches.submit(TEXTS, display_name="never")


# -- answers that are none ---------------------------------------------------------------------------------


def test_each_text_gets_its_own_answer_and_the_others_are_not_lost(
    plan: BatchPlan, server: LoopbackGemini, batches: GeminiBatches
) -> None:
    texts = dict(TEXTS)
    server.refused_texts = {texts["key-0"]}
    errors = {
        texts["key-1"]: {"code": 8, "message": "Quota exceeded."},
        texts["key-2"]: {"code": 13, "status": "INTERNAL", "message": f"Failed for '{texts['key-2']}'"},
        texts["key-3"]: {"message": "no code at all"},
    }
    plan.text_error = errors.get
    plan.broken, plan.unreadable, plan.missing, plan.doubled = (
        {texts[key]} for key in ("key-4", "key-5", "key-6", "key-7")
    )
    job = finished(batches)
    answers = list(batches.collect(job))
    assert {key: outcome(answer) for key, answer in answers} == {
        "key-0": "RecordError",
        "key-1": "TransientError",
        "key-2": "TransientError",
        "key-3": "TransientError",
        "key-4": "TransientError",
        "key-7": "vector",
    }
    assert len(answers) == 6
    (expected,) = make_embedder(server).embed_documents([texts["key-7"]])
    vector = dict(answers)["key-7"]
    assert isinstance(vector, np.ndarray)
    assert np.array_equal(vector, expected)  # the first answer to it; the second was another
    refused = dict(answers)["key-0"]
    assert isinstance(refused, RecordError)
    assert refused.code == "embedding_refused"
    assert "INVALID_ARGUMENT: Request contains an invalid argument" in refused.reason
    assert not any("customer" in said_by(answer) for _, answer in answers if isinstance(answer, Exception))
    assert (job.succeeded, job.failed) == (4, 4)


@pytest.mark.parametrize("fault", ["503", "drop", "cut", "html"])
def test_a_download_that_breaks_is_collected_again_from_the_beginning(
    plan: BatchPlan, server: LoopbackGemini, batches: GeminiBatches, fault: str
) -> None:
    plan.downloads = [fault]
    job = finished(batches)
    came: list[str] = []
    with pytest.raises(TransientError):
        came.extend(key for key, _ in batches.collect(job))
    assert came == ([key for key, _ in TEXTS[:4]] if fault in ("drop", "cut") else [])
    assert [key for key, _ in batches.collect(job)] == [key for key, _ in TEXTS]
    assert max(server.embedded.values()) == 1


def test_results_without_keys_stop_the_run(plan: BatchPlan, batches: GeminiBatches) -> None:
    plan.downloads = ["keyless"]
    with pytest.raises(TerminalError, match="no keys"):
        list(batches.collect(finished(batches)))


def test_what_was_deleted_is_gone_and_nothing_else_is(server: LoopbackGemini, batches: GeminiBatches) -> None:
    job, other = finished(batches), finished(batches, name="run-1:1")
    for _ in range(2):
        batches.delete(job)
    with pytest.raises(BatchGoneError, match="no longer has the results"):
        list(batches.collect(job))
    with pytest.raises(BatchGoneError):
        batches.read(job.name)
    assert len(list(batches.collect(other))) == 8
    assert set(server.batches.files) == {other.input_file, other.results_file}


# -- the secret --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [{"submissions": [fault]} for fault in SUBMISSION_FAULTS]
    + [{"uploads": [fault]} for fault in UPLOAD_FAULTS]
    + [{"downloads": [fault]} for fault in DOWNLOAD_FAULTS],
    ids=str,
)
def test_the_key_is_in_no_message_no_traceback_and_no_log(
    plan: BatchPlan, batches: GeminiBatches, faults: dict[str, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name, planned in faults.items():
        setattr(plan, name, planned)
    with pytest.raises(PipelineError) as caught:
        list(batches.collect(finished(batches)))
    said = "\n".join([said_by(caught.value), caplog.text, *(str(record.__dict__) for record in caplog.records)])
    said += repr(batches) + str(vars(batches))
    for form in (KEY, "loopback-key%2Fwith%2Bsigns"):
        assert form not in said
    assert not isinstance(caught.value, QuotaSpentError)


# -- the loopback server itself ----------------------------------------------------------------------------


def test_googles_own_client_finds_in_the_loopback_server_what_it_expects(
    server: LoopbackGemini, tmp_path: Path
) -> None:
    from google import genai
    from google.genai import types

    client = genai.Client(
        api_key=KEY, vertexai=False, http_options=types.HttpOptions(base_url=server.url, api_version="v1beta")
    )
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(
        b"\n".join(
            orjson.dumps({"key": key, "request": {"content": {"parts": [{"text": text}]}, "outputDimensionality": 4}})
            for key, text in TEXTS
        )
    )
    server.batches.plan.results_in = "metadata"  # where this client looks
    # Without the address here, this client takes the pieces to the host that the service names.
    config = types.UploadFileConfig(mime_type="application/jsonl", http_options=types.HttpOptions(base_url=server.url))
    file = client.files.upload(file=lines, config=config)
    assert file.name is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        job = client.batches.create_embeddings(
            model="gemini-embedding-001",
            src={"file_name": file.name},
            config={"display_name": "by Google's client"},
        )
    assert job.name is not None
    job = client.batches.get(name=job.name)
    assert job.state == types.JobState.JOB_STATE_SUCCEEDED
    assert [one.display_name for one in client.batches.list()] == ["by Google's client"]
    assert job.dest is not None
    assert job.dest.file_name is not None
    results = [orjson.loads(line) for line in client.files.download(file=job.dest.file_name).splitlines()]
    assert [line["key"] for line in results] == [key for key, _ in TEXTS]
    assert len(results[0]["response"]["embedding"]["values"]) == 4
    ours = make_embedder(server, dimensions=4).batches
    assert len(dict(ours.collect(ours.read(str(job.name))))) == 8
    client.batches.delete(name=str(job.name))
    assert server.batches.jobs == {}
