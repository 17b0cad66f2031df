"""Commands that start a run in this process: migrate, backfill, replay, reconcile, ingest."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.console import (
    JsonOption,
    bar,
    moment,
    object_id,
    print_json,
    quiet_prefect,
    reported,
    services,
    wrong,
)
from tasks.domain.registry import PLURALS
from tasks.domain.shards import DEFAULT_SHARD_ROWS, DEFAULT_SHARDS_IN_FLIGHT

if TYPE_CHECKING:
    from rich.console import Console

    from flows.progress import Progress
    from tasks.domain.jobs import Kind

#: The fields of `migrate --json`, in order; programs rely on them.
SUMMARY_FIELDS = (
    "run_id",
    "read",
    "written",
    "unchanged",
    "dead_lettered",
    "removed",
    "chunks",
    "tokens",
    "cost_usd",
    "seconds",
)

_SHOWN_HOLDERS = 10

StartOption = Annotated[str | None, typer.Option(help="First block time to take: 2025-06-01 or 2025-06-01T12:00, UTC.")]
EndOption = Annotated[str | None, typer.Option(help="First block time not to take.")]
TeamOption = Annotated[list[str] | None, typer.Option(help="Only this team's records; may be given again.")]
ContractOption = Annotated[list[str] | None, typer.Option(help="Only this contract's; may be given again.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="At most this many records.")]
ShardRowsOption = Annotated[int, typer.Option(min=1, max=50_000, help="Records in a shard, the unit of retry.")]
InFlightOption = Annotated[int, typer.Option(min=1, max=8, help="Shards at work at once.")]
ChildRunsOption = Annotated[
    int, typer.Option(min=0, max=16, help="Child runs at once on the pool's workers; 0: this process does it all.")
]
BatchOption = Annotated[
    bool, typer.Option("--batch", help="Embed through Gemini's batch jobs: half the price, up to 24 hours.")
]
BudgetOption = Annotated[
    float | None, typer.Option(min=0.000001, help="Dollars for embeddings; at that the run stops, and can go on.")
]
AcceptOption = Annotated[
    list[str] | None,
    typer.Option(
        help="A finding about the data that is meant, by the name that a stopped run gives: fewer, missing:to."
    ),
]
DataDocsOption = Annotated[
    bool, typer.Option("--data-docs", help="Judge a small run with Great Expectations too, and write Data Docs.")
]
RetriesOption = Annotated[int, typer.Option(min=0, max=10, help="How often a failed stage is tried again.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Count rows, tokens, cost and time; write nothing, embed nothing.")
]


SourceOption = Annotated[
    list[str] | None,
    typer.Option("--source", help=f"Give it again for several; `all` for every one. {', '.join(sorted(PLURALS))}."),
]


class Rebuild(StrEnum):
    """Which texts a backfill embeds."""

    CHANGED = "changed"
    EVERYTHING = "everything"


class StoredAs(StrEnum):
    """What of the sources is stored."""

    ROWS = "rows"
    AGGREGATES = "aggregates"
    BOTH = "both"


def migrate(
    source: SourceOption = None,
    documents: Annotated[
        StoredAs,
        typer.Option(help="What is stored: each row, the figures of days to all time made of them, or both."),
    ] = StoredAs.ROWS,
    start: StartOption = None,
    end: EndOption = None,
    team: TeamOption = None,
    contract: ContractOption = None,
    limit: LimitOption = None,
    shard_rows: ShardRowsOption = DEFAULT_SHARD_ROWS,
    shards_in_flight: InFlightOption = DEFAULT_SHARDS_IN_FLIGHT,
    child_runs: ChildRunsOption = 0,
    batch: BatchOption = False,
    budget_usd: BudgetOption = None,
    accept: AcceptOption = None,
    data_docs: DataDocsOption = False,
    retries: RetriesOption = 3,
    dry_run: DryRunOption = False,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Do not take up an unfinished run.")] = False,
    replace_model: Annotated[
        bool, typer.Option("--replace-model", help="Replace stored vectors of another model: embeds everything again.")
    ] = False,
    remove_orphans: Annotated[
        bool, typer.Option("--remove-orphans", help="Remove vectors of deleted records, however many.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Migrate transactions into the vector store: only what is new or changed is embedded and written.

    A run that was cut off goes on where it stopped when the same command is given again. Every record ends as
    written, unchanged or a dead letter with its reason. cost_usd is at Gemini's list price, with the offline
    embedder what Gemini would have cost.

    Try first: cryptique-rag migrate --dry-run --limit 1000
    """
    with reported(), quiet_prefect():
        parameters = {
            **chosen_sources(source),
            "documents": documents.value,
            **_scope(start, end, team, contract, limit),
            "shard_rows": shard_rows,
            "shards_in_flight": shards_in_flight,
            "child_runs": child_runs,
            "batch": batch,
            "budget_usd": budget_usd,
            "accept": list(accept or []),
            "data_docs": data_docs,
            "retries": retries,
            "dry_run": dry_run,
            "resume": not no_resume,
            "replace_model": replace_model,
            "remove_orphans": remove_orphans,
        }
        with services():
            report = run_migrate(parameters)
        _print(report, as_json)


