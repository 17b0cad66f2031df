"""Reconcile: source against store, record by record: what is missing, stale, moved, orphaned or doubled, mended."""

from __future__ import annotations

import time
from collections import Counter
from typing import Annotated, Any

from prefect import flow, get_run_logger, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from blocks.memory import limit_heaps
from blocks.records import open_records
from flows.blocks import Parts, load_parts, of_generation
from flows.compare import compare_source
from flows.differences import Row, holder_rows, merge_rows, place_rows, publish_differences, publish_sources
from flows.hooks import alert_on_crashed, alert_on_failure, resolve_on_completion
from flows.jobs import require_loaded
from flows.load import LEAST_USD, prepare
from flows.parameters import TRANSACTIONS, Budget, GenerationName, Retries, ShardRows, Sources, names_of
from flows.records import Selection, load_records
from flows.stages import task_runner
from tasks.domain.differences import KINDS, Differences, in_words
from tasks.domain.errors import TerminalError, WorkTakenError
from tasks.domain.registry import plural_of
from tasks.domain.runs import Run, Scope
from tasks.domain.shards import DEFAULT_SHARD_ROWS
from tasks.policy import DEFAULT_RETRIES
from tasks.reconcile import FEW_RECORDS, Reconciliation, settle_kept, settle_orphans

#: More stored records than this share without an owner at once looks like teams or contracts that can't be read, not
#: like tenants that left.
MAX_UNOWNED_SHARE = 0.5
_FIGURES = (*KINDS, "compared", "stored", "dead_lettered", "mended", "written", "removed")


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
        bool, Field(description="Remove vectors of records that are gone or belong to nobody, however many they are.")
    ] = False,
    shard_rows: ShardRows = DEFAULT_SHARD_ROWS,
    budget_usd: Budget = None,
    generation: GenerationName = None,
    retries: Retries = DEFAULT_RETRIES,
) -> State[dict[str, Any]]:
    """Compare every record of the sources with what is stored of it, and mend what differs.

    Runs nightly. Each record is described again and compared by its hashes, so that a change that ``ingest`` does not
    follow (an owner, a new describer, a write that it lost) is found; nothing is embedded but what differs. Vectors of
    a record that has another owner now are given to that one, those of a record that nobody owns now are removed, or
    archived where the source has forgotten the record. What changes meanwhile is read once more before it is touched.
    A source waits, as completed, until the whole of it was loaded once, and while a load of it is under way or paused.
    Fails, with all sources gone through, if anything differs that it may not mend: where too many records of a source
    are gone or lost their owners, nothing of that source is touched. Without ``heal`` it writes its job and nothing
    else. The result has the counts of records of each kind, ``compared``, ``stored``, ``dead_lettered`` and
    ``mended``, of which ``written``, how many documents were ``removed``, and the counts where anything differs or is
    dead-lettered: under ``holders`` by source, team and contract or website, under ``places`` by day too.
    """
    limit_heaps()
    parts = load_parts(retries=retries, generation=generation)
    parts.vectors.require_model(parts.facts, replace=False, write=False)
    if heal:
        prepare(parts, replace_model=False)
    night = _Night()
    waiting: list[str] = []
    failed: dict[str, TerminalError] = {}
    names = names_of(sources)
    for source in names:
        try:
            if heal:
                # What is missing before the first load has ended, or while one is paused, is not lost; it is not paid
                # for yet.
                require_loaded(parts, source)
        except WorkTakenError as error:
            waiting.append(f"{plural_of(source)} wait: {error}")
            continue
        left_usd = None if budget_usd is None else max(LEAST_USD, budget_usd - night.cost_usd)
        try:
            _reconcile(source, parts, heal, remove_orphans, shard_rows, left_usd, night)
        except TerminalError as error:
            if len(names) == 1:
                raise
            get_run_logger().error("%s: %s", plural_of(source), error)
            failed[source] = error
    if len(names) > 1 and night.by_source:
        notes = [f"{plural_of(source)}: {error}" for source, error in failed.items()]
        publish_sources(night.by_source, night.holders, [*notes, *waiting])
    if failed:
        words = "; ".join(f"{plural_of(source)}: {error}" for source, error in failed.items())
        taken = all(isinstance(error, WorkTakenError) for error in failed.values())
        raise (WorkTakenError if taken else TerminalError)(words)
    if not night.by_source:
        return Completed(message=f"waiting: {'; '.join(waiting)}", data={})
    return Completed(message="; ".join((night.words, *waiting)), data=night.to_record())


