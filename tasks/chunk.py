"""Chunk: documents become chunks, and each chunk is compared with what is stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import bson
import pyarrow as pa
import pyarrow.compute as pc
from bson import ObjectId
from prefect import task

from blocks.mongo import MongoSource
from blocks.records import Records, open_records
from blocks.shards import ShardStore
from blocks.tokens import count_tokens
from blocks.vector_store import VectorStore
from tasks.domain.batches import batched
from tasks.domain.chunks import Chunk, ChunkSize, content_hash, split_text
from tasks.domain.dead_letters import DeadLetter, duplicate_letter, record_key
from tasks.domain.documents import DescribedRecord
from tasks.domain.rows import Bodies, Stored, Verdict, document_id, judge, row_hash
from tasks.domain.runs import Run
from tasks.domain.shards import Shard
from tasks.domain.tables import from_table, schema_of, to_table
from tasks.domain.vectors import EmbedderFacts
from tasks.policy import STAGE

_LOOKUP_RECORDS = 1_000
_RECORDS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class DescribedChunk:
    """A row of a chunk file. ``chunks`` is how many its record makes, ``stored_chunks`` how many it made before.

    ``stored_row_hash`` is that of the row it was compared with, or empty. ``written_before`` is 1 if an earlier
    attempt at this work made the row, 2 if it changed it, else 0.
    """

    record_id: str
    team_id: str
    holder_id: str
    key: str
    ordinal: int
    chunks: int
    stored_chunks: int
    text: str
    tokens: int
    content_hash: bytes
    row_hash: bytes
    source_digest: bytes
    stored_row_hash: bytes
    body: bytes
    verdict: int
    written_before: int


@task(name="chunk", task_run_name="chunk {shard.number}", **STAGE)
def chunk_shard(
    run: Run,
    shard: Shard,
    store: ShardStore,
    source: MongoSource,
    vectors: VectorStore,
    facts: EmbedderFacts,
    size: ChunkSize,
) -> Shard:
    """Return the shard with its chunks and what each needs: to be embedded, to be written, or nothing.

    The same thing twice in the source becomes one document and a dead letter. Reads the store, writes
    only the shard's files; safe to repeat.
    """
    table = store.read_table(shard.rows)
    known = open_records(source, run.scope.source)
    bodies = Bodies(known.kind, facts)
    claimants = _claimants(table)
    letters: list[DeadLetter] = []
    seen = _Seen(run)
    name = f"{shard.number:06d}"
    with store.open_table(run.key, f"{name}.chunks", schema_of(DescribedChunk)) as sink:
        # Some at a time: what is done with is forgotten before it has grown.
        for start in range(0, table.num_rows, _RECORDS_AT_ONCE):
            records = list(from_table(DescribedRecord, table.slice(start, _RECORDS_AT_ONCE)))
            tokens = count_tokens([record.content for record in records])
            chunked = [
                split_text(record.content, size, count_tokens, tokens=count)
                for record, count in zip(records, tokens, strict=True)
            ]
            stored: dict[str, Stored] = {}
            if not shard.untouched:
                ids = [
                    document_id(record.key, chunk.ordinal)
                    for record, chunks in zip(records, chunked, strict=True)
                    for chunk in chunks
                ]
                stored = vectors.find_stored(ids, with_runs=run.may_have_written)
            twins = _find_twins(records, claimants, stored, known)
            rows: list[DescribedChunk] = []
            for record, chunks in zip(records, chunked, strict=True):
                twin = twins.get(record.record_id)
                if twin is None:
                    rows.extend(_described(run, record, chunks, bodies, stored, facts))
                else:
                    letters.append(
                        duplicate_letter(
                            record_id=record.record_id,
                            team_id=record.team_id,
                            holder_id=record.holder_id,
                            key=record.key,
                            twin=twin,
                            stage="chunk",
                        )
                    )
            seen.add(rows)
            sink.write(to_table(DescribedChunk, rows))
    refused = store.write_table(run.key, f"{name}.refused-chunk", to_table(DeadLetter, letters))
    moved = shard.moved_on(sink.file, refused)
    return replace(moved, leaving=bson.encode(_find_leaving(run, moved, seen, store, vectors)))


class _Seen:
    """What is needed of a shard's rows to find documents that they don't make: none of it in an empty store."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.made: set[str] = set()
        self.suspects: set[ObjectId] = set()

    def add(self, rows: Sequence[DescribedChunk]) -> None:
        """Note the documents that these rows make, and the records that may have others.

        Those are new ones (they may have moved), shortened ones, and with ``run.thorough`` all.
        """
        if self._run.target_was_empty:
            return
        self.made.update(document_id(row.key, row.ordinal) for row in rows)
        self.suspects.update(
            ObjectId(row.record_id)
            for row in rows
            if self._run.thorough or row.verdict == Verdict.NEW or row.stored_chunks > row.chunks
        )


