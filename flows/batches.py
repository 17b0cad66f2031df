"""Batches: a load through Gemini's batch jobs, at half the price, in rounds that may be hours apart.

A round looks at the run's jobs, keeps what those that are over have brought, submits the texts of shards that were not
submitted yet, and takes the shards whose vectors are there through the ordinary stages. While jobs wait or run the run
pauses. What was submitted is in the run's record, and a job's name is derived from run, shard and attempt: a process
that dies at any moment leaves nothing that the next one does not find.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import numpy as np
import pyarrow as pa
from prefect import get_run_logger
from prefect.futures import PrefectFuture

from blocks.gemini import GeminiEmbedder
from blocks.gemini_batches import BatchJob, BatchState
from flows.blocks import KEPT_BACK_BY_BULK, Parts
from flows.jobs import Job
from flows.stages import Finished, StageWork, whole
from tasks.batch import (
    Collected,
    Purse,
    Submission,
    cancel_job,
    choose_texts,
    collect_texts,
    delete_jobs,
    jobs_prefix,
    look_at_jobs,
    submit_texts,
)
from tasks.domain.batches import batched
from tasks.domain.errors import (
    BatchesUnderWayError,
    BudgetSpentError,
    InputError,
    PipelineError,
    QuotaSpentError,
    ShardDamagedError,
    TerminalError,
    ThrottledError,
)
from tasks.domain.manifests import Manifest
from tasks.domain.quotas import Allowance, Quota
from tasks.domain.runs import Run
from tasks.domain.shards import Shard, ShardRange

DEFAULT_POLL_S = 300.0
#: Where a job's choices say what was submitted, by shard.
_BATCHES = "batches"
#: A job that fails or expires is submitted again twice.
_MAX_ATTEMPTS = 3
_AT_ONCE = 2


def require_batches(parts: Parts, *, child_runs: int) -> None:
    """Raise ``InputError`` where texts can't be embedded through batch jobs."""
    if child_runs:
        raise InputError(
            "batch and child_runs can't be combined: batch jobs wait at Google, and child runs would only wait with "
            "them. Leave one of them out"
        )
    if not isinstance(parts.embedder, GeminiEmbedder):
        raise InputError(
            f"batch needs Gemini: the embedder {parts.facts.model} has no batch jobs. Leave batch out, or set "
            "CRYPTIQUE_EMBEDDER=gemini"
        )


def with_batch_tokens(job: Job, shard: int, manifest: Manifest) -> Manifest:
    """Return a finished shard's manifest, told how many of its tokens came from batch jobs."""
    manifest.batch_tokens = sum(submission["paidTokens"] for submission in _recorded(job).get(str(shard), ()))
    return manifest


def _recorded(job: Job) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    found: Mapping[str, Sequence[Mapping[str, Any]]] = job.choices.get(_BATCHES) or {}
    return found


def finish_in_batches(
    job: Job, shards: Sequence[ShardRange], parts: Parts, work: StageWork, *, poll_s: float
) -> Iterator[Finished]:
    """Do one round over unfinished shards, and yield each that is finished.

    Raises ``BatchesUnderWayError`` while jobs wait or run, whatever else has happened: what they bring is collected
    before it is lost. Then ``BudgetSpentError`` or ``QuotaSpentError`` where the rest may not be paid for now, and
    ``TerminalError`` for a job that failed three times.
    """
    batches = _Batches(job, parts, shards, poll_s=poll_s)
    batches.take_up()
    try:
        for done in work.finish(batches.in_turn(shards), hold=batches.hold):
            batches.delete_jobs_of(done.work.number)
            yield done
    except (QuotaSpentError, BudgetSpentError) as error:
        batches.require_over(why=str(error))
        raise
    batches.require_over()
    batches.require_all_submitted()


def settle_batches(job: Job, parts: Parts, shards: Sequence[ShardRange], *, poll_s: float) -> None:
    """Bring to an end the jobs of a run that goes on in the ordinary way: nothing is paid for twice by that.

    What is over is collected, and what has not begun is cancelled. Raises ``BatchesUnderWayError`` while jobs run.
    """
    if _recorded(job):
        batches = _Batches(job, parts, shards, poll_s=poll_s)
        batches.settle()
        batches.require_over()


