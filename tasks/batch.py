"""Batch: a shard's texts go up as jobs of Gemini's and come back hours later, at half the price, into what the run has
paid for; the embed stage finds them there."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import get_run_logger, task
from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from blocks.gemini import GeminiEmbedder
from blocks.gemini_batches import BatchFacts, BatchGoneError, BatchJob
from blocks.meters import METER
from blocks.quota import GEMINI_QUOTA
from blocks.shards import PaidTexts, ShardStore
from blocks.vector_store import VectorStore
from tasks.domain.batches import batched
from tasks.domain.errors import (
    NotSentError,
    PipelineError,
    QuotaSpentError,
    RecordError,
    StoppedError,
    TerminalError,
    ThrottledError,
    TransientError,
)
from tasks.domain.manifests import BATCH_PRICE_SHARE
from tasks.domain.quotas import Allowance, cost_nano_usd, wait_before
from tasks.domain.rows import Verdict
from tasks.domain.runs import Run
from tasks.domain.shards import Shard, ShardFile
from tasks.domain.tables import to_table
from tasks.domain.vectors import Matrix, pack_batches
from tasks.policy import DEFAULT_RETRIES, STAGE

#: Fewer texts than this are one ordinary request: a job would save a fraction of a cent and take hours.
FEWEST_TEXTS = 100
_TEXTS_AT_ONCE = 500
#: Vectors that arrive are kept at once, so many together: a megabyte.
_KEPT_AT_ONCE = 200
#: What is refused in these ways made no job, and costs nothing.
_NOT_TAKEN = (ThrottledError, NotSentError, QuotaSpentError, TerminalError)
#: A wait for one's turn is as long as it was asked for, and a little.
_A_LITTLE_S = 0.05

Outcome = Literal["collected", "given up"]


@dataclass(frozen=True, slots=True)
class WaitingText:
    """A row of a submission's file: a text that needs a vector, and the shard that gets it one."""

    content_hash: bytes
    text: str
    tokens: int
    holder: int


@dataclass(frozen=True, slots=True)
class Submission:
    """Texts of a shard that go up as one job, and what became of them. ``part`` numbers those of one shard.

    ``file`` holds ``texts`` texts of ``tokens`` tokens for the job, and beside them those that wait for other shards'
    jobs. Without ``has_job`` it waits only for these. ``reserved_on`` is Google's day on which its price was reserved;
    ``paid_tokens`` are those whose vectors came. An ``outcome`` is the end of it.
    """

    shard: int
    part: int
    file: ShardFile
    texts: int
    tokens: int
    has_job: bool = True
    attempt: int = 1
    reserved_on: str | None = None
    outcome: Outcome | None = None
    paid_tokens: int = 0

    def display_name(self, run_key: str) -> str:
        """Return the name by which the service and every process know the job of this attempt."""
        return f"{jobs_prefix(run_key, self.shard)}{self.part}/{self.attempt}"

    def to_record(self) -> dict[str, Any]:
        """Return it as plain values, for the record of its run."""
        return {
            "part": self.part,
            "file": [self.file.rows, self.file.size_bytes, self.file.checksum],
            "texts": self.texts,
            "tokens": self.tokens,
            "hasJob": self.has_job,
            "attempt": self.attempt,
            "reservedOn": self.reserved_on,
            "outcome": self.outcome,
            "paidTokens": self.paid_tokens,
        }

    @classmethod
    def from_record(cls, run_key: str, shard: int, record: Mapping[str, Any]) -> Submission:
        """Return the submission that ``to_record`` was called on."""
        return cls(
            shard,
            record["part"],
            ShardFile(f"{run_key}/{_file_name(shard, record['part'])}", *record["file"]),
            record["texts"],
            record["tokens"],
            record["hasJob"],
            record["attempt"],
            record["reservedOn"],
            record["outcome"],
            record["paidTokens"],
        )


def jobs_prefix(run_key: str, shard: int | None = None) -> str:
    """Return what the display names of a run's jobs begin with, or those of one shard."""
    return f"cryptique-rag/{run_key}/" + ("" if shard is None else f"{shard:06d}/")


def _file_name(shard: int, part: int) -> str:
    # Not named as the stages' files are: it outlives them, until the run is over.
    return f"batch-{shard:06d}-{part}"


