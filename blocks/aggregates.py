"""Aggregate store: figures of days, the units they came from and the records made of them, in the vectors' database.

A unit's figures lie in several documents, which no single write replaces. So a unit has no digest while they are being
replaced, and each carries a seal over all parts of its day: what was cut off is seen, and computed from the rows again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import date, datetime
from hashlib import blake2b
from itertools import groupby
from typing import Any, ClassVar

from bson import ObjectId
from pymongo import DeleteMany, ReplaceOne, UpdateOne
from pymongo.collection import Collection as MongoCollection
from pymongo.write_concern import WriteConcern

from blocks.mongo import MongoDatabase, MongoSource, mongo_errors
from tasks.domain.aggregates.records import to_record
from tasks.domain.aggregates.scopes import UNDATED, AggregateKey, PartialKey, PartialTopic, Scope, record_id
from tasks.domain.aggregates.storage import (
    MAX_PART_BYTES,
    PARTIAL_VERSION,
    Figures,
    OutdatedPartialError,
    decode_partial,
    encode_partial,
)
from tasks.domain.aggregates.units import Unit, UnitKey
from tasks.domain.batches import batched
from tasks.domain.collections import AGGREGATES, PARTIALS, SCOPES, UNITS
from tasks.domain.documents import Document
from tasks.domain.owners import Owners
from tasks.domain.sources import derived_id

Record = dict[str, Any]

_DURABLE = WriteConcern(w="majority", j=True)
_IDS_AT_ONCE = 1_000


class StoredRecords(MongoSource):
    """The store's own records as a source to load from; whose they are is read in the application's database."""

    _block_type_name: ClassVar[str | None] = "Cryptique stored records"
    _block_type_slug: ClassVar[str | None] = "cryptique-stored-records"
    _description: ClassVar[str | None] = "Figures and posted texts; made by a run, never registered."
    setting: ClassVar[str] = "CRYPTIQUE_VECTORS_URI"

    application: MongoSource

    def load_owners(self) -> Owners:
        """Return the contracts and websites of the application's database."""
        return self.application.load_owners()


@dataclass(frozen=True, slots=True)
class Written:
    """How many aggregate records a call wrote, found unchanged, and deleted."""

    written: int = 0
    unchanged: int = 0
    deleted: int = 0

    def __add__(self, other: Written) -> Written:
        """Return both together."""
        return Written(self.written + other.written, self.unchanged + other.unchanged, self.deleted + other.deleted)


@dataclass(frozen=True, slots=True)
class UnitFigures:
    """What the rows of a unit gave: figures by the key of the day that they belong to."""

    digest: str
    rows: int
    refused: int
    partials: Mapping[PartialKey, Figures]


