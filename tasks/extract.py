"""Extract: one range of a source, read, parsed and described, but for what is stored as it is; what can't be parsed
becomes a dead letter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import bson
import pyarrow as pa
from bson import ObjectId
from prefect import task

from blocks.mongo import MongoSource, RawRecord
from blocks.records import open_records
from blocks.shards import ShardStore
from blocks.vector_store import VectorStore
from tasks.domain.batches import batched
from tasks.domain.changes import ChangeBatch
from tasks.domain.chunks import ChunkSize
from tasks.domain.dead_letters import DeadLetter, record_key
from tasks.domain.digests import SourceDigests, StoredRecord, UnchangedRecord
from tasks.domain.documents import DescribedRecord, Document
from tasks.domain.errors import RecordError
from tasks.domain.owners import Owners
from tasks.domain.profiles import Profile, observe, seen_share_for, share_for
from tasks.domain.rows import encode_head
from tasks.domain.runs import Run, Scope
from tasks.domain.shards import Shard, ShardFile, ShardRange
from tasks.domain.sources import Source
from tasks.domain.tables import schema_of, to_table
from tasks.domain.vectors import EmbedderFacts
from tasks.policy import STAGE

_RECORDS_AT_ONCE = 1_000
_SCHEMA = schema_of(DescribedRecord)


def source_criteria(kind: Source, scope: Scope, owners: Owners) -> dict[str, Any]:
    """Return the MongoDB filter of a scope. Records that nobody owns are only in a scope without owners."""
    parts: list[dict[str, Any]] = []
    if scope.team_ids or scope.contract_ids:
        parts.append(kind.owned_by(owners, scope.team_ids, scope.contract_ids))
    if not scope.window.unbounded and kind.time_field is not None:
        parts.append(scope.window.candidates(kind.time_field))
    return {"$and": parts} if len(parts) > 1 else parts[0] if parts else {}


def in_window(record: Mapping[str, Any], kind: Source, scope: Scope) -> bool:
    """Return whether a record that the filter found lies in the window exactly."""
    return scope.window.unbounded or scope.window.holds(kind.read_time(record))


@task(name="extract", task_run_name="extract {shard.number}", **STAGE)
def extract_shard(
    run: Run,
    shard: ShardRange,
    source: MongoSource,
    owners: Owners,
    store: ShardStore,
    vectors: VectorStore,
    facts: EmbedderFacts,
    size: ChunkSize,
    *,
    look_at_all: bool = False,
) -> Shard:
    """Return the shard with its described records, in ``_id`` order, and its first dead letters. Safe to repeat.

    Records that are stored as they are now go no further (``tasks/domain/digests.py``), unless ``look_at_all``.
    """
    records = open_records(source, run.scope.source)
    kind, scope = records.kind, run.scope
    found = records.read_raw(shard, source_criteria(kind, scope, owners), limit=scope.limit)
    chosen: Iterator[RawRecord] = (pair for pair in found if in_window(pair[1], kind, scope))
    describing = _Describing(run, kind, owners, SourceDigests(kind, facts, size))
    if run.may_skip and not look_at_all:
        if scope.whole and records.are_in_order and (shard.lower, shard.upper) != (None, None):
            describing.known = vectors.find_stored_records(within=shard)
        else:
            # Of a range only some records are read, perhaps very few; and one without bounds spans all sources' ids.
            describing.looks_up = vectors
    # In an empty store too: another run may have stored some of these since, and nothing is paid for twice.
    untouched = run.target_was_empty and not vectors.holds_any(shard, of=scope.source)
    return replace(_write(run, shard.number, chosen, describing, store), untouched=untouched)


@dataclass(slots=True)
class _Describing:
    """What becomes of the records of one piece of work: ``describe`` returns rows, and notes what makes none.

    ``known`` are the records that are stored; with ``looks_up`` they are asked for, some at a time. ``observed`` is
    what judging reads of all rows so far.
    """

    run: Run
    source: Source
    owners: Owners
    digests: SourceDigests
    known: Mapping[ObjectId, StoredRecord] = field(default_factory=dict)
    looks_up: VectorStore | None = None
    letters: list[DeadLetter] = field(default_factory=list)
    unchanged: list[UnchangedRecord] = field(default_factory=list)
    observed: list[pa.Table] = field(default_factory=list)

    def describe(self, records: Sequence[RawRecord]) -> list[DescribedRecord]:
        """Return the rows of those records that are to be looked at further, in order."""
        if self.looks_up is not None:
            ids = [record["_id"] for _, record in records if isinstance(record["_id"], ObjectId)]
            self.known = self.looks_up.find_stored_records(within=ids)
        find_holder, describe, digests, known = self.source.find_holder, self.source.describe, self.digests, self.known
        owners, now_ms = self.owners, self.run.started_ms
        rows: list[DescribedRecord] = []
        documents: list[Document] = []
        for raw, record in records:
            try:
                record_id = record["_id"]
                digest = b""
                try:
                    holder = find_holder(record, owners)
                except RecordError:
                    holder = None  # describing says why, or has another reason
                if holder is not None:
                    digest = digests.digest(raw, holder)
                    stored = known.get(record_id) if isinstance(record_id, ObjectId) else None
                    if stored is not None and stored.digest == digest:
                        owner = (holder.team_id, holder.holder_id)
                        self.unchanged.append(UnchangedRecord(record_id.binary, *owner, stored.chunks))
                        continue
                document = describe(record, owners, now_ms)
                rows.append(
                    DescribedRecord(
                        document.source_id,
                        document.team_id,
                        document.holder_id,
                        document.key,
                        document.content,
                        encode_head(document),
                        digest,
                    )
                )
                documents.append(document)
            except RecordError as error:
                self.letters.append(self._refused(record, error))
            except Exception as error:  # noqa: BLE001 - a record that nobody thought of must not stop the others
                reason = f"the record can't be read: {type(error).__name__}: {str(error)[:200]}"
                self.letters.append(self._refused(record, RecordError("unreadable", reason)))
        if documents:
            self.observed.append(observe(documents, self.source.columns))
        return rows

    def _refused(self, record: Mapping[str, Any], error: RecordError) -> DeadLetter:
        """Return the dead letter, with its owner where the record's contract or website still tells it."""
        team_id = holder_id = None
        try:
            holder = self.source.find_holder(record, self.owners)
            team_id, holder_id = holder.team_id, holder.holder_id
        except RecordError:
            pass
        return DeadLetter.from_error(
            error, source=self.source.name, stage="extract", record=record, team_id=team_id, holder_id=holder_id
        )


