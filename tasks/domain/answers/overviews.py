"""Overview: what a dashboard shows for a question about a website or its team: figures, charts, tables, observations.

Figures come from the documents of figures, charts from those of days or months; a time that is none of theirs is
counted from the records, or added up from days where there are too many. Values in charts are numbers for drawing;
exact amounts stand in figures and tables, as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.domain.aggregates.periods import ALL_TIME, Period
from tasks.domain.answers.asking import ALL_TIME_SPAN, Span, read_question
from tasks.domain.answers.cases import Case
from tasks.domain.answers.lexicon import Topic, find_topic
from tasks.domain.answers.lookups import Lookup, is_first
from tasks.domain.answers.model import Found, Library, RefusedError, Scope, Stored
from tasks.domain.answers.paths import NoFigureError, read_path
from tasks.domain.answers.subjects import Subject
from tasks.domain.errors import InputError
from tasks.domain.retrieval.filters import AnyOf, Between, Filter
from tasks.domain.retrieval.timeframes import find_time_frames
from tasks.domain.retrieval.understanding import Understood

#: The application's words for a time that ends today, in whole days.
_TRAILING = {"24h": 1, "7d": 7, "30d": 30, "90d": 90, "1y": 365, "week": 7, "month": 30, "quarter": 90, "year": 365}
_BEFORE_OR_AFTER = re.compile(r"(before|after)[:= ]\s*(.+)", re.IGNORECASE)
#: A chart by days holds at most so many; a longer time is shown by months.
_MOST_DAYS = 92
_MOST_MONTHS = 600
_MOST_CAMPAIGNS = 200
_SHOWN = 10

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Overview:
    """``insights`` are sentences, ``cited`` the stored documents that it rests on, ``window`` is over which time."""

    window: str
    metrics: tuple[Row, ...] = ()
    visualizations: tuple[Row, ...] = ()
    tables: tuple[Row, ...] = ()
    insights: tuple[str, ...] = ()
    cited: tuple[Stored, ...] = ()


@dataclass(frozen=True, slots=True)
class _Metric:
    title: str
    path: str
    #: Figures of days that may be added up.
    additive: bool = True


_METRICS: Mapping[Topic, tuple[_Metric, ...]] = {
    "visits": (
        _Metric("Sessions", "figures.sessions"),
        _Metric("Visitors", "figures.visitors", additive=False),
        _Metric("Page views", "figures.pageViews"),
        _Metric("Bounce rate (%)", "figures.bounceRate", additive=False),
        _Metric("Web3 users", "figures.web3Users", additive=False),
        _Metric("Visits that connected a wallet", "figures.walletConnections"),
    ),
    "transactions": (
        _Metric("Transactions", "figures.transactions"),
        _Metric("Wallets", "figures.wallets", additive=False),
        _Metric("Failed", "figures.failed"),
        _Metric("Gas used", "figures.gas.total", additive=False),
    ),
    "funnel": (
        _Metric("Visitors", "figures.visitors", additive=False),
        _Metric("Visitors who connected a wallet (%)", "figures.visitorToWalletRate", additive=False),
        _Metric("Wallets that transacted", "figures.transactedWallets", additive=False),
        _Metric("Connected wallets that transacted (%)", "figures.walletToTransactionRate", additive=False),
    ),
    "campaign": (),
    "staking": (
        _Metric("Staking calls", "figures.calls"),
        _Metric("Wallets that locked", "figures.lockingWallets", additive=False),
        _Metric("Wallets that withdrew", "figures.withdrawingWallets", additive=False),
    ),
}
#: The chart over time: its type, its title and the figures of its lines.
_SERIES: Mapping[Topic, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "visits": (
        "multiLine",
        "Sessions and visitors",
        (("sessions", "figures.sessions"), ("visitors", "figures.visitors")),
    ),
    "transactions": (
        "multiBar",
        "Transactions by status",
        (("succeeded", "figures.succeeded"), ("failed", "figures.failed"), ("unknown", "figures.statusUnknown")),
    ),
    "funnel": (
        "composed",
        "From visit to wallet to transaction",
        (
            ("visitors", "figures.visitors"),
            ("connected", "figures.walletUsers"),
            ("transacted", "figures.transactedWallets"),
        ),
    ),
    "staking": ("area", "Staking calls", (("calls", "figures.calls"),)),
}
#: Charts and tables of rankings: the topic, the type (None for a table), the title, the list, its name and its number.
_RANKINGS: tuple[tuple[Topic, str | None, str, str, str, str], ...] = (
    ("visits", "pie", "Devices", "figures.devices", "device", "sessions"),
    ("visits", "multiBar", "Countries", "figures.topCountries", "country", "sessions"),
    ("visits", None, "Top pages", "figures.topPages", "page", "views"),
    ("visits", None, "Sources", "figures.topSources", "source", "sessions"),
    ("transactions", "pie", "Kinds of transactions", "figures.categories", "category", "transactions"),
    ("transactions", None, "Most called methods", "figures.topMethods", "method", "transactions"),
    ("transactions", None, "Volume by unit", "figures.volumes", "unit", "amount"),
    ("transactions", None, "Most active wallets", "figures.topWallets", "wallet", "transactions"),
    ("staking", None, "Escrow contracts", "figures.stakes", "contractId", "locked"),
)


def read_time_frame(words: str, *, now: datetime) -> Span:
    """Return the time that the application's word means: ``30d`` is today and the 29 days before it, in UTC.

    Raises ``InputError`` for words that name no time, or several.
    """
    said = words.strip().lower()
    today = datetime(now.year, now.month, now.day, tzinfo=UTC)
    if said in ("all", "all time", ""):
        return ALL_TIME_SPAN
    if said in ("today", "yesterday"):
        start = today - timedelta(days=said == "yesterday")
        period = Period.of("day", start.date())
        return Span(period, start, start + timedelta(days=1), period.words)
    if said in _TRAILING:
        days = _TRAILING[said]
        return Span(None, today - timedelta(days=days - 1), today + timedelta(days=1), f"the last {days} days")
    bound = _BEFORE_OR_AFTER.fullmatch(said)
    try:
        if bound is not None:
            moment = datetime.fromisoformat(bound[2].upper().replace("Z", "+00:00"))
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
            before = bound[1] == "before"
            return Span(None, None if before else moment, moment if before else None, said)
    except ValueError:
        pass
    found = find_time_frames(words, now=now)
    if len(found) != 1:
        raise InputError(
            f"{words[:40]!r} is no time: write 24h, 7d, 30d, 1y, today, yesterday, week, month, quarter, all, "
            "before:2025-06-01 or after:2025-06-01"
        )
    (frame,) = found
    if frame.label is not None:
        period = Period.from_label(frame.label)
        return Span(period, frame.start, frame.end, period.words)
    return Span(None, frame.start, frame.end, str(frame))


def make_overview(
    understood: Understood, library: Library, subjects: Sequence[Subject], chosen: Span, *, now: datetime
) -> Overview:
    """Return what is shown for a question; a time that it names goes before ``chosen``. Errors are the library's.

    Nothing is shown of what nothing is recorded of; ``insights`` say so.
    """
    asked = read_question(understood.question, subjects, now=now)
    case = Case(asked, understood, subjects, Lookup(library, asked.zone), strong=False)
    kinds = frozenset(one.kind for named in asked.named for one in named.subjects)
    topic = find_topic(asked.said, kinds=case.told_kinds(kinds))
    span = asked.spans[-1] if asked.spans else chosen
    making = _Making(case, span)
    topics: tuple[Topic, ...] = ("visits", "transactions") if topic is None else (topic,)
    for one in topics:
        making.add(one)
    return making.finish()


@dataclass(slots=True)
class _Making:
    case: Case
    span: Span
    metrics: list[Row] = field(default_factory=list)
    charts: list[Row] = field(default_factory=list)
    tables: list[Row] = field(default_factory=list)
    insights: list[str] = field(default_factory=list)
    cited: dict[str, Stored] = field(default_factory=dict)

    def add(self, topic: Topic) -> None:
        """Add what is shown of a topic; where nothing is recorded, an insight says so."""
        try:
            if topic == "campaign":
                self._campaigns()
                return
            for scope in self.case.scopes(topic)[:1]:
                self._whole(topic, scope)
                self._series(topic, scope)
        except RefusedError as error:
            self.insights.append(_sentence(error.refusal.reason))

    def finish(self) -> Overview:
        """Return it."""
        return Overview(
            self.case.lookup.window(self.span),
            tuple(self.metrics),
            tuple(self.charts),
            tuple(self.tables),
            tuple(self.insights),
            tuple(self.cited.values()),
        )

    def _whole(self, topic: Topic, scope: Scope) -> None:
        lookup, span = self.case.lookup, self.span
        found = lookup.document(topic, scope, span)
        before: Found | None = None
        if found is None and topic == "funnel":
            found = lookup.document(topic, scope, ALL_TIME_SPAN)
            if found is None:
                raise RefusedError(f"no funnel of {scope.name} is kept", "visits of it")
            self.insights.append("The funnel is kept by day, week, month and for all time: this is that of all time.")
        elif found is None:
            try:
                found = lookup.count(topic, scope, span)
                before = self._before(topic, scope)
            except RefusedError:
                found = self._added(topic, scope)
                if found is None:
                    raise
        for metric in _METRICS[topic]:
            self._metric(metric, found, before)
        for of_topic, kind, title, path, name, number in _RANKINGS:
            if of_topic == topic:
                self._ranking(kind, title, found, path, name, number)
        self.cited |= {row["documentId"]: row for row in found.cited}

    def _added(self, topic: Topic, scope: Scope) -> Found | None:
        """Return the figures of days or months that may be added up, where they are too many records to count."""
        rows = self._days(topic, scope)
        figures: Row = {}
        for metric in _METRICS[topic]:
            if metric.additive:
                parts = [_read(Found(scope, row["metadata"]["facts"], (row,), ""), metric.path) for row in rows]
                figures[metric.path.removeprefix("figures.")] = sum(part or 0 for part in parts)
        if not rows:
            return None
        self.insights.append("There are too many records to count: figures that can be added up are those of its days.")
        return Found(scope, {"figures": figures}, tuple(rows[:_SHOWN]), self.case.lookup.window(self.span))

    def _before(self, topic: Topic, scope: Scope) -> Found | None:
        """Return the figures of the time of the same length before, where there are any."""
        start, end = self.span.start, self.span.end
        if start is None or end is None:
            return None
        try:
            return self.case.lookup.count(topic, scope, Span(None, start - (end - start), start, "the time before"))
        except RefusedError:
            return None

    def _metric(self, metric: _Metric, found: Found, before: Found | None) -> None:
        value = _read(found, metric.path)
        if value is None:
            return
        kept = _read(found, "change." + metric.path.removeprefix("figures."))
        change = kept.get("percent") if isinstance(kept, Mapping) else None
        if change is None and before is not None:
            change = _percent(value, _read(before, metric.path))
        self.metrics.append({"title": metric.title, "value": value, "change": change})
        if change is not None and metric.additive:
            up = "down" if str(change).startswith("-") else "up"
            self.insights.append(
                f"{metric.title}: {value}, {up} {str(change).lstrip('-')} % against the time before of the same length."
            )

    def _ranking(self, kind: str | None, title: str, found: Found, path: str, name: str, number: str) -> None:
        entries = (_read(found, path) or [])[:_SHOWN]
        if not entries:
            return
        window = f"{found.scope.name}, {found.window}"
        if kind is None:
            columns = [{"key": name, "label": name.capitalize()}, {"key": number, "label": number.capitalize()}]
            rows = [{name: entry.get(name), number: entry.get(number)} for entry in entries]
            self.tables.append({"title": title, "description": window, "columns": columns, "data": rows})
        else:
            data = [{"name": entry[name], "value": entry[number]} for entry in entries]
            self.charts.append({"type": kind, "title": title, "description": window, "data": data})

    def _series(self, topic: Topic, scope: Scope) -> None:
        if topic not in _SERIES:
            return
        kind, title, lines = _SERIES[topic]
        rows = self._days(topic, scope)
        data = []
        for row in rows:
            facts = row["metadata"]["facts"]
            found = Found(scope, facts, (row,), "")
            data.append({"name": facts["label"], **{name: _read(found, path) or 0 for name, path in lines}})
        if data:
            by = "month" if len(data[0]["name"]) == len("2025-06") else "day"
            window = f"{scope.name}, by {by}, {self.case.lookup.window(self.span)}"
            self.charts.insert(0, {"type": kind, "title": title, "description": window, "data": data})

    def _days(self, topic: Topic, scope: Scope) -> list[Stored]:
        start, end = self.span.start, self.span.end
        by_days = start is not None and end is not None and end - start <= timedelta(days=_MOST_DAYS)
        low = float("-inf") if start is None else start.timestamp()
        high = float("inf") if end is None else end.timestamp()
        where = Filter(
            (
                AnyOf("aggregate", ("yes",)),
                AnyOf("facts.topic", (topic,)),
                AnyOf("facts.scope", (scope.kind,)),
                AnyOf("facts.period", ("day" if by_days else "month",)),
                AnyOf("facts.timeZone", (self.case.lookup.zone,)),
                *scope.chosen,
            ),
            (Between("start", low, high, below=True),),
        )
        rows = self.case.lookup.library.find(where, _MOST_MONTHS)
        return sorted((row for row in rows if is_first(row)), key=lambda row: str(row["metadata"]["facts"]["label"]))

    def _campaigns(self) -> None:
        lookup = self.case.lookup
        sites = {one.key for one in self.case.asked.subjects("site")}
        named = {one.key for one in self.case.asked.subjects("campaign")}
        chosen = [AnyOf("facts.campaignId", tuple(sorted(named)))] if named else []
        chosen += [AnyOf("site", tuple(sorted(sites)))] if sites else []
        period = self.span.period or ALL_TIME
        rows = lookup.documents("campaign", Scope("campaign", "", tuple(chosen)), period)[:_MOST_CAMPAIGNS]
        if not rows:
            raise RefusedError("no campaign has figures at that time", "campaigns with visits")
        shown = []
        for row in rows:
            facts = row["metadata"]["facts"]
            found = Found(Scope("campaign", facts["subject"]), facts, (row,), period.words)
            shown.append(
                {
                    "campaign": facts["subject"],
                    **{name: _read(found, path) for name, path in _OF_A_CAMPAIGN},
                }
            )
        shown.sort(key=lambda one: (-(one["visitors"] or 0), one["campaign"]))
        description = f"{period.words}; amounts in the currency of each"
        columns = [{"key": name, "label": name.capitalize()} for name in shown[0]]
        self.tables.append({"title": "Campaigns", "description": description, "columns": columns, "data": shown})
        drawn = [
            {"name": one["campaign"], "visitors": one["visitors"], "conversions": one["conversions"]}
            for one in shown[:_SHOWN]
        ]
        self.charts.append(
            {"type": "composed", "title": "Visitors and conversions", "description": period.words, "data": drawn}
        )
        priced = [one for one in shown if one["cost"] is not None and one["conversions"] is not None]
        for currency in sorted({str(one["currency"]) for one in priced}):
            points = [
                {"name": one["campaign"], "x": float(one["cost"]), "y": one["conversions"]}
                for one in priced
                if str(one["currency"]) == currency
            ]
            self.charts.append(
                {
                    "type": "scatter",
                    "title": f"Cost and conversions, {currency}",
                    "description": period.words,
                    "data": points,
                }
            )
        best = shown[0]
        self.metrics.append({"title": "Campaigns", "value": len(shown), "change": None})
        self.insights.append(f"Most visitors came through {best['campaign']}: {best['visitors']}.")
        self.cited |= {row["documentId"]: row for row in rows[:_SHOWN]}


_OF_A_CAMPAIGN = (
    ("visitors", "figures.visitors"),
    ("wallets", "figures.wallets"),
    ("conversions", "figures.conversions"),
    ("cost", "figures.cost.amount"),
    ("currency", "figures.cost.currency"),
    ("return", "figures.cost.roi"),
)


def _read(found: Found, path: str) -> Any:
    try:
        return read_path(found.facts, path)
    except NoFigureError:
        return None


def _percent(now: Any, before: Any) -> str | None:
    """Return the change in per cent with two decimals at most; None where there is nothing to compare with."""
    if not isinstance(now, int) or not isinstance(before, int) or not before:
        return None
    change = round((now - before) * 100 / before, 2)
    return f"{change:g}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
