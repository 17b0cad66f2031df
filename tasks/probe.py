"""Probe: look at each part of the system, all at once, each within its own time; what hangs is told as failed.

No probe spends anything: the embedder is asked about its model, never for a vector.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from blocks.backups import BackupStore
from blocks.gemini import GeminiEmbedder
from blocks.machine import Machine
from blocks.mongo import MongoDatabase, MongoSource
from blocks.mongo_health import count_pending, read_health, read_refusals, token_time
from blocks.prefect_server import PrefectServer
from blocks.vector_store import VectorStore
from blocks.wordllama import LocalEmbedder
from tasks.domain.alerts import Limits
from tasks.domain.backups import newest_good
from tasks.domain.errors import PipelineError
from tasks.domain.incidents import in_words
from tasks.domain.meters import Measure, merged
from tasks.domain.probes import Reading, Verdict

_MONGO_WITHIN_S = 4.0
_JOBS_OF = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class ProbeParts:
    """What is looked at. ``prefect`` is None where no server is meant, ``pool`` the work pool that must have a worker.

    ``begun`` is since when somebody looks: without any backup its age is counted from there.
    """

    source: MongoSource
    vectors: VectorStore
    embedder: GeminiEmbedder | LocalEmbedder | None
    backups: BackupStore | None
    prefect: PrefectServer | None
    home: Path
    limits: Limits
    pool: str
    begun: datetime


class _UnknownError(Exception):
    """It isn't configured, or there is nothing yet to look at."""


class _Found(NamedTuple):
    says: str
    figures: Mapping[str, float] = {}


class _Probe(NamedTuple):
    take: Callable[[Prober, datetime], _Found]
    timeout_s: float
    #: How often it is worth the trouble while all is well.
    every_s: float


class Prober:
    """Takes readings; keeps what the next ones build on. One thread calls it.

    A probe that did not come back in time is not begun again before it does: it stays failed, and no threads pile up.
    """

    def __init__(self, parts: ProbeParts) -> None:
        self.parts = parts
        self.machine = Machine()
        self._under_way: dict[str, tuple[Future[_Found], float]] = {}
        self._last: dict[str, Reading] = {}

    def take(self, *, now: datetime, only: Collection[str] | None = None) -> list[Reading]:
        """Return a reading of every probe, or of those that are named, all of the moment ``now``, by name."""
        wanted = [name for name in _PROBES if only is None or name in only]
        for name in wanted:
            if name not in self._under_way:
                self._under_way[name] = (_begin(_PROBES[name].take, self, now, name), time.monotonic())
        readings = [self._read(name, now) for name in wanted]
        self._last |= {reading.probe: reading for reading in readings}
        return readings

    def take_due(self, *, now: datetime) -> list[Reading]:
        """Return the readings that are due: what failed is looked at again each time, the rest at its own pace."""
        due = [name for name, probe in _PROBES.items() if self._is_due(name, probe, now)]
        return self.take(now=now, only=due)

    def _is_due(self, name: str, probe: _Probe, now: datetime) -> bool:
        last = self._last.get(name)
        return last is None or last.verdict == "failed" or (now - last.at).total_seconds() >= probe.every_s

    def _read(self, name: str, now: datetime) -> Reading:
        future, began = self._under_way[name]
        left_s = _PROBES[name].timeout_s - (time.monotonic() - began)
        verdict: Verdict = "ok"
        figures: Mapping[str, float] = {}
        try:
            found = future.result(timeout=max(0.0, left_s))
            says, figures = found.says, found.figures
        except TimeoutError:
            if not future.done():
                return Reading(name, now, "failed", _hangs(time.monotonic() - began), time.monotonic() - began)
            verdict, says = "failed", "it ran into a time-out"
        except _UnknownError as error:
            verdict, says = "unknown", str(error)
        except PipelineError as error:
            verdict, says = "failed", in_words(str(error))
        except Exception as error:  # noqa: BLE001 - a probe that breaks has failed; its words may hold anything
            verdict, says = "failed", f"it can't be looked at ({type(error).__name__})"
        del self._under_way[name]
        return Reading(name, now, verdict, says, time.monotonic() - began, figures)


def take_readings(parts: ProbeParts, *, now: datetime) -> list[Reading]:
    """Return one reading of every probe; those of the processors need two looks and have no figure."""
    return Prober(parts).take(now=now)


