"""Chunk: transactions become documents, documents chunks, and each chunk is compared with what is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import bson
import pyarrow as pa
from bson import ObjectId
from prefect import task

from blocks.mongo import MongoSource
from blocks.shards import ShardStore
from blocks.tokens import count_tokens
from blocks.vector_store import VectorStore
from tasks.domain.batches import batched
from tasks.domain.chunks import Chunk, ChunkSize, content_hash, split_text
from tasks.domain.dead_letters import DeadLetter, duplicate_letter, record_key
from tasks.domain.digests import SOURCE_DIGEST
from tasks.domain.documents import Document, describe_transaction, transaction_key
from tasks.domain.rows import Stored, Verdict, document_id, encode_body, judge, row_hash
from tasks.domain.runs import Run
from tasks.domain.shards import Shard
from tasks.domain.tables import from_table, schema_of, to_table
from tasks.domain.transactions import Transaction
from tasks.domain.vectors import EmbedderFacts
from tasks.policy import STAGE

COLLECTION = "transactions"
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
    contract_id: str
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

    The same transaction twice in the source becomes one document and a dead letter. Reads the store, writes
    only the shard's files; safe to repeat.
    """
    table = store.read_table(shard.rows)
    holders = _holders(table)
    letters: list[DeadLetter] = []
    seen = _Seen(run)
    name = f"{shard.number:06d}"
    with store.open_table(run.key, f"{name}.chunks", schema_of(DescribedChunk)) as sink:
        # Some at a time: what is done with is forgotten before it has grown.
        for start in range(0, table.num_rows, _RECORDS_AT_ONCE):
            some = table.slice(start, _RECORDS_AT_ONCE)
            transactions = list(from_table(Transaction, some))
            documents = [describe_transaction(transaction) for transaction in transactions]
            tokens = count_tokens([document.content for document in documents])
            chunked = [
                split_text(document.content, size, count_tokens, tokens=count)
                for document, count in zip(documents, tokens, strict=True)
            ]
            ids = (
                document_id(document.key, chunk.ordinal)
                for document, chunks in zip(documents, chunked, strict=True)
                for chunk in chunks
            )
            stored = {} if shard.untouched else vectors.find_stored(list(ids), with_runs=run.may_have_written)
            twins = _find_twins(documents, holders, stored, source)
            rows: list[DescribedChunk] = []
            digests = some.column(SOURCE_DIGEST).to_pylist()
            for transaction, document, chunks, digest in zip(transactions, documents, chunked, digests, strict=True):
                twin = twins.get(transaction.record_id)
                if twin is None:
                    rows.extend(_described(run, transaction, document, chunks, digest, stored, facts))
                else:
                    letters.append(
                        duplicate_letter(
                            record_id=transaction.record_id,
                            team_id=transaction.team_id,
                            contract_id=transaction.contract_id,
                            key=document.key,
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
        for document in vectors.find_documents(run.scope.source_type, some)
    ]
    leaving = vectors.find_stored([key for key in found if key not in seen.made])
    return {key: row.row_hash for key, row in leaving.items()}


def _holders(table: pa.Table) -> dict[str, list[str]]:
    """Return, by key, the records of a shard that say to be the same transaction; few keys have several."""
    ids = table.column("record_id").to_pylist()
    keys = map(transaction_key, table.column("contract_id").to_pylist(), table.column("tx_hash").to_pylist())
    holders: dict[str, list[str]] = {}
    for key, record_id in zip(keys, ids, strict=True):
        holders.setdefault(key, []).append(record_id)
    return holders


def _find_twins(
    documents: Iterable[Document], holders: Mapping[str, list[str]], stored: dict[str, Stored], source: MongoSource
) -> dict[str, str]:
    """Return record -> the other record that holds the same transaction and keeps its place.

    The place belongs to the record that is stored, as long as the source still holds it; else to the shard's first.
    """
    keys = {document.key for document in documents}
    strangers = {
        key: str(found.source_id)
        for key in keys
        if (found := stored.get(document_id(key, 0))) is not None and str(found.source_id) not in holders[key]
    }
    alive = source.find_existing(COLLECTION, [ObjectId(other) for other in strangers.values()]) if strangers else set()
    twins: dict[str, str] = {}
    for key in keys:
        ids, stranger = holders[key], strangers.get(key)
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
    transaction: Transaction,
    document: Document,
    chunks: Sequence[Chunk],
    digest: bytes,
    stored: dict[str, Stored],
    facts: EmbedderFacts,
) -> Iterable[DescribedChunk]:
    found = [stored.get(document_id(document.key, chunk.ordinal)) for chunk in chunks]
    stored_chunks = max((item.chunks for item in found if item is not None), default=0)
    for chunk, item in zip(chunks, found, strict=True):
        body = encode_body(document, chunk, len(chunks), facts)
        hashes: dict[str, Any] = {"content_hash": content_hash(chunk.text, facts), "row_hash": row_hash(body)}
        verdict = judge(item, **hashes)
        written_before = 0
        if item is not None and item.run_id in run.ids and verdict == Verdict.UNCHANGED:
            written_before = 1 if item.version == 1 else 2
        elif run.rebuild and item is not None:
            verdict = Verdict.TEXT_CHANGED
        yield DescribedChunk(
            record_id=transaction.record_id,
            team_id=transaction.team_id,
            contract_id=transaction.contract_id,
            key=document.key,
            ordinal=chunk.ordinal,
            chunks=len(chunks),
            stored_chunks=stored_chunks,
            text=chunk.text,
            tokens=chunk.tokens,
            source_digest=digest,
            stored_row_hash=item.row_hash if item is not None else b"",
            body=body,
            verdict=verdict,
            written_before=written_before,
            **hashes,
        )
