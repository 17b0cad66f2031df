"""Verify: a backup read back part by part, and a sample or all of it restored into a scratch database and compared."""

from __future__ import annotations

import random
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from blocks.backups import BackupStore
from blocks.memory import limit_heaps
from blocks.mongo import MongoDatabase, mongo_errors
from blocks.staging import RestoreDiffersError, Staging, StagingDatabase, read_changed_ids
from blocks.vector_store import VectorStore
from flows.blocks import load_backups, load_vectors
from flows.hooks import alert_on_crashed, alert_on_failure, resolve_on_completion
from flows.parameters import Retries
from flows.parts import DEFAULT_PARTS_IN_FLIGHT, PartsInFlight, each
from flows.progress import duration
from flows.report import never_stopping
from flows.stages import task_runner, whole
from tasks.domain.backups import (
    BackupDamagedError,
    BackupManifest,
    CollectionBackup,
    Part,
    Verification,
    newest_good,
)
from tasks.domain.errors import InputError
from tasks.policy import DEFAULT_RETRIES
from tasks.restore import build_indexes, restore_changes, restore_part
from tasks.snapshot import list_backups
from tasks.verify import find_backup, read_part_back, save_verification

#: The record by which a scratch database is known as ours; without it none is ever dropped.
_MARK = "ragscratch"
_SCRATCH = re.compile(r"^.{1,24}_drill_[0-9a-f]{8}$", re.DOTALL)
_LEFT_BEHIND_AFTER = timedelta(days=1)
_LONGEST_STEM = 24
_FOR_A_DRILL = "CRYPTIQUE_DRILL_URI"


def _run_name() -> str:
    given = runtime.flow_run.parameters
    return f"{'drill' if given.get('drill') else 'verify'} {', '.join(given.get('backups') or ['latest'])}"


@flow(
    name="verify",
    flow_run_name=_run_name,
    task_runner=task_runner(),
    on_failure=[alert_on_failure],
    on_crashed=[alert_on_crashed],
    on_completion=[resolve_on_completion],
)
def verify_backups(
    backups: Annotated[
        list[str], Field(min_length=1, description="Ids of backups; latest: the newest; all: every one.")
    ] = ["latest"],  # noqa: B006 - Prefect copies defaults
    drill: Annotated[
        bool, Field(description="Restore the whole of each into a scratch database and compare; else a sample.")
    ] = False,
    parts_in_flight: PartsInFlight = DEFAULT_PARTS_IN_FLIGHT,
    retries: Retries = DEFAULT_RETRIES,
) -> State[dict[str, Any]]:
    """Prove backups again: disks and buckets decay. Run it by hand, or by a schedule of your own.

    All of them are looked at, then the run fails if any is damaged; such a one never counts as good again. The result
    has the verification of each by its id.
    """
    limit_heaps()
    store, vectors = load_backups(), load_vectors()
    vectors.check()
    results: dict[str, Verification] = {}
    for one in _choose(store, backups):
        results[one] = verify(
            one, backups=store, vectors=vectors, drill=drill, retries=retries, parts_in_flight=parts_in_flight
        )
    _publish(results)
    damaged = {name: found for name, found in results.items() if not found.ok}
    if damaged:
        words = "; ".join(f"{name}: {'; '.join(found.problems[:3])}" for name, found in damaged.items())
        good = newest_good(list_backups(whole(store)))
        rest = f"the newest good one is {good.id}" if good else "no good backup is left: run `cryptique-rag backup` now"
        raise BackupDamagedError(f"damaged, and counting for nothing: {words}. {rest[0].upper()}{rest[1:]}")
    return Completed(
        message=f"{len(results)} good: {', '.join(results)}",
        data={name: asdict(found) for name, found in results.items()},
    )


def _choose(store: BackupStore, wanted: Sequence[str]) -> list[str]:
    stored = [one for one in list_backups(whole(store)) if one.state != "unfinished"]
    if not stored:
        raise InputError("there is no backup yet: `cryptique-rag backup` makes one")
    known = [one.id for one in stored]
    chosen: list[str] = []
    for name in wanted:
        if name == "latest":
            chosen.append(known[0])
        elif name == "all":
            chosen += known
        elif name in known:
            chosen.append(name)
        else:
            raise InputError(f"there is no backup {name}: `cryptique-rag backups` lists them")
    return list(dict.fromkeys(chosen))


def verify(
    backup_id: str,
    *,
    backups: BackupStore,
    vectors: VectorStore,
    drill: bool = False,
    retries: int = DEFAULT_RETRIES,
    parts_in_flight: int = DEFAULT_PARTS_IN_FLIGHT,
) -> Verification:
    """Read a backup back, restore some or all of it, put down what was found, and return that.

    Reads every part. Into a scratch database, dropped in the end, go each collection of one part and one part of each
    larger one, or, as a drill, everything with its indexes; every document is compared. What is wrong with the backup
    is collected; what keeps it from being looked at is raised. Call it in a flow.
    """
    began = time.monotonic()
    stored, manifest_sha256 = find_backup.with_options(retries=retries)(backup_id, whole(backups))
    if stored is None or stored.state == "unfinished":
        raise InputError(f"there is no backup {backup_id}: `cryptique-rag backups` lists them")
    problems: list[str] = []
    restored = 0
    manifest = stored.manifest
    if manifest is None:
        problems.append(stored.why)
    else:
        task = read_part_back.with_options(retries=retries)
        found = each(
            manifest.parts,
            lambda part: task.submit(backup_id, whole(part), whole(backups)),
            in_flight=parts_in_flight,
        )
        problems += sorted(str(problem) for _, problem in found if problem is not None)
    if manifest is not None and not problems:
        restored, problems = _rehearse(manifest, backups, vectors, drill, retries, parts_in_flight)
    verification = Verification(
        manifest_sha256=manifest_sha256,
        checked_at=vectors.read_time(),
        parts=0 if manifest is None else len(manifest.parts),
        documents=0 if manifest is None else manifest.documents,
        restored=restored,
        drill=drill and not problems,
        problems=tuple(problems),
        seconds=round(time.monotonic() - began, 1),
    )
    save_verification.with_options(retries=retries)(backup_id, whole(verification), whole(backups))
    for problem in problems:
        get_run_logger().error("%s: %s", backup_id, problem)
    return verification


