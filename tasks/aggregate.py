"""Aggregate: which days' rows changed, their figures from the rows, and the documents that tell those figures."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from hashlib import blake2b
from typing import Any

from prefect import get_run_logger, task

from blocks.aggregates import AggregateStore, UnitFigures, Written
from blocks.mongo import MongoSource
from blocks.records import Records, open_records
from blocks.vector_store import VectorStore
from tasks.domain.aggregates.campaigns import Attribution, TrackedCampaign, read_campaign
from tasks.domain.aggregates.compiling import put_together
from tasks.domain.aggregates.describe import (
    describe_campaign,
    describe_funnel,
    describe_staking,
    describe_transactions,
    describe_visits,
)
from tasks.domain.aggregates.moves import MoveDays, Moves
from tasks.domain.aggregates.newcomers import changed_days, count_newcomers
from tasks.domain.aggregates.periods import Calendar, Period
from tasks.domain.aggregates.scopes import (
    AGGREGATES_VERSION,
    UNKNOWN_CHAIN,
    AggregateKey,
    PartialKey,
    PartialTopic,
    Scope,
    Topic,
)
from tasks.domain.aggregates.storage import Figures
from tasks.domain.aggregates.subjects import (
    Subject,
    campaign_subject,
    chain_subject,
    contract_subject,
    site_subject,
    team_subject,
)
from tasks.domain.aggregates.tallies import Tally
from tasks.domain.aggregates.touched import touched_periods
from tasks.domain.aggregates.transactions import TransactionDays, TransactionFigures
from tasks.domain.aggregates.units import Reading, Readings, RowDigests, TransactionUnits, Unit, UnitKey
from tasks.domain.aggregates.visits import VisitDays, VisitFigures, read_visit
from tasks.domain.aggregates.walking import walk
from tasks.domain.campaigns import parse_campaign
from tasks.domain.dead_letters import record_key
from tasks.domain.documents import Document
from tasks.domain.errors import RecordError
from tasks.domain.owners import Owners
from tasks.domain.sessions import Session, parse_session
from tasks.domain.shards import ShardRange
from tasks.domain.transactions import parse_transaction
from tasks.policy import STAGE

_EVERYTHING = ShardRange(0, None, None, 0)
_DOCUMENTS_AT_ONCE = 500
_SEAL_BYTES = 16
#: What documents tell of a scope, by the family of the figures that they tell.
TOPICS: dict[str, tuple[Topic, ...]] = {
    "transactions": ("transactions", "staking"),
    "visits": ("visits", "funnel", "campaign"),
}
Wallets = Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Visited:
    """What looking at all sessions showed; ``wallets`` are those that websites know, by team."""

    readings: Readings
    wallets: Wallets
    campaigns: tuple[TrackedCampaign, ...]


@dataclass(frozen=True, slots=True)
class Withheld:
    """The ``record_key`` of records that can't be right and are withheld, until somebody mends or accepts them."""

    transactions: frozenset[bytes] = frozenset()
    sessions: frozenset[bytes] = frozenset()


class _Sessions:
    """Parses sessions and says which units they are in."""

    def __init__(
        self,
        source: MongoSource,
        owners: Owners,
        campaigns: Iterable[TrackedCampaign],
        withheld: frozenset[bytes],
        *,
        now_ms: int,
    ) -> None:
        key = source.pseudonym_key
        self.records = open_records(source, "session")
        self._key = key.get_secret_value().encode() if key else b""
        self._owners, self._withheld, self._now_ms = owners, withheld, now_ms
        self._attribution = Attribution(campaigns)
        self._digests = RowDigests()

    def parse(self, record: Mapping[str, Any]) -> Session | None:
        """Return the session, or None where the record is refused: loading sessions says why."""
        if self._withheld and record_key(record["_id"]) in self._withheld:
            return None
        try:
            return parse_session(record, self._owners, key=self._key, now_ms=self._now_ms)
        except RecordError:
            return None

    def find_campaign(self, session: Session) -> str | None:
        return self._attribution.find(read_visit(session))

    def digest(self, raw: bytes, session: Session, campaign_id: str | None) -> int:
        return self._digests.digest(raw, self._owners.by_site_id[session.site_id], self.records.kind.seal, campaign_id)


def _unit_of(session: Session, calendar: Calendar) -> UnitKey:
    return UnitKey("visits", session.site_id, calendar.place(session.start_ms)[0], calendar.zone)