def _begin(take: Callable[[Prober, datetime], _Found], prober: Prober, now: datetime, name: str) -> Future[_Found]:
    """Return what a thread of its own will have found: one that hangs keeps no other, and no process, waiting."""
    future: Future[_Found] = Future()

    def run() -> None:
        try:
            future.set_result(take(prober, now))
        except BaseException as error:  # noqa: BLE001 - whoever reads the result gets it
            future.set_exception(error)

    threading.Thread(target=run, name=f"probe-{name}", daemon=True).start()
    return future


def _hangs(seconds: float) -> str:
    return f"no answer within {seconds:.0f} s"


# -- the probes ------------------------------------------------------------------------------------------------------


def _look_at_mongo(database: MongoDatabase) -> _Found:
    health = read_health(database, within_s=_MONGO_WITHIN_S)
    says = f"MongoDB {health.version} answers"
    if health.untold:
        says += f"; its user may not see {', '.join(health.untold)}"
    return _Found(f"{says}.", health.figures)


def _look_at_source(prober: Prober, now: datetime) -> _Found:
    return _look_at_mongo(prober.parts.source)


def _look_at_vectors(prober: Prober, now: datetime) -> _Found:
    return _look_at_mongo(prober.parts.vectors)


def _look_at_embedder(prober: Prober, now: datetime) -> _Found:
    embedder = prober.parts.embedder
    if embedder is None:
        raise _UnknownError("no embedder is set: GEMINI_API_KEY is missing")
    if isinstance(embedder, LocalEmbedder):
        return _Found("the offline embedder needs nobody.")
    tokens = embedder.check_model()
    return _Found(f"Gemini knows {embedder.model} and takes the key.", {"max_tokens_per_text": float(tokens)})


def _look_at_backups(prober: Prober, now: datetime) -> _Found:
    store = prober.parts.backups
    if store is None:
        raise _UnknownError("no place for backups is set")
    stored = store.list_backups()
    good = newest_good(stored)
    taken = None if good is None or good.manifest is None else good.manifest.taken
    age_s = max(0.0, (now - (taken or prober.parts.begun)).total_seconds())
    figures = {
        "age_s": age_s,
        "backups": float(len(stored)),
        "good": float(sum(one.state == "good" for one in stored)),
    }
    if taken is None:
        return _Found(
            f"there is no good backup; somebody looks since {prober.parts.begun:%Y-%m-%d %H:%M} UTC.", figures
        )
    return _Found(f"the newest good one is of {taken:%Y-%m-%d %H:%M} UTC.", figures)


def _look_at_prefect(prober: Prober, now: datetime) -> _Found:
    return _Found(f"Prefect {_server(prober).check()} answers.")


def _look_at_workers(prober: Prober, now: datetime) -> _Found:
    pool = prober.parts.pool
    online, paused = _server(prober).count_workers(pool)
    if not online:
        raise PipelineError(f"no worker of the work pool {pool} is online: nothing that is scheduled runs")
    if paused:
        raise PipelineError(f"the work pool {pool} is paused: nothing that is scheduled runs")
    return _Found(f"{online} online in {pool}.", {"online": float(online)})


def _look_at_queue(prober: Prober, now: datetime) -> _Found:
    runs = _server(prober).count_waiting(now)
    jobs = count_pending(prober.parts.vectors)
    says = f"{runs:,} runs of the Prefect server and {jobs:,} of embeddingjobs wait for their turn."
    return _Found(says, {"waiting": float(runs + jobs), "waiting_runs": float(runs), "waiting_jobs": float(jobs)})


def _look_at_ingestion(prober: Prober, now: datetime) -> _Found:
    position = prober.parts.vectors.at().load_position("transaction")
    if position is None:
        raise _UnknownError("nothing is followed yet: run migrate, then ingest")
    until = token_time(position)
    if until is None:
        until = position["updatedAt"].astimezone(UTC)
    lag_s = max(0.0, (now - until).total_seconds())
    return _Found(f"all that changed until {until:%Y-%m-%d %H:%M:%S} UTC is taken over.", {"lag_s": lag_s})


def _look_at_letters(prober: Prober, now: datetime) -> _Found:
    limits = prober.parts.limits
    refusals = read_refusals(prober.parts.vectors, since=now - _JOBS_OF, sample=limits.dead_letter_sample)
    open_letters = float(prober.parts.vectors.count_open_letters({}))
    if not refusals:
        return _Found(
            f"no run of the last day read {limits.dead_letter_sample} records.", {"share": 0.0, "open": open_letters}
        )
    worst = max(refusals, key=lambda one: one.share)
    says = f"{worst.job_id} refused {worst.refused:,} of {worst.read:,} records of {worst.source}."
    return _Found(says, {"share": worst.share, "open": open_letters})


