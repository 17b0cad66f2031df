"""Differences: what a comparison found, as the person reads it who is called at night, and as rows for a program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.report import by_reason, never_stopping
from tasks.domain.differences import KINDS, Differences, Place, Tally, in_words
from tasks.domain.owners import Owners
from tasks.domain.registry import plural_of

#: Places in the result of a run and in its artifact for programs; what is left out is added up in one row more.
MAX_ROWS = 1_000
_SHOWN, _SHOWN_MORE = 20, 10
_COUNTS = ("in_source", "stored", "dead_lettered", *KINDS)
_MEANING = {
    "missing": "lack a vector",
    "stale": "say what the source no longer says",
    "moved": "are stored for another team, contract or website than own them now, or for one though nobody does",
    "doubled": "have documents that they don't make",
    "orphaned": "are gone from the source",
    "unaccounted": "are refused without a dead letter, or stored in spite of one",
}

Row = dict[str, Any]
Column = tuple[str, Callable[[Mapping[str, Any]], str]]


def place_rows(source: str, found: Differences, owners: Owners) -> list[Row]:
    """Return a row for each place where records differ or are dead-lettered, those with most first.

    At most ``MAX_ROWS``, and one with the sum of the others, whose ``places`` says how many those are.
    """
    largest = found.largest()
    rows = [_row(source, place, tally, owners) for place, tally in largest[:MAX_ROWS]]
    if len(largest) > MAX_ROWS:
        rest = Tally()
        for _, tally in largest[MAX_ROWS:]:
            rest += tally
        rows.append(_row(source, Place(None, None, None), rest, owners) | {"places": len(largest) - MAX_ROWS})
    return rows


def holder_rows(source: str, found: Differences, owners: Owners) -> list[Row]:
    """Return the same by team and contract or website, with the ``days``, from ``first`` to ``last``, that differ."""
    together: dict[Place, Tally] = {}
    days: dict[Place, list[str]] = {}
    for place, tally in found.largest():
        holder = Place(place.team_id, place.holder_id, None)
        total = together.setdefault(holder, Tally())
        total += tally
        if place.day is not None:
            days.setdefault(holder, []).append(place.day)
    rows = []
    for holder, tally in together.items():
        own = days.get(holder, [])
        span = {"days": len(own), "first": min(own, default=None), "last": max(own, default=None)}
        row = _row(source, holder, tally, owners) | span
        del row["day"]
        rows.append(row)
    return merge_rows(rows)


def merge_rows(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of several sources together, at most ``MAX_ROWS``, those with most differences first."""
    ordered = sorted(rows, key=lambda row: (-sum(row[kind] for kind in KINDS), -row["dead_lettered"]))
    return ordered[:MAX_ROWS]


def _row(source: str, place: Place, tally: Tally, owners: Owners) -> Row:
    holder = owners.by_site_id.get(place.holder_id or "") or owners.by_contract_id.get(place.holder_id or "")
    return {
        "source": source,
        "team": place.team_id,
        "holder": place.holder_id,
        "name": None if holder is None else holder.name,
        "day": place.day,
        **tally.to_record(),
    }


def publish_differences(found: Differences, source: str, owners: Owners, vectors_name: str) -> None:
    """Put what was found of one source beside the run: to be read, and as rows."""
    total, rows = found.total, place_rows(source, found, owners)
    lines = [
        f"# {plural_of(source).capitalize()}: {total.in_source:,} records compared: {found}",
        "",
        *_table([{"source": source, **total.to_record()}], [_SOURCE, *_COUNT_COLUMNS]),
    ]
    holders = holder_rows(source, found, owners)
    lines += _where(holders, [*_HOLDER_COLUMNS, *_COUNT_COLUMNS])
    if found.moves:
        lines += ["", "## From whom to whom", "", *_moves(found)]
    if total.dead_lettered:
        refused = sorted((row for row in holders if row["dead_lettered"]), key=lambda row: -row["dead_lettered"])
        columns = [*_HOLDER_COLUMNS, _count_column("dead_lettered")]
        reasons = f"By reason: {by_reason(found.refused)}."
        lines += ["", "## Dead letters", "", *_table(refused[:_SHOWN_MORE], columns), "", reasons]
    worst = [row for row in rows if "places" not in row and _differing(row)][:_SHOWN_MORE]
    if worst:
        columns = [_DAY, *_HOLDER_COLUMNS[:2], *_COUNT_COLUMNS]
        lines += ["", "## The days that differ most", "", *_table(worst, columns)]
    for kind in KINDS:
        ids = found.examples.get(kind, [])
        count = getattr(total, kind)
        if ids:
            lines += ["", f"## {kind}", "", f"They {_MEANING[kind]}.", "", *(f"- {record}" for record in ids)]
            lines += [f"- and {count - len(ids):,} more"] if count > len(ids) else []
    lines += ["", f"Vectors: {vectors_name}."]
    key = source.replace("_", "-")
    with never_stopping("the differences"):
        create_markdown_artifact("\n".join(lines), key=f"reconcile-differences-{key}", description="What differed")
        create_table_artifact(
            rows, key=f"reconcile-places-{key}", description="What differed by team, contract or website, and day (UTC)"
        )