def _read_all(records: Records) -> Iterator[tuple[bytes, dict[str, Any]]]:
    return records.read_raw(_EVERYTHING, {}, limit=None)


@task(name="look at campaigns", task_run_name="look at campaigns", **STAGE)
def read_campaigns(source: MongoSource, owners: Owners, now_ms: int) -> tuple[TrackedCampaign, ...]:
    """Return all campaigns that have an owner, in the order of their ids."""
    records = open_records(source, "campaign")
    found = []
    for record in source.read_range(
        records.kind.collection, _EVERYTHING, criteria={}, fields=(*records.kind.fields, "sessions")
    ):
        try:
            campaign = parse_campaign(record, owners, now_ms=now_ms)
        except RecordError:
            continue
        sessions = record.get("sessions")
        found.append(read_campaign(campaign, sessions if isinstance(sessions, list) else ()))
    return tuple(found)


@task(name="look at sessions", task_run_name="look at sessions", **STAGE)
def look_at_sessions(
    source: MongoSource,
    owners: Owners,
    campaigns: Sequence[TrackedCampaign],
    withheld: Withheld,
    zones: Sequence[str],
    now_ms: int,
) -> Visited:
    """Return what all sessions are now, by website and day."""
    readings = Readings()
    wallets: dict[str, set[str]] = {}
    sessions = _Sessions(source, owners, campaigns, withheld.sessions, now_ms=now_ms)
    calendars = [Calendar(zone) for zone in zones]
    for raw, record in _read_all(sessions.records):
        readings.rows += 1
        session = sessions.parse(record)
        if session is None:
            readings.left_out += 1
            continue
        digest = sessions.digest(raw, session, sessions.find_campaign(session))
        for calendar in calendars:
            readings.add(_unit_of(session, calendar), record["_id"], digest)
        if session.wallet is not None and session.wallet.address is not None:
            wallets.setdefault(session.team_id, set()).add(session.wallet.address)
    get_run_logger().info("%s sessions, %s of them left out", f"{readings.rows:,}", f"{readings.left_out:,}")
    return Visited(readings, {team: frozenset(known) for team, known in wallets.items()}, tuple(campaigns))


@task(name="look at transactions", task_run_name="look at transactions", **STAGE)
def look_at_transactions(
    source: MongoSource, owners: Owners, wallets: Wallets, withheld: Withheld, zones: Sequence[str], now_ms: int
) -> Readings:
    """Return what all transactions are now, by team and day, and those of wallets that the team's websites know."""
    readings = Readings()
    units = TransactionUnits(owners, map(Calendar, zones), wallets, withheld.transactions, now_ms=now_ms)
    for raw, record in _read_all(open_records(source, "transaction")):
        units.look_at(raw, record, readings)
    get_run_logger().info("%s transactions, %s of them left out", f"{readings.rows:,}", f"{readings.left_out:,}")
    return readings


Batch = Sequence[tuple[UnitKey, Reading]]


@task(name="compute", task_run_name="compute {number}", **STAGE)
def compute_days(
    number: int,
    batch: Batch,
    before: Mapping[UnitKey, Unit],
    source: MongoSource,
    owners: Owners,
    visited: Visited,
    withheld: Withheld,
    store: VectorStore,
    now_ms: int,
) -> dict[UnitKey, Unit]:
    """Read the rows of whole units again and store their figures in place of what is there; return the units.

    All are of one topic and one zone. A row that went to another unit since it was looked at counts where it is now if
    that is among these, or else when the next run looks at it.
    """
    topic, zone = batch[0][0].topic, batch[0][0].zone
    ids = [record_id for _, reading in batch for record_id in reading.ids]
    keys = [key for key, _ in batch]
    if topic == "visits":
        sessions = _Sessions(source, owners, visited.campaigns, withheld.sessions, now_ms=now_ms)
        found = _compute_visits(keys, ids, sessions, Calendar(zone))
    else:
        units = TransactionUnits(owners, [Calendar(zone)], visited.wallets, withheld.transactions, now_ms=now_ms)
        days = TransactionDays(Calendar(zone)) if topic == "transactions" else MoveDays(Calendar(zone), visited.wallets)
        found = _compute_transactions(keys, ids, units, days, source, owners, now_ms)
    return AggregateStore(store).replace_units(found, before)


