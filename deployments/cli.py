"""The ``cryptique-rag`` command: arguments in, one flow or task, words out.

Exit codes: 0 done, 1 the run failed, 2 the input was wrong. Results go to standard output, all else to standard
error. What is slow to import is imported by the command that needs it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from deployments import backups, explain, figures, generations, jobs, runs, serve
from deployments.console import (
    WRONG_INPUT,
    JsonOption,
    bar,
    local_servers,
    object_id,
    print_json,
    quiet_prefect,
    reported,
    say,
    services,
    wrong,
)
from deployments.runs import print_report, run_migrate

if TYPE_CHECKING:
    from deployments.settings import Settings
    from deployments.up import Standing
    from tasks.domain.answers.model import FigureAnswer, Refusal
    from tasks.retrieve import Hit, Retrieval

DEMO_ROWS = 5_000
_DEMO_SHARD_ROWS = 1_000

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
app.add_typer(jobs.app, name="jobs")
app.add_typer(generations.app, name="generations")
app.add_typer(backups.app, name="backups")
app.command()(explain.explain)
for _command in (runs.migrate, figures.aggregate, runs.ingest, runs.backfill, runs.replay, runs.reconcile):
    app.command()(_command)
app.command()(backups.backup)
app.command()(backups.verify)
app.command()(backups.restore)
app.command()(serve.serve)
app.command()(serve.health)
app.command()(serve.readiness)


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
    with reported(), quiet_prefect():
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
    with reported(), quiet_prefect():
        with services() as running:
            from flows.initialise import initialise as initialise_flow

            say(f"store: database {running.settings.vectors_database}")
            result: dict[str, list[str]] = initialise_flow()  # type: ignore[assignment]
        if as_json:
            print_json(result)
            return
        for title, lines in (("made", "created"), ("differs, left as it is", "differs"), ("note", "notes")):
            for line in result[lines]:
                print(f"{title}: {line}")
        if not result["created"]:
            print("everything was there already")


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
    """Ask the store: what a question says exactly becomes conditions, the rest is searched by words and by meaning.

    A team's question for figures is answered with them first, or refused. Then comes what was understood, and the best
    documents with their scores and sources. The index lies under CRYPTIQUE_HOME; the first search makes it.

    Example: cryptique-rag search "who claimed staking rewards on Polygon" --all-teams --limit 5
    """
    with reported():
        if (team is None) == (not all_teams):
            wrong("say whose documents may be seen: --team ID, or --all-teams")
        if site is not None and team is None:
            wrong("--site needs --team: a site's answers include what belongs to its whole team")
        if (questions is None) != (run is None):
            wrong("--questions and --run go together")
        if (question is None) == (questions is None):
            wrong("ask one question, or give --questions FILE and --run FILE")
        team_id = object_id(team, "--team") if team else None
        asked = [{"qid": "", "question": question}] if question is not None else _read_questions(questions)
        found = _search([item["question"] for item in asked], team_id, site, limit)
        if run is not None:
            _write_run(run, [item["qid"] for item in asked], [one.retrieval for one in found])
            say(f"{len(found)} questions answered into {run}")
        elif as_json:
            print_json(_found_json(found[0]))
        else:
            _print_found(found[0])


@app.command()
def register() -> None:
    """Register blocks and automations with the Prefect server, from the environment. Run it again at any change.

    Flows load the blocks; with the automations the server tells of runs that can't speak for themselves.
    """
    with reported(), quiet_prefect(), services() as running:
        from deployments.automations import register_automations

        for name in [*running.blocks, *register_automations(running.settings)]:
            print(f"registered {name}")


@app.command()
def ui() -> None:
    """Show the Prefect UI of the local server, with every run so far. Stays until Ctrl-C."""
    with reported():
        from deployments.settings import load_settings

        settings = load_settings()
        if settings.prefect_api_url:
            print(f"Prefect UI: {settings.prefect_api_url.removesuffix('/api')}")
            return
        from deployments.embedded import local_prefect_server

        say("starting the Prefect server")
        with local_prefect_server(settings.home) as url:
            print(f"Prefect UI: {url.removesuffix('/api')}    (Ctrl-C ends it)", flush=True)
            try:
                signal.pause()
            except KeyboardInterrupt:
                say("stopping")


@app.command()
def up(as_json: JsonOption = False) -> None:
    """Leave it running: servers, blocks, work pool, deployments and a worker. Again: repairs, changes nothing else."""
    with reported(), quiet_prefect():
        from deployments.settings import load_settings
        from deployments.up import up as bring_up

        settings = load_settings()
        say("starting what does not run yet: " + ", ".join([*local_servers(settings), "worker"]))
        standing = bring_up(settings)
        if as_json:
            print_json(asdict(standing))
        else:
            _print_standing(standing)


@app.command()
def bootstrap(as_json: JsonOption = False) -> None:
    """Tell a Prefect server all it must know: pool, queues, blocks, deployments, automations. Again: corrects.

    The server is the one that PREFECT_API_URL names, the settings are those of the environment: run it where the keys
    are, after the server's start and after every change of a setting.
    """
    with reported(), quiet_prefect():
        from deployments.bootstrap import bootstrap as set_up_server
        from deployments.settings import load_settings

        registered = set_up_server(load_settings())
        if as_json:
            print_json(asdict(registered))
            return
        for what, names in asdict(registered).items():
            print(f"{what}: {', '.join(names) or 'none'}")


@app.command()
def worker(
    name: Annotated[str | None, typer.Option(help="How the server calls it; the machine's name if not given.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=64, help="Runs at once; if not given, 4 and CRYPTIQUE_CHILD_RUNS: 6.")
    ] = None,
    stop_seconds: Annotated[
        float | None, typer.Option(min=0, help="How long its runs may take to end when it ends; 240 if not given.")
    ] = None,
) -> None:
    """Take runs from the server that PREFECT_API_URL names, until SIGTERM or Ctrl-C.

    It then takes no more, lets its runs end at the next request, and schedules them again: the next worker goes on with
    them, and what they finished is kept. A second signal kills them first. Databases and keys come from the server, not
    from this environment.
    """
    with reported():
        from deployments.work_pool import STOP_SECONDS, child_runs_here, worker_environment, worker_limit

        # Asked first: none of the settings stays.
        limit = limit or worker_limit(child_runs_here())
        environment = worker_environment(os.environ)
        os.environ.clear()
        os.environ.update(environment)
        from deployments.worker import run_worker

        patience = STOP_SECONDS if stop_seconds is None else stop_seconds
        run_worker(name=name, limit=limit, stop_seconds=patience)


@app.command()
def down() -> None:
    """Stop what `up` started, the worker first, and servers that a killed command left running.

    Runs at work are cancelled and go on where they stopped when they are given again. Servers that another command
    uses stay.
    """
    with reported(), quiet_prefect():
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
    with reported():
        from deployments.config_check import check_configuration

        findings = check_configuration()
        if as_json:
            print_json({"ok": not any(f.problem for f in findings), "findings": [f.to_json() for f in findings]})
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
        wrong(
            "`make up` is running in this folder, and its worker would take the demo's database for yours: "
            "`make down` first, or give the demo a home of its own: CRYPTIQUE_HOME=.demo make demo"
        )
    say("1/4  starting a real mongod and a Prefect server (both on this machine only)")
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
            say(f"2/4  loading {rows:,} generated transactions, with the dirt that real sources have")
            with bar("loading", rows) as show:
                counts = load_sample(database, rows=rows, on_progress=show)
        say(
            f"     {counts.transactions:,} transactions of {counts.contracts} contracts and {counts.teams} teams: "
            f"{counts.action}"
        )
        register_blocks(settings, embedded_uri=services.mongo_uri)
        say("3/4  migrating: extract, validate, chunk, embed, upsert, checkpoint, reconcile")
        # Small shards, so that a small demo shows progress too; a real run has larger ones.
        report = run_migrate({"remove_orphans": True, "shard_rows": max(_DEMO_SHARD_ROWS, rows // 20)})
        print_report(report)
        say("4/4  asking the store")
        found = _search_in(settings, services.mongo_uri, list(SAMPLE_QUESTIONS), None, None, 3)
        for question, hits in zip(SAMPLE_QUESTIONS, found, strict=True):
            print(f"\nQ: {question}")
            _print_found(hits)
        say("stopping the servers")
    print(f"\nThis run in the Prefect UI: make ui, then /runs/flow-run/{report['flow_run_id']}")
    if not report["written"]:
        print("Everything was stored already: nothing was embedded or written. Start over: make demo FRESH=1")


# -- parts of commands ----------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """What a question found, and its figures where it asks for some."""

    retrieval: Retrieval
    answer: FigureAnswer | Refusal | None


def _search(questions: list[str], team_id: str | None, site_id: str | None, limit: int) -> list[_Found]:
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
) -> list[_Found]:
    from blocks.search_indexes import SearchIndexes
    from deployments.register_blocks import make_blocks
    from tasks.answer import Answerer
    from tasks.domain.retrieval.tenants import Tenant
    from tasks.retrieve import Retriever

    blocks = make_blocks(settings, embedded_uri=mongo_uri)
    embedders = blocks.embedders
    indexes = SearchIndexes(blocks.vectors, embedders, settings.home, by_server=settings.cryptique_search_by == "auto")
    tenant = Tenant(team_id, site_id)
    try:
        indexes.open()
        retriever = Retriever(indexes, blocks.vectors, embedders)
        answerer = Answerer(indexes, blocks.vectors)
        found = [retriever.retrieve(question, tenant, limit=limit) for question in questions]
        return [_Found(one, answerer.answer(one.understood, tenant)) for one in found]
    finally:
        indexes.stop()
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
            wrong(f'{path}, line {number}: not {{"qid": ..., "question": ...}}')
    if not found:
        wrong(f"{path} holds no question")
    return found


def _write_run(path: Path, qids: list[str], found: list[Retrieval]) -> None:
    lines = []
    for qid, one in zip(qids, found, strict=True):
        # A record with several chunks counts once, at its best place; what says the same stands behind it.
        ids = dict.fromkeys(each for hit in one.hits for each in (hit.source_id, *hit.folded_sources))
        lines.append(json.dumps({"qid": qid, "ids": list(ids)}))
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        wrong(f"can't write {path}: {error.strerror}")


# -- words out ------------------------------------------------------------------------------------------------


def _print_standing(standing: Standing) -> None:
    command = f"PREFECT_API_URL={standing.prefect_api_url} {Path(sys.executable).with_name('prefect')}"
    rows = [
        ("Prefect UI", standing.ui_url),
        ("MongoDB", standing.mongo_uri or "yours, from the settings"),
        ("worker", standing.worker),
        ("monitoring", standing.monitoring_url),
        ("", f"user admin, password: {standing.admin_password}"),
        ("deployments", ", ".join(standing.deployments)),
        ("start a run", "in the UI (Deployments, Run), or"),
        ("", f"{command} deployment run migrate/migrate -p limit=1000"),
        *zip(("logs", *[""] * len(standing.logs)), standing.logs, strict=False),
        ("stop it all", "make down, or cryptique-rag down"),
    ]
    if standing.automations:
        rows.insert(6, ("automations", ", ".join(standing.automations)))
    for name, value in rows:
        print(f"{name:<13}{value}")


def _print_found(asked: _Found) -> None:
    from tasks.domain.answers.model import FigureAnswer
    from tasks.domain.answers.telling import tell, tell_refusal

    found, answer = asked
    if isinstance(answer, FigureAnswer):
        print(f"    {tell(answer)}")
        for number, row in enumerate(answer.cited, start=1):
            print(f"    [{number}] {row['documentId']}")
    elif answer is not None:
        print(f"    not answered with figures: {tell_refusal(answer)}")
    for one in found.understood.readings:
        print(f"    {one.words!r}: {one.meaning}")
    for note in found.notes:
        print(f"    {note}")
    if not found.hits:
        print("    nothing found" if found.fitting else "    nothing found: no document meets these conditions")
    for place, hit in enumerate(found.hits, start=1):
        facts = hit.metadata.get("facts", {})
        print(f"{place:2}. {hit.score:.3f}  {hit.content[:300]}")
        cited = facts.get("txHash") or hit.document_id
        where = f" on {facts['chain']}" if "chain" in facts else ""
        more = f", and {len(hit.folded)} more that say the same" if hit.folded else ""
        print(f"           {hit.source_type.replace('_', ' ')} {cited}{where}, record {hit.source_id}{more}")


def _found_json(asked: _Found) -> dict[str, Any]:
    from tasks.domain.answers.model import FigureAnswer
    from tasks.domain.answers.telling import figures_of, tell, tell_refusal
    from tasks.retrieve import explain

    found, answer = asked
    told: dict[str, Any] = {"answer": None, "figures": [], "citations": [], "refused": None}
    if isinstance(answer, FigureAnswer):
        cited = [row["documentId"] for row in answer.cited]
        told |= {"answer": tell(answer), "figures": figures_of(answer), "citations": cited}
    elif answer is not None:
        told["refused"] = tell_refusal(answer)
    return {
        **told,
        "results": [_hit_json(hit) for hit in found.hits],
        "understood": explain(found.understood.readings),
        "fitting": found.fitting,
        "generation": found.generation,
        "notes": list(found.notes),
    }


def _hit_json(hit: Hit) -> dict[str, Any]:
    return {
        "documentId": hit.document_id,
        "sourceType": hit.source_type,
        "sourceId": hit.source_id,
        "score": hit.score,
        "content": hit.content,
        "metadata": hit.metadata,
        "folded": list(hit.folded),
    }