class _Night:
    """What one run found and did, source after source."""

    def __init__(self) -> None:
        self.by_source: dict[str, dict[str, Any]] = {}
        self.places: list[Row] = []
        self.holders: list[Row] = []
        self.cost_usd = 0.0

    def found(self, source: str, differences: Differences, parts: Parts) -> dict[str, int]:
        """Note what a source's comparison found; return its figures."""
        total = differences.total
        counts = {name: count for name, count in total.to_record().items() if name != "in_source"}
        figures = {**counts, "compared": total.in_source}
        self.by_source[source] = {**figures, "in_source": total.in_source}
        self.places = merge_rows([*self.places, *place_rows(source, differences, parts.owners)])
        self.holders = merge_rows([*self.holders, *holder_rows(source, differences, parts.owners)])
        return figures

    @property
    def total(self) -> dict[str, int]:
        """Return the sums over all sources."""
        total: Counter[str] = Counter()
        for figures in self.by_source.values():
            total.update({name: figures.get(name, 0) for name in _FIGURES})
        return {name: total[name] for name in _FIGURES}

    @property
    def words(self) -> str:
        """Return what was found and done, for the run's state."""
        total = self.total
        words = f"{total['compared']:,} compared: {in_words(total)}"
        if total["mended"]:
            words += f"; mended: {total['written']:,} records written, {total['removed']:,} documents removed"
        return words

    def to_record(self) -> dict[str, Any]:
        """Return the result of the run. A run that went on after a pause has no places of what it found before."""
        sources = {name: {key: figures[key] for key in _FIGURES} for name, figures in self.by_source.items()}
        told = {"holders": self.holders, "places": self.places}
        return {**self.total, **told} | ({"by_source": sources} if len(sources) > 1 else {})


def _reconcile(
    source: str,
    parts: Parts,
    heal: bool,
    remove_orphans: bool,
    shard_rows: int,
    budget_usd: float | None,
    night: _Night,
) -> None:
    """Compare, and mend, one source; note what was found and done, and what that cost."""
    parts = parts.of_source(source)

    def select(run: Run) -> Selection:
        found = compare_source(run, parts, shard_rows)
        figures = night.found(source, found, parts)
        get_run_logger().info("%s records compared: %s", f"{figures['compared']:,}", found)
        publish_differences(found, source, parts.owners, parts.vectors.full_name)
        differs = any(figures[kind] for kind in KINDS)
        if not heal:
            if differs:
                raise TerminalError(
                    f"source and store differ: {found}. `cryptique-rag reconcile` mends it; the run's artifact names "
                    "the records"
                )
            return Selection([], figures | {"removed": 0, "given": 0})
        if not remove_orphans:
            _require_owners(found, figures["stored"])
        settled = Reconciliation(in_source=figures["compared"], stored=figures["compared"])
        records = open_records(parts.source, source)
        settle_orphans(run, found.orphans, records, parts.vectors, remove_orphans, settled)
        given = settle_kept(run, found.kept, parts.owners, parts.vectors)
        return Selection(found.to_mend, figures | {"removed": settled.removed, "given": given})

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
    night.cost_usd += report.cost_usd
    # A run that goes on after a pause has the figures of the comparison that it made before.
    night.by_source[source] = {
        **figures,
        "in_source": figures["compared"],
        "mended": sum(figures[kind] for kind in KINDS),
        "written": report.written + figures["given"],
        "removed": figures["removed"] + report.removed,
    }


def _require_owners(found: Differences, stored: int) -> None:
    """Raise ``TerminalError`` if so many stored records have no owner that the owners themselves are in doubt."""
    if found.unowned > max(FEW_RECORDS, stored * MAX_UNOWNED_SHARE):
        raise TerminalError(
            f"{found.unowned:,} of {stored:,} stored records belong to nobody now. If teams, websites and "
            "smartcontracts of the source are right, run again with --remove-orphans; nothing was removed"
        )
