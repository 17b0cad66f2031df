"""Entry: what an index holds of one vector document beside its vector."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from bson import ObjectId

from tasks.domain.retrieval.filters import NUMBER_FIELDS, NumberField, make_term
from tasks.domain.retrieval.words import words_of
from tasks.domain.texts import split_words

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_HASH = re.compile(r"0x[0-9a-fA-F]{64}")
#: People shorten hashes and addresses: of each its beginning is a term of its own.
SHORT_CHARS = 8
#: A longer value is a text: nobody asks for it whole.
_LONGEST_VALUE = 120
#: Of a list of facts this many are terms.
_LONGEST_LIST = 200
#: Fields whose values are known by name, so that a question's words can be looked up among them.
CATALOGUE = (
    "source",
    "chain",
    "token",
    "category",
    "site",
    "facts.contractName",
    "facts.method",
    "facts.name",
    "facts.subject",
)
#: Facts that are compared as numbers, or that no question asks for by their whole text.
_NO_TERMS = frozenset({*NUMBER_FIELDS, "stakingAmount", "warnings", "txHash", "aggregate"})
_METADATA = {
    "category": "category",
    "aggregationLevel": "level",
    "metricType": "metric",
    "userSegment": "segment",
    "deviceType": "device",
    "dataType": "data",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """``row_id`` is the document's ``_id``. ``terms`` are exact.

    ``words`` are the stems of its text in their order.

    ``fold`` is the same for documents that say the same once more: the chunks of one record. ``state`` stands for what
    the document is stored as: where it is the same, nothing changed.
    """

    row_id: ObjectId
    document_id: str
    words: tuple[str, ...]
    terms: frozenset[str]
    numbers: Mapping[NumberField, float]
    fold: str
    state: int


def make_entry(row: Mapping[str, Any]) -> Entry:
    """Return the entry of a stored row; its embedding is not looked at."""
    metadata = row.get("metadata") or {}
    document_id = str(row["documentId"])
    return Entry(
        row_id=row["_id"],
        document_id=document_id,
        words=tuple(words_of(_searched(row, metadata))),
        terms=frozenset(terms_of(row)),
        numbers=numbers_of(metadata),
        fold=document_id.rpartition(":")[0],
        state=state_of(row),
    )


def state_of(row: Mapping[str, Any]) -> int:
    """Return 64 bits that stand for what a row is stored as: the hashes of its text and facts, and whose it is."""
    held = (row.get("contentHash"), row.get("rowHash"), row.get("teamId"), row.get("siteId"), row.get("status"))
    return int.from_bytes(blake2b(repr(held).encode(), digest_size=8).digest(), "little")


def terms_of(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the exact terms of a stored row.

    Fields: ``team``, ``site``, ``source`` (its source type), ``record``; ``category``, ``level``, ``metric``,
    ``segment``, ``device``, ``data``, ``tag``, ``chain``, ``token`` (symbol or unit) of its metadata; ``aggregate``,
    yes or no; ``facts.NAME`` for each fact that is a text or a truth; ``address`` and ``hash`` for each in its facts,
    and ``short`` for the beginning of each; ``missing`` with the name of each of ``start``, ``amount``, ``gasUsed``,
    ``status``, ``staking`` and ``token`` that it has not.
    """
    metadata = row.get("metadata") or {}
    facts = metadata.get("facts") or {}
    yield make_term("team", str(row["teamId"]))
    yield make_term("site", str(row["siteId"]))
    yield make_term("source", str(row["sourceType"]))
    yield make_term("record", str(row["sourceId"]))
    for name, field in _METADATA.items():
        if isinstance(value := metadata.get(name), str):
            yield make_term(field, value)
    for tag in metadata.get("tags") or ():
        yield make_term("tag", str(tag))
    yield make_term("aggregate", "yes" if facts.get("aggregate") else "no")
    if isinstance(chain := facts.get("chain"), str):
        yield make_term("chain", chain)
    for symbol in {facts.get("tokenSymbol"), facts.get("unit")}:
        if isinstance(symbol, str):
            yield make_term("token", symbol)
    for name, value in facts.items():
        if name in _NO_TERMS:
            continue
        if isinstance(value, bool):
            yield make_term(f"facts.{name}", "yes" if value else "no")
        elif isinstance(value, str) and len(value) <= _LONGEST_VALUE:
            yield make_term(f"facts.{name}", value)
    for value in _exact(metadata):
        if _ADDRESS.fullmatch(value):
            yield make_term("address", value)
        elif _HASH.fullmatch(value):
            yield make_term("hash", value)
        else:
            continue
        yield make_term("short", value[:SHORT_CHARS])
    numbers = numbers_of(metadata)
    for name in ("start", "amount", "gasUsed"):
        if name not in numbers:
            yield make_term("missing", name)
    for name, fact in (("status", "status"), ("staking", "stakingType"), ("token", "tokenSymbol")):
        if fact not in facts:
            yield make_term("missing", name)


def numbers_of(metadata: Mapping[str, Any]) -> dict[NumberField, float]:
    """Return the numbers that a document has."""
    facts, frame = metadata.get("facts") or {}, metadata.get("timeframe") or {}
    found: dict[NumberField, float] = {}
    for name in NUMBER_FIELDS:
        value = frame.get(name) if name in ("start", "end") else metadata.get(name, facts.get(name))
        if isinstance(value, datetime):
            found[name] = (value.replace(tzinfo=UTC) if value.tzinfo is None else value).timestamp()
        elif isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                found[name] = float(value)
            except ValueError:
                continue
    return {name: value for name, value in found.items() if value == value}


def _searched(row: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    facts = metadata.get("facts") or {}
    method = facts.get("method")
    more = (split_words(method) if isinstance(method, str) else "", facts.get("tokenSymbol"), metadata.get("category"))
    return " ".join([str(row["content"]), *(one for one in more if isinstance(one, str))])


def _exact(metadata: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(address := metadata.get("contractAddress"), str):
        yield address
    for value in (metadata.get("facts") or {}).values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from (one for one in value[:_LONGEST_LIST] if isinstance(one, str))