def _compute_transactions(
    keys: Sequence[UnitKey],
    ids: Sequence[Any],
    units: TransactionUnits,
    days: TransactionDays | MoveDays,
    source: MongoSource,
    owners: Owners,
    now_ms: int,
) -> dict[UnitKey, UnitFigures]:
    topic, zone = keys[0].topic, keys[0].zone
    seen = Readings()
    refused: dict[UnitKey, int] = {}
    chosen = frozenset(keys)
    for raw, record in open_records(source, "transaction").read_raw_some(ids):
        located = units.find(raw, record)
        if located is None:
            continue
        its_keys, digest = located
        # On one zone's clocks a row is in one unit of a topic at most.
        key = next((key for key in its_keys if key in chosen), None)
        if key is None:
            continue
        seen.add(key, record["_id"], digest)
        try:
            days.add(parse_transaction(record, owners, now_ms=now_ms))
        except RecordError:
            refused[key] = refused.get(key, 0) + 1
    found: dict[UnitKey, dict[PartialKey, Figures]] = {key: {} for key in keys}
    for partial, figures in days.finish():
        scope = partial.scope
        team_id = owners.by_contract_id[scope.holder_id].team_id if scope.kind == "contract" else scope.holder_id
        found[UnitKey(topic, str(team_id), partial.day, zone)][partial] = figures
    return _as_units(found, seen, refused)


def _compute_visits(
    keys: Sequence[UnitKey],
    ids: Sequence[Any],
    sessions: _Sessions,
    calendar: Calendar,
) -> dict[UnitKey, UnitFigures]:
    seen = Readings()
    days = VisitDays(calendar)
    chosen = frozenset(keys)
    for raw, record in sessions.records.read_raw_some(ids):
        session = sessions.parse(record)
        if session is None:
            continue
        key, campaign_id = _unit_of(session, calendar), sessions.find_campaign(session)
        if key in chosen:
            seen.add(key, record["_id"], sessions.digest(raw, session, campaign_id))
            days.add(read_visit(session), campaign_id)
    found: dict[UnitKey, dict[PartialKey, Figures]] = {key: {} for key in keys}
    for partial, figures in days.finish():
        found[UnitKey("visits", partial.scope.holder_id, partial.day, calendar.zone)][partial] = figures
    return _as_units(found, seen, {})


def _as_units(
    found: Mapping[UnitKey, Mapping[PartialKey, Figures]], seen: Readings, refused: Mapping[UnitKey, int]
) -> dict[UnitKey, UnitFigures]:
    nothing = Reading()
    return {
        key: UnitFigures(reading.digest, reading.rows, refused.get(key, 0), partials)
        for key, partials in found.items()
        for reading in (seen.by_unit.get(key, nothing),)
    }


# -- documents ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Telling:
    """A scope whose documents are to be made: those of ``periods``, and those in which newcomers changed.

    ``subject`` is None where nobody owns what the scope is about: then its documents go. ``parts`` are the scopes whose
    stored figures it is made of: itself, or the chains or websites of a team. ``everything`` makes all its documents
    anew, because what they say beside figures changed (``seal``).
    """

    family: str
    scope: Scope
    subject: Subject | None
    seal: str
    parts: tuple[Scope, ...]
    periods: frozenset[Period]
    newcomers: Mapping[date, int]
    everything: bool
    campaign: TrackedCampaign | None = None

    @property
    def topics(self) -> tuple[Topic, ...]:
        """Return what its documents tell."""
        if self.family == "transactions":
            return TOPICS["transactions"]
        return ("campaign",) if self.scope.kind == "campaign" else ("visits", "funnel")


def seal_of(subject: Subject | None, campaign: TrackedCampaign | None) -> str:
    """Return what changes whenever a scope's documents do, for the same figures."""
    # The sessions that a campaign lists decide about figures, which are compared by themselves.
    told = None if campaign is None else replace(campaign, session_ids=frozenset())
    return blake2b(repr((AGGREGATES_VERSION, subject, told)).encode(), digest_size=_SEAL_BYTES).hexdigest()


