"""GranularEvent: one thing that a visitor did on a page, such as a click, parsed once at the edge, and its description.

A record without an owner or a time is refused; its identity is its ``_id``, since nothing else tells two clicks of one
second apart. Everything else that is bad is left out and named in ``warnings``. The text that stood on what was clicked
(``innerText``) is never read: it greets people by their names. What was clicked is told by its kind, by the id that a
developer gave it, and by where a link leads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tasks.domain.columns import Columns
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document, make_key
from tasks.domain.figures import read_moment_ms
from tasks.domain.owners import Owners
from tasks.domain.personal import VisitorFields, check_key, clean_path, find_host, pseudonym
from tasks.domain.sessions import (
    capitalise,
    find_confidence,
    find_site,
    make_tags,
    moment_of,
    name_site,
    owning_team,
    say_date,
    say_machine,
    say_minute,
    say_seconds,
    say_visitor,
    shorten,
    whole,
    with_known,
)
from tasks.domain.sources import Record, Source
from tasks.domain.texts import split_words

#: Goes into every vector's lineage. Raise it whenever a text or a fact changes for the same record.
DESCRIBER_VERSION = 1

#: One by one, so that ``innerText`` never leaves the database.
_DATA_FIELDS = tuple(
    f"eventData.{name}"
    for name in (
        "tagName",
        "id",
        "className",
        "href",
        "dataId",
        "referrer",
        "os",
        "resolution",
        "language",
        "country",
        "sessionDuration",
        "pagesPerVisit",
        "isBounce",
        "walletConnected",
        "browser.name",
        "deviceType",
    )
)
#: What a page's elements are called by those who click on them.
_ELEMENTS = {
    "a": "link",
    "button": "button",
    "img": "image",
    "svg": "icon",
    "path": "icon",
    "i": "icon",
    "input": "input field",
    "textarea": "input field",
    "select": "selection",
    "option": "selection",
    "label": "label",
    "form": "form",
    "video": "video",
    "canvas": "canvas",
}
_TAG = re.compile(r"[a-z][a-z0-9-]{0,39}")
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9 _.:-]{0,79}")
_RESOLUTION = re.compile(r"[0-9]{2,5}x[0-9]{2,5}")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8}){0,3}")
_OWN_PATH = re.compile(r"/(?!/)|#[!/]")
_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_PERSONAL_LINKS = {"mailto": "an e-mail address", "tel": "a phone number", "sms": "a phone number"}
_NO_LINKS = frozenset({"", "#", "about", "blob", "data", "javascript"})


@dataclass(frozen=True, slots=True)
class GranularEvent:
    """One event with its owner. ``at_ms`` is epoch milliseconds, UTC; durations are seconds. None means unknown.

    ``kind`` is the event's type as the tracker wrote it. ``element`` is what was acted on, in words; ``element_id``,
    ``element_data_id`` and ``element_class`` are its developer's names for it. ``target`` is where a link leads: a path
    of the same website, a host, or what kind of address. ``visitor`` is a pseudonym. ``warnings`` names what was left
    out and why.
    """

    record_id: str
    site_id: str
    site_name: str
    team_id: str
    at_ms: int
    kind: str | None
    visitor: str | None
    session_id: str | None
    page: str | None
    element: str | None
    element_id: str | None
    element_data_id: str | None
    element_class: str | None
    target: str | None
    referrer: str | None
    into_visit_s: float | None
    pages_in_visit: float | None
    bounced: bool | None
    wallet_connected: bool | None
    country: str | None
    language: str | None
    resolution: str | None
    device: str | None
    system: str | None
    browser: str | None
    warnings: str


def parse_granular_event(record: Mapping[str, Any], owners: Owners, *, key: bytes, now_ms: int) -> GranularEvent:
    """Return the event of a record. ``key`` makes the visitor's pseudonym, ``now_ms`` is the start of the run.

    Raises ``RecordError`` where identity, owner or time is missing or can't be read.
    """
    site = owners.find_site(record.get("siteId"))
    team_id = owning_team(site)
    fields = VisitorFields.of(record, site.site_id, key)
    record_id = fields.record_id()
    at_ms = fields.required_moment("timestamp", "timestamp", now_ms=now_ms)
    data = fields.inside("eventData")
    machine = data.inside("deviceType")
    device = machine.product("type")
    tag = data.label("tagName")
    return GranularEvent(
        record_id=record_id,
        site_id=site.site_id,
        site_name=name_site(site),
        team_id=team_id,
        at_ms=at_ms,
        kind=_matching(fields, "eventType", _TYPE),
        visitor=fields.visitor,
        session_id=fields.identifier("sessionId"),
        page=fields.path("pagePath"),
        element=_element(tag),
        element_id=data.code("id"),
        element_data_id=data.code("dataId"),
        element_class=data.code("className"),
        target=_target(data, find_host(site.domain)),
        referrer=data.referrer("referrer"),
        into_visit_s=data.amount("sessionDuration"),
        pages_in_visit=data.amount("pagesPerVisit"),
        bounced=data.flag("isBounce"),
        wallet_connected=data.flag("walletConnected"),
        country=data.country("country"),
        language=_matching(data, "language", _LANGUAGE),
        resolution=_matching(data, "resolution", _RESOLUTION),
        device=device.lower() if device else None,
        system=data.product("os") or machine.product("os"),
        browser=data.inside("browser").product("name"),
        warnings="; ".join(fields.warnings),
    )


def _matching(fields: VisitorFields, name: str, form: re.Pattern[str]) -> str | None:
    text = fields.label(name)
    if text is None or form.fullmatch(text):
        return text
    fields.warnings.append(f"{fields.prefix}{name} is in no known form and is left out")
    return None


def _element(tag: str | None) -> str | None:
    """Return what an HTML tag is called; one that only lays out a page (div, span) is an element."""
    if tag is None or not _TAG.fullmatch(tag.lower()):
        return None
    return _ELEMENTS.get(tag.lower(), "element")


def _target(data: VisitorFields, own_host: str | None) -> str | None:
    """Return where a link leads: of another website only the host, of a person's address only its kind."""
    raw = data.record.get("href")
    if raw is None or raw == "":
        return None
    if not isinstance(raw, str):
        data.warn("href")
        return None
    text = raw.strip()
    scheme = _SCHEME.match(text)
    name = scheme.group(1).lower() if scheme else None
    if name in _PERSONAL_LINKS:
        return _PERSONAL_LINKS[name]
    if name in _NO_LINKS or (text.startswith("#") and not _OWN_PATH.match(text)):
        return None
    if _OWN_PATH.match(text):
        return clean_path(text, data.user_ids)
    host = find_host(text, data.user_ids)
    if host is not None and host == own_host:
        return clean_path(text if scheme else f"https:{text}", data.user_ids)
    if host is None and scheme is None and not text.startswith("//"):
        return clean_path(text, data.user_ids)  # a relative address
    if host is None:
        data.warn("href")
    return host


