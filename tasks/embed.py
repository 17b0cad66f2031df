"""Embed: a vector for every chunk that needs one; each text is paid for once a run, whatever happens."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from bson import ObjectId
from prefect import task
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from blocks.meters import METER
from blocks.shards import PaidTexts, ShardStore, TableSink
from tasks.domain.batches import batched
from tasks.domain.dead_letters import DeadLetter
from tasks.domain.errors import (
    NotSentError,
    PipelineError,
    QuotaSpentError,
    RecordError,
    StoppedError,
    ThrottledError,
    TransientError,
)
from tasks.domain.quotas import Gate
from tasks.domain.rows import Verdict
from tasks.domain.runs import Run
from tasks.domain.shards import Shard
from tasks.domain.tables import to_table
from tasks.domain.vectors import Embedder, Matrix, pack_batches
from tasks.policy import DEFAULT_RETRIES, STAGE

#: A request that fails is tried again here, so that a shard doesn't start over for one of its fifty requests;
#: when that is spent, the task's own retry takes what is still missing.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0
_TEXTS_AT_ONCE = 500
_VECTORS = pa.schema([("content_hash", pa.large_binary()), ("vector", pa.large_binary())])


class Slots:
    """How many requests one process has under way, whichever shards they are for; ``number`` of them.

    The shard that came first goes first: if all went at once they would end at once, and the embedder would wait while
    they are written and the next ones read. A copy in another process has slots of its own.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._waited_s = 0.0
        self._begun: dict[object, float] = {}
        self._free = number
        self._places = count()
        self._waiting: list[int] = []
        self._changed = threading.Condition()

    def join(self) -> int:
        """Return the place in the line of who comes now."""
        return next(self._places)

    @contextmanager
    def taken(self, place: int) -> Iterator[None]:
        """Hold a slot, once one is free and nobody waits who came before."""
        with self._changed:
            heappush(self._waiting, place)
            self._changed.wait_for(lambda: self._free > 0 and self._waiting[0] == place)
            heappop(self._waiting)
            self._free -= 1
            began, used = time.monotonic(), time.thread_time()
            mine = object()
            self._begun[mine] = began
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                del self._begun[mine]
                self._waited_s += max(0.0, time.monotonic() - began - (time.thread_time() - used))
                self._changed.notify_all()

    @property
    def waited_s(self) -> float:
        """Return the seconds in which requests were under way and did nothing here but wait, all slots added up."""
        with self._changed:
            now = time.monotonic()
            return self._waited_s + sum(now - began for began in self._begun.values())

    def __reduce__(self) -> tuple[type[Slots], tuple[int]]:
        return (Slots, (self.number,))


@dataclass(frozen=True, slots=True)
class _Text:
    hash: bytes
    text: str
    tokens: int


@task(name="embed", task_run_name="embed {shard.number}", **STAGE)
def embed_shard(
    run: Run,
    shard: Shard,
    store: ShardStore,
    embedder: Embedder,
    slots: Slots,
    gate: Gate | None = None,
    stop: threading.Event | None = None,
) -> Shard:
    """Return the shard with a vector kept for each text; chunks whose text the embedder refuses become dead letters.

    What it pays for stays where it is kept; ``rows`` are then the vectors that it has from other shards.

    Requests share the ``slots`` of their process and are let through by the ``gate``. Every reply is kept at once, so a
    repeat asks only for what is missing. Raises ``TransientError`` when texts are left after the retries,
    ``TerminalError``, ``QuotaSpentError`` and ``BudgetSpentError`` at once, ``StoppedError`` once ``stop`` is set.
    """
    service = _Service(embedder, slots, slots.join(), gate, stop or threading.Event())
    chunks = store.read_table(shard.rows)
    reasons: dict[bytes, RecordError] = {}
    name = f"{shard.number:06d}"
    with (
        store.paid_texts(run.key, shard=shard.number) as paid,
        store.open_table(run.key, f"{name}.vectors", _VECTORS) as sink,
    ):
        # What the shard paid for itself is read from where it is kept; the file holds what it has from others.
        own = {key for reply in paid.replies_of(shard.number) for key in reply.hashes}
        wanted = [text for text in _texts_to_embed(chunks) if text.hash not in own]
        missing = _write_known(wanted, paid, sink)
        METER.add("embed", at=datetime.now(UTC), reused=len(wanted) - len(missing))
        while missing:
            mine, others = paid.claim([text.hash for text in missing])
            claimed = set(mine)
            try:
                # Another shard may have kept some of them between the look and the claim.
                todo = _write_known([text for text in missing if text.hash in claimed], paid, sink)
                reasons.update(_embed(todo, service, paid, shard.number))
            finally:
                paid.release(mine)
            paid.wait(others)
            # What another shard had claimed and did not get is this one's to ask for.
            missing = _write_known([text for text in missing if text.hash not in claimed], paid, sink)
        embedded, tokens = paid.paid_by(shard.number)
    letters = list(_refused(run.scope.source, chunks, reasons))
    refused = store.write_table(run.key, f"{name}.refused-embed", to_table(DeadLetter, letters))
    moved = shard.moved_on(sink.file, refused)
    return replace(moved, chunks=shard.rows, embedded=embedded, tokens=tokens)


