"""Gemini's embedder against a loopback server: the same facts over our own calls and both of Google's clients."""

from __future__ import annotations

import copy
import logging
import pickle
import socket
import sys
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import numpy as np
import orjson
import pytest

from blocks.gemini import GeminiEmbedder
from tasks.domain.errors import (
    NotSentError,
    PipelineError,
    QuotaSpentError,
    RecordError,
    TerminalError,
    ThrottledError,
    TransientError,
)
from tasks.domain.quotas import quota_day
from tasks.domain.vectors import Embedder, Matrix
from tests.loopback.gemini import EnforcedQuota, LoopbackGemini, raw_vector

KEY = "loopback-key/with+signs"
DIMENSIONS = 1536


@pytest.fixture(params=["rest", "genai", "generativeai"])
def client(request: pytest.FixtureRequest) -> str:
    if request.param == "generativeai":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            pytest.importorskip("google.generativeai")
    return str(request.param)


def make_embedder(server: LoopbackGemini, client: str, **settings: object) -> GeminiEmbedder:
    values: dict[str, object] = {
        "api_key": KEY,
        "base_url": server.url,
        "client": client,
        "timeout_seconds": 20,
    }
    return GeminiEmbedder.model_validate(values | settings)


def expected(texts: list[str], *, model: str = "gemini-embedding-001") -> Matrix:
    rows = np.stack([raw_vector(text, model=model, dimensions=DIMENSIONS) for text in texts])
    unit: Matrix = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def error_of(server: LoopbackGemini, client: str, **settings: object) -> PipelineError:
    """Return the error that one call on this server raises."""
    with pytest.raises(PipelineError) as caught:
        make_embedder(server, client, **settings).embed_documents(["one", "two"])
    return caught.value


def everything_said(error: BaseException) -> str:
    """Return all that a log could show of an error: its traceback, its causes and what hangs below them."""
    said: list[str] = []
    one: BaseException | None = error
    while one is not None:
        said += ["".join(traceback.format_exception(one, chain=False)), repr(one), repr(vars(one))]
        one = one.__cause__ or one.__context__
    return "\n".join(said)


# -- vectors -----------------------------------------------------------------------------------------------


def test_rows_are_float32_of_length_one_in_the_order_of_the_texts(client: str) -> None:
    texts = ["a transfer", "ein Tausch", "转账 🦊", "תשלום"]
    with LoopbackGemini(api_key=KEY) as server:
        rows = make_embedder(server, client).embed_documents(texts)
    assert rows.dtype == np.float32
    assert rows.shape == (4, DIMENSIONS)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert np.allclose(rows, expected(texts), atol=1e-6)
    assert not np.isclose(np.linalg.norm(raw_vector("a transfer", model="m", dimensions=DIMENSIONS)), 1)


def test_documents_and_questions_are_sent_with_their_own_task_types(client: str) -> None:
    with LoopbackGemini(api_key=KEY) as server:
        embedder = make_embedder(server, client)
        embedder.embed_documents(["a", "b"])
        question = embedder.embed_query("c")
    assert question.shape == (DIMENSIONS,)
    assert [request.task_types for request in server.requests] == [
        ("RETRIEVAL_DOCUMENT", "RETRIEVAL_DOCUMENT"),
        ("RETRIEVAL_QUERY",),
    ]


def test_a_hundred_texts_travel_in_one_request_and_no_text_in_none(client: str) -> None:
    texts = [f"text {number}" for number in range(100)]
    with LoopbackGemini(api_key=KEY) as server:
        embedder = make_embedder(server, client)
        rows = embedder.embed_documents(texts)
        nothing = embedder.embed_documents([])
        with pytest.raises(ValueError, match="101 texts"):
            embedder.embed_documents([*texts, "one more"])
    assert np.allclose(rows, expected(texts), atol=1e-6)
    assert nothing.shape == (0, DIMENSIONS)
    assert server.request_sizes == [100]
    assert max(server.embedded.values()) == 1


def test_model_2_gives_a_vector_for_each_text_and_reads_its_task_in_the_text(client: str) -> None:
    model = "gemini-embedding-2"
    with LoopbackGemini(api_key=KEY) as server:
        embedder = make_embedder(server, client, model=model)
        rows = embedder.embed_documents(["a", "b", "c"])
        embedder.embed_query("d")
    assert np.allclose(rows, expected([f"title: none | text: {text}" for text in "abc"], model=model), atol=1e-6)
    assert server.requests[1].texts == ("task: search result | query: d",)
    assert not any(task for request in server.requests for task in request.task_types)


