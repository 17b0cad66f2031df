"""Stages: the way of a piece of work, a range of the source or some of its records, through the tasks."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from prefect import get_run_logger, runtime
from prefect.events import emit_event
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from flows.blocks import Parts
from tasks.checkpoint import checkpoint_shard
from tasks.chunk import chunk_shard
from tasks.domain.changes import ChangeBatch
from tasks.domain.errors import ShardDamagedError, TerminalError
from tasks.domain.log_lines import PERFORMANCE
from tasks.domain.manifests import Manifest
from tasks.domain.runs import Run
from tasks.domain.shards import Shard, ShardRange
from tasks.embed import embed_shard
from tasks.extract import extract_changes, extract_shard
from tasks.upsert import upsert_shard
from tasks.validate import validate_shard

_PERFORMANCE = logging.getLogger(PERFORMANCE)
STAGES = ("extract", "validate", "chunk", "embed", "upsert", "checkpoint")
#: Said after each stage of each piece of work: what automations of the server may listen to.
STAGE_COMPLETED = "cryptique-rag.stage.completed"
MAX_IN_FLIGHT = 8
#: Lost files and rows that another writer changed meanwhile: the work is read again this often.
_MAX_REPAIRS = 4
#: Waiting for the embedder is worth the memory of another shard from this share of the time on. Without it, shards at
#: work at once only take cores from each other: a tenth more CPU for the same rows, in the same time.
_WORTH_OVERLAPPING, _LOOK_S = 0.2, 0.25

Work = ShardRange | ChangeBatch
#: Asked about each piece of work once it is chunked, in the flow's own thread: whether it goes no further for now.
Hold = Callable[[Run, PrefectFuture[Shard]], bool]
Value = TypeVar("Value")


def task_runner() -> Any:
    """Return a task runner with a thread for every stage that may be at work."""
    return ThreadPoolTaskRunner(max_workers=MAX_IN_FLIGHT * len(STAGES))


def whole(value: Value) -> Value:
    """Pass a value to a task as it is: Prefect would else look for futures inside, which costs more than the task."""
    return cast(Value, quote(value))


@dataclass(slots=True)
class StageTimes:
    """Seconds that each stage took over all pieces of work, waiting and retries included, and the slowest piece."""

    seconds: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, number: int, stage: str, seconds: float) -> None:
        """Count one stage of one piece of work."""
        self.seconds[stage] += seconds  # type: ignore[assignment]
        self.slowest[stage] = max(self.slowest.get(stage, (0.0, number)), (seconds, number))


@dataclass(frozen=True, slots=True)
class Finished:
    """A piece of work that is stored and accounted for."""

    work: Work
    manifest: Manifest
    checkpoint: PrefectFuture[Manifest]


@dataclass(slots=True)
class _Chain:
    """A piece of work under way; ``futures`` are those of its stages so far, by name, in order."""

    work: Work
    run: Run
    attempt: int
    began: float
    futures: dict[str, PrefectFuture[Any]]

    @property
    def last(self) -> PrefectFuture[Any]:
        return next(reversed(self.futures.values()))


class StageWork:
    """The pieces of work of one run that are under way.

    One at first; as soon as the embedder is waited for, up to ``in_flight`` at once, so that others are read and
    written meanwhile.
    """

    def __init__(self, run: Run, parts: Parts, *, in_flight: int) -> None:
        self._run, self._parts, self._most_in_flight = run, parts, in_flight
        self._in_flight = 1
        self._began = time.monotonic()
        self._waited_before_s = parts.slots.waited_s
        self._chains: dict[PrefectFuture[Any], _Chain] = {}
        self.times = StageTimes()

    def finish(self, works: Iterable[Work], *, hold: Hold | None = None) -> Iterator[Finished]:
        """Yield each piece of work once it is finished, in the order in which they end.

        One whose files were lost, or whose rows another writer changed meanwhile, is read again. The first other
        failure is raised when the others at work have ended: what they paid for is kept. What ``hold`` holds goes no
        further and is not yielded.
        """
        waiting = iter(works)
        exhausted = False
        while not exhausted or self._chains:
            while not exhausted and len(self._chains) < self._in_flight:
                work = next(waiting, None)
                if work is None:
                    exhausted = True
                else:
                    self._submit(work, 0)
            if not self._chains:
                break
            last = self._wait_for_one()
            if last is None:
                continue
            chain = self._chains.pop(last)
            error = _first_error(chain)
            if error is None and "checkpoint" not in chain.futures:
                error = self._go_on(chain, hold)
                if error is None:
                    continue
            if error is None:
                yield self._finished(chain)
            elif isinstance(error, ShardDamagedError) and chain.attempt < _MAX_REPAIRS:
                get_run_logger().warning("shard %d runs again: %s", chain.work.number, error)
                self._submit(chain.work, chain.attempt + 1)
            else:
                self._parts.stopping.set()  # nothing that can't succeed is asked for forty more times
                for other in self._chains.values():
                    _wait(other)
                raise error

    def _wait_for_one(self) -> PrefectFuture[Any] | None:
        """Return a future that is done; or None once it has turned out that more pieces of work may be under way."""
        while True:
            if self._in_flight == self._most_in_flight:
                return next(as_completed(list(self._chains)))
            with suppress(TimeoutError):
                return next(as_completed(list(self._chains), timeout=_LOOK_S))
            if self._waits_for_the_embedder():
                self._in_flight = self._most_in_flight
                return None

    def _waits_for_the_embedder(self) -> bool:
        slots, passed_s = self._parts.slots, time.monotonic() - self._began
        waited_s = slots.waited_s - self._waited_before_s
        # A task runner of processes has slots of its own there; what they wait for shows in the stage's time alone.
        embedding_s = 0.0 if waited_s else self.times.seconds["embed"]
        return max(waited_s / slots.number, embedding_s) > _WORTH_OVERLAPPING * passed_s

    def stop(self, *, within_s: float) -> list[Finished]:
        """Let what is at work end, as soon as its requests under way are answered; return what got finished.

        What does not end in time is left to the threads; its checkpoint is missing, so it runs again.
        """
        self._parts.stopping.set()
        deadline = time.monotonic() + within_s
        finished = []
        for last, chain in list(self._chains.items()):
            last.wait(timeout=max(0.0, deadline - time.monotonic()))
            if "checkpoint" in chain.futures and last.state.is_completed():
                finished.append(self._finished(chain))
        self._chains.clear()
        return finished

    def _submit(self, work: Work, attempt: int) -> None:
        # What an earlier attempt wrote is there now, whatever the store held when the run began.
        run = self._run
        if attempt:
            run = replace(run, target_was_empty=False, may_have_written=True)
        chain = _Chain(work, run, attempt, time.time(), {"extract": _submit_extract(run, work, self._parts)})
        self._chains[chain.last] = chain

    def _go_on(self, chain: _Chain, hold: Hold | None) -> Exception | None:
        """Submit the next stages of a piece of work, unless it is held; return what ``hold`` raised."""
        done, parts = chain.last, self._parts
        if "chunk" in chain.futures:
            try:
                if hold is not None and hold(chain.run, done):
                    return None
            except Exception as error:  # noqa: BLE001 - it counts as the failure of a stage
                return error
            chain.futures |= _submit_embed(chain.run, done, parts)
        elif done.result().is_stored:
            # Four tasks that do nothing would cost more than reading it did.
            chain.futures |= _submit_upsert(chain.run, done, parts)
        else:
            chain.futures |= _submit_chunk(chain.run, done, parts)
            if hold is None:
                chain.futures |= _submit_embed(chain.run, chain.last, parts)
        self._chains[chain.last] = chain
        return None

    def _finished(self, chain: _Chain) -> Finished:
        manifest: Manifest = chain.last.result()
        before = chain.began
        for stage, future in chain.futures.items():
            ended = future.state.timestamp.timestamp()
            seconds, before = max(0.0, ended - before), ended
            self.times.add(chain.work.number, stage, seconds)
            _tell_stage(chain.work, stage, seconds, manifest)
        return Finished(chain.work, manifest, chain.last)


def _tell_stage(work: Work, stage: str, seconds: float, manifest: Manifest) -> None:
    run_id, counts = runtime.flow_run.id, manifest.total
    _PERFORMANCE.info(
        "%s of shard %d took %.3f s",
        *(stage, work.number, seconds),
        extra={
            "flow_run_id": run_id,
            "stage": stage,
            "shard": work.number,
            "seconds": round(seconds, 3),
            "records": counts.read,
            "records_per_s": round(counts.read / seconds, 1) if seconds else None,
        },
    )
    emit_event(
        event=STAGE_COMPLETED,
        resource={
            "prefect.resource.id": f"cryptique-rag.flow-run.{run_id}.stage.{stage}",
            "prefect.resource.name": stage,
        },
        related=[{"prefect.resource.id": f"prefect.flow-run.{run_id}", "prefect.resource.role": "flow-run"}],
        payload={
            "shard": work.number,
            "seconds": round(seconds, 3),
            "read": counts.read,
            "written": counts.written,
            "deadLettered": counts.dead_lettered,
        },
    )


def _from(future: PrefectFuture[Value]) -> Value:
    """Pass what another task will return: Prefect waits for it and draws the edge."""
    return cast(Value, future)


def extract_arguments(parts: Parts, *, plain: bool = False) -> tuple[Any, ...]:
    """Return what extracting takes beside the run and the piece of work; ``plain`` where Prefect is not asked."""
    owners, facts, size = parts.owners, parts.facts, parts.size
    if not plain:
        owners, facts, size = whole(owners), whole(facts), whole(size)
    return (parts.source, owners, parts.store, parts.vectors, facts, size)


def _submit_extract(run: Run, work: Work, parts: Parts) -> PrefectFuture[Shard]:
    """Submit the first stage of a piece of work."""
    if isinstance(work, ShardRange):
        return extract_shard.with_options(retries=parts.retries).submit(whole(run), work, *extract_arguments(parts))
    return extract_changes.with_options(retries=parts.retries).submit(
        whole(run), whole(work), *extract_arguments(parts)
    )


def _submit_chunk(run: Run, extracted: PrefectFuture[Shard], parts: Parts) -> dict[str, PrefectFuture[Any]]:
    """Submit the stages that describe an extracted shard, each waiting for the one before; return their futures."""
    retries, store, vectors = parts.retries, parts.store, parts.vectors
    validated = validate_shard.with_options(retries=retries).submit(
        whole(run), _from(extracted), parts.source, store, vectors
    )
    chunked = chunk_shard.with_options(retries=retries).submit(
        whole(run), _from(validated), store, parts.source, vectors, whole(parts.facts), whole(parts.size)
    )
    return {"validate": validated, "chunk": chunked}


def _submit_embed(run: Run, chunked: PrefectFuture[Shard], parts: Parts) -> dict[str, PrefectFuture[Any]]:
    """Submit the stages that store a chunked shard."""
    embedded = embed_shard.with_options(retries=parts.retries).submit(
        whole(run),
        _from(chunked),
        parts.store,
        parts.embedder,
        whole(parts.slots),
        gate=whole(parts.gate),
        stop=whole(parts.stopping),
    )
    return {"embed": embedded, **_submit_upsert(run, embedded, parts)}


def _submit_upsert(run: Run, shard: PrefectFuture[Shard], parts: Parts) -> dict[str, PrefectFuture[Any]]:
    """Submit the stages that write a shard and account for it."""
    retries, store, vectors = parts.retries, parts.store, parts.vectors
    upserted = upsert_shard.with_options(retries=retries).submit(whole(run), _from(shard), store, vectors)
    checkpointed = checkpoint_shard.with_options(retries=retries).submit(
        whole(run), _from(shard), _from(upserted), store, vectors
    )
    return {"upsert": upserted, "checkpoint": checkpointed}


def _first_error(chain: _Chain) -> BaseException | None:
    """Return what the first failed stage raised; the stages behind it only say that it did."""
    for future in chain.futures.values():
        future.wait()
        if not future.state.is_completed():
            error = future.state.result(raise_on_failure=False)
            return error if isinstance(error, BaseException) else TerminalError(str(future.state.message))
    return None


def _wait(chain: _Chain) -> None:
    for future in chain.futures.values():
        future.wait()
