"""The quota of embedding, shared by all threads, processes and machines: Prefect's limits and the store's record.

A minute's texts and tokens are two global concurrency limits of the Prefect server, used as rate limits. The day's
texts and dollars, the dollars of a run with a budget and the pauses that Gemini asks for are one record of the vector
store.

Prefect's own ``rate_limit`` is not used: its wait is random, for a whole batch's time on average, whatever is free
already, and so it leaves a third of a quota and more unused. Here the wait is computed from what the limit holds.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from blocks.vector_store import VectorStore
from tasks.domain.errors import BudgetSpentError, QuotaSpentError, StoppedError, TerminalError, TransientError
from tasks.domain.quotas import (
    SLOTS_PER_TEXT,
    SLOTS_PER_TOKEN,
    Allowance,
    Bucket,
    Quota,
    Spending,
    cost_nano_usd,
    largest_batch,
    quota_day,
    text_bucket,
    token_bucket,
    wait_before,
)
from tasks.domain.vectors import EmbedderFacts

#: The name of the spending record, and of the limits before ``-texts`` and ``-tokens``.
GEMINI_QUOTA: Final = "cryptique-gemini"

#: How long a wait for one's turn goes on after the run was asked to stop.
_STOP_SECONDS = 0.2
#: Processes that wait for the same slots come back within this time, so that they rarely meet.
_JITTER_SECONDS = 0.05
_PREFECT_TIMEOUT_SECONDS = 30.0
_LOCKED, _UNPROCESSABLE = 423, 422
_REGISTER = "run `cryptique-rag register` with the environment set"


def make_limits(quota: Quota, *, name: str = GEMINI_QUOTA, window_seconds: float = 60.0) -> list[str]:
    """Create or update the Prefect limits that a quota needs; return their names. Safe to repeat.

    A limit that is no longer wanted becomes inactive: it lets everything pass, also what runs already. Nothing is
    written where nothing differs. Raises ``TransientError`` if the server doesn't answer.
    """
    wanted = {
        f"{name}-texts": text_bucket(quota, window_seconds=window_seconds),
        f"{name}-tokens": token_bucket(quota, window_seconds=window_seconds),
    }
    with _prefect_errors("making limits"), _connect() as client:
        for limit_name, bucket in wanted.items():
            if bucket is None:
                _deactivate(client, limit_name)
            else:
                _make_limit(client, limit_name, bucket)
    return [limit_name for limit_name, bucket in wanted.items() if bucket is not None]


def _make_limit(client: SyncPrefectClient, name: str, bucket: Bucket) -> None:
    limit, decay = bucket.capacity, bucket.decay_per_second
    try:
        found = client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        try:
            client.create_global_concurrency_limit(
                GlobalConcurrencyLimitCreate(name=name, limit=limit, slot_decay_per_second=decay)
            )
            return
        except ObjectAlreadyExists:  # another process was quicker
            found = client.read_global_concurrency_limit_by_name(name)
    if (found.limit, found.slot_decay_per_second, found.active) != (limit, decay, True):
        client.update_global_concurrency_limit(
            name, GlobalConcurrencyLimitUpdate(limit=limit, slot_decay_per_second=decay, active=True)
        )


def _deactivate(client: SyncPrefectClient, name: str) -> None:
    try:
        if client.read_global_concurrency_limit_by_name(name).active:
            client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(active=False))
    except ObjectNotFound:
        return


def open_gate(
    store: VectorStore,
    facts: EmbedderFacts,
    *,
    run_key: str,
    keep_back: float = 0.0,
    budget_usd: float | None = None,
    stop: threading.Event | None = None,
) -> EmbeddingGate | None:
    """Return the gate of a run, or None for an embedder without any limit in a run without a budget.

    ``keep_back`` is the share of the day that is left to others: bulk work must not use up what ongoing work needs.
    """
    quota = Quota.of(facts)
    if quota.unlimited and budget_usd is None:
        return None
    return EmbeddingGate(
        store,
        quota,
        facts.usd_per_million_tokens,
        run_key=run_key,
        keep_back=keep_back,
        budget_usd=budget_usd,
        stop=stop,
    )


class StoreClock:
    """Tells the time by the store's clock, asked once, whatever this machine's says or is set to.

    All processes count into the same days: one whose clock is ahead would begin days that never end for the others.
    """

    def __init__(self, store: VectorStore) -> None:
        self._store = store
        self._ahead: float | None = None

    def __call__(self) -> datetime:
        """Return the moment it is."""
        if self._ahead is None:
            self._ahead = self._store.read_time().timestamp() - time.monotonic()
        return datetime.fromtimestamp(self._ahead + time.monotonic(), UTC)


def _gate_again(
    store: VectorStore,
    quota: Quota,
    usd_per_million_tokens: float,
    run_key: str,
    name: str,
    keep_back: float,
    budget_usd: float | None,
) -> EmbeddingGate:
    return EmbeddingGate(
        store,
        quota,
        usd_per_million_tokens,
        run_key=run_key,
        name=name,
        keep_back=keep_back,
        budget_usd=budget_usd,
    )


class EmbeddingGate:
    """The ``Gate`` of one run; its threads pass one at a time, in the order in which they came.

    A request costs one small call to the Prefect server for each limit of a minute, two for a limit that is short,
    and one operation of MongoDB.
    Counts are all that is held: a process that is killed leaves nothing to clear up. Make it in the thread of the
    flow, whose Prefect settings it takes over, and ``close`` it when the run ends.
    """

    def __init__(
        self,
        store: VectorStore,
        quota: Quota,
        usd_per_million_tokens: float,
        *,
        run_key: str,
        name: str = GEMINI_QUOTA,
        keep_back: float = 0.0,
        budget_usd: float | None = None,
        stop: threading.Event | None = None,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self._made_with = (store, quota, usd_per_million_tokens, run_key, name, keep_back, budget_usd)
        self._store = store
        self._name = name
        self._run_key = run_key
        self._usd_per_million_tokens = usd_per_million_tokens
        self._allowance = Allowance.of(quota, keep_back=keep_back, budget_usd=budget_usd)
        self._largest = largest_batch(quota, usd_per_million_tokens=usd_per_million_tokens, budget_usd=budget_usd)
        self._stop = stop or threading.Event()
        self._now = now or StoreClock(store)
        self._line = _Line()
        #: The day on which a thread's last request was counted.
        self._counted_by_thread = threading.local()
        self._was_refused = False
        minute = {
            f"{name}-texts": quota.texts_per_minute is not None,
            f"{name}-tokens": quota.tokens_per_minute is not None,
        }
        self._limits = _MinuteLimits([limit for limit, wanted in minute.items() if wanted], self._pause)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Leave line and connections behind: a copy in another process waits in a line of its own."""
        return (_gate_again, self._made_with)

    @property
    def max_texts(self) -> int | None:
        """Return how many texts a batch should hold at most; None means any number."""
        return self._largest[0]

    @property
    def max_tokens(self) -> int | None:
        """Return how many tokens a batch should hold at most; None means any number."""
        return self._largest[1]

    def occupy(self, texts: int, tokens: int) -> None:
        """Wait until a request of this size may be sent, and count it; the contract is ``Gate.occupy``'s."""
        with self._line.turn(self._check_stop):
            if self._was_refused:
                # Others of this process need not wait for a minute's slots to learn the same.
                self._wait_before(self.spending(), texts, tokens)
                self._was_refused = False
            slots = {
                f"{self._name}-texts": texts * SLOTS_PER_TEXT,
                f"{self._name}-tokens": tokens * SLOTS_PER_TOKEN,
            }
            while True:
                self._check_stop()
                # The minute first: what the day's record says is then from the moment before the request.
                self._limits.occupy(slots)
                wait_s = self._count(texts, tokens)
                if wait_s is None:
                    return
                self._pause(wait_s + random.uniform(0, _JITTER_SECONDS))

    def give_back(self, texts: int, tokens: int) -> None:
        """Take back from the day's and the run's count; the contract is ``Gate.give_back``'s."""
        now = self._now()
        self._store.give_back_spending(
            self._name,
            None if self._allowance.run_nano_usd is None else self._run_key,
            day=getattr(self._counted_by_thread, "day", quota_day(now).name),
            texts=texts,
            tokens=tokens,
            nano_usd=cost_nano_usd(tokens, self._usd_per_million_tokens),
            now=now,
        )

    def hold_back(self, seconds: float) -> None:
        """Let every process wait this long before its next request; a shorter wait never ends a longer one."""
        now = self._now()
        self._store.close_spending(self._name, until=now + timedelta(seconds=seconds), now=now)

    def close_for_the_day(self, reason: str) -> None:
        """Let every process stop until the service's next day, with this reason."""
        now = self._now()
        self._store.close_spending(self._name, until=quota_day(now).ends, now=now, reason=reason)

    def spending(self) -> Spending:
        """Return what was spent today by all, and by this run on all days if it has a budget."""
        return self._store.load_spending(self._name, self._run_key, now=self._now())

    def close(self) -> None:
        """Close the connection to the Prefect server. Safe to repeat."""
        self._limits.close()

    def _count(self, texts: int, tokens: int) -> float | None:
        """Count a request and return None, or how many seconds to wait before the next attempt."""
        now = self._now()
        counted, spending = self._store.reserve_spending(
            self._name,
            self._run_key,
            texts=texts,
            tokens=tokens,
            nano_usd=cost_nano_usd(tokens, self._usd_per_million_tokens),
            allowance=self._allowance,
            now=now,
        )
        if counted:
            self._counted_by_thread.day = spending.day
            return None
        return self._wait_before(spending, texts, tokens)

    def _wait_before(self, spending: Spending, texts: int, tokens: int) -> float:
        nano_usd = cost_nano_usd(tokens, self._usd_per_million_tokens)
        try:
            return wait_before(spending, self._allowance, texts=texts, nano_usd=nano_usd, now=self._now())
        except (QuotaSpentError, BudgetSpentError):
            self._was_refused = True
            raise

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise StoppedError

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise StoppedError


