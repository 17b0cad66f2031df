"""Reconcile: source against store, record by record: what is missing, stale, orphaned or doubled, and its mending."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from bson import ObjectId
from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from blocks.memory import limit_heaps
from blocks.mongo import MongoSource
from blocks.records import open_records
from blocks.vector_store import VectorStore
from flows.blocks import Parts, load_parts, of_generation
from flows.hooks import alert_on_crashed, alert_on_failure, resolve_on_completion
from flows.jobs import require_loaded
from flows.load import LEAST_USD, describe, plan_shards, prepare
from flows.parameters import TRANSACTIONS, Budget, GenerationName, Retries, ShardRows, Sources, names_of
from flows.progress import Progress
from flows.records import Selection, load_records
from flows.report import Announcer, never_stopping
from flows.stages import extract_arguments, task_runner, whole
from tasks.chunk import DescribedChunk
from tasks.domain.batches import batched
from tasks.domain.dead_letters import DeadLetter, record_key
from tasks.domain.errors import TerminalError, WorkTakenError
from tasks.domain.registry import plural_of
from tasks.domain.rows import Verdict, document_id
from tasks.domain.runs import Run, Scope
from tasks.domain.shards import DEFAULT_SHARD_ROWS, ShardRange
from tasks.extract import extract_shard
from tasks.policy import DEFAULT_RETRIES, STAGE
from tasks.reconcile import Reconciliation, settle_orphans

_SHOWN = 20
_LOOKUP_RECORDS = 1_000


@dataclass(slots=True)
class Differences:
    """Ids of records.

    ``missing`` lack a vector, ``stale`` say what the source no longer says, ``doubled`` have documents that they don't
    make, ``unaccounted`` are refused without a dead letter or stored in spite of one, ``orphaned`` are gone from the
    source.
    """

    compared: int = 0
    missing: list[Any] = field(default_factory=list)
    stale: list[Any] = field(default_factory=list)
    doubled: list[Any] = field(default_factory=list)
    unaccounted: list[Any] = field(default_factory=list)
    orphaned: list[ObjectId] = field(default_factory=list)

    def merge(self, other: Differences) -> None:
        """Add what another part of the source showed."""
        self.compared += other.compared
        for name in _KINDS:
            getattr(self, name).extend(getattr(other, name))

    @property
    def counts(self) -> dict[str, int]:
        """Return how many there are of each kind."""
        return {name: len(getattr(self, name)) for name in _KINDS}

    @property
    def to_mend(self) -> list[Any]:
        """Return the records that must go through the stages again, each once."""
        records = [*self.missing, *self.stale, *self.doubled, *self.unaccounted]
        return list({record_key(record): record for record in records}.values())

    def __str__(self) -> str:
        """Return ``2 missing, 1 stale``, or ``nothing differs``."""
        return _in_words(self.counts)


_KINDS = ("missing", "stale", "doubled", "unaccounted", "orphaned")


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing differs"


def run_name() -> str:
    """Return ``reconcile transactions``, or how many sources."""
    sources = runtime.flow_run.parameters.get("sources") or TRANSACTIONS
    return f"reconcile {sources[0] if len(sources) == 1 else f'{len(sources)} sources'}"


@flow(
    name="reconcile",
    flow_run_name=run_name,
    task_runner=task_runner(),
    on_failure=[alert_on_failure],
    on_crashed=[alert_on_crashed],
    on_completion=[resolve_on_completion],
)
def reconcile(
    sources: Sources = TRANSACTIONS,
    heal: Annotated[bool, Field(description="Mend what differs. False: only tell, and fail if anything does.")] = True,
    remove_orphans: Annotated[
        bool, Field(description="Remove vectors of records gone from the source, however many they are.")
    ] = False,
    shard_rows: ShardRows = DEFAULT_SHARD_ROWS,
    budget_usd: Budget = None,
    generation: GenerationName = None,
    retries: Retries = DEFAULT_RETRIES,
) -> State[dict[str, Any]]:
    """Compare every record of the source with what is stored of it, and mend what differs.

    Runs nightly. Each record is described again and compared by its hashes, so that a change that ``ingest`` does not
    follow (an owner, a new describer, a write that it lost) is found; nothing is embedded but what differs. What
    changes meanwhile is read once more before it is touched. Waits, as completed, until the whole source was loaded
    once, and while a load of it is under way or paused. Fails if anything differs that it may not mend; where too many
    records are gone from the source, nothing is touched. Without ``heal`` it writes its job and
    nothing else. The result has the counts of records of each kind, ``compared`` and ``mended``, of which ``written``,
    and how many documents were ``removed``.
    """
    limit_heaps()
    parts = load_parts(retries=retries, generation=generation)
    parts.vectors.require_model(parts.facts, replace=False, write=False)
    if heal:
        prepare(parts, replace_model=False)
    found: dict[str, dict[str, Any]] = {}
    waiting: list[str] = []
    for source in names_of(sources):
        try:
            if heal:
                # What is missing before the first load has ended, or while one is paused, is not lost; it is not paid
                # for yet.
                require_loaded(parts, source)
        except WorkTakenError as error:
            waiting.append(f"{plural_of(source)} wait: {error}")
            continue
        spent = sum(figures.pop("cost_usd", 0.0) for figures in found.values())
        budget_usd = None if budget_usd is None else max(LEAST_USD, budget_usd - spent)
        found[source] = _reconcile(source, parts, heal, remove_orphans, shard_rows, budget_usd)
    for figures in found.values():
        figures.pop("cost_usd", None)
    if not found:
        return Completed(message=f"waiting: {'; '.join(waiting)}", data={})
    total = dict(sum(map(Counter, found.values()), Counter()))  # a counter leaves out what is zero
    total = {name: total.get(name, 0) for name in (*_KINDS, "compared", "mended", "written", "removed")}
    counts = {name: total[name] for name in _KINDS}
    message = f"{total['compared']:,} compared: {_in_words(counts)}"
    if total["mended"]:
        message += f"; mended: {total['written']:,} records written, {total['removed']:,} documents removed"
    message = "; ".join((message, *waiting))
    return Completed(message=message, data=total | ({"by_source": found} if len(found) > 1 else {}))


def _reconcile(
    source: str, parts: Parts, heal: bool, remove_orphans: bool, shard_rows: int, budget_usd: float | None
) -> dict[str, Any]:
    """Compare, and mend, one source; return its counts of each kind and what was done, and what that cost."""

    def select(run: Run) -> Selection:
        found = _compare_all(run, parts, shard_rows)
        get_run_logger().info("%s records compared: %s", f"{found.compared:,}", found)
        _publish(found, source, parts)
        if not heal:
            if any(found.counts.values()):
                raise TerminalError(
                    f"source and store differ: {found}. `cryptique-rag reconcile` mends it; the run's artifact names "
                    "the records"
                )
            return Selection([], found.counts | {"compared": found.compared, "removed": 0})
        settled = Reconciliation(in_source=found.compared, stored=found.compared)
        records = open_records(parts.source, source)
        settle_orphans(run, found.orphaned, records, parts.vectors, remove_orphans, settled)
        return Selection(found.to_mend, found.counts | {"compared": found.compared, "removed": settled.removed})

    report, figures = load_records(
        "reconcile",
        of_generation(f"reconcile-{source}", parts),
        Scope(source),
        select,
        parts,
        began=time.monotonic(),
        thorough=True,
        budget_usd=budget_usd,
    )
    counts = {name: figures[name] for name in _KINDS}
    return {
        **counts,
        "compared": figures["compared"],
        "mended": sum(counts.values()),
        "written": report.written,
        "removed": figures["removed"] + report.removed,
        "cost_usd": report.cost_usd,
    }


def _compare_all(run: Run, parts: Parts, shard_rows: int) -> Differences:
    shards = plan_shards.with_options(retries=parts.retries)(parts.source, whole(parts.owners), run.scope, shard_rows)
    found = Differences()
    progress = Progress(sum(shard.planned for shard in shards))
    announcer = Announcer("reconcile", progress)
    looking = replace(run, thorough=False)  # counting a record's documents is enough to find that it has too many
    try:
        for shard in shards or [ShardRange(0, None, None, 0)]:
            found.merge(_compare(looking, shard, parts))
            progress.done = found.compared
            announcer.tell()
    finally:
        parts.store.drop_run(run.key)  # the shards of the comparison have the numbers of the batches that follow
    announcer.finish()
    return found


def _compare(run: Run, planned: ShardRange, parts: Parts) -> Differences:
    """Return what differs in one range of the source."""
    shard = extract_shard(whole(run), planned, *extract_arguments(parts), look_at_all=True)
    chunks, letters = describe(run, shard, parts)
    found: Differences = compare_shard(
        planned, shard.read, whole(chunks), whole(letters), run.scope.source, parts.source, parts.vectors
    )
    return found


@task(name="compare", task_run_name="compare {shard.number}", **STAGE)
def compare_shard(
    shard: ShardRange,
    read: int,
    chunks: Sequence[DescribedChunk],
    letters: Sequence[DeadLetter],
    name: str,
    source: MongoSource,
    vectors: VectorStore,
) -> Differences:
    """Return what differs between a range of the source with this name, described, and what is stored of it."""
    found = Differences(compared=read)
    expected: dict[ObjectId, set[str]] = {}
    for chunk in chunks:
        expected.setdefault(ObjectId(chunk.record_id), set()).add(document_id(chunk.key, chunk.ordinal))
    missing = {ObjectId(chunk.record_id) for chunk in chunks if chunk.verdict == Verdict.NEW}
    changed = (Verdict.TEXT_CHANGED, Verdict.ROW_CHANGED)
    stale = {ObjectId(chunk.record_id) for chunk in chunks if chunk.verdict in changed} - missing
    refused = {letter.record_id for letter in letters if isinstance(letter.record_id, ObjectId)}
    records = open_records(source, name)
    # One shard of a small source spans the ids of all the others.
    alone = (shard.lower, shard.upper) == (None, None)
    stored = Counter(vectors.read_source_ids(shard, of=name if alone or not records.are_in_order else None))
    # Other sources have documents in the same collection: what looks wrong is looked at once more, by source.
    made = {record: len(expected.get(record, ())) for record in (*expected, *refused)}
    several = [record for record, count in stored.items() if record in made and count > made[record]]
    doubled = {record for record, count in _count_documents(name, several, vectors).items() if count > made[record]}
    strangers = _count_documents(name, [record for record in stored if record not in made], vectors)
    # One that was added since the range was read has its vectors by right.
    alive = records.find_existing(strangers)
    found.missing, found.stale = sorted(missing), sorted(stale)
    found.doubled = sorted(doubled - missing - stale)
    if not records.kind.forgets:
        found.orphaned = sorted(record for record in strangers if record_key(record) not in alive)
    found.unaccounted = _find_unaccounted(name, expected, letters, vectors)
    return found


def _count_documents(source: str, records: Sequence[ObjectId], vectors: VectorStore) -> Counter[ObjectId]:
    """Return how many documents of a source each record has."""
    return Counter(
        document["sourceId"]
        for some in batched(records, _LOOKUP_RECORDS)
        for document in vectors.find_documents(source, some)
    )


def _find_unaccounted(
    source: str, expected: Iterable[ObjectId], letters: Sequence[DeadLetter], vectors: VectorStore
) -> list[Any]:
    """Return the refused records without an open dead letter, and the others with one."""
    known: set[bytes] = set()
    wanted = {record_key(letter.record_id): letter.record_id for letter in letters}
    others = {record_key(record): record for record in expected}
    if vectors.has_dead_letters():
        for some in batched([*wanted.values(), *others.values()], _LOOKUP_RECORDS):
            known |= vectors.find_dead_letter_keys(source, some)
    return [wanted[key] for key in wanted if key not in known] + [others[key] for key in others if key in known]


def _publish(differences: Differences, source: str, parts: Parts) -> None:
    lines = [f"# {plural_of(source).capitalize()}: {differences.compared:,} records compared: {differences}"]
    for name in _KINDS:
        ids: Sequence[Any] = getattr(differences, name)
        if ids:
            lines += ["", f"## {name}", "", *(f"- {record}" for record in ids[:_SHOWN])]
            lines += [f"- and {len(ids) - _SHOWN:,} more"] if len(ids) > _SHOWN else []
    lines += ["", f"Vectors: {parts.vectors.full_name}."]
    with never_stopping("the list of differences"):
        create_markdown_artifact(
            "\n".join(lines), key=f"reconcile-differences-{source.replace('_', '-')}", description="What differed"
        )