def _write_known(texts: Sequence[_Text], paid: PaidTexts, sink: TableSink) -> list[_Text]:
    """Write the vectors that were paid for already; return the texts that have none."""
    missing: list[_Text] = []
    for some in batched(texts, _TEXTS_AT_ONCE):
        found = paid.find([text.hash for text in some])
        if found:
            sink.write(_vector_table(list(found), np.stack(list(found.values()))))
        missing.extend(text for text in some if text.hash not in found)
    return missing


def _vector_table(hashes: Sequence[bytes], vectors: Matrix) -> pa.Table:
    """Return hashes and vectors as columns; the vectors are not copied."""
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    offsets = np.arange(len(hashes) + 1, dtype=np.int64) * (rows.shape[1] * rows.itemsize)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(rows)]
    columns = [pa.array(hashes, type=pa.large_binary()), pa.Array.from_buffers(pa.large_binary(), len(hashes), buffers)]
    return pa.Table.from_arrays(columns, schema=_VECTORS)


def _texts_to_embed(chunks: pa.Table) -> Iterator[_Text]:
    """Yield each distinct text that needs a vector, in order of first appearance."""
    wanted = chunks.filter(
        pc.is_in(chunks.column("verdict"), value_set=pa.array([v for v in Verdict if v.needs_vector]))
    )
    seen: set[bytes] = set()
    columns = (wanted.column(name).to_pylist() for name in ("content_hash", "text", "tokens"))
    for key, text, tokens in zip(*columns, strict=True):
        if key not in seen:
            seen.add(key)
            yield _Text(key, text, tokens)


