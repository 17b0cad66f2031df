"""A reader of vector documents, who has nothing else: stored rows in, the figures that a question asks for out.

It chooses documents as a retrieval can: by team, site, source type, level, time frame, tags and exact facts. Names of
contracts and campaigns are looked up in the documents of contracts and campaigns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

from tasks.domain.aggregates.periods import Calendar, Period
from tasks.domain.answers.paths import NoFigureError, read_path

Stored = Mapping[str, Any]
#: ``sorted`` puts the answers of several documents in order; ``most`` and ``least`` leave the one whose last figure is
#: the largest or the smallest; ``count`` says how many there are.
Choice = Literal["one", "sorted", "most", "least", "count"]


class UnansweredError(Exception):
    """No document holds the answer, or several do where one was asked for."""


@dataclass(frozen=True)
class Look:
    """Which documents a question is answered from. What is None chooses nothing.

    ``site``, ``team``, ``contract`` and ``campaign`` are names, ``period`` is a label (2025-06-03, 2025-W23, 2025-06,
    all) on the clocks of ``zone``. ``metric`` is ``metadata.metricType`` of an aggregate; without it, rows are meant,
    of the source whose documents are ``source_type`` with that ``category``. ``between`` are days, the first inside and
    the second not, in which the time frame of a row begins.
    """

    metric: str | None = None
    period: str | None = None
    site: str | None = None
    team: str | None = None
    contract: str | None = None
    chain: str | None = None
    campaign: str | None = None
    scope: str | None = None
    zone: str = "UTC"
    source_type: str | None = None
    category: str | None = None
    tag: str | None = None
    between: tuple[str, str] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A question with where its answer lies. ``kind`` is a class of questions that analysts ask.

    ``read`` are paths into the facts of each document that ``look`` finds; ``figures.topPages[:3]`` takes the first
    three of a list, ``[0]`` the first, ``[unit=ETH]`` the entry with that value, ``[*].unit`` a value of each entry.
    ``answer`` is that of the golden set of seed 1: a value for each path, in a list where ``choose`` sorts them.
    """

    number: int
    kind: str
    text: str
    look: Look
    read: tuple[str, ...]
    answer: Any
    choose: Choice = "one"


