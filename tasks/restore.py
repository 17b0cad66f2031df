"""Restore: one part of a backup into staging, and the proof that what is staged is what was backed up."""

from __future__ import annotations

from collections.abc import Collection

from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from prefect import task

from blocks.backups import BackupStore
from blocks.memory import release_memory
from blocks.staging import Loaded, Staging, Wanted
from tasks.domain.backups import CollectionBackup, Part
from tasks.policy import STAGE


def of_team(team: str | None) -> Wanted | None:
    """Return what tells the documents of a team, whose id is stored as an ObjectId or as its text; None: all."""
    if team is None:
        return None
    ids = (ObjectId(team), team)

    def wanted(document: RawBSONDocument) -> bool:
        return document.get("teamId") in ids

    return wanted


@task(name="restore part", task_run_name="restore {part.name}", **STAGE)
def restore_part(
    backup_id: str,
    part: Part,
    staging: Staging,
    backups: BackupStore,
    *,
    without: Collection[bytes] = (),
    team: str | None = None,
) -> Loaded:
    """Load a part into staging and compare what is there with what was loaded; return that. Safe to repeat.

    Raises ``BackupDamagedError`` where the part is not what was written, or is not stored as it was.
    """
    wanted = of_team(team)
    try:
        loaded = staging.load(backup_id, part, backups, without=without, wanted=wanted)
        staging.require_same(backup_id, part, loaded, backups, without=without, wanted=wanted)
    finally:
        release_memory()
    return loaded


@task(name="restore changes", task_run_name="restore {part.name}", **STAGE)
def restore_changes(
    backup_id: str, part: Part, staging: Staging, backups: BackupStore, *, team: str | None = None
) -> Loaded:
    """Lay the changes of a collection over its parts, and compare them. Safe to repeat."""
    wanted = of_team(team)
    try:
        loaded = staging.load_changes(backup_id, part, backups, wanted=wanted)
        staging.require_same_changes(backup_id, part, backups, wanted=wanted)
    finally:
        release_memory()
    return loaded


@task(name="build indexes", task_run_name="build the indexes of {collection.name}", **STAGE)
def build_indexes(collection: CollectionBackup, staging: Staging, *, expiring: bool) -> None:
    """Build the staged collection's indexes: those that delete by time, or all others. Safe to repeat."""
    staging.build_indexes(collection, expiring=expiring)
