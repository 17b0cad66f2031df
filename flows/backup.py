"""Backup: the store as it was at one moment, in a bucket or a folder; read back, restored in part, and then rotated."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import distributions
from typing import Annotated, Any, Literal

from bson.timestamp import Timestamp
from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.blocks.core import Block
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, as_completed
from prefect.states import Completed
from pydantic import Field, SecretStr

from blocks.backups import BackupStore
from blocks.code_version import read_code_version
from blocks.memory import limit_heaps
from blocks.mongo import MongoDatabase
from blocks.snapshots import (
    MomentForgottenError,
    StoredCollection,
    count_at,
    describe_collections,
    find_changed,
    identify_collections,
    plan_ranges,
    take_moment,
)
from flows.blocks import load_backups, load_source, load_vectors
from flows.hooks import alert_on_crashed, alert_on_failure, note_backup_made, resolve_on_completion
from flows.parameters import DryRun, Retries
from flows.parts import DEFAULT_PARTS_IN_FLIGHT, PartsInFlight
from flows.progress import Progress, duration
from flows.report import Announcer, never_stopping
from flows.rotation import Rotation, rotate_backups
from flows.stages import task_runner, whole
from flows.verify import verify
from tasks.domain.backups import (
    PART_BYTES,
    BackupManifest,
    CollectionBackup,
    DatabaseBackup,
    Part,
    Verification,
    new_id,
)
from tasks.domain.errors import InputError, PipelineError, TerminalError
from tasks.domain.registry import source_collections as source_collection_names
from tasks.domain.retention import classes_for
from tasks.domain.shards import ShardRange
from tasks.policy import DEFAULT_RETRIES, STAGE
from tasks.snapshot import back_up_changes, back_up_part, list_backups, save_manifest, sweep_unfinished

#: Nothing was written to a backup for so long: whoever made it is gone.
UNFINISHED_AFTER = timedelta(hours=6)
#: A user and a password within an address.
_USER = re.compile(r"//[^/@\s]{1,500}@")
#: How often one part, or the changes, may outlive the server's window.
_MAX_MOMENTS = 3

Kind = Literal["daily", "weekly", "manual"]
Role = Literal["store", "source"]


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a backup holds and took; in a dry run, what it would hold. Bytes are of BSON and as they are stored.

    ``seconds`` is the whole run, ``reading_seconds`` until the manifest was written. ``moments`` is at how many moments
    was read: more than one where reading outlived the server's window. ``verification`` and ``rotation`` are records of
    theirs.
    """

    backup: str
    classes: list[str]
    taken: datetime | None
    documents: int
    parts: int
    raw_bytes: int
    stored_bytes: int
    moments: int
    seconds: float
    reading_seconds: float
    dry_run: bool
    collections: dict[str, dict[str, int]]
    left_out: list[str]
    swept: list[str]
    verification: dict[str, Any] | None
    rotation: dict[str, Any] | None


def _run_name() -> str:
    given = runtime.flow_run.parameters
    return ("dry run: " if given.get("dry_run") else "") + f"backup {given.get('kind', 'manual')}"