def test_four_threads_share_one_embedder(client: str) -> None:
    batches = [[f"batch {batch} text {text}" for text in range(5)] for batch in range(12)]
    with LoopbackGemini(api_key=KEY) as server, ThreadPoolExecutor(4) as threads:
        embedder = make_embedder(server, client)
        results = list(threads.map(embedder.embed_documents, batches))
    for batch, rows in zip(batches, results, strict=True):
        assert np.allclose(rows, expected(batch), atol=1e-6)
    assert server.request_count == 12


def test_a_used_embedder_can_be_copied_and_pickled(client: str) -> None:
    with LoopbackGemini(api_key=KEY) as server:
        embedder = make_embedder(server, client)
        embedder.embed_query("a")
        for other in (copy.deepcopy(embedder), pickle.loads(pickle.dumps(embedder))):
            assert np.array_equal(other.embed_query("a"), embedder.embed_query("a"))


def test_compressed_and_indented_answers_are_read(client: str) -> None:
    with LoopbackGemini(api_key=KEY, lifelike=True) as server:
        rows = make_embedder(server, client).embed_documents(["one", "two"])
    assert np.allclose(rows, expected(["one", "two"]), atol=1e-6)


def test_our_own_calls_ask_for_a_compressed_answer_without_indentation() -> None:
    with LoopbackGemini(api_key=KEY, lifelike=True) as server:
        embedder = make_embedder(server, "rest")
        embedder.embed_query("one")
        (request,) = server.requests
        vector = raw_vector("one", model="gemini-embedding-001", dimensions=DIMENSIONS)
    assert request.path == "/v1beta/models/gemini-embedding-001:batchEmbedContents?prettyPrint=false"
    assert "gzip" in request.user_agent
    assert request.answer_bytes < len(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)) / 2


def test_requests_go_through_the_proxy_of_the_environment(client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with LoopbackGemini(api_key=KEY) as server:
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, server.url)
        embedder = make_embedder(server, client, base_url="http://gemini.example")
        rows = embedder.embed_documents(["one"])
    assert np.allclose(rows, expected(["one"]), atol=1e-6)
    assert server.requests[0].path.startswith("http://gemini.example/v1beta/models/")


def test_it_keeps_the_promise_of_an_embedder_and_states_its_limits() -> None:
    first = GeminiEmbedder.model_validate({"api_key": KEY})
    second = GeminiEmbedder.model_validate({"api_key": KEY, "model": "gemini-embedding-2"})
    unknown = GeminiEmbedder.model_validate({"api_key": KEY, "model": "gemini-embedding-9"})
    assert isinstance(first, Embedder)
    assert (first.facts.max_tokens_per_text, first.facts.usd_per_million_tokens) == (2_048, 0.15)
    assert (second.facts.max_tokens_per_text, second.facts.usd_per_million_tokens) == (8_192, 0.20)
    assert (unknown.facts.max_tokens_per_text, unknown.facts.usd_per_million_tokens) == (2_048, 0.20)
    assert first.facts.max_texts_per_request == 100
    assert first.facts.task == "RETRIEVAL_DOCUMENT"


# -- what may work in a moment -----------------------------------------------------------------------------


def test_a_429_says_how_long_to_wait(client: str) -> None:
    with LoopbackGemini(api_key=KEY, faults=["429"], retry_delay_seconds=37.5) as server:
        error = error_of(server, client)
    assert isinstance(error, ThrottledError)
    assert error.retry_after_seconds == 37.5
    assert "PerMinute" in str(error)
    assert server.request_count == 1


@pytest.mark.parametrize(
    "fault",
    ["500", "503", "504", "html", "drop", "malformed", "wrong-dimension", "missing-vector", "nan", "empty"],
)
def test_a_broken_answer_is_asked_for_again_by_the_caller_and_not_by_the_client(client: str, fault: str) -> None:
    with LoopbackGemini(api_key=KEY, faults=[fault]) as server:
        embedder = make_embedder(server, client)
        with pytest.raises(TransientError) as caught:
            embedder.embed_documents(["one", "two"])
        assert server.request_count == 1
        assert caught.value.retry_after_seconds is None
        assert not isinstance(caught.value, ThrottledError | NotSentError)  # it may have been paid for
        assert np.allclose(embedder.embed_documents(["one", "two"]), expected(["one", "two"]), atol=1e-6)


