"""The ``generations`` command: another model's or describer's vectors beside the live ones, and the way to them."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.console import JsonOption, object_id, print_json, quiet_prefect, reported, say, services, wrong
from deployments.runs import (
    BatchOption,
    BudgetOption,
    ChildRunsOption,
    InFlightOption,
    RetriesOption,
    ShardRowsOption,
    SourceOption,
    chosen_sources,
    print_report,
    summary,
    with_progress,
)
from tasks.domain.generations import NAME_PATTERN
from tasks.domain.rankings import Question, parse_question
from tasks.domain.shards import DEFAULT_SHARD_ROWS, DEFAULT_SHARDS_IN_FLIGHT

if TYPE_CHECKING:
    from blocks.embedders import Embedders
    from blocks.vector_store import VectorStore
    from flows.generations import Standing
    from tasks.domain.generations import Book

app = typer.Typer(
    help="Another model's or describer's vectors beside the live ones: build, compare, switch, roll back, drop.",
    invoke_without_command=True,
)

_SHOWN_QUESTIONS = 10
_PATIENCE_MS = 5_000
NameArgument = Annotated[str, typer.Argument(help="Name of the generation: 1 to 20 of a-z, 0-9 and _.")]


class EmbedderChoice(StrEnum):
    """Which embedder makes a generation."""

    GEMINI = "gemini"
    LOCAL = "local"


class FormChoice(StrEnum):
    """How a generation's vectors are stored."""

    FLOAT32 = "float32"
    INT8 = "int8"
    BITS = "bits"
    DOUBLES = "doubles"


