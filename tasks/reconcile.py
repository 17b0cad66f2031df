"""Reconcile: the source against the store, record by record, by what the two say themselves."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bson import ObjectId
from prefect import task

from blocks.mongo import MongoSource
from blocks.records import Records, open_records
from blocks.vector_store import VectorStore
from tasks.domain.batches import batched
from tasks.domain.dead_letters import record_key
from tasks.domain.differences import RecordIds
from tasks.domain.documents import holder_of
from tasks.domain.errors import TerminalError
from tasks.domain.manifests import Counts, Manifest
from tasks.domain.owners import Owners
from tasks.domain.runs import Run
from tasks.domain.shards import ShardRange
from tasks.policy import STAGE

_SHOWN = 5
_LOOKUP_RECORDS = 1_000
#: More records than this share gone from the source at once looks like the wrong database, not like deletions.
MAX_ORPHAN_SHARE = 0.05
FEW_RECORDS = 10
#: A writer removes vectors before it puts down a dead letter or the record's new vectors: so long what is missing may
#: still turn up.
_SETTLING_SECONDS = (0.5, 1.5, 4.0)


@dataclass(slots=True)
class Reconciliation:
    """Records, but for ``documents`` and ``removed``, which are vector documents.

    ``arrived`` are in the source, but were not when their shard was read: the next run takes them. ``removed`` were
    documents of records that are gone. ``differences`` are what must not be; where there are any, the run failed.
    """

    in_source: int = 0
    stored: int = 0
    dead_lettered: int = 0
    documents: int = 0
    arrived: int = 0
    orphaned: int = 0
    removed: int = 0
    differences: list[str] = field(default_factory=list)


@task(name="reconcile", task_run_name="reconcile", **STAGE)
def reconcile_run(
    run: Run,
    shards: Sequence[ShardRange],
    counts: Mapping[int, Counts],
    manifest: Manifest,
    source: MongoSource,
    vectors: VectorStore,
    criteria: Mapping[str, Any],
    holds: Callable[[Mapping[str, Any]], bool],
    remove_orphans: bool,
) -> Reconciliation:
    """Return how source and store compare after a run; ``counts`` are those of each shard.

    What counts is each record that the run accounted for: if the source still holds it and nobody refused it since,
    it has its vectors, all of them and once. What others write meanwhile is theirs: what looks wrong is looked at
    again, with the source and the dead letters as they are then. Memory holds the ids of one shard. Removes the
    documents of records that are gone from the source, if they are few or ``remove_orphans`` says so; raises
    ``TerminalError``, with nothing removed, if they are many.
    """
    result = Reconciliation()
    records = open_records(source, run.scope.source)
    # One shard of a small source spans the ids of all the others.
    of = records.kind.name if len(shards) <= 1 or not records.are_in_order else None
    whole = run.scope.whole
    orphans = RecordIds()
    lost: set[bytes] = set()
    for shard in list(shards) or [ShardRange(0, None, None, 0)]:
        ids = records.read_ids(shard, criteria, limit=run.scope.limit, holds=None if whole else holds)
        # Sets of bytes, not of ObjectIds, whose comparing is Python's: this is a third of what a second run costs.
        accounted = vectors.load_stored_ids(run.key, shard.number)
        stored = Counter(record.binary for record in vectors.read_source_ids(shard, of=of))
        absent = [ObjectId(key) for key in accounted - stored.keys() if key in ids]
        settled = _settle(run, absent, records, vectors, patient=not result.differences)
        if settled.lost:
            lost.update(record.binary for record in settled.lost)
            result.differences.append(_lost_vectors(shard, settled.lost))
        others = {key: ids[key] for key in ids.keys() - accounted}
        refused = vectors.find_dead_letter_keys(run.scope.source, others.values()) if others else set()
        new = {key: record for key, record in others.items() if key not in refused}
        # A shard that read fewer records than were planned missed some, unless they were deleted in between.
        done = counts.get(shard.number, Counts())
        unread = sum(key not in stored and not _made_since(run, record) for key, record in new.items())
        missed = min(unread, max(0, shard.planned - done.read))
        if missed:
            result.differences.append(f"{missed} records of shard {shard.number} were planned but not read")
        result.arrived += len(new) - missed
        result.in_source += len(ids) - settled.gone
        result.dead_lettered += len(refused) + settled.refused
        there = accounted & stored.keys()
        result.stored += settled.stored + len(there & ids.keys() if whole else there)
        documents = sum(map(stored.__getitem__, there))
        # Where the number of documents is not what was described, every record is looked at, else only those of
        # several chunks: another writer may have changed one, and then its documents fit together all the same.
        suspects = [ObjectId(key) for key in there if stored[key] > 1 or documents != done.chunks]
        result.documents += documents
        broken = _find_broken(run, suspects, records, vectors, patient=not result.differences)
        result.differences.extend(broken)
        if whole and not records.kind.forgets:
            orphans.extend(map(ObjectId, stored.keys() - ids.keys()))
    if whole:
        gone = settle_orphans(run, orphans, records, vectors, remove_orphans, result)
        _compare_holders(run, shards, manifest, gone, lost, records, vectors, result)
    return result


def _made_since(run: Run, record: Any) -> bool:
    """Return whether a record's id, which holds whole seconds, says that it was made after the work began."""
    began_s = (run.started_ms if run.began_ms is None else run.began_ms) // 1000
    return isinstance(record, ObjectId) and record.generation_time.timestamp() >= began_s


