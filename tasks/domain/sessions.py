"""Session: one visit to a website, parsed once at the edge, and what it is described as.

Identity, owner and time decide what an answer says: a session without one of them is refused. Everything else only adds
to the picture: a bad value is left out, named in ``warnings``, and the session goes on. Missing is never bad.

Three fields are not taken as they stand. ``isBounce`` is computed again where duration and pages are known, since it is
defined by them. ``isWeb3User`` counts only where a wallet or its software was seen: the source sets it for placeholders
too. And where a visit came from is told in the words of the journeys: ``source/medium``, ``referral/host``, ``direct``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tasks.domain.aggregates.periods import MONTHS
from tasks.domain.columns import Columns
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document, make_key
from tasks.domain.errors import RecordError
from tasks.domain.figures import read_moment_ms
from tasks.domain.owners import Owners, Site
from tasks.domain.personal import VisitorFields, check_key, clean_path, pseudonym
from tasks.domain.sources import Record, Source
from tasks.domain.wallets import Wallet, parse_wallet

#: Goes into every vector's lineage. Raise it whenever a text or a fact changes for the same record.
DESCRIBER_VERSION = 1

DIRECT = "direct"
#: A bounce is a visit of one page that lasted less than this.
BOUNCE_SECONDS = 30
#: Pages that facts list; a visit with more is a script's, or a gallery.
MAX_PAGES = 50
#: What a text says of a path or a name; the rest stands in the facts.
MAX_SAID_CHARS = 60
_MAX_SAID_PAGES = 3
#: Clients round, and write the end a little before the last page's time is added.
_DURATION_SLACK_MS = 60_000
_LONGEST_VISIT_MS = 86_400_000
_DIRECT_SOURCES = frozenset({"direct", "(direct)"})


@dataclass(frozen=True, slots=True)
class PageView:
    """A look at one page; ``seconds`` is how long, None where that isn't known."""

    path: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Session:
    """One visit with its owner. Times are epoch milliseconds, UTC; durations are seconds. None means unknown.

    ``visitor`` is a pseudonym. ``pages`` are the views in the order of the record, at most ``MAX_PAGES`` of
    ``pages_listed``. ``number`` counts the visitor's visits from 1. ``web3`` says that the browser has a wallet,
    connected or not. ``warnings`` names what was left out and why.
    """

    record_id: str
    site_id: str
    site_name: str
    team_id: str
    session_id: str
    visitor: str | None
    start_ms: int
    end_ms: int | None
    duration_s: float | None
    pages_viewed: int | None
    pages: tuple[PageView, ...]
    pages_listed: int
    entry_page: str | None
    exit_page: str | None
    bounced: bool | None
    number: int | None
    previous_session_id: str | None
    since_previous_s: float | None
    traffic_source: str
    referrer: str | None
    utm_source: str | None
    utm_medium: str | None
    utm_campaign: str | None
    utm_term: str | None
    utm_content: str | None
    utm_id: str | None
    wallet: Wallet | None
    web3: bool | None
    country: str | None
    device: str | None
    system: str | None
    browser: str | None
    warnings: str


