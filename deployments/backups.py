"""Commands about backups: make one, list and rotate them, prove them, restore from them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.console import (
    JsonOption,
    object_id,
    print_json,
    quiet_prefect,
    reported,
    say,
    services,
    wrong,
)
from deployments.runs import RetriesOption, with_progress

if TYPE_CHECKING:
    from blocks.backups import BackupStore
    from flows.rotation import Rotation
    from tasks.domain.backups import StoredBackup
    from tasks.domain.retention import Verdict

app = typer.Typer(
    help="The backups that there are: list, rotate, remove; and a key for them.", invoke_without_command=True
)

PartsOption = Annotated[int, typer.Option(min=1, max=8, help="Parts at work at once.")]
SourceCollectionsOption = Annotated[
    bool, typer.Option("--source-collections", help="The application's collections too, not the store's alone.")
]
DrillOption = Annotated[
    bool, typer.Option("--drill", help="Restore all of it into a scratch database and compare; else a sample.")
]


class Kind(StrEnum):
    """What a backup is made as."""

    DAILY = "daily"
    WEEKLY = "weekly"
    MANUAL = "manual"


# -- commands that need no Prefect server ---------------------------------------------------------------------


@app.callback()
def backups(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the backups, the newest first: what each holds, whether it was proved, and how long it is kept."""
    if context.invoked_subcommand is None:
        list_all(as_json)


@app.command("list")
def list_all(as_json: JsonOption = False) -> None:
    """List the backups, the newest first; neither MongoDB nor a Prefect server is needed."""
    with reported():
        from flows.rotation import retention_of
        from tasks.domain.retention import choose

        store = _store()
        found = store.list_backups()
        verdicts = choose(found, retention_of(store))
        if as_json:
            rows = [_plain(one, verdict) for one, verdict in zip(found, verdicts, strict=True)]
            print_json({"where": _where(store), "backups": rows})
            return
        print(f"backups in {_where(store)}")
        if not found:
            print("there is none yet: `cryptique-rag backup` makes one")
            return
        _print_table(found, verdicts)


@app.command()
def rotate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what has served its time: daily, weekly and monthly ones, each class by its own rule.

    The newest good one of each class, and all that were made by hand, are never removed. A backup does this at its end.
    """
    with reported():
        from flows.rotation import rotate_backups

        done = rotate_backups(_store(), dry_run=dry_run)
        if as_json:
            print_json(done.to_record())
        else:
            _print_rotation(done)


@app.command()
def remove(
    backup: Annotated[str, typer.Argument(help="Its id, as `cryptique-rag backups` lists it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove it without asking.")] = False,
    even_the_last: Annotated[
        bool, typer.Option("--even-the-last", help="Also if no other good one would be left.")
    ] = False,
) -> None:
    """Remove one backup for good, whatever its class; one that is locked stays."""
    with reported():
        store = _store()
        found = store.find(backup)
        if found is None:
            wrong(f"there is no backup {backup}: `cryptique-rag backups` lists them")
        good = [one.id for one in store.list_backups() if one.state == "good"]
        if good == [found.id] and not even_the_last:
            wrong(f"{found.id} is the only good backup: --even-the-last removes it all the same")
        if not yes:
            classes = ", ".join(_classes(found)) or "of no class that can be read"
            say(f"{found.id}: {found.state}, {classes}, {_documents(found) or 'no'} documents")
            if not (sys.stdin.isatty() and typer.confirm("Remove it for good?")):
                wrong("nothing was removed: --yes removes it")
        from blocks.audit import audit

        audit("backup_removed", f"the backup {found.id} is removed", backup=found.id)
        store.remove(found.id)
        typer.echo(f"{found.id} is gone")


@app.command("new-key")
def new_key(as_json: JsonOption = False) -> None:
    """Make a key of age: its public part encrypts backups, its private part opens them. Nothing is kept here."""
    with reported():
        import pyrage

        identity = pyrage.x25519.Identity.generate()
        if as_json:
            print_json({"recipient": str(identity.to_public()), "identity": str(identity)})
            return
        print(f"CRYPTIQUE_BACKUP_RECIPIENTS={identity.to_public()}")
        print(f"CRYPTIQUE_BACKUP_IDENTITIES={identity}")
        say(
            "Put both lines where your settings are, then `cryptique-rag register`, or `make up`. Keep the second line "
            "elsewhere too, in a password store or on paper, never beside the backups: without it nobody opens them, "
            "and whoever has it does. Older backups stay as they were made; keep the keys that open those."
        )


# -- commands that start a run in this process ----------------------------------------------------------------


def backup(
    kind: Annotated[Kind, typer.Option(help="daily and weekly ones are rotated; manual ones stay.")] = Kind.MANUAL,
    source_collections: SourceCollectionsOption = False,
    drill: DrillOption = False,
    no_rotate: Annotated[bool, typer.Option("--no-rotate", help="Remove no older ones.")] = False,
    part_mb: Annotated[int, typer.Option(min=1, max=1_024, help="Megabytes of documents in a part.")] = 128,
    parts_in_flight: PartsOption = 3,
    retries: RetriesOption = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be stored; write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Back the store up at one moment while writers go on, read it back and restore a sample: only then is it good.

    Compressed and, with a key, encrypted on its way; nothing of it touches this disk unless the backups lie there.
    """
    with reported(), quiet_prefect():
        parameters = {
            "kind": kind.value,
            "source_collections": source_collections,
            "drill": drill,
            "rotate": not no_rotate,
            "part_mb": part_mb,
            "parts_in_flight": parts_in_flight,
            "retries": retries,
            "dry_run": dry_run,
        }

        def flow() -> Callable[..., Any]:
            from flows.backup import backup as backup_flow

            return backup_flow

        _run("backing up", flow, parameters, as_json, _print_backup)


