"""Restore: a backup into staging, compared to the byte, then left there or put in place of what is live."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from blocks.audit import audit
from blocks.backups import BackupStore
from blocks.memory import limit_heaps
from blocks.mongo import MongoDatabase
from blocks.staging import (
    BOOK,
    RestoreBook,
    RestoreDiffersError,
    Staging,
    StagingDatabase,
    drop_collections,
    fits,
    holds_documents,
    keep_team,
    list_collections,
    merge_team,
    put_in_place,
    read_changed_ids,
)
from blocks.vector_store import VectorStore
from flows.blocks import load_backups, load_source, load_vectors
from flows.hooks import alert_on_crashed, alert_on_failure, resolve_on_completion
from flows.jobs import is_alive, worker_id
from flows.parameters import ObjectIdText, Retries
from flows.parts import DEFAULT_PARTS_IN_FLIGHT, PartsInFlight, each
from flows.progress import Progress, duration
from flows.report import Announcer, never_stopping
from flows.stages import task_runner, whole
from tasks.domain.backups import (
    BackupDamagedError,
    BackupManifest,
    CollectionBackup,
    StoredBackup,
    newest_good,
)
from tasks.domain.collections import AGGREGATES, DEAD_LETTERS, STATS, TEXTS, VECTORS
from tasks.domain.errors import InputError, PipelineError, WorkTakenError
from tasks.policy import DEFAULT_RETRIES
from tasks.restore import build_indexes, restore_changes, restore_part
from tasks.snapshot import list_backups

#: Collections whose documents name their team; those of other generations have the same names and more.
_OF_TEAMS = (VECTORS, DEAD_LETTERS, AGGREGATES, TEXTS, STATS)
_LONGEST_STEM = 24
#: ``loading``, ``compared`` and ``staged`` touch nothing that is live; ``swapping`` goes on when it is given again.
_State = Literal["loading", "compared", "staged", "swapping", "done", "undone", "dropped"]
_HEARTBEAT_S = 30.0
_at_work_here: set[tuple[str, str]] = set()


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore did. ``documents`` were restored and compared, ``resumed_parts`` of a run that was cut off.

    ``database`` and ``collections`` say where they are: by their own names in place or in a staging database. ``kept``
    are the names of what was live before. ``untouched`` are live collections that the backup doesn't hold. In a restore
    of a team ``merged`` says per collection what went, came and was left out because it is another team's now.
    """

    backup: str
    taken: datetime
    database: str
    in_place: bool
    team: str | None
    documents: int
    collections: dict[str, int]
    kept: list[str]
    untouched: list[str]
    merged: dict[str, dict[str, int]]
    resumed_parts: int
    seconds: float
    next_steps: list[str]


def _run_name() -> str:
    given = runtime.flow_run.parameters
    of = f" of team {given['team']}" if given.get("team") else ""
    return f"restore {given.get('backup', 'latest')}{of} {'in place' if given.get('swap') else 'into staging'}"


