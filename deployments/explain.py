"""The ``explain`` command: from any id to its record, and from the record to all its vectors and what made them."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.console import JsonOption, print_json, quiet_prefect, reported, say, wrong
from tasks.domain.texts import clean_text

if TYPE_CHECKING:
    from tasks.explain import ExplainedLetter, ExplainedRecord, ExplainedRow, Explanation

#: Of what differs, a person reads some; ``--json`` has all of it.
_SHOWN_DIFFERENCES = 10
_SHOWN_CHARS, _SHOWN_FACTS_CHARS, _SHOWN_BEGINNING = 200, 1_000, 60
_NAME_WIDTH, _LEAST_WIDTH = 20, 60
_JOB_FIELDS = ("jobId", "jobType", "sourceType", "status", "startedAt", "completedAt", "workerHost")
_JOB_METADATA = ("reason", "triggeredBy", "runKey", "runIds")
_KNOWN_IDS = """An id is one of
  - a documentId, with or without its ordinal: `cryptique-rag search --json` and vectordocuments have it
  - the _id of a vector document or of a record of a source, 24 hexadecimal digits: `search` shows the record's
  - <source>:<the record's _id>, as the field `source` of a vector document has it: session:665f1c...
  - the hash of a transaction
Is this the right database? `cryptique-rag config check` says which one is meant."""

Line = tuple[str, object]


def explain(
    asked: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="A documentId (with or without its ordinal), an _id of vectordocuments or of a record, "
            "<source>:<record's _id>, or a transaction's hash.",
        ),
    ],
    generation: Annotated[
        str | None, typer.Option(help="Look at this generation's vectors; if not given, the live one's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell where a vector document comes from, and all that its record became.

    The record and whether it is still there, its owner, its dead letter and what to do about it, and each of its vector
    documents: the text, what made it (model, describer, chunker, run, code version) and whether the record would make
    the same now. Writes nothing, costs nothing, and never shows who a visitor is.

    Example: cryptique-rag explain 0x58100743187d1577025dfaf3f91fb493beff7b00f71c76adca61f183a48cb0e0
    """
    with reported(), quiet_prefect():
        found, runs_url = _find(asked, generation)
        for note in found.notes:
            say(f"note: {note}")
        if not found.records:
            nobody = "no record of a source has it, no vector document and no dead letter"
            wrong(f"{asked!r} is nowhere: {nobody}.\n{_KNOWN_IDS}")
        if as_json:
            print_json(_to_json(asked, found, runs_url))
            return
        for place, record in enumerate(found.records):
            if place:
                _print()
            _print_block(_title(record), _record_lines(record, found))
            whole = _asked_for(asked, record)
            for row in whole:
                _print()
                _print_block(f"vector document {row.row['documentId']}", _row_lines(row, record, runs_url))
            if len(record.rows) > len(whole):
                _print()
                others = [row for row in record.rows if row not in whole]
                _print_block("its other vector documents, all of each with --json", _short_lines(others))


def _find(asked: str, generation: str | None) -> tuple[Explanation, str | None]:
    """Return what is known of an id, and the address under which the Prefect UI shows runs, where one is known."""
    from deployments.local_services import running_services
    from deployments.register_blocks import make_blocks
    from deployments.settings import load_settings
    from tasks.explain import explain as explain_id

    settings = load_settings()
    with running_services(settings, prefect=False) as running:
        blocks = make_blocks(settings, embedded_uri=running.mongo_uri)
        try:
            found = explain_id(
                asked,
                source=blocks.source,
                vectors=blocks.vectors,
                embedders=blocks.embedders,
                now=datetime.now(UTC),
                generation=generation,
            )
        finally:
            blocks.source.close()
            blocks.vectors.close()
    server = settings.prefect_api_url
    return found, f"{server.rstrip('/').removesuffix('/api')}/runs/flow-run/" if server else None


# -- for programs -----------------------------------------------------------------------------------------------------


def _to_json(asked: str, found: Explanation, runs_url: str | None) -> dict[str, Any]:
    return {
        "id": asked,
        "generation": found.generation,
        "live": found.is_live,
        "notes": found.notes,
        "records": [_record_json(record, runs_url) for record in found.records],
    }


def _record_json(record: ExplainedRecord, runs_url: str | None) -> dict[str, Any]:
    return {
        "source": record.source,
        "place": record.place,
        "recordId": record.record_id,
        "inSource": record.in_source,
        "fields": _plain(record.fields),
        "owner": {
            "holderId": record.holder_id,
            "holderName": record.holder_name,
            "teamId": record.team_id,
            "siteId": record.site_id,
        },
        "refused": None if record.refused is None else {"code": record.refused.code, "reason": record.refused.reason},
        "deadLetters": [_letter_json(letter) for letter in record.letters],
        "documents": [_row_json(row, runs_url) for row in record.rows],
        "missing": list(record.missing),
        "heldBy": dict(record.held_by),
        "elsewhere": [
            {"generation": one.generation, "state": one.state, "documents": one.documents, "refused": one.refused}
            for one in record.elsewhere
        ],
    }