def parse_session(record: Mapping[str, Any], owners: Owners, *, key: bytes, now_ms: int) -> Session:
    """Return the session of a record. ``key`` makes the visitor's pseudonym, ``now_ms`` is the start of the run.

    Raises ``RecordError`` where identity, owner or time is missing or can't be read.
    """
    site = owners.find_site(record.get("siteId"))
    team_id = owning_team(site)
    fields = VisitorFields.of(record, site.site_id, key)
    warnings = fields.warnings
    record_id = fields.record_id()
    session_id = fields.identifier("sessionId")
    if session_id is None:
        raise RecordError("session_id_missing", "the record has no sessionId, so nothing tells it from another visit")
    start_ms = fields.required_moment("startTime", "start_time", now_ms=now_ms)
    end_ms = fields.moment_after("endTime", start_ms, now_ms=now_ms)
    last_ms = fields.moment_after("lastActivity", start_ms, now_ms=now_ms)
    duration_s = fields.amount("duration")
    if end_ms is not None and duration_s is not None and duration_s * 1000 > end_ms - start_ms + _DURATION_SLACK_MS:
        warnings.append("duration is longer than from startTime to endTime")

    pages, listed = _pages(fields)
    viewed = fields.count("pagesViewed")
    if viewed is None:
        viewed = listed or None
    elif listed and viewed != listed:
        warnings.append(f"pagesViewed is {viewed}, but visitedPages holds {listed}")
    bounced = fields.flag("isBounce")
    if duration_s is not None and viewed is not None:
        computed = duration_s < BOUNCE_SECONDS and max(viewed, listed) <= 1
        if bounced is not None and bounced != computed:
            warnings.append("isBounce disagrees with duration and pages")
        bounced = computed

    utm = fields.inside("utmData")
    source, medium = utm.label("source"), utm.label("medium")
    referrer = fields.referrer("referrer")
    wallet = parse_wallet(record.get("wallet"), warnings, user_ids=fields.user_ids)
    web3 = fields.flag("isWeb3User")
    if wallet is not None:
        web3 = True
    elif web3:
        warnings.append("isWeb3User is set without a wallet")
        web3 = None
    number = fields.count("sessionNumber")
    if number == 0:
        warnings.append("sessionNumber 0 left out")
        number = None
    device = fields.inside("device")
    kind = device.product("type")
    return Session(
        record_id=record_id,
        site_id=site.site_id,
        site_name=name_site(site),
        team_id=team_id,
        session_id=session_id,
        visitor=fields.visitor,
        start_ms=start_ms,
        end_ms=last_ms if end_ms is None else end_ms,
        duration_s=duration_s,
        pages_viewed=viewed,
        pages=pages,
        pages_listed=listed,
        entry_page=fields.path("entryPage"),
        exit_page=fields.path("exitPage"),
        bounced=bounced,
        number=number,
        previous_session_id=fields.identifier("previousSessionId"),
        since_previous_s=fields.amount("timeSinceLastSession"),
        traffic_source=find_traffic_source(source, medium, referrer),
        referrer=referrer,
        utm_source=source,
        utm_medium=medium,
        utm_campaign=utm.label("campaign"),
        utm_term=utm.label("term"),
        utm_content=utm.label("content"),
        utm_id=utm.identifier("utm_id"),
        wallet=wallet,
        web3=web3,
        country=fields.country("country"),
        device=kind.lower() if kind else None,
        system=device.product("os"),
        browser=fields.inside("browser").product("name"),
        warnings="; ".join(warnings),
    )


def owning_team(site: Site) -> str:
    """Return the team of a website. Raises ``RecordError`` where it has none."""
    if site.team_id is None:
        raise RecordError("owner_missing", f"website {site.site_id[:60]} has no team, so nobody may see its records")
    return site.team_id


def name_site(site: Site) -> str:
    """Return what a text calls a website: its name, else its domain, else nothing that could be searched for."""
    return shorten(" ".join((site.name or site.domain or "").split())) or "the website"


def find_traffic_source(source: str | None, medium: str | None, referrer: str | None) -> str:
    """Return where a visit came from, in lower case: ``source/medium``, ``referral/host`` or ``direct``."""
    if source is not None and not (source.lower() in _DIRECT_SOURCES and medium is None):
        return f"{source}/{medium or 'none'}".lower()
    return f"referral/{referrer}" if referrer and source is None else DIRECT


def _pages(fields: VisitorFields) -> tuple[tuple[PageView, ...], int]:
    """Return the first pages that were viewed, and how many can be read in all."""
    raw = fields.record.get("visitedPages")
    if raw is None:
        return (), 0
    if not isinstance(raw, list):
        fields.warn("visitedPages")
        return (), 0
    pages: list[PageView] = []
    listed = odd = 0
    for item in raw:
        path = clean_path(item.get("path"), fields.user_ids) if isinstance(item, Mapping) else None
        if path is None:
            odd += 1
            continue
        listed += 1
        if len(pages) < MAX_PAGES:
            unread: list[str] = []
            view = VisitorFields(item, fields.visitor, fields.user_ids, fields.key, unread)
            pages.append(PageView(path, view.amount("duration")))
            odd += bool(unread)
    if odd:
        fields.warnings.append(f"{odd} of {len(raw)} visitedPages can't be read or have a bad duration")
    return tuple(pages), listed