@flow(
    name="backup",
    flow_run_name=_run_name,
    task_runner=task_runner(),
    on_failure=[alert_on_failure],
    on_crashed=[alert_on_crashed],
    on_completion=[resolve_on_completion, note_backup_made],
)
def backup(
    kind: Annotated[
        Kind, Field(description="By which rule it is rotated; a manual one stays until somebody removes it.")
    ] = "manual",
    source_collections: Annotated[
        bool, Field(description="The application's collections that we read, too: transactions, sessions and the rest.")
    ] = False,
    drill: Annotated[
        bool, Field(description="Restore the whole of it into a scratch database and compare; else a sample.")
    ] = False,
    rotate: Annotated[
        bool, Field(description="Remove backups that have served their time, once this one is good.")
    ] = True,
    part_mb: Annotated[
        int, Field(ge=1, le=1_024, description="Megabytes of documents in a part, the unit of retry.")
    ] = (PART_BYTES >> 20),
    parts_in_flight: PartsInFlight = DEFAULT_PARTS_IN_FLIGHT,
    dry_run: DryRun = False,
    retries: Retries = DEFAULT_RETRIES,
) -> State[dict[str, Any]]:
    """Back up the store as it is at one moment while others write to it, prove the backup, then rotate older ones.

    Runs daily and weekly. A rerun makes a new backup: one that failed is taken away, what a killed one left after six
    hours. It counts as good only once every part was read back, and a sample, or with ``drill`` the whole, was restored
    and compared. Fails, and the alert is critical, where that finds anything. The result has the fields of
    ``BackupReport``.
    """
    began = time.monotonic()
    limit_heaps()
    backups, vectors = load_backups(), load_vectors()
    vectors.check()
    sections = [_Section("store", vectors, sorted(vectors.all_collections()))]
    if source_collections:
        source = load_source()
        source.check()
        sections.append(_Section("source", source, sorted(source_collection_names())))
    for section in sections:
        section.plan(part_mb << 20)
    started = vectors.read_time()
    backup_id = new_id(started)
    if dry_run:
        return _told(_plan_report(backup_id, kind, sections, began))
    swept = sweep_unfinished.with_options(retries=retries)(whole(backups), UNFINISHED_AFTER)
    if swept:
        get_run_logger().info("what unfinished backups left was removed: %s", ", ".join(swept))
    try:
        _store(backup_id, sections, backups, parts_in_flight, retries)
        taken = max(section.last for section in sections).as_datetime()
        classes = classes_for(kind, taken, list_backups.with_options(retries=retries)(whole(backups)))
        manifest = BackupManifest(
            id=backup_id,
            classes=classes,
            began=_seconds(started),
            taken=taken,
            databases=tuple(section.to_backup() for section in sections),
            code_version=read_code_version(),
            packages=_packages(),
            settings={section.role: _settings(section.database) for section in sections}
            | {"backups": _settings(backups)},
            recipients=tuple(backups.recipients),
        )
        save_manifest.with_options(retries=retries)(whole(manifest), whole(backups))
    except Exception:
        # Nobody can restore from it; where the store can't be reached now, the next backup sweeps it.
        with suppress(PipelineError):
            backups.remove(backup_id)
        raise
    reading_seconds = time.monotonic() - began
    get_run_logger().info("%s is written; now it is read back", backup_id)
    verification = verify(
        backup_id,
        backups=backups,
        vectors=vectors,
        drill=drill,
        retries=retries,
        parts_in_flight=parts_in_flight,
    )
    if not verification.ok:
        raise TerminalError(
            f"the backup {backup_id} is damaged and counts for nothing: {'; '.join(verification.problems[:3])}. Older "
            "backups were kept: `cryptique-rag backups` lists them. Run the backup again; if it is damaged again, look "
            "at the disk or bucket that it lies in"
        )
    rotation = _rotate(backup_id, backups) if rotate else None
    return _told(
        _report(manifest, sections, verification, rotation, swept, began=began, reading_seconds=reading_seconds)
    )


