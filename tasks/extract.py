"""Extract: one range of the source, read and parsed, but for what is stored as it is; what can't be parsed becomes a
dead letter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import bson
import pyarrow as pa
from bson import ObjectId
from prefect import task

from blocks.mongo import MongoSource, RawRecord
from blocks.shards import ShardStore
from blocks.vector_store import VectorStore
from tasks.domain.batches import batched
from tasks.domain.changes import ChangeBatch
from tasks.domain.chunks import ChunkSize
from tasks.domain.dead_letters import DeadLetter, record_key
from tasks.domain.digests import SOURCE_DIGEST, SourceDigests, StoredRecord, UnchangedRecord
from tasks.domain.errors import RecordError
from tasks.domain.owners import Contract, Owners
from tasks.domain.runs import Run, Scope
from tasks.domain.shards import Shard, ShardRange
from tasks.domain.tables import schema_of, to_table
from tasks.domain.transactions import Transaction, parse_block_time, parse_transaction
from tasks.domain.vectors import EmbedderFacts
from tasks.policy import STAGE

COLLECTION = "transactions"
_RECORDS_AT_ONCE = 1_000
_SCHEMA = schema_of(Transaction).append(pa.field(SOURCE_DIGEST, pa.large_binary()))
#: All that parsing reads. Fields that nobody knows stay where they are.
FIELDS = (
    "contract",
    "contractId",
    "tx_hash",
    "block_number",
    "block_time",
    "chain",
    "from_address",
    "to_address",
    "contract_address",
    "gas_used",
    "status",
    "token_name",
    "token_symbol",
    "tx_type",
    "value_eth",
    "method_name",
    "method_signature",
    "functionName",
    "input",
    "createdAt",
    "stakingAnalysis",
)


def source_criteria(scope: Scope, owners: Owners) -> dict[str, Any]:
    """Return the MongoDB filter of a scope. Records that no contract claims are only in a scope without owners."""
    parts: list[dict[str, Any]] = []
    if scope.team_ids or scope.contract_ids:
        chosen = [
            (object_id, contract)
            for object_id, contract in owners.by_object_id.items()
            if (not scope.team_ids or contract.team_id in scope.team_ids)
            and (not scope.contract_ids or contract.contract_id in scope.contract_ids)
        ]
        parts.append(
            {
                "$or": [
                    {"contractId": {"$in": [contract.contract_id for _, contract in chosen]}},
                    {"contract": {"$in": [ObjectId(object_id) for object_id, _ in chosen]}},
                    {"contract": {"$in": [object_id for object_id, _ in chosen]}},
                ]
            }
        )
    if not scope.window.unbounded:
        parts.append(scope.window.candidates("block_time"))
    return {"$and": parts} if len(parts) > 1 else parts[0] if parts else {}


def in_window(record: Mapping[str, Any], scope: Scope) -> bool:
    """Return whether a record that the filter found lies in the window exactly."""
    return scope.window.unbounded or scope.window.holds(parse_block_time(record.get("block_time")))


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
    """Return the shard with its transactions, in ``_id`` order, and its first dead letters. Safe to repeat.

    Records that are stored as they are now go no further (``tasks/domain/digests.py``), unless ``look_at_all``.
    """
    criteria = source_criteria(run.scope, owners)
    records = source.read_raw_range(COLLECTION, shard, criteria=criteria, fields=FIELDS)
    chosen: Iterator[RawRecord] = (pair for pair in records if in_window(pair[1], run.scope))
    known: Mapping[ObjectId, StoredRecord] = {}
    if run.may_skip and not look_at_all:
        if run.scope.whole:
            known = vectors.find_stored_records(run.scope.source_type, within=shard)
        else:
            # Of a range only some records are read, perhaps very few.
            kept = list(chosen)
            ids = [record["_id"] for _, record in kept if isinstance(record["_id"], ObjectId)]
            known, chosen = vectors.find_stored_records(run.scope.source_type, within=ids), iter(kept)
    digests = SourceDigests(run.scope.source_type, facts, size)
    # In an empty store too: another run may have stored some of these since, and nothing is paid for twice.
    untouched = run.target_was_empty and not vectors.holds_any(shard)
    return replace(_parsed(run, shard.number, chosen, owners, digests, known, store), untouched=untouched)


def _parsed(
    run: Run,
    number: int,
    records: Iterable[RawRecord],
    owners: Owners,
    digests: SourceDigests,
    known: Mapping[ObjectId, StoredRecord],
    store: ShardStore,
) -> Shard:
    name = f"{number:06d}"
    read = 0
    letters: list[DeadLetter] = []
    unchanged: list[UnchangedRecord] = []
    with store.open_table(run.key, f"{name}.transactions", _SCHEMA) as sink:
        # Some at a time: what is done with is forgotten before it has grown.
        for some in batched(records, _RECORDS_AT_ONCE):
            read += len(some)
            transactions: list[Transaction] = []
            made_from: list[bytes] = []
            for raw, record in some:
                try:
                    contract = _find_contract(record, owners)
                    digest = digests.digest(raw, contract) if contract is not None else b""
                    record_id = record["_id"]
                    stored = known.get(record_id) if isinstance(record_id, ObjectId) else None
                    if contract is not None and stored is not None and stored.digest == digest:
                        owner = (contract.team_id, contract.contract_id)
                        unchanged.append(UnchangedRecord(record_id.binary, *owner, stored.chunks))
                        continue
                    transactions.append(parse_transaction(record, owners, now_ms=run.started_ms))
                    made_from.append(digest)
                except RecordError as error:
                    letters.append(_refused(record, error, owners))
                except Exception as error:  # noqa: BLE001 - a record that nobody thought of must not stop the others
                    reason = f"the record can't be read: {type(error).__name__}: {str(error)[:200]}"
                    letters.append(_refused(record, RecordError("unreadable", reason), owners))
            digest_column = pa.array(made_from, type=pa.large_binary())
            sink.write(to_table(Transaction, transactions).append_column(_SCHEMA.field(SOURCE_DIGEST), digest_column))
    refused = store.write_table(run.key, f"{name}.refused-extract", to_table(DeadLetter, letters))
    left = store.write_table(run.key, f"{name}.unchanged", to_table(UnchangedRecord, unchanged)) if unchanged else None
    return Shard(number=number, read=read, rows=sink.file, refused=(refused,), unchanged=left)


def _find_contract(record: Mapping[str, Any], owners: Owners) -> Contract | None:
    """Return the contract of a record that has an owner; parsing says why another has none."""
    try:
        return owners.find(record.get("contractId"), record.get("contract"))
    except RecordError:
        return None


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
    found = list(source.read_raw_records(COLLECTION, batch.ids, FIELDS))
    ids = [record["_id"] for _, record in found if isinstance(record["_id"], ObjectId)]
    known = vectors.find_stored_records(run.scope.source_type, within=ids) if run.may_skip else {}
    digests = SourceDigests(run.scope.source_type, facts, size)
    shard = _parsed(run, batch.number, found, owners, digests, known, store)
    present = {record_key(record["_id"]) for _, record in found}
    gone = [record_id for record_id in batch.ids if record_key(record_id) not in present]
    return replace(shard, gone=bson.encode({"ids": gone}) if gone else b"")


def _refused(record: Mapping[str, Any], error: RecordError, owners: Owners) -> DeadLetter:
    """Return the dead letter, with its owner where the record's contract still tells it."""
    team_id = contract_id = None
    try:
        contract = owners.find(record.get("contractId"), record.get("contract"))
        team_id, contract_id = contract.team_id, contract.contract_id
    except RecordError:
        pass
    return DeadLetter.from_error(
        error,
        source_type="transaction",
        stage="extract",
        record=record,
        team_id=team_id,
        contract_id=contract_id,
    )
