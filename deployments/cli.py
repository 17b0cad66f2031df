"""The ``cryptique-rag`` command: arguments in, one flow or task, words out.

Exit codes: 0 done, 1 the run failed, 2 the input was wrong. Results go to standard output, all else to standard
error. What is slow to import is imported by the command that needs it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from deployments.settings import Settings
    from deployments.up import Standing
    from flows.progress import Progress
    from tasks.retrieve import Hit

DONE, FAILED, WRONG_INPUT = 0, 1, 2
DEMO_ROWS = 5_000
_DEMO_SHARD_ROWS = 1_000
_OBJECT_ID_DIGITS = 24

app = typer.Typer(
    name="cryptique-rag",
    help="Fill the vector store behind CQ Intelligence from MongoDB, and search it.\n\n"
    "Settings come from the environment or a file .env: `cryptique-rag config check` tells what is missing. Without "
    "any setting the embedded mongod, a local Prefect server and the offline embedder serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at the settings.", no_args_is_help=True)
app.add_typer(config_app, name="config")

JsonOption = Annotated[bool, typer.Option("--json", help="One line of JSON on standard output, for programs.")]


def main() -> None:
    """Run the command line; the process ends with one of the three exit codes."""
    # SIGTERM stops a run as Ctrl-C does: shards at work are finished, servers that were started are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app()


# -- commands -------------------------------------------------------------------------------------------------


@app.command()
def demo(
    rows: Annotated[int, typer.Option(min=1, help="Generated transactions to load.")] = DEMO_ROWS,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what earlier demos stored.")] = False,
) -> None:
    """Show the main job: a generated source, migrated into a store, and three questions answered from it.

    Uses the embedded mongod, a local Prefect server and the offline embedder, whatever the environment says: no key,
    no cost. A second demo finds everything stored and writes nothing.
    """
    with _reported(), _quiet_prefect():
        from deployments.settings import DEMO_DATABASE, load_settings

        settings = load_settings(
            _env_file=None,
            cryptique_source_uri=None,
            cryptique_source_database=DEMO_DATABASE,
            cryptique_vectors_uri=None,
            cryptique_vectors_database=None,
            cryptique_embedder="local",
            gemini_api_key=None,
            prefect_api_url=None,
        )
        _run_demo(settings, rows, fresh)


@app.command()
def initialise(as_json: JsonOption = False) -> None:
    """Make the store's collections, validators and indexes, and report what differs from the design.

    Changes and drops nothing that is there. Run it before the first migration and after every upgrade.
    """
    with _reported(), _quiet_prefect():
        with _services() as running:
            from flows.initialise import initialise as initialise_flow

            _say(f"store: database {running.settings.vectors_database}")
            result: dict[str, list[str]] = initialise_flow()  # type: ignore[assignment]
        if as_json:
            _print_json(result)
            return
        for title, lines in (("made", "created"), ("differs, left as it is", "differs"), ("note", "notes")):
            for line in result[lines]:
                print(f"{title}: {line}")
        if not result["created"]:
            print("everything was there already")


@app.command()
def migrate(
    start: Annotated[
        str | None, typer.Option(help="First block time to take: 2025-06-01 or 2025-06-01T12:00, UTC.")
    ] = None,
    end: Annotated[str | None, typer.Option(help="First block time not to take.")] = None,
    team: Annotated[list[str] | None, typer.Option(help="Only this team's records; may be given again.")] = None,
    contract: Annotated[list[str] | None, typer.Option(help="Only this contract's; may be given again.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many records.")] = None,
    shard_rows: Annotated[int, typer.Option(min=1, max=50_000, help="Records in a shard, the unit of retry.")] = 5_000,
    shards_in_flight: Annotated[int, typer.Option(min=1, max=8, help="Shards at work at once.")] = 2,
    retries: Annotated[int, typer.Option(min=0, max=10, help="How often a failed stage is tried again.")] = 3,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count rows, tokens, cost and time; write nothing, embed nothing.")
    ] = False,
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
    with _reported(), _quiet_prefect():
        first, last = _moment(start, "--start"), _moment(end, "--end")
        if first and last and first.replace(tzinfo=None) >= last.replace(tzinfo=None):
            _wrong("--start must lie before --end")
        parameters: dict[str, Any] = {
            "start": first,
            "end": last,
            "teams": [_object_id(value, "--team") for value in team or []],
            "contracts": list(contract or []),
            "limit": limit,
            "shard_rows": shard_rows,
            "shards_in_flight": shards_in_flight,
            "retries": retries,
            "dry_run": dry_run,
            "resume": not no_resume,
            "replace_model": replace_model,
            "remove_orphans": remove_orphans,
        }
        with _services():
            report = _migrate(parameters)
        if as_json:
            _print_json(_summary(report))
        else:
            _print_report(report)


@app.command()
def ingest(
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
    with _reported(), _quiet_prefect():
        with _services():
            from flows.ingest import ingest as ingest_flow

            report: dict[str, Any] = ingest_flow(max_seconds=max_seconds, until_idle=until_idle)  # type: ignore[assignment]
        if as_json:
            _print_json(report)
            return
        for name, value in report.items():
            if value not in (None, {}):
                print(f"{name.replace('_', ' ')}: {value}")


@app.command()
def search(
    question: Annotated[str | None, typer.Argument(help="What to ask, in words.")] = None,
    team: Annotated[str | None, typer.Option(help="Team whose documents may be seen (its id).")] = None,
    all_teams: Annotated[bool, typer.Option("--all-teams", help="See every team's documents; for operators.")] = False,
    site: Annotated[
        str | None, typer.Option(help="Only this site of the team, with what belongs to the whole team.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Best documents to show.")] = 10,
    questions: Annotated[
        Path | None,
        typer.Option(help='File of questions, one {"qid", "question"} a line.', exists=True, dir_okay=False),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help='Where to write the answers, one {"qid", "ids"} a line.', dir_okay=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Search the store: exact cosine over every vector that the tenant may see, filtered before it is ranked.

    Example: cryptique-rag search "who claimed staking rewards on Polygon" --all-teams --limit 5
    """
    with _reported():
        if (team is None) == (not all_teams):
            _wrong("say whose documents may be seen: --team ID, or --all-teams")
        if site is not None and team is None:
            _wrong("--site needs --team: a site's answers include what belongs to its whole team")
        if (questions is None) != (run is None):
            _wrong("--questions and --run go together")
        if (question is None) == (questions is None):
            _wrong("ask one question, or give --questions FILE and --run FILE")
        team_id = _object_id(team, "--team") if team else None
        asked = [{"qid": "", "question": question}] if question is not None else _read_questions(questions)
        found = _search([item["question"] for item in asked], team_id, site, limit)
        if run is not None:
            _write_run(run, [item["qid"] for item in asked], found)
            _say(f"{len(found)} questions answered into {run}")
        elif as_json:
            _print_json({"results": [_hit_json(hit) for hit in found[0]]})
        else:
            _print_hits(found[0])