def _letter_json(explained: ExplainedLetter) -> dict[str, Any]:
    # Without the excerpt of the record: what may be shown of one is said beside it.
    stored: dict[str, Any] = {name: value for name, value in explained.letter.items() if name not in ("_id", "record")}
    return {**_plain(stored), "toDo": explained.to_do}


def _row_json(explained: ExplainedRow, runs_url: str | None) -> dict[str, Any]:
    stored, standing = explained.row, explained.standing
    run_id, job = stored.get("runId"), explained.job
    metadata = (job or {}).get("metadata") or {}
    return {
        **_plain(stored),
        "standing": {
            "state": standing.state,
            "says": standing.says,
            "differences": [
                {"field": one.name, "stored": _plain(one.stored), "now": _plain(one.now)}
                for one in standing.differences
            ],
        },
        "computedFrom": None if explained.computed_from is None else _plain(explained.computed_from),
        "run": {
            "id": run_id,
            "url": _run_url(run_id, runs_url),
            "job": None
            if job is None
            else {name: job.get(name) for name in _JOB_FIELDS} | {name: metadata.get(name) for name in _JOB_METADATA},
        },
    }


def _run_url(run_id: str | None, runs_url: str | None) -> str | None:
    return f"{runs_url}{run_id}" if run_id and runs_url else None