class Reader:
    """Holds stored documents, by what they are looked up with. ``sites`` and ``teams`` are the asker's own, by name."""

    def __init__(self, stored: Iterable[Stored], *, sites: Mapping[str, str], teams: Mapping[str, str]) -> None:
        self._sites, self._teams = sites, teams
        self._aggregates: dict[tuple[str, str, str], list[Stored]] = defaultdict(list)
        self._rows: dict[str, list[Stored]] = defaultdict(list)
        for row in stored:
            # Chunks of one document share its facts.
            if not str(row.get("documentId", ":0")).endswith(":0"):
                continue
            facts = row["metadata"].get("facts", {})
            if facts.get("aggregate"):
                self._aggregates[facts["topic"], facts["label"], facts["timeZone"]].append(row)
            else:
                self._rows[row["sourceType"]].append(row)

    def answer(self, question: Question) -> Any:
        """Return what the documents say. Raises ``UnansweredError`` where they don't."""
        found = self.find(question.look)
        answers = [tuple(_moment(read(row["metadata"]["facts"], path)) for path in question.read) for row in found]
        if question.choose == "count":
            return len(answers)
        if not answers:
            raise UnansweredError("no document is about that")
        if question.choose == "sorted":
            return sorted(answers)
        if question.choose in ("most", "least"):
            answers.sort(key=lambda values: Decimal(str(values[-1])), reverse=question.choose == "most")
            if len(answers) > 1 and answers[0][-1] == answers[1][-1]:
                raise UnansweredError("two documents are equal in what is compared")
            return answers[0]
        if len(answers) > 1:
            raise UnansweredError(f"{len(answers)} documents are about that")
        return answers[0]

    def find(self, look: Look) -> list[Stored]:
        """Return the documents that were asked for."""
        wanted: dict[str, Any] = dict(look.facts)
        if look.contract is not None:
            wanted["contractId"] = self._contract(look.contract, look.chain)
        elif look.chain is not None:
            wanted["chain"] = look.chain
        if look.campaign is not None:
            wanted["campaignId"] = self._campaign(look.campaign)
        if look.metric is not None:
            wanted["scope"] = look.scope or _scope(look)
            rows = self._aggregates[look.metric, look.period or "all", look.zone]
        else:
            rows = self._rows[look.source_type or ""]
        return [row for row in rows if self._fits(row, look, wanted)]

    def _fits(self, row: Stored, look: Look, wanted: Mapping[str, Any]) -> bool:
        metadata = row["metadata"]
        facts = metadata.get("facts", {})
        return (
            (look.site is None or row["siteId"] == self._sites[look.site])
            and (look.team is None or str(row["teamId"]) == self._teams[look.team])
            and (look.source_type is None or row["sourceType"] == look.source_type)
            and (look.category is None or metadata.get("category") == look.category)
            and (look.tag is None or look.tag in metadata["tags"])
            and all(facts.get(name) == value for name, value in wanted.items())
            and (look.between is None or _begins_in(metadata, *look.between))
            and (look.metric is None or says_its_window(row, look))
        )

    def _contract(self, name: str, chain: str | None) -> str:
        found = [
            row["metadata"]["facts"]["contractId"]
            for row in self._rows["smart_contract"]
            if row["metadata"]["facts"].get("name") == name and chain in (None, row["metadata"]["facts"].get("chain"))
        ]
        if len(found) != 1:
            raise UnansweredError(f"{len(found)} contracts are called {name} on {chain or 'any chain'}")
        contract_id: str = found[0]
        return contract_id

    def _campaign(self, name: str) -> str:
        found = [str(row["sourceId"]) for row in self._rows["campaign"] if row["metadata"]["facts"].get("name") == name]
        if len(found) != 1:
            raise UnansweredError(f"{len(found)} campaigns are called {name}")
        return found[0]


def put_all(questions: Iterable[Question], reader: Reader) -> dict[int, str]:
    """Return what is wrong with the answers to these questions, by their numbers."""
    wrong = {}
    for question in questions:
        try:
            found = reader.answer(question)
        except UnansweredError as error:
            wrong[question.number] = f"{question.text} {error}"
            continue
        if found != question.answer:
            wrong[question.number] = f"{question.text} {found}, and not {question.answer}"
    return wrong


def read(facts: Mapping[str, Any], path: str) -> Any:
    """Return the value that a path leads to. Raises ``UnansweredError`` where there is none."""
    try:
        return read_path(facts, path)
    except NoFigureError as error:
        raise UnansweredError(str(error)) from None


def says_its_window(row: Stored, look: Look) -> bool:
    """Return whether an aggregate's metadata says over which time its figures are: that of the period asked for."""
    metadata = row["metadata"]
    frame, facts = metadata.get("timeframe"), metadata["facts"]
    if frame is None or "window" not in facts or _utc(facts["window"]["start"]) != _utc(frame["start"]):
        return False
    period = Period.from_label(look.period or "all")
    if period.level == "all":
        return "aggregationLevel" not in metadata
    window = Calendar(look.zone).window(period.first, period.end)
    level = {"day": "daily", "week": "weekly", "month": "monthly"}[period.level]
    return (_utc(frame["start"]), _utc(frame["end"])) == window and metadata["aggregationLevel"] == level


def _scope(look: Look) -> str:
    if look.campaign is not None:
        return "campaign"
    if look.contract is not None:
        return "contract"
    if look.chain is not None:
        return "chain"
    return "site" if look.site is not None else "team"


def _begins_in(metadata: Mapping[str, Any], first: str, end: str) -> bool:
    start = metadata.get("timeframe", {}).get("start")
    return start is not None and first <= _utc(start).strftime("%Y-%m-%d") < end


def _moment(value: Any) -> Any:
    """Return a moment as one in UTC: a client may read it without its zone."""
    return _utc(value) if isinstance(value, datetime) else value


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