def describe_granular_event(event: GranularEvent) -> Document:
    """Return the document of an event. Pure: the same event gives the same document, to the byte."""
    at = moment_of(event.at_ms)
    action = _action(event)
    metadata: dict[str, Any] = {
        "timeframe": {"start": at, "end": at},
        "dataType": "event",
        "tags": make_tags(
            "event",
            action,
            event.element,
            event.element_id,
            event.device,
            event.system,
            event.browser,
            event.country,
            "wallet connected" if event.wallet_connected else None,
        ),
        "category": shorten(action),
    }
    if event.device:
        metadata["deviceType"] = event.device
    metadata["importance"] = 5 if event.wallet_connected else 4
    metadata["aggregationLevel"] = "raw"
    metadata["confidence"] = find_confidence(event.warnings)
    metadata["facts"] = _facts(event)
    return Document(
        source_type="analytics",
        source_id=event.record_id,
        key=make_key("granular_event", event.site_id, event.record_id),
        holder_id=event.site_id,
        team_id=event.team_id,
        site_id=event.site_id,
        content=_content(event, action, at),
        summary=_summary(event, action, at),
        metadata=metadata,
    )


def _action(event: GranularEvent) -> str:
    """Return what was done, in words: ``ELEMENT_CLICK`` is a click."""
    words = split_words(event.kind) if event.kind else ""
    return words.removeprefix("element ") or "event"