@flow(
    name="restore",
    flow_run_name=_run_name,
    task_runner=task_runner(),
    on_failure=[alert_on_failure],
    on_crashed=[alert_on_crashed],
    on_completion=[resolve_on_completion],
)
def restore(
    backup: Annotated[
        str,
        Field(description="Its id; latest: the newest good one; or a time such as 2026-11-23T10:00: the one before."),
    ] = "latest",
    collections: Annotated[list[str], Field(description="Only these collections; none: all.")] = [],  # noqa: B006
    team: Annotated[ObjectIdText | None, Field(description="Only this team's documents, by id; none: all.")] = None,
    source_collections: Annotated[
        bool, Field(description="The application's collections too, into staging; never in place.")
    ] = False,
    into: Annotated[
        str | None, Field(description="Staging database; none: one named for the store and the backup.")
    ] = None,
    swap: Annotated[
        bool, Field(description="Put it in place of what is live, which is kept under another name.")
    ] = False,
    overwrite: Annotated[
        str | None, Field(description="To replace live documents: the database's name, word for word.")
    ] = None,
    accept_unverified: Annotated[
        bool, Field(description="Take a backup, by its id, that was never read back. Damaged ones are never taken.")
    ] = False,
    parts_in_flight: PartsInFlight = DEFAULT_PARTS_IN_FLIGHT,
    retries: Retries = DEFAULT_RETRIES,
) -> State[dict[str, Any]]:
    """Restore a backup into staging and compare every document, then leave it there or put it in place.

    Nothing that is live is touched before all of it is loaded, compared and indexed; then it takes two renames a
    collection, and what was live stays under ``before_<backup>_``. Killed at any moment, the same restore given again
    goes on. Raises ``InputError`` for what may not be meant, ``WorkTakenError`` while a run writes to the store, and
    ``BackupDamagedError`` or ``RestoreDiffersError`` where it is not, to the byte, what was backed up. The result has
    the fields of ``RestoreReport``.
    """
    began = time.monotonic()
    limit_heaps()
    backups, vectors = load_backups(), load_vectors()
    vectors.check()
    manifest = _choose(backups, backup, accept_unverified)
    wanted = _wanted(manifest, collections, team, source_collections)
    key = _key(manifest, wanted, team, swap)
    if swap:
        if source_collections or into:
            raise InputError("what is put in place goes into the store itself: leave out source_collections and into")
        staging = Staging(vectors, _staged_prefix(key))
    else:
        staging = Staging(_staging_database(vectors, manifest, into, source_collections))
    book = RestoreBook(staging.database, key)
    said = book.read() or {}
    if swap and said.get("state") != "swapping":
        _require_may_swap(vectors, manifest, wanted, overwrite)
    state: _State | None = said.get("state")
    if swap and team is not None and state != "swapping":
        wanted = _of_live(vectors, wanted, team)
    if swap and state == "done":
        raise InputError(
            f"the backup {manifest.id} was put in place already, on {said['done_at']:%Y-%m-%d %H:%M} UTC. To do it "
            "again, `cryptique-rag restore --drop-kept` first"
        )
    if state == "done":
        raise InputError(
            f"the backup {manifest.id} lies in {staging.database.database} already: use it, drop that database, or "
            "name another one with `into`"
        )
    if state is None or state in ("undone", "dropped", "loading"):
        _require_free(staging, book, wanted, swap=swap)
    untouched = _untouched(vectors, manifest) if swap else []
    kept: list[str] = []
    merged: dict[str, dict[str, int]] = {}
    with _at_work(staging.database, vectors):
        if (book.read() or {}).get("state") != state:
            raise WorkTakenError("another restore of the same is at work, or was just now: look at it first")
        if state not in ("compared", "staged", "swapping"):
            book.write(
                backup=manifest.id,
                state="loading",
                team=team,
                prefix=staging.prefix,
                collections=[one.name for one in wanted],
                began_at=vectors.read_time(),
            )
            resumed, counts = _load(manifest, wanted, staging, book, backups, team, parts_in_flight, retries)
            book.write(state="compared", counts=counts, resumed=resumed)
            state = "compared"
        else:
            resumed, counts = int(said.get("resumed", 0)), dict(said["counts"])
        if state == "compared":
            _let_expire(wanted, staging, team, retries)
            book.write(state="staged")
        if swap:
            _require_idle(vectors)
            audit(
                "restore_swapped",
                f"the backup {manifest.id} is put in place of what is live",
                backup=manifest.id,
                team=team,
            )
            kept, merged = _put_in_place(vectors, staging, book, list(counts), team)
        book.write(state="done", done_at=vectors.read_time(), kept=kept)
        book.forget_parts()
    report = RestoreReport(
        backup=manifest.id,
        taken=manifest.taken,
        database=staging.database.database,
        in_place=swap,
        team=team,
        documents=sum(counts.values()),
        collections=counts,
        kept=kept,
        untouched=untouched,
        merged=merged,
        resumed_parts=resumed,
        seconds=round(time.monotonic() - began, 1),
        next_steps=_next_steps(
            swap=swap, whole_store=not collections and team is None, database=staging.database.database
        ),
    )
    return _told(report)