class AggregateStore:
    """The four collections of figures in a store's database. Errors are those of ``mongo_errors``."""

    def __init__(self, store: MongoDatabase) -> None:
        self._store = store

    def _open(self, name: str) -> MongoCollection[Record]:
        return self._store.open_database().get_collection(name, write_concern=_DURABLE)

    def _errors(self, doing: str) -> AbstractContextManager[None]:
        return mongo_errors(doing, self._store.setting)

    # -- units ------------------------------------------------------------------------------------------------

    def read_units(self, zones: Collection[str]) -> dict[UnitKey, Unit]:
        """Return all units on these zones' clocks; those of an older version have no digest."""
        with self._errors("reading the units of figures"):
            return {
                UnitKey(
                    row["topic"],
                    row["ownerId"],
                    None if row["day"] == UNDATED else date.fromisoformat(row["day"]),
                    row["zone"],
                ): Unit(
                    row["digest"] if row["version"] == PARTIAL_VERSION else "",
                    row["rows"],
                    row["refused"],
                    tuple(Scope(*scope) for scope in row["scopes"]),
                    row["described"],
                )
                for row in self._open(UNITS).find({"zone": {"$in": list(zones)}})
            }

    def find_zones(self) -> list[str]:
        """Return the time zones on whose clocks figures are kept."""
        with self._errors("reading the time zones of figures"):
            return sorted(self._open(UNITS).distinct("zone"))

    def replace_units(
        self,
        found: Mapping[UnitKey, UnitFigures],
        before: Mapping[UnitKey, Unit],
        *,
        max_bytes: int = MAX_PART_BYTES,
    ) -> dict[UnitKey, Unit]:
        """Store the figures of whole units in place of those that are there; return the units as they are now.

        Their documents are to be described: those of the scopes that have figures, and of those that had some.
        """
        units = {key: self._unit(key, one, before.get(key)) for key, one in found.items()}
        with self._errors("storing figures"):
            # A unit is without a digest until all of its figures are there.
            self._replace(UNITS, [self._unit_row(key, replace(unit, digest="")) for key, unit in units.items()])
            writes: list[ReplaceOne[Record] | DeleteMany] = []
            size = 0
            for key, one in found.items():
                rows = list(_partial_rows(key, one.partials, max_bytes=max_bytes))
                if key in before:
                    kept = [row["_id"] for row in rows]
                    writes.append(DeleteMany({"unit": _unit_id(key), "_id": {"$nin": kept}}))
                for row in rows:
                    writes.append(ReplaceOne({"_id": row["_id"]}, row, upsert=True))
                    size += len(row["body"])
                if size > max_bytes or len(writes) > _IDS_AT_ONCE:
                    self._open(PARTIALS).bulk_write(writes, ordered=False)
                    writes, size = [], 0
            if writes:
                self._open(PARTIALS).bulk_write(writes, ordered=False)
            self._replace(UNITS, [self._unit_row(key, unit) for key, unit in units.items()])
        return units

    @staticmethod
    def _unit(key: UnitKey, found: UnitFigures, before: Unit | None) -> Unit:
        scopes = {partial.scope for partial in found.partials} | set(before.scopes if before is not None else ())
        return Unit(found.digest, found.rows, found.refused, tuple(sorted(scopes, key=repr)), described=False)

    @staticmethod
    def _unit_row(key: UnitKey, unit: Unit) -> Record:
        return {
            "_id": _unit_id(key),
            "topic": key.topic,
            "ownerId": key.owner_id,
            "day": key.day_text,
            "zone": key.zone,
            "digest": unit.digest,
            "rows": unit.rows,
            "refused": unit.refused,
            "scopes": [[scope.kind, scope.holder_id, scope.part] for scope in unit.scopes],
            "described": unit.described,
            "version": PARTIAL_VERSION,
        }

    def note_described(self, keys: Iterable[UnitKey]) -> None:
        """Put down that the documents of these units tell their figures; of units without figures nothing is left."""
        with self._errors("closing units of figures"):
            for some in batched(keys, _IDS_AT_ONCE):
                ids = [_unit_id(key) for key in some]
                kept: dict[ObjectId, set[tuple[str, str, str]]] = {}
                fields = {"unit": 1, "scope": 1, "holderId": 1, "scopePart": 1}
                for row in self._open(PARTIALS).find({"unit": {"$in": ids}}, fields):
                    scope = (row["scope"], row["holderId"], row["scopePart"])
                    kept.setdefault(row["unit"], set()).add(scope)
                self._open(UNITS).bulk_write(
                    [
                        UpdateOne(
                            {"_id": unit_id},
                            {
                                "$set": {
                                    "described": True,
                                    "scopes": [list(scope) for scope in sorted(kept.get(unit_id, ()))],
                                }
                            },
                        )
                        for unit_id in ids
                    ],
                    ordered=False,
                )
                # What has no rows at all is not looked for again.
                self._open(UNITS).delete_many({"_id": {"$in": ids}, "rows": 0})

    # -- figures ----------------------------------------------------------------------------------------------

    def read_partials(self, topic: PartialTopic, scope: Scope, zone: str) -> Iterator[tuple[date | None, Any]]:
        """Yield the scope's days in their order, one at a time in memory; rows without a time, as None, at the end.

        Raises ``OutdatedPartialError``, which names the day, for damaged figures and those of a write that was cut off.
        """
        named = {
            "topic": topic,
            "holderId": scope.holder_id,
            "scope": scope.kind,
            "scopePart": scope.part,
            "zone": zone,
        }
        with self._errors("reading figures"):
            rows = self._open(PARTIALS).find(named).sort([("day", 1), ("part", 1)])
            for day, parts in groupby(rows, key=lambda row: str(row["day"])):
                yield (None if day == UNDATED else date.fromisoformat(day)), _read(topic, day, list(parts))

    # -- scopes -----------------------------------------------------------------------------------------------

    def read_scopes(self, zone: str) -> dict[tuple[str, Scope], tuple[str, dict[date, int]]]:
        """Return, by family and scope, the seal and the newcomers that its documents were made with."""
        with self._errors("reading the scopes of figures"):
            return {
                (row["family"], Scope(row["scope"], row["holderId"], row["scopePart"])): (
                    row["seal"],
                    {date.fromisoformat(day): count for day, count in row["newcomers"]},
                )
                for row in self._open(SCOPES).find({"zone": zone})
            }

    def save_scope(self, family: str, scope: Scope, zone: str, *, seal: str, newcomers: Mapping[date, int]) -> None:
        """Put down what all documents of a scope are made with now."""
        row = {
            "_id": _scope_id(family, scope, zone),
            "family": family,
            "holderId": scope.holder_id,
            "scope": scope.kind,
            "scopePart": scope.part,
            "zone": zone,
            "seal": seal,
            "newcomers": [[day.isoformat(), count] for day, count in sorted(newcomers.items())],
        }
        with self._errors("storing a scope of figures"):
            self._replace(SCOPES, [row])

    def forget_scope(self, family: str, scope: Scope, zone: str, topics: Collection[str]) -> int:
        """Delete a scope that has no figures any more, with its documents; return how many there were."""
        whose: Record = {
            "zone": zone,
            "holderId": scope.holder_id,
            "metadata.facts.scope": scope.kind,
            "metadata.facts.topic": {"$in": list(topics)},
        }
        if scope.kind in ("chain", "campaign"):
            whose["metadata.facts.chain" if scope.kind == "chain" else "metadata.facts.campaignId"] = scope.part
        with self._errors("forgetting a scope of figures"):
            deleted = self._open(AGGREGATES).delete_many(whose).deleted_count
            self._open(SCOPES).delete_one({"_id": _scope_id(family, scope, zone)})
        return deleted

    def forget_zone(self, zone: str) -> int:
        """Delete all that is kept on a time zone's clocks; return how many records there were."""
        with self._errors("forgetting a time zone"):
            for name in (SCOPES, PARTIALS):
                self._open(name).delete_many({"zone": zone})
            deleted = self._open(AGGREGATES).delete_many({"zone": zone}).deleted_count
            # The last: as long as there are any the zone is known.
            self._open(UNITS).delete_many({"zone": zone})
        return deleted

    # -- records ----------------------------------------------------------------------------------------------

    def save_documents(
        self, documents: Sequence[Document], zone: str, *, gone: Sequence[str] = (), now: datetime
    ) -> Written:
        """Write the records of documents that are new or changed, and delete those of the keys that are ``gone``."""
        written = unchanged = deleted = 0
        with self._errors("storing aggregates"):
            records = self._open(AGGREGATES)
            for some in batched([to_record(document, zone, now) for document in documents], _IDS_AT_ONCE):
                ids = [record["_id"] for record in some]
                known = {row["_id"]: row["digest"] for row in records.find({"_id": {"$in": ids}}, {"digest": 1})}
                changed = [record for record in some if known.get(record["_id"]) != record["digest"]]
                if changed:
                    self._replace(AGGREGATES, changed)
                written, unchanged = written + len(changed), unchanged + len(some) - len(changed)
            for keys in batched(gone, _IDS_AT_ONCE):
                deleted += records.delete_many({"_id": {"$in": [record_id(key) for key in keys]}}).deleted_count
        return Written(written, unchanged, deleted)

    def find_ended(self, zone: str, now: datetime) -> set[AggregateKey]:
        """Return the documents that say "so far" of a period that is over now."""
        ended = {"zone": zone, "metadata.facts.complete": False, "metadata.facts.window.end": {"$lte": now}}
        fields = {f"metadata.facts.{name}": 1 for name in ("topic", "scope", "label", "chain", "campaignId")}
        with self._errors("reading aggregates"):
            return {
                AggregateKey.from_facts(row["metadata"]["facts"], row["holderId"], zone)
                for row in self._open(AGGREGATES).find(ended, {"holderId": 1, **fields})
            }

    def count(self) -> int:
        """Return how many aggregate records there are."""
        with self._errors("counting aggregates"):
            return self._open(AGGREGATES).estimated_document_count()

    def _replace(self, name: str, rows: Sequence[Record]) -> None:
        for some in batched(rows, _IDS_AT_ONCE):
            writes = [ReplaceOne({"_id": row["_id"]}, row, upsert=True) for row in some]
            self._open(name).bulk_write(writes, ordered=False)


