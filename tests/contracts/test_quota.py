"""The quota against a real Prefect server and a real mongod: what threads and processes may use together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.database import Database
from pymongo.monitoring import CommandListener, CommandStartedEvent, CommandSucceededEvent

from blocks.gemini import GeminiEmbedder
from blocks.quota import GEMINI_QUOTA, EmbeddingGate, make_limits, open_gate
from blocks.vector_store import VectorStore
from deployments.register_blocks import register_blocks
from deployments.settings import Settings
from tasks.domain.errors import (
    BudgetSpentError,
    PipelineError,
    QuotaSpentError,
    StoppedError,
    TerminalError,
    TransientError,
)
from tasks.domain.quotas import SLOTS_PER_TEXT, Quota, quota_day
from tasks.domain.vectors import EmbedderFacts
from tests.embedding_worker import Worker, outcome_of, run
from tests.loopback.gemini import EnforcedQuota, LoopbackGemini, count_tokens

Record = dict[str, Any]
NOW = datetime(2026, 11, 3, 20, tzinfo=UTC)
TOMORROW = datetime(2026, 11, 4, 20, tzinfo=UTC)
PRICE = 0.15
#: No test waits for it.
PLENTY = Quota(texts_per_minute=1_000_000, tokens_per_minute=100_000_000)


@pytest.fixture
def store(mongo_uri: str, database: Database[Record]) -> Iterator[VectorStore]:
    opened = VectorStore(uri=SecretStr(mongo_uri), database=database.name, embedder="gemini")
    yield opened
    opened.close()


@pytest.fixture
def limits(prefect_api: str) -> str:
    """A name for limits of this test's own on the session's Prefect server."""
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture
def make_gate(store: VectorStore, limits: str) -> Iterator[Callable[..., EmbeddingGate]]:
    gates: list[EmbeddingGate] = []

    def make(quota: Quota, **chosen: Any) -> EmbeddingGate:
        gate = EmbeddingGate(store, quota, PRICE, **{"run_key": "run", "name": limits, **chosen})
        gates.append(gate)
        return gate

    yield make
    for gate in gates:
        gate.close()


@pytest.fixture
def make_worker(mongo_uri: str, database: Database[Record], limits: str, tmp_path: Path) -> Callable[..., Worker]:
    made: list[Worker] = []

    def make(server: LoopbackGemini, quota: Quota, *, texts: int, **chosen: Any) -> Worker:
        worker = Worker(
            **{
                "mongo_uri": mongo_uri,
                "database": database.name,
                "gemini_url": server.url,
                "api_key": server.api_key,
                "folder": str(tmp_path / f"shards-{len(made)}"),
                "limits": limits,
                "run_key": f"run-{len(made)}",
                "texts": texts,
                "quota": asdict(quota),
                **chosen,
            }
        )
        made.append(worker)
        return worker

    return make


def read_limit(name: str) -> GlobalConcurrencyLimitResponse:
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(name)


def all_limit_names() -> list[str]:
    with get_client(sync_client=True) as client:
        return [limit.name for limit in client.read_global_concurrency_limits(limit=200)]


def spend_until_refused(gate: EmbeddingGate, *, texts: int, tokens: int) -> tuple[int, PipelineError]:
    """Occupy until it is refused; return how many texts passed, and the refusal."""
    passed = 0
    while True:
        try:
            gate.occupy(texts, tokens)
        except (QuotaSpentError, BudgetSpentError) as error:
            return passed, error
        passed += texts


# -- the limits of a minute --------------------------------------------------------------------------------


def test_limits_are_made_once_and_follow_the_quota(limits: str) -> None:
    names = make_limits(Quota(texts_per_minute=300, tokens_per_minute=30_000), name=limits)
    assert names == [f"{limits}-texts", f"{limits}-tokens"]
    first = read_limit(names[0])
    assert make_limits(Quota(texts_per_minute=300, tokens_per_minute=30_000), name=limits) == names
    assert read_limit(names[0]) == first
    make_limits(Quota(texts_per_minute=600, tokens_per_minute=30_000), name=limits)
    assert (read_limit(names[0]).id, read_limit(names[0]).limit) == (first.id, 2 * first.limit)
    assert sorted(name for name in all_limit_names() if name.startswith(limits)) == names


def test_a_limit_that_is_no_longer_wanted_lets_everything_pass(
    limits: str, make_gate: Callable[..., EmbeddingGate]
) -> None:
    quota = Quota(texts_per_minute=1)
    make_limits(quota, name=limits)
    gate = make_gate(quota)
    assert make_limits(Quota(tokens_per_minute=100), name=limits) == [f"{limits}-tokens"]
    assert not read_limit(f"{limits}-texts").active
    for _ in range(3):
        gate.occupy(50, 0)
    assert make_limits(quota, name=limits) == [f"{limits}-texts"]
    assert read_limit(f"{limits}-texts").active


def test_registering_the_blocks_makes_gemini_s_limits(prefect_api: str, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {
        "gemini_api_key": "key",
        "cryptique_gemini_texts_per_minute": 1_200,
        "cryptique_gemini_texts_per_day": 1_000,
        "cryptique_gemini_usd_per_day": 2.5,
        "cryptique_source_uri": "mongodb://127.0.0.1",
        "cryptique_home": tmp_path,
    }
    settings = Settings(_env_file=None, **chosen)
    names = register_blocks(settings)
    assert names[-2:] == [f"global-concurrency-limit/{GEMINI_QUOTA}-{unit}" for unit in ("texts", "tokens")]
    assert read_limit(f"{GEMINI_QUOTA}-texts").limit == 60 * SLOTS_PER_TEXT
    facts = GeminiEmbedder.load("gemini", _sync=True).facts
    assert Quota.of(facts) == Quota(1_200, 1_000_000, 1_000, 2.5)


def test_a_request_occupies_its_own_texts_and_tokens(limits: str, make_gate: Callable[..., EmbeddingGate]) -> None:
    quota = Quota(texts_per_minute=60, tokens_per_minute=6_000)  # so slow that little empties meanwhile
    make_limits(quota, name=limits)
    gate = make_gate(quota)
    gate.occupy(2, 150)
    texts, tokens = read_limit(f"{limits}-texts"), read_limit(f"{limits}-tokens")
    assert 0 < texts.active_slots <= 2_000
    assert 0 < tokens.active_slots <= 150


def test_nothing_is_held_of_one_limit_while_another_has_no_room(
    limits: str, make_gate: Callable[..., EmbeddingGate]
) -> None:
    quota = Quota(texts_per_minute=60, tokens_per_minute=600)
    make_limits(quota, name=limits, window_seconds=6_000)  # nothing empties while this test runs
    texts, tokens = f"{limits}-texts", f"{limits}-tokens"
    gate = make_gate(quota)
    with get_client(sync_client=True) as client:
        client.increment_concurrency_slots([tokens], read_limit(tokens).limit, "rate_limit")
    assert gate._limits._occupy_all({texts: 2_000, tokens: 20}) == tokens
    assert read_limit(texts).active_slots == 0
    assert gate._limits._occupy_all({texts: 2_000}) is None
    assert 0 < read_limit(texts).active_slots <= 2_000


def test_what_a_limit_can_never_hold_at_once_passes_in_parts(
    limits: str, make_gate: Callable[..., EmbeddingGate]
) -> None:
    quota = Quota(tokens_per_minute=6_000)
    make_limits(quota, name=limits, window_seconds=1)
    gate = make_gate(quota)
    gate.occupy(1, 1_000)
    assert gate.spending().tokens == 1_000
    assert read_limit(f"{limits}-tokens").limit == 300


def test_a_limit_that_was_never_registered_is_said(limits: str, make_gate: Callable[..., EmbeddingGate]) -> None:
    gate = make_gate(Quota(texts_per_minute=300))
    with pytest.raises(TerminalError, match=rf"{limits}-texts is not registered.*cryptique-rag register"):
        gate.occupy(1, 1)
    assert gate.spending().texts == 0


def test_a_prefect_server_that_does_not_answer_is_tried_again(store: VectorStore, limits: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            gate = EmbeddingGate(store, Quota(texts_per_minute=300), PRICE, run_key="run", name=limits)
            with pytest.raises(TransientError, match="Prefect server does not answer"):
                gate.occupy(1, 1)
            gate.close()


def test_a_store_that_does_not_answer_is_tried_again(limits: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"mongodb://127.0.0.1:{unused.getsockname()[1]}/?serverSelectionTimeoutMS=200"
        gate = EmbeddingGate(
            VectorStore(uri=SecretStr(uri), database="none", embedder="gemini"),
            Quota(texts_per_day=10),
            PRICE,
            run_key="run",
            name=limits,
        )
        with pytest.raises(TransientError, match="does not answer"):
            gate.occupy(1, 1)


# -- the day and the budget --------------------------------------------------------------------------------


def test_eight_threads_never_pass_the_day(make_gate: Callable[..., EmbeddingGate]) -> None:
    gate = make_gate(Quota(texts_per_day=500))
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: spend_until_refused(gate, texts=7, tokens=70), range(8)))
    assert sum(passed for passed, _ in results) == gate.spending().texts == 497
    assert all(isinstance(error, QuotaSpentError) for _, error in results)


def test_two_processes_never_pass_the_day_and_the_next_day_starts_from_nothing(
    limits: str, make_gate: Callable[..., EmbeddingGate], make_worker: Callable[..., Worker]
) -> None:
    quota = replace(PLENTY, texts_per_day=300)
    make_limits(quota, name=limits)
    with LoopbackGemini(quota=EnforcedQuota()) as server:
        running = [make_worker(server, quota, texts=1_000).start() for _ in range(2)]
        outcomes = [outcome_of(process, timeout_seconds=120) for process in running]
    assert server.quota is not None
    assert [one.error for one in outcomes] == ["QuotaSpentError"] * 2
    assert sum(one.embedded for one in outcomes) == server.quota.accepted_texts
    assert 300 - 6 < server.quota.accepted_texts <= 300  # a batch is a fiftieth of the day
    tomorrow = make_gate(quota, now=lambda: datetime.now(UTC) + timedelta(days=1))
    assert tomorrow.spending().texts == 0
    tomorrow.occupy(6, 60)
    assert (tomorrow.spending().day, tomorrow.spending().texts) == (
        quota_day(datetime.now(UTC) + timedelta(days=1)).name,
        6,
    )


def test_a_budget_holds_for_the_run_on_all_days_and_not_for_others(make_gate: Callable[..., EmbeddingGate]) -> None:
    chosen: dict[str, Any] = {"budget_usd": 0.01, "run_key": "one"}
    today = make_gate(Quota(), now=lambda: NOW, **chosen)
    today.occupy(10, 40_000)
    tomorrow = make_gate(Quota(), now=lambda: TOMORROW, **chosen)
    passed, error = spend_until_refused(tomorrow, texts=1, tokens=1_000)
    assert isinstance(error, BudgetSpentError)
    assert (error.spent_usd, error.budget_usd) == (0.00990, 0.01)
    assert passed == 26
    make_gate(Quota(), now=lambda: TOMORROW, budget_usd=0.01, run_key="two.$three").occupy(10, 60_000)


def test_a_day_s_dollars_hold_for_all_runs(make_gate: Callable[..., EmbeddingGate]) -> None:
    gates = [make_gate(Quota(usd_per_day=0.01), run_key=key, now=lambda: NOW) for key in ("one", "two")]
    gates[0].occupy(10, 60_000)
    with pytest.raises(QuotaSpentError, match=r"\$0\.0090 of the \$0\.0100 .*CRYPTIQUE_GEMINI_USD_PER_DAY") as caught:
        gates[1].occupy(10, 10_000)
    assert caught.value.until == datetime(2026, 11, 4, 8, tzinfo=UTC)
    gates[1].occupy(10, 6_000)


def test_ongoing_work_goes_on_where_bulk_work_ends(make_gate: Callable[..., EmbeddingGate]) -> None:
    bulk, ongoing = (make_gate(Quota(texts_per_day=200), keep_back=share) for share in (0.05, 0.0))
    assert spend_until_refused(bulk, texts=4, tokens=1)[0] == 188
    assert spend_until_refused(ongoing, texts=4, tokens=1)[0] == 12


def test_what_was_refused_without_cost_is_given_back_to_its_own_day(make_gate: Callable[..., EmbeddingGate]) -> None:
    clock = [NOW]
    gate = make_gate(Quota(texts_per_day=100), now=lambda: clock[0], budget_usd=1)
    gate.occupy(10, 1_000)
    gate.give_back(0, 1_000)
    assert (gate.spending().texts, gate.spending().tokens, gate.spending().nano_usd) == (10, 0, 0)
    gate.occupy(10, 1_000)
    assert gate.spending().run_nano_usd == gate.spending().nano_usd > 0
    gate.give_back(10, 1_000)
    assert (gate.spending().texts, gate.spending().nano_usd, gate.spending().run_nano_usd) == (10, 0, 0)
    gate.occupy(10, 1_000)
    clock[0] = TOMORROW
    other = make_gate(Quota(texts_per_day=100), now=lambda: TOMORROW, run_key="other")
    other.occupy(5, 500)
    gate.give_back(10, 1_000)
    assert (gate.spending().texts, gate.spending().tokens, gate.spending().run_nano_usd) == (5, 500, 0)


def test_a_clock_that_is_behind_at_midnight_counts_into_the_new_day(make_gate: Callable[..., EmbeddingGate]) -> None:
    quota = Quota(texts_per_day=100)
    behind, ahead = (make_gate(quota, now=lambda moment=moment: moment) for moment in (NOW, TOMORROW))
    behind.occupy(10, 1)
    ahead.occupy(10, 1)
    behind.occupy(10, 1)
    assert (ahead.spending().day, ahead.spending().texts) == ("2026-11-04", 20)


def test_only_runs_with_a_budget_have_a_count_and_those_of_long_ago_are_forgotten(
    make_gate: Callable[..., EmbeddingGate], database: Database[Record]
) -> None:
    def gate_of(key: str, days: int, **chosen: Any) -> EmbeddingGate:
        return make_gate(Quota(texts_per_day=9), run_key=key, now=lambda: NOW + timedelta(days=days), **chosen)

    old = gate_of("old", 0, budget_usd=1)
    old.occupy(1, 1)
    gate_of("young", 60, budget_usd=1).occupy(1, 1)
    gate_of("no budget", 60).occupy(1, 1)
    gate_of("new", 100, budget_usd=1).occupy(1, 1)
    [row] = database["ragstore"].find()
    assert set(row["runs"]) == {"young", "new"}
    # What is given back to a forgotten run doesn't stay either.
    old.give_back(1, 1)
    gate_of("no budget", 101).occupy(1, 1)
    gate_of("no budget", 101).give_back(1, 1)
    [row] = database["ragstore"].find()
    assert (set(row["runs"]), row["texts"]) == ({"young", "new"}, 0)


# -- what one process learns, all do -----------------------------------------------------------------------


def test_a_pause_that_one_gate_was_asked_for_holds_for_another(
    limits: str, make_gate: Callable[..., EmbeddingGate], make_worker: Callable[..., Worker]
) -> None:
    make_limits(PLENTY, name=limits)
    gate = make_gate(PLENTY)
    gate.hold_back(3_600)
    gate.hold_back(1)  # a shorter pause doesn't end a longer one
    with LoopbackGemini() as server:
        outcome = run(make_worker(server, PLENTY, texts=50, seconds=0.5))
    assert (outcome.error, outcome.embedded, server.request_count) == ("StoppedError", 0, 0)


def test_a_pause_ends(make_gate: Callable[..., EmbeddingGate]) -> None:
    gate, other = make_gate(Quota(texts_per_day=100)), make_gate(Quota(texts_per_day=100))
    gate.hold_back(0.5)
    before = datetime.now(UTC)
    until = gate.spending().closed_until
    assert until is not None
    other.occupy(1, 1)
    assert before < until <= datetime.now(UTC)


def test_a_day_that_one_process_found_closed_is_closed_for_another(
    limits: str, make_gate: Callable[..., EmbeddingGate], make_worker: Callable[..., Worker]
) -> None:
    make_limits(PLENTY, name=limits)
    make_gate(PLENTY).close_for_the_day("Gemini's daily quota EmbedContentRequestsPerDay is used up.")
    with LoopbackGemini() as server:
        outcome = outcome_of(make_worker(server, PLENTY, texts=50).start(), timeout_seconds=120)
    assert (outcome.error, outcome.said) == (
        "QuotaSpentError",
        "Gemini's daily quota EmbedContentRequestsPerDay is used up.",
    )
    assert server.request_count == 0


def test_a_wait_ends_when_the_run_is_asked_to_stop(make_gate: Callable[..., EmbeddingGate]) -> None:
    stop = threading.Event()
    gate = make_gate(Quota(texts_per_day=100), stop=stop)
    gate.hold_back(3_600)
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(gate.occupy, 1, 1) for _ in range(4)]
        assert not any(one.done() for one in waiting)
        stop.set()
        assert {type(one.exception(timeout=30)) for one in waiting} == {StoppedError}
    assert gate.spending().texts == 0


def test_a_process_that_is_killed_leaves_nothing_held(
    limits: str, make_gate: Callable[..., EmbeddingGate], make_worker: Callable[..., Worker]
) -> None:
    make_limits(PLENTY, name=limits)
    arrived = threading.Event()

    def hang(index: int) -> str:
        arrived.set()
        return "slow"

    with LoopbackGemini(faults=hang, slow_seconds=60) as server:
        process: subprocess.Popen[str] = make_worker(server, PLENTY, texts=50, concurrency=1).start()
        assert arrived.wait(60)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
    gate = make_gate(PLENTY)
    gate.occupy(10, 100)
    assert gate.spending().texts == 50 + 10  # its outcome is unknown: it stays counted


# -- one request -------------------------------------------------------------------------------------------


class _Commands(CommandListener):
    def __init__(self) -> None:
        self.names: list[str] = []
        self.replies: list[Record] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.names.append(event.command_name)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        self.replies.append(dict(event.reply))

    def failed(self, event: Any) -> None:
        return


def test_a_request_that_has_room_costs_one_operation_of_the_store_and_is_told_of_no_other_run(
    mongo_uri: str, store: VectorStore, make_gate: Callable[..., EmbeddingGate]
) -> None:
    quota = Quota(texts_per_day=1_000, usd_per_day=1)
    gate = make_gate(quota, budget_usd=1, keep_back=0.05)
    gate.occupy(1, 1)
    make_gate(quota, budget_usd=1, run_key="another").occupy(1, 1)
    seen = _Commands()
    with MongoClient[Record](mongo_uri, tz_aware=True, event_listeners=[seen]) as client:
        store.close()
        store._client = client
        for _ in range(5):
            gate.occupy(1, 1)
        assert seen.names == ["findAndModify"] * 5
        assert [set(reply["value"]["runs"]) for reply in seen.replies] == [{"run"}] * 5
        gate.spending()
        (found,) = seen.replies[-1]["cursor"]["firstBatch"]
        assert set(found["runs"]) == {"run"}
        store._client = None


def test_an_embedder_without_limits_needs_no_gate(store: VectorStore) -> None:
    facts = EmbedderFacts("model", 4, "none", max_texts_per_request=10, max_tokens_per_text=100)
    assert open_gate(store, facts, run_key="run") is None
    gate = open_gate(store, facts, run_key="run", budget_usd=1.0)
    assert gate is not None
    assert gate.max_texts is None


# -- the embed stage behind the gate -----------------------------------------------------------------------


@pytest.mark.long
def test_two_processes_are_hardly_ever_refused_by_a_server_that_enforces_a_sliding_window(
    limits: str, make_worker: Callable[..., Worker]
) -> None:
    quota = Quota(texts_per_minute=300)
    window_seconds = 4.0  # so that the test sees several windows
    make_limits(quota, name=limits, window_seconds=window_seconds)
    enforced = EnforcedQuota(texts_per_minute=300, window_seconds=window_seconds)
    with LoopbackGemini(quota=enforced) as server:
        running = [make_worker(server, quota, texts=300).start() for _ in range(2)]
        outcomes = [outcome_of(process, timeout_seconds=240) for process in running]
    assert [(one.error, one.embedded) for one in outcomes] == [(None, 300)] * 2
    assert max(server.request_sizes) == 10
    assert enforced.refused_requests <= 0.01 * server.request_count
    assert enforced.accepted_texts == 600


def test_a_429_is_waited_for_by_all_and_costs_nothing(
    limits: str, make_gate: Callable[..., EmbeddingGate], make_worker: Callable[..., Worker]
) -> None:
    make_limits(PLENTY, name=limits)
    with LoopbackGemini(faults=["429", None], retry_delay_seconds=0.3) as server:
        outcome = run(make_worker(server, PLENTY, texts=150, concurrency=1, budget_usd=1.0))
    assert (outcome.error, outcome.embedded) == (None, 150)
    assert [request.status for request in server.requests] == [429, 200, 200]
    spent = make_gate(PLENTY, run_key="run-0").spending()
    assert spent.closed_until is not None
    tokens = sum(count_tokens(text) for text in server.embedded)
    assert (spent.texts, spent.tokens, spent.run_nano_usd) == (150, tokens, tokens * 150)


def test_gemini_s_own_daily_429_closes_the_day_for_everyone(
    limits: str, make_gate: Callable[..., EmbeddingGate], make_worker: Callable[..., Worker]
) -> None:
    make_limits(PLENTY, name=limits)
    enforced = EnforcedQuota(texts_per_day=250)
    with LoopbackGemini(quota=enforced) as server:
        outcome = run(make_worker(server, PLENTY, texts=1_000, concurrency=2))
    assert (outcome.error, outcome.embedded, enforced.accepted_texts) == ("QuotaSpentError", 200, 200)
    assert "EmbedContentRequestsPerDay" in outcome.said
    gate = make_gate(PLENTY)
    assert gate.spending().texts == 200
    with pytest.raises(QuotaSpentError, match="EmbedContentRequestsPerDay") as caught:
        gate.occupy(1, 1)
    assert caught.value.until == quota_day(datetime.now(UTC)).ends


def test_a_text_that_is_refused_counts_against_the_quota_and_costs_nothing(
    limits: str, make_gate: Callable[..., EmbeddingGate], make_worker: Callable[..., Worker]
) -> None:
    make_limits(PLENTY, name=limits)
    with LoopbackGemini(refused_texts=lambda text: text.endswith("000000003")) as server:
        outcome = run(make_worker(server, PLENTY, texts=100))
    assert (outcome.error, outcome.embedded) == (None, 99)
    spent = make_gate(PLENTY).spending()
    assert spent.texts == sum(server.request_sizes) > 100
    assert spent.tokens == sum(count_tokens(text) for text in server.embedded)


def test_a_service_that_nobody_runs_is_not_paid(
    limits: str, make_gate: Callable[..., EmbeddingGate], make_worker: Callable[..., Worker]
) -> None:
    make_limits(PLENTY, name=limits)
    with LoopbackGemini() as server:
        worker = make_worker(server, PLENTY, texts=10)
    outcome = run(worker)  # the server is gone
    assert outcome.error == "TransientError"
    assert "before anything was sent" in outcome.said
    assert make_gate(PLENTY).spending().texts == 0


def test_a_run_that_is_asked_to_stop_keeps_the_replies_that_arrived(
    limits: str, make_worker: Callable[..., Worker]
) -> None:
    quota = Quota(texts_per_minute=600)
    make_limits(quota, name=limits)
    with LoopbackGemini() as server:
        outcome = run(make_worker(server, quota, texts=1_000, seconds=2))
    assert outcome.error == "StoppedError"
    assert outcome.embedded == sum(server.embedded.values()) > 0
