"""Posted text: what a member of a team wrote about a website and sent to us, kept as a record of ours, and described.

- The application's database is only read, so these records lie in the store's (``ragtexts``): they are their own truth.
- Of the source types that the application's schema knows it is ``website``: it is about one, belongs to the team
  through it, and holds no figures of any period.
- A record belongs to the team that posted it. Where its website has another team by now it is refused, so that nobody
  reads what others wrote for themselves; it comes back with the website.
- The rules of ``personal.py`` hold before anything is kept: people, tokens and the queries of addresses are replaced by
  ``…``, here and in the labels. Of hexadecimal numbers the beginning stays; addresses are facts in full, but nothing
  longer is: a private key looks like a hash.
- Its time is when it was first posted: it has no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any

from bson import ObjectId

from tasks.domain.collections import TEXTS
from tasks.domain.documents import MAX_SUMMARY_CHARS, Document, make_key
from tasks.domain.errors import RecordError
from tasks.domain.figures import as_datetime, read_moment_ms
from tasks.domain.owners import Owners, Site
from tasks.domain.personal import HIDDEN, hide_people, hide_tokens
from tasks.domain.sources import Record, Source, derived_id
from tasks.domain.texts import clean_text
from tasks.domain.websites import owner_of, read_record_id, shown_site

#: Goes into every vector's lineage. Raise it whenever a text or a fact changes for the same record.
DESCRIBER_VERSION = 1
NAME = "text"
MAX_TEXT_CHARS = 100_000
MAX_LABEL_CHARS = 80
_SUMMARY_TEXT_CHARS = 200
#: Facts hold so many addresses: a list of thousands is no text about them.
_MOST_ADDRESSES = 50
_HASH_BYTES = 16
_URL = re.compile(r"https?://\S*", re.IGNORECASE)
_AFTER_THE_PATH = re.compile(r"[?#].*")
_ADDRESS = re.compile(r"(?<![0-9A-Za-z])0x[0-9a-fA-F]{40}(?![0-9A-Za-z])")


@dataclass(frozen=True, slots=True)
class PostedText:
    """A text as it is kept. ``source``, ``kind`` and ``category`` are its poster's labels, empty where there is none.

    ``addresses`` of wallets and contracts are those that stood in it, in lower case.
    """

    team_id: str
    site_id: str
    text: str
    source: str = ""
    kind: str = ""
    category: str = ""
    addresses: tuple[str, ...] = ()

    @classmethod
    def of(cls, raw: str, *, team_id: str, site_id: str, source: str, kind: str, category: str) -> PostedText:
        """Return a text without what is never kept. Raises ``RecordError`` where nothing is left of it."""
        text = clean(raw)
        if not text.strip(HIDDEN + " \n"):
            raise RecordError("text_empty", "nothing is left of the text without what is personal or secret")
        return cls(
            team_id,
            site_id,
            text,
            source=clean_label(source),
            kind=clean_label(kind),
            category=clean_label(category),
            addresses=tuple(_addresses(raw)),
        )

    @property
    def record_id(self) -> ObjectId:
        """Return the record's ``_id``: the same text for the same website of the same team is the same record."""
        return derived_id(NAME, self.team_id, self.site_id, self.text)

    @property
    def text_hash(self) -> bytes:
        """Return 16 bytes that stand for the text alone: equal texts have one vector."""
        return blake2b(self.text.encode(), digest_size=_HASH_BYTES).digest()

    def labels(self) -> dict[str, str]:
        """Return its labels by the contract's names."""
        return {"source": self.source, "type": self.kind, "category": self.category}


def clean(text: str) -> str:
    """Return a text as it may be kept. A second time changes nothing."""
    return hide_tokens(hide_people(_URL.sub(_without_query, clean_text(text))))


def _without_query(url: re.Match[str]) -> str:
    return _AFTER_THE_PATH.sub(f"?{HIDDEN}", url.group(), count=1)


def clean_label(text: str) -> str:
    """Return a label as it may be kept: one line, ``MAX_LABEL_CHARS`` characters at most."""
    return " ".join(clean(text).split())[:MAX_LABEL_CHARS].strip()


def _addresses(text: str) -> Iterator[str]:
    found = dict.fromkeys(match.group().lower() for match in _ADDRESS.finditer(text))
    yield from islice(found, _MOST_ADDRESSES)


def find_site(record: Record, owners: Owners) -> Site:
    """Return the website of a record. Raises ``RecordError`` where there is none, or it has another team by now."""
    site = owners.find_site(record.get("siteId"))
    team_id = str(record.get("teamId"))
    if owner_of(site) != team_id:
        raise RecordError(
            "owner_changed",
            f"the text was written by team {team_id[:24]} for itself, and its website {site.site_id[:60]} belongs to "
            "another one now: it is stored again if the website comes back",
        )
    return site


def describe_posted_text(record: Mapping[str, Any], owners: Owners) -> Document:
    """Return the document of a record. Pure: the same record gives the same document, to the byte.

    Raises ``RecordError`` where its identity, its text or its owner can't be told.
    """
    record_id = read_record_id(record)
    site = find_site(record, owners)
    raw = record.get("text")
    text = clean(raw) if isinstance(raw, str) else ""
    if not text:
        raise RecordError("text_missing", f"text is of type {type(raw).__name__}, or empty: there is nothing to search")
    source, kind, category = (
        clean_label(label) if isinstance(label := record.get(name), str) else ""
        for name in ("source", "type", "category")
    )
    posted_ms = _read_time(record)
    facts: dict[str, Any] = {"textSource": source, "textType": kind, "textCategory": category}
    facts = {name: value for name, value in facts.items() if value}
    addresses = record.get("addresses")
    if isinstance(addresses, list) and addresses:
        facts["addresses"] = [str(one) for one in addresses[:_MOST_ADDRESSES]]
    metadata: dict[str, Any] = {
        "dataType": "insight",
        "tags": list(dict.fromkeys(label.lower() for label in (NAME, kind, category, source) if label)),
        # Its poster's category is a fact: a text must not pass for what the pipeline describes itself.
        "category": NAME,
        "importance": 5,
        "aggregationLevel": "raw",
        "confidence": 1.0,
        "facts": facts,
    }
    if posted_ms is not None:
        posted = as_datetime(posted_ms)
        metadata["timeframe"] = {"start": posted, "end": posted}
    start = " ".join(text[:_SUMMARY_TEXT_CHARS].split())
    return Document(
        source_type="website",
        source_id=str(record_id),
        key=make_key(NAME, site.site_id, record_id),
        holder_id=site.site_id,
        team_id=owner_of(site),
        site_id=site.site_id,
        content=text,
        summary=" · ".join(filter(None, (kind or category or source, shown_site(site), start)))[:MAX_SUMMARY_CHARS],
        metadata=metadata,
    )


def _describe(record: Record, owners: Owners, _now_ms: int) -> Document:
    return describe_posted_text(record, owners)


def _read_time(record: Record) -> int | None:
    return read_moment_ms(record.get("createdAt"))


#: Its records lie in the vector store's database: who reads them says so (``Parts.of_source``).
POSTED_TEXTS = Source(
    name=NAME,
    source_type="website",
    collection=TEXTS,
    fields=("teamId", "siteId", "text", "source", "type", "category", "addresses", "createdAt"),
    version=DESCRIBER_VERSION,
    find_holder=find_site,
    describe=_describe,
    time_field="createdAt",
    read_time=_read_time,
)