def _what(event: GranularEvent) -> str:
    """Return what was acted on, by the name that tells most."""
    name = event.element_id or event.element_data_id or ("" if event.target else event.element_class)
    return " ".join(filter(None, (event.element, shorten(name) if name else None)))


def _done(event: GranularEvent, action: str) -> str:
    what = _what(event)
    to = f" to {shorten(event.target)}" if event.target else ""
    return capitalise(shorten(action)) + (f" on {what}" if what else "") + to


def _content(event: GranularEvent, action: str, at: datetime) -> str:
    page = f"page {shorten(event.page)} of " if event.page else ""
    said = [f"{_done(event, action)}, {page}{event.site_name}."]
    if event.into_visit_s is not None:
        said.append(f"{capitalise(say_seconds(event.into_visit_s))} into the visit.")
    if event.wallet_connected is not None:
        said.append("Wallet connected." if event.wallet_connected else "No wallet connected.")
    said.append(say_visitor(None, None, event.country, say_machine(event.device, event.browser, event.system)))
    said.append(say_date(at))
    return " ".join(filter(None, said))


def _summary(event: GranularEvent, action: str, at: datetime) -> str:
    page = shorten(event.page) if event.page else ""
    parts = [_done(event, action), page, event.site_name, say_minute(at)]
    return " · ".join(part for part in parts if part)[:MAX_SUMMARY_CHARS]


def _facts(event: GranularEvent) -> dict[str, Any]:
    """Return the exact figures, without those that are missing: what an answer cites and filters read."""
    return with_known(
        {
            "eventType": event.kind,
            "visitor": event.visitor,
            "sessionId": event.session_id,
            "page": event.page,
            "element": event.element,
            "elementId": event.element_id,
            "elementDataId": event.element_data_id,
            "elementClass": event.element_class,
            "linkTarget": event.target,
            "referrer": event.referrer,
            "secondsIntoVisit": whole(event.into_visit_s),
            "pagesInVisit": whole(event.pages_in_visit),
            "bounced": event.bounced,
            "walletConnected": event.wallet_connected,
            "country": event.country,
            "language": event.language,
            "resolution": event.resolution,
            "device": event.device,
            "system": event.system,
            "browser": event.browser,
            "warnings": event.warnings or None,
        }
    )


def make_granular_event_source(key: bytes) -> Source:
    """Return the source of events; ``key`` makes the pseudonyms. Raises ``TerminalError`` where it is empty."""
    check_key(key)

    def describe(record: Record, owners: Owners, now_ms: int) -> Document:
        return describe_granular_event(parse_granular_event(record, owners, key=key, now_ms=now_ms))

    return Source(
        name="granular_event",
        source_type="analytics",
        collection="granularevents",
        fields=("siteId", "userId", "sessionId", "eventType", "pagePath", "timestamp", *_DATA_FIELDS),
        version=DESCRIBER_VERSION,
        seal=pseudonym("seal", key),
        find_holder=find_site,
        describe=describe,
        time_field="timestamp",
        read_time=lambda record: read_moment_ms(record.get("timestamp")),
        columns=Columns(
            time_ms="time_ms",
            kinds=("eventType", "device"),
            warnings="warnings",
            required=("time_ms", "eventType"),
            optional=("page", "element"),
        ),
    )
