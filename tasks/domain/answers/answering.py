"""Answering: a question for figures, from the documents of figures where they hold it, else counted from the records.

Every figure comes with the document that says it, or with the records that were counted, with its window and its unit.
What the store can't support is refused, with what would be needed: an answer about something else is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from tasks.domain.aggregates.figures import rate
from tasks.domain.aggregates.periods import ALL_TIME, Calendar
from tasks.domain.answers.asking import ALL_TIME_SPAN, Span, read_question
from tasks.domain.answers.cases import Case
from tasks.domain.answers.counting import count_visits
from tasks.domain.answers.direct import (
    LOCK_ENDS,
    answer_application,
    answer_journeys,
    answer_lock_ends,
    answer_method,
    answer_threshold,
    answer_transaction,
)
from tasks.domain.answers.lexicon import (
    BOUND,
    COMPARED,
    DIMENSIONS,
    NOT_KEPT,
    SHARE,
    Dimension,
    FigureRule,
    Topic,
    find_topic,
)
from tasks.domain.answers.lookups import Lookup
from tasks.domain.answers.model import (
    FigureAnswer,
    Found,
    Library,
    Refusal,
    RefusedError,
    Scope,
    Stored,
    name_of,
    unit_of,
)
from tasks.domain.answers.paths import NoFigureError, read_path
from tasks.domain.answers.rules import fitting, paths_of
from tasks.domain.answers.subjects import Subject, read_subjects
from tasks.domain.answers.values import keeping, said_pages, said_values, told
from tasks.domain.posted_texts import NAME as POSTED_TEXT
from tasks.domain.retrieval.filters import AnyOf, Filter
from tasks.domain.retrieval.understanding import Understood
from tasks.domain.retrieval.words import stem_of, words_of

_MOST_SUBJECTS = 2_000
#: What asks for a figure, and not for texts, wherever it stands.
_STRONG = re.compile(
    r"\b(?:how (?:many|much|often|long|busy|big|large|high)|(?<!fixed )(?<!exact )numbers? of|volumes?\b|"
    r"what number|counts? of|count\b|totals?\b|"
    r"in total|sum of|add(?:ed)? up|averages?\b|mean\b|median|percentage|per ?cent|shares? of|rates?\b|"
    r"top (?:\d|two|three|four|five|ten)|(?:which|what|where|whose|who)\b.*"
    r"\b(?:most|least|fewest|highest|lowest|largest|biggest|top|busiest|best|main|popular)|"
    r"busiest|(?:more|fewer) \w+ .{0,60}\bthan|compared?|versus|split\b|spread\b|distribution|broken down|"
    r"by (?:device|country|source)|sessions|visitors|page ?views|bounce\w*|conversions?|roi\b|retention|funnel|"
    r"web3 users|weekdays?|most (?:common|active|used|frequent|called))\b",
    re.IGNORECASE,
)
#: What asks for anything at all.
_WEAK = re.compile(
    r"^(?:what|which|where|when|who|whose|(?:on|in|at|from|by|to|of|with|for|during) (?:which|what|whom)|how|"
    r"did|does|do|has|have|is|are|was|were|will|why|should|can|could|would|give|tell|show|list)\b|\?\s*$",
    re.IGNORECASE,
)
#: Questions for causes, advice and forecasts.
_OPEN = re.compile(r"^(?:why|should|will)\b")
_TOPICS = {
    "campaign": "campaigns",
    "funnel": "the funnel",
    "staking": "staking",
    "transactions": "transactions",
    "visits": "visits",
}
_LEAST = re.compile(r"\b(?:least|fewest|lowest|smallest)\b")
_ACROSS: tuple[tuple[Literal["site", "chain", "campaign", "contract"], re.Pattern[str]], ...] = (
    (
        "site",
        re.compile(r"\b(?:which|what|whose)(?: of)?(?: (?:the|our|its|their))?(?: \w+)? (?:web ?sites?|sites?)\b"),
    ),
    (
        "chain",
        re.compile(r"\b(?:which|what)(?: of)?(?: (?:the|our|its|their))?(?: \w+)? (?:block)?(?:chains?|networks?)\b"),
    ),
    (
        "campaign",
        re.compile(r"\b(?:which|what)(?: of)?(?: (?:the|our|its|their|s|'s))*(?: \w+)?\s+(?:'s\s+)?campaigns?\b"),
    ),
    ("contract", re.compile(r"\b(?:which|what)(?: of)?(?: (?:the|our|its|their))?(?: \w+)? (?:contracts?|tokens?)\b")),
)


def answer_figures(
    understood: Understood,
    library: Library,
    *,
    now: datetime,
    subjects: Sequence[Subject] | None = None,
    over: Span = ALL_TIME_SPAN,
) -> FigureAnswer | Refusal | None:
    """Return the figures that a question asks for, or why they can't be known; None where it asks for no figures.

    ``subjects`` are what ``find_subjects`` found, which may be kept; a question that names no time is asked ``over``
    one. Errors are the library's.
    """
    question = " ".join(understood.question.split())
    strong = _STRONG.search(question) is not None
    if not strong and _WEAK.search(question) is None:
        return None
    known = find_subjects(library) if subjects is None else subjects
    asked = read_question(question, known, now=now)
    case = Case(asked, understood, known, Lookup(library, asked.zone), strong, over)
    try:
        return case.found.finish() if _answers(case) else None
    except RefusedError as error:
        return error.refusal


def find_subjects(library: Library) -> list[Subject]:
    """Return what may be asked about, from the documents of websites, contracts and campaigns."""
    where = Filter(
        (
            AnyOf("source", ("website", "smart_contract", "campaign")),
            AnyOf("aggregate", ("no",)),
            # However many texts were posted about a website, they name none.
            AnyOf("category", (POSTED_TEXT,), negated=True),
        )
    )
    return read_subjects(library.find(where, _MOST_SUBJECTS))


def _answers(case: Case) -> bool:
    """Answer, and return whether figures were asked for at all. Raises ``RefusedError`` where they can't be known."""
    said = case.asked.said
    if answer_transaction(case):
        return True
    kinds = frozenset(one.kind for named in case.asked.named for one in named.subjects)
    contracts = case.asked.subjects("contract")
    staked = not contracts or any(one.staked for one in contracts)
    topic = find_topic(said, kinds=case.told_kinds(kinds), staked=staked)
    lock_ends = LOCK_ENDS.search(said) is not None
    asked_for = case.strong or lock_ends or COMPARED.search(said) or _OPEN.search(said)
    if topic in ("transactions", "staking") and not asked_for:
        return False  # which transactions they were is told by their texts
    for kept in NOT_KEPT:
        match = kept.said.search(said)
        if match is not None and not (lock_ends and match.group().startswith("will")):
            raise RefusedError(f"{kept.reason} ({match.group().strip()})", kept.needed)
    if answer_journeys(case) or answer_application(case, topic):
        return True
    if topic == "staking" and lock_ends:
        return answer_lock_ends(case)
    rules = [] if topic is None else fitting(topic, said)
    if topic is not None:
        case.refuse_money(topic)
        if topic == "transactions" and (answer_method(case, rules) or answer_threshold(case)):
            return True
    if topic is None or not rules:
        case.refuse_strangers(())
        if case.strong:
            raise RefusedError(
                "no such figure is kept",
                "a question for visits, wallets, transactions, campaigns or staking; docs/retrieval.md lists them",
            )
        return False
    bound = BOUND.search(said)
    if bound is not None:
        raise RefusedError(f"figures are not kept by such a bound ({bound.group()})", "the question without it")
    reader = _Reader(case, topic, rules)
    across = reader.across()
    if across is not None:
        reader.compare(across)
    else:
        for scope in case.scopes(topic):
            reader.read_scope(scope)
    if not case.found.figures:
        raise RefusedError("no document holds these figures", "records over that time")
    return True