def _plain(value: Any) -> Any:
    """Return a value of MongoDB as JSON has it: bytes as hexadecimal digits."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(name): _plain(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    return value


# -- for people -------------------------------------------------------------------------------------------------------


def _title(record: ExplainedRecord) -> str:
    there = {True: "is there", False: "is gone from there", None: "nobody can tell whether it is there"}[
        record.in_source
    ]
    part = "part of a record" if record.is_part else "record"
    where = f"{part} of {record.place}, {there}" if record.place else f"record, {there}: {record.unread}"
    return f"{record.source} {record.record_id}: {where}"


def _asked_for(asked: str, record: ExplainedRecord) -> list[ExplainedRow]:
    """Return the rows that a person wants to see whole: those that the id names, else the first."""
    asked = asked.strip()
    named = [row for row in record.rows if asked in (row.row["documentId"], str(row.row["_id"]))]
    return named or list(record.rows[:1])


def _record_lines(record: ExplainedRecord, found: Explanation) -> Iterator[Line]:
    if record.holder_id or record.team_id:
        stored = "" if record.in_source else " (as it was stored)"
        site = f", site {record.site_id}" if record.site_id else ""
        named = f" ({record.holder_name})" if record.holder_name else ""
        yield "owner", f"{record.holder_id or 'unknown'}{named} of team {record.team_id or 'unknown'}{site}{stored}"
    told = [one.letter["reason"] for one in record.letters if one.letter["status"] == "open"]
    if record.refused is not None and record.refused.reason not in told:
        yield "refused now", f"{record.refused.code}: {record.refused.reason}"
    for explained in record.letters:
        letter = explained.letter
        yield "dead letter", f"{letter['status']}, {letter['code']}: {letter['reason']}"
        attempts = letter.get("attempts", 1)
        last = f"last {_shown(letter.get('time'))} by the run {letter['runId']}"
        yield "  refused in", f"{letter['stage']}, {attempts:,} time{'s' if attempts != 1 else ''}, {last}"
        yield "  to do", explained.to_do
    live = "live" if found.is_live else "not live"
    yield "vector documents", f"{len(record.rows) or 'none'} in generation {found.generation} ({live})"
    for one in record.elsewhere:
        refused = f", refused there: {one.refused}" if one.refused else ""
        look = f"; --generation {one.generation} shows them" if one.documents else ""
        yield "", f"{one.documents or 'none'} in generation {one.generation} ({one.state}){refused}{look}"
    for document, other in record.held_by.items():
        yield "held", f"{document} is stored for the record {other}"
    for document in record.missing:
        yield "missing", f"{document}: the next run that looks at the record writes it, and `reconcile` looks at all"
    if record.fields:
        yield "record", "as it is in the source"
    for name, value in record.fields.items():
        yield f"  {name}", value


def _short_lines(rows: Iterable[ExplainedRow]) -> Iterator[Line]:
    for explained in rows:
        row = explained.row
        beginning = str(row.get("content"))[:_SHOWN_BEGINNING]
        yield explained.standing.state, f"{row['documentId']}  {beginning}…"


def _row_lines(explained: ExplainedRow, record: ExplainedRecord, runs_url: str | None) -> Iterator[Line]:
    row, standing = explained.row, explained.standing
    lineage: Mapping[str, Any] = row.get("lineage") or {}
    yield "standing", f"{standing.state}: {standing.says}"
    for one in standing.differences[:_SHOWN_DIFFERENCES]:
        yield f"  {one.name}", f"{_cut(one.stored)} -> {_cut(one.now)}"
    if len(standing.differences) > _SHOWN_DIFFERENCES:
        yield "  …", f"{len(standing.differences) - _SHOWN_DIFFERENCES:,} more fields differ: --json has them"
    yield "_id", row["_id"]
    yield "text", row.get("content")
    yield from _computed_lines(explained.computed_from)
    yield "chunk", f"{lineage.get('ordinal', 0) + 1} of {lineage.get('chunks', 1)}, chunker {lineage.get('chunker')}"
    yield "describer", f"{record.source}, version {lineage.get('describer')}"
    yield "model", f"{lineage.get('model')}, {lineage.get('dimensions')} dimensions, task {lineage.get('task')}"
    yield from _run_lines(explained, runs_url)
    yield "code version", row.get("codeVersion") or "unknown: written before rows told it"
    yield (
        "written",
        f"{_shown(row.get('updatedAt'))}, version {row.get('version')}, first {_shown(row.get('createdAt'))}",
    )
    hashes = ("contentHash", "rowHash", "sourceDigest")
    yield "hashes", ", ".join(f"{name} {_plain(row[name])}" for name in hashes if row.get(name))
    facts = (row.get("metadata") or {}).get("facts") or {}
    name = "facts" if explained.computed_from is None else "figures"
    shown = facts if explained.computed_from is None else facts.get(name)
    yield name, _cut(shown, _SHOWN_FACTS_CHARS) if shown else None


def _computed_lines(computed: Mapping[str, Any] | None) -> Iterator[Line]:
    if computed is not None:
        rows = computed.get("rows")
        number = f"{rows:,} row{'s' if rows != 1 else ''}" if isinstance(rows, int) else "an unknown number of rows"
        yield "computed from", f"{number} of {_listed(computed.get('collections') or 'unknown collections')}"
        for name, value in computed.items():
            if name not in ("rows", "collections"):
                yield f"  {name}", value


def _run_lines(explained: ExplainedRow, runs_url: str | None) -> Iterator[Line]:
    run_id, job = explained.row.get("runId"), explained.job
    if not run_id:
        yield "run", "unknown: no run of this pipeline wrote it"
        return
    yield "run", _run_url(run_id, runs_url) or f"{run_id} (`cryptique-rag ui`, then /runs/flow-run/{run_id})"
    if job is None:
        yield "job", "its record is gone: 30 days after a job's end it expires"
        return
    ended = f", ended {_shown(job['completedAt'])}" if job.get("completedAt") else ""
    about = (job.get("metadata") or {}).get("reason")
    yield "job", f"{job['jobId']} ({about}): {job['status']}, began {_shown(job.get('startedAt'))}{ended}"


def _print_block(title: str, lines: Iterator[Line]) -> None:
    _print(clean_text(title))
    for name, value in lines:
        if value not in (None, ""):
            _print_line(name, clean_text(_shown(value)).replace("\n", " "))


def _print_line(name: str, value: str) -> None:
    """Print a name and its value; on a terminal a long value is folded beside its name, in a file it stays one line.

    What comes from outside was cleaned of all that would move a terminal's cursor or turn its order round.
    """
    indented = "  " * (len(name) - len(name.lstrip()) > 0)
    head = f"  {indented}{clean_text(name):<{_NAME_WIDTH - len(indented)}}  "
    if not sys.stdout.isatty():
        _print(head + value)
        return
    width = max(_LEAST_WIDTH, shutil.get_terminal_size().columns)
    # An id or an address that is broken in two can't be copied.
    folded = textwrap.TextWrapper(
        width, subsequent_indent=" " * len(head), break_long_words=False, break_on_hyphens=False
    )
    _print(folded.fill(head + value))


def _print(line: str = "") -> None:
    typer.echo(line)


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else _shown(value)


def _cut(value: object, most: int = _SHOWN_CHARS) -> str:
    shown = _shown(value)
    return shown if len(shown) <= most else f"{shown[:most]}… (--json has all of it)"


def _shown(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    if value is None:
        return "nothing"
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(_plain(value), default=_shown, ensure_ascii=False)
    return str(_plain(value))
