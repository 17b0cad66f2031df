"""The documents that the golden set makes, by the pure functions of the domain: of all rows, and of aggregates."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, TypeVar

import bson
from bson.codec_options import CodecOptions

from tasks.domain.aggregates.campaigns import Attribution
from tasks.domain.aggregates.compiling import Aggregate, put_together
from tasks.domain.aggregates.describe import (
    describe_campaign,
    describe_funnel,
    describe_staking,
    describe_transactions,
    describe_visits,
)
from tasks.domain.aggregates.moves import MoveDays, Moves
from tasks.domain.aggregates.newcomers import count_newcomers
from tasks.domain.aggregates.periods import ALL_TIME, LEVELS, Calendar, Level, Period
from tasks.domain.aggregates.scopes import PartialKey, Scope
from tasks.domain.aggregates.subjects import (
    Subject,
    campaign_subject,
    chain_subject,
    contract_subject,
    site_subject,
    team_subject,
)
from tasks.domain.aggregates.transactions import TransactionDays, TransactionFigures
from tasks.domain.aggregates.visits import VisitDays, VisitFigures
from tasks.domain.documents import Document
from tasks.domain.errors import RecordError
from tasks.domain.registry import OF_THE_STORE, PLURALS, find_source
from tasks.domain.rows import document_id, encode_head
from tests.golden import KEY, NOW_MS, Golden

UTC_ALONE = ("UTC",)
#: Says of a scope and a period whether its documents are made.
Wanted = Callable[[Scope, Period], bool]
F = TypeVar("F", TransactionFigures, VisitFigures)


def documents_of(golden: Golden, zones: Sequence[str] = UTC_ALONE, wanted: Wanted | None = None) -> list[Document]:
    """Return the documents of all records, and those of their aggregates on the clocks of these zones: of all of them,
    46,140 in each zone, or of those that are ``wanted``."""
    documents = list(row_documents(golden))
    for zone in zones:
        documents.extend(aggregate_documents(golden, zone, wanted))
    return documents


def stored_of(documents: Iterable[Document]) -> Iterator[dict[str, Any]]:
    """Yield each document as it comes back from ``vectordocuments``, whole in its first chunk; it has no embedding.

    Of documents with one id the last is stored, as by an upsert.
    """
    options: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True)
    by_id = {document_id(document.key, 0): document for document in documents}
    for stored_id, document in by_id.items():
        head = encode_head(document)
        fields = bson.decode(struct.pack("<i", 4 + len(head) + 1) + head + b"\0", options)
        yield {"documentId": stored_id, "content": document.content, **fields}


def row_documents(golden: Golden) -> Iterator[Document]:
    """Yield the document of each record of each source, and of each part of a record that holds several."""
    for name in PLURALS.values():
        if name in OF_THE_STORE:  # its records are made by us
            continue
        source = find_source(name, KEY)
        for record in golden.records[source.collection]:
            try:
                for part in source.split(record) if source.split is not None else (record,):
                    try:
                        yield source.describe(part, golden.owners, NOW_MS)
                    except RecordError:
                        continue
            except RecordError:
                continue


def aggregate_documents(golden: Golden, zone: str = "UTC", wanted: Wanted | None = None) -> Iterator[Document]:
    """Yield the documents of all figures: of those scopes and periods that are ``wanted``."""
    figures = GoldenFigures(golden, zone)
    yield from figures.of_transactions(wanted)
    yield from figures.of_visits(wanted)


class GoldenFigures:
    """The golden set as the days of figures that a run would store, and the documents that they make."""

    def __init__(self, golden: Golden, zone: str) -> None:
        self._golden, self._calendar = golden, Calendar(zone)
        transactions, visits = TransactionDays(self._calendar), VisitDays(self._calendar)
        for transaction in golden.transactions:
            transactions.add(transaction)
        attribution = Attribution(golden.campaigns)
        for visit in golden.visits:
            visits.add(visit, attribution.find(visit))
        self._transactions = _by_scope(transactions.finish())
        self._visits = _by_scope(visits.finish())
        team_of = {site_id: site.team_id for site_id, site in golden.owners.by_site_id.items() if site.team_id}
        wallets: dict[str, set[str]] = defaultdict(set)
        for visit in golden.visits:
            if visit.wallet is not None:
                wallets[team_of[visit.site_id]].add(visit.wallet)
        moves = MoveDays(self._calendar, wallets)
        for transaction in golden.transactions:
            moves.add(transaction)
        by_team: dict[str, list[Moves]] = defaultdict(list)
        for key, found in moves.finish():
            by_team[key.scope.holder_id].append(found)
        self._moves = {team_id: Moves.merged(parts) for team_id, parts in by_team.items()}

    def of_transactions(self, wanted: Wanted | None = None) -> Iterator[Document]:
        """Yield the documents of contracts, of chains and of teams."""
        owners, sites = self._golden.owners, {row.team_id: row.site_id for row in self._golden.transactions}
        teams: dict[str, list[tuple[date | None, TransactionFigures]]] = defaultdict(list)
        for scope, parts in self._transactions.items():
            if scope.kind == "chain":
                teams[scope.holder_id].extend(parts)
                chain = None if scope.part == "unknown" else scope.part
                subject = chain_subject(scope.holder_id, sites[scope.holder_id], chain)
            else:
                subject = contract_subject(owners.by_contract_id[scope.holder_id])
            yield from self._told(subject, parts, wanted)
        for team_id, parts in teams.items():
            yield from self._told(team_subject(team_id, sites[team_id]), parts, wanted)

    def _told(
        self, subject: Subject, parts: Sequence[tuple[date | None, TransactionFigures]], wanted: Wanted | None
    ) -> Iterator[Document]:
        newcomers = count_newcomers((day, figures.senders) for day, figures in parts if day is not None)
        for aggregate in self._periods(subject, parts, newcomers, TransactionFigures, wanted):
            yield describe_transactions(aggregate)
            staking = describe_staking(aggregate)
            if staking is not None:
                yield staking

    def of_visits(self, wanted: Wanted | None = None) -> Iterator[Document]:
        """Yield the documents of websites, of teams with several of them, and of campaigns."""
        owners, campaigns = self._golden.owners, {campaign.campaign_id: campaign for campaign in self._golden.campaigns}
        teams: dict[str, list[tuple[date | None, VisitFigures]]] = defaultdict(list)
        sites_of: dict[str, int] = defaultdict(int)
        for site in owners.by_site_id.values():
            sites_of[site.team_id or ""] += site.owner_error is None
        for scope, parts in self._visits.items():
            site = owners.by_site_id[scope.holder_id]
            moves = self._moves.get(site.team_id or "", Moves())
            newcomers = count_newcomers((day, figures.visitors) for day, figures in parts if day is not None)
            if scope.kind == "campaign":
                campaign = campaigns[scope.part]
                subject = campaign_subject(site, campaign)
                for aggregate in self._periods(subject, parts, newcomers, VisitFigures, wanted):
                    yield describe_campaign(aggregate, campaign, moves)
                continue
            teams[site.team_id or ""].extend(parts)
            for aggregate in self._periods(site_subject(site), parts, newcomers, VisitFigures, wanted):
                yield describe_visits(aggregate)
                yield describe_funnel(aggregate, moves)
        for team_id, parts in teams.items():
            if sites_of[team_id] > 1:
                newcomers = count_newcomers((day, figures.visitors) for day, figures in parts if day is not None)
                subject = team_subject(team_id, of="websites")
                for aggregate in self._periods(subject, parts, newcomers, VisitFigures, wanted):
                    yield describe_visits(aggregate)
                    yield describe_funnel(aggregate, self._moves.get(team_id, Moves()))

    def _periods(
        self,
        subject: Subject,
        parts: Sequence[tuple[date | None, F]],
        newcomers: Mapping[date, int],
        kind: type[F],
        wanted: Wanted | None,
    ) -> Iterator[Aggregate[F]]:
        for level in LEVELS:
            by_period = _by_period(parts, level)
            for period, mine in by_period.items():
                if wanted is not None and not wanted(subject.scope, period):
                    continue
                previous = period.previous()
                near = [*mine, *(by_period.get(previous, ()) if previous is not None else ())]
                aggregate = put_together(subject, period, self._calendar, near, newcomers, kind=kind, now_ms=NOW_MS)
                if aggregate is not None:
                    yield aggregate


def _by_scope(days: Iterable[tuple[PartialKey, F]]) -> dict[Scope, list[tuple[date | None, F]]]:
    found: dict[Scope, list[tuple[date | None, F]]] = defaultdict(list)
    for key, figures in days:
        found[key.scope].append((key.day, figures))
    return found


def _by_period(parts: Iterable[tuple[date | None, F]], level: Level) -> dict[Period, list[tuple[Period | None, F]]]:
    found: dict[Period, list[tuple[Period | None, F]]] = defaultdict(list)
    for day, figures in parts:
        if day is not None:
            found[Period.of(level, day)].append((Period.of("day", day), figures))
        elif level == "all":
            found[ALL_TIME].append((None, figures))
    return found