def drop_batches(job: Job, parts: Parts) -> None:
    """Delete at the service what a completed run left there."""
    if not _recorded(job):
        return
    embedder = _gemini(parts)
    try:
        delete_jobs(whole(look_at_jobs(whole(job.run), embedder)), embedder)
    except PipelineError as error:
        get_run_logger().warning("batch jobs of the completed run stay at Gemini for two days: %s", error)


def _gemini(parts: Parts) -> GeminiEmbedder:
    if not isinstance(parts.embedder, GeminiEmbedder):
        raise TerminalError("the run has batch jobs at Gemini, and the embedder is another one now")
    return parts.embedder


class _Batches:
    """The submissions of one run's unfinished shards, as its record, their files and the service know them."""

    def __init__(self, job: Job, parts: Parts, shards: Sequence[ShardRange], *, poll_s: float) -> None:
        self._job, self._parts, self._poll_s = job, parts, poll_s
        self._run, self._store, self._embedder = job.run, parts.store, _gemini(parts)
        self._purse = _purse(job, parts, self._embedder)
        #: By shard. Those that were given up count only for what they brought.
        self._submissions = {
            int(shard): [Submission.from_record(job.run.key, int(shard), record) for record in records]
            for shard, records in _recorded(job).items()
        }
        #: What shards get vectors for themselves, so that no other shard pays for it.
        self._hashes: dict[int, pa.Array] = {}
        #: Shards whose jobs hold texts that a shard needs.
        self._after: dict[int, frozenset[int]] = {}
        self._jobs: dict[str, BatchJob] = {}
        self._under_way: dict[str, Submission] = {}
        #: Why nothing more is submitted in this round.
        self._refusal: ThrottledError | QuotaSpentError | BudgetSpentError | None = None
        for shard in shards:
            self._read_texts(shard.number)

    # -- a round ---------------------------------------------------------------------------------------------

    def take_up(self) -> None:
        """Look at the jobs: keep what is over, submit again what came to nothing or never reached the service."""
        over, unsent, failed = self._sort()
        for submission, collected in self._collect(over):
            if collected.is_gone and collected.texts < submission.texts:
                failed.append((submission, "its results were gone before they were collected"))
            else:
                self._end(submission, "collected", collected)
        for submission, reason in failed:
            if submission.attempt == _MAX_ATTEMPTS:
                raise TerminalError(
                    f"the batch job of shard {submission.shard} came to nothing {_MAX_ATTEMPTS} times: {reason}. Run "
                    "it again without batch, which pays only for what is missing"
                )
            get_run_logger().warning("the batch job of shard %d is submitted again: %s", submission.shard, reason)
            again = replace(submission, attempt=submission.attempt + 1)
            self._change(submission, again)
            unsent.append(again)
        for submission in unsent:
            self._submit(submission)

    def in_turn(self, shards: Sequence[ShardRange]) -> Iterator[ShardRange]:
        """Yield the shards that can be worked on now: new ones while jobs are taken, and those whose jobs are over."""
        for shard in shards:
            if not self._live(shard.number):
                if self._refusal is None:
                    yield shard
            elif not any(map(self._is_waiting, (shard.number, *self._after.get(shard.number, ())))):
                yield shard

    def hold(self, run: Run, chunked: PrefectFuture[Shard]) -> bool:
        """Submit the texts of a chunked shard; False if it goes the ordinary way, or its jobs are over."""
        shard = chunked.result()
        if self._live(shard.number):
            return False
        choice = (
            choose_texts.with_options(retries=self._parts.retries)
            .submit(
                whole(run),
                cast(Shard, chunked),
                self._store,
                whole(self._embedder.batches.facts),
                whole(self._held(besides=shard.number)),
                whole(frozenset(filter(self._is_waiting, self._submissions))),
                len(self._submissions.get(shard.number, ())),
            )
            .result()
        )
        self._hashes[shard.number], self._after[shard.number] = choice.hashes, choice.after
        if not choice.submissions:
            return False
        self._submissions.setdefault(shard.number, []).extend(choice.submissions)
        self._note()
        if not self._store.serves_several_machines:
            # A whole source waits: its files would fill the disk meanwhile, and are made again in seconds.
            self._store.drop_shard(run.key, shard.number)
        for submission in choice.submissions:
            if submission.has_job:
                self._submit(submission)
        return True

    def require_over(self, *, why: str = "") -> None:
        """Raise ``BatchesUnderWayError`` while jobs wait or run, or while the service takes none that are needed."""
        refusal, wait_s = self._refusal, self._poll_s
        if isinstance(refusal, ThrottledError):
            wait_s = max(wait_s, refusal.retry_after_seconds or 0.0)
        elif not self._under_way:
            return
        raise BatchesUnderWayError(
            datetime.now(UTC) + timedelta(seconds=wait_s),
            jobs=len(self._under_way),
            texts=sum(submission.texts for submission in self._under_way.values()),
            why=why or str(refusal or ""),
        )

    def require_all_submitted(self) -> None:
        """Raise why shards were left out of this round, if any were."""
        if self._refusal is not None:
            raise self._refusal

    def settle(self) -> None:
        """Collect what is over, cancel what has not begun, and give up what came to nothing."""
        over, given_up, failed = self._sort()
        given_up += [submission for submission, _ in failed]
        for name, submission in list(self._under_way.items()):
            job = self._jobs[name]
            if job.state is BatchState.PENDING:
                job = cancel_job.with_options(retries=self._parts.retries)(whole(job), self._embedder)
            if job.is_over:
                del self._under_way[name]
                self._jobs[name] = job
                (over if job.has_results else given_up).append(submission)
        for submission, collected in self._collect(over):
            self._end(submission, "collected", collected)
        for submission, collected in self._collect(given_up):
            self._end(submission, "given up", collected)
        jobless = [one for some in self._submissions.values() for one in some if not (one.has_job or one.outcome)]
        for submission in jobless:
            self._change(submission, replace(submission, outcome="given up"))

    def delete_jobs_of(self, shard: int) -> None:
        """Delete a finished shard's jobs: of a whole source the results are nearly all that a project may store."""
        prefix = jobs_prefix(self._run.key, shard)
        jobs = [job for name, job in self._jobs.items() if name.startswith(prefix)]
        if jobs:
            delete_jobs(whole(jobs), self._embedder)

    # -- parts -----------------------------------------------------------------------------------------------

    def _read_texts(self, shard: int) -> None:
        """Read which texts an unfinished shard gets vectors for, and which jobs it waits for."""
        hashes: list[pa.Array] = []
        after: set[int] = set()
        for submission in self._live(shard):
            try:
                table = self._store.read_table(submission.file)
            except ShardDamagedError as error:
                if submission.outcome is None:
                    # Chosen again it has the same name, so the same job.
                    get_run_logger().warning("the texts of shard %d are chosen again: %s", shard, error)
                    self._submissions[shard].remove(submission)
                continue
            holders = table.column("holder").combine_chunks()
            own = holders.to_numpy(zero_copy_only=False) == shard
            hashes.append(table.column("content_hash").combine_chunks().filter(pa.array(own)))
            after.update(holders.unique().to_pylist())
        if hashes:
            self._hashes[shard] = pa.concat_arrays(hashes)
        self._after[shard] = frozenset(after - {shard})

    def _sort(self) -> tuple[list[Submission], list[Submission], list[tuple[Submission, str]]]:
        """Look at the jobs of all submissions that wait: those with results, those without a job, those that failed."""
        over: list[Submission] = []
        unsent: list[Submission] = []
        failed: list[tuple[Submission, str]] = []
        waiting = [one for some in self._submissions.values() for one in some if one.has_job and one.outcome is None]
        if waiting:
            found = look_at_jobs.with_options(retries=self._parts.retries)(whole(self._run), self._embedder)
            for one in found:
                self._jobs.setdefault(one.display_name, one)
        for submission in waiting:
            name = submission.display_name(self._run.key)
            job = self._jobs.get(name)
            if job is None:
                unsent.append(submission)
            elif not job.is_over:
                self._under_way[name] = submission
            elif job.has_results:
                over.append(submission)
            else:
                failed.append((submission, f"it is {job.state}{f' ({job.reason})' if job.reason else ''}"))
        return over, unsent, failed

    def _collect(self, submissions: Sequence[Submission]) -> Iterator[tuple[Submission, Collected]]:
        """Yield what each submission has now that its job is over, or that it has none."""
        for some in batched(submissions, _AT_ONCE):
            futures = []
            for submission in some:
                job = self._jobs.get(submission.display_name(self._run.key))
                futures.append(
                    collect_texts.with_options(retries=self._parts.retries).submit(
                        whole(self._run),
                        whole(submission),
                        whole(job if job is not None and job.has_results else None),
                        self._store,
                        self._embedder,
                        whole(self._parts.stopping),
                    )
                )
            for submission, future in zip(some, futures, strict=True):
                yield submission, future.result()

    def _submit(self, submission: Submission) -> None:
        """Submit, unless something was refused in this round; what is refused is tried again in the next."""
        if self._refusal is not None:
            return
        try:
            sent = submit_texts.submit(
                whole(self._run),
                whole(submission),
                self._store,
                self._embedder,
                whole(self._purse),
                whole(self._parts.stopping),
            ).result()
        except (ThrottledError, QuotaSpentError, BudgetSpentError) as error:
            get_run_logger().warning("nothing more is submitted for now: %s", error)
            self._refusal = error
            return
        if sent.outcome is None:
            self._under_way[sent.display_name(self._run.key)] = sent
        if sent != submission:
            self._change(submission, sent)

    def _end(self, submission: Submission, outcome: Any, collected: Collected) -> None:
        """Put down what a submission brought, and take back what was reserved for the rest."""
        self._change(submission, replace(submission, outcome=outcome, paid_tokens=collected.tokens, reserved_on=None))
        if self._purse is not None and submission.reserved_on is not None and collected.texts < submission.texts:
            self._purse.give_back(
                submission.reserved_on, submission.texts - collected.texts, submission.tokens - collected.tokens
            )

    def _change(self, before: Submission, after: Submission) -> None:
        some = self._submissions[before.shard]
        some[some.index(before)] = after
        self._note()

    def _note(self) -> None:
        """Write what was submitted into the run's record: the next process goes on from there."""
        self._job.note(
            **{
                _BATCHES: {
                    str(shard): [submission.to_record() for submission in some]
                    for shard, some in self._submissions.items()
                }
            }
        )

    def _live(self, shard: int) -> list[Submission]:
        return [one for one in self._submissions.get(shard, ()) if one.outcome != "given up"]

    def _is_waiting(self, shard: int) -> bool:
        return any(one.has_job and one.outcome is None for one in self._live(shard))

    def _held(self, *, besides: int) -> pa.Table:
        """Return the texts that other shards get vectors for, with those shards."""
        some = {shard: hashes for shard, hashes in self._hashes.items() if shard != besides}
        holders = np.repeat(np.array(list(some), dtype=np.int64), [len(hashes) for hashes in some.values()])
        hashes = pa.chunked_array(list(some.values()), pa.large_binary())
        return pa.table({"content_hash": hashes, "holder": holders})


def _purse(job: Job, parts: Parts, embedder: GeminiEmbedder) -> Purse | None:
    """Return what jobs may spend, or None where nothing is counted."""
    if parts.gate is None:
        return None
    allowance = Allowance.of(Quota.of(parts.facts), keep_back=KEPT_BACK_BY_BULK, budget_usd=job.allowed_usd)
    return Purse(parts.vectors, allowance, embedder.batches.facts.usd_per_million_tokens, job.run.key)
