"""Document: the text that a record is found by, and the facts that an answer cites; whatever the source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_SUMMARY_CHARS = 500


@dataclass(frozen=True, slots=True)
class Document:
    """What one record is stored as, before it is cut: ``metadata`` and its ``facts`` hold plain BSON types.

    ``key`` makes the document's id (``transaction:<contract>:<hash>``, see ``make_key``); a chunk appends its ordinal.
    ``holder_id`` names the contract or the website through which it got its team.
    """

    source_type: str
    source_id: str
    key: str
    holder_id: str
    team_id: str
    site_id: str
    content: str
    summary: str
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class DescribedRecord:
    """A row of the files that extract hands over: a record's document, with what all its chunks share encoded once.

    ``head`` are BSON elements (``tasks/domain/rows.py``), ``source_digest`` is what the record was made from.
    """

    record_id: str
    team_id: str
    holder_id: str
    key: str
    content: str
    head: bytes
    source_digest: bytes


def make_key(source: str, holder_id: str, *parts: object) -> str:
    """Return the stable identity of a record's document: its source's name, its holder, and what tells it from others.

    A colon within a part is written as ``%3A``, so that no two lists of parts give one key.
    """
    return ":".join((source, _quoted(holder_id), *(_quoted(str(part)) for part in parts)))


def holder_of(document_id: str) -> str:
    """Return the holder's id of a key or a document id."""
    return document_id.split(":", 2)[1].replace("%3A", ":").replace("%25", "%")


def _quoted(part: str) -> str:
    return part.replace("%", "%25").replace(":", "%3A") if "%" in part or ":" in part else part