def _unit_id(key: UnitKey) -> ObjectId:
    return derived_id(key.text)


def _scope_id(family: str, scope: Scope, zone: str) -> ObjectId:
    return derived_id("scope", family, scope.kind, scope.holder_id, scope.part, zone)


def _partial_rows(key: UnitKey, partials: Mapping[PartialKey, Figures], *, max_bytes: int) -> Iterator[Record]:
    unit_id = _unit_id(key)
    for partial, figures in partials.items():
        bodies = encode_partial(partial.topic, figures, max_bytes=max_bytes)
        shared = {
            "unit": unit_id,
            "topic": partial.topic,
            "holderId": partial.scope.holder_id,
            "scope": partial.scope.kind,
            "scopePart": partial.scope.part,
            "zone": partial.zone,
            "day": key.day_text,
            "parts": len(bodies),
            "seal": _seal(bodies),
        }
        for number, body in enumerate(bodies):
            yield {"_id": derived_id(partial.text, number), **shared, "part": number, "body": body}


def _seal(bodies: Iterable[bytes]) -> str:
    whole = blake2b(digest_size=16)
    for body in bodies:
        whole.update(blake2b(body, digest_size=16).digest())
    return whole.hexdigest()


def _read(topic: PartialTopic, day: str, parts: Sequence[Record]) -> Any:
    bodies = [bytes(row["body"]) for row in parts]
    seal = _seal(bodies)
    if any(row["seal"] != seal or row["parts"] != len(parts) for row in parts):
        raise OutdatedPartialError(f"stored {topic} of {day} are not of one write: compute them from the rows again")
    try:
        return decode_partial(topic, bodies)
    except OutdatedPartialError as error:
        raise OutdatedPartialError(f"{day}: {error}") from None