@app.command()
def register() -> None:
    """Register the blocks that flows load with the Prefect server, from the environment. Run it again at any change."""
    with _reported(), _quiet_prefect(), _services() as running:
        for name in running.blocks:
            print(f"registered {name}")


@app.command()
def ui() -> None:
    """Show the Prefect UI of the local server, with every run so far. Stays until Ctrl-C."""
    with _reported():
        from deployments.settings import load_settings

        settings = load_settings()
        if settings.prefect_api_url:
            print(f"Prefect UI: {settings.prefect_api_url.removesuffix('/api')}")
            return
        from deployments.embedded import local_prefect_server

        _say("starting the Prefect server")
        with local_prefect_server(settings.home) as url:
            print(f"Prefect UI: {url.removesuffix('/api')}    (Ctrl-C ends it)", flush=True)
            try:
                signal.pause()
            except KeyboardInterrupt:
                _say("stopping")


@app.command()
def up(as_json: JsonOption = False) -> None:
    """Leave it running: servers, blocks, work pool, deployments and a worker. Again: repairs, changes nothing else."""
    with _reported(), _quiet_prefect():
        from deployments.settings import load_settings
        from deployments.up import up as bring_up

        settings = load_settings()
        _say("starting what does not run yet: " + ", ".join([*_local_servers(settings), "worker"]))
        standing = bring_up(settings)
        if as_json:
            _print_json(asdict(standing))
        else:
            _print_standing(standing)