@dataclass(frozen=True, slots=True)
class Purse:
    """What the jobs of a run may spend: of the day, at the batch price, and of the run's budget if it has one.

    The record is the one that ordinary requests count in. What a minute allows does not concern jobs.
    """

    vectors: VectorStore
    allowance: Allowance
    usd_per_million_tokens: float
    run_key: str

    def reserve(self, texts: int, tokens: int, stop: threading.Event) -> str:
        """Count a job before it is submitted, and return the day on which it counts.

        Waits while the service asked all requests to wait. Raises ``QuotaSpentError`` and ``BudgetSpentError`` where
        the day or the budget has no room, ``TerminalError`` where no day has.
        """
        nano_usd, most = cost_nano_usd(tokens, self.usd_per_million_tokens), self.allowance
        while True:
            now = self.vectors.read_time()
            counted, spending = self.vectors.reserve_spending(
                GEMINI_QUOTA, self.run_key, texts=texts, tokens=tokens, nano_usd=nano_usd, allowance=most, now=now
            )
            if counted:
                return spending.day
            if texts > (most.day_texts or texts) or nano_usd > (most.day_nano_usd or nano_usd):
                raise TerminalError(
                    f"a batch job of {texts:,} texts and ${nano_usd / 1e9:.4f} is more than a whole day allows here: "
                    "raise CRYPTIQUE_GEMINI_TEXTS_PER_DAY and CRYPTIQUE_GEMINI_USD_PER_DAY, or run it without batch"
                )
            wait_s = wait_before(spending, most, texts=texts, nano_usd=nano_usd, now=now)
            if stop.wait(wait_s + _A_LITTLE_S):
                raise StoppedError

    def give_back(self, day: str, texts: int, tokens: int) -> None:
        """Take back what was reserved on a day and not spent."""
        self.vectors.give_back_spending(
            GEMINI_QUOTA,
            None if self.allowance.run_nano_usd is None else self.run_key,
            day=day,
            texts=texts,
            tokens=tokens,
            nano_usd=cost_nano_usd(tokens, self.usd_per_million_tokens),
            now=self.vectors.read_time(),
        )