def verify(
    backups: Annotated[list[str] | None, typer.Argument(help="Ids, `latest` or `all`; latest if not given.")] = None,
    drill: DrillOption = False,
    parts_in_flight: PartsOption = 3,
    retries: RetriesOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Read backups back, part by part, and restore from them into a scratch database: are they what was written?

    A backup that isn't is damaged from then on: it is never restored and counts for nothing. Fails if any is.
    """
    with reported(), quiet_prefect():
        parameters = {
            "backups": backups or ["latest"],
            "drill": drill,
            "parts_in_flight": parts_in_flight,
            "retries": retries,
        }

        def flow() -> Callable[..., Any]:
            from flows.verify import verify_backups

            return verify_backups

        _run("verifying", flow, parameters, as_json, _print_verifications)


def restore(
    backup: Annotated[
        str | None,
        typer.Option(help="An id, `latest` (the newest good one), or a time: the newest good one until then."),
    ] = None,
    collection: Annotated[list[str] | None, typer.Option(help="Only this collection; may be given again.")] = None,
    team: Annotated[str | None, typer.Option(help="Only this team's documents (its id).")] = None,
    source_collections: SourceCollectionsOption = False,
    into: Annotated[str | None, typer.Option(help="Database to restore into; if not given, one named for it.")] = None,
    swap: Annotated[
        bool, typer.Option("--swap", help="Put what was restored in the place of what is live; that is kept.")
    ] = False,
    overwrite: Annotated[
        str | None, typer.Option(help="With --swap: the live database's name, word for word, where it holds anything.")
    ] = None,
    accept_unverified: Annotated[
        bool, typer.Option("--accept-unverified", help="Also from a backup that was never read back.")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Bring back what the last swap put aside.")] = False,
    drop_kept: Annotated[bool, typer.Option("--drop-kept", help="Drop for good what swaps put aside.")] = False,
    parts_in_flight: PartsOption = 3,
    retries: RetriesOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Restore a backup into a database beside the live one, compare every document, and make the indexes.

    With --swap it takes the live collections' place by renames; what was live is kept until --drop-kept, and --undo
    brings it back. A restore that was cut off goes on when the same command is given again.

    Try first: cryptique-rag restore --backup latest
    """
    with reported(), quiet_prefect():
        _check_restore(into, swap, overwrite, undo, drop_kept, source_collections, bool(collection or team))
        if undo or drop_kept:
            _put_back(backup, drop_kept, as_json)
            return
        parameters = {
            "backup": backup or "latest",
            "collections": collection or [],
            "team": object_id(team, "--team") if team else None,
            "source_collections": source_collections,
            "into": into,
            "swap": swap,
            "overwrite": overwrite,
            "accept_unverified": accept_unverified,
            "parts_in_flight": parts_in_flight,
            "retries": retries,
        }

        def flow() -> Callable[..., Any]:
            from flows.restore import restore as restore_flow

            return restore_flow

        _run("restoring", flow, parameters, as_json, _print_restore)


def _check_restore(
    into: str | None,
    swap: bool,
    overwrite: str | None,
    undo: bool,
    drop_kept: bool,
    source_collections: bool,
    chosen: bool,
) -> None:
    if undo and drop_kept:
        wrong("--undo brings back what --drop-kept drops: give one of them")
    if (undo or drop_kept) and (into or swap or overwrite or source_collections or chosen):
        wrong("--undo and --drop-kept are about a whole swap: only --backup goes with them")
    if into and swap:
        wrong("--into leaves it in a database of its own, --swap puts it in the live one's place: give one of them")
    if source_collections and swap:
        wrong("--swap is about the store: the application's collections are restored beside it, never in place")
    if overwrite and not swap:
        wrong("--overwrite goes with --swap: nothing else overwrites anything")


def _put_back(backup: str | None, drop: bool, as_json: bool) -> None:
    if not drop:

        def flow() -> Callable[..., Any]:
            from flows.restore import undo_restore

            return undo_restore

        def show(report: dict[str, Any]) -> None:
            print(f"live again as before {report['backup']}: {', '.join(report['collections'])}")

        _run("undoing", flow, {"backup": backup}, as_json, show)
        return
    from deployments.local_services import running_services
    from deployments.register_blocks import make_blocks
    from deployments.settings import load_settings
    from flows.restore import drop_kept

    settings = load_settings()
    with running_services(settings, prefect=False) as running:
        vectors = make_blocks(settings, embedded_uri=running.mongo_uri).vectors
        try:
            dropped = drop_kept(vectors, backup=backup)
        finally:
            vectors.close()
    if as_json:
        print_json({"dropped": dropped})
    else:
        print(f"dropped: {', '.join(dropped) or 'nothing was kept'}")


def _run(
    label: str,
    flow: Callable[[], Callable[..., Any]],
    parameters: dict[str, Any],
    as_json: bool,
    show: Callable[[dict[str, Any]], None],
) -> None:
    """Run a flow in this process, with its servers, and print its report; the flow is imported when they stand."""
    with services():
        report = with_progress(label, flow(), parameters)
    if as_json:
        print_json(report)
    else:
        show(report)


# -- parts of commands ----------------------------------------------------------------------------------------


def _store() -> BackupStore:
    from deployments.register_blocks import make_blocks, protect_home
    from deployments.settings import load_settings

    settings = load_settings()
    folder = settings.backups_folder
    if folder is not None and folder.is_relative_to(settings.home):
        protect_home(settings.home)
    return make_blocks(settings).backups


def _where(store: BackupStore) -> str:
    if store.bucket is None:
        return str(store.folder)
    return f"s3://{store.bucket.bucket}/{store.bucket.prefix}".rstrip("/")


def _classes(one: StoredBackup) -> tuple[str, ...]:
    return one.manifest.classes if one.manifest is not None else ()


def _documents(one: StoredBackup) -> str:
    return f"{one.manifest.documents:,}" if one.manifest is not None else ""


def _plain(one: StoredBackup, verdict: Verdict) -> dict[str, Any]:
    """Return a backup as programs read it."""
    manifest, proof = one.manifest, one.verification
    return {
        "id": one.id,
        "state": one.state,
        "why": one.why,
        "taken": None if manifest is None else manifest.taken,
        "classes": list(_classes(one)),
        "documents": None if manifest is None else manifest.documents,
        "bytes": None if manifest is None else manifest.stored_bytes,
        "encrypted": None if manifest is None else bool(manifest.recipients),
        "codeVersion": None if manifest is None else manifest.code_version,
        "databases": [] if manifest is None else [database.database for database in manifest.databases],
        "verifiedAt": None if proof is None else proof.checked_at,
        "restored": None if proof is None else proof.restored,
        "drill": None if proof is None else proof.drill,
        "problems": [] if proof is None else list(proof.problems),
        "kept": verdict.keep,
        "keptWhy": verdict.why,
    }


# -- words out ------------------------------------------------------------------------------------------------


def _print_table(found: list[StoredBackup], verdicts: list[Verdict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("backup", "taken (UTC)", "classes", "state", "documents", "size", "verified", "restored", "kept"):
        table.add_column(title, justify="right" if title in ("documents", "size") else "left")
    for one, verdict in zip(found, verdicts, strict=True):
        manifest, proof = one.manifest, one.verification
        restored = "" if proof is None else f"{'all' if proof.drill else 'sample'}, {proof.restored:,}"
        table.add_row(
            one.id,
            f"{manifest.taken:%Y-%m-%d %H:%M}" if manifest is not None else "",
            ", ".join(_classes(one)),
            one.state,
            _documents(one),
            _bytes(manifest.stored_bytes) if manifest is not None else "",
            f"{proof.checked_at:%Y-%m-%d %H:%M}" if proof is not None else "never",
            restored,
            verdict.why if verdict.keep else f"until the next rotation: {verdict.why}",
        )
    console = Console(highlight=False)
    # An id that is cut short is no id: where there is too little room, lines run over.
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=1_000)).maximum)
    console.print(table, soft_wrap=True)
    for one in found:
        if one.why:
            typer.echo(f"{one.id}: {one.why}")