def _lost_vectors(shard: ShardRange, lost: Sequence[ObjectId]) -> str:
    return f"{len(lost)} records of shard {shard.number} lost their vectors: {_some(sorted(lost))}"


@dataclass(slots=True)
class _Settled:
    """What became of records without vectors: how many have them again, were deleted or refused; and the lost."""

    stored: int = 0
    gone: int = 0
    refused: int = 0
    lost: list[ObjectId] = field(default_factory=list)


def _settle(
    run: Run,
    suspects: Sequence[ObjectId],
    records: Records,
    vectors: VectorStore,
    *,
    patient: bool,
) -> _Settled:
    """Look again at records that had no vectors; with ``patient`` several times, while a writer may be at them."""
    settled = _Settled(lost=list(suspects))
    for wait_s in (0.0, *(_SETTLING_SECONDS if patient else ())):
        if not settled.lost:
            break
        time.sleep(wait_s)
        left: list[ObjectId] = []
        for some in batched(settled.lost, _LOOKUP_RECORDS):
            # A writer removes vectors first and puts dead letters down last: looked at in this order, what it ended
            # before is seen whole.
            stored = {document["sourceId"] for document in vectors.find_documents(run.scope.source, some)}
            refused = vectors.find_dead_letter_keys(run.scope.source, some)
            alive = records.find_existing(some)
            for record in some:
                if record in stored:
                    settled.stored += 1
                elif record.binary not in alive:
                    settled.gone += 1
                elif record.binary in refused:
                    settled.refused += 1
                else:
                    left.append(record)
        settled.lost = left
    return settled


def _find_broken(
    run: Run,
    suspects: Sequence[ObjectId],
    records: Records,
    vectors: VectorStore,
    *,
    patient: bool,
) -> list[str]:
    """Say which records' documents are not just the chunks of one text, each once; of a deleted one nothing is said."""
    broken = _broken(run, suspects, vectors)
    for wait_s in _SETTLING_SECONDS if patient else ():
        if not broken:
            break
        time.sleep(wait_s)  # of several chunks a writer may have written some
        broken = _broken(run, list(broken), vectors)
    alive = set[bytes]()
    for some in batched(broken, _LOOKUP_RECORDS):
        alive |= records.find_existing(some)
    return [said for record, said in broken.items() if record.binary in alive]


def _broken(run: Run, records: Sequence[ObjectId], vectors: VectorStore) -> dict[ObjectId, str]:
    found: dict[ObjectId, str] = {}
    for some in batched(records, _LOOKUP_RECORDS):
        documents: dict[ObjectId, list[Mapping[str, Any]]] = {}
        for document in vectors.find_documents(run.scope.source, some):
            documents.setdefault(document["sourceId"], []).append(document)
        for record, own in documents.items():
            keys = {document["documentId"].rpartition(":")[0] for document in own}
            ordinals = sorted(document["lineage"]["ordinal"] for document in own)
            chunks = {document["lineage"]["chunks"] for document in own}
            if len(keys) > 1 or chunks != {len(own)} or ordinals != list(range(len(own))):
                found[record] = (
                    f"record {record} has documents that don't fit together: {_some(sorted(keys))}, {ordinals}"
                )
    return found