def _look_at_spending(prober: Prober, now: datetime) -> _Found:
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    today = merged(prober.parts.vectors.read_measures(midnight), "embed")
    usd, tokens = (today.usd, today.tokens) if today is not None else (0.0, 0)
    budget = prober.parts.limits.usd_per_day
    of = f" of ${budget:,.2f}" if budget is not None else "; no budget is set"
    return _Found(
        f"{tokens:,} tokens were embedded today for ${usd:,.4f}{of}.", {"usd_today": usd, "tokens_today": float(tokens)}
    )


def _look_at_requests(prober: Prober, now: datetime) -> _Found:
    limits = prober.parts.limits
    found = prober.parts.vectors.read_measures(now - timedelta(seconds=limits.window_s))
    kinds = [one for one in (merged(found, "embed"), merged(found, "search"), merged(found, "http")) if one is not None]
    figures: dict[str, float] = {"calls": 0.0}
    said = []
    judged: list[tuple[float, Measure]] = []
    for one in kinds:
        # A refusal of too many requests is waited for and asked again: no failure, but the quota at work.
        failed = max(0, one.failed - one.throttled)
        rate, p95 = failed / one.calls if one.calls else 0.0, one.quantile_s(0.95) or 0.0
        figures |= {
            f"{one.kind}_calls": float(one.calls),
            f"{one.kind}_failed": float(failed),
            f"{one.kind}_p95_s": p95,
        }
        said.append(f"{one.calls:,} {one.kind} ({failed:,} failed, 95 % within {p95:.2f} s)")
        judged.append((rate, one))
    # Many good ones of one kind must not hide that another fails.
    enough = [(rate, one) for rate, one in judged if one.calls >= limits.error_sample] or judged
    if enough:
        rate, worst = max(enough, key=lambda pair: pair[0])
        slowest = max(one.quantile_s(0.95) or 0.0 for _, one in enough)
        figures |= {"calls": float(worst.calls), "error_rate": rate}
        if any(one.calls >= limits.error_sample for _, one in enough):
            figures["p95_s"] = slowest
    minutes = limits.window_s / 60
    return _Found(f"in the last {minutes:g} minutes: {', '.join(said) or 'no request'}.", {"p95_s": 0.0, **figures})


def _look_at_disk(prober: Prober, now: datetime) -> _Found:
    used, whole = prober.machine.read_disk(prober.parts.home)
    share = used / whole if whole else 0.0
    return _Found(
        f"{used / 1e9:,.1f} of {whole / 1e9:,.1f} GB under CRYPTIQUE_HOME.",
        {"used": share, "used_bytes": float(used), "whole_bytes": float(whole)},
    )


def _look_at_memory(prober: Prober, now: datetime) -> _Found:
    used, whole = prober.machine.read_memory()
    return _Found(
        f"{used / 1e9:,.1f} of {whole / 1e9:,.1f} GB.",
        {"used": used / whole if whole else 0.0, "used_bytes": float(used), "whole_bytes": float(whole)},
    )


def _look_at_processors(prober: Prober, now: datetime) -> _Found:
    share = prober.machine.read_processors()
    count = prober.machine.read_processor_count()
    if share is None:
        return _Found(f"{count:g} processors.", {"processors": count})
    return _Found(f"{share:.0%} of {count:g} processors.", {"used": share, "processors": count})


def _server(prober: Prober) -> PrefectServer:
    if prober.parts.prefect is None:
        raise _UnknownError("no Prefect server is named")
    return prober.parts.prefect


#: What is dead now must be known within a minute: two looks in a row, each with its time-out.
_PROBES: Mapping[str, _Probe] = {
    "source": _Probe(_look_at_source, 6.0, 10.0),
    "vectors": _Probe(_look_at_vectors, 6.0, 10.0),
    "prefect": _Probe(_look_at_prefect, 12.0, 10.0),
    "workers": _Probe(_look_at_workers, 12.0, 30.0),
    "queue": _Probe(_look_at_queue, 12.0, 30.0),
    "embedder": _Probe(_look_at_embedder, 12.0, 60.0),
    "backups": _Probe(_look_at_backups, 30.0, 300.0),
    "ingest": _Probe(_look_at_ingestion, 8.0, 30.0),
    "letters": _Probe(_look_at_letters, 10.0, 60.0),
    "spending": _Probe(_look_at_spending, 10.0, 60.0),
    "requests": _Probe(_look_at_requests, 10.0, 30.0),
    "disk": _Probe(_look_at_disk, 5.0, 60.0),
    "memory": _Probe(_look_at_memory, 5.0, 10.0),
    "cpu": _Probe(_look_at_processors, 5.0, 10.0),
}
