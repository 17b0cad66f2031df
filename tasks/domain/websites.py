"""Website: a record of the source's ``websites``, and the words by which all that was tracked on it names it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bson import ObjectId

from tasks.domain.aggregates.periods import MONTHS
from tasks.domain.columns import Columns
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document, make_key
from tasks.domain.errors import RecordError
from tasks.domain.figures import as_datetime, confidence_of
from tasks.domain.owners import Owners, Site
from tasks.domain.sources import Record, Source
from tasks.domain.texts import clean_name

#: Goes into every vector's lineage. Raise it whenever a text or a fact changes for the same record.
DESCRIBER_VERSION = 1
#: A name longer than this is a text, not a name.
MAX_NAME_CHARS = 80
#: Facts hold no text of any length that somebody happened to write.
MAX_FACT_CHARS = 200
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Website:
    """One tracked website with its owner. ``created_ms`` is the time in its ``_id``: it has no other."""

    record_id: str
    site_id: str
    team_id: str
    name: str | None
    domain: str | None
    verified: bool | None
    has_analytics: bool
    created_ms: int
    warnings: tuple[str, ...]


def parse_website(record: Mapping[str, Any], owners: Owners) -> Website:
    """Return the website of a record. Raises ``RecordError`` where its identity or its owner can't be told."""
    warnings: list[str] = []
    record_id = read_record_id(record)
    site = owners.find_site(record.get("siteId"))
    verified = record.get("isVerified")
    if verified is not None and not isinstance(verified, bool):
        warnings.append(f"isVerified of type {type(verified).__name__} left out")
        verified = None
    warn_unless_text(record, ("Name", "Domain"), warnings)
    return Website(
        record_id=str(record_id),
        site_id=site.site_id,
        team_id=owner_of(site),
        name=one_line(record.get("Name")),
        domain=bare_domain(record.get("Domain")),
        verified=verified,
        has_analytics=isinstance(record.get("analytics"), ObjectId),
        created_ms=created_ms(record_id),
        warnings=tuple(warnings),
    )


def describe_website(website: Website) -> Document:
    """Return the document of a website. Pure: the same website gives the same document, to the byte."""
    place = _named(website.name, website.domain)
    created = as_datetime(website.created_ms)
    verified = {True: "verified", False: "not verified", None: ""}[website.verified]
    states = [verified, f"tracked since {shown_day(created)}"]
    facts: dict[str, Any] = {
        "name": website.name[:MAX_FACT_CHARS] if website.name else None,
        "domain": website.domain[:MAX_FACT_CHARS] if website.domain else None,
        "verified": website.verified,
        "hasAnalytics": website.has_analytics,
        "createdAt": created,
        "warnings": "; ".join(website.warnings) or None,
    }
    metadata: dict[str, Any] = {
        "timeframe": {"start": created, "end": created},
        "dataType": "insight",
        "tags": [word for word in ("website", verified) if word],
        "category": "website",
        "importance": 5,
        "aggregationLevel": "raw",
        "confidence": confidence_of(website.warnings),
        "facts": {name: value for name, value in facts.items() if value is not None},
    }
    return Document(
        source_type="website",
        source_id=website.record_id,
        key=make_key("website", website.site_id),
        holder_id=website.site_id,
        team_id=website.team_id,
        site_id=website.site_id,
        content=f"{place}: {', '.join(filter(None, states))}.",
        summary=" · ".join(filter(None, (place, verified)))[:MAX_SUMMARY_CHARS],
        metadata=metadata,
    )


def shown_site(site: Site) -> str:
    """Return what a text calls a website: ``Website Tidewater (tidewater.example)``, or as much as is known."""
    return _named(one_line(site.name), bare_domain(site.domain))


def one_line(raw: object) -> str | None:
    """Return a name cleaned and on one line, or None where there is nothing to show or it is not text."""
    name = clean_name(raw)
    return " ".join(name.split()) or None if name else None


def bare_domain(raw: object) -> str | None:
    """Return a domain without scheme, path and case: websites are entered as ``https://tidewater.example/`` too."""
    text = one_line(raw)
    if text is None:
        return None
    return _SCHEME.sub("", text, count=1).partition("/")[0].lower() or None


def warn_unless_text(record: Record, fields: Iterable[str], warnings: list[str]) -> None:
    """Add the names of those fields that hold something else than text."""
    held = ((field, record.get(field)) for field in fields)
    warnings.extend(
        f"{field} of type {type(raw).__name__} left out"
        for field, raw in held
        if raw is not None and not isinstance(raw, str)
    )


def shown_day(moment: datetime) -> str:
    """Return ``8 May 2022``, in English on every machine."""
    return f"{moment.day} {MONTHS[moment.month - 1]} {moment.year}"


def owner_of(site: Site) -> str:
    """Return the team of a website that ``Owners.find_site`` found: it has one, or would have been refused."""
    if site.team_id is None:
        raise RecordError("owner_missing", f"website {site.site_id[:60]} has no team, so nobody may see its records")
    return site.team_id


def read_record_id(record: Record) -> ObjectId:
    """Return the record's ``_id``. Raises ``RecordError`` where it is no ObjectId."""
    record_id = record.get("_id")
    if not isinstance(record_id, ObjectId):
        raise RecordError(
            "id_not_objectid", f"_id is of type {type(record_id).__name__}: a vector document refers to an ObjectId"
        )
    return record_id


def created_ms(record_id: ObjectId) -> int:
    """Return when an id was made, in epoch milliseconds: the only time that some records have."""
    return int.from_bytes(record_id.binary[:4], "big") * 1000


def time_in_id(record: Record) -> int | None:
    """Return the time in a record's ``_id``, in epoch milliseconds, or None where it holds none."""
    record_id = record.get("_id")
    return created_ms(record_id) if isinstance(record_id, ObjectId) else None


def find_site(record: Record, owners: Owners) -> Site:
    """Return the website through which a record has its team. Raises ``RecordError`` where there is none."""
    return owners.find_site(record.get("siteId"))


def _named(name: str | None, domain: str | None) -> str:
    if name and domain and name.lower() != domain:
        return f"Website {name[:MAX_NAME_CHARS]} ({domain[:MAX_NAME_CHARS]})"
    return f"Website {(name or domain or 'without a name')[:MAX_NAME_CHARS]}"


def _describe(record: Record, owners: Owners, _now_ms: int) -> Document:
    return describe_website(parse_website(record, owners))


WEBSITES = Source(
    name="website",
    source_type="website",
    collection="websites",
    fields=("siteId", "Domain", "Name", "isVerified", "analytics"),
    version=DESCRIBER_VERSION,
    find_holder=find_site,
    describe=_describe,
    time_field=None,
    read_time=time_in_id,
    columns=Columns(kinds=("verified",), warnings="warnings", required=("domain",)),
)