# -- submitting ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """The texts that a shard gets vectors for itself: in jobs, or in the ordinary way if there are no submissions.

    ``hashes`` are these texts; ``after`` are the shards whose jobs hold others that it needs.
    """

    submissions: tuple[Submission, ...]
    hashes: pa.Array
    after: frozenset[int] = frozenset()


@task(name="choose", task_run_name="choose {shard.number}", **STAGE)
def choose_texts(
    run: Run,
    shard: Shard,
    store: ShardStore,
    facts: BatchFacts,
    held: pa.Table,
    waiting: Collection[int],
    first_part: int = 0,
) -> Choice:
    """Write which texts of a chunked shard go up as jobs: those that have no vector and that no other shard gets one.

    ``held`` tells the texts that other shards get vectors for (``content_hash``, ``holder``), ``waiting`` which of
    those shards wait for jobs. Fewer than a hundred texts go the ordinary way, at once or after those jobs. Writes
    only the submissions' files; safe to repeat.
    """
    missing = _missing_texts(run, shard, store)
    positions = pc.index_in(
        pa.array([text.content_hash for text in missing], pa.large_binary()),
        value_set=held.column("content_hash").combine_chunks(),
    )
    holders = held.column("holder").combine_chunks().take(positions).to_pylist()
    own = [text for text, holder in zip(missing, holders, strict=True) if holder is None]
    others = [
        replace(text, text="", holder=holder)
        for text, holder in zip(missing, holders, strict=True)
        if holder in waiting
    ]
    hashes = pa.array([text.content_hash for text in own], pa.large_binary())
    after = frozenset(text.holder for text in others)
    has_job = len(own) >= FEWEST_TEXTS
    if not has_job and not after:
        return Choice((), hashes)
    parts = [slice(None)]
    if has_job:
        tokens = [text.tokens for text in own]
        parts = list(pack_batches(tokens, max_texts=facts.max_texts_per_job, max_tokens=facts.max_tokens_per_job))
    submissions = []
    for part, texts in enumerate((own[some] for some in parts), first_part):
        rows = [*texts, *others] if part == first_part else texts
        file = store.write_table(run.key, _file_name(shard.number, part), to_table(WaitingText, rows))
        submissions.append(
            Submission(shard.number, part, file, len(texts), sum(text.tokens for text in texts), has_job)
        )
    return Choice(tuple(submissions), hashes, after)


def _missing_texts(run: Run, shard: Shard, store: ShardStore) -> list[WaitingText]:
    """Return each distinct text of a chunked shard that needs a vector and was not paid for, as one of its own."""
    chunks = store.read_table(shard.rows)
    needing = pa.array([verdict for verdict in Verdict if verdict.needs_vector])
    wanted = chunks.filter(pc.is_in(chunks.column("verdict"), value_set=needing))
    columns = (wanted.column(name).to_pylist() for name in ("content_hash", "text", "tokens"))
    texts: dict[bytes, WaitingText] = {}
    for key, text, tokens in zip(*columns, strict=True):
        texts.setdefault(key, WaitingText(key, text, tokens, shard.number))
    with store.paid_texts(run.key, shard=shard.number) as paid:
        known = _find_known(paid, list(texts))
    return [text for key, text in texts.items() if key not in known]


def _find_known(paid: PaidTexts, hashes: Sequence[bytes]) -> set[bytes]:
    """Return which texts have a vector; memory holds the vectors of some at a time."""
    return {key for some in batched(hashes, _TEXTS_AT_ONCE) for key in paid.find(some)}


#: It tries again itself: a price that was reserved must not be reserved again.
@task(name="submit", task_run_name="submit {submission.shard}", **{**STAGE, "retries": 0})
def submit_texts(
    run: Run,
    submission: Submission,
    store: ShardStore,
    embedder: GeminiEmbedder,
    purse: Purse | None,
    stop: threading.Event,
) -> Submission:
    """Start the submission's job, unless it is there already, and return the submission with its price reserved.

    One whose vectors are all there is over, and needs no job. Safe to repeat. Raises ``ThrottledError`` while the
    service takes no further job, ``QuotaSpentError`` and ``BudgetSpentError`` while the day or the budget has no room
    for it: there is no job then, and nothing reserved.
    """
    tries = Retrying(
        stop=stop_after_attempt(1 + DEFAULT_RETRIES),
        wait=wait_random_exponential(multiplier=1.0, max=30.0),
        retry=retry_if_exception_type(TransientError) & retry_if_not_exception_type(ThrottledError),
        sleep=partial(_sleep, stop=stop),
        reraise=True,
    )
    own = _own_texts(store, submission)
    with store.paid_texts(run.key, shard=submission.shard) as paid:
        known = _find_known(paid, own.column("content_hash").to_pylist())
    if len(known) == own.num_rows:
        return replace(submission, outcome="collected", paid_tokens=submission.tokens)
    reserved = submission
    if purse is not None and submission.reserved_on is None:
        day = tries(purse.reserve, submission.texts, submission.tokens, stop)
        reserved = replace(submission, reserved_on=day)
    try:
        job: BatchJob = tries(
            embedder.batches.submit_once,
            partial(_pairs, own, known),
            display_name=submission.display_name(run.key),
        )
    except ValueError as error:
        _give_back(purse, submission, reserved)
        raise TerminalError(
            f"shard {submission.shard} can't be submitted as a batch job: {error}. Run it again without batch, which "
            "pays only for what is missing"
        ) from error
    except _NOT_TAKEN:
        _give_back(purse, submission, reserved)
        raise
    get_run_logger().info("%s holds %s texts of shard %d", job.name, f"{submission.texts:,}", submission.shard)
    return reserved


def _give_back(purse: Purse | None, before: Submission, reserved: Submission) -> None:
    """Take back what this attempt reserved; what an earlier one did is kept for the next."""
    if purse is not None and before.reserved_on is None and reserved.reserved_on is not None:
        purse.give_back(reserved.reserved_on, reserved.texts, reserved.tokens)


def _own_texts(store: ShardStore, submission: Submission) -> pa.Table:
    """Return the rows of the texts that the submission's own job is for."""
    table = store.read_table(submission.file)
    return table.filter(pc.equal(table.column("holder"), submission.shard))


def _pairs(own: pa.Table, known: Collection[bytes]) -> Iterator[tuple[str, str]]:
    keys, texts = own.column("content_hash").to_pylist(), own.column("text").to_pylist()
    return ((key.hex(), text) for key, text in zip(keys, texts, strict=True) if key not in known)