@app.command()
def down() -> None:
    """Stop what `up` started, the worker first, and servers that a killed command left running.

    Runs at work are cancelled and go on where they stopped when they are given again. Servers that another command
    uses stay.
    """
    with _reported(), _quiet_prefect():
        from deployments.settings import load_settings
        from deployments.up import down as bring_down

        stopped = bring_down(load_settings())
        print("stopped: " + ", ".join(stopped) if stopped else "nothing was running")


@app.command()
def stop() -> None:
    """Do the same as `down`."""
    down()


@config_app.command("check")
def config_check(as_json: JsonOption = False) -> None:
    """Tell everything that is wrong with the settings, at once, before anything is written; exit code 2 if any."""
    with _reported():
        from deployments.config_check import check_configuration

        findings = check_configuration()
        if as_json:
            _print_json({"ok": not any(f.problem for f in findings), "findings": [f.to_json() for f in findings]})
        else:
            for finding in findings:
                print(f"{'PROBLEM' if finding.problem else 'ok     '}  {finding.what}: {finding.says}")
        if any(finding.problem for finding in findings):
            raise typer.Exit(WRONG_INPUT)


@config_app.command("example")
def config_example() -> None:
    """Print .env.example: every setting with its meaning and default."""
    from deployments.settings import env_example

    print(env_example(), end="")


# -- the demo -------------------------------------------------------------------------------------------------


