"""Upsert: what is new is inserted, what changed is set, what is no longer made is removed, the rest is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import bson
import numpy as np
import pyarrow as pa
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from prefect import task

from blocks.shards import ShardStore
from blocks.vector_store import VectorStore
from tasks.domain.batches import batched
from tasks.domain.dead_letters import DeadLetter, duplicate_letter
from tasks.domain.digests import count_unchanged
from tasks.domain.documents import holder_of
from tasks.domain.errors import ShardDamagedError
from tasks.domain.manifests import Manifest, Owner, ShardOutcome
from tasks.domain.rows import RowChange, Verdict, changed_fields, document_id, new_row, row_id
from tasks.domain.runs import Run
from tasks.domain.shards import Shard
from tasks.domain.tables import from_table
from tasks.domain.vectors import Matrix
from tasks.policy import STAGE

_LOOKUP_RECORDS = 1_000
#: A row with its vector is some 8 kB: messages of 4 MB cost a quarter less than twice as large ones, and a whole shard
#: at once would be the peak of the run's memory.
_ROWS_AT_ONCE = 500
#: Reads the vectors of a shard's texts from the beginning, each time it is called; some may come twice.
ReadVectors = Callable[[], Iterator[tuple[bytes, Matrix]]]
#: What an earlier attempt at this work did to a row.
_CREATED, _UPDATED = 1, 2


@dataclass(frozen=True, slots=True)
class _Row:
    record_id: str
    team_id: str
    holder_id: str
    key: str
    ordinal: int
    chunks: int
    stored_chunks: int
    content_hash: bytes
    row_hash: bytes
    source_digest: bytes
    stored_row_hash: bytes
    body: bytes
    verdict: int
    written_before: int

    @property
    def document_id(self) -> str:
        return document_id(self.key, self.ordinal)

    @property
    def owner(self) -> Owner:
        return Owner(self.team_id, self.holder_id)


@task(name="upsert", task_run_name="upsert {shard.number}", **STAGE)
def upsert_shard(run: Run, shard: Shard, store: ShardStore, vectors: VectorStore) -> ShardOutcome:
    """Write the shard's chunks and return its manifest, which closes. Twice equals once.

    Writes vector documents only. Raises ``ShardDamagedError`` if a file or a row it counts on is gone: the
    shard's stages must then run again.
    """
    left = store.read_table(shard.unchanged) if shard.unchanged else None
    left_ids = b"" if left is None else b"".join(left.column("record_id").to_pylist())
    if shard.is_stored:
        manifest = Manifest(packed=shard.profile)
        if left is not None:
            manifest.add_unchanged(count_unchanged(left))
        _require_accounts(shard, manifest)
        return ShardOutcome(manifest, left_ids, ())
    if shard.chunks is None:
        raise ShardDamagedError(f"shard {shard.number} was not embedded")
    letters = [letter for file in shard.refused for letter in from_table(DeadLetter, store.read_table(file))]
    refused = {str(letter.record_id) for letter in letters if isinstance(letter.record_id, ObjectId)}
    described = _read_rows(store.read_table(shard.chunks))
    rows = [row for row in described if row.record_id not in refused]
    compared = {row.document_id: row.stored_row_hash for row in described}
    compared |= bson.decode(shard.leaving) if shard.leaving else {}
    now = datetime.now(UTC)
    manifest = Manifest(embedded=shard.embedded, tokens=shard.tokens, packed=shard.profile)

    _remove_moved(rows, compared, run, vectors, manifest)
    twins = _write(rows, partial(_read_vectors, run, shard, store), run, vectors, now)
    if twins:
        letters.extend(twins.values())
        rows = [row for row in rows if row.record_id not in twins]
    _remove(rows, letters, compared, run, vectors, manifest)
    _remove_gone(shard, compared, run, vectors, manifest)
    _count(rows, letters, manifest)
    if left is not None:
        manifest.add_unchanged(count_unchanged(left))
    _require_accounts(shard, manifest)
    ids = bytes.fromhex("".join(dict.fromkeys(row.record_id for row in rows)))
    return ShardOutcome(manifest, ids + left_ids, tuple(letters))


def _require_accounts(shard: Shard, manifest: Manifest) -> None:
    """Raise ``ShardDamagedError`` unless every record that the shard read is accounted for."""
    manifest.require_closed(f"shard {shard.number}")
    if manifest.total.read != shard.read:
        raise ShardDamagedError(
            f"shard {shard.number} read {shard.read} records but accounts for {manifest.total.read}"
        )


def _write(
    rows: list[_Row], read_vectors: ReadVectors, run: Run, vectors: VectorStore, now: datetime
) -> dict[str, DeadLetter]:
    """Write new and changed rows; return the dead letters of records whose place another record took meanwhile.

    ``read_vectors`` is called for the new rows and, if there are any, again for the changed ones: a whole shard's
    vectors would be the peak of the run's memory.
    """
    form = vectors.vector_form

    def made(row: _Row, vector: Matrix) -> RawBSONDocument:
        return new_row(
            row.body,
            row_id=row_id(row.record_id, row.document_id, row.ordinal),
            vector=vector,
            form=form,
            content_hash=row.content_hash,
            row_hash=row.row_hash,
            source_digest=row.source_digest,
            run_id=run.id,
            now=now,
            code_version=run.code_version,
        )

    def changed(row: _Row, vector: Matrix | None) -> RowChange:
        fields = changed_fields(
            row.body,
            vector=vector,
            form=form,
            content_hash=row.content_hash,
            row_hash=row.row_hash,
            source_digest=row.source_digest,
            run_id=run.id,
            now=now,
            code_version=run.code_version,
        )
        return RowChange(fields, seen=row.stored_row_hash, becomes=row.row_hash)

    fresh = [row for row in rows if row.verdict == Verdict.NEW]
    taken: list[_Row] = []
    for some in batched(_with_vectors(fresh, read_vectors), _ROWS_AT_ONCE):
        positions = vectors.insert_rows([made(row, vector) for row, vector in some])
        taken.extend(some[position][0] for position in positions)
    letters: dict[str, DeadLetter] = {}
    late: list[_Row] = []
    if taken:
        # Somebody was quicker: this shard's own earlier attempt, which wrote this very row; another run, which may
        # have read a newer record; or another record of the same transaction, which keeps its place.
        late = taken
        stored = vectors.find_stored([row.document_id for row in late])
        for row in late:
            holder = stored.get(row.document_id)
            if holder is None:
                raise ShardDamagedError(f"{row.document_id} was taken and is gone again")
            if str(holder.source_id) == row.record_id:
                if (holder.content_hash, holder.row_hash) != (row.content_hash, row.row_hash):
                    raise ShardDamagedError(f"{row.document_id} was written by another run meanwhile")
            else:
                letters[row.record_id] = duplicate_letter(
                    record_id=row.record_id,
                    team_id=row.team_id,
                    holder_id=row.holder_id,
                    key=row.key,
                    twin=str(holder.source_id),
                    stage="upsert",
                )
    if letters:
        # Of a record that lost its place nothing may stay, not even chunks that the other one doesn't make.
        late_ids = {row.document_id for row in late}
        vectors.remove_documents(
            [row.document_id for row in fresh if row.record_id in letters and row.document_id not in late_ids]
        )
    staying = [row for row in rows if row.record_id not in letters]
    again = [row for row in staying if row.verdict == Verdict.TEXT_CHANGED]
    for some in batched(_with_vectors(again, read_vectors), _ROWS_AT_ONCE):
        vectors.update_rows({row.document_id: changed(row, vector) for row, vector in some})
    vectors.update_rows({row.document_id: changed(row, None) for row in staying if row.verdict == Verdict.ROW_CHANGED})
    # Their rows are right; what they were made from is put down, so that the next run need not look at them.
    vectors.note_digests(
        {row.document_id: (row.row_hash, row.source_digest) for row in staying if row.verdict == Verdict.UNCHANGED}
    )
    return letters


def _require_as_compared(document_ids: list[str], compared: dict[str, bytes], vectors: VectorStore) -> list[str]:
    """Return ids of documents that may be removed: none of them was written since the shard was compared.

    Raises ``ShardDamagedError`` if one was: whoever wrote it may have read a newer record than this shard did.
    """
    stored = vectors.find_stored(document_ids)
    written = [key for key, row in stored.items() if compared.get(key) != row.row_hash]
    if written:
        raise ShardDamagedError(f"{len(written)} vector documents were written by another run meanwhile")
    return document_ids


def _remove_moved(
    rows: list[_Row], compared: dict[str, bytes], run: Run, vectors: VectorStore, manifest: Manifest
) -> None:
    """Take away what records made before under another contract or hash: they hold the places of the new rows."""
    if run.target_was_empty:
        return
    looked_at = {row.record_id: row for row in rows if run.thorough or row.verdict == Verdict.NEW}
    made = {row.document_id for row in rows}
    for some in batched([ObjectId(record_id) for record_id in looked_at], _LOOKUP_RECORDS):
        by_owner: dict[Owner, list[str]] = {}
        for document in vectors.find_documents(run.scope.source, some):
            row = looked_at[str(document["sourceId"])]
            moved = not document["documentId"].startswith(f"{row.key}:")
            if (moved or run.thorough) and document["documentId"] not in made:
                by_owner.setdefault(row.owner, []).append(document["documentId"])
        for owner, document_ids in by_owner.items():
            leaving = _require_as_compared(document_ids, compared, vectors)
            manifest.add(owner, removed=vectors.remove_documents(leaving))


def _remove(
    rows: list[_Row],
    letters: list[DeadLetter],
    compared: dict[str, bytes],
    run: Run,
    vectors: VectorStore,
    manifest: Manifest,
) -> None:
    """Take away chunks that a record no longer makes, and all of a record that is refused now."""
    for row in rows:
        if row.ordinal == 0 and row.stored_chunks > row.chunks:
            gone = [document_id(row.key, ordinal) for ordinal in range(row.chunks, row.stored_chunks)]
            manifest.add(row.owner, removed=vectors.remove_documents(gone))
    if run.target_was_empty or not letters:
        return
    # A vector that describes what the record no longer says would be cited as if it did.
    by_owner: dict[Owner, list[ObjectId]] = {}
    for letter in letters:
        source_id = letter.record_id
        if isinstance(source_id, ObjectId):
            by_owner.setdefault(Owner(letter.team_id, letter.holder_id), []).append(source_id)
    for owner, ids in by_owner.items():
        documents = vectors.find_documents(run.scope.source, ids)
        leaving = _require_as_compared([document["documentId"] for document in documents], compared, vectors)
        if leaving:
            manifest.add(owner, removed=vectors.remove_documents(leaving))


def _remove_gone(shard: Shard, compared: dict[str, bytes], run: Run, vectors: VectorStore, manifest: Manifest) -> None:
    """Take away the vectors of records that were deleted, and close their dead letters."""
    gone = bson.decode(shard.gone)["ids"] if shard.gone else []
    if not gone:
        return
    ids = [record_id for record_id in gone if isinstance(record_id, ObjectId)]
    documents = vectors.find_documents(run.scope.source, ids)
    for document in documents:
        owner = Owner(str(document["teamId"]), holder_of(document["documentId"]))
        manifest.add(owner, removed=1)
    leaving = _require_as_compared([document["documentId"] for document in documents], compared, vectors)
    vectors.remove_documents(leaving)
    vectors.resolve_dead_letters(run.scope.source, gone, run_id=run.id, now=datetime.now(UTC))


def _count(rows: list[_Row], letters: list[DeadLetter], manifest: Manifest) -> None:
    """Give every record its one outcome: written if any of its chunks was."""
    written: dict[str, bool] = {}
    for row in rows:
        changed = row.verdict != Verdict.UNCHANGED or row.stored_chunks > row.chunks or row.written_before > 0
        written[row.record_id] = written.get(row.record_id, False) or changed
    by_owner: dict[Owner, list[_Row]] = {}
    for row in rows:
        by_owner.setdefault(row.owner, []).append(row)
    for owner, own in by_owner.items():
        outcomes = [written[row.record_id] for row in own if row.ordinal == 0]
        manifest.add(
            owner,
            read=len(outcomes),
            written=sum(outcomes),
            unchanged=len(outcomes) - sum(outcomes),
            chunks=len(own),
            created=sum(row.verdict == Verdict.NEW or row.written_before == _CREATED for row in own),
            updated=sum(
                row.verdict in (Verdict.TEXT_CHANGED, Verdict.ROW_CHANGED) or row.written_before == _UPDATED
                for row in own
            ),
        )
    for letter in letters:
        manifest.add(Owner(letter.team_id, letter.holder_id), read=1, dead_lettered=1)
        manifest.refused[letter.code] = manifest.refused.get(letter.code, 0) + 1


def _read_rows(table: pa.Table) -> list[_Row]:
    return list(from_table(_Row, table))


def _with_vectors(rows: Iterable[_Row], read_vectors: ReadVectors) -> Iterator[tuple[_Row, Matrix]]:
    """Yield each row with its vector, in the order of the vectors; several rows may have the same.

    Raises ``ShardDamagedError`` if one has none.
    """
    waiting: dict[bytes, list[_Row]] = {}
    for row in rows:
        waiting.setdefault(row.content_hash, []).append(row)
    if not waiting:
        return
    for key, vector in read_vectors():
        for row in waiting.pop(key, ()):
            yield row, vector
        if not waiting:
            break
    for lacking in waiting.values():
        raise ShardDamagedError(f"{lacking[0].document_id} has no vector in its shard")


def _read_vectors(run: Run, shard: Shard, store: ShardStore) -> Iterator[tuple[bytes, Matrix]]:
    """Yield the content hash and the vector of each text: those that the shard paid for, and those of others' texts."""
    with store.paid_texts(run.key, shard=shard.number) as paid:
        for reply in paid.replies_of(shard.number):
            yield from zip(reply.hashes, reply.vectors, strict=True)
    for batch in store.read_batches(shard.rows):
        vectors = batch.column("vector")
        _, ends, content = vectors.buffers()
        offsets = np.frombuffer(ends, dtype=np.int64)[vectors.offset : vectors.offset + len(vectors) + 1].tolist()
        for key, start, end in zip(batch.column("content_hash").to_pylist(), offsets, offsets[1:], strict=False):
            yield key, np.frombuffer(content, dtype="<f4", count=(end - start) // 4, offset=start)
