"""Lineage: what an id may mean, what a stored row was computed from, and how it differs from what is made now."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import bson
from bson import ObjectId

_OBJECT_ID = re.compile("[0-9a-fA-F]{24}")
_NUMBER = re.compile("-?[0-9]{1,18}")
_HASH = re.compile("(?:0[xX])?([0-9a-fA-F]{64})")
_TRANSACTION = "transaction"
_HASH_PART = 2

State = Literal["current", "text changed", "fields changed", "not made", "refused", "gone", "kept", "edited", "unknown"]


@dataclass(frozen=True, slots=True)
class AskedId:
    """What an id may mean. ``source`` is the word before a record's id, None where any source's may be meant.

    ``document_ids`` are exact; ``record_ids`` are the ``_id`` of records or of vector documents, of each type that the
    word may be; ``tx_hash`` is a transaction's hash as document ids have it.
    """

    source: str | None
    document_ids: tuple[str, ...]
    record_ids: tuple[Any, ...]
    tx_hash: str | None

    @property
    def hash_spellings(self) -> tuple[str, ...]:
        """Return how a source may have written the hash."""
        if self.tx_hash is None:
            return ()
        bare = self.tx_hash.removeprefix("0x")
        return (self.tx_hash, bare, f"0x{bare.upper()}", bare.upper())


def parse_asked(text: str) -> AskedId:
    """Return what an id may mean: a document id with or without its ordinal, an ``_id``, a hash, ``source:_id``."""
    text = text.strip()
    head, _, rest = text.partition(":")
    parts = text.split(":")
    if len(parts) == _HASH_PART:
        # ``session:665f…``, as the field ``source`` of a vector document has it.
        return AskedId(head, (f"{text}:0",), _record_ids(rest), None)
    if len(parts) > _HASH_PART:
        # Of a record that makes fewer chunks now, the ordinal may be gone and the document not.
        document_ids = (text, f"{text}:0", f"{text.rpartition(':')[0]}:0")
        tx_hash = _tx_hash(parts[_HASH_PART]) if head == _TRANSACTION else None
        return AskedId(None, document_ids, (), tx_hash)
    return AskedId(None, (text,), _record_ids(text), _tx_hash(text))


def _record_ids(word: str) -> tuple[Any, ...]:
    """Return the ids that a word may be: of most records an ObjectId, of those that dead letters name anything."""
    found: list[Any] = [ObjectId(word)] if _OBJECT_ID.fullmatch(word) else []
    if _NUMBER.fullmatch(word):
        found.append(int(word))
    return (*found, word) if word else ()


def _tx_hash(word: str) -> str | None:
    found = _HASH.fullmatch(word)
    return f"0x{found[1].lower()}" if found else None


def source_of(row: Mapping[str, Any]) -> str:
    """Return the name of the source that a vector document is of, by its document id."""
    return str(row["documentId"]).partition(":")[0]


def computed_from(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a row's figures were computed from, or None where it is no aggregate.

    Scope, period, time zone and window, and of the rows that were read their collections, number, time and digest: as
    far as its facts say so.
    """
    metadata = row.get("metadata")
    facts = metadata.get("facts") if isinstance(metadata, Mapping) else None
    if not isinstance(facts, Mapping) or not (facts.get("aggregate") or "computedFrom" in facts):
        return None
    names = ("topic", "scope", "contractId", "chain", "campaignId", "period", "label", "timeZone", "complete", "window")
    read = facts.get("computedFrom")
    found = {name: facts[name] for name in names if facts.get(name) is not None}
    return {**found, **read} if isinstance(read, Mapping) else found


@dataclass(frozen=True, slots=True)
class Difference:
    """A field in which a stored row is not what its record is described as now; None where one of them lacks it."""

    name: str
    stored: Any
    now: Any


@dataclass(frozen=True, slots=True)
class Standing:
    """How a stored row compares with what its record makes now, in a word and in a sentence.

    ``text changed`` is embedded again by the next run that looks at it, ``fields changed`` only written. ``not made``:
    the record makes other documents now. ``kept``: the record is gone from a source that forgets. ``edited``: something
    else than this pipeline changed the row since it was written.
    """

    state: State
    says: str
    differences: tuple[Difference, ...] = ()


def find_differences(stored: Mapping[str, Any], now: Mapping[str, Any], beneath: str = "") -> Iterator[Difference]:
    """Yield the fields in which a stored row is another; at the top only those that describing decides."""
    for name in dict.fromkeys((*now, *(stored if beneath else ()))):
        before, after = stored.get(name), now.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from find_differences(before, after, f"{beneath}{name}.")
        elif bson.encode({"": before}) != bson.encode({"": after}):
            yield Difference(f"{beneath}{name}", before, after)


def what_to_do(
    letter: Mapping[str, Any], plural: str, *, in_source: bool | None, refused: str | None, held: bool
) -> str:
    """Return what becomes of a dead letter: who closed it, or how to.

    ``in_source`` is whether its record is there, ``refused`` the code with which describing refuses it now, and
    ``held`` whether another record has its place in the store.
    """
    code = letter.get("code")
    if letter.get("status") != "open":
        when = letter.get("resolvedAt")
        return f"nothing: it was closed by the run {letter.get('resolvedBy')}" + (
            f" on {when:%Y-%m-%d}" if when else ""
        )
    command = f"`cryptique-rag replay --source {plural} --reason {code}`"
    if in_source is False:
        return f"its record is gone from the source: {command} closes it"
    if refused is not None and plural == "aggregates":
        return f"`cryptique-rag aggregate` makes the record again; then {command}"
    if refused is not None:
        return f"mend the record in the source (or the code that refuses it), then {command}"
    if held:
        return f"delete one of the two records in the source, then {command}"
    if in_source is None:
        return f"once its source can be read: {command}"
    return f"the record can be described now: {command} takes it through the stages again"