def _find_leaving(run: Run, shard: Shard, seen: _Seen, store: ShardStore, vectors: VectorStore) -> dict[str, bytes]:
    """Return document id -> row hash of what is stored of the shard's records and not made by them.

    Looked at are records that may have such documents: those that ``_Seen`` names, and those that are refused or gone.
    """
    if run.target_was_empty:
        return {}
    records: list[Any] = []
    for file in shard.refused:
        records.extend(letter.record_id for letter in from_table(DeadLetter, store.read_table(file)))
    records += bson.decode(shard.gone)["ids"] if shard.gone else []
    # Nothing but an ObjectId was ever stored.
    ids = seen.suspects.union(record for record in records if isinstance(record, ObjectId))
    found = [
        document["documentId"]
        for some in batched(sorted(ids), _LOOKUP_RECORDS)
        for document in vectors.find_documents(run.scope.source, some)
    ]
    leaving = vectors.find_stored([key for key in found if key not in seen.made])
    return {key: row.row_hash for key, row in leaving.items()}


def _claimants(table: pa.Table) -> dict[str, list[str]]:
    """Return the records of a shard that claim a key which others of it claim too; most shards have none."""
    keys = table.column("key")
    if pc.count_distinct(keys).as_py() == len(keys):
        return {}
    claimants: dict[str, list[str]] = {}
    for key, record_id in zip(keys.to_pylist(), table.column("record_id").to_pylist(), strict=True):
        claimants.setdefault(key, []).append(record_id)
    return {key: ids for key, ids in claimants.items() if len(ids) > 1}


def _find_twins(
    records: Iterable[DescribedRecord],
    claimants: Mapping[str, list[str]],
    stored: Mapping[str, Stored],
    source: Records,
) -> dict[str, str]:
    """Return record -> the other record that says the same and keeps its place.

    The place belongs to the record that is stored, as long as the source still holds it; else to the shard's first.
    """
    if not claimants and not stored:
        return {}
    by_key = {record.key: claimants.get(record.key) or [record.record_id] for record in records}
    strangers = {
        key: str(found.source_id)
        for key, ids in by_key.items()
        if (found := stored.get(document_id(key, 0))) is not None and str(found.source_id) not in ids
    }
    alive = source.find_existing([ObjectId(other) for other in strangers.values()]) if strangers else set()
    twins: dict[str, str] = {}
    for key, ids in by_key.items():
        stranger = strangers.get(key)
        if stranger is not None and record_key(ObjectId(stranger)) in alive:
            keeper = stranger
        elif len(ids) == 1:
            continue
        else:
            found = stored.get(document_id(key, 0))
            keeper = str(found.source_id) if found is not None and str(found.source_id) in ids else ids[0]
        twins.update({record: keeper for record in ids if record != keeper})
    return twins


def _described(
    run: Run,
    record: DescribedRecord,
    chunks: Sequence[Chunk],
    bodies: Bodies,
    stored: Mapping[str, Stored],
    facts: EmbedderFacts,
) -> Iterator[DescribedChunk]:
    found = [stored.get(document_id(record.key, chunk.ordinal)) if stored else None for chunk in chunks]
    stored_chunks = max((item.chunks for item in found if item is not None), default=0)
    for chunk, item in zip(chunks, found, strict=True):
        body = bodies.encode(record.key, record.head, chunk, len(chunks))
        hashes: dict[str, Any] = {"content_hash": content_hash(chunk.text, facts), "row_hash": row_hash(body)}
        verdict = judge(item, **hashes)
        written_before = 0
        if item is not None and item.run_id in run.ids and verdict == Verdict.UNCHANGED:
            written_before = 1 if item.version == 1 else 2
        elif run.rebuild and item is not None:
            verdict = Verdict.TEXT_CHANGED
        yield DescribedChunk(
            record_id=record.record_id,
            team_id=record.team_id,
            holder_id=record.holder_id,
            key=record.key,
            ordinal=chunk.ordinal,
            chunks=len(chunks),
            stored_chunks=stored_chunks,
            text=chunk.text,
            tokens=chunk.tokens,
            source_digest=record.source_digest,
            stored_row_hash=item.row_hash if item is not None else b"",
            body=body,
            verdict=verdict,
            written_before=written_before,
            **hashes,
        )
