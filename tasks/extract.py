"""Extract: one range of the source, read and parsed; what can't be parsed becomes a dead letter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import bson
from bson import ObjectId
from prefect import task

from blocks.mongo import MongoSource
from blocks.shards import ShardStore
from tasks.domain.changes import ChangeBatch
from tasks.domain.dead_letters import DeadLetter, record_key
from tasks.domain.errors import RecordError
from tasks.domain.owners import Owners
from tasks.domain.runs import Run, Scope
from tasks.domain.shards import Shard, ShardRange
from tasks.domain.tables import to_table
from tasks.domain.transactions import Transaction, parse_block_time, parse_transaction
from tasks.policy import STAGE

COLLECTION = "transactions"
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
def extract_shard(run: Run, shard: ShardRange, source: MongoSource, owners: Owners, store: ShardStore) -> Shard:
    """Return the shard with its transactions, in ``_id`` order, and its first dead letters. Safe to repeat."""
    criteria = source_criteria(run.scope, owners)
    records = source.read_range(COLLECTION, shard, criteria=criteria, fields=FIELDS)
    return _parsed(run, shard.number, (row for row in records if in_window(row, run.scope)), owners, store)


def _parsed(run: Run, number: int, records: Iterable[Mapping[str, Any]], owners: Owners, store: ShardStore) -> Shard:
    read = 0
    transactions: list[Transaction] = []
    letters: list[DeadLetter] = []
    for record in records:
        read += 1
        try:
            transactions.append(parse_transaction(record, owners, now_ms=run.started_ms))
        except RecordError as error:
            letters.append(_refused(record, error, owners))
        except Exception as error:  # noqa: BLE001 - a record that nobody thought of must not stop the others
            unread = RecordError("unreadable", f"the record can't be read: {type(error).__name__}: {str(error)[:200]}")
            letters.append(_refused(record, unread, owners))
    rows = store.write_table(run.key, f"{number:06d}.transactions", to_table(Transaction, transactions))
    refused = store.write_table(run.key, f"{number:06d}.refused-extract", to_table(DeadLetter, letters))
    return Shard(number=number, read=read, rows=rows, refused=(refused,))


@task(name="extract", task_run_name="extract changes {batch.number}", **STAGE)
def extract_changes(run: Run, batch: ChangeBatch, source: MongoSource, owners: Owners, store: ShardStore) -> Shard:
    """Return the changed records as a shard, as they are now; those no longer there are its ``gone``."""
    found = list(source.read_records(COLLECTION, batch.ids, FIELDS))
    shard = _parsed(run, batch.number, found, owners, store)
    present = {record_key(record["_id"]) for record in found}
    gone = [record_id for record_id in batch.ids if record_key(record_id) not in present]
    return replace(shard, gone=bson.encode({"ids": gone}))


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