@flow(
    name="undo-restore",
    on_failure=[alert_on_failure],
    on_crashed=[alert_on_crashed],
    on_completion=[resolve_on_completion],
)
def undo_restore(
    backup: Annotated[str | None, Field(description="Id of the backup that was put in place; none: the last.")] = None,
) -> State[dict[str, Any]]:
    """Bring back what was live before a restore was put in place; what that restore made is kept in its stead.

    Safe to repeat. Raises ``InputError`` where nothing was put in place, or what was live before was dropped.
    """
    vectors = load_vectors()
    vectors.check()
    _require_idle(vectors)
    found = _last_in_place(vectors, backup)
    book = RestoreBook(vectors, str(found["_id"]))
    with _at_work(vectors, vectors):
        for name in found["collections"]:
            if found["team"] is not None:
                _bring_team_back(vectors, book, found, name)
            else:
                _bring_back(vectors, book, found, name)
        book.write(state="undone", undone_at=vectors.read_time())
    audit("restore_undone", "what was live before a restore is live again", backup=found["backup"], team=found["team"])
    words = f"what was live before {found['backup']} was put in place is live again"
    get_run_logger().info(words)
    return Completed(message=words, data={"backup": found["backup"], "collections": found["collections"]})


def _bring_back(vectors: VectorStore, book: RestoreBook, found: Mapping[str, Any], name: str) -> None:
    there = list_collections(vectors)
    kept, aside = _kept_name(book.key, name), _aside_name(book.key, name)
    if kept in there:
        put_in_place(vectors, staged=kept, live=name, kept=aside)
    elif f"{found['prefix']}{name}" not in there and name not in found["were_live"]:
        # There was none before. (Where it is staged still, the restore was killed before it came to this one.)
        put_in_place(vectors, staged=name, live=aside, kept=aside)


def _bring_team_back(vectors: VectorStore, book: RestoreBook, found: Mapping[str, Any], name: str) -> None:
    kept, aside = _kept_name(book.key, name), _aside_name(book.key, name)
    if kept in list_collections(vectors):
        if name not in found.get("set_aside", []):
            keep_team(vectors, found["team"], live=name, kept=aside)
            found.setdefault("set_aside", []).append(name)  # type: ignore[attr-defined]
            book.write(set_aside=found["set_aside"])
        merge_team(vectors, found["team"], staged=kept, live=name)


def drop_kept(vectors: VectorStore, *, backup: str | None = None) -> list[str]:
    """Drop what restores kept of what was live before them, and what an undo set aside; return the names. No way back.

    ``backup``: only of the restore of this one. Staging of restores that did not end goes too. Needs no Prefect server.
    """
    with _at_work(vectors, vectors):
        dropped = _drop_kept(vectors, backup)
    if dropped:
        audit("restore_kept_dropped", f"{len(dropped)} collections that restores kept are dropped", backup=backup)
    return dropped


def _drop_kept(vectors: VectorStore, backup: str | None) -> list[str]:
    there = list_collections(vectors)
    dropped: list[str] = []
    for record in RestoreBook(vectors, "").others():
        if backup is not None and record["backup"] != backup:
            continue
        if record["state"] == "swapping":
            raise InputError(f"the restore of {record['backup']} is half in place: give it again, then drop")
        short = _short(str(record["_id"]))
        names = [
            name
            for name in sorted(there)
            if name.startswith((f"before_{short}_", f"undone_{short}_", f"restoring_{short}_"))
        ]
        drop_collections(vectors, names)
        dropped += names
        book = RestoreBook(vectors, str(record["_id"]))
        book.forget_parts()
        book.write(state="dropped")
    return dropped


# -- choosing and refusing ------------------------------------------------------------------------------------


def _choose(backups: BackupStore, name: str, accept_unverified: bool) -> BackupManifest:
    """Return the manifest of the backup that is meant, if it may be restored."""
    stored = list_backups(whole(backups))
    found: StoredBackup | None
    if name == "latest":
        found = newest_good(stored)
        if found is None:
            raise InputError("there is no good backup: `cryptique-rag backups` lists what there is, and why it isn't")
    else:
        found = next((one for one in stored if one.id == name), None)
    if found is None:
        moment = _moment(name)
        found = newest_good(stored, until=moment)
        if found is None:
            raise InputError(f"there is no good backup of {moment:%Y-%m-%d %H:%M} UTC or before")
    if found.manifest is None or found.state in ("damaged", "unfinished"):
        good = newest_good(stored)
        raise BackupDamagedError(
            f"the backup {found.id} is {found.state}{f': {found.why}' if found.why else ''}. "
            + (f"The newest good one is {good.id}" if good else "There is no good one")
        )
    if found.state == "unverified" and not (accept_unverified and name == found.id):
        raise InputError(
            f"the backup {found.id} was never read back: `cryptique-rag verify {found.id}` proves it, or "
            "accept_unverified takes it as it is"
        )
    return found.manifest


