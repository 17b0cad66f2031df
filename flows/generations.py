"""Generations: the vectors of another model or describer, built beside the live ones, compared, switched to, dropped.

Building is a flow, because it takes hours and costs money. The other verbs are one write or a few reads, and need no
Prefect server: a switch and a rollback are done when the write is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Annotated, Any, cast

from prefect import flow, get_run_logger, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from blocks.audit import audit
from blocks.embedders import Embedders, chosen, embedder_of
from blocks.memory import limit_heaps
from blocks.vector_store import VectorStore
from flows.batches import DEFAULT_POLL_S, require_batches
from flows.blocks import load_embedder, load_parts, load_vectors
from flows.hooks import alert_on_crashed, alert_on_failure, resolve_on_completion
from flows.ingest import ingest
from flows.jobs import is_alive
from flows.load import LoadOptions, load, load_each, rehearse
from flows.parameters import (
    TRANSACTIONS,
    Batch,
    BatchPollSeconds,
    Budget,
    ChildRuns,
    DryRun,
    Retries,
    ShardRows,
    ShardsInFlight,
    SourceName,
    names_of,
)
from flows.report import LoadReport, message_of
from flows.stages import task_runner
from tasks.domain.chunks import CHUNKER_VERSION
from tasks.domain.errors import InputError, WorkTakenError
from tasks.domain.generations import FIRST, NAME_PATTERN, Book, EmbedderName, Generation
from tasks.domain.jobs import job_id
from tasks.domain.rankings import DEPTH, Question, compare_answers, top
from tasks.domain.registry import describer_version, plural_of
from tasks.domain.retrieval.tenants import Tenant
from tasks.domain.rows import VectorForm
from tasks.domain.runs import Scope
from tasks.domain.shards import DEFAULT_SHARD_ROWS, DEFAULT_SHARDS_IN_FLIGHT
from tasks.policy import DEFAULT_RETRIES
from tasks.retrieve import search

#: A record of several chunks may hold several of the best places; so many documents give ten records.
_DOCUMENTS = 5 * DEPTH
_FOLLOWED = "transaction"


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did, or in a dry run would do. ``load`` has the fields of ``LoadReport``, of all sources together.

    ``caught_up`` has those of ``IngestReport``: what changed in the source while it was being read. Both are None where
    nothing was left to do.
    """

    generation: str
    made_by: str
    sources: list[str]
    state: str
    dry_run: bool
    seconds: float
    load: dict[str, Any] | None
    caught_up: dict[str, Any] | None


def _run_name() -> str:
    given = runtime.flow_run.parameters
    return ("dry run: " if given.get("dry_run") else "") + f"build generation {given.get('name')}"


