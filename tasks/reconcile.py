"""Reconcile: the source against the store, record by record, by what the two say themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bson import ObjectId
from prefect import task

from blocks.mongo import MongoSource
from blocks.vector_store import VectorStore
from tasks.domain.errors import TerminalError
from tasks.domain.manifests import Manifest
from tasks.domain.runs import Run
from tasks.domain.shards import ShardRange
from tasks.policy import WRITING

_SHOWN = 5
#: More records than this share gone from the source at once looks like the wrong database, not like deletions.
MAX_ORPHAN_SHARE = 0.05
_FEW_ORPHANS = 100


@dataclass(slots=True)
class Reconciliation:
    """Records, but for ``documents`` and ``removed``, which are vector documents.

    ``arrived`` are in the source, but were not when their shard was read: the next run takes them. ``removed`` were
    documents of records that are gone.
    """

    in_source: int = 0
    stored: int = 0
    dead_lettered: int = 0
    documents: int = 0
    arrived: int = 0
    orphaned: int = 0
    removed: int = 0
    differences: list[str] = field(default_factory=list)


@task(name="reconcile", task_run_name="reconcile", **WRITING)
def reconcile_run(
    run: Run,
    shards: Sequence[ShardRange],
    manifest: Manifest,
    source: MongoSource,
    vectors: VectorStore,
    collection: str,
    criteria: Mapping[str, Any],
    holds: Callable[[Mapping[str, Any]], bool],
    remove_orphans: bool,
) -> Reconciliation:
    """Return how source and store compare after a run. Memory holds the ids of one shard.

    Removes the documents of records that are gone from the source, if they are few or ``remove_orphans`` says so.
    Raises ``TerminalError`` if a record has no outcome, if the counts of a contract differ, or if too many records
    are gone.
    """
    result = Reconciliation()
    whole = run.scope.whole
    ranges = list(shards) or [ShardRange(0, None, None, 0)]
    orphans: list[ObjectId] = []
    for shard in ranges:
        ids = _source_ids(source, collection, shard, criteria, holds, whole)
        stored = list(vectors.read_source_ids(shard))
        distinct = set(stored)
        absent = [record_id for record_id in ids if record_id not in distinct]
        refused = vectors.find_dead_letter_ids(run.scope.source_type, absent) if absent else set()
        missing = [record_id for record_id in absent if record_id not in refused]
        result.in_source += len(ids)
        result.dead_lettered += len(refused)
        result.stored += len(ids) - len(absent)
        if missing:
            arrived = max(0, len(ids) - shard.planned)
            result.arrived += min(arrived, len(missing))
            if len(missing) > arrived:
                result.differences.append(
                    f"{len(missing) - arrived} records of shard {shard.number} have neither a vector nor a dead "
                    f"letter: {_some(missing)}"
                )
        if whole:
            known = set(ids)
            result.documents += sum(record_id in known for record_id in stored)
            orphans.extend(record_id for record_id in distinct if record_id not in known)
    if whole:
        _settle_orphans(run, orphans, source, vectors, collection, remove_orphans, result)
        if not result.arrived and not result.orphaned:
            _compare_contracts(run, manifest, vectors, result)
    if result.differences:
        raise TerminalError(
            "source and store differ after the run: "
            + "; ".join(result.differences[:_SHOWN])
            + ". Run it again: it writes what is missing and leaves the rest"
        )
    return result


def _source_ids(
    source: MongoSource,
    collection: str,
    shard: ShardRange,
    criteria: Mapping[str, Any],
    holds: Callable[[Mapping[str, Any]], bool],
    whole: bool,
) -> list[Any]:
    fields = () if whole else ("block_time",)
    rows = source.read_range(collection, shard, criteria=criteria, fields=fields or ("_id",))
    return [row["_id"] for row in rows if whole or holds(row)]


def _settle_orphans(
    run: Run,
    candidates: list[ObjectId],
    source: MongoSource,
    vectors: VectorStore,
    collection: str,
    remove: bool,
    result: Reconciliation,
) -> None:
    """Remove the documents of records that are really gone, and close the dead letters of such records."""
    documents: list[Mapping[str, Any]] = []
    for some in _batches(candidates, 1_000):
        # Other sources share the collection, and a record may have come back since.
        alive = source.find_existing(collection, some)
        documents.extend(
            document
            for document in vectors.find_documents(run.scope.source_type, some)
            if document["sourceId"] not in alive
        )
    result.orphaned = len({document["sourceId"] for document in documents})
    total = result.stored + result.orphaned
    if not remove and result.orphaned > max(_FEW_ORPHANS, total * MAX_ORPHAN_SHARE):
        raise TerminalError(
            f"{result.orphaned:,} of {total:,} stored records are not in the source. If CRYPTIQUE_SOURCE_URI and "
            "CRYPTIQUE_SOURCE_DATABASE are right and they were deleted, run again with --remove-orphans; nothing was "
            "removed"
        )
    result.removed = vectors.remove_documents([document["documentId"] for document in documents])
    gone: list[Any] = []
    for some in _batches(vectors.read_dead_letter_ids(run.scope.source_type), 1_000):
        alive = source.find_existing(collection, some)
        gone.extend(record_id for record_id in some if record_id not in alive)
    for some in _batches(gone, 1_000):
        vectors.resolve_dead_letters(run.scope.source_type, some, run_id=run.id, now=datetime.now(UTC))


def _compare_contracts(run: Run, manifest: Manifest, vectors: VectorStore, result: Reconciliation) -> None:
    """Hold what the run says it left stored against what the store's own index counts, per team and contract."""
    expected: dict[str, int] = {}
    teams: dict[str, str | None] = {}
    for owner, counts in manifest.by_owner.items():
        if owner.contract_id is not None and counts.written + counts.unchanged:
            expected[owner.contract_id] = expected.get(owner.contract_id, 0) + counts.written + counts.unchanged
            teams[owner.contract_id] = owner.team_id
    found = vectors.count_records_by_contract(run.scope.source_type)
    for contract_id in sorted(expected.keys() | found.keys()):
        if expected.get(contract_id, 0) != found.get(contract_id, 0):
            result.differences.append(
                f"contract {contract_id} (team {teams.get(contract_id) or 'unknown'}): the run accounts for "
                f"{expected.get(contract_id, 0)} records, the store holds {found.get(contract_id, 0)}"
            )
    if result.documents != manifest.total.chunks:
        result.differences.append(
            f"the run described {manifest.total.chunks} chunks, the store holds {result.documents} documents"
        )


def _batches(items: Iterable[Any], size: int) -> Iterable[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _some(ids: Sequence[Any]) -> str:
    return ", ".join(map(str, ids[:_SHOWN])) + (", …" if len(ids) > _SHOWN else "")
