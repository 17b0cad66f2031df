"""Chunk: transactions become documents, documents chunks, and each chunk is compared with what is stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import bson
from bson import ObjectId
from prefect import task

from blocks.mongo import MongoSource
from blocks.shards import ShardStore
from blocks.tokens import count_tokens
from blocks.vector_store import VectorStore
from tasks.domain.batches import batched
from tasks.domain.chunks import Chunk, ChunkSize, content_hash, split_text
from tasks.domain.dead_letters import DeadLetter, duplicate_letter, record_key
from tasks.domain.documents import Document, describe_transaction
from tasks.domain.rows import Stored, Verdict, document_id, encode_body, judge, row_hash
from tasks.domain.runs import Run
from tasks.domain.shards import Shard
from tasks.domain.tables import from_table, to_table
from tasks.domain.transactions import Transaction
from tasks.domain.vectors import EmbedderFacts
from tasks.policy import STAGE

COLLECTION = "transactions"
_LOOKUP_RECORDS = 1_000


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
    transactions = list(from_table(Transaction, store.read_table(shard.rows)))
    documents = [describe_transaction(transaction) for transaction in transactions]
    tokens = count_tokens([document.content for document in documents])
    chunked = [
        (transaction, document, split_text(document.content, size, count_tokens, tokens=count))
        for transaction, document, count in zip(transactions, documents, tokens, strict=True)
    ]
    # In an empty store too: another run may have stored some since, and nothing is paid for twice.
    stored = vectors.find_stored(
        [document_id(document.key, chunk.ordinal) for _, document, chunks in chunked for chunk in chunks],
        with_runs=run.may_have_written,
    )
    twins = _find_twins(chunked, stored, source)
    letters: list[DeadLetter] = []
    rows: list[DescribedChunk] = []
    for transaction, document, chunks in chunked:
        twin = twins.get(transaction.record_id)
        if twin is None:
            rows.extend(_described(run, transaction, document, chunks, stored, facts))
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
    chunk_file = store.write_table(run.key, f"{shard.number:06d}.chunks", to_table(DescribedChunk, rows))
    refused = store.write_table(run.key, f"{shard.number:06d}.refused-chunk", to_table(DeadLetter, letters))
    moved = shard.moved_on(chunk_file, refused)
    return replace(moved, leaving=bson.encode(_find_leaving(run, moved, rows, store, vectors)))


def _find_leaving(
    run: Run, shard: Shard, rows: Sequence[DescribedChunk], store: ShardStore, vectors: VectorStore
) -> dict[str, bytes]:
    """Return document id -> row hash of what is stored of the shard's records and not made by them.

    Looked at are records that may have such documents: new ones (they may have moved), shortened ones, those that
    are refused or gone, and with ``run.thorough`` all.
    """
    if run.target_was_empty:
        return {}
    records: list[Any] = [
        ObjectId(row.record_id)
        for row in rows
        if run.thorough or row.verdict == Verdict.NEW or row.stored_chunks > row.chunks
    ]
    for file in shard.refused:
        records.extend(letter.record_id for letter in from_table(DeadLetter, store.read_table(file)))
    records += bson.decode(shard.gone)["ids"] if shard.gone else []
    ids = {record for record in records if isinstance(record, ObjectId)}  # nothing else was ever stored
    made = {document_id(row.key, row.ordinal) for row in rows}
    found = [
        document["documentId"]
        for some in batched(sorted(ids), _LOOKUP_RECORDS)
        for document in vectors.find_documents(run.scope.source_type, some)
    ]
    return {key: row.row_hash for key, row in vectors.find_stored([k for k in found if k not in made]).items()}


def _find_twins(
    chunked: Iterable[tuple[Transaction, Document, Sequence[Chunk]]],
    stored: dict[str, Stored],
    source: MongoSource,
) -> dict[str, str]:
    """Return record -> the other record that holds the same transaction and keeps its place.

    The place belongs to the record that is stored, as long as the source still holds it; else to the first.
    """
    holders: dict[str, list[str]] = {}
    for _, document, _ in chunked:
        holders.setdefault(document.key, []).append(document.source_id)
    strangers = {
        key: str(found.source_id)
        for key, ids in holders.items()
        if (found := stored.get(document_id(key, 0))) is not None and str(found.source_id) not in ids
    }
    alive = source.find_existing(COLLECTION, [ObjectId(other) for other in strangers.values()]) if strangers else set()
    twins: dict[str, str] = {}
    for key, ids in holders.items():
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
    transaction: Transaction,
    document: Document,
    chunks: Sequence[Chunk],
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
            stored_row_hash=item.row_hash if item is not None else b"",
            body=body,
            verdict=verdict,
            written_before=written_before,
            **hashes,
        )
