"""Lookups: documents of figures by whose they are and their period, and figures counted from records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from tasks.domain.aggregates.periods import ALL_TIME, Calendar, Period
from tasks.domain.answers.asking import Span
from tasks.domain.answers.counting import count_staking, count_transactions, count_visits
from tasks.domain.answers.lexicon import Topic
from tasks.domain.answers.model import Found, Library, RefusedError, Scope, Stored
from tasks.domain.retrieval.filters import AnyOf, Between, Filter

#: So many records are counted for one answer: more would take longer than a question may.
MOST_RECORDS = 50_000
#: Records that an answer cites by name; it says of how many more it is.
MOST_CITED = 10


@dataclass(frozen=True, slots=True)
class Lookup:
    """Looks among one tenant's documents, on the clocks of ``zone``."""

    library: Library
    zone: str = "UTC"

    def documents(self, topic: Topic, scope: Scope, period: Period) -> list[Stored]:
        """Return the documents of figures of a topic, a scope and a period."""
        where = Filter(
            (
                AnyOf("aggregate", ("yes",)),
                AnyOf("facts.topic", (topic,)),
                AnyOf("facts.scope", (scope.kind,)),
                AnyOf("facts.label", (period.label,)),
                AnyOf("facts.timeZone", (self.zone,)),
                *scope.chosen,
            )
        )
        return [row for row in self.library.find(where, MOST_RECORDS) if is_first(row)]

    def document(self, topic: Topic, scope: Scope, span: Span) -> Found | None:
        """Return the one document of figures of a scope and a time, where there is one."""
        if span.period is None:
            return None
        rows = self.documents(topic, scope, span.period)
        if len(rows) != 1:
            return None
        facts = rows[0]["metadata"]["facts"]
        notes = () if facts.get("complete") is not False else (f"{span.words} is not over: its figures are so far",)
        return Found(replace(scope, name=facts["subject"]), facts, (rows[0],), self.window(span), notes=notes)

    def count(
        self, topic: Topic, scope: Scope, span: Span, keep: Callable[[Stored], bool] | None = None, *more: AnyOf
    ) -> Found:
        """Return the figures of the records of a scope and time, those that are kept."""
        calendar = Calendar(self.zone)
        if topic == "visits":
            source, count = "session", count_visits
        elif topic in ("transactions", "staking"):
            source, count = "transaction", count_transactions if topic == "transactions" else count_staking
        else:
            raise RefusedError(
                f"the {topic} is kept by day, week, month and for all time, and not for {span.words}",
                "one of these periods, in UTC or in a time zone that documents are made in",
            )
        rows = self.records(source, scope, span, *more)
        self.refuse_outside(topic, scope, span, rows)
        kept = [row for row in rows if keep is None or keep(row)]
        return Found(scope, {"figures": count(kept, calendar)}, tuple(kept[:MOST_CITED]), self.window(span), len(kept))

    def records(self, source: str, scope: Scope, span: Span, *more: AnyOf) -> list[Stored]:
        """Return the records of a scope and time. Raises ``RefusedError`` where they are too many to be counted."""
        between = []
        if span.start is not None or span.end is not None:
            low = float("-inf") if span.start is None else span.start.timestamp()
            high = float("inf") if span.end is None else span.end.timestamp()
            between = [Between("start", low, high, below=True)]
        chosen = (AnyOf("source", (source,)), AnyOf("aggregate", ("no",)), *scope.records, *more)
        where = Filter(chosen, tuple(between))
        number = self.library.count(where)
        if number > MOST_RECORDS:
            raise RefusedError(
                f"that would count {number:,} records, and at most {MOST_RECORDS:,} are counted for a question",
                "a shorter time, or a day, week or month as a whole, for which figures are kept",
            )
        return [row for row in self.library.find(where, MOST_RECORDS) if is_first(row)]

    def refuse_outside(self, topic: Topic, scope: Scope, span: Span, rows: Sequence[Stored]) -> None:
        """Refuse where nothing is recorded at that time: no records there is not the same as none that happened."""
        if rows or (span.start is None and span.end is None):
            if not rows:
                raise RefusedError(f"no record of {scope.name} is kept", "records of it")
            return
        whole = self.documents("visits" if topic == "visits" else "transactions", scope, ALL_TIME)
        if not whole and self.zone != "UTC":
            whole = self.in_utc().documents(topic, scope, ALL_TIME)
        known = whole[0]["metadata"]["facts"].get("window") if len(whole) == 1 else None
        if known is not None:
            first, last = aware(known["start"]), aware(known["end"])
            inside = (span.end is None or span.end > first) and (span.start is None or span.start < last)
            if inside:
                return
            said = f"a time within its records, which reach from {first:%Y-%m-%d} to {last:%Y-%m-%d}"
        else:
            said = "records of it"
        raise RefusedError(f"nothing is recorded of {scope.name} in {span.words}", said)

    def window(self, span: Span) -> str:
        """Return what a time is called, with its clocks where they are not UTC\'s."""
        return span.words if self.zone == "UTC" else f"{span.words}, {self.zone} time"

    def in_utc(self) -> Lookup:
        """Return the same on the clocks of UTC."""
        return Lookup(self.library)


def is_first(row: Stored) -> bool:
    """Return whether a row is the first chunk of its document: the chunks share their facts."""
    return str(row.get("documentId", ":0")).endswith(":0")


def aware(moment: datetime) -> datetime:
    """Return a moment in UTC; one without a zone is in it already."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