class _Line:
    """Lets threads through one at a time, in the order in which they came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def turn(self, check_stop: Callable[[], None]) -> Iterator[None]:
        """Wait for one's turn and hold it; ``check_stop`` ends the wait by what it raises."""
        place = object()
        with self._changed:
            self._waiting.append(place)
        try:
            with self._changed:
                while self._waiting[0] is not place:
                    check_stop()
                    self._changed.wait(_STOP_SECONDS)
            yield
        finally:
            with self._changed:
                self._waiting.remove(place)
                self._changed.notify_all()


class _MinuteLimits:
    """Prefect's limits of a minute, in a fixed order, over one connection that is kept."""

    def __init__(self, names: list[str], pause: Callable[[float], None]) -> None:
        self._names = names
        self._pause = pause
        #: Limits that were nearly full of late: these are looked at before they are asked.
        self._short: set[str] = set()
        self._client: SyncPrefectClient | None = None
        if names:
            self._client = _connect().__enter__()

    def occupy(self, slots: dict[str, int]) -> None:
        """Occupy slots of every limit, once all have them at the same time; more than a limit holds in parts."""
        left = {name: slots[name] for name in self._names if slots[name] > 0}
        while left:
            with _prefect_errors("reading limits"):
                seen = {name: self._read(name) for name in left if name in self._short}
            parts = {name: min(more, seen[name].limit) if name in seen else more for name, more in left.items()}
            wait_s = max((_seconds_until(limit, parts[name]) for name, limit in seen.items()), default=0.0)
            if wait_s > 0:
                self._pause(wait_s + random.uniform(0, _JITTER_SECONDS))
            refused = self._occupy_all(parts)
            if refused is None:
                left = {name: more for name, part in parts.items() if (more := left[name] - part)}
                relaxed = {name for name, limit in seen.items() if limit.active_slots + parts[name] < limit.limit / 2}
                self._short -= relaxed
            else:  # not looked at before, or another process was quicker
                self._short.add(refused)
                self._pause(random.uniform(0, _JITTER_SECONDS))

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.__exit__(None, None, None)

    def _occupy_all(self, parts: dict[str, int]) -> str | None:
        """Occupy all or nothing; return the name of a limit that has no room, or None.

        What was held while another limit has no room would empty before it is used.
        """
        done: list[str] = []
        with _prefect_errors("occupying limits"):
            for name, slots in parts.items():
                if not self._increment(name, slots):
                    for other in done:
                        self._open_client().release_concurrency_slots([other], parts[other], occupancy_seconds=0.1)
                    return name
                done.append(name)
        return None

    def _read(self, name: str) -> GlobalConcurrencyLimitResponse:
        try:
            limit = self._open_client().read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            raise _not_registered(name) from None
        if limit.active and (limit.limit <= 0 or limit.slot_decay_per_second <= 0):
            raise TerminalError(f"the Prefect server's limit {name} lets nothing pass or never empties: {_REGISTER}")
        return limit

    def _increment(self, name: str, slots: int) -> bool:
        try:
            reply = self._open_client().increment_concurrency_slots([name], slots, "rate_limit")
        except httpx.HTTPStatusError as error:
            # No room, or not even when it is empty.
            if error.response.status_code in (_LOCKED, _UNPROCESSABLE):
                return False
            raise
        if not reply.json():  # a limit that doesn't exist refuses nothing
            raise _not_registered(name)
        return True

    def _open_client(self) -> SyncPrefectClient:
        if self._client is None:
            raise RuntimeError("the gate is closed")
        return self._client