def settle_orphans(
    run: Run,
    candidates: RecordIds,
    records: Records,
    vectors: VectorStore,
    remove: bool,
    result: Reconciliation,
) -> Counter[str]:
    """Remove the documents of records that are really gone, and close the dead letters of such records.

    Return how many such records each holder had. Raises ``TerminalError``, with nothing removed, if they are more
    than a few and ``remove`` does not say so. Memory holds the candidates' ids and a batch of their documents.
    """
    for documents in _find_orphaned(run, candidates, records, vectors):
        result.orphaned += len({document["sourceId"] for document in documents})
    total = result.stored + result.orphaned
    too_many = result.in_source == 0 or result.orphaned > max(FEW_RECORDS, total * MAX_ORPHAN_SHARE)
    if result.orphaned and too_many and not remove:
        raise TerminalError(
            f"{result.orphaned:,} of {total:,} stored records are not in the source. If CRYPTIQUE_SOURCE_URI and "
            "CRYPTIQUE_SOURCE_DATABASE are right and they were deleted, run again with --remove-orphans; nothing was "
            "removed"
        )
    gone: Counter[str] = Counter()
    if result.orphaned:
        for documents in _find_orphaned(run, candidates, records, vectors):
            result.removed += vectors.remove_documents([document["documentId"] for document in documents])
            gone.update(
                holder_of(document["documentId"]) for document in documents if document["lineage"]["ordinal"] == 0
            )
    refused = RecordIds()
    for some in batched(vectors.read_dead_letter_ids(run.scope.source), _LOOKUP_RECORDS):
        alive = records.find_existing(some)
        refused.extend(record_id for record_id in some if record_key(record_id) not in alive)
    for some in batched(refused, _LOOKUP_RECORDS):
        vectors.resolve_dead_letters(run.scope.source, some, run_id=run.id, now=datetime.now(UTC))
    return gone


def _find_orphaned(
    run: Run, candidates: RecordIds, records: Records, vectors: VectorStore
) -> Iterator[list[Mapping[str, Any]]]:
    """Yield the documents of those candidates that the source does not hold now, some records' at a time."""
    for some in batched(candidates, _LOOKUP_RECORDS):
        # Other sources share the collection, and a record may have come back since.
        alive = records.find_existing(some)
        yield [
            document
            for document in vectors.find_documents(run.scope.source, some)
            if document["sourceId"].binary not in alive
        ]


def settle_kept(run: Run, candidates: RecordIds, owners: Owners, vectors: VectorStore) -> int:
    """Give the documents of records that a source forgot to the owners of now; return how many records they are of.

    They can't be described again: only whose they are is changed. What nobody owns is hidden from every search, and
    shown again when somebody does: its figures could not be had again.
    """
    given = 0
    for some in batched(candidates, _LOOKUP_RECORDS):
        by_holder: dict[str, list[str]] = {}
        documents = vectors.find_documents(run.scope.source, some)
        given += len({document["sourceId"] for document in documents})
        for document in documents:
            by_holder.setdefault(holder_of(document["documentId"]), []).append(document["documentId"])
        for holder_id, document_ids in by_holder.items():
            holder = owners.find_holder(holder_id)
            vectors.give_documents(
                document_ids,
                None if holder is None else holder.team_id,
                None if holder is None else holder.site_id,
            )
    return given


def _compare_holders(
    run: Run,
    shards: Sequence[ShardRange],
    manifest: Manifest,
    gone: Counter[str],
    told: set[bytes],
    records: Records,
    vectors: VectorStore,
    result: Reconciliation,
) -> None:
    """Hold what the run says it left stored against what the store's own index counts, per team and holder.

    A holder has fewer by right where records were deleted, refused or moved to another one meanwhile. So the
    records of a shard that accounts for a holder with fewer are looked at one by one: those that are nowhere and
    should be are differences, without the ``told`` ones.
    """
    expected: Counter[str] = Counter()
    teams: dict[str, str | None] = {}
    for owner, counts in manifest.by_owner.items():
        if owner.holder_id is not None:
            expected[owner.holder_id] += counts.written + counts.unchanged
            teams[owner.holder_id] = owner.team_id
    expected -= gone
    found = vectors.count_records_by_holder(run.scope.source)
    fewer = {holder_id for holder_id, least in expected.items() if found.get(holder_id, 0) < least}
    if not fewer:
        return
    checkpoints = vectors.load_checkpoints(run.key)
    lost_by_holder: Counter[str] = Counter()
    for shard in shards:
        checkpoint = checkpoints.get(shard.number, Manifest())
        if not any(owner.holder_id in fewer for owner in checkpoint.by_owner):
            continue
        accounted = vectors.load_stored_ids(run.key, shard.number)
        absent: list[ObjectId] = []
        for some in batched(map(ObjectId, accounted - told), _LOOKUP_RECORDS):
            # By source: a document of another one may have the id of a record, and the index of ids can't tell.
            stored = {document["sourceId"] for document in vectors.find_documents(run.scope.source, some)}
            absent.extend(record for record in some if record not in stored)
        settled = _settle(run, absent, records, vectors, patient=not result.differences)
        if settled.lost:
            result.differences.append(_lost_vectors(shard, settled.lost))
        lost = [*settled.lost, *map(ObjectId, accounted & told)]
        lost_by_holder.update(records.find_holders(lost).values() if lost else ())
    for holder_id in sorted(fewer & lost_by_holder.keys()):
        result.differences.append(
            f"{holder_id} (team {teams[holder_id]}): the run accounts for {expected[holder_id]} "
            f"records, the store holds {found.get(holder_id, 0)}"
        )


def _some(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:_SHOWN])) + (", …" if len(values) > _SHOWN else "")