def describe_session(session: Session) -> Document:
    """Return the document of a session. Pure: the same session gives the same document, to the byte."""
    start = moment_of(session.start_ms)
    metadata: dict[str, Any] = {
        "timeframe": {"start": start, "end": moment_of(_end_ms(session))},
        "dataType": "event",
        "tags": make_tags(
            "visit",
            "bounced" if session.bounced else None,
            _newness(session.number),
            "wallet connected" if session.wallet and session.wallet.address else None,
            "web3" if session.web3 else None,
            session.utm_source or (session.referrer if session.traffic_source != DIRECT else DIRECT),
            session.utm_medium,
            session.utm_campaign,
            session.device,
            session.system,
            session.browser,
            session.country,
            session.wallet.kind if session.wallet else None,
            session.wallet.chain if session.wallet else None,
        ),
        "category": "visit",
    }
    if session.device:
        metadata["deviceType"] = session.device
    metadata["importance"] = _importance(session)
    metadata["aggregationLevel"] = "raw"
    metadata["confidence"] = find_confidence(session.warnings)
    metadata["facts"] = _facts(session)
    return Document(
        source_type="session",
        source_id=session.record_id,
        key=make_key("session", session.site_id, session.session_id),
        holder_id=session.site_id,
        team_id=session.team_id,
        site_id=session.site_id,
        content=_content(session, start),
        summary=_summary(session, start),
        metadata=metadata,
    )


def _end_ms(session: Session) -> int:
    """Return when the visit ended; of one that is said to have lasted for days only the start is believed."""
    if session.end_ms is not None:
        return session.end_ms
    lasted_ms = round((session.duration_s or 0) * 1000)
    return session.start_ms + (lasted_ms if lasted_ms <= _LONGEST_VISIT_MS else 0)


def _content(session: Session, start: datetime) -> str:
    what = "Bounced visit (session)" if session.bounced else "Visit (session)"
    said = [f"{what} to {session.site_name}{_extent(session)}."]
    entry, left = session.entry_page, session.exit_page
    if entry and entry == left:
        said.append(f"Entered and left at {shorten(entry)}.")
    elif entry or left:
        ends = (f"entered at {shorten(entry)}" if entry else "", f"left at {shorten(left)}" if left else "")
        said.append(capitalise(", ".join(filter(None, ends))) + ".")
    others = [path for path in dict.fromkeys(page.path for page in session.pages) if path not in (entry, left)]
    if others:
        listed = ", ".join(map(shorten, others[:_MAX_SAID_PAGES]))
        more = "many" if session.pages_listed > len(session.pages) else max(0, len(others) - _MAX_SAID_PAGES)
        said.append(f"Pages: {listed}{f' and {more} more' if more else ''}.")
    said.append(_arrival(session))
    said.append(say_visitor(_newness(session.number), session.number, session.country, _machine(session)))
    said.append(say_wallet(session.wallet))
    said.append(say_date(start))
    return " ".join(filter(None, said))


def _extent(session: Session) -> str:
    pages = "" if session.pages_viewed is None else count_of(session.pages_viewed, "page")
    lasted = "" if session.duration_s is None else say_seconds(session.duration_s)
    said = " in ".join(filter(None, (pages, lasted)))
    return f": {said}" if said else ""


def _arrival(session: Session) -> str:
    if session.traffic_source == DIRECT and session.utm_campaign is None:
        return "Direct traffic."
    said = ["Direct traffic" if session.traffic_source == DIRECT else f"Came from {say_source(session.traffic_source)}"]
    if session.utm_campaign:
        said.append(f"campaign {shorten(session.utm_campaign)}")
    if session.utm_term:
        said.append(f"term {shorten(session.utm_term)}")
    if session.utm_content:
        said.append(f"content {shorten(session.utm_content)}")
    return ", ".join(said) + "."