def _rehearse(
    manifest: BackupManifest,
    backups: BackupStore,
    vectors: VectorStore,
    drill: bool,
    retries: int,
    parts_in_flight: int,
) -> tuple[int, list[str]]:
    """Restore a sample or all of a backup; return how many documents were compared, and what was wrong."""
    compared = 0
    problems: list[str] = []
    for database in manifest.databases:
        with _scratch(manifest, backups, vectors) as staging:
            for collection in database.collections:
                try:
                    compared += _restore_some(
                        manifest.id, collection, staging, backups, drill, retries, parts_in_flight
                    )
                except (BackupDamagedError, RestoreDiffersError) as error:
                    problems.append(str(error))
    return compared, problems


def _restore_some(
    backup_id: str,
    collection: CollectionBackup,
    staging: Staging,
    backups: BackupStore,
    drill: bool,
    retries: int,
    parts_in_flight: int,
) -> int:
    all_of_it = drill or len(collection.parts) == 1
    parts = collection.parts if all_of_it else (_drawn(backup_id, collection),)
    changes = collection.changes if all_of_it else None
    without = frozenset[bytes]() if changes is None else read_changed_ids(backup_id, changes, backups)
    staging.create(collection)
    task = restore_part.with_options(retries=retries)
    loaded = each(
        parts,
        lambda part: task.submit(backup_id, whole(part), whole(staging), whole(backups), without=whole(without)),
        in_flight=parts_in_flight,
    )
    compared = sum(int(one.documents) for _, one in loaded)
    if changes is not None:
        later = restore_changes.with_options(retries=retries).submit(
            backup_id, whole(changes), whole(staging), whole(backups)
        )
        compared += int(later.result().documents)
    if all_of_it:
        there = staging.count(collection.name)
        if there != collection.documents:
            raise RestoreDiffersError(
                f"{collection.name} has {there:,} documents when it is restored, "
                f"{collection.documents:,} were backed up"
            )
        # Those that delete by time come last, when everything was compared: they would begin at once.
        for expiring in (False, True):
            build_indexes.with_options(retries=retries).submit(
                whole(collection), whole(staging), expiring=expiring
            ).result()
        wrong = staging.wrong_indexes(collection)
        if wrong:
            raise RestoreDiffersError(f"indexes of {collection.name} are not as they were: {', '.join(wrong)}")
    staging.drop(collection.name)
    return compared


def _drawn(backup_id: str, collection: CollectionBackup) -> Part:
    """Return one of the parts; which, the backup's id decides, so that a second look finds the same."""
    return random.Random(f"{backup_id}/{collection.name}").choice(collection.parts)


@contextmanager
def _scratch(manifest: BackupManifest, backups: BackupStore, vectors: VectorStore) -> Iterator[Staging]:
    """Give a scratch database, dropped in the end; what killed runs left behind goes before."""
    uri, setting = (backups.drill_uri, _FOR_A_DRILL) if backups.drill_uri else (vectors.uri, vectors.setting)
    name = f"{manifest.store.database[:_LONGEST_STEM]}_drill_{secrets.token_hex(4)}"
    database = StagingDatabase(uri=uri, database=name)
    try:
        with mongo_errors("making a scratch database", setting):
            client = database.open_database().client
            _sweep(database)
            client[name][_MARK].insert_one({"_id": _MARK, "backup": manifest.id, "at": datetime.now(UTC)})
        yield Staging(database)
    finally:
        try:
            with mongo_errors("dropping the scratch database", setting):
                database.open_database().client.drop_database(name)
        finally:
            database.close()


def _sweep(database: MongoDatabase) -> None:
    client = database.open_database().client
    for found in client.list_databases(filter={"name": {"$regex": _SCRATCH.pattern}}, nameOnly=True):
        name = str(found["name"])
        mark = client[name][_MARK].find_one({"_id": _MARK})
        if mark is not None and datetime.now(UTC) - mark["at"] > _LEFT_BEHIND_AFTER:
            get_run_logger().info("the scratch database %s was left behind by a run that was killed: dropped", name)
            client.drop_database(name)


def _publish(results: dict[str, Verification]) -> None:
    lines = [
        "| backup | found | parts | documents | restored and compared | seconds |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {'good' if one.ok else '; '.join(one.problems).replace('|', ' ')} | {one.parts:,} "
        f"| {one.documents:,} | {'all' if one.drill else f'{one.restored:,}'} | {duration(one.seconds)} |"
        for name, one in results.items()
    ]
    with never_stopping("the summary artifact"):
        create_markdown_artifact("\n".join(lines), key="verify-summary", description="What reading back found")