@dataclass(slots=True)
class _Section:
    """One database of a backup: what is read of it, at which moments, and what became of that."""

    role: Role
    database: MongoDatabase
    names: Sequence[str]
    moments: list[Timestamp] = field(default_factory=list)
    collections: list[StoredCollection] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    identities: dict[str, Any] = field(default_factory=dict)
    ranges: dict[str, list[ShardRange]] = field(default_factory=dict)
    planned_at: dict[str, Timestamp] = field(default_factory=dict)
    parts: dict[str, list[Part]] = field(default_factory=dict)
    changes: dict[str, Part] = field(default_factory=dict)
    documents: dict[str, int] = field(default_factory=dict)

    @property
    def last(self) -> Timestamp:
        return self.moments[-1]

    def plan(self, part_bytes: int) -> None:
        for left in range(_MAX_MOMENTS - 1, -1, -1):
            self.identities = identify_collections(self.database, self.names)
            self.collections, self.left_out = describe_collections(self.database, self.names)
            if not self.collections:
                raise InputError(
                    f"the database {self.database.database} holds none of our collections: nothing can be backed up. "
                    f"Look at {self.database.setting} and the database's name"
                )
            self.moments.clear()
            self.take_moment()
            # One that was made or dropped just now is not of the moment as it was described.
            if not left or not self.find_others():
                break
        for collection in self.collections:
            self.ranges[collection.name] = self._plan(collection, part_bytes)
            self.planned_at[collection.name] = self.last

    def find_others(self) -> list[str]:
        """Return the collections that were made, dropped, renamed or replaced since they were described."""
        now = identify_collections(self.database, self.names)
        return sorted(one for one in now.keys() | self.identities.keys() if now.get(one) != self.identities.get(one))

    def require_same_collections(self) -> None:
        """Raise ``TerminalError`` where a collection is no more the one that was described."""
        if others := self.find_others():
            raise TerminalError(
                f"{', '.join(others)}: made, dropped, renamed or replaced while {self.database.database} was backed "
                "up. Run the backup again"
            )

    def _plan(self, collection: StoredCollection, part_bytes: int) -> list[ShardRange]:
        for _ in range(_MAX_MOMENTS):
            try:
                return plan_ranges(self.database, collection, self.last, part_bytes=part_bytes)
            except MomentForgottenError:
                # Nothing was read yet: the backup's moment is simply a later one.
                self.moments.clear()
                self.take_moment()
        raise TerminalError(f"the ids of {collection.name} can't be walked in the time that the server remembers")

    def take_moment(self, *, instead_of: Timestamp | None = None) -> None:
        """Take a later moment, unless somebody did since this one."""
        if instead_of is None or self.last == instead_of:
            self.moments.append(take_moment(self.database, self.collections[0].name))

    @property
    def total(self) -> int:
        return sum(shard.planned for ranges in self.ranges.values() for shard in ranges)

    def _require_all(self, name: str, parts: Sequence[Part]) -> None:
        """Raise ``TerminalError`` where parts hold other numbers than their ranges had when they were walked."""
        ranges = self.ranges[name]
        if len(ranges) == 1 or {part.taken_at for part in parts} != {self.planned_at[name]}:
            return  # an estimate, or read at another moment: then the server counted
        read, walked = sum(part.documents for part in parts), sum(shard.planned for shard in ranges)
        if read != walked:
            raise TerminalError(f"{read:,} documents of {name} were read, {walked:,} were there: run the backup again")

    def to_backup(self) -> DatabaseBackup:
        collections = []
        for one in self.collections:
            parts = tuple(sorted(self.parts[one.name], key=lambda part: part.number))
            documents = self.documents.get(one.name, sum(part.documents for part in parts))
            self._require_all(one.name, parts)
            collections.append(
                CollectionBackup(one.name, one.options, one.indexes, documents, parts, self.changes.get(one.name))
            )
        return DatabaseBackup(
            role=self.role,
            database=self.database.database,
            server_version=self.database.check(),
            moment=self.last,
            collections=tuple(collections),
            left_out=tuple(self.left_out),
        )


def _store(
    backup_id: str, sections: Sequence[_Section], backups: BackupStore, parts_in_flight: int, retries: int
) -> None:
    """Store every part of every section, then what changed while they were read."""
    progress = Progress(total=sum(section.total for section in sections))
    announcer = Announcer("backup", progress)
    for section in sections:
        for part in _parts(backup_id, section, backups, parts_in_flight, retries):
            section.parts.setdefault(part.collection, []).append(part)
            progress.done += part.documents
            announcer.tell()
        _store_changes(backup_id, section, backups, retries)
        section.require_same_collections()
    announcer.finish()