def _run_demo(settings: Settings, rows: int, fresh: bool) -> None:
    from deployments.local_services import running_services
    from deployments.register_blocks import protect_home, register_blocks
    from deployments.up import is_standing

    if is_standing(settings):
        _wrong(
            "`make up` is running in this folder, and its worker would take the demo's database for yours: "
            "`make down` first, or give the demo a home of its own: CRYPTIQUE_HOME=.demo make demo"
        )
    _say("1/4  starting a real mongod and a Prefect server (both on this machine only)")
    protect_home(settings.home)
    with running_services(settings) as services:
        from pymongo import MongoClient

        from deployments.sample import SAMPLE_QUESTIONS, load_sample
        from tasks.domain.collections import COLLECTIONS, STORE

        with MongoClient[dict[str, Any]](services.mongo_uri, tz_aware=True) as client:
            database = client[settings.cryptique_source_database]
            if fresh:
                for name in (*(collection.name for collection in COLLECTIONS), STORE):
                    database.drop_collection(name)
            _say(f"2/4  loading {rows:,} generated transactions, with the dirt that real sources have")
            with _bar("loading", rows) as show:
                counts = load_sample(database, rows=rows, on_progress=show)
        _say(
            f"     {counts.transactions:,} transactions of {counts.contracts} contracts and {counts.teams} teams: "
            f"{counts.action}"
        )
        register_blocks(settings, embedded_uri=services.mongo_uri)
        _say("3/4  migrating: extract, validate, chunk, embed, upsert, checkpoint, reconcile")
        # Small shards, so that a small demo shows progress too; a real run has larger ones.
        report = _migrate({"remove_orphans": True, "shard_rows": max(_DEMO_SHARD_ROWS, rows // 20)})
        _print_report(report)
        _say("4/4  asking the store")
        found = _search_in(settings, services.mongo_uri, list(SAMPLE_QUESTIONS), None, None, 3)
        for question, hits in zip(SAMPLE_QUESTIONS, found, strict=True):
            print(f"\nQ: {question}")
            _print_hits(hits)
        _say("stopping the servers")
    print(f"\nThis run in the Prefect UI: make ui, then /runs/flow-run/{report['flow_run_id']}")
    if not report["written"]:
        print("Everything was stored already: nothing was embedded or written. Start over: make demo FRESH=1")


# -- parts of commands ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Running:
    settings: Settings
    blocks: list[str]


@contextmanager
def _services() -> Iterator[_Running]:
    """Yield the settings with their servers running and the blocks registered."""
    from deployments.local_services import running_services
    from deployments.register_blocks import protect_home, register_blocks
    from deployments.settings import load_settings

    settings = load_settings()
    protect_home(settings.home)
    if settings.prefect_api_url is None or settings.embedded:
        _say("starting what the environment doesn't name: " + ", ".join(_local_servers(settings)))
    with running_services(settings) as services:
        yield _Running(settings, register_blocks(settings, embedded_uri=services.mongo_uri))


def _local_servers(settings: Settings) -> list[str]:
    return ["mongod"] * settings.embedded + ["Prefect server"] * (settings.prefect_api_url is None)


def _migrate(parameters: dict[str, Any]) -> dict[str, Any]:
    """Run the flow in this process and return its report, with progress on a terminal."""
    from flows.migrate import migrate as migrate_flow
    from flows.progress import listener

    with _bar("migrating", None) as show:

        def listen(progress: Progress) -> None:
            show(progress.done, progress.total)

        token = listener.set(listen)
        try:
            report: dict[str, Any] = migrate_flow(**parameters)  # type: ignore[assignment]
        finally:
            listener.reset(token)
    return report


def _search(questions: list[str], team_id: str | None, site_id: str | None, limit: int) -> list[list[Hit]]:
    from deployments.local_services import running_services
    from deployments.settings import load_settings

    settings = load_settings()
    with running_services(settings, prefect=False) as services:
        return _search_in(settings, services.mongo_uri, questions, team_id, site_id, limit)


def _search_in(
    settings: Settings,
    mongo_uri: str | None,
    questions: list[str],
    team_id: str | None,
    site_id: str | None,
    limit: int,
) -> list[list[Hit]]:
    from deployments.register_blocks import make_blocks
    from tasks.retrieve import Tenant
    from tasks.retrieve import search as search_store

    blocks = make_blocks(settings, embedded_uri=mongo_uri)
    assert blocks.embedder is not None  # the settings were checked
    tenant = Tenant(team_id, site_id)
    try:
        return search_store(questions, tenant, limit=limit, vectors=blocks.vectors, embedder=blocks.embedder)
    finally:
        blocks.vectors.close()


def _read_questions(path: Path | None) -> list[dict[str, Any]]:
    assert path is not None
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            found.append({"qid": str(item["qid"]), "question": str(item["question"])})
        except (ValueError, KeyError, TypeError):
            _wrong(f'{path}, line {number}: not {{"qid": ..., "question": ...}}')
    if not found:
        _wrong(f"{path} holds no question")
    return found


def _write_run(path: Path, qids: list[str], found: list[list[Hit]]) -> None:
    lines = []
    for qid, hits in zip(qids, found, strict=True):
        # A record with several chunks counts once, at its best place.
        lines.append(json.dumps({"qid": qid, "ids": list(dict.fromkeys(hit.source_id for hit in hits))}))
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        _wrong(f"can't write {path}: {error.strerror}")


def _object_id(value: str, option: str) -> str:
    lowered = value.strip().lower()
    if len(lowered) != _OBJECT_ID_DIGITS or any(digit not in "0123456789abcdef" for digit in lowered):
        _wrong(f"{option} {value!r}: an id is 24 hexadecimal digits, as in teams._id")
    return lowered


def _moment(value: str | None, option: str) -> datetime | None:
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        _wrong(f"{option} {value!r}: write a date such as 2025-06-01 or 2025-06-01T12:00")


# -- words out ------------------------------------------------------------------------------------------------

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


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    summary = {name: report[name] for name in SUMMARY_FIELDS}
    if report["dry_run"]:
        summary |= {"dry_run": True, "quota_seconds": report["quota_seconds"]}
    return summary


def _print_report(report: dict[str, Any]) -> None:
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
        ("Gemini would have cost" if offline else "cost", f"${report['cost_usd']:.4f}"),
        ("seconds", f"{report['seconds']:,.1f}"),
        ("rows/s", f"{report['rows_per_second']:,.0f}"),
    ]
    if report["quota_seconds"]:
        from flows.progress import duration

        rows.append(("time at the quota, at least", duration(report["quota_seconds"])))
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
            console.print(
                f"Each with its record: db.deadletters.find({{runId: '{report['flow_run_id']}'}})", soft_wrap=True
            )
    if report["arrived"]:
        console.print(f"{report['arrived']:,} records arrived while it ran; the next run takes them.")


def _print_standing(standing: Standing) -> None:
    command = f"PREFECT_API_URL={standing.prefect_api_url} {Path(sys.executable).with_name('prefect')}"
    rows = [
        ("Prefect UI", standing.ui_url),
        ("MongoDB", standing.mongo_uri or "yours, from the settings"),
        ("worker", standing.worker),
        ("deployments", ", ".join(standing.deployments)),
        ("start a run", "in the UI (Deployments, Run), or"),
        ("", f"{command} deployment run migrate/migrate -p limit=1000"),
        *zip(("logs", *[""] * len(standing.logs)), standing.logs, strict=False),
        ("stop it all", "make down, or cryptique-rag down"),
    ]
    if standing.automations:
        rows.insert(4, ("automations", ", ".join(standing.automations)))
    for name, value in rows:
        print(f"{name:<13}{value}")


def _print_hits(hits: list[Hit]) -> None:
    if not hits:
        print("   nothing found")
    for place, hit in enumerate(hits, start=1):
        facts = hit.metadata.get("facts", {})
        print(f"{place:2}. {hit.score:.3f}  {hit.content[:300]}")
        cited = facts.get("txHash") or hit.document_id
        where = f" on {facts['chain']}" if "chain" in facts else ""
        print(f"           transaction {cited}{where}, record {hit.source_id}")


def _hit_json(hit: Hit) -> dict[str, Any]:
    return {
        "documentId": hit.document_id,
        "sourceType": hit.source_type,
        "sourceId": hit.source_id,
        "score": hit.score,
        "content": hit.content,
        "metadata": hit.metadata,
    }


def _print_json(value: Any) -> None:
    print(json.dumps(value, default=_as_json, ensure_ascii=False))


def _as_json(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _wrong(text: str) -> NoReturn:
    _say(f"error: {text}")
    raise typer.Exit(WRONG_INPUT)


@contextmanager
def _bar(label: str, total: int | None) -> Iterator[Callable[..., None]]:
    """Yield a function that shows how far it is: a bar on a terminal, nothing in a log (the run's log tells it)."""
    if not sys.stderr.isatty():
        yield lambda done, total=None: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn(f"     {label}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(label, total=total, rate="")

        def show(done: int, total: int | None = None) -> None:
            if total is not None:
                bars.update(bar, total=total)
            speed = bars.tasks[0].speed
            bars.update(bar, completed=done, rate=f"{speed:,.0f} rows/s" if speed else "")

        yield show


@contextmanager
def _quiet_prefect() -> Iterator[None]:
    """On a terminal the progress bar speaks and Prefect's lines go to its server only; in a log they stay."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if sys.stderr.isatty():
        # Prefect reads its logging configuration from the environment when it is first imported.
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    yield


@contextmanager
def _reported() -> Iterator[None]:
    """Turn what was raised into one line and an exit code."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        _say("stopped; the same command goes on where it stopped")
        raise typer.Exit(FAILED) from None
    except Exception as error:  # noqa: BLE001 - the outermost edge: words for what we know, the rest is raised
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    from tasks.domain.errors import InputError, PipelineError

    if isinstance(error, InputError):
        _wrong(str(error))
    if isinstance(error, PipelineError):
        _say(f"error: {error}")
        raise typer.Exit(FAILED) from None
    if type(error).__name__ in ("ParameterTypeError", "ValidationError"):
        _wrong(str(error))
    raise error
