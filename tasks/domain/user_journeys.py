"""UserJourney: what one visitor of a website did over all visits, parsed once at the edge, and what it is described as.

Journeys are the items of ``analytics.userJourneys``. A journey is that of one user of one website: one without a user
or without a first visit is refused. Everything else that is bad is left out and named in ``warnings``; missing is never
bad. "Converted" means what the source means by it: the visitor connected a wallet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bson import ObjectId

from tasks.domain.columns import Columns
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document, make_key
from tasks.domain.errors import RecordError
from tasks.domain.figures import read_moment_ms
from tasks.domain.owners import Owners
from tasks.domain.personal import VisitorFields, check_key, find_host, pseudonym, read_user_id
from tasks.domain.sessions import (
    DIRECT,
    count_of,
    find_confidence,
    find_site,
    make_tags,
    moment_of,
    name_site,
    owning_team,
    say_date,
    say_minute,
    say_seconds,
    say_source,
    whole,
    with_known,
)
from tasks.domain.sources import Record, Source, derived_id

#: Goes into every vector's lineage. Raise it whenever a text or a fact changes for the same record.
DESCRIBER_VERSION = 1

CONVERTER, ENGAGED, BOUNCED, BROWSER = "converter", "engaged", "bounced", "browser"
_SEGMENTS = {
    CONVERTER: "converter",
    ENGAGED: "engaged visitor, more than three visits",
    BOUNCED: "bounced",
    BROWSER: "browsing visitor",
}
_IMPORTANCE = {CONVERTER: 7, ENGAGED: 6, BOUNCED: 3}
#: A visit goes on after it began, and the last one may have been open for a day.
_TIME_SLACK_S = 86_400
_REFERRAL = "referral/"
_FIELDS = (
    "userId",
    "firstVisit",
    "lastVisit",
    "totalSessions",
    "totalPageViews",
    "totalTimeSpent",
    "hasConverted",
    "daysToConversion",
    "sessionsBeforeConversion",
    "userSegment",
    "acquisitionSource",
)


@dataclass(frozen=True, slots=True)
class UserJourney:
    """One visitor's journey with its owner. Times are epoch milliseconds, UTC. None means unknown.

    ``analytics_id`` is the record of the collection that holds it, ``visitor`` a pseudonym. ``sessions_before`` and
    ``days_to_conversion`` are told of those who converted only. ``warnings`` names what was left out and why.
    """

    record_id: str
    analytics_id: str | None
    site_id: str
    site_name: str
    team_id: str
    visitor: str
    first_ms: int
    last_ms: int | None
    sessions: int | None
    page_views: int | None
    spent_s: float | None
    converted: bool | None
    days_to_conversion: float | None
    sessions_before: int | None
    segment: str | None
    traffic_source: str | None
    warnings: str


def split_user_journeys(record: Mapping[str, Any], key: bytes) -> Iterator[dict[str, Any]]:
    """Yield a record for each item of ``userJourneys``, in order: its fields, its ``_id``, and the site it is of.

    An item keeps the ``_id`` that it was stored with, if no other has the same; else it has one that is derived from
    its user, or from all that it holds where that is not enough. So it is the same wherever the item stands. An item
    that is no object is yielded too, as one that parsing refuses.
    """
    items = record.get("userJourneys")
    if items is None:
        return
    items = items if isinstance(items, list) else [items]
    own_ids = Counter(item["_id"] for item in items if _has_own_id(item))
    kept = [_has_own_id(item) and own_ids[item["_id"]] == 1 for item in items]
    users = Counter(_user_of(item) for item, keeps in zip(items, kept, strict=True) if not keeps)
    seen: Counter[str] = Counter()
    for item, keeps in zip(items, kept, strict=True):
        fields = {name: item[name] for name in _FIELDS if name in item} if isinstance(item, Mapping) else {}
        if not isinstance(item, Mapping):
            fields["notAnObject"] = type(item).__name__
        if keeps:
            item_id = item["_id"]
        else:
            user_id = _user_of(item)
            held = f"user {user_id}" if user_id is not None and users[user_id] == 1 else repr(item)
            seen[held] += 1
            # The id is stored, and a plain hash of a user id could be traced back to it.
            item_id = derived_id("user_journey", record.get("_id"), pseudonym(f"{held}\0{seen[held]}", key))
        yield {"_id": item_id, "siteId": record.get("siteId"), "analyticsId": record.get("_id"), **fields}


def _user_of(item: object) -> str | None:
    return read_user_id(item.get("userId")) if isinstance(item, Mapping) else None


def _has_own_id(item: object) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("_id"), ObjectId)


def parse_user_journey(record: Mapping[str, Any], owners: Owners, *, key: bytes, now_ms: int) -> UserJourney:
    """Return the journey of a record that ``split_user_journeys`` made. ``now_ms`` is the start of the run.

    Raises ``RecordError`` where owner, visitor or first visit is missing or can't be read.
    """
    site = owners.find_site(record.get("siteId"))
    team_id = owning_team(site)
    if "notAnObject" in record:
        raise RecordError(
            "journey_not_an_object", f"an item of userJourneys is of type {record['notAnObject']}, not an object"
        )
    fields = VisitorFields.of(record, site.site_id, key)
    warnings = fields.warnings
    if fields.visitor is None:
        raise RecordError("user_id_missing", "the journey has no userId, so nothing tells it from another of the site")
    record_id = fields.record_id()
    first_ms = fields.required_moment("firstVisit", "first_visit", now_ms=now_ms)
    last_ms = fields.moment_after("lastVisit", first_ms, now_ms=now_ms)
    sessions = fields.count("totalSessions")
    page_views = fields.count("totalPageViews")
    if sessions is not None and page_views is not None and page_views < sessions:
        warnings.append(f"totalPageViews is {page_views}, below totalSessions, which is {sessions}")
    spent_s = fields.amount("totalTimeSpent")
    if spent_s is not None and last_ms is not None and spent_s > (last_ms - first_ms) / 1000 + _TIME_SLACK_S:
        warnings.append("totalTimeSpent is longer than from the first visit to the last")
    converted = fields.flag("hasConverted")
    days = fields.amount("daysToConversion")
    before = fields.count("sessionsBeforeConversion")
    segment = fields.label("userSegment")
    segment = segment.lower() if segment else None
    if segment is not None and segment not in _SEGMENTS:
        warnings.append("userSegment is none of the four and is left out")
        segment = None
    if segment is not None and converted is not None and (segment == CONVERTER) != converted:
        warnings.append("userSegment disagrees with hasConverted")
    analytics_id = record.get("analyticsId")
    return UserJourney(
        record_id=record_id,
        analytics_id=str(analytics_id) if isinstance(analytics_id, ObjectId) else None,
        site_id=site.site_id,
        site_name=name_site(site),
        team_id=team_id,
        visitor=fields.visitor,
        first_ms=first_ms,
        last_ms=last_ms,
        sessions=sessions,
        page_views=page_views,
        spent_s=spent_s,
        converted=converted,
        days_to_conversion=days if converted else None,
        sessions_before=before if converted else None,
        segment=segment,
        traffic_source=_traffic_source(fields),
        warnings="; ".join(warnings),
    )


def _traffic_source(fields: VisitorFields) -> str | None:
    """Return ``acquisitionSource`` in the words of the sessions: a referral by ``Direct`` is none."""
    text = fields.label("acquisitionSource")
    if text is None:
        return None
    text = text.lower()
    if text == DIRECT:
        return DIRECT
    if not text.startswith(_REFERRAL):
        return text
    rest = text.removeprefix(_REFERRAL)
    if rest == DIRECT:
        return DIRECT
    host = find_host(rest, fields.user_ids)
    if host is None:
        fields.warn("acquisitionSource")
    return None if host is None else _REFERRAL + host


def describe_user_journey(journey: UserJourney) -> Document:
    """Return the document of a journey. Pure: the same journey gives the same document, to the byte."""
    first, last = (
        moment_of(journey.first_ms),
        moment_of(journey.first_ms if journey.last_ms is None else journey.last_ms),
    )
    metadata: dict[str, Any] = {
        "timeframe": {"start": first, "end": last},
        "dataType": "journey",
        "tags": make_tags(
            "journey",
            None if journey.converted is None else "converted" if journey.converted else "not converted",
            journey.segment,
            journey.traffic_source,
        ),
        "category": "user journey",
    }
    if journey.segment:
        metadata["userSegment"] = journey.segment
    metadata["importance"] = _IMPORTANCE.get(CONVERTER if journey.converted else journey.segment or "", 5)
    metadata["aggregationLevel"] = "raw"
    metadata["confidence"] = find_confidence(journey.warnings)
    metadata["facts"] = _facts(journey)
    return Document(
        source_type="user_journey",
        source_id=journey.record_id,
        key=make_key("user_journey", journey.site_id, journey.visitor),
        holder_id=journey.site_id,
        team_id=journey.team_id,
        site_id=journey.site_id,
        content=_content(journey, first, last),
        summary=_summary(journey, first, last),
        metadata=metadata,
    )


def _content(journey: UserJourney, first: datetime, last: datetime) -> str:
    said = [f"User journey on {journey.site_name}: {_outcome(journey)}."]
    figures = _figures(journey)
    if figures:
        said.append(f"{figures}.")
    if journey.traffic_source:
        said.append(f"First came from {say_source(journey.traffic_source)}.")
    said.append(f"First visit {say_date(first)}")
    if journey.last_ms is not None and say_date(last) != say_date(first):
        said.append(f"Last visit {say_date(last)}")
    if journey.segment:
        said.append(f"Segment: {_SEGMENTS[journey.segment]}.")
    return " ".join(said)


def _outcome(journey: UserJourney) -> str:
    if journey.converted is None:
        return "a visitor"
    if not journey.converted:
        return "the visitor connected no wallet (not converted)"
    days = None if journey.days_to_conversion is None else round(journey.days_to_conversion)
    waited = (count_of(days, "day") if days else "", count_of(journey.sessions_before or 0, "visit"))
    after = " and ".join(filter(None, waited if journey.sessions_before else waited[:1]))
    first_day = " on the first day" if days == 0 else ""
    return f"the visitor connected a wallet (converted){first_day}{f' after {after}' if after else ''}"


def _figures(journey: UserJourney) -> str:
    parts = (
        None if journey.sessions is None else count_of(journey.sessions, "visit"),
        None if journey.page_views is None else count_of(journey.page_views, "page view"),
        None if journey.spent_s is None else f"{say_seconds(journey.spent_s)} in total",
    )
    return ", ".join(filter(None, parts))


def _summary(journey: UserJourney, first: datetime, last: datetime) -> str:
    parts = [
        "User journey",
        journey.site_name,
        "" if journey.converted is None else "converted" if journey.converted else "not converted",
        _figures(journey),
        say_source(journey.traffic_source) if journey.traffic_source else "",
        say_minute(first) if journey.last_ms is None else f"{say_minute(first)} to {say_minute(last)}",
    ]
    return " · ".join(part for part in parts if part)[:MAX_SUMMARY_CHARS]


def _facts(journey: UserJourney) -> dict[str, Any]:
    """Return the exact figures, without those that are missing: what an answer cites and filters read."""
    return with_known(
        {
            "visitor": journey.visitor,
            "analyticsId": journey.analytics_id,
            "sessions": journey.sessions,
            "pageViews": journey.page_views,
            "secondsSpent": whole(journey.spent_s),
            "converted": journey.converted,
            "daysToConversion": whole(journey.days_to_conversion),
            "sessionsBeforeConversion": journey.sessions_before,
            "segment": journey.segment,
            "trafficSource": journey.traffic_source,
            "warnings": journey.warnings or None,
        }
    )


def _read_time(record: Record) -> int | None:
    """Return the last visit, which moves as the journey goes on; the first where there is no other."""
    last = read_moment_ms(record.get("lastVisit"))
    return read_moment_ms(record.get("firstVisit")) if last is None else last


def make_user_journey_source(key: bytes) -> Source:
    """Return the source of journeys; ``key`` makes the pseudonyms. Raises ``TerminalError`` where it is empty."""
    check_key(key)

    def describe(record: Record, owners: Owners, now_ms: int) -> Document:
        return describe_user_journey(parse_user_journey(record, owners, key=key, now_ms=now_ms))

    def split(record: Record) -> Iterator[dict[str, Any]]:
        return split_user_journeys(record, key)

    return Source(
        name="user_journey",
        source_type="user_journey",
        collection="analytics",
        fields=("siteId", "userJourneys"),
        version=DESCRIBER_VERSION,
        seal=pseudonym("seal", key),
        find_holder=find_site,
        describe=describe,
        # The times are those of the items: which of these a window holds is only told after splitting.
        time_field=None,
        read_time=_read_time,
        split=split,
        columns=Columns(
            time_ms="time_ms",
            figures=("sessions", "pageViews", "secondsSpent"),
            kinds=("segment",),
            warnings="warnings",
            required=("visitor",),
        ),
    )