def _print_rotation(done: Rotation) -> None:
    for title, verdicts in (("kept", done.kept), ("would remove", done.would_remove), ("removed", done.removed)):
        for one in verdicts:
            print(f"{title:<14}{one.id}  {one.why}")
    for lock in done.locked:
        print(f"{'locked':<14}{lock}")
    print(done)


def _print_backup(report: dict[str, Any]) -> None:
    dry = report["dry_run"]
    rows: list[tuple[str, Any]] = [
        ("backup", "none: a dry run" if dry else report["backup"]),
        ("classes", ", ".join(report["classes"])),
        ("taken", f"{report['taken']:%Y-%m-%d %H:%M:%S} UTC" if report["taken"] else ""),
        ("documents", f"{report['documents']:,} in {report['parts']:,} parts"),
        ("BSON", _bytes(report["raw_bytes"])),
        ("stored", "" if dry else _bytes(report["stored_bytes"])),
        ("seconds", f"{report['seconds']:,.1f}, of these {report['reading_seconds']:,.1f} until it was stored"),
    ]
    if proof := report["verification"]:
        what = "all of it" if proof["drill"] else f"{proof['restored']:,} documents of it"
        rows.append(("proved", f"read back whole; {what} restored and compared in {proof['seconds']:,.1f} seconds"))
    if report["moments"] > 1:
        rows.append(("moments", f"{report['moments']}: reading outlived the server's memory, and was mended"))
    if report["left_out"]:
        rows.append(("left out", ", ".join(report["left_out"])))
    if rotation := report["rotation"]:
        rows.append(("removed", ", ".join(one["id"] for one in rotation["removed"]) or "none"))
        rows.append(("locked", ", ".join(one["id"] for one in rotation["locked"])))
    for name, value in rows:
        if value:
            print(f"{name:<12}{value}")
    for name, counts in report["collections"].items():
        print(f"  {name:<32}{counts['documents']:>12,} documents")