def publish_sources(by_source: Mapping[str, Mapping[str, Any]], holders: Sequence[Row], notes: Sequence[str]) -> None:
    """Put what was found of several sources beside the run, one line each, and the holders where most differs."""
    total = {name: sum(figures[name] for figures in by_source.values()) for name in _COUNTS}
    lines = [f"# {len(by_source)} sources, {total['in_source']:,} records compared: {in_words(total)}"]
    lines += [f"\n**{note}**" for note in notes]
    order = sorted(by_source.items(), key=lambda item: -_differing(item[1]))
    rows = [{"source": name, **figures} for name, figures in order]
    lines += ["", *_table(rows, [_SOURCE, *_COUNT_COLUMNS])]
    lines += _where(holders, [_SOURCE, *_HOLDER_COLUMNS, *_COUNT_COLUMNS])
    lines += [
        "",
        "Each source has artifacts of its own: reconcile-differences-... with examples, reconcile-places-... by day.",
    ]
    with never_stopping("the differences of all sources"):
        create_markdown_artifact("\n".join(lines), key="reconcile-differences", description="What differed")


def _differing(figures: Mapping[str, Any]) -> int:
    return sum(figures[kind] for kind in KINDS)


def _where(holders: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    differing = [row for row in holders if _differing(row)]
    if not differing:
        return []
    lines = ["", "## Where", "", *_table(differing[:_SHOWN], columns)]
    more = len(differing) - _SHOWN
    return [*lines, "", f"{more:,} more have fewer."] if more > 0 else lines


# -- tables ---------------------------------------------------------------------------------------------------


def _count_column(name: str) -> Column:
    return name.replace("_", " ").replace("dead lettered", "dead-lettered"), lambda row: f"{row[name]:,}"


def _holder(row: Mapping[str, Any]) -> str:
    if row["holder"] is None:
        return "unknown"
    return f"{row['name']} ({row['holder']})" if row["name"] else str(row["holder"])


def _span(row: Mapping[str, Any]) -> str:
    if not row["days"]:
        return "none"
    return row["first"] if row["days"] == 1 else f"{row['days']:,} from {row['first']} to {row['last']}"


_SOURCE: Column = ("source", lambda row: plural_of(row["source"]))
_DAY: Column = ("day", lambda row: row["day"] or "none")
_HOLDER_COLUMNS: list[Column] = [
    ("contract or site", _holder),
    ("team", lambda row: row["team"] or "nobody"),
    ("days", _span),
]
_COUNT_COLUMNS = [_count_column(name) for name in _COUNTS]


def _table(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column]) -> list[str]:
    shown = [[_plain(value(row)) for _, value in columns] for row in rows]
    head = [f"| {' | '.join(name for name, _ in columns)} |", "|" + "---|" * len(columns)]
    return head + [f"| {' | '.join(cells)} |" for cells in shown]


def _moves(found: Differences) -> list[str]:
    columns: list[Column] = [
        ("records", lambda row: f"{row['records']:,}"),
        ("stored for", lambda row: row["from"]),
        ("belong to", lambda row: row["to"]),
    ]
    rows = []
    for move, records in found.moves.most_common(_SHOWN_MORE):
        to = "nobody" if move.to_team is None else f"team {move.to_team}, {move.to_holder}"
        if (move.from_team, move.from_holder) == (move.to_team, move.to_holder):
            to = "the same, under another siteId"
        rows.append({"records": records, "from": f"team {move.from_team}, {move.from_holder}", "to": to})
    lines = _table(rows, columns)
    more = len(found.moves) - _SHOWN_MORE
    return [*lines, "", f"and {more:,} more"] if more > 0 else lines


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:120]