@flow(
    name="build-generation",
    flow_run_name=_run_name,
    task_runner=task_runner(),
    on_failure=[alert_on_failure],
    on_crashed=[alert_on_crashed],
    on_completion=[resolve_on_completion],
)
def build_generation(
    name: Annotated[str, Field(pattern=NAME_PATTERN, description="Its name: 1 to 20 of a-z 0-9 _, never used before.")],
    embedder: Annotated[
        EmbedderName | None, Field(description="Which embedder makes it; none: the one that has the model.")
    ] = None,
    model: Annotated[str | None, Field(min_length=1, description="Its model; none: the live generation's.")] = None,
    dimensions: Annotated[int | None, Field(ge=1, description="Numbers per vector; none: as now.")] = None,
    form: Annotated[VectorForm | None, Field(description="How its vectors are stored; none: as now.")] = None,
    sources: Annotated[
        list[SourceName] | None, Field(description="Which sources; none: those that the live generation holds.")
    ] = None,
    shard_rows: ShardRows = DEFAULT_SHARD_ROWS,
    shards_in_flight: ShardsInFlight = DEFAULT_SHARDS_IN_FLIGHT,
    child_runs: ChildRuns = 0,
    batch: Batch = False,
    batch_poll_seconds: BatchPollSeconds = DEFAULT_POLL_S,
    budget_usd: Budget = None,
    dry_run: DryRun = False,
    retries: Retries = DEFAULT_RETRIES,
) -> State[dict[str, Any]]:
    """Build a generation beside the live one: the whole source into it, then what changed meanwhile, until idle.

    Nothing of the live one is touched, and ``ingest`` goes on with it. A build that was cut off, paused or failed goes
    on where it stopped when it is given again with the same name; one that is complete is brought up to date. The
    result has the fields of ``BuildReport``. Raises ``InputError`` for a name that is live, was dropped, or was begun
    with another model.
    """
    began = time.monotonic()
    limit_heaps()
    store = load_vectors()
    live = store.at()
    book = live.read_book()
    names = names_of(sources) if sources else live.read_loaded_sources() or names_of(TRANSACTIONS)
    describers = {source: describer_version(source) for source in names}
    wanted = _choose(store, live, book, name, embedder=embedder, model=model, dimensions=dimensions, form=form)
    wanted = replace(wanted, describers=describers, chunker=CHUNKER_VERSION)
    first = _describe_first(live, book)
    if dry_run:
        book.begun(wanted, first=first, now=live.read_time())  # says what a build would be refused for
    else:
        book = live.begin_generation(wanted, first=first, now=live.read_time())
    parts = load_parts(retries=retries, generation=wanted if dry_run else name)
    if batch:
        require_batches(parts, child_runs=child_runs)
    options = LoadOptions(
        shard_rows=shard_rows,
        shards_in_flight=shards_in_flight,
        child_runs=child_runs,
        batch=batch,
        batch_poll_s=batch_poll_seconds,
    )
    to_load = names if dry_run else _find_unloaded(book.find(name), parts.vectors, describers)
    get_run_logger().info(
        "%s into %s.%s, of %s",
        ", ".join(to_load) or "nothing",
        store.database,
        parts.vectors.vectors_name,
        wanted.made_by,
    )

    def run_one(source: str, budget: float | None) -> LoadReport:
        scope, started = Scope(source), time.monotonic()
        if dry_run:
            return rehearse(scope, parts, options, began=started)
        return load("migrate", scope, parts, replace(options, budget_usd=budget), began=started)

    report = load_each(to_load, run_one, budget_usd=budget_usd) if to_load else None
    caught_up: dict[str, Any] | None = None
    if not dry_run:
        jobs = [] if report is None else _jobs_of(report)
        parts.vectors.complete_generation(
            name, describers=describers, chunker=CHUNKER_VERSION, jobs=jobs, now=live.read_time()
        )
        if _FOLLOWED in names:
            # As a part of this run: what it waits for, this run waits for.
            followed = ingest.fn(sources=TRANSACTIONS, generation=name, until_idle=True, retries=retries)
            caught_up = cast(dict[str, Any], followed.data)
    state = wanted.state if dry_run else live.read_book().find(name).state
    done = BuildReport(
        generation=name,
        made_by=wanted.made_by,
        sources=names,
        state=state,
        dry_run=dry_run,
        seconds=round(time.monotonic() - began, 1),
        load=None if report is None else asdict(report),
        caught_up=caught_up,
    )
    words = message_of(report) if report is not None else "it was complete, and is up to date"
    return Completed(message=f"{name} ({wanted.made_by}): {words}", data=asdict(done))


def _choose(
    store: VectorStore,
    live: VectorStore,
    book: Book,
    name: str,
    *,
    embedder: EmbedderName | None,
    model: str | None,
    dimensions: int | None,
    form: VectorForm | None,
) -> Generation:
    """Return what the generation is made by: as it was begun, or the live one with the choices that were given."""
    found = book.generations.get(name)
    if found is not None:
        return replace(
            found,
            embedder=embedder or found.embedder,
            model=model or found.model,
            dimensions=dimensions or found.dimensions,
            form=form or found.form,
        )
    which = embedder or (embedder_of(model) if model is not None else live.embedder)
    # The other embedder is taken as it is registered, the same one as the live generation has it.
    base = load_embedder(live if which == live.embedder else store.model_copy(update={"embedder": which}))
    facts = chosen(base, model=model, dimensions=dimensions).facts
    return Generation(name, which, facts.model, facts.dimensions, facts.task, form or live.vector_form)


def _describe_first(live: VectorStore, book: Book) -> Generation:
    """Return what the first generation is made by, for a store that never had another one.

    Raises ``InputError`` where nothing is stored yet, and ``TerminalError`` where what is stored is of another model
    than the registered embedder's.
    """
    if book.version:
        return book.find(book.live)
    if live.is_empty():
        raise InputError("the store holds no vectors yet: run `migrate`; a generation is built beside a live one")
    facts = load_embedder(live).facts
    live.require_model(facts, replace=False, write=False)
    return Generation(FIRST, live.embedder, facts.model, facts.dimensions, facts.task, live.vector_form)


def _find_unloaded(found: Generation, vectors: VectorStore, describers: Mapping[str, int]) -> list[str]:
    """Return the sources to load: all while it is half built, else those that are not loaded or described anew.

    Sources that no change stream follows are always looked through; what is stored of them is passed over.
    """
    if found.state == "building" or found.chunker != CHUNKER_VERSION:
        return list(describers)
    loaded = set(vectors.read_loaded_sources())
    return [
        source
        for source, version in describers.items()
        if source != _FOLLOWED or source not in loaded or found.describers.get(source) != version
    ]


def _jobs_of(report: LoadReport) -> list[str]:
    """Return the jobs that made a report."""
    runs = [one["run_id"] for one in (report.by_source or {}).values()] or [report.run_id]
    return [job_id(run_id, "migrate") for run_id in runs]


