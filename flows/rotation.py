"""Rotation: backups that have served their time are removed; what is locked stays, and is told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from blocks.audit import audit
from blocks.backups import BackupStore
from blocks.object_store import ObjectsLockedError
from tasks.domain.errors import PipelineError, TerminalError
from tasks.domain.retention import Retention, Verdict, choose, classes_for

__all__ = ["Locked", "Rotation", "classes_for", "retention_of", "rotate_backups"]


@dataclass(frozen=True, slots=True)
class Locked:
    """A backup that has served its time and can't be removed yet. ``until`` is None where a person ends the lock."""

    id: str
    until: datetime | None
    why: str

    def __str__(self) -> str:
        until = "until somebody ends the lock" if self.until is None else f"until {self.until:%Y-%m-%d %H:%M} UTC"
        return f"{self.id} is locked {until}"


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation did; after a dry run ``would_remove`` says what it would do, and nothing is removed or locked."""

    kept: tuple[Verdict, ...]
    removed: tuple[Verdict, ...] = ()
    locked: tuple[Locked, ...] = ()
    would_remove: tuple[Verdict, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.kept)} kept"]
        if self.would_remove:
            parts.append(f"{len(self.would_remove)} would be removed")
        parts.append(f"{len(self.removed)} removed")
        if self.locked:
            parts.append(f"{len(self.locked)} locked")
        return ", ".join(parts)

    def to_record(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "kept": [{"id": one.id, "why": one.why} for one in self.kept],
            "removed": [{"id": one.id, "why": one.why} for one in self.removed],
            "locked": [{"id": one.id, "until": one.until, "why": one.why} for one in self.locked],
            "would_remove": [{"id": one.id, "why": one.why} for one in self.would_remove],
        }


def retention_of(backups: BackupStore) -> Retention:
    """Return how much of each class this store keeps."""
    return Retention(backups.keep_daily, backups.keep_weekly_days, backups.keep_monthly)


def rotate_backups(backups: BackupStore, *, dry_run: bool) -> Rotation:
    """Remove the backups that have served their time, the oldest first; return what was done. Safe to repeat.

    One that is locked stays whole, and is no failure. One that can't be removed keeps no other: all are tried, then
    ``TerminalError`` names those that stay.
    """
    verdicts = choose(backups.list_backups(), retention_of(backups))
    kept = tuple(one for one in verdicts if one.keep)
    served = tuple(one for one in reversed(verdicts) if not one.keep)
    if dry_run:
        return Rotation(kept, would_remove=served)
    removed: list[Verdict] = []
    locked: list[Locked] = []
    failed: list[str] = []
    for one in served:
        try:
            backups.remove(one.id)
        except ObjectsLockedError as error:
            locked.append(Locked(one.id, error.until, one.why))
        except PipelineError as error:
            failed.append(f"{one.id}: {error}")
        else:
            audit("backup_removed", f"the backup {one.id} has served its time: {one.why}", backup=one.id)
            removed.append(one)
    if failed:
        raise TerminalError(
            f"{len(removed)} old backups were removed, {len(failed)} could not be: {'; '.join(failed)}. "
            "`cryptique-rag backups rotate` tries again"
        )
    return Rotation(kept, tuple(removed), tuple(locked))