def find_subject(
    family: str, scope: Scope, parts: Sequence[Scope], owners: Owners, campaigns: Mapping[str, TrackedCampaign]
) -> Subject | None:
    """Return whom the figures of a scope, made of those parts, are about; None where that has no owner any more."""
    try:
        if scope.kind == "contract":
            contract = owners.by_contract_id.get(scope.holder_id)
            return None if contract is None else contract_subject(contract)
        if scope.kind in ("team", "chain") and family == "transactions":
            site_id = next(
                (
                    contract.site_id
                    for contract in owners.by_contract_id.values()
                    if contract.team_id == scope.holder_id and contract.owner_error is None
                ),
                None,
            )
            if site_id is None:
                return None
            chains = [None if part.part == UNKNOWN_CHAIN else part.part for part in parts]
            if scope.kind == "chain":
                return chain_subject(scope.holder_id, site_id, chains[0])
            return team_subject(scope.holder_id, site_id, chain=chains[0] if len(chains) == 1 else None)
        if scope.kind == "team":
            return team_subject(scope.holder_id, of="websites")
        site = owners.by_site_id.get(scope.holder_id)
        if site is None:
            return None
        if scope.kind == "site":
            return site_subject(site)
        campaign = campaigns.get(scope.part)
        return None if campaign is None else campaign_subject(site, campaign)
    except RecordError:
        return None


@task(name="describe figures", task_run_name="describe figures of {team_id}", **STAGE)
def describe_team(team_id: str, zone: str, tellings: Sequence[Telling], store: VectorStore, now_ms: int) -> Written:
    """Make the documents of a team's scopes, save those that are new or changed, and delete those of empty periods.

    Memory holds the figures of some days of a scope, and some documents.
    """
    aggregates = AggregateStore(store)
    moves = Moves()
    if any(telling.family == "visits" for telling in tellings):
        days = aggregates.read_partials("moves", Scope.team(team_id), zone)
        moves = Moves.merged([figures for _, figures in days])
    saved = Written()
    for telling in tellings:
        saved += _tell(telling, Calendar(zone), moves, aggregates, now_ms)
    return saved


def _tell(telling: Telling, calendar: Calendar, moves: Moves, aggregates: AggregateStore, now_ms: int) -> Written:
    zone, family = calendar.zone, telling.family
    if telling.subject is None:
        deleted = aggregates.forget_scope(family, telling.scope, zone, telling.topics)
        return Written(deleted=deleted)
    days: set[date | None] = set()
    newcomers = count_newcomers(_tallies(telling, zone, aggregates, days))
    wanted = set(telling.periods)
    if telling.everything:
        wanted |= touched_periods(days)
    wanted |= touched_periods(changed_days(telling.newcomers, newcomers))
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    saved = Written()
    made: list[Document] = []
    gone: list[str] = []
    kind = TransactionFigures if family == "transactions" else VisitFigures
    for period, parts in walk(_days_of(telling, zone, aggregates), wanted, kind):
        aggregate: Any = put_together(
            telling.subject,
            period,
            calendar,
            parts,
            newcomers,
            kind=kind,
            now_ms=now_ms,
        )
        for topic in telling.topics:
            document = None if aggregate is None else _describe(topic, aggregate, moves, telling.campaign)
            if document is None:
                gone.append(AggregateKey(topic, telling.scope, period, zone).text)
            else:
                made.append(document)
        if len(made) >= _DOCUMENTS_AT_ONCE:
            saved += aggregates.save_documents(made, zone, gone=gone, now=now)
            made, gone = [], []
    saved += aggregates.save_documents(made, zone, gone=gone, now=now)
    aggregates.save_scope(family, telling.scope, zone, seal=telling.seal, newcomers=newcomers)
    return saved


def _tallies(
    telling: Telling, zone: str, aggregates: AggregateStore, days: set[date | None]
) -> Iterator[tuple[date, Tally]]:
    """Yield who did something on each day of a scope; note all days that have rows."""
    for day, figures in _days_of(telling, zone, aggregates):
        days.add(day)
        if day is not None:
            yield day, figures.senders if telling.family == "transactions" else figures.visitors


def _describe(topic: Topic, aggregate: Any, moves: Moves, campaign: TrackedCampaign | None) -> Document | None:
    if topic == "transactions":
        return describe_transactions(aggregate)
    if topic == "staking":
        return describe_staking(aggregate)
    if topic == "visits":
        return describe_visits(aggregate)
    if topic == "funnel":
        return describe_funnel(aggregate, moves)
    assert campaign is not None
    return describe_campaign(aggregate, campaign, moves)


def _days_of(telling: Telling, zone: str, aggregates: AggregateStore) -> Iterator[tuple[date | None, Any]]:
    """Yield the days of all parts of a scope in order, rows without a time at the end."""
    topic: PartialTopic = "transactions" if telling.family == "transactions" else "visits"
    found = [aggregates.read_partials(topic, part, zone) for part in telling.parts]
    return heapq.merge(*found, key=lambda item: item[0] or date.max) if len(found) > 1 else iter(found[0])