def _write(run: Run, number: int, records: Iterable[RawRecord], describing: _Describing, store: ShardStore) -> Shard:
    name = f"{number:06d}"
    read = 0
    with store.open_table(run.key, f"{name}.records", _SCHEMA) as sink:
        # Some at a time: what is done with is forgotten before it has grown.
        for some in batched(records, _RECORDS_AT_ONCE):
            read += len(some)
            sink.write(to_table(DescribedRecord, describing.describe(some)))
    refused = store.write_table(run.key, f"{name}.refused-extract", to_table(DeadLetter, describing.letters))
    unchanged = describing.unchanged
    left = store.write_table(run.key, f"{name}.unchanged", to_table(UnchangedRecord, unchanged)) if unchanged else None
    return Shard(
        number=number,
        read=read,
        rows=sink.file,
        refused=(refused,),
        unchanged=left,
        observed=_write_observed(run, name, describing, store),
        profile=_profile(run, describing).to_bytes(),
    )


def _write_observed(run: Run, name: str, describing: _Describing, store: ShardStore) -> ShardFile | None:
    if not describing.observed:
        return None
    return store.write_table(run.key, f"{name}.observed", pa.concat_tables(describing.observed))


def _profile(run: Run, describing: _Describing) -> Profile:
    """Return what is known of the records that go no further: a piece of work that is all stored ends here."""
    planned, unchanged = run.planned, describing.unchanged
    profile = Profile(describing.source.name, share=share_for(planned), seen_share=seen_share_for(planned))
    refused: dict[str, list[str]] = {}
    for letter in describing.letters:
        refused.setdefault(letter.code, []).append(str(letter.record_id))
    for code, ids in refused.items():
        profile.add_refused(code, ids)
    if unchanged:
        teams = Counter(row.team_id or "" for row in unchanged)
        profile.add_unchanged([row.record_id.hex() for row in unchanged], teams)
    return profile


@task(name="extract", task_run_name="extract changes {batch.number}", **STAGE)
def extract_changes(
    run: Run,
    batch: ChangeBatch,
    source: MongoSource,
    owners: Owners,
    store: ShardStore,
    vectors: VectorStore,
    facts: EmbedderFacts,
    size: ChunkSize,
) -> Shard:
    """Return the changed records as a shard, as they are now; those no longer there are its ``gone``."""
    records = open_records(source, run.scope.source)
    found = list(records.read_raw_some(batch.ids))
    describing = _Describing(run, records.kind, owners, SourceDigests(records.kind, facts, size))
    describing.looks_up = vectors if run.may_skip else None
    shard = _write(run, batch.number, found, describing, store)
    present = {record_key(record["_id"]) for _, record in found}
    gone = [record_id for record_id in batch.ids if not records.kind.forgets and record_key(record_id) not in present]
    return replace(shard, gone=bson.encode({"ids": gone}) if gone else b"")