@pytest.mark.parametrize("fault", ["missing-vector", "wrong-dimension", "nan", "empty", "drop", "malformed"])
def test_a_broken_answer_to_a_question_is_transient_as_well(client: str, fault: str) -> None:
    with LoopbackGemini(api_key=KEY, faults=[fault]) as server, pytest.raises(TransientError):
        make_embedder(server, client).embed_query("one")


def test_an_answer_that_comes_too_late_is_transient(client: str) -> None:
    with LoopbackGemini(api_key=KEY, faults=["slow"], slow_seconds=30) as server:
        error = error_of(server, client, timeout_seconds=0.2)
    assert isinstance(error, TransientError)
    assert "within 0.2 s" in str(error)


def test_a_service_that_nobody_runs_is_transient(client: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        embedder = GeminiEmbedder.model_validate({"api_key": KEY, "base_url": url, "client": client})
        with pytest.raises(NotSentError, match="connection to Gemini failed before anything was sent"):
            embedder.check()


# -- what a person must mend -------------------------------------------------------------------------------


def test_a_used_up_daily_quota_says_when_it_goes_on(client: str) -> None:
    before = datetime.now(UTC)
    with LoopbackGemini(api_key=KEY, faults=["429-day"]) as server:
        error = error_of(server, client)
    assert isinstance(error, QuotaSpentError)
    assert error.until in (quota_day(before).ends, quota_day(datetime.now(UTC)).ends)
    for words in ("EmbedContentRequestsPerDay", "midnight Pacific time", f"{error.until:%Y-%m-%d %H:%M} UTC", "1000"):
        assert words in str(error)


def test_a_quota_of_zero_stops_the_run(client: str) -> None:
    with LoopbackGemini(api_key=KEY, faults=["429-zero"]) as server:
        error = error_of(server, client)
    assert isinstance(error, TerminalError)
    assert "billing" in str(error)


def test_a_wrong_key_stops_the_run_and_is_named_but_not_shown(client: str) -> None:
    with LoopbackGemini(api_key="another key") as server:
        error = error_of(server, client)
        with pytest.raises(TerminalError, match="GEMINI_API_KEY"):
            make_embedder(server, client).check()
    assert isinstance(error, TerminalError)
    assert "GEMINI_API_KEY" in str(error)
    assert KEY not in everything_said(error)


@pytest.mark.parametrize("fault", ["401", "403"])
def test_a_key_without_the_right_stops_the_run(client: str, fault: str) -> None:
    with LoopbackGemini(api_key=KEY, faults=[fault] * 5) as server:
        error = error_of(server, client)
    assert isinstance(error, TerminalError)
    assert "GEMINI_API_KEY" in str(error)


@pytest.mark.parametrize("key", ["", "  ", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_key_looks_like_is_refused_before_it_is_sent(client: str, key: str) -> None:
    with LoopbackGemini(api_key=KEY) as server:
        error = error_of(server, client, api_key=key)
    assert isinstance(error, TerminalError)
    assert "GEMINI_API_KEY" in str(error)
    assert server.request_count == 0
    assert not key.strip() or key not in everything_said(error)


def test_a_model_that_does_not_exist_stops_the_run(client: str) -> None:
    with LoopbackGemini(api_key=KEY) as server:
        error = error_of(server, client, model="text-embedding-004")
    assert isinstance(error, TerminalError)
    assert "text-embedding-004" in str(error)


def test_a_check_that_works_costs_one_text_and_one_that_is_refused_is_terminal(client: str) -> None:
    with LoopbackGemini(api_key=KEY) as server:
        make_embedder(server, client).check()
    assert server.request_sizes == [1]
    with LoopbackGemini(api_key=KEY, refused_texts=lambda _: True) as server:
        embedder = make_embedder(server, client)
        with pytest.raises(TerminalError, match="even one plain word"):
            embedder.check()


# -- what one text is refused for --------------------------------------------------------------------------


def test_a_refused_text_is_a_record_error_that_does_not_repeat_the_text(client: str) -> None:
    text = "a text of the customer that the service does not want"
    with LoopbackGemini(api_key=KEY, refused_texts={text}) as server:
        embedder = make_embedder(server, client)
        with pytest.raises(RecordError) as caught:
            embedder.embed_documents(["one", text])
        assert embedder.embed_documents(["one"]).shape == (1, DIMENSIONS)
    assert caught.value.code == "embedding_refused"
    assert "INVALID_ARGUMENT: Request contains an invalid argument" in caught.value.reason
    assert text not in everything_said(caught.value)
    assert "customer" not in everything_said(caught.value)


@pytest.mark.parametrize("text", ["", " \n", "half a character: \ud83e"])
def test_a_text_that_cannot_be_embedded_is_a_record_error(client: str, text: str) -> None:
    with LoopbackGemini(api_key=KEY) as server:
        embedder = make_embedder(server, client)
        with pytest.raises(RecordError) as caught:
            embedder.embed_documents(["one", text])
    assert caught.value.code == "embedding_refused"


# -- the secret --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["500-key-echoed", "429", "403", "drop", "malformed", "empty", "html"])
def test_the_key_is_in_no_message_no_traceback_and_no_log(
    client: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with LoopbackGemini(api_key=KEY, faults=[fault] * 5) as server:
        embedder = make_embedder(server, client)
        with pytest.raises(PipelineError) as caught:
            embedder.embed_documents(["one"])
        with pytest.raises(PipelineError) as caught_by_check:
            embedder.check()
    said = "\n".join(
        [everything_said(caught.value), everything_said(caught_by_check.value), caplog.text]
        + [str(record.__dict__) for record in caplog.records]
    )
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    for form in (KEY, "loopback-key%2Fwith%2Bsigns"):
        assert form not in said


def test_the_key_is_not_in_what_the_block_shows_of_itself() -> None:
    embedder = GeminiEmbedder.model_validate({"api_key": KEY})
    for shown in (repr(embedder), str(embedder), str(embedder.model_dump()), embedder.model_dump_json()):
        assert KEY not in shown


def test_the_older_client_leaves_the_settings_of_its_package_alone() -> None:
    generativeai = pytest.importorskip("google.generativeai.client")
    settings = generativeai._client_manager.client_config
    with LoopbackGemini(api_key=KEY) as server:
        make_embedder(server, "generativeai").embed_query("a")
    assert generativeai._client_manager.client_config is settings
    assert settings["client_options"].api_key != KEY
    assert generativeai._client_manager.clients == {}


# -- the loopback server itself ----------------------------------------------------------------------------


def test_connections_are_kept_and_faults_by_chance_are_the_same_for_the_same_seed(client: str) -> None:
    def answers() -> list[str]:
        kinds = []
        with LoopbackGemini(api_key=KEY, fault_probability=0.5, seed=7) as server:
            embedder = make_embedder(server, client)
            for number in range(20):
                try:
                    embedder.embed_documents([f"text {number}"])
                except TransientError:
                    kinds.append("broken")
                else:
                    kinds.append("good")
            assert sum(server.embedded.values()) == kinds.count("good")
        return kinds

    first = answers()
    assert set(first) == {"broken", "good"}
    assert answers() == first


def test_a_quota_is_enforced_over_a_window_that_slides(client: str) -> None:
    clock = [0.0]
    quota = EnforcedQuota(texts_per_minute=10, tokens_per_minute=1_000, clock=lambda: clock[0])
    with LoopbackGemini(api_key=KEY, quota=quota) as server:
        embedder = make_embedder(server, client)
        embedder.embed_documents(["text"] * 6)
        clock[0] = 40
        embedder.embed_documents(["text"] * 4)
        for moment, wait in ((59.5, 0.5), (40, 20)):
            clock[0] = moment
            with pytest.raises(ThrottledError, match="RequestsPerMinutePerProjectPerModel") as caught:
                embedder.embed_documents(["text"] * 3)
            assert caught.value.retry_after_seconds == wait
        clock[0] = 60  # the first six are a minute old; what was refused used nothing up
        embedder.embed_documents(["text"] * 6)
        clock[0] = 101
        with pytest.raises(ThrottledError, match="InputTokensPerMinute"):
            embedder.embed_documents(["a long text " * 400])
    assert (quota.accepted_requests, quota.accepted_texts) == (3, 16)
    assert (quota.refused_requests, quota.refused_texts) == (3, 7)


def test_a_quota_a_day_is_enforced(client: str) -> None:
    with LoopbackGemini(api_key=KEY, quota=EnforcedQuota(texts_per_day=5)) as server:
        embedder = make_embedder(server, client)
        embedder.embed_documents(["text"] * 5)
        with pytest.raises(QuotaSpentError, match="RequestsPerDayPerProjectPerModel"):
            embedder.embed_query("text")


@pytest.mark.parametrize("client", ["genai", "generativeai"], indirect=True)
def test_a_client_that_is_not_installed_is_named(client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"google.{client}", None)
    monkeypatch.delattr(f"google.{client}", raising=False)
    with LoopbackGemini(api_key=KEY) as server:
        error = error_of(server, client)
    assert isinstance(error, TerminalError)
    assert f"package google-{'genai' if client == 'genai' else 'generativeai'}" in str(error)