def _not_registered(name: str) -> TerminalError:
    return TerminalError(f"the limit {name} is not registered with this Prefect server: {_REGISTER}")


def _seconds_until(limit: GlobalConcurrencyLimitResponse, slots: int) -> float:
    """Return how long a limit needs to have room for these slots; an inactive one lets all pass."""
    missing = limit.active_slots + slots - limit.limit
    return missing / limit.slot_decay_per_second if limit.active and missing > 0 else 0.0


def _connect() -> SyncPrefectClient:
    """Return a client of our own. With other settings than a run's it is not the run's, which ends with the run."""
    try:
        return get_client(httpx_settings={"timeout": _PREFECT_TIMEOUT_SECONDS}, sync_client=True)
    except ValueError:
        raise TerminalError("no Prefect server is known: set PREFECT_API_URL") from None


@contextmanager
def _prefect_errors(doing: str) -> Iterator[None]:
    """Turn the errors of Prefect's client into ours."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise TerminalError(
                f"the Prefect server refuses this process while {doing} (HTTP {status}): check PREFECT_API_AUTH_STRING "
                "and PREFECT_API_KEY"
            ) from None
        if status in (408, 429) or status >= 500:
            raise TransientError(f"the Prefect server can't answer while {doing} (HTTP {status})") from error
        raise TerminalError(f"the Prefect server refuses {doing} (HTTP {status}): {_REGISTER}") from error
    except httpx.HTTPError as error:
        raise TransientError(f"the Prefect server does not answer while {doing} ({type(error).__name__})") from error