# -- what needs no Prefect server -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standing:
    """A generation as it stands: what made it, and what it holds now.

    ``followed_until`` is when its position in the source's changes last moved; None where it has none.
    """

    generation: Generation
    documents: int
    bytes_on_disk: int
    sources: list[str]
    followed_until: datetime | None


def list_generations(vectors: VectorStore, embedders: Embedders) -> tuple[Book, list[Standing]]:
    """Return the book and all that stand, the live one first; of a store that never had another, its one."""
    book = vectors.read_book()
    entries = [one for one in book.generations.values() if one.is_standing]
    if not book.version:
        live = vectors.at()
        facts = embedders.of(live).facts
        entries = [
            Generation(FIRST, live.embedder, facts.model, facts.dimensions, facts.task, live.vector_form, state="live")
        ]
    entries.sort(key=lambda one: (one.name != book.live, one.name))
    return book, [_look_at(vectors.at(entry), entry) for entry in entries]


def _look_at(vectors: VectorStore, entry: Generation) -> Standing:
    documents, size = vectors.measure()
    position = vectors.load_position(_FOLLOWED)
    return Standing(
        entry, documents, size, vectors.read_loaded_sources(), position["updatedAt"] if position is not None else None
    )


def compare_generations(
    questions: Sequence[Question],
    tenant: Tenant,
    *,
    one: str,
    other: str,
    vectors: VectorStore,
    embedders: Embedders,
) -> dict[str, Any]:
    """Return how two generations answer the same questions, each asked in its own model; nothing is written.

    ``by_kind`` and ``questions`` are as ``compare_answers`` says. Raises ``InputError`` where one doesn't exist.
    """
    if one == other:
        raise InputError(f"{one} is compared with itself: name another generation")
    answers: dict[str, list[tuple[str, ...]]] = {}
    for name in (one, other):
        chosen_one = vectors.at(name)
        found = search(
            [question.text for question in questions],
            tenant,
            limit=_DOCUMENTS,
            vectors=chosen_one,
            embedder=embedders,
        )
        answers[name] = [top(hit.source_id for hit in hits) for hits in found]
    by_kind, rows = compare_answers(questions, answers)
    return {"one": one, "other": other, "by_kind": by_kind, "questions": rows}


def switch(name: str, *, vectors: VectorStore, embedders: Embedders) -> Book:
    """Make a complete or retired generation the live one; return the book.

    Readers have it with their next search, ``ingest`` with its next run. The one before it is kept. Raises
    ``InputError`` if it is half built or lacks a source that the live one holds, and what asking a question raises, if
    its embedder doesn't answer: then nothing was switched.
    """
    book, wanted, live = vectors.read_book(), vectors.at(name), vectors.at()
    book.switched(name, now=live.read_time())
    lacking = set(live.read_loaded_sources()) - set(wanted.read_loaded_sources())
    if lacking:
        plurals = ", ".join(plural_of(source) for source in sorted(lacking))
        raise InputError(
            f"the generation {name} lacks {plurals}, which the live one holds: build it again with all of its sources"
        )
    embedders.of(wanted).embed_query("transaction")
    audit("generation_switched", f"the generation {name} is live", generation=name, before=live.generation_name)
    return vectors.switch_generation(name, now=live.read_time())


def roll_back(*, vectors: VectorStore) -> Book:
    """Make the generation live again that was before this one: one read and one write; return the book.

    It has what it had when it retired; ``ingest`` takes over what changed since, from its own position.
    """
    audit("generation_rolled_back", "the generation before is to be live again")
    return vectors.roll_back_generation(now=vectors.read_time())


def drop(name: str, *, vectors: VectorStore) -> Book:
    """Delete a generation with its dead letters and positions; return the book. A drop that was cut off goes on.

    Raises ``InputError`` for the live one and ``WorkTakenError`` while a run is at it.
    """
    _require_idle(name, vectors)
    vectors.begin_to_drop_generation(name)
    # From here on nobody begins; who began in between is waited for, by whoever gives the command again.
    _require_idle(name, vectors)
    audit("generation_dropped", f"the generation {name} is dropped", generation=name)
    return vectors.drop_generation(name, now=vectors.read_time())


def _require_idle(name: str, vectors: VectorStore) -> None:
    # Jobs of versions that knew no generations were at the first.
    whose = {"$in": [FIRST, None]} if name == FIRST else name
    criteria = {"status": "processing", "metadata.runKey": {"$exists": True}, "metadata.choices.generation": whose}
    for job in vectors.find_jobs(criteria):
        if is_alive(job, now=vectors.read_time()):
            raise WorkTakenError(
                f"the run {job['jobId']} on {job['workerHost']} is at the generation {name}: wait for it, or cancel it "
                "first"
            )
