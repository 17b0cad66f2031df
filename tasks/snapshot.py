"""Snapshot: the parts of a backup, read at the backup's moment and stored on their way; its manifest, last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from bson.timestamp import Timestamp
from prefect import task

from blocks.backups import BackupStore
from blocks.memory import release_memory
from blocks.mongo import MongoDatabase
from blocks.snapshots import Block, read_changes, read_range
from tasks.domain.backups import BackupManifest, Part, StoredBackup, changes_name, part_name
from tasks.domain.shards import ShardRange
from tasks.policy import STAGE


class _Counted:
    """The bytes of blocks, and how many documents passed."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks = blocks
        self.documents = 0

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            self.documents += block.documents
            yield block.content


@task(name="back up part", task_run_name="back up {collection} {shard.number}", **STAGE)
def back_up_part(
    backup_id: str,
    role: str,
    collection: str,
    shard: ShardRange,
    moment: Timestamp,
    database: MongoDatabase,
    backups: BackupStore,
    *,
    document_bytes: int,
) -> Part:
    """Store one range of a collection as it was at the moment; return what was stored. Safe to repeat.

    Raises ``MomentForgottenError`` where the server no longer remembers it: the flow then takes a later one.
    """
    name = part_name(collection, shard.number, role=role, encrypted=bool(backups.recipients))
    blocks = read_range(database, collection, shard, moment, document_bytes=document_bytes)
    return _store(backup_id, name, collection, shard, moment, blocks, backups)


@task(name="back up changes", task_run_name="back up changes of {collection}", **STAGE)
def back_up_changes(
    backup_id: str,
    role: str,
    collection: str,
    ids: Sequence[Any],
    moment: Timestamp,
    database: MongoDatabase,
    backups: BackupStore,
) -> Part:
    """Store the documents that were written while a collection was read, as they were at the last moment."""
    name = changes_name(collection, role=role, encrypted=bool(backups.recipients))
    blocks = read_changes(database, collection, ids, moment)
    return _store(backup_id, name, collection, ShardRange(0, None, None, len(ids)), moment, blocks, backups)


def _store(
    backup_id: str,
    name: str,
    collection: str,
    shard: ShardRange,
    moment: Timestamp,
    blocks: Iterable[Block],
    backups: BackupStore,
) -> Part:
    """Store blocks of documents as one object; return the part that it is."""
    counted = _Counted(blocks)
    written = backups.write_part(backup_id, name, counted)
    release_memory()
    return Part(
        name=name,
        collection=collection,
        number=shard.number,
        lower=shard.lower,
        upper=shard.upper,
        documents=counted.documents,
        raw_bytes=written.raw_bytes,
        stored_bytes=written.stored_bytes,
        sha256=written.sha256,
        content_sha256=written.content_sha256,
        taken_at=moment,
    )


@task(name="sweep unfinished backups", **STAGE)
def sweep_unfinished(backups: BackupStore, older_than: timedelta) -> list[str]:
    """Remove what killed backups left; return their ids. Safe to repeat."""
    return backups.sweep_unfinished(older_than)


@task(name="list backups", **STAGE)
def list_backups(backups: BackupStore) -> list[StoredBackup]:
    """Return all backups, the newest first."""
    return backups.list_backups()


@task(name="save manifest", **STAGE)
def save_manifest(manifest: BackupManifest, backups: BackupStore) -> None:
    """Make a backup of the parts that were stored. Safe to repeat."""
    backups.save_manifest(manifest)