def backfill(
    source: SourceOption = None,
    start: StartOption = None,
    end: EndOption = None,
    team: TeamOption = None,
    contract: ContractOption = None,
    limit: LimitOption = None,
    rebuild: Annotated[
        Rebuild, typer.Option(help="changed: embed what changed. everything: embed, and pay for, every text again.")
    ] = Rebuild.CHANGED,
    stored_describer: Annotated[
        int | None, typer.Option(min=1, help="Only records whose stored text this version of the describer made.")
    ] = None,
    stored_model: Annotated[str | None, typer.Option(help="Only records with stored vectors of this model.")] = None,
    shard_rows: ShardRowsOption = DEFAULT_SHARD_ROWS,
    shards_in_flight: InFlightOption = DEFAULT_SHARDS_IN_FLIGHT,
    child_runs: ChildRunsOption = 0,
    batch: BatchOption = False,
    budget_usd: BudgetOption = None,
    accept: AcceptOption = None,
    data_docs: DataDocsOption = False,
    retries: RetriesOption = 3,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take a past window, teams or contracts again, or what an older describer or model stored.

    Never moves where `ingest` goes on. The same backfill twice at once is refused the second time.

    Try first: cryptique-rag backfill --start 2025-06-01 --end 2025-07-01 --dry-run
    """
    with reported(), quiet_prefect():
        parameters = {
            **chosen_sources(source),
            **_scope(start, end, team, contract, limit),
            "rebuild": rebuild.value,
            "stored_describer": stored_describer,
            "stored_model": stored_model,
            "shard_rows": shard_rows,
            "shards_in_flight": shards_in_flight,
            "child_runs": child_runs,
            "batch": batch,
            "budget_usd": budget_usd,
            "accept": list(accept or []),
            "data_docs": data_docs,
            "retries": retries,
            "dry_run": dry_run,
        }
        with services():
            from flows.backfill import backfill as backfill_flow

            report = with_progress("backfilling", backfill_flow, parameters)
        _print(report, as_json, kind="backfill")


def replay(
    source: SourceOption = None,
    reason: Annotated[
        list[str] | None, typer.Option(help="Only dead letters with this reason code; may be given again.")
    ] = None,
    team: TeamOption = None,
    older_than_hours: Annotated[float | None, typer.Option(min=0.001, help="Only those refused longer ago.")] = None,
    newer_than_hours: Annotated[float | None, typer.Option(min=0.001, help="Only those refused since then.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many, the oldest first.")] = None,
    budget_usd: BudgetOption = None,
    retries: RetriesOption = 3,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take refused records through the stages again, after a fix: each is resolved, or stays with its new reason.

    Example: cryptique-rag replay --reason amount_unreadable --dry-run
    """
    with reported(), quiet_prefect():
        parameters = {
            **chosen_sources(source),
            "reasons": list(reason or []),
            "teams": [object_id(value, "--team") for value in team or []],
            "older_than_hours": older_than_hours,
            "newer_than_hours": newer_than_hours,
            "limit": limit,
            "budget_usd": budget_usd,
            "retries": retries,
            "dry_run": dry_run,
        }
        with services():
            from flows.replay import replay as replay_flow

            report = with_progress("replaying", replay_flow, parameters)
        if as_json:
            print_json({name: report[name] for name in ("resolved", "still_open")} | summary(report))
            return
        verb = "would be resolved" if dry_run else "resolved"
        print(f"{report['resolved']:,} dead letters {verb}, {report['still_open']:,} stay open")
        print_report(report, kind="replay")


def reconcile(
    source: SourceOption = None,
    no_heal: Annotated[
        bool, typer.Option("--no-heal", help="Only tell what differs, and exit with 1 if anything does.")
    ] = False,
    remove_orphans: Annotated[
        bool, typer.Option("--remove-orphans", help="Remove vectors of records deleted or without owner, however many.")
    ] = False,
    shard_rows: ShardRowsOption = DEFAULT_SHARD_ROWS,
    budget_usd: BudgetOption = None,
    retries: RetriesOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Compare every record of the source with what is stored of it, and mend what differs.

    Finds what is missing, stale, moved to another owner, doubled, orphaned or refused without a dead letter, and tells
    it by source, team, contract or website, and day; embeds only what differs.
    """
    with reported(), quiet_prefect():
        parameters = {
            **chosen_sources(source),
            "heal": not no_heal,
            "remove_orphans": remove_orphans,
            "shard_rows": shard_rows,
            "budget_usd": budget_usd,
            "retries": retries,
        }
        with services():
            from flows.reconcile import reconcile as reconcile_flow

            report = with_progress("comparing", reconcile_flow, parameters)
        if as_json:
            print_json(report)
            return
        _print_comparison(report)


def ingest(
    source: SourceOption = None,
    max_seconds: Annotated[float, typer.Option(min=1, max=86_400, help="How long to follow the source.")] = 285.0,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="End as soon as nothing is left to take over.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Take over what changed in the source since the last time: inserts, updates and deletes.

    Its position moves only when a batch is stored. Without one, or when the source no longer knows what changed, the
    whole source is compared once. `make up` runs it every five minutes.
    """
    with reported(), quiet_prefect():
        with services():
            from flows.ingest import ingest as ingest_flow

            report: dict[str, Any] = ingest_flow(  # type: ignore[assignment]
                **chosen_sources(source), max_seconds=max_seconds, until_idle=until_idle
            )
        if as_json:
            print_json(report)
            return
        for name, value in report.items():
            if value not in (None, {}):
                print(f"{name.replace('_', ' ')}: {value}")


# -- parts of commands ----------------------------------------------------------------------------------------


def chosen_sources(chosen: list[str] | None) -> dict[str, Any]:
    """Return the parameter of sources, or none where the flow's own default is meant. Exits with 2 for one unknown."""
    if not chosen:
        return {}
    if chosen == ["all"]:
        return {"sources": list(PLURALS)}
    unknown = [name for name in chosen if name not in PLURALS]
    if unknown:
        wrong(f"--source {', '.join(unknown)}: there are all, {', '.join(sorted(PLURALS))}")
    return {"sources": chosen}


def _scope(
    start: str | None, end: str | None, team: list[str] | None, contract: list[str] | None, limit: int | None
) -> dict[str, Any]:
    first, last = moment(start, "--start"), moment(end, "--end")
    if first and last and _naive(first) >= _naive(last):
        wrong("--start must lie before --end")
    return {
        "start": first,
        "end": last,
        "teams": [object_id(value, "--team") for value in team or []],
        "contracts": list(contract or []),
        "limit": limit,
    }


def _naive(value: datetime) -> datetime:
    return value.replace(tzinfo=None)


def run_migrate(parameters: dict[str, Any]) -> dict[str, Any]:
    """Migrate in this process and return the report, with progress on a terminal."""
    from flows.migrate import migrate as migrate_flow

    return with_progress("migrating", migrate_flow, parameters)


def with_progress(label: str, flow: Callable[..., Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """Run a flow in this process and return its report, with its progress on a terminal."""
    from flows.progress import listener

    with bar(label, None) as show:

        def listen(progress: Progress) -> None:
            show(progress.done, progress.total)

        token = listener.set(listen)
        try:
            report: dict[str, Any] = flow(**parameters)
        finally:
            listener.reset(token)
    return report


# -- words out ------------------------------------------------------------------------------------------------


def _print(report: dict[str, Any], as_json: bool, *, kind: Kind = "migrate") -> None:
    if as_json:
        print_json(summary(report))
    else:
        print_report(report, kind=kind)


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """Return what programs read of a load's report."""
    summary = {name: report[name] for name in SUMMARY_FIELDS}
    if report["dry_run"]:
        summary |= {name: report[name] for name in ("dry_run", "quota_seconds", "tier_seconds", "quality")}
    if report.get("choices"):
        summary["choices"] = report["choices"]
    return summary


def _print_comparison(report: dict[str, Any]) -> None:
    """Print what a comparison found and did, source by source, and whose records differ most."""
    from rich.console import Console
    from rich.table import Table

    from tasks.domain.differences import KINDS

    if not report:
        print("nothing was compared: no source was loaded yet, or a load is under way")
        return
    counts = [name for name in report if name not in ("by_source", "holders", "places")]
    table = Table("source", *(name.replace("_", " ") for name in counts), box=None, pad_edge=False)
    for source, figures in (report.get("by_source") or {}).items():
        table.add_row(source, *(f"{figures[name]:,}" for name in counts))
    table.add_row("all", *(f"{report[name]:,}" for name in counts))
    console = Console(highlight=False)
    console.width = max(console.width, 160)
    console.print(table, soft_wrap=True)
    for row in report["holders"][:_SHOWN_HOLDERS]:
        wrong = ", ".join(f"{row[kind]:,} {kind.replace('_', '-')}" for kind in ("dead_lettered", *KINDS) if row[kind])
        days = f", {row['first']} to {row['last']}" if row["days"] > 1 else f", {row['first']}" if row["days"] else ""
        name = row["name"] or row["holder"] or "unknown"
        console.print(f"{row['source']}, team {row['team'] or 'unknown'}, {name}{days}: {wrong}", soft_wrap=True)


def _jobs_with_letters(report: dict[str, Any], kind: Kind) -> list[str]:
    """Return the ids of the report's jobs that refused records: each source has one of its own."""
    from tasks.domain.jobs import job_id

    reports = (report.get("by_source") or {"": report}).values()
    return [job_id(one["run_id"], kind) for one in reports if one["refused"]]


def print_report(report: dict[str, Any], *, kind: Kind = "migrate") -> None:
    """Print a load's report for a person; ``kind`` is that of its jobs."""
    from rich.console import Console
    from rich.table import Table

    offline = report["embedder"].startswith("wordllama")
    dry = report["dry_run"]
    rows = [
        ("read", f"{report['read']:,}"),
        ("to write" if dry else "written", f"{report['written']:,}"),
        ("skipped (unchanged)", f"{report['unchanged']:,}"),
        ("dead-lettered", f"{report['dead_lettered']:,}"),
        ("removed", f"{report['removed']:,}"),
        ("chunks", f"{report['chunks']:,}"),
        ("tokens to embed" if dry else "tokens embedded", f"{report['tokens']:,}"),
        *([("of these in batch jobs", f"{report['batch_tokens']:,}")] if report.get("batch_tokens") else []),
        ("Gemini would have cost" if offline else "cost", f"${report['cost_usd']:.4f}"),
        ("seconds", f"{report['seconds']:,.1f}"),
        ("rows/s", f"{report['rows_per_second']:,.0f}"),
    ]
    if report["quota_seconds"]:
        from flows.progress import duration

        rows.append(("time at the quota, at least", duration(report["quota_seconds"])))
    if report.get("tier_seconds"):
        from flows.progress import duration

        rows.extend((f"  in {name}", duration(seconds)) for name, seconds in report["tier_seconds"].items())
    quality = report.get("quality")
    if quality:
        rows.append(("quality of the data", quality["verdict"]))
    table = Table(title="What a run would do" if dry else "What the run did", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, value)
    console = Console(highlight=False)
    console.print(table)
    if report["refused"]:
        reasons = ", ".join(f"{code} {number:,}" for code, number in sorted(report["refused"].items()))
        console.print(f"Dead letters by reason: {reasons}", soft_wrap=True)
        if not dry:
            jobs = " and ".join(f"cryptique-rag jobs show {one}" for one in _jobs_with_letters(report, kind))
            console.print(
                f"An example of each, with its reason: {jobs}; what to do about one: cryptique-rag explain SOURCEID",
                soft_wrap=True,
            )
    if report.get("choices"):
        _print_choices(console, report["choices"])
    for finding in quality["findings"] if quality else ():
        console.print(finding, soft_wrap=True, markup=False)
    if quality and quality["docs"]:
        console.print(f"Data Docs: {quality['docs']}", soft_wrap=True, markup=False)
    if report["arrived"]:
        console.print(f"{report['arrived']:,} records arrived while it ran; the next run takes them.")


def _print_choices(console: Console, choices: dict[str, dict[str, Any]]) -> None:
    """Print what a dry run says of rows, of aggregates, and of both."""
    from rich.table import Table

    from flows.progress import duration

    # A column a choice: eighty characters hold every figure.
    table = Table("", *choices, title="What each choice would cost", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    told = choices.values()
    for words, name in (("records", "read"), ("to write", "written"), ("tokens", "tokens")):
        table.add_row(words, *(f"{one[name]:,}" for one in told))
    table.add_row("cost", *(f"${one['cost_usd']:,.4f}" for one in told))
    for tier in choices["both"]["tier_seconds"]:
        table.add_row(f"time in {tier}", *(duration(one["tier_seconds"].get(tier, 0.0)) for one in told))
    console.print(table)