@dataclass(frozen=True, slots=True)
class _Narrowed:
    dimension: Dimension
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the figures of the rules that fit."""

    case: Case
    topic: Topic
    rules: Sequence[FigureRule]

    def read_scope(self, scope: Scope) -> None:
        """Read the figures of one scope, over each time."""
        narrowed = self._narrowed(scope)
        self.case.refuse_strangers([value for one in narrowed for value in told(one.values)])
        if self.topic != "transactions":
            self.case.refuse_unheard([value for one in narrowed for value in one.values])
        if narrowed and not self._may_be_narrowed(narrowed):
            raise RefusedError(
                f"the figures of {_TOPICS[self.topic]} are not kept by {narrowed[0].dimension.name} "
                f"({', '.join(narrowed[0].values)})",
                "the same question without it, or one for visits",
            )
        grouped = self._grouped() if self.topic == "visits" else None
        compared = COMPARED.search(self.case.asked.said) is not None
        kept = self.rules[0].reads[0].startswith("change")
        later = self.case.asked.later
        for span in [later] if later is not None and (compared or kept) else self.case.times:
            if span.assumed:
                self.case.found.notes[span.assumed] = None
            found = self.case.lookup.document(self.topic, scope, span) if not grouped else None
            if grouped is not None:
                self._read_groups(scope, span, grouped)
            elif narrowed:
                self._read_narrowed(scope, span, narrowed, found)
            elif compared and not kept:
                self._read_change(scope, span, found)
            else:
                self._read(found or self.case.lookup.count(self.topic, scope, span), span)

    def _may_be_narrowed(self, narrowed: Sequence[_Narrowed]) -> bool:
        countries = [one.dimension.name for one in narrowed] == ["country"] and "Countries" in self.rules[0].reads[0]
        return self.topic == "visits" or (self.topic == "campaign" and countries)

    def _look(self, scope: Scope, span: Span) -> Found:
        lookup = self.case.lookup
        return lookup.document(self.topic, scope, span) or lookup.count(self.topic, scope, span)

    def _read(self, found: Found, span: Span) -> None:
        for rule in self.rules:
            paths = paths_of(self.case.asked, rule, found)
            try:
                read_path(found.facts, paths[0])
                here = found
            except NoFigureError:
                if rule.reads[0].startswith("change"):
                    raise RefusedError(
                        f"the document of {found.window} compares with no period before it",
                        "a month, a week or a day whose period before has records",
                    ) from None
                here = found
                if found.counted is None and self.topic in ("visits", "transactions", "staking"):
                    here = self.case.lookup.count(self.topic, replace(found.scope), span)
                    paths = paths_of(self.case.asked, rule, here)
                if not _has(here, paths[0]):
                    raise RefusedError(
                        f"{name_of(paths[0])} are known of a day, a week or a month, and not of {here.window}",
                        "one of these periods",
                    ) from None
            self.case.found.take(here, paths)
            if rule.reads[0] == "figures.failed":
                self._share(here, read_path(here.facts, paths[0]), "figures.transactions", "failed")

    def _share(self, found: Found, part: int, whole: str, name: str) -> None:
        """Tell how many per cent of a whole a part is, where that is asked for."""
        if SHARE.search(self.case.asked.said):
            total = read_path(found.facts, whole)
            self.case.found.take(found, [whole])
            self.case.found.say(found, f"share of {name}", rate(part, total), f"{name} of {whole}", "%")

    def _read_change(self, scope: Scope, span: Span, found: Found | None) -> None:
        spans = self.case.asked.spans
        if self.case.asked.later is None and len(spans) == 2:
            for one in spans:
                self._read(self._look(scope, one), one)
            return
        if found is None or span.period is None or span.period == ALL_TIME:
            raise RefusedError(
                "a change is kept between a day, a week or a month and the one before it", "the period that is meant"
            )
        read = len(self.case.found.figures)
        for rule in self.rules:
            first = rule.reads[0].partition("[")[0].removeprefix("figures.").split(".")[0]
            self.case.found.take(found, [f"change.{first}"])
        before = span.period.previous()
        if len(self.case.found.figures) == read and before is not None:
            start, end = Calendar(self.case.lookup.zone).window(before.first, before.end)
            for one in (Span(before, start, end, before.words), span):
                self._read(self._look(scope, one), one)

    # -- countries, sources, devices, pages

    def _narrowed(self, scope: Scope) -> list[_Narrowed]:
        """Return what a question about visits narrows them to, by the values that there are."""
        if self.topic in ("transactions", "staking"):
            countries = self.case.asked.countries
            return [_Narrowed(DIMENSIONS[0], countries)] if countries else []
        sites = scope if self.topic == "visits" else Scope("site", "")
        documents = self.case.lookup.documents("visits", sites, ALL_TIME)
        if self.case.asked.zone != "UTC" and not documents:
            documents = self.case.lookup.in_utc().documents("visits", sites, ALL_TIME)
        found = []
        words = set(re.findall(r"[^\W_]+", self.case.asked.left.lower()))
        for dimension in DIMENSIONS:
            values: list[str] = []
            for row in documents:
                for path, _ in dimension.lists:
                    values += [entry[dimension.name] for entry in _entries(row["metadata"]["facts"], path)]
            if dimension.name == "country":
                chosen: tuple[str, ...] = self.case.asked.countries
            elif dimension.name == "page":
                chosen = said_pages(self.case.asked.left, words, list(dict.fromkeys(values)))
            else:
                chosen = said_values(words, list(dict.fromkeys(values)))
            if chosen:
                found.append(_Narrowed(dimension, chosen))
        return found

    def _grouped(self) -> Dimension | None:
        """Return by what a figure is to be told apart, where no document tells it so."""
        if any(
            "[:" in path
            or path.startswith(("figures.devices", "figures.browsers", "figures.systems", "figures.walletTypes"))
            for path in self.rules[0].reads
        ):
            return None
        for dimension in DIMENSIONS:
            if dimension.name == "page":
                continue
            for match in dimension.asks.finditer(self.case.asked.said):
                if re.search(
                    r"\b(?:by|per|each|every|for each|which|what)(?: \w+)?\s+$", self.case.asked.said[: match.start()]
                ):
                    return dimension
        return None

    def _read_groups(self, scope: Scope, span: Span, by: Dimension) -> None:
        found = self.case.lookup.count("visits", scope, span)
        rows = self.case.lookup.records("session", scope, span)
        groups: dict[str, list[Stored]] = {}
        for row in rows:
            value = row["metadata"]["facts"].get(by.fact)
            if isinstance(value, str):
                groups.setdefault(value, []).append(row)
        calendar = Calendar(self.case.asked.zone)
        path = self.rules[0].reads[0]
        entries = []
        for value, some in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))[:10]:
            figure = read_path({"figures": count_visits(some, calendar)}, path)
            entries.append({by.name: value, path.rpartition(".")[2]: figure, "sessions": len(some)})
        name = f"{name_of(path)} by {by.name}"
        self.case.found.say(found, name, entries, f"{path} by {by.fact}", unit_of(path, found.facts))

    def _read_narrowed(
        self,
        scope: Scope,
        span: Span,
        narrowed: Sequence[_Narrowed],
        found: Found | None,
    ) -> None:
        one = narrowed[0]
        first = self.rules[0].reads[0]
        ranked = any(first.startswith(path) for path, _ in one.dimension.lists)
        plain = first in ("figures.sessions", "figures.pageViews") or ranked or "[:" in first
        if len(narrowed) == 1 and found is not None and plain:
            of_wallets = re.search(r"\bconnect", self.case.asked.said) is not None
            path, counted = one.dimension.lists[-1 if of_wallets and len(one.dimension.lists) > 1 else 0]
            right = (one.dimension.name == "page") == (counted == "views")
            paths = [f"{path}[{one.dimension.name}={value}].{counted}" for value in one.values]
            if right and (counted == "views") == (
                self.rules[0].reads[0] == "figures.pageViews" or one.dimension.name == "page"
            ):
                try:
                    parts = [read_path(found.facts, each) for each in paths]
                    for value, each, part in zip(one.values, paths, parts, strict=True):
                        self.case.found.say(found, f"{counted} of {value}", part, each)
                    if counted == "sessions":
                        self._share(found, sum(parts), "figures.sessions", ", ".join(one.values))
                except NoFigureError:
                    pass
                else:
                    return
        if any(one.dimension.name == "page" for one in narrowed) and self.rules[0].reads[0] == "figures.pageViews":
            raise RefusedError(
                "views are kept for the ten pages that were viewed most, and that page is none of them",
                "another page, or the whole website",
            )
        for value in one.values:
            others = [(each.dimension, each.values) for each in narrowed[1:]]
            here = self.case.lookup.count("visits", scope, span, keeping([(one.dimension, (value,)), *others]))
            named = ", ".join([value, *(each for _, values in others for each in values)])
            here = replace(here, scope=replace(here.scope, name=f"{here.scope.name}, {named}"))
            self._read(here, span)

    # -- which of several

    def across(self) -> Literal["site", "chain", "campaign", "contract"] | None:
        said = self.case.asked.said
        for kind, pattern in _ACROSS:
            if not pattern.search(said):
                continue
            if kind == "campaign" and self.topic == "campaign" and not self.case.asked.subjects("campaign"):
                return kind
            if kind == "site" and self.topic in ("visits", "funnel"):
                return kind
            if kind in ("chain", "contract") and self.topic in ("transactions", "staking"):
                return kind
        return None

    def compare(self, kind: Literal["site", "chain", "campaign", "contract"]) -> None:
        self.case.refuse_strangers(())
        chosen: list[AnyOf] = []
        sites = {one.key for one in self.case.asked.subjects("site")}
        if kind == "campaign" and sites:
            chosen.append(AnyOf("site", tuple(sorted(sites))))
        if kind == "contract" and self.case.asked.chain is not None:
            chosen.append(AnyOf("chain", (self.case.asked.chain,)))
        least = _LEAST.search(self.case.asked.said) is not None
        for span in self.case.times:
            if span.period is None:
                raise RefusedError(
                    f"figures of each {kind} are kept by day, week, month and for all time, and not for {span.words}",
                    "one of these periods",
                )
            rows = self.case.lookup.documents(self.topic, Scope(kind, "", tuple(chosen)), span.period)
            scored = []
            for row in rows:
                found = Found(
                    Scope(kind, row["metadata"]["facts"]["subject"]),
                    row["metadata"]["facts"],
                    (row,),
                    self.case.lookup.window(span),
                )
                value, path = self._measure(found)
                if value is not None:
                    scored.append((value, found, path))
            if not scored:
                raise RefusedError(f"no {kind} has that figure in {span.words}", "a time with records")
            scored.sort(key=lambda item: (item[0] if least else -item[0], item[1].scope.name))
            last = scored[min(len(scored), self.case.asked.number) - 1][0]
            for value, found, path in scored:
                if value < last if not least else value > last:
                    break
                called = "chain" if kind == "chain" else "subject"
                self.case.found.say(found, kind, found.facts["chain"] if kind == "chain" else found.scope.name, called)
                self.case.found.take(found, [path])

    def _measure(self, found: Found) -> tuple[Decimal | None, str]:
        """Return what scopes are compared by: of the figures that are asked for, the one whose name is said most."""
        stems = set(words_of(self.case.asked.said))
        best: tuple[int, Decimal | None, str] = (-1, None, "")
        for rule in self.rules:
            for path in paths_of(self.case.asked, rule, found):
                try:
                    value = Decimal(str(read_path(found.facts, path)))
                except (NoFigureError, ArithmeticError):
                    continue
                said = sum(stem_of(word) in stems for word in name_of(path).split())
                if said > best[0]:
                    best = (said, value, path)
        return best[1], best[2]


def _has(found: Found, path: str) -> bool:
    try:
        read_path(found.facts, path)
    except NoFigureError:
        return False
    return True


def _entries(facts: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    try:
        found = read_path(facts, path)
    except NoFigureError:
        return []
    return found if isinstance(found, list) else []