def _print_verifications(report: dict[str, Any]) -> None:
    for name, proof in report.items():
        what = "all" if proof["drill"] else "a sample"
        print(
            f"{name}: good; {proof['documents']:,} documents in {proof['parts']:,} parts read back, {what} "
            f"({proof['restored']:,}) restored and compared, {proof['seconds']:,.1f} seconds"
        )


def _print_restore(report: dict[str, Any]) -> None:
    where = "in place, in" if report["in_place"] else "in"
    rows = [
        ("backup", f"{report['backup']}, taken {report['taken']:%Y-%m-%d %H:%M:%S} UTC"),
        ("restored", f"{report['documents']:,} documents {where} database {report['database']}, each compared"),
        ("team", report["team"]),
        ("kept", ", ".join(report["kept"])),
        ("untouched", ", ".join(report["untouched"])),
        ("taken up", f"{report['resumed_parts']:,} parts of a run that was cut off" if report["resumed_parts"] else ""),
        ("seconds", f"{report['seconds']:,.1f}"),
    ]
    for name, value in rows:
        if value:
            print(f"{name:<12}{value}")
    for name, count in report["collections"].items():
        merged = report["merged"].get(name, {})
        words = "".join(f", {number:,} {what.replace('_', ' ')}" for what, number in merged.items())
        print(f"  {name:<32}{count:>12,} documents{words}")
    for step in report["next_steps"]:
        print(f"next: {step}")


def _bytes(size: int) -> str:
    return f"{size / 1_000_000_000:,.2f} GB" if size >= 1_000_000_000 else f"{size / 1_000_000:,.1f} MB"
