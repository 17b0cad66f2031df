"""Partial figures of visits: a day of a website, or of one of its campaigns; they merge to longer periods.

A session stored twice (one website, one ``sessionId``) is one: the record with the smallest ``_id`` counts. Visitors
are counted by pseudonyms, of which 16 bytes of a digest are kept; sessions without one are counted as anonymous. A
wallet is connected where a session holds a real address: what wallets write where there is none counts for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from hashlib import blake2b
from typing import Any

from bson.binary import Binary

from tasks.domain.aggregates.periods import Calendar
from tasks.domain.aggregates.scopes import PartialKey, Scope
from tasks.domain.aggregates.tallies import VISITOR_BYTES, WALLET_BYTES, Tally, add_up
from tasks.domain.sessions import Session

_DIGEST_BYTES = 16
_DIGEST_SPAN = 2 ** (8 * _DIGEST_BYTES)
_HOURS, _WEEKDAYS = 24, 7


@dataclass(frozen=True, slots=True)
class Visit:
    """What figures need of one session. ``visitor`` is a pseudonym, ``wallet`` a lower-case address or None.

    ``web3`` means that the visitor's browser has a wallet, connected or not. ``pages`` are the paths seen, one for each
    view; ``source`` is ``source/medium``, ``referral/host`` or ``direct``. ``wallet_type`` is the software of the
    connected wallet, ``wallet_chain`` the chain that it was on. None means unknown.
    """

    record_id: str
    site_id: str
    session_id: str
    start_ms: int
    visitor: str | None = None
    web3: bool = False
    wallet: str | None = None
    duration_ms: int | None = None
    bounced: bool | None = None
    pages_viewed: int | None = None
    pages: tuple[str, ...] = ()
    entry_page: str | None = None
    exit_page: str | None = None
    source: str | None = None
    country: str | None = None
    device: str | None = None
    system: str | None = None
    browser: str | None = None
    utm_id: str | None = None
    utm_campaign: str | None = None
    utm_source: str | None = None
    utm_medium: str | None = None
    wallet_type: str | None = None
    wallet_chain: str | None = None

    @property
    def wallet_source(self) -> str | None:
        """Return the source of a session that connected a wallet."""
        return None if self.wallet is None else self.source

    @property
    def wallet_country(self) -> str | None:
        """Return the country of a session that connected a wallet."""
        return None if self.wallet is None else self.country


#: The fields of ``VisitFigures`` that count by name, with the fields of ``Visit`` that they count.
_NAMED_BY = {
    "entry_pages": "entry_page",
    "exit_pages": "exit_page",
    "sources": "source",
    "countries": "country",
    "devices": "device",
    "systems": "system",
    "browsers": "browser",
    "wallet_sources": "wallet_source",
    "wallet_countries": "wallet_country",
    "wallet_types": "wallet_type",
    "wallet_chains": "wallet_chain",
}
_BY_NAME = ("pages", *_NAMED_BY)
_NUMBERS = (
    "rows",
    "sessions",
    "doubled",
    "anonymous",
    "web3_sessions",
    "wallet_sessions",
    "bounced",
    "bounce_known",
    "duration_known",
    "duration_ms",
    "page_views",
    "page_views_known",
)


@dataclass(frozen=True, slots=True)
class VisitFigures:
    """Exact figures of the sessions of some days; ``merged`` adds them up in any order and grouping.

    ``visitors``, ``web3_visitors`` and ``wallet_visitors`` (those who connected a wallet) count sessions by visitor;
    ``wallets`` holds the moment of each wallet's first session, in epoch milliseconds; ``wallet_sources`` and the like
    count the sessions that connected one. ``..._known`` is of how many
    sessions the figure is known. ``digest`` stands for all that was read.
    """

    rows: int
    sessions: int
    doubled: int
    anonymous: int
    visitors: Tally
    web3_visitors: Tally
    web3_sessions: int
    wallet_visitors: Tally
    wallet_sessions: int
    wallets: Tally
    bounced: int
    bounce_known: int
    duration_known: int
    duration_ms: int
    page_views: int
    page_views_known: int
    pages: Mapping[str, int]
    entry_pages: Mapping[str, int]
    exit_pages: Mapping[str, int]
    sources: Mapping[str, int]
    countries: Mapping[str, int]
    devices: Mapping[str, int]
    systems: Mapping[str, int]
    browsers: Mapping[str, int]
    wallet_sources: Mapping[str, int]
    wallet_countries: Mapping[str, int]
    wallet_types: Mapping[str, int]
    wallet_chains: Mapping[str, int]
    hours: tuple[int, ...]
    weekdays: tuple[int, ...]
    oldest_ms: int | None
    newest_ms: int | None
    newest_id: str
    digest: int

    @classmethod
    def of_visits(cls, visits: Sequence[Visit], day: date, calendar: Calendar) -> VisitFigures:
        """Return the figures of all visits of one scope and day."""
        by_session: dict[str, Visit] = {}
        for visit in visits:
            known = by_session.get(visit.session_id)
            if known is None or visit.record_id < known.record_id:
                by_session[visit.session_id] = visit
        sessions = list(by_session.values())
        visitors: Counter[bytes] = Counter()
        web3: Counter[bytes] = Counter()
        connected: Counter[bytes] = Counter()
        wallets: dict[str, int] = {}
        for visit in sessions:
            if visit.visitor is not None:
                key = blake2b(visit.visitor.encode(), digest_size=VISITOR_BYTES).digest()
                visitors[key] += 1
                if visit.web3:
                    web3[key] += 1
                if visit.wallet is not None:
                    connected[key] += 1
            if visit.wallet is not None:
                wallets[visit.wallet] = min(visit.start_ms, wallets.get(visit.wallet, visit.start_ms))
        hours = Counter(calendar.place(visit.start_ms)[1] for visit in sessions)
        weekdays = [0] * _WEEKDAYS
        weekdays[day.weekday()] = len(sessions)
        durations = [visit.duration_ms for visit in sessions if visit.duration_ms is not None]
        views = [visit.pages_viewed for visit in sessions if visit.pages_viewed is not None]
        by_name: dict[str, Any] = {
            name: dict(Counter(value for visit in sessions if (value := getattr(visit, field)) is not None))
            for name, field in _NAMED_BY.items()
        }
        return cls(
            rows=len(visits),
            sessions=len(sessions),
            doubled=len(visits) - len(sessions),
            anonymous=sum(visit.visitor is None for visit in sessions),
            visitors=Tally.from_numbers(visitors, VISITOR_BYTES),
            web3_visitors=Tally.from_numbers(web3, VISITOR_BYTES),
            web3_sessions=sum(visit.web3 for visit in sessions),
            wallet_visitors=Tally.from_numbers(connected, VISITOR_BYTES),
            wallet_sessions=sum(visit.wallet is not None for visit in sessions),
            wallets=Tally.of_addresses(wallets, "min"),
            bounced=sum(visit.bounced is True for visit in sessions),
            bounce_known=sum(visit.bounced is not None for visit in sessions),
            duration_known=len(durations),
            duration_ms=sum(durations),
            page_views=sum(views),
            page_views_known=len(views),
            pages=dict(Counter(page for visit in sessions for page in visit.pages)),
            **by_name,
            hours=tuple(hours[hour] for hour in range(_HOURS)),
            weekdays=tuple(weekdays),
            oldest_ms=min((visit.start_ms for visit in visits), default=None),
            newest_ms=max((visit.start_ms for visit in visits), default=None),
            newest_id=max((visit.record_id for visit in visits), default=""),
            digest=sum(map(_digest, visits)) % _DIGEST_SPAN,
        )

    @classmethod
    def merged(cls, parts: Sequence[VisitFigures]) -> VisitFigures:
        """Return the figures of all parts, which hold different sessions. Of none: those of no sessions."""
        if len(parts) == 1:
            return parts[0]
        nobody, no_wallet = Tally.empty(VISITOR_BYTES), Tally.empty(WALLET_BYTES, "min")
        numbers: dict[str, Any] = {name: sum(getattr(part, name) for part in parts) for name in _NUMBERS}
        by_name: dict[str, Any] = {name: add_up(getattr(part, name) for part in parts) for name in _BY_NAME}
        return cls(
            **numbers,
            **by_name,
            visitors=Tally.merged([nobody, *(part.visitors for part in parts)]),
            web3_visitors=Tally.merged([nobody, *(part.web3_visitors for part in parts)]),
            wallet_visitors=Tally.merged([nobody, *(part.wallet_visitors for part in parts)]),
            wallets=Tally.merged([no_wallet, *(part.wallets for part in parts)]),
            hours=tuple(sum(part.hours[hour] for part in parts) for hour in range(_HOURS)),
            weekdays=tuple(sum(part.weekdays[day] for part in parts) for day in range(_WEEKDAYS)),
            oldest_ms=min((part.oldest_ms for part in parts if part.oldest_ms is not None), default=None),
            newest_ms=max((part.newest_ms for part in parts if part.newest_ms is not None), default=None),
            newest_id=max((part.newest_id for part in parts), default=""),
            digest=sum(part.digest for part in parts) % _DIGEST_SPAN,
        )

    def halves(self) -> tuple[VisitFigures, VisitFigures]:
        """Return two parts that merge to these figures: each has half of the visitors and names, the first the rest."""
        first: dict[str, Any] = {}
        second: dict[str, Any] = {}
        for name in ("visitors", "web3_visitors", "wallet_visitors", "wallets"):
            first[name], second[name] = getattr(self, name).halves()
        for name in _BY_NAME:
            counts = sorted(getattr(self, name).items())
            first[name], second[name] = dict(counts[: len(counts) // 2]), dict(counts[len(counts) // 2 :])
        return replace(self, **first), replace(VisitFigures.merged([]), **second)

    def stored(self) -> dict[str, Any]:
        """Return it as BSON values. Names that strangers chose stand in values, never in keys."""
        stored: dict[str, Any] = {name: getattr(self, name) for name in _NUMBERS}
        for name in _BY_NAME:
            stored[name] = [[key, count] for key, count in sorted(getattr(self, name).items())]
        for name in ("visitors", "web3_visitors", "wallet_visitors", "wallets"):
            stored[name] = getattr(self, name).stored()
        stored |= {"hours": list(self.hours), "weekdays": list(self.weekdays)}
        stored |= {"oldest_ms": self.oldest_ms, "newest_ms": self.newest_ms, "newest_id": self.newest_id}
        stored["digest"] = Binary(self.digest.to_bytes(_DIGEST_BYTES))
        return stored

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> VisitFigures:
        """Return the figures of what ``stored`` gave."""
        fields: dict[str, Any] = {name: stored[name] for name in (*_NUMBERS, "oldest_ms", "newest_ms", "newest_id")}
        fields |= {name: dict(stored[name]) for name in _BY_NAME}
        for name in ("visitors", "web3_visitors", "wallet_visitors"):
            fields[name] = Tally.from_stored(stored[name], VISITOR_BYTES)
        fields["wallets"] = Tally.from_stored(stored["wallets"], WALLET_BYTES, "min")
        fields |= {name: tuple(stored[name]) for name in ("hours", "weekdays")}
        return cls(**fields, digest=int.from_bytes(stored["digest"]))


def read_visit(session: Session) -> Visit:
    """Return what figures need of a session. Views beyond the first pages that a session holds are left out."""
    wallet = session.wallet if session.wallet is not None and session.wallet.address is not None else None
    return Visit(
        record_id=session.record_id,
        site_id=session.site_id,
        session_id=session.session_id,
        start_ms=session.start_ms,
        visitor=session.visitor,
        web3=session.web3 is True,
        wallet=None if wallet is None else wallet.address,
        duration_ms=None if session.duration_s is None else round(session.duration_s * 1000),
        bounced=session.bounced,
        pages_viewed=session.pages_viewed,
        pages=tuple(view.path for view in session.pages),
        entry_page=session.entry_page,
        exit_page=session.exit_page,
        source=session.traffic_source,
        country=session.country,
        device=session.device,
        system=session.system,
        browser=session.browser,
        utm_id=session.utm_id,
        utm_campaign=session.utm_campaign,
        utm_source=session.utm_source,
        utm_medium=session.utm_medium,
        wallet_type=None if wallet is None else wallet.kind,
        wallet_chain=None if wallet is None else wallet.chain,
    )


class VisitDays:
    """Sorts visits into days of websites and of campaigns. Give it whole days, as ``TransactionDays``."""

    def __init__(self, calendar: Calendar) -> None:
        self._calendar = calendar
        self._visits: dict[PartialKey, list[Visit]] = {}

    def add(self, visit: Visit, campaign_id: str | None) -> None:
        """Take one visit into its website's day, and into its campaign's where it came through one."""
        for key in visit_keys(visit, campaign_id, self._calendar):
            self._visits.setdefault(key, []).append(visit)

    def finish(self) -> Iterable[tuple[PartialKey, VisitFigures]]:
        """Yield the figures of each day, and forget its visits."""
        for key in list(self._visits):
            assert key.day is not None, "a session without a start is refused"
            yield key, VisitFigures.of_visits(self._visits.pop(key), key.day, self._calendar)


def visit_keys(visit: Visit, campaign_id: str | None, calendar: Calendar) -> tuple[PartialKey, ...]:
    """Return the partial figures that a visit is in: its website's day, and its campaign's where it has one."""
    scopes = [Scope.site(visit.site_id)]
    if campaign_id is not None:
        scopes.append(Scope.campaign(visit.site_id, campaign_id))
    day, _ = calendar.place(visit.start_ms)
    return tuple(PartialKey("visits", scope, day, calendar.zone) for scope in scopes)


def _digest(visit: Visit) -> int:
    return int.from_bytes(blake2b(repr(visit).encode(), digest_size=_DIGEST_BYTES).digest())