def _parts(
    backup_id: str, section: _Section, backups: BackupStore, parts_in_flight: int, retries: int
) -> Iterator[Part]:
    """Yield the parts of a section as they are stored, a few at work at once.

    One whose moment the server forgot is read at a later one. The first failure is raised when those at work have
    ended.
    """
    store_part = back_up_part.with_options(retries=retries)
    waiting = [(one, shard) for one in section.collections for shard in section.ranges[one.name]]
    waiting.reverse()
    pending: dict[PrefectFuture[Part], tuple[StoredCollection, ShardRange, Timestamp]] = {}
    forgotten: dict[tuple[str, int], int] = {}
    failed: BaseException | None = None
    while (waiting and failed is None) or pending:
        while waiting and failed is None and len(pending) < parts_in_flight:
            collection, shard = waiting.pop()
            future = store_part.submit(
                backup_id,
                section.role,
                collection.name,
                shard,
                section.last,
                whole(section.database),
                whole(backups),
                document_bytes=collection.document_bytes,
            )
            pending[future] = (collection, shard, section.last)
        done = next(as_completed(list(pending)))
        collection, shard, moment = pending.pop(done)
        try:
            yield done.result()
        except MomentForgottenError as error:
            place = (collection.name, shard.number)
            forgotten[place] = forgotten.get(place, 0) + 1
            if forgotten[place] >= _MAX_MOMENTS:
                failed = failed or TerminalError(
                    f"one part of {collection.name} takes longer than the server remembers a moment: choose smaller "
                    "parts (part_mb), or raise the server's minSnapshotHistoryWindowInSeconds"
                )
                continue
            get_run_logger().info("%s; part %s %d is read at a later one", error, collection.name, shard.number)
            section.take_moment(instead_of=moment)
            waiting.append((collection, shard))
        except Exception as error:  # noqa: BLE001 - whatever a task raised is raised again below
            failed = failed or error
    if failed is not None:
        raise failed


def _store_changes(backup_id: str, section: _Section, backups: BackupStore, retries: int) -> None:
    """Store what was written between the first moment and the last, where there is more than one."""
    store_changes = back_up_changes.with_options(retries=retries)
    for _ in range(_MAX_MOMENTS):
        if len(section.moments) == 1:
            return
        first, last = section.moments[0], section.last
        try:
            changed = find_changed(section.database, [one.name for one in section.collections], first=first, last=last)
            for name, ids in changed.items():
                section.documents[name] = count_at(section.database, name, last)
                if ids:
                    section.changes[name] = store_changes.submit(
                        backup_id,
                        section.role,
                        name,
                        whole(list(ids.values())),
                        last,
                        whole(section.database),
                        whole(backups),
                    ).result()
            get_run_logger().info(
                "read at %d moments; %s documents that were written in between were read again",
                len(section.moments),
                f"{sum(len(ids) for ids in changed.values()):,}",
            )
            return
        except MomentForgottenError:
            section.take_moment(instead_of=last)
    raise TerminalError(
        f"{section.database.database} changes faster than it can be read: choose a quieter hour, or raise the server's "
        "minSnapshotHistoryWindowInSeconds"
    )


@task(name="rotate backups", **STAGE)
def _rotate_in_turn(backups: BackupStore) -> Rotation:
    return rotate_backups(backups, dry_run=False)


def _rotate(backup_id: str, backups: BackupStore) -> Rotation:
    try:
        return _rotate_in_turn(whole(backups))
    except PipelineError as error:
        raise TerminalError(f"the backup {backup_id} is good, but older ones could not be rotated: {error}") from error


# -- what is told ---------------------------------------------------------------------------------------------


def _seconds(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)


def _packages() -> dict[str, str]:
    found = {str(one.name).lower(): one.version for one in distributions() if one.name}
    return {"python": platform.python_version(), **dict(sorted(found.items()))}


def _settings(block: Block) -> dict[str, Any]:
    """Return what is set of a block, without its secrets; blocks within it likewise."""
    told: dict[str, Any] = {}
    for name, info in type(block).model_fields.items():
        value = getattr(block, name)
        if isinstance(value, SecretStr) or "SecretStr" in str(info.annotation):
            continue
        if isinstance(value, Block):
            told[name] = _settings(value)
        elif value is not None:
            told[name] = value if isinstance(value, bool | int | float | list) else _USER.sub("//***@", str(value))
    return told


