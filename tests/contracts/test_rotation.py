"""Rotation in a real bucket and a real folder: what goes is gone whole, what is locked or broken costs nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bson
import pytest
from bson.timestamp import Timestamp

from blocks.backups import BackupStore
from blocks.object_store import ObjectsLockedError
from blocks.s3 import S3Bucket
from flows.rotation import rotate_backups
from tasks.domain.backups import (
    BackupClass,
    BackupManifest,
    CollectionBackup,
    DatabaseBackup,
    Part,
    Verification,
    new_id,
    part_name,
)
from tasks.domain.errors import TerminalError, TransientError

NOON = datetime(2026, 3, 15, 12, tzinfo=UTC)


@pytest.fixture(params=["folder", "bucket"])
def backups(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BackupStore]:
    """A store of backups, empty, in which two daily ones are kept."""
    if request.param == "folder":
        yield BackupStore(folder=tmp_path / "backups", keep_daily=2)
        return
    bucket: S3Bucket = request.getfixturevalue("bucket")
    yield BackupStore(bucket=bucket, keep_daily=2)


def store_backup(backups: BackupStore, taken: datetime, *classes: BackupClass, ok: bool | None = True) -> str:
    """Store a small backup as a run does: its part, its manifest, and what reading it back found; return its id."""
    backup_id = new_id(taken)
    document = bson.encode({"_id": 1})
    name = part_name("vectordocuments", 0)
    written = backups.write_part(backup_id, name, [document])
    moment = Timestamp(int(taken.timestamp()), 1)
    part = Part(
        name,
        "vectordocuments",
        0,
        None,
        None,
        1,
        written.raw_bytes,
        written.stored_bytes,
        written.sha256,
        written.content_sha256,
        moment,
    )
    database = DatabaseBackup(
        "store", "db", "6.0.5", moment, (CollectionBackup("vectordocuments", {}, [], 1, (part,)),)
    )
    backups.save_manifest(BackupManifest(backup_id, classes, taken, taken, (database,), "0.1.0", {}, {}))
    if ok is not None:
        found = Verification(backups.manifest_sha256(backup_id), taken, 1, 1, 1, False)
        backups.save_verification(backup_id, found if ok else replace(found, problems=("it is broken",)))
    return backup_id


def ids(backups: BackupStore) -> list[str]:
    return [one.id for one in backups.list_backups()]


def test_what_has_served_its_time_is_gone_whole_and_a_dry_run_only_tells(backups: BackupStore) -> None:
    days = [store_backup(backups, NOON - timedelta(days=number), "daily") for number in range(4)]
    month = store_backup(backups, NOON - timedelta(days=9), "daily", "monthly")
    by_hand = store_backup(backups, NOON - timedelta(days=900), "manual")
    damaged = store_backup(backups, NOON - timedelta(days=8), "daily", ok=False)
    before = ids(backups)
    told = rotate_backups(backups, dry_run=True)
    assert ids(backups) == before
    assert [one.id for one in told.would_remove] == [damaged, days[3], days[2]]
    assert told.removed == ()
    done = rotate_backups(backups, dry_run=False)
    assert [one.id for one in done.removed] == [damaged, days[3], days[2]]
    assert ids(backups) == [days[0], days[1], month, by_hand]
    assert list(backups.place.list_objects(f"{days[3]}/")) == []
    assert rotate_backups(backups, dry_run=False).removed == ()


def test_the_only_good_one_outlives_any_number_of_bad_ones(backups: BackupStore) -> None:
    good = store_backup(backups, NOON - timedelta(days=400), "daily")
    bad = [
        store_backup(backups, NOON - timedelta(days=day), "daily", ok=None if day % 2 else False) for day in range(4)
    ]
    assert rotate_backups(backups, dry_run=False).removed == ()
    assert ids(backups) == [*bad, good]


class Unwilling(BackupStore):
    """A folder of backups of which one can't be removed."""

    _block_type_slug = "unwilling-backup-store"  # not to be taken for the real one

    refused: str = ""
    error: Any = None

    def remove(self, backup_id: str) -> None:
        if backup_id == self.refused:
            raise self.error
        super().remove(backup_id)


def test_one_that_is_locked_stays_whole_and_is_told_and_the_others_go(tmp_path: Path) -> None:
    backups = Unwilling(folder=tmp_path / "backups", keep_daily=1)
    days = [store_backup(backups, NOON - timedelta(days=number), "daily") for number in range(3)]
    backups.refused, backups.error = days[2], ObjectsLockedError("it is locked", until=NOON)
    done = rotate_backups(backups, dry_run=False)
    assert [one.id for one in done.removed] == [days[1]]
    assert [str(one) for one in done.locked] == [f"{days[2]} is locked until 2026-03-15 12:00 UTC"]
    assert str(done) == "1 kept, 1 removed, 1 locked"
    assert ids(backups) == [days[0], days[2]]


def test_one_that_can_not_be_removed_keeps_no_other_and_fails_the_rotation_at_its_end(tmp_path: Path) -> None:
    backups = Unwilling(folder=tmp_path / "backups", keep_daily=1)
    days = [store_backup(backups, NOON - timedelta(days=number), "daily") for number in range(3)]
    backups.refused, backups.error = days[2], TransientError("the server is away")
    with pytest.raises(TerminalError, match=f"1 old backups were removed, 1 could not be: {days[2]}: the server is"):
        rotate_backups(backups, dry_run=False)
    assert ids(backups) == [days[0], days[2]]
    backups.refused = ""
    assert [one.id for one in rotate_backups(backups, dry_run=False).removed] == [days[2]]