def _newness(number: int | None) -> str | None:
    return None if number is None else "new visitor" if number == 1 else "returning visitor"


def _machine(session: Session) -> str:
    return say_machine(session.device, session.browser, session.system)


def _summary(session: Session, start: datetime) -> str:
    parts = [
        "Bounced visit" if session.bounced else "Visit",
        session.site_name,
        _extent(session).removeprefix(": "),
        shorten(session.traffic_source),
        session.country or "",
        "wallet connected" if session.wallet and session.wallet.address else "",
        say_minute(start),
    ]
    return " · ".join(part for part in parts if part)[:MAX_SUMMARY_CHARS]


def _importance(session: Session) -> int:
    """Return 1 to 10. Five is an ordinary visit; one that ends at a wallet or came by a campaign says more."""
    importance = 5
    if session.wallet is not None and session.wallet.address is not None:
        importance += 2
    if session.utm_campaign or session.utm_id:
        importance += 1
    if session.bounced:
        importance -= 2
    return importance


def _facts(session: Session) -> dict[str, Any]:
    """Return the exact figures, without those that are missing: what an answer cites and filters read."""
    wallet = session.wallet or Wallet()
    pages = [with_known({"path": page.path, "seconds": whole(page.seconds)}) for page in session.pages]
    return with_known(
        {
            "sessionId": session.session_id,
            "visitor": session.visitor,
            "visitNumber": session.number,
            "previousSessionId": session.previous_session_id,
            "secondsSincePreviousVisit": whole(session.since_previous_s),
            "trafficSource": session.traffic_source,
            "referrer": session.referrer,
            "utmSource": session.utm_source,
            "utmMedium": session.utm_medium,
            "utmCampaign": session.utm_campaign,
            "utmTerm": session.utm_term,
            "utmContent": session.utm_content,
            "utmId": session.utm_id,
            "pagesViewed": session.pages_viewed,
            "pages": pages or None,
            "pagesListed": session.pages_listed if session.pages_listed > len(pages) else None,
            "durationSeconds": whole(session.duration_s),
            "bounced": session.bounced,
            "entryPage": session.entry_page,
            "exitPage": session.exit_page,
            "country": session.country,
            "device": session.device,
            "system": session.system,
            "browser": session.browser,
            "web3User": session.web3,
            "wallet": wallet.address,
            "walletType": wallet.kind,
            "walletChain": wallet.chain,
            "walletChainId": wallet.chain_id,
            "warnings": session.warnings or None,
        }
    )


def moment_of(moment_ms: int) -> datetime:
    """Return epoch milliseconds as an aware time, UTC."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC)


def whole(number: float | None) -> float | int | None:
    """Return the number as a whole one where it is one: the source holds both types for the same figure."""
    return int(number) if number is not None and number.is_integer() else number


def with_known(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts without those that are missing."""
    return {name: value for name, value in facts.items() if value is not None}


def make_tags(*words: str | None) -> list[str]:
    """Return the words in lower case, each once and cut, without those that are missing."""
    return list(dict.fromkeys(word[:MAX_SAID_CHARS].strip().lower() for word in words if word))


def find_confidence(warnings: str) -> float:
    """Return 0.5 to 1: every warning takes a tenth."""
    return round(max(0.5, 1 - 0.1 * (warnings.count(";") + 1)), 2) if warnings else 1.0


def capitalise(text: str) -> str:
    """Return the text with its first letter large and the others as they are."""
    return text[:1].upper() + text[1:]