@dataclass(frozen=True, slots=True)
class _Service:
    """The embedder behind its gate: every attempt is counted, and what was refused without cost is not."""

    embedder: Embedder
    slots: Slots
    place: int
    gate: Gate | None
    stop: threading.Event

    def batches(self, texts: Sequence[_Text]) -> list[Sequence[_Text]]:
        """Return the texts in order, in batches that the embedder takes and the gate lets through."""
        facts, gate = self.embedder.facts, self.gate
        tokens = [most for most in (facts.max_tokens_per_request, gate.max_tokens if gate else None) if most]
        packed = pack_batches(
            [text.tokens for text in texts],
            max_texts=min(facts.max_texts_per_request, (gate.max_texts if gate else None) or len(texts)),
            max_tokens=min(tokens, default=None),
        )
        return [texts[part] for part in packed]

    def embed(self, batch: Sequence[_Text]) -> Matrix:
        """Return the vectors of one request, tried again while it may help. Errors as in ``embed_shard``."""
        vectors: Matrix = Retrying(
            stop=stop_after_attempt(1 + DEFAULT_RETRIES),
            wait=partial(_wait_s, gated=self.gate is not None),
            retry=retry_if_exception_type(TransientError),
            sleep=self._sleep,
            reraise=True,
        )(self._in_turn, batch)
        return vectors

    def _in_turn(self, batch: Sequence[_Text]) -> Matrix:
        with self.slots.taken(self.place):
            return self._attempt(batch)

    def _attempt(self, batch: Sequence[_Text]) -> Matrix:
        if self.stop.is_set():
            raise StoppedError
        texts, gate = [text.text for text in batch], self.gate
        tokens = sum(text.tokens for text in batch)
        if gate is None:
            return self._ask(texts, tokens)
        gate.occupy(len(texts), tokens)
        try:
            return self._ask(texts, tokens)
        except ThrottledError as error:
            gate.give_back(len(texts), tokens)
            if error.retry_after_seconds is not None:
                gate.hold_back(error.retry_after_seconds)
            raise
        except NotSentError:
            gate.give_back(len(texts), tokens)
            raise
        except QuotaSpentError as error:
            gate.give_back(len(texts), tokens)
            gate.close_for_the_day(str(error))
            raise
        except RecordError:
            # Google charges nothing for a request that it answers with 400, but counts it against the quota.
            gate.give_back(0, tokens)
            raise

    def _ask(self, texts: list[str], tokens: int) -> Matrix:
        """Return the vectors of one call, and count what became of it."""
        usd = tokens * self.embedder.facts.usd_per_million_tokens / 1_000_000
        began = time.monotonic()

        def count(**more: Any) -> None:
            METER.count("embed", at=datetime.now(UTC), seconds=time.monotonic() - began, **more)

        try:
            vectors = self.embedder.embed_documents(texts)
        except RecordError:
            # The text is at fault: the embedder did what it should.
            count()
            raise
        except PipelineError as error:
            count(error=type(error).__name__, throttled=isinstance(error, ThrottledError | QuotaSpentError))
            raise
        count(texts=len(texts), tokens=tokens, usd=usd)
        return vectors

    def _sleep(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise StoppedError


def _embed(texts: Sequence[_Text], service: _Service, paid: PaidTexts, shard: int) -> dict[bytes, RecordError]:
    """Embed and keep all texts; return those that the embedder refuses, with its reason."""
    batches = service.batches(texts)
    reasons: dict[bytes, RecordError] = {}
    failures: list[TransientError] = []
    with ThreadPoolExecutor(max_workers=service.slots.number, thread_name_prefix="embed") as pool:
        futures = {pool.submit(_embed_batch, batch, service, paid, shard) for batch in batches}
        try:
            while futures:
                done, futures = wait(futures, return_when=FIRST_COMPLETED)
                for future in done:
                    try:
                        reasons.update(future.result())
                    except TransientError as error:
                        failures.append(error)
        except BaseException:
            # What can't succeed must not be asked for forty more times.
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if failures:
        raise TransientError(
            f"{len(failures)} of {len(batches)} embedding requests of shard {shard} failed; the others are kept. "
            f"The last failure: {failures[-1]}"
        )
    return reasons


def _embed_batch(batch: Sequence[_Text], service: _Service, paid: PaidTexts, shard: int) -> dict[bytes, RecordError]:
    """Embed and keep one request's texts; return those that are refused.

    If the service refuses the request, it is halved until the refused texts stand alone.
    """
    try:
        vectors = service.embed(batch)
    except RecordError as error:
        if len(batch) == 1:
            return {batch[0].hash: error}
        middle = len(batch) // 2
        return _embed_batch(batch[:middle], service, paid, shard) | _embed_batch(batch[middle:], service, paid, shard)
    paid.keep([text.hash for text in batch], vectors, tokens=[text.tokens for text in batch], shard=shard)
    return {}


def _wait_s(state: RetryCallState, *, gated: bool) -> float:
    """Return what the service asked for, else exponential backoff; both with jitter, so that requests spread.

    What it asked for is waited for at the gate, where there is one, by all alike.
    """
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_seconds if isinstance(error, TransientError) else None
    jitter = random.uniform(1.0, 1.5)
    if asked is not None:
        return 0.0 if gated and isinstance(error, ThrottledError) else min(asked, _LONGEST_WAIT_S) * jitter
    backoff: float = _FIRST_WAIT_S * 2 ** (state.attempt_number - 1)
    return min(backoff, _LONGEST_WAIT_S) * jitter


def _refused(source: str, chunks: pa.Table, reasons: dict[bytes, RecordError]) -> Iterator[DeadLetter]:
    """Yield one dead letter per record that has a refused text."""
    if not reasons:
        return
    names = ("record_id", "team_id", "holder_id", "key", "content_hash", "text")
    seen: set[str] = set()
    for record_id, team_id, holder_id, key, text_hash, text in zip(
        *(chunks.column(name).to_pylist() for name in names), strict=True
    ):
        error = reasons.get(text_hash)
        if error is not None and record_id not in seen:
            seen.add(record_id)
            yield DeadLetter.from_error(
                error,
                source=source,
                stage="embed",
                record={"_id": ObjectId(record_id), "holderId": holder_id, "key": key, "text": text},
                team_id=team_id,
                holder_id=holder_id,
            )