@app.callback()
def generations(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the generations, the live one first; the other commands build, compare, switch to and drop them."""
    if context.invoked_subcommand is None:
        list_all(as_json)


@app.command("list")
def list_all(as_json: JsonOption = False) -> None:
    """List the generations: which is live, what made each, what it holds, and until when it was followed."""
    with reported(), _reading() as reading:
        from flows.generations import list_generations

        book, standing = list_generations(reading.vectors, reading.embedders)
        if as_json:
            print_json({"live": book.live, "previous": book.previous, "generations": [_plain(one) for one in standing]})
            return
        _print_table(standing)


@app.command()
def build(
    name: NameArgument,
    model: Annotated[str | None, typer.Option(help="Its model; if not given, the live generation's.")] = None,
    dimensions: Annotated[int | None, typer.Option(min=1, max=3_072, help="Numbers per vector.")] = None,
    embedder: Annotated[EmbedderChoice | None, typer.Option(help="If not given, the one that has the model.")] = None,
    form: Annotated[FormChoice | None, typer.Option(help="How its vectors are stored.")] = None,
    source: SourceOption = None,
    shard_rows: ShardRowsOption = DEFAULT_SHARD_ROWS,
    shards_in_flight: InFlightOption = DEFAULT_SHARDS_IN_FLIGHT,
    child_runs: ChildRunsOption = 0,
    batch: BatchOption = False,
    budget_usd: BudgetOption = None,
    retries: RetriesOption = 3,
    yes: Annotated[bool, typer.Option("--yes", help="Build it, without showing the costs first.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build a generation beside the live one: shows what it costs, and builds only with --yes, or asked on a terminal.

    Without choices it is of the live one's model: for a new describer or another form. Given again it goes on where it
    stopped; one that is complete is brought up to date. The live one is not touched.

    Try first: cryptique-rag generations build next --model gemini-embedding-2
    """
    with reported(), quiet_prefect():
        parameters: dict[str, Any] = {
            "name": _checked(name),
            "embedder": None if embedder is None else embedder.value,
            "model": model,
            "dimensions": dimensions,
            "form": None if form is None else form.value,
            **chosen_sources(source),
            "shard_rows": shard_rows,
            "shards_in_flight": shards_in_flight,
            "child_runs": child_runs,
            "batch": batch,
            "budget_usd": budget_usd,
            "retries": retries,
        }
        with services():
            from flows.generations import build_generation

            if not yes:
                report = with_progress("counting", build_generation, parameters | {"dry_run": True})
                if as_json:
                    print_json(_build_json(report))
                    return
                typer.echo(f"Generation {name}: {report['made_by']}. Nothing was written yet.")
                print_report(report["load"])
                if not (sys.stdin.isatty() and typer.confirm("Build it?")):
                    typer.echo("Nothing was built: the same command with --yes builds it.")
                    return
            report = with_progress("building", build_generation, parameters)
        if as_json:
            print_json(_build_json(report))
            return
        if report["load"] is not None:
            print_report(report["load"])
        followed = report["caught_up"]
        if followed is not None:
            typer.echo(
                f"Taken over since it was read: {followed['written']:,} written, {followed['removed']:,} removed."
            )
        typer.echo(
            f"The generation {name} ({report['made_by']}) is {report['state']}. Look at it: `cryptique-rag generations "
            f"compare {name} --questions FILE`; then `cryptique-rag generations switch {name}`."
        )


@app.command()
def compare(
    name: NameArgument,
    questions: Annotated[
        Path,
        typer.Option(
            help='File of questions, one {"qid", "question"} a line, with "relevant" (ids of records) where they are '
            "known.",
            exists=True,
            dir_okay=False,
        ),
    ],
    other: Annotated[str | None, typer.Option("--with", help="The other one; if not given, the live one.")] = None,
    team: Annotated[str | None, typer.Option(help="Team whose documents may be seen (its id).")] = None,
    all_teams: Annotated[bool, typer.Option("--all-teams", help="See every team's documents; for operators.")] = False,
    site: Annotated[str | None, typer.Option(help="Only this site of the team.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask two generations the same questions, each in its own model, and tell how their first ten records differ."""
    with reported():
        if (team is None) == (not all_teams):
            wrong("say whose documents may be seen: --team ID, or --all-teams")
        if site is not None and team is None:
            wrong("--site needs --team: a site's answers include what belongs to its whole team")
        asked = _read_questions(questions)
        with _reading() as reading:
            from flows.generations import compare_generations
            from tasks.domain.retrieval.tenants import Tenant

            found = compare_generations(
                asked,
                Tenant(object_id(team, "--team") if team else None, site),
                one=other or reading.vectors.read_book().live,
                other=_checked(name),
                vectors=reading.vectors,
                embedders=reading.embedders,
            )
        if as_json:
            print_json(found)
        else:
            _print_comparison(found)


@app.command()
def switch(name: NameArgument, as_json: JsonOption = False) -> None:
    """Make a complete generation the live one. Readers have it with their next search; the one before it is kept."""
    with reported(), _reading() as reading:
        from flows.generations import switch as switch_to

        book = switch_to(_checked(name), vectors=reading.vectors, embedders=reading.embedders)
        if as_json:
            print_json(_book_json(book))
            return
        typer.echo(
            f"{book.live} is live: {book.find(book.live).made_by}. Searches have it from now on, `ingest` with its "
            f"next run. {book.previous} is kept but no longer followed: `cryptique-rag generations rollback` goes back."
        )
        _print_note(book)


@app.command()
def rollback(as_json: JsonOption = False) -> None:
    """Make the generation live again that was before this one. It is one write; `ingest` then brings it up to date."""
    with reported():
        began = time.monotonic()
        book = _roll_back()
        took_ms = (time.monotonic() - began) * 1000
        if as_json:
            print_json(_book_json(book))
            return
        typer.echo(
            f"{book.live} is live again, after {took_ms:.0f} ms: {book.find(book.live).made_by}. {book.previous} is "
            "kept: `cryptique-rag generations rollback` undoes this."
        )
        _print_note(book)


@app.command()
def drop(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without being asked.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a generation that is not live: its vectors, dead letters and positions. Its name is not given again."""
    with reported(), _reading() as reading:
        from flows.generations import drop as drop_one

        found = reading.vectors.read_book().generations.get(_checked(name))
        if not yes:
            documents, size = reading.vectors.at(found).measure() if found is not None else (0, 0)
            say(f"{name} holds {documents:,} vector documents, {_bytes(size)}")
            if not (sys.stdin.isatty() and typer.confirm("Delete them?")):
                wrong("nothing was deleted: --yes deletes them")
        book = drop_one(name, vectors=reading.vectors)
        if as_json:
            print_json(_book_json(book))
            return
        typer.echo(f"{name} is gone; {book.live} is live")


# -- parts of commands ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reading:
    vectors: VectorStore
    embedders: Embedders


@contextmanager
def _reading() -> Iterator[_Reading]:
    """Yield the store and the embedders that the settings describe; no Prefect server is needed."""
    from deployments.local_services import running_services
    from deployments.register_blocks import make_blocks
    from deployments.settings import load_settings

    settings = load_settings()
    with running_services(settings, prefect=False) as running:
        blocks = make_blocks(settings, embedded_uri=running.mongo_uri)
        try:
            yield _Reading(blocks.vectors, blocks.embedders)
        finally:
            blocks.vectors.close()


def _roll_back() -> Book:
    """Roll back without what is slow to import: who goes back is in a hurry."""
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    from blocks.generation_book import GenerationBook
    from deployments.settings import load_settings
    from tasks.domain.errors import TransientError

    settings = load_settings()
    uri = settings.cryptique_vectors_uri or settings.cryptique_source_uri
    if uri is not None:
        # What can't be reached or understood is said by the ordinary way below.
        with (
            suppress(PyMongoError, ValueError),
            MongoClient[dict[str, Any]](
                uri.get_secret_value(), tz_aware=True, serverSelectionTimeoutMS=_PATIENCE_MS
            ) as client,
        ):
            book = GenerationBook(client[settings.vectors_database])
            book.read()
            try:
                return book.change(lambda seen: seen.rolled_back(now=datetime.now(UTC)))
            except PyMongoError as error:
                raise TransientError(
                    f"MongoDB failed while the generations were written ({type(error).__name__}): look at "
                    "`cryptique-rag generations` before you give the command again"
                ) from None
    with _reading() as reading:
        from flows.generations import roll_back

        return roll_back(vectors=reading.vectors)


def _checked(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        wrong(f"{name!r} is no name of a generation: 1 to 20 of a-z, 0-9 and _")
    return name


def _read_questions(path: Path) -> list[Question]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found.append(parse_question(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            wrong(f'{path}, line {number}: not {{"qid": ..., "question": ...}}')
    if not found:
        wrong(f"{path} holds no question")
    return found


# -- words out ------------------------------------------------------------------------------------------------


def _print_table(standing: list[Standing]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("generation", "state", "made by", "documents", "on disk", "sources", "followed until"):
        table.add_column(title, justify="right" if title in ("documents", "on disk") else "left")
    for one in standing:
        table.add_row(
            one.generation.name,
            one.generation.state,
            one.generation.made_by,
            f"{one.documents:,}",
            _bytes(one.bytes_on_disk),
            ", ".join(one.sources),
            f"{one.followed_until:%Y-%m-%d %H:%M} UTC" if one.followed_until else "",
        )
    console = Console(highlight=False)
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=1_000)).maximum)
    console.print(table, soft_wrap=True)
    for one in standing:
        if one.generation.note:
            typer.echo(f"{one.generation.name}: {one.generation.note}")


def _print_comparison(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    one, other = found["one"], found["other"]
    table = Table(box=None, pad_edge=False)
    titles = ("questions", "number", "in common", "judged", f"recall {one}", other, f"nDCG {one}", other)
    for title in titles:
        table.add_column(title, justify="left" if title == "questions" else "right")
    for kind, means in found["by_kind"].items():
        measured = [f"{means[name][what]:.3f}" if name in means else "" for what in _MEASURES for name in (one, other)]
        table.add_row(kind, str(means["questions"]), f"{means['overlap']:.0%}", str(means["judged"]), *measured)
    console = Console(highlight=False)
    console.print(table, soft_wrap=True)
    rows = found["questions"]
    worse = sorted(
        (row for row in rows if one in row and _lost(row, one, other) > 0), key=lambda row: -_lost(row, one, other)
    )
    if worse:
        typer.echo(f"\nWorse in {other} (nDCG):")
    for row in worse[:_SHOWN_QUESTIONS]:
        typer.echo(f"  {row[one]['ndcg']:.3f} -> {row[other]['ndcg']:.3f}  {row['qid']} {row['question']}")


_MEASURES = ("recall", "ndcg")


def _lost(row: dict[str, Any], one: str, other: str) -> float:
    return float(row[one]["ndcg"] - row[other]["ndcg"])


def _print_note(book: Book) -> None:
    note = book.find(book.live).note
    if note:
        typer.echo(f"It is {note}.")


def _bytes(size: int) -> str:
    return f"{size / 1_000_000_000:,.2f} GB" if size >= 1_000_000_000 else f"{size / 1_000_000:,.1f} MB"


def _plain(one: Standing) -> dict[str, Any]:
    return {
        "name": one.generation.name,
        **one.generation.to_record(),
        "documents": one.documents,
        "bytesOnDisk": one.bytes_on_disk,
        "sources": one.sources,
        "followedUntil": one.followed_until,
    }


def _book_json(book: Book) -> dict[str, Any]:
    return {"live": book.live, "previous": book.previous, "note": book.find(book.live).note if book.generations else ""}


def _build_json(report: dict[str, Any]) -> dict[str, Any]:
    names = ("generation", "made_by", "sources", "state", "dry_run", "seconds")
    loaded = None if report["load"] is None else summary(report["load"])
    return {name: report[name] for name in names} | {"load": loaded, "caught_up": report["caught_up"]}
