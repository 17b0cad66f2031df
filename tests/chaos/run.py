"""Chaos itself: the run, its killer, and what came of it."""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from deployments.local_services import talking_to
from deployments.sample import load_sample
from tests.chaos.process import Process
from tests.chaos.proof import ChaosError, Life, PaidTwice, Proof, Undisturbed, account
from tests.chaos.servers import Place, open_place
from tests.end_to_end.pipeline import Pipeline
from tests.loopback.gemini import LoopbackGemini

Record = dict[str, Any]
Say = Callable[[str], None]

IN_FLIGHT, CONCURRENCY = 2, 4
#: Kills in ten: of the run's process, of a server, of all three at once, as when a machine loses its power.
_VICTIMS = ("worker",) * 4 + ("mongod",) * 3 + ("prefect",) * 2 + ("everything",)
_LATE = ("index", "reconcile", "end")
_STAGES = ("extract", "validate", "chunk", "embed", "upsert", "checkpoint")
_POLL_S = 0.01
_LONGEST_S = 3_600.0
#: Texts that the embedder answers as ones it can't take.
_REFUSED_EVERY = 1_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to a migration of ``rows`` generated rows; the ``seed`` decides all that is drawn by lot.

    ``late_kills`` come on top of the ``kills`` and hit the indexes, the reconciling and the end of the run, as far as
    they come in time.
    """

    seed: int
    kills: int
    rows: int
    late_kills: int = 3
    shard_rows: int = 500
    latency_s: float = 0.05


@dataclass(frozen=True, slots=True)
class Kill:
    """Who was killed when, and what the run was at; ``finished`` shards had been seen by then."""

    number: int
    victim: str
    at: str
    after_s: float
    process: int
    doing: str
    finished: int
    requests: int


@dataclass(slots=True)
class Outcome:
    """What came of it, once everything that must hold has been seen to hold."""

    plan: Plan
    shards: int
    kills: list[Kill] = field(default_factory=list)
    #: How each process of the run ended.
    ends: list[str] = field(default_factory=list)
    looks: int = 0
    wall_s: float = 0.0
    undisturbed_s: float = 0.0
    documents: int = 0
    dead_letters: int = 0
    texts: int = 0
    common_texts: int = 0
    paid_twice: PaidTwice | None = None

    @property
    def resumes(self) -> int:
        """Return how often the run was started again."""
        return len(self.ends) - 1

    def to_record(self) -> Record:
        """Return it as plain values."""
        return asdict(self) | {"resumes": self.resumes}

    def __str__(self) -> str:
        """Return it for a person."""
        assert self.paid_twice is not None
        by_victim = Counter(kill.victim for kill in self.kills)
        doing = Counter(stage.split()[0] for kill in self.kills for stage in kill.doing.split(", "))
        again = self.paid_twice
        return "\n".join(
            [
                f"seed {self.plan.seed}: {self.plan.rows:,} rows in {self.shards} shards, {len(self.kills)} kills, "
                f"{self.resumes} resumes, {self.wall_s:.0f} s (undisturbed {self.undisturbed_s:.0f} s)",
                "killed: " + ", ".join(f"{victim} {number}" for victim, number in by_victim.most_common()),
                "while the run was at: " + ", ".join(f"{stage} {number}" for stage, number in doing.most_common()),
                "processes ended: " + ", ".join(f"{end} {number}" for end, number in Counter(self.ends).most_common()),
                f"{self.documents:,} documents and {self.dead_letters:,} dead letters equal those of an undisturbed "
                f"run; every checkpoint held its data at {self.looks} looks",
                f"{self.texts:,} texts ({self.common_texts:,} in several shards); paid twice: {again.texts:,}, in "
                f"{again.requests} replies that were under way when their process ended ({again.by_end}), at most "
                f"{again.most_requests_of_a_process} of one process; of finished shards: 0",
            ]
        )


def wreak_havoc(plan: Plan, home: Path, *, say: Say) -> Outcome:
    """Migrate under kills, and return what came of it. Raises ``ChaosError`` if anything is as it must not be."""
    began = time.monotonic()
    with open_place(home) as place, MongoClient[Record](place.mongo_uri, tz_aware=True) as client:
        load_sample(client["chaos_source"], rows=plan.rows)
        with talking_to(place.prefect_url):
            undisturbed, undisturbed_s = _migrate_undisturbed(plan, place, client, home / "undisturbed")
            say(f"undisturbed: {len(undisturbed.documents):,} documents in {undisturbed_s:.1f} s; killing begins")
            pipeline = _pipeline(place, client, home / "killed", vectors="chaos_killed")
            with _gemini(plan) as gemini:
                pipeline.use_gemini(gemini, **_SETTINGS)
                pipeline.register()
                havoc = _Havoc(plan, place, pipeline, undisturbed, gemini, say)
                outcome = havoc.carry_out()
    outcome.undisturbed_s = round(undisturbed_s, 1)
    say(f"all of it took {time.monotonic() - began:.0f} s")
    return outcome


#: A day's limit makes each request count in the record of what is spent.
_SETTINGS: Record = {"cryptique_gemini_concurrency": CONCURRENCY, "cryptique_gemini_texts_per_day": 100_000_000}


def _pipeline(place: Place, client: MongoClient[Record], home: Path, *, vectors: str) -> Pipeline:
    return Pipeline(place.mongo_uri, client, home, source="chaos_source", vectors=vectors)


def _gemini(plan: Plan) -> LoopbackGemini:
    return LoopbackGemini(latency_seconds=plan.latency_s, refused_texts=_is_refused)


def _is_refused(text: str) -> bool:
    return zlib.crc32(text.encode()) % _REFUSED_EVERY == 0


def _migrate_undisturbed(
    plan: Plan, place: Place, client: MongoClient[Record], home: Path
) -> tuple[Undisturbed, float]:
    pipeline = _pipeline(place, client, home, vectors="chaos_undisturbed")
    with _gemini(plan) as gemini:
        pipeline.use_gemini(gemini, **_SETTINGS)
        began = time.monotonic()
        pipeline.migrate(**_parameters(plan))
        return Undisturbed(pipeline, shard_rows=plan.shard_rows), time.monotonic() - began


def _parameters(plan: Plan) -> Record:
    return {"shard_rows": plan.shard_rows, "shards_in_flight": IN_FLIGHT}


class _Havoc:
    """One migration and its killer, which acts between two looks at what the run says."""

    def __init__(
        self,
        plan: Plan,
        place: Place,
        pipeline: Pipeline,
        undisturbed: Undisturbed,
        gemini: LoopbackGemini,
        say: Say,
    ) -> None:
        self._plan, self._place, self._gemini, self._say = plan, place, gemini, say
        self._pipeline, self._undisturbed = pipeline, undisturbed
        self._random = random.Random(plan.seed)
        self._proof = Proof(undisturbed, pipeline, gemini)
        self._outcome = Outcome(plan, len(undisturbed.shards))
        self._lives: list[Life] = []
        self._began_s = time.monotonic()
        #: The last texts are not answered before all kills are done: the run must not end earlier.
        self._may_end = threading.Event()
        self._held_from = len(undisturbed.texts) - plan.shard_rows // 2
        gemini.faults = self._hold_the_last
        # One of each in any case, the rest as it comes.
        self._victims = self._random.sample(("worker", "mongod", "prefect"), 3)

    def _hold_the_last(self, index: int) -> str | None:
        if self._may_end.is_set() or len(self._gemini.embedded) < self._held_from:
            return None
        self._may_end.wait()
        return "drop"

    # -- the run --------------------------------------------------------------------------------------------------

    def carry_out(self) -> Outcome:
        try:
            while True:
                with self._process() as process:
                    end = self._watch(process)
                self._end_of(process, end)
                if end == "completed":
                    break
        finally:
            self._may_end.set()
        self._wait_for_servers()
        self._conclude()
        return self._outcome

    @contextmanager
    def _process(self) -> Iterator[Process]:
        if self._random.random() < 0.85:  # else it finds out by itself that a server is not back yet
            self._wait_for_servers()
        self._lives.append(Life(self._gemini.request_count))
        process = Process(
            len(self._lives),
            self._pipeline.home,
            prefect_url=self._place.prefect_url,
            parameters=_parameters(self._plan),
        )
        try:
            yield process
        finally:
            process.close()

    def _watch(self, process: Process) -> str:
        """Let it run, and kill what is to be killed; return how it ended."""
        due = self._draw(process)
        while True:
            code = process.look()
            up = self._place.is_up
            process.was_disturbed |= not up
            if code is not None:
                return "completed" if code == 0 else "failed"
            if self._kills_left and due(process):
                victim = self._next_victim()
                self._kill(victim, process)
                self._look()
                if victim in ("worker", "everything"):
                    return "killed"
                due = self._draw(process)
            if time.monotonic() - self._began_s > _LONGEST_S:
                raise ChaosError(f"not done after {_LONGEST_S:.0f} s: {process.last_words()}")
            time.sleep(_POLL_S)

    def _end_of(self, process: Process, end: str) -> None:
        self._lives[-1].ended = end
        self._outcome.ends.append(end)
        if end == "failed":
            self._say(f"      process {process.number} ended by itself at {process.doing}")
            if not process.was_disturbed:
                raise ChaosError(f"the run failed with both servers up: {process.last_words()}")
        if end == "completed" and self._kills_left > self._plan.late_kills:
            raise ChaosError(f"the run completed before {self._kills_left - self._plan.late_kills} of its kills")

    def _wait_for_servers(self) -> None:
        while not self._place.is_up:
            time.sleep(_POLL_S)

    # -- the killer -----------------------------------------------------------------------------------------------

    @property
    def _kills_left(self) -> int:
        return self._plan.kills + self._plan.late_kills - len(self._outcome.kills)

    def _draw(self, process: Process) -> Callable[[Process], bool]:
        """Return when the next kill is due: some steps of the run from now, or after a while without any.

        Half of the kills are aimed at what follows a stage that is drawn, so that the short ones are hit too. While a
        server is away the run hardly moves: only one kill in eight does not wait until it is back, nor until a new
        process is at work.
        """
        draw = self._random
        anywhere, aimed = draw.random() < 1 / 8, draw.random() < 1 / 2
        stage = draw.choice(_STAGES)
        delay_s = draw.uniform(0.0, 0.05 if aimed else 0.6)
        patience_s = draw.uniform(1.0, 6.0)
        shards_left = self._outcome.shards - self._proof.finished
        steps_left = round(1.5 * shards_left * len(_STAGES) / max(1, self._kills_left - self._plan.late_kills))
        steps = process.steps + draw.randint(1, max(2, steps_left))
        waited_s, looked_s = 0.0, time.monotonic()
        reached_s: float | None = None

        def is_due(process: Process) -> bool:
            nonlocal waited_s, looked_s, reached_s
            now_s = time.monotonic()
            passed_s, looked_s = now_s - looked_s, now_s
            if anywhere or (process.is_at_work and self._place.is_up):
                waited_s += passed_s
            if self._may_end.is_set():
                reached = process.doing in _LATE
            else:
                there = process.steps >= steps and (not aimed or process.last_stage == stage)
                reached = there or waited_s > patience_s
            if reached_s is None and reached:
                reached_s = now_s
            return reached_s is not None and now_s - reached_s >= delay_s

        return is_due

    def _next_victim(self) -> str:
        while True:
            victim = self._victims.pop() if self._victims else self._random.choice(_VICTIMS)
            dead = [name for name, server in self._place.servers.items() if not server.is_up]
            if victim not in dead and not (victim == "everything" and dead):
                return victim

    def _kill(self, victim: str, process: Process) -> None:
        kill = Kill(
            number=len(self._outcome.kills) + 1,
            victim=victim,
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            after_s=round(time.monotonic() - self._began_s, 2),
            process=process.number,
            doing=process.doing,
            finished=self._proof.finished,
            requests=self._gemini.request_count,
        )
        if victim in ("worker", "everything"):
            process.kill()
        for name, server in self._place.servers.items():
            if victim in (name, "everything"):
                process.was_disturbed = True
                server.kill(back_after_s=self._random.uniform(0.0, 1.0))
        self._outcome.kills.append(kill)
        self._say(
            f"{kill.number:4} {kill.after_s:7.1f} s  {victim:10} while process {kill.process} was at {kill.doing} "
            f"({kill.finished} of {self._outcome.shards} shards seen finished)"
        )
        if len(self._outcome.kills) >= self._plan.kills:
            self._may_end.set()

    # -- the proof ------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Look at the store as soon as it can be looked at."""
        while not self._place.mongod.is_up:
            time.sleep(_POLL_S)
        self._proof.look()

    def _conclude(self) -> None:
        if len(self._proof.run_keys) > 1:
            raise ChaosError(f"the run was not taken up but begun again: {sorted(self._proof.run_keys)}")
        self._proof.conclude()
        outcome = self._outcome
        outcome.paid_twice = account(self._gemini, self._lives, at_once=IN_FLIGHT * CONCURRENCY)
        outcome.looks = self._proof.looks
        outcome.wall_s = round(time.monotonic() - self._began_s, 1)
        outcome.documents = len(self._undisturbed.documents)
        outcome.dead_letters = len(self._undisturbed.letters)
        outcome.texts, outcome.common_texts = len(self._undisturbed.texts), self._undisturbed.common_texts