def _moment(name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(name)
    except ValueError:
        raise InputError(
            f"there is no backup {name}, and it is no time: `cryptique-rag backups` lists the ids; a time is written "
            "2026-11-23T10:00"
        ) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _wanted(
    manifest: BackupManifest, collections: Sequence[str], team: str | None, source_collections: bool
) -> list[CollectionBackup]:
    """Return the collections to restore. Raises ``InputError`` for names that the backup doesn't hold."""
    roles = ("store", "source") if source_collections else ("store",)
    held = {one.name: one for database in manifest.databases if database.role in roles for one in database.collections}
    unknown = sorted(set(collections) - held.keys())
    if unknown:
        raise InputError(f"the backup {manifest.id} holds no {', '.join(unknown)}; it holds {', '.join(sorted(held))}")
    if source_collections and not any(database.role == "source" for database in manifest.databases):
        raise InputError(f"the backup {manifest.id} was made without the application's collections")
    wanted = [one for name, one in held.items() if not collections or name in collections]
    if team is None:
        return wanted
    of_teams = [one for one in wanted if any(one.name == base or one.name.startswith(f"{base}_") for base in _OF_TEAMS)]
    if collections and len(of_teams) < len(wanted):
        others = sorted({one.name for one in wanted} - {one.name for one in of_teams})
        raise InputError(f"{', '.join(others)}: these documents belong to no team; leave the team or the names out")
    return of_teams


def _key(manifest: BackupManifest, wanted: Sequence[CollectionBackup], team: str | None, swap: bool) -> str:
    """Return what tells this restore from every other: the same one given again goes on."""
    said = "\n".join([*sorted(one.name for one in wanted), team or "", str(swap)])
    return f"{manifest.id}-{hashlib.blake2b(said.encode(), digest_size=2).hexdigest()}"


def _short(key: str) -> str:
    return key.lower()


def _staged_prefix(key: str) -> str:
    return f"restoring_{_short(key)}_"


def _aside_name(key: str, collection: str) -> str:
    return f"undone_{_short(key)}_{collection}"


def _kept_name(key: str, collection: str) -> str:
    return f"before_{_short(key)}_{collection}"


def _staging_database(
    vectors: VectorStore, manifest: BackupManifest, into: str | None, source_collections: bool
) -> MongoDatabase:
    name = into or f"{vectors.database[:_LONGEST_STEM]}_restored_{manifest.id.lower()}"
    live = {vectors.database}
    # Where there is no source block, nothing is restored over it either.
    with suppress(Exception):
        live.add(load_source().database)
    if name in live or name in ("admin", "local", "config"):
        raise InputError(f"{name} is in use: name another staging database, or `swap` to put the backup in place")
    return StagingDatabase(uri=vectors.uri, database=name)


def _require_free(staging: Staging, book: RestoreBook, wanted: Sequence[CollectionBackup], *, swap: bool) -> None:
    """Refuse a staging that holds anything but this restore's own, and names that MongoDB doesn't take."""
    too_long = [one.name for one in wanted if not fits(staging.database, _kept_name(book.key, one.name) + "_10")]
    if too_long:
        raise InputError(f"{', '.join(too_long)}: the name is too long to be kept beside another; restore into staging")
    if swap:
        return  # its names hold the restore's own key
    strangers = list_collections(staging.database) - {BOOK}
    if strangers and book.read() is None:
        raise InputError(
            f"the database {staging.database.database} is not empty and not of this restore: drop it, or name another "
            "one with `into`"
        )


def _require_may_swap(
    vectors: VectorStore, manifest: BackupManifest, wanted: Sequence[CollectionBackup], overwrite: str | None
) -> None:
    half = [one for one in RestoreBook(vectors, "").others() if one.get("state") == "swapping"]
    if half:
        raise WorkTakenError(f"the restore of {half[0]['backup']} is half in place: give that one again first")
    in_use = [one.name for one in wanted if holds_documents(vectors, one.name)]
    if in_use and overwrite != vectors.database:
        raise InputError(
            f"{', '.join(in_use)} of {vectors.database} hold documents: to replace them by those of {manifest.id}, "
            f"give `overwrite` the database's name, {vectors.database}"
        )
    _require_idle(vectors)


def _require_idle(vectors: VectorStore) -> None:
    """Raise ``WorkTakenError`` while a run writes to the store: it would write into what is set aside."""
    if VECTORS not in list_collections(vectors):
        return
    now = vectors.read_time()
    working = vectors.find_jobs({"status": "processing", "metadata.runKey": {"$exists": True}})
    alive = [str(one["jobId"]) for one in working if is_alive(one, now=now)]
    if alive:
        raise WorkTakenError(
            f"{', '.join(alive)} is at work: wait for its end or cancel it, and pause the schedules of ingest, "
            "aggregate and reconcile until the restore is in place"
        )


# -- the work -------------------------------------------------------------------------------------------------


def _load(
    manifest: BackupManifest,
    wanted: Sequence[CollectionBackup],
    staging: Staging,
    book: RestoreBook,
    backups: BackupStore,
    team: str | None,
    parts_in_flight: int,
    retries: int,
) -> tuple[int, dict[str, int]]:
    """Load, compare and index every collection; return how many parts were there already, and documents by name."""
    finished = book.finished()
    progress = Progress(total=sum(one.documents for one in wanted))
    announcer = Announcer("restore", progress)
    counts: dict[str, int] = {}
    load_one, index = restore_part.with_options(retries=retries), build_indexes.with_options(retries=retries)
    resumed = 0
    for collection in wanted:
        staging.create(collection)
        changes = collection.changes
        without = frozenset[bytes]() if changes is None else read_changed_ids(manifest.id, changes, backups)
        loaded = [finished[part.name].documents for part in collection.parts if part.name in finished]
        resumed += len(loaded)
        progress.done += sum(loaded)
        progress.resumed += sum(loaded)
        for part, found in each(
            (part for part in collection.parts if part.name not in finished),
            lambda part, without=without: load_one.submit(  # type: ignore[misc]
                manifest.id, whole(part), whole(staging), whole(backups), without=whole(without), team=team
            ),
            in_flight=parts_in_flight,
        ):
            book.finish(part, found)
            loaded.append(found.documents)
            progress.done += found.documents
            announcer.tell()
        if changes is not None:
            later = restore_changes.with_options(retries=retries)
            laid = later.submit(manifest.id, whole(changes), whole(staging), whole(backups), team=team).result()
            loaded.append(int(laid.documents))
        counts[collection.name] = sum(loaded)
        there = staging.count(collection.name)
        expected = collection.documents if team is None else counts[collection.name]
        if there != expected:
            raise RestoreDiffersError(
                f"{collection.name} has {there:,} documents in staging, {expected:,} were backed up; nothing live was "
                "touched. Drop the staging (its database, or `cryptique-rag restore --drop-kept`) and restore again"
            )
        index.submit(whole(collection), whole(staging), expiring=False).result()
    announcer.finish()
    return resumed, counts


def _let_expire(wanted: Sequence[CollectionBackup], staging: Staging, team: str | None, retries: int) -> None:
    """Build the indexes that delete by time, last, when everything was compared: they begin at once."""
    index = build_indexes.with_options(retries=retries)
    for collection in wanted:
        index.submit(whole(collection), whole(staging), expiring=True).result()
        wrong = staging.wrong_indexes(collection) + staging.wrong_options(collection)
        if wrong:
            raise RestoreDiffersError(
                f"indexes or options of {collection.name} are not as they were: {', '.join(wrong)}. Nothing live was "
                "touched"
            )


def _put_in_place(
    vectors: VectorStore, staging: Staging, book: RestoreBook, names: Sequence[str], team: str | None
) -> tuple[list[str], dict[str, dict[str, int]]]:
    """Make what is staged live; return the names of what was live before, and what a team's merge did."""
    merged: dict[str, dict[str, int]] = {}
    if team is not None:
        if (book.read() or {}).get("state") != "swapping":
            for name in names:
                keep_team(vectors, team, live=name, kept=_kept_name(book.key, name))
            book.write(state="swapping", were_live=list(names), set_aside=[])
        for name in names:
            merged[name] = asdict(merge_team(vectors, team, staged=staging.name_of(name), live=name))
        drop_collections(vectors, [staging.name_of(name) for name in names])
    else:
        if (book.read() or {}).get("state") != "swapping":
            book.write(state="swapping", were_live=sorted(list_collections(vectors) & set(names)))
        for name in names:
            put_in_place(vectors, staged=staging.name_of(name), live=name, kept=_kept_name(book.key, name))
    start = f"before_{_short(book.key)}_"
    return sorted(name for name in list_collections(vectors) if name.startswith(start)), merged


def _last_in_place(vectors: VectorStore, backup: str | None) -> Mapping[str, Any]:
    found = [
        one
        for one in RestoreBook(vectors, "").others()
        if one["state"] in ("done", "swapping") and one.get("prefix") and backup in (None, one["backup"])
    ]
    if not found:
        raise InputError(
            "no restore was put in place here, or what was live before it was dropped: nothing can be undone"
        )
    return max(found, key=lambda one: one["began_at"])


def _untouched(vectors: VectorStore, manifest: BackupManifest) -> list[str]:
    """Return collections of ours that are live and that the backup doesn't hold: made later, of newer generations too.

    Told before the restore, which may bring back a book that doesn't know those.
    """
    held = {one.name for one in manifest.store.collections}
    return sorted((vectors.all_collections() & list_collections(vectors)) - held)


def _of_live(vectors: VectorStore, wanted: Sequence[CollectionBackup], team: str) -> list[CollectionBackup]:
    """Return those whose collection is live: a team is given back its documents, not made a store of its own."""
    there = list_collections(vectors)
    found = [one for one in wanted if one.name in there]
    if not found:
        raise InputError(f"the store has no collection to give team {team} its documents back in: restore all of it")
    return found


@contextmanager
def _at_work(database: MongoDatabase, vectors: VectorStore) -> Iterator[None]:
    """Hold the database's restores: one is at work at a time. Raises ``WorkTakenError`` while another one is."""
    book, worker = RestoreBook(database, ""), worker_id() or ""
    place = (database.uri.get_secret_value(), database.database)
    holder = book.holder()
    taken = WorkTakenError(f"another restore is at work in {database.database}: wait for its end, or cancel it")
    if holder is not None:
        alive = (
            place in _at_work_here
            if holder["workerId"] == worker
            else is_alive({**holder, "jobId": BOOK}, now=vectors.read_time())
        )
        if alive:
            raise taken
    if not book.take(worker, instead_of=None if holder is None else str(holder["workerId"])):
        raise taken
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(_HEARTBEAT_S):
            with suppress(PipelineError):
                book.touch(worker)

    thread = threading.Thread(target=beat, name="heartbeat of a restore", daemon=True)
    thread.start()
    _at_work_here.add(place)
    try:
        yield
    finally:
        _at_work_here.discard(place)
        stopped.set()
        thread.join()
        with suppress(PipelineError):
            book.leave(worker)


# -- what is told ---------------------------------------------------------------------------------------------


def _next_steps(*, swap: bool, whole_store: bool, database: str) -> list[str]:
    if not swap:
        return [
            f"look at {database}; `cryptique-rag restore` with --swap puts a backup in place, and this database may be "
            "dropped"
        ]
    steps = []
    if whole_store:
        steps.append("`cryptique-rag initialise`: what this release expects of validators, indexes and search")
        steps.append(
            "`cryptique-rag ingest` goes on from the backup's moment: start it, then `cryptique-rag reconcile`"
        )
    else:
        steps.append(
            "`cryptique-rag reconcile`: what changed in the source since the backup is not in what was restored"
        )
    steps.append("when all is well, `cryptique-rag restore --drop-kept` gives the space of what was live back")
    return steps


def _told(report: RestoreReport) -> State[dict[str, Any]]:
    where = f"in place in {report.database}" if report.in_place else f"in the staging database {report.database}"
    of = f" of team {report.team}" if report.team else ""
    words = (
        f"{report.documents:,} documents{of} of {report.backup} (taken {report.taken:%Y-%m-%d %H:%M} UTC) are {where}, "
        f"each compared; {duration(report.seconds)}"
    )
    lines = [f"# {words}", "", "| collection | documents |", "|---|---|"]
    lines += [f"| {name} | {documents:,} |" for name, documents in report.collections.items()]
    if report.kept:
        lines += ["", f"What was live before: {', '.join(report.kept)}."]
    if report.untouched:
        lines += ["", f"Not in the backup, left as they are: {', '.join(report.untouched)}."]
    lines += ["", "Next:", *(f"- {step}" for step in report.next_steps)]
    with never_stopping("the summary artifact"):
        create_markdown_artifact("\n".join(lines), key="restore-summary", description="What was restored, and where")
    return Completed(message=words, data=asdict(report))