def count_of(number: int, thing: str) -> str:
    """Return ``1 page``, ``1,200 pages``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def shorten(text: str) -> str:
    """Return as much of a path or a name as a text says."""
    return text if len(text) <= MAX_SAID_CHARS else text[: MAX_SAID_CHARS - 1].rstrip() + "…"


def say_seconds(seconds: float) -> str:
    """Return a duration in the unit that people would tell it in: ``45 seconds``, ``8 minutes``, ``2.5 hours``."""
    for unit, length, most in (("second", 1, 90), ("minute", 60, 90), ("hour", 3_600, 48)):
        if round(seconds / length) < most:
            shown = f"{seconds / length:.1f}" if unit == "hour" else f"{seconds / length:.0f}"
            shown = shown.removesuffix(".0")
            return f"{shown} {unit}{'' if shown == '1' else 's'}"
    return count_of(round(seconds / 86_400), "day")


def say_date(moment: datetime) -> str:
    """Return ``3 March 2025.``"""
    return f"{moment.day} {MONTHS[moment.month - 1]} {moment.year}."


def say_minute(moment: datetime) -> str:
    """Return ``2025-03-03 14:05 UTC``."""
    return f"{moment.year}-{moment.month:02}-{moment.day:02} {moment.hour:02}:{moment.minute:02} UTC"


def say_source(traffic_source: str) -> str:
    """Return where a visit came from in words: ``twitter / social``, ``google.com (referral)``, ``direct traffic``."""
    if traffic_source == DIRECT:
        return "direct traffic"
    kind, _, rest = traffic_source.partition("/")
    return (
        f"{shorten(rest)} (referral)" if kind == "referral" and rest else shorten(f"{kind} / {rest}" if rest else kind)
    )


def say_machine(device: str | None, browser: str | None, system: str | None) -> str:
    """Return ``desktop, Chrome on Windows``, or as much of it as is known."""
    software = " on ".join(filter(None, (browser, system)))
    return ", ".join(filter(None, (device, software)))


def say_visitor(newness: str | None, number: int | None, country: str | None, machine: str) -> str:
    """Return who came, as far as it is no person: new or returning, from where, with what."""
    said: list[str] = []
    if newness:
        said.append(newness if number is None or number == 1 else f"{newness}, visit {number:,}")
    if country:
        said.append(f"country {country}")
    if machine:
        said.append(machine)
    return capitalise(", ".join(said)) + "." if said else ""


def say_wallet(wallet: Wallet | None) -> str:
    """Return whether a wallet was connected; of its address the text holds eight characters."""
    if wallet is None:
        return "No wallet connected."
    of_kind = " on ".join(filter(None, (wallet.kind, wallet.chain)))
    if wallet.address is None:
        return f"Wallet software seen: {of_kind}."
    return f"Wallet connected: {wallet.address[:8]}{f' ({of_kind})' if of_kind else ''}."


def make_session_source(key: bytes) -> Source:
    """Return the source of sessions; ``key`` makes the pseudonyms. Raises ``TerminalError`` where it is empty."""
    check_key(key)

    def describe(record: Record, owners: Owners, now_ms: int) -> Document:
        return describe_session(parse_session(record, owners, key=key, now_ms=now_ms))

    return Source(
        name="session",
        source_type="session",
        collection="sessions",
        fields=(
            "sessionId",
            "userId",
            "siteId",
            "startTime",
            "endTime",
            "lastActivity",
            "referrer",
            "utmData",
            "wallet",
            "pagesViewed",
            "duration",
            "isBounce",
            "country",
            "browser.name",  # the version may be a whole user agent
            "device",
            "isWeb3User",
            "sessionNumber",
            "previousSessionId",
            "timeSinceLastSession",
            "entryPage",
            "exitPage",
            "visitedPages",
        ),
        version=DESCRIBER_VERSION,
        seal=pseudonym("seal", key),
        find_holder=find_site,
        describe=describe,
        time_field="startTime",
        read_time=lambda record: read_moment_ms(record.get("startTime")),
        # A witness keeps what is required: of persons it is a pseudonym.
        columns=Columns(
            time_ms="time_ms",
            figures=("pagesViewed", "durationSeconds"),
            kinds=("country", "device", "trafficSource"),
            warnings="warnings",
            required=("time_ms", "visitor"),
            optional=("country", "wallet", "entryPage"),
        ),
    )


def find_site(record: Record, owners: Owners) -> Site:
    """Return the website of a record. Raises ``RecordError`` where nobody owns it."""
    return owners.find_site(record.get("siteId"))