def _sleep(seconds: float, stop: threading.Event) -> None:
    if stop.wait(seconds):
        raise StoppedError


# -- looking and collecting --------------------------------------------------------------------------------------


@task(name="look at jobs", task_run_name="look at jobs", **STAGE)
def look_at_jobs(run: Run, embedder: GeminiEmbedder) -> list[BatchJob]:
    """Return the run's jobs as the service knows them, newest first."""
    return embedder.batches.find(jobs_prefix(run.key))


@task(name="cancel", task_run_name="cancel {job.display_name}", **STAGE)
def cancel_job(job: BatchJob, embedder: GeminiEmbedder) -> BatchJob:
    """Ask the service to stop a job, and return the job as it is then."""
    embedder.batches.cancel(job.name)
    return embedder.batches.read(job.name)


@dataclass(frozen=True, slots=True)
class Collected:
    """How many texts of a submission have vectors now, and their tokens. With ``is_gone`` the service has no more."""

    texts: int
    tokens: int
    is_gone: bool = False


@task(name="collect", task_run_name="collect {submission.shard}", **STAGE)
def collect_texts(
    run: Run,
    submission: Submission,
    job: BatchJob | None,
    store: ShardStore,
    embedder: GeminiEmbedder,
    stop: threading.Event,
) -> Collected:
    """Keep a succeeded job's vectors among the run's paid texts as they arrive; return what the submission has now.

    A text that was refused, failed or got no answer is left out: the embed stage asks for it, and gets the refusal
    itself. Without a ``job`` nothing is asked for. Safe to repeat: what was kept is not kept again.
    """
    own = _own_texts(store, submission)
    tokens = dict(zip(own.column("content_hash").to_pylist(), own.column("tokens").to_pylist(), strict=True))
    left_out = {"refused": 0, "failed": 0}
    is_gone = False
    with store.paid_texts(run.key, shard=submission.shard) as paid:
        known = _find_known(paid, list(tokens))
        if job is not None and len(known) < len(tokens):
            answers = _vectors(job, embedder, tokens.keys() - known, left_out)
            try:
                for some in batched(answers, _KEPT_AT_ONCE):
                    hashes = [key for key, _ in some]
                    counts = [tokens[key] for key in hashes]
                    paid.keep(hashes, np.stack([row for _, row in some]), tokens=counts, shard=submission.shard)
                    usd = sum(counts) * BATCH_PRICE_SHARE * embedder.facts.usd_per_million_tokens / 1_000_000
                    METER.add("embed", at=datetime.now(UTC), texts=len(hashes), tokens=sum(counts), usd=usd)
                    known.update(hashes)
                    if stop.is_set():
                        raise StoppedError
            except BatchGoneError as error:
                get_run_logger().warning("%s", error)
                is_gone = True
    get_run_logger().info(
        "%s of %s texts of shard %d have their vectors; %d were refused, %d failed, the others got no answer",
        f"{len(known):,}",
        f"{len(tokens):,}",
        submission.shard,
        left_out["refused"],
        left_out["failed"],
    )
    return Collected(len(known), sum(tokens[key] for key in known), is_gone)


def _vectors(
    job: BatchJob, embedder: GeminiEmbedder, wanted: Collection[bytes], left_out: dict[str, int]
) -> Iterator[tuple[bytes, Matrix]]:
    """Yield the vectors of the wanted texts as the service sends them, and count those that it has none for."""
    keys = {key.hex(): key for key in wanted}
    for name, answer in embedder.batches.collect(job):
        if name not in keys:
            continue
        if isinstance(answer, RecordError):
            left_out["refused"] += 1
        elif isinstance(answer, TransientError):
            left_out["failed"] += 1
        else:
            yield keys[name], answer


@task(name="delete jobs", task_run_name="delete jobs", **STAGE)
def delete_jobs(jobs: Sequence[BatchJob], embedder: GeminiEmbedder) -> None:
    """Delete jobs and their files at the service. What can't be deleted goes by itself after two days."""
    for job in jobs:
        try:
            embedder.batches.delete(job)
        except PipelineError as error:
            get_run_logger().warning("%s stays at the service for two days: %s", job.name, error)