def _told(report: BackupReport) -> State[dict[str, Any]]:
    """Put the report beside the run, and return the run's end."""
    size = f"{report.raw_bytes / 1e6:,.1f} MB"
    if report.dry_run:
        words = f"would back up {report.documents:,} documents, {size}, in {report.parts:,} parts"
    else:
        speed = report.raw_bytes / 1e6 / max(report.reading_seconds, 0.001)
        words = (
            f"{report.backup}: {report.documents:,} documents, {size} stored as {report.stored_bytes / 1e6:,.1f} MB in "
            f"{report.parts:,} parts, {duration(report.reading_seconds)} ({speed:,.0f} MB/s); "
            f"{_proof(report.verification)}"
        )
    lines = [f"# {words}", "", "| collection | documents | parts | MB | MB stored |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {row['documents']:,} | {row['parts']:,} | {row['raw_bytes'] / 1e6:,.1f} "
        f"| {row['stored_bytes'] / 1e6:,.1f} |"
        for name, row in report.collections.items()
    ]
    if report.left_out:
        lines += ["", f"Left out, because they are views or time series: {', '.join(report.left_out)}."]
    if report.moments > 1:
        lines += ["", f"Reading outlived the server's memory: read at {report.moments} moments, mended to the last."]
    if report.rotation:
        lines += ["", f"Removed: {', '.join(one['id'] for one in report.rotation['removed']) or 'none'}."]
    with never_stopping("the summary artifact"):
        create_markdown_artifact("\n".join(lines), key="backup-summary", description="What was backed up and proved")
    return Completed(message=words, data=asdict(report))


def _proof(verification: dict[str, Any] | None) -> str:
    if verification is None:
        return "not verified"
    whole_of_it = "all" if verification["drill"] else f"{verification['restored']:,}"
    return f"read back whole, {whole_of_it} restored and compared in {duration(verification['seconds'])}"


def _plan_report(backup_id: str, kind: Kind, sections: Sequence[_Section], began: float) -> BackupReport:
    rows = {
        _label(section, one): {
            "documents": sum(shard.planned for shard in section.ranges[one.name]),
            "parts": len(section.ranges[one.name]),
            "raw_bytes": one.raw_bytes,
            "stored_bytes": 0,
        }
        for section in sections
        for one in section.collections
    }
    return BackupReport(
        backup=backup_id,
        classes=[kind],
        taken=None,
        documents=sum(row["documents"] for row in rows.values()),
        parts=sum(row["parts"] for row in rows.values()),
        raw_bytes=sum(row["raw_bytes"] for row in rows.values()),
        stored_bytes=0,
        moments=1,
        seconds=round(time.monotonic() - began, 1),
        reading_seconds=0.0,
        dry_run=True,
        collections=rows,
        left_out=[name for section in sections for name in section.left_out],
        swept=[],
        verification=None,
        rotation=None,
    )


def _report(
    manifest: BackupManifest,
    sections: Sequence[_Section],
    verification: Verification,
    rotation: Rotation | None,
    swept: list[str],
    *,
    began: float,
    reading_seconds: float,
) -> BackupReport:
    rows = {
        (one.name if database.role == "store" else f"{database.role}: {one.name}"): {
            "documents": one.documents,
            "parts": len(one.all_parts),
            "raw_bytes": sum(part.raw_bytes for part in one.all_parts),
            "stored_bytes": sum(part.stored_bytes for part in one.all_parts),
        }
        for database in manifest.databases
        for one in database.collections
    }
    return BackupReport(
        backup=manifest.id,
        classes=list(manifest.classes),
        taken=manifest.taken,
        documents=manifest.documents,
        parts=len(manifest.parts),
        raw_bytes=sum(part.raw_bytes for part in manifest.parts),
        stored_bytes=manifest.stored_bytes,
        moments=max(len(section.moments) for section in sections),
        seconds=round(time.monotonic() - began, 1),
        reading_seconds=round(reading_seconds, 1),
        dry_run=False,
        collections=rows,
        left_out=[name for database in manifest.databases for name in database.left_out],
        swept=swept,
        verification=asdict(verification),
        rotation=None if rotation is None else rotation.to_record(),
    )


def _label(section: _Section, one: StoredCollection) -> str:
    return one.name if section.role == "store" else f"{section.role}: {one.name}"
